"""The description of the websocket protocol, as AsyncAPI 3.0.

One job: tell what `protocol` declares, with the very types that decode and encode; nothing but the
answers, which are of no type, is said here first. Pure; imports `protocol` and `handshake`.
"""

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Final

import msgspec
from msgspec import Struct

from dispatch import protocol
from dispatch.handshake import PATH
from dispatch.protocol import SENDERS, ClientFrame, CloseCode, ErrorCode, ServerFrame, Snapshot

Schema = dict[str, Any]

# What a frame gets that is not refused with `error`; no kind at all where it is never answered.
ANSWERS: Final[dict[type[ClientFrame], tuple[type[ServerFrame], ...]]] = {
    protocol.Hello: (protocol.Welcome,),
    protocol.Ping: (protocol.Pong,),
    protocol.TokenRefresh: (protocol.Ok,),
    protocol.AvailabilitySet: (protocol.Ok,),
    protocol.OfferSeen: (),
    protocol.OfferAccept: (protocol.OfferWon, protocol.OfferLost),
    protocol.OfferDecline: (protocol.Ok,),
    protocol.AssignmentCancel: (protocol.Ok,),
    protocol.RequestCancel: (protocol.Ok,),
    protocol.RequestWiden: (protocol.Ok,),
    protocol.MechanicWatch: (protocol.MechanicPresence,),
    protocol.MechanicUnwatch: (protocol.MechanicPresence,),
    protocol.SessionJoin: (protocol.SessionState,),
    protocol.SessionEnd: (protocol.SessionState,),
    protocol.ChatSend: (protocol.ChatMessage,),
    protocol.ChatHistory: (protocol.ChatMessages,),
    protocol.BoardWatch: (protocol.BoardState,),
}

_CLOSES: Final[dict[CloseCode, str]] = {
    CloseCode.NORMAL: "normal",
    CloseCode.GOING_AWAY: "going away",
    CloseCode.TOO_BIG: "a message was too big",
    CloseCode.RESTART: "restart: reconnect, after what `drain` said",
    CloseCode.BAD_FRAMES: "bad frames",
    CloseCode.NOT_AUTHENTICATED: "not authenticated, expired or revoked",
    CloseCode.NO_HELLO: "no `hello` in time",
    CloseCode.TOO_SLOW: "too slow a reader: reconnect and resume",
    CloseCode.FLOOD: "flood",
}
_ABOUT: Final = (
    "One JSON object in each text message. The first frame is `hello`, unless the token is in the "
    "handshake; then the server sends `welcome`, whose snapshot is the whole truth for this client "
    "at that moment, and afterwards what changes. A frame may carry `id`, which its answer carries "
    "back as `re`. Unknown fields are to be ignored."
)
_PREFIX: Final = "#/components/schemas/"


def document() -> Schema:
    """The whole description: one channel, every frame, error codes and close codes."""
    frames = [*SENDERS, *server_frames()]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Dispatch", "version": version("dispatch"), "description": _ABOUT},
        "defaultContentType": "application/json",
        "channels": {"socket": _channel(frames)},
        "operations": {tag(frame): _operation(frame) for frame in frames},
        "components": {
            "messages": {tag(frame): _message(frame) for frame in frames},
            "schemas": _schemas(frames),
        },
        "x-error-codes": [code.value for code in ErrorCode],
        "x-close-codes": {str(code.value): _CLOSES[code] for code in CloseCode},
    }


def server_frames() -> list[type[ServerFrame]]:
    """Every kind of frame that a server may send."""
    return ServerFrame.__subclasses__()


def tag(frame: type[Struct]) -> str:
    """The `type` of a kind of frame."""
    return str(frame.__struct_config__.tag)


def _channel(frames: Iterable[type[Struct]]) -> Schema:
    return {
        "address": PATH,
        "description": f"Subprotocol `{protocol.SUBPROTOCOL}`, no compression. A client's message "
        f"has at most {protocol.MAX_CLIENT_FRAME_BYTES} bytes, the server's at most "
        f"{protocol.MAX_SERVER_FRAME_BYTES}.",
        "messages": {
            tag(frame): {"$ref": f"#/components/messages/{tag(frame)}"} for frame in frames
        },
        "bindings": {"ws": {"method": "GET"}},
    }


def _operation(frame: type[Struct]) -> Schema:
    """The server receives a client's frame and answers it, or sends one of its own."""
    told: Schema = {"channel": {"$ref": "#/channels/socket"}, "messages": [_in_channel(frame)]}
    if not issubclass(frame, ClientFrame):
        return {"action": "send", **told}
    answers = ANSWERS[frame] and (*ANSWERS[frame], protocol.Error)
    reply = {"channel": told["channel"], "messages": [_in_channel(answer) for answer in answers]}
    told |= {"action": "receive", "x-senders": sorted(SENDERS[frame])}
    return {**told, "reply": reply} if answers else told


def _in_channel(frame: type[Struct]) -> Schema:
    return {"$ref": f"#/channels/socket/messages/{tag(frame)}"}


def _message(frame: type[Struct]) -> Schema:
    told: Schema = {"name": tag(frame), "payload": {"$ref": f"{_PREFIX}{frame.__name__}"}}
    return {**told, "description": frame.__doc__} if frame.__doc__ else told


def _schemas(frames: Iterable[type[Struct]]) -> dict[str, Schema]:
    kinds = Snapshot.__subclasses__()
    refs, found = msgspec.json.schema_components([*kinds, *frames], ref_template=_PREFIX + "{name}")
    found["Snapshot"] = {"anyOf": refs[: len(kinds)], "description": Snapshot.__doc__}
    return found
