"""What people see of a booking: the frames of the wire made from an entry.

One job: translate. Pure functions of an entry and a moment; imports the core, `hints` and
`protocol`.
"""

from datetime import datetime
from typing import Final, Literal

from dispatch.core import messages, routing
from dispatch.core.types import RequestStatus, Role, SessionStatus, Stage
from dispatch.hints import Entry, Message
from dispatch.protocol import (
    BoardRequest,
    ChatMessage,
    MechanicCard,
    Offer,
    RequestState,
    RevokeReason,
    SessionState,
    SessionWarning,
    timestamp,
)

# What a mechanic who held a card is told when its booking is in this status.
REVOKED: Final[dict[RequestStatus, RevokeReason]] = {
    RequestStatus.PENDING: "taken",  # in a newer round: somebody had it and gave it back
    RequestStatus.ACCEPTED: "taken",
    RequestStatus.COMPLETED: "taken",
    RequestStatus.CANCELLED: "cancelled",
    RequestStatus.EXPIRED: "expired",
}


def offer(entry: Entry, terms: routing.Terms, now: datetime) -> Offer:
    """The card of an open booking for everybody with these terms."""
    booking, display = entry.booking, entry.display
    assert booking.stage is not None
    return Offer(
        offer_id=booking.offer_id,
        request_id=booking.request_id,
        generation=booking.generation,
        stage=booking.stage.value,
        score=terms.score,
        preferred=terms.preferred,
        highlighted=terms.highlighted,
        session_type=booking.session_type,
        plan_code=booking.plan_code,
        minutes=booking.minutes,
        urgent=booking.urgent,
        is_specialist=booking.is_specialist,
        customer_name=display.customer_name,
        created_at=timestamp(booking.created_at),
        expires_at=timestamp(booking.expires_at),
        server_time=timestamp(now),
        attempt=booking.attempt,
        vehicle=display.vehicle,
        concern=display.concern,
        workshop_id=booking.preferred_workshop_id,
        exclusive_until=_optional(booking.stage_ends_at),
    )


def request_state(entry: Entry, notified: int, online: int, now: datetime) -> RequestState:
    """How the customer sees the dispatching of her booking."""
    booking = entry.booking
    message = booking.message
    if booking.stage is Stage.PRIORITY and notified and message == messages.WAITING_FOR_FAVOURITE:
        message = messages.FAVOURITE_ASKED
    looking = message in (messages.LOOKING, messages.FALLEN_BACK)
    if booking.stage is Stage.OPEN and online == 0 and looking:
        message = messages.NOBODY_ONLINE
    return RequestState(
        request_id=booking.request_id,
        session_id=booking.session_id,
        version=booking.version,
        status=booking.status.value,
        expires_at=timestamp(booking.expires_at),
        mechanics_notified=notified,
        mechanics_online=online,
        message=message,
        server_time=timestamp(now),
        stage=None if booking.stage is None else booking.stage.value,
        stage_ends_at=_optional(booking.stage_ends_at),
        next_stage="open" if booking.stage in (Stage.PRIORITY, Stage.PREFERRED) else None,
        mechanic=_mechanic(entry),
    )


def _mechanic(entry: Entry) -> MechanicCard | None:
    booking, display = entry.booking, entry.display
    if booking.mechanic_id is None:
        return None
    return MechanicCard(
        id=booking.mechanic_id,
        name=display.mechanic_name or "",
        workshop_id=display.mechanic_workshop_id,
        rating=display.mechanic_rating,
    )


def board_request(entry: Entry, notified: int, online: int) -> BoardRequest:
    """How operators see a booking."""
    booking = entry.booking
    return BoardRequest(
        request_id=booking.request_id,
        session_id=booking.session_id,
        version=booking.version,
        status=booking.status.value,
        session_status=booking.session_status,
        session_type=booking.session_type,
        plan_code=booking.plan_code,
        minutes=booking.minutes,
        routing_type=booking.routing,
        urgent=booking.urgent,
        is_specialist=booking.is_specialist,
        generation=booking.generation,
        attempt=booking.attempt,
        customer_name=entry.display.customer_name,
        created_at=timestamp(booking.created_at),
        expires_at=timestamp(booking.expires_at),
        mechanics_notified=notified,
        mechanics_online=online,
        message=booking.message,
        stage=None if booking.stage is None else booking.stage.value,
        stage_ends_at=_optional(booking.stage_ends_at),
        next_attempt_at=_optional(booking.next_attempt_at),
        opens_at=timestamp(booking.opens_at) if booking.opens_at > booking.created_at else None,
        join_by=_optional(booking.join_by),
        started_at=_optional(booking.started_at),
        ends_at=_optional(booking.ends_at),
        workshop_id=booking.workshop_id,
        preferred_workshop_id=booking.preferred_workshop_id,
        preferred_mechanic_id=booking.preferred_mechanic_id,
        mechanic=_mechanic(entry),
    )


def session_state(entry: Entry, viewer: Role, now: datetime, re: str | None = None) -> SessionState:
    """How a participant sees the session."""
    booking = entry.booking
    completed = booking.session_status is SessionStatus.COMPLETED
    ended = booking.session_status in (SessionStatus.COMPLETED, SessionStatus.CANCELLED)
    ended_by: str | None = None
    if ended:
        ended_by = str(booking.ended_by or "system")
    return SessionState(
        re=re,
        session_id=booking.session_id,
        version=booking.version,
        status=booking.session_status,
        mechanics_connected=int(booking.mechanic_joined_at is not None),
        server_time=timestamp(now),
        started_at=_optional(booking.started_at),
        ends_at=_optional(booking.ends_at),
        ended_by=ended_by,
        prompt=_prompt(entry) if completed and viewer is Role.CUSTOMER else None,
    )


def _prompt(entry: Entry) -> Literal["favorite", "rate"] | None:
    """What the customer is asked after the end: first whether she would like her again (S9)."""
    if not entry.display.is_favorite:
        return "favorite"
    return None if entry.display.is_rated else "rate"


def chat_message(message: Message, re: str | None = None) -> ChatMessage:
    """What somebody said, as everybody in the session sees it."""
    return ChatMessage(
        re=re,
        session_id=message.session_id,
        message_id=message.message_id,
        seq=message.seq,
        client_message_id=message.client_message_id,
        sender_id=message.sender_id,
        sender_role="customer" if message.sender_role is Role.CUSTOMER else "mechanic",
        body=message.body,
        sent_at=timestamp(message.sent_at),
    )


def session_warning(entry: Entry, now: datetime) -> SessionWarning | None:
    """The warning before the end; None when the session is not running."""
    booking = entry.booking
    if booking.ends_at is None or booking.session_status is not SessionStatus.ACTIVE:
        return None
    return SessionWarning(
        session_id=booking.session_id,
        ends_at=timestamp(booking.ends_at),
        seconds_left=max(0, round((booking.ends_at - now).total_seconds())),
        server_time=timestamp(now),
    )


def _optional(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)
