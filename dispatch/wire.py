"""One websocket as RFC 6455 has it: bytes <-> messages, on the HTTP port.

Its one job: take the connection over from uvicorn, judge the handshake, and from then on turn
bytes into whole text messages and write prepared ones, within limits of size and time that one
client cannot exceed. What messages mean is its subclass's business (`websocket`). May import
`errors`, `protocol` (sizes and codes) and its own parts: `handshake`, `quick_frames`, `heartbeat`,
`ratelimit`. The grammar is websockets' sans-I/O `ServerProtocol`; ordinary frames are read without
it, and a socket whose peer says nothing else has none of its own. It fails by closing the one
connection with a code that says why; nothing of what a client sent is ever logged.

Once a socket is `closing`, nothing more is sent, and the wheel ends it if the peer does not.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar, Final, Protocol, cast

from msgspec import Struct
from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol
from websockets.typing import BytesLike

from dispatch import handshake, quick_frames
from dispatch.errors import DispatchError, RateLimited, Unavailable
from dispatch.heartbeat import Wheel
from dispatch.protocol import MAX_CLIENT_FRAME_BYTES, CloseCode
from dispatch.ratelimit import KeyedRate, Rate

_PING: Final = b"\x89\x00"  # RFC 6455, 5.5.2: FIN, opcode 9, no payload
_TEXT: Final = Opcode.TEXT
# RFC 6455, 7.4.1: these two, like 1002, belong to the websocket and not to our protocol.
_INVALID_UTF8: Final = 1007
_ABNORMAL: Final = 1006
# One call of the parser takes no more than this, so that a flood of tiny frames is noticed before
# it has held the loop.
_SLICE_BYTES: Final = 4096
_APP_STATE_KEY: Final = "websocket"
# Whoever is closed with one of these is not listened to any more, not even for the closing
# handshake.
_HOSTILE: Final = frozenset({_INVALID_UTF8, CloseCode.BAD_FRAMES, CloseCode.FLOOD})

MESSAGE_BURST_SECONDS: Final = 3
CONNECT_BURST_SECONDS: Final = 10
CONTROLS_PER_MESSAGE: Final = 10


class Door(Protocol):
    """Who may come in: read at every handshake, the rates once."""

    draining: bool  # no new sockets while True
    allowed_origins: frozenset[str]
    trusted_proxies: frozenset[str]  # addresses or networks
    rate_messages: float  # a second and connection, 0 = off
    rate_connects: float  # a second and address, and a second and user, 0 = off


class ServerState(Protocol):
    """The part of uvicorn's with which this side of the contract is kept."""

    connections: set[Any]
    tasks: set[asyncio.Task[None]]


class Limits(Struct, frozen=True, kw_only=True):
    """The durations (seconds) and sizes that hold for every connection."""

    hello_seconds: float = 10.0
    ping_seconds: float = 20.0
    silence_seconds: float = 30.0  # without one whole frame
    stall_seconds: float = 5.0  # without progress while something is buffered
    close_seconds: float = 5.0  # from the close to the end of the socket
    outbox_bytes: int = 256 * 1024
    inbox_frames: int = 64  # then reading pauses
    bad_frames: int = 3  # this one closes

    def check_seconds(self) -> float:
        """How often each connection must be looked at: a deadline is met a fifth late at most."""
        durations = (self.hello_seconds, self.silence_seconds, self.stall_seconds)
        return min(*durations, self.ping_seconds, self.close_seconds) / 5


class Endpoint:
    """What all sockets of this process share: the door, the wheel and the rates."""

    def __init__(self, door: Door, limits: Limits) -> None:
        self.door = door
        self.loop = asyncio.get_running_loop()
        self._to_flush: list[Socket] = []
        self.wheel: Wheel[Socket] = Wheel(self.loop, limits.check_seconds(), _visit)
        burst = max(1.0, door.rate_messages * MESSAGE_BURST_SECONDS)
        self.messages = Rate(door.rate_messages, burst)
        self.controls = Rate(
            door.rate_messages * CONTROLS_PER_MESSAGE, burst * CONTROLS_PER_MESSAGE
        )
        connect_burst = max(1.0, door.rate_connects * CONNECT_BURST_SECONDS)
        self.address_connects = KeyedRate(door.rate_connects, connect_burst)
        self.user_connects = KeyedRate(door.rate_connects, connect_burst)

    def flush_soon(self, socket: "Socket") -> None:
        """Has the socket flushed after this turn of the loop."""
        if not self._to_flush:
            self.loop.call_soon(self._flush)
        self._to_flush.append(socket)

    def _flush(self) -> None:
        sockets, self._to_flush = self._to_flush, []
        for socket in sockets:
            socket.flush()

    @classmethod
    def of(cls, app_state: dict[str, Any], limits: Limits) -> "Endpoint":
        """The one of this process, made for its first socket and kept in `app_state`."""
        endpoint = app_state.get(_APP_STATE_KEY)
        if endpoint is None:
            endpoint = app_state[_APP_STATE_KEY] = cls(app_state["gateway"], limits)
        assert isinstance(endpoint, Endpoint)
        return endpoint

    def now(self) -> float:
        """The loop's clock, in seconds: what the rates are counted by."""
        return self.loop.time()


