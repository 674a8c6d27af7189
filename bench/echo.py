"""Echo: one small message in flight on each of 100 connections, in turns with the yardstick.

Here the client works as hard as the server, so the rate of a fast server is the client's too; the
server's CPU time per message is the figure that compares. Imports `candidates`, `dispatch_server`,
`load`, `machine`, `peers.servers` and `turns`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench import machine
from bench.candidates import PING, Candidate, Running, raw
from bench.dispatch_server import Dispatch
from bench.load import ANY, LoadClient, load_client
from bench.options import Options, Say
from bench.peers import servers
from bench.turns import Turns, of_yardstick, take_turns

SOCKETS = 100
ROUND_SECONDS = 0.5


@dataclass(frozen=True)
class Round:
    """One round; the cost is the server's CPU time per message."""

    cost_us: float
    messages_per_second: float
    p50_ms: float
    p99_ms: float
    client_busy: float
    payload_bytes: int


@dataclass(frozen=True)
class Echo:
    """Medians over the rounds of one candidate; `payload_bytes` of the answer."""

    name: str
    rounds: int
    payload_bytes: int
    cost_over_raw: float
    rate_over_raw: float
    cost_us: float
    messages_per_second: float
    p50_ms: float
    p99_ms: float
    client_busy: float


COLUMNS: dict[str, Callable[[Echo], str]] = {
    "echo, 100 connections": lambda row: row.name,
    "cost ÷ raw": lambda row: f"{row.cost_over_raw:.2f}",
    "rate ÷ raw": lambda row: f"{row.rate_over_raw:.2f}",
    "µs/message": lambda row: f"{row.cost_us:.2f}",
    "messages/s": lambda row: f"{row.messages_per_second:,.0f}",
    "p50 ms": lambda row: f"{row.p50_ms:.2f}",
    "p99 ms": lambda row: f"{row.p99_ms:.2f}",
    "bytes": lambda row: str(row.payload_bytes),
    "client busy": lambda row: f"{row.client_busy:.0%}",
}


def measure(options: Options, say: Say) -> list[Echo]:
    """The yardstick's row, of all its rounds, then one per candidate that answers anything."""
    yards: list[Round] = []
    rows = []
    with connected(raw(len(PING)), SOCKETS) as yard:
        for candidate in [*servers.others(len(PING), options, say), Dispatch()]:
            with connected(candidate, SOCKETS) as other:
                if not other[0].ping:
                    continue
                turns, around = in_turns(options.rounds, other, yard)
            yards += around
            rows.append(summary(candidate.name, turns))
            say(f"{candidate.name}: {rows[-1].messages_per_second:,.0f} echoes/s")
    return [summary("raw C loop", of_yardstick(yards)), *rows]


def in_turns(
    rounds: int, other: tuple[Running, LoadClient], yard: tuple[Running, LoadClient]
) -> tuple[Turns[Round], list[Round]]:
    """Warms both up first."""
    echo(*yard)
    echo(*other)
    return take_turns(rounds, partial(echo, *other), partial(echo, *yard))


@contextmanager
def connected(candidate: Candidate, sockets: int) -> Iterator[tuple[Running, LoadClient]]:
    """A started candidate with its clients connected."""
    with (
        candidate.serve(sockets) as server,
        load_client(server.port, sockets, server.tokens, server.ready, server.dialect) as client,
    ):
        client.connect()
        yield server, client


def echo(server: Running, client: LoadClient, payload: str = "", marker: str = ANY) -> Round:
    """One round with the server's own ping, or with another payload and what its answer has."""
    before_ns = machine.cpu_ns(server.pid)
    echoed = client.echo(SOCKETS, payload or server.ping, ROUND_SECONDS, marker)
    return Round(
        cost_us=(machine.cpu_ns(server.pid) - before_ns) / echoed.done / 1e3,
        messages_per_second=echoed.done / echoed.seconds,
        p50_ms=echoed.p50_ns / 1e6,
        p99_ms=echoed.p99_ns / 1e6,
        client_busy=echoed.busy,
        payload_bytes=echoed.payload_bytes,
    )


def summary(name: str, turns: Turns[Round]) -> Echo:
    """One row."""
    return Echo(
        name=name,
        rounds=len(turns.rounds),
        payload_bytes=turns.rounds[-1].payload_bytes,
        cost_over_raw=turns.ratio(lambda one: one.cost_us),
        rate_over_raw=turns.ratio(lambda one: one.messages_per_second),
        cost_us=turns.median(lambda one: one.cost_us),
        messages_per_second=turns.median(lambda one: one.messages_per_second),
        p50_ms=turns.median(lambda one: one.p50_ms),
        p99_ms=turns.median(lambda one: one.p99_ms),
        client_busy=turns.median(lambda one: one.client_busy),
    )
