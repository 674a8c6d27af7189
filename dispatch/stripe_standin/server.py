"""The process: the app put together, its tasks, and the socket it listens on.

Its one job: one ledger, the deliveries and the routes over it, served on loopback and nowhere else.
Imports Starlette, uvicorn and the rest of this package.
"""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from . import checkout
from .api import TRANSPORT, Api
from .control import Control
from .delivery import Deliverer
from .faults import Faults
from .hosted import Hosted
from .ledger import Ledger
from .objects import Cause

log = logging.getLogger(__name__)

EXPIRY_TICK_SECONDS = 0.25


class _App(Starlette):
    """Knows the connection of each request, to be able to drop it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # ASGI has no word for hanging up: this `send` is a method of uvicorn's exchange.
        scope[TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)
        await super().__call__(scope, receive, send)


async def _expire_forever(ledger: Ledger, deliverer: Deliverer, now: Callable[[], float]) -> None:
    """Close sessions when their time is over, until cancelled."""
    while True:
        with ledger.transaction():
            past = ledger.sessions_past(now())
            for session in past:
                checkout.expire(ledger, session, cause=Cause(), now=now())
        if past:
            deliverer.wake()
        await asyncio.sleep(EXPIRY_TICK_SECONDS)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def create_app(
    secret_key: str,
    webhook_secret: str,
    webhook_url: str,
    data_dir: Path,
    *,
    now: Callable[[], float] = time.time,
    first_retry_seconds: float = 1.0,
    attempts: int = 10,
) -> Starlette:
    """The stand-in as an app on the ledger in `data_dir`; its lifespan delivers, then closes it.

    `webhook_url` gets every event, tried up to `attempts` times, first again after
    `first_retry_seconds`, then twice that, and so on. Raises ValueError for anything but a test
    key: a live key must never come near it.
    """
    if not secret_key.startswith("sk_test_"):
        raise ValueError("STRIPE_SECRET_KEY must be a test key (sk_test_…)")
    if not webhook_secret:
        raise ValueError("STRIPE_WEBHOOK_SECRET is missing")
    ledger = Ledger(data_dir)
    deliverer = Deliverer(
        ledger,
        url=webhook_url,
        secret=webhook_secret,
        now=now,
        first_retry_seconds=first_retry_seconds,
        attempts=attempts,
    )
    faults = Faults()
    areas = (
        Api(ledger, deliverer, faults, secret_key, now),
        Hosted(ledger, deliverer, now),
        Control(ledger, deliverer, faults, now),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(deliverer.run(), name="deliveries"),
            asyncio.create_task(_expire_forever(ledger, deliverer, now), name="expiry"),
        ]
        for task in tasks:
            task.add_done_callback(_report)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            ledger.close()

    return _App(routes=[route for area in areas for route in area.routes()], lifespan=lifespan)


def _report(task: asyncio.Task[None]) -> None:
    """Both tasks run until they are cancelled: any other end is a bug, and is said at once."""
    if not task.cancelled():
        log.critical("the task %r ended", task.get_name(), exc_info=task.exception())


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            said = f"NOT STRIPE, a stand-in that moves no money: http://{host}:{port}"
            print(said, file=sys.stderr, flush=True)


def run(app: Starlette, *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then exit with 0. `port` 0 takes a free one.

    Raises ValueError for a `host` that others could reach.
    """
    if not is_loopback(host):
        raise ValueError("the stand-in for Stripe listens on loopback addresses only")
    # uvicorn closes first and then raises the signal again: leaving at that is the clean exit.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    _Server(config).run()
