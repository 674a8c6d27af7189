"""Redis may be killed, emptied, frozen or replaced: presence is unknown then, and mends itself."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest
import redis

from dispatch.core.types import Presence
from dispatch.database import Connection, Pool
from tests.conftest import MakeConfig
from tests.integration.own_redis import OwnRedis, own_redis
from tests.integration.presence_cluster import (
    OFFLINE,
    ONLINE,
    UNKNOWN,
    Node,
    Start,
    cluster,
    equals,
    lives_in_postgres,
    mirror_says,
    told,
)
from tests.integration.rows import add_mechanic
from tests.support import eventually


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with own_redis() as server:
        yield server


@pytest.fixture
async def start(server: OwnRedis, pool: Pool, make_config: MakeConfig) -> AsyncIterator[Start]:
    async with cluster(server.url, pool, make_config) as start:
        yield start


@pytest.fixture
async def mechanic(connection: Connection) -> UUID:
    return await add_mechanic(connection)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged, without the reasons."""
    caplog.set_level(logging.INFO, "dispatch")
    return lambda: [message.partition(": ")[0] for message in caplog.messages]


async def two_with_one_each(start: Start) -> tuple[Node, UUID, UUID, Node, UUID, UUID]:
    """Two nodes, each with the connection of one mechanic that everybody knows of."""
    here, there = await start().settled(), await start().settled()
    anna, ben = uuid4(), uuid4()
    phone, desk = here.join(anna), there.join(ben)
    await eventually(lambda: here.told and there.told)
    return here, anna, phone, there, ben, desk


async def sees_both(node: Node, first: UUID, second: UUID, wanted: Presence) -> bool:
    found = await node.registry.look_up([first, second])
    return {presence.presence for presence in found.values()} == {wanted}


async def test_nothing_is_known_of_a_redis_that_was_never_there(
    pool: Pool, make_config: MakeConfig, said: Callable[[], list[str]]
) -> None:
    with own_redis(started=False) as server:
        async with cluster(server.url, pool, make_config) as start:
            node, anna, workshop = start(), uuid4(), uuid4()
            node.join(anna, workshop_id=workshop)
            await eventually(lambda: said() == ["presence lost redis"])
            assert await node.sees(anna) is UNKNOWN
            assert await node.registry.anyone_of_workshop(workshop) is UNKNOWN
            assert await node.registry.online_mechanics() is None

            server.start()
            await eventually(lambda: equals(node.sees(anna), ONLINE))
            assert await node.registry.anyone_of_workshop(workshop) is ONLINE
            assert await node.registry.online_mechanics() == 1

        assert told(node) == [(anna, ONLINE)]
        assert said() == ["presence lost redis", "presence recovered redis"]


async def test_after_redis_was_emptied_nothing_is_known_until_everybody_has_published(
    start: Start, server: OwnRedis, pool: Pool
) -> None:
    here, anna, _, there, ben, _ = await two_with_one_each(start)
    silent = uuid4()  # a node that lives in Postgres and does not come back to Redis
    await pool.execute(
        "INSERT INTO nodes (node_id, incarnation, pid, host, lease_until)"
        " VALUES ($1, 1, 1, 'elsewhere', clock_timestamp() + interval '5 minutes')",
        silent,
    )
    await eventually(lambda: equals(here.sees(uuid4()), UNKNOWN))
    assert await sees_both(here, anna, ben, ONLINE)

    server.empty()
    with server.client() as client:
        await eventually(lambda: len(client.keys("*members*")) == 2)  # both have published again
    for node in (here, there):
        assert await sees_both(node, anna, ben, UNKNOWN)
        assert await node.registry.online_mechanics() is None
        assert node.registry.degraded

    await lives_in_postgres(pool, silent, timedelta(0))
    for node in (here, there):
        await node.settled()
        assert await sees_both(node, anna, ben, ONLINE)
        assert await node.sees(uuid4()) is OFFLINE
        assert await node.registry.online_mechanics() == 2
    assert sorted(told(here, there)) == sorted([(anna, ONLINE), (ben, ONLINE)])


async def test_who_left_while_nothing_was_known_is_told_afterwards(
    start: Start, server: OwnRedis
) -> None:
    here, anna, phone, there, ben, _ = await two_with_one_each(start)

    server.kill()
    await eventually(lambda: here.registry.degraded and there.registry.degraded)
    here.registry.leave(anna, phone)
    carl = uuid4()
    there.join(carl)
    server.start()

    await eventually(lambda: equals(there.sees(anna), OFFLINE))
    await eventually(lambda: equals(here.sees(carl), ONLINE))
    assert await here.sees(ben) is ONLINE
    await eventually(lambda: len(told(here, there)) == 4)
    assert told(here, there)[2:] in (
        [(carl, ONLINE), (anna, OFFLINE)],
        [(anna, OFFLINE), (carl, ONLINE)],
    )


