"""A connection lost between accept and reply: whoever asks again hears the same."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.acceptance.actors import City, Mechanic, Town, new_id
from tests.acceptance.conftest import BuildTown
from tests.acceptance.shapes import Frame
from tests.chaos.persistent import accept, come_back
from tests.support import eventually_blocking


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(workers=2) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


async def accept_and_vanish(mechanic: Mechanic, card: Frame, accept_id: str) -> None:
    """The accept is on its way, and nobody is there to read the reply."""
    await mechanic.device.send("offer.accept", offer_id=card["offer_id"], accept_id=accept_id)
    await mechanic.device.lose()


@pytest.mark.parametrize("nth", range(5))
async def test_of_two_who_lose_the_reply_one_has_won_and_both_are_told(
    city: City, nth: int
) -> None:
    ann = await city.customer()
    rivals = await city.mechanics(2)
    booking = await ann.book()
    cards = [await mechanic.offered(booking) for mechanic in rivals]
    ids = [new_id(), new_id()]

    await asyncio.gather(
        *(accept_and_vanish(m, c, i) for m, c, i in zip(rivals, cards, ids, strict=True))
    )
    for mechanic in rivals:
        await come_back(mechanic)
    offer_id = cards[0]["offer_id"]
    first = [await accept(m, offer_id, i) for m, i in zip(rivals, ids, strict=True)]
    for mechanic in rivals:
        await come_back(mechanic)
    second = [await accept(m, offer_id, i) for m, i in zip(rivals, ids, strict=True)]

    assert sorted(verdict["type"] for verdict in first) == ["offer.lost", "offer.won"]
    assert [v["type"] for v in second] == [v["type"] for v in first]
    assert [v["accept_id"] for v in second] == ids
    winner = rivals[[v["type"] for v in first].index("offer.won")]
    assert (await booking.status(status="accepted"))["mechanic"]["id"] == winner.id
    (held,) = winner.device.snapshot["sessions"]
    assert held["session_id"] == booking.session_id


async def test_an_offer_is_there_again_after_a_lost_connection(city: City) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic()
    booking = await ann.book()
    card = await mechanic.offered(booking)

    await mechanic.device.lose()
    await come_back(mechanic)

    (again,) = mechanic.device.snapshot["offers"]
    assert again["offer_id"] == card["offer_id"]
    await mechanic.wins(booking)
