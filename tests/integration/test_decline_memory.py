"""Who declined a booking, or gave it back, is never asked for it again (O4, R5).

Whatever she does afterwards: on another device, connected again, on the other node, on a node that
did not live then, and in the next round.
"""

from uuid import UUID, uuid4

import pytest

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import Client, LivingNode, living_node, two_nodes
from tests.integration.rows import add_customer, add_mechanic
from tests.support import eventually

UNSWEPT = {"sweep_seconds": 3600.0}  # what is known by hints alone


@pytest.mark.parametrize("favourite", [True, False])
async def test_a_decline_is_remembered_on_every_device_and_node_and_by_nodes_to_come(
    connection: Connection, make_config: MakeConfig, favourite: bool
) -> None:
    picky, other = await add_mechanic(connection), await add_mechanic(connection)
    customer_id = await add_customer(connection)
    wish = {"routing_type": "priority_broadcast", "preferred_mechanic_id": picky}
    config = make_config(**UNSWEPT)
    async with (
        two_nodes(config) as (here, there),
        here.client(picky, "mechanic") as phone,
        there.client(picky, "mechanic") as tablet,
        there.client(other, "mechanic") as bystander,
    ):
        await eventually(lambda: there.is_online(picky, customer_id))
        booked = await there.book(customer_id, **wish if favourite else {})
        offer_id = (await phone.until("offer"))["offer_id"]
        await tablet.until("offer", offer_id=offer_id)

        await phone.send("offer.decline", offer_id=offer_id, reason="too far", id="mine")

        await phone.until("ok", re="mine")
        await tablet.until("offer.revoked", offer_id=offer_id, reason="withdrawn")
        await bystander.until("offer", offer_id=offer_id, stage="open")
        async with living_node(config) as young:
            for living in (here, there, young):
                await _finds_nothing(living, picky, offer_id)
            async with young.client(other, "mechanic") as elsewhere:
                (card,) = elsewhere.snapshot["offers"]
                assert card["offer_id"] == offer_id
        await bystander.send("offer.accept", offer_id=offer_id, accept_id=uuid4())
        await bystander.until("offer.won")
        await bystander.send("assignment.cancel", session_id=booked.session_id)
        await bystander.until("ok")
        second = await eventually(lambda: _open_round(connection, generation=2))
        for living in (here, there):
            await _finds_nothing(living, picky, second)
            await _finds_nothing(living, other, second)
        for device in (phone, tablet):
            await device.settle()
            assert {card["generation"] for card in device.of("offer")} == {1}
    row = await connection.fetchrow("SELECT * FROM session_requests")
    assert row is not None
    assert row["excluded_mechanic_ids"] == [picky, other]


async def test_who_gave_it_back_does_not_see_the_next_round_anywhere(
    connection: Connection, make_config: MakeConfig
) -> None:
    quitter, other = await add_mechanic(connection), await add_mechanic(connection)
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config(**UNSWEPT)) as (here, there),
        here.client(quitter, "mechanic") as phone,
        there.client(quitter, "mechanic") as tablet,
        there.client(other, "mechanic") as bystander,
    ):
        booked = await here.book(customer_id)
        first = (await phone.until("offer"))["offer_id"]
        await phone.send("offer.accept", offer_id=first, accept_id=uuid4())
        await tablet.until("offer.won", offer_id=first)

        await tablet.send("assignment.cancel", session_id=booked.session_id, id="mine")

        await tablet.until("ok", re="mine")
        second = (await bystander.until("offer", generation=2))["offer_id"]
        for device in (phone, tablet):
            await device.settle()
            assert [card["offer_id"] for card in device.of("offer")] == [first]
        for living in (here, there):
            await _finds_nothing(living, quitter, second)
            async with living.client(quitter, "mechanic") as again:
                assert await _reason(again, first) == "cancelled"


async def _finds_nothing(living: LivingNode, mechanic_id: UUID, offer_id: str) -> None:
    """Connected anew she has no card and no session, and cannot take it after all."""
    async with living.client(mechanic_id, "mechanic") as client:
        assert (client.snapshot["offers"], client.snapshot["sessions"]) == ([], [])
        assert client.snapshot["more_offers"] is False
        assert await _reason(client, offer_id) == "not_found"


async def _reason(client: Client, offer_id: str) -> str:
    """Why she lost."""
    await client.send("offer.accept", offer_id=offer_id, accept_id=uuid4())
    return str((await client.until("offer.lost", offer_id=offer_id))["reason"])


async def _open_round(connection: Connection, generation: int) -> str | None:
    offer_id = await connection.fetchval(
        "SELECT offer_id FROM session_requests WHERE stage = 'open' AND generation = $1", generation
    )
    return None if offer_id is None else str(offer_id)
