-- What happens at a time for the whole cluster.

-- name: register
-- A job as this node knows it. Another schedule than the one before gives it another time, and whoever
-- runs it by the old one no longer has it; otherwise its time stays, also where that is past: what was
-- missed is made up for.
INSERT INTO jobs (name, schedule, due_at) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE
   SET schedule = excluded.schedule, due_at = excluded.due_at, claim = NULL
 WHERE jobs.schedule <> excluded.schedule

-- name: hasten
-- Due at once, unless somebody is at it.
UPDATE jobs SET due_at = dispatch_now() WHERE name = $1 AND claim IS NULL

-- name: now
-- The time by which everything is due.
SELECT dispatch_now()

-- name: claim
-- The jobs among these that are due by the same schedule, taken for the time of a lease: of whoever
-- dies with one the next who looks after that time takes it. $3 are the fences.
UPDATE jobs j SET claim = mine.claim, due_at = dispatch_now() + $4
  FROM unnest($1::text[], $2::text[], $3::uuid[]) AS mine (name, schedule, claim)
 WHERE j.name IN (SELECT name FROM jobs
                   WHERE name = ANY ($1) AND due_at <= (SELECT dispatch_now())
                   FOR UPDATE SKIP LOCKED)
   AND (j.name, j.schedule) = (mine.name, mine.schedule)
RETURNING j.name, j.claim, dispatch_now() AS at

-- name: renew
-- The lease goes on, unless somebody else has the job by now.
UPDATE jobs SET due_at = dispatch_now() + $3 WHERE name = $1 AND claim = $2

-- name: finish
-- It ran; the next time, and what went wrong, if something did.
UPDATE jobs SET claim = NULL, due_at = $3, last_run_at = dispatch_now(), last_error = $4
 WHERE name = $1 AND claim = $2
