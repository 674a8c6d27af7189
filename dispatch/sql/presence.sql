-- The leases of nodes, and the mirror of presence in the rows of mechanics. A lease is about the
-- life of a process: it is measured with the real clock, which no test moves.

-- name: renew_node
-- Node, incarnation, pid, host, clients, lag in ms, seconds of the lease. Gives the nodes whose
-- lease is live, this one included. Nodes that have been gone for an hour are forgotten.
WITH renewed AS (
    INSERT INTO nodes (node_id, incarnation, pid, host, clients, lag_ms, lease_until)
    VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $7))
    ON CONFLICT (node_id) DO UPDATE
       SET incarnation = excluded.incarnation, clients = excluded.clients,
           lag_ms = excluded.lag_ms, lease_until = excluded.lease_until
), forgotten AS (
    DELETE FROM nodes WHERE node_id IN (
        SELECT node_id FROM nodes
         WHERE lease_until < clock_timestamp() - interval '1 hour' AND node_id <> $1
           FOR UPDATE SKIP LOCKED)
)
SELECT node_id FROM nodes WHERE lease_until > clock_timestamp() AND node_id <> $1
UNION ALL
SELECT $1;

-- name: give_back_node
-- The node is gone.
DELETE FROM nodes WHERE node_id = $1;

-- name: mirror_presence
-- Mechanics, whether they are online, when they were last seen (null: as it was). Gives those that
-- are done: what another transaction holds at this moment is left for the next time, so that nobody
-- waits for a mirror. An older sight than the row's changes nothing.
WITH wanted AS (
    SELECT * FROM unnest($1::uuid[], $2::boolean[], $3::timestamptz[]) AS w (id, online, seen)
), free AS (
    SELECT m.id FROM mechanics m JOIN wanted w ON w.id = m.id FOR NO KEY UPDATE OF m SKIP LOCKED
), mirrored AS (
    UPDATE mechanics m
       SET is_online = w.online, last_seen = coalesce(w.seen, m.last_seen)
      FROM wanted w JOIN free f ON f.id = w.id
     WHERE m.id = w.id AND (w.seen IS NULL OR m.last_seen IS NULL OR m.last_seen <= w.seen)
)
SELECT id FROM free
UNION ALL
SELECT w.id FROM wanted w WHERE NOT EXISTS (SELECT FROM mechanics m WHERE m.id = w.id);

-- name: mirrored_online
-- A page of mechanics whom the mirror shows as online, from an id on: how many at most.
SELECT id FROM mechanics WHERE is_online AND id > $1 ORDER BY id LIMIT $2;

-- name: mirrored_offline
-- Those of these mechanics whom the mirror shows as offline.
SELECT id FROM mechanics WHERE id = ANY ($1::uuid[]) AND NOT is_online;
