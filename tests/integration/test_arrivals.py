"""Mechanics who connect: judged before they see anything, and read together if they come so."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from dispatch.auth import issue_token
from dispatch.config import Config
from dispatch.database import Connection
from tests.integration.living import living_node
from tests.integration.rows import add_customer, add_mechanic
from tests.integration.test_people import count_queries
from tests.support import WAIT_SECONDS, eventually


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET disabled_at = now() WHERE id = $1",
        "UPDATE users SET token_epoch = 1 WHERE id = $1",
        "UPDATE users SET role = 'customer' WHERE id = $1",
    ],
)
async def test_a_mechanic_whose_token_died_is_shown_nothing(
    connection: Connection, config: Config, change: str
) -> None:
    mechanic_id = await add_mechanic(connection)
    async with living_node(config) as living:
        await living.book(await add_customer(connection))
        await connection.execute(change, mechanic_id)
        token = issue_token(config.jwt_secret, mechanic_id, "mechanic", 0, 60)

        headers = {"Authorization": f"Bearer {token}"}
        async with connect(living.ws_url, additional_headers=headers, compression=None) as link:
            with pytest.raises(ConnectionClosedError) as closed:  # and no frame before
                await asyncio.wait_for(link.recv(), WAIT_SECONDS)

        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
        assert living.node.hub.mechanic(mechanic_id) is None
        assert len(living.node.hub) == 0


async def test_mechanics_who_come_during_a_read_share_the_next_one(
    connection: Connection, config: Config
) -> None:
    mechanics = [await add_mechanic(connection) for _ in range(21)]
    async with living_node(config) as living, AsyncExitStack() as stack:
        sent = await count_queries(living.node.pool)
        arrivals = living.node.gateway._arrivals

        async def arrive(number: int) -> None:
            await stack.enter_async_context(living.client(mechanics[number], "mechanic"))

        async with connection.transaction():
            await connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            arriving = [asyncio.create_task(arrive(0))]
            await eventually(lambda: arrivals._reading is not None and not arrivals._asked)
            arriving += [asyncio.create_task(arrive(number)) for number in range(1, 21)]
            await eventually(lambda: len(arrivals._asked) == 20)
        await asyncio.gather(*arriving)

        assert sum(sent) == 2
        assert {each.candidate.mechanic_id for each in living.node.hub.mechanics()} == {*mechanics}
