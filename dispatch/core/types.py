"""The values that the core reasons about: a booking, what can happen to it, what follows.

One job: name the facts. Everything here is frozen and compares by value; nothing does I/O, reads a
clock or draws a random number. Times are aware datetimes in UTC, by the database's clock; durations
are seconds. Imports nothing of ours.

A *booking* is one row of `session_requests` together with its row of `sessions`: they change in one
transaction, so the core sees them as one value.
"""

from datetime import datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID

from msgspec import Struct


class Role(StrEnum):
    """Who a token speaks for."""

    CUSTOMER = "customer"
    MECHANIC = "mechanic"
    WORKSHOP = "workshop"
    ADMIN = "admin"


class RequestStatus(StrEnum):
    """Where the dispatching of a booking stands."""

    SCHEDULED = "scheduled"
    PENDING = "pending"
    ACCEPTED = "accepted"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class SessionStatus(StrEnum):
    """Where the work itself stands; `active` is an accepted request with both sides present."""

    SCHEDULED = "scheduled"
    PENDING = "pending"
    ACCEPTED = "accepted"
    ACTIVE = "active"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Stage(StrEnum):
    """Who may take a pending request now: the favourite, the preferred workshop, or everyone."""

    PRIORITY = "priority"
    PREFERRED = "preferred"
    OPEN = "open"


class Routing(StrEnum):
    """The strategy that a customer chose."""

    BROADCAST = "broadcast"
    WORKSHOP_ONLY = "workshop_only"
    HYBRID = "hybrid"
    PRIORITY = "priority_broadcast"


# What a customer who gives up gets for what she has paid: the money back, or credits.
RefundAs = Literal["money", "credits"]


class Presence(StrEnum):
    """Whether a user has a live connection; unknown while Redis cannot say."""

    ONLINE = "online"
    OFFLINE = "offline"
    UNKNOWN = "unknown"


class Policy(Struct, frozen=True, kw_only=True):
    """The durations and limits that decisions use; the defaults of the mission."""

    priority_window_seconds: float = 600.0
    wait_window_seconds: float = 1800.0
    head_start_seconds: float = 3.0
    offer_retry_seconds: float = 5.0
    offer_attempts: int = 3
    request_ttl_seconds: float = 7200.0
    join_seconds: float = 300.0
    plan_minute_seconds: float = 60.0
    warning_seconds: float = 60.0
    mechanic_capacity: int = 1


class Wish(Struct, frozen=True, kw_only=True):
    """What a customer asks for, before there is a booking of it."""

    customer_id: UUID
    session_type: str
    plan_code: str
    minutes: int
    urgent: bool
    is_specialist: bool
    routing: Routing
    preferred_workshop_id: UUID | None
    preferred_mechanic_id: UUID | None
    wait_for_preferred: bool
    waiver_signed: bool


class Booking(Struct, frozen=True, kw_only=True):
    """One booking as it stands: the request and its session.

    `stage` is None before the opening and once nobody can be offered it. `next_attempt_at` is None
    when the favourite has seen the offer (at `seen_at`), or is waited for. `opens_at` of a booking
    for now is its creation. `offer_id` names the present round and is new in every generation.
    `experiment` and `arm` say why it is dispatched otherwise than others; with a window of its own,
    if that is why. They never change.
    """

    request_id: UUID
    session_id: UUID
    customer_id: UUID
    offer_id: UUID
    session_type: str
    plan_code: str
    minutes: int
    urgent: bool
    is_specialist: bool
    routing: Routing
    preferred_workshop_id: UUID | None
    preferred_mechanic_id: UUID | None
    wait_for_preferred: bool
    waiver_signed: bool
    excluded: tuple[UUID, ...]
    status: RequestStatus
    session_status: SessionStatus
    stage: Stage | None
    generation: int
    version: int
    attempt: int
    mechanic_id: UUID | None
    accept_id: UUID | None
    workshop_id: UUID | None
    customer_joined_at: datetime | None
    mechanic_joined_at: datetime | None
    created_at: datetime
    opens_at: datetime
    slot_ends_at: datetime | None
    expires_at: datetime
    accepted_at: datetime | None
    stage_ends_at: datetime | None
    next_attempt_at: datetime | None
    seen_at: datetime | None
    priority_notified_at: datetime | None
    fallback_broadcast_at: datetime | None
    join_by: datetime | None
    started_at: datetime | None
    ends_at: datetime | None
    warned_at: datetime | None
    ended_by: UUID | None
    message: str
    experiment: str | None = None
    arm: str | None = None
    priority_window_seconds: float | None = None


