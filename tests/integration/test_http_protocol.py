"""What one HTTP client may cost: time, bytes and requests, and that nobody else notices."""

import asyncio
import contextlib
import logging
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dispatch.heartbeat import Wheel
from dispatch.http_protocol import HttpConnection, Limits, Visited
from dispatch.lobby import Lobby
from tests.support import eventually
from tests.wire import RawClient, Served, StandIn, serving

PATIENT_SECONDS = 60.0
PAGE_BYTES = 8 * 1024 * 1024
GET = b"GET /quick HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
)


class App:
    """Endpoints that answer at once, with what they were sent, when they are told to, or at length.

    `bodies` are those that came whole, `broken` counts those that did not.
    """

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.waiting = 0
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.broken = 0

    def routes(self) -> list[Route]:
        endpoints: list[tuple[str, Any]] = [
            ("/quick", self.quick),
            ("/body", self.body),
            ("/deaf", self.quick),
            ("/slow", self.slow),
            ("/late", self.late),
            ("/page", self.page),
        ]
        return [Route(path, run, methods=["GET", "POST"]) for path, run in endpoints]

    async def quick(self, request: Request) -> Response:
        """Does not wait for a body."""
        return JSONResponse({"path": request.url.path, "query": request.url.query})

    async def body(self, request: Request) -> Response:
        try:
            self.bodies.append(await request.body())
        except ClientDisconnect:
            self.broken += 1
            return Response()
        self.headers.append(dict(request.headers))
        return JSONResponse({"bytes": len(self.bodies[-1])})

    async def slow(self, request: Request) -> Response:
        self.waiting += 1
        await self.go_on.wait()
        return JSONResponse({"path": request.url.path})

    async def late(self, request: Request) -> Response:
        """Reads the body, as most endpoints do, before it takes its time."""
        await request.body()
        return await self.slow(request)

    async def page(self, request: Request) -> Response:
        return Response(b"x" * PAGE_BYTES)


class Site(Served):
    """A running server with the app behind it."""

    app: App

    @property
    def connections(self) -> set[Any]:
        """Those of uvicorn, websockets among them."""
        return self.server_state.connections

    @property
    def wheel(self) -> Wheel[Visited]:
        """The clock of all its HTTP connections."""
        wheel = self.server.lifespan.state["http"]
        assert isinstance(wheel, Wheel)
        return wheel


@contextlib.asynccontextmanager
async def site(**limits: Any) -> AsyncIterator[Site]:
    """A server whose limits are far away but for these."""
    patient = dict.fromkeys(("head_seconds", "body_seconds", "stall_seconds"), PATIENT_SECONDS)

    class Limited(HttpConnection):
        pass

    Limited.limits = Limits(**patient | {"linger_seconds": 0.2} | limits)

    class Entrance(Lobby):
        __slots__ = ()
        http = Limited

    app = App()
    async with serving(StandIn(), http=Entrance, routes=app.routes()) as served:
        served.__class__ = Site
        assert isinstance(served, Site)
        served.app = app
        try:
            yield served
        finally:
            app.go_on.set()


async def turned(served: Site, seconds: float) -> None:
    """The clock of the connections has gone on by so much."""
    end = served.wheel.now + seconds
    await eventually(lambda: served.wheel.now >= end)


async def drip(client: RawClient, data: bytes) -> None:
    """One byte at a time, for as long as it is taken."""
    for byte in data:
        client.write(bytes([byte]))
        await asyncio.sleep(0.02)


async def is_refused(client: RawClient, status: int, code: str) -> bool:
    """The answer is this error, of the shape that all errors have, and then the end."""
    answer = await client.read_answer()
    assert (answer.status, answer.json()["error"]["code"]) == (status, code), answer
    assert answer.json()["ok"] is False
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["connection"] == "close"
    await client.read_end()
    return True


# --- time: the head -------------------------------------------------------------------------------


async def test_who_says_nothing_is_closed_without_a_word() -> None:
    async with site(head_seconds=0.2) as served:
        client = await served.raw()

        assert await asyncio.wait_for(client.reader.read(), 10) == b""
        assert served.connections == set()


