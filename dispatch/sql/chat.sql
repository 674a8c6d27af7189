-- What the two in a session say to each other. A row with a message also says who are in its session.

-- name: say
-- Stores a message as the next of its session, or says why not.
SELECT said.refusal, said.is_new, r.id AS request_id, said.customer_id, said.mechanic_id, (said.message).*
  FROM say_in_session($1, $2, $3, $4, $5) said
  LEFT JOIN session_requests r ON r.session_id = $1

-- name: is_participant
-- Whether somebody is in a session, now or at its end.
SELECT EXISTS (SELECT 1 FROM sessions WHERE id = $1 AND $2 IN (customer_user_id, mechanic_id))

-- name: history
-- What was said in a session after a seq, in order.
SELECT * FROM chat_messages WHERE session_id = $1 AND seq > $2 ORDER BY seq LIMIT $3

-- name: missing
-- Of each of some sessions what was said after the seq that is known, in order and at most so many.
SELECT r.id AS request_id, s.customer_user_id AS customer_id, s.mechanic_id, m.*
  FROM unnest($1::uuid[], $2::int[]) AS known (session_id, seq)
  CROSS JOIN LATERAL (SELECT * FROM chat_messages c
                       WHERE c.session_id = known.session_id AND c.seq > known.seq
                       ORDER BY c.seq LIMIT $3) m
  JOIN sessions s ON s.id = m.session_id
  JOIN session_requests r ON r.session_id = s.id
 ORDER BY m.session_id, m.seq
