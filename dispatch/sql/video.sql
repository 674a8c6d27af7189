-- Rooms for video.

-- name: queue_close
-- A room is to be closed, once.
INSERT INTO outbox (kind, idempotency_key, payload, next_try_at)
VALUES ('room', 'room-' || $1::text, jsonb_build_object('room', $1::text), dispatch_now())
ON CONFLICT (idempotency_key) DO NOTHING
