"""Lists that people look at: a mechanic's sessions, every booking for operators, what to book.

One job: read a page of each. A mechanic's own sessions and the bookings are read from Postgres;
what a mechanic may take is what this node's board would offer her now, in the same order. Imports
`board`, `core`, `frames`, `store`, `protocol`, `database` and `queries`. It fails with `NotFound`
and `Unavailable`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from dispatch import frames, queries
from dispatch.board import Board
from dispatch.core import routing
from dispatch.core.lifecycle import LIVE
from dispatch.core.types import RequestStatus, Role
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import NotFound
from dispatch.hints import Entry
from dispatch.protocol import BoardRequest, Offer, SessionState, timestamp
from dispatch.store import Store

_SQL: Final = queries.load("overviews")
_decode_entry: Final = msgspec.json.Decoder(Entry).decode


class ActiveSession(SessionState, frozen=True, kw_only=True, tag="session.status"):
    """The frame `session.status` of a live session, with whom it is for and what she asked for."""

    request_id: UUID
    session_type: str
    plan_code: str
    minutes: int
    urgent: bool
    customer_name: str
    vehicle: str | None = None
    concern: str | None = None


class MechanicSessions(Struct, frozen=True, kw_only=True):
    """What a mechanic is busy with, and a page of what she may take now; `total` of the latter."""

    active: list[ActiveSession]
    available: list[Offer]
    total: int
    limit: int
    offset: int


class Requests(Struct, frozen=True, kw_only=True):
    """A page of bookings, the oldest first."""

    requests: list[BoardRequest]
    total: int
    limit: int
    offset: int


class Slot(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A time to book for; of one workshop, or of all."""

    slot_id: UUID
    starts_at: str
    ends_at: str
    capacity: int
    seats_left: int
    workshop_id: UUID | None = None
    workshop_name: str | None = None


class Slots(Struct, frozen=True, kw_only=True):
    """A page of slots that can be booked, the next first."""

    slots: list[Slot]
    total: int
    limit: int
    offset: int


class Plan(Struct, frozen=True, kw_only=True):
    """What can be booked: so much for so many minutes."""

    plan: str
    name: str
    type: str
    price_cents: int
    currency: str
    minutes: int


class Plans(Struct, frozen=True):
    """All that can be booked, the cheapest first."""

    plans: list[Plan]


async def of_mechanic(
    store: Store,
    board: Board,
    mechanic_id: UUID,
    now: datetime,
    *,
    capacity: int,
    limit: int,
    offset: int,
) -> MechanicSessions:
    """Her live sessions, and what she may take: nothing while she is busy or not available."""
    candidate = await store.candidate(mechanic_id)
    if candidate is None:
        raise NotFound("no such mechanic")
    async with unavailable_when_lost():
        rows = await store.pool.fetch(_SQL["of_mechanic"], mechanic_id)
    open_to_her = [
        entry
        for entry in board.open_entries()
        if routing.exclusion(entry.booking, candidate, capacity) is None
    ]
    open_to_her.sort(key=lambda entry: routing.rank(entry.booking, candidate))
    return MechanicSessions(
        active=[_active(_decode_entry(row["entry"]), now) for row in rows],
        available=[
            frames.offer(entry, routing.terms(entry.booking, candidate), now)
            for entry in open_to_her[offset : offset + limit]
        ],
        total=len(open_to_her),
        limit=limit,
        offset=offset,
    )


def _active(entry: Entry, now: datetime) -> ActiveSession:
    booking, display = entry.booking, entry.display
    return ActiveSession(
        **asdict(frames.session_state(entry, Role.MECHANIC, now)),
        request_id=booking.request_id,
        session_type=booking.session_type,
        plan_code=booking.plan_code,
        minutes=booking.minutes,
        urgent=booking.urgent,
        customer_name=display.customer_name,
        vehicle=display.vehicle,
        concern=display.concern,
    )


async def requests(
    pool: Pool,
    seen: Callable[[Entry], BoardRequest],
    status: RequestStatus | None,
    *,
    limit: int,
    offset: int,
) -> Requests:
    """Every booking in this state, or else that lives; `seen` says how an operator sees one."""
    wanted = [each.value for each in (LIVE if status is None else (status,))]
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["requests"], wanted, limit, offset)
        total = await pool.fetchval(_SQL["count_requests"], wanted)
    return Requests(
        requests=[seen(_decode_entry(row["entry"])) for row in rows],
        total=total,
        limit=limit,
        offset=offset,
    )


async def slots(pool: Pool, workshop_id: UUID | None, *, limit: int, offset: int) -> Slots:
    """Those of one workshop, or all."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["slots"], workshop_id, limit, offset)
        total = await pool.fetchval(_SQL["count_slots"], workshop_id)
    found = [
        Slot(
            slot_id=row["slot_id"],
            starts_at=timestamp(row["starts_at"]),
            ends_at=timestamp(row["ends_at"]),
            capacity=row["capacity"],
            seats_left=row["seats_left"],
            workshop_id=row["workshop_id"],
            workshop_name=row["workshop_name"],
        )
        for row in rows
    ]
    return Slots(slots=found, total=total, limit=limit, offset=offset)


async def plans(pool: Pool) -> Plans:
    """Those that can be booked now."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["plans"])
    return Plans([Plan(**row) for row in rows])
