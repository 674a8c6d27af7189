-- Presence in Redis. One script, because the answers to "was she the first?" and "may this node
-- still write?" must be true in the moment of the writing. Runs on Redis 7 and Valkey 9.
--
-- KEYS  epoch      string: the present epoch; what was written in another is not there any more
--       nodes      hash: lease -> [deadline µs, renewed µs, seq, published], msgpack
--       users      hash: user -> {lease.connection: device}, msgpack; nobody without a connection
--       mechanics  hash: mechanic who is online -> workshop or ''
--       workshops  hash: workshop -> how many of its mechanics are online
--       seen       hash: mechanic -> µs
--       members    set of one lease: user .. connection (32 hexadecimal digits each)
-- ARGV  verb, epoch, lease, and what the verb needs
-- Gives msgpack [status, now µs, [[user, online, seen µs], …], [user, …]]: the users to tell about,
-- in order, and the mechanics who were added here while another node has them too.
-- Times are Redis's own; a lease names a node and its incarnation.
local EPOCH, NODES, USERS, MECHANICS, WORKSHOPS, SEEN, MEMBERS = unpack(KEYS)
local verb, epoch, lease = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local told, shared = {}, {}

local function answer(status)
  return cmsgpack.pack({status, now, told, shared})
end

local function count(workshop, by)
  if workshop ~= '' and redis.call('HINCRBY', WORKSHOPS, workshop, by) <= 0 then
    redis.call('HDEL', WORKSHOPS, workshop)
  end
end

-- The workshop for which the mechanic counts; nil when she is not online any more.
local function count_mechanic(user, workshop)
  local before = redis.call('HGET', MECHANICS, user)
  if before == workshop then return end
  if before then count(before, -1) end
  if workshop then
    redis.call('HSET', MECHANICS, user, workshop)
    count(workshop, 1)
  else
    redis.call('HDEL', MECHANICS, user)
  end
end

-- What is seen later has a later time, whatever the clocks did: the mirror relies on it.
local function see(user, seen)
  seen = math.max(seen, (tonumber(redis.call('HGET', SEEN, user)) or 0) + 1)
  redis.call('HSET', SEEN, user, seen)
  return seen
end

local function add(user, connection, mechanic, workshop, device, silent, again)
  local packed = redis.call('HGET', USERS, user)
  local entries = packed and cmsgpack.unpack(packed) or {}
  local key = lease .. '.' .. connection
  if again then entries[key] = nil end
  local first = next(entries) == nil
  entries[key] = device
  redis.call('HSET', USERS, user, cmsgpack.pack(entries))
  redis.call('SADD', MEMBERS, user .. connection)
  if not mechanic then return end
  for other in pairs(entries) do
    if string.sub(other, 1, #lease) ~= lease then
      shared[#shared + 1] = user
      break
    end
  end
  count_mechanic(user, workshop)
  if first then
    local seen = see(user, now)
    if not silent then told[#told + 1] = {user, true, seen} end
  end
end

local function remove(user, connection, mechanic, seen)
  local packed = redis.call('HGET', USERS, user)
  local entries = packed and cmsgpack.unpack(packed) or {}
  entries[lease .. '.' .. connection] = nil
  redis.call('SREM', MEMBERS, user .. connection)
  if next(entries) ~= nil then
    redis.call('HSET', USERS, user, cmsgpack.pack(entries))
    return
  end
  redis.call('HDEL', USERS, user)
  if mechanic or redis.call('HEXISTS', MECHANICS, user) == 1 then
    count_mechanic(user, nil)
    told[#told + 1] = {user, false, see(user, seen)}
  end
end

if redis.call('GET', EPOCH) ~= epoch then return answer('lost') end
local packed_node = redis.call('HGET', NODES, lease)
local node = packed_node and cmsgpack.unpack(packed_node)

if verb == 'apply' then
  -- Writes a node's changes and renews its lease. A lease that ran out is never renewed, and a
  -- batch that was overtaken by a later one is void: that is how a node that was stopped, or a
  -- message that was, cannot bring back the dead.
  local seq, lease_us, published = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
  if node and node[1] < now or not node and seq > 1 then return answer('fenced') end
  if node and node[3] >= seq then return answer('late') end
  for _, c in ipairs(cmsgpack.unpack(ARGV[7])) do
    if c[1] == 'add' then
      add(c[2], c[3], c[4], c[5], c[6], c[7], c[8])
    else
      remove(c[2], c[3], c[4], now - c[5])
    end
  end
  redis.call('HSET', NODES, lease, cmsgpack.pack({now + lease_us, now, seq, published}))
  return answer('ok')
end

-- verb == 'bury': removes some entries of a node whose lease ran out (or, 'forced', of our own).
if not node then return answer('gone') end
if ARGV[5] ~= 'forced' and node[1] >= now then return answer('alive') end
local limit = tonumber(ARGV[4])
local members = redis.call('SPOP', MEMBERS, limit)
for _, member in ipairs(members) do
  remove(string.sub(member, 1, 32), string.sub(member, 33), false, node[2])
end
if #members == limit then return answer('more') end
redis.call('HDEL', NODES, lease)
return answer('gone')
