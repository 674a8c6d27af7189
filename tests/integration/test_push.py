"""From an offer to a lock screen: queued with what causes it, delivered once to every device."""

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from dispatch import push
from dispatch.config import Config
from dispatch.core.types import Booking, Cancel, Decline, MechanicCancel
from dispatch.database import Connection, Pool, close_pool
from dispatch.outbox import Outbox
from dispatch.push import MAX_TTL_SECONDS
from dispatch.push_client import WebPush
from dispatch.store import Store
from tests.conftest import MakeConfig
from tests.integration.living import living_node
from tests.integration.push_service import SUBJECT, Answer, PushService
from tests.integration.push_town import CAPACITY, service, subscribe, web_push
from tests.integration.rows import (
    accept,
    add_mechanic,
    book_and_open,
    candidate,
    change,
    occupy,
    rolled_back,
)
from tests.integration.till import running
from tests.support import eventually

__all__ = ["service", "web_push"]  # fixtures


@pytest.fixture
def outbox(store: Store, web_push: WebPush) -> Outbox:
    return outbox_of(store, web_push)


def outbox_of(store: Store, web_push: WebPush) -> Outbox:
    return Outbox(store.pool, {"push": partial(push.deliver, store, web_push, CAPACITY)})


async def ask_favourite(
    connection: Connection, store: Store, mechanic_id: UUID, **wish: Any
) -> Booking:
    """A booking that waits for a favourite, whose devices are to be told."""
    wish = {"routing_type": "priority_broadcast", "preferred_mechanic_id": mechanic_id} | wish
    booking = await book_and_open(connection, store, **wish)
    async with connection.transaction():
        assert await push.queue_offer(connection, booking, mechanic_id)
    return booking


async def effect(pool: Pool) -> asyncpg.Record:
    """The only notification that was queued."""
    (row,) = await pool.fetch(
        "SELECT *, extract(epoch FROM next_try_at - dispatch_now())::float AS wait_seconds"
        " FROM outbox"
    )
    assert isinstance(row, asyncpg.Record)
    return row


async def once(pool: Pool, outbox: Outbox, *columns: str) -> asyncpg.Record:
    """The notification, after it was delivered until one of these columns says something."""
    async with running(outbox):
        return await eventually(lambda: with_one_of(pool, columns))


async def with_one_of(pool: Pool, columns: Sequence[str]) -> asyncpg.Record | None:
    row = await effect(pool)
    return row if any(row[column] is not None for column in columns) else None


async def make_due(pool: Pool) -> None:
    """The pause before the next attempt, or the lease of a node that died, is over."""
    await pool.execute("UPDATE outbox SET next_try_at = dispatch_now(), last_error = NULL")


# --- what is told ---------------------------------------------------------------------------------


async def test_a_favourite_who_is_away_reads_that_she_is_asked_for(
    connection: Connection, store: Store, service: PushService, web_push: WebPush, outbox: Outbox
) -> None:
    mechanic = await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    booking = await ask_favourite(
        connection,
        store,
        mechanic,
        concern="it smells of money",
        vehicle="a red Tatra",
        urgent=True,
    )

    row = await once(store.pool, outbox, "done_at")

    (delivered,) = browser.got
    assert delivered.message == {
        "type": "offer",
        "offer_id": str(booking.offer_id),
        "request_id": str(booking.request_id),
        "session_type": "chat",
        "urgent": True,
        "preferred": True,
        "expires_at": booking.expires_at.isoformat(timespec="milliseconds")[:23] + "Z",
        "title": "A customer asks for you",
        "body": "Chat. Open Dispatch to answer.",
    }
    for private in ("Kim", "Tatra", "money"):  # the customer's name, car and concern
        assert private not in json.dumps(delivered.message)
    assert (row["attempts"], row["failed_at"]) == (1, None)
    times = await connection.fetchrow(
        "SELECT o.pushed_at, s.delivered_at FROM offers o JOIN push_subscriptions s"
        " USING (mechanic_id) WHERE o.request_id = $1",
        booking.request_id,
    )
    assert times is not None
    assert None not in tuple(times)


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ({}, 600),  # the favourite's window, of which some may have passed
        ({"wait_for_preferred": True}, 1800),
    ],
)
async def test_it_is_of_use_until_the_stage_ends(
    connection: Connection,
    store: Store,
    service: PushService,
    web_push: WebPush,
    outbox: Outbox,
    wish: dict[str, Any],
    seconds: int,
) -> None:
    mechanic = await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    booking = await ask_favourite(connection, store, mechanic, **wish)
    assert booking.stage_ends_at is not None
    left = booking.stage_ends_at - datetime.now(UTC)
    assert timedelta(0) < left <= timedelta(seconds=seconds)

    await once(store.pool, outbox, "done_at")

    ttl_seconds = int(browser.got[0].headers["ttl"])
    assert left.total_seconds() - 10 < ttl_seconds <= left.total_seconds()


