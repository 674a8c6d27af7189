"""Deciding a recorded booking again, event by event, and saying where it comes out differently.

One job: take what was recorded of a real booking (R11a) through `decide` once more, with the times
and the policies of then, and compare each step and the end with what happened. Imports the core.

What is drawn or looked up outside the core is taken from the record: the `offer_id` of each round,
and when the waiver was signed, which is a fact beside the booking and no event of it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict, replace

from dispatch.core.lifecycle import UNTOUCHED, decide
from dispatch.core.types import (
    Booking,
    Event,
    Log,
    Policy,
    RequestStatus,
    SessionStatus,
    StartRound,
)


class Step(Struct, frozen=True, kw_only=True):
    """One recorded change: what happened, when and under which policy, and what was written.

    `version` is the booking's after it.
    """

    version: int
    at: datetime
    event: Event
    policy: Policy
    lines: tuple[Log, ...]


class Record(Struct, frozen=True, kw_only=True):
    """What is on record about one booking: how it was made, each change, and how it is now.

    `offer_ids` by generation.
    """

    now: Booking
    first_expires_at: datetime
    first_message: str
    offer_ids: Mapping[int, UUID]
    waiver_signed_at: datetime | None
    steps: Sequence[Step]


class Difference(Struct, frozen=True):
    """Where the core decides otherwise today: `what` (a field, the lines, a refusal)."""

    version: int
    what: str
    recorded: object
    decided: object


class Replay(Struct, frozen=True, kw_only=True):
    """The booking after each step, as far as it could be decided, and every difference."""

    bookings: tuple[Booking, ...]
    differences: tuple[Difference, ...]


def first_state(record: Record) -> Booking:
    """The booking as the factory made it."""
    now = record.now
    later = now.opens_at > now.created_at
    return replace(
        now,
        **UNTOUCHED,
        offer_id=record.offer_ids[1],
        waiver_signed=False,
        status=RequestStatus.SCHEDULED if later else RequestStatus.PENDING,
        session_status=SessionStatus.SCHEDULED if later else SessionStatus.PENDING,
        expires_at=record.first_expires_at,
        message=record.first_message,
    )


def replay(record: Record) -> Replay:
    """Decides every recorded event again. Stops at the first one that is refused today."""
    booking = first_state(record)
    bookings = [booking]
    differences: list[Difference] = []
    for step in record.steps:
        if step.version != booking.version + 1:
            differences.append(
                Difference(step.version, "version", step.version, booking.version + 1)
            )
            return Replay(bookings=tuple(bookings), differences=tuple(differences))
        signed_at = record.waiver_signed_at
        booking = replace(booking, waiver_signed=signed_at is not None and signed_at <= step.at)
        decision = decide(booking, step.event, step.at, step.policy)
        if decision.booking is booking:
            refusal = decision.rejection.code if decision.rejection else "no change"
            differences.append(Difference(step.version, "refused", None, refusal))
            return Replay(bookings=tuple(bookings), differences=tuple(differences))
        booking = decision.booking
        if StartRound() in decision.effects:
            booking = replace(booking, offer_id=record.offer_ids[booking.generation])
        bookings.append(booking)
        lines = tuple(effect for effect in decision.effects if isinstance(effect, Log))
        if lines != step.lines:
            differences.append(Difference(step.version, "lines", step.lines, lines))
    differences += _compare(record.now, booking)
    return Replay(bookings=tuple(bookings), differences=tuple(differences))


def _compare(recorded: Booking, decided: Booking) -> list[Difference]:
    """Field by field; the waiver may have been signed since."""
    decided = replace(decided, waiver_signed=recorded.waiver_signed)
    again = asdict(decided)
    return [
        Difference(recorded.version, name, value, again[name])
        for name, value in asdict(recorded).items()
        if value != again[name]
    ]
