-- The books: sums by currency, and what does not agree. All sums are bigint. The checks give a row for
-- each thing that is wrong: its id, what is expected and what is found, as text.

-- name: patience
-- For one transaction of an operator's, who waits longer than a customer.
SELECT set_config(name, '10min', true) FROM pg_settings
 WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')

-- name: payments
-- What came in, what of it went back, and what of the rest is not yet earned: goes on, or waits for a
-- person. Money that went back before we heard that it had come had come.
SELECT currency, sum(received_cents)::bigint AS received_cents,
       sum(refunded_cents)::bigint AS refunded_cents,
       coalesce(sum(left_cents) FILTER (WHERE place = 'in progress'), 0)::bigint AS in_progress_cents,
       coalesce(sum(left_cents) FILTER (WHERE place = 'held'), 0)::bigint AS held_cents
  FROM payment_places GROUP BY currency

-- name: credits
-- By account: what was granted, what customers may spend, what is set aside.
SELECT currency, account, sum(amount_cents)::bigint AS cents
  FROM credit_entries GROUP BY currency, account

-- name: earned
-- What parties keep of what they earned, by what it is in: nothing yet, a payout under way, a payout.
SELECT currency, kind, sum(cents)::bigint AS cents,
       coalesce(sum(cents) FILTER (WHERE payout_status IN ('pending', 'failed')), 0)::bigint AS due_cents,
       coalesce(sum(cents) FILTER (WHERE payout_status = 'processing'), 0)::bigint AS processing_cents,
       coalesce(sum(cents) FILTER (WHERE payout_status = 'paid'), 0)::bigint AS paid_cents
  FROM (SELECT currency, 'workshops' AS kind, workshop_net_cents - reversed_cents AS cents, payout_status
          FROM workshop_earnings
        UNION ALL
        SELECT currency, 'mechanics', mechanic_net_cents - reversed_cents, payout_status
          FROM mechanic_earnings) e
 GROUP BY currency, kind

-- name: sessions
-- Every session that was served for money or credits or has earnings, with all that these must follow
-- from. `returned` is what of the money went back, `taken_back` what of that reached the earnings.
SELECT s.id AS session_id, s.status, s.mechanic_id, s.workshop_id, s.preferred_workshop_id,
       coalesce(p.received_cents, c.amount_cents, 0) AS gross_cents,
       coalesce(p.received_currency, c.currency) AS currency,
       coalesce(p.refunded_cents + p.credited_cents, 0) AS returned_cents,
       coalesce(p.taken_back_cents, 0) AS taken_back_cents,
       w.session_id IS NOT NULL AS has_workshop,
       w.workshop_id AS w_workshop_id, w.mechanic_id AS w_mechanic_id, w.is_referral AS w_is_referral,
       w.currency AS w_currency, w.gross_amount_cents AS w_gross_amount_cents,
       (100 * w.platform_fee_percentage)::integer AS w_fee_basis_points,
       w.platform_fee_cents AS w_platform_fee_cents, w.mechanic_net_cents AS w_mechanic_net_cents,
       w.workshop_net_cents AS w_workshop_net_cents, w.reversed_cents AS w_reversed_cents,
       m.session_id IS NOT NULL AS has_mechanic,
       m.mechanic_id AS m_mechanic_id, m.currency AS m_currency,
       m.gross_amount_cents AS m_gross_amount_cents,
       (100 * m.platform_fee_percentage)::integer AS m_fee_basis_points,
       m.platform_fee_cents AS m_platform_fee_cents, m.workshop_fee_cents AS m_workshop_fee_cents,
       m.mechanic_net_cents AS m_mechanic_net_cents, m.reversed_cents AS m_reversed_cents
  FROM sessions s
  LEFT JOIN payments p ON p.session_id = s.id
  LEFT JOIN credit_entries c ON c.session_id = s.id AND c.account = 'session' AND c.amount_cents > 0
  LEFT JOIN workshop_earnings w ON w.session_id = s.id
  LEFT JOIN mechanic_earnings m ON m.session_id = s.id
 WHERE (s.status = 'completed' AND coalesce(p.received_cents, c.amount_cents) > 0)
    OR w.session_id IS NOT NULL OR m.session_id IS NOT NULL

