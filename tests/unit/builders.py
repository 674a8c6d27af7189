"""Bookings and mechanics for tests of the core: sensible defaults, and every state by its story.

One job: let a test name only what matters to it. States are reached through `decide`, as in life:
`after(booking, (event, at), ...)`. Time is minutes and seconds after `T0`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

from msgspec.structs import replace

from dispatch.core import messages
from dispatch.core.lifecycle import decide, made
from dispatch.core.types import (
    Accept,
    Booking,
    Cancel,
    Candidate,
    Decision,
    Due,
    Effect,
    End,
    Event,
    Join,
    MechanicCancel,
    Open,
    Policy,
    Presence,
    RequestStatus,
    Role,
    Routing,
    SessionStatus,
    Wish,
)
from dispatch.hints import Display, Entry

T0: Final = datetime(2031, 5, 1, 9, 0, tzinfo=UTC)
POLICY: Final = Policy()

CUSTOMER: Final = UUID(int=0xC0)
ANNA: Final = UUID(int=0xA)
BEN: Final = UUID(int=0xB)
CLEO: Final = UUID(int=0xC)
NORTH: Final = UUID(int=0x1001)
SOUTH: Final = UUID(int=0x1002)

_E = TypeVar("_E", bound=Effect)


def at(seconds: float = 0, *, minutes: float = 0) -> datetime:
    """So long after T0, at which every booking here is made."""
    return T0 + timedelta(seconds=seconds, minutes=minutes)


def booking(**changes: Any) -> Booking:
    """A booking for now that nobody has looked at yet: broadcast, waiver signed, ten minutes."""
    wish = Wish(
        customer_id=CUSTOMER,
        session_type="chat",
        plan_code="chat10",
        minutes=10,
        urgent=False,
        is_specialist=False,
        routing=Routing.BROADCAST,
        preferred_workshop_id=None,
        preferred_mechanic_id=None,
        wait_for_preferred=False,
        waiver_signed=True,
    )
    fresh = made(wish, uuid4(), uuid4(), uuid4(), T0, POLICY)
    return replace(fresh, **changes)


def entry_of(booking: Booking) -> Entry:
    """The booking as boards keep it."""
    display = Display(
        customer_name="Kim",
        vehicle=None,
        concern=None,
        mechanic_name=None,
        mechanic_workshop_id=None,
        mechanic_rating=None,
    )
    return Entry(booking=booking, display=display, paid=False)


def scheduled(**changes: Any) -> Booking:
    """A booking for a slot from T0 + 60 min to T0 + 90 min."""
    later = booking(
        status=RequestStatus.SCHEDULED,
        session_status=SessionStatus.SCHEDULED,
        opens_at=at(minutes=60),
        slot_ends_at=at(minutes=90),
        expires_at=at(POLICY.request_ttl_seconds, minutes=60),
        message=messages.SCHEDULED,
    )
    return replace(later, **changes)


def candidate(mechanic_id: UUID = ANNA, **changes: Any) -> Candidate:
    """An approved, available, independent mechanic without work."""
    ready = Candidate(
        mechanic_id=mechanic_id,
        workshop_id=None,
        approved=True,
        available=True,
        is_specialist=False,
        live_sessions=0,
    )
    return replace(ready, **changes)


def accept(booking: Booking, mechanic_id: UUID = ANNA, **facts: Any) -> Accept:
    """A mechanic with these facts takes the booking's present round."""
    return Accept(candidate(mechanic_id, **facts), booking.offer_id, uuid4())


def after(booking: Booking, *events: tuple[Event, datetime], policy: Policy = POLICY) -> Booking:
    """The booking when all of this has happened; a rejection on the way is a bug of the test."""
    for event, now in events:
        decision = decide(booking, event, now, policy)
        assert decision.rejection is None, decision.rejection
        booking = decision.booking
    return booking


# --- the states of a booking's life ---------------------------------------------------------------


def opened(**changes: Any) -> Booking:
    """Offered to everyone since T0."""
    return after(booking(**changes), (Open(), T0))


def in_priority(presence: Presence = Presence.ONLINE, **changes: Any) -> Booking:
    """Anna, the favourite, is asked alone since T0."""
    asked = {"routing": Routing.PRIORITY, "preferred_mechanic_id": ANNA} | changes
    event = Open(favourite=candidate(ANNA), favourite_presence=presence)
    return after(booking(**asked), (event, T0))


def in_head_start(**changes: Any) -> Booking:
    """The workshop North sees it first since T0."""
    asked = {"routing": Routing.HYBRID, "preferred_workshop_id": NORTH} | changes
    return after(booking(**asked), (Open(preferred_online=True), T0))


def accepted(**changes: Any) -> Booking:
    """Anna took it at T0 + 10 s; nobody has joined."""
    given = opened(**changes)
    return after(given, (accept(given), at(10)))


def active(**changes: Any) -> Booking:
    """Both have joined since T0 + 30 s; ten minutes run."""
    return after(
        accepted(**changes),
        (Join(ANNA, Role.MECHANIC), at(20)),
        (Join(CUSTOMER, Role.CUSTOMER), at(30)),
    )


def reopened(**changes: Any) -> Booking:
    """Anna took it and gave it back at T0 + 40 s."""
    return after(accepted(**changes), (MechanicCancel(ANNA), at(40)))


def completed(**changes: Any) -> Booking:
    """Anna served it; the customer ended it at T0 + 60 s."""
    return after(active(**changes), (End(CUSTOMER), at(60)))


def cancelled(**changes: Any) -> Booking:
    """The customer gave up at T0 + 60 s, before anybody took it."""
    return after(opened(**changes), (Cancel(), at(60)))


def expired(**changes: Any) -> Booking:
    """Nobody took it in its time-to-live."""
    given = opened(**changes)
    return after(given, (Due(), given.expires_at))


# --- what a test asks of a decision ---------------------------------------------------------------


def changes(before: Booking, decision: Decision) -> dict[str, Any]:
    """The fields that differ afterwards, without the version."""
    return {
        name: getattr(decision.booking, name)
        for name in Booking.__struct_fields__
        if name != "version" and getattr(decision.booking, name) != getattr(before, name)
    }


def effects(decision: Decision, kind: type[_E]) -> list[_E]:
    """The effects of one kind, in order."""
    return [effect for effect in decision.effects if isinstance(effect, kind)]
