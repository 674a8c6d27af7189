"""Accepts of rounds that somebody else won, beside the same server's echo and the yardstick's.

One mechanic takes a broadcast booking; then 100 others accept it again and again, one in flight
each, each time with an `accept_id` of its own, as late clients would, and get `offer.lost`. Imports
`candidates`, `city`, `dispatch_server`, `echo`, `load`, `machine` and `turns`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from bench import machine
from bench.candidates import OFFER_MARKER, PING, Running, raw
from bench.city import city
from bench.dispatch_server import (
    PER_WORKSHOP,
    READY_MARKER,
    Bookings,
    serving,
    token,
    write_tokens,
)
from bench.echo import SOCKETS, Round, connected, echo, summary
from bench.load import NUMBER, LoadClient, load_client
from bench.options import Options, Say
from bench.turns import Turns, of_yardstick, take_turns
from dispatch.core.types import Role

LOST = '"type":"offer.lost"'


@dataclass(frozen=True)
class Lost:
    """Medians over the rounds of one kind of message; times of the server's CPU are per message.

    `over_echo` compares the rate, `cost_over_echo` the cost with those of the same server's echo
    beside it; 1 for an echo. Where other programs take part of the core, trust the cost.
    """

    name: str
    rounds: int
    payload_bytes: int
    over_echo: float
    cost_over_echo: float
    rate_over_raw: float
    cost_over_raw: float
    cost_us: float
    messages_per_second: float
    p50_ms: float
    p99_ms: float
    client_busy: float


COLUMNS: dict[str, Callable[[Lost], str]] = {
    "100 connections": lambda row: row.name,
    "rate ÷ echo": lambda row: f"{row.over_echo:.2f}",
    "cost ÷ echo": lambda row: f"{row.cost_over_echo:.2f}",
    "rate ÷ raw": lambda row: f"{row.rate_over_raw:.2f}",
    "cost ÷ raw": lambda row: f"{row.cost_over_raw:.2f}",
    "µs/message": lambda row: f"{row.cost_us:.2f}",
    "messages/s": lambda row: f"{row.messages_per_second:,.0f}",
    "p50 ms": lambda row: f"{row.p50_ms:.2f}",
    "p99 ms": lambda row: f"{row.p99_ms:.2f}",
    "bytes": lambda row: str(row.payload_bytes),
    "client busy": lambda row: f"{row.client_busy:.0%}",
}


def measure(options: Options, say: Say) -> list[Lost]:
    """The yardstick's echo, ours, and the accepts that lose."""
    with connected(raw(len(PING)), SOCKETS) as yard, _lost_round() as (ours, accept):
        lose = partial(echo, *ours, payload=accept, marker=LOST)
        for warm_up in (partial(echo, *yard), partial(echo, *ours), lose):
            warm_up()
        echoes, around = take_turns(options.rounds, partial(echo, *ours), partial(echo, *yard))
        losses, more = take_turns(options.rounds, lose, partial(echo, *yard))
        beside_echo, _ = take_turns(options.rounds, lose, partial(echo, *ours))
    rows = [
        _summary("raw C loop, echo", of_yardstick([*around, *more]), None),
        _summary("Dispatch, ping", echoes, None),
        _summary("Dispatch, accept that lost", losses, beside_echo),
    ]
    say(f"{rows[-1].messages_per_second:,.0f} lost accepts/s, {rows[-1].over_echo:.2f} of the echo")
    return rows


@contextmanager
def _lost_round() -> Iterator[tuple[tuple[Running, LoadClient], str]]:
    """Dispatch with connected mechanics, and an accept of a booking that the last one has taken."""
    with city(machine.CLIENT_CORE) as place:
        tokens = write_tokens(place, place.add_mechanics(SOCKETS + 1, PER_WORKSHOP))
        customer = token(place, place.add_customers(1)[0], Role.CUSTOMER)
        with (
            serving(place, machine.SERVER_CORE) as (port, pid),
            load_client(port, SOCKETS + 1, tokens, READY_MARKER) as client,
        ):
            client.connect()
            bookings = Bookings(port, [customer])
            client.expect(SOCKETS + 1, OFFER_MARKER)
            bookings.start(1)
            client.counted()
            [offer] = place.fetch("SELECT offer_id FROM session_requests")
            script = place.folder / "script"
            script.write_text(f"{SOCKETS} {_accept(offer['offer_id'], '0' * len(NUMBER))}\n")
            client.script(script, 1, '"type":"offer.won"')
            running = Running(
                pid, port, partial(bookings.start, 1), bookings.start, ping='{"type":"ping"}'
            )
            yield (running, client), _accept(offer["offer_id"], NUMBER)


def _accept(offer_id: UUID, number: str) -> str:
    frame = {
        "type": "offer.accept",
        "offer_id": str(offer_id),
        "accept_id": f"00000000-0000-4000-8000-{number}",
    }
    return json.dumps(frame, separators=(",", ":"))


def _summary(name: str, turns: Turns[Round], beside_echo: Turns[Round] | None) -> Lost:
    def ratio_to_echo(read: Callable[[Round], float]) -> float:
        return beside_echo.ratio(read) if beside_echo else 1.0

    one = summary(name, turns)
    return Lost(
        name=name,
        rounds=one.rounds,
        payload_bytes=one.payload_bytes,
        over_echo=ratio_to_echo(lambda one: one.messages_per_second),
        cost_over_echo=ratio_to_echo(lambda one: one.cost_us),
        rate_over_raw=one.rate_over_raw,
        cost_over_raw=one.cost_over_raw,
        cost_us=one.cost_us,
        messages_per_second=one.messages_per_second,
        p50_ms=one.p50_ms,
        p99_ms=one.p99_ms,
        client_busy=one.client_busy,
    )
