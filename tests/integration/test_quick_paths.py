"""The quick readers and the full ones say the same of any bytes, or the quick one declines.

Everything here is the product's own code over a transport that only writes down what it is given:
what is compared is what two readers make of the same bytes.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from dispatch import quick_handshake
from dispatch.handshake import Caller, Handshake, caller
from dispatch.http_protocol import HttpConnection
from dispatch.wire import Socket
from tests.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, StandIn

MAX_HEADERS = 100


class Paper(asyncio.Transport):
    """A transport to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass


# --- frames ---------------------------------------------------------------------------------------


class Listener(Socket):
    """A socket that writes down what it hears."""

    __slots__ = ("heard",)

    def opened(self, token: str | None) -> None:
        self.heard: list[str | None] = []

    def text_received(self, text: str) -> None:
        self.heard.append(text)

    def binary_received(self) -> None:
        self.heard.append(None)

    def check(self, now: float, wall: float) -> None:
        pass

    def lost(self) -> None:
        pass


class Slow(Listener):
    """The same without the quick reader."""

    __slots__ = ()

    def _read_quickly(self, data: bytes) -> int:
        return 0


def heard_by(kind: type[Listener], chunks: Sequence[bytes]) -> tuple[list[str | None], Any, bytes]:
    """What a socket hears in these reads, the code it closes with, and what it answers."""

    async def run() -> tuple[list[str | None], Any, bytes]:
        transport = Paper()
        socket = kind(None, cast(Any, ServerState()), {"gateway": StandIn()})
        socket.connection_made(transport)
        socket.open_quickly(Caller(origins=[], forwarded_for=[], authorizations=[]), b"")
        for chunk in chunks:
            socket.data_received(chunk)
        code = socket.close_code
        socket.connection_lost(None)
        return socket.heard, code, bytes(transport.written)

    return asyncio.run(run())


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame as clients say it, or not quite."""
    opcode = draw(
        st.sampled_from([TEXT] * 6 + [PING, PONG] * 2 + [BINARY, CONTINUATION, CLOSE, 0x3])
    )
    first = opcode | draw(st.sampled_from([0x80] * 8 + [0x00, 0xC0, 0x90]))
    text = draw(st.text(max_size=20)).encode() * draw(st.sampled_from([1, 1, 1, 10]))
    payload = draw(st.sampled_from([text] * 5 + [b"\xff", b"x" * 125, b"x" * 126, b"x" * 5000]))
    if opcode == CLOSE:
        payload = draw(st.sampled_from([b"", b"\x03\xe8", b"\x03", payload[:100]]))
    mask = draw(st.binary(min_size=4, max_size=4))
    masked = draw(st.sampled_from([0x80] * 15 + [0]))
    length = len(payload)
    spelled = draw(st.sampled_from([126, 126, 65536])) if length < 126 else 65536
    if length < 126 and draw(st.integers(0, 9)):
        head = bytes([first, masked | length])
    elif length < spelled:
        head = bytes([first, masked | 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([first, masked | 127]) + length.to_bytes(8, "big")
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if masked else payload
    return head + (mask if masked else b"") + body


@st.composite
def reads(draw: st.DrawFn) -> list[bytes]:
    """A few frames, perhaps some noise, cut anywhere."""
    data = b"".join(draw(st.lists(frames(), max_size=8))) + draw(st.binary(max_size=3))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


@given(reads())
def test_a_socket_hears_the_same_with_and_without_the_quick_reader(chunks: list[bytes]) -> None:
    heard, code, answers = heard_by(Listener, chunks)

    assert (heard, code) == heard_by(Slow, chunks)[:2]
    if code != 1007:  # then the grammar also answers what came behind the text in the same read
        assert answers == heard_by(Slow, chunks)[2]


def test_what_is_ordinary_needs_no_grammar() -> None:
    class Bare(Listener):
        __slots__ = ()

        def _need_grammar(self) -> Any:
            raise AssertionError("the grammar was needed")

    masked = bytes(4)
    text = b"\x81\x82" + masked + b"hi" + b"\x81\xfe\x00\x80" + masked + b"x" * 128
    controls = b"\x89\x81" + masked + b"p" + b"\x8a\x80" + masked

    heard, code, answers = heard_by(Bare, [text + controls, text])

    assert heard == ["hi", "x" * 128] * 2
    assert code is None
    assert answers == b"\x8a\x01p"


# --- handshakes -----------------------------------------------------------------------------------

NECESSARY = [
    (b"Host", b"app.example"),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"MDEyMzQ1Njc4OWFiY2RlZg=="),
    (b"Sec-WebSocket-Version", b"13"),
]
FIREFOX = [
    (b"Host", b"app.example:8000"),
    (b"User-Agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"Accept", b"*/*"),
    (b"Accept-Language", b"en-US,en;q=0.5"),
    (b"Accept-Encoding", b"gzip, deflate, br, zstd"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Origin", b"https://app.example"),
    (b"Sec-WebSocket-Protocol", b"dispatch.v1.json"),
    (b"Sec-WebSocket-Extensions", b"permessage-deflate"),
    (b"Sec-WebSocket-Key", b"MDEyMzQ1Njc4OWFiY2RlZg=="),
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Cookie", b"a=b; c=d"),
    (b"Pragma", b"no-cache"),
    (b"Upgrade", b"websocket"),
]
PROXIED = [
    *NECESSARY,
    (b"Authorization", b"Bearer a.b.c"),
    (b"X-Forwarded-For", b"203.0.113.9, 10.0.0.2"),
    (b"X-Forwarded-Proto", b"https"),
]
VALUES = {
    b"upgrade": [b"WebSocket", b"h2c", b"websocket, h2c", b"websocket/13", b"websocket,"],
    b"connection": [b"upgrade", b"close, Upgrade", b"keep-alive", b"Upgrade;", b'"upgrade"'],
    b"sec-websocket-key": [b"short", b"MDEyMzQ1Njc4OWFiY2RlZh==", b"AAAA=AAAAAAAAAAAAAAAAA=="],
    b"sec-websocket-version": [b"8", b"13, 8", b"013"],
    b"sec-websocket-protocol": [b"graphql-ws, dispatch.v1.json", b"a b", b"DISPATCH.v1.json"],
    b"sec-websocket-extensions": [b"permessage-deflate; a=", b";", b"x,,y"],
}
ADDED = [
    (b"Content-Length", b"0"),
    (b"Content-Length", b"5"),
    (b"Transfer-Encoding", b"chunked"),
    (b"Expect", b"100-continue"),
    (b"TE", b"trailers"),
    (b"Proxy-Connection", b"close"),
    (b"Keep-Alive", b"timeout=5"),
    (b"HTTP2-Settings", b"AAMAAABkAAQAoAAAAAIAAAAA"),
    (b"Origin", b"null"),
    (b"X-Forwarded-For", b"1.2.3.4"),
    (b"Authorization", b"Basic eDp5"),
    (b"Authorization", b"bearer   a.b.c"),
    (b"Host", b"other"),
    (b"Sec-WebSocket-Key", b"MDEyMzQ1Njc4OWFiY2RlZg=="),
    (b"Upgrade", b"websocket"),
    (b"Connection", b"close"),
    (b"X_Under", b"score"),
    (b"X-Empty", b""),
    (b"X-Latin", b"\xe9"),
    (b"X-Null", b"a\x00b"),
    (b"X-Tab", b"a\tb"),
    (b"Bad Name", b"x"),
]


@st.composite
def handshakes(draw: st.DrawFn) -> bytes:
    """A handshake that is ordinary, or not quite."""
    headers = list(draw(st.sampled_from([NECESSARY, FIREFOX, PROXIED])))
    for at, (name, value) in enumerate(headers):
        if draw(st.integers(0, 12)) == 0:
            value = draw(st.sampled_from([*VALUES.get(name.lower(), []), value.upper()]))
        if draw(st.integers(0, 12)) == 0:
            name = draw(st.sampled_from([name.lower(), name.upper(), name + b" ", b"X-" + name]))
        headers[at] = (name, value)
    headers += draw(st.lists(st.sampled_from(ADDED), max_size=2))
    headers = draw(st.permutations(headers)) if draw(st.booleans()) else headers
    between = draw(st.sampled_from([b": "] * 8 + [b":", b":  ", b" : ", b":\t", b""]))
    ends = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b" \r\n", b"\r\n ", b"\r"]))
    line = draw(
        st.sampled_from(
            [b"GET /ws HTTP/1.1"] * 10
            + [
                b"GET /ws HTTP/1.0",
                b"GET  /ws HTTP/1.1",
                b"GET /ws?a=b HTTP/1.1",
                b"GET / HTTP/1.1",
            ]
            + [b"POST /ws HTTP/1.1", b"get /ws HTTP/1.1", b"GET http://a/ws HTTP/1.1", b"\r\n"]
        )
    )
    data = line + b"\r\n" + b"".join(name + between + value + ends for name, value in headers)
    data += b"\r\n" + draw(st.sampled_from([b""] * 8 + [b"early", b"\r\n", b"\x81\x80\0\0\0\0"]))
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=2)) + data[at + draw(st.integers(0, 2)) :]
    return data


class Handed(asyncio.Protocol):
    """Where the full path hands a websocket over."""

    requests: ClassVar[list[bytes]]

    def __init__(self, config: Any, server_state: Any, app_state: Any) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        self.requests.append(data)


def read_fully(data: bytes) -> tuple[Caller, bytes] | None:
    """Who asks for a websocket, and the answer, as uvicorn's parser and websockets' grammar say."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    async def run() -> list[bytes]:
        class Here(Handed):
            requests: ClassVar[list[bytes]] = []

        config = uvicorn.Config(app, ws=Here, log_config=None, access_log=False)
        connection = HttpConnection(config, cast(Any, ServerState()), {})
        transport = Paper()
        connection.connection_made(transport)
        connection.data_received(data)
        connection.connection_lost(None)
        return [] if transport.written else Here.requests

    requests = asyncio.run(run())
    if not requests:
        return None
    hands = Handshake()
    request = hands.read(requests[0])
    return caller(request), hands.switch(request)


