-- Web push: the devices of mechanics, and what they are told.

-- name: approved
-- Whether a mechanic is approved; no row for one who was deleted.
SELECT c.approved FROM candidates c JOIN mechanics m ON m.id = c.mechanic_id
 WHERE m.id = $1 AND m.deleted_at IS NULL

-- name: lock_mechanic
-- One change of a mechanic's devices at a time, and none of one who is deleted.
SELECT true FROM mechanics WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE

-- name: subscribe
-- A device of this mechanic; `is_new` unless it was hers before. A browser has one endpoint,
-- whoever logs in with it: what was somebody else's becomes hers, as a new one.
INSERT INTO push_subscriptions AS s (id, mechanic_id, endpoint, p256dh, auth, device)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (endpoint) DO UPDATE
   SET id = CASE WHEN s.mechanic_id = $2 THEN s.id ELSE excluded.id END,
       created_at = CASE WHEN s.mechanic_id = $2 THEN s.created_at ELSE excluded.created_at END,
       delivered_at = CASE WHEN s.mechanic_id = $2 THEN s.delivered_at END,
       mechanic_id = excluded.mechanic_id, p256dh = excluded.p256dh, auth = excluded.auth,
       device = excluded.device
RETURNING id, device, created_at, delivered_at, id = $1 AS is_new

-- name: forget_oldest
-- Of a mechanic's devices only the latest stay.
DELETE FROM push_subscriptions
 WHERE id IN (SELECT id FROM push_subscriptions WHERE mechanic_id = $1
               ORDER BY created_at DESC, id OFFSET $2)

-- name: unsubscribe
-- Whether it was a device of hers.
DELETE FROM push_subscriptions WHERE id = $1 AND mechanic_id = $2 RETURNING true

-- name: subscriptions
-- A mechanic's devices, the latest first.
SELECT id, device, created_at, delivered_at FROM push_subscriptions
 WHERE mechanic_id = $1 ORDER BY created_at DESC, id

-- name: queue
-- One notification a round and mechanic, for those of them who have a device.
INSERT INTO outbox (kind, idempotency_key, payload, next_try_at)
SELECT 'push', 'push-' || $1::uuid || '-' || $2::int || '-' || m.id,
       jsonb_build_object('request_id', $1::uuid, 'generation', $2::int, 'offer_id', $3::uuid,
                          'mechanic_id', m.id),
       dispatch_now()
  FROM unnest($4::uuid[]) AS m (id)
 WHERE EXISTS (SELECT 1 FROM push_subscriptions s WHERE s.mechanic_id = m.id)
ON CONFLICT (idempotency_key) DO NOTHING
RETURNING true

-- name: away
-- Mechanics with a device and without a connection, as routing sees them, the last seen first.
SELECT c.* FROM candidates c JOIN mechanics m ON m.id = c.mechanic_id
 WHERE NOT m.is_online AND EXISTS (SELECT 1 FROM push_subscriptions s WHERE s.mechanic_id = m.id)
 ORDER BY m.last_seen DESC NULLS LAST, m.id

-- name: issue
-- They are asked by a notification, which is kept like being asked by name.
INSERT INTO offers (request_id, generation, mechanic_id, status, stage, score, issued_at)
SELECT $1, $2, asked.mechanic_id, 'issued', $3, asked.score, dispatch_now()
  FROM unnest($4::uuid[], $5::int[]) AS asked (mechanic_id, score)
ON CONFLICT (request_id, generation, mechanic_id) DO NOTHING

-- name: devices
-- Where a mechanic can be told, without the devices ($2) that need it no more; and what time it is.
SELECT id, endpoint, p256dh, auth, dispatch_now() AS now FROM push_subscriptions
 WHERE mechanic_id = $1 AND id <> ALL ($2)

-- name: settle
-- A device ($2) needs this notification no more; written at once, so that no retry sends it again.
UPDATE outbox SET payload = jsonb_set(payload, '{settled}',
                                      coalesce(payload -> 'settled', '[]') || to_jsonb($2::uuid))
 WHERE idempotency_key = $1

-- name: note_delivered
-- A push service took it.
WITH device AS (UPDATE push_subscriptions SET delivered_at = dispatch_now() WHERE id = $1)
UPDATE offers SET pushed_at = dispatch_now()
 WHERE request_id = $2 AND generation = $3 AND mechanic_id = $4 AND pushed_at IS NULL

-- name: gone
-- The push service knows it no more.
DELETE FROM push_subscriptions WHERE id = $1
