"""A real booking decided again from its record: `dispatch replay REQUEST` (R11a).

One job: read the record of one request, hand it to the pure core, and tell what came out. Reads
in one transaction, so that a booking that lives on is seen at one moment. Imports `core`,
`database`, `queries`, `hints` and `plain`. Raises `NotFound`, `Unavailable`, and `Conflict` with
the code `not_recorded` for a booking whose record has a hole.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from dispatch import queries
from dispatch.config import Config
from dispatch.core import replay as core
from dispatch.core.types import Booking, Event, Log, Policy
from dispatch.database import Connection, Pool, close_pool, open_pool, unavailable_when_lost
from dispatch.errors import Conflict, NotFound
from dispatch.hints import Entry
from dispatch.plain import plain

_SQL: Final = queries.load("replay")
_ENTRY: Final = queries.load("bookings")["entry"]

PROGRESS_EVERY: Final = 1000

_decode_entry: Final = msgspec.json.Decoder(Entry).decode
_decode_event: Final[Any] = msgspec.json.Decoder(Event).decode
_decode_policy: Final = msgspec.json.Decoder(Policy).decode
_decode_lines: Final = msgspec.json.Decoder(tuple[Log, ...]).decode


async def record_of(pool: Pool, request_id: UUID) -> core.Record:
    """What is on record about a request, as of one moment."""
    async with (
        unavailable_when_lost(),
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        return await read_record(connection, request_id)


async def read_record(connection: Connection, request_id: UUID) -> core.Record:
    """The same inside the caller's transaction, or of a booking that nobody changes."""
    document = await connection.fetchval(_ENTRY, request_id)
    if document is None:
        raise NotFound("no such request")
    created = await connection.fetchrow(_SQL["created"], request_id)
    rounds = await connection.fetch(_SQL["rounds"], request_id)
    steps = await connection.fetch(_SQL["steps"], request_id)
    if created is None:
        raise Conflict("not_recorded", "there is no record of how this booking was made")
    return core.Record(
        now=_decode_entry(document).booking,
        first_expires_at=created["expires_at"],
        first_message=created["message"],
        offer_ids={row["generation"]: row["offer_id"] for row in rounds},
        waiver_signed_at=await connection.fetchval(_SQL["waiver"], request_id),
        steps=[_step(row) for row in steps],
    )


def _step(row: asyncpg.Record) -> core.Step:
    if row["event"] is None or row["policy"] is None:
        raise Conflict("not_recorded", f"version {row['version']} has no event on record")
    return core.Step(
        version=row["version"],
        at=row["at"],
        event=_decode_event(row["event"]),
        policy=_decode_policy(row["policy"]),
        lines=_decode_lines(row["lines"]),
    )


async def replay(config: Config, request_id: UUID) -> tuple[str, bool]:
    """The replay as text for the command line, and whether everything came out the same."""
    pool = await open_pool(config.database_url, size=1)
    try:
        record = await record_of(pool, request_id)
    finally:
        await close_pool(pool)
    replayed = core.replay(record)
    return as_text(record, replayed), not replayed.differences


async def replay_all(config: Config, say: Callable[[str], None]) -> bool:
    """Replays every request on record; says what differs and how many did. Whether none did."""
    pool = await open_pool(config.database_url, size=1)
    same = changes = 0
    try:
        async with unavailable_when_lost():
            ids = [row[0] for row in await pool.fetch(_SQL["requests"])]
        for number, request_id in enumerate(ids, start=1):
            try:
                record = await record_of(pool, request_id)
            except Conflict as hole:
                say(f"request {request_id}: {hole.message}")
                continue
            replayed = core.replay(record)
            changes += len(replayed.bookings) - 1
            same += not replayed.differences
            if replayed.differences:
                say(as_text(record, replayed))
            if number % PROGRESS_EVERY == 0:
                say(f"{number} of {len(ids)} …")
    finally:
        await close_pool(pool)
    say(f"{same} of {len(ids)} requests are the same, {changes} changes decided again")
    return same == len(ids)


def as_text(record: core.Record, replayed: core.Replay) -> str:
    """One line a step, then what differs."""
    first, *decided = replayed.bookings
    lines = [
        f"request {first.request_id}  ({first.routing.value})",
        _line(first.created_at, first, "created"),
    ]
    lines += [
        _line(step.at, booking, type(step.event).__name__)
        for step, booking in zip(record.steps, decided, strict=False)
    ]
    if not replayed.differences:
        return "\n".join([*lines, f"the same: {len(decided)} changes decided again"])
    lines += [
        f"DIFFERENT at version {each.version}: {each.what}\n"
        f"  recorded {plain(str(each.recorded))}\n  decided  {plain(str(each.decided))}"
        for each in replayed.differences
    ]
    return "\n".join(lines)


def _line(at: datetime, booking: Booking, what: str) -> str:
    stage = f"/{booking.stage.value}" if booking.stage else ""
    state = f"{booking.session_status.value}{stage}"
    clock = at.strftime("%H:%M:%S.%f")[:-3]
    return f"  {clock}  v{booking.version:<3} g{booking.generation}  {what:<15} → {state}"
