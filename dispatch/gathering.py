"""One read for all who ask in the same moment.

One job: when many people need the same kind of read at once, send one query for all who asked
since the last one was sent. One alone waits for nobody; ten thousand cost a few queries.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar
from uuid import UUID

R = TypeVar("R")


class Gathering(Generic[R]):
    """Shares reads of `read(ids)`; at most one runs at a time, and it starts after the ask."""

    def __init__(self, read: Callable[[Sequence[UUID]], Awaitable[R]], name: str) -> None:
        self._read = read
        self._name = name
        self._one_at_a_time = asyncio.Lock()
        self._wanted: set[UUID] = set()
        self._next: asyncio.Task[R] | None = None
        self._tasks: set[asyncio.Task[R]] = set()

    async def get(self, key: UUID) -> R:
        """What a read that began after this call says about `key` and others. Raises as `read`."""
        self._wanted.add(key)
        if self._next is None:
            self._next = asyncio.create_task(self._run(), name=self._name)
            self._tasks.add(self._next)
            self._next.add_done_callback(self._tasks.discard)
        return await asyncio.shield(self._next)  # one who gives up takes nobody along

    async def _run(self) -> R:
        async with self._one_at_a_time:
            wanted, self._wanted, self._next = self._wanted, set(), None
            return await self._read(list(wanted))
