"""What uvicorn does and nobody documents, so it is pinned and told here, step by step.

How it hands a websocket over, and which steps of a request our subclass of its HTTP protocol stands
in. A failure of this file means: read the HTTP protocol, the upgrade and the shutdown code of the
new uvicorn, and change `dispatch.wire.Socket` and `dispatch.http_protocol` with it.
"""

import asyncio
import importlib.metadata
import inspect
from typing import Any, cast

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dispatch.http_protocol import HttpConnection
from dispatch.websocket import Connection
from dispatch.wire import ServerState
from tests.support import eventually
from tests.wire import Served, StandIn, serving


class Witness(asyncio.Protocol):
    """A protocol class that does what uvicorn expects of one, and writes down what was done."""

    seen: list[tuple[str, Any]]
    holds_on = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.seen.append(("made", (arguments, keywords)))
        self.server_state = cast(ServerState, keywords["server_state"])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.seen.append(("connection_made", self._protocol_of_transport()))
        self.server_state.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.seen.append(("data_received", data))
        self.seen.append(("its protocol", self._protocol_of_transport()))

    def _protocol_of_transport(self) -> str:
        return type(self.transport.get_protocol()).__name__

    def shutdown(self) -> None:
        self.seen.append(("shutdown", None))
        if not self.holds_on:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.seen.append(("connection_lost", exc))
        self.server_state.connections.discard(self)


def witness(holds_on: bool = False) -> type[Witness]:
    return type("Witnessing", (Witness,), {"seen": [], "holds_on": holds_on})


def _only(served: Served) -> Witness:
    (connection,) = served.server_state.connections
    return cast(Witness, connection)


def test_the_version_is_the_one_whose_code_was_read() -> None:
    assert importlib.metadata.version("uvicorn").split(".")[:2] == ["0", "54"]


@pytest.mark.parametrize("ws", [Connection, "dispatch.websocket:Connection"])
def test_our_class_is_taken_as_it_is_or_by_name(ws: Any) -> None:
    config = uvicorn.Config(Starlette(), ws=ws)

    config.load()

    assert config.ws_protocol_class is Connection
    assert config.http_protocol_class is HttpToolsProtocol


def test_our_constructor_takes_what_uvicorn_passes() -> None:
    parameters = list(inspect.signature(Connection).parameters)
    assert parameters == ["config", "server_state", "app_state"]


async def test_a_websocket_request_is_handed_over_step_by_step() -> None:
    gateway, ws = StandIn(), witness()
    async with serving(gateway, ws) as served:
        client = await served.raw()
        client.write(
            b"GET /ws?a=b%20c HTTP/1.1\r\nHost: app.example\r\nUpgrade: WebSocket\r\n"
            b"Connection: keep-alive, Upgrade\r\nX-One: 1\r\nx-one: 2\r\n\r\n"
        )
        await eventually(lambda: len(ws.seen) >= 4)

        (made, made_with), *steps = ws.seen
        assert made == "made"
        assert made_with[0] == ()
        assert made_with[1].keys() == {"config", "server_state", "app_state"}
        assert made_with[1]["config"] is served.server.config
        assert made_with[1]["server_state"] is served.server_state
        assert made_with[1]["app_state"] is served.server.lifespan.state
        assert made_with[1]["app_state"]["gateway"] is gateway
        http = HttpConnection.__name__
        # The request comes rebuilt: the target as it was, the names of headers in lower case.
        request = (
            b"GET /ws?a=b%20c HTTP/1.1\r\nhost: app.example\r\nupgrade: WebSocket\r\n"
            b"connection: keep-alive, Upgrade\r\nx-one: 1\r\nx-one: 2\r\n\r\n"
        )
        assert steps == [
            ("connection_made", http),
            ("data_received", request),
            ("its protocol", http),
        ]
        protocol = _only(served)
        assert isinstance(protocol, Witness)
        assert protocol.transport.get_protocol() is protocol

        client.write(b"next")
        await eventually(lambda: len(ws.seen) >= 6)
        assert ws.seen[4:] == [("data_received", b"next"), ("its protocol", "Witnessing")]

        client.writer.close()
        await eventually(lambda: not served.server_state.connections)
        assert ws.seen[6:] == [("connection_lost", None)]


async def test_bytes_behind_the_request_in_one_packet_are_lost() -> None:
    """A client must wait for the answer (RFC 6455, 4.1); ours do. If uvicorn learns to hand them
    over, nothing needs to change."""
    ws = witness()
    async with serving(StandIn(), ws) as served:
        client = await served.raw()
        client.write(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly"
        )
        await eventually(lambda: len(ws.seen) >= 4)
        client.write(b"next")
        await eventually(lambda: ("its protocol", "Witnessing") in ws.seen)

    received = b"".join(value for step, value in ws.seen if step == "data_received")
    assert received.endswith(b"\r\n\r\nnext")


async def test_another_request_is_not_handed_over() -> None:
    ws = witness()
    async with serving(StandIn(), ws) as served:
        client = await served.raw()

        answer = await client.handshake({"Upgrade": "h2c"}, target="/nothing")

        assert answer.status == 404
        assert ws.seen == []


