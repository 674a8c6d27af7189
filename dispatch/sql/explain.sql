-- What is on record about the dispatching of one request ($1).

-- name: rounds
-- One row a generation: when it was offered and what became of it.
SELECT a.generation, a.status, a.outcome, a.mechanic_id, u.name AS mechanic_name, a.offered_at, a.ended_at
  FROM session_assignments a LEFT JOIN users u ON u.id = a.mechanic_id
 WHERE a.request_id = $1 ORDER BY a.generation

-- name: events
-- The history of its session.
SELECT e.type, e.user_id, u.name, e.metadata ->> 'detail' AS detail, e.at, e.version
  FROM session_requests r
  JOIN session_events e ON e.session_id = r.session_id
  LEFT JOIN users u ON u.id = e.user_id
 WHERE r.id = $1 ORDER BY e.id

-- name: receipt
-- When it was heard of and committed; no row where that was lost with a node.
SELECT received_at, committed_at FROM request_receipts WHERE request_id = $1

-- name: stages
-- When each stage began on the first node, on how many, and how many connected mechanics the strategy
-- itself ruled out.
SELECT generation, stage, min(at) AS at, count(DISTINCT node_id) AS nodes, sum(others) AS others
  FROM routing_decisions WHERE request_id = $1
 GROUP BY generation, stage ORDER BY generation, min(at)

-- name: sent
-- To whom each node wrote the offer, at which score, and when.
SELECT d.generation, d.stage, s.mechanic_id, s.score, d.at + s.ms * interval '1 ms' AS at
  FROM routing_decisions d
 CROSS JOIN LATERAL unnest(d.mechanic_ids, d.scores, d.sent_ms) AS s (mechanic_id, score, ms)
 WHERE d.request_id = $1 ORDER BY at

-- name: seen
-- Who showed the card, and when first.
SELECT d.generation, s.mechanic_id, min(d.at + s.ms * interval '1 ms') AS at
  FROM routing_decisions d
 CROSS JOIN LATERAL unnest(d.seen_mechanic_ids, d.seen_ms) AS s (mechanic_id, ms)
 WHERE d.request_id = $1 GROUP BY d.generation, s.mechanic_id

-- name: lost
-- Who was told by her node that somebody else has it, and when last.
SELECT d.generation, l.mechanic_id, max(d.at + l.ms * interval '1 ms') AS at
  FROM routing_decisions d
 CROSS JOIN LATERAL unnest(d.lost_mechanic_ids, d.lost_ms) AS l (mechanic_id, ms)
 WHERE d.request_id = $1 GROUP BY d.generation, l.mechanic_id

-- name: excluded
-- Who was connected and not asked, and why.
SELECT DISTINCT d.generation, d.stage, x.mechanic_id, x.reason
  FROM routing_decisions d
 CROSS JOIN LATERAL unnest(d.excluded_ids, d.excluded_reasons) AS x (mechanic_id, reason)
 WHERE d.request_id = $1 ORDER BY d.generation, d.stage

-- name: answers
-- Who was asked by name, and what mechanics answered: declines and the judge's verdicts.
SELECT generation, mechanic_id, status, stage, score, issued_at, pushed_at, seen_at, answered_at, reason
  FROM offers WHERE request_id = $1 ORDER BY answered_at NULLS LAST

-- name: everybody
-- Every mechanic, as routing knows her now.
SELECT c.*, u.name FROM candidates c JOIN users u ON u.id = c.mechanic_id ORDER BY u.name, u.id
