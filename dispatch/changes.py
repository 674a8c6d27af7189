"""One change of a booking as one document: all that it writes, in one statement.

One job: turn what the core decided into the JSON of the type `change` in schema.sql. It decides
nothing and does no I/O. Imports the core.
"""

from datetime import datetime
from typing import Final, Literal, assert_never
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from dispatch.core import lifecycle, routing
from dispatch.core.types import (
    Answered,
    Ask,
    Booking,
    Decision,
    EndRound,
    Event,
    Log,
    Policy,
    Refund,
    StartRound,
    Summon,
)

_encode: Final = msgspec.json.Encoder().encode


class Change(Struct, kw_only=True):
    """Field for field the type `change`; what stands there says what the fields mean."""

    booking: Booking
    due_at: datetime | None
    at: datetime
    event: Event
    policy_id: UUID
    lines: list[Log]
    round_offer_id: UUID
    round_generation: int
    round_stage: str | None
    ended_outcome: str | None = None
    ended_status: str | None = None
    starts_round: bool = False
    asked_id: UUID | None = None
    asked_score: int | None = None
    asked_attempt: int | None = None
    answered_id: UUID | None = None
    answered_status: Literal["seen", "declined"] | None = None
    answered_reason: str | None = None
    policy: Policy | None = None

    def document(self) -> str:
        """The JSON that `write_change` and the factory take."""
        return _encode(self).decode()


def change_of(
    before: Booking,
    event: Event,
    decision: Decision,
    at: datetime,
    policy: Policy,
    policy_id: UUID,
    next_offer_id: UUID,
) -> Change:
    """What the decision makes of `before`, at the time `at` that judged it.

    `next_offer_id` names the round that begins, if one does. Refunds and notifications are not
    part of it: they are queued beside it.
    """
    booking = decision.booking
    if StartRound() in decision.effects:
        booking = replace(booking, offer_id=next_offer_id)
    change = Change(
        booking=booking,
        due_at=lifecycle.due_at(booking, policy),
        at=at,
        event=event,
        policy_id=policy_id,
        lines=[effect for effect in decision.effects if isinstance(effect, Log)],
        round_offer_id=before.offer_id,
        round_generation=before.generation,
        round_stage=before.stage,
    )
    for effect in decision.effects:
        match effect:
            case EndRound(outcome, status):
                change.ended_outcome, change.ended_status = outcome, status
            case StartRound():
                change.starts_round = True
            case Ask(mechanic_id, attempt):
                change.asked_id, change.asked_attempt = mechanic_id, attempt
                change.asked_score = routing.SCORE_FAVOURITE
            case Answered(mechanic_id, answer, reason):
                change.answered_id, change.answered_status = mechanic_id, answer
                change.answered_reason = reason
            case Log() | Refund() | Summon():
                pass
            case _ as unreachable:
                assert_never(unreachable)
    return change