@pytest.mark.parametrize(
    ("interval", "seconds"), [("30 minutes", 1800), ("6 days", MAX_TTL_SECONDS)]
)
async def test_without_a_stage_that_ends_it_is_of_use_until_the_request_expires(
    connection: Connection,
    store: Store,
    service: PushService,
    web_push: WebPush,
    outbox: Outbox,
    interval: str,
    seconds: int,
) -> None:
    mechanic = await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    booking = await book_and_open(connection, store, urgent=True)
    await connection.execute(
        f"UPDATE session_requests SET expires_at = dispatch_now() + interval '{interval}'"
    )
    async with connection.transaction():
        await push.queue_offer(connection, booking, mechanic)

    await once(store.pool, outbox, "done_at")

    (delivered,) = browser.got
    assert seconds - 10 < int(delivered.headers["ttl"]) <= seconds
    assert delivered.message["preferred"] is False
    assert delivered.message["title"] == "Somebody needs a mechanic now"


# --- queueing -------------------------------------------------------------------------------------


async def test_one_notification_a_round_and_only_where_there_is_a_device(
    connection: Connection, store: Store, service: PushService, web_push: WebPush
) -> None:
    mechanic, other = await add_mechanic(connection), await add_mechanic(connection)
    booking = await book_and_open(connection, store)
    async with connection.transaction():
        without_device = await push.queue_offer(connection, booking, mechanic)
    await subscribe(store.pool, service, web_push, mechanic)

    async with rolled_back(connection):
        undone = await push.queue_offer(connection, booking, mechanic)
    async with connection.transaction():
        first = await push.queue_offer(connection, booking, mechanic)
        again = await push.queue_offer(connection, booking, mechanic)
    assert (await accept(connection, booking.offer_id, other)).won
    given_back = await change(connection, store, booking.request_id, MechanicCancel(other, None))
    async with connection.transaction():
        next_round = await push.queue_offer(connection, given_back.booking, mechanic)

    assert (without_device, undone, first, again, next_round) == (False, True, True, False, True)
    queued = await connection.fetch("SELECT idempotency_key FROM outbox ORDER BY id")
    assert [row[0] for row in queued] == [
        f"push-{booking.request_id}-1-{mechanic}",
        f"push-{booking.request_id}-2-{mechanic}",
    ]


async def test_a_newer_notification_of_a_request_replaces_an_older(
    connection: Connection, store: Store, service: PushService, web_push: WebPush, outbox: Outbox
) -> None:
    mechanic, other = await add_mechanic(connection), await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    booking = await book_and_open(connection, store)
    async with connection.transaction():
        await push.queue_offer(connection, booking, mechanic)
    await once(store.pool, outbox, "done_at")
    await accept(connection, booking.offer_id, other)
    decision = await change(connection, store, booking.request_id, MechanicCancel(other, None))
    reopened = decision.booking
    async with connection.transaction():
        await push.queue_offer(connection, reopened, mechanic)

    async with running(outbox):
        await eventually(lambda: len(browser.got) == 2)

    (shown,) = browser.shown.values()
    assert shown["offer_id"] == str(reopened.offer_id) != str(booking.offer_id)


# --- several devices, and services that do not take it --------------------------------------------


async def test_a_device_that_was_told_is_not_told_again_for_another_ones_sake(
    connection: Connection, store: Store, service: PushService, web_push: WebPush, outbox: Outbox
) -> None:
    mechanic = await add_mechanic(connection)
    phone, laptop, old = [
        await subscribe(store.pool, service, web_push, mechanic) for _ in range(3)
    ]
    laptop.answers.extend([500, 503])
    old.answers.append(413)
    await ask_favourite(connection, store, mechanic)

    for _ in range(2):
        row = await once(store.pool, outbox, "last_error")
        assert (row["done_at"], row["failed_at"]) == (None, None)
        await make_due(store.pool)
    row = await once(store.pool, outbox, "done_at")

    assert row["attempts"] == 3
    assert (phone.tries, laptop.tries, old.tries) == (1, 3, 1)
    assert (len(phone.got), len(laptop.got), len(old.got)) == (1, 1, 0)


async def test_a_device_whose_service_hangs_holds_up_no_other_device(
    connection: Connection, store: Store, service: PushService, web_push: WebPush, outbox: Outbox
) -> None:
    mechanic = await add_mechanic(connection)
    slow, fast = [await subscribe(store.pool, service, web_push, mechanic) for _ in range(2)]
    slow.answers.append(Answer(hangs=True))
    await ask_favourite(connection, store, mechanic)

    async with running(outbox):
        await eventually(lambda: fast.got)
        row = await effect(store.pool)

    assert (slow.tries, row["done_at"]) == (1, None)


