"""Nodes that live in the test's own process, and clients that speak to them over real sockets.

A test can reach into a node (lose its hints, look at its board) and pass hours: `pass_time` moves
the database's clock, so windows and deadlines have their true lengths.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import aiohttp
from websockets.asyncio.client import ClientConnection, connect

from dispatch.app import serve
from dispatch.auth import issue_token
from dispatch.config import Config
from dispatch.node import Node
from tests.support import WAIT_SECONDS, eventually

Frame = dict[str, Any]


class LivingNode:
    """A node, and where it serves."""

    def __init__(self, node: Node, port: int) -> None:
        self.node = node
        self.ws_url: Final = f"ws://127.0.0.1:{port}/ws"

    @contextlib.asynccontextmanager
    async def client(self, user_id: UUID, role: str) -> AsyncIterator["Client"]:
        """A connection of this user that has its welcome."""
        token = issue_token(self.node.config.jwt_secret, user_id, role, 0, 3600)
        headers = {"Authorization": f"Bearer {token}"}
        async with connect(self.ws_url, additional_headers=headers, compression=None) as link:
            client = Client(link)
            await client.until("welcome")
            yield client

    async def call(
        self, user_id: UUID, role: str, method: str, path: str, body: object = None
    ) -> tuple[int, Frame]:
        """What HTTP answers this user: status and JSON."""
        token = issue_token(self.node.config.jwt_secret, user_id, role, 0, 3600)
        url = self.ws_url.replace("ws", "http", 1).removesuffix("/ws") + path
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, url, headers=headers, json=body) as response,
        ):
            return response.status, await response.json()

    async def book(self, customer_id: UUID, **wish: object) -> "Booked":
        """A free booking over HTTP; `wish` as the intake's fields are called."""
        form = {"plan": "free"} | {name: _plain(value) for name, value in wish.items()}
        status, made = await self.call(customer_id, "customer", "POST", "/api/intake/start", form)
        assert status == 201, made
        return Booked(UUID(made["request_id"]), UUID(made["session_id"]), customer_id)

    async def is_online(self, mechanic_id: UUID, asker_id: UUID) -> bool:
        """Whether a customer is told here that this mechanic is online."""
        path = f"/api/mechanics/{mechanic_id}/status"
        status, told = await self.call(asker_id, "customer", "GET", path)
        assert status == 200, told
        return bool(told["is_online"])


@dataclass(frozen=True)
class Booked:
    """A request that was made."""

    request_id: UUID
    session_id: UUID
    customer_id: UUID


class Client:
    """One websocket: every frame that came, in order."""

    def __init__(self, link: ClientConnection) -> None:
        self.link = link
        self.frames: list[Frame] = []
        self._looked_at = 0

    @property
    def snapshot(self) -> Frame:
        """The first truth."""
        snapshot: Frame = self.frames[0]["snapshot"]
        return snapshot

    async def send(self, type_: str, **fields: object) -> None:
        """Sends a frame."""
        await self.link.send(json.dumps({"type": type_, **fields}, default=str))

    async def until(self, type_: str, **fields: object) -> Frame:
        """The next frame of this type with these fields, after the one that was found last."""
        wanted = {"type": type_, **{name: _plain(value) for name, value in fields.items()}}
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                while self._looked_at < len(self.frames):
                    frame = self.frames[self._looked_at]
                    self._looked_at += 1
                    if wanted.items() <= frame.items():
                        return frame
                self.frames.append(json.loads(await self.link.recv()))

    async def settle(self) -> None:
        """Everything that was sent to this client before now has come."""
        mark = str(uuid4())
        await self.send("ping", id=mark)
        await self.until("pong", re=mark)

    def of(self, type_: str) -> list[Frame]:
        """Every frame of a type so far."""
        return [frame for frame in self.frames if frame["type"] == type_]


@contextlib.asynccontextmanager
async def living_node(config: Config) -> AsyncIterator[LivingNode]:
    """Serves inside the block; drained and closed after it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        node = await Node.start(config, uuid4())
        ready, stop = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(serve(node, sock, ready.set, stop), name="node")
        started = asyncio.create_task(ready.wait())
        await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
        try:
            yield LivingNode(node, sock.getsockname()[1])
        finally:
            stop.set()
            await task


@contextlib.asynccontextmanager
async def two_nodes(config: Config) -> AsyncIterator[tuple[LivingNode, LivingNode]]:
    """Two that hear each other."""
    async with living_node(config) as one, living_node(config) as other:
        for living in (one, other):
            await eventually(partial(_is_whole, living))
        yield one, other


def _is_whole(living: LivingNode) -> bool:
    return living.node.degraded() == [] and not living.node._doubtful


async def pass_time(database_url: str, seconds: float, *nodes: LivingNode) -> None:
    """Moves the database's clock to `seconds` after the real one, for these nodes too."""
    import asyncpg

    connection = await asyncpg.connect(database_url)
    try:
        name = await connection.fetchval("SELECT quote_ident(current_database())")
        await connection.execute(f"ALTER DATABASE {name} SET dispatch.clock_offset = '{seconds} s'")
    finally:
        await connection.close()
    for living in nodes:
        await living.node.pool.expire_connections()
        await living.node.clock.measure(living.node.pool)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value
