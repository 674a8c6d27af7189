"""Who may have a booking, on what terms, and why not.

One job: the four strategies as pure functions of a booking and one candidate. A node asks them for
each of its own mechanics; the judge in Postgres applies the same rules to the one who accepts
(a property test holds the two together). Imports the core's types only.

    strategy             first stage                      then
    broadcast            open: everyone, 50
    workshop_only        open: the workshop, 100
    hybrid               preferred: the workshop, 100     open: workshop 100, others 50, free 25
    priority_broadcast   priority: the favourite, 100     open: favourite 100, everyone 50
"""

from datetime import datetime
from typing import Final, Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from dispatch.core.types import Booking, Candidate, Routing, Stage

SCORE_FAVOURITE: Final = 100
SCORE_WORKSHOP: Final = 100
SCORE_EVERYONE: Final = 50
SCORE_INDEPENDENT: Final = 25

Exclusion = Literal[
    "not_approved",
    "excluded",
    "not_specialist",
    "not_favourite",
    "other_workshop",
    "unavailable",
    "busy",
]


class Terms(Struct, frozen=True):
    """How a mechanic sees an offer. Everybody with equal terms gets the same bytes.

    `preferred`: the customer asked for her by name. `highlighted`: for her workshop.
    """

    score: int
    preferred: bool
    highlighted: bool


def not_meant(booking: Booking, candidate: Candidate) -> Exclusion | None:
    """Why this stage of the booking is not for this mechanic at all; None when it is.

    Looks at lasting facts only. Whether she is available or busy is another question, because a
    mechanic who was not meant must not learn that the booking exists.
    """
    if not candidate.approved:
        return "not_approved"
    if candidate.mechanic_id in booking.excluded:
        return "excluded"
    if booking.is_specialist and not candidate.is_specialist:
        return "not_specialist"
    if booking.stage is Stage.PRIORITY and candidate.mechanic_id != booking.preferred_mechanic_id:
        return "not_favourite"
    workshop_first = booking.stage is Stage.PREFERRED or booking.routing is Routing.WORKSHOP_ONLY
    if workshop_first and candidate.workshop_id != booking.preferred_workshop_id:
        return "other_workshop"
    return None


def by_hand(booking: Booking) -> Booking:
    """The booking as it is looked at when an admin gives it to somebody: whoever could serve it in
    its widest stage may have it, also who was passed over, has declined it or given it back."""
    return replace(booking, stage=Stage.OPEN, excluded=())


def exclusion(booking: Booking, candidate: Candidate, capacity: int) -> Exclusion | None:
    """Why this mechanic is not offered the booking in its present stage; None when she is (R5)."""
    reason = not_meant(booking, candidate)
    if reason is not None:
        return reason
    if not candidate.available:
        return "unavailable"
    if candidate.live_sessions >= capacity:
        return "busy"
    return None


def terms(booking: Booking, candidate: Candidate) -> Terms:
    """On what terms an eligible mechanic is offered the booking (R3, R4a)."""
    match booking.routing:
        case Routing.BROADCAST:
            return Terms(SCORE_EVERYONE, preferred=False, highlighted=False)
        case Routing.WORKSHOP_ONLY:
            return Terms(SCORE_WORKSHOP, preferred=False, highlighted=True)
        case Routing.HYBRID:
            if candidate.workshop_id == booking.preferred_workshop_id:
                return Terms(SCORE_WORKSHOP, preferred=False, highlighted=True)
            independent = candidate.workshop_id is None
            score = SCORE_INDEPENDENT if independent else SCORE_EVERYONE
            return Terms(score, preferred=False, highlighted=False)
        case Routing.PRIORITY:
            favourite = candidate.mechanic_id == booking.preferred_mechanic_id
            score = SCORE_FAVOURITE if favourite else SCORE_EVERYONE
            return Terms(score, preferred=favourite, highlighted=favourite)
        case _:  # pragma: no cover - mypy proves that there is no other
            assert_never(booking.routing)


def rank(booking: Booking, candidate: Candidate) -> tuple[bool, int, datetime]:
    """By which offers are put in order: urgent first, then score, then the oldest."""
    return not booking.urgent, -terms(booking, candidate).score, booking.created_at


# Why somebody has the score that she has, by strategy.
WHY_SCORE: Final[dict[tuple[Routing, int], str]] = {
    (Routing.BROADCAST, SCORE_EVERYONE): "everyone alike",
    (Routing.WORKSHOP_ONLY, SCORE_WORKSHOP): "of the chosen workshop",
    (Routing.HYBRID, SCORE_WORKSHOP): "of the chosen workshop",
    (Routing.HYBRID, SCORE_EVERYONE): "of another workshop",
    (Routing.HYBRID, SCORE_INDEPENDENT): "independent",
    (Routing.PRIORITY, SCORE_FAVOURITE): "the favourite",
    (Routing.PRIORITY, SCORE_EVERYONE): "not the favourite",
}

# Why a mechanic is not offered a booking, in words.
WHY_NOT: Final[dict[Exclusion, str]] = {
    "not_approved": "not approved",
    "excluded": "declined or cancelled this booking before",
    "not_specialist": "the customer wants a specialist",
    "not_favourite": "only the favourite is asked in this stage",
    "other_workshop": "only the chosen workshop is asked in this stage",
    "unavailable": "said that she is not available",
    "busy": "has as many live sessions as she may",
}
