"""A worker that stands still and then goes on: what it believed meanwhile changes nothing."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.acceptance.actors import City, Town, new_id
from tests.acceptance.conftest import BuildTown
from tests.support import eventually, eventually_blocking


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(workers=2, priority_window_seconds=1.5) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("stopped", [0, 1])
async def test_a_worker_that_stood_still_changes_nothing_stale(city: City, stopped: int) -> None:
    nodes = await eventually(lambda: n if len(n := city.town.nodes()) == 2 else None)
    still_id, living_id = sorted(nodes)[stopped], sorted(nodes)[1 - stopped]
    ann = await city.customer(online=False)
    favourite, bystander = await city.mechanic(online=False), await city.mechanic(online=False)
    asleep = await city.mechanic(online=False)
    await ann.connect_to(living_id)
    await favourite.connect_to(living_id)
    await bystander.connect_to(living_id)
    await asleep.connect_to(still_id)
    her_other_device = await favourite.connect_to(still_id, acknowledges=False)
    await city.is_online(favourite, ann)
    booking = await ann.book(routing_type="priority_broadcast", preferred_mechanic_id=favourite.id)
    first = await her_other_device.card(booking.request_id)

    with standing_still(nodes[still_id]["pid"]):
        await bystander.offered(booking)
        unheard = asyncio.create_task(
            asleep.device.ask("offer.accept", offer_id=first["offer_id"], accept_id=new_id())
        )
        won = await bystander.accept(first)
        assert won["type"] == "offer.won"
        await booking.status(status="accepted")
        await eventually(lambda: still_id not in city.town.nodes())

    lost = await unheard
    assert (lost["type"], lost["reason"]) == ("offer.lost", "taken")
    told = await her_other_device.expect("offer.revoked", offer_id=first["offer_id"])
    assert told["reason"] == "taken"
    read = await booking.read()
    assert (read["status"], read["mechanic"]["id"]) == ("accepted", bystander.id)
    await ann.device.fence()
    statuses = ann.device.got("request.status", request_id=booking.request_id)
    versions = [status["version"] for status in statuses]
    assert versions == sorted(versions)
    assert len({s["version"] for s in statuses if s.get("stage") == "open"}) == 1
    assert statuses[-1]["status"] == "accepted"
    joined = await bystander.device.ask("session.join", session_id=booking.session_id)
    assert joined["version"] >= read["version"]
