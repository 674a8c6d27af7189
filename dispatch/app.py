"""The composition root: a node, its HTTP application and its sockets behind one listening socket.

One job: run one node until SIGTERM. A new connection is met by the lobby; uvicorn serves HTTP,
within the limits of our subclass of its protocol, and websockets are our protocol class's.
On SIGTERM readiness turns red, the sockets are drained, answers under way are finished, the timers
are left to Postgres.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import uvicorn
import uvloop

from dispatch import http, logs
from dispatch.config import Config
from dispatch.lobby import Lobby
from dispatch.node import Node
from dispatch.websocket import Connection

log = logging.getLogger(__name__)

EXIT_FAILED = 1
BACKLOG = 65_535  # as many as the kernel allows: see net.core.somaxconn
COLLECT_AFTER = 20_000  # more objects made than freed


def run_node(config: Config, node_id: UUID, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Runs one node on this listening socket until SIGTERM; returns after the drain.

    `ready` is called when it serves. Raises `Unavailable` when Postgres is away at the start.
    """
    logs.set_up()
    uvloop.run(_run(config, node_id, sock, ready))


async def _run(
    config: Config, node_id: UUID, sock: socket.socket, ready: Callable[[], None]
) -> None:
    node = await Node.start(config, node_id)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    log.info("node %s serves, pid %d", node_id, os.getpid())
    _collect_less_often()
    await serve(node, sock, ready, stop)
    if node.failed.is_set():
        raise SystemExit(EXIT_FAILED)


def _collect_less_often() -> None:
    """What was made until now lives as long as the process; what comes makes few cycles.

    With CPython's own thresholds looking for cycles is a tenth of what thousands of connects cost,
    and a full search holds the loop for longer the more sockets there are.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)


async def serve(
    node: Node, sock: socket.socket, ready: Callable[[], None], stop: asyncio.Event
) -> None:
    """Serves until `stop` is set, or something failed that nobody foresaw; then drains and ends.

    `ready` is called when the node serves. An exception of one of its loops ends it at once.
    """
    server = _Server(_uvicorn_config(node), ready)
    try:
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(loop, name=name) for name, loop in node.loops().items()]
            group.create_task(_drain_on_stop(node, server, stop), name="drain")
            await server.serve([sock])
            for running in loops:
                running.cancel()
    finally:
        await node.close()


async def _drain_on_stop(node: Node, server: "_Server", stop: asyncio.Event) -> None:
    ends = {asyncio.create_task(event.wait()) for event in (stop, node.failed)}
    _, waiting = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    log.info("node %s drains %d sockets", node.node_id, len(node.hub))
    await node.drain()
    server.should_exit = True


def _uvicorn_config(node: Node) -> uvicorn.Config:
    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"gateway": node.gateway}

    return uvicorn.Config(
        http.create_app(node, lifespan),
        loop="none",
        http=Lobby,
        ws=Connection,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=max(1, int(node.config.drain_seconds)),
    )


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: SIGTERM begins our drain first."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]  # a context manager all the same
        return contextlib.nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says that the node serves once it does."""
        await super().startup(sockets)
        self._ready()
