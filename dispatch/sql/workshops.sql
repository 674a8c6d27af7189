-- What anybody may see of workshops, and a workshop of itself.

-- name: directory
-- Every workshop that has somebody to offer work to now, in the directory's order. Capacity.
SELECT workshop_id, workshop_name, workshop_email, workshop_status, total_mechanics,
       available_mechanics, avg_rating::float8 AS avg_rating, total_sessions, created_at
  FROM get_workshop_directory(NULL, 0, $1)

-- name: workshop_of
-- The workshop that a user acts for, and how many mechanics it has.
SELECT o.id, o.name, o.status,
       (SELECT count(*) FROM mechanics m WHERE m.workshop_id = o.id AND m.deleted_at IS NULL) AS mechanics
  FROM organization_members om JOIN organizations o ON o.id = om.organization_id
 WHERE om.user_id = $1

-- name: mechanics
-- A page of a workshop's mechanics, by name.
SELECT mechanic_id, mechanic_name, email, approved, available, is_specialist, live_sessions,
       rating::float8 AS rating, sessions_served
  FROM workshop_mechanics
 WHERE workshop_id = $1
 ORDER BY mechanic_name, mechanic_id
 LIMIT $2 OFFSET $3