async def test_a_head_of_one_byte_at_a_time_is_refused() -> None:
    async with site(head_seconds=0.3) as served:
        client = await served.raw()
        dripping = asyncio.create_task(drip(client, GET + b"x" * 1000))

        assert await is_refused(client, 408, "too_slow")
        dripping.cancel()
        await eventually(lambda: not served.connections)


async def test_blank_lines_before_a_head_buy_no_time() -> None:
    async with site(head_seconds=0.3) as served:
        client = await served.raw()
        client.write(GET)
        assert (await client.read_answer()).status == 200
        dripping = asyncio.create_task(drip(client, b"\r\n" * 1000))

        assert await is_refused(client, 408, "too_slow")
        dripping.cancel()


async def test_who_begins_late_has_only_the_time_that_is_left() -> None:
    async with site(head_seconds=0.5) as served:
        client = await served.raw()
        await eventually(lambda: served.connections)
        came_at = served.wheel.now
        await turned(served, 0.4)
        client.write(b"\r\n")

        assert await is_refused(client, 408, "too_slow")
        assert served.wheel.now - came_at < 0.8


async def test_a_connection_is_kept_for_the_next_request_but_not_for_ever() -> None:
    async with site(head_seconds=0.4) as served:
        client = await served.raw()
        for _ in range(4):
            client.write(GET)
            assert (await client.read_answer()).status == 200
            await turned(served, 0.2)

        await client.read_end()
        await eventually(lambda: not served.connections)


# --- time: the body -------------------------------------------------------------------------------


async def test_a_body_of_one_byte_at_a_time_is_refused_and_the_endpoint_told() -> None:
    async with site(body_seconds=0.3) as served:
        client = await served.raw()
        client.write(POST.replace(b"10", b"1000"))
        dripping = asyncio.create_task(drip(client, b"x" * 1000))

        assert await is_refused(client, 408, "too_slow")
        dripping.cancel()
        await eventually(lambda: served.app.broken == 1)
        assert served.app.bodies == []


async def test_chunks_of_one_byte_at_a_time_are_refused() -> None:
    async with site(body_seconds=0.3) as served:
        client = await served.raw()
        client.write(CHUNKED)
        dripping = asyncio.create_task(drip(client, b"1\r\nx\r\n" * 1000))

        assert await is_refused(client, 408, "too_slow")
        dripping.cancel()


async def test_a_body_that_nobody_waits_for_must_come_in_time_as_well() -> None:
    async with site(body_seconds=0.3) as served:
        client = await served.raw()
        client.write(POST.replace(b"/body", b"/deaf").replace(b"10", b"1000"))
        dripping = asyncio.create_task(drip(client, b"x" * 1000))

        assert (await client.read_answer()).status == 200
        # What still drips meets a closed socket: the end is then a reset.
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(client.reader.read(), 10) == b""
        dripping.cancel()


