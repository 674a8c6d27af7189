"""Experiments as admins see and change them: what is tried, on how many, since when (F5).

One job: keep the rows of `experiments`, of which `core.experiments` says what follows. Imports the
core, `database`, `queries`, `errors` and `protocol`.

It fails with `Unavailable`, and with refusals that have changed nothing: `BadRequest`, which names
the field, and `Conflict("experiment_started")` for another kind or other arms than those that
customers are in: what is compared would not be one thing any more. That is a new experiment.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Meta, Struct

from dispatch import queries
from dispatch.core.experiments import Arm
from dispatch.core.types import Routing
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import BadRequest, Conflict
from dispatch.protocol import timestamp

MAX_WINDOW_SECONDS: Final = 86_400.0
YEARS: Final = range(2000, 2200)  # in which experiments may begin and end

Kind = Literal["routing", "window"]
Name = Annotated[str, Meta(pattern="^[a-z0-9_-]+$", min_length=1, max_length=50)]
Window = Annotated[float, Meta(gt=0, le=MAX_WINDOW_SECONDS)]
Instant = Annotated[datetime, Meta(tz=True)]

_SQL: Final = queries.load("experiments")
_decode_arms: Final = msgspec.json.Decoder(tuple[Arm, ...]).decode
_decode_counts: Final = msgspec.json.Decoder(dict[str, int]).decode


class ArmForm(Struct, frozen=True, kw_only=True):
    """One arm: with `routing` in an experiment of that kind (`priority_broadcast` is as asked for,
    `broadcast` asks everybody at once), with `priority_window_seconds` in one of windows. Its share
    is that of the weights."""

    name: Name
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    routing: Routing | None = None
    priority_window_seconds: Window | None = None

    def arm(self) -> Arm:
        """The same for the core."""
        return Arm(
            name=self.name,
            weight=self.weight,
            routing=self.routing,
            priority_window_seconds=self.priority_window_seconds,
        )


class ExperimentForm(Struct, frozen=True, kw_only=True):
    """`PUT /api/admin/experiments`: all of one experiment, by its name.

    It touches bookings that ask for a favourite first, of so many percent of the customers, from
    `active_from` (left out: as it was, or now) until `active_until` (left out: without an end).
    """

    name: Name
    kind: Kind
    rollout_percentage: Annotated[int, Meta(ge=0, le=100)]
    arms: Annotated[list[ArmForm], Meta(min_length=1, max_length=10)]
    active_from: Instant | None = None
    active_until: Instant | None = None


class ArmState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An arm, and how many customers are in it."""

    name: str
    weight: int
    customers: int
    routing: Routing | None = None
    priority_window_seconds: float | None = None


class Experiment(Struct, frozen=True, kw_only=True):
    """An experiment as it is; `is_running`: it touches bookings now."""

    name: str
    kind: Kind
    rollout_percentage: int
    arms: list[ArmState]
    active_from: str
    active_until: str | None
    is_running: bool
    created_at: str
    changed_at: str
    changed_by: UUID
    changed_by_name: str


class Experiments(Struct, frozen=True, kw_only=True):
    """A page of the experiments, the latest first."""

    experiments: list[Experiment]
    total: int
    limit: int
    offset: int


async def listing(pool: Pool, *, limit: int, offset: int) -> Experiments:
    """All there are, also those that are over."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["list"], limit, offset, None)
        total = await pool.fetchval(_SQL["count"])
    return Experiments(
        experiments=[_experiment(row) for row in rows], total=total, limit=limit, offset=offset
    )


async def put(pool: Pool, admin_id: UUID, form: ExperimentForm) -> Experiment:
    """Makes it, or changes it, from the next booking on; those that were made stay as they are."""
    arms = _checked(form)
    since, until = (
        _instant("active_from", form.active_from),
        _instant("active_until", form.active_until),
    )
    async with transaction(pool) as connection:
        await _refuse_other_arms(connection, form, arms)
        document = msgspec.json.encode(arms).decode()
        try:
            await connection.execute(
                _SQL["put"],
                form.name,
                form.kind,
                form.rollout_percentage,
                document,
                since,
                until,
                admin_id,
            )
        except asyncpg.CheckViolationError:
            raise BadRequest("active_until: is not after active_from") from None
        row = await connection.fetchrow(_SQL["list"], 1, 0, form.name)
    assert row is not None
    return _experiment(row)


def _checked(form: ExperimentForm) -> tuple[Arm, ...]:
    """The arms; `BadRequest` where they are not of its kind, or two have one name."""
    names = [form.name, *(arm.name for arm in form.arms)]
    if any(name.endswith("\n") for name in names):  # which the pattern lets pass
        raise BadRequest("name: must be one line")
    if len(set(names[1:])) < len(form.arms):
        raise BadRequest("arms: two have the same name")
    for arm in form.arms:
        if (arm.routing is None) == (form.kind == "routing"):
            raise BadRequest("arms: each has a routing in an experiment of routing, and only there")
        if arm.routing not in (None, Routing.PRIORITY, Routing.BROADCAST):
            raise BadRequest("arms: routing is priority_broadcast or broadcast")
        if (arm.priority_window_seconds is None) == (form.kind == "window"):
            raise BadRequest(
                "arms: each has priority_window_seconds in an experiment of windows, and only there"
            )
    return tuple(arm.arm() for arm in form.arms)


def _instant(field: str, at: datetime | None) -> datetime | None:
    if at is not None and at.year not in YEARS:
        raise BadRequest(f"{field}: must be between the years {YEARS[0]} and {YEARS[-1]}")
    return at if at is None else at.astimezone(UTC)


async def _refuse_other_arms(
    connection: Connection, form: ExperimentForm, arms: tuple[Arm, ...]
) -> None:
    row = await connection.fetchrow(_SQL["lock"], form.name)
    if row is None or not row["has_started"]:
        return
    if row["kind"] != form.kind or _decode_arms(row["arms"]) != arms:
        raise Conflict("experiment_started", "customers are in its arms: make a new one")


def _experiment(row: Any) -> Experiment:
    customers = _decode_counts(row["customers"])
    until = row["active_until"]
    return Experiment(
        name=row["name"],
        kind=row["kind"],
        rollout_percentage=row["rollout_percentage"],
        arms=[_arm(arm, customers.get(arm.name, 0)) for arm in _decode_arms(row["arms"])],
        active_from=timestamp(row["active_from"]),
        active_until=None if until is None else timestamp(until),
        is_running=row["is_running"],
        created_at=timestamp(row["created_at"]),
        changed_at=timestamp(row["changed_at"]),
        changed_by=row["changed_by"],
        changed_by_name=row["changed_by_name"],
    )


def _arm(arm: Arm, customers: int) -> ArmState:
    return ArmState(
        name=arm.name,
        weight=arm.weight,
        routing=arm.routing,
        priority_window_seconds=arm.priority_window_seconds,
        customers=customers,
    )
