-- What a mechanic, and what a workshop has earned (M2).

-- name: mechanic_account
-- Whether a mechanic can be paid. No row: there is no such mechanic.
SELECT stripe_connect_account_id IS NOT NULL AS account,
       stripe_onboarding_completed AS onboarding_completed, stripe_payouts_enabled AS payouts_enabled
  FROM mechanics WHERE id = $1

-- name: mechanic_summary
-- By currency; no row where nothing was earned in it.
SELECT currency, sessions, gross_amount_cents, platform_fee_cents, workshop_fee_cents,
       mechanic_net_cents, reversed_cents, due_cents, processing_cents, paid_cents
  FROM mechanic_earnings_summary WHERE mechanic_id = $1 ORDER BY currency

-- name: mechanic_page
-- Session by session, the newest first. Mechanic, limit, offset.
SELECT e.session_id, e.created_at AS completed_at, s.type AS session_type, s.plan AS plan_code,
       e.currency, e.gross_amount_cents, e.platform_fee_cents, e.workshop_fee_cents,
       e.mechanic_net_cents, e.reversed_cents, e.payout_status, e.payout_id
  FROM mechanic_earnings e JOIN sessions s ON s.id = e.session_id
 WHERE e.mechanic_id = $1 ORDER BY e.created_at DESC, e.session_id LIMIT $2 OFFSET $3

-- name: workshop_account
-- The workshop that somebody is a member of, and whether it can be paid. No row: of none.
SELECT o.id AS workshop_id, o.stripe_connect_account_id IS NOT NULL AS account,
       o.stripe_onboarding_completed AS onboarding_completed,
       o.stripe_payouts_enabled AS payouts_enabled
  FROM organization_members m JOIN organizations o ON o.id = m.organization_id WHERE m.user_id = $1

-- name: workshop_summary
-- By currency; no row where nothing was earned in it.
SELECT currency, sessions, gross_amount_cents, platform_fee_cents, workshop_net_cents, reversed_cents,
       due_cents, processing_cents, paid_cents
  FROM workshop_earnings_summary WHERE workshop_id = $1 ORDER BY currency

-- name: workshop_page
-- Session by session, the newest first. Of a referral not who served, nor the fee, from which it follows
-- what she has of it. Workshop, limit, offset.
SELECT e.session_id, e.created_at AS completed_at, s.type AS session_type, s.plan AS plan_code,
       e.is_referral, CASE WHEN NOT e.is_referral THEN e.mechanic_id END AS mechanic_id,
       CASE WHEN NOT e.is_referral THEN u.name END AS mechanic_name, e.currency,
       e.gross_amount_cents, CASE WHEN NOT e.is_referral THEN e.platform_fee_cents END AS platform_fee_cents,
       e.workshop_net_cents, e.reversed_cents, e.payout_status, e.payout_id
  FROM workshop_earnings e
  JOIN sessions s ON s.id = e.session_id
  JOIN users u ON u.id = e.mechanic_id
 WHERE e.workshop_id = $1 ORDER BY e.created_at DESC, e.session_id LIMIT $2 OFFSET $3