async def test_a_killed_redis_is_unknown_while_away_and_everybody_is_back_after(
    start: Start, server: OwnRedis, said: Callable[[], list[str]]
) -> None:
    here, anna, _, there, ben, _ = await two_with_one_each(start)
    before = told(here, there)

    server.kill()
    for node in (here, there):
        await eventually(partial(sees_both, node, anna, ben, UNKNOWN))
        assert await node.registry.online_mechanics() is None
    server.start()

    for node in (here, there):
        await eventually(partial(sees_both, node, anna, ben, ONLINE))
        assert await node.sees(uuid4()) is OFFLINE
    assert told(here, there) == before
    assert said() == ["presence lost redis"] * 2 + ["presence recovered redis"] * 2


async def test_an_old_copy_that_redis_comes_back_with_is_not_believed(
    start: Start, server: OwnRedis
) -> None:
    here, anna, phone, there, ben, _ = await two_with_one_each(start)
    with server.client() as client:
        client.save()
    here.registry.leave(anna, phone)
    await eventually(lambda: equals(there.sees(anna), OFFLINE))

    server.kill()
    await eventually(lambda: equals(there.sees(ben), UNKNOWN))
    server.start()
    with server.client() as client:
        assert client.keys("*"), "the copy is there"

    await eventually(lambda: equals(there.sees(ben), ONLINE))
    assert await there.sees(anna) is OFFLINE
    assert await there.registry.online_mechanics() == 1


async def test_a_frozen_redis_is_unknown_and_nobody_is_gone_when_it_thaws(
    start: Start, server: OwnRedis
) -> None:
    here, anna, _, there, ben, _ = await two_with_one_each(start)
    before = told(here, there)

    server.freeze()
    assert await here.sees(anna) is UNKNOWN  # within the time of one question
    await eventually(lambda: here.registry.degraded and there.registry.degraded)
    await asyncio.sleep(
        1.5
    )  # longer than lease and grace: the leases run out while it stands still
    server.thaw()

    for node in (here, there):
        await eventually(partial(sees_both, node, anna, ben, ONLINE))
    assert told(here, there) == before


async def test_people_of_a_node_that_was_lost_together_with_redis_are_told_offline(
    start: Start, server: OwnRedis, pool: Pool, mechanic: UUID
) -> None:
    lost, survivor = await start().settled(), await start().settled()
    async with pool.acquire() as connection:
        ben = await add_mechanic(connection)
    lost.join(mechanic)
    survivor.join(ben)
    await eventually(lambda: mirror_says(pool, mechanic, True))
    await eventually(lambda: mirror_says(pool, ben, True))

    server.kill()
    await lost.crash()
    server.start()

    await eventually(lambda: equals(survivor.sees(mechanic), OFFLINE))
    await eventually(lambda: mirror_says(pool, mechanic, False))
    assert told(survivor) == [(ben, ONLINE), (mechanic, OFFLINE)]
    assert await mirror_says(pool, ben, True)


async def test_many_faults_in_a_row_end_with_everybody_where_they_are(
    start: Start, server: OwnRedis
) -> None:
    here, there = await start().settled(), await start().settled()
    crowd = {uuid4(): node for node in (here, there) for _ in range(300)}
    phones = {user_id: node.join(user_id) for user_id, node in crowd.items()}
    faults = [server.kill, server.start, server.empty]
    for number in range(9):
        faults[number % 3]()
        for user_id in list(crowd)[number * 30 : number * 30 + 30]:  # some leave in between
            crowd[user_id].registry.leave(user_id, phones[user_id])
        await asyncio.sleep(0)
    gone, stay = list(crowd)[:270], list(crowd)[270:]

    for node in (here, there):
        await node.settled()
    for node in (here, there):
        await eventually(partial(all_are, node, stay, ONLINE))
        await eventually(partial(all_are, node, gone, OFFLINE))
        assert await node.registry.online_mechanics() == len(stay)


async def all_are(node: Node, user_ids: list[UUID], wanted: Presence) -> bool:
    found = await node.registry.look_up(user_ids)
    return {presence.presence for presence in found.values()} == {wanted}


# --- what it costs, counted by a Redis that nobody else uses --------------------------------------


def calls(client: redis.Redis, *commands: str) -> int:
    """How often Redis ran these commands, since its statistics were reset."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {}).get("calls", 0) for command in commands)


async def test_a_storm_of_ten_thousand_is_few_round_trips_and_heartbeats_cost_nodes(
    start: Start, server: OwnRedis
) -> None:
    node = await start().settled()
    with server.client() as client:
        client.config_resetstat()
        for _ in range(10_000):
            node.join(uuid4())
        await eventually(lambda: equals(node.registry.online_mechanics(), 10_000))
        assert calls(client, "eval") <= 40
        assert len(node.told) == 10_000

        client.config_resetstat()
        await eventually(lambda: calls(client, "eval") >= 3)
        assert calls(client, "hset") <= calls(client, "eval") + 1
