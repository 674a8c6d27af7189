"""Without Redis nobody knows who is here: a third answer, and never a booking's end (N2a)."""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime

import pytest

from tests.acceptance.actors import City, Town
from tests.acceptance.conftest import BuildTown
from tests.integration.own_redis import OwnRedis, own_redis
from tests.support import eventually, eventually_blocking

WINDOW_SECONDS, WAIT_SECONDS = 60.0, 120.0


@pytest.fixture(scope="module")
def redis() -> Iterator[OwnRedis]:
    with own_redis() as server:
        yield server


@pytest.fixture(scope="module")
def town(build_town: BuildTown, redis: OwnRedis) -> Iterator[Town]:
    with build_town(
        workers=2,
        redis_url=redis.url,
        offer_retry_seconds=0.3,
        priority_window_seconds=WINDOW_SECONDS,
        wait_window_seconds=WAIT_SECONDS,
    ) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


@pytest.fixture
async def outage(city: City, redis: OwnRedis) -> AsyncIterator[OwnRedis]:
    """Redis is gone, and both nodes know it; it is back for the next test."""
    redis.kill()
    await eventually(lambda: _says(city, "redis"))
    yield redis
    redis.start()
    await eventually(lambda: _says(city, None))


async def _says(city: City, missing: str | None) -> bool:
    """Whether every node misses this, or nothing."""
    answers = []
    for _ in range(6):
        ready = await city.call("GET", "/readyz", headers={"Connection": "close"})
        assert ready.status == 200
        answers.append(ready.body.get("degraded", []))
    return all(missing in lost if missing else lost == [] for lost in answers)


async def test_presence_is_unknown_while_redis_is_away_and_online_again_after(
    city: City, redis: OwnRedis
) -> None:
    here, there = sorted(city.town.nodes())
    ann, mechanic = await city.customer(online=False), await city.mechanic(online=False)
    await ann.connect_to(here)
    await mechanic.connect_to(there)
    await city.is_online(mechanic, ann)
    absent = await city.mechanic(online=False)

    redis.kill()
    await eventually(lambda: _says(city, "redis"))
    for person in (mechanic, absent):
        answer = await ann.device.ask("mechanic.watch", mechanic_id=person.id)
        assert (answer["presence"], answer["is_online"]) == ("unknown", False)
    redis.start()

    await city.is_online(mechanic, ann)
    answer = await ann.device.ask("mechanic.watch", mechanic_id=absent.id)
    assert answer["presence"] == "offline"
    assert mechanic.device.socket.close_code is None


async def test_a_favourite_nobody_knows_of_is_asked_first_and_given_up_unseen(
    city: City, outage: OwnRedis
) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanic(online=False), await city.mechanic()

    booking = await ann.book(routing_type="priority_broadcast", preferred_mechanic_id=favourite.id)

    status = await booking.status(stage="priority")
    card = await bystander.offered(booking)
    assert card["stage"] == "open"
    assert card["server_time"] < status["stage_ends_at"]
    await booking.status(stage="open")
    await bystander.wins(booking)


async def test_a_favourite_nobody_knows_of_has_the_long_window_when_the_customer_waits(
    city: City, outage: OwnRedis
) -> None:
    ann = await city.customer()
    favourite, bystander = await city.mechanic(online=False), await city.mechanic()

    booking = await ann.book(
        routing_type="priority_broadcast",
        preferred_mechanic_id=favourite.id,
        wait_for_preferred=True,
    )

    status = await booking.status(stage="priority")
    ends_at, now = (datetime.fromisoformat(status[n]) for n in ("stage_ends_at", "server_time"))
    assert (ends_at - now).total_seconds() > WINDOW_SECONDS
    await favourite.connect()
    card = await favourite.offered(booking)
    assert (card["stage"], card["exclusive_until"]) == ("priority", status["stage_ends_at"])
    assert not bystander.heard_of(booking.request_id)
    await favourite.wins(booking)


async def test_a_workshop_nobody_knows_of_has_its_head_start(city: City, outage: OwnRedis) -> None:
    ann, rival = await city.customer(), await city.mechanic(workshop=1)

    booking = await ann.book(routing_type="hybrid", workshop_id=city.town.workshop_ids[2])

    await booking.status(stage="preferred")
    await rival.device.fence()
    assert not rival.heard_of(booking.request_id)
    preferred = await city.mechanic(workshop=2)
    assert (await preferred.offered(booking))["stage"] == "preferred"


async def test_a_watcher_is_told_that_it_is_unknown_and_then_what_it_is(
    city: City, redis: OwnRedis
) -> None:
    here, there = sorted(city.town.nodes())
    ann, mechanic = await city.customer(online=False), await city.mechanic(online=False)
    await ann.connect_to(here)
    await mechanic.connect_to(there)
    await city.is_online(mechanic, ann)
    await ann.device.ask("mechanic.watch", mechanic_id=mechanic.id)

    redis.kill()
    await eventually(lambda: _says(city, "redis"))
    try:
        await ann.device.expect("mechanic.presence", mechanic_id=mechanic.id, presence="unknown")
    finally:
        redis.start()
        await eventually(lambda: _says(city, None))
    await ann.device.expect("mechanic.presence", nth=2, mechanic_id=mechanic.id, presence="online")
