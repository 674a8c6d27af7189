"""Why a request went as it did, from what is on record (R9).

One job: read the rows of one request and tell them candidate by candidate: sent at which score in
which stage, seen, answered; or excluded, and why. The audit trail is written in batches, so up to a
second of it may be lost with a killed node: a mechanic who answered without a record of the offer
is shown with `sent` unknown (null).
"""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from dispatch import queries
from dispatch.config import Config
from dispatch.core import lifecycle
from dispatch.core.types import Policy
from dispatch.database import Pool, close_pool, open_pool, unavailable_when_lost
from dispatch.errors import NotFound
from dispatch.hints import Entry
from dispatch.store import Store

_SQL: Final = queries.load("explain")

# Why a connected mechanic was not asked, in words.
_REASONS: Final = {
    "not_approved": "not approved",
    "excluded": "declined or cancelled this booking before",
    "not_specialist": "the customer wants a specialist",
    "unavailable": "said that she is not available",
    "busy": "has as many live sessions as she may",
}


class CandidateStory(Struct, kw_only=True):
    """One mechanic in one round."""

    generation: int
    mechanic_id: UUID
    name: str
    eligible: bool
    stage: str | None = None
    rule: str | None = None
    score: int | None = None
    sent_at: datetime | None = None
    times_sent: int = 0
    seen_at: datetime | None = None
    answer: str | None = None
    answered_at: datetime | None = None
    reason: str | None = None


class Line(Struct, frozen=True, kw_only=True):
    """One event of the history."""

    at: datetime
    type: str
    name: str | None
    detail: str | None


class Round(Struct, frozen=True, kw_only=True):
    """One generation."""

    generation: int
    status: str
    outcome: str | None
    mechanic_name: str | None
    offered_at: datetime
    ended_at: datetime | None


class Explanation(Struct, frozen=True, kw_only=True):
    """Everything that is on record about one request."""

    request_id: UUID
    session_id: UUID
    strategy: str
    status: str
    stage: str | None
    message: str
    deadlines: dict[str, datetime]
    rounds: list[Round]
    candidates: list[CandidateStory]
    history: list[Line]


async def explanation(pool: Pool, request_id: UUID, policy: Policy) -> Explanation:
    """The story of a request. Raises `NotFound` and `Unavailable`."""
    entry = await Store(pool).entry(request_id)
    if entry is None:
        raise NotFound("no such request")
    async with unavailable_when_lost(), pool.acquire() as connection:
        rows = {name: await connection.fetch(query, request_id) for name, query in _SQL.items()}
    booking = entry.booking
    return Explanation(
        request_id=request_id,
        session_id=booking.session_id,
        strategy=booking.routing.value,
        status=booking.status.value,
        stage=None if booking.stage is None else booking.stage.value,
        message=booking.message,
        deadlines={kind.value: at for kind, at in lifecycle.deadlines(booking, policy).items()},
        rounds=[
            Round(**{name: row[name] for name in Round.__struct_fields__}) for row in rows["rounds"]
        ],
        candidates=_candidates(entry, rows),
        history=[
            Line(**{name: row[name] for name in Line.__struct_fields__}) for row in rows["events"]
        ],
    )


def _candidates(entry: Entry, rows: dict[str, Any]) -> list[CandidateStory]:
    """The mechanics of all rounds: who was sent it, who answered, who was excluded."""
    stories: dict[tuple[int, UUID], CandidateStory] = {}

    def story(row: Any, eligible: bool) -> CandidateStory:
        key = (row["generation"], row["mechanic_id"])
        if key not in stories:
            stories[key] = CandidateStory(
                generation=key[0], mechanic_id=key[1], name=row["name"], eligible=eligible
            )
        return stories[key]

    for row in rows["sent"]:
        told = story(row, eligible=True)
        if told.sent_at is None:
            told.sent_at, told.stage, told.score = row["sent_at"], row["stage"], row["score"]
            told.rule = f"{entry.booking.routing.value}, stage {row['stage']}"
        told.times_sent += 1
    for row in rows["seen"]:
        known = stories.get((row["generation"], row["mechanic_id"]))
        if known is not None:
            known.seen_at = row["seen_at"]
    for row in rows["answers"]:
        told = story(row, eligible=True)
        told.answer, told.answered_at, told.reason = (
            row["status"],
            row["answered_at"],
            row["reason"],
        )
    for row in rows["excluded"]:
        told = story(row, eligible=False)
        if not told.eligible:
            told.stage, told.rule = row["stage"], _REASONS.get(row["reason"], row["reason"])
    return list(stories.values())


async def explain(config: Config, request_id: UUID) -> str:
    """The same as text, for the command line."""
    pool = await open_pool(config.database_url, size=1)
    try:
        return as_text(await explanation(pool, request_id, config.policy()))
    finally:
        await close_pool(pool)


def as_text(told: Explanation) -> str:
    """An explanation in lines that a person reads."""
    lines = [
        f"request {told.request_id}  ({told.strategy})  is {told.status}"
        + (f", stage {told.stage}" if told.stage else ""),
        f"  the customer reads: {told.message}",
    ]
    lines += [f"  {kind} at {_clock(at)}" for kind, at in told.deadlines.items()]
    lines.append("history")
    for line in told.history:
        extra = " ".join(part for part in (line.name, line.detail) if part)
        lines.append(f"  {_clock(line.at)}  {line.type:<20} {extra}")
    for turn in told.rounds:
        winner = f" by {turn.mechanic_name}" if turn.mechanic_name else ""
        lines.append(f"round {turn.generation}: {turn.outcome or turn.status}{winner}")
        lines += [
            f"  {_candidate(each)}"
            for each in told.candidates
            if each.generation == turn.generation
        ]
    return "\n".join(lines)


def _candidate(each: CandidateStory) -> str:
    if not each.eligible:
        return f"{each.name:<24} not asked: {each.rule}"
    parts = [f"{each.name:<24} score {'?' if each.score is None else each.score:>3}"]
    parts.append(f"sent {_clock(each.sent_at)}" if each.sent_at else "sent: unknown")
    if each.times_sent > 1:
        parts.append(f"({each.times_sent} times)")
    if each.seen_at:
        parts.append(f"seen {_clock(each.seen_at)}")
    if each.answer:
        because = f" ({each.reason})" if each.reason else ""
        parts.append(f"{each.answer}{because}")
    return "  ".join(parts)


def _clock(at: datetime) -> str:
    return at.strftime("%H:%M:%S.%f")[:-3]
