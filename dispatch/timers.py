"""This node's clock, its timers, and the sweep that finds what another node left due.

One job: fire keys when their time has come by the database's clock, never before. A timer in the
process is precision; the deadline in the row is the promise, and the sweep keeps it. Decides
nothing: whoever is called reads the row and judges. Imports `database` and `errors`.
"""

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import Unavailable

SAMPLES: Final = 5
LONGEST_SLEEP_SECONDS: Final = 1.0  # the clock may be measured anew while timers sleep
FIRED_AT_ONCE: Final = 200  # then the loop gets a turn
GARBAGE: Final = 64  # cancelled timers that are not worth clearing up
SWEEP_CONCURRENCY: Final = 8
SWEEP_BATCH: Final = 100

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

log = logging.getLogger(__name__)


class Clock:
    """The database's clock as this node knows it.

    It runs with the process's monotonic clock, so steps of the machine's clock change nothing. It
    is never ahead of the database's: each answer was true at the latest when it arrived, so the
    best of several is the one that puts the database furthest ahead. It lags by that answer's way
    back, some tenths of a millisecond.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        offset_seconds: float | None = None,
    ) -> None:
        """`offset_seconds` makes `monotonic` the database's seconds since 1970; else measure it."""
        self._monotonic = monotonic
        self._offset_seconds = offset_seconds

    async def measure(self, pool: Pool) -> None:
        """Ask the database a few times; to be repeated, because clocks drift. Raises Unavailable.

        When it fails the clock runs on as it was.
        """
        offsets = []
        async with unavailable_when_lost(), pool.acquire(timeout=5.0) as connection:
            for _ in range(SAMPLES):
                told: datetime = await connection.fetchval("SELECT dispatch_now()")
                offsets.append(told.timestamp() - self._monotonic())
        self._offset_seconds = max(offsets)

    def now(self) -> datetime:
        """The database's time. It must have been measured once."""
        return _EPOCH + timedelta(seconds=self.now_seconds())

    def now_seconds(self) -> float:
        """The same as seconds since 1970."""
        assert self._offset_seconds is not None, "the clock was never measured"
        return self._monotonic() + self._offset_seconds


class Timers:
    """One pending timer a key, in one heap, behind one timer of the loop.

    `fire(key)` is called on the loop, once a timer, when the clock has reached its time. What it
    raises goes to the loop's exception handler, and the other timers fire all the same.
    """

    def __init__(self, clock: Clock, fire: Callable[[UUID], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._armed: dict[UUID, tuple[float, UUID]] = {}
        self._heap: list[tuple[float, UUID]] = []  # what is not armed any more is garbage
        self._handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many are pending."""
        return len(self._armed)

    def arm(self, key: UUID, at: datetime) -> None:
        """Fire the key at this time (at once when it has passed), in place of any earlier wish."""
        timer = (at.timestamp(), key)
        self._armed[key] = timer
        heapq.heappush(self._heap, timer)
        if len(self._heap) > 2 * len(self._armed) + GARBAGE:
            self._clear_garbage()
        if self._heap[0] is timer:
            self._sleep()

    def disarm(self, key: UUID) -> None:
        """Nothing fires for the key until it is armed again."""
        self._armed.pop(key, None)
        if len(self._heap) > 2 * len(self._armed) + GARBAGE:
            self._clear_garbage()

    def _clear_garbage(self) -> None:
        self._heap = list(self._armed.values())
        heapq.heapify(self._heap)

    def _sleep(self) -> None:
        """Wake when the first timer is due, or earlier: the time is looked at again then."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap:
            wait = self._heap[0][0] - self._clock.now_seconds()
            wait = min(max(wait, 0.0), LONGEST_SLEEP_SECONDS)
            self._handle = asyncio.get_running_loop().call_later(wait, self._wake)

    def _wake(self) -> None:
        now = self._clock.now_seconds()
        loop = asyncio.get_running_loop()
        for _ in range(FIRED_AT_ONCE):
            if not self._heap or self._heap[0][0] > now:
                break
            loop.call_soon(self._fire_one, heapq.heappop(self._heap))
        self._sleep()

    def _fire_one(self, timer: tuple[float, UUID]) -> None:
        # Unless one that was due in the same moment has disarmed it or armed it anew.
        if self._armed.get(timer[1]) is timer:
            del self._armed[timer[1]]
            self._fire(timer[1])


class Sweep:
    """Asks Postgres again and again what is overdue, and has it fired."""

    def __init__(
        self,
        overdue: Callable[[], Awaitable[Sequence[UUID]]],
        fire: Callable[[UUID], Awaitable[None]],
        interval_seconds: float,
        batch: int = SWEEP_BATCH,
    ) -> None:
        """`overdue` gives `batch` keys at most; both it and `fire` may raise Unavailable."""
        self._overdue = overdue
        self._fire = fire
        self._interval_seconds = interval_seconds
        self._batch = batch
        self._lost = False

    async def run(self) -> None:
        """Sweep until cancelled, at once again while full batches are found.

        Intervals are jittered so that nodes spread. While the database is away it is tried again
        each interval, and the log says so once.
        """
        before: frozenset[UUID] = frozenset()
        while True:
            found = await self._sweep()
            # The same keys again were not helped by firing them: no hurry then.
            if len(found) < self._batch or found == before:
                await asyncio.sleep(self._interval_seconds * random.uniform(0.8, 1.2))
            before = found

    async def _sweep(self) -> frozenset[UUID]:
        """Fire what is overdue, eight at a time; gives what was, nothing when it cannot be said."""
        try:
            keys = await self._overdue()
        except Unavailable as error:
            self._lose(error)
            return frozenset()
        self._recover()
        queue = iter(keys)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(SWEEP_CONCURRENCY, len(keys))):
                tasks.create_task(self._fire_all(queue), name="sweep")
        return frozenset(keys)

    async def _fire_all(self, queue: Iterator[UUID]) -> None:
        try:
            for key in queue:
                await self._fire(key)
        except Unavailable as error:
            self._lose(error)  # the rest is still overdue the next time

    def _lose(self, error: Unavailable) -> None:
        if not self._lost:
            self._lost = True
            log.warning("sweep lost the database: %s", error.message)

    def _recover(self) -> None:
        if self._lost:
            self._lost = False
            log.info("sweep recovered the database")
