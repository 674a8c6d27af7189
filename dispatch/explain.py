"""Why a request went as it did, mechanic by mechanic, from what is on record (R8, R8a, R9).

One job: read the rows of one request and tell them. Whoever was asked or ruled out by a fact about
herself is on record by name: sent at which score in which stage, seen, answered, or why not. Whom
the strategy itself rules out (another workshop, not the favourite) and who was not connected are
counted, by the rules and by what is known of them today. The trail is written in batches, so up to
a second of it may be lost with a killed node: who answered without a record of the offer has an
empty `sent`. Imports `core`, `database`, `queries` and `store`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
from msgspec import Struct
from msgspec.structs import replace

from dispatch import queries
from dispatch.core import lifecycle, routing
from dispatch.core.types import Booking, Candidate, Policy, Routing, Stage
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import NotFound
from dispatch.fanout import OVER
from dispatch.store import Store

_SQL: Final = queries.load("explain")

NOT_CONNECTED: Final = "not_connected"
_NEVER: Final = datetime.max.replace(tzinfo=UTC)

_WORDS: Final[Mapping[str, str]] = {
    NOT_CONNECTED: "had no socket open in this stage",
    OVER: "the stage was over before she was written to",
    **{str(reason): words for reason, words in routing.WHY_NOT.items()},
}
NAMES: Final = 10  # of those who are only counted, so many are named

Rows = list[asyncpg.Record]


class Sent(Struct, frozen=True, kw_only=True):
    """An offer was written to her sockets, or with `pushed` to her devices."""

    stage: str
    score: int | None
    because: str | None
    at: datetime
    pushed: bool = False


class RuledOut(Struct, frozen=True, kw_only=True):
    """She was connected in this stage and was not asked, or not any longer."""

    stage: str
    reason: str
    because: str


class CandidateStory(Struct, kw_only=True):
    """One mechanic in one round. `eligible`: she was asked, or answered as one who was.

    `asked_at`: when she was first asked by name, whether or not she was connected.
    """

    generation: int
    mechanic_id: UUID
    name: str
    eligible: bool = False
    asked_at: datetime | None = None
    sent: list[Sent] = []
    seen_at: datetime | None = None
    answer: str | None = None
    answered_at: datetime | None = None
    reason: str | None = None
    ruled_out: list[RuledOut] = []


class Unasked(Struct, frozen=True, kw_only=True):
    """Mechanics of whom a stage has no record, by why: so many, and some of their names."""

    reason: str
    because: str
    count: int
    names: list[str]


class StageStory(Struct, frozen=True, kw_only=True):
    """What all nodes together did in one stage of a round.

    `connected` mechanics were looked at: those on record by name, of whom `sent` were sent a card
    and `excluded` ruled out (at some time), and those whom the strategy itself rules out.
    """

    generation: int
    stage: str
    at: datetime
    nodes: int
    connected: int
    sent: int
    excluded: int
    unasked: list[Unasked]


class Line(Struct, frozen=True, kw_only=True):
    """One event of the history; `version` is the request's after it."""

    at: datetime
    type: str
    name: str | None
    detail: str | None
    version: int | None


class Round(Struct, frozen=True, kw_only=True):
    """One generation."""

    generation: int
    status: str
    outcome: str | None
    mechanic_name: str | None
    offered_at: datetime
    ended_at: datetime | None


class Moment(Struct, frozen=True, kw_only=True):
    """One step of the waterfall; `after_ms` since the step before that is known.

    `at` is None where the record was lost with a node, or where it has not come to that.
    """

    step: str
    generation: int | None
    at: datetime | None
    after_ms: int | None


class Explanation(Struct, frozen=True, kw_only=True):
    """Everything that is on record about one request."""

    request_id: UUID
    session_id: UUID
    strategy: str
    status: str
    stage: str | None
    message: str
    deadlines: dict[str, datetime]
    waterfall: list[Moment]
    rounds: list[Round]
    stages: list[StageStory]
    candidates: list[CandidateStory]
    candidates_total: int
    history: list[Line]


class _Records(NamedTuple):
    rounds: Rows
    events: Rows
    receipt: Rows
    stages: Rows
    sent: Rows
    seen: Rows
    lost: Rows
    excluded: Rows
    answers: Rows
    everybody: Rows


