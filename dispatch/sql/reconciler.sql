-- What our rows wait for at Stripe. $1: for so long it is left to webhooks and the outbox.

-- name: moment
-- When a run begins: what happens later is left to the next.
SELECT clock_timestamp()

-- name: looked_at
-- Up to when everything that happened is known.
SELECT looked_at FROM stripe_reconciled

-- name: remember
-- A run that began then was complete.
UPDATE stripe_reconciled SET looked_at = greatest(looked_at, $1)

-- name: event_is_known
-- Whether this event was here as a webhook.
SELECT EXISTS (SELECT 1 FROM stripe_events WHERE id = $1)

-- name: checkouts_over
-- Payments whose page nobody can pay on any more and of which we were told nothing, and refunds of
-- which we do not know what to give back. By real time, as the page's is Stripe's.
SELECT id, stripe_session_id FROM payments
 WHERE stripe_session_id IS NOT NULL
   AND ((status = 'created' AND created_at < clock_timestamp() - interval '1 h' - $1::interval)
     OR (status = 'refunding' AND payment_intent IS NULL))
 ORDER BY created_at LIMIT $2

-- name: expire
-- Payments for which no page was ever made, and none can be asked for any more.
UPDATE payments SET status = 'expired'
 WHERE status = 'created' AND stripe_session_id IS NULL
   AND created_at < clock_timestamp() - interval '1 h' - $1::interval

-- name: refunds_under_way
-- Payments that should have gone back by now.
SELECT id, payment_intent FROM payments
 WHERE status = 'refunding' AND payment_intent IS NOT NULL
   AND moved_at < clock_timestamp() - $1::interval
 ORDER BY moved_at LIMIT $2

-- name: payouts_under_way
-- Transfers that should have been made by now.
SELECT id FROM payouts
 WHERE status IN ('pending', 'processing') AND created_at < dispatch_now() - $1::interval
 ORDER BY created_at LIMIT $2

-- name: payout_is_settled
-- Whether it is known what became of a payout.
SELECT status IN ('paid', 'failed') FROM payouts WHERE id = $1

-- name: accounts_under_way
-- Accounts that take no payouts, and once a day those that do, the one that was asked about longest
-- ago first: what happens in them is in no list of events.
SELECT id, stripe_connect_account_id FROM (
    SELECT id, stripe_connect_account_id, stripe_read_at FROM organizations
     WHERE stripe_connect_account_id IS NOT NULL
       AND (NOT stripe_payouts_enabled OR stripe_read_at < clock_timestamp() - interval '1 day')
    UNION ALL
    SELECT id, stripe_connect_account_id, stripe_read_at FROM mechanics
     WHERE stripe_connect_account_id IS NOT NULL AND deleted_at IS NULL
       AND (NOT stripe_payouts_enabled OR stripe_read_at < clock_timestamp() - interval '1 day')) payee
 WHERE stripe_read_at IS NULL OR stripe_read_at < clock_timestamp() - $1::interval
 ORDER BY stripe_read_at NULLS FIRST LIMIT $2

-- name: revive
-- Money is never given up: what was tried too often, and is not settled, is tried again.
UPDATE outbox o SET failed_at = NULL, attempts = 0, next_try_at = dispatch_now()
 WHERE o.failed_at IS NOT NULL
   AND ((o.kind = 'refund' AND EXISTS (SELECT 1 FROM payments p
                  WHERE p.id = (o.payload ->> 'payment_id')::uuid AND p.status = 'refunding'))
     OR (o.kind = 'transfer' AND EXISTS (SELECT 1 FROM payouts p
                  WHERE p.id = (o.payload ->> 'payout_id')::uuid AND p.status IN ('pending', 'processing')))
     OR (o.kind = 'reversal' AND EXISTS (SELECT 1 FROM payout_reversals r
                  WHERE r.id = (o.payload ->> 'reversal_id')::uuid AND r.status = 'pending')))
RETURNING o.id
