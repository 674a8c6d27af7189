"""Real servers for every test: one Postgres and one Valkey a session, one fresh database a test.

They are the embedded ones, without fsync; or those that DISPATCH_TEST_DATABASE_URL (of a user who
may create databases) and DISPATCH_TEST_REDIS_URL name. Fixtures, from the ground up:

    servers        Servers(database_url, redis_url), for the session
    database_url   a database of its own for this test, with the whole schema, dropped afterwards
    empty_database_url   the same without a schema
    redis_url      the Redis, shared: what the product keeps there is named after its database
    make_config    make_config(**overrides) -> Config for that database and Redis
    config         make_config()
    server         server(*arguments, **environ) -> LiveServer: `dispatch serve` on that database
                   and Redis, or on its own with `server("--embedded", DIR)`; several if wanted
"""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
import uvloop

from dispatch.config import Config, load
from dispatch.embedded import Embedded
from dispatch.migrate import migrate
from tests.live_server import LiveServer
from tests.support import JWT_SECRET, STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET

MakeConfig = Callable[..., Config]
StartServer = Callable[..., LiveServer]

# Short where a test would wait for it, long where it would get in a test's way.
MEMORY_BYTES = 4 * 1024**3  # what all databases of a run may need at once

TEST_SECONDS = {
    "priority_window_seconds": 5.0,
    "wait_window_seconds": 10.0,
    "head_start_seconds": 0.3,
    "offer_retry_seconds": 0.3,
    "request_ttl_seconds": 60.0,
    "presence_grace_seconds": 0.2,
    "node_lease_seconds": 1.0,
    "sweep_seconds": 0.05,
    "join_seconds": 30.0,
    "plan_minute_seconds": 1.0,
    "warning_seconds": 1.0,
    "drain_seconds": 2.0,
}


@dataclass(frozen=True)
class Servers:
    """Where the session's Postgres and Redis are."""

    database_url: str
    redis_url: str


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop that the server runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with started_servers() as servers:
        yield servers


@contextlib.contextmanager
def started_servers() -> Iterator[Servers]:
    """Those that the environment names, or our own until the end of the block."""
    database_url = os.environ.get("DISPATCH_TEST_DATABASE_URL")
    redis_url = os.environ.get("DISPATCH_TEST_REDIS_URL")
    if database_url and redis_url:
        yield Servers(database_url, redis_url)
        return
    folder = Path(tempfile.mkdtemp(prefix="dispatch-tests-", dir=_in_memory()))
    embedded = Embedded.start(folder, durable=False)
    try:
        yield Servers(embedded.values["database_url"], embedded.values["redis_url"])
    finally:
        embedded.stop()
        shutil.rmtree(folder)


def _in_memory() -> str | None:
    """A folder in memory, where there is room: copying takes a tenth of the time there."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK):
        free_bytes = shutil.disk_usage(memory).free
        return str(memory) if free_bytes > MEMORY_BYTES else None
    return None


@pytest.fixture(scope="session")
def template_url(servers: Servers) -> Iterator[str]:
    """A database with the whole schema, to be copied; nobody else may be connected to it."""
    url = create_database(servers)
    asyncio.run(migrate(url))
    yield url
    drop_database(servers, url)


@pytest.fixture
def database_url(servers: Servers, template_url: str) -> Iterator[str]:
    url = create_database(servers, template_url)
    # The copy would be the same cluster in Redis as every other test's.
    execute(url, "UPDATE cluster SET id = gen_random_uuid()")
    yield url
    drop_database(servers, url)


@pytest.fixture
def empty_database_url(servers: Servers) -> Iterator[str]:
    url = create_database(servers)
    yield url
    drop_database(servers, url)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """Not emptied: other tests may use it at the same time, each under its database's namespace."""
    return servers.redis_url


@pytest.fixture
def make_config(database_url: str, redis_url: str) -> MakeConfig:
    def make(**overrides: object) -> Config:
        environ = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "DISPATCH_PORT": "0",
            "DISPATCH_JWT_SECRET": JWT_SECRET,
            "STRIPE_SECRET_KEY": STRIPE_SECRET_KEY,
            "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
        }
        return replace(load(environ), **TEST_SECONDS | overrides)  # type: ignore[arg-type]

    return make


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    return make_config()


@pytest.fixture
def server(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[StartServer]:
    """Start a live server on a free port; `environ` adds to and overrides the test's own."""
    base = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "DISPATCH_PORT": "0",
        "DISPATCH_JWT_SECRET": JWT_SECRET,
        "STRIPE_SECRET_KEY": STRIPE_SECRET_KEY,
        "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
        **{f"DISPATCH_{name.upper()}": str(seconds) for name, seconds in TEST_SECONDS.items()},
    }
    with contextlib.ExitStack() as stack:

        def start(*arguments: object, **environ: str) -> LiveServer:
            folder = Path(tempfile.mkdtemp(prefix="server-", dir=tmp_path))
            own = {} if "--embedded" not in arguments else dict.fromkeys(_NOT_EMBEDDED, "")
            environ = base | own | environ
            return stack.enter_context(LiveServer.start(folder, environ, *map(str, arguments)))

        yield start


# Embedded servers bring these: an empty variable counts as one that is not set.
_NOT_EMBEDDED = (
    "DATABASE_URL",
    "REDIS_URL",
    "DISPATCH_JWT_SECRET",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
)


def create_database(servers: Servers, template_url: str = "") -> str:
    """A new database, empty or copied; its URL."""
    name = f"dispatch_test_{uuid.uuid4().hex}"
    template = f"TEMPLATE {_name(template_url)}" if template_url else ""
    execute(servers.database_url, f"CREATE DATABASE {name} {template}")
    return urlsplit(servers.database_url)._replace(path=f"/{name}").geturl()


def drop_database(servers: Servers, url: str) -> None:
    """The database is gone, whoever is still connected to it."""
    execute(servers.database_url, f"DROP DATABASE {_name(url)} WITH (FORCE)")


def execute(database_url: str, sql: str) -> None:
    """One statement on a connection of its own, outside of any event loop."""

    async def run() -> None:
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(run())


def _name(database_url: str) -> str:
    return urlsplit(database_url).path.removeprefix("/")
