"""Deadlines: what one costs while a million wait, how late they are, and what the sweep costs.

The product's `Timers` and uvloop's own `call_at`, the yardstick, each in a fresh process with an
idle loop. The sweep is the product's own query against a real Postgres with many bookings that
wait. Imports `city`, and `timers` and `store` of the product.
"""

import asyncio
import json
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import uvloop

from bench import machine
from bench.city import City, city
from bench.load import LoadError
from bench.options import Options, Say
from dispatch import queries
from dispatch.database import Pool, close_pool, open_pool
from dispatch.store import LEFT_TO_TIMERS
from dispatch.timers import Clock, Timers

MANY, MANY_SHORT = 1_000_000, 200_000
PENDING, PENDING_SHORT = (1_000, 100_000), (1_000, 20_000)
NAMED_SHARE = 10  # one of so many pending bookings waits for a favourite
WATCHED = 5000  # timers whose lateness is looked at
WATCHED_SECONDS = 3.0
AHEAD_SECONDS = 60.0  # the others are due after this, and within two hours
FAR_SECONDS = 7200.0
CHUNK = 5000
SWEEPS = 100
SWEEP_LIMIT = 100
CAPACITY = 1


@dataclass(frozen=True)
class Cost:
    """One kind of timer with `pending` others, or the sweep with `pending` bookings; else None.

    `bytes_each` is resident memory, keys aside; `schedule_us` and `cancel_us` are medians of
    chunks, `longest_us` the longest time that one call took; `late_…` of timers due within three
    seconds. `overdue_ms` and `favourites_ms` are what the two queries of one sweep take when they
    find nothing, `…_reads` how many requests Postgres looked at for them.
    """

    name: str
    pending: int
    bytes_each: float | None = None
    schedule_us: float | None = None
    cancel_us: float | None = None
    longest_us: float | None = None
    late_p50_ms: float | None = None
    late_p99_ms: float | None = None
    overdue_ms: float | None = None
    favourites_ms: float | None = None
    overdue_reads: int | None = None
    favourites_reads: int | None = None


def _cell(read: Callable[[Cost], float | None], digits: int) -> Callable[[Cost], str]:
    def make(row: Cost) -> str:
        value = read(row)
        return "-" if value is None else f"{value:,.{digits}f}"

    return make


COLUMNS: dict[str, Callable[[Cost], str]] = {
    "deadlines": lambda row: row.name,
    "pending": lambda row: f"{row.pending:,}",
    "bytes each": _cell(lambda row: row.bytes_each, 0),
    "schedule µs": _cell(lambda row: row.schedule_us, 2),
    "cancel µs": _cell(lambda row: row.cancel_us, 2),
    "longest µs": _cell(lambda row: row.longest_us, 0),
    "late p50 ms": _cell(lambda row: row.late_p50_ms, 2),
    "late p99 ms": _cell(lambda row: row.late_p99_ms, 2),
    "overdue ms": _cell(lambda row: row.overdue_ms, 2),
    "rows": _cell(lambda row: row.overdue_reads, 0),
    "favourites ms": _cell(lambda row: row.favourites_ms, 2),
    "rows ": _cell(lambda row: row.favourites_reads, 0),
}


