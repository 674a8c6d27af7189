"""One connection to Redis, owned by one task.

One job: send commands in one write, read their answers within a bounded time, and notice when the
connection is no longer what it was. Built on redis-py's `Connection` and not on its client, which
reconnects without telling; presence and bus must know that they lost something. Imports `errors`.

Every failure (refused, lost, silent, an error for an answer) closes the connection and is raised as
`Unavailable`. A cancelled call closes it too, so that nobody reads an answer meant for another.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from dispatch.errors import Unavailable

Command = Sequence[str | bytes | int]

ANSWER_SECONDS: Final = 0.5


class Link:
    """A connection that is either open, or closed until somebody opens it."""

    def __init__(self, url: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        """`answer_seconds` bounds opening, and one call of `ask`, each as a whole."""
        pool: ConnectionPool = ConnectionPool.from_url(
            url,
            # Ours bound whole conversations. redis-py's own would use asyncio.wait_for, which in
            # Python 3.11 can swallow a cancellation.
            socket_timeout=None,
            socket_connect_timeout=answer_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        self._connection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._answer_seconds = answer_seconds

    async def open(self) -> None:
        """Connect and authenticate, unless it is open. Raises Unavailable."""
        async with self._closed_on_failure(), asyncio.timeout(self._answer_seconds):
            await self._connection.connect()

    async def ask(self, *commands: Command) -> list[Any]:
        """The answers in the order of the commands, which travel together. Raises Unavailable."""
        async with self._closed_on_failure(), asyncio.timeout(self._answer_seconds):
            await self._send(commands)
            return [await self._connection.read_response(timeout=math.inf) for _ in commands]

    async def subscribe(self, channel: str) -> None:
        """From the confirmation on, which `receive` gives, the channel's messages come."""
        async with self._closed_on_failure(), asyncio.timeout(self._answer_seconds):
            await self._send([("SUBSCRIBE", channel)])

    async def receive(self, within_seconds: float) -> list[Any] | None:
        """The next [kind, channel, data] of a subscribed connection; None when none came."""
        async with self._closed_on_failure():
            pushed = await self._connection.read_response(
                timeout=within_seconds, disconnect_on_error=False, push_request=True
            )
            return None if pushed is None else list(pushed)

    async def close(self) -> None:
        """Closed at once; what was not answered never will be."""
        await self._connection.disconnect(nowait=True)

    async def _send(self, commands: Sequence[Command]) -> None:
        if not self._connection.is_connected:
            raise ConnectionError("not connected")  # and do not let redis-py connect by itself
        packed = self._connection.pack_commands(commands)
        await self._connection.send_packed_command(packed, check_health=False)

    @asynccontextmanager
    async def _closed_on_failure(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            await self.close()
            raise Unavailable(f"Redis is away: {error or type(error).__name__}") from error
        except BaseException:
            await self.close()
            raise