async def explanation(
    pool: Pool, request_id: UUID, policy: Policy, *, limit: int | None = None, offset: int = 0
) -> Explanation:
    """The story of a request, with `limit` of its candidates: who acted first, then who was asked.

    Raises `NotFound` and `Unavailable`.
    """
    entry = await Store(pool).entry(request_id)
    if entry is None:
        raise NotFound("no such request")
    records = await _read(pool, request_id)
    # Of thousands of candidates it takes a while, in which the loop has its turns.
    return await asyncio.to_thread(_explain, entry.booking, records, policy, limit, offset)


def _explain(
    booking: Booking, records: _Records, policy: Policy, limit: int | None, offset: int
) -> Explanation:
    candidates = _candidates(booking.routing, records)
    end = None if limit is None else offset + limit
    return Explanation(
        request_id=booking.request_id,
        session_id=booking.session_id,
        strategy=booking.routing.value,
        status=booking.status.value,
        stage=None if booking.stage is None else booking.stage.value,
        message=booking.message,
        deadlines={kind.value: at for kind, at in lifecycle.deadlines(booking, policy).items()},
        waterfall=list(_waterfall(records)),
        rounds=[_struct(Round, row) for row in records.rounds],
        stages=list(_stages(booking, records, candidates)),
        candidates=candidates[offset:end],
        candidates_total=len(candidates),
        history=[_struct(Line, row) for row in records.events],
    )


