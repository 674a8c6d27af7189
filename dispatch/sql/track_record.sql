-- What is on record about one mechanic over a time.

-- name: reach
-- Since when, rows, bytes: from when on the audit trail can be looked at, if no more than so many
-- rows, and so many bytes of who was sent and who saw, are to be read: one row names everybody who
-- was asked. It is the time of the newest decision that would be too much. Sizes are known without
-- reading what they are of.
SELECT coalesce(max(at) FILTER (WHERE rows > $2 OR bytes > $3), $1)
  FROM (SELECT at, row_number() OVER newest AS rows,
               sum(pg_column_size(mechanic_ids) + pg_column_size(seen_mechanic_ids)) OVER newest AS bytes
          FROM (SELECT * FROM routing_decisions WHERE at > $1 ORDER BY at DESC LIMIT $2 + 1) d
        WINDOW newest AS (ORDER BY at DESC ROWS UNBOUNDED PRECEDING)) sized

-- name: answers
-- Mechanic, since when, since when in the trail: what she answered and what came of it, by rounds; one
-- row a kind. Where a node knew that somebody else had won, it told her so by itself, and noted it.
SELECT kind, reason, count(DISTINCT (request_id, generation)) AS rounds
  FROM (SELECT verdict AS kind, reason, request_id, generation
          FROM accepts WHERE mechanic_id = $1 AND at > $2
         UNION ALL
        SELECT 'lost', 'taken', request_id, generation
          FROM routing_decisions WHERE at > $3 AND $1 = ANY (lost_mechanic_ids)
         UNION ALL
        SELECT 'declined', NULL, request_id, generation
          FROM offers WHERE mechanic_id = $1 AND status = 'declined' AND answered_at > $2) told
 GROUP BY kind, reason
 ORDER BY kind, rounds DESC, reason
