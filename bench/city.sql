-- People and open bookings for the measurements, made in bulk. Everything of ours is in the schema
-- `bench`, beside the product's tables; what is made is what the server itself would have made.

CREATE SCHEMA bench;

CREATE TABLE bench.mechanics (n integer PRIMARY KEY, id uuid NOT NULL);
CREATE TABLE bench.accepts (
    n           integer PRIMARY KEY,
    offer_id    uuid NOT NULL,
    mechanic_id uuid NOT NULL,
    accept_id   uuid NOT NULL
);
CREATE SEQUENCE bench.next_accept MINVALUE 0;

-- Approved, available mechanics number 0 to p_count - 1, each `p_per_workshop` in one workshop. Their
-- facts are an hour old: nodes look for recent ones each second.
CREATE FUNCTION bench.add_mechanics(p_count integer, p_per_workshop integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_workshop uuid;
    v_id       uuid;
BEGIN
    FOR i IN 0 .. p_count - 1 LOOP
        IF i % p_per_workshop = 0 THEN
            INSERT INTO organizations (name, email, status)
            VALUES ('Workshop ' || i, 'workshop' || i || '@bench.test', 'active')
            RETURNING id INTO v_workshop;
        END IF;
        INSERT INTO users (email, name, role)
        VALUES ('mechanic' || i || '@bench.test', 'Mechanic ' || i, 'mechanic')
        RETURNING id INTO v_id;
        INSERT INTO mechanics (id, workshop_id, account_type, application_status, rating, changed_at)
        VALUES (v_id, v_workshop, 'workshop', 'approved', 4.5, clock_timestamp() - interval '1 h');
        INSERT INTO bench.mechanics VALUES (i, v_id);
    END LOOP;
END $$;

CREATE FUNCTION bench.add_customer() RETURNS uuid LANGUAGE sql AS $$
    WITH person AS (
        INSERT INTO users (email, name, role)
        VALUES (gen_random_uuid() || '@bench.test', 'Clara Customer', 'customer') RETURNING id)
    INSERT INTO customers (id) SELECT id FROM person RETURNING id
$$;

-- One open booking for each of the mechanics p_first to p_first + p_count - 1, and its accept, in
-- bench.accepts. `priority_broadcast`: only she is asked. `workshop_only`: all of her workshop are.
CREATE FUNCTION bench.open_bookings(p_first integer, p_count integer, p_routing text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    m         mechanics;
    v_intake  uuid;
    v_request uuid;
    v_stage   text := CASE p_routing WHEN 'priority_broadcast' THEN 'priority' ELSE 'open' END;
BEGIN
    TRUNCATE bench.accepts;
    PERFORM setval('bench.next_accept', 0, false);
    FOR i IN 0 .. p_count - 1 LOOP
        SELECT q.* INTO m FROM mechanics q JOIN bench.mechanics b USING (id) WHERE b.n = p_first + i;
        INSERT INTO intakes (customer_id, plan_code, routing_type, workshop_id,
                             preferred_mechanic_id, vehicle, concern)
        VALUES (bench.add_customer(), 'free', p_routing, m.workshop_id, m.id, 'Golf 7', 'A noise')
        RETURNING id INTO v_intake;
        SELECT request_id INTO v_request FROM create_session(v_intake, NULL, '2 h', 'Confirmed.');
        UPDATE session_requests r
           SET stage = v_stage, version = 2, message = 'Asking.',
               priority_notified_at = CASE v_stage WHEN 'priority' THEN r.created_at END,
               stage_ends_at = CASE v_stage WHEN 'priority' THEN r.created_at + interval '1 h' END,
               due_at = r.created_at + CASE v_stage WHEN 'priority' THEN interval '1 h'
                                                    ELSE interval '2 h' END
         WHERE r.id = v_request;
        UPDATE sessions s SET version = 2 FROM session_requests r
         WHERE r.id = v_request AND s.id = r.session_id;
        INSERT INTO bench.accepts
        SELECT i, r.offer_id, m.id, gen_random_uuid() FROM session_requests r WHERE r.id = v_request;
    END LOOP;
END $$;

-- Frees every mechanic: what is accepted is completed. What runs meanwhile finds it by reconciling.
CREATE FUNCTION bench.complete_all() RETURNS void LANGUAGE sql AS $$
    UPDATE session_requests SET status = 'completed', version = version + 1, due_at = NULL
     WHERE status = 'accepted';
    UPDATE sessions SET status = 'completed', version = version + 1 WHERE status = 'accepted';
$$;

-- Paid checkouts whose webhook is still to come: number n asks for mechanic n (modulo how many there
-- are) and says so in its concern, which every offer carries.
CREATE TABLE bench.sales (
    n                 integer PRIMARY KEY,
    payment_id        uuid NOT NULL,
    intake_id         uuid NOT NULL,
    stripe_session_id text NOT NULL,
    opened            json NOT NULL
);
CREATE SEQUENCE bench.next_sale MINVALUE 0;

CREATE FUNCTION bench.sell(p_count integer, p_routing text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_mechanics integer := (SELECT count(*) FROM bench.mechanics);
    m           bench.mechanics;
    v_customer  uuid;
    v_intake    uuid;
    v_opened    json;
BEGIN
    TRUNCATE bench.sales;
    PERFORM setval('bench.next_sale', 0, false);
    FOR i IN 0 .. p_count - 1 LOOP
        SELECT b.* INTO m FROM bench.mechanics b WHERE b.n = i % v_mechanics;
        v_customer := bench.add_customer();
        INSERT INTO intakes (customer_id, plan_code, routing_type, preferred_mechanic_id, vehicle, concern)
        VALUES (v_customer, 'chat10', p_routing, m.id, 'Golf 7', 'Noise ' || lpad(i::text, 6, '0'))
        RETURNING id INTO v_intake;
        INSERT INTO waivers (intake_id, user_id, name, version, address)
        VALUES (v_intake, v_customer, 'Clara Customer', '1', '127.0.0.1');
        SELECT bench.opened(q) INTO v_opened FROM intakes q WHERE q.id = v_intake;
        WITH paid AS (
            INSERT INTO payments (customer_id, intake_id, plan_code, stripe_session_id, amount_cents,
                                  currency, checkout_url)
            VALUES (v_customer, v_intake, 'chat10', 'cs_test_' || replace(v_intake::text, '-', ''),
                    1000, 'eur', 'https://checkout.test/' || v_intake)
            RETURNING id, stripe_session_id)
        INSERT INTO bench.sales SELECT i, id, v_intake, stripe_session_id, v_opened FROM paid;
    END LOOP;
END $$;

-- What the server asks of Postgres for the webhook of sale number p_n, in one call: what its booking
-- would be made of, and event, payment, session and first stage in one transaction, of a document
-- that was prepared before. The yardstick of bookings.
CREATE FUNCTION bench.book(p_n integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    s bench.sales;
BEGIN
    SELECT * INTO STRICT s FROM bench.sales WHERE n = p_n;
    PERFORM p.status, prospect(i) FROM payments p JOIN intakes i ON i.id = p.intake_id
      WHERE p.stripe_session_id = s.stripe_session_id;
    PERFORM book_paid('evt_' || s.stripe_session_id, 'checkout.session.completed', s.payment_id,
                      s.stripe_session_id, 'pi_bench', '2 h', 'Confirmed.', s.opened);
END $$;

-- The document of the first stage of an intake's booking, as the server decides it.
CREATE FUNCTION bench.opened(i intakes) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    v_now   timestamptz := dispatch_now();
    v_offer uuid := gen_random_uuid();
    b       booking_states;
    named   boolean := i.routing_type = 'priority_broadcast';
BEGIN
    b := json_populate_record(b, prospect(i) -> 'wish');
    b.request_id := gen_random_uuid();
    b.session_id := gen_random_uuid();
    b.offer_id := v_offer;
    b.excluded := '{}';
    b.status := 'pending';
    b.session_status := 'pending';
    b.stage := CASE WHEN named THEN 'priority' ELSE 'open' END;
    b.generation := 1;
    b.version := 2;
    b.attempt := 1;
    b.created_at := v_now + interval '1 h';  -- it is written later, and must not be too old then
    b.opens_at := v_now;
    b.expires_at := v_now + interval '2 h';
    b.message := 'Asking.';
    IF named THEN
        b.priority_notified_at := v_now;
        b.stage_ends_at := v_now + interval '10 min';
        b.next_attempt_at := v_now + interval '5 s';
    END IF;
    RETURN row_to_json(ROW(
        b, coalesce(b.next_attempt_at, b.expires_at), v_now,
        json_build_object('type', 'Open', 'favourite', prospect(i) -> 'favourite'), NULL,
        json_build_array(json_build_object('type', 'opened', 'detail', b.stage)), v_offer, 1, NULL,
        NULL, NULL, false, CASE WHEN named THEN i.preferred_mechanic_id END,
        CASE WHEN named THEN 100 END, CASE WHEN named THEN 1 END, NULL, NULL, NULL)::change);
END $$;

-- Nobody waits any more. What runs meanwhile finds it by reconciling.
CREATE FUNCTION bench.cancel_all() RETURNS void LANGUAGE sql AS $$
    UPDATE session_requests SET status = 'cancelled', stage = NULL, version = version + 1, due_at = NULL
     WHERE status = 'pending';
    UPDATE sessions SET status = 'cancelled', version = version + 1 WHERE status = 'pending';
$$;

-- Bookings in bulk that wait for an hour: the first p_named of them for mechanic number p_mechanic,
-- the others for her workshop.
CREATE FUNCTION bench.pend(p_count integer, p_mechanic integer, p_named integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    m     mechanics;
    v_now timestamptz := dispatch_now();
BEGIN
    SELECT q.* INTO STRICT m FROM mechanics q JOIN bench.mechanics b USING (id) WHERE b.n = p_mechanic;
    CREATE TEMP TABLE wanted ON COMMIT DROP AS
    SELECT i, i <= p_named AS named, gen_random_uuid() AS customer, gen_random_uuid() AS session,
           gen_random_uuid() AS request
      FROM generate_series(1, p_count) i;
    INSERT INTO users (id, email, name, role)
    SELECT customer, customer || '@bench.test', 'Clara Customer', 'customer' FROM wanted;
    INSERT INTO customers (id) SELECT customer FROM wanted;
    INSERT INTO sessions (id, customer_user_id, type, status, plan, version, created_at)
    SELECT session, customer, 'chat', 'pending', 'free', 2, v_now FROM wanted;
    INSERT INTO session_requests (id, session_id, offer_id, customer_id, session_type, plan_code,
                                  routing_type, preferred_workshop_id, preferred_mechanic_id, status,
                                  stage, version, message, created_at, opens_at, stage_ends_at,
                                  expires_at, due_at)
    SELECT request, session, gen_random_uuid(), customer, 'chat', 'free',
           CASE WHEN named THEN 'priority_broadcast' ELSE 'workshop_only' END, m.workshop_id, m.id,
           'pending', CASE WHEN named THEN 'priority' ELSE 'open' END, 2, 'Asking.', v_now, v_now,
           CASE WHEN named THEN v_now + interval '1 h' END, v_now + interval '2 h',
           v_now + interval '1 h' + i * interval '1 ms'
      FROM wanted;
    INSERT INTO session_assignments (offer_id, request_id, session_id, generation, status, offered_at)
    SELECT offer_id, id, session_id, 1, 'queued', v_now FROM session_requests JOIN wanted ON request = id;
END $$;
