"""The load test's clients on real sockets: each test plays the server, frame by frame."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve

from loadtest.client import Client, Customer, Mechanic, Refused
from loadtest.history import Frame, History, Lost, Sent

LIMIT_SECONDS = 10.0


class Scripted:
    """The server's side of each connection, in the order in which they came."""

    def __init__(self) -> None:
        self._connections: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self.url = ""

    async def handle(self, socket: ServerConnection) -> None:
        self._connections.put_nowait(socket)
        await socket.wait_closed()

    async def next_socket(self) -> ServerConnection:
        return await asyncio.wait_for(self._connections.get(), LIMIT_SECONDS)


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    running: Server = await serve(scripted.handle, "127.0.0.1", 0, compression=None)
    port = next(iter(running.sockets)).getsockname()[1]
    scripted.url = f"ws://127.0.0.1:{port}/ws"
    yield scripted
    running.close()
    await running.wait_closed()


@asynccontextmanager
async def running(client: Client) -> AsyncIterator[None]:
    """The client's life inside the block; a fault of it fails the test."""
    task = asyncio.create_task(client.run())
    yield
    await client.close()
    await asyncio.wait_for(task, LIMIT_SECONDS)
    assert client.faults == []


async def says(socket: ServerConnection, kind: str, **fields: Any) -> None:
    await socket.send(msgspec.json.encode({"type": kind} | fields), text=True)


async def hears(socket: ServerConnection) -> Frame:
    raw = await asyncio.wait_for(socket.recv(), LIMIT_SECONDS)
    return msgspec.json.decode(raw, type=dict[str, Any])


async def welcomes(socket: ServerConnection, **snapshot: Any) -> None:
    whole = {"available": True, "offers": [], "sessions": [], "requests": []} | snapshot
    await says(socket, "welcome", snapshot=whole)


def offer(offer_id: str = "round-1") -> Frame:
    return {"offer_id": offer_id, "request_id": "r1", "generation": 1, "stage": "open"}


def mechanic_of(server: Scripted, **options: Any) -> Mechanic:
    return Mechanic(server.url, "bruno", "secret-token", History(), random.Random(1), **options)


async def test_the_token_goes_in_the_header_or_in_the_first_frame(server: Scripted) -> None:
    by_header, by_hello = mechanic_of(server), mechanic_of(server, says_hello=True)

    async with running(by_header):
        socket = await server.next_socket()
        assert socket.request is not None
        assert socket.request.headers["Authorization"] == "Bearer secret-token"
        assert socket.request.headers["Sec-WebSocket-Protocol"] == "dispatch.v1.json"
    async with running(by_hello):
        socket = await server.next_socket()
        hello = await hears(socket)

    assert (hello["type"], hello["token"]) == ("hello", "secret-token")
    assert "secret-token" not in str(by_hello.history.events)


async def test_every_card_is_acknowledged_in_frames_and_in_the_snapshot(server: Scripted) -> None:
    mechanic = mechanic_of(server)

    async with running(mechanic):
        socket = await server.next_socket()
        await welcomes(socket, offers=[offer("round-1")])
        first = await hears(socket)
        await says(socket, "offer", **offer("round-2"))
        second = await hears(socket)
        assert set(mechanic.offers) == {"round-1", "round-2"}
        await says(socket, "offer.revoked", offer_id="round-1", reason="taken")
        assert await mechanic.until(lambda: set(mechanic.offers) == {"round-2"}, LIMIT_SECONDS)

    assert [frame["type"] for frame in (first, second)] == ["offer.seen", "offer.seen"]
    assert [frame["offer_ids"] for frame in (first, second)] == [["round-1"], ["round-2"]]


