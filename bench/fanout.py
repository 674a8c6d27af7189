"""Fan-out: one message to N idle sockets, per candidate, in turns with the yardstick.

Both stand side by side, connected, and publish alternately. Imports `candidates`, `load`,
`dispatch_server`, `machine`, `peers.servers` and `turns`. Raises LoadError when a delivery is
missing.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench import machine
from bench.candidates import Candidate, Running, raw
from bench.dispatch_server import Dispatch
from bench.load import LoadClient, LoadError, load_client
from bench.options import Options, Say
from bench.peers import servers
from bench.turns import Turns, of_yardstick, take_turns

WARM_UP_ROUNDS = 2
SETTLE_SECONDS = 6.0  # what a server still does about new connections: presence, facts, mirrors
WATCH_SECONDS = 2.0  # before and after a round: a whole number of a server's one-second habits
GLANCE_SECONDS = 0.3  # the same where the server has no habits, or the round is not counted
LIMIT_ROUNDS = 5


@dataclass(frozen=True)
class Connected:
    """A candidate with its clients connected, and what that took."""

    name: str
    server: Running
    client: LoadClient
    connects_per_second: float
    kib_per_idle_socket: float


@dataclass(frozen=True)
class Round:
    """One publication. CPU times are the server's, per delivery.

    `cost_us` runs from just before the publication to the last delivery; `trailing_us` is what the
    server did in a while after it beyond what it did in as long before, its `idle_core`.
    """

    cost_us: float
    trailing_us: float
    idle_core: float
    withdraw_cost_us: float
    deliveries_per_second: float
    publish_to_first_ms: float
    publish_to_last_ms: float
    client_busy: float
    payload_bytes: int


@dataclass(frozen=True)
class FanOut:
    """Medians over the rounds of one candidate with one number of sockets.

    The ratios compare with the yardstick's `cost_us`; `settled_over_raw` has the trailing work in
    it; `withdraw_over_raw` is 0 where nothing is withdrawn. `idle_core` is a share of a core.
    `client_limit` is how many deliveries a second the load client takes when all of them wait.
    """

    name: str
    sockets: int
    rounds: int
    payload_bytes: int
    cost_over_raw: float
    settled_over_raw: float
    withdraw_over_raw: float
    cost_us: float
    deliveries_per_second: float
    publish_to_first_ms: float
    publish_to_last_ms: float
    kib_per_idle_socket: float
    connects_per_second: float
    client_busy: float
    client_limit: float
    idle_core: float


COLUMNS: dict[str, Callable[[FanOut], str]] = {
    "one message to all": lambda row: row.name,
    "sockets": lambda row: f"{row.sockets:,}",
    "bytes": lambda row: str(row.payload_bytes),
    "cost ÷ raw": lambda row: f"{row.cost_over_raw:.2f}",
    "settled ÷ raw": lambda row: f"{row.settled_over_raw:.2f}",
    "revoke ÷ raw": lambda row: f"{row.withdraw_over_raw:.2f}" if row.withdraw_over_raw else "-",
    "µs/delivery": lambda row: f"{row.cost_us:.2f}",
    "deliveries/s": lambda row: f"{row.deliveries_per_second:,.0f}",
    "→ first ms": lambda row: f"{row.publish_to_first_ms:.1f}",
    "→ last ms": lambda row: f"{row.publish_to_last_ms:.1f}",
    "KiB/socket": lambda row: f"{row.kib_per_idle_socket:.2f}",
    "connects/s": lambda row: f"{row.connects_per_second:,.0f}",
    "idle core": lambda row: f"{row.idle_core:.1%}",
    "client busy": lambda row: f"{row.client_busy:.0%}",
    "client limit/s": lambda row: f"{row.client_limit:,.0f}",
}


def measure(options: Options, say: Say) -> list[FanOut]:
    """For each number of sockets the yardstick's row, then one per candidate."""
    size = payload_bytes(Dispatch())
    say(f"an offer of Dispatch has {size} bytes")
    others = servers.others(size, options, say)
    rows = []
    for sockets in options.sockets:
        rows += compare(raw(size), [*others, Dispatch()], sockets, options, say)
    return rows


def compare(
    yardstick: Candidate,
    candidates: Sequence[Candidate],
    sockets: int,
    options: Options,
    say: Say,
) -> list[FanOut]:
    """The yardstick's row, of all its rounds, then one per candidate."""
    watch_seconds = WATCH_SECONDS / 2 if options.short else WATCH_SECONDS
    yards: list[Round] = []
    rows = []
    with connected(yardstick, sockets) as yard:
        limit = statistics.median(_client_limit(yard) for _ in range(LIMIT_ROUNDS))
        for candidate in candidates:
            try:
                with connected(candidate, sockets) as other:
                    for _ in range(WARM_UP_ROUNDS):
                        publish(yard, GLANCE_SECONDS)
                        publish(other, GLANCE_SECONDS)
                    turns, around = take_turns(
                        options.rounds,
                        partial(publish, other, watch_seconds),
                        partial(publish, yard, GLANCE_SECONDS),
                    )
            except LoadError as error:
                if isinstance(candidate, Dispatch):
                    raise
                say(f"left out: {candidate.name}: {error}")
                continue
            yards += around
            rows.append(_summary(other, turns, limit))
            say(_sentence(rows[-1]))
        return [_summary(yard, of_yardstick(yards), limit), *rows]


