"""How many were asked and how many are here: many people, each with a device on both nodes."""

import asyncio
from contextlib import AsyncExitStack

from dispatch.audience import NAMED
from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import Client, living_node, two_nodes
from tests.integration.rows import add_customer, add_mechanic

MANY = NAMED + 20


async def test_a_hundred_and_more_on_two_nodes_each_count_once(
    connection: Connection, make_config: MakeConfig
) -> None:
    everybody = [await add_mechanic(connection) for _ in range(MANY)]
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config()) as (here, there),
        AsyncExitStack() as stack,
        here.client(customer_id, "customer") as customer,
    ):

        async def connect(node: int) -> list[Client]:
            living = (here, there)[node]
            return await asyncio.gather(
                *(
                    stack.enter_async_context(living.client(mechanic_id, "mechanic"))
                    for mechanic_id in everybody
                )
            )

        phones = await connect(0)
        tablets = await connect(1)
        booked = await there.book(customer_id)

        await customer.until("request.status", mechanics_notified=MANY, mechanics_online=MANY)

        # Half of them put one device away, and are here all the same.
        await asyncio.gather(*(tablet.link.close() for tablet in tablets[: MANY // 2]))
        # One is gone altogether; she was asked all the same.
        await phones[0].link.close()
        await customer.until(
            "request.status",
            request_id=booked.request_id,
            mechanics_notified=MANY,
            mechanics_online=MANY - 1,
        )
        await customer.settle()
        last = customer.of("request.status")[-1]
        assert (last["mechanics_notified"], last["mechanics_online"]) == (MANY, MANY - 1)


async def test_a_node_that_starts_later_knows_how_many_were_asked(
    connection: Connection, make_config: MakeConfig
) -> None:
    anna, ben = await add_mechanic(connection), await add_mechanic(connection)
    customer_id, config = await add_customer(connection), make_config()
    async with (
        living_node(config) as first,
        first.client(anna, "mechanic") as one,
        first.client(ben, "mechanic") as two,
    ):
        booked = await first.book(customer_id)
        for mechanic in (one, two):
            await mechanic.until("offer", request_id=booked.request_id)
        async with living_node(config) as later, later.client(customer_id, "customer") as customer:
            (shown,) = customer.snapshot["requests"]
            counts = (shown["mechanics_notified"], shown["mechanics_online"])
            if counts != (2, 2):
                await customer.until("request.status", mechanics_notified=2, mechanics_online=2)
