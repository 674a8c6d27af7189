-- Effects to be delivered outside the database.

-- name: claim
-- Effects that are due, taken for the time of a lease: whoever dies with one leaves it to the next
-- who looks after that time. Each claim counts as an attempt.
UPDATE outbox SET attempts = attempts + 1, next_try_at = dispatch_now() + $3
 WHERE id IN (SELECT id FROM outbox
               WHERE done_at IS NULL AND failed_at IS NULL AND next_try_at <= (SELECT dispatch_now())
                 AND kind = ANY ($1)
               ORDER BY next_try_at LIMIT $2 FOR UPDATE SKIP LOCKED)
RETURNING id, kind, idempotency_key, payload, attempts

-- name: done
-- Delivered.
UPDATE outbox SET done_at = dispatch_now(), last_error = NULL WHERE id = $1

-- name: retry
-- Due again after a while, unless another node has it by now.
UPDATE outbox SET next_try_at = dispatch_now() + $3, last_error = $4
 WHERE id = $1 AND attempts = $2 AND done_at IS NULL

-- name: give_up
-- For a person to look at.
UPDATE outbox SET failed_at = dispatch_now(), last_error = $3
 WHERE id = $1 AND attempts = $2 AND done_at IS NULL

-- name: forget
-- Notifications, mails and rooms that were settled a day ago; their keys have kept them from being
-- delivered twice.
DELETE FROM outbox
 WHERE kind IN ('push', 'mail', 'room') AND next_try_at < dispatch_now() - interval '1 day'
   AND (done_at IS NOT NULL OR failed_at IS NOT NULL)

-- name: give_back
-- Effects that a node had claimed and did not finish, by id and attempt: due again at once.
UPDATE outbox o SET next_try_at = dispatch_now()
  FROM unnest($1::bigint[], $2::int[]) AS claimed (id, attempts)
 WHERE o.id = claimed.id AND o.attempts = claimed.attempts
   AND o.done_at IS NULL AND o.failed_at IS NULL
