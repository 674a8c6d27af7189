"""The life of a booking: what each event does to it, decided without doing anything.

One job: `decide(booking, event, now, policy)` returns the booking afterwards and the effects that
follow, or a rejection that names state and event and changes nothing. Imports the core only.

The theory: a booking has one status, and while it is pending one stage (who may take it). All of
its deadlines are instants in the booking itself, so that "time has passed" is one event, `Due`, and
any node may fire it, twice or late, without harm: what is no longer due changes nothing. Accepting
is judged by Postgres (`accept_offer`); the handler here says the same for the simulator and the
replay, and a property test compares the two.

What is ugly: `session_status` repeats most of `status`. It is kept because people look at the
session and nodes at the request, and `SESSION_OF` states which pairs exist.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from msgspec.structs import asdict, replace

from dispatch.core import messages, routing
from dispatch.core.types import (
    Accept,
    Answered,
    Ask,
    Booking,
    Cancel,
    Decision,
    Decline,
    Due,
    End,
    EndRound,
    Event,
    FavouriteLost,
    Join,
    Log,
    MechanicCancel,
    Open,
    Policy,
    Presence,
    Refund,
    Rejection,
    RequestStatus,
    Role,
    Routing,
    Seen,
    SessionStatus,
    Stage,
    StartRound,
    Summon,
    Widen,
    Wish,
)

# Which request statuses may follow which. Staying is always allowed while a request lives.
MOVES: Final[dict[RequestStatus, frozenset[RequestStatus]]] = {
    RequestStatus.SCHEDULED: frozenset(
        {
            RequestStatus.SCHEDULED,
            RequestStatus.PENDING,
            RequestStatus.CANCELLED,
            RequestStatus.EXPIRED,
        }
    ),
    RequestStatus.PENDING: frozenset(
        {
            RequestStatus.PENDING,
            RequestStatus.ACCEPTED,
            RequestStatus.CANCELLED,
            RequestStatus.EXPIRED,
        }
    ),
    RequestStatus.ACCEPTED: frozenset(
        {
            RequestStatus.ACCEPTED,
            RequestStatus.PENDING,
            RequestStatus.COMPLETED,
            RequestStatus.CANCELLED,
        }
    ),
    RequestStatus.COMPLETED: frozenset(),
    RequestStatus.CANCELLED: frozenset(),
    RequestStatus.EXPIRED: frozenset(),
}

# Which session statuses go with a request status.
SESSION_OF: Final[dict[RequestStatus, frozenset[SessionStatus]]] = {
    RequestStatus.SCHEDULED: frozenset({SessionStatus.SCHEDULED}),
    RequestStatus.PENDING: frozenset({SessionStatus.PENDING}),
    RequestStatus.ACCEPTED: frozenset({SessionStatus.ACCEPTED, SessionStatus.ACTIVE}),
    RequestStatus.COMPLETED: frozenset({SessionStatus.COMPLETED}),
    RequestStatus.CANCELLED: frozenset({SessionStatus.CANCELLED}),
    RequestStatus.EXPIRED: frozenset({SessionStatus.EXPIRED}),
}

LIVE: Final = frozenset(status for status, moves in MOVES.items() if moves)


class Deadline(StrEnum):
    """The kinds of instants at which something happens by itself (T1)."""

    OPENING = "opening"
    NEXT_ATTEMPT = "next_attempt"
    STAGE_END = "stage_end"
    EXPIRY = "expiry"
    JOIN_BY = "join_by"
    WARNING = "warning"
    END = "end"


def deadlines(booking: Booking, policy: Policy) -> dict[Deadline, datetime]:
    """Every deadline that the booking has now."""
    found: dict[Deadline, datetime | None] = {}
    match booking.session_status:
        case SessionStatus.SCHEDULED:
            found[Deadline.OPENING] = booking.next_attempt_at or booking.opens_at
        case SessionStatus.PENDING if booking.stage is None:
            found[Deadline.OPENING] = booking.opens_at
        case SessionStatus.PENDING:
            found[Deadline.EXPIRY] = booking.expires_at
            found[Deadline.STAGE_END] = booking.stage_ends_at
            found[Deadline.NEXT_ATTEMPT] = booking.next_attempt_at
        case SessionStatus.ACCEPTED:
            found[Deadline.JOIN_BY] = booking.join_by
        case SessionStatus.ACTIVE:
            found[Deadline.END] = booking.ends_at
            found[Deadline.WARNING] = _warning_at(booking, policy)
        case _:
            pass
    return {kind: at for kind, at in found.items() if at is not None}


def _warning_at(booking: Booking, policy: Policy) -> datetime | None:
    """When the end of a running session is announced; None once it was."""
    assert booking.ends_at is not None, "an active session has an end"
    if booking.warned_at is not None:
        return None
    return booking.ends_at - _seconds(policy.warning_seconds)


def due_at(booking: Booking, policy: Policy) -> datetime | None:
    """The least of all deadlines; None when nothing will happen by itself."""
    return min(deadlines(booking, policy).values(), default=None)


def opening_is_due(booking: Booking, now: datetime, policy: Policy) -> bool:
    """Whether the booking waits for its `Open` event, which needs to be told about people."""
    opening = deadlines(booking, policy).get(Deadline.OPENING)
    return opening is not None and opening <= now


def decide(booking: Booking, event: Event, now: datetime, policy: Policy) -> Decision:
    """What `event` does to `booking` at `now`.

    A changed booking has the next version. An event that changes nothing returns the very same
    booking: with a rejection when it was refused, without one when it was already so.
    """
    handler = HANDLERS[booking.status].get(type(event))
    if handler is None:
        return _reject(booking, event, _REFUSED.get(type(event), "not_open"))
    decision = handler(booking, event, now, policy)
    after = decision.booking
    if after is booking:
        return decision
    assert after.status in MOVES[booking.status], f"{booking.status} -> {after.status}"
    assert after.session_status in SESSION_OF[after.status]
    assert any(isinstance(effect, Log) for effect in decision.effects), "a change has a line"
    return replace(decision, booking=replace(after, version=booking.version + 1))


# What stands in a booking that nobody has been asked about, and nothing has happened to.
UNTOUCHED: Final[dict[str, Any]] = {
    "excluded": (),
    "stage": None,
    "generation": 1,
    "version": 1,
    "attempt": 1,
    "mechanic_id": None,
    "accept_id": None,
    "workshop_id": None,
    "customer_joined_at": None,
    "mechanic_joined_at": None,
    "accepted_at": None,
    "stage_ends_at": None,
    "next_attempt_at": None,
    "seen_at": None,
    "priority_notified_at": None,
    "fallback_broadcast_at": None,
    "join_by": None,
    "started_at": None,
    "ends_at": None,
    "warned_at": None,
    "ended_by": None,
}


def made(
    wish: Wish, request_id: UUID, session_id: UUID, offer_id: UUID, now: datetime, policy: Policy
) -> Booking:
    """A booking for now as the factory makes it: nobody has been asked yet."""
    return Booking(
        **asdict(wish),
        **UNTOUCHED,
        request_id=request_id,
        session_id=session_id,
        offer_id=offer_id,
        status=RequestStatus.PENDING,
        session_status=SessionStatus.PENDING,
        created_at=now,
        opens_at=now,
        slot_ends_at=None,
        expires_at=now + _seconds(policy.request_ttl_seconds),
        message=messages.CREATED,
    )


# --- opening ------------------------------------------------------------------------------------


def _open(booking: Booking, event: Open, now: datetime, policy: Policy) -> Decision:
    if not opening_is_due(booking, now, policy):
        return _reject(booking, event, "not_due")
    if booking.status is RequestStatus.SCHEDULED:
        if booking.slot_ends_at is not None and booking.slot_ends_at <= now:
            return _expire(booking, now)
        if event.customer_busy:
            later = now + _seconds(policy.offer_retry_seconds)
            return Decision(replace(booking, next_attempt_at=later), (Log("opening_postponed"),))
        booking = replace(
            booking,
            next_attempt_at=None,
            expires_at=now + _seconds(policy.request_ttl_seconds),
        )
    elif booking.expires_at <= now:
        return _expire(booking, now)
    opened = replace(
        booking, status=RequestStatus.PENDING, session_status=SessionStatus.PENDING, attempt=1
    )
    match booking.routing:
        case Routing.PRIORITY:
            return _open_priority(opened, event, now, policy)
        case Routing.HYBRID if event.preferred_online and policy.head_start_seconds > 0:
            ends_at = min(now + _seconds(policy.head_start_seconds), opened.expires_at)
            staged = replace(
                opened,
                stage=Stage.PREFERRED,
                stage_ends_at=ends_at,
                message=messages.ASKING_WORKSHOP,
            )
            return Decision(staged, (Log("opened", detail="preferred"),))
        case _:
            staged = replace(opened, stage=Stage.OPEN, message=messages.LOOKING)
            return Decision(staged, (Log("opened", detail="open"), *_summons(staged)))


def _open_priority(booking: Booking, event: Open, now: datetime, policy: Policy) -> Decision:
    lost = _why_favourite_is_lost(booking, event, policy)
    if lost is not None:
        fallen = _fall_back(booking, lost, now)
        return replace(fallen, effects=(Log("opened", detail="open"), *fallen.effects))
    waited_for = booking.wait_for_preferred and event.favourite_presence is not Presence.ONLINE
    window = policy.wait_window_seconds if waited_for else policy.priority_window_seconds
    next_attempt = None if waited_for else now + _seconds(policy.offer_retry_seconds)
    staged = replace(
        booking,
        stage=Stage.PRIORITY,
        stage_ends_at=min(now + _seconds(window), booking.expires_at),
        next_attempt_at=next_attempt,
        priority_notified_at=now,
        message=messages.WAITING_FOR_FAVOURITE if waited_for else messages.ASKING_FAVOURITE,
    )
    assert booking.preferred_mechanic_id is not None
    # Her devices are notified where no socket of hers is known to be open.
    push = event.favourite_presence is not Presence.ONLINE
    return Decision(
        staged,
        (Ask(booking.preferred_mechanic_id, 1, push), Log("opened", detail="priority")),
    )


def _why_favourite_is_lost(booking: Booking, event: Open, policy: Policy) -> str | None:
    if event.favourite is None:
        return "gone"
    in_priority = replace(booking, stage=Stage.PRIORITY)
    return routing.exclusion(in_priority, event.favourite, policy.mechanic_capacity)


# --- while it is pending ------------------------------------------------------------------------


def _due_pending(booking: Booking, event: Due, now: datetime, policy: Policy) -> Decision:
    """The gravest deadline first: who is late by hours must not be offered for an instant."""
    at = deadlines(booking, policy)
    if Deadline.OPENING in at:
        return _reject(booking, event, "not_due")
    if at[Deadline.EXPIRY] <= now:
        return _expire(booking, now)
    if Deadline.STAGE_END in at and at[Deadline.STAGE_END] <= now:
        if booking.stage is Stage.PRIORITY:
            return _fall_back(booking, "window_ended", now)
        return _widen_to_open(booking, "head_start_ended")
    if Deadline.NEXT_ATTEMPT in at and at[Deadline.NEXT_ATTEMPT] <= now:
        return _ask_again(booking, now, policy)
    return _reject(booking, event, "not_due")


def _ask_again(booking: Booking, now: datetime, policy: Policy) -> Decision:
    if booking.attempt >= policy.offer_attempts:
        return _fall_back(booking, "unseen", now)
    assert booking.preferred_mechanic_id is not None
    attempt = booking.attempt + 1
    asked = replace(
        booking, attempt=attempt, next_attempt_at=now + _seconds(policy.offer_retry_seconds)
    )
    log = Log("asked_again", asked.preferred_mechanic_id, f"{attempt} of {policy.offer_attempts}")
    # Unseen on her sockets, however open they look.
    return Decision(asked, (Ask(booking.preferred_mechanic_id, attempt, push=True), log))


def _seen(booking: Booking, event: Seen, now: datetime, policy: Policy) -> Decision:
    awaited = booking.stage is Stage.PRIORITY and booking.seen_at is None
    if not awaited or event.mechanic_id != booking.preferred_mechanic_id:
        return Decision(booking)
    return Decision(
        replace(booking, seen_at=now, next_attempt_at=None, message=messages.FAVOURITE_SAW),
        (Answered(event.mechanic_id, "seen"), Log("seen", event.mechanic_id)),
    )


def _accept(booking: Booking, event: Accept, now: datetime, policy: Policy) -> Decision:
    """The rule that `accept_offer` in Postgres applies; kept in its order of questions."""
    candidate = event.candidate
    if event.offer_id != booking.offer_id:
        return _reject(booking, event, "not_found")
    if booking.stage is None or not _is_meant(booking, event):
        return _reject(booking, event, "not_found")
    if booking.expires_at <= now:
        return _reject(booking, event, "expired")
    if not candidate.available:
        return _reject(booking, event, "unavailable")
    if candidate.live_sessions >= policy.mechanic_capacity:
        return _reject(booking, event, "busy")
    accepted = replace(
        booking,
        status=RequestStatus.ACCEPTED,
        session_status=SessionStatus.ACCEPTED,
        stage=None,
        stage_ends_at=None,
        next_attempt_at=None,
        mechanic_id=candidate.mechanic_id,
        workshop_id=candidate.workshop_id,
        accept_id=event.accept_id,
        accepted_at=now,
        join_by=now + _seconds(policy.join_seconds),
        message=messages.ACCEPTED,
    )
    return Decision(accepted, (Log("accepted", candidate.mechanic_id),))


def _decline(booking: Booking, event: Decline, now: datetime, policy: Policy) -> Decision:
    mechanic_id = event.candidate.mechanic_id
    if event.offer_id != booking.offer_id or booking.stage is None:
        return _reject(booking, event, "not_found")
    if mechanic_id in booking.excluded:
        return Decision(booking)
    if booking.expires_at <= now:
        return _expire(booking, now)
    if routing.not_meant(booking, event.candidate) is not None:
        return _reject(booking, event, "not_found")
    declined = replace(booking, excluded=(*booking.excluded, mechanic_id))
    answered = (
        Answered(mechanic_id, "declined", event.reason),
        Log("declined", mechanic_id, event.reason),
    )
    if booking.stage is not Stage.PRIORITY:
        return Decision(declined, answered)
    fallen = _fall_back(declined, "declined", now)
    return replace(fallen, effects=(*answered, *fallen.effects))


def _favourite_lost(
    booking: Booking, event: FavouriteLost, now: datetime, policy: Policy
) -> Decision:
    if booking.stage is not Stage.PRIORITY:
        return _reject(booking, event, "not_due")
    if booking.expires_at <= now:
        return _expire(booking, now)
    return _fall_back(booking, event.reason, now)


def _widen(booking: Booking, event: Widen, now: datetime, policy: Policy) -> Decision:
    if booking.stage is not None and booking.expires_at <= now:
        return _expire(booking, now)
    match booking.stage:
        case Stage.PRIORITY:
            return _fall_back(booking, "customer_widened", now)
        case Stage.PREFERRED:
            return _widen_to_open(booking, "customer_widened")
        case _:
            return _reject(booking, event, "nothing_to_widen")


def _fall_back(booking: Booking, reason: str, now: datetime) -> Decision:
    """From the favourite to everyone (F4). She keeps the card that she may be looking at (R11)."""
    return _widen_to_open(
        replace(booking, fallback_broadcast_at=now),
        reason,
        messages.LOOKING if reason == "customer_widened" else messages.FALLEN_BACK,
    )


def _widen_to_open(booking: Booking, reason: str, message: str = messages.LOOKING) -> Decision:
    widened = replace(
        booking,
        stage=Stage.OPEN,
        stage_ends_at=None,
        next_attempt_at=None,
        attempt=1,
        message=message,
    )
    return Decision(widened, (Log("widened", detail=reason), *_summons(widened)))


def _summons(booking: Booking) -> tuple[Summon, ...]:
    return (Summon(),) if booking.urgent else ()


# --- after an accept ------------------------------------------------------------------------------


def _is_meant(booking: Booking, event: Accept) -> bool:
    offered = booking if event.assigned_by is None else routing.by_hand(booking)
    return routing.not_meant(offered, event.candidate) is None


def _accept_late(booking: Booking, event: Accept, now: datetime, policy: Policy) -> Decision:
    """The round is over. Its winner has won; who was never meant must not learn that it existed."""
    if event.offer_id != booking.offer_id:
        return _reject(booking, event, "not_found")
    if event.candidate.mechanic_id == booking.mechanic_id:
        return Decision(booking)
    if not _is_meant(booking, event):
        return _reject(booking, event, "not_found")
    taken = booking.mechanic_id is not None
    return _reject(booking, event, "taken" if taken else booking.status.value)


def _due_accepted(booking: Booking, event: Due, now: datetime, policy: Policy) -> Decision:
    at = deadlines(booking, policy)
    if Deadline.JOIN_BY in at and at[Deadline.JOIN_BY] <= now:
        if booking.customer_joined_at is not None:
            return _reopen(booking, "mechanic_absent", now, policy)
        return _cancel_after_accept(booking, "customer_absent")
    if Deadline.END in at and at[Deadline.END] <= now:
        return _complete(booking, ended_by=None)
    if Deadline.WARNING in at and at[Deadline.WARNING] <= now:
        return Decision(replace(booking, warned_at=now), (Log("warned"),))
    return _reject(booking, event, "not_due")


def _mechanic_cancel(
    booking: Booking, event: MechanicCancel, now: datetime, policy: Policy
) -> Decision:
    if event.mechanic_id != booking.mechanic_id:
        return _reject(booking, event, "not_found")
    if booking.session_status is SessionStatus.ACTIVE:
        return _reject(booking, event, "not_open")
    return _reopen(booking, event.reason or "mechanic_cancelled", now, policy)


def _reopen(booking: Booking, reason: str, now: datetime, policy: Policy) -> Decision:
    """O4: again to the widest pool, without this mechanic, with a fresh time-to-live."""
    assert booking.mechanic_id is not None
    reopened = replace(
        booking,
        status=RequestStatus.PENDING,
        session_status=SessionStatus.PENDING,
        stage=Stage.OPEN,
        generation=booking.generation + 1,
        attempt=1,
        excluded=(*booking.excluded, booking.mechanic_id),
        mechanic_id=None,
        workshop_id=None,
        accept_id=None,
        accepted_at=None,
        seen_at=None,
        mechanic_joined_at=None,
        join_by=None,
        expires_at=now + _seconds(policy.request_ttl_seconds),
        message=messages.MECHANIC_CANCELLED,
    )
    return Decision(
        reopened,
        (
            EndRound("taken", "released"),
            StartRound(),
            Log("mechanic_cancelled", booking.mechanic_id, reason),
            *_summons(reopened),
        ),
    )


def _join(booking: Booking, event: Join, now: datetime, policy: Policy) -> Decision:
    if booking.join_by is not None and booking.join_by <= now:
        return _due_accepted(booking, Due(), now, policy)  # too late, whoever finds it first
    if event.role is Role.CUSTOMER:
        if not booking.waiver_signed:
            return _reject(booking, event, "waiver_required")
        if booking.customer_joined_at is not None:
            return Decision(booking)
        joined = replace(booking, customer_joined_at=now)
    else:
        if event.user_id != booking.mechanic_id:
            taken = booking.mechanic_id is not None
            return _reject(booking, event, "already_joined" if taken else "not_open")
        if booking.mechanic_joined_at is not None:
            return Decision(booking)
        joined = replace(booking, mechanic_joined_at=now, message=messages.MECHANIC_JOINED)
    log = Log("joined", event.user_id)
    if joined.customer_joined_at is None or joined.mechanic_joined_at is None:
        return Decision(joined, (log,))
    minutes = _seconds(booking.minutes * policy.plan_minute_seconds)
    active = replace(
        joined,
        session_status=SessionStatus.ACTIVE,
        started_at=now,
        ends_at=now + minutes,
        join_by=None,
        message=messages.STARTED,
    )
    return Decision(active, (log, Log("started")))


# --- ending ---------------------------------------------------------------------------------------


def _cancel(booking: Booking, event: Cancel | End, now: datetime, policy: Policy) -> Decision:
    if isinstance(event, End) and event.user_id != booking.customer_id:
        return _reject(booking, event, "not_found")  # she took part, and does no longer
    refund_as = event.refund_as if isinstance(event, Cancel) else "money"
    return Decision(
        replace(
            _closed(booking, RequestStatus.CANCELLED),
            ended_by=booking.customer_id,
            message=messages.CANCELLED,
        ),
        (EndRound("cancelled", "released"), Refund("cancelled", refund_as), Log("cancelled")),
    )


def _expire(booking: Booking, now: datetime) -> Decision:
    return Decision(
        replace(_closed(booking, RequestStatus.EXPIRED), message=messages.EXPIRED),
        (EndRound("expired", "released"), Refund("expired"), Log("expired")),
    )


def _end(booking: Booking, event: End, now: datetime, policy: Policy) -> Decision:
    if event.user_id not in (booking.customer_id, booking.mechanic_id):
        return _reject(booking, event, "not_found")
    if booking.session_status is SessionStatus.ACTIVE:
        return _complete(booking, ended_by=event.user_id)
    if event.user_id == booking.mechanic_id:
        return _reopen(booking, "mechanic_left", now, policy)
    return _cancel_after_accept(replace(booking, ended_by=event.user_id), "customer_left")


def _cancel_after_accept(booking: Booking, reason: str) -> Decision:
    return Decision(
        replace(_closed(booking, RequestStatus.CANCELLED), message=messages.CANCELLED),
        (EndRound("taken", "released"), Refund(reason), Log("cancelled", detail=reason)),
    )


def _complete(booking: Booking, ended_by: UUID | None) -> Decision:
    completed = replace(
        _closed(booking, RequestStatus.COMPLETED), ended_by=ended_by, message=messages.COMPLETED
    )
    return Decision(completed, (EndRound("taken", "completed"), Log("completed", ended_by)))


def _already_so(booking: Booking, event: Event, now: datetime, policy: Policy) -> Decision:
    return Decision(booking)


def _closed(booking: Booking, status: RequestStatus) -> Booking:
    return replace(
        booking,
        status=status,
        session_status=SessionStatus(status.value),
        stage=None,
        stage_ends_at=None,
        next_attempt_at=None,
        join_by=None,
    )


# --- the table ------------------------------------------------------------------------------------

Handler = Callable[[Booking, Any, datetime, Policy], Decision]


def _join_ended(booking: Booking, event: Join, now: datetime, policy: Policy) -> Decision:
    return _reject(booking, event, "session_ended")


_ENDED: Final[dict[type[Event], Handler]] = {
    Accept: _accept_late,
    Join: _join_ended,
    End: _already_so,
}

# Every transition: what an event does in a status. A pair that is not here is refused.
HANDLERS: Final[dict[RequestStatus, dict[type[Event], Handler]]] = {
    RequestStatus.SCHEDULED: {
        Open: _open,
        Cancel: _cancel,
        End: _cancel,
    },
    RequestStatus.PENDING: {
        Open: _open,
        Due: _due_pending,
        Seen: _seen,
        Accept: _accept,
        Decline: _decline,
        FavouriteLost: _favourite_lost,
        Cancel: _cancel,
        Widen: _widen,
        Join: _join,
        End: _cancel,
    },
    RequestStatus.ACCEPTED: {
        Due: _due_accepted,
        Accept: _accept_late,
        MechanicCancel: _mechanic_cancel,
        Join: _join,
        End: _end,
    },
    RequestStatus.COMPLETED: _ENDED,
    RequestStatus.CANCELLED: _ENDED,
    RequestStatus.EXPIRED: _ENDED,
}

# The code of a refusal where the status has no handler; `not_open` where nothing is said here.
_REFUSED: Final[dict[type[Event], str]] = {
    Open: "not_due",
    Due: "not_due",
    FavouriteLost: "not_due",
    Seen: "not_found",
    Accept: "not_found",
    Decline: "not_found",
    Widen: "nothing_to_widen",
}


def _reject(booking: Booking, event: Event, code: str) -> Decision:
    state = booking.status.value if booking.stage is None else f"pending/{booking.stage.value}"
    return Decision(booking, (), Rejection(code, state, type(event).__name__))


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