@pytest.mark.parametrize("status", [404, 410])
async def test_a_subscription_that_its_service_does_not_know_is_removed(
    connection: Connection,
    store: Store,
    service: PushService,
    web_push: WebPush,
    outbox: Outbox,
    status: int,
) -> None:
    mechanic = await add_mechanic(connection)
    gone, here = [await subscribe(store.pool, service, web_push, mechanic) for _ in range(2)]
    gone.answers.append(status)
    await ask_favourite(connection, store, mechanic)

    row = await once(store.pool, outbox, "done_at", "failed_at", "last_error")

    left = await connection.fetch("SELECT endpoint FROM push_subscriptions")
    assert [row[0] for row in left] == [here.endpoint]
    assert (row["last_error"], len(here.got)) == (None, 1)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_service_that_asks_for_time_gets_it(
    connection: Connection,
    store: Store,
    service: PushService,
    web_push: WebPush,
    outbox: Outbox,
    status: int,
) -> None:
    mechanic = await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    browser.answers.append(Answer(status, {"Retry-After": "120"}))
    await ask_favourite(connection, store, mechanic)

    row = await once(store.pool, outbox, "last_error")

    assert 100 < row["wait_seconds"] <= 120
    assert row["last_error"] == f"127.0.0.1 answers {status}"


