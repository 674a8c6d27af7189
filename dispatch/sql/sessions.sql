-- Intakes, waivers and the one factory of sessions.

-- name: live_session
-- The customer's live session, of which there is at most one (S3).
SELECT id, type, status FROM sessions
 WHERE customer_user_id = $1 AND status IN ('pending', 'accepted', 'active')

-- name: look
-- All that a wish names, and the customer's live session. $1 is the JSON of its row of `intakes`; $2: it
-- is to be paid with credits, of which she has `balance_cents` in the plan's currency.
SELECT live.id AS live_id, live.type AS live_type, live.status AS live_status,
       plan.price_cents, plan.currency,
       CASE WHEN $2 THEN
           coalesce((SELECT b.balance_cents FROM credit_balances b
                      WHERE b.customer_id = i.customer_id AND b.currency = plan.currency), 0)
       END AS balance_cents,
       o.status = 'active' AS workshop_bookable,
       c.approved AS mechanic_bookable,
       slot.workshop_id AS slot_workshop_id, slot.capacity - slot.taken AS seats,
       CASE WHEN (plan.price_cents = 0 OR $2) AND i.slot_id IS NULL THEN prospect(i) END AS prospect
  FROM json_populate_record(NULL::intakes, $1) i
  LEFT JOIN sessions live ON live.customer_user_id = i.customer_id
                         AND live.status IN ('pending', 'accepted', 'active')
  LEFT JOIN plans plan ON plan.code = i.plan_code AND plan.active
  LEFT JOIN organizations o ON o.id = i.workshop_id
  LEFT JOIN candidates c ON c.mechanic_id = i.preferred_mechanic_id
  LEFT JOIN slots slot ON slot.id = i.slot_id AND slot.ends_at > dispatch_now()

-- name: insert_intake
-- What the customer asked for; $1 is the JSON of the row.
INSERT INTO intakes (id, customer_id, plan_code, vehicle, concern, urgent, is_specialist, routing_type,
                     workshop_id, preferred_mechanic_id, wait_for_preferred, slot_id)
SELECT id, customer_id, plan_code, vehicle, concern, urgent, is_specialist, routing_type,
       workshop_id, preferred_mechanic_id, wait_for_preferred, slot_id
  FROM json_populate_record(NULL::intakes, $1)

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
SELECT session_id, request_id, session_type, session_status
  FROM create_session($1, $2, $3, $4, NULL, $5)

-- name: prospect
-- All that the first stage of a booking of a stored intake depends on.
SELECT prospect(i) FROM intakes i WHERE i.id = $1

-- name: book_intake
-- Intake, session and first stage of a booking that costs no money; $5: it costs credits.
SELECT book_intake($1, $2, $3, $4, $5)
