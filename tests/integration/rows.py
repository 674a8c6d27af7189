"""People and bookings as rows, and one change of a booking as the dispatcher makes it.

For tests of the SQL: each function works on the connection it is given, in whatever transaction
that is in. Names of people do not matter here, so they have none worth reading.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
from msgspec.structs import replace

from dispatch import queries
from dispatch.changes import Change, change_of
from dispatch.core import messages
from dispatch.core.lifecycle import decide, due_at
from dispatch.core.types import (
    Booking,
    Candidate,
    Decision,
    Due,
    Event,
    Open,
    Policy,
)
from dispatch.database import Connection, Pool
from dispatch.hints import Entry
from dispatch.store import Locked, Store, Verdict, policy_row
from tests.support import WAIT_SECONDS

POLICY: Final = Policy()
SQL: Final = queries.load("bookings")

_decode_entry: Final = msgspec.json.Decoder(Entry).decode


# --- people ---------------------------------------------------------------------------------------


async def add_user(connection: Connection, role: str) -> UUID:
    user_id: UUID = await connection.fetchval(
        "INSERT INTO users (email, name, role) VALUES ($1, 'Kim Doe', $2) RETURNING id",
        f"{uuid4()}@example.com",
        role,
    )
    return user_id


async def add_customer(connection: Connection) -> UUID:
    user_id = await add_user(connection, "customer")
    await connection.execute("INSERT INTO customers (id) VALUES ($1)", user_id)
    return user_id


async def add_workshop(connection: Connection) -> UUID:
    workshop_id: UUID = await connection.fetchval(
        "INSERT INTO organizations (name, email, status) VALUES ('Garage', $1, 'active') "
        "RETURNING id",
        f"{uuid4()}@example.com",
    )
    return workshop_id


async def add_mechanic(connection: Connection, workshop_id: UUID | None = None) -> UUID:
    """An approved and available one, of this workshop or independent."""
    user_id = await add_user(connection, "mechanic")
    await connection.execute(
        "INSERT INTO mechanics (id, application_status, workshop_id, account_type) "
        "VALUES ($1, 'approved', $2, $3)",
        user_id,
        workshop_id,
        "independent" if workshop_id is None else "workshop",
    )
    return user_id


async def candidate(connection: Connection, mechanic_id: UUID) -> Candidate:
    """What routing knows about a mechanic now."""
    row = await connection.fetchrow("SELECT * FROM candidates WHERE mechanic_id = $1", mechanic_id)
    assert row is not None
    return Candidate(**{name: row[name] for name in Candidate.__struct_fields__})


# --- bookings -------------------------------------------------------------------------------------


async def add_intake(connection: Connection, customer_id: UUID, **wish: Any) -> UUID:
    """What a customer asks for; `wish` names columns of `intakes`. Broadcast unless it says."""
    columns = {"customer_id": customer_id, "plan_code": "chat10"} | wish
    places = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
    intake_id: UUID = await connection.fetchval(
        f"INSERT INTO intakes ({', '.join(columns)}) VALUES ({places}) RETURNING id",
        *columns.values(),
    )
    return intake_id


async def create(
    connection: Connection, intake_id: UUID, stripe_session_id: str | None = None
) -> Booking:
    """The one factory, called as the server calls it; the booking that it made."""
    row = await connection.fetchrow(
        "SELECT * FROM create_session($1, $2, $3, $4)",
        intake_id,
        stripe_session_id,
        timedelta(seconds=POLICY.request_ttl_seconds),
        messages.CREATED,
    )
    assert row is not None
    return await read(connection, row["request_id"])


async def book(connection: Connection, **wish: Any) -> Booking:
    """A new customer's new booking, with a signed waiver; nobody has looked at it yet."""
    customer_id = await add_customer(connection)
    intake_id = await add_intake(connection, customer_id, **wish)
    await connection.execute(
        "INSERT INTO waivers (intake_id, user_id, name, version, address) "
        "VALUES ($1, $2, 'Kim', '1', '192.0.2.1')",
        intake_id,
        customer_id,
    )
    return await create(connection, intake_id)


async def book_and_open(connection: Connection, store: Store, **wish: Any) -> Booking:
    """The same, offered in its first stage: the favourite and her workshop are there."""
    booking = await book(connection, **wish)
    favourite_id = booking.preferred_mechanic_id
    favourite = await candidate(connection, favourite_id) if favourite_id else None
    event = Open(favourite=favourite, preferred_online=True)
    return (await change(connection, store, booking.request_id, event)).booking


