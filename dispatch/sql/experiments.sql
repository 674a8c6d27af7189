-- Experiments as admins set them up (F5).

-- name: list
-- A page of them, the latest first, with who changed each last, and how many customers are in each arm.
SELECT e.*, u.name AS changed_by_name,
       e.rollout_percentage > 0 AND e.active_from <= dispatch_now()
           AND (e.active_until IS NULL OR e.active_until > dispatch_now()) AS is_running,
       (SELECT coalesce(json_object_agg(a.arm, a.customers), '{}')
          FROM (SELECT arm, count(*) AS customers FROM experiment_assignments
                 WHERE experiment = e.name GROUP BY arm) a)::text AS customers
  FROM experiments e JOIN users u ON u.id = e.changed_by
 WHERE $3::text IS NULL OR e.name = $3
 ORDER BY e.created_at DESC, e.name LIMIT $1 OFFSET $2

-- name: count
-- How many there are.
SELECT count(*) FROM experiments

-- name: lock
-- One as it is, and whether somebody is in an arm of it; nobody is assigned until the transaction ends.
SELECT kind, arms::text AS arms,
       EXISTS (SELECT 1 FROM experiment_assignments a WHERE a.experiment = e.name) AS has_started
  FROM experiments e WHERE name = $1 FOR UPDATE

-- name: put
-- Makes or changes one, and keeps that it was changed, by whom and to what. Without an instant from which
-- it is active that stays as it was, or is now for a new one.
WITH put AS (
    INSERT INTO experiments AS e (name, kind, rollout_percentage, arms, active_from, active_until, changed_by)
    VALUES ($1, $2, $3, $4, coalesce($5, dispatch_now()), $6, $7)
    ON CONFLICT (name) DO UPDATE
       SET kind = excluded.kind, rollout_percentage = excluded.rollout_percentage, arms = excluded.arms,
           active_from = coalesce($5, e.active_from), active_until = excluded.active_until,
           changed_by = excluded.changed_by, changed_at = dispatch_now()
    RETURNING *
)
INSERT INTO experiment_changes (experiment, settings, changed_by, at)
SELECT name, to_jsonb(put) - '{name,created_at,changed_at,changed_by}'::text[], changed_by, changed_at
  FROM put
