-- The rows of users, customers and mechanics as auth.py and people.py read and write them.

-- name: accounts
-- What decides whether tokens still count, for many users at once. Unknown ids have no row.
SELECT id, role, token_epoch, disabled_at IS NOT NULL AS disabled
  FROM users
 WHERE id = ANY ($1::uuid[]);

-- name: user_by_email
-- Who logs in with this e-mail (lower case): one row or none.
SELECT id, role, password_hash, token_epoch, disabled_at IS NOT NULL AS disabled
  FROM users
 WHERE lower(email) = $1;

-- name: raise_token_epoch
-- Revokes every token of a user; gives the new epoch.
UPDATE users SET token_epoch = token_epoch + 1 WHERE id = $1 RETURNING token_epoch;

-- name: create_customer
-- Name, e-mail, password hash. Gives the id; users_email_key when the e-mail is taken.
WITH person AS (
    INSERT INTO users (name, email, password_hash, role, email_claimed)
    VALUES ($1, $2, $3, 'customer', true) RETURNING id
)
INSERT INTO customers (id) SELECT id FROM person RETURNING id;

-- name: create_mechanic
-- The same of an independent mechanic, who waits for an approval.
WITH person AS (
    INSERT INTO users (name, email, password_hash, role, email_claimed)
    VALUES ($1, $2, $3, 'mechanic', true) RETURNING id
)
INSERT INTO mechanics (id) SELECT id FROM person RETURNING id;

-- name: create_workshop
-- The same of a workshop's first member; then the workshop's id, name and e-mail. It waits for an approval.
WITH person AS (
    INSERT INTO users (name, email, password_hash, role, email_claimed)
    VALUES ($1, $2, $3, 'workshop', true) RETURNING id
), workshop AS (
    INSERT INTO organizations (id, name, email) VALUES ($4, $5, $6) RETURNING id
)
INSERT INTO organization_members (organization_id, user_id)
SELECT workshop.id, person.id FROM workshop, person
RETURNING user_id;

-- name: user_of_identity
-- Whom an identity provider knows by this name: issuer, subject. No row where her account is disabled,
-- or her tokens were made void at or after the time ($3) at which this one was issued.
SELECT id, role, token_epoch FROM users
 WHERE issuer = $1 AND subject = $2 AND disabled_at IS NULL
   AND (revoked_at IS NULL OR revoked_at < $3)

-- name: create_admin
-- Name, e-mail, password hash. Gives the id; users_email_key when the e-mail is taken.
INSERT INTO users (name, email, password_hash, role) VALUES ($1, $2, $3, 'admin') RETURNING id;

-- name: mechanic_facts
-- What customers may see of some mechanics; no row for one who is gone.
SELECT m.id, u.name, c.available AND c.approved AS available, m.last_seen,
       EXISTS (SELECT 1 FROM push_subscriptions s WHERE s.mechanic_id = m.id) AS has_device
  FROM mechanics m
  JOIN users u ON u.id = m.id
  JOIN candidates c ON c.mechanic_id = m.id
 WHERE m.id = ANY ($1::uuid[]) AND m.deleted_at IS NULL;

-- name: revoked
-- Whose tokens became void since, and below which epoch; asked with a margin like facts.
SELECT id, CASE WHEN disabled_at IS NULL THEN token_epoch ELSE 2147483647 END AS token_epoch
  FROM users WHERE revoked_at > $1
