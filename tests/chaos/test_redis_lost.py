"""Redis killed, and Redis that says nothing: bookings go on, and presence comes back."""

from collections.abc import Iterator

import pytest

from tests.acceptance.actors import City, Town
from tests.acceptance.conftest import BuildTown
from tests.integration.own_redis import OwnRedis, own_redis
from tests.support import eventually, eventually_blocking


@pytest.fixture(scope="module")
def redis() -> Iterator[OwnRedis]:
    with own_redis() as server:
        yield server


@pytest.fixture(scope="module")
def town(build_town: BuildTown, redis: OwnRedis) -> Iterator[Town]:
    with build_town(workers=2, redis_url=redis.url, offer_retry_seconds=0.3) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


async def degraded(city: City) -> list[str]:
    """What `readyz` misses; every node answers, so it is asked several times."""
    missing: set[str] = set()
    for _ in range(6):
        ready = await city.call("GET", "/readyz", headers={"Connection": "close"})
        assert (ready.status, ready["ok"]) == (200, True)
        missing |= set(ready.body.get("degraded", []))
    return sorted(missing)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_dispatching_goes_on_without_redis_and_with_it_again(
    city: City, redis: OwnRedis, fault: str
) -> None:
    here, there = sorted(city.town.nodes())
    ann, bob = await city.customer(online=False), await city.customer(online=False)
    near, far = await city.mechanic(online=False), await city.mechanic(online=False)
    await ann.connect_to(here)
    await bob.connect_to(here)
    await near.connect_to(here)
    await far.connect_to(there)
    before = await bob.book()
    card = await near.offered(before)

    redis.kill() if fault == "killed" else redis.freeze()
    missing = await eventually(lambda: degraded(city))
    during = await ann.book(routing_type="priority_broadcast", preferred_mechanic_id=far.id)
    asked = await far.offered(during)
    won = await far.accept(asked)
    accepted = await during.status(status="accepted")
    refused = await far.accept(card)
    taken = await near.accept(card)
    redis.start() if fault == "killed" else redis.thaw()

    assert set(missing) <= {"redis", "bus"}
    assert (asked["stage"], won["type"]) == ("priority", "offer.won")
    assert accepted["mechanic"]["id"] == far.id
    assert (refused["type"], refused["reason"], taken["type"]) == (
        "offer.lost",
        "busy",
        "offer.won",
    )
    assert (await before.status(status="accepted"))["mechanic"]["id"] == near.id

    async def whole() -> bool:
        return await degraded(city) == []

    await eventually(whole)
    for mechanic in (near, far):
        await city.is_online(mechanic, ann)
    late = await city.mechanic()
    await city.is_online(late, ann)
    assert [device.socket.close_code for p in city.people for device in p.devices] == [None] * 5
