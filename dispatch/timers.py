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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
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
    """One pending timer a key, behind one timer of the loop.

    `fire(key)` is called on the loop, once a timer, when the clock has reached its time. What it
    raises goes to the loop's exception handler, and the other timers fire all the same.

    The keys of each second to come stand in a list of that second; only the present second is a
    heap. A timer that was cancelled or replaced stays where it was listed until its second has
    come, or until there are more such than pending ones: then each further call clears up one
    second, so that nobody waits for all of it. One heap of everything costs as much a call, and a
    quarter of a second whenever its garbage is cleared among a million. Keys are kept as the
    numbers of their UUIDs, because the hash of a UUID is computed in Python.
    """

    def __init__(self, clock: Clock, fire: Callable[[UUID], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._armed: dict[int, float] = {}
        self._seconds: dict[int, list[int]] = {}  # keys by the second of their time, all to come
        self._order: list[int] = []  # a heap of these seconds
        self._listed = 0  # keys in all of these lists; more than are armed: garbage
        self._cleared: Iterator[int] = iter(())  # the seconds that are still to be cleared up
        self._present: list[tuple[float, int]] = []  # a heap of what stood in seconds that came
        self._next_second = 0  # everything before it belongs into the heap
        self._handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many are pending."""
        return len(self._armed)

    def arm(self, key: UUID, at: datetime) -> None:
        """Fire the key at this time (at once when it has passed), in place of any earlier wish."""
        number, when = key.int, at.timestamp()
        self._armed[number] = when
        second = int(when)
        if second < self._next_second:
            self._arm_present((when, number))
            return
        listed = self._seconds.get(second)
        if listed is not None:
            listed.append(number)
        else:
            self._seconds[second] = [number]
            heapq.heappush(self._order, second)
            if self._order[0] == second and not self._present:
                self._sleep()
        self._listed += 1
        if self._listed > 2 * len(self._armed) + GARBAGE:
            self._clear_one_second()

    def disarm(self, key: UUID) -> None:
        """Nothing fires for the key until it is armed again."""
        self._armed.pop(key.int, None)
        if self._listed > 2 * len(self._armed) + GARBAGE:
            self._clear_one_second()

    def _arm_present(self, timer: tuple[float, int]) -> None:
        heapq.heappush(self._present, timer)
        if len(self._present) > 2 * len(self._armed) + GARBAGE:
            self._present = self._pending(number for _, number in self._present)
        if self._present[0] == timer:
            self._sleep()

    def _clear_one_second(self) -> None:
        second = next(self._cleared, None)
        if second is None:
            self._cleared = iter(tuple(self._order))
            second = next(self._cleared, None)
        if second is None or second not in self._seconds:
            return
        listed = self._seconds[second]
        pending = {key for key in listed if int(self._armed.get(key, 0.0)) == second}
        self._seconds[second] = list(pending)
        self._listed -= len(listed) - len(pending)

    def _pending(self, numbers: Iterable[int]) -> list[tuple[float, int]]:
        """A heap of those that are armed for a time before the next second, each once."""
        armed = ((self._armed.get(number), number) for number in set(numbers))
        heap = [
            (when, number)
            for when, number in armed
            if when is not None and when < self._next_second
        ]
        heapq.heapify(heap)
        return heap

    def _sleep(self) -> None:
        """Wake when the first timer is due, or earlier: the time is looked at again then."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._present or self._order:
            first = self._present[0][0] if self._present else self._order[0]
            wait = min(max(first - self._clock.now_seconds(), 0.0), LONGEST_SLEEP_SECONDS)
            self._handle = asyncio.get_running_loop().call_later(wait, self._wake)

    def _wake(self) -> None:
        now = self._clock.now_seconds()
        loop = asyncio.get_running_loop()
        for _ in range(FIRED_AT_ONCE):
            if not self._present and self._order and self._order[0] <= now:
                self._begin_second(heapq.heappop(self._order))
            if self._present and self._present[0][0] <= now:
                loop.call_soon(self._fire_one, *heapq.heappop(self._present))
        self._sleep()

    def _begin_second(self, second: int) -> None:
        listed = self._seconds.pop(second)
        self._listed -= len(listed)
        self._next_second = second + 1
        self._present = self._pending(listed)

    def _fire_one(self, when: float, number: int) -> None:
        # Unless one that was due in the same moment has disarmed it or armed it anew.
        if self._armed.get(number) == when:
            del self._armed[number]
            self._fire(UUID(int=number))


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
