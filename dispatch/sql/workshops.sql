-- What anybody may see of workshops.

-- name: directory
-- Every workshop that has somebody to offer work to now, in the directory's order. Capacity.
SELECT workshop_id, workshop_name, workshop_email, workshop_status, total_mechanics,
       available_mechanics, avg_rating::float8 AS avg_rating, total_sessions, created_at
  FROM get_workshop_directory(NULL, 0, $1)
