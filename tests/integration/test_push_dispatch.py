"""Who is notified of which booking: the dispatcher, the outbox and a push service together (N3)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from dispatch.core.types import Booking, Policy
from dispatch.database import Connection
from dispatch.explain import explanation
from dispatch.explain_text import as_text
from tests.conftest import MakeConfig
from tests.integration.living import LivingNode, living_node, pass_time
from tests.integration.push_service import SUBJECT, Browser, PushService
from tests.integration.push_town import service
from tests.integration.rows import add_mechanic, add_workshop, book
from tests.support import eventually
from tests.unit.builders import booking as a_booking

__all__ = ["service"]  # a fixture

TRUE_SECONDS = {
    "priority_window_seconds": 600.0,
    "wait_window_seconds": 1800.0,
    "offer_retry_seconds": 5.0,
    "request_ttl_seconds": 7200.0,
}


class Place:
    """A node with web push, and mechanics whose phones it reaches."""

    def __init__(self, living: LivingNode, service: PushService, connection: Connection) -> None:
        self.living = living
        self.service = service
        self.connection = connection

    async def mechanic(self, workshop_id: UUID | None = None, **columns: Any) -> UUID:
        mechanic_id = await add_mechanic(self.connection, workshop_id)
        for name, value in columns.items():
            await self.connection.execute(
                f"UPDATE mechanics SET {name} = $2 WHERE id = $1", mechanic_id, value
            )
        return mechanic_id

    async def phone_of(self, mechanic_id: UUID) -> Browser:
        browser = self.service.browser()
        path = "/api/push/subscriptions"
        status, _ = await self.living.call(mechanic_id, "mechanic", "POST", path, browser.form())
        assert status == 201
        return browser

    async def books(self, **wish: Any) -> Booking:
        booking = await book(self.connection, **wish)
        self.living.node.dispatcher.opened(booking.request_id, self.living.node.clock.now())
        await eventually(lambda: self.stage_of(booking))
        return booking

    def stage_of(self, booking: Booking) -> str | None:
        entry = self.living.node.board.get(booking.request_id)
        stage = entry.booking.stage if entry else None
        return None if stage is None else stage.value

    async def queued(self) -> list[UUID]:
        """Whom notifications were made for, delivered or not."""
        rows = await self.connection.fetch(
            "SELECT (payload ->> 'mechanic_id')::uuid AS id FROM outbox WHERE kind = 'push'"
        )
        return [row["id"] for row in rows]

    async def offer_of(self, booking: Booking, mechanic_id: UUID) -> Any:
        return await self.connection.fetchrow(
            "SELECT * FROM offers WHERE request_id = $1 AND mechanic_id = $2",
            booking.request_id,
            mechanic_id,
        )

    async def counts(self, ready: int) -> None:
        """So many mechanics are known to be here, to presence and to the node's own counts."""
        node = self.living.node
        await eventually(lambda: node.audience.online(a_booking()) == ready)
        await eventually(self._are_online)

    async def _are_online(self) -> bool:
        node = self.living.node
        here = [mechanic.candidate.mechanic_id for mechanic in node.hub.mechanics()]
        found = await node.presence.look_up(here)
        return all(each.presence.value == "online" for each in found.values())


@pytest.fixture
def place(make_config: MakeConfig, service: PushService, connection: Connection) -> Any:
    @asynccontextmanager
    async def build(**settings: Any) -> AsyncIterator[Place]:
        config = make_config(
            vapid_private_key=service.private_key,
            vapid_subject=SUBJECT,
            push_trusted_origins=(service.url,),
            **TRUE_SECONDS | settings,
        )
        async with living_node(config) as living:
            yield Place(living, service, connection)

    return build