-- name: over_refunded
-- More went back than came in.
SELECT id::text, 'at most ' || received_cents AS expected,
       refunded_cents || ' refunded, ' || credited_cents || ' credited' AS found
  FROM payment_places WHERE left_cents < 0 ORDER BY id

-- name: misplaced
-- Money that came in and is neither with a session that goes on or was served, nor on its way back,
-- nor held.
SELECT id::text, 'earned, in progress, given back or held' AS expected,
       left_cents || ' of a payment that is ' || status
           || coalesce(', its session ' || session_status, '') AS found
  FROM payment_places WHERE left_cents > 0 AND place IS NULL ORDER BY id

-- name: mispriced
-- A session was made for another amount than was asked for: such money is to be held.
SELECT id::text, amount_cents || ' ' || currency AS expected,
       received_cents || ' ' || received_currency AS found
  FROM payments
 WHERE status = 'fulfilled' AND (received_cents, received_currency) <> (amount_cents, currency)
 ORDER BY id

-- name: credited
-- What payments say became credits is what the ledger has of them.
SELECT coalesce(p.id, e.payment_id)::text AS id,
       coalesce(p.credited_cents, 0) || ' ' || coalesce(p.received_currency, '') AS expected,
       coalesce(e.cents, 0) || ' ' || coalesce(e.currency, '') AS found
  FROM (SELECT id, credited_cents, received_currency FROM payments WHERE credited_cents > 0) p
  FULL JOIN (SELECT payment_id, currency, -sum(amount_cents)::bigint AS cents FROM credit_entries
              WHERE account = 'payments' GROUP BY payment_id, currency) e ON e.payment_id = p.id
 WHERE (p.credited_cents, p.received_currency) IS DISTINCT FROM (e.cents, e.currency)
 ORDER BY 1

-- name: credit_transactions
-- Each moves one customer's credits from one account to another.
SELECT transaction_id::text AS id, '2 lines of one customer and currency, sum 0' AS expected,
       count(*) || ' lines of ' || count(DISTINCT (customer_id, currency))
           || ' customers and currencies, sum ' || sum(amount_cents) AS found
  FROM credit_entries GROUP BY transaction_id
HAVING count(*) <> 2 OR count(DISTINCT (customer_id, currency)) <> 1 OR sum(amount_cents) <> 0
 ORDER BY 1

-- name: credit_chains
-- The first line of an account that does not follow from those before it, or falls below zero.
SELECT DISTINCT ON (customer_id, currency, account) id::text,
       'line ' || nth || ' of ' || account || ', balance '
           || CASE WHEN is_owed THEN 'at least 0' ELSE running::text END || ' ' || currency AS expected,
       'line ' || seq || ' of ' || account || ', balance ' || balance_cents || ' ' || currency AS found
  FROM (SELECT id, customer_id, currency, account, seq, balance_cents,
               row_number() OVER follow AS nth, sum(amount_cents) OVER follow AS running,
               account IN ('customer', 'session', 'earnings')
                   AND sum(amount_cents) OVER follow < 0 AS is_owed
          FROM credit_entries
        WINDOW follow AS (PARTITION BY customer_id, currency, account ORDER BY seq, id)) e
 WHERE seq <> nth OR balance_cents <> running OR is_owed
 ORDER BY customer_id, currency, account, nth

