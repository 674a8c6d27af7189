"""A websocket server in this process, and a client that can say what no library would.

The server is uvicorn itself with our protocol classes; behind it stands a `StandIn` for the
gateway, which records what reaches it and answers `ok`. The clients are `websockets`' own
(`dial`) and `RawClient`, which writes bytes.
"""

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect

from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.errors import NotAuthenticated
from dispatch.lobby import Lobby
from dispatch.protocol import SUBPROTOCOL, AnyClientFrame, Ok
from dispatch.websocket import Connection, Limits
from tests.support import WAIT_SECONDS, eventually

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA


def identity(role: Role = Role.MECHANIC, ttl_seconds: float = 3600) -> Identity:
    """Somebody new."""
    return Identity(user_id=uuid4(), role=role, epoch=1, expires_at=time.time() + ttl_seconds)


@dataclass
class StandIn:
    """A gateway that knows some tokens, records everything and answers `ok`.

    `on_authenticate`, `on_connected` and `on_received` run in the middle of the call of that name
    and may wait or raise.
    """

    node_id: UUID = field(default_factory=uuid4)
    draining: bool = False
    allowed_origins: frozenset[str] = frozenset({"https://app.example"})
    rate_messages: float = 0.0
    rate_connects: float = 0.0
    trusted_proxies: frozenset[str] = frozenset()
    tokens: dict[str, Identity] = field(default_factory=dict)
    authenticated: list[str] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    frames: list[AnyClientFrame] = field(default_factory=list)
    gone: list[Connection] = field(default_factory=list)
    on_authenticate: Callable[[str], Any] | None = None
    on_connected: Callable[[Connection], Any] | None = None
    on_received: Callable[[Connection, AnyClientFrame], Any] | None = None

    def token(self, role: Role = Role.MECHANIC, ttl_seconds: float = 3600) -> str:
        """A good token for somebody new."""
        token = f"token-{len(self.tokens)}"
        self.tokens[token] = identity(role, ttl_seconds)
        return token

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def identify(self, connection: Connection, token: str) -> Identity:
        self.authenticated.append(token)
        if self.on_authenticate is not None:
            await self.on_authenticate(token)
        if token not in self.tokens:
            raise NotAuthenticated("no such token")
        return self.tokens[token]

    async def connected(self, connection: Connection, device: str | None) -> None:
        self.connections.append(connection)
        if self.on_connected is not None:
            await self.on_connected(connection)
        connection.send(
            message({"type": "welcome", "connection_id": str(connection.connection_id)})
        )

    def handled(self, connection: Connection, frame: AnyClientFrame) -> bool:
        return False

    async def received(self, connection: Connection, frame: AnyClientFrame) -> None:
        if self.on_received is not None:
            await self.on_received(connection, frame)
        self.frames.append(frame)
        connection.send_frame(Ok(re=frame.id))

    def disconnected(self, connection: Connection) -> None:
        self.gone.append(connection)


def message(fields: dict[str, object]) -> bytes:
    """A small server frame as websocket bytes."""
    payload = json.dumps(fields).encode()
    assert len(payload) < 126
    return bytes([0x80 | TEXT, len(payload)]) + payload


