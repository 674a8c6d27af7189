"""A favourite who is lost is not waited for: everybody is asked at once (F4).

Long before the window ends, and the two instants of the row tell the story.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import Client, LivingNode, two_nodes
from tests.integration.rows import add_customer, add_mechanic
from tests.integration.test_hours import TRUE_SECONDS
from tests.support import eventually


@dataclass
class Asked:
    """The favourite was asked alone, and looked at the card."""

    connection: Connection
    nodes: tuple[LivingNode, LivingNode]
    favourite_id: UUID
    favourite: Client
    offer_id: str


async def declines(asked: Asked) -> None:
    await asked.favourite.send("offer.decline", offer_id=asked.offer_id)


async def becomes_busy(asked: Asked) -> None:
    booked = await asked.nodes[0].book(await add_customer(asked.connection))
    card = await asked.favourite.until("offer", request_id=booked.request_id)
    await asked.favourite.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
    await asked.favourite.until("offer.won")


async def becomes_unavailable(asked: Asked) -> None:
    await asked.favourite.send("availability.set", available=False)


async def is_deleted(asked: Asked) -> None:
    await asked.connection.execute(
        "UPDATE mechanics SET deleted_at = clock_timestamp() WHERE id = $1", asked.favourite_id
    )


async def is_deactivated(asked: Asked) -> None:
    await asked.connection.execute(
        "UPDATE users SET disabled_at = clock_timestamp() WHERE id = $1", asked.favourite_id
    )


async def loses_her_approval(asked: Asked) -> None:
    await asked.connection.execute(
        "UPDATE mechanics SET application_status = 'rejected' WHERE id = $1", asked.favourite_id
    )


Lose = Callable[[Asked], Awaitable[None]]


@pytest.mark.parametrize(
    "lose",
    [
        declines,
        becomes_busy,
        becomes_unavailable,
        is_deleted,
        is_deactivated,
        loses_her_approval,
    ],
)
async def test_everybody_is_asked_as_soon_as_the_favourite_is_lost(
    connection: Connection, make_config: MakeConfig, lose: Lose
) -> None:
    favourite_id, other_id = await add_mechanic(connection), await add_mechanic(connection)
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config(**TRUE_SECONDS)) as (here, there),
        here.client(customer_id, "customer") as customer,
        there.client(favourite_id, "mechanic") as favourite,
        here.client(other_id, "mechanic") as other,
    ):
        await eventually(lambda: here.is_online(favourite_id, customer_id))
        booked = await here.book(
            customer_id, routing_type="priority_broadcast", preferred_mechanic_id=favourite_id
        )
        offer_id = (await favourite.until("offer", stage="priority"))["offer_id"]
        await favourite.send("offer.seen", offer_id=offer_id)
        await eventually(lambda: _was_seen(connection, booked.request_id))

        await lose(Asked(connection, (here, there), favourite_id, favourite, offer_id))

        await other.until("offer", request_id=booked.request_id, stage="open")
        await customer.until("request.status", stage="open")
        row = await _row(connection, booked.request_id)
        assert (row["status"], row["stage"], row["generation"]) == ("pending", "open", 1)
        assert row["stage_ends_at"] is None
        waited = row["fallback_broadcast_at"] - row["priority_notified_at"]
        assert timedelta(0) < waited < timedelta(minutes=1)
        assert row["priority_window_minutes"] == 10
        await other.send("offer.accept", offer_id=offer_id, accept_id=uuid4())
        await other.until("offer.won", offer_id=offer_id)


async def _was_seen(connection: Connection, request_id: UUID) -> bool:
    return (await _row(connection, request_id))["next_attempt_at"] is None


async def _row(connection: Connection, request_id: UUID) -> asyncpg.Record:
    row = await connection.fetchrow("SELECT * FROM session_requests WHERE id = $1", request_id)
    assert row is not None
    return row
