"""The figures of one run: counts, latencies, outcomes and the life of each booking.

Computed from a sorted history alone. Imports `cases`, `violation`, `history`; pure but for
`describe_machine`, which reads the processor's name.
"""

import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from loadtest.cases import Case, Cases
from loadtest.history import Booked, Lost, Received
from loadtest.violation import Violation


class About(msgspec.Struct, frozen=True):
    """What was run, where and when. `date` is RFC 3339 UTC."""

    command: str
    date: str
    cpu: str
    cores: int
    system: str
    seed: int
    seconds: float
    clients_cpu_seconds: float


class Latency(msgspec.Struct, frozen=True):
    """One kind of delay: `samples_ms` ascending, and percentiles of them (0 without samples)."""

    name: str
    title: str
    samples_ms: list[float]
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class Life(msgspec.Struct, frozen=True):
    """One booking's moments, in seconds since the first payment of the run; None: never came."""

    tag: str
    strategy: str
    outcome: str
    paying_seconds: float
    first_offer_seconds: float | None
    fallback_seconds: float | None
    accepted_seconds: float | None
    active_seconds: float | None
    ended_seconds: float


class Figures(msgspec.Struct, frozen=True):
    """Everything that a report shows. `outcomes` counts bookings by strategy and outcome; `proofs`
    is what the server's own replay and books said at the end, where they could be asked."""

    about: About
    counts: dict[str, int]
    errors: dict[str, int]
    latencies: list[Latency]
    outcomes: dict[str, dict[str, int]]
    lives: list[Life]
    faults: list[str]
    violations: list[Violation]
    proofs: dict[str, str] = {}


_OVER = frozenset({"completed", "cancelled", "expired"})
OUTCOMES = ("favourite", "workshop", "everyone", "expired", "cancelled", "open", "not booked")


def measure(
    cases: Cases, violations: list[Violation], about: About, proofs: dict[str, str] | None = None
) -> Figures:
    """All figures of a sorted history."""
    outcomes: dict[str, Counter[str]] = {}
    for record in cases.bookings.values():
        strategy = str(record.order.get("routing_type") or "broadcast")
        requests = [cases.requests[request] for request in record.requests]
        outcome = _outcome(cases, requests[0] if requests else None)
        outcomes.setdefault(strategy, Counter())[outcome] += 1
    return Figures(
        about=about,
        counts=_counts(cases),
        errors=dict(_errors(cases)),
        latencies=list(_latencies(cases)),
        outcomes={strategy: dict(counter) for strategy, counter in outcomes.items()},
        lives=_lives(cases),
        faults=[fault.what for fault in cases.faults],
        violations=violations,
        proofs=proofs or {},
    )


def describe_machine() -> tuple[str, int, str]:
    """The processor's name, the cores that this process may use, and the system."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # Not Linux: the generic name has to do.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return name, cores or 1, system


def percentile(ascending: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values; 0 when there are none."""
    if not ascending:
        return 0.0
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _latencies(cases: Cases) -> Iterator[Latency]:
    booked = [case for case in cases.requests.values() if case.booking is not None]
    yield _latency(
        "pay_to_customer",
        "Pay → customer sees the request",
        [_since_pay(case, _first_push(case)) for case in booked],
    )
    yield _latency(
        "pay_to_offer",
        "Pay → first offer on a socket",
        [_since_pay(case, _first_card(case)) for case in booked],
    )
    yield _latency("accept_to_won", "Accept → won", _verdict_seconds(cases, "offer.won"))
    yield _latency("accept_to_lost", "Accept → lost", _verdict_seconds(cases, "offer.lost"))
    yield _latency(
        "accept_to_customer",
        "Accept → customer sees her mechanic",
        [_accept_to_customer(case) for case in booked],
    )
    yield _latency(
        "pay_to_accepted",
        "Pay → accepted",
        [_since_pay(case, _first_accepted(case)) for case in booked],
    )


def _latency(name: str, title: str, seconds: list[float | None]) -> Latency:
    samples = sorted(round(value * 1000, 3) for value in seconds if value is not None)
    return Latency(
        name,
        title,
        samples,
        percentile(samples, 0.5),
        percentile(samples, 0.9),
        percentile(samples, 0.99),
        percentile(samples, 1.0),
    )


def _verdict_seconds(cases: Cases, kind: str) -> list[float | None]:
    """From each accept frame to its own verdict, on the connection that sent it."""
    seconds: list[float | None] = []
    for accept in cases.accepts.values():
        for verdict in accept.verdicts:
            sends = [
                sent.at
                for sent in accept.sends
                if sent.connection == verdict.connection and sent.at <= verdict.at
            ]
            if sends and verdict.frame["type"] == kind:
                seconds.append(verdict.at - sends[-1])
    return seconds