class Candidate(Struct, frozen=True, kw_only=True):
    """What routing must know about a mechanic; `live_sessions` are the accepted and active ones."""

    mechanic_id: UUID
    workshop_id: UUID | None
    approved: bool
    available: bool
    is_specialist: bool
    live_sessions: int


# --- what can happen ------------------------------------------------------------------------------
# Tagged with their names, because every event that changed a booking is recorded with it (R11a).


class Open(Struct, frozen=True, kw_only=True, tag=True):
    """The opening is due. What is known of the people asked by name is passed in as values.

    `favourite` is None when she is gone. `preferred_online`: at least one mechanic of the preferred
    workshop is online, or presence is unknown. `customer_busy`: another session of the
    customer is live, which a booking for later must wait for.
    """

    favourite: Candidate | None = None
    favourite_presence: Presence = Presence.UNKNOWN
    preferred_online: bool = False
    customer_busy: bool = False


class Due(Struct, frozen=True, tag=True):
    """Time has passed: whatever deadline of this booking is due fires."""


class Seen(Struct, frozen=True, tag=True):
    """The favourite's client showed the offer."""

    mechanic_id: UUID


class Accept(Struct, frozen=True, tag=True):
    """A mechanic takes the round `offer_id`; or an admin gives it to her (`assigned_by`)."""

    candidate: Candidate
    offer_id: UUID
    accept_id: UUID
    assigned_by: UUID | None = None


class Decline(Struct, frozen=True, tag=True):
    """A mechanic does not want the round `offer_id`."""

    candidate: Candidate
    offer_id: UUID
    reason: str | None = None


class FavouriteLost(Struct, frozen=True, tag=True):
    """The favourite cannot take it any more: busy, unavailable or gone."""

    reason: str


class Cancel(Struct, frozen=True, tag=True):
    """The customer gives up before anybody accepted, and says what she wants back."""

    refund_as: RefundAs = "money"


class Widen(Struct, frozen=True, tag=True):
    """The customer wants everybody asked now."""


class MechanicCancel(Struct, frozen=True, tag=True):
    """The mechanic who accepted gives the booking back."""

    mechanic_id: UUID
    reason: str | None = None


class Join(Struct, frozen=True, tag=True):
    """A participant enters the session."""

    user_id: UUID
    role: Role


class End(Struct, frozen=True, tag=True):
    """A participant leaves the session for good."""

    user_id: UUID


Event = (
    Open
    | Due
    | Seen
    | Accept
    | Decline
    | FavouriteLost
    | Cancel
    | Widen
    | MechanicCancel
    | Join
    | End
)


# --- what follows ---------------------------------------------------------------------------------


class Log(Struct, frozen=True):
    """One line of the booking's history (`session_events`). Every change has at least one."""

    type: str
    user_id: UUID | None = None
    detail: str | None = None


class Refund(Struct, frozen=True):
    """Give back what the customer paid, durably and once; nothing happens for an unpaid booking.

    What was paid with credits is credits again, whatever `refund_as` says.
    """

    reason: str
    refund_as: RefundAs = "money"


class EndRound(Struct, frozen=True):
    """The present round is over.

    `outcome` is what its losers are told; `status` what became of the assignment.
    """

    outcome: Literal["taken", "expired", "cancelled"]
    status: Literal["released", "completed"]


class StartRound(Struct, frozen=True):
    """A new round begins: the shell draws a random `offer_id` for the new generation."""


class Ask(Struct, frozen=True):
    """A mechanic is asked by name (kept in `offers`).

    `push`: also by a notification to her devices, because her sockets may not reach her.
    """

    mechanic_id: UUID
    attempt: int
    push: bool


class Summon(Struct, frozen=True):
    """An urgent booking is open to everyone: who is not online may be notified, if so few are."""


class Answered(Struct, frozen=True):
    """A mechanic saw or declined the present round (kept in `offers`)."""

    mechanic_id: UUID
    status: Literal["seen", "declined"]
    reason: str | None = None


Effect = Log | Refund | EndRound | StartRound | Ask | Summon | Answered


class Rejection(Struct, frozen=True):
    """Why an event changed nothing: the code for the client, the state and event for a human."""

    code: str
    state: str
    event: str


class Decision(Struct, frozen=True):
    """The booking afterwards, the effects to perform, or the rejection that left it as it was."""

    booking: Booking
    effects: tuple[Effect, ...] = ()
    rejection: Rejection | None = None
