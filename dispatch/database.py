"""The connection pool, and what the loss of Postgres looks like to everybody else.

One job: open the pool that this node shares, and turn the many ways in which asyncpg says "the
server is away" into the one error `Unavailable`. Imports `errors` only.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from dispatch.errors import Unavailable

Connection = asyncpg.Connection | PoolConnectionProxy
Pool = asyncpg.Pool

POOL_SIZE: Final = 8  # 100 callers racing for one row: 4 times faster than with 90 connections
COMMAND_SECONDS: Final = 10.0
TRANSACTION_SECONDS: Final = 5

# Lost, refused, going down, or held up by somebody who was stopped in the middle of his work.
AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # how asyncpg says that a connection closed while it was used
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.CannotConnectNowError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.DeadlockDetectedError,
)


async def open_pool(database_url: str, size: int = POOL_SIZE) -> Pool:
    """A pool whose sessions speak UTC and end a statement or an idle transaction that hangs."""
    async with unavailable_when_lost():
        return await asyncpg.create_pool(
            database_url,
            min_size=0,  # with a floor asyncpg logs a traceback a try while Postgres is away
            max_size=size,
            command_timeout=COMMAND_SECONDS,
            timeout=5.0,
            max_inactive_connection_lifetime=0,  # else a timer each time that one is used
            init=_bound_transactions,
            reset=_nothing_to_reset,
            server_settings={
                "timezone": "UTC",
                "application_name": "dispatch",
                "statement_timeout": "10s",
                # A node that is stopped while it holds a booking must not keep it from the others.
                "idle_in_transaction_session_timeout": "2s",
                "lock_timeout": "4s",
                "jit": "off",
            },
        )


async def _bound_transactions(connection: asyncpg.Connection) -> None:
    """A node that was stopped between announcing a statement and sending it is not idle to
    Postgres, and would hold its locks while it stands still: from Postgres 17 on, so long at most.
    """
    await connection.execute(
        f"""SELECT set_config(name, '{TRANSACTION_SECONDS}s', false)
              FROM pg_settings WHERE name = 'transaction_timeout'"""
    )


async def _nothing_to_reset(connection: asyncpg.Connection) -> None:
    """Nobody here leaves settings, locks or listeners on a session: it saves a round trip a use."""


@asynccontextmanager
async def unavailable_when_lost() -> AsyncIterator[None]:
    """Raises `Unavailable` in place of a lost, refused or hanging connection."""
    try:
        yield
    except AWAY as error:
        if isinstance(error, ValueError):  # a wrong argument of ours, which asyncpg calls the same
            raise
        raise Unavailable("the database did not answer, try again") from error


@asynccontextmanager
async def transaction(pool: Pool) -> AsyncIterator[Connection]:
    """One transaction on one connection of the pool; `Unavailable` when Postgres is lost in it.

    Leaving the block normally commits. A commit whose reply is lost is `Unavailable` too: the
    caller does not know, and whoever asks again finds out from the rows.
    """
    async with (
        unavailable_when_lost(),
        pool.acquire(timeout=5.0) as connection,
        connection.transaction(),
    ):
        yield connection


async def close_pool(pool: Pool) -> None:
    """Closes the pool, without waiting for ever for a frozen server."""
    try:
        async with asyncio.timeout(3.0):
            await pool.close()
    except (TimeoutError, *AWAY):
        pool.terminate()
