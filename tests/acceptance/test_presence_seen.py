"""Who is here, as a customer is told who watches a mechanic (F2, N1, N2).

On two workers, with the lease and the grace of the default configuration.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.acceptance.actors import City, Customer, Mechanic, Town
from tests.acceptance.conftest import BuildTown
from tests.acceptance.shapes import Frame
from tests.support import eventually, eventually_blocking

FREED_SECONDS = 15.0


@pytest.fixture
def town(build_town: BuildTown) -> Iterator[Town]:
    """One each: a test kills a worker of it."""
    with build_town(workers=2, presence_grace_seconds=5.0, node_lease_seconds=5.0) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


async def watch(customer: Customer, mechanic: Mechanic) -> Frame:
    """How she is now; what changes is told from now on."""
    return await customer.device.ask("mechanic.watch", mechanic_id=mechanic.id)


def told(customer: Customer, mechanic: Mechanic) -> list[tuple[str, bool]]:
    """Every presence and availability of hers that was told so far, the answers included."""
    frames = customer.device.got("mechanic.presence", mechanic_id=mechanic.id)
    for frame in frames:
        assert frame["is_online"] is (frame["presence"] == "online")
    return [(frame["presence"], frame["available"]) for frame in frames]


async def test_who_watches_is_told_of_coming_and_availability_and_of_no_flapping(
    city: City,
) -> None:
    here, there = sorted(city.town.nodes())
    ann, mechanic = await city.customer(online=False), await city.mechanic(online=False)
    await ann.connect_to(here)

    before = await watch(ann, mechanic)
    assert (before["presence"], before["available"]) == ("offline", True)
    phone = await mechanic.connect_to(there)
    await ann.device.expect("mechanic.presence", mechanic_id=mechanic.id, presence="online")

    # Connected and unavailable: two things.
    await phone.ask("availability.set", available=False)
    await ann.device.expect("mechanic.presence", available=False)
    assert told(ann, mechanic) == [("offline", True), ("online", True), ("online", False)]

    # Another device, then the first one is gone: she is here all the time.
    tablet = await mechanic.connect_to(here)
    assert tablet.snapshot["available"] is False
    await phone.close()
    # And the only one is lost and back again within the grace.
    await tablet.lose()
    again = await mechanic.connect_to(there)
    assert again.snapshot["available"] is False
    await again.ask("availability.set", available=True)
    await ann.device.expect("mechanic.presence", nth=3, available=True)
    assert told(ann, mechanic)[3:] == [("online", True)]
    status = await ann.call("GET", f"/api/mechanics/{mechanic.id}/status")
    assert (status["is_online"], status["available"]) == (True, True)

    after = await ann.device.ask("mechanic.unwatch", mechanic_id=mechanic.id)
    assert (after["type"], after["presence"]) == ("mechanic.presence", "online")
    await mechanic.leave()
    await city.is_online(mechanic, ann, False)
    await ann.device.fence()
    assert told(ann, mechanic)[4:] == [("online", True)], "only the answer to unwatch"
    gone = await ann.call("GET", f"/api/mechanics/{mechanic.id}/status")
    assert gone["last_seen"] >= again.welcome["server_time"]


async def test_people_of_a_killed_node_are_free_within_fifteen_seconds(city: City) -> None:
    living, dying = sorted(city.town.nodes())
    ann = await city.customer(online=False)
    alone, on_both = await city.mechanic(online=False), await city.mechanic(online=False)
    await ann.connect_to(living)
    await alone.connect_to(dying)
    await on_both.connect_to(dying)
    await on_both.connect_to(living)
    for mechanic in (alone, on_both):
        await watch(ann, mechanic)
        await city.is_online(mechanic, ann)
    booking = await ann.book_free()
    await booking.status(mechanics_notified=2, mechanics_online=2)

    os.kill(city.town.nodes()[dying]["pid"], signal.SIGKILL)
    killed_at = time.monotonic()

    await eventually(
        lambda: told(ann, alone)[-1][0] == "offline",
        FREED_SECONDS,
    )
    assert time.monotonic() - killed_at < FREED_SECONDS
    await city.is_online(alone, ann, False)
    await city.is_online(on_both, ann)
    assert told(ann, on_both)[-1][0] == "online"
    assert "offline" not in [presence for presence, _ in told(ann, on_both)[1:]]
    await eventually(
        lambda: ann.device.got("request.status")[-1]["mechanics_online"] == 1, FREED_SECONDS
    )
    await alone.connect_to(living)
    await eventually(lambda: told(ann, alone)[-1][0] == "online")
    (card,) = alone.device.snapshot["offers"]
    assert card["request_id"] == booking.request_id
    await alone.wins(booking)
