"""A pool on the test's database, one connection of it, and the queries over it."""

from collections.abc import AsyncIterator

import pytest

from dispatch.database import Connection, Pool, close_pool, open_pool
from dispatch.store import Store

CONNECTIONS = 50  # for races; opened when they are needed


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(database_url, size=CONNECTIONS)
    yield pool
    await close_pool(pool)


@pytest.fixture
async def connection(pool: Pool) -> AsyncIterator[Connection]:
    async with pool.acquire() as connection:
        yield connection


@pytest.fixture
def store(pool: Pool) -> Store:
    return Store(pool)