-- name: set_aside
-- What was set aside for a session is there while it goes on, then with who served it, else back.
SELECT session_id::text AS id,
       CASE WHEN status = 'completed' THEN 'completed: 0 set aside, ' || taken || ' earned, 0 returned'
            WHEN status IN ('cancelled', 'expired')
            THEN status || ': 0 set aside, 0 earned, ' || taken || ' returned'
            ELSE status || ': ' || taken || ' set aside, 0 earned, 0 returned' END AS expected,
       status || ': ' || kept || ' set aside, ' || earned || ' earned, ' || returned || ' returned' AS found
  FROM (SELECT e.session_id, s.status,
               sum(amount_cents) FILTER (WHERE account = 'session') AS kept,
               coalesce(sum(amount_cents) FILTER (WHERE account = 'session' AND amount_cents > 0), 0)
                   AS taken,
               coalesce(sum(amount_cents) FILTER (WHERE account = 'earnings'), 0) AS earned,
               coalesce(sum(amount_cents) FILTER (WHERE account = 'customer' AND amount_cents > 0), 0)
                   AS returned
          FROM credit_entries e JOIN sessions s ON s.id = e.session_id
         WHERE e.payment_id IS NULL
         GROUP BY e.session_id, s.status) c
 WHERE (kept, earned, returned) <> (CASE WHEN status IN ('completed', 'cancelled', 'expired') THEN 0
                                         ELSE taken END,
                                    CASE WHEN status = 'completed' THEN taken ELSE 0 END,
                                    CASE WHEN status IN ('cancelled', 'expired') THEN taken ELSE 0 END)
 ORDER BY 1

-- name: payout_amounts
-- A payout is the nets of its earnings, less what is reversed of them, plus its own reversals (those
-- were in it), less the debts that it settled. Those of one that failed may be in a later one by now.
SELECT p.id::text, (coalesce(w.net, 0) + coalesce(m.net, 0) + coalesce(r.cents, 0)
                    - coalesce(d.cents, 0))::text AS expected, p.amount_cents::text AS found
  FROM payouts p
  LEFT JOIN (SELECT payout_id, sum(workshop_net_cents - reversed_cents)::bigint AS net
               FROM workshop_earnings GROUP BY payout_id) w ON w.payout_id = p.id
  LEFT JOIN (SELECT payout_id, sum(mechanic_net_cents - reversed_cents)::bigint AS net
               FROM mechanic_earnings GROUP BY payout_id) m ON m.payout_id = p.id
  LEFT JOIN (SELECT payout_id, sum(amount_cents)::bigint AS cents
               FROM payout_reversals GROUP BY payout_id) r ON r.payout_id = p.id
  LEFT JOIN (SELECT settled_by, sum(amount_cents)::bigint AS cents
               FROM payout_reversals GROUP BY settled_by) d ON d.settled_by = p.id
 WHERE p.status <> 'failed'
   AND p.amount_cents <> coalesce(w.net, 0) + coalesce(m.net, 0) + coalesce(r.cents, 0)
                         - coalesce(d.cents, 0)
 ORDER BY p.id

-- name: payouts_without_transfer
-- What is paid was paid by a transfer.
SELECT id::text, 'a transfer' AS expected, 'paid without one' AS found
  FROM payouts WHERE status = 'paid' AND stripe_transfer_id IS NULL ORDER BY id

-- name: payout_statuses
-- Earnings stand as their payout does, which is their party's and in their currency.
SELECT session_id::text AS id, expected, found
  FROM (SELECT e.session_id, e.party || ' ' || e.currency || ' ' || e.payout_status AS found,
               coalesce(p.workshop_id, p.mechanic_id, e.party) || ' ' || coalesce(p.currency, e.currency)
                   || ' ' || CASE p.status WHEN 'paid' THEN 'paid' WHEN 'failed' THEN 'failed'
                                           WHEN 'pending' THEN 'processing'
                                           WHEN 'processing' THEN 'processing'
                                           ELSE 'pending' END AS expected
          FROM (SELECT session_id, workshop_id AS party, currency, payout_status, payout_id
                  FROM workshop_earnings
                UNION ALL
                SELECT session_id, mechanic_id, currency, payout_status, payout_id
                  FROM mechanic_earnings) e
          LEFT JOIN payouts p ON p.id = e.payout_id) s
 WHERE expected <> found ORDER BY 1, found

