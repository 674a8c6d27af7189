"""The audit trail: complete, in parts that hold nobody up, and kept while Postgres is away."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch.audit import BATCH_CANDIDATES, Audit
from dispatch.core.types import Booking
from dispatch.database import Connection, Pool
from dispatch.metrics import Metrics
from dispatch.store import Store
from dispatch.waterfall import Waterfall
from tests.integration.rows import add_mechanic, book_and_open, until_blocked


@pytest.fixture
def audit(store: Store) -> Audit:
    node_id = uuid4()
    return Audit(store, node_id, lambda: datetime.now(UTC), Waterfall(Metrics(node_id)))


async def trail(connection: Connection, request_id: UUID) -> list[asyncpg.Record]:
    return await connection.fetch(
        "SELECT * FROM routing_decisions WHERE request_id = $1 ORDER BY batch", request_id
    )


def offered(audit: Audit, booking: Booking, mechanic_ids: list[UUID]) -> None:
    audit.passed_over(booking, 3, [], datetime.now(UTC))
    audit.asked(booking, mechanic_ids, 50, datetime.now(UTC))


async def test_a_broadcast_to_thousands_is_written_in_parts(
    audit: Audit, store: Store, connection: Connection
) -> None:
    booking = await book_and_open(connection, store)
    asked = [uuid4() for _ in range(2 * BATCH_CANDIDATES + 7)]

    offered(audit, booking, asked)
    audit.seen(booking, asked[0])
    await audit.flush()

    rows = await trail(connection, booking.request_id)
    assert [len(row["mechanic_ids"]) for row in rows] == [BATCH_CANDIDATES, BATCH_CANDIDATES, 7]
    assert [each for row in rows for each in row["mechanic_ids"]] == asked
    assert all(len(row["scores"]) == len(row["sent_ms"]) for row in rows)
    assert [row["others"] for row in rows] == [3, 0, 0]
    assert [row["seen_mechanic_ids"] for row in rows] == [[], [], [asked[0]]]


async def test_what_happens_in_one_moment_is_one_row(
    audit: Audit, store: Store, connection: Connection
) -> None:
    booking = await book_and_open(connection, store)
    anna, ben = await add_mechanic(connection), await add_mechanic(connection)
    at = datetime.now(UTC)

    audit.passed_over(booking, 2, [(ben, "busy")], at)
    audit.asked(booking, [anna], 50, at)
    audit.passed_over(booking, 1, [], at)
    audit.asked(booking, [ben], 50, at)
    audit.seen(booking, anna)
    await audit.flush()
    await audit.flush()

    (row,) = await trail(connection, booking.request_id)
    assert (row["others"], row["mechanic_ids"], row["excluded_ids"]) == (3, [anna, ben], [ben])
    assert (row["stage"], row["strategy"], row["excluded_reasons"]) == (
        "open",
        "broadcast",
        ["busy"],
    )


async def test_what_could_not_be_written_is_written_later_and_once(
    audit: Audit, store: Store, connection: Connection, pool: Pool
) -> None:
    booking = await book_and_open(connection, store)
    anna, ben = await add_mechanic(connection), await add_mechanic(connection)
    offered(audit, booking, [anna])
    audit.receipt(booking.request_id, datetime.now(UTC))
    async with connection.transaction():
        await connection.execute("LOCK routing_decisions IN ACCESS EXCLUSIVE MODE")
        flushing = asyncio.create_task(audit.flush())
        await until_blocked(pool, 1)
        offered(audit, booking, [ben])
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        await flushing

    await audit.flush()

    rows = await trail(connection, booking.request_id)
    assert [row["mechanic_ids"] for row in rows] == [[anna], [ben]]
    receipts = await connection.fetch("SELECT * FROM request_receipts")
    assert [row["request_id"] for row in receipts] == [booking.request_id]


async def test_what_was_written_though_the_reply_was_lost_is_written_once(
    audit: Audit, store: Store, connection: Connection
) -> None:
    booking = await book_and_open(connection, store)
    anna = await add_mechanic(connection)
    offered(audit, booking, [anna])
    audit.receipt(booking.request_id, datetime.now(UTC))
    batches, receipts = list(audit._batches), list(audit._receipts)
    await audit.flush()

    await store.write_audit(batches, receipts)

    (row,) = await trail(connection, booking.request_id)
    assert row["mechanic_ids"] == [anna]