async def test_at_its_end_uvicorn_calls_shutdown_and_waits_for_connections_and_tasks() -> None:
    ws = witness(holds_on=True)
    async with serving(StandIn(), ws) as served:
        client = await served.raw()
        client.write(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        await eventually(lambda: ws.seen)
        protocol = _only(served)
        go_on = asyncio.Event()
        task = asyncio.create_task(cast(Any, go_on.wait()))
        task.add_done_callback(lambda _: served.server_state.tasks.clear())
        cast(Any, served.server_state.tasks).add(task)

        served.stop()
        await eventually(lambda: ("shutdown", None) in ws.seen)
        lifespan = served.server.lifespan
        assert not lifespan.shutdown_event.is_set()

        protocol.transport.close()
        await eventually(lambda: not served.server_state.connections)
        assert not lifespan.shutdown_event.is_set()

        go_on.set()
        await eventually(lifespan.shutdown_event.is_set)


# --- what dispatch.http_protocol stands in --------------------------------------------------------


STEPS = frozenset(
    {
        "_start_asgi_task",
        "connection_lost",
        "connection_made",
        "data_received",
        "handle_websocket_upgrade",
        "on_body",
        "on_header",
        "on_headers_complete",
        "on_message_begin",
        "on_message_complete",
        "on_response_complete",
        "send_400_response",
    }
)
REQUEST = b"POST /late HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n"


class Watched(HttpToolsProtocol):
    """uvicorn's HTTP protocol, writing down which of the steps that we override were taken."""

    seen: list[str]
    made: list["Watched"]
    fails_in = ""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.made.append(self)
        self.given = given

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in STEPS:
            return value

        def step(*arguments: Any) -> Any:
            self.seen.append(name)
            if name == self.fails_in:
                raise ValueError("a limit of ours")
            return value(*arguments)

        return step


class Late:
    """An endpoint that answers when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    def routes(self) -> list[Route]:
        return [Route("/late", self.answer, methods=["POST"])]

    async def answer(self, request: Request) -> Response:
        await self.go_on.wait()
        return Response(status_code=204, headers={"content-length": "0"})


def watched(fails_in: str = "") -> type[Watched]:
    return type("Watching", (Watched,), {"seen": [], "made": [], "fails_in": fails_in})


def test_every_step_that_we_override_is_one_of_uvicorns() -> None:
    ours, theirs = vars(HttpConnection).keys(), vars(HttpToolsProtocol).keys()

    assert {name for name in ours & theirs if not name.startswith("__")} == STEPS


async def test_a_request_takes_these_steps() -> None:
    http, late = watched(), Late()
    late.go_on.set()
    async with serving(StandIn(), http=http, routes=late.routes()) as served:
        client = await served.raw()
        client.write(REQUEST + b"a")
        await eventually(lambda: "on_body" in http.seen)
        (protocol,) = http.made
        begun = protocol.cycle
        assert (await client.read_answer()).status == 204
        client.write(b"b")
        await eventually(lambda: "on_message_complete" in http.seen)
        client.writer.close()
        await eventually(lambda: "connection_lost" in http.seen)

    assert protocol.given.keys() == {"config", "server_state", "app_state", "_loop"}
    assert protocol.given["app_state"] is served.server.lifespan.state
    assert [step for step in http.seen if step != "on_response_complete"] == [
        "connection_made",
        "data_received",
        "on_message_begin",
        "on_header",
        "on_header",
        "on_headers_complete",
        "_start_asgi_task",
        "on_body",
        "data_received",
        "on_body",  # also when the answer was given without it
        "on_message_complete",
        "connection_lost",
    ]
    assert http.seen.count("on_response_complete") == 1
    assert protocol.cycle is begun
    assert begun.response_started
    assert begun.response_complete


async def test_a_request_that_waits_behind_another_takes_its_turn_when_that_is_answered() -> None:
    http, late = watched(), Late()
    async with serving(StandIn(), http=http, routes=late.routes()) as served:
        client = await served.raw()
        client.write(REQUEST + b"ab" + REQUEST + b"cd")
        await eventually(lambda: http.seen.count("on_message_complete") == 2)
        (protocol,) = http.made
        assert len(protocol.pipeline) == 1
        assert protocol.flow.read_paused
        assert http.seen.count("_start_asgi_task") == 1

        late.go_on.set()
        assert [(await client.read_answer()).status for _ in range(2)] == [204, 204]
        assert http.seen.count("_start_asgi_task") == 2
        assert not protocol.flow.read_paused


@pytest.mark.parametrize("step", ["on_message_begin", "on_header"])
async def test_what_a_step_raises_ends_the_parser_and_is_answered_400(step: str) -> None:
    http = watched(fails_in=step)
    async with serving(StandIn(), http=http) as served:
        client = await served.raw()
        client.write(REQUEST)

        assert (await client.read_answer()).status == 400
        await client.read_end()

    assert http.seen.count(step) == 1
    assert "send_400_response" in http.seen
    assert "_start_asgi_task" not in http.seen


async def test_what_is_answered_to_somebody_who_is_disconnected_is_not_written() -> None:
    http, late = watched(), Late()
    async with serving(StandIn(), http=http, routes=late.routes()) as served:
        client = await served.raw()
        client.write(REQUEST)
        await eventually(lambda: "_start_asgi_task" in http.seen)
        (protocol,) = http.made

        protocol.cycle.disconnected = True
        protocol.cycle.message_event.set()
        late.go_on.set()
        await eventually(lambda: not served.server_state.tasks)

        assert not protocol.cycle.response_started
        assert protocol.transport.get_write_buffer_size() == 0
