"""How long a broadcast to everybody holds the loop, and what an accept in the midst of it waits.

Looked at from outside: on connections of its own a prober pings each millisecond and accepts, at a
modest rate, bookings by name, while broadcasts to N others are made and taken back without a pause;
and just before that while nothing else happens, which is the yardstick. The server has its core to
itself; the prober goes before whatever else runs on the other. Imports `child`, `city`,
`dispatch_server`, `load`, `machine`.
"""

import contextlib
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine
from bench.candidates import OFFER_MARKER
from bench.child import Child, child
from bench.city import City, city
from bench.dispatch_server import READY_MARKER, Bookings, serving, token, write_tokens
from bench.load import LoadClient, LoadError, load_client
from bench.options import Options, Say
from dispatch.core.types import Role

PER_WORKSHOP = 10
ACCEPTS = 100  # a phase
PHASE_SECONDS = 3.0
OFFER_SECONDS = 20.0
SETTLE_SECONDS = 5.0
CALM_SECONDS = 2.0  # after broadcasts: their trail is still to be written
BACKGROUND_NICENESS = 10
REVOKED_MARKER = '"type":"offer.revoked"'


@dataclass(frozen=True)
class Hold:
    """What the prober saw with nothing else to do, or during broadcasts; times in ms.

    `ping_p50_ms` and `ping_p99_ms` are of all pings; `longest_ms` is the median of the rounds'
    longest answers, `worst_ms` the longest of all; `late_p99_ms` is how late the prober was.
    `over_idle` compares the accepts' p99 with that of the idle phases.
    """

    name: str
    sockets: int
    rounds: int
    broadcasts_per_second: float
    ping_p50_ms: float
    ping_p99_ms: float
    longest_ms: float
    worst_ms: float
    late_p99_ms: float
    accepts: int
    accept_p50_ms: float
    accept_p99_ms: float
    p50_over_idle: float
    p99_over_idle: float


COLUMNS: dict[str, Callable[[Hold], str]] = {
    "held": lambda row: row.name,
    "broadcasts/s": lambda row: f"{row.broadcasts_per_second:.1f}",
    "ping p50 ms": lambda row: f"{row.ping_p50_ms:.2f}",
    "p99": lambda row: f"{row.ping_p99_ms:.1f}",
    "longest": lambda row: f"{row.longest_ms:.1f}",
    "worst": lambda row: f"{row.worst_ms:.1f}",
    "prober late p99": lambda row: f"{row.late_p99_ms:.2f}",
    "accepts": lambda row: str(row.accepts),
    "accept p50 ms": lambda row: f"{row.accept_p50_ms:.1f}",
    "p99 ms": lambda row: f"{row.accept_p99_ms:.1f}",
    "p50 ÷ idle": lambda row: f"{row.p50_over_idle:.2f}",
    "p99 ÷ idle": lambda row: f"{row.p99_over_idle:.2f}",
}


@dataclass
class Phases:
    """What all phases of one kind have seen."""

    pings_ms: list[list[float]] = field(default_factory=list)
    accepts_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    broadcasts: int = 0
    seconds: float = 0.0


def measure(options: Options, say: Say) -> list[Hold]:
    """Idle, and during broadcasts, for the greatest number of sockets."""
    sockets = max(options.sockets)
    with city(machine.CLIENT_CORE) as place:
        mechanics = place.add_mechanics(sockets + ACCEPTS, PER_WORKSHOP)
        customer = token(place, place.add_customers(1)[0], Role.CUSTOMER)
        crowd = write_tokens(place, mechanics[:sockets])
        few = place.folder / "few"
        own = [token(place, each, Role.MECHANIC) for each in mechanics[sockets:]]
        few.write_text("\n".join([customer, *own]))
        with (
            serving(place, machine.SERVER_CORE) as (port, pid),
            load_client(port, sockets, crowd, READY_MARKER) as client,
            child("bench.prober", port, few, core=machine.CLIENT_CORE) as prober,
            machine.pinned(machine.CLIENT_CORE),
        ):
            _give_way(client, pid)
            client.connect()
            time.sleep(SETTLE_SECONDS)
            broadcasts = _Broadcasts(client, Bookings(port, [customer]))
            idle, busy = Phases(), Phases()
            for number in range(options.rounds + 1):  # the first one warms up
                for phases in (idle, busy):
                    seen = phases if number else Phases()
                    time.sleep(CALM_SECONDS if phases is idle else 0)
                    with broadcasts.running(seen) if phases is busy else contextlib.nullcontext():
                        _phase(place, prober, sockets, seen)
    rows = [_row("nothing else", sockets, idle, idle)]
    rows.append(_row(f"broadcasts to {sockets:,}", sockets, busy, idle))
    say(f"the longest answer took {rows[1].longest_ms:.1f} ms, idle {rows[0].longest_ms:.1f} ms")
    return rows


