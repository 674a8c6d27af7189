"""What is on record about one mechanic over a time: her answers, and how far back one can look.

One job: the reads that her own question (`why_no_offers`) and the operators' (`fairness`) share.
Imports `database` and `queries`; the caller turns the loss of Postgres into `Unavailable`.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

from msgspec import Struct

from dispatch import queries
from dispatch.database import Connection

_SQL: Final = queries.load("track_record")


class Answers(Struct, frozen=True, kw_only=True):
    """What she answered, in rounds."""

    won: int
    declined: int
    lost: dict[str, int]


async def answers(
    connection: Connection, mechanic_id: UUID, since: datetime, trail_since: datetime
) -> Answers:
    """Her answers after `since`; of those that nodes gave by themselves, after `trail_since`."""
    rows = await connection.fetch(_SQL["answers"], mechanic_id, since, trail_since)
    rounds = {(row["kind"], row["reason"]): row["rounds"] for row in rows}
    return Answers(
        won=rounds.get(("won", None), 0),
        declined=rounds.get(("declined", None), 0),
        lost={reason: count for (kind, reason), count in rounds.items() if kind == "lost"},
    )


async def reach(
    connection: Connection, since: datetime, max_decisions: int, max_bytes: int
) -> datetime:
    """`since`, or later where more of the audit trail than that would have to be read."""
    reached: datetime = await connection.fetchval(_SQL["reach"], since, max_decisions, max_bytes)
    return reached
