"""The rows of a booking: made by the one factory, locked, saved, and true to their constraints."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace

from dispatch.core.lifecycle import opening_is_due
from dispatch.core.types import (
    Booking,
    Cancel,
    Decision,
    Open,
    RequestStatus,
    Routing,
    SessionStatus,
    Stage,
    Widen,
)
from dispatch.database import Connection, Pool
from dispatch.store import Store
from tests.integration.rows import (
    POLICY,
    SQL,
    accept,
    add_customer,
    add_intake,
    add_mechanic,
    add_workshop,
    book,
    book_and_open,
    candidate,
    change,
    create,
    read,
    read_entry,
    save,
    shift_clock,
    stored_due_at,
    until_blocked,
)

# --- locking and saving ---------------------------------------------------------------------------


async def test_who_did_not_hold_the_lock_cannot_save(connection: Connection, store: Store) -> None:
    booking = await book_and_open(connection, store)

    for version in (booking.version, booking.version + 2):
        with pytest.raises(asyncpg.RaiseError, match=f"is not at version {version - 1}"):
            await save(connection, replace(booking, version=version))

    assert await read(connection, booking.request_id) == booking


async def test_a_request_that_does_not_exist_cannot_be_locked(store: Store) -> None:
    async with store.lock(uuid4()) as locked:
        assert locked is None


async def test_the_lock_gives_the_booking_and_the_time_that_judges_it(
    connection: Connection, store: Store
) -> None:
    booking = await book_and_open(connection, store)
    async with connection.transaction():
        await shift_clock(connection, 3600)
        row = await connection.fetchrow(SQL["lock_booking"], booking.request_id)
        assert row is not None
        ahead = row["now"] - await connection.fetchval("SELECT clock_timestamp()")

    assert msgspec.json.decode(row["entry"])["booking"]["request_id"] == str(booking.request_id)
    assert timedelta(minutes=59) < ahead <= timedelta(hours=1)


# --- the factory ----------------------------------------------------------------------------------


async def test_the_factory_writes_everything_that_a_booking_for_now_needs(
    connection: Connection,
) -> None:
    customer_id, workshop_id = await add_customer(connection), await add_workshop(connection)
    mechanic_id = await add_mechanic(connection)
    intake_id = await add_intake(
        connection,
        customer_id,
        plan_code="video15",
        vehicle="VW Polo 2019",
        concern="It rattles",
        urgent=True,
        is_specialist=True,
        routing_type="priority_broadcast",
        workshop_id=workshop_id,
        preferred_mechanic_id=mechanic_id,
        wait_for_preferred=True,
    )

    booking = await create(connection, intake_id, "cs_1")

    now = booking.created_at
    assert booking == Booking(
        request_id=booking.request_id,
        session_id=booking.session_id,
        customer_id=customer_id,
        offer_id=booking.offer_id,
        session_type="video",
        plan_code="video15",
        minutes=15,
        urgent=True,
        is_specialist=True,
        routing=Routing.PRIORITY,
        preferred_workshop_id=workshop_id,
        preferred_mechanic_id=mechanic_id,
        wait_for_preferred=True,
        waiver_signed=False,
        excluded=(),
        status=RequestStatus.PENDING,
        session_status=SessionStatus.PENDING,
        stage=None,
        generation=1,
        version=1,
        attempt=1,
        mechanic_id=None,
        accept_id=None,
        workshop_id=None,
        customer_joined_at=None,
        mechanic_joined_at=None,
        created_at=now,
        opens_at=now,
        slot_ends_at=None,
        expires_at=now + timedelta(hours=2),
        accepted_at=None,
        stage_ends_at=None,
        next_attempt_at=None,
        seen_at=None,
        priority_notified_at=None,
        fallback_broadcast_at=None,
        join_by=None,
        started_at=None,
        ends_at=None,
        warned_at=None,
        ended_by=None,
        message=booking.message,
    )
    entry = await read_entry(connection, booking.request_id)
    assert (entry.display.customer_name, entry.paid) == ("Kim", False)
    assert (entry.display.vehicle, entry.display.concern) == ("VW Polo 2019", "It rattles")
    assert await stored_due_at(connection, booking.request_id) == now
    assert opening_is_due(booking, now, POLICY)
    assert await rows_of(connection, booking) == {
        "sessions": [("video", "pending", "video15", intake_id, "cs_1", workshop_id, customer_id)],
        "session_participants": [(customer_id, "customer", None)],
        "session_assignments": [(booking.offer_id, booking.request_id, 1, "queued", None)],
        "session_events": [("created", customer_id)],
    }


async def rows_of(connection: Connection, booking: Booking) -> dict[str, list[tuple[Any, ...]]]:
    columns = {
        "sessions": "type, status, plan, intake_id, stripe_session_id, preferred_workshop_id, "
        "customer_user_id",
        "session_participants": "user_id, role, joined_at",
        "session_assignments": "offer_id, request_id, generation, status, outcome",
        "session_events": "type, user_id",
    }
    found = {}
    for table, names in columns.items():
        key = "id" if table == "sessions" else "session_id"
        rows = await connection.fetch(
            f"SELECT {names} FROM {table} WHERE {key} = $1", booking.session_id
        )
        found[table] = [tuple(row) for row in rows]
    return found


async def test_a_customer_s_second_live_session_leaves_nothing_behind(
    connection: Connection,
) -> None:
    booking = await book(connection)
    second = await add_intake(connection, booking.customer_id)

    with pytest.raises(asyncpg.UniqueViolationError, match="sessions_one_live_per_customer"):
        await create(connection, second)

    for table in ("sessions", "session_requests", "session_participants", "session_assignments"):
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 1


async def test_an_intake_becomes_one_session(connection: Connection, store: Store) -> None:
    customer_id = await add_customer(connection)
    intake_id = await add_intake(connection, customer_id)
    first = await create(connection, intake_id)
    await change(connection, store, first.request_id, Cancel())

    with pytest.raises(asyncpg.UniqueViolationError, match="sessions_intake_id_key"):
        await create(connection, intake_id)


async def add_slot(connection: Connection, starts_in_seconds: float, capacity: int = 1) -> UUID:
    slot_id: UUID = await connection.fetchval(
        "INSERT INTO slots (starts_at, ends_at, capacity) VALUES (now() + $1, now() + $2, $3) "
        "RETURNING id",
        timedelta(seconds=starts_in_seconds),
        timedelta(seconds=starts_in_seconds + 1800),
        capacity,
    )
    return slot_id


async def test_a_booking_for_a_slot_is_scheduled_and_beside_a_live_session(
    connection: Connection, store: Store
) -> None:
    live = await book(connection)
    slot_id = await add_slot(connection, starts_in_seconds=3600)
    slot = await connection.fetchrow("SELECT * FROM slots WHERE id = $1", slot_id)
    assert slot is not None

    later = await create(
        connection, await add_intake(connection, live.customer_id, slot_id=slot_id)
    )

    assert (later.status, later.session_status) == (
        RequestStatus.SCHEDULED,
        SessionStatus.SCHEDULED,
    )
    assert (later.opens_at, later.slot_ends_at) == (slot["starts_at"], slot["ends_at"])
    assert later.expires_at == slot["starts_at"] + timedelta(hours=2)
    assert await stored_due_at(connection, later.request_id) == slot["starts_at"]
    assert await connection.fetchval("SELECT taken FROM slots") == 1


async def test_nobody_can_take_what_is_scheduled(connection: Connection) -> None:
    later = await book(connection, slot_id=await add_slot(connection, starts_in_seconds=3600))

    verdict = await accept(connection, later.offer_id, await add_mechanic(connection))

    assert (verdict.won, verdict.reason) == (False, "not_found")


async def test_a_full_slot_takes_nobody_else(connection: Connection) -> None:
    slot_id = await add_slot(connection, starts_in_seconds=3600, capacity=1)
    await book(connection, slot_id=slot_id)

    with pytest.raises(asyncpg.CheckViolationError, match="slots_not_overfull"):
        await book(connection, slot_id=slot_id)

    assert await connection.fetchval("SELECT count(*) FROM sessions") == 1


@pytest.mark.parametrize("starts_in_seconds", [-60, 3600], ids=["for now", "for later"])
async def test_who_gives_up_a_seat_leaves_it_to_another(
    connection: Connection, store: Store, starts_in_seconds: float
) -> None:
    slot_id = await add_slot(connection, starts_in_seconds, capacity=1)
    booking = await book(connection, slot_id=slot_id)

    await change(connection, store, booking.request_id, Cancel())

    assert await connection.fetchval("SELECT taken FROM slots") == 0
    other = await book(connection, slot_id=slot_id)
    assert other.status is booking.status
    assert await connection.fetchval("SELECT taken FROM slots") == 1


async def test_who_books_a_slot_again_while_the_first_is_being_cancelled_gets_the_seat(
    pool: Pool, connection: Connection, store: Store
) -> None:
    slot_id = await add_slot(connection, starts_in_seconds=-60, capacity=2)
    first = await book(connection, slot_id=slot_id)
    again = await add_intake(connection, first.customer_id, slot_id=slot_id)
    await connection.execute(PAUSE_BEFORE_INSERT)

    async with pool.acquire() as gate, pool.acquire() as booker:
        await gate.execute("SELECT pg_advisory_lock(1)")
        booked = asyncio.create_task(create(booker, again))
        await until_blocked(pool, 1)
        cancelled = asyncio.create_task(change(connection, store, first.request_id, Cancel()))
        await until_blocked_or_done(pool, cancelled)
        await gate.execute("SELECT pg_advisory_unlock(1)")
        second = await booked

    assert (await cancelled).booking.status is RequestStatus.CANCELLED
    assert second.status is RequestStatus.PENDING
    assert await connection.fetchval("SELECT taken FROM slots") == 1


# A booking waits, for as long as the test likes, where its session is to be inserted.
PAUSE_BEFORE_INSERT = """
    CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(1);
        RETURN NEW;
    END $$;
    CREATE TRIGGER pause BEFORE INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION pause();
