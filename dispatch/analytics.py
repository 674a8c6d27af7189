"""Key figures: how bookings fare by day, strategy and experiment, and what each workshop served.

One job: read the figures that `sql/analytics.sql` defines, all at one moment, and divide. A rate of
nothing is null. Imports `database`, `queries` and `errors`. It fails with `BadRequest`
for a span of days that cannot be, and with `Unavailable`.
"""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, Final, Literal
from uuid import UUID

from msgspec import Struct, field

from dispatch import queries
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import BadRequest

DAYS: Final = 30
MAX_DAYS: Final = 366

By = Literal["day", "strategy", "experiment"]

_SQL: Final = queries.load("analytics")


class StartTimes(Struct, frozen=True, kw_only=True):
    """Of one routing type: how many sessions started, and how long after the booking."""

    routing_type: str
    started: int
    p50_seconds: float
    p90_seconds: float


class Figures(Struct, frozen=True, kw_only=True):
    """Some requests. `docs/kpis.md` says what each figure means.

    `requests` are all, `accepted` those that were once; `completed`, `cancelled` and `expired` is
    what has become of them by now. The rates are of those that were once accepted:
    `favorite_wanted` and `asked_first` say of how many. Between 0 and 1, null of none.
    """

    requests: int
    customers: int
    accepted: int
    completed: int
    cancelled: int
    expired: int
    favorite_wanted: int
    favorite_acceptance_rate: float | None
    asked_first: int
    fallback_rate: float | None
    rebooking_rate: float | None
    time_to_start: list[StartTimes]


class Group(Figures, frozen=True, kw_only=True, omit_defaults=True):
    """Those of one day (in UTC), of one strategy, or in one arm of one experiment."""

    day: str | None = None
    strategy: str | None = None
    experiment: str | None = None
    arm: str | None = None


class Targets(Struct, frozen=True, kw_only=True):
    """What is wanted (F5)."""

    favorite_acceptance_rate_above: float = 0.7
    fallback_rate_below: float = 0.3
    rebooking_rate_above: float = 0.6


class Served(Struct, frozen=True, kw_only=True):
    """One workshop: requests that named it, those that it accepted, both, and those completed."""

    workshop_id: UUID
    workshop_name: str
    preferred: int
    served: int
    preferred_and_served: int
    completed: int


class Analytics(Struct, frozen=True, kw_only=True):
    """The requests that were made from one day to another, both included, in UTC.

    Groups in which there are no requests are left out. `workshops` is a page of those that had to
    do with any, who served most first; there are `workshops_total`.
    """

    from_: str = field(name="from")
    to: str
    by: By
    targets: Targets
    total: Figures
    groups: list[Group]
    workshops: list[Served]
    workshops_total: int
    limit: int
    offset: int


def span(first: date | None, last: date | None, today: date) -> tuple[date, date]:
    """The days from `first` to `last`, both included; without them the latest DAYS until today.

    Raises `BadRequest` where that is none or more than MAX_DAYS.
    """
    last = last or today
    first = first or date.fromordinal(max(1, last.toordinal() - DAYS + 1))
    days = (last - first).days + 1
    if days < 1:
        raise BadRequest("from: is after to")
    if days > MAX_DAYS:
        raise BadRequest(f"from: at most {MAX_DAYS} days until to")
    return first, last


async def analytics(
    pool: Pool, first: date, last: date, by: By, *, limit: int, offset: int
) -> Analytics:
    """All figures of these days, of one snapshot."""
    async with (
        unavailable_when_lost(),
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(_SQL["room"])
        rows = await connection.fetch(_SQL["figures"], first, last, by)
        workshops = await connection.fetch(_SQL["workshops"], first, last)
    served = [
        Served(**{name: row[name] for name in Served.__struct_fields__})
        for row in workshops[offset : offset + limit]
    ]
    total = [row for row in rows if row["is_total"]]
    return Analytics(
        from_=first.isoformat(),
        to=last.isoformat(),
        by=by,
        targets=Targets(),
        total=Figures(**_figures(total)),
        groups=[
            Group(**_figures(group), **_name(by, group[0]))
            for group in _groups(row for row in rows if not row["is_total"])
        ],
        workshops=served,
        workshops_total=len(workshops),
        limit=limit,
        offset=offset,
    )


def _groups(rows: Iterable[Any]) -> list[list[Any]]:
    """The rows of each key together, in their order."""
    groups: dict[tuple[str, str | None], list[Any]] = {}
    for row in rows:
        groups.setdefault((row["key"], row["arm"]), []).append(row)
    return list(groups.values())


def _name(by: By, row: Any) -> dict[str, Any]:
    return {by: row["key"], **({"arm": row["arm"]} if by == "experiment" else {})}


def _figures(rows: Sequence[Any]) -> dict[str, Any]:
    """The fields of `Figures`: of the row about every routing, and of those about each."""
    (whole,) = (row for row in rows if row["is_every_routing"])
    counts = ("requests", "customers", "accepted", "completed", "cancelled", "expired")
    return {
        **{name: whole[name] for name in counts},
        "favorite_wanted": whole["favorite_wanted"],
        "favorite_acceptance_rate": _rate(whole["favorite_accepted"], whole["favorite_wanted"]),
        "asked_first": whole["asked_first"],
        "fallback_rate": _rate(whole["fell_back"], whole["asked_first"]),
        "rebooking_rate": _rate(whole["rebooked"], whole["accepted"]),
        "time_to_start": [
            StartTimes(
                routing_type=row["routing_type"],
                started=row["started"],
                p50_seconds=round(row["seconds"][0], 3),
                p90_seconds=round(row["seconds"][1], 3),
            )
            for row in rows
            if not row["is_every_routing"] and row["started"]
        ],
    }


def _rate(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
