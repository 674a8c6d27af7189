-- Accounts at Stripe to which money is paid out.

-- name: workshop_of
-- The workshop for which a member acts.
SELECT o.id, o.status FROM organization_members m JOIN organizations o ON o.id = m.organization_id
 WHERE m.user_id = $1

-- name: mechanic
-- Whether a mechanic may be paid.
SELECT application_status = 'approved' AND deleted_at IS NULL AS approved
  FROM mechanics WHERE id = $1

-- name: read_workshop
-- A workshop's account, if it has one, and what Stripe may ask it under.
SELECT email, stripe_connect_account_id AS account_id, stripe_account_before,
       stripe_onboarding_completed, stripe_payouts_enabled
  FROM organizations WHERE id = $1

-- name: read_mechanic
-- The same of a mechanic.
SELECT u.email, m.stripe_connect_account_id AS account_id, m.stripe_account_before,
       m.stripe_onboarding_completed, m.stripe_payouts_enabled
  FROM mechanics m JOIN users u ON u.id = m.id WHERE m.id = $1

-- name: store_workshop
-- The account that was made for a workshop, unless another was stored meanwhile; the one that counts.
UPDATE organizations SET stripe_connect_account_id = coalesce(stripe_connect_account_id, $2)
 WHERE id = $1 RETURNING stripe_connect_account_id

-- name: store_mechanic
-- The same of a mechanic.
UPDATE mechanics SET stripe_connect_account_id = coalesce(stripe_connect_account_id, $2)
 WHERE id = $1 RETURNING stripe_connect_account_id

-- name: moment
-- A reading of Stripe that begins now shows what is true now or later; null for an account of nobody.
SELECT clock_timestamp()
 WHERE EXISTS (SELECT FROM organizations WHERE stripe_connect_account_id = $1)
    OR EXISTS (SELECT FROM mechanics WHERE stripe_connect_account_id = $1)

-- name: write
-- How far an account is, as Stripe said at $4 or later.
WITH workshop AS (
    UPDATE organizations
       SET stripe_onboarding_completed = $2, stripe_payouts_enabled = $3, stripe_read_at = $4
     WHERE stripe_connect_account_id = $1 AND (stripe_read_at IS NULL OR stripe_read_at < $4))
UPDATE mechanics
   SET stripe_onboarding_completed = $2, stripe_payouts_enabled = $3, stripe_read_at = $4
 WHERE stripe_connect_account_id = $1 AND (stripe_read_at IS NULL OR stripe_read_at < $4)

-- name: forget
-- Stripe does not show us an account any more: its payee has none, and may set up another.
WITH workshop AS (
    UPDATE organizations
       SET stripe_account_before = stripe_connect_account_id, stripe_connect_account_id = NULL,
           stripe_onboarding_completed = false, stripe_payouts_enabled = false
     WHERE stripe_connect_account_id = $1)
UPDATE mechanics
   SET stripe_account_before = stripe_connect_account_id, stripe_connect_account_id = NULL,
       stripe_onboarding_completed = false, stripe_payouts_enabled = false
 WHERE stripe_connect_account_id = $1
