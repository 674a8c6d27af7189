-- Dispatch: the whole schema, from top to bottom. Applies to an empty database in one go.
--
-- Postgres holds what is true. Every change of a booking is one transaction that locks its rows in
-- one order (request, session, mechanic, the rest) and judges deadlines after the lock by
-- dispatch_now(). Invariants are constraints and partial unique indexes; the code only names them.
-- Ids are UUIDs, times timestamptz, money integer cents with a currency.


-- ---------------------------------------------------------------------------------------------
-- Time
-- ---------------------------------------------------------------------------------------------

-- The one clock that judges deadlines. The setting dispatch.clock_offset moves it, so that a test
-- passes hours without sleeping; a server refuses to start where it is set.
CREATE FUNCTION dispatch_now() RETURNS timestamptz
LANGUAGE sql VOLATILE PARALLEL SAFE AS $$
    SELECT clock_timestamp()
         + coalesce(nullif(current_setting('dispatch.clock_offset', true), '')::interval, interval '0')
$$;


-- ---------------------------------------------------------------------------------------------
-- The cluster and its nodes
-- ---------------------------------------------------------------------------------------------

-- One row: who we are, so that two clusters can share a Redis without hearing each other.
CREATE TABLE cluster (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO cluster DEFAULT VALUES;

CREATE TABLE nodes (
    node_id     uuid PRIMARY KEY,
    incarnation bigint NOT NULL,
    pid         integer NOT NULL,
    host        text NOT NULL,
    clients     integer NOT NULL DEFAULT 0,
    lag_ms      double precision NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What happens at a time for the whole cluster: whoever claims a row that is due runs it (T1). A claim
-- moves due_at a few seconds ahead, again and again while it runs: of a node that dies another takes it.
CREATE TABLE jobs (
    name        text PRIMARY KEY,
    schedule    text NOT NULL,  -- from which due_at was computed
    due_at      timestamptz,    -- null: never
    claim       uuid,           -- of whoever runs it, the fence of what is written about the run
    last_run_at timestamptz,
    last_error  text
);


-- ---------------------------------------------------------------------------------------------
-- People and places
-- ---------------------------------------------------------------------------------------------

CREATE TABLE users (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email         text NOT NULL CHECK (email LIKE '%_@_%' AND length(email) <= 254),
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    password_hash text,
    role          text NOT NULL CHECK (role IN ('customer', 'mechanic', 'workshop', 'admin')),
    email_claimed boolean NOT NULL DEFAULT false,  -- typed at a sign-up, and not shown to be hers
    issuer        text,     -- an outside identity provider and its name for her (P4), as the
    subject       text,     -- tokens' `iss` and `sub` say
    token_epoch   integer NOT NULL DEFAULT 0,
    disabled_at   timestamptz,
    revoked_at    timestamptz,  -- when tokens were last made void, by one of these or another role
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((issuer IS NULL) = (subject IS NULL))
);
CREATE UNIQUE INDEX users_email_key ON users (lower(email));
CREATE INDEX users_revoked_idx ON users (revoked_at) WHERE revoked_at IS NOT NULL;

-- So that nodes which missed the news close her sockets all the same. In another role she is somebody
-- else: tokens and sockets of the one before are void.
CREATE FUNCTION user_revoke() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.role <> OLD.role THEN
        NEW.token_epoch := greatest(NEW.token_epoch, OLD.token_epoch + 1);
    END IF;
    NEW.revoked_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER user_revoke
    BEFORE UPDATE OF token_epoch, disabled_at, role ON users
    FOR EACH ROW WHEN (NEW.token_epoch > OLD.token_epoch OR NEW.disabled_at IS NOT NULL
                       OR NEW.role <> OLD.role)
    EXECUTE FUNCTION user_revoke();

CREATE UNIQUE INDEX users_identity_key ON users (issuer, subject) WHERE issuer IS NOT NULL;

CREATE TABLE organizations (
    id                          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_type           text NOT NULL DEFAULT 'workshop' CHECK (organization_type = 'workshop'),
    name                        text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    email                       text NOT NULL,
    status                      text NOT NULL DEFAULT 'pending'
                                CHECK (status IN ('pending', 'active', 'suspended')),
    stripe_connect_account_id   text,
    stripe_onboarding_completed boolean NOT NULL DEFAULT false,
    stripe_payouts_enabled      boolean NOT NULL DEFAULT false,
    stripe_read_at              timestamptz,  -- what stands there of Stripe is of this moment or later
    stripe_account_before       text,         -- the last one that Stripe no longer shows us
    platform_fee_percentage     numeric(5, 2) NOT NULL DEFAULT 20
                                CHECK (platform_fee_percentage BETWEEN 0 AND 100),
    custom_fee_agreement        boolean NOT NULL DEFAULT false,
    created_at                  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE organization_members (
    organization_id uuid NOT NULL REFERENCES organizations,
    user_id         uuid NOT NULL UNIQUE REFERENCES users,
    PRIMARY KEY (organization_id, user_id)
);

CREATE TABLE customers (
    id         uuid PRIMARY KEY REFERENCES users,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE mechanics (
    id                        uuid PRIMARY KEY REFERENCES users,
    workshop_id               uuid REFERENCES organizations,
    account_type              text NOT NULL DEFAULT 'independent'
                              CHECK (account_type IN ('independent', 'workshop')),
    invited_by                uuid REFERENCES users,
    invite_accepted_at        timestamptz,
    auto_approved             boolean NOT NULL DEFAULT false,
    application_status        text NOT NULL DEFAULT 'pending'
                              CHECK (application_status IN ('pending', 'approved', 'rejected')),
    is_specialist             boolean NOT NULL DEFAULT false,
    rating                    numeric(3, 2) CHECK (rating BETWEEN 1 AND 5),
    available                 boolean NOT NULL DEFAULT true,
    is_online                 boolean NOT NULL DEFAULT false,
    last_seen                 timestamptz,
    stripe_connect_account_id   text,
    stripe_onboarding_completed boolean NOT NULL DEFAULT false,
    stripe_payouts_enabled      boolean NOT NULL DEFAULT false,
    stripe_read_at              timestamptz,
    stripe_account_before       text,
    deleted_at                timestamptz,
    changed_at                timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((account_type = 'workshop') = (workshop_id IS NOT NULL))
);
CREATE INDEX mechanics_workshop_id_idx ON mechanics (workshop_id);
CREATE UNIQUE INDEX organizations_stripe_account_key ON organizations (stripe_connect_account_id);
CREATE UNIQUE INDEX mechanics_stripe_account_key ON mechanics (stripe_connect_account_id);
CREATE INDEX mechanics_changed_at_idx ON mechanics (changed_at);

-- changed_at moves with every fact that routing uses, so that nodes find what a lost hint told them.
CREATE FUNCTION mechanic_touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER mechanic_touch
    BEFORE UPDATE OF workshop_id, application_status, is_specialist, available, deleted_at
    ON mechanics FOR EACH ROW EXECUTE FUNCTION mechanic_touch();

CREATE FUNCTION user_touch_mechanic() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE mechanics SET changed_at = clock_timestamp() WHERE id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER user_touch_mechanic
    AFTER UPDATE OF disabled_at ON users
    FOR EACH ROW WHEN (NEW.role = 'mechanic') EXECUTE FUNCTION user_touch_mechanic();

-- A workshop asks somebody to work for it, by e-mail (P3). Whoever has the token may sign up with that
-- e-mail, once and in time; of the token only the SHA-256 is here. Asked again, the older token is void.
CREATE TABLE workshop_invites (
    id           uuid PRIMARY KEY,
    workshop_id  uuid NOT NULL REFERENCES organizations,
    email        text NOT NULL CHECK (email = lower(email) AND length(email) <= 254),
    name         text CHECK (length(name) BETWEEN 1 AND 200),
    token_hash   bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    invited_by   uuid NOT NULL REFERENCES users,
    created_at   timestamptz NOT NULL DEFAULT dispatch_now(),
    expires_at   timestamptz NOT NULL,
    used_at      timestamptz,
    used_by      uuid REFERENCES users,
    withdrawn_at timestamptz,
    CHECK (used_by IS NULL OR used_at IS NOT NULL),
    CHECK (used_at IS NULL OR withdrawn_at IS NULL)
);
CREATE UNIQUE INDEX workshop_invites_one_open
    ON workshop_invites (workshop_id, email) WHERE used_at IS NULL AND withdrawn_at IS NULL;
CREATE INDEX workshop_invites_email_idx ON workshop_invites (email, created_at);
CREATE INDEX workshop_invites_workshop_idx ON workshop_invites (workshop_id, created_at);

-- Those that somebody may still sign up with.
CREATE VIEW open_invites AS
SELECT i.*, o.name AS workshop_name
  FROM workshop_invites i
  JOIN organizations o ON o.id = i.workshop_id AND o.status = 'active'
 WHERE i.used_at IS NULL AND i.withdrawn_at IS NULL AND i.expires_at > dispatch_now();

-- P3: who was invited and comes by another way than the invite's (from an identity provider, an import)
-- is linked and approved all the same, by whoever invited her first. Not who only claims the e-mail:
-- signing up with somebody else's address must not be an approval.
CREATE FUNCTION mechanic_link_invite() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    invite workshop_invites;
BEGIN
    SELECT i.* INTO invite
      FROM users u
      JOIN workshop_invites i ON i.email = lower(u.email)
      JOIN organizations o ON o.id = i.workshop_id AND o.status = 'active'
     WHERE u.id = NEW.id AND NOT u.email_claimed
       AND i.used_at IS NULL AND i.withdrawn_at IS NULL AND i.expires_at > dispatch_now()
     ORDER BY i.created_at, i.id LIMIT 1 FOR UPDATE OF i;
    IF FOUND THEN
        UPDATE workshop_invites SET used_at = dispatch_now(), used_by = NEW.id WHERE id = invite.id;
        NEW.workshop_id := invite.workshop_id;
        NEW.account_type := 'workshop';
        NEW.invited_by := invite.invited_by;
        NEW.invite_accepted_at := dispatch_now();
        NEW.application_status := 'approved';
        NEW.auto_approved := true;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER mechanic_link_invite
    BEFORE INSERT ON mechanics
    FOR EACH ROW WHEN (NEW.workshop_id IS NULL AND NEW.application_status = 'pending'
                       AND NEW.deleted_at IS NULL)
    EXECUTE FUNCTION mechanic_link_invite();

-- What admins did to people and workshops, and when. Append-only.
CREATE TABLE admin_events (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    admin_id   uuid NOT NULL REFERENCES users,
    action     text NOT NULL CHECK (action IN ('approve_mechanic', 'reject_mechanic',
               'deactivate_mechanic', 'delete_mechanic', 'approve_workshop')),
    subject_id uuid NOT NULL,  -- the mechanic or the workshop
    at         timestamptz NOT NULL DEFAULT dispatch_now()
);
CREATE INDEX admin_events_subject_idx ON admin_events (subject_id, id);

-- Whom a customer would like again: a mechanic (`independent`) or a workshop (F1).
CREATE TABLE favorites (
    customer_id   uuid NOT NULL REFERENCES customers,
    provider_type text NOT NULL CHECK (provider_type IN ('independent', 'workshop')),
    mechanic_id   uuid REFERENCES mechanics,
    workshop_id   uuid REFERENCES organizations,
    provider_id   uuid GENERATED ALWAYS AS (coalesce(mechanic_id, workshop_id)) STORED,
    created_at    timestamptz NOT NULL DEFAULT dispatch_now(),
    PRIMARY KEY (customer_id, provider_id),
    CHECK ((provider_type = 'independent') = (mechanic_id IS NOT NULL)),
    CHECK ((provider_type = 'workshop') = (workshop_id IS NOT NULL))
);
CREATE INDEX favorites_mechanic_idx ON favorites (mechanic_id) WHERE mechanic_id IS NOT NULL;

-- Where a mechanic's devices can be reached while no socket of hers is open (N3).
CREATE TABLE push_subscriptions (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    mechanic_id  uuid NOT NULL REFERENCES mechanics,
    endpoint     text NOT NULL UNIQUE CHECK (length(endpoint) <= 2048),
    p256dh       text NOT NULL,
    auth         text NOT NULL,
    device       text CHECK (length(device) <= 64),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivered_at timestamptz
);
CREATE INDEX push_subscriptions_mechanic_idx ON push_subscriptions (mechanic_id);

-- F2: a mechanic who is deleted is nobody's favourite any more, and gets no notifications.
CREATE FUNCTION mechanic_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM favorites WHERE mechanic_id = NEW.id;
    DELETE FROM push_subscriptions WHERE mechanic_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER mechanic_forget
    AFTER UPDATE OF deleted_at ON mechanics
    FOR EACH ROW WHEN (NEW.deleted_at IS NOT NULL) EXECUTE FUNCTION mechanic_forget();


-- ---------------------------------------------------------------------------------------------
-- What can be booked
-- ---------------------------------------------------------------------------------------------

CREATE TABLE plans (
    code        text PRIMARY KEY,
    name        text NOT NULL,
    type        text NOT NULL CHECK (type IN ('chat', 'video', 'diagnostic')),
    price_cents integer NOT NULL CHECK (price_cents >= 0),
    -- Of those that have cents: amounts are shown and split by them.
    currency    text NOT NULL CHECK (currency ~ '^[a-z]{3}$' AND currency NOT IN
                ('bif', 'clp', 'djf', 'gnf', 'jpy', 'kmf', 'krw', 'mga', 'pyg', 'rwf', 'ugx', 'vnd', 'vuv',
                 'xaf', 'xof', 'xpf', 'bhd', 'iqd', 'jod', 'kwd', 'lyd', 'omr', 'tnd')),
    minutes     integer NOT NULL CHECK (minutes > 0),
    active      boolean NOT NULL DEFAULT true
);
INSERT INTO plans (code, name, type, price_cents, currency, minutes) VALUES
    ('free',       'Free question',           'chat',          0, 'eur',  5),
    ('trial',      'Trial chat',              'chat',        300, 'eur',  5),
    ('trial-free', 'Free trial chat',         'chat',          0, 'eur',  5),
    ('chat10',     'Chat, 10 minutes',        'chat',       1000, 'eur', 10),
    ('video15',    'Video call, 15 minutes',  'video',      1500, 'eur', 15),
    ('diagnostic', 'Diagnosis, 45 minutes',   'diagnostic', 4900, 'eur', 45),
    ('standard',   'Video call, 30 minutes',  'video',      2900, 'eur', 30);

CREATE TABLE slots (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workshop_id uuid REFERENCES organizations,
    starts_at   timestamptz NOT NULL,
    ends_at     timestamptz NOT NULL,
    capacity    integer NOT NULL CHECK (capacity > 0),
    taken       integer NOT NULL DEFAULT 0,
    CHECK (ends_at > starts_at),
    CONSTRAINT slots_not_overfull CHECK (taken BETWEEN 0 AND capacity)
);
CREATE INDEX slots_ends_at_idx ON slots (ends_at);

-- What the customer asked for, before money; the truth that a checkout is held against.
CREATE TABLE intakes (
    id                    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id           uuid NOT NULL REFERENCES customers,
    plan_code             text NOT NULL REFERENCES plans,
    vehicle               text CHECK (length(vehicle) <= 200),
    concern               text CHECK (length(concern) <= 2000),
    urgent                boolean NOT NULL DEFAULT false,
    is_specialist         boolean NOT NULL DEFAULT false,
    routing_type          text NOT NULL DEFAULT 'broadcast' CHECK (routing_type IN
                          ('broadcast', 'workshop_only', 'hybrid', 'priority_broadcast')),
    workshop_id           uuid REFERENCES organizations,
    preferred_mechanic_id uuid REFERENCES mechanics,
    wait_for_preferred    boolean NOT NULL DEFAULT false,
    slot_id               uuid REFERENCES slots,
    created_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (routing_type NOT IN ('workshop_only', 'hybrid') OR workshop_id IS NOT NULL),
    CHECK (routing_type <> 'priority_broadcast' OR preferred_mechanic_id IS NOT NULL)
);
CREATE INDEX intakes_customer_id_idx ON intakes (customer_id);

CREATE TABLE waivers (
    intake_id uuid PRIMARY KEY REFERENCES intakes,
    user_id   uuid NOT NULL REFERENCES users,
    name      text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    version   text NOT NULL CHECK (length(version) BETWEEN 1 AND 50),
    address   text NOT NULL,
    signed_at timestamptz NOT NULL DEFAULT dispatch_now()
);


-- ---------------------------------------------------------------------------------------------
-- Sessions and their dispatching
-- ---------------------------------------------------------------------------------------------

CREATE TABLE sessions (
    id                    uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_user_id      uuid NOT NULL REFERENCES customers,
    mechanic_id           uuid REFERENCES mechanics,
    mechanic_slot         integer CHECK (mechanic_slot >= 1),
    type                  text NOT NULL CHECK (type IN ('chat', 'video', 'diagnostic')),
    status                text NOT NULL CHECK (status IN ('scheduled', 'pending', 'accepted',
                          'active', 'completed', 'cancelled', 'expired')),
    plan                  text NOT NULL REFERENCES plans,
    intake_id             uuid UNIQUE REFERENCES intakes,
    slot_id               uuid REFERENCES slots,
    stripe_session_id     text UNIQUE,
    workshop_id           uuid REFERENCES organizations,
    preferred_workshop_id uuid REFERENCES organizations,
    metadata              jsonb NOT NULL DEFAULT '{}',
    customer_joined_at    timestamptz,
    mechanic_joined_at    timestamptz,
    join_by               timestamptz,
    started_at            timestamptz,
    ends_at               timestamptz,
    ended_by              uuid REFERENCES users,
    summary               text CHECK (length(summary) <= 4000),  -- of the mechanic, for the customer
    notes                 text CHECK (length(notes) <= 4000),    -- of the mechanic, never for the customer
    version               integer NOT NULL DEFAULT 1,
    created_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (status NOT IN ('accepted', 'active') OR (mechanic_id IS NOT NULL AND mechanic_slot IS NOT NULL)),
    CHECK (status <> 'active' OR (started_at IS NOT NULL AND ends_at IS NOT NULL))
);
-- S3: at most one live session a customer; a scheduled one is not live.
CREATE UNIQUE INDEX sessions_one_live_per_customer
    ON sessions (customer_user_id) WHERE status IN ('pending', 'accepted', 'active');
-- Capacity is the number of slots: the backstop of accept_offer.
CREATE UNIQUE INDEX sessions_mechanic_slot_key
    ON sessions (mechanic_id, mechanic_slot) WHERE status IN ('accepted', 'active');
CREATE INDEX sessions_customer_idx ON sessions (customer_user_id);
CREATE INDEX sessions_mechanic_idx ON sessions (mechanic_id);
CREATE INDEX sessions_workshop_id_idx ON sessions (workshop_id, status);
CREATE INDEX sessions_preferred_workshop_idx ON sessions (preferred_workshop_id);

CREATE TABLE session_participants (
    session_id uuid NOT NULL REFERENCES sessions,
    user_id    uuid NOT NULL REFERENCES users,
    role       text NOT NULL CHECK (role IN ('customer', 'mechanic')),
    joined_at  timestamptz,
    PRIMARY KEY (session_id, user_id)
);
-- S6: exactly one mechanic in a session.
CREATE UNIQUE INDEX session_participants_one_mechanic
    ON session_participants (session_id) WHERE role = 'mechanic';

-- What is tried on a share of the customers who ask for their favourite (F5): see core/experiments.py. Its
-- kind and arms stay as they are once somebody is assigned; it is never deleted, only switched off.
CREATE TABLE experiments (
    name               text PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 50),
    kind               text NOT NULL CHECK (kind IN ('routing', 'window')),
    rollout_percentage integer NOT NULL CHECK (rollout_percentage BETWEEN 0 AND 100),
    arms               jsonb NOT NULL,
    active_from        timestamptz NOT NULL,
    active_until       timestamptz,  -- null: until it is changed
    created_at         timestamptz NOT NULL DEFAULT dispatch_now(),
    changed_at         timestamptz NOT NULL DEFAULT dispatch_now(),
    changed_by         uuid NOT NULL REFERENCES users,
    CHECK (active_until > active_from)
);

-- Every change of an experiment: what it was from then on, and who said so. Append-only.
CREATE TABLE experiment_changes (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    experiment text NOT NULL REFERENCES experiments,
    settings   jsonb NOT NULL,
    changed_by uuid NOT NULL REFERENCES users,
    at         timestamptz NOT NULL
);

-- Which arm a customer is in, from the first booking of hers that the experiment touched, for good.
CREATE TABLE experiment_assignments (
    customer_id uuid NOT NULL REFERENCES customers,
    experiment  text NOT NULL REFERENCES experiments,
    arm         text NOT NULL,
    assigned_at timestamptz NOT NULL,
    PRIMARY KEY (customer_id, experiment),
    UNIQUE (customer_id, experiment, arm)  -- for bookings to refer to
);
CREATE INDEX experiment_assignments_experiment_idx ON experiment_assignments (experiment, arm);

CREATE TABLE session_requests (
    id                      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id              uuid NOT NULL UNIQUE REFERENCES sessions,
    offer_id                uuid NOT NULL UNIQUE,
    customer_id             uuid NOT NULL REFERENCES customers,
    session_type            text NOT NULL,
    plan_code               text NOT NULL REFERENCES plans,
    urgent                  boolean NOT NULL DEFAULT false,
    is_specialist           boolean NOT NULL DEFAULT false,
    routing_type            text NOT NULL CHECK (routing_type IN
                            ('broadcast', 'workshop_only', 'hybrid', 'priority_broadcast')),
    preferred_workshop_id   uuid REFERENCES organizations,
    preferred_mechanic_id   uuid REFERENCES mechanics,
    wait_for_preferred      boolean NOT NULL DEFAULT false,
    priority_window_minutes integer,
    excluded_mechanic_ids   uuid[] NOT NULL DEFAULT '{}',
    status                  text NOT NULL CHECK (status IN
                            ('scheduled', 'pending', 'accepted', 'completed', 'cancelled', 'expired')),
    stage                   text CHECK (stage IN ('priority', 'preferred', 'open')),
    generation              integer NOT NULL DEFAULT 1,
    version                 integer NOT NULL DEFAULT 1,
    attempt                 integer NOT NULL DEFAULT 1,
    message                 text NOT NULL,
    mechanic_id             uuid REFERENCES mechanics,
    workshop_id             uuid REFERENCES organizations,
    accept_id               uuid,
    accepted_at             timestamptz,
    priority_notified_at    timestamptz,
    fallback_broadcast_at   timestamptz,
    created_at              timestamptz NOT NULL,
    opens_at                timestamptz NOT NULL,
    stage_ends_at           timestamptz,
    next_attempt_at         timestamptz,
    seen_at                 timestamptz,  -- when the favourite saw the present round
    expires_at              timestamptz NOT NULL,
    warned_at               timestamptz,
    -- The least of all deadlines of request and session; null when nothing is to happen by itself.
    due_at                  timestamptz,
    -- The experiment that touched it, and what it is dispatched by instead of the node's policy.
    experiment              text,
    arm                     text,
    priority_window_seconds double precision CHECK (priority_window_seconds > 0),
    FOREIGN KEY (customer_id, experiment, arm)
        REFERENCES experiment_assignments (customer_id, experiment, arm),
    CHECK ((experiment IS NULL) = (arm IS NULL)),
    CHECK (routing_type NOT IN ('workshop_only', 'hybrid') OR preferred_workshop_id IS NOT NULL),
    CHECK (routing_type <> 'priority_broadcast' OR preferred_mechanic_id IS NOT NULL),
    CHECK ((status IN ('accepted', 'completed')) <= (mechanic_id IS NOT NULL)),
    CHECK (status IN ('scheduled', 'pending') <= (mechanic_id IS NULL)),
    CHECK (status = 'pending' OR stage IS NULL)
);
CREATE INDEX session_requests_due_idx ON session_requests (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX session_requests_live_idx ON session_requests (id) INCLUDE (version)
    WHERE status IN ('scheduled', 'pending', 'accepted');
CREATE INDEX session_requests_customer_idx ON session_requests (customer_id, created_at DESC);
CREATE INDEX session_requests_workshop_id_idx ON session_requests (workshop_id);
CREATE INDEX session_requests_preferred_workshop_idx ON session_requests (preferred_workshop_id);
CREATE INDEX session_requests_routing_type_idx ON session_requests (routing_type);
CREATE INDEX session_requests_preferred_mechanic_idx
    ON session_requests (preferred_mechanic_id) WHERE stage = 'priority';

-- One row a round: generation after generation of who was given the work.
CREATE TABLE session_assignments (
    offer_id    uuid PRIMARY KEY,
    request_id  uuid NOT NULL REFERENCES session_requests,
    session_id  uuid NOT NULL REFERENCES sessions,
    generation  integer NOT NULL,
    mechanic_id uuid REFERENCES mechanics,
    status      text NOT NULL CHECK (status IN ('queued', 'assigned', 'released', 'completed')),
    outcome     text CHECK (outcome IN ('taken', 'expired', 'cancelled')),
    offered_at  timestamptz NOT NULL,
    ended_at    timestamptz,
    metadata    jsonb NOT NULL DEFAULT '{}',
    UNIQUE (request_id, generation)
);

-- One row for a round and a mechanic who was asked by name or who acted; states never go back.
CREATE TABLE offers (
    request_id  uuid NOT NULL REFERENCES session_requests,
    generation  integer NOT NULL,
    mechanic_id uuid NOT NULL REFERENCES mechanics,
    status      text NOT NULL CHECK (status IN
                ('issued', 'seen', 'accepted', 'declined', 'expired', 'revoked')),
    stage       text,
    score       integer,
    attempt     integer NOT NULL DEFAULT 1,
    issued_at   timestamptz,
    seen_at     timestamptz,
    answered_at timestamptz,
    reason      text,
    pushed_at   timestamptz,  -- when a push service took the notification for one of her devices
    PRIMARY KEY (request_id, generation, mechanic_id)
);
CREATE INDEX offers_mechanic_idx ON offers (mechanic_id, issued_at);

-- Verdicts that Postgres gave; the same accept_id gets the same one again.
CREATE TABLE accepts (
    mechanic_id uuid NOT NULL REFERENCES mechanics,
    accept_id   uuid NOT NULL,
    offer_id    uuid NOT NULL,
    request_id  uuid NOT NULL REFERENCES session_requests,
    session_id  uuid NOT NULL REFERENCES sessions,
    generation  integer NOT NULL,
    verdict     text NOT NULL CHECK (verdict IN ('won', 'lost')),
    reason      text CHECK (reason IN ('taken', 'expired', 'cancelled', 'busy', 'unavailable', 'not_found')),
    at          timestamptz NOT NULL,
    PRIMARY KEY (mechanic_id, accept_id),
    CHECK ((verdict = 'lost') = (reason IS NOT NULL))
);

-- The audit trail: what each node decided and saw, in batches. Append-only. Arrays run in parallel;
-- times are milliseconds after `at`. `others` counts the connected mechanics whom the strategy itself
-- ruled out; who is not named and not counted was not connected.
CREATE TABLE routing_decisions (
    request_id        uuid NOT NULL REFERENCES session_requests,
    generation        integer NOT NULL,
    stage             text NOT NULL,
    node_id           uuid NOT NULL,
    batch             bigint NOT NULL,
    strategy          text NOT NULL,
    at                timestamptz NOT NULL,
    others            integer NOT NULL,
    mechanic_ids      uuid[] NOT NULL,
    scores            integer[] NOT NULL,
    sent_ms           integer[] NOT NULL,
    excluded_ids      uuid[] NOT NULL,
    excluded_reasons  text[] NOT NULL,
    seen_mechanic_ids uuid[] NOT NULL,
    seen_ms           integer[] NOT NULL,
    lost_mechanic_ids uuid[] NOT NULL,  -- told by this node itself that somebody else has it
    lost_ms           integer[] NOT NULL,
    PRIMARY KEY (request_id, generation, stage, node_id, batch)
);
CREATE INDEX routing_decisions_at_idx ON routing_decisions (at);

-- When a node had heard of a booking (the webhook, or the intake of a free one) and when its
-- transaction was committed: what no row inside that transaction can know. Append-only.
CREATE TABLE request_receipts (
    request_id   uuid PRIMARY KEY REFERENCES session_requests,
    node_id      uuid NOT NULL,
    received_at  timestamptz NOT NULL,
    committed_at timestamptz NOT NULL
);

-- The policies under which nodes decided, by a name that follows from their content.
CREATE TABLE policies (
    id     uuid PRIMARY KEY,
    policy jsonb NOT NULL
);

-- The history of a session, append-only. The first line of every change of the booking carries the
-- version that the change made, and the event and policy that the core decided by (R11a).
CREATE TABLE session_events (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES sessions,
    type       text NOT NULL,
    user_id    uuid REFERENCES users,
    metadata   jsonb NOT NULL DEFAULT '{}',
    at         timestamptz NOT NULL,
    version    integer,
    event      jsonb,
    policy_id  uuid REFERENCES policies
);
CREATE INDEX session_events_session_idx ON session_events (session_id, id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME;
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON admin_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON experiment_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON session_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON routing_decisions
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON request_receipts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What the two in a session say to each other (S7): seq is 1, 2, 3 … of the session, in the order of
-- the commits, so that who has seen a seq has seen all before it. Append-only; any text is only text.
CREATE TABLE chat_messages (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id        uuid NOT NULL REFERENCES sessions,
    seq               integer NOT NULL CHECK (seq >= 1),
    client_message_id uuid NOT NULL,
    sender_id         uuid NOT NULL REFERENCES users,
    sender_role       text NOT NULL CHECK (sender_role IN ('customer', 'mechanic')),
    body              text NOT NULL CHECK (length(body) BETWEEN 1 AND 4000),
    sent_at           timestamptz NOT NULL,
    UNIQUE (session_id, seq),
    UNIQUE (session_id, client_message_id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON chat_messages
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What a customer says of a session that was completed, once (S9).
CREATE TABLE ratings (
    session_id  uuid PRIMARY KEY REFERENCES sessions,
    customer_id uuid NOT NULL REFERENCES customers,
    mechanic_id uuid NOT NULL REFERENCES mechanics,
    stars       integer NOT NULL CHECK (stars BETWEEN 1 AND 5),
    review      text CHECK (length(review) BETWEEN 1 AND 2000),
    created_at  timestamptz NOT NULL
);
CREATE INDEX ratings_mechanic_idx ON ratings (mechanic_id) INCLUDE (stars);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ratings
    FOR EACH ROW EXECUTE FUNCTION refuse_change();


-- ---------------------------------------------------------------------------------------------
-- Money
-- ---------------------------------------------------------------------------------------------

-- One for each Checkout Session: the fulfilment key. `amount_cents` and `currency` are what we asked
-- for (of money that we did not ask for, what came), `received_…` what came, once it has.
CREATE TABLE payments (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id       uuid REFERENCES customers,
    intake_id         uuid REFERENCES intakes,
    plan_code         text REFERENCES plans,
    session_id        uuid UNIQUE REFERENCES sessions,
    stripe_session_id text UNIQUE,
    payment_intent    text,
    amount_cents      integer NOT NULL CHECK (amount_cents >= 0),
    currency          text NOT NULL,
    received_cents    integer CHECK (received_cents >= 0),
    received_currency text,
    refunded_cents    integer NOT NULL DEFAULT 0 CHECK (refunded_cents >= 0),
    credited_cents    integer NOT NULL DEFAULT 0 CHECK (credited_cents >= 0),  -- given back as credits
    taken_back_cents  integer NOT NULL DEFAULT 0,  -- the most of it that earnings were taken back for
    refunds_read_at   timestamptz,  -- what Stripe gave back, as of this moment or later
    status            text NOT NULL DEFAULT 'created' CHECK (status IN ('created', 'paid', 'fulfilled',
                      'held', 'refunding', 'refunded', 'expired', 'failed')),
    checkout_url      text,
    note              text,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    moved_at          timestamptz,  -- when its customer was last to be told of it
    CHECK (status <> 'fulfilled' OR (session_id IS NOT NULL AND received_cents IS NOT NULL)),
    CHECK ((received_cents IS NULL) = (received_currency IS NULL))
);
CREATE INDEX payments_intake_idx ON payments (intake_id);
CREATE INDEX payments_payment_intent_idx ON payments (payment_intent);
CREATE INDEX payments_customer_idx ON payments (customer_id, created_at DESC);
CREATE INDEX payments_moved_idx ON payments (moved_at) WHERE moved_at IS NOT NULL;

-- Money that is held or goes back is told to its customer: nodes find it here (C3, C6).
CREATE FUNCTION payment_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.moved_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER payment_move
    BEFORE UPDATE OF status, refunded_cents ON payments
    FOR EACH ROW WHEN ((NEW.status <> OLD.status AND NEW.status IN ('held', 'refunding', 'refunded'))
                       OR NEW.refunded_cents <> OLD.refunded_cents)
    EXECUTE FUNCTION payment_move();

CREATE TABLE stripe_events (
    id          text PRIMARY KEY,
    type        text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    outcome     text NOT NULL
);

-- One row: up to when everything that happened at Stripe is known here.
CREATE TABLE stripe_reconciled (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    looked_at timestamptz
);
INSERT INTO stripe_reconciled DEFAULT VALUES;

-- Money to a connected account, one transfer each: the outbox delivers it under the payout's id.
CREATE TABLE payouts (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    workshop_id        uuid REFERENCES organizations,
    mechanic_id        uuid REFERENCES mechanics,
    stripe_account_id  text NOT NULL,
    amount_cents       integer NOT NULL CHECK (amount_cents > 0),
    currency           text NOT NULL,
    status             text NOT NULL DEFAULT 'pending'
                       CHECK (status IN ('pending', 'processing', 'paid', 'failed')),
    stripe_transfer_id text UNIQUE,
    reversed_cents     integer NOT NULL DEFAULT 0 CHECK (reversed_cents >= 0),  -- as Stripe says
    cause              text NOT NULL CHECK (cause IN ('hand', 'schedule')),
    created_by         uuid REFERENCES users,
    note               text,
    created_at         timestamptz NOT NULL DEFAULT dispatch_now(),
    settled_at         timestamptz,
    CHECK (num_nonnulls(workshop_id, mechanic_id) = 1),
    CHECK (status <> 'paid' OR stripe_transfer_id IS NOT NULL)
);
CREATE INDEX payouts_created_idx ON payouts (created_at);
CREATE INDEX payouts_workshop_idx ON payouts (workshop_id, created_at DESC);
CREATE INDEX payouts_mechanic_idx ON payouts (mechanic_id, created_at DESC);
CREATE INDEX payouts_unsettled_idx ON payouts (created_at) WHERE status IN ('pending', 'processing');

-- What a session earned, written once when it is completed (M1, M2). The parts of the gross amount stay
-- as they were; `reversed_cents` is what of the row's own net was taken back by refunds. A workshop has
-- a row where it served, or where the customer named it and somebody else served (`is_referral`).
CREATE TABLE workshop_earnings (
    id                      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id              uuid NOT NULL UNIQUE REFERENCES sessions,
    workshop_id             uuid NOT NULL REFERENCES organizations,
    mechanic_id             uuid NOT NULL REFERENCES mechanics,
    is_referral             boolean NOT NULL,
    currency                text NOT NULL,
    gross_amount_cents      integer NOT NULL CHECK (gross_amount_cents > 0),
    platform_fee_percentage numeric(5, 2) NOT NULL,
    platform_fee_cents      integer NOT NULL CHECK (platform_fee_cents >= 0),
    mechanic_net_cents      integer NOT NULL CHECK (mechanic_net_cents >= 0),
    workshop_net_cents      integer NOT NULL CHECK (workshop_net_cents >= 0),
    reversed_cents          integer NOT NULL DEFAULT 0
                            CHECK (reversed_cents BETWEEN 0 AND workshop_net_cents),
    payout_status           text NOT NULL DEFAULT 'pending'
                            CHECK (payout_status IN ('pending', 'processing', 'paid', 'failed')),
    payout_id               uuid REFERENCES payouts,
    created_at              timestamptz NOT NULL DEFAULT dispatch_now(),
    CHECK (gross_amount_cents = platform_fee_cents + mechanic_net_cents + workshop_net_cents),
    CHECK ((payout_status = 'pending') = (payout_id IS NULL))
);
CREATE INDEX workshop_earnings_workshop_idx ON workshop_earnings (workshop_id, created_at DESC);
CREATE INDEX workshop_earnings_payout_idx ON workshop_earnings (payout_id);
CREATE INDEX workshop_earnings_due_idx ON workshop_earnings (workshop_id)
    WHERE payout_status IN ('pending', 'failed');

-- Of mechanics who are paid directly; `workshop_fee_cents` is the referring workshop's part.
CREATE TABLE mechanic_earnings (
    id                      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id              uuid NOT NULL UNIQUE REFERENCES sessions,
    mechanic_id             uuid NOT NULL REFERENCES mechanics,
    currency                text NOT NULL,
    gross_amount_cents      integer NOT NULL CHECK (gross_amount_cents > 0),
    platform_fee_percentage numeric(5, 2) NOT NULL,
    platform_fee_cents      integer NOT NULL CHECK (platform_fee_cents >= 0),
    workshop_fee_cents      integer NOT NULL CHECK (workshop_fee_cents >= 0),
    mechanic_net_cents      integer NOT NULL CHECK (mechanic_net_cents >= 0),
    reversed_cents          integer NOT NULL DEFAULT 0
                            CHECK (reversed_cents BETWEEN 0 AND mechanic_net_cents),
    payout_status           text NOT NULL DEFAULT 'pending'
                            CHECK (payout_status IN ('pending', 'processing', 'paid', 'failed')),
    payout_id               uuid REFERENCES payouts,
    created_at              timestamptz NOT NULL DEFAULT dispatch_now(),
    CHECK (gross_amount_cents = platform_fee_cents + workshop_fee_cents + mechanic_net_cents),
    CHECK ((payout_status = 'pending') = (payout_id IS NULL))
);
CREATE INDEX mechanic_earnings_mechanic_idx ON mechanic_earnings (mechanic_id, created_at DESC);
CREATE INDEX mechanic_earnings_payout_idx ON mechanic_earnings (payout_id);
CREATE INDEX mechanic_earnings_due_idx ON mechanic_earnings (mechanic_id)
    WHERE payout_status IN ('pending', 'failed');

-- What was taken back after it was in a payout: the outbox reverses so much of the transfer. One that
-- failed is a debt, which `settled_by`, the payee's next payout that can bear it, is less by. So each
-- payout that did not fail is, to the cent: the nets of its earnings, less what is reversed of them,
-- plus its own reversals (those were in it), less the debts that it settled.
CREATE TABLE payout_reversals (
    id                 uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    payout_id          uuid NOT NULL REFERENCES payouts,
    session_id         uuid NOT NULL REFERENCES sessions,
    amount_cents       integer NOT NULL CHECK (amount_cents > 0),
    status             text NOT NULL DEFAULT 'pending'
                       CHECK (status IN ('pending', 'reversed', 'failed', 'void')),  -- void: never paid
    stripe_reversal_id text UNIQUE,
    settled_by         uuid REFERENCES payouts,
    note               text,
    created_at         timestamptz NOT NULL DEFAULT dispatch_now(),
    CHECK ((status = 'reversed') = (stripe_reversal_id IS NOT NULL)),
    CHECK (settled_by IS NULL OR status = 'failed')
);
CREATE INDEX payout_reversals_payout_idx ON payout_reversals (payout_id);
CREATE INDEX payout_reversals_settled_by_idx ON payout_reversals (settled_by);
CREATE INDEX payout_reversals_debt_idx ON payout_reversals (payout_id)
    WHERE status = 'failed' AND settled_by IS NULL;

-- The ledger of credits, in double entry: each transaction moves an amount from one account to another,
-- as two lines that sum to nothing. Accounts, all of one customer: `customer` is what she may spend;
-- `session` what is set aside for a booking of hers; `earnings` what completed ones took; `payments`
-- and `grants` are where credits come from, so their balances are below zero.
CREATE TABLE credit_entries (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction_id uuid NOT NULL,
    customer_id    uuid NOT NULL REFERENCES customers,
    account        text NOT NULL CHECK (account IN ('customer', 'session', 'earnings', 'payments', 'grants')),
    seq            integer NOT NULL,  -- 1, 2, 3 … of this account
    amount_cents   integer NOT NULL CHECK (amount_cents <> 0),
    balance_cents  integer NOT NULL,  -- of this account after it
    currency       text NOT NULL,
    session_id     uuid REFERENCES sessions,
    payment_id     uuid REFERENCES payments,
    reason         text NOT NULL,
    created_by     uuid REFERENCES users,  -- who granted it
    at             timestamptz NOT NULL,
    UNIQUE (transaction_id, account),
    UNIQUE (customer_id, currency, account, seq),
    CONSTRAINT credits_never_below_zero
        CHECK (account NOT IN ('customer', 'session', 'earnings') OR balance_cents >= 0)
);
-- A booking sets credits aside once, and they leave again once: back, or to who served it.
CREATE UNIQUE INDEX credit_entries_set_aside_key
    ON credit_entries (session_id) WHERE account = 'session' AND amount_cents > 0;
CREATE UNIQUE INDEX credit_entries_set_free_key
    ON credit_entries (session_id) WHERE account = 'session' AND amount_cents < 0;
CREATE UNIQUE INDEX credit_entries_payment_key
    ON credit_entries (payment_id) WHERE account = 'payments';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON credit_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- Each line follows the one before it of the same account; the customer's row is the lock.
CREATE FUNCTION credit_entry_follow() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last credit_entries;
BEGIN
    PERFORM 1 FROM customers WHERE id = NEW.customer_id FOR NO KEY UPDATE;
    SELECT * INTO last FROM credit_entries e
     WHERE e.customer_id = NEW.customer_id AND e.currency = NEW.currency AND e.account = NEW.account
     ORDER BY e.seq DESC LIMIT 1;
    NEW.seq := coalesce(last.seq, 0) + 1;
    NEW.balance_cents := coalesce(last.balance_cents, 0) + NEW.amount_cents;
    NEW.at := dispatch_now();  -- after the lock: times are in the order of the lines
    RETURN NEW;
END $$;
CREATE TRIGGER credit_entry_follow BEFORE INSERT ON credit_entries
    FOR EACH ROW EXECUTE FUNCTION credit_entry_follow();

CREATE FUNCTION credit_transaction_balances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT sum(amount_cents) <> 0 OR count(DISTINCT (currency, customer_id)) <> 1
          FROM credit_entries WHERE transaction_id = NEW.transaction_id) THEN
        RAISE check_violation USING MESSAGE = format('transaction %s does not balance', NEW.transaction_id),
                                    CONSTRAINT = 'credits_balance';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER credit_transaction_balances AFTER INSERT ON credit_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION credit_transaction_balances();

-- Effects to be delivered outside the database, each once, by whichever node claims it.
CREATE TABLE outbox (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('refund', 'transfer', 'reversal', 'push', 'mail',
                    'room')),
    idempotency_key text NOT NULL UNIQUE,
    payload         jsonb NOT NULL,
    attempts        integer NOT NULL DEFAULT 0,
    next_try_at     timestamptz NOT NULL,
    done_at         timestamptz,
    failed_at       timestamptz,
    last_error      text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX outbox_waiting_idx ON outbox (next_try_at) WHERE done_at IS NULL AND failed_at IS NULL;


-- ---------------------------------------------------------------------------------------------
-- Reading a booking
-- ---------------------------------------------------------------------------------------------

-- What routing must know about a mechanic (core.types.Candidate).
CREATE VIEW candidates AS
SELECT m.id AS mechanic_id,
       m.workshop_id,
       m.application_status = 'approved' AND m.deleted_at IS NULL AND u.disabled_at IS NULL AS approved,
       m.available,
       m.is_specialist,
       (SELECT count(*)::int FROM sessions s
         WHERE s.mechanic_id = m.id AND s.status IN ('accepted', 'active')) AS live_sessions,
       m.changed_at
  FROM mechanics m JOIN users u ON u.id = m.id;

-- A booking as the core sees it: column for column core.types.Booking.
CREATE VIEW booking_states AS
SELECT r.id AS request_id, r.session_id, r.customer_id, r.offer_id, r.session_type, r.plan_code,
       p.minutes, r.urgent, r.is_specialist, r.routing_type AS routing, r.preferred_workshop_id,
       r.preferred_mechanic_id, r.wait_for_preferred,
       EXISTS (SELECT 1 FROM waivers w WHERE w.intake_id = s.intake_id) AS waiver_signed,
       r.excluded_mechanic_ids AS excluded, r.status, s.status AS session_status, r.stage,
       r.generation, r.version, r.attempt, r.mechanic_id, r.accept_id, r.workshop_id,
       s.customer_joined_at, s.mechanic_joined_at, r.created_at, r.opens_at,
       slot.ends_at AS slot_ends_at, r.expires_at, r.accepted_at, r.stage_ends_at,
       r.next_attempt_at, r.seen_at, r.priority_notified_at, r.fallback_broadcast_at, s.join_by,
       s.started_at, s.ends_at, r.warned_at, s.ended_by, r.message,
       r.experiment, r.arm, r.priority_window_seconds
  FROM session_requests r
  JOIN sessions s ON s.id = r.session_id
  JOIN plans p ON p.code = r.plan_code
  LEFT JOIN slots slot ON slot.id = s.slot_id;

-- The same with what people see of it, as the JSON of hints.Entry.
CREATE VIEW booking_entries AS
SELECT b.request_id, b.session_id, b.customer_id, b.mechanic_id, b.status, b.version,
       json_build_object(
           'booking', row_to_json(b),
           'display', json_build_object(
               'customer_name', split_part(c.name, ' ', 1),
               'vehicle', i.vehicle,
               'concern', i.concern,
               'mechanic_name', mu.name,
               'mechanic_workshop_id', m.workshop_id,
               'mechanic_rating', m.rating,
               'is_favorite', EXISTS (SELECT 1 FROM favorites f WHERE f.customer_id = b.customer_id
                                         AND f.provider_id = b.mechanic_id),
               'is_rated', EXISTS (SELECT 1 FROM ratings g WHERE g.session_id = b.session_id)),
           'paid', EXISTS (SELECT 1 FROM payments pay WHERE pay.session_id = b.session_id)
                   OR EXISTS (SELECT 1 FROM credit_entries e
                               WHERE e.session_id = b.session_id AND e.account = 'session'
                                 AND e.amount_cents > 0)
       ) AS entry
  FROM booking_states b
  JOIN sessions s ON s.id = b.session_id
  JOIN users c ON c.id = b.customer_id
  LEFT JOIN intakes i ON i.id = s.intake_id
  LEFT JOIN mechanics m ON m.id = b.mechanic_id
  LEFT JOIN users mu ON mu.id = m.id;


-- ---------------------------------------------------------------------------------------------
-- Who could be offered work now
-- ---------------------------------------------------------------------------------------------

-- Every approved mechanic, and whether a node would offer her work now (R5) as far as Postgres
-- knows: whether she is online is the mirror of presence, about a second late. `p_capacity`, here
-- and below, is DISPATCH_MECHANIC_CAPACITY.
CREATE FUNCTION approved_mechanics(p_capacity integer)
RETURNS TABLE (mechanic_id uuid, workshop_id uuid, name text, is_specialist boolean, rating numeric,
               offerable boolean)
LANGUAGE sql STABLE AS $$
    SELECT c.mechanic_id, c.workshop_id, u.name, c.is_specialist, m.rating,
           m.is_online AND c.available AND c.live_sessions < p_capacity
      FROM candidates c
      JOIN mechanics m ON m.id = c.mechanic_id
      JOIN users u ON u.id = c.mechanic_id
     WHERE c.approved
$$;

-- Whom the live router would offer a booking in its widest stage, and at which score (R3, R4a, R6):
-- one without a wish for a specialist and without exclusions. For `priority_broadcast` that is the
-- fallback, in which the favourite is not known here. The best score first, then by name.
--
-- The rules of core/routing.py, which a property test holds this to. Raises
-- invalid_parameter_value for a routing type that does not exist, and for `workshop_only` and
-- `hybrid` without a workshop.
CREATE FUNCTION get_mechanics_for_routing(
    p_workshop_id uuid, p_routing_type text, p_capacity integer DEFAULT 1
) RETURNS TABLE (mechanic_id uuid, mechanic_name text, workshop_id uuid, priority_score integer,
                 is_online boolean, available boolean)
LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
BEGIN
    IF p_routing_type IS NULL OR p_routing_type NOT IN
       ('broadcast', 'workshop_only', 'hybrid', 'priority_broadcast') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('unknown routing type %L', p_routing_type);
    END IF;
    IF p_routing_type IN ('workshop_only', 'hybrid') AND p_workshop_id IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s needs a workshop', p_routing_type);
    END IF;
    RETURN QUERY
        SELECT a.mechanic_id, a.name, a.workshop_id,
               CASE WHEN p_routing_type IN ('broadcast', 'priority_broadcast') THEN 50
                    WHEN a.workshop_id = p_workshop_id THEN 100
                    WHEN a.workshop_id IS NOT NULL THEN 50
                    ELSE 25 END AS score,
               true, true
          FROM approved_mechanics(p_capacity) a
         WHERE a.offerable
           AND (p_routing_type <> 'workshop_only' OR a.workshop_id = p_workshop_id)
         ORDER BY score DESC, a.name, a.mechanic_id;
END $$;

-- The mechanics of one workshop who could be offered work now, the best rated first (W2).
CREATE FUNCTION get_available_workshop_mechanics(p_workshop_id uuid, p_capacity integer DEFAULT 1)
RETURNS TABLE (mechanic_id uuid, mechanic_name text, is_specialist boolean, rating numeric)
LANGUAGE sql STABLE AS $$
    SELECT a.mechanic_id, a.name, a.is_specialist, a.rating
      FROM approved_mechanics(p_capacity) a
     WHERE a.offerable AND a.workshop_id = p_workshop_id
     ORDER BY a.rating DESC NULLS LAST, a.name, a.mechanic_id
$$;

-- A page of the active workshops that have somebody to offer work to now (W1): most of them first,
-- then best rated, then by name. `total_mechanics` and `avg_rating` are of its approved mechanics,
-- the unrated aside; `total_sessions` were served by it to their end. A null `p_limit` is all.
CREATE FUNCTION get_workshop_directory(
    p_limit integer DEFAULT 20, p_offset integer DEFAULT 0, p_capacity integer DEFAULT 1
) RETURNS TABLE (workshop_id uuid, workshop_name text, workshop_email text, workshop_status text,
                 total_mechanics bigint, available_mechanics bigint, avg_rating numeric,
                 total_sessions bigint, created_at timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT page.id, page.name, page.email, page.status, page.total, page.offerable, page.rating,
           (SELECT count(*) FROM sessions s WHERE s.workshop_id = page.id AND s.status = 'completed'),
           page.created_at
      FROM (SELECT o.id, o.name, o.email, o.status, o.created_at,
                   staff.total, staff.offerable, staff.rating
              FROM organizations o
              JOIN (SELECT a.workshop_id, count(*) AS total,
                           count(*) FILTER (WHERE a.offerable) AS offerable,
                           round(avg(a.rating), 2) AS rating
                      FROM approved_mechanics(p_capacity) a
                     WHERE a.workshop_id IS NOT NULL
                     GROUP BY a.workshop_id) staff ON staff.workshop_id = o.id
             WHERE o.status = 'active' AND staff.offerable > 0
             ORDER BY staff.offerable DESC, staff.rating DESC NULLS LAST, o.name, o.id
             LIMIT p_limit OFFSET p_offset) page
     ORDER BY page.offerable DESC, page.rating DESC NULLS LAST, page.name, page.id
$$;

-- Who works for which workshop (W2, W3); the deleted are not there.
CREATE VIEW workshop_mechanics AS
SELECT m.workshop_id, m.id AS mechanic_id, u.name AS mechanic_name, u.email, m.application_status,
       c.approved, c.available, m.is_online, c.is_specialist, c.live_sessions, m.rating,
       (SELECT count(*) FROM sessions s
         WHERE s.mechanic_id = m.id AND s.workshop_id = m.workshop_id
           AND s.status = 'completed') AS sessions_served,
       m.invited_by, m.invite_accepted_at, m.auto_approved
  FROM mechanics m
  JOIN users u ON u.id = m.id
  JOIN candidates c ON c.mechanic_id = m.id
 WHERE m.workshop_id IS NOT NULL AND m.deleted_at IS NULL;

-- What became of the bookings that a workshop had to do with, by the day (UTC) on which they were made
-- and by routing (W2): `preferred` named it, `served` were accepted by a mechanic of it; of those are
-- `completed` and the mean time from opening to accept.
CREATE VIEW workshop_session_analytics AS
SELECT o.id AS workshop_id, o.name AS workshop_name,
       (r.created_at AT TIME ZONE 'UTC')::date AS day, r.routing_type,
       count(*) FILTER (WHERE r.preferred_workshop_id = o.id) AS preferred,
       count(*) FILTER (WHERE r.workshop_id = o.id) AS served,
       count(*) FILTER (WHERE r.workshop_id = o.id AND r.preferred_workshop_id = o.id)
           AS preferred_and_served,
       count(*) FILTER (WHERE r.workshop_id = o.id AND s.status = 'completed') AS completed,
       count(*) FILTER (WHERE s.status = 'cancelled') AS cancelled,
       count(*) FILTER (WHERE s.status = 'expired') AS expired,
       (avg(extract(epoch FROM r.accepted_at - r.opens_at)) FILTER (WHERE r.workshop_id = o.id))::float8
           AS mean_accept_seconds
  FROM organizations o
  JOIN session_requests r ON r.workshop_id = o.id OR r.preferred_workshop_id = o.id
  JOIN sessions s ON s.id = r.session_id
 GROUP BY o.id, o.name, day, r.routing_type;


-- ---------------------------------------------------------------------------------------------
-- Changing a booking
-- ---------------------------------------------------------------------------------------------

-- The favourite's window in minutes, rounded up, for reports; null outside of her stage.
CREATE FUNCTION priority_window_minutes(b booking_states) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN b.stage = 'priority' THEN
               ceil(extract(epoch FROM b.stage_ends_at - b.priority_notified_at) / 60)::integer END
$$;

-- One change of a booking: what dispatch/changes.py writes as one JSON document. `booking` is as it was
-- decided, the `round_`s are what it was in before, `lines` the history (type, user_id, detail).
CREATE TYPE change AS (
    booking          booking_states,
    due_at           timestamptz,
    at               timestamptz,
    event            jsonb,
    policy_id        uuid,
    lines            json,
    round_offer_id   uuid,
    round_generation integer,
    round_stage      text,
    ended_outcome    text,     -- the round is over
    ended_status     text,
    starts_round     boolean,  -- and the next one begins
    asked_id         uuid,     -- a mechanic is asked by name
    asked_score      integer,
    asked_attempt    integer,
    answered_id      uuid,     -- a mechanic saw the round, or declined it
    answered_status  text,
    answered_reason  text,
    policy           jsonb     -- where it is the booking's own, and perhaps not kept yet
);

-- What a change leaves beside the booking itself: its history, the event and the policy with the first
-- line; the end of a round and the beginning of the next; a mechanic's part in it.
CREATE FUNCTION record_change(c change) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    b booking_states := c.booking;
BEGIN
    IF c.policy IS NOT NULL THEN
        INSERT INTO policies (id, policy) VALUES (c.policy_id, c.policy) ON CONFLICT (id) DO NOTHING;
    END IF;
    INSERT INTO session_events (session_id, at, version, event, policy_id, type, user_id, metadata)
    SELECT b.session_id, c.at, b.version, CASE WHEN n = 1 THEN c.event END,
           CASE WHEN n = 1 THEN c.policy_id END, type, user_id,
           jsonb_strip_nulls(jsonb_build_object('detail', detail))
      FROM ROWS FROM (json_to_recordset(c.lines) AS (type text, user_id uuid, detail text))
           WITH ORDINALITY AS line (type, user_id, detail, n)
     ORDER BY n;
    IF c.ended_outcome IS NOT NULL THEN
        UPDATE session_assignments a
           SET status = c.ended_status, outcome = c.ended_outcome, ended_at = c.at
         WHERE a.offer_id = c.round_offer_id;
        UPDATE offers o  -- nobody else will answer
           SET status = CASE c.ended_outcome WHEN 'expired' THEN 'expired' ELSE 'revoked' END
         WHERE o.request_id = b.request_id AND o.generation = c.round_generation
           AND o.status IN ('issued', 'seen');
    END IF;
    IF c.starts_round THEN
        INSERT INTO session_assignments (offer_id, request_id, session_id, generation, status, offered_at)
        VALUES (b.offer_id, b.request_id, b.session_id, b.generation, 'queued', c.at);
    END IF;
    IF c.asked_id IS NOT NULL THEN
        INSERT INTO offers (request_id, generation, mechanic_id, status, stage, score, attempt, issued_at)
        VALUES (b.request_id, b.generation, c.asked_id, 'issued', 'priority', c.asked_score,
                c.asked_attempt, c.at)
        ON CONFLICT ON CONSTRAINT offers_pkey DO UPDATE
           SET attempt = greatest(offers.attempt, excluded.attempt);
    END IF;
    IF c.answered_id IS NOT NULL THEN  -- states never go back
        INSERT INTO offers (request_id, generation, mechanic_id, status, stage, seen_at, answered_at, reason)
        VALUES (b.request_id, c.round_generation, c.answered_id, c.answered_status, c.round_stage,
                CASE WHEN c.answered_status = 'seen' THEN c.at END,
                CASE WHEN c.answered_status <> 'seen' THEN c.at END, c.answered_reason)
        ON CONFLICT ON CONSTRAINT offers_pkey DO UPDATE
           SET status = excluded.status, seen_at = coalesce(offers.seen_at, excluded.seen_at),
               answered_at = excluded.answered_at, reason = excluded.reason
         WHERE offers.status = 'issued' OR (offers.status = 'seen' AND excluded.status <> 'seen')
            OR (offers.status = 'revoked' AND offers.reason IN ('busy', 'unavailable')  -- not then, now never
                AND excluded.status = 'declined');
    END IF;
END $$;

-- The one factory of sessions (S1): session, customer participant, queued assignment, request and
-- a `created` event. A violation of sessions_one_live_per_customer, slots_not_overfull or slots_not_over
-- is the caller's to name; nothing is left behind.
--
-- With p_opened (the JSON of a `change`) a booking for now is in its first stage at once: as it was
-- decided, under the ids that were chosen for it, with what that change records. Raises where that was
-- decided more than a second ago: a stage has its time from when it is written.
--
-- With p_trial (the JSON of core.experiments.Trial), or where p_opened says so, an experiment touches
-- it, and its customer is in that arm from now on. Raises where she is in another meanwhile.
CREATE FUNCTION create_session(
    p_intake_id uuid, p_stripe_session_id text, p_ttl interval, p_message text,
    p_opened json DEFAULT NULL, p_trial json DEFAULT NULL
) RETURNS TABLE (session_id uuid, request_id uuid, session_type text, session_status text)
LANGUAGE plpgsql AS $$
DECLARE
    i    intakes;
    plan plans;
    slot slots;
    c    change := json_populate_record(NULL::change, p_opened);
    b    booking_states := c.booking;
BEGIN
    SELECT * INTO STRICT i FROM intakes WHERE id = p_intake_id;
    SELECT * INTO STRICT plan FROM plans WHERE code = i.plan_code;
    IF b.created_at < dispatch_now() - interval '1 s' THEN
        RAISE EXCEPTION 'the opening of intake % is of %', p_intake_id, b.created_at;
    END IF;
    IF p_opened IS NULL THEN
        b := json_populate_record(NULL::booking_states, p_trial);
        b.request_id := gen_random_uuid();
        b.session_id := gen_random_uuid();
        b.offer_id := gen_random_uuid();
        b.created_at := dispatch_now();
        b.opens_at := b.created_at;
        b.status := 'pending';
        IF i.slot_id IS NOT NULL THEN
            SELECT * INTO STRICT slot FROM slots WHERE id = i.slot_id;
            IF slot.ends_at <= b.opens_at THEN
                RAISE check_violation USING MESSAGE = format('slot %s is over', slot.id),
                                            CONSTRAINT = 'slots_not_over';
            END IF;
            IF slot.starts_at > b.opens_at THEN
                b.opens_at := slot.starts_at;
                b.status := 'scheduled';
            END IF;
        END IF;
        b.version := 1;
        b.attempt := 1;
        b.message := p_message;
        b.expires_at := b.opens_at + p_ttl;
        c.due_at := b.opens_at;
    END IF;

    INSERT INTO sessions (id, customer_user_id, type, status, plan, intake_id, slot_id,
                          stripe_session_id, preferred_workshop_id, version, created_at)
    VALUES (b.session_id, i.customer_id, plan.type, b.status, plan.code, i.id, i.slot_id,
            p_stripe_session_id, i.workshop_id, b.version, b.created_at);

    INSERT INTO session_participants (session_id, user_id, role)
    VALUES (b.session_id, i.customer_id, 'customer');

    IF b.experiment IS NOT NULL THEN
        INSERT INTO experiment_assignments (customer_id, experiment, arm, assigned_at)
        VALUES (i.customer_id, b.experiment, b.arm, b.created_at) ON CONFLICT DO NOTHING;
        IF NOT EXISTS (SELECT 1 FROM experiment_assignments a WHERE a.customer_id = i.customer_id
                          AND a.experiment = b.experiment AND a.arm = b.arm) THEN
            RAISE EXCEPTION 'customer % is in another arm of % than %', i.customer_id, b.experiment, b.arm;
        END IF;
    END IF;

    INSERT INTO session_requests (id, session_id, offer_id, customer_id, session_type, plan_code, urgent,
                                  is_specialist, routing_type, preferred_workshop_id,
                                  preferred_mechanic_id, wait_for_preferred, priority_window_minutes,
                                  status, stage, version, attempt, message, priority_notified_at,
                                  fallback_broadcast_at, created_at, opens_at, stage_ends_at,
                                  next_attempt_at, expires_at, due_at, experiment, arm,
                                  priority_window_seconds)
    VALUES (b.request_id, b.session_id, b.offer_id, i.customer_id, plan.type, plan.code, i.urgent,
            i.is_specialist, coalesce(b.routing, i.routing_type), i.workshop_id, i.preferred_mechanic_id,
            i.wait_for_preferred, priority_window_minutes(b), b.status, b.stage, b.version, b.attempt,
            b.message, b.priority_notified_at, b.fallback_broadcast_at, b.created_at, b.opens_at,
            b.stage_ends_at, b.next_attempt_at, b.expires_at, c.due_at, b.experiment, b.arm,
            b.priority_window_seconds);

    INSERT INTO session_assignments (offer_id, request_id, session_id, generation, status, offered_at)
    VALUES (b.offer_id, b.request_id, b.session_id, 1, 'queued', b.created_at);

    INSERT INTO session_events (session_id, type, user_id, at, version, metadata)
    VALUES (b.session_id, 'created', i.customer_id, b.created_at, 1,
            jsonb_build_object('expires_at', b.opens_at + p_ttl, 'message', p_message));
    IF p_opened IS NOT NULL THEN
        PERFORM record_change(c);
    END IF;

    -- Last: a session that is just ending frees its seat after its own row is written.
    IF i.slot_id IS NOT NULL THEN
        UPDATE slots SET taken = taken + 1 WHERE id = i.slot_id;
    END IF;

    session_id := b.session_id;
    request_id := b.request_id;
    session_type := plan.type;
    session_status := b.status;
    RETURN NEXT;
END $$;

-- The experiments that run now, the oldest first, as the JSON of core.experiments.Running: with the arm
-- that this customer is in.
CREATE FUNCTION running_experiments(p_customer_id uuid) RETURNS json LANGUAGE sql STABLE AS $$
    SELECT coalesce(json_agg(json_build_object('name', e.name, 'arms', e.arms, 'assigned', a.arm,
                                               'rollout_percentage', e.rollout_percentage)
                             ORDER BY e.created_at, e.name), '[]')
      FROM experiments e
      LEFT JOIN experiment_assignments a ON a.experiment = e.name AND a.customer_id = p_customer_id
     WHERE e.rollout_percentage > 0
       AND e.active_from <= dispatch_now() AND (e.active_until IS NULL OR e.active_until > dispatch_now())
$$;

-- The JSON of sessions.Prospect: all that deciding the first stage of a booking needs, before there is
-- one. The intake need not be stored yet. Null: there is no such customer or plan.
CREATE FUNCTION prospect(i intakes) RETURNS json LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT json_build_object(
                   'wish', json_build_object(
                       'customer_id', i.customer_id,
                       'session_type', p.type,
                       'plan_code', p.code,
                       'minutes', p.minutes,
                       'urgent', i.urgent,
                       'is_specialist', i.is_specialist,
                       'routing', i.routing_type,
                       'preferred_workshop_id', i.workshop_id,
                       'preferred_mechanic_id', i.preferred_mechanic_id,
                       'wait_for_preferred', i.wait_for_preferred,
                       'waiver_signed', EXISTS (SELECT 1 FROM waivers w WHERE w.intake_id = i.id)),
                   'customer_name', split_part(u.name, ' ', 1),
                   'vehicle', i.vehicle,
                   'concern', i.concern,
                   'favourite', (SELECT row_to_json(c) FROM candidates c
                                  WHERE c.mechanic_id = i.preferred_mechanic_id),
                   'experiments', CASE WHEN i.routing_type = 'priority_broadcast'
                                       THEN running_experiments(i.customer_id) ELSE '[]' END,
                   'now', dispatch_now())
          FROM plans p, users u
         WHERE p.code = i.plan_code AND u.id = i.customer_id);
END $$;

-- The ordinary answer to a payment: the webhook is new, the payment still unanswered and its customer
-- free, so it becomes a booking in its first stage (p_opened). False: the webhook was here before.
-- Raises where it is not so simple, and nothing has happened then.
CREATE FUNCTION book_paid(
    p_event_id text, p_event_type text, p_payment_id uuid, p_stripe_session_id text,
    p_payment_intent text, p_ttl interval, p_message text, p_opened json
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_intake  uuid;
    v_session uuid;
BEGIN
    INSERT INTO stripe_events (id, type, outcome) VALUES (p_event_id, p_event_type, 'fulfilled')
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT p.intake_id INTO v_intake FROM payments p
     WHERE p.id = p_payment_id AND p.status IN ('created', 'expired', 'failed') FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'payment % was answered meanwhile', p_payment_id;
    END IF;
    SELECT c.session_id INTO v_session
      FROM create_session(v_intake, p_stripe_session_id, p_ttl, p_message, p_opened) c;
    UPDATE payments p
       SET status = 'fulfilled', session_id = v_session, stripe_session_id = p_stripe_session_id,
           received_cents = p.amount_cents, received_currency = p.currency,
           payment_intent = coalesce(p_payment_intent, p.payment_intent)
     WHERE p.id = p_payment_id;
    RETURN true;
END $$;

-- The same without money: the intake (p_intake, the JSON of its row) and its booking, of a plan that is
-- free or is paid with credits. Raises a violation of credits_never_below_zero where there are too few.
CREATE FUNCTION book_intake(
    p_intake json, p_ttl interval, p_message text, p_opened json, p_with_credits boolean
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    i         intakes := json_populate_record(NULL::intakes, p_intake);
    v_session uuid;
BEGIN
    i.created_at := clock_timestamp();
    INSERT INTO intakes SELECT i.*;
    SELECT c.session_id INTO v_session FROM create_session(i.id, NULL, p_ttl, p_message, p_opened) c;
    IF p_with_credits THEN
        PERFORM set_aside_credits(v_session);
    END IF;
END $$;

-- Locks request and session, in this order, and returns the booking as it is after the lock, with
-- the time by which its deadlines are judged. No row: no such request.
CREATE FUNCTION lock_booking(p_request_id uuid) RETURNS TABLE (entry json, now timestamptz)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM session_requests r WHERE r.id = p_request_id FOR UPDATE;
    PERFORM 1 FROM sessions s JOIN session_requests r ON r.session_id = s.id
      WHERE r.id = p_request_id FOR UPDATE OF s;
    RETURN QUERY SELECT e.entry, dispatch_now() FROM booking_entries e
                  WHERE e.request_id = p_request_id;
END $$;

-- Writes one change (the JSON of a `change`) over the locked rows of the version before it. Raises when
-- the booking's version is not the next one: the caller did not hold the lock.
CREATE FUNCTION write_change(p_change json) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    c change := json_populate_record(NULL::change, p_change);
    b booking_states := c.booking;
BEGIN
    UPDATE session_requests r
       SET offer_id = b.offer_id, excluded_mechanic_ids = b.excluded, status = b.status,
           stage = b.stage, generation = b.generation, version = b.version, attempt = b.attempt,
           message = b.message, mechanic_id = b.mechanic_id, accept_id = b.accept_id,
           accepted_at = b.accepted_at, priority_notified_at = b.priority_notified_at,
           fallback_broadcast_at = b.fallback_broadcast_at, stage_ends_at = b.stage_ends_at,
           next_attempt_at = b.next_attempt_at, seen_at = b.seen_at, expires_at = b.expires_at,
           warned_at = b.warned_at, due_at = c.due_at,
           priority_window_minutes = coalesce(priority_window_minutes(b), r.priority_window_minutes)
     WHERE r.id = b.request_id AND r.version = b.version - 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'request % is not at version %', b.request_id, b.version - 1;
    END IF;
    UPDATE sessions s
       SET status = b.session_status, version = b.version, mechanic_id = b.mechanic_id,
           mechanic_slot = CASE WHEN b.mechanic_id IS NOT NULL THEN s.mechanic_slot END,
           workshop_id = (SELECT r.workshop_id FROM session_requests r WHERE r.id = b.request_id),
           customer_joined_at = b.customer_joined_at, mechanic_joined_at = b.mechanic_joined_at,
           join_by = b.join_by, started_at = b.started_at, ends_at = b.ends_at,
           ended_by = b.ended_by
     WHERE s.id = b.session_id;
    DELETE FROM session_participants p
     WHERE p.session_id = b.session_id AND p.role = 'mechanic'
       AND p.user_id IS DISTINCT FROM b.mechanic_id;
    UPDATE session_participants p
       SET joined_at = CASE p.role WHEN 'customer' THEN b.customer_joined_at
                                   ELSE b.mechanic_joined_at END
     WHERE p.session_id = b.session_id
       AND p.joined_at IS DISTINCT FROM CASE p.role WHEN 'customer' THEN b.customer_joined_at
                                                    ELSE b.mechanic_joined_at END;
    PERFORM record_change(c);
    IF b.session_status = 'completed' THEN
        PERFORM record_session_earnings(b.session_id);
    END IF;
END $$;

-- The seat of a slot is free again when its booking ends unserved.
CREATE FUNCTION session_free_seat() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE slots SET taken = taken - 1 WHERE id = NEW.slot_id;
    RETURN NULL;
END $$;
CREATE TRIGGER session_free_seat
    AFTER UPDATE OF status ON sessions
    FOR EACH ROW WHEN (NEW.slot_id IS NOT NULL AND OLD.status IN ('scheduled', 'pending')
                       AND NEW.status IN ('cancelled', 'expired'))
    EXECUTE FUNCTION session_free_seat();

-- R7: the serving workshop is the winner's, whatever workshop was preferred.
CREATE FUNCTION session_request_populate_workshop() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.workshop_id := (SELECT m.workshop_id FROM mechanics m WHERE m.id = NEW.mechanic_id);
    -- Whoever has written it there already is spared a second version of that row.
    UPDATE sessions SET workshop_id = NEW.workshop_id
     WHERE id = NEW.session_id AND workshop_id IS DISTINCT FROM NEW.workshop_id;
    RETURN NEW;
END $$;
CREATE TRIGGER session_request_populate_workshop
    BEFORE UPDATE OF mechanic_id ON session_requests
    FOR EACH ROW WHEN (OLD.mechanic_id IS DISTINCT FROM NEW.mechanic_id)
    EXECUTE FUNCTION session_request_populate_workshop();

-- The judge (O1, O2): whether this mechanic gets this round. One winner a round, the same verdict
-- for the same accept_id, nothing stored for a round that does not exist. Who was not meant gets
-- `not_found`, the same as for an unknown round. With p_assigned_by an admin gives it to her: then it
-- does not matter whose stage it is and whether she was excluded, and all else does.
--
-- Returns verdict, reason, the request and session, and for a fresh win the entry for the boards.
CREATE FUNCTION accept_offer(
    p_offer_id uuid, p_mechanic_id uuid, p_accept_id uuid,
    p_capacity integer, p_join interval, p_message text, p_policy_id uuid DEFAULT NULL,
    p_assigned_by uuid DEFAULT NULL
) RETURNS TABLE (verdict text, reason text, request_id uuid, session_id uuid, entry json)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    round_    session_assignments;  -- read where it is not the request's present one, or is over
    r         session_requests;
    m         candidates;
    prior     accepts;
    v_slot    integer;
    v_now     timestamptz;
    v_current boolean;  -- whether it is the request's present round
BEGIN
    SELECT * INTO r FROM session_requests q WHERE q.offer_id = p_offer_id FOR UPDATE;
    IF NOT FOUND THEN
        SELECT q.* INTO r FROM session_assignments a JOIN session_requests q ON q.id = a.request_id
         WHERE a.offer_id = p_offer_id FOR UPDATE OF q;
        IF NOT FOUND THEN
            RETURN QUERY SELECT 'lost', 'not_found', NULL::uuid, NULL::uuid, NULL::json;
            RETURN;
        END IF;
    END IF;
    -- Before the verdicts are read: the same accept_id may be judged for another round now.
    PERFORM 1 FROM mechanics WHERE id = p_mechanic_id FOR NO KEY UPDATE;
    v_now := dispatch_now();
    v_current := r.offer_id = p_offer_id;
    IF NOT v_current OR r.status <> 'pending' THEN
        SELECT * INTO round_ FROM session_assignments a WHERE a.offer_id = p_offer_id;
    END IF;

    SELECT * INTO prior FROM accepts a
     WHERE a.mechanic_id = p_mechanic_id AND a.accept_id = p_accept_id;
    IF FOUND THEN
        IF prior.offer_id <> p_offer_id THEN  -- an accept_id belongs to one round
            RETURN QUERY SELECT 'lost', 'not_found', NULL::uuid, NULL::uuid, NULL::json;
        ELSE
            -- Who was busy then, or not available, is told why it is over now.
            RETURN QUERY SELECT prior.verdict,
                                CASE WHEN prior.reason IN ('busy', 'unavailable')
                                     THEN coalesce(round_.outcome, prior.reason)
                                     ELSE prior.reason END,
                                r.id, r.session_id, NULL::json;
        END IF;
        RETURN;
    END IF;

    verdict := 'lost';
    request_id := r.id;
    session_id := r.session_id;
    SELECT * INTO m FROM candidates c WHERE c.mechanic_id = p_mechanic_id;

    IF v_current AND r.mechanic_id = p_mechanic_id THEN
        verdict := 'won';
        reason := NULL;
    ELSIF NOT v_current AND round_.mechanic_id = p_mechanic_id THEN
        reason := 'cancelled';  -- she gave it back
    ELSIF NOT coalesce(m.approved, false)
       OR (v_current AND p_mechanic_id = ANY (r.excluded_mechanic_ids) AND p_assigned_by IS NULL)
       OR (r.is_specialist AND NOT m.is_specialist)
       OR (r.status IN ('scheduled', 'pending') AND r.stage IS NULL)
       OR (r.stage = 'priority' AND p_mechanic_id IS DISTINCT FROM r.preferred_mechanic_id
           AND p_assigned_by IS NULL)
       OR (((r.stage = 'preferred' AND p_assigned_by IS NULL) OR r.routing_type = 'workshop_only')
           AND m.workshop_id IS DISTINCT FROM r.preferred_workshop_id) THEN
        reason := 'not_found';
    ELSIF NOT v_current OR r.status <> 'pending' THEN
        reason := coalesce(round_.outcome, 'taken');
    ELSIF r.expires_at <= v_now THEN
        reason := 'expired';
    ELSIF NOT m.available THEN
        reason := 'unavailable';
    ELSIF m.live_sessions >= p_capacity THEN
        reason := 'busy';
    ELSE
        -- Below capacity one of the slots is free, also after the capacity was lowered.
        SELECT min(n) INTO STRICT v_slot FROM generate_series(1, p_capacity) n
         WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.mechanic_id = p_mechanic_id
                              AND s.mechanic_slot = n AND s.status IN ('accepted', 'active'));
        verdict := 'won';
        reason := NULL;
        UPDATE sessions s
           SET status = 'accepted', mechanic_id = p_mechanic_id, mechanic_slot = v_slot,
               workshop_id = m.workshop_id, join_by = v_now + p_join, version = r.version + 1
         WHERE s.id = r.session_id;
        UPDATE session_requests q
           SET status = 'accepted', stage = NULL, stage_ends_at = NULL, next_attempt_at = NULL,
               mechanic_id = p_mechanic_id, accept_id = p_accept_id, accepted_at = v_now,
               version = q.version + 1, due_at = v_now + p_join, message = p_message
         WHERE q.id = r.id;
        INSERT INTO session_participants (session_id, user_id, role)
        VALUES (r.session_id, p_mechanic_id, 'mechanic');
        UPDATE session_assignments a
           SET status = 'assigned', outcome = 'taken', mechanic_id = p_mechanic_id, ended_at = v_now
         WHERE a.offer_id = p_offer_id;
        UPDATE offers o SET status = 'revoked'
         WHERE o.request_id = r.id AND o.generation = r.generation
           AND o.mechanic_id <> p_mechanic_id AND o.status IN ('issued', 'seen');
        INSERT INTO session_events (session_id, type, user_id, at, version, policy_id, event, metadata)
        VALUES (r.session_id, 'accepted', p_mechanic_id, v_now, r.version + 1, p_policy_id,
                jsonb_build_object('type', 'Accept', 'candidate', to_jsonb(m),
                                   'offer_id', p_offer_id, 'accept_id', p_accept_id,
                                   'assigned_by', p_assigned_by),
                jsonb_strip_nulls(jsonb_build_object('assigned_by', p_assigned_by)));
        SELECT e.entry INTO entry FROM booking_entries e WHERE e.request_id = r.id;
    END IF;

    IF m.mechanic_id IS NOT NULL THEN  -- also `not_found`: lost stays lost for an accept_id
        INSERT INTO accepts VALUES (p_mechanic_id, p_accept_id, p_offer_id, r.id, r.session_id,
                                    coalesce(round_.generation, r.generation), verdict, reason, v_now);
    END IF;
    IF coalesce(reason, '') <> 'not_found' THEN
        INSERT INTO offers AS o (request_id, generation, mechanic_id, status, stage, answered_at, reason)
        VALUES (r.id, coalesce(round_.generation, r.generation), p_mechanic_id,
                CASE verdict WHEN 'won' THEN 'accepted' ELSE 'revoked' END, r.stage, v_now, reason)
        ON CONFLICT ON CONSTRAINT offers_pkey DO UPDATE
           SET status = excluded.status, answered_at = excluded.answered_at, reason = excluded.reason
         WHERE o.status IN ('issued', 'seen')
            OR (o.status = 'revoked' AND excluded.status = 'accepted');  -- was busy, then free
    END IF;
    RETURN NEXT;
END $$;


-- ---------------------------------------------------------------------------------------------
-- What the two in a session say and write
-- ---------------------------------------------------------------------------------------------

-- Stores what a participant says, as the next of its session: `message` is that row. The session's row
-- is the lock, so messages are visible in the order of their seq, and none comes after the end. The
-- same client_message_id again, also after the end, gives the row that it made (`is_new` is false).
-- Otherwise `refusal` says why nothing was stored: not_found (also for who takes no part in it),
-- not_open, session_ended, or rate_limited where the session has p_most messages already.
CREATE FUNCTION say_in_session(
    p_session_id uuid, p_sender_id uuid, p_client_message_id uuid, p_body text, p_most integer
) RETURNS TABLE (refusal text, is_new boolean, customer_id uuid, mechanic_id uuid, message chat_messages)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    s     sessions;
    v_now timestamptz;
BEGIN
    SELECT * INTO s FROM sessions WHERE id = p_session_id
       AND p_sender_id IN (customer_user_id, mechanic_id) FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        refusal := 'not_found';
        RETURN NEXT;
        RETURN;
    END IF;
    v_now := dispatch_now();
    is_new := false;
    customer_id := s.customer_user_id;
    mechanic_id := s.mechanic_id;
    SELECT * INTO message FROM chat_messages c
     WHERE c.session_id = s.id AND c.client_message_id = p_client_message_id;
    IF FOUND THEN
        NULL;
    ELSIF s.status IN ('scheduled', 'pending') THEN
        refusal := 'not_open';
    ELSIF s.status NOT IN ('accepted', 'active') OR s.ends_at <= v_now THEN
        refusal := 'session_ended';
    ELSE
        message.seq := 1 + coalesce((SELECT max(c.seq) FROM chat_messages c WHERE c.session_id = s.id), 0);
        IF message.seq > p_most THEN
            refusal := 'rate_limited';
        ELSE
            is_new := true;
            INSERT INTO chat_messages (session_id, seq, client_message_id, sender_id, sender_role, body,
                                       sent_at)
            VALUES (s.id, message.seq, p_client_message_id, p_sender_id,
                    CASE p_sender_id WHEN s.customer_user_id THEN 'customer' ELSE 'mechanic' END,
                    p_body, v_now)
            RETURNING * INTO message;
        END IF;
    END IF;
    RETURN NEXT;
END $$;

-- A customer rates her own completed session, once; the mechanic's rating is the mean of all of hers
-- from the same moment on. Null when that was stored; otherwise why not: not_found, not_completed or
-- already_rated.
CREATE FUNCTION rate_session(p_session_id uuid, p_customer_id uuid, p_stars integer, p_review text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    s sessions;
BEGIN
    SELECT * INTO s FROM sessions WHERE id = p_session_id AND customer_user_id = p_customer_id
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'not_found';
    ELSIF s.status <> 'completed' THEN
        RETURN 'not_completed';
    END IF;
    -- Before the mean is taken: that of two customers at once is taken of both.
    PERFORM 1 FROM mechanics WHERE id = s.mechanic_id FOR NO KEY UPDATE;
    INSERT INTO ratings (session_id, customer_id, mechanic_id, stars, review, created_at)
    VALUES (s.id, p_customer_id, s.mechanic_id, p_stars, p_review, dispatch_now())
    ON CONFLICT (session_id) DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'already_rated';
    END IF;
    UPDATE mechanics m
       SET rating = (SELECT round(avg(r.stars), 2) FROM ratings r WHERE r.mechanic_id = m.id)
     WHERE m.id = s.mechanic_id;
    RETURN NULL;
END $$;

-- Its mechanic writes about a session that both have joined, as often as she likes: what she wrote last
-- stands. Null when that was stored; otherwise why not: not_found or not_started.
CREATE FUNCTION summarize_session(p_session_id uuid, p_mechanic_id uuid, p_summary text, p_notes text)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    s sessions;
BEGIN
    SELECT * INTO s FROM sessions WHERE id = p_session_id AND mechanic_id = p_mechanic_id
       FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 'not_found';
    ELSIF s.started_at IS NULL THEN
        RETURN 'not_started';
    END IF;
    UPDATE sessions SET summary = p_summary, notes = p_notes WHERE id = s.id;
    RETURN NULL;
END $$;


-- ---------------------------------------------------------------------------------------------
-- Dividing money
-- ---------------------------------------------------------------------------------------------

-- M1, as core/money.py says it: what each has of the gross amount, in cents that add up to it. Where the
-- customer named a workshop and another's or an independent mechanic served, `referral_cents` go to
-- the named one and the rest to the mechanic herself. Shares are rounded half up.
CREATE FUNCTION calculate_revenue_split(
    p_gross_cents integer, p_serving_workshop_id uuid, p_preferred_workshop_id uuid,
    p_platform_fee_percentage numeric DEFAULT 20
) RETURNS TABLE (platform_fee_cents integer, referral_cents integer, workshop_net_cents integer,
                 mechanic_net_cents integer)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_referred boolean := p_preferred_workshop_id IS NOT NULL
                      AND p_preferred_workshop_id IS DISTINCT FROM p_serving_workshop_id;
    v_rest     integer;
BEGIN
    platform_fee_cents := round(p_gross_cents * p_platform_fee_percentage / 100);
    v_rest := p_gross_cents - platform_fee_cents;
    referral_cents := CASE WHEN v_referred THEN least(round(p_gross_cents * 0.10), v_rest) ELSE 0 END;
    v_rest := v_rest - referral_cents;
    workshop_net_cents := CASE WHEN v_referred OR p_serving_workshop_id IS NULL THEN 0 ELSE v_rest END;
    mechanic_net_cents := v_rest - workshop_net_cents;
    RETURN NEXT;
END $$;

-- Moves credits of one customer from one account to another, as one transaction of the ledger. Raises
-- a violation of credits_never_below_zero where there are too few.
CREATE FUNCTION move_credits(
    p_transaction_id uuid, p_customer_id uuid, p_from text, p_to text, p_amount_cents integer,
    p_currency text, p_reason text, p_session_id uuid DEFAULT NULL, p_payment_id uuid DEFAULT NULL,
    p_created_by uuid DEFAULT NULL
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO credit_entries (transaction_id, customer_id, account, amount_cents, currency, reason,
                                session_id, payment_id, created_by)
    VALUES (p_transaction_id, p_customer_id, p_from, -p_amount_cents, p_currency, p_reason,
            p_session_id, p_payment_id, p_created_by),
           (p_transaction_id, p_customer_id, p_to, p_amount_cents, p_currency, p_reason,
            p_session_id, p_payment_id, p_created_by)
$$;

-- The price of a session that was just made is set aside for it, of its customer's credits; nothing
-- where its plan is free. Last in its transaction: the customer's row is locked after all others.
CREATE FUNCTION set_aside_credits(p_session_id uuid) RETURNS void LANGUAGE sql AS $$
    SELECT move_credits(gen_random_uuid(), s.customer_user_id, 'customer', 'session', p.price_cents,
                        p.currency, 'booked', s.id)
      FROM sessions s JOIN plans p ON p.code = s.plan
     WHERE s.id = p_session_id AND p.price_cents > 0
$$;

-- The credits that are set aside for a session leave it, to `customer` or `earnings`, once. Returns how
-- much that was, with its currency; no row where there are none. The caller holds the session's row.
CREATE FUNCTION release_credits(p_session_id uuid, p_to text, p_reason text)
RETURNS TABLE (amount_cents integer, currency text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_customer uuid;
BEGIN
    SELECT e.customer_id, e.amount_cents, e.currency INTO v_customer, amount_cents, currency
      FROM credit_entries e
     WHERE e.session_id = p_session_id AND e.account = 'session' AND e.amount_cents > 0
       AND NOT EXISTS (SELECT FROM credit_entries free
                        WHERE free.session_id = p_session_id AND free.account = 'session'
                          AND free.amount_cents < 0);
    IF FOUND THEN
        PERFORM move_credits(gen_random_uuid(), v_customer, 'session', p_to, amount_cents, currency,
                             p_reason, p_session_id);
        RETURN NEXT;
    END IF;
END $$;

-- What a completed session earned, once, whoever calls and how often (S9, M2): of the money that was
-- received for it, or of the credits that were set aside. The caller holds the session's row.
CREATE FUNCTION record_session_earnings(p_session_id uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    s        sessions;
    v_gross  integer;
    v_currency text;
    v_fee    numeric;
    share    record;
BEGIN
    SELECT * INTO STRICT s FROM sessions WHERE id = p_session_id;
    IF s.status <> 'completed' THEN
        RAISE EXCEPTION 'session % is %', s.id, s.status;
    END IF;
    SELECT p.received_cents, p.received_currency INTO v_gross, v_currency
      FROM payments p WHERE p.session_id = s.id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        SELECT c.amount_cents, c.currency INTO v_gross, v_currency
          FROM release_credits(s.id, 'earnings', 'completed') c;
    END IF;
    IF coalesce(v_gross, 0) = 0 THEN
        RETURN;  -- free sessions earn nothing
    END IF;
    SELECT coalesce(min(o.platform_fee_percentage), 20) INTO v_fee
      FROM organizations o WHERE o.id = s.workshop_id AND o.custom_fee_agreement;
    SELECT * INTO share
      FROM calculate_revenue_split(v_gross, s.workshop_id, s.preferred_workshop_id, v_fee);
    IF s.workshop_id IS NULL OR s.preferred_workshop_id <> s.workshop_id THEN
        INSERT INTO mechanic_earnings (session_id, mechanic_id, currency, gross_amount_cents,
                                       platform_fee_percentage, platform_fee_cents,
                                       workshop_fee_cents, mechanic_net_cents)
        VALUES (s.id, s.mechanic_id, v_currency, v_gross, v_fee, share.platform_fee_cents,
                share.referral_cents, share.mechanic_net_cents)
        ON CONFLICT (session_id) DO NOTHING;
    END IF;
    IF coalesce(s.preferred_workshop_id, s.workshop_id) IS NOT NULL THEN
        INSERT INTO workshop_earnings (session_id, workshop_id, mechanic_id, is_referral, currency,
                                       gross_amount_cents, platform_fee_percentage,
                                       platform_fee_cents, mechanic_net_cents, workshop_net_cents)
        VALUES (s.id, coalesce(s.preferred_workshop_id, s.workshop_id), s.mechanic_id,
                s.preferred_workshop_id IS DISTINCT FROM s.workshop_id
                    AND s.preferred_workshop_id IS NOT NULL,
                v_currency, v_gross, v_fee, share.platform_fee_cents, share.mechanic_net_cents,
                share.referral_cents + share.workshop_net_cents)
        ON CONFLICT (session_id) DO NOTHING;
    END IF;
    PERFORM take_back_earnings(s.id);
END $$;

-- What of one part of a gross amount goes back when so much of the whole does: in proportion, rounded
-- half up, or half down. In bigint: twice a product of two integers is within its range.
CREATE FUNCTION returned_share(
    p_part_cents bigint, p_gross_cents bigint, p_returned_cents bigint, p_half_up boolean
) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT ((2 * p_part_cents * p_returned_cents + p_gross_cents
             - CASE WHEN p_half_up THEN 0 ELSE 1 END) / (2 * p_gross_cents))::integer
$$;

-- What was paid for a session went back, in part or all: each gives back its share of that, and never
-- gets back what was taken. By the sum that has gone back, so that its steps and their order are the
-- same; core/money.py says why a referral is rounded half down. What was in a payout already is to be
-- reversed. The caller holds the session's row; a session without earnings is left as it is.
CREATE FUNCTION take_back_earnings(p_session_id uuid) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    p      payments;
    m      mechanic_earnings;
    w      workshop_earnings;
    v_back integer;
    v_more integer;
BEGIN
    SELECT * INTO p FROM payments WHERE session_id = p_session_id FOR NO KEY UPDATE;
    IF NOT FOUND OR p.refunded_cents + p.credited_cents <= p.taken_back_cents THEN
        RETURN;
    END IF;
    SELECT * INTO m FROM mechanic_earnings WHERE session_id = p_session_id FOR NO KEY UPDATE;
    SELECT * INTO w FROM workshop_earnings WHERE session_id = p_session_id FOR NO KEY UPDATE;
    IF coalesce(m.id, w.id) IS NULL THEN
        RETURN;
    END IF;
    v_back := least(p.refunded_cents + p.credited_cents,
                    coalesce(m.gross_amount_cents, w.gross_amount_cents));
    UPDATE payments SET taken_back_cents = v_back WHERE id = p.id;
    v_more := returned_share(m.mechanic_net_cents, m.gross_amount_cents, v_back, true) - m.reversed_cents;
    IF v_more > 0 THEN
        UPDATE mechanic_earnings SET reversed_cents = reversed_cents + v_more WHERE id = m.id;
        PERFORM reverse_payout(m.payout_id, p_session_id, v_more);
    END IF;
    v_more := returned_share(w.workshop_net_cents, w.gross_amount_cents, v_back, NOT w.is_referral)
              - w.reversed_cents;
    IF v_more > 0 THEN
        UPDATE workshop_earnings SET reversed_cents = reversed_cents + v_more WHERE id = w.id;
        PERFORM reverse_payout(w.payout_id, p_session_id, v_more);
    END IF;
END $$;

-- So much of a payout is to come back, where it was not refused: delivered by the outbox, which waits
-- until it is known.
CREATE FUNCTION reverse_payout(p_payout_id uuid, p_session_id uuid, p_amount_cents integer)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_id uuid;
BEGIN
    INSERT INTO payout_reversals (payout_id, session_id, amount_cents)
    SELECT p.id, p_session_id, p_amount_cents
      FROM payouts p WHERE p.id = p_payout_id AND p.status <> 'failed'
    RETURNING id INTO v_id;
    IF FOUND THEN
        INSERT INTO outbox (kind, idempotency_key, payload, next_try_at)
        VALUES ('reversal', 'reversal-' || v_id, jsonb_build_object('reversal_id', v_id), dispatch_now());
    END IF;
END $$;

-- What customers may spend.
CREATE VIEW credit_balances AS
SELECT DISTINCT ON (customer_id, currency) customer_id, currency, balance_cents
  FROM credit_entries WHERE account = 'customer' ORDER BY customer_id, currency, seq DESC;

-- What is owed back of payouts whose reversal failed, until a later payout is less by it.
CREATE VIEW payout_debts AS
SELECT r.id AS reversal_id, p.workshop_id, p.mechanic_id, p.currency, r.amount_cents
  FROM payout_reversals r JOIN payouts p ON p.id = r.payout_id
 WHERE r.status = 'failed' AND r.settled_by IS NULL;

-- What is owed and not in a payout that was made or is under way, one line for each party and currency;
-- `due_cents` is without the party's debts, and may be below zero.
CREATE VIEW payouts_due AS
SELECT o.workshop_id, o.mechanic_id, o.name, o.currency,
       o.earned_cents - coalesce(d.debt_cents, 0) AS due_cents, coalesce(d.debt_cents, 0) AS debt_cents,
       o.stripe_connect_account_id, o.stripe_payouts_enabled
  FROM (SELECT e.workshop_id, NULL::uuid AS mechanic_id, w.name, e.currency,
               sum(e.workshop_net_cents - e.reversed_cents) AS earned_cents,
               w.stripe_connect_account_id, w.stripe_payouts_enabled
          FROM workshop_earnings e JOIN organizations w ON w.id = e.workshop_id
         WHERE e.payout_status IN ('pending', 'failed')
         GROUP BY e.workshop_id, w.id, e.currency
        UNION ALL
        SELECT NULL, e.mechanic_id, u.name, e.currency,
               sum(e.mechanic_net_cents - e.reversed_cents),
               m.stripe_connect_account_id, m.stripe_payouts_enabled
          FROM mechanic_earnings e JOIN mechanics m ON m.id = e.mechanic_id JOIN users u ON u.id = m.id
         WHERE e.payout_status IN ('pending', 'failed')
         GROUP BY e.mechanic_id, m.id, u.name, e.currency) o
  LEFT JOIN (SELECT coalesce(workshop_id, mechanic_id) AS payee_id, currency,
                    sum(amount_cents) AS debt_cents
               FROM payout_debts GROUP BY 1, 2) d
    ON d.payee_id = coalesce(o.workshop_id, o.mechanic_id) AND d.currency = o.currency;

-- Everything that is owed to one party (a workshop, or else a mechanic) in one currency, less its debts,
-- becomes one payout, and one transfer in the outbox. Null where that is less than p_minimum_cents, or
-- there is no account that takes payouts. Two at once make one: the party's row is the lock. What is
-- earned meanwhile is not in it: only rows that were summed are moved.
CREATE FUNCTION make_payout(
    p_workshop_id uuid, p_mechanic_id uuid, p_currency text, p_minimum_cents integer,
    p_cause text, p_created_by uuid
) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    v_account text;
    v_earned  bigint;
    v_rows    uuid[];
    v_debt    bigint;
    v_debts   uuid[];
    v_id      uuid;
BEGIN
    IF p_workshop_id IS NOT NULL THEN
        SELECT stripe_connect_account_id INTO v_account FROM organizations
         WHERE id = p_workshop_id AND stripe_payouts_enabled FOR NO KEY UPDATE;
        SELECT sum(net), array_agg(id) INTO v_earned, v_rows FROM (
            SELECT id, workshop_net_cents - reversed_cents AS net FROM workshop_earnings
             WHERE workshop_id = p_workshop_id AND currency = p_currency
               AND payout_status IN ('pending', 'failed') ORDER BY session_id FOR NO KEY UPDATE) due;
    ELSE
        SELECT stripe_connect_account_id INTO v_account FROM mechanics
         WHERE id = p_mechanic_id AND stripe_payouts_enabled FOR NO KEY UPDATE;
        SELECT sum(net), array_agg(id) INTO v_earned, v_rows FROM (
            SELECT id, mechanic_net_cents - reversed_cents AS net FROM mechanic_earnings
             WHERE mechanic_id = p_mechanic_id AND currency = p_currency
               AND payout_status IN ('pending', 'failed') ORDER BY session_id FOR NO KEY UPDATE) due;
    END IF;
    SELECT coalesce(sum(amount_cents), 0), array_agg(reversal_id) INTO v_debt, v_debts
      FROM payout_debts
     WHERE coalesce(workshop_id, mechanic_id) = coalesce(p_workshop_id, p_mechanic_id)
       AND currency = p_currency;
    IF v_account IS NULL OR coalesce(v_earned, 0) - v_debt < greatest(p_minimum_cents, 1) THEN
        RETURN NULL;
    END IF;
    INSERT INTO payouts (workshop_id, mechanic_id, stripe_account_id, amount_cents, currency, cause,
                         created_by)
    VALUES (p_workshop_id, CASE WHEN p_workshop_id IS NULL THEN p_mechanic_id END, v_account,
            v_earned - v_debt, p_currency, p_cause, p_created_by)
    RETURNING id INTO v_id;
    UPDATE workshop_earnings SET payout_status = 'processing', payout_id = v_id
     WHERE p_workshop_id IS NOT NULL AND id = ANY (v_rows);
    UPDATE mechanic_earnings SET payout_status = 'processing', payout_id = v_id
     WHERE p_workshop_id IS NULL AND id = ANY (v_rows);
    UPDATE payout_reversals SET settled_by = v_id WHERE id = ANY (v_debts);
    INSERT INTO outbox (kind, idempotency_key, payload, next_try_at)
    VALUES ('transfer', 'payout-' || v_id, jsonb_build_object('payout_id', v_id), dispatch_now());
    RETURN v_id;
END $$;

-- What became of a payout: `paid` by this transfer, or `failed`. False where it was settled before; also
-- where it failed and its transfer is there all the same: that is noted, for a person. Reversals that
-- waited for it are due at once; of one that failed they are void, and its debts are owed again.
CREATE FUNCTION settle_payout(p_payout_id uuid, p_status text, p_transfer_id text, p_note text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM workshop_earnings WHERE payout_id = p_payout_id ORDER BY session_id FOR NO KEY UPDATE;
    PERFORM 1 FROM mechanic_earnings WHERE payout_id = p_payout_id ORDER BY session_id FOR NO KEY UPDATE;
    UPDATE payouts SET stripe_transfer_id = coalesce(stripe_transfer_id, p_transfer_id)
     WHERE id = p_payout_id;
    UPDATE payouts
       SET status = p_status, note = p_note, settled_at = dispatch_now()
     WHERE id = p_payout_id AND status IN ('pending', 'processing');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE workshop_earnings SET payout_status = p_status WHERE payout_id = p_payout_id;
    UPDATE mechanic_earnings SET payout_status = p_status WHERE payout_id = p_payout_id;
    IF p_status = 'failed' THEN  -- what was to be reversed of it is not in the next one
        UPDATE payout_reversals SET status = 'void'
         WHERE payout_id = p_payout_id AND status = 'pending';
        UPDATE payout_reversals SET settled_by = NULL WHERE settled_by = p_payout_id;
    END IF;
    UPDATE outbox SET next_try_at = least(next_try_at, dispatch_now()), failed_at = NULL
     WHERE done_at IS NULL AND idempotency_key IN
           (SELECT 'reversal-' || id FROM payout_reversals WHERE payout_id = p_payout_id);
    RETURN true;
END $$;

-- What became of a reversal of a payout: `reversed`, `failed` (a debt from now on) or `void`. False where
-- it was settled before. The payout is locked first, as in settle_payout, so that two are both counted.
CREATE FUNCTION settle_reversal(
    p_reversal_id uuid, p_status text, p_stripe_reversal_id text, p_note text
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    v_payout_id uuid;
BEGIN
    SELECT p.id INTO STRICT v_payout_id
      FROM payout_reversals r JOIN payouts p ON p.id = r.payout_id
     WHERE r.id = p_reversal_id FOR NO KEY UPDATE OF p;
    UPDATE payout_reversals
       SET status = p_status, stripe_reversal_id = p_stripe_reversal_id, note = p_note
     WHERE id = p_reversal_id AND status = 'pending';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE payouts SET reversed_cents = greatest(reversed_cents, (
        SELECT coalesce(sum(r.amount_cents), 0) FROM payout_reversals r
         WHERE r.payout_id = v_payout_id AND r.status = 'reversed')) WHERE id = v_payout_id;
    RETURN true;
END $$;

-- Where the money of each payment is, as far as it was not given back: with who earned it, on its way,
-- held for a person; null where it may not stay. What went back before we heard of it had come.
CREATE VIEW payment_places AS
SELECT p.id, p.status, p.note, s.status AS session_status, p.taken_back_cents,
       coalesce(p.received_currency, p.currency) AS currency,
       coalesce(p.received_cents, p.refunded_cents) AS received_cents,
       p.refunded_cents, p.credited_cents,
       coalesce(p.received_cents, p.refunded_cents) - p.refunded_cents - p.credited_cents AS left_cents,
       CASE WHEN s.status = 'completed' THEN 'earned'
            WHEN p.status = 'refunding' OR (p.status = 'fulfilled'
                                            AND s.status NOT IN ('cancelled', 'expired'))
            THEN 'in progress'
            WHEN p.status = 'held' THEN 'held' END AS place
  FROM payments p LEFT JOIN sessions s ON s.id = p.session_id;

-- M2: what each party has earned, by currency. `due`: in no payout that was made or is under way. The
-- platform's fee of a referral is between the platform and who served.
CREATE VIEW workshop_earnings_summary AS
SELECT workshop_id, currency, count(*) AS sessions,
       sum(gross_amount_cents) AS gross_amount_cents,
       coalesce(sum(platform_fee_cents) FILTER (WHERE NOT is_referral), 0) AS platform_fee_cents,
       sum(workshop_net_cents) AS workshop_net_cents,
       sum(reversed_cents) AS reversed_cents,
       coalesce(sum(workshop_net_cents - reversed_cents)
                FILTER (WHERE payout_status IN ('pending', 'failed')), 0) AS due_cents,
       coalesce(sum(workshop_net_cents - reversed_cents)
                FILTER (WHERE payout_status = 'processing'), 0) AS processing_cents,
       coalesce(sum(workshop_net_cents - reversed_cents)
                FILTER (WHERE payout_status = 'paid'), 0) AS paid_cents
  FROM workshop_earnings GROUP BY workshop_id, currency;

CREATE VIEW mechanic_earnings_summary AS
SELECT mechanic_id, currency, count(*) AS sessions,
       sum(gross_amount_cents) AS gross_amount_cents,
       sum(platform_fee_cents) AS platform_fee_cents,
       sum(workshop_fee_cents) AS workshop_fee_cents,
       sum(mechanic_net_cents) AS mechanic_net_cents,
       sum(reversed_cents) AS reversed_cents,
       coalesce(sum(mechanic_net_cents - reversed_cents)
                FILTER (WHERE payout_status IN ('pending', 'failed')), 0) AS due_cents,
       coalesce(sum(mechanic_net_cents - reversed_cents)
                FILTER (WHERE payout_status = 'processing'), 0) AS processing_cents,
       coalesce(sum(mechanic_net_cents - reversed_cents)
                FILTER (WHERE payout_status = 'paid'), 0) AS paid_cents
  FROM mechanic_earnings GROUP BY mechanic_id, currency;
