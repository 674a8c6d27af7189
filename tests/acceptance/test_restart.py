"""A server that is stopped says so, and one on the same data goes on where it was."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.acceptance.actors import City, Town, visiting
from tests.acceptance.conftest import BuildTown
from tests.support import eventually


@pytest.fixture
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(priority_window_seconds=60.0) as town:
        yield town


def now() -> str:
    """As the protocol writes times."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_open_requests_outlive_a_restart_with_their_deadlines(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    favourite, mechanic = await city.mechanics(2)
    await city.is_online(favourite, ann)
    preferring = await ann.book(
        routing_type="priority_broadcast", preferred_mechanic_id=favourite.id
    )
    everybodys = await bob.book()
    asked, offered = await favourite.offered(preferring), await mechanic.offered(everybodys)

    assert city.town.server.stop() == 0
    for person in (ann, bob, favourite, mechanic):
        assert await person.device.closed() == 1012
        (drain,) = person.device.got("drain")
        assert drain["reconnect_after_ms"] >= 0
    city.town.restart()
    for person in (favourite, mechanic, ann, bob):
        await person.connect()

    again, open_again = await favourite.offered(preferring), await mechanic.offered(everybodys)
    for before, after in ((asked, again), (offered, open_again)):
        same = ("offer_id", "generation", "stage", "score", "expires_at", "created_at")
        assert [after[name] for name in same] == [before[name] for name in same]
    assert again["exclusive_until"] == asked["exclusive_until"]
    (shown,) = ann.device.snapshot["requests"]
    assert (shown["stage"], shown["expires_at"]) == ("priority", asked["expires_at"])
    assert shown["stage_ends_at"] == asked["exclusive_until"]
    assert not mechanic.heard_of(preferring.request_id)
    await favourite.wins(preferring)
    await mechanic.wins(everybodys)
    await preferring.status(status="accepted")


@pytest.fixture
def impatient_town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(request_ttl_seconds=1.0) as town:
        yield town


async def test_what_fell_due_while_nobody_was_there_happens_at_the_start(
    impatient_town: Town,
) -> None:
    async with visiting(impatient_town) as city:
        ann, mechanic = await city.customer(), await city.mechanic()
        booking = await ann.book()
        card = await mechanic.offered(booking)
        assert city.town.server.stop() == 0
        await eventually(lambda: now() >= card["expires_at"])

        city.town.restart()

        assert (await booking.reads(status="expired"))["expires_at"] == card["expires_at"]
        await mechanic.connect()
        assert mechanic.device.snapshot["offers"] == []
        late = await mechanic.accept(card)
        assert (late["type"], late["reason"]) == ("offer.lost", "expired")
        assert (await booking.refunded())["amount"] == 1000
