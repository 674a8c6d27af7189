"""An urgent booking that finds too few: which of those who are away are notified."""

from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

from dispatch import push
from dispatch.core import routing
from dispatch.core.types import Booking, Decline
from dispatch.database import Connection
from dispatch.push_client import WebPush
from dispatch.store import Store
from tests.integration.push_service import PushService
from tests.integration.push_town import CAPACITY, service, subscribe, web_push
from tests.integration.rows import (
    add_mechanic,
    add_workshop,
    book,
    book_and_open,
    candidate,
    change,
    occupy,
)

__all__ = ["service", "web_push"]  # fixtures


async def away_since(
    connection: Connection,
    service: PushService,
    web_push: WebPush,
    store: Store,
    hours: int,
    workshop_id: UUID | None = None,
    **facts: object,
) -> UUID:
    """A mechanic with a device who was seen so many hours ago; `facts` name columns."""
    mechanic = await add_mechanic(connection, workshop_id)
    await subscribe(store.pool, service, web_push, mechanic)
    facts = {"last_seen": datetime.now(UTC) - timedelta(hours=hours)} | facts
    for column, value in facts.items():
        await connection.execute(
            f"UPDATE mechanics SET {column} = $2 WHERE id = $1", mechanic, value
        )
    return mechanic


async def queued_for(connection: Connection) -> list[UUID]:
    """For whom, in the order in which they were queued."""
    rows = await connection.fetch(
        "SELECT payload ->> 'mechanic_id' AS mechanic_id FROM outbox ORDER BY id"
    )
    return [UUID(row["mechanic_id"]) for row in rows]


async def queue_urgent(connection: Connection, booking: Booking, limit: int = 10) -> int:
    async with connection.transaction():
        return await push.queue_urgent(connection, booking, capacity=CAPACITY, limit=limit)


async def test_an_urgent_booking_is_pushed_to_those_who_could_take_it_the_last_seen_first(
    connection: Connection, store: Store, service: PushService, web_push: WebPush
) -> None:
    away = partial(away_since, connection, service, web_push, store)
    long_ago, lately = await away(9, is_specialist=True), await away(1, is_specialist=True)
    never_seen = await away(0, is_specialist=True, last_seen=None)
    declined = await away(2, is_specialist=True)
    busy = await away(2, is_specialist=True)
    await occupy(connection, busy, 1)
    await away(2)  # no specialist
    await away(2, is_specialist=True, is_online=True)
    await away(2, is_specialist=True, available=False)
    await away(2, is_specialist=True, application_status="pending")
    without_device = await add_mechanic(connection)
    await connection.execute(
        "UPDATE mechanics SET is_specialist = true WHERE id = $1", without_device
    )
    booking = await book_and_open(connection, store, urgent=True, is_specialist=True)
    refusing = await candidate(connection, declined)
    decision = await change(
        connection, store, booking.request_id, Decline(refusing, booking.offer_id, None)
    )

    queued = await queue_urgent(connection, decision.booking)
    again = await queue_urgent(connection, decision.booking)

    assert (queued, again) == (3, 0)
    assert await queued_for(connection) == [lately, long_ago, never_seen]
    offers = await connection.fetch(
        "SELECT mechanic_id, generation, stage, score, seen_at FROM offers"
        " WHERE status = 'issued' AND issued_at IS NOT NULL"
    )
    assert {tuple(row) for row in offers} == {
        (mechanic, 1, "open", routing.SCORE_EVERYONE, None)
        for mechanic in (lately, long_ago, never_seen)
    }


async def test_no_more_are_pushed_than_were_asked_for(
    connection: Connection, store: Store, service: PushService, web_push: WebPush
) -> None:
    away = partial(away_since, connection, service, web_push, store)
    mechanics = [await away(hours) for hours in range(5)]
    booking = await book_and_open(connection, store, urgent=True)

    none = await queue_urgent(connection, booking, limit=0)
    two = await queue_urgent(connection, booking, limit=2)

    assert (none, two) == (0, 2)
    assert await queued_for(connection) == mechanics[:2]
    assert await connection.fetchval("SELECT count(*) FROM offers") == 2


async def test_a_workshops_booking_is_pushed_within_the_workshop(
    connection: Connection, store: Store, service: PushService, web_push: WebPush
) -> None:
    away = partial(away_since, connection, service, web_push, store)
    garage, other = await add_workshop(connection), await add_workshop(connection)
    member = await away(3, garage)
    await away(1, other)
    await away(2)
    booking = await book_and_open(
        connection, store, urgent=True, routing_type="workshop_only", workshop_id=garage
    )

    queued = await queue_urgent(connection, booking)

    assert queued == 1
    assert await queued_for(connection) == [member]
    assert await connection.fetchval("SELECT score FROM offers") == routing.SCORE_WORKSHOP


async def test_only_an_urgent_booking_in_its_widest_stage_is_pushed_to_strangers(
    connection: Connection, store: Store, service: PushService, web_push: WebPush
) -> None:
    mechanic = await away_since(connection, service, web_push, store, 1)
    calm = await book_and_open(connection, store)
    waiting = await book_and_open(
        connection,
        store,
        urgent=True,
        routing_type="priority_broadcast",
        preferred_mechanic_id=mechanic,
    )
    unopened = await book(connection, urgent=True)

    queued = [await queue_urgent(connection, booking) for booking in (calm, waiting, unopened)]

    assert queued == [0, 0, 0]
    assert await queued_for(connection) == []


async def test_who_was_asked_before_keeps_her_row(
    connection: Connection, store: Store, service: PushService, web_push: WebPush
) -> None:
    mechanic = await away_since(connection, service, web_push, store, 1)
    booking = await book_and_open(connection, store, urgent=True)
    await connection.execute(
        "INSERT INTO offers (request_id, generation, mechanic_id, status, seen_at)"
        " VALUES ($1, 1, $2, 'seen', now())",
        booking.request_id,
        mechanic,
    )

    assert await queue_urgent(connection, booking) == 1

    assert await connection.fetchval("SELECT status FROM offers") == "seen"