def measure(options: Options, say: Say) -> list[Cost]:
    """Timers of the product and of the loop, with none and with many others; then the sweep."""
    many = MANY_SHORT if options.short else MANY
    rows = []
    for kind in (Ours, Loops):
        for pending in (0, many):
            rows.append(_apart(kind, pending))
            say(f"{kind.name}, {pending:,} others: late by {rows[-1].late_p99_ms:.2f} ms (p99)")
    with city() as place:
        place.add_mechanics(1, 1)
        waiting = 0
        for pending in PENDING_SHORT if options.short else PENDING:
            more = pending - waiting
            place.fetch("SELECT bench.pend($1, 0, $2)", more, more // NAMED_SHARE)
            place.fetch("VACUUM ANALYZE")
            waiting = pending
            rows.append(asyncio.run(_sweep(place, pending)))
            say(f"sweep of {pending:,} pending: {rows[-1].overdue_ms:.2f} ms")
    return rows


# --- timers --------------------------------------------------------------------------------------


class Kind(Protocol):
    """Timers of some kind; `fired` is called with the time, on its clock, that was asked for."""

    name: str

    def __init__(self, fired: Callable[[float], None]) -> None: ...
    def now(self) -> float: ...
    def prepare(self, keys: Sequence[UUID], ats: Sequence[float]) -> None: ...
    def arm(self, first: int, last: int) -> None: ...
    def cancel(self, number: int) -> None: ...


class Ours:
    """The product's."""

    name = "Dispatch's timers"

    def __init__(self, fired: Callable[[float], None]) -> None:
        self._at: dict[UUID, float] = {}
        self._keys: list[UUID] = []
        self._whens: list[datetime] = []
        self._clock = Clock(offset_seconds=time.time() - time.monotonic())
        self._timers = Timers(self._clock, lambda key: fired(self._at[key]))

    def now(self) -> float:
        return self._clock.now_seconds()

    def prepare(self, keys: Sequence[UUID], ats: Sequence[float]) -> None:
        self._keys = list(keys)
        self._whens = [datetime.fromtimestamp(at, UTC) for at in ats]
        if len(keys) <= WATCHED:
            self._at.update(zip(keys, ats, strict=True))

    def arm(self, first: int, last: int) -> None:
        arm = self._timers.arm
        for number in range(first, last):
            arm(self._keys[number], self._whens[number])

    def cancel(self, number: int) -> None:
        self._timers.disarm(self._keys[number])


class Loops:
    """A timer of the loop each."""

    name = "uvloop's call_at"

    def __init__(self, fired: Callable[[float], None]) -> None:
        self._fired = fired
        self._loop = asyncio.get_running_loop()
        self._ats: list[float] = []
        self._handles: list[asyncio.TimerHandle] = []
        self._kept: list[asyncio.TimerHandle] = []

    def now(self) -> float:
        return self._loop.time()

    def prepare(self, keys: Sequence[UUID], ats: Sequence[float]) -> None:
        self._ats = list(ats)
        self._kept += self._handles
        self._handles = []

    def arm(self, first: int, last: int) -> None:
        call_at, keep, fired = self._loop.call_at, self._handles.append, self._fired
        for at in self._ats[first:last]:
            keep(call_at(at, fired, at))

    def cancel(self, number: int) -> None:
        self._handles[number].cancel()


def _apart(kind: type[Kind], pending: int) -> Cost:
    """Measured in a process of its own, whose memory holds nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_cost, kind, pending).result()


def _cost(kind: type[Kind], pending: int) -> Cost:
    return uvloop.run(_watch(kind, pending))


async def _watch(kind: type[Kind], pending: int) -> Cost:
    late_ms: list[float] = []
    all_fired = asyncio.Event()

    def fired(at: float) -> None:
        late_ms.append((timers.now() - at) * 1000)
        if len(late_ms) == WATCHED:
            all_fired.set()

    timers = kind(fired)
    row = await _fill(timers, Cost(kind.name, pending))
    keys = _keys(WATCHED)
    soon = timers.now() + 0.2
    timers.prepare(keys, [soon + random.uniform(0, WATCHED_SECONDS) for _ in keys])
    timers.arm(0, WATCHED)
    await all_fired.wait()
    late_ms.sort()
    p50, p99 = late_ms[WATCHED // 2], late_ms[WATCHED * 99 // 100]
    return replace(row, late_p50_ms=p50, late_p99_ms=p99)


async def _fill(timers: Kind, row: Cost) -> Cost:
    """Arms as many as are to be pending, cancels half of them, and arms these again."""
    pending = row.pending
    if not pending:
        return row
    keys, now = _keys(pending), timers.now()
    timers.prepare(keys, [now + random.uniform(AHEAD_SECONDS, FAR_SECONDS) for _ in keys])
    before_bytes = machine.rss_bytes(os.getpid())
    schedule_us = []
    for first in range(0, pending, CHUNK):
        last = min(first + CHUNK, pending)
        began = time.perf_counter()
        timers.arm(first, last)
        schedule_us.append((time.perf_counter() - began) / (last - first) * 1e6)
        await asyncio.sleep(0)
    bytes_each = (machine.rss_bytes(os.getpid()) - before_bytes) / pending
    cancelled = random.sample(range(pending), pending // 2)
    cancel_us, longest_us = [], 0.0
    for first in range(0, len(cancelled), CHUNK):
        part = cancelled[first : first + CHUNK]
        began = time.perf_counter()
        for number in part:
            timers.cancel(number)
        cancel_us.append((time.perf_counter() - began) / len(part) * 1e6)
        await asyncio.sleep(0)
    for number in cancelled:  # those armed again, one by one, for the longest call
        began = time.perf_counter()
        timers.arm(number, number + 1)
        longest_us = max(longest_us, (time.perf_counter() - began) * 1e6)
    return replace(
        row,
        bytes_each=bytes_each,
        schedule_us=statistics.median(schedule_us),
        cancel_us=statistics.median(cancel_us),
        longest_us=longest_us,
    )


def _keys(count: int) -> list[UUID]:
    return [UUID(int=random.getrandbits(128), version=4) for _ in range(count)]


# --- the sweep -----------------------------------------------------------------------------------


async def _sweep(place: City, pending: int) -> Cost:
    sql = queries.load("bookings")
    pool = await open_pool(place.database_url, size=1)
    try:
        overdue_ms, overdue_reads = await _query(pool, sql["overdue"], SWEEP_LIMIT, LEFT_TO_TIMERS)
        favourites_ms, favourites_reads = await _query(pool, sql["lost_favourites"], CAPACITY)
    finally:
        await close_pool(pool)
    return Cost(
        name=f"sweep, one in {NAMED_SHARE} for a favourite",
        pending=pending,
        overdue_ms=overdue_ms,
        favourites_ms=favourites_ms,
        overdue_reads=overdue_reads,
        favourites_reads=favourites_reads,
    )


async def _query(pool: Pool, statement: str, *arguments: object) -> tuple[float, int]:
    """The median time in ms of a query that finds nothing, and how many requests it looks at."""
    took_ms = []
    for _ in range(SWEEPS):
        began = time.perf_counter()
        found = await pool.fetch(statement, *arguments)
        took_ms.append((time.perf_counter() - began) * 1000)
        if found:
            raise LoadError("the sweep found something overdue")
    plan = json.loads(
        await pool.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *arguments)
    )
    return statistics.median(took_ms), _looked_at(plan[0]["Plan"])


def _looked_at(node: dict[str, Any]) -> int:
    """Rows of requests that a plan's node and all below it read, those that did not fit too."""
    read = 0
    if node.get("Relation Name") == "session_requests":
        each = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        read = round(each * node["Actual Loops"])
    return read + sum(map(_looked_at, node.get("Plans", ())))
