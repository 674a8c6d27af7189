"""A hint lost after every kind of commit: the other node finds out by itself (promise 17)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatch.core.types import Cancel
from dispatch.database import Connection
from dispatch.store import Verdict
from tests.conftest import MakeConfig
from tests.integration.living import LivingNode, living_node
from tests.integration.rows import add_mechanic, book, book_and_open, change
from tests.support import eventually


@asynccontextmanager
async def two_nodes_that_do_not_hear_each_other(
    make_config: MakeConfig,
) -> AsyncIterator[tuple[LivingNode, LivingNode]]:
    config = make_config()
    async with living_node(config) as one, living_node(config) as other:
        for living in (one, other):
            living.node.bus._receive = lambda hints: None  # every hint is lost on its way
        yield one, other


async def test_offer_accept_and_revoke_cross_nodes_without_hints(
    connection: Connection, make_config: MakeConfig
) -> None:
    here, there = await add_mechanic(connection), await add_mechanic(connection)
    async with (
        two_nodes_that_do_not_hear_each_other(make_config) as (one, other),
        one.client(here, "mechanic") as winner,
        other.client(there, "mechanic") as loser,
    ):
        booking = await book(connection)
        offer = await winner.until("offer")
        assert (await loser.until("offer"))["offer_id"] == offer["offer_id"]
        async with other.client(booking.customer_id, "customer") as customer:
            await winner.send("offer.accept", offer_id=offer["offer_id"], accept_id=uuid4())
            await winner.until("offer.won")
            await loser.until("offer.revoked", offer_id=offer["offer_id"], reason="taken")
            await customer.until("request.status", status="accepted")

            await winner.send("assignment.cancel", session_id=booking.session_id)
            await loser.until("offer", generation=2)
            await customer.until("request.status", status="pending")


async def test_availability_crosses_nodes_without_hints(
    connection: Connection, make_config: MakeConfig
) -> None:
    mechanic = await add_mechanic(connection)
    async with (
        two_nodes_that_do_not_hear_each_other(make_config) as (one, other),
        one.client(mechanic, "mechanic") as phone,
        other.client(mechanic, "mechanic") as laptop,
    ):
        await book(connection)
        offer = await laptop.until("offer")
        await phone.until("offer", offer_id=offer["offer_id"])
        await phone.send("availability.set", available=False)
        await phone.until("offer.revoked", offer_id=offer["offer_id"], reason="withdrawn")
        await laptop.until("offer.revoked", offer_id=offer["offer_id"], reason="withdrawn")
        await phone.send("availability.set", available=True)
        await laptop.until("offer", offer_id=offer["offer_id"])


async def test_a_cancelled_request_is_revoked_on_a_node_that_was_not_told(
    connection: Connection, make_config: MakeConfig
) -> None:
    mechanic = await add_mechanic(connection)
    async with (
        two_nodes_that_do_not_hear_each_other(make_config) as (one, other),
        other.client(mechanic, "mechanic") as client,
    ):
        booking = await book(connection)
        offer = await client.until("offer")
        await one.node.dispatcher.cancel(booking.customer_id, booking.request_id)
        await client.until("offer.revoked", offer_id=offer["offer_id"], reason="cancelled")


@pytest.mark.parametrize("change", ["token_epoch = token_epoch + 1", "disabled_at = now()"])
async def test_a_token_is_void_on_a_node_that_was_not_told(
    connection: Connection, make_config: MakeConfig, change: str
) -> None:
    mechanic, other_id = await add_mechanic(connection), await add_mechanic(connection)
    async with (
        living_node(make_config()) as living,
        living.client(mechanic, "mechanic") as client,
        living.client(other_id, "mechanic") as other,
    ):
        await connection.execute(f"UPDATE users SET {change} WHERE id = $1", mechanic)

        await eventually(lambda: client.link.close_code == 4401)
        await other.settle()
        assert other.link.close_code is None


async def test_the_winner_is_answered_once_when_the_news_overtakes_the_reply(
    connection: Connection, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanic = await add_mechanic(connection)
    async with (
        living_node(make_config()) as living,
        living.client(mechanic, "mechanic") as phone,
        living.client(mechanic, "mechanic") as laptop,
    ):
        node = living.node
        judge = node.store.accept

        async def judge_whose_reply_is_slow(*ids: UUID, **rest: Any) -> Verdict:
            verdict = await judge(*ids, **rest)
            await node.reconcile()
            return verdict

        monkeypatch.setattr(node.store, "accept", judge_whose_reply_is_slow)
        await book(connection)
        offer = await phone.until("offer")
        await phone.send("offer.accept", offer_id=offer["offer_id"], accept_id=uuid4(), id="mine")
        await phone.until("offer.won", re="mine")
        await laptop.until("offer.won", offer_id=offer["offer_id"])

        await phone.settle()
        await laptop.settle()
        assert len(phone.of("offer.won")) == len(laptop.of("offer.won")) == 1


async def test_a_node_that_stood_still_takes_and_shows_nothing_before_it_has_compared(
    connection: Connection, make_config: MakeConfig
) -> None:
    mechanic_id = await add_mechanic(connection)
    async with (
        living_node(make_config(sweep_seconds=3600.0)) as living,
        living.client(mechanic_id, "mechanic") as mechanic,
    ):
        over, still_open = [await book_and_open(connection, living.node.store) for _ in range(2)]
        stale = await living.node.store.entry(over.request_id)
        assert stale is not None
        await change(connection, living.node.store, over.request_id, Cancel())

        living.node._ran_at -= 60.0
        taken = living.node.fanout.apply(stale)

        assert not taken
        card = await mechanic.until("offer")
        await mechanic.settle()
        assert card["request_id"] == str(still_open.request_id)
        assert len(mechanic.of("offer")) == 1
