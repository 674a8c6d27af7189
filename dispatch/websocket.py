"""Messages <-> frames: what a websocket of `GET /ws` says, by the rules of `dispatch.v1`.

Its one job: turn the messages of one socket into typed frames for the `Gateway`, in order, checked
by shape, role and rate, and answer by itself what needs nobody else. May import `core`, `errors`,
`protocol`, `ratelimit` and `wire`, which knows the bytes; it decides nothing about bookings.

    HELLO --hello, or an Authorization header--> WELCOME --welcome was sent--> READY

It fails by closing the one connection with a code that says why (see `protocol.CloseCode`). An
error of the gateway that nobody foresaw is answered `unavailable_now` and logged with the frame's
type, never with its content.
"""

import logging
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID, uuid4

from dispatch.core.types import Role
from dispatch.errors import DispatchError, NotAuthenticated
from dispatch.protocol import (
    SENDERS,
    AnyClientFrame,
    BadFrame,
    CloseCode,
    Error,
    ErrorCode,
    Hello,
    OfferSeen,
    Ping,
    Pong,
    ServerFrame,
    decode,
    prepare,
    timestamp,
)
from dispatch.wire import Door, Limits, ServerState, Socket

if TYPE_CHECKING:
    from dispatch.auth import Identity

__all__ = ["Connection", "Gateway", "Limits"]

log = logging.getLogger(__name__)

_ERROR_CODES: Final = frozenset(ErrorCode)


class Gateway(Door, Protocol):
    """What stands behind the sockets of this process (key `gateway` of the lifespan state)."""

    node_id: UUID

    def now(self) -> datetime:
        """The present time by the database's clock, in UTC."""

    async def identify(self, connection: "Connection", token: str) -> "Identity":
        """Who comes with this token; `connected` follows at once, or never. Raises
        NotAuthenticated or Unavailable."""

    async def connected(self, connection: "Connection", device: str | None) -> None:
        """Register the connection, then send it its `welcome`; its frames come afterwards."""

    def handled(self, connection: "Connection", frame: AnyClientFrame) -> bool:
        """Handle a frame, and answer it, if that needs nobody else; False where it is to be
        `received`. The same holds of it as of `received`."""

    async def received(self, connection: "Connection", frame: AnyClientFrame) -> None:
        """Handle one frame that this role may send; one at a time and in order.

        NotAuthenticated closes 4401. Another DispatchError is answered with its code if that is
        one of the protocol's, and everything else as `unavailable_now`.
        """

    def disconnected(self, connection: "Connection") -> None:
        """Forget it. Exactly once for each connection for which `connected` was begun.

        `connected` or `received` may still be running then; none is begun afterwards.
        """


class Phase(IntEnum):
    """How far a connection has come."""

    HELLO = 0
    WELCOME = 1
    READY = 2


