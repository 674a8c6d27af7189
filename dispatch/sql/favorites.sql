-- Favourites, the sessions that a customer had with them, and booking one again.

-- name: favorites_of
-- The favourites of some customers, each customer's in the order in which they are shown. Sessions
-- are the completed ones, by the mechanic who served or the workshop that did.
WITH chosen AS (
    SELECT * FROM favorites WHERE customer_id = ANY ($1::uuid[])
), served AS (
    SELECT s.customer_user_id AS customer_id, who.provider_id, count(*)::int AS sessions,
           max(coalesce(s.started_at, s.created_at)) AS last_session_at
      FROM sessions s
     CROSS JOIN LATERAL (VALUES (s.mechanic_id), (s.workshop_id)) AS who (provider_id)
     WHERE s.status = 'completed' AND s.customer_user_id IN (SELECT customer_id FROM chosen)
     GROUP BY s.customer_user_id, who.provider_id
)
SELECT customer_id, provider_id, c.provider_type, coalesce(u.name, o.name) AS name,
       coalesce(s.sessions, 0) AS sessions, s.last_session_at,
       s.sessions IS NOT NULL AND provider_id = first_value(provider_id) OVER (
           PARTITION BY customer_id
           ORDER BY s.sessions DESC NULLS LAST, s.last_session_at DESC, provider_id) AS most_booked,
       c.created_at AS added_at
  FROM chosen c
  LEFT JOIN served s USING (customer_id, provider_id)
  LEFT JOIN users u ON u.id = c.mechanic_id
  LEFT JOIN organizations o ON o.id = c.workshop_id
 ORDER BY customer_id, most_booked DESC, sessions DESC, added_at DESC, provider_id

-- name: available_mechanics
-- How many mechanics of these workshops could be offered work now. Workshops, capacity.
SELECT a.workshop_id, count(*)::int AS available
  FROM approved_mechanics($2) a
  JOIN organizations o ON o.id = a.workshop_id AND o.status = 'active'
 WHERE a.offerable AND a.workshop_id = ANY ($1::uuid[])
 GROUP BY a.workshop_id

-- name: lock_mechanic
-- Until the transaction ends nobody deletes her, so that no favourite is left of one who is gone.
SELECT FROM mechanics WHERE id = $1 FOR SHARE

-- name: provider
-- What a provider's id names, and whether it can be booked.
SELECT 'independent' AS provider_type, u.name, c.approved AS bookable
  FROM candidates c JOIN users u ON u.id = c.mechanic_id WHERE c.mechanic_id = $1
UNION ALL
SELECT 'workshop', name, status = 'active' FROM organizations WHERE id = $1

-- name: lock_customer
-- One at a time adds to a customer's favourites, which are counted.
SELECT FROM customers WHERE id = $1 FOR NO KEY UPDATE

-- name: add
-- Customer, type, provider, how many a customer may have. No row: it is one already, or too many.
INSERT INTO favorites (customer_id, provider_type, mechanic_id, workshop_id)
SELECT $1, $2, CASE $2 WHEN 'independent' THEN $3::uuid END, CASE $2 WHEN 'workshop' THEN $3::uuid END
 WHERE (SELECT count(*) FROM favorites WHERE customer_id = $1) < $4
ON CONFLICT DO NOTHING
RETURNING created_at

-- name: added_at
-- Since when a provider is the customer's favourite.
SELECT created_at FROM favorites WHERE customer_id = $1 AND provider_id = $2

-- name: remove
-- No longer a favourite; no row when it was none.
DELETE FROM favorites WHERE customer_id = $1 AND provider_id = $2 RETURNING true

-- name: last_session
-- What the customer asked for the last time that this provider accepted. Who gave the booking back
-- is not in its row any more.
SELECT s.plan, p.active AS plan_is_active, i.vehicle, i.concern,
       coalesce(i.is_specialist, false) AS is_specialist
  FROM sessions s
  JOIN plans p ON p.code = s.plan
  LEFT JOIN intakes i ON i.id = s.intake_id
 WHERE s.customer_user_id = $1 AND $2 IN (s.mechanic_id, s.workshop_id)
 ORDER BY coalesce(s.started_at, s.created_at) DESC, s.id LIMIT 1