@pytest.mark.parametrize("status", [307, 400, 401, 403, 413])
async def test_what_a_service_refuses_is_given_up_with_an_alarm_and_without_a_secret(
    connection: Connection,
    store: Store,
    service: PushService,
    web_push: WebPush,
    outbox: Outbox,
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    caplog.set_level(logging.DEBUG)
    mechanic = await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    browser.answers.append(Answer(status, {"Location": f"{service.url}/elsewhere"}))
    await ask_favourite(connection, store, mechanic)

    row = await once(store.pool, outbox, "failed_at")

    assert (row["attempts"], row["last_error"]) == (1, f"127.0.0.1 answers {status}")
    (alarm,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert alarm.endswith(f"is given up after 1 attempts: 127.0.0.1 answers {status}")
    assert await connection.fetchval("SELECT count(*) FROM push_subscriptions") == 1
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("dispatch"))
    for secret in (browser.endpoint, *browser.form()["keys"].values(), service.private_key):
        assert secret not in ours + str(dict(row))


async def test_a_refusal_is_told_also_where_another_device_is_tried_again(
    connection: Connection,
    store: Store,
    service: PushService,
    web_push: WebPush,
    outbox: Outbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mechanic = await add_mechanic(connection)
    refused, busy = [await subscribe(store.pool, service, web_push, mechanic) for _ in range(2)]
    refused.answers.append(400)
    busy.answers.append(500)
    await ask_favourite(connection, store, mechanic)

    await once(store.pool, outbox, "last_error")
    await make_due(store.pool)
    row = await once(store.pool, outbox, "done_at", "failed_at")

    alarms = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(alarms) == 1
    assert "is given up for a device: 127.0.0.1 answers 400" in alarms[0]
    assert (row["failed_at"], len(busy.got)) == (None, 1)


# --- crashes --------------------------------------------------------------------------------------


async def test_a_node_that_dies_before_the_answer_leaves_it_to_be_sent_again_and_shown_once(
    connection: Connection, store: Store, service: PushService, web_push: WebPush
) -> None:
    """At least once: between a push service's 201 and our row no promise can be kept."""
    mechanic = await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    browser.answers.append(Answer(hangs=True))  # it has taken the message, and its answer is lost
    booking = await ask_favourite(connection, store, mechanic)
    dying = outbox_of(store, web_push)
    async with running(dying):
        await eventually(lambda: browser.got)
    left = await effect(store.pool)

    await make_due(store.pool)
    row = await once(store.pool, outbox_of(store, web_push), "done_at")

    assert (left["done_at"], left["attempts"]) == (None, 1)
    assert left["wait_seconds"] > 10
    assert row["attempts"] == 2
    assert [delivered.message["offer_id"] for delivered in browser.got] == (
        [str(booking.offer_id)] * 2
    )
    assert len(browser.shown) == 1


async def test_a_node_that_dies_after_a_device_was_written_down_does_not_send_to_it_again(
    connection: Connection, store: Store, service: PushService, web_push: WebPush
) -> None:
    mechanic = await add_mechanic(connection)
    told, waiting = [await subscribe(store.pool, service, web_push, mechanic) for _ in range(2)]
    waiting.answers.append(Answer(500, hangs=True))
    await ask_favourite(connection, store, mechanic)
    async with running(outbox_of(store, web_push)):
        await eventually(
            lambda: connection.fetchval("SELECT count(delivered_at) FROM push_subscriptions")
        )

    await make_due(store.pool)
    await once(store.pool, outbox_of(store, web_push), "done_at")

    assert (told.tries, len(told.got)) == (1, 1)
    assert (waiting.tries, len(waiting.got)) == (2, 1)


# --- rounds that are over -------------------------------------------------------------------------


async def taken(connection: Connection, store: Store, booking: Booking, mechanic: UUID) -> None:
    assert (await accept(connection, booking.offer_id, await add_mechanic(connection))).won


async def cancelled(connection: Connection, store: Store, booking: Booking, mechanic: UUID) -> None:
    await change(connection, store, booking.request_id, Cancel())


async def reopened(connection: Connection, store: Store, booking: Booking, mechanic: UUID) -> None:
    other = await add_mechanic(connection)
    await taken_by(connection, booking, other)
    await change(connection, store, booking.request_id, MechanicCancel(other, None))


async def declined(connection: Connection, store: Store, booking: Booking, mechanic: UUID) -> None:
    refusing = await candidate(connection, mechanic)
    await change(connection, store, booking.request_id, Decline(refusing, booking.offer_id, None))


async def busy(connection: Connection, store: Store, booking: Booking, mechanic: UUID) -> None:
    await occupy(connection, mechanic, 1)


async def unavailable(
    connection: Connection, store: Store, booking: Booking, mechanic: UUID
) -> None:
    await connection.execute("UPDATE mechanics SET available = false WHERE id = $1", mechanic)


async def expired(connection: Connection, store: Store, booking: Booking, mechanic: UUID) -> None:
    """Nobody has noticed yet: the row still says pending."""
    await connection.execute("UPDATE session_requests SET expires_at = dispatch_now()")


async def unsubscribed(
    connection: Connection, store: Store, booking: Booking, mechanic: UUID
) -> None:
    await connection.execute("DELETE FROM push_subscriptions")


async def taken_by(connection: Connection, booking: Booking, mechanic: UUID) -> None:
    assert (await accept(connection, booking.offer_id, mechanic)).won


@pytest.mark.parametrize(
    "happens", [taken, cancelled, reopened, declined, busy, unavailable, expired, unsubscribed]
)
async def test_nobody_is_told_of_what_she_cannot_have_any_more(
    connection: Connection,
    store: Store,
    service: PushService,
    web_push: WebPush,
    outbox: Outbox,
    happens: Any,
) -> None:
    mechanic = await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    booking = await book_and_open(connection, store)
    async with connection.transaction():
        await push.queue_offer(connection, booking, mechanic)
    await happens(connection, store, booking, mechanic)

    row = await once(store.pool, outbox, "done_at", "last_error")

    assert (row["attempts"], row["last_error"]) == (1, None)
    assert browser.tries == 0


@asynccontextmanager
async def store_later(config: Config, seconds: float) -> AsyncIterator[Store]:
    settings = {"dispatch.clock_offset": f"{seconds} seconds", "timezone": "UTC"}
    pool = await asyncpg.create_pool(config.database_url, min_size=1, server_settings=settings)
    yield Store(pool)
    await close_pool(pool)


async def test_a_retry_after_the_expiry_tells_nobody(
    config: Config,
    connection: Connection,
    store: Store,
    service: PushService,
    web_push: WebPush,
    outbox: Outbox,
) -> None:
    mechanic = await add_mechanic(connection)
    browser = await subscribe(store.pool, service, web_push, mechanic)
    browser.answers.append(Answer(503, {"Retry-After": "100000"}))
    booking = await ask_favourite(connection, store, mechanic)
    await once(store.pool, outbox, "last_error")
    until_expiry = (booking.expires_at - datetime.now(UTC)).total_seconds()

    async with store_later(config, until_expiry + 1) as late:
        row = await once(late.pool, outbox_of(late, web_push), "done_at")

    assert (row["attempts"], browser.tries, browser.got) == (2, 1, [])


# --- a whole node ---------------------------------------------------------------------------------


async def test_a_node_delivers_to_a_device_that_subscribed_over_http(
    make_config: MakeConfig, connection: Connection, store: Store, service: PushService
) -> None:
    mechanic = await add_mechanic(connection)
    browser = service.browser()
    config = make_config(
        vapid_private_key=service.private_key,
        vapid_subject=SUBJECT,
        push_trusted_origins=(service.url,),
    )
    path = "/api/push/subscriptions"
    async with living_node(config) as living:
        status, _ = await living.call(mechanic, "mechanic", "POST", path, browser.form())
        booking = await ask_favourite(connection, store, mechanic)
        living.node.outbox.wake()
        row = await eventually(lambda: with_one_of(store.pool, ["done_at"]))

    (delivered,) = browser.got
    assert (status, row["attempts"]) == (201, 1)
    assert delivered.message["offer_id"] == str(booking.offer_id)
