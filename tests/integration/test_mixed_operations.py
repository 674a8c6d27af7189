"""Everything at once on few rows: nobody waits for ever, and the rows stay true.

Many connections do random things to three customers' bookings and four mechanics: each act locks
in the one order (request, session, mechanic, the rest), so Postgres never has to break a deadlock.
Seeded: a failing seed does the same acts again, though not in the same moments.
"""

import asyncio
import random
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import pytest

from dispatch.core.lifecycle import LIVE, SESSION_OF, due_at
from dispatch.core.replay import replay
from dispatch.core.types import (
    Booking,
    Cancel,
    Decline,
    Due,
    End,
    Event,
    Join,
    MechanicCancel,
    Open,
    RequestStatus,
    Role,
    Widen,
)
from dispatch.database import Connection, Pool
from dispatch.replay import read_record
from dispatch.store import Store
from tests.integration.rows import (
    POLICY,
    accept,
    add_customer,
    add_intake,
    add_mechanic,
    add_workshop,
    candidate,
    change,
    create,
    read,
    shift_clock,
    stored_due_at,
)

WORKERS = 8
ACTS_EACH = 100


@dataclass
class Place:
    """The few rows that everybody works on; `requests` are the newest of each customer."""

    pool: Pool
    store: Store
    slots: list[UUID]
    workshop_id: UUID
    mechanics: list[UUID]
    requests: dict[UUID, UUID] = field(default_factory=dict)
    everything: list[UUID] = field(default_factory=list)


async def make_place(pool: Pool, connection: Connection, store: Store) -> Place:
    workshop_id = await add_workshop(connection)
    slots = await connection.fetch(
        "INSERT INTO slots (starts_at, ends_at, capacity) "
        "SELECT now() + hours * interval '1 hour', now() + interval '2 hours', 3 "
        "FROM unnest('{-1, 1}'::int[]) AS hours RETURNING id"
    )
    workshops = [workshop_id, workshop_id, None, None]
    mechanics = [await add_mechanic(connection, workshop) for workshop in workshops]
    place = Place(pool, store, [row["id"] for row in slots], workshop_id, mechanics)
    for _ in range(3):
        await rebook(place, connection, await add_customer(connection), random.Random(0))
    return place


async def rebook(
    place: Place, connection: Connection, customer_id: UUID, chance: random.Random
) -> None:
    """A new booking of the customer, for now or for a slot; refused while another one lives."""
    routing = chance.choice(["broadcast", "broadcast", "hybrid", "priority_broadcast"])
    intake_id = await add_intake(
        connection,
        customer_id,
        routing_type=routing,
        workshop_id=place.workshop_id,
        preferred_mechanic_id=place.mechanics[0],
        slot_id=chance.choice(place.slots) if chance.random() < 0.5 else None,
    )
    booking = await create(connection, intake_id)
    place.everything.append(booking.request_id)
    favourite = await candidate(connection, place.mechanics[0])
    opening = Open(favourite=favourite, preferred_online=True)
    async with connection.transaction():
        if booking.status is RequestStatus.SCHEDULED:
            await shift_clock(connection, 3601)
        await change(connection, place.store, booking.request_id, opening)
    place.requests[customer_id] = booking.request_id


async def act(place: Place, connection: Connection, chance: random.Random) -> None:
    customer_id = chance.choice(list(place.requests))
    mechanic_id = chance.choice(place.mechanics)
    booking = await read(connection, place.requests[customer_id])
    if booking.status not in LIVE:
        await rebook(place, connection, customer_id, chance)
    elif booking.status is RequestStatus.PENDING and chance.random() < 0.6:
        await accept(connection, booking.offer_id, mechanic_id)
    elif chance.random() < 0.2:
        await change_a_mechanic(connection, mechanic_id, chance)
    else:
        await change_a_booking(place, connection, booking, mechanic_id, chance)


async def change_a_booking(
    place: Place,
    connection: Connection,
    booking: Booking,
    mechanic_id: UUID,
    chance: random.Random,
) -> None:
    """Some event; a deadline's after a look at what is due, as the sweep does it."""
    event = await random_event(connection, booking, mechanic_id, chance)
    if isinstance(event, Due):
        await place.store.overdue(10, POLICY.mechanic_capacity)
    async with connection.transaction():
        if isinstance(event, Due):
            await shift_clock(connection, chance.choice([10, 10, 10, 400, 700, 8000]))
        await change(connection, place.store, booking.request_id, event)


