"""How long, and how much, a client may take to say one HTTP request and to read its answer.

Its one job: end connections that uvicorn would hold for ever, because a request never comes, comes
a byte a second, never ends, or because nobody reads what is answered. uvicorn's own protocol does
all else: this is a subclass that watches it. May import `errors`, `handshake` (the words of a
refusal) and `heartbeat`, the one clock of all connections. It fails by closing the one connection,
with an answer where one is still due.

Whoever is refused is half-closed, and what still comes is dropped until the client closes too:
closing at once would reset the connection, and the answer might never be read.
"""

import asyncio
from collections.abc import Collection
from typing import Any, ClassVar, Final, NoReturn, Protocol

from msgspec import Struct
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from dispatch import handshake
from dispatch.errors import BadRequest, DispatchError, HeadTooLarge, RateLimited, TooSlow
from dispatch.heartbeat import Wheel

# The parser is given no more than this at once, so that a limit is noticed soon after it is passed.
_SLICE_BYTES: Final = 4096
_APP_STATE_KEY: Final = "http"


class Limits(Struct, frozen=True, kw_only=True):
    """The durations (seconds) and sizes that hold for every connection."""

    head_seconds: float = 10.0  # from the connect, or from the last answer, to a whole head
    body_seconds: float = 30.0  # from the whole head to the whole body
    stall_seconds: float = 10.0  # without progress while something is buffered for the client
    linger_seconds: float = 2.0  # for reading a refusal
    head_bytes: int = 32 * 1024  # also of blank lines before a head, and between parts of a body
    headers: int = 100
    pipelined: int = 16  # requests that wait behind the one that is being answered

    def check_seconds(self) -> float:
        """How often each connection must be looked at: a deadline is met a fifth late at most."""
        durations = (self.head_seconds, self.body_seconds, self.stall_seconds)
        return min(*durations, self.linger_seconds) / 5


class Visited(Protocol):
    """What the wheel of HTTP looks after."""

    def visit(self, now: float) -> None:
        """Look after the deadlines; `now` is the wheel's time."""


