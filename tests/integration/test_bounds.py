"""Whatever there is much of comes in parts: cards, and what a snapshot lists."""

import asyncio
import json
import socket
from asyncio import BaseTransport
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest
from websockets.exceptions import ConnectionClosedError

from dispatch.database import Connection
from dispatch.gateway import MAX_SOCKETS
from dispatch.protocol import MAX_SERVER_FRAME_BYTES, SNAPSHOT_OFFERS
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


async def test_what_does_not_fit_a_welcome_goes_to_that_device_alone(
    make_config: MakeConfig, connection: Connection
) -> None:
    mechanic_id, cards = await add_mechanic(connection), SNAPSHOT_OFFERS + 20
    for _ in range(cards):
        await book(connection)
    async with living_node(make_config(request_ttl_seconds=7200.0)) as living:
        await eventually(lambda: len(living.node.board.open_entries()) == cards)
        async with (
            living.client(mechanic_id, "mechanic") as phone,
            living.client(mechanic_id, "mechanic") as tablet,
        ):
            for device in (phone, tablet):
                await read_cards(device, cards - SNAPSHOT_OFFERS)
                await device.settle()

            assert [len(device.of("offer")) for device in (phone, tablet)] == [20, 20]


async def test_a_user_has_a_bounded_number_of_sockets(
    make_config: MakeConfig, connection: Connection
) -> None:
    customer_id = await add_customer(connection)
    async with living_node(make_config()) as living, AsyncExitStack() as stack:
        for _ in range(MAX_SOCKETS):
            await stack.enter_async_context(living.client(customer_id, "customer"))

        with pytest.raises(ConnectionClosedError) as refused:
            async with living.client(customer_id, "customer"):
                pass

    assert refused.value.rcvd is not None
    assert refused.value.rcvd.code == 4429


async def test_a_card_that_is_seen_a_thousand_times_is_on_record_once(
    make_config: MakeConfig, connection: Connection
) -> None:
    mechanic_id = await add_mechanic(connection)
    async with (
        living_node(make_config(rate_messages=0.0)) as living,
        living.client(mechanic_id, "mechanic") as mechanic,
    ):
        booked = await living.book(await add_customer(connection))
        card = await mechanic.until("offer")
        for _ in range(10):
            await mechanic.send("offer.seen", offer_ids=[card["offer_id"]] * 100)
        await mechanic.settle()
        await living.node.audit.flush()

    seen = await connection.fetch(
        "SELECT unnest(seen_mechanic_ids) FROM routing_decisions WHERE request_id = $1",
        booked.request_id,
    )
    assert [row[0] for row in seen] == [mechanic_id]


async def test_who_is_not_meant_learns_nothing_by_declining_or_joining_and_leaves_no_row(
    make_config: MakeConfig, connection: Connection
) -> None:
    workshop_id = await add_workshop(connection)
    outsider = await add_mechanic(connection)
    customer_id = await add_customer(connection)
    async with (
        living_node(make_config()) as living,
        living.client(outsider, "mechanic") as mechanic,
    ):
        booked = await living.book(
            customer_id, routing_type="workshop_only", workshop_id=workshop_id
        )
        entry = await eventually(lambda: living.node.board.get(booked.request_id))
        answers = []
        for offer_id in (entry.booking.offer_id, uuid4()):
            await mechanic.send("offer.decline", offer_id=offer_id, id="d")
            answers.append(await mechanic.until("error", re="d"))
        joins = [
            await living.call(outsider, "mechanic", "POST", f"/api/sessions/{session_id}/join")
            for session_id in (booked.session_id, uuid4())
        ]

    assert answers[0] == answers[1]
    assert joins[0] == joins[1]
    assert joins[0][0] == 404
    assert await connection.fetchval("SELECT count(*) FROM accepts") == 0
