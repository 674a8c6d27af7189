-- What is written about a session.

-- name: summarize
-- Its mechanic's summary and notes; why not, or null.
SELECT summarize_session($1, $2, $3, $4)

-- name: rate
-- Its customer's rating; why not, or null.
SELECT rate_session($1, $2, $3, $4)

-- name: written
-- What stands there of one session.
SELECT s.summary, s.notes, r.stars, r.review
  FROM sessions s LEFT JOIN ratings r ON r.session_id = s.id
 WHERE s.id = $1
