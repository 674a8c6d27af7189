"""A mechanic asks why she gets no offers: what keeps her, what is open, what there was of late."""

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatch import why_no_offers
from dispatch.core.types import Presence
from dispatch.database import Connection
from dispatch.endpoints.mechanics import WHY_PER_MINUTE
from dispatch.protocol import timestamp
from tests.conftest import MakeConfig
from tests.integration.living import LivingNode, living_node
from tests.integration.rows import add_customer, add_mechanic, add_workshop, book, occupy
from tests.integration.trail import decided, declined, judged
from tests.support import eventually

PATH = "/api/mechanic/why-no-offers"
NO_REDIS = "redis://127.0.0.1:9"


@pytest.fixture
async def living(make_config: MakeConfig) -> AsyncIterator[LivingNode]:
    config = make_config(wait_window_seconds=600.0, request_ttl_seconds=600.0)
    async with living_node(config) as living:
        await eventually(lambda: living.node.degraded() == [])
        yield living


async def ask(living: LivingNode, mechanic_id: UUID) -> dict[str, Any]:
    status, answer = await living.call(mechanic_id, "mechanic", "GET", PATH)
    assert status == 200, answer
    assert answer.pop("ok") is True
    return answer


def codes(answer: dict[str, Any]) -> list[str]:
    return [reason["code"] for reason in answer["reasons"]]


# --- what keeps her now ---------------------------------------------------------------------------


async def test_who_is_not_connected_while_nothing_is_open_is_told_both(
    connection: Connection, living: LivingNode
) -> None:
    mechanic = await add_mechanic(connection)

    answer = await ask(living, mechanic)

    lately = answer.pop("lately")
    assert answer == {
        "reasons": [
            {
                "code": "not_connected",
                "message": "You are not connected. Offers come while your page is open.",
            },
            {"code": "nothing_open", "message": "Nobody waits for a mechanic at the moment."},
        ],
        "open_requests": {"offered": 0, "not_for_you": {}},
    }
    assert lately.pop("since") == lately.pop("offers_since")
    assert lately == {
        "offers_sent": 0,
        "offers_seen": 0,
        "accepted": 0,
        "declined": 0,
        "lost": {},
        "last_offer_at": None,
    }


async def test_what_she_does_with_offers_is_told_as_it_happens(
    connection: Connection, living: LivingNode
) -> None:
    mechanic = await add_mechanic(connection)
    async with living.client(mechanic, "mechanic") as client:

        async def lately(**expected: object) -> dict[str, Any]:
            await client.settle()
            await living.node.audit.flush()  # as it does by itself twice a second
            answer = await ask(living, mechanic)
            assert expected.items() <= answer["lately"].items()
            return answer

        await eventually(lambda: _is_connected(living, mechanic))
        await living.book(await add_customer(connection))
        offer = await client.until("offer")
        sent = await lately(offers_sent=1, offers_seen=0)
        await client.send("offer.seen", offer_id=offer["offer_id"])
        await lately(offers_sent=1, offers_seen=1)
        await client.send("offer.decline", offer_id=offer["offer_id"], id="no")
        await client.until("ok", re="no")
        refused = await lately(offers_sent=1, offers_seen=1, declined=1, accepted=0)
        await living.book(await add_customer(connection))
        second = await client.until("offer")
        await client.send("offer.accept", offer_id=second["offer_id"], accept_id=uuid4())
        await client.until("offer.won")
        working = await lately(offers_sent=2, declined=1, accepted=1, lost={})

    assert sent["reasons"] == []
    assert sent["open_requests"] == {"offered": 1, "not_for_you": {}}
    assert sent["lately"]["last_offer_at"] == offer["server_time"]
    assert codes(refused) == ["nothing_for_you"]
    assert refused["open_requests"] == {"offered": 0, "not_for_you": {"excluded": 1}}
    assert codes(working) == ["busy", "nothing_for_you"]
    assert working["open_requests"] == refused["open_requests"]


