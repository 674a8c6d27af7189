"""Every frame of the wire protocol `dispatch.v1`: shapes, codec, error codes, close codes.

One job: turn bytes into typed client frames and typed server frames into bytes. Imports nothing
of ours but `core.types` and `decoding`; does no I/O and keeps no state. What cannot be decoded
raises `BadFrame` or `UnknownType`, which carry the client's `id` where it could be read.

The shapes stand here once: the decoder, the role table and the protocol's description are made
from these classes.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from dispatch import decoding
from dispatch.core.types import RefundAs, Role, SessionStatus
from dispatch.decoding import Undecodable

S = TypeVar("S", bound=Struct)

SUBPROTOCOL: Final = "dispatch.v1.json"
MAX_CLIENT_FRAME_BYTES: Final = 64 * 1024
MAX_SERVER_FRAME_BYTES: Final = 128 * 1024
SNAPSHOT_OFFERS: Final = 50
MAX_HISTORY: Final = 200
DEFAULT_HISTORY: Final = 50


class ErrorCode(StrEnum):
    """Every `code` that an `error` frame may carry."""

    BAD_FRAME = "bad_frame"
    UNKNOWN_TYPE = "unknown_type"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    NOT_FOUND = "not_found"
    NOTHING_TO_WIDEN = "nothing_to_widen"
    NOT_OPEN = "not_open"
    WAIVER_REQUIRED = "waiver_required"
    ALREADY_JOINED = "already_joined"
    SESSION_ENDED = "session_ended"
    TOO_LONG = "too_long"
    NOT_CONFIGURED = "not_configured"
    UNAVAILABLE_NOW = "unavailable_now"


class CloseCode(IntEnum):
    """Why a connection was closed by the server."""

    NORMAL = 1000
    GOING_AWAY = 1001
    TOO_BIG = 1009
    RESTART = 1012
    BAD_FRAMES = 4400
    NOT_AUTHENTICATED = 4401
    NO_HELLO = 4408
    TOO_SLOW = 4410
    FLOOD = 4429


# --- client -> server -------------------------------------------------------------------------

ShortText = Annotated[str, Meta(max_length=64)]
Reason = Annotated[str, Meta(max_length=500)]
Token = Annotated[str, Meta(max_length=8192)]
Seq = Annotated[int, Meta(ge=0, le=2**31 - 1)]
HistoryLimit = Annotated[int, Meta(ge=1, le=MAX_HISTORY)]


class ClientFrame(Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every frame from a client may carry: `id`, which the answer carries back as `re`."""

    id: ShortText | None = None


class Hello(ClientFrame, frozen=True, tag="hello"):
    token: Token | None = None
    device: ShortText | None = None
    client: ShortText | None = None


class Ping(ClientFrame, frozen=True, tag="ping"):
    pass


class TokenRefresh(ClientFrame, frozen=True, tag="token.refresh"):
    token: Token


class AvailabilitySet(ClientFrame, frozen=True, tag="availability.set"):
    available: bool


class OfferSeen(ClientFrame, frozen=True, tag="offer.seen"):
    offer_ids: Annotated[list[UUID], Meta(min_length=1, max_length=100)] | None = None
    offer_id: UUID | None = None

    def __post_init__(self) -> None:
        if (self.offer_ids is None) == (self.offer_id is None):
            raise ValueError("either offer_ids or offer_id is required")

    def all_ids(self) -> list[UUID]:
        """The rounds that were seen, in either spelling."""
        return self.offer_ids if self.offer_ids is not None else [self._one()]

    def _one(self) -> UUID:
        assert self.offer_id is not None
        return self.offer_id


class OfferAccept(ClientFrame, frozen=True, tag="offer.accept"):
    offer_id: UUID
    accept_id: UUID


class OfferDecline(ClientFrame, frozen=True, tag="offer.decline"):
    offer_id: UUID
    reason: Reason | None = None


class AssignmentCancel(ClientFrame, frozen=True, tag="assignment.cancel"):
    session_id: UUID
    reason: Reason | None = None


class RequestCancel(ClientFrame, frozen=True, tag="request.cancel"):
    request_id: UUID
    refund_as: RefundAs = "money"


