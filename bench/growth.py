"""What one booking costs against mechanics online, bookings that are open, and nodes.

One at a time, a customer books a broadcast over HTTP and takes it back. A booking's cost runs until
just after the last offer, less what the server does anyway. The yardstick is the middle case,
measured first and again. Imports `city`, `dispatch_server`, `load`, `machine`, `plot`.
"""

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis.asyncio

from bench import machine, plot, report
from bench.candidates import OFFER_MARKER
from bench.city import City, city
from bench.dispatch_server import (
    PER_WORKSHOP,
    READY_MARKER,
    Bookings,
    serving_workers,
    token,
    write_tokens,
)
from bench.load import LoadClient, load_client
from bench.options import Options, Say
from dispatch.core.types import Role

REVOKED_MARKER = '"type":"offer.revoked"'
SETTLE_SECONDS = 4.0
IDLE_SECONDS = 3.0
BOOKINGS_A_ROUND = 3
AFTERMATH_SECONDS = 0.05  # the last offer may be there before the other nodes are told
WARM_UP_BOOKINGS = 5
NAMED_SHARE = 10  # one of so many open bookings waits for a favourite


@dataclass(frozen=True)
class Case:
    """`mechanics` are connected and eligible; `board` bookings are open that none of them may
    have; so many nodes, all on one core."""

    mechanics: int
    board: int
    nodes: int


MIDDLE = Case(1000, 0, 1)
SHORT = (
    [MIDDLE, Case(100, 0, 1)],
    [Case(1000, 0, 2)],
    [Case(1000, 1000, 1)],
)
LONG = (
    [MIDDLE, Case(100, 0, 1), Case(10000, 0, 1)],
    [Case(1000, 0, 2), Case(1000, 0, 4), MIDDLE],
    [Case(1000, 1000, 1), Case(1000, 10000, 1)],
)


@dataclass(frozen=True)
class Growth:
    """Medians over the bookings of one case, all of the server's processes together.

    `cpu_us` is what one booking costs, `cpu_over_middle` that beside the middle case;
    `redis_commands` and `redis_messages` (one for each node that hears it) and
    `writes_per_socket`, system calls that write, are means, less what there is without a booking.
    `idle_core` is what the server uses without a booking.
    """

    mechanics: int
    board: int
    nodes: int
    bookings: int
    cpu_us: float
    cpu_over_middle: float
    cpu_us_per_socket: float
    redis_commands: float
    redis_messages: float
    writes: float
    writes_per_socket: float
    idle_core: float


def _bar(row: Growth) -> str:
    """A block for each factor of √2 above a quarter of a millisecond."""
    return "▇" * max(1, round(2 * math.log2(max(row.cpu_us, 1) / 250)))


COLUMNS: dict[str, Callable[[Growth], str]] = {
    "mechanics, open bookings, nodes": lambda row: f"{row.mechanics:,}, {row.board:,}, {row.nodes}",
    "CPU µs/booking": lambda row: f"{row.cpu_us:,.0f}",
    "÷ middle": lambda row: f"{row.cpu_over_middle:.2f}",
    "µs/socket": lambda row: f"{row.cpu_us_per_socket:.2f}",
    "Redis commands": lambda row: f"{row.redis_commands:.1f}",
    "messages": lambda row: f"{row.redis_messages:.1f}",
    "writes": lambda row: f"{row.writes:,.0f}",
    "writes/socket": lambda row: f"{row.writes_per_socket:.3f}",
    "idle core": lambda row: f"{row.idle_core:.1%}",
    "CPU, log scale": lambda row: _bar(row).ljust(24),
}


