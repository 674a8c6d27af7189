-- What admins see of people and workshops, and do to them.

-- name: mechanics
-- A page of the mechanics who are not deleted, the latest sign-up first; $1 is a status or null.
SELECT m.id, u.name, u.email, m.account_type, m.workshop_id, o.name AS workshop_name,
       m.application_status, m.auto_approved, m.is_specialist, u.disabled_at IS NOT NULL AS deactivated,
       u.created_at, count(*) OVER () AS total
  FROM mechanics m
  JOIN users u ON u.id = m.id
  LEFT JOIN organizations o ON o.id = m.workshop_id
 WHERE m.deleted_at IS NULL AND ($1::text IS NULL OR m.application_status = $1)
 ORDER BY u.created_at DESC, m.id
 LIMIT $2 OFFSET $3

-- name: count_mechanics
-- How many there are, where the page is beyond the last.
SELECT count(*) FROM mechanics m
 WHERE m.deleted_at IS NULL AND ($1::text IS NULL OR m.application_status = $1)

-- name: mechanic
-- One of them.
SELECT m.id, u.name, u.email, m.account_type, m.workshop_id, o.name AS workshop_name,
       m.application_status, m.auto_approved, m.is_specialist, u.disabled_at IS NOT NULL AS deactivated,
       u.created_at
  FROM mechanics m
  JOIN users u ON u.id = m.id
  LEFT JOIN organizations o ON o.id = m.workshop_id
 WHERE m.id = $1

-- name: lock_mechanic
-- What is decided by, held until the commit: the mechanic's row, then her user's.
SELECT m.application_status, m.deleted_at IS NOT NULL AS deleted,
       u.disabled_at IS NOT NULL AS deactivated, u.token_epoch
  FROM mechanics m JOIN users u ON u.id = m.id
 WHERE m.id = $1 FOR NO KEY UPDATE OF m, u

-- name: set_status
-- An application is decided.
UPDATE mechanics SET application_status = $2 WHERE id = $1

-- name: enable
-- A user may log in again; tokens from before stay void.
UPDATE users SET disabled_at = NULL WHERE id = $1

-- name: disable
-- A user is kept out, and every token of hers is void for good. Gives the new epoch.
UPDATE users SET disabled_at = dispatch_now(), token_epoch = token_epoch + 1 WHERE id = $1
RETURNING token_epoch

-- name: delete_mechanic
-- She is gone for everybody; what she did and earned stays.
UPDATE mechanics SET deleted_at = dispatch_now(), available = false WHERE id = $1

-- name: workshops
-- A page of the workshops, the latest sign-up first; $1 is a status or null.
SELECT id, name, email, status, created_at, count(*) OVER () AS total
  FROM organizations WHERE $1::text IS NULL OR status = $1
 ORDER BY created_at DESC, id
 LIMIT $2 OFFSET $3

-- name: count_workshops
-- How many there are, where the page is beyond the last.
SELECT count(*) FROM organizations WHERE $1::text IS NULL OR status = $1

-- name: lock_workshop
-- One of them, held until the commit.
SELECT id, name, email, status, created_at FROM organizations WHERE id = $1 FOR NO KEY UPDATE

-- name: approve_workshop
-- It can be booked, and may invite.
UPDATE organizations SET status = 'active' WHERE id = $1

-- name: record
-- Who did what to whom, now.
INSERT INTO admin_events (admin_id, action, subject_id) VALUES ($1, $2, $3)