"""


async def until_blocked_or_done(pool: Pool, task: asyncio.Task[Decision]) -> None:
    """Until the task is over, or waits for a lock as the booking at the gate does."""
    blocked = asyncio.create_task(until_blocked(pool, 2))
    await asyncio.wait({task, blocked}, return_when=asyncio.FIRST_COMPLETED)
    blocked.cancel()


async def test_a_slot_that_runs_already_is_a_booking_for_now(connection: Connection) -> None:
    now_running = await add_slot(connection, starts_in_seconds=-60)

    booking = await book(connection, slot_id=now_running)

    assert booking.status is RequestStatus.PENDING
    assert booking.opens_at == booking.created_at


async def test_the_opening_of_a_slot_meets_the_rule_of_one_live_session(
    connection: Connection, store: Store
) -> None:
    live = await book(connection)
    slot_id = await add_slot(connection, starts_in_seconds=3600)
    later = await create(
        connection, await add_intake(connection, live.customer_id, slot_id=slot_id)
    )
    async with connection.transaction():
        await shift_clock(connection, 3601)
        busy = await change(connection, store, later.request_id, Open(customer_busy=True))
        assert (await read(connection, later.request_id)) == busy.booking
        await shift_clock(connection, 3607)
        with pytest.raises(asyncpg.UniqueViolationError, match="one_live_per_customer"):
            await change(connection, store, later.request_id, Open(customer_busy=False))
        await change(connection, store, live.request_id, Cancel())

        opened = await change(connection, store, later.request_id, Open())

        assert opened.booking.stage is Stage.OPEN
        assert await read(connection, later.request_id) == opened.booking


# --- small promises of the rows -------------------------------------------------------------------


async def test_the_reported_window_is_rounded_up_to_minutes_and_stays(
    connection: Connection, store: Store
) -> None:
    favourite = await add_mechanic(connection)
    booking = await book(
        connection, routing_type="priority_broadcast", preferred_mechanic_id=favourite
    )
    event = Open(favourite=await candidate(connection, favourite))
    policy = replace(POLICY, priority_window_seconds=61)
    await change(connection, store, booking.request_id, event, policy=policy)

    await change(connection, store, booking.request_id, Widen(), policy=policy)

    reported = await connection.fetchval("SELECT priority_window_minutes FROM session_requests")
    assert reported == 2


async def test_the_serving_workshop_is_the_winner_s_whatever_was_preferred(
    connection: Connection, store: Store
) -> None:
    preferred, serving = await add_workshop(connection), await add_workshop(connection)
    mechanic_id = await add_mechanic(connection, serving)
    booking = await book_and_open(connection, store, routing_type="hybrid", workshop_id=preferred)
    await change(connection, store, booking.request_id, Widen())

    await accept(connection, booking.offer_id, mechanic_id)

    row = await connection.fetchrow("SELECT workshop_id, preferred_workshop_id FROM sessions")
    assert row is not None
    assert tuple(row) == (serving, preferred)
    assert (await read(connection, booking.request_id)).workshop_id == serving


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM session_events", "UPDATE session_events SET type = 'accepted'"],
)
async def test_history_cannot_be_rewritten(connection: Connection, statement: str) -> None:
    await book(connection)

    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await connection.execute(statement)