async def test_an_accept_is_repeated_with_the_same_id_when_the_connection_was_lost(
    server: Scripted,
) -> None:
    mechanic = mechanic_of(server)

    async with running(mechanic):
        socket = await server.next_socket()
        await welcomes(socket)
        accepting = asyncio.create_task(mechanic.accept("round-1"))
        first = await hears(socket)
        socket.transport.abort()
        socket = await server.next_socket()
        await welcomes(socket)
        second = await hears(socket)
        verdict = {"offer_id": "round-1", "session_id": "s1", "accept_id": second["accept_id"]}
        await says(socket, "offer.won", re=second["id"], **verdict)
        won = await asyncio.wait_for(accepting, LIMIT_SECONDS)

    assert won is not None
    assert won["type"] == "offer.won"
    assert first["accept_id"] == second["accept_id"]
    assert first["id"] != second["id"]
    assert mechanic.session_id == "s1"


async def test_an_accept_is_repeated_with_the_same_id_after_an_error(server: Scripted) -> None:
    mechanic = mechanic_of(server)

    async with running(mechanic):
        socket = await server.next_socket()
        await welcomes(socket)
        accepting = asyncio.create_task(mechanic.accept("round-1"))
        first = await hears(socket)
        await says(socket, "error", re=first["id"], code="unavailable_now", message="again")
        second = await hears(socket)
        await says(
            socket,
            "offer.lost",
            re=second["id"],
            offer_id="round-1",
            accept_id=second["accept_id"],
            reason="taken",
        )
        lost = await asyncio.wait_for(accepting, LIMIT_SECONDS)

    assert lost is not None
    assert lost["reason"] == "taken"
    assert first["accept_id"] == second["accept_id"]


async def test_a_new_snapshot_is_the_whole_truth(server: Scripted) -> None:
    mechanic = mechanic_of(server)

    async with running(mechanic):
        socket = await server.next_socket()
        await welcomes(socket, offers=[offer("round-1"), offer("round-2")])
        assert await mechanic.until(lambda: len(mechanic.offers) == 2, LIMIT_SECONDS)
        socket.transport.abort()
        socket = await server.next_socket()
        await welcomes(socket, offers=[offer("round-2")])
        assert await mechanic.until(lambda: mechanic.online, LIMIT_SECONDS)
        shown = set(mechanic.offers)

    assert shown == {"round-2"}


async def test_a_drain_is_obeyed_without_the_servers_close(server: Scripted) -> None:
    mechanic = mechanic_of(server)

    async with running(mechanic):
        socket = await server.next_socket()
        await welcomes(socket)
        await says(socket, "drain", reconnect_after_ms=20)
        await welcomes(await server.next_socket())
        assert await mechanic.until(lambda: mechanic.online, LIMIT_SECONDS)

    lost = [event for event in mechanic.history.events if isinstance(event, Lost)]
    assert [event.by_us for event in lost] == [True, True]


async def test_a_refused_token_ends_the_client(server: Scripted) -> None:
    mechanic = mechanic_of(server)
    task = asyncio.create_task(mechanic.run())

    socket = await server.next_socket()
    await socket.close(4401, "not authenticated")

    with pytest.raises(Refused):
        await asyncio.wait_for(task, LIMIT_SECONDS)


async def test_a_customer_keeps_the_highest_version(server: Scripted) -> None:
    customer = Customer(server.url, "ana", "token", History(), random.Random(1))

    async with running(customer):
        socket = await server.next_socket()
        await welcomes(socket, requests=[{"request_id": "r1", "version": 3, "status": "pending"}])
        await says(socket, "request.status", request_id="r1", version=4, status="accepted")
        await says(socket, "request.status", request_id="r1", version=3, status="pending")
        await says(socket, "pong")
        received = customer.history.events
        assert await customer.until(
            lambda: getattr(received[-1], "frame", {}).get("type") == "pong", LIMIT_SECONDS
        )

    assert customer.requests["r1"]["status"] == "accepted"


async def test_what_is_sent_is_in_the_history_with_its_connection(server: Scripted) -> None:
    mechanic = mechanic_of(server)

    async with running(mechanic):
        socket = await server.next_socket()
        await welcomes(socket)
        assert await mechanic.until(lambda: mechanic.online, LIMIT_SECONDS)
        frame_id = await mechanic.send("ping")
        await hears(socket)

    sent = [event for event in mechanic.history.events if isinstance(event, Sent)]
    assert [(event.frame["type"], event.frame["id"]) for event in sent] == [("ping", frame_id)]
    assert sent[0].connection == 1
