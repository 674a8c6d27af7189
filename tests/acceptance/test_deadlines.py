"""What time alone does to a booking: windows end, requests expire, nobody joins."""

from collections.abc import Iterator

import pytest

from tests.acceptance.actors import City, Town
from tests.acceptance.conftest import BuildTown

CANCELLED = "Your mechanic had to cancel. Finding you another mechanic…"


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(
        priority_window_seconds=0.8,
        wait_window_seconds=0.8,
        head_start_seconds=0.6,
        request_ttl_seconds=2.5,
        join_seconds=0.8,
    ) as town:
        yield town


async def test_a_favourite_has_a_window_and_then_everybody_is_asked(city: City) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanics(2)
    await city.is_online(favourite, ann)

    booking = await ann.book(routing_type="priority_broadcast", preferred_mechanic_id=favourite.id)
    first = await favourite.offered(booking)
    wide = await bystander.offered(booking)

    assert (first["stage"], wide["stage"]) == ("priority", "open")
    assert wide["server_time"] >= first["exclusive_until"]
    assert wide["expires_at"] == first["expires_at"]
    assert favourite.device.got("offer.revoked") == []
    status = await booking.status(stage="open")
    assert status["server_time"] >= first["exclusive_until"]
    await favourite.wins(booking)


async def test_nobody_waits_for_an_absent_favourite_longer_than_promised(city: City) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanic(online=False), await city.mechanic()
    await city.is_online(favourite, ann, False)

    booking = await ann.book(
        routing_type="priority_broadcast",
        preferred_mechanic_id=favourite.id,
        wait_for_preferred=True,
    )
    priority = await booking.status(stage="priority")

    card = await bystander.offered(booking)
    assert card["stage"] == "open"
    assert card["server_time"] >= priority["stage_ends_at"]


async def test_a_head_start_ends_by_itself(city: City) -> None:
    ann = await city.customer()
    preferred, other = await city.mechanic(workshop=0), await city.mechanic(workshop=1)
    await city.is_online(preferred, ann)

    booking = await ann.book(routing_type="hybrid", workshop_id=city.town.workshop_ids[0])
    first, later = await preferred.offered(booking), await other.offered(booking)

    assert (first["stage"], later["stage"]) == ("preferred", "open")
    assert later["server_time"] >= first["exclusive_until"]
    assert (first["score"], later["score"]) == (100, 50)


async def test_a_request_that_nobody_takes_expires_and_is_refunded(city: City) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic()
    booking = await ann.book()
    card = await mechanic.offered(booking)

    expired = await booking.status(status="expired")

    assert expired["server_time"] >= card["expires_at"]
    await booking.session(status="expired")
    revoked = await mechanic.device.expect("offer.revoked", offer_id=card["offer_id"])
    assert revoked["reason"] == "expired"
    late = await mechanic.accept(card)
    assert (late["type"], late["reason"]) == ("offer.lost", "expired")
    assert (await booking.refunded())["amount"] == 1000
    assert len(ann.device.got("request.status", status="expired")) >= 1
    again = await ann.book()
    assert again.request_id != booking.request_id


async def test_a_mechanic_who_does_not_join_has_cancelled(city: City) -> None:
    ann = await city.customer()
    absent = await city.mechanic()
    booking = await ann.book()
    await absent.wins(booking)
    await ann.device.ask("session.join", session_id=booking.session_id)
    other = await city.mechanic()

    status = await booking.status(status="pending", message=CANCELLED)

    card = await other.offered(booking, generation=2)
    assert card["expires_at"] == status["expires_at"]
    assert absent.device.cards(booking.request_id, generation=2) == []
    assert (await city.refunds_of(booking)) == []
    await other.wins(booking, generation=2)


@pytest.mark.parametrize("mechanic_joins", [True, False])
async def test_a_customer_who_does_not_join_is_refunded(city: City, mechanic_joins: bool) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic()
    booking = await ann.book()
    await mechanic.wins(booking)
    if mechanic_joins:
        await mechanic.device.ask("session.join", session_id=booking.session_id)

    ended = await booking.session(status="cancelled")

    await booking.status(status="cancelled")
    assert (await booking.refunded())["amount"] == 1000
    told = await mechanic.device.expect("session.status", status="cancelled")
    assert told["version"] == ended["version"]
    await mechanic.wins(await ann.book())
