"""Who is online, as the whole cluster sees it, whatever becomes of connections and nodes."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch.core.types import Role
from dispatch.database import Connection, Pool, close_pool, open_pool
from dispatch.namespace import namespace
from tests.conftest import MakeConfig, Servers, create_database, drop_database
from tests.integration.presence_cluster import (
    OFFLINE,
    ONLINE,
    UNKNOWN,
    Start,
    cluster,
    equals,
    lives_in_postgres,
    mirror_says,
    mirrored,
    told,
)
from tests.integration.rows import add_mechanic
from tests.support import eventually


@pytest.fixture
async def start(redis_url: str, pool: Pool, make_config: MakeConfig) -> AsyncIterator[Start]:
    async with cluster(redis_url, pool, make_config) as start:
        yield start


@pytest.fixture
async def mechanic(connection: Connection) -> UUID:
    return await add_mechanic(connection)


# --- connections ----------------------------------------------------------------------------------


async def test_a_user_is_online_until_the_last_of_her_devices_has_left(start: Start) -> None:
    here, there = await start().settled(), await start().settled()
    anna = uuid4()

    phone = here.join(anna, "phone")
    await eventually(lambda: here.told)
    desk = there.join(anna, "desk")
    both = {("phone", here.node_id), ("desk", there.node_id)}
    await eventually(lambda: equals(here.devices_of(anna), both))
    assert await there.devices_of(anna) == both

    here.registry.leave(anna, phone)
    await eventually(lambda: equals(here.devices_of(anna), {("desk", there.node_id)}))
    assert await here.sees(anna) is await there.sees(anna) is ONLINE
    assert told(here, there) == [(anna, ONLINE)]

    there.registry.leave(anna, desk)
    await eventually(lambda: equals(here.sees(anna), OFFLINE))
    assert await there.sees(anna) is OFFLINE
    assert [change.presence for change in here.told] == [ONLINE]  # who adds the first tells,
    assert [change.presence for change in there.told] == [OFFLINE]  # and who removes the last


async def test_somebody_who_never_came_is_offline_without_a_last_time(start: Start) -> None:
    node = await start().settled()

    [(_, anna)] = (await node.registry.look_up([uuid4()])).items()

    assert (anna.presence, anna.last_seen, anna.devices) == (OFFLINE, None, ())


async def test_who_comes_back_within_the_grace_never_left(start: Start) -> None:
    here, there = await start().settled(), await start().settled()
    anna = uuid4()
    phone = here.join(anna, "phone")
    await eventually(lambda: here.told)

    here.registry.leave(anna, phone)
    there.join(anna, "phone")
    await eventually(lambda: equals(there.devices_of(anna), {("phone", there.node_id)}))

    assert told(here, there) == [(anna, ONLINE)]


async def test_during_the_grace_she_is_still_online(start: Start) -> None:
    node = await start(presence_grace_seconds=3600.0).settled()
    anna = uuid4()
    phone = node.join(anna)
    await eventually(lambda: node.told)

    node.registry.leave(anna, phone)

    for _ in range(3):
        assert await node.sees(anna) is ONLINE
    assert told(node) == [(anna, ONLINE)]


async def test_who_has_just_connected_is_online_for_whoever_asks_next(start: Start) -> None:
    node = await start().settled()
    crowd = [uuid4() for _ in range(2_000)]
    for user_id in crowd:
        node.join(user_id)

    found = await node.registry.look_up(crowd[-10:])

    assert {presence.presence for presence in found.values()} == {ONLINE}


async def test_leaves_that_are_repeated_or_unknown_change_nothing(start: Start) -> None:
    node = await start().settled()
    anna, ben = uuid4(), uuid4()
    gone = node.join(anna)
    node.join(ben)
    node.registry.leave(anna, gone)
    node.registry.leave(anna, gone)
    node.registry.leave(anna, uuid4())
    node.registry.leave(uuid4(), uuid4())

    await eventually(lambda: equals(node.sees(ben), ONLINE))
    assert await node.sees(anna) is OFFLINE
    assert told(node) == [(ben, ONLINE)]  # anna was gone before anybody knew of her


async def test_customers_are_known_and_not_told_about(start: Start) -> None:
    node = await start().settled()
    carl = uuid4()
    phone = node.join(carl, "phone", role=Role.CUSTOMER)
    await eventually(lambda: equals(node.devices_of(carl), {("phone", node.node_id)}))
    assert await node.registry.online_mechanics() == 0

    node.registry.leave(carl, phone)

    await eventually(lambda: equals(node.sees(carl), OFFLINE))
    assert node.told == []


async def test_mechanics_count_for_the_workshop_that_they_are_in_now(start: Start) -> None:
    here, there = await start().settled(), await start().settled()
    north, south, anna, ben = (uuid4() for _ in range(4))
    phone = here.join(anna, workshop_id=north)
    there.join(ben, workshop_id=north)
    there.join(uuid4(), role=Role.WORKSHOP, workshop_id=south)
    await eventually(lambda: equals(here.registry.online_mechanics(), 2))
    assert await here.registry.anyone_of_workshop(north) is ONLINE
    assert await here.registry.anyone_of_workshop(south) is OFFLINE

    here.join(anna, workshop_id=south, connection_id=phone)
    await eventually(lambda: equals(there.registry.anyone_of_workshop(south), ONLINE))
    assert await there.registry.anyone_of_workshop(north) is ONLINE

    here.registry.leave(anna, phone)
    await eventually(lambda: equals(there.registry.anyone_of_workshop(south), OFFLINE))
    assert await there.registry.anyone_of_workshop(north) is ONLINE
    assert await there.registry.online_mechanics() == 1
    assert told(here, there).count((anna, ONLINE)) == 1


async def test_a_cancelled_question_does_not_disturb_the_next(start: Start) -> None:
    node = await start().settled()
    anna = uuid4()
    node.join(anna)
    for _ in range(20):
        asking = asyncio.create_task(node.registry.look_up([uuid4()]))
        await asyncio.sleep(0)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    assert await node.sees(anna) is ONLINE


# --- nodes ----------------------------------------------------------------------------------------


async def test_people_of_a_crashed_node_are_offline_and_told_once(
    start: Start, pool: Pool, mechanic: UUID
) -> None:
    crashing, *survivors = [await start().settled() for _ in range(3)]
    crowd = [mechanic, *(uuid4() for _ in range(1_200))]
    for user_id in crowd:
        crashing.join(user_id)
    came_back = crowd[-1]
    await eventually(lambda: len(crashing.told) == len(crowd))
    await eventually(lambda: mirror_says(pool, mechanic, True))

    await crashing.crash()
    survivors[0].join(came_back)
    gone = crowd[:-1]
    await eventually(lambda: len(told(*survivors)) >= len(gone))

    assert sorted(told(*survivors)) == sorted((user_id, OFFLINE) for user_id in gone)
    await eventually(lambda: equals(survivors[1].sees(mechanic), OFFLINE))
    assert await survivors[1].sees(came_back) is ONLINE
    assert await survivors[1].registry.online_mechanics() == 1
    await eventually(lambda: mirror_says(pool, mechanic, False))
    _, last_seen = await mirrored(pool, mechanic)
    assert last_seen is not None
    [told_at] = [c.at for node in survivors for c in node.told if c.user_id == mechanic]
    assert last_seen < told_at


async def test_people_of_a_drained_node_have_the_grace_to_come_back(
    start: Start, pool: Pool
) -> None:
    draining, staying = await start().settled(), await start().settled()
    returns, leaves = uuid4(), uuid4()
    draining.join(returns)
    draining.join(leaves)
    await eventually(lambda: len(draining.told) == 2)

    await draining.drain()
    staying.join(returns)
    await eventually(lambda: staying.told)

    assert told(staying) == [(leaves, OFFLINE)]
    assert await staying.sees(returns) is ONLINE
    assert [row["node_id"] for row in await pool.fetch("SELECT node_id FROM nodes")] == [
        staying.node_id
    ]


async def test_the_last_node_to_drain_leaves_nobody_online(
    start: Start, pool: Pool, mechanic: UUID
) -> None:
    node = await start().settled()
    node.join(mechanic)
    await eventually(lambda: mirror_says(pool, mechanic, True))

    await node.drain()

    assert told(node) == [(mechanic, ONLINE), (mechanic, OFFLINE)]
    assert (await mirrored(pool, mechanic))[0] is False
    assert await pool.fetchval("SELECT count(*) FROM nodes") == 0


async def test_a_node_has_a_lease_in_postgres_that_says_how_it_is(start: Start, pool: Pool) -> None:
    node = await start().settled()

    async def row() -> asyncpg.Record | None:
        return await pool.fetchrow(
            "SELECT *, lease_until > clock_timestamp() AS live FROM nodes"
            " WHERE node_id = $1 AND clients = 3",
            node.node_id,
        )

    found = await eventually(row)
    assert found["live"]
    assert found["incarnation"] == 1
    assert found["lag_ms"] >= 0


async def test_nodes_that_have_been_gone_for_an_hour_are_forgotten(
    start: Start, pool: Pool
) -> None:
    node = await start().settled()
    gone, missed = uuid4(), uuid4()
    for node_id, hours in ((gone, 2), (missed, 0.5)):
        await pool.execute(
            "INSERT INTO nodes (node_id, incarnation, pid, host, lease_until)"
            " VALUES ($1, 1, 1, 'elsewhere', clock_timestamp() - $2::interval)",
            node_id,
            timedelta(hours=hours),
        )

    async def left() -> set[UUID]:
        return {row["node_id"] for row in await pool.fetch("SELECT node_id FROM nodes")}

    await eventually(lambda: equals(left(), {node.node_id, missed}))


async def test_a_node_that_is_cut_off_from_redis_makes_its_people_unknown_and_not_offline(
    start: Start, pool: Pool
) -> None:
    cut_off, node = await start().settled(), await start().settled()
    anna, ben = uuid4(), uuid4()
    cut_off.join(anna)
    node.join(ben)
    await eventually(lambda: cut_off.told and node.told)

    await cut_off.crash()  # for Redis; in Postgres it goes on living
    await lives_in_postgres(pool, cut_off.node_id, timedelta(minutes=5))
    await eventually(lambda: equals(node.sees(anna), UNKNOWN))
    assert await node.sees(ben) is ONLINE
    assert await node.sees(uuid4()) is UNKNOWN
    assert told(node) == [(ben, ONLINE)]

    await lives_in_postgres(pool, cut_off.node_id, timedelta(0))
    await eventually(lambda: equals(node.sees(anna), OFFLINE))
    await eventually(lambda: told(node) == [(ben, ONLINE), (anna, OFFLINE)])


async def test_a_node_that_was_stopped_brings_back_the_living_and_no_ghosts(
    start: Start, database_url: str, redis_url: str
) -> None:
    node = await start().settled()
    stays, leaves = uuid4(), uuid4()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.presence_node"),
        *(database_url, redis_url, str(stays), str(leaves)),
    )
    try:
        await eventually(lambda: equals(node.sees(stays), ONLINE))
        await eventually(lambda: equals(node.sees(leaves), ONLINE))
        process.send_signal(signal.SIGSTOP)
        await eventually(lambda: len(node.told) == 2)
        assert sorted(told(node)) == sorted([(stays, OFFLINE), (leaves, OFFLINE)])

        process.send_signal(signal.SIGUSR1)  # while it stood still, she left
        process.send_signal(signal.SIGCONT)
        await eventually(lambda: equals(node.sees(stays), ONLINE))
        await eventually(lambda: equals(node.sees(leaves), OFFLINE))
        assert len(node.told) == 2
    finally:
        process.kill()
        await process.wait()


# --- the mirror -----------------------------------------------------------------------------------


async def test_the_mirror_follows_and_waits_for_nobody(
    start: Start, pool: Pool, mechanic: UUID
) -> None:
    node = await start().settled()
    async with pool.acquire() as other:
        blocked = await add_mechanic(other)
        async with other.transaction():
            await other.execute("SELECT FROM mechanics WHERE id = $1 FOR UPDATE", blocked)
            connections = {user_id: node.join(user_id) for user_id in (blocked, mechanic)}
            await eventually(lambda: mirror_says(pool, mechanic, True))
            assert (await mirrored(pool, blocked))[0] is False
    await eventually(lambda: mirror_says(pool, blocked, True))
    _, came = await mirrored(pool, mechanic)

    node.registry.leave(mechanic, connections[mechanic])
    await eventually(lambda: mirror_says(pool, mechanic, False))

    _, left = await mirrored(pool, mechanic)
    assert came is not None
    assert left is not None
    assert came < left < node.told[-1].at  # when she left, and not when the grace was over
    found = (await node.registry.look_up([mechanic]))[mechanic]
    assert found.last_seen == left


async def test_a_mirror_that_a_killed_node_left_wrong_is_mended_and_told(
    start: Start, pool: Pool, mechanic: UUID
) -> None:
    async with pool.acquire() as connection:
        ben = await add_mechanic(connection)
    node = await start().settled()
    node.join(ben)
    await eventually(lambda: mirror_says(pool, ben, True))
    node.told.clear()

    await pool.execute("UPDATE mechanics SET is_online = (id = $1)", mechanic)
    # Two passes in a row must find it wrong, and a pass has its time.
    await eventually(lambda: mirror_says(pool, mechanic, False), timeout_seconds=40)
    await eventually(lambda: mirror_says(pool, ben, True), timeout_seconds=40)

    assert sorted(told(node)) == sorted([(mechanic, OFFLINE), (ben, ONLINE)])


# --- the namespace --------------------------------------------------------------------------------


async def test_a_database_has_one_namespace_and_its_copy_another(
    servers: Servers, database_url: str
) -> None:
    spaces = []
    for _ in range(2):
        pool = await open_pool(database_url, size=1)
        spaces.append(await namespace(pool))
        await close_pool(pool)  # nobody may be connected to a database that is copied

    copied = await asyncio.to_thread(create_database, servers, database_url)
    pool = await open_pool(copied, size=1)
    spaces.append(await namespace(pool))
    await close_pool(pool)
    await asyncio.to_thread(drop_database, servers, copied)

    assert spaces[0] == spaces[1] != spaces[2]
    assert all(len(space) <= 25 for space in spaces)


async def test_a_mechanic_on_two_nodes_is_noticed_by_the_second(start: Start) -> None:
    first, second = await start().settled(), await start().settled()
    anna, ben = uuid4(), uuid4()
    first.join(anna)
    first.join(ben)
    first.join(anna, device="tablet")
    await eventually(lambda: equals(second.sees(anna), ONLINE))

    second.join(anna)

    await eventually(lambda: second.shared == [anna])
    assert first.shared == []