class RequestWiden(ClientFrame, frozen=True, tag="request.widen"):
    request_id: UUID


class MechanicWatch(ClientFrame, frozen=True, tag="mechanic.watch"):
    mechanic_id: UUID


class MechanicUnwatch(ClientFrame, frozen=True, tag="mechanic.unwatch"):
    mechanic_id: UUID


class SessionJoin(ClientFrame, frozen=True, tag="session.join"):
    session_id: UUID


class SessionEnd(ClientFrame, frozen=True, tag="session.end"):
    session_id: UUID


class ChatSend(ClientFrame, frozen=True, tag="chat.send"):
    """More than 4000 characters are `too_long`, and no bad frame."""

    session_id: UUID
    client_message_id: UUID
    body: Annotated[str, Meta(min_length=1)]


class ChatHistory(ClientFrame, frozen=True, tag="chat.history"):
    session_id: UUID
    after: Seq = 0
    limit: HistoryLimit = DEFAULT_HISTORY


class BoardWatch(ClientFrame, frozen=True, tag="board.watch"):
    pass


AnyClientFrame = (
    Hello
    | Ping
    | TokenRefresh
    | AvailabilitySet
    | OfferSeen
    | OfferAccept
    | OfferDecline
    | AssignmentCancel
    | RequestCancel
    | RequestWiden
    | MechanicWatch
    | MechanicUnwatch
    | SessionJoin
    | SessionEnd
    | ChatSend
    | ChatHistory
    | BoardWatch
)

_EVERYONE: Final = frozenset(Role)
_MECHANIC: Final = frozenset({Role.MECHANIC})
_CUSTOMER: Final = frozenset({Role.CUSTOMER})
_ADMIN: Final = frozenset({Role.ADMIN})

# Who may send which frame; anything else gets `error{code:"forbidden"}`.
SENDERS: Final[dict[type[ClientFrame], frozenset[Role]]] = {
    Hello: _EVERYONE,
    Ping: _EVERYONE,
    TokenRefresh: _EVERYONE,
    AvailabilitySet: _MECHANIC,
    OfferSeen: _MECHANIC,
    OfferAccept: _MECHANIC,
    OfferDecline: _MECHANIC,
    AssignmentCancel: _MECHANIC,
    RequestCancel: _CUSTOMER,
    RequestWiden: _CUSTOMER,
    MechanicWatch: _CUSTOMER,
    MechanicUnwatch: _CUSTOMER,
    SessionJoin: _MECHANIC | _CUSTOMER,
    SessionEnd: _MECHANIC | _CUSTOMER,
    ChatSend: _MECHANIC | _CUSTOMER,
    ChatHistory: _MECHANIC | _CUSTOMER,
    BoardWatch: _ADMIN,
}


# --- server -> client -------------------------------------------------------------------------


