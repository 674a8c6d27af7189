"""Background work that is owned: named, kept, and never silently lost.

One job: run coroutines that nobody awaits. The event loop holds tasks weakly, so they are kept
here. What a task may meet (a server away, a refusal) is logged in a line; anything else is a bug,
is logged whole and handed to `failed`, which ends the node rather than let it limp.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from dispatch.errors import DispatchError

log = logging.getLogger(__name__)


class Tasks:
    """The background tasks of a node."""

    def __init__(self, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Runs `work` until it ends, or somebody or `close` cancels it."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    async def close(self) -> None:
        """Cancels what still runs and waits for it."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, DispatchError):
            log.warning("%s: %s", task.get_name(), error.message)
        elif error is not None:
            log.error("%s failed", task.get_name(), exc_info=error)
            self._failed()
