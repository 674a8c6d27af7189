"""Jobs of the cluster: run once at their time by whichever node lives; made up for if missed."""

import asyncio
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
import pytest

from dispatch.config import Config
from dispatch.database import Pool, close_pool, open_pool
from dispatch.errors import Refused, Unavailable
from dispatch.jobs import LEASE, Job, Jobs, Schedule, next_run
from tests.integration.line import Line
from tests.integration.paydesk import later
from tests.support import eventually

LOOK_SECONDS = 0.02
WEEK_SECONDS = 7 * 24 * 3600.0


class Work:
    """What a job does: counts, and fails as it is told."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.begun = 0
        self.done = 0

    async def __call__(self) -> None:
        self.begun += 1
        if self.errors:
            raise self.errors.pop(0)
        self.done += 1


class Hanging(Work):
    """The same, but it goes on for ever."""

    async def __call__(self) -> None:
        self.begun += 1
        await asyncio.Event().wait()


def job(run: Callable[[], Awaitable[object]], schedule: Schedule = "weekly") -> Job:
    return Job(name="work", schedule=schedule, run=run)


@asynccontextmanager
async def running(pool: Pool, *jobs: Job) -> AsyncIterator[None]:
    """A node's jobs inside the block, and one more by which a test sees that it looks."""
    mark = Job(name="mark", schedule="off", run=Work())
    task = asyncio.create_task(Jobs(pool, [*jobs, mark], LOOK_SECONDS).run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def row(pool: Pool, name: str = "work") -> asyncpg.Record | None:
    return await pool.fetchrow(
        "SELECT *, claim IS NULL AND last_run_at IS NOT NULL AS has_run FROM jobs WHERE name = $1",
        name,
    )


async def the_row(pool: Pool, name: str = "work") -> asyncpg.Record:
    found = await eventually(lambda: row(pool, name))
    return found


async def has_run(pool: Pool, name: str = "work") -> bool:
    found = await row(pool, name)
    return found is not None and found["has_run"] is True


async def make_due(pool: Pool, *names: str) -> None:
    """Its time was a moment ago."""
    await pool.execute(
        "UPDATE jobs SET due_at = dispatch_now() - interval '1 s', last_run_at = NULL"
        " WHERE name = ANY ($1)",
        names or ["work"],
    )


async def looked_often(pool: Pool, work: Work, begun: int) -> None:
    """Several looks at what is due have found nothing more of it to begin."""
    await the_row(pool, "mark")
    for _ in range(3):
        await make_due(pool, "mark")
        await eventually(lambda: has_run(pool, "mark"))
    assert work.begun == begun


# --- the time -------------------------------------------------------------------------------------


async def test_a_job_runs_at_its_time_and_not_before(config: Config, pool: Pool) -> None:
    work = Work()
    async with running(pool, job(work)):
        due_at = (await the_row(pool))["due_at"]
        await looked_often(pool, work, 0)

    ahead = (due_at - datetime.now(UTC)).total_seconds()
    async with later(config.database_url, ahead + 1) as pool_then, running(pool_then, job(work)):
        await eventually(lambda: has_run(pool_then))

    found = await the_row(pool)
    assert work.done == 1
    assert due_at == next_run("weekly", datetime.now(UTC))
    assert found["due_at"] == due_at + timedelta(days=7)
    assert found["last_run_at"] - due_at < timedelta(seconds=10)
    assert found["last_error"] is None


async def test_what_nobody_was_there_for_is_made_up_for_once(config: Config, pool: Pool) -> None:
    work = Work()
    async with running(pool, job(work)):
        due_at = (await the_row(pool))["due_at"]

    async with (
        later(config.database_url, 5 * WEEK_SECONDS) as pool_then,
        running(pool_then, job(work)),
    ):
        await eventually(lambda: has_run(pool_then))
        await looked_often(pool_then, work, 1)

    assert (await the_row(pool))["due_at"] == due_at + timedelta(days=35)


async def test_a_time_that_comes_while_it_runs_is_not_passed_over(
    config: Config, pool: Pool
) -> None:
    """It began late, and was still at it on Monday at six."""
    work = Work()
    async with running(pool, job(work)):
        await the_row(pool)
    await make_due(pool)
    (claim,) = await Jobs(pool, [job(work)], LOOK_SECONDS)._claim()

    async with later(config.database_url, WEEK_SECONDS) as pool_then:
        await Jobs(pool_then, [job(work)], LOOK_SECONDS)._perform(claim)
        assert (await the_row(pool))["due_at"] == next_run("weekly", claim.at)
        async with running(pool_then, job(work)):
            await eventually(lambda: work.done == 2)


async def test_switched_off_it_never_runs(config: Config, pool: Pool) -> None:
    work = Work()

    async with (
        later(config.database_url, WEEK_SECONDS) as pool_then,
        running(pool_then, job(work, "off")),
    ):
        found = await the_row(pool)
        await looked_often(pool_then, work, 0)

    assert found["due_at"] is None


async def test_another_schedule_moves_it_at_the_start_and_the_same_one_does_not(
    pool: Pool,
) -> None:
    work = Work()
    seen: list[datetime | None] = []
    for schedule in ("weekly", "monthly", "off", "weekly"):
        async with running(pool, job(work, schedule)):
            await eventually(partial(is_by, pool, schedule))
        seen.append((await the_row(pool))["due_at"])
    await pool.execute("UPDATE jobs SET due_at = due_at + interval '1 day'")
    async with running(pool, job(work)):
        await looked_often(pool, work, 0)

    now = datetime.now(UTC)
    assert seen == [next_run("weekly", now), next_run("monthly", now), None, seen[0]]
    assert seen[0] is not None
    assert (await the_row(pool))["due_at"] == seen[0] + timedelta(days=1)


def has_done(work: Work, times: int) -> bool:
    return work.done == times


async def is_by(pool: Pool, schedule: str) -> bool:
    found = await row(pool)
    return found is not None and found["schedule"] == schedule


async def test_a_node_with_another_schedule_leaves_the_job_to_those_who_have_it(
    pool: Pool,
) -> None:
    """While a change of the configuration goes from node to node."""
    old = Jobs(pool, [job(Work(), "weekly")], LOOK_SECONDS)
    new = Jobs(pool, [job(Work(), "monthly")], LOOK_SECONDS)
    await old._register()
    await new._register()
    await make_due(pool)

    claims = [await node._claim() for node in (old, new)]

    assert [len(each) for each in claims] == [0, 1]


async def test_whoever_ran_it_by_the_schedule_before_says_nothing_of_the_next_time(
    pool: Pool,
) -> None:
    work = Work()
    async with running(pool, job(work, "weekly")):
        await the_row(pool)
    await make_due(pool)
    old = Jobs(pool, [job(work, "weekly")], LOOK_SECONDS)
    (claim,) = await old._claim()
    await Jobs(pool, [job(work, "monthly")], LOOK_SECONDS)._register()

    await old._perform(claim)

    found = await the_row(pool)
    assert (found["schedule"], found["claim"]) == ("monthly", None)
    assert found["due_at"] == next_run("monthly", datetime.now(UTC))


async def test_a_job_of_the_start_runs_whenever_a_node_starts(pool: Pool) -> None:
    work = Work()
    for number in (1, 2, 3):
        async with running(pool, Job(name="work", schedule="hourly", run=work, at_start=True)):
            await eventually(partial(has_done, work, number))
            await eventually(lambda: has_run(pool))

    assert (await the_row(pool))["due_at"] == next_run("hourly", datetime.now(UTC))


async def test_a_start_does_not_begin_what_somebody_is_at(pool: Pool) -> None:
    hanging, second = Hanging(), Work()
    at_start = Job(name="work", schedule="hourly", run=hanging, at_start=True)
    async with running(pool, at_start):
        await eventually(lambda: hanging.begun == 1)
        async with running(pool, Job(name="work", schedule="hourly", run=second, at_start=True)):
            await looked_often(pool, second, 0)

    assert hanging.begun == 1


# --- several nodes --------------------------------------------------------------------------------


async def test_of_many_nodes_one_runs_it(config: Config, pool: Pool) -> None:
    work = Work()
    async with running(pool, job(work)):
        await the_row(pool)
    await make_due(pool)

    nodes = [Jobs(pool, [job(work)], LOOK_SECONDS) for _ in range(20)]
    claims = await asyncio.gather(*(node._claim() for node in nodes))

    assert sorted(map(len, claims)) == [0] * 19 + [1]


async def test_while_it_runs_nobody_else_begins_it_however_long_it_takes(pool: Pool) -> None:
    hanging, other = Hanging(), Work()
    async with running(pool, job(hanging)):
        await the_row(pool)
        await make_due(pool)
        await eventually(lambda: hanging.begun == 1)
        first = (await the_row(pool))["due_at"]
        async with running(pool, job(other)):
            await eventually(lambda: is_renewed(pool, first))
            await eventually(lambda: is_renewed(pool, first + LEASE))
        assert (hanging.begun, other.begun) == (1, 0)


async def is_renewed(pool: Pool, since: datetime) -> bool:
    return bool((await the_row(pool))["due_at"] > since)


async def test_a_job_that_hangs_holds_up_no_other(pool: Pool) -> None:
    hanging, other = Hanging(), Work()
    jobs = (job(hanging), Job(name="other", schedule="weekly", run=other))
    async with running(pool, *jobs):
        await the_row(pool, "other")
        await make_due(pool, "work", "other")
        await eventually(lambda: has_run(pool, "other"))

    assert (hanging.begun, other.done) == (1, 1)


_KILLED = """
import asyncio, os, signal, sys
from dispatch.database import open_pool
from dispatch.jobs import Job, Jobs

async def main(database_url):
    pool = await open_pool(database_url)

    async def die():
        due_at = "SELECT due_at FROM jobs WHERE name = 'work'"
        claimed_until = await pool.fetchval(due_at)
        while await pool.fetchval(due_at) == claimed_until:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    await Jobs(pool, [Job(name="work", schedule="weekly", run=die)], 0.02).run()

asyncio.run(main(sys.argv[1]))
"""


async def test_the_job_of_a_node_that_is_killed_runs_elsewhere_within_five_seconds(
    config: Config, pool: Pool
) -> None:
    work = Work()
    async with running(pool, job(work)):
        await the_row(pool)
    await make_due(pool)

    node = await asyncio.create_subprocess_exec(sys.executable, "-c", _KILLED, config.database_url)
    exit_code = await node.wait()
    killed_at = time.monotonic()
    async with running(pool, job(work)):
        await eventually(lambda: has_run(pool))
    seconds = time.monotonic() - killed_at

    assert exit_code == -signal.SIGKILL
    assert work.done == 1
    assert seconds < 5.0


# --- what goes wrong ------------------------------------------------------------------------------


async def test_while_what_it_needs_is_away_it_is_run_again_after_its_lease(
    config: Config, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work(Unavailable("Stripe is away"))
    async with running(pool, job(work)):
        await the_row(pool)
        await make_due(pool)
        await eventually(lambda: "is run again: Stripe is away" in caplog.text)
        assert not await has_run(pool)

    after_the_lease = LEASE.total_seconds() + 0.1
    async with (
        later(config.database_url, after_the_lease) as pool_then,
        running(pool_then, job(work)),
    ):
        await eventually(lambda: has_run(pool_then))

    assert (work.begun, work.done) == (2, 1)


@pytest.mark.parametrize("fault", [Refused("it cannot be done"), ZeroDivisionError("a bug")])
async def test_what_fails_is_kept_and_run_again_at_its_next_time(
    pool: Pool, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    work = Work(fault)
    async with running(pool, job(work)):
        await the_row(pool)
        await make_due(pool)
        await eventually(lambda: has_run(pool))
        failed = await the_row(pool)
        await make_due(pool)
        await eventually(lambda: has_run(pool))

    assert str(fault) in failed["last_error"]
    assert failed["due_at"] == next_run("weekly", datetime.now(UTC))
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "the job work failed: it cannot be done"
        if isinstance(fault, Refused)
        else "the job work failed"
    ]
    assert (await the_row(pool))["last_error"] is None
    assert work.done == 1


async def test_without_postgres_jobs_wait_say_so_once_and_go_on(
    config: Config, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatch.jobs")
    line, work = Line(config.database_url), Work()
    await line.mend()
    far_pool = await open_pool(line.url)
    jobs = Jobs(far_pool, [job(work)], LOOK_SECONDS)
    async with running(far_pool, job(work)):
        await the_row(pool)
        await line.cut()
        await eventually(lambda: "jobs wait" in caplog.text)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await jobs._claim()
        await make_due(pool)
        await line.mend()
        await eventually(lambda: has_run(pool))
        await eventually(lambda: "jobs go on" in caplog.text)
    await close_pool(far_pool)
    await line.cut()

    assert caplog.text.count("jobs wait") == 1
