"""What happens at a time for the whole cluster: run once, by whichever node is first to see it.

One job: claim rows of `jobs` that are due, run them, and set their next time. A claim is a lease of
seconds that is renewed while the job runs, so that of a node which dies another takes it within
five seconds. A job that is taken over, or whose node stood still, runs a second time, also at the
same time as the first: running it twice must be harmless. Imports `database`, `errors` and
`queries`; what a job does, and by which schedule, is passed in.

The loss of Postgres, or of what the job needs, leaves the job to the end of its lease. Any other
error is logged and kept in the row, and the job is run again at its next time: it must not keep the
others from theirs, nor end one node after the other.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, assert_never
from uuid import UUID, uuid4

from msgspec import Struct

from dispatch import queries
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import DispatchError, Unavailable

log = logging.getLogger(__name__)

_SQL: Final = queries.load("jobs")

# Together with the pause between two looks less than the five seconds that are promised (T1).
LEASE: Final = timedelta(seconds=3)
RENEW_SECONDS: Final = 1.0

Schedule = Literal["off", "hourly", "weekly", "monthly"]

PAYOUT_HOUR: Final = 6  # UTC, on Mondays or on the 1st


def next_run(schedule: Schedule, now: datetime) -> datetime | None:
    """The first time after `now` (UTC) at which the schedule says so; None where it never does.

    hourly: each full hour; weekly: Mondays at 06:00; monthly: the 1st at 06:00.
    """
    at = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    match schedule:
        case "off":
            return None
        case "hourly":
            return at + timedelta(hours=1)
        case "weekly":
            at = at.replace(hour=PAYOUT_HOUR) - timedelta(days=at.weekday())
            return at if at > now else at + timedelta(days=7)
        case "monthly":
            at = at.replace(day=1, hour=PAYOUT_HOUR)
            return at if at > now else (at + timedelta(days=31)).replace(day=1)
        case _ as unreachable:
            assert_never(unreachable)


class Job(Struct, frozen=True, kw_only=True):
    """`run` raises `Unavailable` where the same again soon is right, and must bear to be run twice.

    `at_start`: also whenever a node starts.
    """

    name: str
    schedule: Schedule
    run: Callable[[], Awaitable[object]]
    at_start: bool = False


class _Claim(Struct, frozen=True):
    job: Job
    id: UUID
    at: datetime


class Jobs:
    """This node's part in the jobs of the cluster; any number of nodes work on the same rows."""

    def __init__(self, pool: Pool, jobs: Sequence[Job], look_seconds: float) -> None:
        """`look_seconds` pass between two looks at what is due, more or less."""
        self._pool = pool
        self._jobs = {job.name: job for job in jobs}
        self._look_seconds = look_seconds
        self._is_away = False

    async def run(self) -> None:
        """Runs what is due, until cancelled. What is under way then is left to its lease."""
        registered = False
        async with asyncio.TaskGroup() as running:
            while True:
                try:
                    if not registered:
                        await self._register()
                        registered = True
                    for claim in await self._claim():
                        running.create_task(self._perform(claim), name=claim.job.name)
                    self._note_back()
                except Unavailable as error:
                    self._note_away(error)
                await asyncio.sleep(self._look_seconds * random.uniform(0.8, 1.2))

    async def _register(self) -> None:
        """Every job has a row, at the time that its schedule says."""
        async with unavailable_when_lost():
            now: datetime = await self._pool.fetchval(_SQL["now"])
            for job in self._jobs.values():
                at = next_run(job.schedule, now)
                await self._pool.execute(_SQL["register"], job.name, job.schedule, at)
                if job.at_start:
                    await self._pool.execute(_SQL["hasten"], job.name)

    async def _claim(self) -> list[_Claim]:
        names = list(self._jobs)
        schedules = [job.schedule for job in self._jobs.values()]
        fences = [uuid4() for _ in names]
        async with unavailable_when_lost():
            rows = await self._pool.fetch(_SQL["claim"], names, schedules, fences, LEASE)
        return [_Claim(self._jobs[row["name"]], row["claim"], row["at"]) for row in rows]

    async def _perform(self, claim: _Claim) -> None:
        """Runs a job that was claimed, and says what became of it."""
        name = claim.job.name
        try:
            async with self._renewed(claim):
                error = await self._error_of(claim.job)
            await self._finish(claim, error)
        except Unavailable as away:
            log.warning("the job %s is run again: %s", name, away.message)

    async def _error_of(self, job: Job) -> str | None:
        try:
            await job.run()
        except Unavailable:
            raise
        except DispatchError as error:
            log.error("the job %s failed: %s", job.name, error.message)
            return error.message
        except Exception as error:
            log.exception("the job %s failed", job.name)
            return repr(error)
        return None

    async def _finish(self, claim: _Claim, error: str | None) -> None:
        # From when it was claimed: a time that came while it ran is not passed over.
        due_at = next_run(claim.job.schedule, claim.at)
        async with unavailable_when_lost():
            await self._pool.execute(_SQL["finish"], claim.job.name, claim.id, due_at, error)

    @asynccontextmanager
    async def _renewed(self, claim: _Claim) -> AsyncIterator[None]:
        """The lease does not end inside the block, as long as this node and Postgres live."""
        renewing = asyncio.create_task(self._renew(claim), name=f"renew {claim.job.name}")
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _renew(self, claim: _Claim) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                async with unavailable_when_lost():
                    await self._pool.execute(_SQL["renew"], claim.job.name, claim.id, LEASE)
            except Unavailable as error:
                self._note_away(error)

    def _note_away(self, error: Unavailable) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("jobs wait: %s", error.message)

    def _note_back(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("jobs go on")