async def test_of_what_is_for_others_she_gets_counts_and_nothing_that_tells_them_apart(
    connection: Connection, living: LivingNode
) -> None:
    mechanic, favourite = await add_mechanic(connection), await add_mechanic(connection)
    workshop = await add_workshop(connection)
    wishes: list[dict[str, Any]] = [
        {"is_specialist": True},
        {"is_specialist": True},
        {"routing_type": "workshop_only", "workshop_id": workshop},
        {
            "routing_type": "priority_broadcast",
            "preferred_mechanic_id": favourite,
            "wait_for_preferred": True,
        },
    ]
    async with living.client(mechanic, "mechanic"):
        await eventually(lambda: _is_connected(living, mechanic))
        booked = [await living.book(await add_customer(connection), **wish) for wish in wishes]
        board = living.node.board
        await eventually(lambda: len(board.open_entries()) == len(wishes))

        answer = await ask(living, mechanic)

    assert codes(answer) == ["nothing_for_you"]
    assert answer["open_requests"] == {
        "offered": 0,
        "not_for_you": {"not_specialist": 2, "other_workshop": 1, "not_favourite": 1},
    }
    told = json.dumps(answer)
    secrets = [workshop, favourite, *(value for each in booked for value in vars(each).values())]
    assert [secret for secret in secrets if str(secret) in told] == []


@pytest.mark.parametrize("passing", ["unavailable", "busy"])
async def test_what_would_be_hers_if_she_were_free_is_counted_as_that(
    connection: Connection, living: LivingNode, passing: str
) -> None:
    mechanic = await add_mechanic(connection)
    if passing == "busy":
        await occupy(connection, mechanic, 1)
    else:
        await connection.execute("UPDATE mechanics SET available = false WHERE id = $1", mechanic)
    async with living.client(mechanic, "mechanic"):
        await eventually(lambda: _is_connected(living, mechanic))
        await living.book(await add_customer(connection))
        await eventually(lambda: living.node.board.open_entries())

        answer = await ask(living, mechanic)

    assert codes(answer) == [passing]
    assert answer["open_requests"] == {"offered": 0, "not_for_you": {passing: 1}}


async def test_who_is_not_connected_sees_how_much_waits_for_her(
    connection: Connection, living: LivingNode
) -> None:
    mechanic = await add_mechanic(connection)
    await living.book(await add_customer(connection))
    await eventually(lambda: living.node.board.open_entries())

    answer = await ask(living, mechanic)

    assert codes(answer) == ["not_connected"]
    assert answer["open_requests"] == {"offered": 1, "not_for_you": {}}


@pytest.mark.parametrize("status", ["pending", "rejected"])
async def test_who_is_not_approved_is_told_that_and_not_how_much_there_is_to_do(
    connection: Connection, living: LivingNode, status: str
) -> None:
    mechanic = await add_mechanic(connection)
    await connection.execute(
        "UPDATE mechanics SET application_status = $2 WHERE id = $1", mechanic, status
    )
    await living.book(await add_customer(connection))
    await eventually(lambda: living.node.board.open_entries())

    answer = await ask(living, mechanic)

    (reason,) = answer["reasons"]
    assert (reason["code"], reason["application_status"]) == ("not_approved", status)
    assert reason["message"].startswith("Your application")
    assert answer["open_requests"] == {"offered": 0, "not_for_you": {}}


async def test_without_redis_nobody_can_say_whether_she_is_connected_and_she_is_told_so(
    connection: Connection, make_config: MakeConfig
) -> None:
    mechanic = await add_mechanic(connection)
    async with (
        living_node(make_config(redis_url=NO_REDIS)) as living,
        living.client(mechanic, "mechanic"),
    ):
        answer = await ask(living, mechanic)

    assert codes(answer) == ["presence_unknown", "nothing_open"]


# --- what there was of late -----------------------------------------------------------------------