def payload_bytes(candidate: Candidate) -> int:
    """How long the candidate's message is, so that the others can be given as long a one."""
    with connected(candidate, 1) as one:
        return publish(one, GLANCE_SECONDS).payload_bytes


@contextmanager
def connected(candidate: Candidate, sockets: int) -> Iterator[Connected]:
    """Starts a candidate and its clients, and lets them settle."""
    with (
        candidate.serve(sockets) as server,
        load_client(server.port, sockets, server.tokens, server.ready, server.dialect) as client,
    ):
        empty_bytes = machine.rss_bytes(server.pid)
        opened = client.connect()
        time.sleep(SETTLE_SECONDS)
        yield Connected(
            candidate.name,
            server,
            client,
            connects_per_second=sockets / opened.seconds,
            kib_per_idle_socket=(machine.rss_bytes(server.pid) - empty_bytes) / 1024 / sockets,
        )


def publish(to: Connected, watch_seconds: float) -> Round:
    """Publishes once, waits for every delivery, and withdraws it where that can be done; watches
    the server for `watch_seconds` before and after the publication.
    """
    server, client = to.server, to.client
    idle_ns = _watch(server, watch_seconds)
    client.expect(client.sockets, server.marker)
    before_ns, published_ns = machine.cpu_ns(server.pid), time.monotonic_ns()
    server.publish()
    offered = client.counted()
    after_ns = machine.cpu_ns(server.pid)
    trailing_ns = _watch(server, watch_seconds) - idle_ns
    return Round(
        cost_us=(after_ns - before_ns) / 1e3 / client.sockets,
        trailing_us=trailing_ns / 1e3 / client.sockets,
        idle_core=idle_ns / 1e9 / watch_seconds,
        withdraw_cost_us=_withdraw(server, client) / 1e3 / client.sockets,
        deliveries_per_second=offered.done / max(offered.spread_seconds, 1e-9),
        publish_to_first_ms=(offered.first_ns - published_ns) / 1e6,
        publish_to_last_ms=(offered.last_ns - published_ns) / 1e6,
        client_busy=offered.busy,
        payload_bytes=offered.payload_bytes,
    )


def _withdraw(server: Running, client: LoadClient) -> int:
    """The server's CPU time in ns until the last connection has heard of it."""
    if not server.withdraw:
        return 0
    client.expect(client.sockets, server.withdraw_marker)
    before_ns = machine.cpu_ns(server.pid)
    server.withdraw()
    client.counted()
    return machine.cpu_ns(server.pid) - before_ns


def _watch(server: Running, seconds: float) -> int:
    """The server's CPU time in ns during so long with nothing to publish."""
    before_ns = machine.cpu_ns(server.pid)
    time.sleep(seconds)
    return machine.cpu_ns(server.pid) - before_ns


def _client_limit(yard: Connected) -> float:
    """Deliveries per second that the client takes by itself, when all wait for it in the kernel."""
    client = yard.client
    client.expect(client.sockets, yard.server.marker)
    with client.asleep():
        yard.server.publish()
    taken = client.counted()
    return taken.done / max(taken.spread_seconds, 1e-9)


def _summary(of: Connected, turns: Turns[Round], client_limit: float) -> FanOut:
    def cost(one: Round) -> float:
        return one.cost_us

    return FanOut(
        name=of.name,
        sockets=of.client.sockets,
        rounds=len(turns.rounds),
        payload_bytes=turns.rounds[-1].payload_bytes,
        cost_over_raw=turns.ratio(cost),
        settled_over_raw=turns.ratio(lambda one: one.cost_us + one.trailing_us, cost),
        withdraw_over_raw=turns.ratio(lambda one: one.withdraw_cost_us, cost),
        cost_us=turns.median(cost),
        deliveries_per_second=turns.median(lambda one: one.deliveries_per_second),
        publish_to_first_ms=turns.median(lambda one: one.publish_to_first_ms),
        publish_to_last_ms=turns.median(lambda one: one.publish_to_last_ms),
        kib_per_idle_socket=of.kib_per_idle_socket,
        connects_per_second=of.connects_per_second,
        client_busy=turns.median(lambda one: one.client_busy),
        client_limit=client_limit,
        idle_core=turns.median(lambda one: one.idle_core),
    )


def _sentence(row: FanOut) -> str:
    return (
        f"{row.name}, {row.sockets} sockets: {row.cost_us:.2f} µs per delivery, "
        f"{row.cost_over_raw:.2f} times raw, last after {row.publish_to_last_ms:.0f} ms"
    )
