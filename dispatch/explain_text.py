"""An explanation as lines that a person reads, for `dispatch explain REQUEST`.

One job: lay out. Imports `explain`, `plain`, `config` and `database`.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final
from uuid import UUID

from dispatch.config import Config
from dispatch.database import close_pool, open_pool
from dispatch.explain import CandidateStory, Explanation, StageStory, explanation
from dispatch.plain import plain

SHOWN: Final = 200  # candidates; the rest is counted


async def explain(config: Config, request_id: UUID) -> str:
    """The story of a request as text. Raises `NotFound` and `Unavailable`."""
    pool = await open_pool(config.database_url, size=1)
    try:
        return as_text(await explanation(pool, request_id, config.policy(), limit=SHOWN))
    finally:
        await close_pool(pool)


def as_text(told: Explanation) -> str:
    """All of it."""
    return "\n".join(_lines(told))


def _lines(told: Explanation) -> Iterator[str]:
    stage = f", stage {told.stage}" if told.stage else ""
    yield f"request {told.request_id}  ({told.strategy})  is {told.status}{stage}"
    yield f"  the customer reads: {told.message}"
    for kind, at in told.deadlines.items():
        yield f"  {kind} at {_clock(at)}"
    yield "history"
    for line in told.history:
        extra = plain(" ".join(part for part in (line.name, line.detail) if part))
        yield f"  {_clock(line.at)}  {line.type:<20} {extra}".rstrip()
    yield "waterfall"
    for moment in told.waterfall:
        of_round = f"round {moment.generation}" if moment.generation else ""
        clock = _clock(moment.at) if moment.at else f"{'-':<12}"
        after = "" if moment.after_ms is None else f"+{moment.after_ms} ms"
        yield f"  {clock}  {moment.step:<10} {of_round:<8} {after}".rstrip()
    for turn in told.rounds:
        winner = plain(f" by {turn.mechanic_name}") if turn.mechanic_name else ""
        yield f"round {turn.generation}: {turn.outcome or turn.status}{winner}"
        for each in told.stages:
            if each.generation == turn.generation:
                yield from _stage(each)
        for candidate in told.candidates:
            if candidate.generation == turn.generation:
                yield f"  {_candidate(candidate)}"
    left_out = told.candidates_total - len(told.candidates)
    if left_out:
        yield f"… and {left_out} more candidates"


def _stage(each: StageStory) -> Iterator[str]:
    yield (
        f"  stage {each.stage} from {_clock(each.at)}: {each.connected} connected on "
        f"{each.nodes} node{'s' if each.nodes > 1 else ''}, {each.sent} asked, "
        f"{each.excluded} ruled out"
    )
    for group in each.unasked:
        more = ", …" if group.count > len(group.names) else ""
        names = plain(", ".join(group.names))
        yield f"    {group.count} without a record: {group.because} ({names}{more})"


def _candidate(each: CandidateStory) -> str:
    parts = [f"{each.name:<24}"]
    for sent in each.sent[:1]:
        score = "?" if sent.score is None else sent.score
        parts.append(f"score {score:>3} ({sent.because})  sent {_clock(sent.at)} in {sent.stage}")
    if len(each.sent) > 1:
        parts.append(f"({len(each.sent)} times)")
    if any(sent.pushed for sent in each.sent):
        parts.append("notified")
    if each.asked_at and not each.sent:
        parts.append(f"asked by name {_clock(each.asked_at)}, no socket open")
    elif each.eligible and not each.sent:
        parts.append("sent: unknown")
    if each.seen_at:
        parts.append(f"seen {_clock(each.seen_at)}")
    if each.answer:
        because = f" ({each.reason})" if each.reason else ""
        parts.append(f"{each.answer}{because}")
    asked_in = {sent.stage for sent in each.sent}
    for reason in each.ruled_out:
        what = "no longer asked" if reason.stage in asked_in else "not asked"
        parts.append(f"{what} in {reason.stage}: {reason.because}")
    return plain("  ".join(parts))


def _clock(at: datetime) -> str:
    return at.strftime("%H:%M:%S.%f")[:-3]