def _since_pay(case: Case, at: float | None) -> float | None:
    paying_at = case.booking.at("paying") if case.booking is not None else None
    return None if at is None or paying_at is None else at - paying_at


def _first_push(case: Case) -> float | None:
    return next((s.at for s in case.statuses if isinstance(s.event, Received)), None)


def _first_card(case: Case, but: str | None = None) -> float | None:
    return min(
        (card.event.at for r in case.rounds for card in r.cards if card.event.who != but),
        default=None,
    )


def _first_accepted(case: Case) -> float | None:
    return next((s.at for s in case.statuses if s.frame["status"] == "accepted"), None)


def _accept_to_customer(case: Case) -> float | None:
    """From the first accept that won to the customer's news of it."""
    sent_at = min(
        (
            accept.sends[0].at
            for offer_round in case.rounds
            for accept in offer_round.accepts
            if accept.sends and any(v.frame["type"] == "offer.won" for v in accept.verdicts)
        ),
        default=None,
    )
    told_at = _first_accepted(case)
    return None if sent_at is None or told_at is None else told_at - sent_at


def _outcome(cases: Cases, case: Case | None) -> str:
    if case is None or case.final is None or case.booking is None:
        return "not booked"
    status = case.final["status"]
    if status in ("expired", "cancelled"):
        return str(status)
    last = case.last_round
    if status not in ("accepted", "completed") or last is None or not last.wins:
        return "open"
    winner, order = last.wins[-1].who, case.booking.order
    if winner == order.get("preferred_mechanic_id"):
        return "favourite"
    workshop_id: str | None = order.get("workshop_id")
    if workshop_id is not None and cases.people[winner].workshop_id == workshop_id:
        return "workshop"
    return "everyone"


def _lives(cases: Cases) -> list[Life]:
    paid = [
        (paying_at, record)
        for record in cases.bookings.values()
        if (paying_at := record.at("paying")) is not None and record.requests
    ]
    origin = min((at for at, _ in paid), default=0.0)

    def since(at: float | None) -> float | None:
        return None if at is None else round(at - origin, 4)

    lives = []
    for paying_at, record in sorted(paid, key=lambda pair: pair[0]):
        case = cases.requests[record.requests[0]]
        favourite = record.order.get("preferred_mechanic_id")
        over = [s.at for s in case.statuses if s.frame["status"] in _OVER]
        final = case.final or {}
        active = [
            status.at
            for status in cases.sessions.get(final.get("session_id", ""), ())
            if status.frame["status"] == "active"
        ]
        lives.append(
            Life(
                tag=record.tag,
                strategy=str(record.order.get("routing_type") or "broadcast"),
                outcome=_outcome(cases, case),
                paying_seconds=round(paying_at - origin, 4),
                first_offer_seconds=since(_first_card(case)),
                fallback_seconds=since(_first_card(case, but=favourite)) if favourite else None,
                accepted_seconds=since(_first_accepted(case)),
                active_seconds=since(min(active, default=None)),
                ended_seconds=round(min(over, default=cases.ends_at) - origin, 4),
            )
        )
    return lives


def _counts(cases: Cases) -> dict[str, int]:
    verdicts = Counter(
        verdict.frame["type"] for accept in cases.accepts.values() for verdict in accept.verdicts
    )
    connections = cases.connections.values()
    final = Counter(
        (case.final or {}).get("status") for case in cases.requests.values() if case.booking
    )
    return {
        "bookings": len(cases.bookings),
        "paid": sum(record.at("paid") is not None for record in cases.bookings.values()),
        "requests": sum(case.booking is not None for case in cases.requests.values()),
        "completed": final["completed"],
        "expired": final["expired"],
        "cancelled": final["cancelled"],
        "rounds": len(cases.rounds),
        "offers": sum(len(r.cards) for r in cases.rounds.values()),
        "accepts": sum(len(accept.sends) for accept in cases.accepts.values()),
        "won": verdicts["offer.won"],
        "lost": verdicts["offer.lost"],
        "people": len(cases.people),
        "connections": len(cases.connections),
        "connections_lost": sum(isinstance(events[-1], Lost) for events in connections),
        "frames_received": sum(isinstance(e, Received) for events in connections for e in events),
        "http_steps": sum(
            isinstance(step, Booked) for record in cases.bookings.values() for step in record.steps
        ),
    }


def _errors(cases: Cases) -> Counter[str]:
    return Counter(
        str(event.frame.get("code"))
        for events in cases.connections.values()
        for event in events
        if isinstance(event, Received) and event.frame.get("type") == "error"
    )
