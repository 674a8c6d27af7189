"""A booking for now is made and opened by one statement: what it leaves, and what may come between.

Between the read of what it would be made of and the statement that makes it anything may happen;
then nothing of it is written, and the ordinary way judges under its locks.
"""

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from msgspec.structs import replace

from dispatch.config import Config
from dispatch.core import lifecycle
from dispatch.core.replay import replay
from dispatch.core.types import RequestStatus, Stage
from dispatch.database import Connection, Pool
from dispatch.replay import record_of
from dispatch.sessions import Opening, Prospect
from dispatch.store import Store
from tests.integration.living import living_node
from tests.integration.rows import (
    add_customer,
    add_mechanic,
    add_workshop,
    book,
    read_entry,
    stored_due_at,
)
from tests.integration.stripe_servers import Webhook
from tests.integration.till import PUBLIC_URL, Till, changed, open_till
from tests.support import eventually

PAUSE = "UPDATE mechanics SET available = false WHERE id = $1"

# --- what it leaves -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("routing_type", "here", "stage"),
    [
        ("broadcast", True, Stage.OPEN),
        ("workshop_only", True, Stage.OPEN),
        ("hybrid", True, Stage.PREFERRED),
        ("hybrid", False, Stage.OPEN),
        ("priority_broadcast", True, Stage.PRIORITY),
        ("priority_broadcast", False, Stage.OPEN),
    ],
)
async def test_what_is_told_is_what_was_written_and_what_is_decided_again(
    config: Config, connection: Connection, routing_type: str, here: bool, stage: Stage
) -> None:
    """`here`: the favourite is available, and somebody of the workshop connected."""
    workshop_id = await add_workshop(connection)
    favourite = await add_mechanic(connection, workshop_id)
    customer_id = await add_customer(connection)
    if routing_type == "priority_broadcast" and not here:
        await connection.execute(PAUSE, favourite)
    async with living_node(config) as living, living.client(favourite, "mechanic") as mechanic:
        if routing_type == "hybrid" and not here:
            await mechanic.link.close()
            await until_away(living.node.presence.anyone_of_workshop, workshop_id)

        booked = await living.book(
            customer_id,
            routing_type=routing_type,
            workshop_id=workshop_id if routing_type in ("workshop_only", "hybrid") else None,
            preferred_mechanic_id=favourite if routing_type == "priority_broadcast" else None,
            vehicle="VW Polo 2019",
            concern="It rattles",
            is_specialist=False,
        )
        told = living.node.board.get(booked.request_id)

        assert told is not None
        assert told == await read_entry(connection, booked.request_id)
        assert (told.booking.stage, told.booking.version) == (stage, 2)
        due_at = lifecycle.due_at(told.booking, config.policy())
        assert await stored_due_at(connection, booked.request_id) == due_at
        replayed = replay(await record_of(living.node.pool, booked.request_id))
        assert (replayed.differences, replayed.bookings[-1]) == ((), told.booking)
        if routing_type != "hybrid" and here:
            offer = await mechanic.until("offer")
            assert offer["request_id"] == str(booked.request_id)


async def until_away(anyone: Callable[[UUID], Awaitable[object]], workshop_id: UUID) -> None:
    async def is_away() -> bool:
        return await anyone(workshop_id) == "offline"

    await eventually(is_away)


async def test_it_leaves_the_rows_that_making_and_opening_one_after_the_other_leave(
    config: Config, connection: Connection
) -> None:
    """But for ids and times."""
    favourite = await add_mechanic(connection)
    customer_id = await add_customer(connection)
    wish = {"routing_type": "priority_broadcast", "preferred_mechanic_id": favourite}
    async with living_node(config) as living, living.client(favourite, "mechanic") as mechanic:
        at_once = (await living.book(customer_id, **wish)).request_id
        await mechanic.until("offer", request_id=at_once)
        later = (await book(connection, plan_code="free", **wish)).request_id
        living.node.dispatcher.opened(later, living.node.clock.now())
        await mechanic.until("offer", request_id=later)

    for table, which in TABLES.items():
        query = f"SELECT t.* FROM {table} t JOIN session_requests r ON {which} WHERE r.id = $1"
        first, second = [
            [shape_of(dict(row)) for row in await connection.fetch(f"{query} ORDER BY 1", each)]
            for each in (at_once, later)
        ]
        assert first == second, table


TABLES = {
    "sessions": "t.id = r.session_id",
    "session_participants": "t.session_id = r.session_id",
    "session_requests": "t.id = r.id",
    "session_assignments": "t.request_id = r.id",
    "session_events": "t.session_id = r.session_id",
    "offers": "t.request_id = r.id",
}


def shape_of(row: dict[str, object]) -> dict[str, object]:
    """What must be the same: everything but what is new or another moment in every booking."""
    kinds = (int, str, bool, type(None))
    plain = {name: value for name, value in row.items() if isinstance(value, kinds)}
    filled = {name for name, value in row.items() if value is not None}
    return {**plain, "id": None, "filled": filled, "metadata": None}


