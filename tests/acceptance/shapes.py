"""The frames that the server sends, as the protocol's description names them, and what is wrong
with one.

Written from the description alone. A field that may be missing has a `?` after its kind.
"""

import re
from collections.abc import Callable
from typing import Any

Frame = dict[str, Any]
Shape = dict[str, str]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


ERROR_CODES = frozenset[str](
    {
        "bad_frame",
        "unknown_type",
        "forbidden",
        "rate_limited",
        "not_found",
        "nothing_to_widen",
        "not_open",
        "waiver_required",
        "already_joined",
        "session_ended",
        "too_long",
        "not_configured",
        "unavailable_now",
    }
)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_int,
    "list": lambda value: isinstance(value, list),
    "number": _is_number,
    "number or null": lambda value: value is None or _is_number(value),
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
    "time": lambda value: isinstance(value, str) and bool(_TIME.fullmatch(value)),
    "uuid": lambda value: isinstance(value, str) and bool(_UUID.fullmatch(value)),
    "uuid or null": lambda value: value is None or _KINDS["uuid"](value),
    "role": lambda value: value in {"customer", "mechanic", "workshop", "admin"},
    "offer stage": lambda value: value in {"priority", "preferred", "open"},
    "attempt": lambda value: value in (1, 2, 3),
    "loss": lambda value: (
        value in {"taken", "expired", "cancelled", "busy", "unavailable", "not_found"}
    ),
    "revocation": lambda value: value in {"taken", "expired", "cancelled", "withdrawn"},
    "request status": lambda value: (
        value in {"scheduled", "pending", "accepted", "completed", "cancelled", "expired"}
    ),
    "session status": lambda value: (
        value in {"scheduled", "pending", "accepted", "active", "completed", "cancelled", "expired"}
    ),
    "payment status": lambda value: (
        value in {"fulfilled", "held", "refunding", "refunded"}  # the others are not told
    ),
    "prompt": lambda value: value in {"favorite", "rate"},
    "error code": lambda value: value in ERROR_CODES,
}

SHAPES: dict[str, Shape] = {
    "welcome": {
        "user_id": "uuid",
        "role": "role",
        "connection_id": "uuid",
        "node_id": "uuid",
        "server_time": "time",
        "heartbeat_seconds": "number",
        "snapshot": "object",
    },
    "offer": {
        "offer_id": "uuid",
        "request_id": "uuid",
        "generation": "int",
        "stage": "offer stage",
        "score": "number",
        "preferred": "bool",
        "highlighted": "bool",
        "session_type": "string",
        "plan_code": "string",
        "minutes": "number",
        "urgent": "bool",
        "is_specialist": "bool",
        "customer_name": "string",
        "vehicle": "string?",
        "concern": "string?",
        "workshop_id": "uuid?",
        "created_at": "time",
        "expires_at": "time",
        "exclusive_until": "time?",
        "server_time": "time",
        "attempt": "attempt",
    },
    "offer.won": {
        "offer_id": "uuid",
        "request_id": "uuid",
        "session_id": "uuid",
        "accept_id": "uuid",
    },
    "offer.lost": {"offer_id": "uuid", "accept_id": "uuid", "reason": "loss"},
    "offer.revoked": {"offer_id": "uuid", "reason": "revocation"},
    "request.status": {
        "request_id": "uuid",
        "session_id": "uuid",
        "version": "int",
        "status": "request status",
        "stage": "string?",
        "stage_ends_at": "time?",
        "next_stage": "string?",
        "expires_at": "time",
        "mechanics_notified": "int",
        "mechanics_online": "int",
        "mechanic": "object?",
        "message": "string",
        "server_time": "time",
    },
    "session.status": {
        "session_id": "uuid",
        "version": "int",
        "status": "session status",
        "mechanics_connected": "int",
        "started_at": "time?",
        "ends_at": "time?",
        "ended_by": "string?",
        "prompt": "prompt?",
        "server_time": "time",
    },
    "payment.status": {
        "payment_id": "uuid",
        "session_id": "uuid?",
        "status": "payment status",
        "amount_cents": "int",
        "refunded_cents": "int",
        "credited_cents": "int",
        "currency": "string",
        "message": "string",
        "created_at": "time",
        "server_time": "time",
    },
    "session.warning": {
        "session_id": "uuid",
        "ends_at": "time",
        "seconds_left": "number",
        "server_time": "time",
    },
    "chat.message": {
        "session_id": "uuid",
        "message_id": "uuid",
        "seq": "int",
        "client_message_id": "uuid",
        "sender_id": "uuid",
        "sender_role": "role",
        "body": "string",
        "sent_at": "time",
    },
    "chat.messages": {"session_id": "uuid", "messages": "list", "more": "bool"},
    "board": {"requests": "list", "server_time": "time"},
    "board.event": {"request": "object", "server_time": "time"},
    "mechanic.presence": {
        "mechanic_id": "uuid",
        "presence": "string",
        "is_online": "bool",
        "available": "bool",
        "reachable_by_push": "bool",
        "last_seen": "time?",
    },
    "pong": {"server_time": "time"},
    "ok": {},
    "error": {"code": "error code", "message": "string"},
    "drain": {"reconnect_after_ms": "number"},
}

SNAPSHOTS: dict[str, Shape] = {
    "mechanic": {"available": "bool", "offers": "list", "more_offers": "bool", "sessions": "list"},
    "customer": {"requests": "list", "sessions": "list", "favorites": "list", "payments": "list"},
    "workshop": {"mechanics": "list", "sessions": "list"},
    "admin": {"requests": "list", "nodes": "list"},
}

_SERVING_MECHANIC: Shape = {
    "id": "uuid",
    "name": "string",
    "workshop_id": "uuid or null",
    "rating": "number or null",
}

_INSIDE_SNAPSHOT = {
    "offers": "offer",
    "requests": "request.status",
    "sessions": "session.status",
    "payments": "payment.status",
}


def faults(frame: Frame) -> list[str]:
    """What contradicts the description in one frame of the server; empty when nothing does."""
    kind = frame.get("type")
    if kind not in SHAPES:
        return [f"unknown type {kind!r}"]
    found = _against(SHAPES[kind], frame, kind)
    if kind == "request.status" and frame.get("mechanic") is not None:
        found += _against(_SERVING_MECHANIC, frame["mechanic"], "mechanic")
    for message in frame.get("messages", []):
        found += faults({"type": "chat.message"} | message)
    if kind == "welcome" and not found:
        found += _snapshot_faults(frame["role"], frame["snapshot"])
    return found


def _snapshot_faults(role: str, snapshot: Frame) -> list[str]:
    found = _against(SNAPSHOTS[role], snapshot, "snapshot")
    if found or role not in ("mechanic", "customer"):
        return found
    for name, kind in _INSIDE_SNAPSHOT.items():
        for item in snapshot.get(name, []):
            found += faults({"type": kind} | item)
    return found


def _against(shape: Shape, value: Frame, where: str) -> list[str]:
    found = []
    for name, kind in shape.items():
        if name not in value:
            if not kind.endswith("?"):
                found.append(f"{where}.{name} is missing")
        elif not _KINDS[kind.removesuffix("?")](value[name]):
            found.append(f"{where}.{name} is {value[name]!r}, not {kind}")
    return found
