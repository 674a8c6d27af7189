"""Accepts: every mechanic takes her own booking through her websocket, against pgbench.

pgbench calls the same SQL function on bookings made in the same way, on the same servers, over as
many connections as the server's pool has: some rounds before the server runs, the others after.
Nothing is pinned: both use both cores. Imports `city`, `dispatch_server`, `load`, `pgbench`.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench import machine, pgbench
from bench.city import City, city
from bench.dispatch_server import READY_MARKER, serving, write_tokens
from bench.load import LoadClient, LoadError, Outcome, load_client
from bench.options import Options, Say
from dispatch.database import POOL_SIZE

SCRIPT = pgbench.HERE / "accept.pgbench"
IN_FLIGHT = 64
OFFER_SECONDS = 60.0
YARDSTICK_ACCEPTS = 2000  # so many that what its fresh connections plan first weighs little


@dataclass(frozen=True)
class Shape:
    """Who is asked: `mechanics` each with a booking of her own, offered to `asked` of them.

    `in_flight` are the numbers of accepts under way at once to try."""

    name: str
    routing: str
    mechanics: int
    asked: int
    in_flight: tuple[int, ...]


BY_NAME = Shape("each booking offered to one by name", "priority_broadcast", 1000, 1, (8, 64, 256))
TO_ALL = Shape(
    "each booking offered to all 100 of a workshop", "workshop_only", 100, 100, (IN_FLIGHT,)
)


@dataclass(frozen=True)
class Accepts:
    """Medians over the rounds of one shape; `server_cpu_ms` is what one accept costs the server's
    process, Postgres aside."""

    name: str
    rounds: int
    mechanics: int
    in_flight: int
    pgbench_connections: int
    accepts_per_second: float
    pgbench_per_second: float
    over_pgbench: float
    server_cpu_ms: float
    p50_ms: float
    p99_ms: float
    client_busy: float


COLUMNS: dict[str, Callable[[Accepts], str]] = {
    "accepts, all winners": lambda row: row.name,
    "in flight": lambda row: str(row.in_flight),
    "accepts/s": lambda row: f"{row.accepts_per_second:,.0f}",
    "pgbench/s": lambda row: f"{row.pgbench_per_second:,.0f}",
    "÷ pgbench": lambda row: f"{row.over_pgbench:.2f}",
    "server CPU ms": lambda row: f"{row.server_cpu_ms:.2f}",
    "p50 ms": lambda row: f"{row.p50_ms:.1f}",
    "p99 ms": lambda row: f"{row.p99_ms:.1f}",
    "client busy": lambda row: f"{row.client_busy:.0%}",
}


def measure(options: Options, say: Say) -> list[Accepts]:
    """One row per shape and number in flight."""
    rows = []
    for shape in (BY_NAME, TO_ALL):
        in_flight = (IN_FLIGHT,) if options.short else shape.in_flight
        rows += _measure(shape, in_flight, options.rounds, say)
    return rows


def _measure(shape: Shape, in_flight: tuple[int, ...], rounds: int, say: Say) -> list[Accepts]:
    with city() as place:
        mechanics = place.add_mechanics(YARDSTICK_ACCEPTS, shape.mechanics)
        _with_pgbench(place, 2)  # to warm up the tables
        before = _with_pgbench(place, rounds)
        tokens = write_tokens(place, mechanics[: shape.mechanics])
        with (
            serving(place, core=None) as (port, pid),
            load_client(port, shape.mechanics, tokens, READY_MARKER) as client,
        ):
            client.connect()
            _round(place, client, shape, max(in_flight), pid)  # warms up
            seen = {
                many: [_round(place, client, shape, many, pid) for _ in range(rounds)]
                for many in in_flight
            }
        after = _with_pgbench(place, rounds)
    yard = statistics.mean([statistics.median(before), statistics.median(after)])
    rows = [_summary(shape, many, taken, yard) for many, taken in seen.items()]
    for row in rows:
        rate = f"{row.accepts_per_second:,.0f} accepts/s, pgbench {yard:,.0f}/s"
        say(f"{row.name}, {row.in_flight} in flight: {rate}")
    return rows


def _summary(
    shape: Shape, in_flight: int, seen: Sequence[tuple[Outcome, int]], yard: float
) -> Accepts:
    taken = [one for one, _ in seen]
    rate = statistics.median(one.done / one.seconds for one in taken)
    return Accepts(
        name=shape.name,
        rounds=len(seen),
        mechanics=shape.mechanics,
        in_flight=in_flight,
        pgbench_connections=POOL_SIZE,
        accepts_per_second=rate,
        pgbench_per_second=yard,
        over_pgbench=rate / yard,
        server_cpu_ms=statistics.median(cpu_ns / one.done for one, cpu_ns in seen) / 1e6,
        p50_ms=statistics.median(one.p50_ns for one in taken) / 1e6,
        p99_ms=statistics.median(one.p99_ns for one in taken) / 1e6,
        client_busy=statistics.median(one.busy for one in taken),
    )


def _with_pgbench(place: City, rounds: int) -> list[float]:
    """Accepts per second of each round; the mechanics are free again afterwards."""
    rates = []
    for _ in range(rounds):
        place.open_bookings(0, YARDSTICK_ACCEPTS, BY_NAME.routing)
        pace = pgbench.run(place.database_url, SCRIPT, YARDSTICK_ACCEPTS, POOL_SIZE)
        rates.append(pace.per_second)
        place.fetch("SELECT bench.complete_all()")
    return rates


def _round(
    place: City, client: LoadClient, shape: Shape, in_flight: int, pid: int
) -> tuple[Outcome, int]:
    """Opens the bookings, waits until every offer has arrived, accepts them all, and frees
    everybody for the next round, as another node would have done.

    Returns what the client saw of the accepts, and the CPU time in ns that process `pid` used.
    """
    client.expect(shape.mechanics, '"type":"offer"', each=shape.asked, seconds=OFFER_SECONDS)
    place.open_bookings(0, shape.mechanics, shape.routing)
    client.counted(OFFER_SECONDS)
    path = place.folder / "script"
    with path.open("w") as script:
        for row in place.fetch("SELECT n, offer_id, accept_id FROM bench.accepts ORDER BY n"):
            frame = {
                "type": "offer.accept",
                "offer_id": str(row["offer_id"]),
                "accept_id": str(row["accept_id"]),
            }
            script.write(f"{row['n']} {json.dumps(frame, separators=(',', ':'))}\n")
    before_ns = machine.cpu_ns(pid)
    taken = client.script(path, in_flight, '"type":"offer.won"')
    cpu_ns = machine.cpu_ns(pid) - before_ns
    place.fetch("SELECT bench.complete_all()")
    if taken.lost:
        raise LoadError(f"{taken.lost} of {taken.done} accepts were not won")
    return taken, cpu_ns
