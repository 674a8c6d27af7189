"""A worker that is stopped in the middle of its work must not keep a booking for itself."""

from collections.abc import Iterator

import pytest

from tests.acceptance.actors import City, Town
from tests.acceptance.conftest import BuildTown
from tests.chaos.test_stopped_worker import standing_still
from tests.support import eventually, eventually_blocking


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(workers=2, priority_window_seconds=1.5) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


@pytest.mark.parametrize("nth", range(10))
async def test_a_window_ends_in_time_whatever_a_stopped_worker_had_begun(
    city: City, nth: int
) -> None:
    # The one that was stopped before has its lease again.
    nodes = await eventually(lambda: n if len(n := city.town.nodes()) == 2 else None)
    still_id, living_id = sorted(nodes)
    ann = await city.customer(online=False)
    favourite, bystander = await city.mechanic(online=False), await city.mechanic(online=False)
    for person in (ann, bystander):
        await person.connect_to(living_id)
    await favourite.connect_to(still_id)
    await city.is_online(favourite, ann)
    booking = await ann.book(routing_type="priority_broadcast", preferred_mechanic_id=favourite.id)
    await favourite.offered(booking)

    with standing_still(nodes[still_id]["pid"]):
        card = await bystander.offered(booking)
        verdict = await bystander.accept(card)

    assert verdict["type"] == "offer.won"