async def test_a_server_that_takes_its_time_closes_nobody() -> None:
    async with site(head_seconds=0.1, body_seconds=0.1, stall_seconds=0.1) as served:
        client = await served.raw()
        client.write(GET.replace(b"quick", b"slow") + b"GET /qu")
        await eventually(lambda: served.app.waiting == 1)
        await turned(served, 0.5)

        served.app.go_on.set()
        assert (await client.read_answer()).json() == {"path": "/slow"}
        client.write(b"ick HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.read_answer()).json()["path"] == "/quick"


# --- time: reading --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_alive", ["keep-alive", "close"])
async def test_who_never_reads_the_answer_is_dropped(keep_alive: str) -> None:
    async with site(stall_seconds=0.3) as served:
        client = await served.raw()
        client.stop_reading()
        client.write(
            GET.replace(b"quick", b"page").replace(
                b": a", b": a\r\nConnection: %b" % keep_alive.encode()
            )
        )
        await eventually(lambda: isinstance(next(iter(served.connections), None), HttpConnection))
        (connection,) = served.connections
        await eventually(lambda: connection.transport.get_write_buffer_size() > 0)

        await eventually(lambda: not served.connections)
        assert len(served.wheel) == 0


async def test_who_reads_slowly_gets_it_all() -> None:
    async with site(stall_seconds=0.5, head_seconds=0.2) as served:
        client = await served.raw()
        client.write(GET.replace(b"quick", b"page").replace(b": a", b": a\r\nConnection: close"))
        received = 0
        while chunk := await client.reader.read(256 * 1024):
            received += len(chunk)
            await asyncio.sleep(0.03)

        assert received > PAGE_BYTES


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /quick HTTP/1.1\r\n", b"X-Header: " + b"x" * 90 + b"\r\n"),
        (b"GET /quick HTTP/1.1\r\nX: ", b"x" * 1000),
        (b"GET /quick HTTP/1.1\r\n", b"x" * 1000),
        (b"GET /quick?", b"x" * 1000),
        (b"", b"\r\n" * 500),
        (CHUNKED, b"0" * 1000),
        (CHUNKED + b"5;", b"x" * 1000),
        (CHUNKED + b"0\r\n", b"X-Trailer: " + b"x" * 90 + b"\r\n"),
        (CHUNKED + b"0\r\nX: ", b"x" * 1000),
    ],
    ids=[
        "headers",
        "value of a header",
        "name of a header",
        "address",
        "blank lines",
        "size of a chunk",
        "extension of a chunk",
        "trailers",
        "value of a trailer",
    ],
)
async def test_what_never_ends_is_refused_and_costs_no_memory(start: bytes, more: bytes) -> None:
    async with site(linger_seconds=5) as served:
        client = await served.raw()
        client.write(start)
        tracemalloc.start()
        try:
            for _ in range(100):
                client.write(more * (64 * 1024 // len(more)))
                with contextlib.suppress(ConnectionError):
                    await client.writer.drain()
            answer = await client.read_answer()
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert answer.status in (400, 431)
        assert answer.json()["ok"] is False
        assert peak_bytes < 2 * 1024 * 1024


@pytest.mark.parametrize("one_by_one", [True, False], ids=["in pieces", "in one piece"])
async def test_a_head_may_have_this_size_and_no_more(one_by_one: bool) -> None:
    async with site(head_bytes=16 * 1024) as served:
        for size, status in ((15 * 1024, 200), (21 * 1024, 431)):
            head = GET[:-2] + b"X: " + b"x" * size + b"\r\n\r\n"
            client = await served.raw()
            pieces = [head[at : at + 2000] for at in range(0, len(head), 2000)]
            for piece in pieces if one_by_one else [head]:
                client.write(piece)
                await asyncio.sleep(0)

            assert (await client.read_answer()).status == status


async def test_a_head_may_have_so_many_headers_and_no_more() -> None:
    async with site(headers=10) as served:
        for count, status in ((9, 200), (10, 431)):
            client = await served.raw()
            client.write(GET[:-2] + b"a: b\r\n" * count + b"\r\n")

            assert (await client.read_answer()).status == status


async def test_a_trailer_is_no_header() -> None:
    async with site() as served:
        client = await served.raw()
        client.write(CHUNKED + b"1\r\nx\r\n0\r\nAuthorization: Bearer me\r\n\r\n")

        assert (await client.read_answer()).json() == {"bytes": 1}
        assert "authorization" not in served.app.headers[0]


async def test_a_body_of_many_parts_is_whole() -> None:
    async with site(head_bytes=8192) as served:
        client = await served.raw()
        client.write(CHUNKED + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")

        assert (await client.read_answer()).json() == {"bytes": 20_000}


@pytest.mark.parametrize(
    "request_line",
    [
        b"BREW /quick HTTP/1.1",
        b"get /quick HTTP/1.1",
        b"GET  /quick HTTP/1.1\r\n /quick",
        b"GET /quick HTTP/9.9",
        b"GET /\xff HTTP/1.1",
        b"GET \x00 HTTP/1.1",
        b"CONNECT example.com:443 HTTP/1.1",
        b"PRI * HTTP/2.0\r\n\r\nSM",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /quick HTTP/1.1\r\nContent-Length: -1",
        b"GET /quick HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
        b"POST /quick HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"POST /quick HTTP/1.1\r\nContent-Length: 99999999999999999999999",
        b"GET /quick HTTP/1.1\r\nNo colon",
        b"GET /quick HTTP/1.1\r\nX: \x00",
    ],
)
async def test_what_is_not_http_is_refused_as_everything_is(request_line: bytes) -> None:
    async with site() as served:
        client = await served.raw()
        client.write(request_line + b"\r\n\r\n")

        assert await is_refused(client, 400, "bad_request")
        await eventually(lambda: not served.connections)


# --- many at once ---------------------------------------------------------------------------------


async def test_requests_in_one_packet_are_answered_in_order() -> None:
    async with site(pipelined=16) as served:
        client = await served.raw()
        targets = [b"/quick?%d" % number for number in range(17)]
        client.write(b"".join(GET.replace(b"/quick", target) for target in targets))

        answers = [await client.read_answer() for _ in targets]

        assert [a.json()["query"] for a in answers] == [str(number) for number in range(17)]


async def test_more_requests_than_may_wait_end_the_connection_and_are_never_begun() -> None:
    async with site(pipelined=4) as served:
        client = await served.raw()
        client.write(GET.replace(b"quick", b"slow") * 6)

        await client.read_end()
        served.app.go_on.set()
        await eventually(lambda: not served.server_state.tasks)

        assert served.app.waiting == 1
        assert served.connections == set()


@pytest.mark.parametrize("ending", ["reset", "rubbish"])
async def test_who_leaves_in_the_middle_of_it_all_leaves_no_noise(
    ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with site() as served:
        client = await served.raw()
        client.write(GET.replace(b"quick", b"late") * 3)
        await eventually(lambda: served.app.waiting == 1)
        if ending == "reset":
            client.writer.transport.abort()
        else:
            client.write(b"\x00\r\n\r\n")
        await eventually(lambda: not served.connections)

        served.app.go_on.set()
        await eventually(lambda: not served.server_state.tasks)

    assert served.app.waiting == 1
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_one_clock_serves_all_and_forgets_who_left() -> None:
    async with site(head_seconds=0.3) as served:
        clients = [await served.raw() for _ in range(50)]
        await eventually(lambda: len(served.connections) == 50)
        assert len(served.wheel) == 50

        clients[0].writer.close()
        await eventually(lambda: len(served.wheel) == 49)
        await eventually(lambda: not served.connections)
        assert len(served.wheel) == 0


# --- handing over ---------------------------------------------------------------------------------


async def test_a_websocket_is_no_longer_watched_as_http() -> None:
    async with site(head_seconds=0.2) as served:
        waiting = await served.raw()
        waiting.write(GET)
        welcomed = await served.raw_welcomed(served.gateway.token())
        long_token = await served.raw()
        answer = await long_token.handshake({"Authorization": "Bearer " + "x" * 8000})
        await waiting.read_end()  # the time of HTTP is over

        welcomed.send('{"type":"ping"}')
        assert (await welcomed.read_json())["type"] == "pong"
        assert answer.status == 101
        assert len(served.wheel) == 0


async def test_a_kept_connection_can_become_a_websocket() -> None:
    async with site() as served:
        client = await served.raw()
        client.write(GET)
        assert (await client.read_answer()).status == 200

        assert (await client.handshake()).status == 101


async def test_a_request_with_a_body_is_no_websocket() -> None:
    async with site() as served:
        client = await served.raw()
        client.write(UPGRADE + b"Content-Length: 10\r\n\r\n12345")

        assert await is_refused(client, 400, "bad_request")


async def test_a_websocket_cannot_begin_behind_a_request_without_an_answer() -> None:
    async with site() as served:
        client = await served.raw()
        client.write(GET.replace(b"quick", b"slow") + UPGRADE + b"\r\n")

        assert await asyncio.wait_for(client.reader.read(), 10) == b""
        served.app.go_on.set()
        await eventually(lambda: not served.connections)
        assert served.gateway.authenticated == []


async def test_at_the_servers_end_who_waits_is_closed_and_who_is_answered_gets_it() -> None:
    async with site() as served:
        idle, half, busy = [await served.raw() for _ in range(3)]
        half.write(GET[:10])
        busy.write(GET.replace(b"quick", b"slow"))
        await eventually(lambda: served.app.waiting == 1 and len(served.connections) == 3)

        served.stop()
        await idle.read_end()
        await half.read_end()
        served.app.go_on.set()

        assert (await busy.read_answer()).json() == {"path": "/slow"}
        await busy.read_end()
