"""`dispatch replay`: a booking that really ran, decided again from its rows."""

from uuid import uuid4

import pytest

from dispatch.core.replay import replay
from dispatch.core.types import (
    Decline,
    Due,
    End,
    Join,
    MechanicCancel,
    Role,
    Seen,
)
from dispatch.database import Connection, Pool
from dispatch.errors import Conflict, NotFound
from dispatch.replay import record_of
from dispatch.store import Store
from tests.integration.rows import (
    accept,
    add_mechanic,
    add_workshop,
    book,
    book_and_open,
    candidate,
    change,
    read,
    shift_clock,
)


async def test_a_long_life_is_the_same_again(
    pool: Pool, connection: Connection, store: Store
) -> None:
    workshop_id = await add_workshop(connection)
    favourite = await add_mechanic(connection, workshop_id)
    other = await add_mechanic(connection)
    made = await book_and_open(
        connection,
        store,
        routing_type="priority_broadcast",
        preferred_mechanic_id=favourite,
        urgent=True,
    )
    request_id = made.request_id
    await change(connection, store, request_id, Seen(favourite))
    declined = Decline(await candidate(connection, favourite), made.offer_id, "ill")
    await change(connection, store, request_id, declined)
    await accept(connection, made.offer_id, other)
    await change(connection, store, request_id, MechanicCancel(other, "flat tyre"))
    third = await add_mechanic(connection, workshop_id)
    await accept(connection, (await read(connection, request_id)).offer_id, third)
    await change(connection, store, request_id, Join(made.customer_id, Role.CUSTOMER))
    await change(connection, store, request_id, Join(third, Role.MECHANIC))
    await change(connection, store, request_id, End(third))

    record = await record_of(pool, request_id)

    replayed = replay(record)
    assert replayed.differences == ()
    assert [type(step.event).__name__ for step in record.steps] == [
        "Open",
        "Seen",
        "Decline",
        "Accept",
        "MechanicCancel",
        "Accept",
        "Join",
        "Join",
        "End",
    ]
    assert replayed.bookings[-1] == await read(connection, request_id)


async def test_hours_that_passed_are_passed_again(
    pool: Pool, connection: Connection, store: Store
) -> None:
    favourite = await add_mechanic(connection)
    made = await book_and_open(
        connection, store, routing_type="priority_broadcast", preferred_mechanic_id=favourite
    )
    for seconds in (5, 10, 15, 7201):
        async with connection.transaction():
            await shift_clock(connection, seconds)
            await change(connection, store, made.request_id, Due())

    replayed = replay(await record_of(pool, made.request_id))

    assert replayed.differences == ()
    assert replayed.bookings[-1].status == "expired"
    assert [booking.attempt for booking in replayed.bookings] == [1, 1, 2, 3, 1, 1]


async def test_a_row_that_was_changed_by_hand_is_noticed(
    pool: Pool, connection: Connection, store: Store
) -> None:
    made = await book_and_open(connection, store)
    await connection.execute(
        "UPDATE session_requests SET expires_at = expires_at + interval '1 hour' WHERE id = $1",
        made.request_id,
    )

    (difference,) = replay(await record_of(pool, made.request_id)).differences

    assert (difference.version, difference.what) == (2, "expires_at")


async def test_what_is_not_on_record_is_said(pool: Pool, connection: Connection) -> None:
    made = await book(connection)
    await connection.execute(
        "INSERT INTO session_events (session_id, type, at, version) VALUES ($1, 'x', now(), 2)",
        made.session_id,
    )

    with pytest.raises(Conflict) as hole:
        await record_of(pool, made.request_id)
    with pytest.raises(NotFound):
        await record_of(pool, uuid4())

    assert hole.value.code == "not_recorded"
