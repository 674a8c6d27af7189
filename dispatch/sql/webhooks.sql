-- The ledger of Stripe's webhooks.

-- name: insert_event
-- Whether this webhook is new; who delivers it a second time waits here for the first.
INSERT INTO stripe_events (id, type, outcome) VALUES ($1, $2, $3)
ON CONFLICT (id) DO NOTHING RETURNING true

-- name: note_outcome
-- What became of a webhook.
UPDATE stripe_events SET outcome = $2 WHERE id = $1

-- name: event_is_known
-- Whether a webhook was here before.
SELECT EXISTS (SELECT 1 FROM stripe_events WHERE id = $1)
