-- How one mechanic fares among the others.

-- name: who
-- Mechanic, interval: her name, and when that interval began; no row for who is no mechanic.
SELECT u.name, dispatch_now() - $2::interval AS since
  FROM mechanics m JOIN users u ON u.id = m.id WHERE m.id = $1

-- name: rounds
-- Mechanic, since when: every round in a stage that was for her (by what she is: the favourite, of
-- that workshop, a specialist), whether she was there or not. When a card was first written to her
-- and first seen, or why she was not asked; who won; and if somebody did and she was asked, among
-- how many. A round of which only late sights and losses fall into the time is not one of it.
WITH rounds AS (
    SELECT d.request_id, d.generation,
           min(d.at + d.sent_ms[array_position(d.mechanic_ids, $1)] * interval '1 ms') AS sent_at,
           min(d.at + d.seen_ms[array_position(d.seen_mechanic_ids, $1)] * interval '1 ms') AS seen_at,
           max(d.excluded_reasons[array_position(d.excluded_ids, $1)]) AS excluded_for
      FROM routing_decisions d
      JOIN session_requests r ON r.id = d.request_id
      JOIN mechanics m ON m.id = $1
     WHERE d.at > $2
       AND (m.is_specialist OR NOT r.is_specialist)
       AND (d.stage <> 'priority' OR r.preferred_mechanic_id = m.id)
       AND ((d.stage <> 'preferred' AND r.routing_type <> 'workshop_only')
            OR r.preferred_workshop_id = m.workshop_id)
     GROUP BY d.request_id, d.generation
    HAVING bool_or(d.others + cardinality(d.mechanic_ids) + cardinality(d.excluded_ids) > 0
                   OR cardinality(d.seen_mechanic_ids) + cardinality(d.lost_mechanic_ids) = 0)
)
SELECT r.sent_at, r.seen_at, r.excluded_for, a.mechanic_id AS winner_id,
       CASE WHEN r.sent_at IS NOT NULL AND a.mechanic_id IS NOT NULL THEN
           (SELECT count(DISTINCT asked.id) FROM routing_decisions d
             CROSS JOIN LATERAL unnest(d.mechanic_ids) AS asked (id)
             WHERE d.request_id = r.request_id AND d.generation = r.generation)
       END AS asked
  FROM rounds r JOIN session_assignments a USING (request_id, generation)
