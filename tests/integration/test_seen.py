"""A priority offer that nobody looks at is sent again; one look on any device is enough (O3).

The favourite has a device on each node; attempts are five seconds apart by the database's clock.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import pytest

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import Client, LivingNode, pass_time, two_nodes
from tests.integration.rows import add_customer, add_mechanic
from tests.integration.test_hours import TRUE_SECONDS
from tests.support import eventually


@dataclass
class Asked:
    """The favourite was asked for the first time, on two devices."""

    connection: Connection
    database_url: str
    nodes: tuple[LivingNode, LivingNode]
    request_id: UUID
    offer_id: str
    devices: tuple[Client, Client]
    bystander: Client

    async def row(self) -> asyncpg.Record:
        row = await self.connection.fetchrow(
            "SELECT * FROM session_requests WHERE id = $1", self.request_id
        )
        assert row is not None
        return row

    async def at(self, seconds: float) -> None:
        """It is so long after the booking, and what is due by then is done."""
        await pass_time(self.database_url, seconds, *self.nodes)
        for living in self.nodes:
            await living.node.dispatcher.fire(self.request_id)


@pytest.fixture
async def asked(
    connection: Connection, database_url: str, make_config: MakeConfig
) -> AsyncIterator[Asked]:
    favourite, other = await add_mechanic(connection), await add_mechanic(connection)
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config(**TRUE_SECONDS)) as (here, there),
        here.client(favourite, "mechanic") as phone,
        there.client(favourite, "mechanic") as tablet,
        here.client(other, "mechanic") as bystander,
    ):
        await eventually(lambda: here.is_online(favourite, customer_id))
        booked = await here.book(
            customer_id, routing_type="priority_broadcast", preferred_mechanic_id=favourite
        )
        card = await phone.until("offer", stage="priority", attempt=1)
        await tablet.until("offer", stage="priority", attempt=1)
        yield Asked(
            connection,
            database_url,
            (here, there),
            booked.request_id,
            card["offer_id"],
            (phone, tablet),
            bystander,
        )


async def test_unseen_it_is_sent_to_every_device_three_times_and_then_to_everybody(
    asked: Asked,
) -> None:
    await asked.at(4.0)
    for device in asked.devices:
        await device.settle()
        assert len(device.of("offer")) == 1
    for seconds, attempt in ((6.0, 2), (12.0, 3)):
        await asked.at(seconds)
        for device in asked.devices:
            again = await device.until("offer", stage="priority", attempt=attempt)
            assert again["offer_id"] == asked.offer_id
    await asked.bystander.settle()
    assert asked.bystander.of("offer") == []

    await asked.at(18.0)

    await asked.bystander.until("offer", stage="open", offer_id=asked.offer_id)
    for device in asked.devices:
        await device.until("offer", stage="open", offer_id=asked.offer_id)
        tries = [card["attempt"] for card in device.of("offer") if card["stage"] == "priority"]
        assert tries == [1, 2, 3]
        assert device.of("offer.revoked") == []


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_one_look_on_any_device_after_any_attempt_ends_the_attempts_on_all(
    asked: Asked, device: int, attempts: int
) -> None:
    for attempt in range(2, attempts + 1):
        await asked.at(6.0 * (attempt - 1))
        for each in asked.devices:
            await each.until("offer", attempt=attempt)

    await asked.devices[device].send("offer.seen", offer_ids=[asked.offer_id])

    await eventually(lambda: _is_seen(asked))
    for seconds in (20.0, 30.0, 590.0):
        await asked.at(seconds)
    for each in (*asked.devices, asked.bystander):
        await each.settle()
    assert [len(each.of("offer")) for each in asked.devices] == [attempts, attempts]
    assert asked.bystander.of("offer") == []
    row = await asked.row()
    assert (row["stage"], row["attempt"], row["fallback_broadcast_at"]) == (
        "priority",
        attempts,
        None,
    )

    await asked.at(605.0)

    await asked.bystander.until("offer", stage="open")


async def _is_seen(asked: Asked) -> bool:
    return (await asked.row())["next_attempt_at"] is None


async def test_who_is_not_the_favourite_cannot_acknowledge_for_her(asked: Asked) -> None:
    await asked.bystander.send("offer.seen", offer_id=asked.offer_id)
    await asked.bystander.settle()

    await asked.at(6.0)

    for device in asked.devices:
        await device.until("offer", stage="priority", attempt=2)
    assert (await asked.row())["next_attempt_at"] is not None


@pytest.mark.parametrize("looks", [True, False])
async def test_an_absent_favourite_who_comes_between_the_attempts_is_asked_by_the_ones_left(
    connection: Connection, database_url: str, make_config: MakeConfig, looks: bool
) -> None:
    favourite, other = await add_mechanic(connection), await add_mechanic(connection)
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config(**TRUE_SECONDS)) as (here, there),
        here.client(other, "mechanic") as bystander,
        here.client(customer_id, "customer") as customer,
    ):
        booked = await here.book(
            customer_id, routing_type="priority_broadcast", preferred_mechanic_id=favourite
        )
        await customer.until("request.status", stage="priority", mechanics_notified=0)
        await pass_time(database_url, 6.0, here, there)
        await eventually(lambda: _attempt(connection, 2))
        async with there.client(favourite, "mechanic") as late:
            asked = Asked(
                connection,
                database_url,
                (here, there),
                booked.request_id,
                "",
                (late, late),
                bystander,
            )
            (card,) = late.snapshot["offers"]
            assert (card["stage"], card["attempt"]) == ("priority", 2)
            if looks:
                await late.send("offer.seen", offer_id=card["offer_id"])
                await eventually(lambda: _is_seen(asked))
            for seconds in (12.0, 18.0):
                await asked.at(seconds)
            if not looks:
                await late.until("offer", stage="open")
            row = await asked.row()
            assert row["stage"] == ("priority" if looks else "open")
            await late.settle()
            expected = [] if looks else [("priority", 3), ("open", 1)]
            assert [(c["stage"], c["attempt"]) for c in late.of("offer")] == expected


async def _attempt(connection: Connection, attempt: int) -> bool:
    return bool(await connection.fetchval("SELECT attempt = $1 FROM session_requests", attempt))
