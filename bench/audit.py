"""What the audit trail costs when one booking is offered to thousands, in this very process.

The product's own hub, board, fan-out and audit, with sockets that take bytes and do nothing, so
that only our side is measured; the rows go to a real Postgres. Rounds with the trail and rounds
without it take turns. Imports `city`.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

from bench.city import City, city
from bench.options import Options, Say
from dispatch.audience import Audience
from dispatch.audit import Audit
from dispatch.board import Board
from dispatch.core.types import Booking, Role
from dispatch.database import close_pool, open_pool
from dispatch.fanout import Fanout
from dispatch.hints import Entry
from dispatch.hub import Hub
from dispatch.metrics import Metrics
from dispatch.protocol import CloseCode, ServerFrame
from dispatch.store import Facts, Store
from dispatch.waterfall import Waterfall

PER_WORKSHOP = 100
TICK_SECONDS = 0.0005


@dataclass(frozen=True)
class AuditCost:
    """Medians over the rounds for one number of candidates; times in ms.

    `fanout_ms` with the trail, `over_none` that divided by the rounds without it; `write_ms` until
    the rows are committed, of which `cpu_ms` of this process; `held_ms` the longest time for which
    the loop did nothing else meanwhile; `seen_ms` noting that everybody saw it.
    """

    candidates: int
    rounds: int
    fanout_ms: float
    over_none: float
    seen_ms: float
    write_ms: float
    write_cpu_ms: float
    held_ms: float
    bytes_per_candidate: float


class Deaf:
    """A socket that takes everything."""

    def __init__(self, user_id: UUID) -> None:
        self.connection_id = uuid4()
        self.user_id = user_id
        self.role = Role.MECHANIC
        self.device: str | None = None
        self.epoch = 0
        self.offers_sent = 0
        self.unread_bytes = 0

    def send(self, data: bytes) -> None:
        pass

    def post(self, data: bytes) -> None:
        self.send(data)

    def send_frame(self, frame: ServerFrame) -> None:
        pass

    def close(self, code: CloseCode, reason: str = "") -> None:
        pass


class NoAudit(Audit):
    """Keeps nothing of a broadcast."""

    def asked(self, *_: object) -> None:
        pass

    def passed_over(self, *_: object) -> None:
        pass


COLUMNS: dict[str, Callable[[AuditCost], str]] = {
    "audit of one broadcast": lambda row: f"{row.candidates:,} candidates",
    "fan-out ms": lambda row: f"{row.fanout_ms:.1f}",
    "÷ unaudited": lambda row: f"{row.over_none:.2f}",
    "all seen ms": lambda row: f"{row.seen_ms:.1f}",
    "write ms": lambda row: f"{row.write_ms:.1f}",
    "CPU ms": lambda row: f"{row.write_cpu_ms:.1f}",
    "loop held ms": lambda row: f"{row.held_ms:.1f}",
    "bytes each": lambda row: f"{row.bytes_per_candidate:.0f}",
}


def measure(options: Options, say: Say) -> list[AuditCost]:
    """One row a number of candidates."""
    sizes = options.sockets
    with city() as place:
        place.add_mechanics(max(sizes), PER_WORKSHOP)
        place.open_bookings(0, len(sizes) * 2 * (options.rounds + 1), "broadcast")
        return asyncio.run(_compare(place, sizes, options.rounds, say))


async def _compare(place: City, sizes: Sequence[int], rounds: int, say: Say) -> list[AuditCost]:
    pool = await open_pool(place.database_url)
    try:
        store = Store(pool)
        ids = [row[0] for row in await pool.fetch("SELECT id FROM bench.mechanics ORDER BY n")]
        facts = (await store.arrivals(ids)).facts
        requests = [row[0] for row in await pool.fetch("SELECT id FROM session_requests")]
        entries = iter(await store.entries(requests))
        rows = []
        for size in sizes:
            candidates = [facts[each] for each in ids[:size]]
            rows.append(await _cost(store, candidates, entries, rounds))
            say(f"{size:,} candidates: a fan-out costs {rows[-1].over_none:.2f} of one unaudited")
        return rows
    finally:
        await close_pool(pool)


async def _cost(
    store: Store, candidates: list[Facts], entries: Iterator[Entry], rounds: int
) -> AuditCost:
    kept = _Part(store, Audit, candidates)
    none = _Part(store, NoAudit, candidates)
    with_ms, without_ms, seen_ms, writes = [], [], [], []
    for number in range(rounds + 1):  # the first one warms up
        entry, unaudited = next(entries), next(entries)
        without = await none.fan_out(unaudited)
        with_audit = await kept.fan_out(entry)
        seen = kept.see(entry.booking)
        written = await _write(kept.audit.flush)
        if number:
            with_ms.append(with_audit)
            without_ms.append(without)
            seen_ms.append(seen)
            writes.append(written)
    size = await store.pool.fetchval(
        "SELECT sum(pg_column_size(d)) / count(DISTINCT d.request_id) FROM routing_decisions d "
        "WHERE d.node_id = $1",
        kept.node_id,
    )
    return AuditCost(
        candidates=len(candidates),
        rounds=rounds,
        fanout_ms=statistics.median(with_ms),
        over_none=statistics.median(with_ms) / statistics.median(without_ms),
        seen_ms=statistics.median(seen_ms),
        write_ms=statistics.median(each[0] for each in writes),
        write_cpu_ms=statistics.median(each[1] for each in writes),
        held_ms=statistics.median(each[2] for each in writes),
        bytes_per_candidate=float(size) / len(candidates),
    )


class _Part:
    """A node's fan-out with everybody connected."""

    def __init__(self, store: Store, kind: type[Audit], candidates: list[Facts]) -> None:
        self.node_id = node_id = uuid4()
        self.hub, self.board = Hub(), Board()
        self.audit = kind(store, node_id, _now, Waterfall(Metrics(node_id)))
        self.fanout = Fanout(
            self.hub,
            self.board,
            Audience(node_id, self.hub.apart),
            self.audit,
            now=_now,
            publish=lambda hint: None,
            pace=lambda mechanic, rest: None,
            stood_still=lambda: False,
            capacity=1,
        )
        for facts in candidates:
            socket = Deaf(facts.candidate.mechanic_id)
            self.hub.add_mechanic(socket, facts.candidate, facts.changed_at)

    async def fan_out(self, entry: Entry) -> float:
        """Offers the booking to everybody, slice by slice; ms."""
        with _timed() as ms:
            self.fanout.apply(entry)
            while self.fanout.is_writing:  # noqa: ASYNC110 - nothing else is to run meanwhile
                await asyncio.sleep(0)
        return ms[0]

    def see(self, booking: Booking) -> float:
        """Everybody sees it; ms."""
        everybody = [mechanic.candidate.mechanic_id for mechanic in self.hub.mechanics()]
        random.shuffle(everybody)
        with _timed() as ms:
            for mechanic_id in everybody:
                self.fanout.note_seen(mechanic_id, booking)
        return ms[0]


async def _write(flush: Callable[[], Awaitable[None]]) -> tuple[float, float, float]:
    """Wall time, CPU time of this process, and the longest pause of the loop; ms."""
    gaps = [0.0]

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.perf_counter()
            gaps.append(now - last - TICK_SECONDS)
            last = now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    cpu_ns = time.process_time_ns()
    with _timed() as ms:
        await flush()
    cpu_ms = (time.process_time_ns() - cpu_ns) / 1e6
    ticking.cancel()
    return ms[0], cpu_ms, max(gaps) * 1000


@contextmanager
def _timed() -> Iterator[list[float]]:
    ms: list[float] = []
    began = time.perf_counter()
    yield ms
    ms.append((time.perf_counter() - began) * 1000)


def _now() -> datetime:
    return datetime.now(UTC)
