"""Why a mechanic gets no offers, told to herself (R9).

One job: put together what keeps her from offers now, what is open and why it is not for her, and
what she was offered of late. Of bookings that are not for her she gets counts by reason, and
nothing that tells one from another. Imports `core.routing` (the rules, applied to the board as
fan-out does), `board`, `presence`, `store` and `track_record`. Raises `NotFound` and `Unavailable`.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from msgspec import Struct

from dispatch import queries, track_record
from dispatch.board import Board
from dispatch.core import routing
from dispatch.core.types import Candidate, Presence
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import NotFound
from dispatch.presence import PresenceRegistry
from dispatch.protocol import timestamp
from dispatch.store import Store

LATELY: Final = timedelta(hours=24)
# What one answer looks at of the audit trail. All of a busy day (5,000 broadcasts to 1,000
# mechanics) takes Postgres 150 ms; so much of it, the last two hours, 20 ms.
MAX_DECISIONS: Final = 5_000
MAX_BYTES: Final = 16 * 1024 * 1024

_SQL: Final = queries.load("why_no_offers")

Code = Literal[
    "not_approved",
    "not_connected",
    "presence_unknown",
    "unavailable",
    "busy",
    "nothing_open",
    "nothing_for_you",
]

_APPLICATIONS: Final = {
    "pending": "Your application waits for an administrator.",
    "rejected": "Your application was rejected.",
    "approved": "Your account is closed.",
}
_MESSAGES: Final[dict[Code, str]] = {
    "not_connected": "You are not connected. Offers come while your page is open.",
    "presence_unknown": "We cannot tell at the moment whether you are connected. "
    "While your page is open, offers come all the same.",
    "unavailable": "You said that you are not available.",
    "busy": "You have as many sessions as you may have at a time.",
    "nothing_open": "Nobody waits for a mechanic at the moment.",
    "nothing_for_you": "What is open is for others: not_for_you says why.",
}
# They pass by themselves or when she says so; the other exclusions are about who she is.
_PASSING: Final = {"unavailable", "busy"}


class Reason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that keeps her from offers; her application's status where that is it."""

    code: Code
    message: str
    application_status: str | None = None


class OpenRequests(Struct, frozen=True, kw_only=True):
    """What is open now: how much of it is offered to her, and of the rest how much for what reason.

    While she is not connected, `offered` is what she will see when she comes.
    """

    offered: int
    not_for_you: dict[str, int]


class Lately(Struct, frozen=True, kw_only=True):
    """What is on record of her since `since`; a round counts once, however often it was sent.

    Of offers (sent, seen, last) only since `offers_since`, which is later where there were too many
    to look at.
    """

    since: str
    offers_since: str
    offers_sent: int
    offers_seen: int
    accepted: int
    declined: int
    lost: dict[str, int]
    last_offer_at: str | None


class Answer(Struct, frozen=True, kw_only=True):
    """`GET /api/mechanic/why-no-offers`. No reasons: nothing keeps her from offers."""

    reasons: list[Reason]
    open_requests: OpenRequests
    lately: Lately


async def why_no_offers(
    store: Store,
    presence: PresenceRegistry,
    board: Board,
    mechanic_id: UUID,
    *,
    capacity: int,
    now: datetime,
) -> Answer:
    """What she is told at `now`. Raises `NotFound` for who is no mechanic, and `Unavailable`."""
    candidate = await store.candidate(mechanic_id)
    if candidate is None:
        raise NotFound("no such mechanic")
    known = (await presence.look_up([mechanic_id]))[mechanic_id].presence
    application = None if candidate.approved else await _application(store.pool, mechanic_id)
    lately = await _lately(store.pool, mechanic_id, now - LATELY)
    open_requests = _open_requests(board, candidate, capacity)
    codes = _codes(candidate, known, capacity, open_requests)
    reasons = [Reason(code=code, message=_MESSAGES[code]) for code in codes]
    return Answer(
        reasons=reasons if application is None else [application, *reasons],
        open_requests=open_requests,
        lately=lately,
    )


def _open_requests(board: Board, candidate: Candidate, capacity: int) -> OpenRequests:
    """Every open booking by the rule that keeps it from her, or None (10,000 of them: 4 ms).

    Anybody can apply, so who is not approved is not told how much there is to do.
    """
    if not candidate.approved:
        return OpenRequests(offered=0, not_for_you={})
    by_rule = Counter(
        routing.exclusion(entry.booking, candidate, capacity) for entry in board.open_entries()
    )
    offered = by_rule.pop(None, 0)
    return OpenRequests(
        offered=offered, not_for_you={str(rule): count for rule, count in by_rule.items()}
    )


def _codes(
    candidate: Candidate, presence: Presence, capacity: int, open_requests: OpenRequests
) -> Iterator[Code]:
    """What keeps her from offers, her application aside."""
    if candidate.approved and presence is Presence.OFFLINE:  # others have none, connected or not
        yield "not_connected"
    if candidate.approved and presence is Presence.UNKNOWN:
        yield "presence_unknown"
    if not candidate.available:
        yield "unavailable"
    if candidate.live_sessions >= capacity:
        yield "busy"
    if candidate.approved and not open_requests.offered:
        rules = open_requests.not_for_you.keys()
        if not rules:
            yield "nothing_open"
        elif not rules & _PASSING:
            yield "nothing_for_you"


async def _application(pool: Pool, mechanic_id: UUID) -> Reason:
    async with unavailable_when_lost():
        status = await pool.fetchval(_SQL["application"], mechanic_id)
    return Reason(code="not_approved", message=_APPLICATIONS[status], application_status=status)


async def _lately(pool: Pool, mechanic_id: UUID, since: datetime) -> Lately:
    async with unavailable_when_lost(), pool.acquire() as connection:
        offers_since = await track_record.reach(connection, since, MAX_DECISIONS, MAX_BYTES)
        offers = await connection.fetchrow(_SQL["offers"], mechanic_id, offers_since)
        answers = await track_record.answers(connection, mechanic_id, since, offers_since)
    assert offers is not None
    return Lately(
        since=timestamp(since),
        offers_since=timestamp(offers_since),
        offers_sent=offers["sent"],
        offers_seen=offers["seen"],
        accepted=answers.won,
        declined=answers.declined,
        lost=answers.lost,
        last_offer_at=None if offers["last_at"] is None else timestamp(offers["last_at"]),
    )
