"""What Postgres says of a booking is what the core says: judged, decided, saved and read again.

Two property tests hold Postgres to the core: one over random states and random facts about the
mechanic who accepts, one over random histories in which every step is saved and read again. Both
work in a transaction that is rolled back after each example.
"""

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatch.core.lifecycle import decide, due_at
from dispatch.core.types import (
    Accept,
    Booking,
    Cancel,
    Candidate,
    Decline,
    Due,
    End,
    Event,
    FavouriteLost,
    Join,
    MechanicCancel,
    Open,
    Policy,
    Presence,
    RequestStatus,
    Role,
    Routing,
    Seen,
    SessionStatus,
    Stage,
    Widen,
)
from dispatch.database import Connection
from dispatch.store import Store
from tests.integration.rows import (
    POLICY,
    accept,
    add_customer,
    add_intake,
    add_mechanic,
    add_user,
    add_workshop,
    book,
    candidate,
    change,
    create,
    occupy,
    read,
    rolled_back,
    save,
    shift_clock,
    stored_due_at,
)

examples = settings(
    max_examples=150,
    deadline=None,
    # The fixtures hold servers and people; each example leaves them as it found them.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Cast(msgspec.Struct, frozen=True):
    """Who plays in every example; mechanics and workshops are named by their numbers."""

    customer_id: UUID
    workshops: list[UUID]
    mechanics: list[UUID]


@pytest.fixture
async def cast(connection: Connection) -> Cast:
    return Cast(
        customer_id=await add_customer(connection),
        workshops=[await add_workshop(connection) for _ in range(2)],
        mechanics=[await add_mechanic(connection) for _ in range(3)],
    )


# --- the judge and the core -----------------------------------------------------------------------


class Facts(msgspec.Struct, frozen=True):
    """What is true of the mechanic who accepts; `slots` are those of her live sessions."""

    workshop: int | None
    blemish: str | None
    available: bool
    is_specialist: bool
    slots: frozenset[int]


class State(msgspec.Struct, frozen=True):
    """A booking that could be: the acceptor is mechanic 0, and may have it already."""

    status: RequestStatus
    stage: Stage | None
    routing: Routing
    is_specialist: bool
    favourite: int
    excluded: list[int]
    taken_by: int | None
    is_active: bool
    expires_in_seconds: float
    generation: int


BLEMISHES = {
    "pending": "UPDATE mechanics SET application_status = 'pending' WHERE id = $1",
    "rejected": "UPDATE mechanics SET application_status = 'rejected' WHERE id = $1",
    "deleted": "UPDATE mechanics SET deleted_at = now() WHERE id = $1",
    "disabled": "UPDATE users SET disabled_at = now() WHERE id = $1",
}
LATE, IN_TIME = -60.0, 60.0

mostly = st.sampled_from([True, True, True, False])
facts = st.builds(
    Facts,
    workshop=st.sampled_from([None, 0, 1]),
    blemish=st.sampled_from([None] * 8 + list(BLEMISHES)),
    available=mostly,
    is_specialist=mostly,
    slots=st.sampled_from([frozenset[int]()] * 4 + [frozenset({n}) for n in (1, 2, 3)])
    | st.frozensets(st.integers(1, 3)),
)


@st.composite
def states(draw: st.DrawFn) -> State:
    status = draw(st.sampled_from([RequestStatus.PENDING] * 5 + list(RequestStatus)))
    takers = {
        RequestStatus.ACCEPTED: st.integers(0, 2),
        RequestStatus.COMPLETED: st.integers(0, 2),
        RequestStatus.CANCELLED: st.none() | st.integers(0, 2),
    }
    stages = st.sampled_from([Stage.OPEN, Stage.PREFERRED, Stage.PRIORITY, None])
    return State(
        status=status,
        stage=draw(stages) if status is RequestStatus.PENDING else None,
        routing=draw(st.sampled_from(Routing)),
        is_specialist=draw(st.booleans()),
        favourite=draw(st.integers(0, 1)),
        excluded=draw(st.sampled_from([[], [], [1], [0], [2, 0]])),
        taken_by=draw(takers.get(status, st.none())),
        is_active=draw(st.booleans()),
        expires_in_seconds=draw(st.sampled_from([IN_TIME, IN_TIME, IN_TIME, LATE])),
        generation=draw(st.integers(1, 2)),
    )


async def put_mechanic(connection: Connection, cast: Cast, known: Facts) -> UUID:
    mechanic_id = cast.mechanics[0]
    await connection.execute(
        "UPDATE mechanics SET workshop_id = $2, account_type = $3, available = $4, "
        "is_specialist = $5 WHERE id = $1",
        mechanic_id,
        None if known.workshop is None else cast.workshops[known.workshop],
        "independent" if known.workshop is None else "workshop",
        known.available,
        known.is_specialist,
    )
    if known.blemish is not None:
        await connection.execute(BLEMISHES[known.blemish], mechanic_id)
    for slot in known.slots:
        await occupy(connection, mechanic_id, slot)
    return mechanic_id


async def put_booking(connection: Connection, cast: Cast, state: State) -> Booking:
    """The booking as the factory makes it, then saved into this state, with its round's outcome."""
    intake_id = await add_intake(
        connection,
        cast.customer_id,
        routing_type=state.routing.value,
        is_specialist=state.is_specialist,
        workshop_id=cast.workshops[0],
        preferred_mechanic_id=cast.mechanics[state.favourite],
    )
    made = await create(connection, intake_id)
    taken_by = None if state.taken_by is None else cast.mechanics[state.taken_by]
    now = made.created_at
    is_accepted = state.status is RequestStatus.ACCEPTED
    session = SessionStatus.ACTIVE if is_accepted and state.is_active else state.status.value
    booking = replace(
        made,
        status=state.status,
        session_status=SessionStatus(session),
        stage=state.stage,
        generation=state.generation,
        version=made.version + 1,
        excluded=tuple(cast.mechanics[n] for n in state.excluded if n != state.taken_by),
        mechanic_id=taken_by,
        accept_id=uuid4() if taken_by else None,
        workshop_id=(await candidate(connection, taken_by)).workshop_id if taken_by else None,
        accepted_at=now if taken_by else None,
        started_at=now,
        ends_at=now + timedelta(minutes=10),
        expires_at=now + timedelta(seconds=state.expires_in_seconds),
    )
    await connection.execute(
        "UPDATE sessions SET mechanic_slot = 9 WHERE id = $1", booking.session_id
    )
    await save(connection, booking)
    outcome = "taken" if taken_by else state.status.value
    if state.status not in (RequestStatus.SCHEDULED, RequestStatus.PENDING):
        await connection.execute(
            "UPDATE session_assignments SET outcome = $2, mechanic_id = $3 WHERE offer_id = $1",
            booking.offer_id,
            outcome,
            taken_by,
        )
    return booking


@given(
    state=states(),
    known=facts,
    capacity=st.integers(1, 3),
    by_hand=st.sampled_from([False, False, True]),
)
@examples
async def test_the_judge_says_what_the_core_says_and_leaves_the_same_booking(
    connection: Connection, cast: Cast, state: State, known: Facts, capacity: int, by_hand: bool
) -> None:
    policy = Policy(mechanic_capacity=capacity)
    async with rolled_back(connection):
        mechanic_id = await put_mechanic(connection, cast, known)
        booking = await put_booking(connection, cast, state)
        told = await candidate(connection, mechanic_id)
        round_ = (booking.offer_id, mechanic_id, uuid4())
        admin_id = await add_user(connection, "admin") if by_hand else None

        verdict = await accept(connection, *round_, policy=policy, assigned_by=admin_id)
        after = await read(connection, booking.request_id)
        again = await accept(connection, *round_, policy=policy)
        due = await stored_due_at(connection, booking.request_id)

    now = after.accepted_at if verdict.entry and after.accepted_at else booking.created_at
    event = Accept(told, booking.offer_id, round_[2], admin_id)
    decision = decide(booking, event, now, policy)
    assert told == expected_candidate(cast, state, known)
    assert verdict.won == (decision.rejection is None)
    assert verdict.reason == (decision.rejection.code if decision.rejection else None)
    assert after == decision.booking
    assert due == due_at(after, policy)
    assert (verdict.entry.booking if verdict.entry else booking) == after
    assert (again.won, again.reason) == (verdict.won, verdict.reason)


def expected_candidate(cast: Cast, state: State, known: Facts) -> Candidate:
    has_it = state.taken_by == 0 and state.status is RequestStatus.ACCEPTED
    return Candidate(
        mechanic_id=cast.mechanics[0],
        workshop_id=None if known.workshop is None else cast.workshops[known.workshop],
        approved=known.blemish is None,
        available=known.available,
        is_specialist=known.is_specialist,
        live_sessions=len(known.slots) + int(has_it),
    )


# --- random histories, saved and read again -------------------------------------------------------

Step = tuple[str, int, float]  # what happens, who does it, and so long after the last

OFTEN = ("due", "accept", "join", "customer_joins")
SELDOM = ("open", "give_back", "decline", "seen", "lost", "widen", "end", "customer_ends", "cancel")
steps = st.tuples(
    st.sampled_from(OFTEN + OFTEN + SELDOM),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.0, 2.0, 5.0, 600.0]),
)