# --- what may come between ------------------------------------------------------------------------


@pytest.fixture
async def till(config: Config, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(dataclasses.replace(config, public_url=PUBLIC_URL), tmp_path) as till:
        yield till


def after(till: Till, meanwhile: Callable[[Prospect], Awaitable[object]]) -> None:
    """The next first stage is decided, and before it is written something else happens."""

    async def open_at_once(prospect: Prospect) -> Opening:
        till.open_at_once = till.decide_first_stage
        opening = await till.decide_first_stage(prospect)
        await meanwhile(prospect)
        return opening

    till.open_at_once = open_at_once


async def paid(till: Till) -> tuple[str, Webhook]:
    url = await till.ordered()
    return url, await till.pay(url)


async def test_a_customer_who_is_busy_by_now_is_refunded(till: Till, pool: Pool) -> None:
    url, hook = await paid(till)

    async def books_another(prospect: Prospect) -> None:
        await pool.execute(
            "INSERT INTO sessions (customer_user_id, type, status, plan)"
            " VALUES ($1, 'chat', 'pending', 'free')",
            prospect.wish.customer_id,
        )

    after(till, books_another)
    outcome = await till.handle(hook)

    payment = await till.payment(url)
    assert (outcome.result, outcome.created) == ("refunding", None)
    assert (payment["status"], payment["note"]) == ("refunding", "active_session_exists")
    assert (await till.count("sessions"), await till.count("session_requests")) == (1, 0)
    assert await till.count("outbox") == 1
    assert await pool.fetchval("SELECT outcome FROM stripe_events") == "refunding"


async def test_a_payment_that_another_webhook_answered_is_not_answered_twice(till: Till) -> None:
    url, hook = await paid(till)
    other = changed(hook, "checkout.session.async_payment_succeeded")

    after(till, lambda _: till.handle(other))
    outcome = await till.handle(hook)

    assert outcome.result == "repeated"
    assert till.results() == {"fulfilled": 1, "repeated": 1}
    assert (await till.count("sessions"), await till.count("stripe_events")) == (1, 2)
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_the_same_webhook_that_was_faster_makes_this_one_a_duplicate(till: Till) -> None:
    _, hook = await paid(till)

    after(till, lambda _: till.handle(hook))
    outcome = await till.handle(hook)

    assert (outcome.result, outcome.created) == ("duplicate", None)
    assert (await till.count("sessions"), await till.count("session_events")) == (1, 2)


async def test_a_checkout_that_expired_meanwhile_is_booked_all_the_same(till: Till) -> None:
    url, hook = await paid(till)

    after(till, lambda _: till.handle(changed(hook, "checkout.session.expired")))
    outcome = await till.handle(hook)

    assert outcome.result == "fulfilled"
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_a_first_stage_that_was_decided_long_ago_is_decided_again(till: Till) -> None:
    """Else a node that stood still meanwhile would take from the favourite what it lasted."""
    _, hook = await paid(till)

    async def decided_before(prospect: Prospect) -> Opening:
        before = prospect.now - timedelta(seconds=1.5)
        return await till.decide_first_stage(replace(prospect, now=before))

    till.open_at_once = decided_before
    outcome = await till.handle(hook)

    assert outcome.result == "fulfilled"
    assert outcome.created is not None
    assert outcome.created.entry is None
    assert till.results() == {"fulfilled": 1}


async def test_a_free_booking_that_was_decided_long_ago_is_decided_again(
    config: Config, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    mechanic_id, customer_id = await add_mechanic(connection), await add_customer(connection)
    async with living_node(config) as living, living.client(mechanic_id, "mechanic") as mechanic:
        decide = living.node.dispatcher.open_at_once

        async def decided_before(prospect: Prospect) -> Opening | None:
            return await decide(replace(prospect, now=prospect.now - timedelta(seconds=1.5)))

        monkeypatch.setattr(living.node.dispatcher, "open_at_once", decided_before)
        booked = await living.book(customer_id)
        await mechanic.until("offer", request_id=booked.request_id)
        now = living.node.clock.now()

    entry = await read_entry(connection, booked.request_id)
    assert now - entry.booking.created_at < timedelta(seconds=1.5)


async def test_what_cannot_be_opened_with_its_making_is_made_first(till: Till) -> None:
    """A notification is to be queued with the opening: the dispatcher declines to do it at once."""
    _, hook = await paid(till)

    async def declines(prospect: Prospect) -> None:
        return None

    till.open_at_once = declines
    outcome = await till.handle(hook)

    assert outcome.result == "fulfilled"
    assert outcome.created is not None
    assert outcome.created.entry is None
    entry = await Store(till.pool).entry(outcome.created.request_id)
    assert entry is not None
    assert (entry.booking.status, entry.booking.stage) == (RequestStatus.PENDING, None)
