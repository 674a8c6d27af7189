-- What is on record about the changes of one booking (the request is $1).

-- name: created
-- How the factory made it.
SELECT (e.metadata ->> 'expires_at')::timestamptz AS expires_at, e.metadata ->> 'message' AS message
  FROM session_requests r JOIN session_events e ON e.session_id = r.session_id AND e.type = 'created'
 WHERE r.id = $1

-- name: steps
-- Every change in order: the version that it made, the time, what happened, the policy, the lines.
SELECT e.version, min(e.at) AS at, min(e.event::text) AS event, min(p.policy::text) AS policy,
       json_agg(json_build_object('type', e.type, 'user_id', e.user_id,
                                  'detail', e.metadata ->> 'detail') ORDER BY e.id)::text AS lines
  FROM session_requests r
  JOIN session_events e ON e.session_id = r.session_id AND e.version > 1
  LEFT JOIN policies p ON p.id = e.policy_id
 WHERE r.id = $1
 GROUP BY e.version ORDER BY e.version

-- name: rounds
-- The offer of each generation.
SELECT generation, offer_id FROM session_assignments WHERE request_id = $1

-- name: waiver
-- When the customer signed.
SELECT w.signed_at
  FROM session_requests r JOIN sessions s ON s.id = r.session_id JOIN waivers w ON w.intake_id = s.intake_id
 WHERE r.id = $1

-- name: requests
-- Every request, the oldest first.
SELECT id FROM session_requests ORDER BY created_at, id
