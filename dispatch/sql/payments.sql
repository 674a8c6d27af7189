-- Payments, the webhooks that move them, and the outbox that gives money back.

-- name: lock_intake
-- One checkout of an intake at a time. Not FOR UPDATE: sessions may be made of it meanwhile.
SELECT 1 FROM intakes WHERE id = $1 AND customer_id = $2 FOR NO KEY UPDATE

-- name: payment_under_way
-- The payment of an intake that is open or that somebody must look at, and whether its checkout can
-- still be used ($2: how long one with a page is open, $3: how long a page can still be asked for).
-- By real time, as that is Stripe's.
SELECT id, status, payment_intent, checkout_url, amount_cents, currency, created_at,
       created_at > clock_timestamp()
                    - CASE WHEN checkout_url IS NULL THEN $3::interval ELSE $2::interval END AS usable
  FROM payments WHERE intake_id = $1 AND status IN ('created', 'held')
 ORDER BY status = 'held' DESC, created_at DESC LIMIT 1

-- name: supersede_payment
-- The time of its checkout is over, whether or not Stripe has said so already.
UPDATE payments SET status = 'expired' WHERE id = $1 AND status = 'created'

-- name: insert_payment
-- A payment that is expected: the plan's price at this moment.
INSERT INTO payments (customer_id, intake_id, plan_code, amount_cents, currency)
VALUES ($1, $2, $3, $4, $5) RETURNING id, amount_cents, currency, checkout_url, created_at

-- name: email_of
-- Where Stripe sends the receipt.
SELECT email FROM users WHERE id = $1

-- name: store_checkout
-- What Stripe made for a payment; its webhook may have been here before.
UPDATE payments SET stripe_session_id = $2, checkout_url = $3 WHERE id = $1

-- name: refuse_checkout
-- Stripe refused to make it, and nobody was sent to a page of it.
UPDATE payments SET status = 'failed', note = $2
 WHERE id = $1 AND status = 'created' AND checkout_url IS NULL

-- name: insert_event
-- Whether this webhook is new; who delivers it a second time waits here for the first.
INSERT INTO stripe_events (id, type, outcome) VALUES ($1, $2, 'received')
ON CONFLICT (id) DO NOTHING RETURNING true

-- name: note_outcome
-- What became of a webhook.
UPDATE stripe_events SET outcome = $2 WHERE id = $1

-- name: lock_payment
-- The payment of a Checkout Session: by Stripe's id, or by our own from the metadata while Stripe's
-- is not stored yet.
SELECT p.id, p.status, p.amount_cents, p.currency, p.customer_id, p.intake_id,
       (SELECT i.slot_id FROM intakes i WHERE i.id = p.intake_id) AS slot_id
  FROM payments p
 WHERE p.stripe_session_id = $2 OR (p.id = $1 AND p.stripe_session_id IS NULL)
 ORDER BY p.stripe_session_id NULLS LAST LIMIT 1 FOR UPDATE

-- name: sale
-- The same payment without the lock, with what a booking of it would be made of, if it is for now.
SELECT p.id, p.status, p.amount_cents, p.currency, p.customer_id,
       CASE WHEN i.slot_id IS NULL THEN prospect(i) END AS prospect
  FROM payments p JOIN intakes i ON i.id = p.intake_id
 WHERE p.stripe_session_id = $2 OR (p.id = $1 AND p.stripe_session_id IS NULL)
 ORDER BY p.stripe_session_id NULLS LAST LIMIT 1

-- name: book_paid
-- Event, payment, session and first stage of a booking that was paid; whether the event was new.
SELECT book_paid($1, $2, $3, $4, $5, $6, $7, $8)

-- name: hold_unknown
-- Money that we did not ask for: kept where somebody finds it.
INSERT INTO payments (stripe_session_id, payment_intent, amount_cents, currency, status, note)
VALUES ($1, $2, $3, $4, 'held', $5) ON CONFLICT (stripe_session_id) DO NOTHING

-- name: move_payment
-- The new state of a payment, with what its webhook told.
UPDATE payments
   SET status = $2, session_id = coalesce($3, session_id), note = coalesce($4, note),
       stripe_session_id = coalesce(stripe_session_id, $5),
       payment_intent = coalesce($6, payment_intent)
 WHERE id = $1

-- name: refund_of_session
-- The fulfilled payment of a session is to be given back.
UPDATE payments SET status = 'refunding', note = $2
 WHERE session_id = $1 AND status = 'fulfilled' RETURNING id

-- name: queue_refund
-- One refund a payment, whoever asks and how often.
INSERT INTO outbox (kind, idempotency_key, payload, next_try_at)
VALUES ('refund', 'refund-' || $1::uuid,
        jsonb_build_object('payment_id', $1::uuid, 'reason', $2::text), dispatch_now())
ON CONFLICT (idempotency_key) DO NOTHING

-- name: log_event
-- One line of a session's history.
INSERT INTO session_events (session_id, type, metadata, at)
VALUES ($1, $2, jsonb_strip_nulls(jsonb_build_object('detail', $3::text)), dispatch_now())

-- name: payment_to_refund
-- What Stripe must know to give a payment back.
SELECT status, payment_intent FROM payments WHERE id = $1

-- name: payment_of_charge
-- The payment that a charge belongs to: by our own id from its metadata, else by its intent.
SELECT id FROM payments
 WHERE id = coalesce($1, (SELECT id FROM payments WHERE payment_intent = $2 LIMIT 1))

-- name: lock_session
-- Before its payment, as everywhere.
SELECT s.id FROM payments p JOIN sessions s ON s.id = p.session_id WHERE p.id = $1 FOR KEY SHARE OF s

-- name: refunded
-- The money went back; nothing to do where that is known.
UPDATE payments SET status = 'refunded', payment_intent = coalesce(payment_intent, $2)
 WHERE id = $1 AND status <> 'refunded' RETURNING session_id

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
-- Notifications that were settled a day ago; their keys have kept them from being sent twice.
DELETE FROM outbox
 WHERE kind = 'push' AND next_try_at < dispatch_now() - interval '1 day'
   AND (done_at IS NOT NULL OR failed_at IS NOT NULL)

-- name: give_back
-- Effects that a node had claimed and did not finish, by id and attempt: due again at once.
UPDATE outbox o SET next_try_at = dispatch_now()
  FROM unnest($1::bigint[], $2::int[]) AS claimed (id, attempts)
 WHERE o.id = claimed.id AND o.attempts = claimed.attempts
   AND o.done_at IS NULL AND o.failed_at IS NULL
