"""Bursts: many messages at the same moment to the same N sockets, in turns with the yardstick.

The yardstick takes the same number of publications and does one after the other, one write a
delivery; a server that has several messages for a socket can write them together. For Dispatch so
many customers book at the same moment. Imports `candidates`, `dispatch_server`, `fanout`,
`machine`, `peers.servers` and `turns`. Raises LoadError when a delivery is missing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench import machine
from bench.candidates import Candidate, raw
from bench.dispatch_server import Dispatch
from bench.fanout import Connected, connected, payload_bytes
from bench.options import Options, Say
from bench.peers import servers
from bench.turns import Turns, of_yardstick, take_turns

SIZES = (16, 64)
BURST_SECONDS = 60.0
REST_SECONDS = 1.0  # after a burst, so that what it left does not count for the next


@dataclass(frozen=True)
class Round:
    """One burst. CPU times are the server's, per delivery."""

    cost_us: float
    withdraw_cost_us: float
    frames_per_read: float
    deliveries_per_second: float
    publish_to_last_ms: float
    client_busy: float


@dataclass(frozen=True)
class Burst:
    """Medians over the rounds of one candidate; `messages` in flight to each of `sockets`.

    `cost_over_raw` compares with the yardstick's cost per delivery of as many messages, one after
    the other; `withdraw_over_raw` is 0 where nothing is withdrawn. `frames_per_read` is how many
    the client found together, which is at most what a write of the server carried only while the
    client is quicker than it.
    """

    name: str
    sockets: int
    messages: int
    rounds: int
    cost_over_raw: float
    withdraw_over_raw: float
    cost_us: float
    deliveries_per_second: float
    frames_per_read: float
    publish_to_last_ms: float
    client_busy: float


COLUMNS: dict[str, Callable[[Burst], str]] = {
    "messages to all at once": lambda row: row.name,
    "sockets": lambda row: f"{row.sockets:,}",
    "messages": lambda row: str(row.messages),
    "cost ÷ raw": lambda row: f"{row.cost_over_raw:.2f}",
    "revoke ÷ raw": lambda row: f"{row.withdraw_over_raw:.2f}" if row.withdraw_over_raw else "-",
    "µs/delivery": lambda row: f"{row.cost_us:.2f}",
    "deliveries/s": lambda row: f"{row.deliveries_per_second:,.0f}",
    "frames/read": lambda row: f"{row.frames_per_read:.1f}",
    "→ last ms": lambda row: f"{row.publish_to_last_ms:.0f}",
    "client busy": lambda row: f"{row.client_busy:.0%}",
}


def measure(options: Options, say: Say) -> list[Burst]:
    """For each number of sockets and of messages the yardstick's row, then one per candidate."""
    size = payload_bytes(Dispatch())
    candidates = [*servers.others(size, options, say), Dispatch()]
    rows = []
    for sockets in options.sockets:
        rows += _compare(raw(size), candidates, sockets, options, say)
    return rows


def _compare(
    yardstick: Candidate, candidates: list[Candidate], sockets: int, options: Options, say: Say
) -> list[Burst]:
    sizes = SIZES[:1] if options.short else SIZES
    yards: dict[int, list[Round]] = {messages: [] for messages in sizes}
    rows: dict[int, list[Burst]] = {messages: [] for messages in sizes}
    with connected(yardstick, sockets) as yard:
        for candidate in candidates:
            with connected(candidate, sockets) as other:
                for messages in sizes:
                    burst(yard, messages)
                    burst(other, messages)
                    turns, around = take_turns(
                        options.rounds,
                        partial(burst, other, messages),
                        partial(burst, yard, messages),
                    )
                    yards[messages] += around
                    rows[messages].append(_summary(other, messages, turns))
                    say(_sentence(rows[messages][-1]))
        return [
            row
            for messages in sizes
            for row in [_summary(yard, messages, of_yardstick(yards[messages])), *rows[messages]]
        ]


def burst(to: Connected, messages: int) -> Round:
    """Publishes so many at once, waits for every delivery, and withdraws them where that can be
    done."""
    server, client = to.server, to.client
    deliveries = messages * client.sockets
    client.expect(client.sockets, server.marker, each=messages, seconds=BURST_SECONDS)
    before_ns, published_ns = machine.cpu_ns(server.pid), time.monotonic_ns()
    server.burst(messages)
    taken = client.counted(BURST_SECONDS)
    cpu_ns = machine.cpu_ns(server.pid) - before_ns
    time.sleep(REST_SECONDS)
    withdraw_ns = _withdraw(to, messages)
    return Round(
        cost_us=cpu_ns / 1e3 / deliveries,
        withdraw_cost_us=withdraw_ns / 1e3 / deliveries,
        frames_per_read=taken.frames / taken.reads,
        deliveries_per_second=deliveries / max((taken.last_ns - published_ns) / 1e9, 1e-9),
        publish_to_last_ms=(taken.last_ns - published_ns) / 1e6,
        client_busy=taken.busy,
    )


def _withdraw(to: Connected, messages: int) -> int:
    """The server's CPU time in ns until the last connection has heard of all of it."""
    server, client = to.server, to.client
    if not server.calm:
        return 0
    client.expect(client.sockets, server.withdraw_marker, each=messages, seconds=BURST_SECONDS)
    before_ns = machine.cpu_ns(server.pid)
    server.calm(messages)
    client.counted(BURST_SECONDS)
    cpu_ns = machine.cpu_ns(server.pid) - before_ns
    time.sleep(REST_SECONDS)
    return cpu_ns


def _summary(of: Connected, messages: int, turns: Turns[Round]) -> Burst:
    def cost(one: Round) -> float:
        return one.cost_us

    return Burst(
        name=of.name,
        sockets=of.client.sockets,
        messages=messages,
        rounds=len(turns.rounds),
        cost_over_raw=turns.ratio(cost),
        withdraw_over_raw=turns.ratio(lambda one: one.withdraw_cost_us, cost),
        cost_us=turns.median(cost),
        deliveries_per_second=turns.median(lambda one: one.deliveries_per_second),
        frames_per_read=turns.median(lambda one: one.frames_per_read),
        publish_to_last_ms=turns.median(lambda one: one.publish_to_last_ms),
        client_busy=turns.median(lambda one: one.client_busy),
    )


def _sentence(row: Burst) -> str:
    return (
        f"{row.name}, {row.messages} messages to {row.sockets} sockets: {row.cost_us:.2f} µs per "
        f"delivery, {row.cost_over_raw:.2f} times raw"
    )
