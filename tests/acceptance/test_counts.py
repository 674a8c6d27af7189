"""How many were notified, and how many are there, as the customer reads it."""

from collections.abc import Iterator

import pytest

from tests.acceptance.actors import City, Town
from tests.acceptance.conftest import BuildTown
from tests.support import eventually_blocking


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(workers=2) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


async def test_a_customer_is_told_how_many_are_online(city: City) -> None:
    ann = await city.customer()
    await city.mechanics(2)

    booking = await ann.book()

    status = await booking.status(mechanics_notified=2)
    assert status["mechanics_online"] >= 2
    assert "Nobody is online" not in status["message"]


async def test_who_is_on_two_nodes_and_connects_again_was_asked_once(city: City) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic(online=False)
    first, second = [await mechanic.connect_to(node) for node in sorted(city.town.nodes())]

    booking = await ann.book()
    await first.card(booking.request_id)
    await second.card(booking.request_id)
    third = await mechanic.connect()

    await third.card(booking.request_id)
    assert (await booking.reads(mechanics_notified=1))["status"] == "pending"


async def test_who_is_on_two_nodes_is_online_once(city: City) -> None:
    ann = await city.customer()
    mechanics = [await city.mechanic(workshop=0, online=False) for _ in range(2)]
    for mechanic in mechanics:
        for node in sorted(city.town.nodes()):
            await mechanic.connect_to(node)

    booking = await ann.book(routing_type="workshop_only", workshop_id=mechanics[0].workshop_id)

    await booking.reads(mechanics_notified=2, mechanics_online=2)
