"""Bookings: webhooks that arrive at once, until each booking's offer is on a mechanic's socket.

The webhooks are signed and complete, of payments made beforehand. pgbench does what each of them
and the opening of its booking write, in one transaction and one call (`bench.book` in `city.sql`),
over as many connections as the server's pool has, before and after. Nothing is pinned: both use
both cores. Imports `child`, `city`, `dispatch_server`, `pgbench`, and of the product's stand-in for
Stripe what an event looks like.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import asyncpg

from bench import machine, pgbench
from bench.child import Child, child
from bench.city import City, city
from bench.dispatch_server import serving, write_tokens
from bench.options import Options, Say
from dispatch.database import POOL_SIZE
from dispatch.stripe_standin import objects
from dispatch.stripe_standin.delivery import signature_header

MECHANICS = 100
YARDSTICK_BOOKINGS = 1200
SECONDS = 60
SCRIPT = pgbench.HERE / "booking.pgbench"
PRICE_CENTS = 1000


@dataclass(frozen=True)
class Shape:
    """How many webhooks, how many of them under way at once, and how many see each offer."""

    name: str
    routing: str
    bookings: int
    in_flight: int
    asked: int


AT_ONCE = Shape("to a favourite, all at once", "priority_broadcast", 100, 100, 1)
STEADY = Shape("to a favourite, one a connection", "priority_broadcast", 400, POOL_SIZE, 1)
TO_ALL = Shape("to 100 mechanics, all at once", "broadcast", 100, 100, MECHANICS)


@dataclass(frozen=True)
class Bookings:
    """Medians over the rounds of one shape; times in ms from a POST to its 200, to the first offer
    and, of those asked, to the last.

    `commit_ms` is the median transaction of pgbench, `p50_over_commit` what the median first offer
    is of it, and `queued_p50_ms` what pgbench would need for whoever came at once and waits for
    his turn. `server_cpu_ms` is of the server's process, per booking, `client_busy` the share of a
    core that the load client used.
    """

    name: str
    rounds: int
    bookings: int
    in_flight: int
    asked: int
    pgbench_connections: int
    bookings_per_second: float
    pgbench_per_second: float
    over_pgbench: float
    commit_ms: float
    p50_over_commit: float
    queued_p50_ms: float
    answered_p50_ms: float
    answered_p99_ms: float
    offered_p50_ms: float
    offered_p99_ms: float
    all_offered_p50_ms: float
    server_cpu_ms: float
    client_busy: float


COLUMNS: dict[str, Callable[[Bookings], str]] = {
    "webhook to offer": lambda row: row.name,
    "in flight": lambda row: str(row.in_flight),
    "bookings/s": lambda row: f"{row.bookings_per_second:,.0f}",
    "pgbench/s": lambda row: f"{row.pgbench_per_second:,.0f}",
    "÷ pgbench": lambda row: f"{row.over_pgbench:.2f}",
    "commit ms": lambda row: f"{row.commit_ms:.1f}",
    "p50 ÷ commit": lambda row: f"{row.p50_over_commit:.1f}",
    "queued p50": lambda row: f"{row.queued_p50_ms:.1f}",
    "→ 200 p50": lambda row: f"{row.answered_p50_ms:.1f}",
    "p99": lambda row: f"{row.answered_p99_ms:.1f}",
    "→ offer p50": lambda row: f"{row.offered_p50_ms:.1f}",
    "p99 ms": lambda row: f"{row.offered_p99_ms:.1f}",
    "→ all p50": lambda row: f"{row.all_offered_p50_ms:.1f}",
    "server CPU ms": lambda row: f"{row.server_cpu_ms:.2f}",
    "client busy": lambda row: f"{row.client_busy:.0%}",
}


def measure(options: Options, say: Say) -> list[Bookings]:
    """One row a shape."""
    shapes = (AT_ONCE, TO_ALL) if options.short else (AT_ONCE, STEADY, TO_ALL)
    rows = []
    with city() as place:
        mechanics = place.add_mechanics(MECHANICS, MECHANICS)
        _with_pgbench(place, AT_ONCE.routing, 1)  # to warm up the tables
        for shape in shapes:
            before = _with_pgbench(place, shape.routing, options.rounds)
            with (
                serving(place, core=None) as (port, pid),
                child("bench.shopfront", port, write_tokens(place, mechanics)) as front,
            ):
                seen = [_round(place, front, shape, pid) for _ in range(options.rounds + 2)][2:]
            after = _with_pgbench(place, shape.routing, options.rounds)
            rows.append(_summary(shape, seen, before, after))
            rate = f"{rows[-1].bookings_per_second:,.0f} bookings/s"
            say(f"{shape.name}: {rate}, pgbench {rows[-1].pgbench_per_second:,.0f}/s")
    return rows


def _summary(
    shape: Shape,
    rounds: Sequence["Round"],
    before: Sequence[pgbench.Pace],
    after: Sequence[pgbench.Pace],
) -> Bookings:
    def yard(read: Callable[[pgbench.Pace], float]) -> float:
        return statistics.mean(statistics.median(map(read, some)) for some in (before, after))

    def median(read: Callable[[Round], float]) -> float:
        return statistics.median(map(read, rounds))

    rate = median(lambda one: shape.bookings / one.seconds)
    per_second, commit_ms = yard(lambda pace: pace.per_second), yard(lambda pace: pace.p50_ms)
    offered_ms = median(lambda one: _percentile(one.first_ms, 50))
    return Bookings(
        name=shape.name,
        rounds=len(rounds),
        bookings=shape.bookings,
        in_flight=shape.in_flight,
        asked=shape.asked,
        pgbench_connections=POOL_SIZE,
        bookings_per_second=rate,
        pgbench_per_second=per_second,
        over_pgbench=rate / per_second,
        commit_ms=commit_ms,
        p50_over_commit=offered_ms / commit_ms,
        queued_p50_ms=max(shape.in_flight / 2 / per_second * 1000, commit_ms),
        answered_p50_ms=median(lambda one: _percentile(one.answered_ms, 50)),
        answered_p99_ms=median(lambda one: _percentile(one.answered_ms, 99)),
        offered_p50_ms=offered_ms,
        offered_p99_ms=median(lambda one: _percentile(one.first_ms, 99)),
        all_offered_p50_ms=median(lambda one: _percentile(one.last_ms, 50)),
        server_cpu_ms=median(lambda one: one.server_cpu_seconds * 1000 / shape.bookings),
        client_busy=median(lambda one: one.cpu_seconds / one.seconds),
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[(len(values) - 1) * percent // 100]


def _with_pgbench(place: City, routing: str, rounds: int) -> list[pgbench.Pace]:
    """The pace of each round; nobody waits for anything afterwards."""
    paces = []
    for _ in range(rounds):
        place.sell(YARDSTICK_BOOKINGS, routing)
        paces.append(pgbench.run(place.database_url, SCRIPT, YARDSTICK_BOOKINGS, POOL_SIZE))
        place.fetch("SELECT bench.cancel_all()")
    return paces


@dataclass(frozen=True)
class Round:
    """What the client saw of one round, and what the server's process used meanwhile."""

    seconds: float
    cpu_seconds: float
    answered_ms: list[float]
    first_ms: list[float]
    last_ms: list[float]
    server_cpu_seconds: float


