"""Whom the SQL would offer a booking is whom the core would offer it, at the same scores (R6).

A property test over random cities and routing types. Each city is made in a few statements inside a
transaction that is rolled back, so that hundreds of them take seconds.
"""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatch.core import routing
from dispatch.core.types import Booking, Candidate, Routing, Stage
from dispatch.database import Connection
from tests.integration.rows import add_customer, add_mechanic, add_workshop, rolled_back
from tests.unit import builders

MOST_PEOPLE, MOST_SESSIONS = 12, 3
NOBODYS_WORKSHOP = 3  # an id that no workshop has
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class Person(msgspec.Struct, frozen=True):
    """A mechanic who could be; workshops are named by their numbers."""

    name: str
    workshop: int | None
    application_status: str
    is_deleted: bool
    is_disabled: bool
    is_online: bool
    available: bool
    is_specialist: bool
    live_sessions: int
    past_sessions: int


class Ground(msgspec.Struct, frozen=True):
    """What every city is built on."""

    workshops: list[UUID]
    customers: list[UUID]


mostly = st.sampled_from([True, True, True, False])
seldom = st.sampled_from([False] * 7 + [True])
people = st.builds(
    Person,
    name=st.sampled_from(["Ada", "Ben", "Cem"]),
    workshop=st.sampled_from([None, None, 0, 1, 2]),
    application_status=st.sampled_from(["approved"] * 6 + ["pending", "rejected"]),
    is_deleted=seldom,
    is_disabled=seldom,
    is_online=mostly,
    available=mostly,
    is_specialist=st.booleans(),
    live_sessions=st.sampled_from([0, 0, 0, 1, 2, MOST_SESSIONS]),
    past_sessions=st.integers(0, 2),
)


@st.composite
def bookings(draw: st.DrawFn) -> tuple[Routing, int | None]:
    """A routing type, and the number of a workshop: for some types without one as well."""
    chosen = draw(st.sampled_from(Routing))
    workshops = st.integers(0, NOBODYS_WORKSHOP)
    if chosen in (Routing.BROADCAST, Routing.PRIORITY):
        return chosen, draw(st.none() | workshops)
    return chosen, draw(workshops)


@pytest.fixture
async def ground(connection: Connection) -> Ground:
    workshops = [await add_workshop(connection) for _ in range(3)]
    # Whether a workshop is listed is one thing, whether its mechanics are asked another.
    await connection.execute(
        "UPDATE organizations SET status = 'suspended' WHERE id = $1", workshops[2]
    )
    customers = [await add_customer(connection) for _ in range(MOST_PEOPLE * MOST_SESSIONS)]
    return Ground([*workshops, uuid4()], customers)


async def put_city(
    connection: Connection, ground: Ground, city: list[Person]
) -> dict[UUID, Person]:
    """The people as rows, with their sessions of now and of before; by their new ids."""
    by_id = {uuid4(): person for person in city}
    await connection.executemany(
        "INSERT INTO users (id, email, name, role, disabled_at)"
        " VALUES ($1, $2, $3, 'mechanic', $4)",
        [
            (key, f"{key}@example.com", person.name, LONG_AGO if person.is_disabled else None)
            for key, person in by_id.items()
        ],
    )
    await connection.executemany(
        "INSERT INTO mechanics (id, workshop_id, account_type, application_status, is_specialist,"
        " available, is_online, deleted_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        [
            (
                key,
                None if person.workshop is None else ground.workshops[person.workshop],
                "independent" if person.workshop is None else "workshop",
                person.application_status,
                person.is_specialist,
                person.available,
                person.is_online,
                LONG_AGO if person.is_deleted else None,
            )
            for key, person in by_id.items()
        ],
    )
    customers = iter(ground.customers)
    await connection.executemany(
        "INSERT INTO sessions (mechanic_id, mechanic_slot, status, customer_user_id, type, plan,"
        " started_at, ends_at) VALUES ($1, $2, $3, $4, 'chat', 'chat10', now(), now())",
        [
            (key, slot, ("accepted", "active")[slot % 2], next(customers))
            for key, person in by_id.items()
            for slot in range(1, person.live_sessions + 1)
        ]
        + [
            (key, slot, ("completed", "cancelled")[slot % 2], ground.customers[0])
            for key, person in by_id.items()
            for slot in range(1, person.past_sessions + 1)
        ],
    )
    return by_id


