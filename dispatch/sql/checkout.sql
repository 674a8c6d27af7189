-- The way to Stripe's page: payments that are expected.

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