class ServerFrame(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """What every frame from the server may carry: `re`, the `id` of the frame it answers."""

    re: str | None = None


class Offer(ServerFrame, frozen=True, tag="offer"):
    offer_id: UUID
    request_id: UUID
    generation: int
    stage: Literal["priority", "preferred", "open"]
    score: int
    preferred: bool
    highlighted: bool
    session_type: str
    plan_code: str
    minutes: int
    urgent: bool
    is_specialist: bool
    customer_name: str
    created_at: str
    expires_at: str
    server_time: str
    attempt: int
    vehicle: str | None = None
    concern: str | None = None
    workshop_id: UUID | None = None
    exclusive_until: str | None = None


LostReason = Literal["taken", "expired", "cancelled", "busy", "unavailable", "not_found"]
RevokeReason = Literal["taken", "expired", "cancelled", "withdrawn"]


class OfferWon(ServerFrame, frozen=True, tag="offer.won"):
    offer_id: UUID
    request_id: UUID
    session_id: UUID
    accept_id: UUID


class OfferLost(ServerFrame, frozen=True, tag="offer.lost"):
    offer_id: UUID
    accept_id: UUID
    reason: LostReason


class OfferRevoked(ServerFrame, frozen=True, tag="offer.revoked"):
    offer_id: UUID
    reason: RevokeReason


class MechanicCard(Struct, frozen=True, kw_only=True):
    """Who won, as the customer sees her."""

    id: UUID
    name: str
    workshop_id: UUID | None
    rating: float | None


class RequestState(ServerFrame, frozen=True, tag="request.status"):
    """The frame `request.status`."""

    request_id: UUID
    session_id: UUID
    version: int
    status: Literal["scheduled", "pending", "accepted", "completed", "cancelled", "expired"]
    expires_at: str
    mechanics_notified: int
    mechanics_online: int
    message: str
    server_time: str
    stage: Literal["priority", "preferred", "open"] | None = None
    stage_ends_at: str | None = None
    next_stage: Literal["preferred", "open"] | None = None
    mechanic: MechanicCard | None = None


class SessionState(ServerFrame, frozen=True, tag="session.status"):
    """The frame `session.status`. `ended_by` is a participant's id, or `system`."""

    session_id: UUID
    version: int
    status: SessionStatus
    mechanics_connected: int
    server_time: str
    started_at: str | None = None
    ends_at: str | None = None
    ended_by: str | None = None
    prompt: Literal["favorite", "rate"] | None = None


class SessionWarning(ServerFrame, frozen=True, tag="session.warning"):
    session_id: UUID
    ends_at: str
    seconds_left: int
    server_time: str


class ChatMessage(ServerFrame, frozen=True, tag="chat.message"):
    session_id: UUID
    message_id: UUID
    seq: int
    client_message_id: UUID
    sender_id: UUID
    sender_role: Literal["customer", "mechanic"]
    body: str
    sent_at: str


class ChatMessages(ServerFrame, frozen=True, tag="chat.messages"):
    """`more`: there are others behind the last of them."""

    session_id: UUID
    messages: list[ChatMessage]
    more: bool


PaymentStatus = Literal[
    "created", "paid", "fulfilled", "held", "refunding", "refunded", "expired", "failed"
]


class PaymentState(ServerFrame, frozen=True, tag="payment.status"):
    """The frame `payment.status`: money that is held, goes back or went back, and why.

    `amount_cents` is what came (or is expected), of which so much went back as money or credits.
    """

    payment_id: UUID
    status: PaymentStatus
    amount_cents: int
    refunded_cents: int
    credited_cents: int
    currency: str
    message: str
    created_at: str
    server_time: str
    session_id: UUID | None = None


class MechanicPresence(ServerFrame, frozen=True, tag="mechanic.presence"):
    mechanic_id: UUID
    presence: Literal["online", "offline", "unknown"]
    is_online: bool
    available: bool
    reachable_by_push: bool
    last_seen: str | None = None


class Snapshot(Struct, frozen=True, kw_only=True):
    """The whole truth for one client; there is one kind for each role."""


class MechanicSnapshot(Snapshot, frozen=True, kw_only=True):
    available: bool
    offers: list[Offer]
    more_offers: bool
    sessions: list[SessionState]


class Favorite(Struct, frozen=True, kw_only=True):
    provider_id: UUID
    provider_type: Literal["independent", "workshop"]
    name: str
    most_booked: bool


class CustomerSnapshot(Snapshot, frozen=True, kw_only=True):
    requests: list[RequestState]
    sessions: list[SessionState]
    favorites: list[Favorite]
    payments: list[PaymentState]
    more_requests: bool
    more_favorites: bool


class WorkshopMechanic(Struct, frozen=True, kw_only=True):
    mechanic_id: UUID
    name: str
    is_online: bool
    available: bool


class WorkshopSnapshot(Snapshot, frozen=True, kw_only=True):
    mechanics: list[WorkshopMechanic]
    sessions: list[SessionState]
    more_mechanics: bool
    more_sessions: bool


class NodeState(Struct, frozen=True, kw_only=True):
    node_id: UUID
    clients: int


class AdminSnapshot(Snapshot, frozen=True, kw_only=True):
    requests: list[RequestState]
    more_requests: bool
    nodes: list[NodeState]


class Welcome(ServerFrame, frozen=True, tag="welcome"):
    user_id: UUID
    role: Role
    connection_id: UUID
    node_id: UUID
    server_time: str
    heartbeat_seconds: float
    snapshot: Snapshot


class BoardRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A booking as operators see it, with all its deadlines; `opens_at` only of one for later."""

    request_id: UUID
    session_id: UUID
    version: int
    status: Literal["scheduled", "pending", "accepted", "completed", "cancelled", "expired"]
    session_status: SessionStatus
    session_type: str
    plan_code: str
    minutes: int
    routing_type: str
    urgent: bool
    is_specialist: bool
    generation: int
    attempt: int
    customer_name: str
    created_at: str
    expires_at: str
    mechanics_notified: int
    mechanics_online: int
    message: str
    stage: Literal["priority", "preferred", "open"] | None = None
    stage_ends_at: str | None = None
    next_attempt_at: str | None = None
    opens_at: str | None = None
    join_by: str | None = None
    started_at: str | None = None
    ends_at: str | None = None
    workshop_id: UUID | None = None
    preferred_workshop_id: UUID | None = None
    preferred_mechanic_id: UUID | None = None
    mechanic: MechanicCard | None = None


class BoardState(ServerFrame, frozen=True, tag="board"):
    """The frame `board`: every booking that lives, the oldest first; `more_requests` where they are
    more than a frame holds."""

    requests: list[BoardRequest]
    more_requests: bool
    server_time: str


class BoardEvent(ServerFrame, frozen=True, tag="board.event"):
    """A booking is new or has changed; one that ended is told a last time."""

    request: BoardRequest
    server_time: str


class Pong(ServerFrame, frozen=True, tag="pong"):
    server_time: str


class Ok(ServerFrame, frozen=True, tag="ok"):
    pass


class Error(ServerFrame, frozen=True, tag="error"):
    code: ErrorCode
    message: str


class Drain(ServerFrame, frozen=True, tag="drain"):
    reconnect_after_ms: int


# --- codec --------------------------------------------------------------------------------------


class BadFrame(Exception):
    """Not JSON, not an object, or not of its type's shape; `re` is the client's id if readable."""

    code: ErrorCode = ErrorCode.BAD_FRAME

    def __init__(self, message: str, re: str | None = None) -> None:
        super().__init__(message)
        self.re = re


class UnknownType(BadFrame):
    """A well-formed frame whose `type` this server does not know."""

    code = ErrorCode.UNKNOWN_TYPE


class _Head(Struct):
    """The part of a frame that is read when the whole does not fit its shape."""

    type: str
    id: ShortText | None = None


_decoder: Final[msgspec.json.Decoder[AnyClientFrame]] = msgspec.json.Decoder(AnyClientFrame)
_head_decoder: Final = msgspec.json.Decoder(_Head)
_encoder: Final = msgspec.json.Encoder(uuid_format="canonical")
_KNOWN_TYPES: Final = frozenset(str(kind.__struct_config__.tag) for kind in SENDERS)


def decode(data: bytes | str) -> AnyClientFrame:
    """One client frame from the bytes of one text message.

    Raises `UnknownType` for a well-formed object of another `type`, `BadFrame` for all else that
    is not a frame. Unknown fields are ignored.
    """
    try:
        return decoding.decode(data, _decoder)
    except Undecodable as error:
        problem = str(error)
    try:
        head = decoding.parse(data, _head_decoder)
    except Undecodable:
        raise BadFrame(problem) from None
    if head.type not in _KNOWN_TYPES:
        raise UnknownType("this server does not know this type", head.id)
    raise BadFrame(problem, head.id)


def encode(frame: Struct) -> bytes:
    """The JSON text of a server frame, or of a part of one, UTF-8."""
    return _encoder.encode(frame)


def fitting(parts: Iterable[S], room: int) -> list[S]:
    """The first of them, as many as so many bytes of a frame hold."""
    found: list[S] = []
    for part in parts:
        room -= len(encode(part)) + 1
        if room < 0:
            break
        found.append(part)
    return found


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-11-20T09:30:00.125Z`."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")[: -len("+00:00")] + "Z"


def prepare(frame: ServerFrame) -> bytes:
    """A server frame as the bytes of one unmasked websocket text message, ready to be written.

    Encoded once, the same bytes object is written to every socket that gets this frame.
    """
    return text_message(encode(frame))


def text_message(payload: bytes) -> bytes:
    """The same for a frame that is encoded already.

    RFC 6455, 5.2: FIN and opcode 1, then the length in its shortest form.
    """
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload
