"""Whether one mechanic is treated as the others are, by what is on record (R1: everyone, equally).

One job: her share of the offers that could have been hers, how soon she sees them, and how often
she wins beside how often she would if all who were asked were equal. Imports `track_record`,
`config`, `database`, `errors` and `protocol`. What would be too much to read is left out, and said.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from statistics import fmean
from typing import Any, Final
from uuid import UUID

from msgspec import Struct

from dispatch import queries, track_record
from dispatch.config import Config
from dispatch.database import Pool, close_pool, open_pool, unavailable_when_lost
from dispatch.errors import NotFound
from dispatch.plain import plain
from dispatch.protocol import timestamp

HOURS: Final = 24
MAX_HOURS: Final = 31 * 24
# All of a busy day: 5,000 broadcasts to 1,000 mechanics are 140 MiB and take Postgres 1.2 s.
MAX_DECISIONS: Final = 50_000
MAX_BYTES: Final = 128 * 1024 * 1024

_SQL: Final = queries.load("fairness")


class Exposure(Struct, frozen=True, kw_only=True):
    """Of the rounds that were for her by what she is, how many she was sent, and why not the rest.

    `missed` counts by reason: busy, unavailable, excluded, not_approved, not_connected.
    """

    could_have_had: int
    offered: int
    share: float | None
    missed: dict[str, int]


class Sight(Struct, frozen=True, kw_only=True):
    """Of the rounds that she was sent: how many she saw, and how long after the card was written.

    The time begins when it was written to her, whoever else was written to before.
    """

    seen: int
    rate: float | None
    seconds_p50: float | None
    seconds_p90: float | None


class Wins(Struct, frozen=True, kw_only=True):
    """Of the rounds that she was sent and that somebody won: how many she did.

    `expected_share` is the mean of 1 / (how many were asked): hers, if all were equally quick.
    """

    decided: int
    won: int
    share: float | None
    expected_share: float | None


class Fairness(Struct, frozen=True, kw_only=True):
    """One mechanic since `since`: so many `hours` ago, or later if that was too much to read."""

    mechanic_id: UUID
    name: str
    hours: int
    since: str
    is_complete: bool
    exposure: Exposure
    sight: Sight
    answers: track_record.Answers
    wins: Wins


async def fairness(pool: Pool, mechanic_id: UUID, hours: int) -> Fairness:
    """How she fared in the last hours. Raises `NotFound` and `Unavailable`."""
    async with unavailable_when_lost(), pool.acquire() as connection:
        who = await connection.fetchrow(_SQL["who"], mechanic_id, timedelta(hours=hours))
        if who is None:
            raise NotFound("no such mechanic")
        since = await track_record.reach(connection, who["since"], MAX_DECISIONS, MAX_BYTES)
        rounds = await connection.fetch(_SQL["rounds"], mechanic_id, since)
        answers = await track_record.answers(connection, mechanic_id, since, since)
    offered = [each for each in rounds if each["sent_at"] is not None]
    return Fairness(
        mechanic_id=mechanic_id,
        name=who["name"],
        hours=hours,
        since=timestamp(since),
        is_complete=since == who["since"],
        exposure=_exposure(rounds, len(offered)),
        sight=_sight(offered),
        answers=answers,
        wins=_wins(offered, mechanic_id),
    )


def _exposure(rounds: Sequence[Any], offered: int) -> Exposure:
    missed = Counter(
        each["excluded_for"] or "not_connected" for each in rounds if each["sent_at"] is None
    )
    return Exposure(
        could_have_had=len(rounds),
        offered=offered,
        share=_share(offered, len(rounds)),
        missed=dict(missed.most_common()),
    )


def _sight(offered: Sequence[Any]) -> Sight:
    waited = sorted(
        max(0.0, (each["seen_at"] - each["sent_at"]).total_seconds())
        for each in offered
        if each["seen_at"] is not None
    )
    return Sight(
        seen=len(waited),
        rate=_share(len(waited), len(offered)),
        seconds_p50=_percentile(waited, 0.5),
        seconds_p90=_percentile(waited, 0.9),
    )


def _wins(offered: Sequence[Any], mechanic_id: UUID) -> Wins:
    decided = [each for each in offered if each["winner_id"] is not None]
    won = sum(each["winner_id"] == mechanic_id for each in decided)
    chances = [1 / each["asked"] for each in decided]
    return Wins(
        decided=len(decided),
        won=won,
        share=_share(won, len(decided)),
        expected_share=round(fmean(chances), 6) if chances else None,
    )


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _percentile(in_order: Sequence[float], rank: float) -> float | None:
    """Between the two nearest of the values, as Postgres' percentile_cont."""
    if not in_order:
        return None
    place = rank * (len(in_order) - 1)
    below = in_order[int(place)]
    above = in_order[min(int(place) + 1, len(in_order) - 1)]
    return round(below + (above - below) * (place - int(place)), 3)


# --- for the command line -------------------------------------------------------------------------


async def explain_mechanic(config: Config, mechanic_id: UUID, hours: int) -> str:
    """The same as text. Raises `NotFound` and `Unavailable`."""
    pool = await open_pool(config.database_url, size=1)
    try:
        return "\n".join(_lines(await fairness(pool, mechanic_id, hours)))
    finally:
        await close_pool(pool)


def _lines(told: Fairness) -> Iterator[str]:
    exposure, sight, answers, wins = told.exposure, told.sight, told.answers, told.wins
    yield f"mechanic {told.mechanic_id}  {plain(told.name)}"
    less = "" if told.is_complete else "; before that there was too much to read"
    yield f"  since     {told.since}, of the last {told.hours} h{less}"
    yield (
        f"  offered   {exposure.offered} of {exposure.could_have_had} rounds that were for her"
        f" ({_percent(exposure.share)}){_list('; missed', exposure.missed)}"
    )
    yield (
        f"  seen      {sight.seen} of {exposure.offered} ({_percent(sight.rate)}),"
        f" after {_seconds(sight.seconds_p50)} (median), {_seconds(sight.seconds_p90)} (p90)"
    )
    lost = sum(answers.lost.values())
    yield (
        f"  answered  {answers.won} won, {lost} lost{_list(':', answers.lost)};"
        f" {answers.declined} declined"
    )
    yield (
        f"  wins      {wins.won} of {wins.decided} rounds that somebody won"
        f" ({_percent(wins.share)}); if all who were asked were equal:"
        f" {_percent(wins.expected_share)}"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _list(title: str, counts: dict[str, int]) -> str:
    told = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items())
    return f"{title} {told}" if told else ""
