-- Invites of mechanics by workshops, as invites.py reads and writes them.

-- name: lock_workshop_of
-- The workshop that a user acts for, held against its other members' invites until the commit.
SELECT o.id, o.status
  FROM organization_members m JOIN organizations o ON o.id = m.organization_id
 WHERE m.user_id = $1 FOR NO KEY UPDATE OF o

-- name: standing
-- What limits another invite of a workshop ($1) to an e-mail ($2): its open ones to others, and who
-- was written to since $3 ago.
SELECT EXISTS (SELECT 1 FROM users WHERE lower(email) = $2) AS taken,
       (SELECT count(*) FROM open_invites WHERE workshop_id = $1 AND email <> $2) AS open,
       (SELECT count(*) FROM workshop_invites
         WHERE workshop_id = $1 AND created_at > dispatch_now() - $3::interval) AS by_workshop,
       (SELECT count(*) FROM workshop_invites
         WHERE email = $2 AND created_at > dispatch_now() - $3::interval) AS to_email

-- name: withdraw_older
-- Voids what a workshop had open for an e-mail, also what has expired.
UPDATE workshop_invites SET withdrawn_at = dispatch_now()
 WHERE workshop_id = $1 AND email = $2 AND used_at IS NULL AND withdrawn_at IS NULL

-- name: add
-- Id, workshop, e-mail, name, the token's hash, who invites, for how long. Gives when it expires.
INSERT INTO workshop_invites (id, workshop_id, email, name, token_hash, invited_by, created_at, expires_at)
SELECT $1, $2, $3, $4, $5, $6, now, now + $7::interval FROM dispatch_now() AS now
RETURNING expires_at

-- name: queue_mail
-- The mail with an invite is to be sent; its token is not in the row.
INSERT INTO outbox (kind, idempotency_key, payload, next_try_at)
VALUES ('mail', 'mail:invite:' || $1::uuid, jsonb_build_object('invite_id', $1::uuid), dispatch_now())

-- name: withdraw
-- Voids an open invite of the workshop that a user acts for. Gives its id; no row for any other.
UPDATE workshop_invites i SET withdrawn_at = coalesce(i.withdrawn_at, dispatch_now())
  FROM organization_members m
 WHERE i.id = $1 AND m.user_id = $2 AND m.organization_id = i.workshop_id AND i.used_at IS NULL
RETURNING i.id

-- name: letter
-- What the mail with an invite says; no row once nobody may sign up with it any more.
SELECT i.email, i.name, i.workshop_name, u.name AS inviter, i.expires_at, i.token_hash
  FROM open_invites i JOIN users u ON u.id = i.invited_by
 WHERE i.id = $1

-- name: open
-- An invite that may still be used, by the hash of its token.
SELECT id, email, workshop_name FROM open_invites WHERE token_hash = $1

-- name: take
-- Uses an invite up, by the hash of its token: of two at once one gets the row.
UPDATE workshop_invites i SET used_at = dispatch_now()
  FROM organizations o
 WHERE i.token_hash = $1 AND i.used_at IS NULL AND i.withdrawn_at IS NULL
   AND i.expires_at > dispatch_now() AND o.id = i.workshop_id AND o.status = 'active'
RETURNING i.id, i.workshop_id, i.invited_by, i.email

-- name: create_mechanic
-- A mechanic who was invited: name, e-mail, password hash, workshop, who invited her. Approved at once
-- (P3). The mail reached her, so the e-mail is hers. Gives her id; users_email_key when it is taken.
WITH person AS (
    INSERT INTO users (name, email, password_hash, role) VALUES ($1, $2, $3, 'mechanic') RETURNING id
)
INSERT INTO mechanics (id, workshop_id, account_type, invited_by, invite_accepted_at,
                       application_status, auto_approved)
SELECT id, $4, 'workshop', $5, dispatch_now(), 'approved', true FROM person
RETURNING id

-- name: used_by
-- Who signed up with an invite.
UPDATE workshop_invites SET used_by = $2 WHERE id = $1

-- name: open_of_workshop
-- The open invites of a workshop, the latest first.
SELECT id, email, name, created_at, expires_at FROM open_invites
 WHERE workshop_id = $1 ORDER BY created_at DESC, id
