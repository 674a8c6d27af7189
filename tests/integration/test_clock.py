"""The node's clock is the database's: never ahead of it, and moved by nothing else."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from dispatch.database import Pool, close_pool, open_pool
from dispatch.errors import Unavailable
from dispatch.timers import Clock


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database_url, size=1)
    yield pool
    await close_pool(pool)


async def database_now(pool: Pool) -> datetime:
    now: datetime = await pool.fetchval("SELECT dispatch_now()")
    return now


async def test_the_clock_is_never_ahead_of_the_database_nor_far_behind(pool: Pool) -> None:
    clock = Clock()
    await clock.measure(pool)

    for _ in range(200):
        before = await database_now(pool)
        ours = clock.now()
        after = await database_now(pool)
        assert ours <= after
        assert ours > before - timedelta(seconds=1)


async def test_it_follows_the_database_when_it_is_measured_again(
    pool: Pool, database_url: str
) -> None:
    clock = Clock()
    await clock.measure(pool)
    first = clock.now()
    name = await pool.fetchval("SELECT current_database()")
    await pool.execute(f"ALTER DATABASE {name} SET dispatch.clock_offset = '2 hours'")
    moved = await open_pool(database_url, size=1)

    await clock.measure(moved)
    await close_pool(moved)

    assert timedelta(hours=2) <= clock.now() - first < timedelta(hours=3)


async def test_it_runs_on_when_the_database_is_away(pool: Pool) -> None:
    clock = Clock()
    await clock.measure(pool)
    first = clock.now()
    await close_pool(pool)

    with pytest.raises(Unavailable):
        await clock.measure(pool)

    assert first <= clock.now() < first + timedelta(hours=1)
