"""How much one mechanic may have at once, and that being online decides nothing (R5)."""

from uuid import UUID, uuid4

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import Booked, Client, two_nodes
from tests.integration.rows import add_customer, add_mechanic, add_workshop
from tests.support import eventually

UNSWEPT = {"sweep_seconds": 3600.0}


async def win(client: Client, booked: Booked) -> None:
    card = next(c for c in client.of("offer") if c["request_id"] == str(booked.request_id))
    await client.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
    await client.until("offer.won", request_id=booked.request_id)


async def test_with_room_for_two_she_keeps_her_cards_until_the_second_is_hers(
    connection: Connection, make_config: MakeConfig
) -> None:
    mechanic_id = await add_mechanic(connection)
    async with (
        two_nodes(make_config(mechanic_capacity=2, **UNSWEPT)) as (here, there),
        here.client(mechanic_id, "mechanic") as mechanic,
    ):
        first, second, third = [await there.book(await add_customer(connection)) for _ in range(3)]
        for _ in range(3):  # opened at once, and told in any order
            await mechanic.until("offer")

        await win(mechanic, first)
        await mechanic.settle()
        assert mechanic.of("offer.revoked") == []

        await win(mechanic, second)
        await mechanic.settle()
        (withdrawn,) = mechanic.of("offer.revoked")
        assert withdrawn["reason"] == "withdrawn"
        assert withdrawn["offer_id"] == _offer_of(mechanic, third)
        await mechanic.send("offer.accept", offer_id=withdrawn["offer_id"], accept_id=uuid4())
        await mechanic.until("offer.lost", reason="busy")

        await mechanic.send("assignment.cancel", session_id=first.session_id)
        again = await mechanic.until("offer", request_id=third.request_id)
        assert again["offer_id"] == withdrawn["offer_id"]
        await win(mechanic, third)


def _offer_of(client: Client, booked: Booked) -> str:
    wanted = str(booked.request_id)
    return str(next(c["offer_id"] for c in client.of("offer") if c["request_id"] == wanted))


async def test_who_has_no_connection_may_accept_all_the_same(
    connection: Connection, make_config: MakeConfig
) -> None:
    absent, outsider = await add_mechanic(connection), await add_mechanic(connection)
    workshop_id = await add_workshop(connection)
    await _hire(connection, absent, workshop_id)
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config(**UNSWEPT)) as (here, there),
        here.client(customer_id, "customer") as customer,
    ):
        booked = await here.book(customer_id, routing_type="workshop_only", workshop_id=workshop_id)
        await customer.until("request.status", stage="open", mechanics_online=0)
        assert not await there.is_online(absent, customer_id)
        path = f"/api/sessions/{booked.session_id}/join"

        refused, told = await there.call(outsider, "mechanic", "POST", path)
        status, joined = await there.call(absent, "mechanic", "POST", path)

        assert (refused, told["error"]["code"]) == (404, "not_found")
        assert (status, joined["status"], joined["mechanics_connected"]) == (200, "accepted", 1)
        accepted = await customer.until("request.status", status="accepted")
        assert accepted["mechanic"]["id"] == str(absent)
        assert not await there.is_online(absent, customer_id)
    row = await eventually(lambda: connection.fetchrow("SELECT * FROM session_requests"))
    assert (row["mechanic_id"], row["workshop_id"]) == (absent, workshop_id)


async def _hire(connection: Connection, mechanic_id: UUID, workshop_id: UUID) -> None:
    await connection.execute(
        "UPDATE mechanics SET account_type = 'workshop', workshop_id = $2 WHERE id = $1",
        mechanic_id,
        workshop_id,
    )