def _give_way(client: LoadClient, server_pid: int) -> None:
    """The crowd's client lets Postgres go first on their core, and the server goes before whatever
    else there is on its own: only who may (root) can do the latter."""
    os.setpriority(os.PRIO_PROCESS, client.pid, BACKGROUND_NICENESS)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, server_pid, -BACKGROUND_NICENESS)


def _phase(place: City, prober: Child, sockets: int, seen: Phases) -> None:
    """Opens a booking for each of the few by name, and has them accepted one by one."""
    place.open_bookings(sockets, ACCEPTS, "priority_broadcast")
    prober.ask(f"offers {ACCEPTS} {OFFER_SECONDS}")
    said = prober.ask(f"probe {PHASE_SECONDS} {_script(place)}")
    place.fetch("SELECT bench.complete_all()")
    seen.pings_ms.append(said["ping_ms"])
    seen.accepts_ms += said["accept_ms"]
    seen.late_ms += said["late_ms"]


def _script(place: City) -> Path:
    path = place.folder / "script"
    with path.open("w") as script:
        for row in place.fetch("SELECT n, offer_id, accept_id FROM bench.accepts ORDER BY n"):
            frame = {
                "type": "offer.accept",
                "offer_id": str(row["offer_id"]),
                "accept_id": str(row["accept_id"]),
            }
            script.write(f"{row['n']} {json.dumps(frame, separators=(',', ':'))}\n")
    return path


class _Broadcasts:
    """Broadcasts to the crowd, one after the other, each taken back when all have it."""

    def __init__(self, client: LoadClient, bookings: Bookings) -> None:
        self._client = client
        self._bookings = bookings

    @contextlib.contextmanager
    def running(self, seen: Phases) -> Iterator[None]:
        """They run inside the block; raises what went wrong with them at its end."""
        stop, errors = threading.Event(), list[LoadError]()

        def run() -> None:
            began = time.monotonic()
            try:
                while not stop.is_set():
                    self._one()
                    seen.broadcasts += 1
            except LoadError as error:
                errors.append(error)
            seen.seconds += time.monotonic() - began

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        for error in errors:
            raise error

    def _one(self) -> None:
        self._client.expect(self._client.sockets, OFFER_MARKER)
        self._bookings.start(1)
        self._client.counted()
        self._client.expect(self._client.sockets, REVOKED_MARKER)
        self._bookings.cancel(1)
        self._client.counted()


def _row(name: str, sockets: int, seen: Phases, idle: Phases) -> Hold:
    pings = [each for phase in seen.pings_ms for each in phase]
    longest = [max(phase) for phase in seen.pings_ms]
    return Hold(
        name=name,
        sockets=sockets,
        rounds=len(seen.pings_ms),
        broadcasts_per_second=seen.broadcasts / seen.seconds if seen.seconds else 0.0,
        ping_p50_ms=_percentile(pings, 50),
        ping_p99_ms=_percentile(pings, 99),
        longest_ms=statistics.median(longest),
        worst_ms=max(longest),
        late_p99_ms=_percentile(seen.late_ms, 99),
        accepts=len(seen.accepts_ms),
        accept_p50_ms=_percentile(seen.accepts_ms, 50),
        accept_p99_ms=_percentile(seen.accepts_ms, 99),
        p50_over_idle=_percentile(seen.accepts_ms, 50) / _percentile(idle.accepts_ms, 50),
        p99_over_idle=_percentile(seen.accepts_ms, 99) / _percentile(idle.accepts_ms, 99),
    )


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[(len(values) - 1) * percent // 100]
