"""A mechanic who is deleted: whoever watches her is told once more, whoever waits for her waits no
longer (F2, F4). Nobody sends a hint of it: the nodes find out by themselves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch.database import Connection
from dispatch.hints import MechanicChanged
from dispatch.presence import UserPresence
from tests.conftest import MakeConfig
from tests.integration.living import Client, LivingNode, living_node, two_nodes
from tests.integration.rows import add_customer, add_mechanic, book, candidate
from tests.support import eventually

# Nothing ends in these tests because its time is over, but what looks for changes looks often.
LONG: Final = {
    "priority_window_seconds": 600.0,
    "wait_window_seconds": 1800.0,
    "offer_retry_seconds": 600.0,
    "request_ttl_seconds": 7200.0,
}


@asynccontextmanager
async def living_nodes(
    make_config: MakeConfig, count: int
) -> AsyncIterator[tuple[LivingNode, LivingNode]]:
    """One node twice, or two nodes, that know who is online."""
    config = make_config(**LONG)
    if count == 2:
        async with two_nodes(config) as nodes:
            yield nodes
        return
    async with living_node(config) as living:
        await eventually(lambda: living.node.degraded() == [] and not living.node._doubtful)
        yield living, living


async def delete_mechanic(connection: Connection, mechanic_id: UUID) -> None:
    await connection.execute("UPDATE mechanics SET deleted_at = now() WHERE id = $1", mechanic_id)


async def set_available(connection: Connection, mechanic_id: UUID, available: bool) -> None:
    await connection.execute(
        "UPDATE mechanics SET available = $2 WHERE id = $1", mechanic_id, available
    )


# --- watching her ---------------------------------------------------------------------------------


async def watch(client: Client, mechanic_id: UUID, re: str = "watch") -> dict[str, Any]:
    await client.send("mechanic.watch", mechanic_id=mechanic_id, id=re)
    return await client.until("mechanic.presence", re=re)


@pytest.mark.parametrize("nodes", [1, 2])
async def test_who_watches_one_who_is_deleted_is_told_once_more_and_then_watches_nobody(
    connection: Connection, make_config: MakeConfig, nodes: int
) -> None:
    mechanic = await add_mechanic(connection)
    ann, bob = await add_customer(connection), await add_customer(connection)
    async with (
        living_nodes(make_config, nodes) as (one, other),
        other.client(mechanic, "mechanic"),
        one.client(ann, "customer") as near,
        other.client(bob, "customer") as far,
    ):
        for client in (near, far):
            assert (await watch(client, mechanic))["is_online"] is True

        await delete_mechanic(connection, mechanic)

        for client in (near, far):
            last = await client.until("mechanic.presence", available=False)
            assert last == {
                "type": "mechanic.presence",
                "mechanic_id": str(mechanic),
                "presence": "offline",
                "is_online": False,
                "available": False,
                "reachable_by_push": False,
            }
        for living in (one, other):
            assert living.node.hub.watchers_of(mechanic) == ()
        await set_available(connection, mechanic, False)
        for living in (one, other):
            await living.node.reconcile()
        for client in (near, far):
            await client.settle()
            assert client.frames[-2] == last, "and never again"
            await client.send("mechanic.watch", mechanic_id=mechanic, id="again")
            assert (await client.until("error", re="again"))["code"] == "not_found"


async def test_watching_one_who_does_not_exist_is_not_found_and_watches_nobody(
    connection: Connection, make_config: MakeConfig
) -> None:
    ann = await add_customer(connection)
    async with (
        living_nodes(make_config, 1) as (living, _),
        living.client(ann, "customer") as client,
    ):
        for nobody in (uuid4(), ann):
            await client.send("mechanic.watch", mechanic_id=nobody, id=str(nobody))
            error = await client.until("error", re=str(nobody))
            assert error["code"] == "not_found"
            assert living.node.hub.watchers_of(nobody) == ()
        (socket,) = living.node.hub.sockets_of(ann)
        assert living.node.hub.watched_by(socket) == 0


async def test_who_is_deleted_while_a_watch_is_answered_is_told_gone_after_the_answer(
    connection: Connection, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanic, ann = await add_mechanic(connection), await add_customer(connection)
    async with (
        living_nodes(make_config, 1) as (living, _),
        living.client(ann, "customer") as client,
    ):
        node = living.node
        look_up = node.presence.look_up
        reading, go_on = asyncio.Event(), asyncio.Event()

        async def look_up_slowly(user_ids: Sequence[UUID]) -> dict[UUID, UserPresence]:
            reading.set()
            await go_on.wait()
            return await look_up(user_ids)

        monkeypatch.setattr(node.presence, "look_up", look_up_slowly)
        await client.send("mechanic.watch", mechanic_id=mechanic, id="watch")
        await reading.wait()
        await delete_mechanic(connection, mechanic)
        await node.reconcile()
        go_on.set()

        answer = await client.until("mechanic.presence", mechanic_id=mechanic)
        last = await client.until("mechanic.presence", mechanic_id=mechanic)
        assert (answer["re"], answer["available"]) == ("watch", True)
        assert ("re" in last, last["available"], last["presence"]) == (False, False, "offline")
        assert node.hub.watchers_of(mechanic) == ()


async def test_a_change_that_is_heard_and_read_again_is_told_once(
    connection: Connection, make_config: MakeConfig
) -> None:
    mechanic, ann = await add_mechanic(connection), await add_customer(connection)
    async with (
        living_nodes(make_config, 1) as (living, _),
        living.client(ann, "customer") as client,
    ):
        node = living.node
        assert (await watch(client, mechanic))["available"] is True
        before = len(client.of("mechanic.presence"))

        await set_available(connection, mechanic, False)
        changed_at = await connection.fetchval("SELECT changed_at FROM mechanics")
        node._hear([MechanicChanged(await candidate(connection, mechanic), changed_at)])
        await client.until("mechanic.presence", available=False)
        for _ in range(2):
            await node.reconcile()
        await client.settle()
        assert len(client.of("mechanic.presence")) == before + 1

        await set_available(connection, mechanic, True)
        await client.until("mechanic.presence", available=True)
        await node.reconcile()
        await client.settle()
        assert len(client.of("mechanic.presence")) == before + 2


# --- over HTTP ------------------------------------------------------------------------------------


async def test_a_deleted_favourite_is_gone_at_once_wherever_one_asks(
    connection: Connection, make_config: MakeConfig
) -> None:
    ann, mechanic = await add_customer(connection), await add_mechanic(connection)
    favorites = "/api/customer/favorites"
    choice = {"provider_id": str(mechanic), "provider_type": "independent"}
    async with living_nodes(make_config, 1) as (living, _):
        call = partial(living.call, ann, "customer")
        assert (await call("POST", favorites, choice))[0] == 201
        assert (await call("GET", f"/api/mechanics/{mechanic}/status"))[0] == 200

        await delete_mechanic(connection, mechanic)

        _, listed = await call("GET", favorites)
        assert (listed["favorites"], listed["total"]) == ([], 0)
        async with living.client(ann, "customer") as client:
            assert client.snapshot["favorites"] == []
        for method, path, body in (
            ("GET", f"/api/mechanics/{mechanic}/status", None),
            ("POST", favorites, choice),
            ("POST", "/api/customer/rebook", {"provider_id": str(mechanic)}),
        ):
            status, answer = await call(method, path, body)
            assert (status, answer["error"]["code"]) == (404, "mechanic_gone")
        status, answer = await call("DELETE", f"{favorites}/{mechanic}")
        assert (status, answer["error"]["code"]) == (404, "not_found")
        assert await connection.fetchval("SELECT count(*) FROM intakes") == 0


# --- waiting for her ------------------------------------------------------------------------------


async def request_of(connection: Connection, request_id: UUID) -> asyncpg.Record:
    row = await connection.fetchrow("SELECT * FROM session_requests WHERE id = $1", request_id)
    assert row is not None
    return row


async def widenings(connection: Connection, session_id: UUID) -> list[str]:
    rows = await connection.fetch(
        "SELECT metadata ->> 'detail' AS why FROM session_events "
        "WHERE session_id = $1 AND type = 'widened'",
        session_id,
    )
    return [row["why"] for row in rows]


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("is_there", [True, False])
async def test_nobody_waits_for_a_favourite_who_is_deleted(
    connection: Connection, make_config: MakeConfig, nodes: int, is_there: bool
) -> None:
    favourite, other = await add_mechanic(connection), await add_mechanic(connection)
    booking = await book(
        connection,
        routing_type="priority_broadcast",
        preferred_mechanic_id=favourite,
        wait_for_preferred=True,
    )
    async with (
        living_nodes(make_config, nodes) as (here, there),
        there.client(other, "mechanic") as bystander,
        here.client(booking.customer_id, "customer") as customer,
        AsyncExitStack() as stack,
    ):
        if is_there:
            named = await stack.enter_async_context(there.client(favourite, "mechanic"))
        here.node.dispatcher.opened(booking.request_id, here.node.clock.now())
        asked = await customer.until("request.status", stage="priority")
        if is_there:
            offer = await named.until("offer", stage="priority")
        await bystander.settle()
        assert bystander.of("offer") == []

        await delete_mechanic(connection, favourite)

        wide = await bystander.until("offer", request_id=booking.request_id)
        opened = await customer.until("request.status", stage="open")
        assert (wide["stage"], wide["score"]) == ("open", 50)
        assert opened["server_time"] < asked["stage_ends_at"]
        if is_there:
            await named.until("offer.revoked", offer_id=offer["offer_id"], reason="withdrawn")
        row = await request_of(connection, booking.request_id)
        assert (row["status"], row["stage"], row["stage_ends_at"]) == ("pending", "open", None)
        assert row["priority_notified_at"] < row["fallback_broadcast_at"]
        assert row["fallback_broadcast_at"] < asked_until(asked)
        for living in (here, there):
            await living.node.reconcile()
            await living.node.dispatcher.fire(booking.request_id)
        assert await widenings(connection, booking.session_id) == ["not_approved"]
        assert (await request_of(connection, booking.request_id))["fallback_broadcast_at"] == row[
            "fallback_broadcast_at"
        ]


def asked_until(status: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(status["stage_ends_at"])


async def test_a_favourite_who_is_deleted_before_the_opening_was_never_asked(
    connection: Connection, make_config: MakeConfig
) -> None:
    favourite, other = await add_mechanic(connection), await add_mechanic(connection)
    booking = await book(
        connection, routing_type="priority_broadcast", preferred_mechanic_id=favourite
    )
    await delete_mechanic(connection, favourite)
    async with (
        living_nodes(make_config, 1) as (living, _),
        living.client(other, "mechanic") as bystander,
    ):
        living.node.dispatcher.opened(booking.request_id, living.node.clock.now())
        await bystander.until("offer", request_id=booking.request_id, stage="open")

    row = await request_of(connection, booking.request_id)
    assert row["priority_notified_at"] is None
    assert row["fallback_broadcast_at"] is not None
    assert await widenings(connection, booking.session_id) == ["not_approved"]
