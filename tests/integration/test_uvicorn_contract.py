"""How uvicorn hands a websocket over: undocumented, so it is pinned and told here, step by step.

A failure of this file means: read the upgrade and shutdown code of the new uvicorn, and change
`dispatch.wire.Socket` with it.
"""

import asyncio
import importlib.metadata
import inspect
from typing import Any, cast

import pytest
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
        http = HttpToolsProtocol.__name__
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
        await eventually(lambda: served.server_state.connections)
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
