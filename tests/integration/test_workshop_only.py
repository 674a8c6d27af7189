"""A booking for one workshop is for its mechanics, ever, whatever becomes of it (R2)."""

from uuid import UUID, uuid4

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import pass_time, two_nodes
from tests.integration.rows import add_customer, add_mechanic, add_workshop
from tests.integration.test_hours import TRUE_SECONDS


async def test_no_outsider_is_asked_though_it_is_given_back_and_expires(
    connection: Connection, database_url: str, make_config: MakeConfig
) -> None:
    workshop_id, rival_id = await add_workshop(connection), await add_workshop(connection)
    own = [await add_mechanic(connection, workshop_id) for _ in range(2)]
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config(**TRUE_SECONDS)) as (here, there),
        here.client(own[0], "mechanic") as first,
        there.client(own[1], "mechanic") as second,
        here.client(await add_mechanic(connection, rival_id), "mechanic") as rival,
        there.client(await add_mechanic(connection), "mechanic") as independent,
        there.client(customer_id, "customer") as customer,
    ):
        booked = await here.book(customer_id, routing_type="workshop_only", workshop_id=workshop_id)
        offer = await first.until("offer", stage="open", score=100)
        await second.until("offer", offer_id=offer["offer_id"])
        await customer.until("request.status", mechanics_notified=2, mechanics_online=2)
        await customer.send("request.widen", request_id=booked.request_id)
        await customer.until("error", code="nothing_to_widen")

        await first.send("offer.accept", offer_id=offer["offer_id"], accept_id=uuid4())
        await first.until("offer.won")
        await first.send("assignment.cancel", session_id=booked.session_id)
        again = await second.until("offer", generation=2, stage="open", score=100)
        await customer.until("request.status", status="pending", mechanics_notified=1)

        await pass_time(database_url, 7210, here, there)
        await second.until("offer.revoked", offer_id=again["offer_id"], reason="expired")
        await customer.until("request.status", status="expired")
        for outsider in (rival, independent):
            await outsider.settle()
            heard = [frame["type"] for frame in outsider.frames]
            assert set(heard) == {"welcome", "pong"}


async def test_who_leaves_the_workshop_loses_the_card_and_who_joins_it_gets_it(
    connection: Connection, make_config: MakeConfig
) -> None:
    workshop_id = await add_workshop(connection)
    leaver, joiner = await add_mechanic(connection, workshop_id), await add_mechanic(connection)
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config()) as (here, there),
        here.client(leaver, "mechanic") as leaving,
        there.client(joiner, "mechanic") as joining,
    ):
        await there.book(customer_id, routing_type="workshop_only", workshop_id=workshop_id)
        offer_id = (await leaving.until("offer"))["offer_id"]

        await _move(connection, leaver, None)
        await leaving.until("offer.revoked", offer_id=offer_id, reason="withdrawn")
        await leaving.send("offer.accept", offer_id=offer_id, accept_id=uuid4())
        await leaving.until("offer.lost", reason="not_found")

        await _move(connection, joiner, workshop_id)
        await joining.until("offer", offer_id=offer_id, score=100)
        await joining.send("offer.accept", offer_id=offer_id, accept_id=uuid4())
        await joining.until("offer.won")
    row = await connection.fetchrow("SELECT * FROM session_requests")
    assert row is not None
    assert (row["mechanic_id"], row["workshop_id"]) == (joiner, workshop_id)


async def _move(connection: Connection, mechanic_id: UUID, workshop_id: UUID | None) -> None:
    await connection.execute(
        "UPDATE mechanics SET workshop_id = $2, account_type = $3 WHERE id = $1",
        mechanic_id,
        workshop_id,
        "independent" if workshop_id is None else "workshop",
    )
