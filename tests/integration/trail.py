"""Rows of the audit trail and of verdicts: who was sent a booking, who saw it, who lost it."""

from collections.abc import Mapping
from datetime import datetime
from itertools import count
from typing import Final
from uuid import UUID, uuid4

from dispatch.core.types import Booking
from dispatch.database import Connection

NODE: Final = uuid4()
_batches = count(1)


async def decided(
    connection: Connection,
    booking: Booking,
    at: datetime,
    *,
    sent: Mapping[UUID, int] | None = None,
    seen: Mapping[UUID, int] | None = None,
    excluded: Mapping[UUID, str] | None = None,
    lost: Mapping[UUID, int] | None = None,
    stage: str = "open",
    generation: int = 1,
    node_id: UUID = NODE,
) -> None:
    """One row of a node: whom it sent the booking, who saw it and whom it told by itself that
    somebody else has it, so many ms after `at`."""
    sent, seen, excluded, lost = sent or {}, seen or {}, excluded or {}, lost or {}
    await connection.execute(
        "INSERT INTO routing_decisions (request_id, generation, stage, node_id, batch, strategy,"
        " at, others, mechanic_ids, scores, sent_ms, excluded_ids, excluded_reasons,"
        " seen_mechanic_ids, seen_ms, lost_mechanic_ids, lost_ms)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        booking.request_id,
        generation,
        stage,
        node_id,
        next(_batches),
        booking.routing.value,
        at,
        len(sent) + len(excluded),
        list(sent),
        [50] * len(sent),
        list(sent.values()),
        list(excluded),
        list(excluded.values()),
        list(seen),
        list(seen.values()),
        list(lost),
        list(lost.values()),
    )


async def judged(
    connection: Connection,
    booking: Booking,
    mechanic_id: UUID,
    at: datetime,
    *,
    lost: str | None = None,
    generation: int = 1,
    offer_id: UUID | None = None,
) -> None:
    """A verdict on a mechanic's accept: won, or lost for a reason."""
    await connection.execute(
        "INSERT INTO accepts (mechanic_id, accept_id, offer_id, request_id, session_id, generation,"
        " verdict, reason, at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        mechanic_id,
        uuid4(),
        offer_id or booking.offer_id,
        booking.request_id,
        booking.session_id,
        generation,
        "won" if lost is None else "lost",
        lost,
        at,
    )


async def declined(
    connection: Connection,
    booking: Booking,
    mechanic_id: UUID,
    at: datetime,
    *,
    generation: int = 1,
) -> None:
    """She did not want the round."""
    await connection.execute(
        "INSERT INTO offers (request_id, generation, mechanic_id, status, stage, answered_at)"
        " VALUES ($1, $2, $3, 'declined', 'open', $4)",
        booking.request_id,
        generation,
        mechanic_id,
        at,
    )