async def test_a_round_counts_once_however_often_it_was_sent_within_the_last_day(
    connection: Connection, living: LivingNode
) -> None:
    mechanic, other = await add_mechanic(connection), await add_mechanic(connection)
    first, second, others = [await book(connection) for _ in range(3)]
    now = living.node.clock.now()

    def ago(hours: float) -> datetime:
        return now - timedelta(hours=hours)

    await decided(connection, first, ago(3), sent={other: 0, mechanic: 1}, stage="preferred")
    await decided(connection, first, ago(2.9), sent={mechanic: 7, other: 8}, seen={mechanic: 900})
    await decided(connection, first, ago(2), sent={mechanic: 0}, generation=2)
    await decided(connection, second, ago(1), sent={other: 0, mechanic: 1250})
    await decided(connection, second, ago(0.9), seen={other: 3})
    await decided(connection, others, ago(0.5), sent={other: 1}, excluded={mechanic: "busy"})
    await decided(connection, second, ago(24.1), sent={mechanic: 0}, generation=3)

    lately = (await ask(living, mechanic))["lately"]

    assert (lately["offers_sent"], lately["offers_seen"]) == (3, 1)
    assert lately["last_offer_at"] == timestamp(ago(1) + timedelta(milliseconds=1250))
    assert lately["offers_since"] == lately["since"]


async def test_answers_are_counted_by_rounds_and_by_what_came_of_them(
    connection: Connection, living: LivingNode
) -> None:
    mechanic, other = await add_mechanic(connection), await add_mechanic(connection)
    bookings = [await book(connection) for _ in range(6)]
    now = living.node.clock.now()
    yesterday = now - timedelta(hours=24.1)
    await judged(connection, bookings[0], mechanic, now)
    await judged(connection, bookings[0], mechanic, now)  # the same round with another accept_id
    await judged(connection, bookings[1], mechanic, now, lost="taken")
    await judged(connection, bookings[2], mechanic, now, lost="taken")
    await judged(connection, bookings[3], mechanic, now, lost="busy")
    await judged(connection, bookings[4], mechanic, yesterday, lost="expired")
    await judged(connection, bookings[4], other, now, lost="cancelled")
    await declined(connection, bookings[4], mechanic, now)
    await declined(connection, bookings[5], mechanic, yesterday)
    await declined(connection, bookings[5], other, now)
    for booking in bookings[2:4]:  # of these her node knew, once more and for the first time
        await decided(connection, booking, now, lost={mechanic: 5, other: 6})

    lately = (await ask(living, mechanic))["lately"]

    assert (lately["accepted"], lately["declined"]) == (1, 1)
    assert lately["lost"] == {"taken": 3, "busy": 1}


@pytest.mark.parametrize(("bound", "value"), [("MAX_DECISIONS", 2), ("MAX_BYTES", 120)])
async def test_where_there_is_too_much_to_look_at_she_is_told_how_far_back_it_went(
    connection: Connection,
    living: LivingNode,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    value: int,
) -> None:
    mechanic = await add_mechanic(connection)
    now = living.node.clock.now()
    for hours in (1, 2, 3):
        booking = await book(connection)
        await decided(connection, booking, now - timedelta(hours=hours), sent={mechanic: 0})
    monkeypatch.setattr(why_no_offers, bound, value)

    lately = (await ask(living, mechanic))["lately"]

    assert lately["offers_sent"] == 2
    assert lately["offers_since"] == timestamp(now - timedelta(hours=3))
    assert _time(lately["since"]) < _time(lately["offers_since"])


# --- who may --------------------------------------------------------------------------------------


async def test_only_a_mechanic_may_ask_and_not_without_end(
    connection: Connection, living: LivingNode
) -> None:
    customer, mechanic = await add_customer(connection), await add_mechanic(connection)

    foreign = await living.call(customer, "customer", "GET", PATH)
    stranger = await living.call(UUID(int=7), "mechanic", "GET", PATH)
    allowed = [
        (await living.call(mechanic, "mechanic", "GET", PATH))[0] for _ in range(WHY_PER_MINUTE)
    ]
    status, refused = await living.call(mechanic, "mechanic", "GET", PATH)
    other = await living.call(await add_mechanic(connection), "mechanic", "GET", PATH)

    assert (foreign[0], foreign[1]["error"]["code"]) == (403, "forbidden")
    assert (stranger[0], stranger[1]["error"]["code"]) == (401, "not_authenticated")
    assert set(allowed) == {200}
    assert (status, refused["error"]["code"]) == (429, "rate_limited")
    assert other[0] == 200


async def _is_connected(living: LivingNode, mechanic_id: UUID) -> bool:
    known = await living.node.presence.look_up([mechanic_id])
    return known[mechanic_id].presence is Presence.ONLINE


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
