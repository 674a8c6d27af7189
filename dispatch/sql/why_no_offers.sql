-- What a mechanic is told about herself.

-- name: application
-- How her application stands.
SELECT application_status FROM mechanics WHERE id = $1

-- name: offers
-- Mechanic, since when: in how many rounds a card was sent to her, in how many of them she saw it,
-- and when the last one was sent.
SELECT count(*) AS sent, count(*) FILTER (WHERE seen) AS seen, max(sent_at) AS last_at
  FROM (SELECT bool_or(array_position(seen_mechanic_ids, $1) IS NOT NULL) AS seen,
               max(at + sent_ms[array_position(mechanic_ids, $1)] * interval '1 ms') AS sent_at
          FROM routing_decisions WHERE at > $2
         GROUP BY request_id, generation) rounds
 WHERE sent_at IS NOT NULL
