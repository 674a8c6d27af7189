"""What every HTTP endpoint reads and writes: bodies and queries as typed values, JSON answers.

One job: turn a request into a struct or a `BadRequest` that says what does not fit, and a struct
into an answer. Bodies are at most 64 KiB unless the caller says otherwise. Imports `decoding`,
`errors` and `handshake`.
"""

from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from dispatch import decoding, handshake
from dispatch.decoding import Undecodable
from dispatch.errors import BadRequest, NotFound, TooLarge

MAX_BODY_BYTES: Final = 64 * 1024
JSON: Final = handshake.JSON_HEADERS["content-type"]

T = TypeVar("T")
_encode: Final = msgspec.json.Encoder().encode


# --- parsing --------------------------------------------------------------------------------------


async def raw_body(request: Request, limit: int) -> bytes:
    """The body as it came; `TooLarge` as soon as it is longer than `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"at most {limit} bytes")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise TooLarge(f"at most {limit} bytes")
    except ClientDisconnect:
        raise BadRequest("the body did not come whole") from None
    return bytes(body)


def body(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A JSON body as what the decoder wants; `BadRequest` says what does not fit."""
    try:
        return decoding.decode(raw, decoder)
    except Undecodable as error:
        raise BadRequest(str(error)) from None


def query(request: Request, kind: type[T]) -> T:
    """The query string as a `kind`; a name given twice is refused."""
    pairs = request.query_params.multi_items()
    given = dict(pairs)
    if len(given) != len(pairs):
        raise BadRequest("a parameter is given twice")
    try:
        return decoding.convert(given, kind)
    except Undecodable as error:
        raise BadRequest(str(error)) from None


class Page(Struct, frozen=True):
    """Which part of a list: out of range is refused, never silently changed."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


def path_id(request: Request) -> UUID:
    """The path's id, in the spellings that a body may have; what is no id names nothing."""
    try:
        return msgspec.convert(request.path_params["id"], UUID)
    except msgspec.ValidationError:
        raise NotFound from None


def bearer(request: Request) -> str:
    """The token of the request, empty without one."""
    return handshake.bearer_token(request.headers.getlist("authorization")) or ""


# --- answering ------------------------------------------------------------------------------------


def ok(value: Struct | None = None, status: int = 200) -> Response:
    """Success, with the fields of a struct beside `ok`; the type of a frame is not one of them."""
    told: dict[str, Any] = {} if value is None else msgspec.to_builtins(value)
    if value is not None and (tag := value.__struct_config__.tag_field) is not None:
        del told[tag]
    return as_json({"ok": True, **told}, status)


def error(status: int, code: str, message: str, **beside: object) -> Response:
    """A typed error; `beside` are fields of the answer, not of the error."""
    return as_json({"ok": False, "error": {"code": code, "message": message}, **beside}, status)


def as_json(value: dict[str, Any], status: int) -> Response:
    """Any JSON object."""
    return Response(_encode(value), status_code=status, headers=handshake.JSON_HEADERS)