async def _read(pool: Pool, request_id: UUID) -> _Records:
    async with (
        unavailable_when_lost(),
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        found = {
            name: await connection.fetch(_SQL[name], request_id)
            for name in _Records._fields
            if name != "everybody"
        }
        return _Records(**found, everybody=await connection.fetch(_SQL["everybody"]))


def _struct(kind: type[Any], row: asyncpg.Record) -> Any:
    return kind(**{name: row[name] for name in kind.__struct_fields__})


# --- mechanic by mechanic -------------------------------------------------------------------------


def _candidates(strategy: Routing, records: _Records) -> list[CandidateStory]:
    """The mechanics of all rounds who are on record: answered, seen, asked, ruled out."""
    names = {row["mechanic_id"]: row["name"] for row in records.everybody}
    stories: dict[tuple[int, UUID], CandidateStory] = {}

    def story(row: asyncpg.Record) -> CandidateStory:
        key = (row["generation"], row["mechanic_id"])
        if key not in stories:
            stories[key] = CandidateStory(
                generation=key[0], mechanic_id=key[1], name=names.get(key[1], "")
            )
        return stories[key]

    for row in records.sent:
        told = story(row)
        told.eligible = True
        told.sent.append(_sent(strategy, row["stage"], row["score"], row["at"]))
    for row in records.lost:
        told = story(row)
        told.eligible = True
        told.answer, told.answered_at, told.reason = "lost", row["at"], "taken"
    for row in records.answers:
        told = story(row)
        told.eligible = True
        told.answer, told.answered_at = _answer(row), row["answered_at"]
        told.seen_at, told.reason = row["seen_at"], row["reason"]
        told.asked_at = row["issued_at"]
        if row["pushed_at"] is not None:
            told.sent.append(
                replace(_sent(strategy, row["stage"], row["score"], row["pushed_at"]), pushed=True)
            )
    for row in records.seen:
        told = story(row)
        told.seen_at = min(told.seen_at or row["at"], row["at"])
    for row in records.excluded:
        because = _WORDS[row["reason"]]
        story(row).ruled_out.append(
            RuledOut(stage=row["stage"], reason=row["reason"], because=because)
        )
    return sorted(stories.values(), key=_interest)


def _answer(row: asyncpg.Record) -> str:
    """Who accepted and did not win has lost; who never answered had it revoked."""
    lost = row["status"] == "revoked" and row["answered_at"] is not None
    status: str = "lost" if lost else row["status"]
    return status


def _sent(strategy: Routing, stage: str, score: int | None, at: datetime) -> Sent:
    because = None if score is None else routing.WHY_SCORE.get((strategy, score))
    return Sent(stage=stage, score=score, because=because, at=at)


def _interest(story: CandidateStory) -> tuple[Any, ...]:
    """Round by round: who answered, then who saw it, then who was asked, each by time."""
    sent_at = story.sent[0].at if story.sent else None
    moments = (story.answered_at, story.seen_at, sent_at)
    return (story.generation, *((at is None, at or _NEVER) for at in moments), story.name)


# --- stage by stage -------------------------------------------------------------------------------


def _stages(
    booking: Booking, records: _Records, candidates: Iterable[CandidateStory]
) -> Iterator[StageStory]:
    sent: defaultdict[tuple[int, str], set[UUID]] = defaultdict(set)
    excluded: defaultdict[tuple[int, str], set[UUID]] = defaultdict(set)
    for story in candidates:
        for card in story.sent:
            sent[story.generation, card.stage].add(story.mechanic_id)
        for reason in story.ruled_out:
            excluded[story.generation, reason.stage].add(story.mechanic_id)
    for row in records.stages:
        stage = (row["generation"], row["stage"])
        known = sent[stage] | excluded[stage]
        others = [each for each in records.everybody if each["mechanic_id"] not in known]
        yield StageStory(
            generation=row["generation"],
            stage=row["stage"],
            at=row["at"],
            nodes=row["nodes"],
            connected=len(known) + row["others"],
            sent=len(sent[stage]),
            excluded=len(excluded[stage]),
            unasked=_unasked(booking, Stage(row["stage"]), others),
        )


def _unasked(booking: Booking, stage: Stage, others: Rows) -> list[Unasked]:
    """Why there is no record: the strategy, or else nobody had a socket of hers open."""
    at_stage = replace(booking, stage=stage, excluded=())
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for row in others:
        candidate = Candidate(**{name: row[name] for name in Candidate.__struct_fields__})
        reason = routing.not_meant(at_stage, candidate) or NOT_CONNECTED
        by_reason[reason].append(row["name"])
    return [
        Unasked(reason=reason, because=_WORDS[reason], count=len(names), names=names[:NAMES])
        for reason, names in sorted(by_reason.items())
    ]


# --- where the time went --------------------------------------------------------------------------


def _waterfall(records: _Records) -> Iterator[Moment]:
    """Received, committed, then round by round: written, seen, accepted, joined (R8a)."""
    receipt = records.receipt[0] if records.receipt else None
    moments: list[tuple[str, int | None, datetime | None]] = [
        ("received", None, receipt["received_at"] if receipt else None),
        ("committed", None, receipt["committed_at"] if receipt else None),
    ]
    for number, turn in enumerate(records.rounds):
        begin, generation = turn["offered_at"], turn["generation"]
        following = records.rounds[number + 1 : number + 2]
        end = following[0]["offered_at"] if following else None
        events = [
            row for row in records.events if row["at"] >= begin and (end is None or row["at"] < end)
        ]
        accepted = next((row["at"] for row in events if row["type"] == "accepted"), None)
        seen = [
            at  # those who looked after it was gone are no step on the way
            for at in (
                *_of(records.seen, generation),
                *_seen_by_name(records.answers, generation),
            )
            if accepted is None or at <= accepted
        ]
        joined = next(
            (
                row["at"]
                for row in events
                if row["type"] == "joined" and row["user_id"] == turn["mechanic_id"]
            ),
            None,
        )
        moments += [
            ("written", generation, min(_of(records.sent, generation), default=None)),
            ("seen", generation, min(seen, default=None)),
            ("accepted", generation, accepted),
            ("joined", generation, joined),
        ]
    before: datetime | None = None
    for step, of_round, at in moments:
        after = None if at is None or before is None else (at - before).total_seconds() * 1000
        yield Moment(
            step=step,
            generation=of_round,
            at=at,
            after_ms=None if after is None else round(after),
        )
        before = at or before


def _of(rows: Rows, generation: int) -> Iterator[datetime]:
    return (row["at"] for row in rows if row["generation"] == generation)


def _seen_by_name(rows: Rows, generation: int) -> Iterator[datetime]:
    return (row["seen_at"] for row in rows if row["generation"] == generation and row["seen_at"])
