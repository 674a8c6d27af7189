"""How many were asked and how many are here: many people, each with a device on both nodes."""

import asyncio
from collections import deque
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import pytest

from dispatch.audience import NAMED
from dispatch.database import Connection
from dispatch.hints import Roster
from tests.conftest import MakeConfig
from tests.integration.living import Client, LivingNode, living_node, two_nodes
from tests.integration.own_redis import own_redis
from tests.integration.rows import add_customer, add_mechanic
from tests.support import eventually

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


async def connect(stack: AsyncExitStack, living: LivingNode, ids: list[UUID]) -> list[Client]:
    return await asyncio.gather(
        *(stack.enter_async_context(living.client(each, "mechanic")) for each in ids)
    )


async def until_told(customer: Client, notified: int, online: int) -> None:
    """What she reads has become so."""
    while True:
        for told in (customer.snapshot["requests"] + customer.of("request.status"))[-1:]:
            if (told["mechanics_notified"], told["mechanics_online"]) == (notified, online):
                return
        await customer.until("request.status")


async def test_a_storm_to_the_other_node_counts_nobody_twice(
    connection: Connection, make_config: MakeConfig
) -> None:
    ids = [await add_mechanic(connection) for _ in range(MANY)]
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config()) as (here, there),
        AsyncExitStack() as stack,
        here.client(customer_id, "customer") as customer,
    ):
        async with AsyncExitStack() as before:
            await connect(before, here, ids)
            await here.book(customer_id)
            await until_told(customer, MANY, MANY)

        await connect(stack, there, ids)

        await until_told(customer, MANY, MANY)


async def test_a_second_device_after_the_booking_counts_nobody_twice(
    connection: Connection, make_config: MakeConfig
) -> None:
    ids = [await add_mechanic(connection) for _ in range(MANY)]
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config()) as (here, there),
        AsyncExitStack() as stack,
        here.client(customer_id, "customer") as customer,
    ):
        await connect(stack, here, ids)
        await here.book(customer_id)
        await until_told(customer, MANY, MANY)

        await connect(stack, there, ids[:30])

        await until_told(customer, MANY, MANY)


async def test_what_was_said_while_the_bus_was_away_is_said_again(
    connection: Connection, make_config: MakeConfig
) -> None:
    ids, customer_id = (
        [await add_mechanic(connection) for _ in range(3)],
        await add_customer(connection),
    )
    with own_redis() as redis:
        async with (
            two_nodes(make_config(redis_url=redis.url)) as (here, there),
            AsyncExitStack() as stack,
            here.client(customer_id, "customer") as customer,
        ):
            cards = await connect(stack, there, ids)
            redis.kill()
            await eventually(lambda: len(here.node.degraded()) == len(there.node.degraded()) == 2)
            await there.book(customer_id)
            for mechanic in cards:
                await mechanic.until("offer")

            redis.start()

            await until_told(customer, 3, 3)


async def test_not_knowing_who_is_here_is_not_nobody(
    connection: Connection, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatch.audience.ROSTER_SECONDS", 0.0)
    mechanic_id, customer_id = await add_mechanic(connection), await add_customer(connection)
    with own_redis() as redis:
        async with two_nodes(make_config(redis_url=redis.url)) as (here, there):
            redis.kill()
            await eventually(lambda: len(here.node.degraded()) == len(there.node.degraded()) == 2)
            roster = Roster(there.node.node_id, (), ((mechanic_id, None, False),))
            here.node.audience.hear_roster(roster, 0.0)
            booked = await here.book(customer_id)
            entry = await eventually(lambda: here.node.board.get(booked.request_id))
            ticks = here.node._ran_at
            await eventually(lambda: here.node._ran_at > ticks + 0.2)

            assert here.node.fanout.request_state(entry).mechanics_online == 1


@pytest.mark.parametrize("node", [0, 1])
async def test_both_sides_are_warned_though_the_hint_was_lost(
    connection: Connection, make_config: MakeConfig, node: int
) -> None:
    mechanic_id, customer_id = await add_mechanic(connection), await add_customer(connection)
    config = make_config(plan_minute_seconds=0.6, warning_seconds=2.0, sweep_seconds=0.3)
    async with (
        two_nodes(config) as nodes,
        nodes[node].client(customer_id, "customer") as customer,
        nodes[1 - node].client(mechanic_id, "mechanic") as mechanic,
    ):
        booked = await nodes[0].book(customer_id)
        await connection.execute(
            "INSERT INTO waivers (intake_id, user_id, name, version, address) "
            "SELECT intake_id, customer_user_id, 'Kim', '1', 'x' FROM sessions WHERE id = $1",
            booked.session_id,
        )
        card = await mechanic.until("offer")
        await mechanic.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
        await mechanic.until("offer.won")
        for living in nodes:
            living.node.bus._buffer = deque(maxlen=0)  # nothing is said any more
        for each in (customer, mechanic):
            await each.send("session.join", session_id=booked.session_id)
        for each in (customer, mechanic):
            await each.until("session.warning", session_id=booked.session_id)
