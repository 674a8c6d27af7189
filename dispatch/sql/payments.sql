-- Payments: what becomes of money that arrives.

-- name: lock_payment
-- The payment of a Checkout Session: by Stripe's id, or by our own from the metadata while Stripe's
-- is not stored yet.
SELECT p.id, p.status, p.received_cents, p.payment_intent, p.amount_cents, p.currency, p.customer_id, p.intake_id,
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
INSERT INTO payments (stripe_session_id, payment_intent, amount_cents, currency, received_cents,
                      received_currency, status, note)
VALUES ($1, $2, $3, $4, $3, $4, 'held', $5) ON CONFLICT (stripe_session_id) DO NOTHING

-- name: move_payment
-- The new state of a payment, with what its webhook told: $7 and $8 are the money that came, if it did.
UPDATE payments
   SET status = $2, session_id = coalesce($3, session_id), note = coalesce($4, note),
       stripe_session_id = coalesce(stripe_session_id, $5),
       payment_intent = coalesce($6, payment_intent),
       received_cents = coalesce(received_cents, $7),
       received_currency = coalesce(received_currency, $8)
 WHERE id = $1
