-- What operators look at (F5, W2). docs/kpis.md says the same in words; here is what counts.

-- name: room
-- So that what is sorted and joined below stays in memory: until the transaction ends.
SELECT set_config('work_mem', '64MB', true)

-- name: figures
-- The figures of all requests that were made from the day $1 to the day $2, both included, in UTC; as a
-- whole, by $3 (day, strategy, experiment) as `key` and `arm`, and both by routing type as well.
--
-- Once accepted: some round of it has a winner, whatever became of it later.
-- Of those, `favorite_wanted`: the customer asked for her favourite first. They are dispatched so
-- (priority_broadcast), or are in an experiment: those touch nothing else. `favorite_accepted`: the
-- favourite was the first to accept, in her window or after it. `asked_first`: the favourite was
-- asked before all others; `fell_back`: everybody was asked then. `rebooked`: up to now the same customer
-- has booked again later, by name with the mechanic who accepted last, or her workshop.
-- `started`: both have joined; `seconds`: from the booking (for later: from its opening) until then.
WITH named AS (
    SELECT r.customer_id, provider_id, max(r.created_at) AS last_at
      FROM session_requests r
     CROSS JOIN LATERAL (VALUES (r.preferred_mechanic_id), (r.preferred_workshop_id)) AS v (provider_id)
     WHERE provider_id IS NOT NULL AND r.created_at >= $1::date::timestamp AT TIME ZONE 'UTC'
     GROUP BY r.customer_id, provider_id
), asked AS (
    SELECT r.customer_id, r.status, r.routing_type COLLATE "C" AS routing_type,
           CASE $3 WHEN 'day' THEN (r.created_at AT TIME ZONE 'UTC')::date::text
                   WHEN 'strategy' THEN r.routing_type
                   WHEN 'experiment' THEN r.experiment END COLLATE "C" AS key,
           CASE $3 WHEN 'experiment' THEN r.arm END COLLATE "C" AS arm,
           first.mechanic_id IS NOT NULL AS accepted,
           r.routing_type = 'priority_broadcast' OR r.experiment IS NOT NULL AS favorite_wanted,
           first.mechanic_id = r.preferred_mechanic_id AS favorite_accepted,
           r.routing_type = 'priority_broadcast' AS asked_first,
           r.fallback_broadcast_at IS NOT NULL AS fell_back,
           her.last_at > r.created_at OR there.last_at > r.created_at AS rebooked,
           extract(epoch FROM s.started_at - r.opens_at)::float8 AS seconds
      FROM session_requests r
      JOIN sessions s ON s.id = r.session_id
      -- A round is followed by another where somebody had won it: the first winner is the first round's.
      JOIN session_assignments first ON first.request_id = r.id AND first.generation = 1
      LEFT JOIN session_assignments before
             ON before.request_id = r.id AND before.generation = r.generation - 1
      LEFT JOIN named her ON her.customer_id = r.customer_id
                         AND her.provider_id = coalesce(r.mechanic_id, before.mechanic_id)
      LEFT JOIN named there ON there.customer_id = r.customer_id AND there.provider_id = r.workshop_id
     WHERE r.created_at >= $1::date::timestamp AT TIME ZONE 'UTC'
       AND r.created_at < ($2::date + 1)::timestamp AT TIME ZONE 'UTC'
)
SELECT grouping(key) = 1 AS is_total, key, arm,
       grouping(routing_type) = 1 AS is_every_routing, routing_type,
       count(*) AS requests,
       count(DISTINCT customer_id) AS customers,
       count(*) FILTER (WHERE accepted) AS accepted,
       count(*) FILTER (WHERE status = 'completed') AS completed,
       count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
       count(*) FILTER (WHERE status = 'expired') AS expired,
       count(*) FILTER (WHERE accepted AND favorite_wanted) AS favorite_wanted,
       count(*) FILTER (WHERE accepted AND favorite_wanted AND favorite_accepted)
           AS favorite_accepted,
       count(*) FILTER (WHERE accepted AND asked_first) AS asked_first,
       count(*) FILTER (WHERE accepted AND asked_first AND fell_back) AS fell_back,
       count(*) FILTER (WHERE accepted AND rebooked) AS rebooked,
       count(seconds) AS started,
       percentile_cont(ARRAY[0.5, 0.9]) WITHIN GROUP (ORDER BY seconds) AS seconds
  FROM asked
 GROUP BY GROUPING SETS ((), (routing_type), (key, arm), (key, arm, routing_type))
HAVING grouping(key) = 1 OR key IS NOT NULL
 ORDER BY key, arm, routing_type

-- name: workshops
-- What became of those of these requests that had to do with a workshop; who served most comes first.
SELECT workshop_id, workshop_name,
       sum(preferred)::bigint AS preferred, sum(served)::bigint AS served,
       sum(preferred_and_served)::bigint AS preferred_and_served,
       sum(completed)::bigint AS completed
  FROM workshop_session_analytics
 WHERE day BETWEEN $1 AND $2
 GROUP BY workshop_id, workshop_name
 ORDER BY served DESC, workshop_name, workshop_id
