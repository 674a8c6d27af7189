"""Payouts by schedule: weeks pass, and whichever node lives pays each payee once (T1, M3)."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from dispatch.config import Config
from dispatch.database import Pool
from dispatch.jobs import Schedule, next_run
from tests.conftest import MakeConfig
from tests.integration.living import LivingNode, living_node, pass_time, two_nodes
from tests.integration.paydesk import Paydesk
from tests.integration.stripe_servers import Receiver, make_client, serving, stand_in
from tests.support import eventually


@pytest.fixture
async def desk(pool: Pool, tmp_path: Path) -> AsyncIterator[Paydesk]:
    async with (
        serving(Receiver().app()) as url,
        stand_in(tmp_path, f"{url}/webhook") as client,
    ):
        stripe = make_client(client.url)
        desk = Paydesk(pool, stripe, client)
        await desk.fund()
        yield desk
        await stripe.close()


def scheduled(make_config: MakeConfig, desk: Paydesk, schedule: Schedule) -> Config:
    return make_config(stripe_api_base=desk.stand_in.url, payout_schedule=schedule)


async def is_planned(desk: Paydesk) -> bool:
    """Whether the job has its time, and nobody is at it."""
    return bool(
        await desk.pool.fetchval(
            "SELECT count(*) FROM jobs WHERE name = 'payouts' AND claim IS NULL"
        )
    )


async def has_run(desk: Paydesk, times: int) -> bool:
    """Whether so many payouts were made and delivered, and the job waits for its next time."""
    paid = await desk.pool.fetchval("SELECT count(*) FROM payouts WHERE status = 'paid'")
    return paid == times and await is_planned(desk) and await desk.is_delivered()


async def until(desk: Paydesk, config: Config, at: datetime, *nodes: LivingNode) -> None:
    """It is that time, a second later."""
    await eventually(lambda: is_planned(desk))
    seconds = (at - datetime.now(UTC)).total_seconds() + 1
    await pass_time(config.database_url, seconds, *nodes)
    await desk.pool.expire_connections()


def times_of(schedule: Schedule, count: int) -> list[datetime]:
    """The next times of a schedule."""
    times = [datetime.now(UTC)]
    for _ in range(count):
        at = next_run(schedule, times[-1])
        assert at is not None
        times.append(at)
    return times[1:]


@pytest.mark.parametrize("schedule", ["weekly", "monthly"])
async def test_at_each_time_of_the_schedule_everybody_who_is_owed_enough_is_paid_once(
    desk: Paydesk, make_config: MakeConfig, schedule: Schedule
) -> None:
    config = scheduled(make_config, desk, schedule)
    rich, poor = await desk.mechanic(), await desk.mechanic()
    async with two_nodes(config) as nodes:
        # By the second time the poor have enough as well.
        for at, payouts in zip(times_of(schedule, 2), (1, 3), strict=True):
            await desk.earn(rich, 2000)
            await desk.earn(poor, 900)
            await until(desk, config, at, *nodes)
            await eventually(partial(has_run, desk, payouts))

    first, second = times_of(schedule, 2)
    rows = await desk.pool.fetch("SELECT * FROM payouts ORDER BY created_at")
    made = {
        (row["mechanic_id"], row["amount_cents"], made_at(row, (second, first))) for row in rows
    }
    assert made == {
        (rich, 1600, first),
        (rich, 1600, second),
        (poor, 1440, second),
    }
    assert {(row["cause"], row["created_by"]) for row in rows} == {("schedule", None)}
    await desk.agrees()


def made_at(row: asyncpg.Record, times: tuple[datetime, ...]) -> datetime:
    """The time of the schedule, of these, at which a payout was made: some seconds later."""
    at = next(each for each in times if each < row["created_at"])
    assert row["created_at"] - at < timedelta(seconds=10)
    return at


async def test_nothing_is_paid_before_the_time_nor_without_a_schedule(
    desk: Paydesk, make_config: MakeConfig
) -> None:
    mechanic_id = await desk.mechanic()
    await desk.earn(mechanic_id, 5000)
    (monday,) = times_of("weekly", 1)
    weekly, never = scheduled(make_config, desk, "weekly"), scheduled(make_config, desk, "off")
    async with living_node(weekly) as node:
        await until(desk, weekly, monday - timedelta(seconds=60), node)
        await eventually(lambda: reconciled_again(desk))
    async with living_node(never) as node:
        await until(desk, never, monday + timedelta(days=40), node)
        await eventually(lambda: reconciled_again(desk))

    assert await desk.pool.fetchval("SELECT count(*) FROM payouts") == 0
    assert await desk.pool.fetchval("SELECT due_at FROM jobs WHERE name = 'payouts'") is None


async def reconciled_again(desk: Paydesk) -> bool:
    """Whether the node has looked at what is due by the time that it is now."""
    return bool(
        await desk.pool.fetchval(
            "SELECT last_run_at > dispatch_now() - interval '30 s' FROM jobs"
            " WHERE name = 'reconcile' AND claim IS NULL"
        )
    )


async def test_what_no_node_was_there_for_is_paid_once_by_the_next_that_comes(
    desk: Paydesk, make_config: MakeConfig
) -> None:
    config = scheduled(make_config, desk, "weekly")
    mechanic_id: UUID = await desk.mechanic()
    async with living_node(config):
        await eventually(lambda: is_planned(desk))
    await desk.earn(mechanic_id, 5000)
    *_, third = times_of("weekly", 3)
    await until(desk, config, third + timedelta(days=2))

    async with living_node(config):
        await eventually(lambda: has_run(desk, 1))

    assert await desk.balance(mechanic_id) == 4000
    (fourth,) = times_of("weekly", 4)[3:]
    due_at = await desk.pool.fetchval("SELECT due_at FROM jobs WHERE name = 'payouts'")
    assert due_at == fourth
    await desk.agrees()
