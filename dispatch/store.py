"""Bookings in Postgres: one method a query, typed values on both sides.

One job: read and write rows. It decides nothing; whoever calls does. Imports the core's types,
`auth` (what an account is), `changes`, `hints`, `database` and `queries`. Every method raises
`Unavailable` when Postgres is away, and changes nothing then.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

import asyncpg
import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from dispatch import queries
from dispatch.auth import QUERY_SECONDS, Account
from dispatch.changes import Change
from dispatch.core.types import Candidate, Policy
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.hints import Entry
from dispatch.protocol import LostReason

_SQL: Final = queries.load("bookings")
_decode_entry: Final = msgspec.json.Decoder(Entry).decode
_encode: Final = msgspec.json.Encoder().encode

_POLICIES: Final = UUID("5e0a1d3c-6f0f-4d0a-9a4e-3f2f0a7d9b61")  # the namespace of their names

# The sweep is for what another node left due; sooner it would only race the timers.
LEFT_TO_TIMERS: Final = timedelta(seconds=0.5)


PART_CANDIDATES: Final = 1000
PART_ROWS: Final = 100


class Verdict(Struct, frozen=True):
    """What the judge said. `entry` comes with a fresh win only."""

    won: bool
    reason: LostReason | None
    request_id: UUID | None
    session_id: UUID | None
    entry: Entry | None


class Locked(Struct, frozen=True):
    """A booking whose rows this transaction holds, and the time that judges its deadlines."""

    connection: Connection
    entry: Entry
    now: datetime


class Facts(Struct, frozen=True):
    """A candidate, and when her facts last changed."""

    candidate: Candidate
    changed_at: datetime


class Arrivals(Struct, frozen=True):
    """What is known of people who connect, read at one moment. `said`: how many messages there are
    in the sessions of `entries`."""

    accounts: dict[UUID, Account]
    facts: dict[UUID, Facts]
    entries: list[Entry]
    said: dict[UUID, int]


class DecisionBatch(Struct, kw_only=True):
    """One row of the audit trail; arrays run in parallel, `…_ms` are milliseconds after `at`.

    `others` are connected mechanics, not named, whom the strategy itself ruled out.
    """

    request_id: UUID
    generation: int
    stage: str
    node_id: UUID
    batch: int
    strategy: str
    at: datetime
    others: int
    mechanic_ids: list[UUID]
    scores: list[int]
    sent_ms: list[int]
    excluded_ids: list[UUID]
    excluded_reasons: list[str]
    seen_mechanic_ids: list[UUID]
    seen_ms: list[int]
    lost_mechanic_ids: list[UUID]
    lost_ms: list[int]

    def size(self) -> int:
        """How many times it names a mechanic."""
        named = (self.mechanic_ids, self.excluded_ids, self.seen_mechanic_ids)
        return sum(map(len, named)) + len(self.lost_mechanic_ids)


class Receipt(Struct, frozen=True):
    """When a node had heard of a booking, and when its transaction was committed."""

    request_id: UUID
    node_id: UUID
    received_at: datetime
    committed_at: datetime


class Store:
    """The queries of bookings over the pool of this node."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    # --- reading

    async def entry(self, request_id: UUID) -> Entry | None:
        """The booking of a request, or None."""
        return _entry(await self._value("entry", request_id))

    async def entry_of_session(self, session_id: UUID) -> Entry | None:
        """The booking of a session, or None."""
        return _entry(await self._value("entry_of_session", session_id))

    async def entry_of_round(self, offer_id: UUID) -> Entry | None:
        """The booking that this round, present or past, belongs to, or None."""
        return _entry(await self._value("entry_of_round", offer_id))

    async def entries(self, request_ids: Sequence[UUID]) -> list[Entry]:
        """The bookings of these requests; unknown ones are left out."""
        return [_decode_entry(row[0]) for row in await self._rows("entries", request_ids)]

    async def live_versions(self) -> dict[UUID, int]:
        """The version of every booking that is scheduled, pending or accepted."""
        return {row[0]: row[1] for row in await self._rows("live_versions")}

    async def arrivals(self, user_ids: Sequence[UUID]) -> Arrivals:
        """What people who connect now have going on, and who they are."""
        # A frozen server must not hold up everybody who comes after.
        async with unavailable_when_lost(), asyncio.timeout(QUERY_SECONDS):
            rows = await self.pool.fetch(_SQL["arrivals"], user_ids)
        people = [row for row in rows if row["id"] is not None]
        return Arrivals(
            accounts={
                row["id"]: Account(row["role"], row["token_epoch"], row["disabled"])
                for row in people
            },
            facts={row["id"]: _facts(row) for row in people if row["mechanic_id"] is not None},
            entries=[_decode_entry(row["entry"]) for row in rows if row["id"] is None],
            said={row["session_id"]: row["said"] for row in rows if row["said"] is not None},
        )

    async def candidate(self, mechanic_id: UUID) -> Candidate | None:
        """What routing must know about a mechanic, or None when there is no such mechanic."""
        facts = await self.facts(mechanic_id)
        return None if facts is None else facts.candidate

    async def facts(self, mechanic_id: UUID) -> Facts | None:
        """The same, and when it last changed."""
        rows = await self._rows("candidates", [mechanic_id])
        return _facts(rows[0]) if rows else None

    async def live_sessions_of(self, mechanic_id: UUID) -> list[UUID]:
        """The sessions that she has accepted and that are not over."""
        return [row[0] for row in await self._rows("live_sessions_of", mechanic_id)]

    async def facts_changed_since(self, since: datetime) -> list[Facts]:
        """Mechanics whose facts changed after `since`, by the server's own clock."""
        return [_facts(row) for row in await self._rows("candidates_changed", since)]

    async def workshop_people(self, member_id: UUID) -> list[asyncpg.Record]:
        """`id, name, available` of the mechanics of a member's workshop."""
        return await self._rows("workshop_people", member_id)

    async def sessions_of_workshop(self, member_id: UUID) -> list[Entry]:
        """The live bookings that a member's workshop serves."""
        rows = await self._rows("sessions_of_workshop", member_id)
        return [_decode_entry(row[0]) for row in rows]

    async def nodes(self) -> list[asyncpg.Record]:
        """`node_id, clients` of the nodes with a live lease."""
        return await self._rows("nodes")

    async def overdue(self, limit: int, capacity: int) -> list[UUID]:
        """Requests of which a deadline was missed, or whose favourite cannot take them any more."""
        due = await self._rows("overdue", limit, LEFT_TO_TIMERS)
        lost = await self._rows("lost_favourites", capacity)
        return [row[0] for row in due + lost]

    # --- changing

    @asynccontextmanager
    async def lock(self, request_id: UUID) -> AsyncIterator[Locked | None]:
        """A transaction that holds the booking's rows; None when there is no such request.

        Leaving the block normally commits; an exception changes nothing.
        """
        async with transaction(self.pool) as connection:
            row = await connection.fetchrow(_SQL["lock_booking"], request_id)
            yield Locked(connection, _decode_entry(row[0]), row[1]) if row is not None else None

    async def write(self, locked: Locked, change: Change) -> None:
        """Writes a change, which makes the next version, over the locked booking."""
        await locked.connection.execute(_SQL["write_change"], change.document())

    async def customer_is_busy(self, locked: Locked) -> bool:
        """Whether another session of the booking's customer is live."""
        booking = locked.entry.booking
        busy: bool = await locked.connection.fetchval(
            _SQL["customer_is_busy"], booking.customer_id, booking.session_id
        )
        return busy

    async def accept(
        self,
        offer_id: UUID,
        mechanic_id: UUID,
        accept_id: UUID,
        *,
        capacity: int,
        join_seconds: float,
        message: str,
        policy_id: UUID,
        assigned_by: UUID | None = None,
    ) -> Verdict:
        """Asks the judge, once: one round trip, one transaction (O1, O2).

        `assigned_by`: the admin who gives it to her.
        """
        by = () if assigned_by is None else (assigned_by,)
        async with unavailable_when_lost():
            row = await self.pool.fetchrow(
                _SQL["assign" if by else "accept_offer"],
                offer_id,
                mechanic_id,
                accept_id,
                capacity,
                timedelta(seconds=join_seconds),
                message,
                policy_id,
                *by,
            )
        assert row is not None
        return Verdict(
            won=row["verdict"] == "won",
            reason=row["reason"],
            request_id=row["request_id"],
            session_id=row["session_id"],
            entry=_entry(row["entry"]),
        )

    async def set_available(self, mechanic_id: UUID, available: bool) -> Facts | None:
        """Stores what a mechanic says of herself; her facts after it."""
        async with unavailable_when_lost(), self.pool.acquire() as connection:
            await connection.execute(_SQL["set_available"], mechanic_id, available)
            rows = await connection.fetch(_SQL["candidates"], [mechanic_id])
        return _facts(rows[0]) if rows else None

    async def keep_policy(self, policy: Policy) -> UUID:
        """The name of this policy, by which what is decided under it is recorded."""
        policy_id, document = policy_row(policy)
        async with unavailable_when_lost():
            await self.pool.execute(_SQL["keep_policy"], policy_id, document)
        return policy_id

    async def write_audit(
        self, batches: Iterable[DecisionBatch], receipts: Iterable[Receipt]
    ) -> None:
        """Adds rows to the audit trail, all or none.

        A few at a time: encoding thousands of ids at once would hold the loop.
        """
        async with transaction(self.pool) as connection:
            await connection.executemany(_SQL["write_receipt"], [astuple(row) for row in receipts])
            for rows in _parts(batches):
                await connection.executemany(_SQL["write_decision"], [astuple(row) for row in rows])

    # --- one place for the loss of Postgres

    async def _rows(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        async with unavailable_when_lost():
            return await self.pool.fetch(_SQL[name], *arguments)

    async def _value(self, name: str, *arguments: Any) -> Any:
        async with unavailable_when_lost():
            return await self.pool.fetchval(_SQL[name], *arguments)


def _parts(batches: Iterable[DecisionBatch]) -> Iterator[list[DecisionBatch]]:
    """The batches in groups that name a thousand mechanics or a little more."""
    part: list[DecisionBatch] = []
    for batch in batches:
        part.append(batch)
        if sum(each.size() for each in part) >= PART_CANDIDATES or len(part) >= PART_ROWS:
            yield part
            part = []
    if part:
        yield part


def policy_row(policy: Policy) -> tuple[UUID, str]:
    """A row of `policies`: the name follows from the content, the same on every node."""
    document = _encode(policy).decode()
    return uuid5(_POLICIES, document), document


def _entry(document: str | None) -> Entry | None:
    return None if document is None else _decode_entry(document)


def _facts(row: asyncpg.Record) -> Facts:
    candidate = Candidate(
        mechanic_id=row["mechanic_id"],
        workshop_id=row["workshop_id"],
        approved=row["approved"],
        available=row["available"],
        is_specialist=row["is_specialist"],
        live_sessions=row["live_sessions"],
    )
    return Facts(candidate, row["changed_at"])
