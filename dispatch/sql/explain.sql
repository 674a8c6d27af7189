-- What is on record about the dispatching of one request.

-- name: rounds
-- One row a generation: when it was offered and what became of it.
SELECT a.generation, a.status, a.outcome, a.mechanic_id, u.name AS mechanic_name, a.offered_at, a.ended_at
  FROM session_assignments a LEFT JOIN users u ON u.id = a.mechanic_id
 WHERE a.request_id = $1 ORDER BY a.generation

-- name: events
-- The history of its session.
SELECT e.type, e.user_id, u.name, e.metadata ->> 'detail' AS detail, e.at
  FROM session_requests r
  JOIN session_events e ON e.session_id = r.session_id
  LEFT JOIN users u ON u.id = e.user_id
 WHERE r.id = $1 ORDER BY e.id

-- name: sent
-- To whom each node wrote the offer, at which score, and when.
SELECT d.generation, d.stage, d.node_id, s.mechanic_id, u.name, s.score,
       d.at + s.ms * interval '1 ms' AS sent_at
  FROM routing_decisions d
 CROSS JOIN LATERAL unnest(d.mechanic_ids, d.scores, d.sent_ms) AS s (mechanic_id, score, ms)
  JOIN users u ON u.id = s.mechanic_id
 WHERE d.request_id = $1 ORDER BY sent_at

-- name: seen
-- Who showed the card, and when.
SELECT d.generation, s.mechanic_id, min(d.at + s.ms * interval '1 ms') AS seen_at
  FROM routing_decisions d
 CROSS JOIN LATERAL unnest(d.seen_mechanic_ids, d.seen_ms) AS s (mechanic_id, ms)
 WHERE d.request_id = $1 GROUP BY d.generation, s.mechanic_id

-- name: excluded
-- Who was connected and not asked, and why.
SELECT DISTINCT d.generation, d.stage, x.mechanic_id, u.name, x.reason
  FROM routing_decisions d
 CROSS JOIN LATERAL unnest(d.excluded_ids, d.excluded_reasons) AS x (mechanic_id, reason)
  JOIN users u ON u.id = x.mechanic_id
 WHERE d.request_id = $1 ORDER BY d.generation, d.stage, u.name

-- name: answers
-- What mechanics answered: declines and the judge's verdicts.
SELECT o.generation, o.mechanic_id, u.name, o.status, o.answered_at, o.reason
  FROM offers o JOIN users u ON u.id = o.mechanic_id
 WHERE o.request_id = $1 ORDER BY o.answered_at NULLS LAST