def event_of(name: str, booking: Booking, mechanic: Candidate) -> Event:
    mechanic_id = mechanic.mechanic_id
    events: dict[str, Event] = {
        "open": Open(
            favourite=replace(mechanic, mechanic_id=booking.preferred_mechanic_id or mechanic_id),
            favourite_presence=Presence.ONLINE,
            preferred_online=True,
        ),
        "due": Due(),
        "join": Join(mechanic_id, Role.MECHANIC),
        "customer_joins": Join(booking.customer_id, Role.CUSTOMER),
        "give_back": MechanicCancel(mechanic_id, "flat tyre"),
        "decline": Decline(mechanic, booking.offer_id, "far"),
        "seen": Seen(mechanic_id),
        "lost": FavouriteLost("busy"),
        "widen": Widen(),
        "end": End(mechanic_id),
        "customer_ends": End(booking.customer_id),
        "cancel": Cancel(),
    }
    return events[name]


async def accept_as_decided(
    connection: Connection, booking: Booking, mechanic: Candidate
) -> Booking:
    """The judge's verdict, which must be the core's; the booking afterwards."""
    accept_id = uuid4()
    verdict = await accept(connection, booking.offer_id, mechanic.mechanic_id, accept_id)
    now: datetime = await connection.fetchval("SELECT dispatch_now()")
    if verdict.entry is not None:
        now = verdict.entry.booking.accepted_at or now
    decision = decide(booking, Accept(mechanic, booking.offer_id, accept_id), now, POLICY)
    assert verdict.reason == (decision.rejection.code if decision.rejection else None)
    return decision.booking


