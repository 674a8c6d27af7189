"""Storms: N clients connect at the same moment, and again after all were dropped at once.

Ready is a client when it has its `welcome` (JWT, presence and snapshot are in it); for a server
without a product, when it is upgraded. The yardstick's storms are taken in turns. The databases of
Dispatch share the load client's core: how busy that was is said, since it can be the bottleneck.
Imports `candidates`, `dispatch_server`, `load`, `machine`, `peers.servers` and `turns`. Raises
LoadError when somebody does not come back.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench import machine
from bench.candidates import Candidate, Running, raw
from bench.dispatch_server import Dispatch
from bench.load import LoadClient, load_client
from bench.options import Options, Say
from bench.peers import servers
from bench.turns import Turns, of_yardstick, take_turns

PAYLOAD_BYTES = 350  # nothing is published here
STORM_SECONDS = 120.0
SETTLE_SECONDS = 3.0  # what a server still does about those who came and those who went
SHORT_SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Round:
    """Everybody connects. CPU times are the server's, per client; `settled_us` until some seconds
    later, less what the server uses in as long with nothing to do."""

    cost_us: float
    settled_us: float
    seconds: float
    client_busy: float
    other_core_busy: float


@dataclass(frozen=True)
class Storm:
    """Medians over the rounds of one candidate: of storms in which everybody, connected before, was
    dropped at once; `first_…` is the one in which everybody came for the first time.

    `per_core_second` is how many come back in a second of the server's CPU time, `seconds` how long
    it takes until all N are; `other_core_busy` is the share of the other core that was in use.
    """

    name: str
    sockets: int
    rounds: int
    per_core_second: float
    seconds: float
    cost_us: float
    cost_over_raw: float
    settled_over_raw: float
    first_per_core_second: float
    first_seconds: float
    client_busy: float
    other_core_busy: float


COLUMNS: dict[str, Callable[[Storm], str]] = {
    "everybody comes back at once": lambda row: row.name,
    "sockets": lambda row: f"{row.sockets:,}",
    "back/s of CPU": lambda row: f"{row.per_core_second:,.0f}",
    "all back s": lambda row: f"{row.seconds:.2f}",
    "µs each": lambda row: f"{row.cost_us:.0f}",
    "cost ÷ raw": lambda row: f"{row.cost_over_raw:.1f}",
    "settled ÷ raw": lambda row: f"{row.settled_over_raw:.1f}",
    "first time/s of CPU": lambda row: f"{row.first_per_core_second:,.0f}",
    "first time s": lambda row: f"{row.first_seconds:.2f}",
    "client busy": lambda row: f"{row.client_busy:.0%}",
    "its core busy": lambda row: f"{row.other_core_busy:.0%}",
}


def measure(options: Options, say: Say) -> list[Storm]:
    """For each number of sockets the yardstick's row, then one per candidate."""
    candidates = [*servers.others(PAYLOAD_BYTES, options, say), Dispatch()]
    return [
        row
        for sockets in options.sockets
        for row in _compare(raw(PAYLOAD_BYTES), candidates, sockets, options, say)
    ]


def _compare(
    yardstick: Candidate, candidates: list[Candidate], sockets: int, options: Options, say: Say
) -> list[Storm]:
    settle_seconds = SHORT_SETTLE_SECONDS if options.short else SETTLE_SECONDS
    yards: list[Round] = []
    rows = []
    with _started(yardstick, sockets) as yard:
        again = partial(storm, *yard, settle_seconds)
        first_of_yard = again()
        for candidate in candidates:
            with _started(candidate, sockets) as other:
                theirs = partial(storm, *other, settle_seconds)
                first = theirs()
                turns, around = take_turns(options.rounds, theirs, again)
            yards += around
            rows.append(_summary(candidate.name, sockets, turns, first))
            say(_sentence(rows[-1]))
    return [_summary(yardstick.name, sockets, of_yardstick(yards), first_of_yard), *rows]


@contextmanager
def _started(candidate: Candidate, sockets: int) -> Iterator[tuple[Running, LoadClient]]:
    """A server with a load client that is not yet connected."""
    with (
        candidate.serve(sockets) as server,
        load_client(server.port, sockets, server.tokens, server.ready, server.dialect) as client,
    ):
        yield server, client


def storm(server: Running, client: LoadClient, settle_seconds: float) -> Round:
    """Drops everybody who is there, and waits until all are back; watches the server for so long
    before and after."""
    idle_ns = _watch(server, settle_seconds)
    before_ns, busy_before = machine.cpu_ns(server.pid), machine.core_busy_seconds()
    begun = time.monotonic()
    came = client.connect(client.sockets, STORM_SECONDS)
    after_ns, busy_seconds = machine.cpu_ns(server.pid), machine.core_busy_seconds() - busy_before
    lasted = time.monotonic() - begun
    trailing_ns = _watch(server, settle_seconds) - idle_ns
    return Round(
        cost_us=(after_ns - before_ns) / 1e3 / client.sockets,
        settled_us=(after_ns - before_ns + trailing_ns) / 1e3 / client.sockets,
        seconds=came.seconds,
        client_busy=came.busy,
        other_core_busy=min(busy_seconds / lasted, 1.0),
    )


def _watch(server: Running, seconds: float) -> int:
    """The server's CPU time in ns during so long with nobody coming or going."""
    before_ns = machine.cpu_ns(server.pid)
    time.sleep(seconds)
    return machine.cpu_ns(server.pid) - before_ns


def _summary(name: str, sockets: int, turns: Turns[Round], first: Round) -> Storm:
    def cost(one: Round) -> float:
        return one.cost_us

    return Storm(
        name=name,
        sockets=sockets,
        rounds=len(turns.rounds),
        per_core_second=1e6 / turns.median(cost),
        seconds=turns.median(lambda one: one.seconds),
        cost_us=turns.median(cost),
        cost_over_raw=turns.ratio(cost),
        settled_over_raw=turns.ratio(lambda one: one.settled_us, cost),
        first_per_core_second=1e6 / first.cost_us,
        first_seconds=first.seconds,
        client_busy=turns.median(lambda one: one.client_busy),
        other_core_busy=turns.median(lambda one: one.other_core_busy),
    )


def _sentence(row: Storm) -> str:
    return (
        f"{row.name}, {row.sockets} sockets: {row.per_core_second:,.0f} back in a second of CPU, "
        f"all in {row.seconds:.1f} s"
    )