@dataclass
class Served:
    """A running server: where it is, what stands behind it, and uvicorn's own state."""

    port: int
    gateway: StandIn
    server: uvicorn.Server
    raw_clients: list["RawClient"] = field(default_factory=list)

    @property
    def server_state(self) -> ServerState:
        return self.server.server_state

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.should_exit = True

    def dial(self, token: str | None = None, **options: Any) -> connect:
        """A `websockets` client, with the token in its Authorization header."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        options = {
            "subprotocols": [SUBPROTOCOL],
            "additional_headers": headers,
            "compression": None,
            "ping_interval": None,
            "proxy": None,
        } | options
        return connect(f"ws://127.0.0.1:{self.port}/ws", **options)

    async def raw(self) -> "RawClient":
        """A TCP connection that nothing was said on yet."""
        client = RawClient(*await asyncio.open_connection("127.0.0.1", self.port))
        self.raw_clients.append(client)
        return client

    async def raw_welcomed(self, token: str) -> "RawClient":
        """A raw websocket that has read its welcome."""
        client = await self.raw()
        assert (await client.handshake({"Authorization": f"Bearer {token}"})).status == 101
        assert (await client.read_json())["type"] == "welcome"
        return client


def limited(**limits: Any) -> type[Connection]:
    """The same class with other limits."""

    class Limited(Connection):
        __slots__ = ()

    Limited.limits = Limits(**limits)
    return Limited


@contextlib.asynccontextmanager
async def serving(
    gateway: StandIn,
    connection: type[asyncio.Protocol] = Connection,
    http: type[asyncio.Protocol] = Lobby,
    routes: Sequence[Route] = (),
) -> AsyncIterator[Served]:
    """uvicorn on a free port until the end of the block, when everybody is disconnected."""
    listener = socket.create_server(("127.0.0.1", 0))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"gateway": gateway}

    app = Starlette(lifespan=lifespan, routes=routes)
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=http, ws=connection, lifespan="on", log_config=None, access_log=False
        )
    )
    running = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    served = Served(listener.getsockname()[1], gateway, server)
    try:
        await eventually(lambda: server.started)
        yield served
    finally:
        for client in served.raw_clients:
            client.writer.close()
        served.stop()
        await asyncio.wait_for(running, WAIT_SECONDS)


async def read_json(client: ClientConnection) -> Any:
    """The next message of a `websockets` client."""
    return json.loads(await asyncio.wait_for(client.recv(), WAIT_SECONDS))


async def closed(client: ClientConnection) -> tuple[int | None, str | None]:
    """Code and reason, once the connection is closed."""
    await asyncio.wait_for(client.wait_closed(), WAIT_SECONDS)
    return client.close_code, client.close_reason


@dataclass
class Answer:
    """The server's answer to an HTTP request."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """A client, of HTTP and then of a websocket, that checks nothing and hides nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.close_sent = False

    async def handshake(
        self, headers: dict[str, str] | list[tuple[str, str]] | None = None, target: str = "/ws"
    ) -> Answer:
        """Ask for a websocket with these headers beside the necessary ones."""
        pairs = list(headers.items()) if isinstance(headers, dict) else headers or []
        given = {name.lower() for name, _ in pairs}
        necessary = [
            ("Host", "app.example"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
            ("Sec-WebSocket-Version", "13"),
        ]
        lines = [f"GET {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in necessary if name.lower() not in given]
        lines += [f"{name}: {value}" for name, value in pairs]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        return await self.read_answer()

    async def read_answer(self) -> Answer:
        """The next HTTP answer, whose length is in its head."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT_SECONDS)
        status, *lines = head.decode("latin-1").split("\r\n")[:-2]
        fields = dict(line.split(": ", 1) for line in lines)
        fields = {name.lower(): value for name, value in fields.items()}
        body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        return Answer(int(status.split(" ")[1]), fields, body)

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def send(self, payload: bytes | str, opcode: int = TEXT, fin: bool = True) -> None:
        """Write one frame of any kind."""
        self.close_sent = self.close_sent or opcode == CLOSE
        self.write(frame(payload, opcode, fin))

    def stop_reading(self) -> None:
        """Leave what comes in the kernel's buffers, which then fill."""
        cast(asyncio.ReadTransport, self.writer.transport).pause_reading()

    def read_on(self) -> None:
        cast(asyncio.ReadTransport, self.writer.transport).resume_reading()

    async def read_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame. Raises IncompleteReadError at the end."""
        return await asyncio.wait_for(self._read_frame(), WAIT_SECONDS)

    async def _read_frame(self) -> tuple[int, bytes]:
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(size)

    async def read_json(self) -> Any:
        """The next text message."""
        opcode, payload = await self.read_frame()
        assert opcode == TEXT, (opcode, payload)
        return json.loads(payload)

    async def read_close(self) -> int:
        """The code of the server's close frame, once it has ended the TCP connection as well.

        Whatever else comes before it is read and dropped; the closing handshake is completed.
        """
        while True:
            opcode, payload = await self.read_frame()
            if opcode == CLOSE:
                if not self.close_sent:
                    self.send(payload, CLOSE)
                await self.read_end()
                self.writer.close()
                return int.from_bytes(payload[:2], "big")

    async def read_end(self) -> None:
        """Until the server has ended the TCP connection, one way or the other."""
        with contextlib.suppress(ConnectionError):
            while await asyncio.wait_for(self.reader.read(65536), WAIT_SECONDS):
                pass


def frame(payload: bytes | str, opcode: int = TEXT, fin: bool = True) -> bytes:
    """The bytes of one masked frame (the mask is zero: only the bit matters here)."""
    data = payload.encode() if isinstance(payload, str) else payload
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 65536:
        head += bytes([0x80 | 126]) + struct.pack("!H", len(data))
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", len(data))
    return head + bytes(4) + data