async def occupy(connection: Connection, mechanic_id: UUID, mechanic_slot: int) -> None:
    """A live session of another customer takes this slot of the mechanic's capacity."""
    await connection.execute(
        "INSERT INTO sessions (customer_user_id, mechanic_id, mechanic_slot, type, status, plan) "
        "VALUES ($1, $2, $3, 'chat', 'accepted', 'chat10')",
        await add_customer(connection),
        mechanic_id,
        mechanic_slot,
    )


async def save(connection: Connection, booking: Booking) -> None:
    """Over the booking of the version before."""
    change = Change(
        booking=booking,
        due_at=due_at(booking, POLICY),
        at=booking.created_at,
        event=Due(),
        policy_id=await keep(connection, POLICY),
        lines=[],
        round_offer_id=booking.offer_id,
        round_generation=booking.generation,
        round_stage=booking.stage,
    )
    await connection.execute(SQL["write_change"], change.document())


async def read_entry(connection: Connection, request_id: UUID) -> Entry:
    return _decode_entry(await connection.fetchval(SQL["entry"], request_id))


async def read(connection: Connection, request_id: UUID) -> Booking:
    """The booking as nodes read it."""
    return (await read_entry(connection, request_id)).booking


async def stored_due_at(connection: Connection, request_id: UUID) -> datetime | None:
    due: datetime | None = await connection.fetchval(
        "SELECT due_at FROM session_requests WHERE id = $1", request_id
    )
    return due


# --- what happens to them -------------------------------------------------------------------------


@asynccontextmanager
async def rolled_back(connection: Connection) -> AsyncIterator[None]:
    """A transaction of which nothing stays, whatever happens in it."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def shift_clock(connection: Connection, seconds: float) -> None:
    """Until its transaction ends, this connection's dispatch_now() is so far ahead."""
    await connection.execute(
        "SELECT set_config('dispatch.clock_offset', $1, true)", f"{seconds} seconds"
    )


async def accept(
    connection: Connection,
    offer_id: UUID,
    mechanic_id: UUID,
    accept_id: UUID | None = None,
    *,
    policy: Policy = POLICY,
    assigned_by: UUID | None = None,
) -> Verdict:
    """What the judge says; a new `accept_id` unless one is given."""
    by = () if assigned_by is None else (assigned_by,)
    row = await connection.fetchrow(
        SQL["assign" if by else "accept_offer"],
        offer_id,
        mechanic_id,
        accept_id or uuid4(),
        policy.mechanic_capacity,
        timedelta(seconds=policy.join_seconds),
        messages.ACCEPTED,
        await keep(connection, policy),
        *by,
    )
    assert row is not None
    return Verdict(
        won=row["verdict"] == "won",
        reason=row["reason"],
        request_id=row["request_id"],
        session_id=row["session_id"],
        entry=_decode_entry(row["entry"]) if row["entry"] else None,
    )


async def change(
    connection: Connection,
    store: Store,
    request_id: UUID,
    event: Event,
    *,
    policy: Policy = POLICY,
) -> Decision:
    """Locks, decides, saves and performs; what was decided. Money is left where it is."""
    async with connection.transaction():
        row = await connection.fetchrow(SQL["lock_booking"], request_id)
        assert row is not None
        locked = Locked(connection, _decode_entry(row["entry"]), row["now"])
        decision = decide(locked.entry.booking, event, locked.now, policy)
        before = locked.entry.booking
        if decision.booking is before:
            return decision
        policy_id = await keep(connection, policy)
        written = change_of(before, event, decision, locked.now, policy, policy_id, uuid4())
        await store.write(locked, written)
        return replace(decision, booking=written.booking)


async def keep(connection: Connection, policy: Policy) -> UUID:
    """The name under which a policy is kept."""
    policy_id, document = policy_row(policy)
    await connection.execute(SQL["keep_policy"], policy_id, document)
    return policy_id


# --- lock barriers --------------------------------------------------------------------------------


async def until_blocked(pool: Pool, count: int) -> None:
    """Returns when so many statements in this database wait for locks that others hold."""
    async with asyncio.timeout(WAIT_SECONDS), pool.acquire() as connection:
        while count != await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            pass
