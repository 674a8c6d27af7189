"""Windows of their true length, passed by the database's clock. (More of it in tests/stories.)"""

from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch.database import POOL_SIZE, Connection
from tests.conftest import MakeConfig
from tests.integration.living import LivingNode, living_node, pass_time
from tests.integration.rows import add_mechanic, book
from tests.support import eventually

TRUE_SECONDS = {
    "priority_window_seconds": 600.0,
    "wait_window_seconds": 1800.0,
    "head_start_seconds": 3.0,
    "offer_retry_seconds": 5.0,
    "request_ttl_seconds": 7200.0,
    "join_seconds": 300.0,
    "plan_minute_seconds": 60.0,
    "warning_seconds": 60.0,
}


async def _status(connection: Connection, request_id: UUID) -> asyncpg.Record:
    row = await connection.fetchrow("SELECT * FROM session_requests WHERE id = $1", request_id)
    assert row is not None
    return row


async def test_a_favourite_who_saw_it_has_ten_minutes_alone(
    connection: Connection, database_url: str, make_config: MakeConfig
) -> None:
    favourite, other = await add_mechanic(connection), await add_mechanic(connection)
    async with (
        living_node(make_config(**TRUE_SECONDS)) as living,
        living.client(favourite, "mechanic") as named,
        living.client(other, "mechanic") as waiting,
    ):
        await _until_online(living, favourite)
        booking = await book(
            connection, routing_type="priority_broadcast", preferred_mechanic_id=favourite
        )
        living.node.dispatcher.opened(booking.request_id, living.node.clock.now())
        offer = await named.until("offer", stage="priority", preferred=True)
        await named.send("offer.seen", offer_id=offer["offer_id"])
        await eventually(lambda: _seen(connection, booking.request_id))

        await pass_time(database_url, 598, living)
        await living.node.dispatcher.fire(booking.request_id)
        await waiting.settle()
        assert waiting.of("offer") == []

        await pass_time(database_url, 601, living)
        offered = await waiting.until("offer", stage="open", score=50)
        kept = await named.until("offer", stage="open", score=100)
        assert offered["offer_id"] == kept["offer_id"] == offer["offer_id"]
        assert named.of("offer.revoked") == []
        row = await _status(connection, booking.request_id)
        assert row["fallback_broadcast_at"] > row["priority_notified_at"]
        assert row["priority_window_minutes"] == 10


async def test_others_are_asked_when_a_favourite_waited_for_has_not_come_for_thirty_minutes(
    connection: Connection, database_url: str, make_config: MakeConfig
) -> None:
    favourite, other = await add_mechanic(connection), await add_mechanic(connection)
    async with (
        living_node(make_config(**TRUE_SECONDS)) as living,
        living.client(other, "mechanic") as waiting,
    ):
        await eventually(lambda: living.node.degraded() == [])
        booking = await book(
            connection,
            routing_type="priority_broadcast",
            preferred_mechanic_id=favourite,
            wait_for_preferred=True,
        )
        living.node.dispatcher.opened(booking.request_id, living.node.clock.now())
        await eventually(lambda: _stage(connection, booking.request_id, "priority"))

        await pass_time(database_url, 29.5 * 60, living)
        await living.node.dispatcher.fire(booking.request_id)
        await waiting.settle()
        assert waiting.of("offer") == []

        await pass_time(database_url, 30 * 60 + 5, living)
        await waiting.until("offer", stage="open")
        row = await _status(connection, booking.request_id)
        waited = row["fallback_broadcast_at"] - row["priority_notified_at"]
        assert timedelta(minutes=30) <= waited < timedelta(minutes=31)
        assert row["priority_window_minutes"] == 30


async def test_a_request_that_nobody_takes_for_two_hours_expires(
    connection: Connection, database_url: str, make_config: MakeConfig
) -> None:
    async with living_node(make_config(**TRUE_SECONDS)) as living:
        booking = await book(connection)
        async with living.client(booking.customer_id, "customer") as customer:
            living.node.dispatcher.opened(booking.request_id, living.node.clock.now())
            await customer.until("request.status", stage="open", mechanics_online=0)
            await pass_time(database_url, 7201, living)
            last = await customer.until("request.status", status="expired")
            assert "stage" not in last
            await customer.until("session.status", status="expired")


async def test_an_absent_mechanic_counts_as_having_cancelled_after_five_minutes(
    connection: Connection, database_url: str, make_config: MakeConfig
) -> None:
    absent, other = await add_mechanic(connection), await add_mechanic(connection)
    async with (
        living_node(make_config(**TRUE_SECONDS)) as living,
        living.client(absent, "mechanic") as winner,
        living.client(other, "mechanic") as loser,
    ):
        booking = await book(connection)
        async with living.client(booking.customer_id, "customer") as customer:
            living.node.dispatcher.opened(booking.request_id, living.node.clock.now())
            offer = await winner.until("offer")
            await loser.until("offer")
            accept_id = "6f1c1f8e-53a5-4a80-8f5e-0c8f2d6c1b11"
            await winner.send("offer.accept", offer_id=offer["offer_id"], accept_id=accept_id)
            await winner.until("offer.won")
            await loser.until("offer.revoked", reason="taken")
            await customer.send("session.join", session_id=booking.session_id)
            await customer.until("session.status", status="accepted")

            await pass_time(database_url, 301, living)
            status = await customer.until("request.status", status="pending")
            assert status["message"] == "Your mechanic had to cancel. Finding you another mechanic…"
            again = await loser.until("offer", generation=2)
            assert again["offer_id"] != offer["offer_id"]
            await winner.settle()
            assert [each["generation"] for each in winner.of("offer")] == [1]


async def _until_online(living: LivingNode, mechanic_id: UUID) -> None:
    async def is_online() -> bool:
        known = await living.node.presence.look_up([mechanic_id])
        return known[mechanic_id].presence == "online"

    await eventually(is_online)


async def _seen(connection: Connection, request_id: UUID) -> bool:
    return (await _status(connection, request_id))["next_attempt_at"] is None


async def _stage(connection: Connection, request_id: UUID, stage: str) -> bool:
    return bool((await _status(connection, request_id))["stage"] == stage)


async def test_thousands_due_at_once_leave_connections_for_everybody_else(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fired, running, most = list[UUID](), 0, 0
    async with living_node(make_config()) as living:
        dispatcher = living.node.dispatcher

        async def fire(request_id: UUID) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await living.node.pool.fetchval("SELECT 1")
            running -= 1
            fired.append(request_id)

        monkeypatch.setattr(dispatcher, "fire", fire)
        due = [uuid4() for _ in range(1000)]
        for request_id in due:
            dispatcher.timers.arm(request_id, living.node.clock.now())

        await eventually(lambda: len(fired) == len(due))

    assert sorted(fired) == sorted(due)
    assert most <= POOL_SIZE // 2