-- name: undelivered
-- What is on its way out is waiting in the outbox, not given up there and not done with.
SELECT u.key AS id, 'waiting in the outbox' AS expected,
       CASE WHEN o.id IS NULL THEN 'not there'
            WHEN o.failed_at IS NOT NULL THEN 'given up: ' || coalesce(o.last_error, '')
            ELSE 'done' END AS found
  FROM (SELECT 'refund-' || id AS key FROM payments WHERE status = 'refunding'
        UNION ALL
        SELECT 'payout-' || id FROM payouts WHERE status IN ('pending', 'processing')
        UNION ALL
        SELECT 'reversal-' || id FROM payout_reversals WHERE status = 'pending') u
  LEFT JOIN outbox o ON o.idempotency_key = u.key
 WHERE o.id IS NULL OR o.failed_at IS NOT NULL OR o.done_at IS NOT NULL
 ORDER BY 1

-- name: for_a_person
-- What nobody but a person decides: held payments, those that were refunded though their session goes
-- on, money that parties gave back and the customer did not get, payouts that failed and are in no
-- later one, reversals that are open or failed, transfers that are there though their payout failed,
-- or of which more came back than we asked for.
SELECT what, id::text, cents, currency, coalesce(note, '') AS note
  FROM (SELECT 1 AS nth, 'payment held' AS what, id, left_cents::bigint AS cents, currency, note
          FROM payment_places WHERE status = 'held'
        UNION ALL
        SELECT 2, 'refunded, and its session goes on', id, refunded_cents, currency, note
          FROM payment_places
         WHERE status = 'refunded' AND session_status NOT IN ('completed', 'cancelled', 'expired')
        UNION ALL
        SELECT 3, 'earnings taken back for a refund that did not go through', id,
               taken_back_cents - refunded_cents - credited_cents, currency, note
          FROM payment_places WHERE taken_back_cents > refunded_cents + credited_cents
        UNION ALL
        SELECT 4, 'payout failed', p.id, e.cents, p.currency, p.note
          FROM payouts p
          JOIN (SELECT payout_id, sum(cents)::bigint AS cents
                  FROM (SELECT payout_id, workshop_net_cents - reversed_cents AS cents
                          FROM workshop_earnings WHERE payout_status = 'failed'
                        UNION ALL
                        SELECT payout_id, mechanic_net_cents - reversed_cents
                          FROM mechanic_earnings WHERE payout_status = 'failed') failed
                 GROUP BY payout_id) e ON e.payout_id = p.id
        UNION ALL
        SELECT 5, CASE r.status WHEN 'failed' THEN 'debt: reversal failed' ELSE 'reversal under way' END,
               r.id, r.amount_cents, p.currency, r.note
          FROM payout_reversals r JOIN payouts p ON p.id = r.payout_id
         WHERE r.status = 'pending' OR (r.status = 'failed' AND r.settled_by IS NULL)
        UNION ALL
        SELECT 6, 'payout failed and its transfer is there', id, amount_cents - reversed_cents, currency,
               note
          FROM payouts
         WHERE status = 'failed' AND stripe_transfer_id IS NOT NULL AND reversed_cents < amount_cents
        UNION ALL
        SELECT 7, 'more reversed than asked for', p.id, p.reversed_cents - coalesce(r.cents, 0),
               p.currency, p.note
          FROM payouts p
          LEFT JOIN (SELECT payout_id, sum(amount_cents) AS cents FROM payout_reversals
                      WHERE status IN ('pending', 'reversed') GROUP BY payout_id) r ON r.payout_id = p.id
         WHERE p.status <> 'failed' AND p.reversed_cents > coalesce(r.cents, 0)) matters
 ORDER BY nth, id
