"""A mechanic who leaves, however often and whenever, gives the booking back, and never ends it for
its customer (S8a, O4)."""

import asyncio
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.acceptance.actors import City, Town
from tests.acceptance.conftest import BuildTown


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(join_seconds=2.0) as town:
        yield town


async def test_who_leaves_several_times_at_once_gives_it_back_once(city: City) -> None:
    for _ in range(4):
        ann, mechanic = await city.customer(), await city.mechanic()
        booking = await ann.book()
        path = f"/api/sessions/{booking.session_id}"
        assert (await mechanic.call("POST", f"{path}/join")).status == 200
        await asyncio.gather(*(mechanic.call("POST", f"{path}/end") for _ in range(3)))
        assert (await booking.read())["status"] == "pending"


async def test_who_cancels_on_one_device_and_leaves_on_the_other_gives_it_back(city: City) -> None:
    for _ in range(3):
        ann, mechanic = await city.customer(), await city.mechanic()
        other = await mechanic.connect()
        booking = await ann.book()
        await mechanic.wins(booking)
        await asyncio.gather(
            mechanic.devices[0].send("assignment.cancel", session_id=booking.session_id),
            other.send("session.end", session_id=booking.session_id),
        )
        await asyncio.gather(mechanic.devices[0].fence(), other.fence())
        assert (await booking.read())["status"] == "pending"


async def test_who_leaves_at_the_join_deadline_gives_it_back(city: City) -> None:
    for step in range(5):
        ann, mechanic = await city.customer(), await city.mechanic()
        booking = await ann.book()
        began = time.time()
        await mechanic.wins(booking)
        accepted = await booking.status(status="accepted")
        await ann.device.ask("session.join", session_id=booking.session_id)
        at = datetime.fromisoformat(accepted["server_time"]).timestamp() + 2.0  # our clock too
        assert at > began
        await asyncio.sleep(max(0.0, at - time.time() - 0.004 + step * 0.001))
        await mechanic.call("POST", f"/api/sessions/{booking.session_id}/end")
        await booking.status(2, status="pending")