async def test_a_favourite_who_is_away_is_notified_comes_and_is_seen_to_have_seen_it(
    place: Any, database_url: str
) -> None:
    async with place() as town:
        anna = await town.mechanic()
        phone, tablet = await town.phone_of(anna), await town.phone_of(anna)

        booking = await town.books(
            routing_type="priority_broadcast", preferred_mechanic_id=anna, wait_for_preferred=True
        )

        await eventually(lambda: phone.got and tablet.got)
        told = phone.got[0].message
        assert (told["title"], told["preferred"]) == ("A customer asks for you", True)
        assert told["offer_id"] == str(booking.offer_id)
        await pass_time(database_url, 12 * 60, town.living)
        async with town.living.client(anna, "mechanic") as mechanic:
            (card,) = mechanic.snapshot["offers"]
            assert (card["stage"], card["offer_id"]) == ("priority", told["offer_id"])
            await mechanic.send("offer.seen", offer_id=card["offer_id"])
            row = await eventually(lambda: _seen(town, booking, anna))
        assert row["issued_at"] <= row["pushed_at"] <= row["seen_at"]
        assert (row["seen_at"] - row["pushed_at"]).total_seconds() > 11 * 60
        await town.living.node.audit.flush()
        story = await explanation(town.living.node.pool, booking.request_id, Policy())
        (candidate,) = story.candidates
        assert [sent.pushed for sent in candidate.sent] == [False, True]
        assert "notified" in as_text(story)


async def _seen(town: Place, booking: Booking, mechanic_id: UUID) -> Any:
    row = await town.offer_of(booking, mechanic_id)
    return row if row is not None and row["seen_at"] else None


async def test_a_favourite_who_is_here_is_notified_only_when_she_does_not_look(
    place: Any, database_url: str
) -> None:
    async with place() as town:
        anna, ben = await town.mechanic(), await town.mechanic()
        phones = {who: await town.phone_of(who) for who in (anna, ben)}
        async with (
            town.living.client(anna, "mechanic") as looking,
            town.living.client(ben, "mechanic") as silent,
        ):
            await town.counts(2)
            seen, unseen = [
                await town.books(routing_type="priority_broadcast", preferred_mechanic_id=who)
                for who in (anna, ben)
            ]
            card = await looking.until("offer", request_id=seen.request_id)
            await silent.until("offer", request_id=unseen.request_id)
            await looking.send("offer.seen", offer_id=card["offer_id"])
            await eventually(lambda: _seen(town, seen, anna))
            assert await town.queued() == []

            await pass_time(database_url, 5.1, town.living)
            await town.living.node.dispatcher.fire(unseen.request_id)
            await silent.until("offer", attempt=2)
            await eventually(lambda: phones[ben].got)
            await pass_time(database_url, 10.2, town.living)
            await town.living.node.dispatcher.fire(unseen.request_id)
            await silent.until("offer", attempt=3)

            assert await town.queued() == [ben]
            assert (phones[anna].tries, phones[ben].tries) == (0, 1)


async def test_an_urgent_booking_that_finds_too_few_notifies_whom_it_may_be_for(
    place: Any,
) -> None:
    async with place(push_urgent_below=2) as town:
        garage = await add_workshop(town.connection)
        here = await town.mechanic()
        away, elsewhere = await town.mechanic(), await town.mechanic(garage)
        out = await town.mechanic(available=False)
        not_yet = await town.mechanic(application_status="pending")
        phones = {who: await town.phone_of(who) for who in (here, away, elsewhere, out)}
        async with town.living.client(here, "mechanic") as mechanic:
            await town.counts(1)
            await eventually(lambda: _mirrored(town, here))

            booking = await town.books(urgent=True)

            await mechanic.until("offer")
            await eventually(lambda: phones[away].got and phones[elsewhere].got)
            assert phones[away].got[0].message["urgent"] is True
            assert sorted(await town.queued()) == sorted([away, elsewhere])
            assert (phones[here].tries, phones[out].tries) == (0, 0)
            row = await town.offer_of(booking, away)
            assert (row["status"], row["stage"], row["score"]) == ("issued", "open", 50)
            assert await town.offer_of(booking, not_yet) is None


@pytest.mark.parametrize(
    ("below", "urgent"),
    [(0, True), (1, True), (5, False)],
    ids=["switched off", "enough are here", "not urgent"],
)
async def test_otherwise_nobody_is_notified_of_a_booking_for_everyone(
    place: Any, below: int, urgent: bool
) -> None:
    async with place(push_urgent_below=below) as town:
        here, away = await town.mechanic(), await town.mechanic()
        await town.phone_of(away)
        async with town.living.client(here, "mechanic") as mechanic:
            await town.counts(1)

            await town.books(urgent=urgent)

            await mechanic.until("offer")
            assert await town.queued() == []


async def _mirrored(town: Place, mechanic_id: UUID) -> bool:
    online: bool = await town.connection.fetchval(
        "SELECT is_online FROM mechanics WHERE id = $1", mechanic_id
    )
    return online
