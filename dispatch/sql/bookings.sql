-- Reading and changing bookings. An entry is the JSON of hints.Entry.

-- name: entry
-- One booking.
SELECT entry FROM booking_entries WHERE request_id = $1

-- name: entry_of_session
-- One booking, by its session.
SELECT entry FROM booking_entries WHERE session_id = $1

-- name: entry_of_round
-- The booking whose present or past round this is.
SELECT e.entry FROM booking_entries e JOIN session_assignments a USING (request_id)
 WHERE a.offer_id = $1

-- name: entries
-- Some bookings.
SELECT entry FROM booking_entries WHERE request_id = ANY ($1)

-- name: live_versions
-- What a board compares itself with.
SELECT id, version FROM session_requests WHERE status IN ('scheduled', 'pending', 'accepted')

-- name: arrivals
-- People who connect, at one moment. A row for each of them: whether her tokens count and, of a
-- mechanic, what routing must know. Then a row with an entry and how much was said in its session, and
-- nothing else, for each booking they have going on: the live ones, and a customer's latest one.
SELECT u.id, u.role, u.token_epoch, u.disabled_at IS NOT NULL AS disabled,
       c.mechanic_id, c.workshop_id, c.approved, c.available, c.is_specialist, c.live_sessions,
       c.changed_at, NULL::json AS entry, NULL::uuid AS session_id, NULL::int AS said
  FROM users u LEFT JOIN candidates c ON c.mechanic_id = u.id
 WHERE u.id = ANY ($1::uuid[])
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, e.entry, e.session_id,
       (SELECT max(m.seq) FROM chat_messages m WHERE m.session_id = e.session_id)
  FROM booking_entries e
 WHERE e.status IN ('scheduled', 'pending', 'accepted')
   AND (e.customer_id = ANY ($1) OR e.mechanic_id = ANY ($1))
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, e.entry, NULL, NULL
  FROM unnest($1::uuid[]) AS u (id)
  CROSS JOIN LATERAL (SELECT r.id, r.status FROM session_requests r WHERE r.customer_id = u.id
                       ORDER BY r.created_at DESC LIMIT 1) latest
  JOIN booking_entries e ON e.request_id = latest.id
 WHERE latest.status NOT IN ('scheduled', 'pending', 'accepted')

-- name: candidates
-- What routing must know about some mechanics.
SELECT * FROM candidates WHERE mechanic_id = ANY ($1)

-- name: live_sessions_of
-- The sessions that a mechanic has accepted and that are not over.
SELECT id FROM sessions WHERE mechanic_id = $1 AND status IN ('accepted', 'active')

-- name: candidates_changed
-- Mechanics whose facts changed since; asked with a margin for transactions that commit late.
SELECT * FROM candidates WHERE changed_at > $1

-- name: workshop_people
-- The workshop of a member, and its mechanics.
SELECT m.id, u.name, m.available
  FROM organization_members o
  JOIN mechanics m ON m.workshop_id = o.organization_id AND m.deleted_at IS NULL
  JOIN users u ON u.id = m.id
 WHERE o.user_id = $1
 ORDER BY u.name

-- name: sessions_of_workshop
-- The live sessions that a member's workshop serves.
SELECT e.entry FROM organization_members o
  JOIN session_requests r ON r.workshop_id = o.organization_id AND r.status = 'accepted'
  JOIN booking_entries e ON e.request_id = r.id
 WHERE o.user_id = $1

-- name: nodes
-- Who is alive.
SELECT node_id, clients FROM nodes WHERE lease_until > clock_timestamp() ORDER BY started_at

-- name: overdue
-- Requests of which a deadline passed a while ago, the most overdue first. What has only just passed
-- is left to the timer of the node that armed it, and what another node works on is left to it.
-- The time is asked for once, so that the index ends the search: it costs what is due, not what pends.
SELECT id FROM session_requests WHERE due_at <= (SELECT dispatch_now()) - $2::interval
 ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED

-- name: lost_favourites
-- Requests that wait for a favourite who cannot take them any more (F4).
SELECT r.id FROM session_requests r LEFT JOIN candidates c ON c.mechanic_id = r.preferred_mechanic_id
 WHERE r.stage = 'priority'
   AND (c.mechanic_id IS NULL OR NOT c.approved OR NOT c.available OR c.live_sessions >= $1
        OR (r.is_specialist AND NOT c.is_specialist))

-- name: lock_booking
-- Locks request and session; the booking after the lock, and the time that judges it.
SELECT entry, now FROM lock_booking($1)

-- name: write_change
-- Writes one change over the locked booking.
SELECT write_change($1)

-- name: customer_is_busy
-- Whether another session of this customer is live.
SELECT EXISTS (SELECT 1 FROM sessions WHERE customer_user_id = $1 AND id <> $2
                AND status IN ('pending', 'accepted', 'active'))

-- name: keep_policy
-- A policy under which a node decides.
INSERT INTO policies (id, policy) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING

-- name: accept_offer
-- The judge.
SELECT verdict, reason, request_id, session_id, entry FROM accept_offer($1, $2, $3, $4, $5, $6, $7)

-- name: assign
-- The judge, for an admin who gives the round to a mechanic.
SELECT verdict, reason, request_id, session_id, entry FROM accept_offer($1, $2, $3, $4, $5, $6, $7, $8)

-- name: set_available
-- A mechanic says whether she wants work.
UPDATE mechanics SET available = $2 WHERE id = $1

-- name: write_decision
-- One batch of the audit trail; again where the reply to its commit was lost.
INSERT INTO routing_decisions (request_id, generation, stage, node_id, batch, strategy, at, others,
                               mechanic_ids, scores, sent_ms, excluded_ids, excluded_reasons,
                               seen_mechanic_ids, seen_ms, lost_mechanic_ids, lost_ms)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
ON CONFLICT ON CONSTRAINT routing_decisions_pkey DO NOTHING

-- name: write_receipt
-- When a booking was heard of, and committed; the first word counts.
INSERT INTO request_receipts (request_id, node_id, received_at, committed_at) VALUES ($1, $2, $3, $4)
ON CONFLICT (request_id) DO NOTHING
