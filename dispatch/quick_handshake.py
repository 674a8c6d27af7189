"""The ordinary websocket handshake, read in one go.

Its one job: turn the bytes of a plain `GET /ws` that came whole into what the door must judge, and
into the answer that opens the websocket. May import `handshake` (the shape of who asks) and
`protocol` (the subprotocol's name); no I/O, no state but the date's text for a second.

It never refuses. Whatever is not ordinary it *declines*: a query, a header twice, anything that
changes how HTTP is read, an odd spelling. uvicorn's parser and websockets' grammar then read the
same bytes, and theirs is the last word. So it may be narrow, but must never be more generous than
they are: a property test holds it to that. It takes 7 µs, the
grammar alone 42, and with all that is made for those two a connect costs 240 µs more.
"""

import base64
import hashlib
import re
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from dispatch.handshake import Caller
from dispatch.protocol import SUBPROTOCOL

MAX_BYTES: Final = 4096  # the HTTP parser is given no more at once either

_BEGIN: Final = b"GET /ws HTTP/1.1\r\n"
_HEADER: Final = rb"([A-Za-z0-9-]+): ?([!-~](?:[ -~]*[!-~])?)\r\n"  # no blank at the end
_WHOLE: Final = re.compile(re.escape(_BEGIN) + rb"(?:" + _HEADER + rb")+\r\n")
_HEADERS: Final = re.compile(_HEADER)
# They change where a request ends, or what else is answered.
_UNUSUAL: Final = frozenset(
    {b"content-length", b"transfer-encoding", b"expect", b"proxy-connection", b"trailer", b"te"}
)
_CONNECTION: Final = frozenset({b"upgrade", b"keep-alive, upgrade"})
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_PROTOCOL: Final = SUBPROTOCOL.encode()


def read(data: bytes, max_headers: int) -> tuple[Caller, bytes] | None:
    """Who asks, and the answer that opens her websocket, if the bytes are one ordinary handshake
    and nothing else; else None."""
    if len(data) > MAX_BYTES or _WHOLE.fullmatch(data) is None:
        return None
    pairs = _HEADERS.findall(data, len(_BEGIN))
    headers: dict[bytes, bytes] = {name.lower(): value for name, value in pairs}
    if len(headers) != len(pairs) or len(pairs) > max_headers or not _UNUSUAL.isdisjoint(headers):
        return None
    key, protocol = headers.get(b"sec-websocket-key", b""), headers.get(b"sec-websocket-protocol")
    if (
        headers.get(b"upgrade", b"").lower() != b"websocket"
        or headers.get(b"connection", b"").lower() not in _CONNECTION
        or headers.get(b"sec-websocket-version") != b"13"
        or _KEY.fullmatch(key) is None
        or protocol not in (None, _PROTOCOL)
    ):
        return None
    caller = Caller(
        origins=_texts(headers, b"origin"),
        forwarded_for=_texts(headers, b"x-forwarded-for"),
        authorizations=_texts(headers, b"authorization"),
    )
    return caller, _answer(key, protocol)


def _texts(headers: dict[bytes, bytes], name: bytes) -> list[str]:
    value = headers.get(name)
    return [] if value is None else [value.decode("ascii")]


def _answer(key: bytes, protocol: bytes | None) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    agreed = b"" if protocol is None else b"Sec-WebSocket-Protocol: %s\r\n" % protocol
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nDate: %s\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n%s\r\n"
    ) % (_date(int(time.time())), accept, agreed)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")
