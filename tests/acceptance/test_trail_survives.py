"""The trail of a killed node: what is older than a second is kept, the rest is unknown (R8)."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.actors import Booking, City, Person, Town
from tests.acceptance.conftest import BuildTown
from tests.acceptance.shapes import Frame
from tests.support import eventually, eventually_blocking

KEPT_SECONDS = 1.0
LOADED_SECONDS = 1.0  # what a loaded machine may take on top


@pytest.fixture
def town(build_town: BuildTown) -> Iterator[Town]:
    """One each: a test kills a worker of it."""
    with build_town(workers=2) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


async def story_of(admin: Person, booking: Booking) -> Frame:
    answer = await admin.call("GET", f"/api/admin/requests/{booking.request_id}/explain")
    assert answer.status == 200, answer
    story: Frame = answer.body
    return story


def candidate(story: Frame, mechanic_id: str) -> dict[str, Any] | None:
    return next((c for c in story["candidates"] if c["mechanic_id"] == mechanic_id), None)


async def test_what_was_sent_and_seen_a_second_ago_survives_the_node_that_sent_it(
    city: City,
) -> None:
    living, dying = sorted(city.town.nodes())
    ann, admin = await city.customer(online=False), await city.admin()
    mechanic = await city.mechanic(online=False)
    await ann.connect_to(living)
    await mechanic.connect_to(dying)
    booking = await ann.book_free()
    card = await mechanic.offered(booking)
    sent_at = time.monotonic()

    async def on_record() -> dict[str, Any] | None:
        found = candidate(await story_of(admin, booking), mechanic.id)
        return found if found and found["sent"] and found["seen_at"] else None

    before = await eventually(on_record)
    assert time.monotonic() - sent_at < KEPT_SECONDS + LOADED_SECONDS
    os.kill(city.town.nodes()[dying]["pid"], signal.SIGKILL)
    await mechanic.device.closed()

    after = candidate(await story_of(admin, booking), mechanic.id)
    assert after == before
    assert (before["eligible"], before["sent"][0]["score"]) == (True, card["score"])
    assert [(sent["stage"]) for sent in before["sent"]] == ["open"]


async def test_what_a_killed_node_had_no_time_to_write_is_unknown_and_the_verdict_is_not(
    city: City,
) -> None:
    living, dying = sorted(city.town.nodes())
    ann, admin = await city.customer(online=False), await city.admin()
    mechanic = await city.mechanic(online=False)
    await ann.connect_to(living)
    await mechanic.connect_to(dying)
    pid = city.town.nodes()[dying]["pid"]
    booking = await ann.book_free()
    await mechanic.wins(booking)

    os.kill(pid, signal.SIGKILL)

    await booking.status(status="accepted")
    story = await story_of(admin, booking)
    found = candidate(story, mechanic.id)
    assert found is not None, "who answered is on record whatever became of the trail"
    assert (found["eligible"], found["answer"]) == (True, "accepted")
    assert [line["type"] for line in story["history"]][:3] == ["created", "opened", "accepted"]
    text = city.town.server.cli("explain", booking.request_id)
    assert ("sent: unknown" in text) == (found["sent"] == [])
    assert (
        city.town.server.cli("replay", booking.request_id).splitlines()[-1].startswith("the same")
    )
