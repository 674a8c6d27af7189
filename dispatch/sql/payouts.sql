-- Money that is paid out.

-- name: due
-- What is owed to everybody, or to one ($1 a workshop, $2 a mechanic), by currency.
SELECT workshop_id, mechanic_id, name, currency, due_cents, stripe_connect_account_id AS account_id,
       stripe_payouts_enabled
  FROM payouts_due
 WHERE ($1::uuid IS NULL AND $2::uuid IS NULL) OR workshop_id = $1 OR mechanic_id = $2
 ORDER BY name, workshop_id, mechanic_id, currency

-- name: is_payee
-- Whether there is this workshop ($1) or this mechanic ($2).
SELECT EXISTS (SELECT FROM organizations WHERE id = $1) OR EXISTS (SELECT FROM mechanics WHERE id = $2)

-- name: make_payout
-- One payout of all that is owed to a payee in a currency; null where it is too little, or cannot be.
SELECT make_payout($1, $2, $3, $4, $5, $6)

-- name: amounts
-- What these payouts are, which may be more than was owed a moment before.
SELECT id, amount_cents FROM payouts WHERE id = ANY ($1)

-- name: payouts
-- A page of payouts, the newest first, and how many there are in all; of one status, or of any.
SELECT p.id AS payout_id, p.workshop_id, p.mechanic_id, coalesce(o.name, u.name) AS name,
       p.amount_cents, p.reversed_cents, p.currency, p.status, p.cause, p.created_by, p.note,
       p.stripe_transfer_id, p.created_at, p.settled_at,
       (SELECT coalesce(sum(r.amount_cents), 0) FROM payout_reversals r
         WHERE r.settled_by = p.id) AS debts_cents
  FROM payouts p
  LEFT JOIN organizations o ON o.id = p.workshop_id
  LEFT JOIN users u ON u.id = p.mechanic_id
 WHERE $1::text IS NULL OR p.status = $1
 ORDER BY p.created_at DESC, p.id LIMIT $2 OFFSET $3

-- name: count
-- How many payouts there are, of one status or of any.
SELECT count(*) FROM payouts WHERE $1::text IS NULL OR status = $1

-- name: begin
-- From here on its transfer may exist at Stripe; no row where that was so before.
UPDATE payouts SET status = 'processing' WHERE id = $1 AND status = 'pending' RETURNING true

-- name: payout
-- What is to be sent, and what is known of it; `old` is whether a refusal is not to be waited out.
SELECT id, workshop_id, mechanic_id, stripe_account_id, amount_cents, currency, status,
       stripe_transfer_id, created_at < dispatch_now() - $2::interval AS old
  FROM payouts WHERE id = $1

-- name: settle
-- What became of a payout; whether that was not known before.
SELECT settle_payout($1, $2, $3, $4)

-- name: note_reversed
-- So much of it came back, as Stripe says, which only grows; and what is known of it, with how much was
-- to come back by what we asked for.
UPDATE payouts p SET reversed_cents = greatest(p.reversed_cents, $2) WHERE p.id = $1
RETURNING p.status, p.stripe_transfer_id,
          (SELECT coalesce(sum(r.amount_cents), 0)::integer FROM payout_reversals r
            WHERE r.payout_id = p.id AND r.status IN ('pending', 'reversed')) AS asked_cents

-- name: reversal
-- What is to come back, and of which transfer; `old` as above.
SELECT r.id, r.payout_id, r.amount_cents, r.status, p.status AS payout_status, p.stripe_transfer_id,
       r.created_at < dispatch_now() - $2::interval AS old
  FROM payout_reversals r JOIN payouts p ON p.id = r.payout_id WHERE r.id = $1

-- name: settle_reversal
-- What became of a reversal; whether that was not known before.
SELECT settle_reversal($1, $2, $3, $4)
