-- Lists that people look at.

-- name: of_mechanic
-- The live sessions of a mechanic, the oldest first.
SELECT e.entry FROM session_requests r JOIN booking_entries e ON e.request_id = r.id
 WHERE r.mechanic_id = $1 AND r.status = 'accepted'
 ORDER BY r.accepted_at, r.id

-- name: requests
-- A page of the bookings in some states, the oldest first.
SELECT e.entry
  FROM (SELECT r.id, r.created_at FROM session_requests r
         WHERE r.status = ANY ($1) ORDER BY r.created_at, r.id LIMIT $2 OFFSET $3) page
  JOIN booking_entries e ON e.request_id = page.id
 ORDER BY page.created_at, page.id

-- name: count_requests
-- How many these are.
SELECT count(*) FROM session_requests WHERE status = ANY ($1)

-- name: slots
-- A page of the slots that can be booked, at any workshop or at one: not over, and not full.
SELECT s.id AS slot_id, s.workshop_id, o.name AS workshop_name, s.starts_at, s.ends_at, s.capacity,
       s.capacity - s.taken AS seats_left
  FROM slots s LEFT JOIN organizations o ON o.id = s.workshop_id
 WHERE s.ends_at > dispatch_now() AND s.taken < s.capacity
   AND (s.workshop_id IS NULL OR o.status = 'active')
   AND ($1::uuid IS NULL OR s.workshop_id = $1)
 ORDER BY s.starts_at, s.id LIMIT $2 OFFSET $3

-- name: count_slots
-- How many these are.
SELECT count(*)
  FROM slots s LEFT JOIN organizations o ON o.id = s.workshop_id
 WHERE s.ends_at > dispatch_now() AND s.taken < s.capacity
   AND (s.workshop_id IS NULL OR o.status = 'active')
   AND ($1::uuid IS NULL OR s.workshop_id = $1)

-- name: plans
-- What can be booked, the cheapest first.
SELECT code AS plan, name, type, price_cents, currency, minutes
  FROM plans WHERE active ORDER BY price_cents, minutes, code
