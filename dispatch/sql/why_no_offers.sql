-- What is on record about one mechanic of late, for herself.

-- name: application
-- How her application stands.
SELECT application_status FROM mechanics WHERE id = $1

-- name: offers
-- Mechanic, since when, rows, bytes: in how many rounds a card was sent to her and seen by her, and
-- when the last one was sent, by the newest decisions. No more of them are looked at than so many
-- rows and so many bytes of arrays, since one row names everybody who was asked; their sizes are
-- known without reading them. `since` is how far back that went.
WITH newest AS (
    SELECT request_id, generation, at, mechanic_ids, sent_ms, seen_mechanic_ids,
           row_number() OVER latest AS rows,
           sum(pg_column_size(mechanic_ids) + pg_column_size(seen_mechanic_ids)) OVER latest AS bytes
      FROM (SELECT * FROM routing_decisions WHERE at > $2 ORDER BY at DESC LIMIT $3) d
    WINDOW latest AS (ORDER BY at DESC ROWS UNBOUNDED PRECEDING)
), looked_at AS (
    SELECT request_id, generation, at,
           at + sent_ms[array_position(mechanic_ids, $1)] * interval '1 ms' AS sent_at,
           array_position(seen_mechanic_ids, $1) IS NOT NULL AS seen
      FROM newest WHERE bytes <= $4
), rounds AS (
    SELECT max(sent_at) AS sent_at, bool_or(seen) AS seen
      FROM looked_at GROUP BY request_id, generation HAVING max(sent_at) IS NOT NULL
)
SELECT count(*) AS sent, count(*) FILTER (WHERE seen) AS seen, max(sent_at) AS last_at,
       CASE WHEN (SELECT max(rows) = $3 OR max(bytes) > $4 FROM newest)
            THEN (SELECT min(at) FROM looked_at) ELSE $2 END AS since
  FROM rounds

-- name: answers
-- Mechanic, since when: what she answered and what came of it, by rounds; one row a kind. Where a
-- node knew that somebody else had won, it told her so by itself: of such losses there is no row.
SELECT verdict AS kind, reason, count(DISTINCT offer_id) AS rounds
  FROM accepts WHERE mechanic_id = $1 AND at > $2
 GROUP BY verdict, reason
UNION ALL
SELECT 'declined', NULL, count(*)
  FROM offers WHERE mechanic_id = $1 AND status = 'declined' AND answered_at > $2
