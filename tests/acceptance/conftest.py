"""Towns for the acceptance tests: a live server, its people, and a stand-in for Stripe.

    build_town   build_town(workers=1, **seconds) -> a context manager that gives a `Town`
    town         the module's town; a module that needs other settings defines its own
    city         one test's view of it

The database of a town is a copy of one that was seeded once a session, so that its people, and
their tokens, are the same in every town. Durations are named as in the configuration, in seconds.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dispatch.children import wait_until
from tests.acceptance.actors import City, Town, visiting
from tests.conftest import Servers, create_database, drop_database, execute
from tests.live_server import LiveServer
from tests.support import JWT_SECRET, STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET

BuildTown = Callable[..., AbstractContextManager[Town]]

# What no test waits for is long; what every test waits for is short.
STEADY_SECONDS = {
    "priority_window_seconds": 60.0,
    "wait_window_seconds": 120.0,
    "head_start_seconds": 30.0,
    "offer_retry_seconds": 30.0,
    "request_ttl_seconds": 300.0,
    "presence_grace_seconds": 0.1,
    "node_lease_seconds": 1.0,
    "sweep_seconds": 0.1,
    "join_seconds": 60.0,
    "plan_minute_seconds": 30.0,
    "warning_seconds": 5.0,
    "drain_seconds": 2.0,
}


@dataclass
class SeededTown:
    """A database to be copied, who lives in it, and the tokens that they got so far."""

    url: str
    people: dict[str, Any]
    tokens: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="session")
def seeded_town(servers: Servers, template_url: str) -> Iterator[SeededTown]:
    url = create_database(servers, template_url)
    seeded = subprocess.run(
        [sys.executable, "-m", "dispatch.cli", "seed-demo", "--mechanics=60", "--customers=80"],
        env=_environ(url, servers.redis_url),
        capture_output=True,
        check=True,
    )
    yield SeededTown(url, json.loads(seeded.stdout))
    drop_database(servers, url)


@pytest.fixture(scope="session")
def build_town(
    servers: Servers, seeded_town: SeededTown, tmp_path_factory: pytest.TempPathFactory
) -> BuildTown:
    @contextlib.contextmanager
    def build(
        workers: int = 1, *, redis_url: str = servers.redis_url, **settings: object
    ) -> Iterator[Town]:
        folder = tmp_path_factory.mktemp("town")
        durations = {name: settings.pop(name, value) for name, value in STEADY_SECONDS.items()}
        with contextlib.ExitStack() as stack:
            database_url = stack.enter_context(_copied(servers, seeded_town.url))
            port = _free_port()
            stripe_url = stack.enter_context(_stripe(folder, f"http://127.0.0.1:{port}"))
            environ = {
                **_environ(database_url, redis_url),
                "DISPATCH_PORT": str(port),
                "STRIPE_API_BASE": stripe_url,
                **{f"DISPATCH_{name.upper()}": str(value) for name, value in durations.items()},
                **{f"DISPATCH_{name.upper()}": str(value) for name, value in settings.items()},
            }

            def start_server() -> LiveServer:
                home = Path(tempfile.mkdtemp(prefix="server-", dir=folder))
                started = LiveServer.start(home, environ, "--workers", str(workers))
                return stack.enter_context(started)

            yield Town(start_server, seeded_town.people, seeded_town.tokens, stripe_url)

    return build


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town() as town:
        yield town


@pytest.fixture
async def city(town: Town) -> AsyncIterator[City]:
    async with visiting(town) as city:
        yield city


def _environ(database_url: str, redis_url: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "DISPATCH_JWT_SECRET": JWT_SECRET,
        "STRIPE_SECRET_KEY": STRIPE_SECRET_KEY,
        "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
    }


@contextlib.contextmanager
def _copied(servers: Servers, template_url: str) -> Iterator[str]:
    url = create_database(servers, template_url)
    execute(url, "UPDATE cluster SET id = gen_random_uuid()")
    try:
        yield url
    finally:
        drop_database(servers, url)


@contextlib.contextmanager
def _stripe(folder: Path, server_url: str) -> Iterator[str]:
    """The stand-in, in a process of its own; its address."""
    log = folder / "stripe.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dispatch.stripe_standin", "--port", "0"),
                *("--data-dir", str(folder / "stripe")),
                *("--webhook-url", f"{server_url}/api/stripe/webhook"),
            ],
            env=_environ("", ""),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        assert wait_until(lambda: "http://" in log.read_text(), 20), log.read_text()
        yield log.read_text().split()[-1]
    finally:
        process.terminate()
        process.wait(20)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
