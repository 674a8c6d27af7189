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
        self._asked: list[tuple[UUID, asyncio.Future[R]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: UUID) -> R:
        """What a read that began after this call says about `key` and others. Raises as `read`.

        Each has a future of her own, so that one who gives up takes nobody along.
        """
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._asked.append((key, answer))
        if self._reading is None:
            self._reading = asyncio.create_task(self._run(), name=self._name)
        return await answer

    async def _run(self) -> None:
        """Read as long as somebody asks."""
        try:
            while self._asked:
                asked, self._asked = self._asked, []
                await self._answer(asked)
        finally:
            self._reading = None

    async def _answer(self, asked: list[tuple[UUID, asyncio.Future[R]]]) -> None:
        try:
            result = await self._read(list({key for key, _ in asked}))
        except Exception as error:
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for _, answer in asked:
                if not answer.done():
                    answer.set_result(result)
        finally:
            for _, answer in asked:
                answer.cancel()  # of no effect but where the reading itself was cancelled
