"""Whatever there is much of comes in parts: cards, and what a snapshot lists."""

import asyncio
import json
import socket
from asyncio import BaseTransport

import pytest

from dispatch.database import Connection
from dispatch.protocol import MAX_SERVER_FRAME_BYTES
from dispatch.websocket import Connection as Wire
from tests.conftest import MakeConfig
from tests.integration.living import Client, living_node
from tests.integration.rows import add_customer, add_mechanic, add_user, add_workshop, book
from tests.support import eventually

OPEN = 300
SEND_BUFFER_BYTES = 64 * 1024  # of a real link; loopback's megabytes hide what piles up


async def read_cards(client: Client, count: int) -> None:
    async with asyncio.timeout(20):
        while len(client.of("offer")) < count:
            client.frames.append(json.loads(await client.link.recv()))


async def test_who_becomes_available_gets_hundreds_of_cards_as_fast_as_her_link_takes_them(
    make_config: MakeConfig, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Wire.connection_made

    def connection_made(self: Wire, transport: BaseTransport) -> None:
        made(self, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    monkeypatch.setattr(Wire, "connection_made", connection_made)
    mechanic_id = await add_mechanic(connection)
    await connection.execute("UPDATE mechanics SET available = false WHERE id = $1", mechanic_id)
    async with connection.transaction():
        for _ in range(OPEN):
            await book(connection, concern="c" * 1200)
    async with living_node(make_config(request_ttl_seconds=7200.0)) as living:
        await eventually(lambda: len(living.node.board.open_entries()) == OPEN)
        async with living.client(mechanic_id, "mechanic") as client:
            assert client.snapshot["offers"] == []
            await client.send("availability.set", available=True)

            await read_cards(client, OPEN)

            await client.settle()


async def test_a_workshop_with_many_mechanics_is_told_of_as_many_as_a_frame_holds(
    make_config: MakeConfig, connection: Connection
) -> None:
    workshop_id, member = await add_workshop(connection), await add_user(connection, "workshop")
    await connection.execute(
        "INSERT INTO organization_members VALUES ($1, $2)", workshop_id, member
    )
    await connection.execute(
        "WITH people AS (INSERT INTO users (email, name, role)"
        " SELECT n || '@example.com', 'Kim ' || n, 'mechanic' FROM generate_series(1, 1400) n"
        " RETURNING id) "
        "INSERT INTO mechanics (id, application_status, workshop_id, account_type)"
        " SELECT id, 'approved', $1, 'workshop' FROM people",
        workshop_id,
    )
    async with (
        living_node(make_config()) as living,
        living.client(member, "workshop") as client,
    ):
        size = len(json.dumps(client.frames[0], separators=(",", ":")))

    assert size <= MAX_SERVER_FRAME_BYTES
    assert (client.snapshot["more_mechanics"], client.snapshot["more_sessions"]) == (True, False)


async def test_a_node_counts_everybody_who_is_connected(
    make_config: MakeConfig, connection: Connection
) -> None:
    mechanic, customer = await add_mechanic(connection), await add_customer(connection)
    async with (
        living_node(make_config()) as living,
        living.client(mechanic, "mechanic"),
        living.client(customer, "customer"),
        living.client(customer, "customer"),
    ):

        async def counted() -> bool:
            return bool(await connection.fetchval("SELECT clients FROM nodes") == 3)

        await eventually(counted)