class HttpConnection(HttpToolsProtocol):
    """uvicorn's HTTP protocol for clients that may be hostile. No timer belongs to one of them.

    Time counts while the client is the one who is waited for, never while its answer is made.
    """

    limits: ClassVar[Limits] = Limits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it."""
        super().__init__(config, server_state, app_state, _loop)
        self._wheel = wheel_of(app_state, self.loop, self.limits)
        self._running: RequestResponseCycle | None = None  # the one that is or was answered last
        self._in_body = False  # a head is whole and its body is not
        self._since = 0.0  # by the wheel: when the client was last waited for anew
        self._part_bytes = 0  # read since the last part of a request was whole
        self._part_is_whole = False  # of what is being read now
        self._fault: DispatchError = BadRequest("this is not an HTTP request")
        self._left = False  # refused, or a websocket now: nothing is read here any more
        self._refused = False
        self._buffered_bytes = 0
        self._progress_at = 0.0

    # --- what the event loop calls ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._since = self._progress_at = self._wheel.now
        self._wheel.add(self)

    def count_from(self, since: float) -> None:
        """The client has been waited for since then, by the wheel: it connected some time ago."""
        self._since = since

    def connection_lost(self, exc: Exception | None) -> None:
        self._wheel.discard(self)
        self._abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE_BYTES):
            if self._left:
                return
            part = data[start : start + _SLICE_BYTES]
            super().data_received(part)
            self._part_bytes = 0 if self._part_is_whole else self._part_bytes + len(part)
            self._part_is_whole = False
            if self._part_bytes > self.limits.head_bytes and not self._left:
                self._refuse(HeadTooLarge(f"at most {self.limits.head_bytes} bytes"))

    # --- what the parser says, and what uvicorn makes of it ---------------------------------------

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self.limits.pipelined:
            self._fail(RateLimited("too many requests at once on one connection"))
        self._since = self._wheel.now
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # a trailer, which must not become a header
        if len(self.headers) >= self.limits.headers:
            self._fail(HeadTooLarge(f"at most {self.limits.headers} headers"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._begin_part(in_body=True)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._part_is_whole = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._begin_part(in_body=False)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self._in_body:
            self._since = self._wheel.now
        super().on_response_complete()
        self._unset_keepalive_if_required()  # that timer is not needed: the wheel does it

    def send_400_response(self, msg: str) -> None:
        """The parser gave up, by itself or by one of our limits."""
        self._refuse(self._fault)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, unless an answer of ours would come between its frames."""
        if self._running is not None and not self._running.response_complete:
            self._refuse(BadRequest("a websocket cannot begin behind a request without an answer"))
            return
        self._left = True
        self._wheel.discard(self)
        super().handle_websocket_upgrade()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _begin_part(self, in_body: bool) -> None:
        self._in_body = in_body
        self._part_is_whole = True
        self._since = self._wheel.now

    def _fail(self, fault: DispatchError) -> NoReturn:
        """End the parser from inside: it comes back as `send_400_response`."""
        self._fault = fault
        raise fault

    # --- time -------------------------------------------------------------------------------------

    def visit(self, now: float) -> None:
        """Look after the deadlines; `now` is the wheel's time."""
        limits = self.limits
        if self._refused:
            if now - self._since >= limits.linger_seconds:
                self.transport.abort()
        elif not self._is_progressing(now):
            self.transport.abort()
        elif self.transport.is_closing():
            return  # as soon as the client has read what is buffered
        elif self.flow.read_paused:
            self._since = now  # it could not send if it would
        elif self._in_body:
            if now - self._since >= limits.body_seconds:
                self._refuse(TooSlow("the body did not come in time"))
        elif self._is_idle() and now - self._since >= limits.head_seconds:
            self._end_waiting()

    def _is_idle(self) -> bool:
        return self._running is None or self._running.response_complete

    def _end_waiting(self) -> None:
        """Nothing at all needs no answer; a part of a request does."""
        if self._part_bytes == 0:
            self.transport.close()
        else:
            self._refuse(TooSlow("the request did not come in time"))

    def _is_progressing(self, now: float) -> bool:
        """Whether the client has taken something of what is buffered for it, in the last while."""
        buffered_bytes = self.transport.get_write_buffer_size()
        if buffered_bytes == 0 or buffered_bytes < self._buffered_bytes:
            self._progress_at = now
        self._buffered_bytes = buffered_bytes
        return now - self._progress_at < self.limits.stall_seconds

    # --- the end ----------------------------------------------------------------------------------

    def _refuse(self, error: DispatchError) -> None:
        """Answer, if that can still be understood as the answer to this; then hear nothing more."""
        answers = self._may_answer()
        self._left = True
        self._abandon()
        if not answers:
            self.transport.close()
            return
        self._refused = True
        self._since = self._wheel.now
        self.transport.write(handshake.response(error))
        self.transport.write_eof()

    def _may_answer(self) -> bool:
        """Whether nothing else is or was the answer to what is being read."""
        if self._in_body and self._running is not None:
            return self._running is self.cycle and not self._running.response_started
        return self._is_idle()

    def _abandon(self) -> None:
        """What is being answered finds that nobody listens; what waits behind it never begins."""
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()


def _visit(connections: Collection[Visited], now: float) -> None:
    for connection in connections:
        connection.visit(now)


def wheel_of(
    app_state: dict[str, Any], loop: asyncio.AbstractEventLoop, limits: Limits
) -> Wheel[Visited]:
    """The one of this process, made for its first connection and kept in `app_state`."""
    wheel = app_state.get(_APP_STATE_KEY)
    if wheel is None:
        wheel = app_state[_APP_STATE_KEY] = Wheel(loop, limits.check_seconds(), _visit)
    assert isinstance(wheel, Wheel)
    return wheel
