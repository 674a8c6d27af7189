"""Dispatch itself as a candidate: one worker on the server's core, its databases on the other.

Imports `candidates`, `city` and `machine`, and of the product only what issues tokens.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from bench import machine
from bench.candidates import START_SECONDS, Post, Running, post_at_once, started
from bench.city import City, city
from bench.load import LoadError
from dispatch.auth import issue_token
from dispatch.core.types import Role

TOKEN_SECONDS = 3600
PER_WORKSHOP = 10
CUSTOMERS = 64
READY_MARKER = '"type":"welcome"'
QUIET = {"DISPATCH_RATE_CONNECTS": "0", "DISPATCH_RATE_LOGINS": "0", "DISPATCH_RATE_MESSAGES": "0"}


class Dispatch:
    """A broadcast booking per publication: started over HTTP by a customer, then cancelled."""

    name = "Dispatch"

    @contextmanager
    def serve(self, sockets: int) -> Iterator[Running]:
        with city(machine.CLIENT_CORE) as place:
            mechanics = place.add_mechanics(sockets, PER_WORKSHOP)
            tokens = write_tokens(place, mechanics)
            customers = [
                token(place, customer, Role.CUSTOMER) for customer in place.add_customers(CUSTOMERS)
            ]
            with serving(place, machine.SERVER_CORE) as (port, pid):
                bookings = Bookings(port, customers)
                yield Running(
                    pid,
                    port,
                    lambda: bookings.start(1),
                    bookings.start,
                    tokens=tokens,
                    ready=READY_MARKER,
                    ping='{"type":"ping"}',
                    withdraw=lambda: bookings.cancel(1),
                    calm=bookings.cancel,
                )


class Bookings:
    """A booking each of some customers, all made at the same moment."""

    def __init__(self, port: int, bearers: Sequence[str]) -> None:
        self._port = port
        self._headers = [
            {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
            for bearer in bearers
        ]
        self._request_ids: list[str] = []

    def start(self, count: int) -> None:
        """So many of the customers book at once, for everybody."""
        wanted = {
            "plan": "free",
            "routing_type": "broadcast",
            "vehicle": "Golf 7",
            "concern": "A noise",
        }
        starts = [
            Post("/api/intake/start", json.dumps(wanted), headers)
            for headers in self._headers[:count]
        ]
        answers = post_at_once(self._port, starts)
        self._request_ids = [json.loads(answer)["request_id"] for answer in answers]

    def cancel(self, count: int) -> None:
        """They take it back."""
        cancels = [
            Post(f"/api/requests/{request_id}/cancel", "", headers)
            for request_id, headers in zip(self._request_ids, self._headers, strict=False)
        ]
        post_at_once(self._port, cancels[:count])


@contextmanager
def serving(place: City, core: int | None) -> Iterator[tuple[int, int]]:
    """`dispatch serve --workers 1` on the city's servers: its port, and its worker's pid."""
    with serving_workers(place, core, 1) as (port, pids):
        yield port, pids[0]


@contextmanager
def serving_workers(place: City, core: int | None, workers: int) -> Iterator[tuple[int, list[int]]]:
    """The same with several workers, all on one core if that is given; all of their pids."""
    port = machine.free_port()
    environment = os.environ | QUIET | place.environment
    command = [sys.executable, "-m", "dispatch.cli"]
    serve = [*command, "serve", "--workers", str(workers), "--port", str(port)]
    with started(serve, port, core=core, environment=environment) as server:
        yield port, _worker_pids(server, [*command, "nodes", "--json"], environment, workers)


def _worker_pids(
    server: subprocess.Popen[bytes], command: list[str], environment: dict[str, str], workers: int
) -> list[int]:
    """The pids of the nodes, once all have registered themselves; the port is open a little
    earlier."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=START_SECONDS, check=False
        )
        if done.returncode:
            raise LoadError(f"dispatch nodes: {done.stderr.decode().strip()[-300:]}")
        pids = [int(node["pid"]) for node in json.loads(done.stdout)]
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if len(alive) >= workers:
            return alive
    raise LoadError("the server's workers have not registered themselves")


def write_tokens(place: City, mechanics: Sequence[UUID]) -> Path:
    """A file with one mechanic's token per line, in this order."""
    path = place.folder / "tokens"
    path.write_text("".join(token(place, one, Role.MECHANIC) + "\n" for one in mechanics))
    return path


def token(place: City, user_id: UUID, role: Role) -> str:
    """What this user's log-in would have given."""
    return issue_token(place.jwt_secret, user_id, role, 0, TOKEN_SECONDS)