def undated(read: tuple[Caller, bytes] | None) -> tuple[Caller, bytes] | None:
    return read and (read[0], re.sub(rb"Date: [^\r]*", b"Date: then", read[1]))


@given(handshakes())
def test_a_handshake_that_is_read_quickly_is_what_the_full_reader_says(data: bytes) -> None:
    quick = quick_handshake.read(data, MAX_HEADERS)

    assert quick is None or undated(quick) == undated(read_fully(data))


@pytest.mark.parametrize("headers", [NECESSARY, FIREFOX, PROXIED])
def test_what_browsers_and_proxies_and_our_clients_say_is_read_quickly(
    headers: list[tuple[bytes, bytes]],
) -> None:
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)

    quick = quick_handshake.read(b"GET /ws HTTP/1.1\r\n" + lines + b"\r\n", MAX_HEADERS)

    assert quick is not None
    given_headers = dict(headers)
    assert quick[0] == Caller(
        origins=[given_headers[b"Origin"].decode()] if b"Origin" in given_headers else [],
        forwarded_for=["203.0.113.9, 10.0.0.2"] if headers is PROXIED else [],
        authorizations=["Bearer a.b.c"] if headers is PROXIED else [],
    )


def test_too_many_headers_or_bytes_are_left_to_the_full_reader() -> None:
    request = b"GET /ws HTTP/1.1\r\n" + b"".join(n + b": " + v + b"\r\n" for n, v in NECESSARY)

    assert quick_handshake.read(request + b"\r\n", max_headers=5) is not None
    assert quick_handshake.read(request + b"\r\n", max_headers=4) is None
    assert quick_handshake.read(request + b"X: " + b"x" * 4096 + b"\r\n\r\n", MAX_HEADERS) is None
