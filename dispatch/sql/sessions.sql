-- Intakes, waivers and the one factory of sessions.

-- name: live_session
-- The customer's live session, of which there is at most one (S3).
SELECT id, type, status FROM sessions
 WHERE customer_user_id = $1 AND status IN ('pending', 'accepted', 'active')

-- name: plan
-- A plan that can be booked.
SELECT code, name, type, price_cents, currency, minutes FROM plans WHERE code = $1 AND active

-- name: bookable_mechanic
-- Whether a mechanic can be asked by name.
SELECT approved FROM candidates WHERE mechanic_id = $1

-- name: bookable_workshop
-- Whether a workshop can be chosen.
SELECT status = 'active' FROM organizations WHERE id = $1

-- name: slot
-- A slot that has not ended, with the seats that are left.
SELECT workshop_id, capacity - taken AS seats FROM slots WHERE id = $1 AND ends_at > dispatch_now()

-- name: insert_intake
-- What the customer asked for.
INSERT INTO intakes (customer_id, plan_code, vehicle, concern, urgent, is_specialist, routing_type,
                     workshop_id, preferred_mechanic_id, wait_for_preferred, slot_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
RETURNING id

-- name: intake_of
-- An intake, if it is this customer's, with its plan and whether its waiver is signed.
SELECT i.*, p.name AS plan_name, p.price_cents, p.currency,
       EXISTS (SELECT 1 FROM waivers w WHERE w.intake_id = i.id) AS waiver_signed,
       EXISTS (SELECT 1 FROM sessions s WHERE s.intake_id = i.id) AS booked
  FROM intakes i JOIN plans p ON p.code = i.plan_code
 WHERE i.id = $1 AND i.customer_id = $2

-- name: sign_waiver
-- Signed once; signing again keeps the first signature.
INSERT INTO waivers (intake_id, user_id, name, version, address) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (intake_id) DO NOTHING

-- name: create_session
-- The one factory (S1).
SELECT session_id, request_id, session_type, session_status FROM create_session($1, $2, $3, $4)
