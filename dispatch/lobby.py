"""What a new connection is: a websocket, nearly always, or else HTTP.

Its one job: look at the first bytes of a connection. One ordinary handshake goes straight to the
websocket class; everything else goes, as it came, to `http_protocol`, which then is as if it had
been there from the beginning. May import `http_protocol`, `quick_handshake` and `wire`. Who says
nothing is closed in the time that is given for a head.
"""

import asyncio
from typing import Any, ClassVar, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from dispatch import quick_handshake
from dispatch.http_protocol import HttpConnection, wheel_of
from dispatch.wire import Socket


class Lobby(asyncio.Protocol):
    """A connection that has said nothing yet. uvicorn makes it; its first bytes end it."""

    __slots__ = ("_app_state", "_config", "_server_state", "_since", "_transport", "_wheel")

    http: ClassVar[type[HttpConnection]] = HttpConnection

    _transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it."""
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        loop = _loop or asyncio.get_running_loop()
        self._wheel = wheel_of(app_state, loop, self.http.limits)
        self._since = self._wheel.now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self._server_state.connections.add(cast(Any, self))
        self._wheel.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def data_received(self, data: bytes) -> None:
        self._leave()
        socket_class = self._config.ws_protocol_class
        if socket_class is not None and issubclass(socket_class, Socket):
            ordinary = quick_handshake.read(data, self.http.limits.headers)
            if ordinary is not None:
                socket = socket_class(self._config, self._server_state, self._app_state)
                socket.connection_made(self._transport)
                self._transport.set_protocol(socket)
                socket.open_quickly(*ordinary)
                return
        http = self.http(self._config, self._server_state, self._app_state)
        http.connection_made(self._transport)
        http.count_from(self._since)
        self._transport.set_protocol(http)
        http.data_received(data)

    def visit(self, now: float) -> None:
        """Look after the deadline; `now` is the wheel's time."""
        if now - self._since >= self.http.limits.head_seconds:
            self._transport.close()

    def shutdown(self) -> None:
        """uvicorn is going down; nothing is under way here."""
        self._transport.close()

    def _leave(self) -> None:
        self._server_state.connections.discard(cast(Any, self))
        self._wheel.discard(self)