async def change_a_mechanic(
    connection: Connection, mechanic_id: UUID, chance: random.Random
) -> None:
    statement = chance.choice(
        [
            "UPDATE mechanics SET available = false WHERE id = $1",
            "UPDATE mechanics SET available = true WHERE id = $1",
            "UPDATE mechanics SET available = true WHERE id = $1",
            "UPDATE users SET disabled_at = NULL WHERE id = $1",
            "UPDATE users SET disabled_at = now() WHERE id = $1",
            "UPDATE users SET disabled_at = NULL WHERE id = $1",
        ]
    )
    await connection.execute(statement, mechanic_id)


async def random_event(
    connection: Connection, booking: Booking, mechanic_id: UUID, chance: random.Random
) -> Event:
    has_it = booking.mechanic_id or mechanic_id
    ends: list[Event] = [Cancel(), End(has_it), End(booking.customer_id)]
    events: list[Event] = [
        Join(has_it, Role.MECHANIC),
        Join(booking.customer_id, Role.CUSTOMER),
        MechanicCancel(has_it),
        Decline(await candidate(connection, mechanic_id), booking.offer_id),
        Widen(),
        Due(),
        Due(),
    ]
    return chance.choice(ends if chance.random() < 0.1 else events)


REFUSED = {"sessions_one_live_per_customer", "slots_not_overfull"}


async def work(place: Place, seed: int) -> None:
    """So many acts on a connection of its own; some of them are refused, as they should be."""
    chance = random.Random(seed)
    async with place.pool.acquire() as connection:
        for _ in range(ACTS_EACH):
            try:
                await act(place, connection, chance)
            except asyncpg.IntegrityConstraintViolationError as error:
                if error.constraint_name not in REFUSED:
                    raise


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_mixed_acts_on_few_rows_never_deadlock_and_leave_true_rows(
    pool: Pool, connection: Connection, store: Store, seed: int
) -> None:
    place = await make_place(pool, connection, store)

    async with asyncio.TaskGroup() as workers:
        for number in range(WORKERS):
            workers.create_task(work(place, seed * 1000 + number))

    for request_id in place.everything:
        await check_booking(connection, request_id)
    for check in (
        one_winner_a_round,
        nobody_over_capacity,
        one_live_session_a_customer,
        seats_are_those_of_bookings,
    ):
        await check(connection)


async def check_booking(connection: Connection, request_id: UUID) -> None:
    booking = await read(connection, request_id)
    assert booking.session_status in SESSION_OF[booking.status]
    assert await stored_due_at(connection, request_id) == due_at(booking, POLICY)
    rounds = await connection.fetch(
        "SELECT offer_id, status FROM session_assignments "
        "WHERE request_id = $1 ORDER BY generation",
        request_id,
    )
    assert len(rounds) == booking.generation
    assert rounds[-1]["offer_id"] == booking.offer_id
    assert {row["status"] for row in rounds[:-1]} <= {"released"}
    given_back = await connection.fetchval(
        "SELECT count(*) FROM session_events WHERE session_id = $1 AND type = 'mechanic_cancelled'",
        booking.session_id,
    )
    assert given_back == booking.generation - 1
    # R11a: whatever happened to it, and in whichever order it was committed.
    assert replay(await read_record(connection, request_id)).differences == ()


async def one_winner_a_round(connection: Connection) -> None:
    winners = await connection.fetch(
        "SELECT offer_id FROM accepts WHERE verdict = 'won' GROUP BY offer_id "
        "HAVING count(DISTINCT mechanic_id) > 1"
    )
    assert winners == []
    disagreeing = await connection.fetch(
        "SELECT a.offer_id FROM accepts a JOIN session_assignments r USING (offer_id) "
        "WHERE a.verdict = 'won' AND r.mechanic_id IS DISTINCT FROM a.mechanic_id"
    )
    assert disagreeing == []


async def nobody_over_capacity(connection: Connection) -> None:
    working = await connection.fetch("SELECT live_sessions FROM candidates")
    assert all(row["live_sessions"] <= POLICY.mechanic_capacity for row in working)


async def one_live_session_a_customer(connection: Connection) -> None:
    live = await connection.fetch(
        "SELECT count(*) AS live FROM sessions WHERE status IN ('pending', 'accepted', 'active') "
        "GROUP BY customer_user_id"
    )
    assert all(row["live"] == 1 for row in live)


async def seats_are_those_of_bookings(connection: Connection) -> None:
    """A booking that ended before anybody took it has none."""
    counted = await connection.fetch(
        "SELECT slots.taken, (SELECT count(*) FROM sessions s WHERE s.slot_id = slots.id AND "
        "(s.status NOT IN ('cancelled', 'expired') OR s.mechanic_id IS NOT NULL)) AS held "
        "FROM slots"
    )
    assert all(row["taken"] == row["held"] for row in counted)
