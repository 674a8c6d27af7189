"""Widening the pool never takes a card from who is looking at it (R11).

She has a device on each node. However the exclusive stage ends, neither gets a revoke; the card is
replaced by the same offer in its wider stage, is there when she connects again, and the very first
one still wins.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import Booked, Client, LivingNode, pass_time, two_nodes
from tests.integration.rows import add_customer, add_mechanic, add_workshop
from tests.integration.test_hours import TRUE_SECONDS
from tests.support import eventually


@dataclass
class Exclusive:
    """A booking in its exclusive stage, and who acts on it."""

    connection: Connection
    nodes: tuple[LivingNode, LivingNode]
    database_url: str
    booked: Booked
    customer: Client
    stage: str
    offer_id: str
    devices: tuple[Client, Client]
    holder: UUID
    others: tuple[Client, Client]


@pytest.fixture(params=["priority", "preferred"])
async def exclusive(
    request: pytest.FixtureRequest,
    connection: Connection,
    database_url: str,
    make_config: MakeConfig,
) -> AsyncIterator[Exclusive]:
    stage = str(request.param)
    workshop_id = await add_workshop(connection)
    holder = await add_mechanic(connection, workshop_id)
    near, far = await add_mechanic(connection), await add_mechanic(connection)
    customer_id = await add_customer(connection)
    wish = (
        {"routing_type": "priority_broadcast", "preferred_mechanic_id": holder}
        if stage == "priority"
        else {"routing_type": "hybrid", "workshop_id": workshop_id}
    )
    settings = TRUE_SECONDS | {"head_start_seconds": 60.0}
    async with (
        two_nodes(make_config(**settings)) as (here, there),
        here.client(customer_id, "customer") as customer,
        here.client(holder, "mechanic") as phone,
        there.client(holder, "mechanic") as tablet,
        here.client(near, "mechanic") as one,
        there.client(far, "mechanic") as other,
    ):
        await eventually(lambda: here.is_online(holder, customer_id))
        booked = await here.book(customer_id, **wish)
        card = await phone.until("offer", stage=stage)
        await tablet.until("offer", stage=stage)
        yield Exclusive(
            connection,
            (here, there),
            database_url,
            booked,
            customer,
            stage,
            card["offer_id"],
            (phone, tablet),
            holder,
            (one, other),
        )


async def its_time_is_over(exclusive: Exclusive) -> None:
    if exclusive.stage == "priority":  # she looks, or it would end before its time
        await exclusive.devices[1].send("offer.seen", offer_id=exclusive.offer_id)
        await eventually(lambda: _was_seen(exclusive.connection))
    await pass_time(exclusive.database_url, 601, *exclusive.nodes)


async def _was_seen(connection: Connection) -> bool:
    return bool(await connection.fetchval("SELECT next_attempt_at IS NULL FROM session_requests"))


async def the_customer_widens(exclusive: Exclusive) -> None:
    await exclusive.customer.send("request.widen", request_id=exclusive.booked.request_id)


Widen = Callable[[Exclusive], Awaitable[None]]


@pytest.mark.parametrize("widen", [its_time_is_over, the_customer_widens])
async def test_the_holder_keeps_her_card_on_both_nodes_and_may_win_with_it(
    exclusive: Exclusive, widen: Widen
) -> None:
    for other in exclusive.others:
        await other.settle()
        assert other.of("offer") == []

    await widen(exclusive)

    for other in exclusive.others:
        await other.until("offer", offer_id=exclusive.offer_id, stage="open")
    for device in exclusive.devices:
        await device.until("offer", offer_id=exclusive.offer_id, stage="open", score=100)
        await device.settle()
        assert device.of("offer.revoked") == []
        assert {card["offer_id"] for card in device.of("offer")} == {exclusive.offer_id}
    for living in exclusive.nodes:
        async with living.client(exclusive.holder, "mechanic") as again:
            assert [card["offer_id"] for card in again.snapshot["offers"]] == [exclusive.offer_id]
    phone, tablet = exclusive.devices
    await tablet.send("offer.accept", offer_id=exclusive.offer_id, accept_id=uuid4())
    await tablet.until("offer.won")
    await phone.until("offer.won")
