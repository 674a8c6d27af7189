-- Money that goes back.

-- name: refund_of_session
-- The fulfilled payment of a session is to be given back.
UPDATE payments SET status = 'refunding', note = $2
 WHERE session_id = $1 AND status = 'fulfilled' RETURNING id

-- name: credit_session
-- The fulfilled payment of a session, as far as it was not given back, becomes credits of its customer.
WITH given AS (
    UPDATE payments
       SET status = 'refunded', note = $2, credited_cents = received_cents - refunded_cents
     WHERE session_id = $1 AND status = 'fulfilled'
    RETURNING id, customer_id, credited_cents, received_currency)
SELECT id, move_credits(gen_random_uuid(), customer_id, 'payments', 'customer', credited_cents,
                        received_currency, $2, $1, id)
  FROM given WHERE credited_cents > 0

-- name: return_credits
-- The credits that were set aside for a session are its customer's again; no row where there are none.
SELECT amount_cents, currency FROM release_credits($1, 'customer', $2)

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
-- The payment that a charge or a refund at Stripe belongs to: by its intent, or by our own id from the
-- metadata while the intent is not known.
SELECT id FROM payments
 WHERE payment_intent = $2 OR (id = $1 AND payment_intent IS NULL)
 ORDER BY payment_intent NULLS LAST LIMIT 1

-- name: moment
-- A reading of Stripe that begins now shows what is true now or later.
SELECT clock_timestamp()

-- name: lock_session
-- Before its payment, as everywhere.
SELECT s.id FROM payments p JOIN sessions s ON s.id = p.session_id WHERE p.id = $1 FOR KEY SHARE OF s

-- name: lock_payment
-- The payment as it is, while what Stripe gave back of it is written.
SELECT p.id, p.session_id, p.status, p.amount_cents, p.received_cents, p.refunded_cents,
       p.credited_cents, p.taken_back_cents,
       (SELECT s.status FROM sessions s WHERE s.id = p.session_id) AS session_status
  FROM payments p
 WHERE p.id = $1 AND (p.refunds_read_at IS NULL OR p.refunds_read_at < $2) FOR NO KEY UPDATE

-- name: write_refunds
-- What Stripe has given back of a locked payment, and its state after that.
UPDATE payments
   SET refunded_cents = $2, refunds_read_at = $3, status = $4, note = coalesce($5, note),
       payment_intent = coalesce(payment_intent, $6)
 WHERE id = $1

-- name: take_back_earnings
-- Whoever earned of the session has only the share of what is left.
SELECT take_back_earnings($1)

-- name: hold_refund
-- Stripe refused to give it back: for a person.
UPDATE payments SET status = 'held', note = $2 WHERE id = $1 AND status = 'refunding'
RETURNING session_id