def measure(options: Options, say: Say) -> list[Growth]:
    """One row a case."""
    groups = SHORT if options.short else LONG
    most = max(case.mechanics for group in groups for case in group)
    count = BOOKINGS_A_ROUND * options.rounds
    seen: list[tuple[Case, _Seen]] = []
    with city(machine.CLIENT_CORE) as place:
        place.add_mechanics(most + 1, PER_WORKSHOP)  # the last one has a workshop to herself
        waiting = 0
        for case in (case for group in groups for case in group):
            more = case.board - waiting
            if more > 0:
                place.fetch("SELECT bench.pend($1, $2, $3)", more, most, more // NAMED_SHARE)
                place.fetch("VACUUM ANALYZE")
                waiting = case.board
            seen.append((case, _watch(place, case, count)))
            name = f"{case.mechanics:,} mechanics, {case.board:,} open, {case.nodes} nodes"
            say(f"{name}: {seen[-1][1].cpu_us:,.0f} µs a booking")
    middle = statistics.mean(one.cpu_us for case, one in seen if case == MIDDLE)
    rows = [_row(case, one, middle) for case, one in seen]
    if not options.short:
        _draw(rows)
    return rows


@dataclass(frozen=True)
class _Seen:
    """What was counted, per booking."""

    bookings: int
    cpu_us: float
    commands: float
    publishes: float
    writes: float
    idle_core: float


def _row(case: Case, seen: _Seen, middle_us: float) -> Growth:
    return Growth(
        mechanics=case.mechanics,
        board=case.board,
        nodes=case.nodes,
        bookings=seen.bookings,
        cpu_us=seen.cpu_us,
        cpu_over_middle=seen.cpu_us / middle_us,
        cpu_us_per_socket=seen.cpu_us / case.mechanics,
        redis_commands=seen.commands,
        redis_messages=seen.publishes * case.nodes,
        writes=seen.writes,
        writes_per_socket=seen.writes / case.mechanics,
        idle_core=seen.idle_core,
    )


@dataclass(frozen=True)
class _Counters:
    """All that is counted of the server's processes and of Redis, at one moment."""

    at: float
    cpu_ns: int
    writes: int
    commands: int
    publishes: int


def _watch(place: City, case: Case, count: int) -> _Seen:
    mechanics = [row["id"] for row in place.fetch("SELECT id FROM bench.mechanics ORDER BY n")]
    tokens = write_tokens(place, mechanics[: case.mechanics])
    customer = token(place, place.add_customers(1)[0], Role.CUSTOMER)
    with (
        serving_workers(place, machine.SERVER_CORE, case.nodes) as (port, pids),
        load_client(port, case.mechanics, tokens, READY_MARKER) as client,
        machine.pinned(machine.CLIENT_CORE),
    ):
        client.connect()
        time.sleep(SETTLE_SECONDS)
        bookings = Bookings(port, [customer])
        for _ in range(WARM_UP_BOOKINGS):
            _book(client, bookings)
            _take_back(client, bookings)
        before = _count(place, pids)
        asking = _difference(before, _count(place, pids)).commands  # what counting itself adds
        before = _count(place, pids)
        time.sleep(IDLE_SECONDS)
        idle = _difference(before, _count(place, pids))
        seen = []
        for _ in range(count):
            before = _count(place, pids)
            _book(client, bookings)
            seen.append(_difference(before, _count(place, pids)))
            _take_back(client, bookings)

    def net(
        read: Callable[[_Counters], float], average: Callable[[Sequence[float]], float]
    ) -> float:
        a_second = read(idle) / idle.at
        return max(average([read(one) - a_second * one.at for one in seen]), 0.0)

    return _Seen(
        bookings=count,
        cpu_us=net(lambda one: one.cpu_ns / 1e3, statistics.median),
        commands=net(lambda one: one.commands - asking, statistics.mean),
        publishes=net(lambda one: one.publishes, statistics.mean),
        writes=net(lambda one: one.writes, statistics.mean),
        idle_core=idle.cpu_ns / 1e9 / idle.at,
    )


def _book(client: LoadClient, bookings: Bookings) -> None:
    client.expect(client.sockets, OFFER_MARKER)
    bookings.start(1)
    client.counted()
    time.sleep(AFTERMATH_SECONDS)


def _take_back(client: LoadClient, bookings: Bookings) -> None:
    client.expect(client.sockets, REVOKED_MARKER)
    bookings.cancel(1)
    client.counted()


def _count(place: City, pids: Sequence[int]) -> _Counters:
    async def ask() -> tuple[int, int]:
        async with redis.asyncio.from_url(place.redis_url) as client:
            stats = await client.info("stats")
            calls = await client.info("commandstats")
            publishes = calls.get("cmdstat_publish", {"calls": 0})["calls"]
            return int(stats["total_commands_processed"]), int(publishes)

    commands, publishes = asyncio.run(ask())
    return _Counters(
        at=time.monotonic(),
        cpu_ns=sum(map(machine.cpu_ns, pids)),
        writes=sum(map(machine.writes, pids)),
        commands=commands,
        publishes=publishes,
    )


def _difference(before: _Counters, after: _Counters) -> _Counters:
    return _Counters(
        at=after.at - before.at,
        cpu_ns=after.cpu_ns - before.cpu_ns,
        writes=after.writes - before.writes,
        commands=after.commands - before.commands,
        publishes=after.publishes - before.publishes,
    )


def _draw(rows: Sequence[Growth]) -> None:
    """Three curves from the middle case, beside the JSON."""

    def curve(read: Callable[[Growth], int], others: Callable[[Growth], bool]) -> plot.Curve:
        points = {max(read(row), 1): row.cpu_us / 1000 for row in rows if others(row)}
        return sorted(points.items())

    middle = MIDDLE
    curves = {
        "mechanics online": curve(
            lambda row: row.mechanics, lambda row: (row.board, row.nodes) == (0, 1)
        ),
        "open bookings": curve(
            lambda row: row.board, lambda row: (row.mechanics, row.nodes) == (middle.mechanics, 1)
        ),
        "nodes": curve(
            lambda row: row.nodes, lambda row: (row.mechanics, row.board) == (middle.mechanics, 0)
        ),
    }
    (report.RESULTS / "growth.svg").write_text(plot.panels(curves, "CPU ms a booking"))
