"""The favourite first: online, offline, waited for, silent, declining, busy."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.acceptance.actors import Booking, City, Customer, Mechanic, Town
from tests.acceptance.conftest import BuildTown

WINDOW_SECONDS, WAIT_SECONDS = 60.0, 120.0


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    """Whoever does not look is given up soon, whoever looks has all the time."""
    with build_town(
        offer_retry_seconds=0.25,
        priority_window_seconds=WINDOW_SECONDS,
        wait_window_seconds=WAIT_SECONDS,
    ) as town:
        yield town


async def book_favourite(customer: Customer, favourite: Mechanic, **order: Any) -> Booking:
    return await customer.book(
        routing_type="priority_broadcast", preferred_mechanic_id=favourite.id, **order
    )


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


async def test_an_online_favourite_is_asked_alone(city: City) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanic(), await city.mechanic(workshop=0)
    await city.is_online(favourite, ann)

    booking = await book_favourite(ann, favourite)

    card = await favourite.offered(booking)
    assert (card["stage"], card["score"], card["preferred"]) == ("priority", 100, True)
    window = seconds_between(card["created_at"], card["exclusive_until"])
    assert window == pytest.approx(WINDOW_SECONDS, abs=1)
    status = await booking.status(stage="priority", mechanics_notified=1)
    assert (status["next_stage"], status["stage_ends_at"]) == ("open", card["exclusive_until"])
    await favourite.wins(booking)
    accepted = await booking.status(status="accepted")
    assert accepted["mechanic"]["id"] == favourite.id
    await bystander.device.fence()
    assert not bystander.heard_of(booking.request_id)


async def test_who_was_not_meant_is_told_what_an_unknown_offer_is_told(city: City) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanics(2)
    await city.is_online(favourite, ann)
    booking = await book_favourite(ann, favourite)
    card = await favourite.offered(booking)

    not_meant = await bystander.accept(card)
    unknown = await bystander.accept({"offer_id": ann.id})

    assert not_meant["reason"] == unknown["reason"] == "not_found"
    assert not_meant.keys() == unknown.keys()
    assert (await booking.read())["status"] == "pending"
    await favourite.wins(booking)


async def test_the_customer_widens_and_the_favourite_keeps_her_card(city: City) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanics(2)
    await city.is_online(favourite, ann)
    booking = await book_favourite(ann, favourite)
    card = await favourite.offered(booking)

    answer = await ann.device.ask("request.widen", request_id=booking.request_id)

    wide = await bystander.offered(booking)
    again = await ann.device.ask("request.widen", request_id=booking.request_id)
    assert answer["type"] == "ok"
    assert (wide["stage"], wide["score"], wide["preferred"]) == ("open", 50, False)
    assert wide["offer_id"] == card["offer_id"]
    assert (again["type"], again["code"]) == ("error", "nothing_to_widen")
    assert favourite.device.got("offer.revoked") == []
    await favourite.wins(booking)
    taken = await bystander.device.expect("offer.revoked", offer_id=card["offer_id"])
    assert taken["reason"] == "taken"


async def test_a_favourite_who_declines_sends_it_to_everybody_else_at_once(city: City) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanics(2)
    await city.is_online(favourite, ann)
    her_tablet = await favourite.connect()
    booking = await book_favourite(ann, favourite)
    card = await favourite.offered(booking)

    answer = await favourite.device.ask("offer.decline", offer_id=card["offer_id"], reason="ill")

    assert answer["type"] == "ok"
    assert (await bystander.offered(booking))["stage"] == "open"
    revoked = await her_tablet.expect("offer.revoked", offer_id=card["offer_id"])
    assert revoked["reason"] == "withdrawn"
    await booking.status(stage="open")
    assert favourite.device.cards(booking.request_id, stage="open") == []
    assert (await favourite.connect()).snapshot["offers"] == []
    await bystander.wins(booking)


async def test_a_silent_favourite_is_asked_three_times_and_then_everybody(city: City) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanic(acknowledges=False), await city.mechanic()
    await city.is_online(favourite, ann)

    booking = await book_favourite(ann, favourite)
    await bystander.offered(booking)

    tries = favourite.device.cards(booking.request_id, stage="priority")
    assert [card["attempt"] for card in tries] == [1, 2, 3]
    assert len({(card["offer_id"], card["exclusive_until"]) for card in tries}) == 1
    status = await booking.status(stage="open")
    assert status["version"] > (await booking.status(stage="priority"))["version"]
    assert favourite.device.got("offer.revoked") == []
    await favourite.wins(booking)


async def test_a_favourite_who_looks_is_not_asked_again(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    seeing, blind = await city.mechanic(), await city.mechanic(acknowledges=False)
    bystander = await city.mechanic()
    for favourite in (seeing, blind):
        await city.is_online(favourite, ann)

    seen = await book_favourite(ann, seeing)
    await seeing.offered(seen)
    unseen = await book_favourite(bob, blind)
    await bystander.offered(unseen)

    assert len(seeing.device.cards(seen.request_id, stage="priority")) == 1
    assert not bystander.heard_of(seen.request_id)
    assert (await seen.read())["stage"] == "priority"


async def test_an_absent_favourite_counts_as_silent(city: City) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanic(online=False), await city.mechanic()

    booking = await book_favourite(ann, favourite)

    card = await bystander.offered(booking)
    assert (card["stage"], card["score"]) == ("open", 50)
    await booking.status(stage="open")


async def test_the_customer_waits_for_an_absent_favourite_who_comes(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    favourite, bystander = await city.mechanic(online=False), await city.mechanic()
    other = await city.mechanic(online=False)

    booking = await book_favourite(ann, favourite, wait_for_preferred=True)
    status = await booking.status(stage="priority")
    given_up = await book_favourite(bob, other)
    await bystander.offered(given_up)
    await favourite.connect()

    card = await favourite.offered(booking)
    assert (card["stage"], card["preferred"]) == ("priority", True)
    assert card["exclusive_until"] == status["stage_ends_at"]
    window = seconds_between(card["created_at"], status["stage_ends_at"])
    assert window == pytest.approx(WAIT_SECONDS, abs=1)
    assert not bystander.heard_of(booking.request_id)
    await favourite.wins(booking)


async def test_waiting_for_one_who_is_here_is_the_usual_window(city: City) -> None:
    ann = await city.customer()
    favourite = await city.mechanic()
    await city.is_online(favourite, ann)

    booking = await book_favourite(ann, favourite, wait_for_preferred=True)

    card = await favourite.offered(booking)
    window = seconds_between(card["created_at"], card["exclusive_until"])
    assert window == pytest.approx(WINDOW_SECONDS, abs=1)


async def test_a_busy_favourite_is_not_waited_for(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    favourite, bystander = await city.mechanics(2)
    await favourite.wins(await ann.book())

    booking = await book_favourite(bob, favourite)

    assert (await bystander.offered(booking))["stage"] == "open"
    assert not favourite.heard_of(booking.request_id)


async def test_a_favourite_who_becomes_busy_sends_it_to_everybody_at_once(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    favourite, bystander = await city.mechanics(2)
    await city.is_online(favourite, ann)
    booking = await book_favourite(ann, favourite)
    card = await favourite.offered(booking)
    other = await bob.book()

    await favourite.wins(other)

    assert (await bystander.offered(booking))["stage"] == "open"
    revoked = await favourite.device.expect("offer.revoked", offer_id=card["offer_id"])
    assert revoked["reason"] == "withdrawn"
    late = await favourite.accept(card)
    assert (late["type"], late["reason"]) == ("offer.lost", "busy")