class _Grammar(ServerProtocol):
    """websockets' side of an open websocket, and whether all it was given became frames."""

    def __init__(self) -> None:
        super().__init__(
            state=State.OPEN, max_size=MAX_CLIENT_FRAME_BYTES, logger=handshake.websockets_log
        )
        self._unread_bytes = 0  # at least: a length may be spelled longer than it need be

    def read(self, data: bytes) -> list[Frame]:
        """The frames that end in `data`; what else is to be said is in `data_to_send`."""
        self.receive_data(data)
        frames = [event for event in self.events_received() if isinstance(event, Frame)]
        self._unread_bytes += len(data) - sum(map(_frame_bytes, frames))
        return frames

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, so that the next byte begins a frame and a message."""
        return self._unread_bytes == 0 and self.current_size is None and self.state is State.OPEN


def _frame_bytes(frame: Frame) -> int:
    """The least that a client needs to say this frame (RFC 6455, 5.2)."""
    length = len(frame.data)
    return 6 + length + (0 if length < 126 else 2 if length < 65536 else 8)


def _visit(sockets: "Collection[Socket]", now: float) -> None:
    wall = time.time()
    for socket in sockets:
        socket.visit(now, wall)


class Socket(asyncio.Protocol, ABC):
    """One websocket, from the handshake to the end of its TCP connection.

    uvicorn makes it. No task and no timer belongs to it while it is idle. `close_code` says
    afterwards why it ended: our code, the peer's, or 1006. A subclass says what to do when it has
    `opened`, with each `text_received` and `binary_received`, in `check` and when it is `lost`.
    """

    __slots__ = (
        "_control_mark",
        "_endpoint",
        "_grammar",
        "_heard",
        "_heard_at",
        "_partial",
        "_pinged_at",
        "_posted",
        "_progress_at",
        "_progress_bytes",
        "_reading",
        "_reading_paused",
        "_server_state",
        "_transport",
        "_written_bytes",
        "busy",
        "close_code",
        "closing",
        "is_open",
        "since",
    )

    limits: ClassVar[Limits] = Limits()

    _transport: asyncio.Transport

    def __init__(
        self, config: object, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        """As uvicorn calls it: `config` and `server_state` are its own."""
        self.closing = False
        self.close_code: int | None = None
        self.is_open = False  # the handshake is done
        self.busy = False  # what came before the peer's close is still being handled
        self.since = 0.0  # by the wheel: when it opened or, later, turned closing
        self._endpoint = Endpoint.of(app_state, self.limits)
        self._server_state = server_state
        self._grammar: _Grammar | None = None  # made when it is needed
        self._partial: bytearray | None = None  # of a text message in several fragments
        self._control_mark = 0.0
        self._reading_paused = False
        self._reading = False  # what came is being handled
        self._posted: list[bytes] | None = None
        self._heard = False  # since the last visit
        self._heard_at = self._pinged_at = self._progress_at = 0.0
        self._written_bytes = self._progress_bytes = 0

    # --- what a subclass says ---------------------------------------------------------------------

    @abstractmethod
    def opened(self, token: str | None) -> None:
        """The handshake is done; `token` is that of its Authorization header."""

    @abstractmethod
    def text_received(self, text: str) -> None:
        """One whole message; none comes once the socket is closing."""

    @abstractmethod
    def binary_received(self) -> None:
        """A message that is not text; its content was dropped."""

    @abstractmethod
    def check(self, now: float, wall: float) -> None:
        """Look after the subclass's deadlines; `now` is the wheel's time, `wall` Unix seconds."""

    @abstractmethod
    def lost(self) -> None:
        """The TCP connection is gone. Called once, also for a socket that never opened."""

    # --- writing and closing ----------------------------------------------------------------------

    def send(self, data: bytes) -> bool:
        """Write a message made by `protocol.prepare`, behind what was posted; False once the socket
        is closing.

        Never raises and never waits: a reader that leaves more than `limits.outbox_bytes` unread is
        closed with 4410.
        """
        if self.closing:
            return False
        if self._posted is not None:
            self.flush()
        self._written_bytes += len(data)
        self._transport.write(data)
        return not self.closing

    def post(self, data: bytes) -> bool:
        """`send` it together with all that is posted in this turn of the loop; False once closing.

        A write often wakes the reader, which costs more than ten frames do.
        """
        if self.closing:
            return False
        if self._posted is None:
            self._posted = [data]
            if not self._reading:  # else it is flushed when what was read is handled
                self._endpoint.flush_soon(self)
        else:
            self._posted.append(data)
        return True

    def flush(self) -> None:
        """Write what was posted."""
        posted, self._posted = self._posted, None
        if posted is not None:
            data = posted[0] if len(posted) == 1 else b"".join(posted)
            self._written_bytes += len(data)
            self._transport.write(data)

    @property
    def unread_bytes(self) -> int:
        """How much was written that the peer has not taken yet."""
        return self._transport.get_write_buffer_size()

    def close(self, code: int, reason: str = "") -> None:
        """Send the close frame; the socket is gone after `limits.close_seconds` at the latest.

        `reason` is for people, at most 123 bytes. Nothing happens if it is closing already.
        """
        if self.closing:
            return
        self._turn_closing(code)
        grammar = self._need_grammar()
        # The grammar may know already of a close, or an error, behind what is being handled now.
        at_once = code in _HOSTILE or grammar.state is not State.OPEN
        if at_once:
            grammar.fail(code, reason)
        else:
            grammar.send_close(code, reason)
        self._transport.write(b"".join(grammar.data_to_send()))
        if at_once:
            self._end_writing()

    @property
    def closed_by_peer(self) -> bool:
        """Whether it was the peer who began the closing handshake."""
        return self._grammar is not None and self._grammar.close_rcvd_then_sent is True

    def finished(self) -> None:
        """Nothing that came before the peer's close is left to be handled."""
        self.busy = False
        if self._grammar is not None and self._grammar.close_rcvd is not None:
            self._transport.close()

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`: so much waits that the peer must wait too."""
        if not self._reading_paused and not self.closing:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, if reading was paused."""
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _turn_closing(self, code: int) -> None:
        self.closing = True
        self.flush()  # before the close frame
        self.close_code = int(code)
        self.since = self._endpoint.wheel.now
        self._partial = None
        self.resume_reading()  # else the peer's own close would not be heard

    def _end_writing(self) -> None:
        """Half-close: what the peer still sends is read and dropped until it closes as well.

        Closing at once would reset the connection, and the peer might never read the close frame.
        """
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    # --- what uvicorn and the event loop call -----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self._server_state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)
        self._endpoint.wheel.discard(self)
        self._posted = None
        if not self.closing:
            self._reading_paused = False
            self._turn_closing(_ABNORMAL)
        self.lost()

    def shutdown(self) -> None:
        """uvicorn is going down; it waits until this connection is lost."""
        if self.is_open:
            self.close(CloseCode.RESTART, "the server restarts")
        else:
            self._transport.close()

    def pause_writing(self) -> None:
        """More than `limits.outbox_bytes` are buffered.

        The close frame comes behind them, for a reader who is only slow; `visit` aborts the others.
        """
        self.close(CloseCode.TOO_SLOW, "too slow a reader")

    def data_received(self, data: bytes) -> None:
        if not self.is_open:
            self._open(data)
            return
        self._reading = True
        try:
            read = self._read_quickly(data)
            for start in range(read, len(data), _SLICE_BYTES):
                self._feed(data[start : start + _SLICE_BYTES])
        finally:
            self._reading = False
            self.flush()

    # --- the handshake ----------------------------------------------------------------------------

    def _open(self, data: bytes) -> None:
        """Answer the HTTP request, which uvicorn has read to its end."""
        if self.closing:
            return
        hands = handshake.Handshake()
        try:
            request = hands.read(data)
            token = self._let_in(handshake.caller(request))
            answer = hands.switch(request)
        except DispatchError as error:
            self._turn_away(error)
        else:
            self._switch(token, answer)

    def open_quickly(self, caller: handshake.Caller, answer: bytes) -> None:
        """The same for a request that was read already, of which `answer` makes a websocket."""
        try:
            token = self._let_in(caller)
        except DispatchError as error:
            self._turn_away(error)
        else:
            self._switch(token, answer)

    def _let_in(self, caller: handshake.Caller) -> str | None:
        """The caller's bearer token; raises what she is turned away with."""
        endpoint, door = self._endpoint, self._endpoint.door
        handshake.check_origins(caller.origins, door.allowed_origins)
        if door.draining:
            raise Unavailable("this server is going down; connect again for another")
        address = handshake.limited_address(
            (self._transport.get_extra_info("peername") or (None,))[0],
            caller.forwarded_for,
            door.trusted_proxies,
        )
        if address is not None and not endpoint.address_connects.take(address, endpoint.now()):
            raise RateLimited("too many connections from this address")
        return handshake.bearer_token(caller.authorizations)

    def _turn_away(self, error: DispatchError) -> None:
        self._turn_closing(_ABNORMAL)
        self._transport.write(handshake.response(error))
        self._transport.close()

    def _switch(self, token: str | None, answer: bytes) -> None:
        self._transport.write(answer)
        self._transport.set_write_buffer_limits(high=self.limits.outbox_bytes)
        wheel = self._endpoint.wheel
        self.since = self._heard_at = self._pinged_at = self._progress_at = wheel.now
        wheel.add(self)
        self.is_open = True
        self.opened(token)

    # --- bytes to messages ------------------------------------------------------------------------

    def _read_quickly(self, data: bytes) -> int:
        """Handle the ordinary frames at the beginning; gives where the grammar must take over."""
        at, size = 0, len(data)
        while at < size and not self.closing and (self._grammar is None or self._grammar.is_idle):
            frame = quick_frames.read(data, at)
            if frame is None:
                break
            kind, payload, at = frame
            self._heard = True
            if kind == quick_frames.TEXT:
                self._message(payload)
            elif self._take_control() and kind == quick_frames.PING:
                self.send(quick_frames.pong(payload))
        return at

    def _need_grammar(self) -> _Grammar:
        if self._grammar is None:
            self._grammar = _Grammar()
        return self._grammar

    def _feed(self, data: bytes) -> None:
        grammar = self._need_grammar()
        for event in grammar.read(data):
            self._take(event)
        writes = grammar.data_to_send()
        if not writes:
            return
        if writes[-1] != SEND_EOF:
            self.send(b"".join(writes))  # pongs
            return
        failed = grammar.parser_exc is not None
        if failed and not self.closing:
            assert grammar.close_sent is not None
            self._turn_closing(grammar.close_sent.code)
        self._transport.write(b"".join(writes))
        if failed:
            self._end_writing()
        elif not self.busy:
            self._transport.close()

    def _take(self, event: Frame) -> None:
        """One frame of the websocket; the grammar has checked that it may come now."""
        self._heard = True
        if self.closing:
            return
        opcode = event.opcode
        if opcode is _TEXT and event.fin:
            self._message(event.data)
        elif opcode is Opcode.CLOSE:
            close = self._need_grammar().close_rcvd
            assert close is not None
            self.flush()  # which ends it, if that is too much for a reader who reads no more
            if not self.closing:
                self._turn_closing(close.code)
        elif opcode is Opcode.BINARY:
            self.binary_received()  # its further fragments belong to nothing
        elif self._take_control():
            self._take_fragment(event)

    def _take_control(self) -> bool:
        """Count a ping, pong or fragment; too many are a flood."""
        mark = self._endpoint.controls.take(self._control_mark, self._endpoint.now())
        if mark is None:
            self.close(CloseCode.FLOOD, "too many control frames or fragments")
            return False
        self._control_mark = mark
        return True

    def _take_fragment(self, event: Frame) -> None:
        if event.opcode is _TEXT:
            self._partial = bytearray(event.data)
        elif event.opcode is Opcode.CONT and self._partial is not None:
            self._partial += event.data
            if event.fin:
                message, self._partial = self._partial, None
                self._message(message)

    def _message(self, data: BytesLike) -> None:
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError:
            self.close(_INVALID_UTF8, "text that is not UTF-8")
        else:
            self.text_received(text)

    # --- time -------------------------------------------------------------------------------------

    def visit(self, now: float, wall: float) -> None:
        """Look after the deadlines; `now` is the wheel's time, `wall` Unix seconds."""
        limits = self.limits
        if not self.closing:
            self.check(now, wall)
        if self.closing:
            if now - self.since >= limits.close_seconds:
                self._transport.abort()
            return
        if self._heard or self._reading_paused:
            self._heard = False
            self._heard_at = now
        elif now - self._heard_at >= limits.silence_seconds:
            self._drop("silent")
            return
        if not self._is_progressing(now):
            self._drop("too slow a reader")
        elif now - self._pinged_at >= limits.ping_seconds:
            self._pinged_at = now
            self.send(_PING)

    def _is_progressing(self, now: float) -> bool:
        """Whether the peer has taken something of what is buffered for it, in the last while."""
        buffered_bytes = self._transport.get_write_buffer_size()
        taken_bytes = self._written_bytes - buffered_bytes
        if buffered_bytes == 0 or taken_bytes != self._progress_bytes:
            self._progress_bytes = taken_bytes
            self._progress_at = now
        return now - self._progress_at < self.limits.stall_seconds

    def _drop(self, reason: str) -> None:
        """End it now, with a close frame if there is room for one."""
        if self._transport.get_write_buffer_size() > 0:
            self.close(CloseCode.TOO_SLOW, reason)
            self._transport.abort()
        else:
            self.close(CloseCode.GOING_AWAY, reason)
            self._transport.close()
