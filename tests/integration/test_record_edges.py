"""What explain says where the story has a bend: late comers, second thoughts, two devices."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatch.database import Connection
from dispatch.explain import Explanation, explanation
from dispatch.explain_text import as_text
from tests.conftest import MakeConfig
from tests.integration.living import Booked, LivingNode, living_node, pass_time, two_nodes
from tests.integration.rows import add_customer, add_mechanic, book_and_open
from tests.integration.trail import decided
from tests.support import eventually

TRUE_SECONDS = {
    "priority_window_seconds": 600.0,
    "wait_window_seconds": 1800.0,
    "offer_retry_seconds": 5.0,
    "request_ttl_seconds": 7200.0,
}


async def told_of(request_id: UUID, *nodes: LivingNode) -> Explanation:
    for living in nodes:
        await living.node.audit.flush()
    node = nodes[0].node
    return await explanation(node.pool, request_id, node.config.policy())


async def until_open(living: LivingNode, booked: Booked) -> None:
    def stage() -> object:
        entry = living.node.board.get(booked.request_id)
        return entry and entry.booking.stage

    await eventually(stage)


async def test_who_connects_later_and_may_not_have_it_is_on_record(
    make_config: MakeConfig, connection: Connection
) -> None:
    una = await add_mechanic(connection)
    await connection.execute("UPDATE mechanics SET available = false WHERE id = $1", una)
    async with living_node(make_config(**TRUE_SECONDS)) as living:
        booked = await living.book(await add_customer(connection))
        await until_open(living, booked)
        for _ in range(2):  # the second time there is nothing new to say
            async with living.client(una, "mechanic") as mechanic:
                await mechanic.settle()

        told = await told_of(booked.request_id, living)

    (story,) = told.candidates
    assert not story.eligible
    assert {each.reason for each in story.ruled_out} == {"unavailable"}
    (stage,) = told.stages
    assert (stage.connected, stage.sent, stage.excluded, stage.unasked) == (1, 0, 1, [])


async def test_who_becomes_unavailable_with_the_card_in_her_hand_is_on_record(
    make_config: MakeConfig, connection: Connection
) -> None:
    una = await add_mechanic(connection)
    async with (
        living_node(make_config(**TRUE_SECONDS)) as living,
        living.client(una, "mechanic") as mechanic,
    ):
        booked = await living.book(await add_customer(connection))
        await mechanic.until("offer")
        await mechanic.send("availability.set", available=False)
        await mechanic.until("offer.revoked", reason="withdrawn")

        told = await told_of(booked.request_id, living)

    (story,) = told.candidates
    assert (len(story.sent), [each.reason for each in story.ruled_out]) == (1, ["unavailable"])
    assert "no longer asked in open: said that she is not available" in as_text(told)


async def test_one_mechanic_is_connected_once_however_she_comes_to_it(
    make_config: MakeConfig, connection: Connection
) -> None:
    solo = await add_mechanic(connection)
    async with (
        two_nodes(make_config(**TRUE_SECONDS)) as (here, there),
        here.client(solo, "mechanic") as phone,
        there.client(solo, "mechanic") as tablet,
    ):
        await phone.send("availability.set", available=False, id="a")
        await phone.until("ok", re="a")
        booked = await here.book(await add_customer(connection))
        await until_open(there, booked)
        await phone.send("availability.set", available=True)
        for device in (phone, tablet):
            await device.until("offer")

        told = await told_of(booked.request_id, here, there)

    (stage,) = told.stages
    assert (stage.connected, stage.sent, stage.nodes) == (1, 1, 2)


async def test_a_look_at_what_is_gone_is_no_step_on_the_way(
    make_config: MakeConfig, connection: Connection
) -> None:
    quick, slow = await add_mechanic(connection), await add_mechanic(connection)
    async with living_node(make_config(**TRUE_SECONDS)) as living:
        booking = await book_and_open(connection, living.node.store)
        at = booking.created_at
        await decided(connection, booking, at, sent={quick: 1, slow: 1}, seen={slow: 60_000})
        async with living.client(quick, "mechanic") as mechanic:
            await mechanic.send("offer.accept", offer_id=booking.offer_id, accept_id=uuid4())
            await mechanic.until("offer.won")
            told = await told_of(booking.request_id, living)

    waterfall = {moment.step: moment for moment in told.waterfall}
    assert waterfall["seen"].at is None
    assert waterfall["accepted"].at is not None
    assert waterfall["accepted"].at < at + timedelta(seconds=60)


async def test_the_first_write_is_measured_where_it_was_heard_of_and_never_after_a_fallback(
    make_config: MakeConfig, connection: Connection, database_url: str
) -> None:
    favourite, other = await add_mechanic(connection), await add_mechanic(connection)
    customer = await add_customer(connection)
    async with (
        two_nodes(make_config(**TRUE_SECONDS)) as (here, there),
        here.client(favourite, "mechanic") as asked,
        there.client(other, "mechanic") as waits,
    ):
        await eventually(lambda: here.is_online(favourite, customer))
        await here.book(
            customer, routing_type="priority_broadcast", preferred_mechanic_id=favourite
        )
        card = await asked.until("offer")
        await asked.send("offer.seen", offer_id=card["offer_id"])
        await asked.settle()
        await pass_time(database_url, 601, here, there)
        await waits.until("offer")

        measured = [_written(living) for living in (here, there)]

    assert [count for count, _ in measured] == [1.0, 0.0]
    assert measured[0][1] < 10


def _written(living: LivingNode) -> tuple[float, float]:
    """How often the first write was measured on this node, and how many seconds it took in all."""
    found = {"count": 0.0, "sum": 0.0}
    for line in living.node.metrics.render().decode().splitlines():
        name, _, value = line.rpartition(" ")
        for kind in found:
            if name.startswith(f"dispatch_waterfall_seconds_{kind}") and 'step="written"' in name:
                found[kind] = float(value)
    return found["count"], found["sum"]


async def test_a_favourite_whose_card_was_taken_by_another_has_it_no_more(
    make_config: MakeConfig, connection: Connection
) -> None:
    favourite, other = await add_mechanic(connection), await add_mechanic(connection)
    customer = await add_customer(connection)
    async with (
        living_node(make_config(**TRUE_SECONDS)) as living,
        living.client(favourite, "mechanic") as asked,
        living.client(other, "mechanic") as wins,
    ):
        await eventually(lambda: living.is_online(favourite, customer))
        booked = await living.book(
            customer, routing_type="priority_broadcast", preferred_mechanic_id=favourite
        )
        card = await asked.until("offer")
        await asked.send("offer.seen", offer_id=card["offer_id"])
        await asked.settle()
        await living.node.dispatcher.widen(customer, booked.request_id)
        await wins.until("offer")
        await wins.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
        await asked.until("offer.revoked", reason="taken")

        told = await told_of(booked.request_id, living)

    assert {each.mechanic_id: each.answer for each in told.candidates} == {
        favourite: "revoked",
        other: "accepted",
    }


async def test_a_decline_after_a_loss_is_on_record(
    make_config: MakeConfig, connection: Connection
) -> None:
    busy = await add_mechanic(connection)
    async with (
        living_node(make_config(**TRUE_SECONDS)) as living,
        living.client(busy, "mechanic") as mechanic,
    ):
        cards: list[dict[str, Any]] = []
        for _ in range(2):
            booked = await living.book(await add_customer(connection))
            cards.append(await mechanic.until("offer", request_id=booked.request_id))
        await mechanic.send("offer.accept", offer_id=cards[0]["offer_id"], accept_id=uuid4())
        await mechanic.until("offer.won")
        await mechanic.send("offer.accept", offer_id=cards[1]["offer_id"], accept_id=uuid4())
        await mechanic.until("offer.lost", reason="busy")
        await mechanic.send("offer.decline", offer_id=cards[1]["offer_id"], reason="no", id="d")
        await mechanic.until("ok", re="d")

        _, told = await living.call(busy, "mechanic", "GET", "/api/mechanic/why-no-offers")
        (story,) = (await told_of(UUID(cards[1]["request_id"]), living)).candidates

    assert told["lately"]["declined"] == 1
    assert (story.answer, story.reason) == ("declined", "no")


@pytest.mark.parametrize(
    "forged", ["no\x1b[2J", "no\n  17:33:23.004  accepted  Somebody", "\u202eno"]
)
async def test_what_a_mechanic_writes_forges_no_line_and_moves_no_cursor(
    make_config: MakeConfig, connection: Connection, forged: str
) -> None:
    mechanic_id = await add_mechanic(connection)
    async with (
        living_node(make_config(**TRUE_SECONDS)) as living,
        living.client(mechanic_id, "mechanic") as mechanic,
    ):
        booked = await living.book(await add_customer(connection))
        card = await mechanic.until("offer")
        await mechanic.send("offer.decline", offer_id=card["offer_id"], reason=forged, id="d")
        await mechanic.until("ok", re="d")

        text = as_text(await told_of(booked.request_id, living))

    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.strip().startswith("17:33:23.004") for line in text.split("\n"))