class Connection(Socket):
    """One client: who it is, its frames in order, and its own share of everything.

    Its identity (`user_id`, `role`, `epoch`, `expires_at` in Unix seconds) can be read once
    `connected` is called; `hello_id` is what its `welcome` answers. The gateway sets `expires_at`
    when a token is refreshed, raises `offers_sent` by the offers it sends, and keeps what it likes
    in `state`.
    """

    __slots__ = (
        "_gateway",
        "_inbox",
        "_message_mark",
        "_offers_seen",
        "_phase",
        "_refused_mark",
        "_registered",
        "_strikes",
        "connected_at",
        "connection_id",
        "device",
        "epoch",
        "expires_at",
        "hello_id",
        "offers_sent",
        "role",
        "state",
        "user_id",
    )

    connected_at: datetime
    user_id: UUID
    role: Role
    epoch: int
    expires_at: float

    def __init__(
        self, config: object, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        """As uvicorn calls it."""
        super().__init__(config, server_state, app_state)
        self.connection_id = uuid4()
        self.device: str | None = None
        self.hello_id: str | None = None
        self.offers_sent = 0
        self.state: Any = None
        self._gateway: Gateway = app_state["gateway"]
        self._phase = Phase.HELLO
        self._registered = False  # gateway.connected was begun
        # A ServerFrame in it is an answer that is only waiting for its turn.
        self._inbox: list[AnyClientFrame | ServerFrame] = []
        self._strikes = 0
        self._offers_seen = 0
        self._message_mark = self._refused_mark = 0.0

    def send_frame(self, frame: ServerFrame) -> bool:
        """Encode one frame and `post` it."""
        return self.post(prepare(frame))

    # --- what the socket says ---------------------------------------------------------------------

    def opened(self, token: str | None) -> None:
        """With a token in the handshake `welcome` comes at once; else `hello` is awaited."""
        if token is not None:
            self._begin(Hello(token=token))

    def text_received(self, text: str) -> None:
        """Refuse one message, or handle its frame when its turn comes."""
        try:
            frame = decode(text)
        except BadFrame as error:
            self._refuse(error)
            return
        if isinstance(frame, OfferSeen) and self._was_offered(frame):
            self._handle(frame)
        elif self._is_within_rate(frame.id):
            if self._phase is not Phase.HELLO:
                self._handle(frame)
            elif isinstance(frame, Hello):
                self._begin(frame)
            else:
                self._refuse(BadFrame("the first frame is hello", frame.id))

    def binary_received(self) -> None:
        """Refuse it: a frame is a text message."""
        self._refuse(BadFrame("a frame is a text message"))

    def check(self, now: float, wall: float) -> None:
        """Close who has not said hello in time, or whose token has expired."""
        if self._phase is Phase.HELLO and now - self.since >= self.limits.hello_seconds:
            self.close(CloseCode.NO_HELLO, "no hello in time")
        elif self._registered and self.expires_at <= wall:
            self.close(CloseCode.NOT_AUTHENTICATED, "the token expired")

    def lost(self) -> None:
        """Tell the gateway, if it knows this connection."""
        self._inbox.clear()
        if self._registered:
            self._registered = False
            self._gateway.disconnected(self)

    # --- limits -----------------------------------------------------------------------------------

    def _refuse(self, error: BadFrame) -> None:
        """Answer what is no frame of ours; the third that is bad ends the connection."""
        if error.code is ErrorCode.BAD_FRAME:
            self._strikes += 1
        elif not self._is_within_rate(error.re):
            return
        self._handle(Error(re=error.re, code=error.code, message=str(error)))
        if self._strikes >= self.limits.bad_frames:
            self.close(CloseCode.BAD_FRAMES, "too many bad frames")

    def _was_offered(self, frame: OfferSeen) -> bool:
        """Whether this many offers were sent and not yet seen; beyond them the rate counts."""
        seen = self._offers_seen + len(frame.all_ids())
        if seen > self.offers_sent:
            return False
        self._offers_seen = seen
        return True

    def _is_within_rate(self, re: str | None) -> bool:
        """Count one message. Too many are refused; a burst of refused ones is a flood."""
        now, rate = self._endpoint.now(), self._endpoint.messages
        mark = rate.take(self._message_mark, now)
        if mark is not None:
            self._message_mark = mark
            return True
        refused_mark = rate.take(self._refused_mark, now)
        if refused_mark is None:
            self.close(CloseCode.FLOOD, "too many messages")
            return False
        self._refused_mark = refused_mark
        self._handle(Error(re=re, code=ErrorCode.RATE_LIMITED, message="too many messages"))
        return False

    # --- frames, in order -------------------------------------------------------------------------

    def _begin(self, hello: Hello) -> None:
        self._phase = Phase.WELCOME
        self._queue(hello)

    def _handle(self, item: AnyClientFrame | ServerFrame) -> None:
        """Answer at once if nothing is before it and nobody else is needed; else queue it."""
        if self.busy or not self._answer(item):
            self._queue(item)

    def _queue(self, item: AnyClientFrame | ServerFrame) -> None:
        self._inbox.append(item)
        if not self.busy:
            self.busy = True
            task = self._endpoint.loop.create_task(self._drain(), name="websocket-inbox")
            self._server_state.tasks.add(task)
            task.add_done_callback(self._server_state.tasks.discard)
        elif len(self._inbox) >= self.limits.inbox_frames:
            self.pause_reading()

    async def _drain(self) -> None:
        """Handle the inbox, one after the other; what is left when we close is dropped."""
        try:
            while self._inbox and (not self.closing or self.closed_by_peer):
                item = self._inbox.pop(0)
                if self._phase is Phase.WELCOME:
                    assert isinstance(item, Hello)
                    if not await self._welcome(item):
                        return
                elif not self._answer(item):
                    assert not isinstance(item, ServerFrame)
                    await self._pass_on(item)
                if len(self._inbox) <= self.limits.inbox_frames // 2:
                    self.resume_reading()
        finally:
            self.finished()

    def _answer(self, item: AnyClientFrame | ServerFrame) -> bool:
        """Answer what needs nobody else; False for a frame that is the gateway's."""
        if isinstance(item, ServerFrame):
            self.send_frame(item)
        elif self.role not in SENDERS[type(item)]:
            message = f"a {self.role} may not send this"
            self.send_frame(Error(re=item.id, code=ErrorCode.FORBIDDEN, message=message))
        elif isinstance(item, Ping):
            self.send_frame(Pong(re=item.id, server_time=timestamp(self._gateway.now())))
        elif isinstance(item, Hello):  # harmless, so it is no strike
            message = "this connection has its welcome"
            self.send_frame(Error(re=item.id, code=ErrorCode.BAD_FRAME, message=message))
        else:
            return self._gateway.handled(self, item)
        return True

    async def _welcome(self, hello: Hello) -> bool:
        """Authenticate and let the gateway welcome; False if it came to nothing."""
        try:
            if hello.token is None:
                raise NotAuthenticated("hello without a token")
            identity = await self._gateway.identify(self, hello.token)
            if self.closing:
                return False
            if not self._endpoint.user_connects.take(identity.user_id, self._endpoint.now()):
                self.close(CloseCode.FLOOD, "too many connections of this user")
                return False
            self.user_id, self.role = identity.user_id, identity.role
            self.epoch, self.expires_at = identity.epoch, identity.expires_at
            self.device, self.hello_id = hello.device, hello.id
            self.connected_at = self._gateway.now()
            self._registered = True
            await self._gateway.connected(self, hello.device)
        except NotAuthenticated:
            self.close(CloseCode.NOT_AUTHENTICATED, "not authenticated")
            return False
        except Exception as error:
            self._report(hello, error)
            self.close(CloseCode.RESTART, "unavailable now; connect again")
            return False
        self._phase = Phase.READY
        return True

    async def _pass_on(self, frame: AnyClientFrame) -> None:
        try:
            await self._gateway.received(self, frame)
        except NotAuthenticated:
            self.close(CloseCode.NOT_AUTHENTICATED, "not authenticated")
        except Exception as error:
            self._report(frame, error)

    def _report(self, frame: AnyClientFrame, error: Exception) -> None:
        """Answer an error of the gateway, and log it if nobody foresaw it."""
        if isinstance(error, DispatchError) and error.code in _ERROR_CODES:
            code, message = ErrorCode(error.code), error.message
        else:
            code, message = ErrorCode.UNAVAILABLE_NOW, "this did not work; try again"
            kind = frame.__struct_config__.tag
            log.error("a frame of type %s failed", kind, exc_info=error)
        self.send_frame(Error(re=frame.id, code=code, message=message))
