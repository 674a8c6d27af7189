"""Who becomes eligible sees every open request that she may have, at once, on either node (R10).

Sweeps and the comparison with Postgres are an hour apart here, so what is seen is seen because
of the event. Only where a row was changed behind the servers' back, the comparison is what tells.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID, uuid4

import pytest

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import Booked, Client, LivingNode, two_nodes
from tests.integration.rows import add_customer, add_mechanic, add_workshop
from tests.support import eventually

UNSWEPT = {"sweep_seconds": 3600.0}


@dataclass
class Open:
    """Four open requests; `hers` is what an independent mechanic without a specialty may have."""

    nodes: tuple[LivingNode, LivingNode]
    hers: set[str]
    specialists: str
    workshops: str
    workshop_id: UUID


@asynccontextmanager
async def four_requests(
    connection: Connection, make_config: MakeConfig, **overrides: float
) -> AsyncIterator[Open]:
    """Two for everybody, one for specialists, one for a workshop; half of them on each node."""
    workshop_id = await add_workshop(connection)
    wishes: list[dict[str, object]] = [
        {},
        {"urgent": True},
        {"is_specialist": True},
        {"routing_type": "workshop_only", "workshop_id": workshop_id},
    ]
    async with two_nodes(make_config(**overrides)) as nodes:
        booked: list[Booked] = [
            await nodes[number % 2].book(await add_customer(connection), **wish)
            for number, wish in enumerate(wishes)
        ]
        for living in nodes:
            for one in booked:
                await eventually(partial(_is_open, living, one))
        first, second, specialists, workshops = [str(one.request_id) for one in booked]
        yield Open(nodes, {first, second}, specialists, workshops, workshop_id)


def _is_open(living: LivingNode, booked: Booked) -> bool:
    entry = living.node.board.get(booked.request_id)
    return entry is not None and entry.booking.stage is not None


async def cards(client: Client, count: int) -> set[str]:
    """The requests whose cards came by themselves, once there are so many."""
    while len(client.of("offer")) < count:
        await client.until("offer")
    await client.settle()
    return {card["request_id"] for card in client.of("offer")}


@pytest.mark.parametrize("node", [0, 1])
async def test_who_comes_online_finds_all_of_it_in_her_welcome(
    connection: Connection, make_config: MakeConfig, node: int
) -> None:
    mechanic_id = await add_mechanic(connection)
    async with (
        four_requests(connection, make_config, **UNSWEPT) as open_,
        open_.nodes[node].client(mechanic_id, "mechanic") as mechanic,
    ):
        shown = mechanic.snapshot["offers"]
        assert {card["request_id"] for card in shown} == open_.hers
        assert shown[0]["urgent"] is True
        await mechanic.settle()
        assert mechanic.of("offer") == []


@pytest.mark.parametrize("node", [0, 1])
async def test_who_becomes_available_on_one_device_sees_it_on_all(
    connection: Connection, make_config: MakeConfig, node: int
) -> None:
    mechanic_id = await add_mechanic(connection)
    await connection.execute("UPDATE mechanics SET available = false WHERE id = $1", mechanic_id)
    async with (
        four_requests(connection, make_config, **UNSWEPT) as open_,
        open_.nodes[0].client(mechanic_id, "mechanic") as phone,
        open_.nodes[1].client(mechanic_id, "mechanic") as tablet,
    ):
        for device in (phone, tablet):
            assert (device.snapshot["available"], device.snapshot["offers"]) == (False, [])

        await (phone, tablet)[node].send("availability.set", available=True)

        for device in (phone, tablet):
            assert await cards(device, 2) == open_.hers


@pytest.mark.parametrize("how", ["customer ends it", "mechanic gives it back", "session is over"])
@pytest.mark.parametrize("node", [0, 1])
async def test_who_becomes_free_sees_what_is_open(
    connection: Connection, make_config: MakeConfig, node: int, how: str
) -> None:
    mechanic_id, customer_id = await add_mechanic(connection), await add_customer(connection)
    async with (
        four_requests(connection, make_config, **UNSWEPT) as open_,
        open_.nodes[node].client(mechanic_id, "mechanic") as mechanic,
        open_.nodes[1 - node].client(customer_id, "customer") as customer,
    ):
        booked = await open_.nodes[1 - node].book(customer_id)
        card = await mechanic.until("offer", request_id=booked.request_id)
        await mechanic.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
        await mechanic.until("offer.won")
        await customer.until("request.status", status="accepted")
        await eventually(lambda: _were_withdrawn(mechanic, 2))
        before = len(mechanic.of("offer"))

        if how == "mechanic gives it back":
            await mechanic.send("assignment.cancel", session_id=booked.session_id)
        elif how == "customer ends it":
            await customer.send("session.end", session_id=booked.session_id)
        else:
            await _signed(connection, booked)
            for client in (mechanic, customer):
                await client.send("session.join", session_id=booked.session_id)
            await customer.until("session.status", status="active")
            await mechanic.send("session.end", session_id=booked.session_id)

        await cards(mechanic, before + 2)
        again = mechanic.of("offer")[before:]
        assert {card["request_id"] for card in again} == open_.hers


async def _were_withdrawn(client: Client, count: int) -> bool:
    await client.settle()
    return [frame["reason"] for frame in client.of("offer.revoked")] == ["withdrawn"] * count


async def _signed(connection: Connection, booked: Booked) -> None:
    await connection.execute(
        "INSERT INTO waivers (intake_id, user_id, name, version, address) "
        "SELECT intake_id, customer_user_id, 'Kim', '1', '192.0.2.1' FROM sessions WHERE id = $1",
        booked.session_id,
    )


@pytest.mark.parametrize("node", [0, 1])
async def test_who_is_approved_by_an_admin_sees_it(
    connection: Connection, make_config: MakeConfig, node: int
) -> None:
    mechanic_id = await add_mechanic(connection)
    await connection.execute(
        "UPDATE mechanics SET application_status = 'pending' WHERE id = $1", mechanic_id
    )
    async with (
        four_requests(connection, make_config) as open_,
        open_.nodes[node].client(mechanic_id, "mechanic") as mechanic,
    ):
        assert mechanic.snapshot["offers"] == []
        await mechanic.settle()
        assert mechanic.of("offer") == []

        await connection.execute(
            "UPDATE mechanics SET application_status = 'approved' WHERE id = $1", mechanic_id
        )

        assert await cards(mechanic, 2) == open_.hers


@pytest.mark.parametrize("node", [0, 1])
async def test_who_becomes_a_specialist_or_joins_the_workshop_sees_what_that_opens(
    connection: Connection, make_config: MakeConfig, node: int
) -> None:
    mechanic_id = await add_mechanic(connection)
    async with (
        four_requests(connection, make_config) as open_,
        open_.nodes[node].client(mechanic_id, "mechanic") as mechanic,
    ):
        assert len(mechanic.snapshot["offers"]) == 2

        await connection.execute(
            "UPDATE mechanics SET is_specialist = true WHERE id = $1", mechanic_id
        )
        assert await cards(mechanic, 1) == {open_.specialists}

        await connection.execute(
            "UPDATE mechanics SET account_type = 'workshop', workshop_id = $2 WHERE id = $1",
            mechanic_id,
            open_.workshop_id,
        )
        assert await cards(mechanic, 2) == {open_.specialists, open_.workshops}
        assert mechanic.of("offer.revoked") == []
