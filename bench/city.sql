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