def _round(place: City, front: Child, shape: Shape, pid: int) -> Round:
    """Posts the webhooks, waits for the offers, and takes all of them back as another node would
    have done."""
    path = place.folder / "webhooks"
    sold = place.sell(shape.bookings, shape.routing)
    path.write_text("".join(json.dumps(_webhook(place, sale)) + "\n" for sale in sold))
    before_ns = machine.cpu_ns(pid)
    said = front.ask(f"post {path} {shape.in_flight} {shape.asked} {SECONDS}")
    used_ns = machine.cpu_ns(pid) - before_ns
    place.fetch("SELECT bench.cancel_all()")
    front.ask(f"revoked {shape.bookings * shape.asked} {SECONDS}")
    return Round(**said, server_cpu_seconds=used_ns / 1e9)


def _webhook(place: City, sale: asyncpg.Record) -> str:
    """The request by which Stripe says that this checkout was paid."""
    now = int(time.time())
    shown = objects.checkout_session(
        objects.Session(
            id=sale["stripe_session_id"],
            created=now,
            expires_at=now + 3600,
            status="complete",
            currency="eur",
            amount_total=PRICE_CENTS,
            items=(objects.Item("Chat, 10 minutes", 1, PRICE_CENTS),),
            url="",
            success_url="https://dispatch.test/checkout/success",
            api_version=objects.DEFAULT_API_VERSION,
            customer_email="clara@bench.test",
            metadata={"payment_id": str(sale["payment_id"]), "plan": "chat10"},
            payment_intent=objects.new_id("pi"),
        )
    )
    event = objects.event(
        "checkout.session.completed",
        shown,
        created=now,
        api_version=objects.DEFAULT_API_VERSION,
        cause=objects.Cause(),
    )
    body = json.dumps(event, indent=2).encode()
    signature = signature_header(body, place.webhook_secret, now)
    return (
        "POST /api/stripe/webhook HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: Stripe/1.0\r\n"
        f"Content-Type: application/json; charset=utf-8\r\nStripe-Signature: {signature}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body.decode()}"
    )
