-- The ledger of credits (schema.sql says how it works).

-- name: set_aside
-- The price of a session that was just made, of its customer's credits.
SELECT set_aside_credits($1)

-- name: balances
-- What a customer may spend, by currency, and how many lines have led to it.
SELECT DISTINCT ON (currency) currency, balance_cents, seq AS lines
  FROM credit_entries WHERE customer_id = $1 AND account = 'customer'
 ORDER BY currency, seq DESC

-- name: entries
-- A page of the lines that changed what a customer may spend, the newest first.
SELECT amount_cents, balance_cents, currency, reason, session_id, at
  FROM credit_entries WHERE customer_id = $1 AND account = 'customer'
 ORDER BY at DESC, seq DESC LIMIT $2 OFFSET $3

-- name: lock_customer
-- One at a time moves a customer's credits; no row where there is no such customer.
SELECT id FROM customers WHERE id = $1 FOR NO KEY UPDATE

-- name: is_spendable
-- Whether something can be booked in a currency.
SELECT EXISTS (SELECT FROM plans WHERE currency = $1 AND active)

-- name: transaction
-- What a transaction of the ledger moved; `is_grant`: from nowhere, as goodwill.
SELECT customer_id, currency, reason, max(amount_cents) AS amount_cents,
       max(balance_cents) FILTER (WHERE account = 'customer') AS balance_cents,
       max(at) FILTER (WHERE account = 'customer') AS at,
       bool_or(account = 'grants') AS is_grant
  FROM credit_entries WHERE transaction_id = $1
 GROUP BY customer_id, currency, reason

-- name: grant
-- Goodwill, as the transaction $1.
SELECT move_credits(p_transaction_id => $1, p_customer_id => $2, p_from => 'grants', p_to => 'customer',
                    p_amount_cents => $3, p_currency => $4, p_reason => $5, p_created_by => $6)
