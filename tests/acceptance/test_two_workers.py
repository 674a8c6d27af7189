"""Two workers are two nodes: what one begins the other finishes, also when the first is killed."""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.acceptance.actors import Booking, City, Customer, Mechanic, Town
from tests.acceptance.conftest import BuildTown
from tests.support import eventually, eventually_blocking


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(workers=2, priority_window_seconds=2.0) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


async def both_nodes(city: City) -> list[str]:
    """The two nodes, once two are alive."""
    return await eventually(lambda: found if len(found := sorted(city.town.nodes())) == 2 else None)


async def book_favourite(customer: Customer, favourite: Mechanic) -> Booking:
    return await customer.book(
        routing_type="priority_broadcast", preferred_mechanic_id=favourite.id
    )


async def test_an_offer_reaches_both_nodes_and_the_accept_the_customers(city: City) -> None:
    here, there = await both_nodes(city)
    ann = await city.customer(online=False)
    near, far = await city.mechanic(online=False), await city.mechanic(online=False)
    await ann.connect_to(here)
    await near.connect_to(here)
    await far.connect_to(there)

    booking = await ann.book()
    cards = [await mechanic.offered(booking) for mechanic in (near, far)]
    await far.accept(cards[1])

    assert cards[0]["offer_id"] == cards[1]["offer_id"]
    assert (await booking.status(status="accepted"))["mechanic"]["id"] == far.id
    revoked = await near.device.expect("offer.revoked", offer_id=cards[0]["offer_id"])
    assert revoked["reason"] == "taken"


async def test_a_favourite_on_the_other_node_is_asked_and_widened_past(city: City) -> None:
    here, there = await both_nodes(city)
    ann = await city.customer(online=False)
    favourite, bystander = await city.mechanic(online=False), await city.mechanic(online=False)
    await ann.connect_to(here)
    await bystander.connect_to(here)
    await favourite.connect_to(there)
    await city.is_online(favourite, ann)

    booking = await book_favourite(ann, favourite)
    card = await favourite.offered(booking)
    assert not bystander.heard_of(booking.request_id)
    assert (await ann.device.ask("request.widen", request_id=booking.request_id))["type"] == "ok"

    wide = await bystander.offered(booking)
    assert (card["stage"], wide["stage"]) == ("priority", "open")
    await favourite.wins(booking)


@pytest.mark.parametrize("killed", [0, 1])
async def test_a_killed_worker_loses_no_window_and_doubles_none(city: City, killed: int) -> None:
    nodes = await both_nodes(city)
    dying, living = nodes[killed], nodes[1 - killed]
    ann = await city.customer(online=False)
    favourite, bystander = await city.mechanic(online=False), await city.mechanic(online=False)
    for person in (ann, favourite, bystander):
        await person.connect_to(living)
    stranded = await city.mechanic(online=False)
    await stranded.connect_to(dying)
    await city.is_online(favourite, ann)
    booking = await book_favourite(ann, favourite)
    first = await favourite.offered(booking)

    os.kill(city.town.nodes()[dying]["pid"], signal.SIGKILL)

    wide = await bystander.offered(booking)
    assert wide["server_time"] >= first["exclusive_until"]
    assert await stranded.device.closed() in (1001, 1006)
    await stranded.connect()
    again = await stranded.offered(booking)
    assert (again["stage"], again["offer_id"]) == ("open", first["offer_id"])
    await stranded.wins(booking)
    for mechanic in (favourite, bystander):
        revoked = await mechanic.device.expect("offer.revoked", offer_id=first["offer_id"])
        assert revoked["reason"] == "taken"
    assert (await booking.status(status="accepted"))["mechanic"]["id"] == stranded.id
    statuses = ann.device.got("request.status", request_id=booking.request_id)
    versions = [status["version"] for status in statuses]
    assert versions == sorted(versions)
    assert len({s["version"] for s in statuses if s.get("stage") == "open"}) == 1
    assert len(bystander.device.cards(booking.request_id)) == 1
    after = await both_nodes(city)
    assert living in after
    assert dying not in after


async def test_a_customer_of_a_killed_worker_finds_everything_where_she_comes_back(
    city: City,
) -> None:
    dying, living = await both_nodes(city)
    ann, mechanic = await city.customer(online=False), await city.mechanic(online=False)
    await ann.connect_to(dying)
    await mechanic.connect_to(living)
    booking = await ann.book()
    card = await mechanic.offered(booking)

    os.kill(city.town.nodes()[dying]["pid"], signal.SIGKILL)
    await ann.device.closed()
    won = await mechanic.accept(card)
    device = await ann.connect()

    assert won["type"] == "offer.won"
    assert device.welcome["node_id"] != dying
    (request,) = device.snapshot["requests"]
    assert (request["status"], request["mechanic"]["id"]) == ("accepted", mechanic.id)
    await mechanic.device.ask("session.join", session_id=booking.session_id)
    joined = await device.ask("session.join", session_id=booking.session_id)
    assert joined["status"] == "active"