@given(
    routing=st.sampled_from(Routing),
    waits=st.booleans(),
    history=st.lists(steps, min_size=4, max_size=14),
)
@examples
async def test_whatever_the_core_decides_is_saved_and_read_again_as_it_was(
    connection: Connection,
    store: Store,
    cast: Cast,
    routing: Routing,
    waits: bool,
    history: list[Step],
) -> None:
    async with rolled_back(connection):
        booking = await book(
            connection,
            routing_type=routing.value,
            workshop_id=cast.workshops[0],
            preferred_mechanic_id=cast.mechanics[0],
            wait_for_preferred=waits,
        )
        await connection.execute(
            "UPDATE mechanics SET workshop_id = $1, account_type = 'workshop' WHERE id = ANY ($2)",
            cast.workshops[0],
            cast.mechanics[:2],
        )
        passed = 0.0
        for name, who, pause in [("open", 0, 0.0), *history]:
            passed += pause
            await shift_clock(connection, passed)
            mechanic = await candidate(connection, cast.mechanics[who])
            if name == "accept":
                expected = await accept_as_decided(connection, booking, mechanic)
            else:
                event = event_of(name, booking, mechanic)
                expected = (await change(connection, store, booking.request_id, event)).booking

            booking = await read(connection, booking.request_id)

            assert booking == expected
            assert await stored_due_at(connection, booking.request_id) == due_at(booking, POLICY)
            await check_rows(connection, booking)


async def check_rows(connection: Connection, booking: Booking) -> None:
    """Participants and rounds tell the same story as the booking."""
    participants = await connection.fetch(
        "SELECT user_id, role, joined_at FROM session_participants WHERE session_id = $1",
        booking.session_id,
    )
    expected: set[tuple[UUID, str, datetime | None]] = {
        (booking.customer_id, "customer", booking.customer_joined_at)
    }
    if booking.mechanic_id is not None:
        expected.add((booking.mechanic_id, "mechanic", booking.mechanic_joined_at))
    assert {tuple(row) for row in participants} == expected
    rounds = await connection.fetch(
        "SELECT offer_id, generation, status FROM session_assignments "
        "WHERE request_id = $1 ORDER BY generation",
        booking.request_id,
    )
    assert [row["generation"] for row in rounds] == list(range(1, booking.generation + 1))
    assert rounds[-1]["offer_id"] == booking.offer_id
    assert {row["status"] for row in rounds[:-1]} <= {"released"}
    assert rounds[-1]["status"] == {
        RequestStatus.PENDING: "queued",
        RequestStatus.ACCEPTED: "assigned",
        RequestStatus.COMPLETED: "completed",
        RequestStatus.CANCELLED: "released",
        RequestStatus.EXPIRED: "released",
    }.get(booking.status)
    session = await connection.fetchrow(
        "SELECT version, workshop_id, mechanic_slot FROM sessions WHERE id = $1", booking.session_id
    )
    assert session is not None
    assert session["version"] == booking.version
    assert session["workshop_id"] == booking.workshop_id
    assert (session["mechanic_slot"] is None) == (booking.mechanic_id is None)
