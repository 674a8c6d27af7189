"""Echo: one small message in flight on each of 100 connections, in turns with the yardstick.

Here the client works as hard as the server, so the rate of a fast server is the client's too; the
server's CPU time per message is the figure that compares. Imports `candidates`, `load`, `machine`.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from bench import machine
from bench.candidates import Candidate, Running
from bench.load import LoadClient, load_client

SOCKETS = 100
ROUND_SECONDS = 0.5


@dataclass(frozen=True)
class Round:
    """One round; the cost is the server's CPU time per message."""

    cost_us: float
    messages_per_second: float
    client_busy: float
    payload_bytes: int


@dataclass(frozen=True)
class Echo:
    """Medians over the rounds of one candidate."""

    name: str
    rounds: int
    payload_bytes: int
    cost_over_raw: float
    rate_over_raw: float
    cost_us: float
    messages_per_second: float
    client_busy: float


def compare(
    yardstick: Candidate, candidates: Sequence[Candidate], rounds: int, say: Callable[[str], None]
) -> list[Echo]:
    """The yardstick's row, of all its rounds, then one per candidate."""
    yards: list[Round] = []
    rows = []
    with _connected(yardstick) as yard:
        for candidate in candidates:
            with _connected(candidate) as other:
                _round(*yard)
                _round(*other)
                around, seen = [_round(*yard)], []
                for _ in range(rounds):
                    seen.append(_round(*other))
                    around.append(_round(*yard))
            yards += around
            rows.append(_summary(candidate.name, seen, list(pairwise(around))))
            say(f"{candidate.name}: {rows[-1].messages_per_second:,.0f} echoes/s")
    return [_summary(yardstick.name, yards, [(one, one) for one in yards]), *rows]


@contextmanager
def _connected(candidate: Candidate) -> Iterator[tuple[Running, LoadClient]]:
    with (
        candidate.serve(SOCKETS) as server,
        load_client(server.port, SOCKETS, server.tokens, server.ready) as client,
    ):
        client.connect()
        yield server, client


def _round(server: Running, client: LoadClient) -> Round:
    before_ns = machine.cpu_ns(server.pid)
    echoed = client.echo(SOCKETS, server.ping, ROUND_SECONDS)
    return Round(
        cost_us=(machine.cpu_ns(server.pid) - before_ns) / echoed.done / 1e3,
        messages_per_second=echoed.done / echoed.seconds,
        client_busy=echoed.busy,
        payload_bytes=echoed.payload_bytes,
    )


def _summary(name: str, rounds: Sequence[Round], beside: Sequence[tuple[Round, Round]]) -> Echo:
    """One row; `beside` are the yardstick's rounds before and after each round."""

    def median(read: Callable[[Round], float]) -> float:
        return statistics.median(map(read, rounds))

    def ratio(read: Callable[[Round], float]) -> float:
        pairs = zip(rounds, beside, strict=True)
        return statistics.median(read(one) / statistics.mean(map(read, two)) for one, two in pairs)

    return Echo(
        name=name,
        rounds=len(rounds),
        payload_bytes=rounds[-1].payload_bytes,
        cost_over_raw=ratio(lambda one: one.cost_us),
        rate_over_raw=ratio(lambda one: one.messages_per_second),
        cost_us=median(lambda one: one.cost_us),
        messages_per_second=median(lambda one: one.messages_per_second),
        client_busy=median(lambda one: one.client_busy),
    )