def offered_by_the_core(
    booking: Booking, city: dict[UUID, Person], ground: Ground, capacity: int
) -> list[tuple[UUID, str, UUID | None, int, bool, bool]]:
    """The rows that the function should give: those who are online, by the rules of the core."""
    rows = []
    for key, person in city.items():
        candidate = Candidate(
            mechanic_id=key,
            workshop_id=None if person.workshop is None else ground.workshops[person.workshop],
            approved=person.application_status == "approved"
            and not person.is_deleted
            and not person.is_disabled,
            available=person.available,
            is_specialist=person.is_specialist,
            live_sessions=person.live_sessions,
        )
        if person.is_online and routing.exclusion(booking, candidate, capacity) is None:
            score = routing.terms(booking, candidate).score
            rows.append((key, person.name, candidate.workshop_id, score, True, True))
    return sorted(rows, key=lambda row: (-row[3], row[1], row[0]))


async def offered_by_sql(
    connection: Connection, workshop_id: UUID | None, routing_type: str, capacity: int
) -> list[tuple[UUID, str, UUID | None, int, bool, bool]]:
    rows = await connection.fetch(
        "SELECT mechanic_id, mechanic_name, workshop_id, priority_score, is_online, available"
        " FROM get_mechanics_for_routing($1, $2, $3)",
        workshop_id,
        routing_type,
        capacity,
    )
    return [tuple(row) for row in rows]


@given(city=st.lists(people, max_size=MOST_PEOPLE), wish=bookings(), capacity=st.integers(1, 3))
@settings(
    max_examples=300,
    deadline=None,
    # The ground holds a database; each example leaves it as it found it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_the_sql_offers_it_to_whom_the_core_would_at_the_same_scores_and_in_order(
    connection: Connection,
    ground: Ground,
    city: list[Person],
    wish: tuple[Routing, int | None],
    capacity: int,
) -> None:
    strategy, workshop = wish
    workshop_id = None if workshop is None else ground.workshops[workshop]
    booking = builders.booking(
        routing=strategy,
        stage=Stage.OPEN,
        preferred_workshop_id=workshop_id,
        preferred_mechanic_id=uuid4(),  # who is nobody here: the fallback for the others
    )
    async with rolled_back(connection):
        people_by_id = await put_city(connection, ground, city)

        found = await offered_by_sql(connection, workshop_id, strategy.value, capacity)

    assert found == offered_by_the_core(booking, people_by_id, ground, capacity)


async def test_capacity_is_one_session_unless_it_is_given(
    connection: Connection, ground: Ground
) -> None:
    busy = Person("Ada", None, "approved", False, False, True, True, False, 1, 0)
    (busy_id,) = await put_city(connection, ground, [busy])

    by_default = await connection.fetch(
        "SELECT * FROM get_mechanics_for_routing(NULL, 'broadcast')"
    )
    with_two = await offered_by_sql(connection, None, "broadcast", 2)

    assert by_default == []
    assert [row[0] for row in with_two] == [busy_id]


@pytest.mark.parametrize(
    ("routing_type", "message"),
    [
        ("everyone", "unknown routing type 'everyone'"),
        ("", "unknown routing type ''"),
        (None, "unknown routing type NULL"),
        ("workshop_only", "workshop_only needs a workshop"),
        ("hybrid", "hybrid needs a workshop"),
    ],
)
async def test_what_no_booking_could_ask_for_is_refused(
    connection: Connection, routing_type: str | None, message: str
) -> None:
    await add_mechanic(connection)

    with pytest.raises(asyncpg.InvalidParameterValueError, match=message):
        await connection.fetch("SELECT * FROM get_mechanics_for_routing(NULL, $1)", routing_type)
