"""`dispatch serve`: everything around the workers, started in order and ended in reverse.

Its one job: bind the port, have Postgres and Redis there and migrated, then fork the workers and
look after what else runs here. Imports `app` late, as the last thing before the fork: workers share
its memory. Fails with `StartError` or `Unavailable` before the first worker, leaving nothing.

Each worker has a listening socket of its own on the same port (SO_REUSEPORT); the parent holds them
all, so connections that arrive for a dead worker wait for its successor.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import redis

from dispatch import children
from dispatch.config import Config, bracketed, reachable, without_password
from dispatch.embedded import Embedded
from dispatch.errors import StartError, Unavailable
from dispatch.migrate import connect, migrate
from dispatch.workers import Signals, Workers, say

BACKLOG = 65_535  # as many as the kernel allows: see net.core.somaxconn
HELPER_SECONDS = 15.0


def serve(config: Config, workers: int) -> int:
    """Run until SIGTERM or SIGINT and return the exit code; everything started here has ended then.

    Prints `listening on http://HOST:PORT` on standard output when all workers are ready.
    """
    with contextlib.ExitStack() as cleanup:
        signals = cleanup.enter_context(Signals())
        sockets = listen(config.host, config.port, workers)
        for sock in sockets:
            cleanup.enter_context(sock)
        config = config.listening_on(sockets[0].getsockname()[1])
        embedded = None
        helpers: list[Helper] = []
        if config.embedded:
            embedded = Embedded.start(config.data_dir)
            cleanup.callback(embedded.stop)
            config = config.with_embedded(embedded.values)
        check_redis(config.redis_url)
        asyncio.run(prepare_database(config.database_url))
        if embedded is not None:
            for helper in _helpers(config, embedded):
                cleanup.callback(helper.stop)
                helpers.append(helper)
        return _run_workers(config, sockets, signals, embedded, helpers)


def _run_workers(
    config: Config,
    sockets: list[socket.socket],
    signals: Signals,
    embedded: Embedded | None,
    helpers: "Sequence[Helper]",
) -> int:
    from dispatch.app import run_node

    def work(sock: socket.socket, ready: Callable[[], None]) -> None:
        run_node(config, uuid.uuid4(), sock, ready)

    def announce() -> None:
        for helper in helpers:
            helper.await_ready()
        print(f"listening on http://{bracketed(config.host)}:{config.port}", flush=True)

    def look_after() -> None:
        for helper in helpers:
            helper.revive()
        if embedded is not None:
            try:
                for name in embedded.revive():
                    say(f"the embedded {name} had ended and was started again")
            except StartError as error:
                say(error.message)

    forget = embedded.leave_to_parent if embedded is not None else lambda: None
    return Workers(sockets, signals, work, config.drain_seconds, forget).run(announce, look_after)


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` listening sockets on one port; port 0 takes a free one. Raises StartError."""
    sockets: list[socket.socket] = []
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if port != 0:
            # With SO_REUSEPORT we would share the port with another server of ours, unnoticed.
            _bind(family, address, socket.SO_REUSEADDR).close()
        for _ in range(count):
            sockets.append(_bind(family, address, socket.SO_REUSEADDR, socket.SO_REUSEPORT))
            address = sockets[0].getsockname()
            sockets[-1].listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        where = f"{bracketed(host)}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"{where} is in use: choose another --port") from None
        raise StartError(f"cannot listen on {where}: {error}") from None
    return sockets


def _bind(family: int, address: object, *options: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(address)  # type: ignore[arg-type]  # whatever getaddrinfo gave for this family
    except OSError:
        sock.close()
        raise
    return sock


def check_redis(redis_url: str) -> None:
    """Raises Unavailable when Redis does not answer, naming it without its password."""
    try:
        with redis.Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        where = without_password(redis_url).rpartition("@")[2].removeprefix("redis://")
        raise Unavailable(f"Redis at {where} cannot be used: {error}") from None


async def prepare_database(database_url: str) -> None:
    """Migrate. Raises Unavailable, or StartError: also when the database's clock is set off."""
    await migrate(database_url)
    connection = await connect(database_url)
    try:
        offset = await connection.fetchval("SELECT current_setting('dispatch.clock_offset', true)")
    finally:
        await connection.close(timeout=5)
    if offset:
        raise StartError(
            f"the database has dispatch.clock_offset = {offset}: only tests may move its clock"
        )


class Helper:
    """A child of ours that stands in for somebody else's server, where nobody else's is set."""

    def __init__(
        self, name: str, port: int, folder: Path, argv: Sequence[str], secrets: Mapping[str, str]
    ) -> None:
        """Starts `python -m ARGV` with the port and the folder, which is for its owner only."""
        self._name = name
        self._port = port
        self._folder = folder
        self._argv = (*argv, "--port", str(port), "--data-dir", str(folder.resolve()))
        self._secrets = secrets
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return children.spawn(
            [sys.executable, "-m", *self._argv],
            cwd=Path(__file__).parent.parent,  # where `-m` finds this package, installed or not
            environ={**os.environ, **self._secrets},
            death_signal=signal.SIGTERM,
        )

    def await_ready(self) -> None:
        """Raises StartError when it ends or takes too long."""
        children.wait_until(
            lambda: self._answers() or self._process.poll() is not None, HELPER_SECONDS
        )
        if not self._answers():
            raise StartError(f"{self._name} does not start on port {self._port}")

    def revive(self) -> None:
        """Start it again if it has ended; it continues from its folder."""
        if self._process.poll() is not None:
            say(f"{self._name} had ended and is started again")
            self._process = self._spawn()

    def stop(self) -> None:
        children.end(self._process, (signal.SIGTERM, 5.0))

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True


def _helpers(config: Config, embedded: Embedded) -> Iterator[Helper]:
    """What stands in for what is not configured, started one by one."""
    if config.sources.get("stripe_api_base") == "embedded":
        here = f"http://{bracketed(reachable(config.host))}:{config.port}"
        webhooks = ("--webhook-url", f"{here}/api/stripe/webhook")
        yield Helper(
            "the stand-in for Stripe",
            embedded.stripe_port,
            config.data_dir / "stripe",
            ("dispatch.stripe_standin", *webhooks),
            {
                "STRIPE_SECRET_KEY": config.stripe_secret_key,
                "STRIPE_WEBHOOK_SECRET": config.stripe_webhook_secrets[0],
            },
        )
    if config.sources.get("smtp_url") == "embedded":
        yield Helper(
            "the server that keeps mails",
            embedded.mail_port,
            config.data_dir / "mails",
            ("dispatch.mail_sink",),
            {},
        )
