-- What customers see of their payments. `amount_cents` is what came, or what is expected to.

-- name: moved_since
-- Payments that were held or went back since, of whom a customer is known; asked with a margin.
SELECT p.id, p.customer_id, p.session_id, p.status, p.note, p.moved_at, p.created_at,
       coalesce(p.received_cents, p.amount_cents) AS amount_cents,
       coalesce(p.received_currency, p.currency) AS currency, p.refunded_cents, p.credited_cents,
       p.payment_intent IS NOT NULL AS is_paid,
       dispatch_now() AS now
  FROM payments p
 WHERE p.moved_at > $1 AND p.customer_id IS NOT NULL

-- name: of_customers
-- The same of some customers within the last $2.
SELECT p.id, p.customer_id, p.session_id, p.status, p.note, p.moved_at, p.created_at,
       coalesce(p.received_cents, p.amount_cents) AS amount_cents,
       coalesce(p.received_currency, p.currency) AS currency, p.refunded_cents, p.credited_cents,
       p.payment_intent IS NOT NULL AS is_paid,
       dispatch_now() AS now
  FROM payments p
 WHERE p.customer_id = ANY ($1) AND p.moved_at > clock_timestamp() - $2::interval
 ORDER BY p.moved_at DESC

-- name: page
-- Every payment of a customer that was not abandoned, the newest first.
SELECT p.id, p.customer_id, p.session_id, p.status, p.note, p.moved_at, p.created_at,
       coalesce(p.received_cents, p.amount_cents) AS amount_cents,
       coalesce(p.received_currency, p.currency) AS currency, p.refunded_cents, p.credited_cents,
       p.payment_intent IS NOT NULL AS is_paid,
       dispatch_now() AS now
  FROM payments p
 WHERE p.customer_id = $1 AND p.status NOT IN ('expired', 'failed')
 ORDER BY p.created_at DESC, p.id LIMIT $2 OFFSET $3

-- name: count
-- How many these are.
SELECT count(*) FROM payments p WHERE p.customer_id = $1 AND p.status NOT IN ('expired', 'failed')

-- name: of_checkout
-- The payment of one checkout at Stripe.
SELECT p.id, p.customer_id, p.session_id, p.status, p.note, p.moved_at, p.created_at,
       coalesce(p.received_cents, p.amount_cents) AS amount_cents,
       coalesce(p.received_currency, p.currency) AS currency, p.refunded_cents, p.credited_cents,
       p.payment_intent IS NOT NULL AS is_paid,
       dispatch_now() AS now
  FROM payments p
 WHERE p.stripe_session_id = $1
