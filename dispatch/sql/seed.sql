-- A demonstration city, written in bulk by seed.py inside one transaction.

-- name: take_turn
-- Two who seed at once take turns: the second finds the people that the first made.
SELECT pg_advisory_xact_lock(hashtextextended('dispatch seed-demo', 0));

-- name: find_users
-- Who is there already, by e-mail (lower case).
SELECT id, lower(email) AS email, role FROM users WHERE lower(email) = ANY ($1::text[]);

-- name: add_users
-- Names, e-mails, password hashes and roles of people who can log in; gives their ids.
INSERT INTO users (name, email, password_hash, role)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
RETURNING id, email;

-- name: add_workshop
-- Member, name, e-mail: the workshop that this user acts for, made and active if there is none.
WITH present AS (
    SELECT organization_id AS id FROM organization_members WHERE user_id = $1
), made AS (
    INSERT INTO organizations (name, email, status)
    SELECT $2, $3, 'active' WHERE NOT EXISTS (SELECT 1 FROM present)
    RETURNING id
), member AS (
    INSERT INTO organization_members (organization_id, user_id) SELECT id, $1 FROM made
)
SELECT id FROM present UNION ALL SELECT id FROM made;

-- name: add_mechanics
-- Users, their workshops (null: independent), specialists, ratings. Approved and available, also
-- those who were there and had become something else.
INSERT INTO mechanics AS m (id, workshop_id, account_type, application_status, is_specialist, rating)
SELECT id, workshop_id, CASE WHEN workshop_id IS NULL THEN 'independent' ELSE 'workshop' END,
       'approved', is_specialist, rating
  FROM unnest($1::uuid[], $2::uuid[], $3::boolean[], $4::float8[])
       AS city (id, workshop_id, is_specialist, rating)
ON CONFLICT (id) DO UPDATE SET application_status = 'approved', available = true
 WHERE m.application_status <> 'approved' OR NOT m.available;

-- name: add_customers
-- Users who are customers; those who were stay as they are.
INSERT INTO customers (id) SELECT unnest($1::uuid[]) ON CONFLICT (id) DO NOTHING;
