"""The five stories go as docs/stories.md tells them, and the rows say the same."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from dispatch.core.replay import replay
from dispatch.database import close_pool, open_pool
from dispatch.replay import record_of
from tests.stories import five
from tests.stories.document import DOCUMENT, document, transcripts
from tests.stories.five import STORIES
from tests.stories.play import Played, Tale, play
from tests.stories.transcript import Frame, instant

# Servers act a moment after the clock says so; no story's moment is shorter than five seconds.
MOMENT = timedelta(seconds=4)
WINDOW, WAIT, TIME_TO_LIVE = timedelta(minutes=10), timedelta(minutes=30), timedelta(hours=2)

Tell = Callable[[Tale], Awaitable[Played]]


@pytest.fixture
def tell(database_url: str, redis_url: str) -> Tell:
    """Plays a story; compares it with the page, its frames with its rows, both with a replay."""

    async def tell(tale: Tale) -> Played:
        played = await play(tale, database_url, redis_url)
        assert played.lines == transcripts(DOCUMENT.read_text())[STORIES.index(tale)]
        deadlines_agree(played)
        await goes_the_same_way_again(played, database_url)
        return played

    return tell


def deadlines_agree(played: Played) -> None:
    """In every frame of every scene a deadline is the very instant in the row (O7)."""
    compared = 0
    for scene in played.scenes:
        row = scene.row
        expires_at = instant(row["expires_at"])
        stage_ends_at = instant(row["stage_ends_at"]) if row["stage_ends_at"] else None
        for name, frames in scene.frames.items():
            for card in cards(frames):
                assert (card["expires_at"], card.get("exclusive_until")) == (
                    expires_at,
                    stage_ends_at,
                ), (name, scene.at, card)
                assert card["server_time"] <= min(expires_at, stage_ends_at or expires_at)
                compared += 1
            for status in frames[::-1]:
                if status["type"] == "request.status":
                    assert (status["expires_at"], status.get("stage_ends_at")) == (
                        expires_at,
                        stage_ends_at,
                    ), (name, scene.at, status)
                    assert "server_time" in status
                    compared += 1
                    break
    assert compared >= 3


async def goes_the_same_way_again(played: Played, database_url: str) -> None:
    """`dispatch replay` decides what happened (R11a)."""
    last = played.scenes[-1].row
    pool = await open_pool(database_url, size=1)
    try:
        replayed = replay(await record_of(pool, last["id"]))
    finally:
        await close_pool(pool)
    assert replayed.differences == ()
    assert (replayed.bookings[-1].version, replayed.bookings[-1].mechanic_id) == (
        last["version"],
        last["mechanic_id"],
    )


def cards(frames: list[Frame]) -> list[Frame]:
    """Offers, by themselves and in snapshots."""
    found = [frame for frame in frames if frame["type"] == "offer"]
    for frame in frames:
        if frame["type"] == "welcome":
            found += frame["snapshot"]["offers"]
    return found


def passed(row: asyncpg.Record, name: str) -> timedelta:
    """From the booking to that moment."""
    at: datetime = row[name]
    booked_at: datetime = row["created_at"]
    return at - booked_at


def at_about(row: asyncpg.Record, name: str, **since_booking: int) -> None:
    """That moment in the row was then, or a little later."""
    wanted = timedelta(**since_booking)
    assert wanted <= passed(row, name) < wanted + MOMENT, (name, passed(row, name))


async def test_a_silent_favourite_is_asked_at_0_5_and_10_seconds_and_then_everybody(
    tell: Tell,
) -> None:
    played = await tell(five.the_favourite_is_silent)

    asked, again, third = (played.row(at) for at in ("+00:00", "+00:05", "+00:10"))
    assert [row["attempt"] for row in (asked, again, third)] == [1, 2, 3]
    for row in (asked, again, third):
        assert (row["status"], row["stage"], row["generation"]) == ("pending", "priority", 1)
        at_about(row, "priority_notified_at")
        assert row["priority_notified_at"] == asked["priority_notified_at"]
        assert row["stage_ends_at"] - row["priority_notified_at"] == WINDOW
        assert row["fallback_broadcast_at"] is None
    wide = played.row("+00:15")
    assert (wide["stage"], wide["stage_ends_at"], wide["generation"]) == ("open", None, 1)
    assert wide["priority_notified_at"] == asked["priority_notified_at"]
    at_about(wide, "fallback_broadcast_at", seconds=15)
    assert wide["offer_id"] == asked["offer_id"]
    assert wide["excluded_mechanic_ids"] == []
    assert {passed(scene.row, "expires_at") for scene in played.scenes} == {TIME_TO_LIVE}
    assert played.row("+00:40")["status"] == "accepted"


async def test_a_favourite_who_declines_sends_it_to_everybody_else_in_that_moment(
    tell: Tell,
) -> None:
    played = await tell(five.the_favourite_declines)

    before, after = played.row("+00:00"), played.row("+02:00")
    assert before["stage_ends_at"] - before["priority_notified_at"] == WINDOW
    assert (before["fallback_broadcast_at"], before["excluded_mechanic_ids"]) == (None, [])
    at_about(after, "fallback_broadcast_at", minutes=2)
    assert after["priority_notified_at"] == before["priority_notified_at"]
    assert after["excluded_mechanic_ids"] == [after["preferred_mechanic_id"]]
    assert (after["stage"], after["generation"]) == ("open", 1)
    assert {passed(scene.row, "expires_at") for scene in played.scenes} == {TIME_TO_LIVE}
    won = played.row("+03:00")
    assert won["mechanic_id"] != won["preferred_mechanic_id"]


async def test_a_favourite_who_is_waited_for_comes_at_minute_12_and_wins(tell: Tell) -> None:
    played = await tell(five.the_customer_waits_for_an_offline_favourite)

    waiting, won = played.scenes[0].row, played.row("+12:00")
    at_about(waiting, "priority_notified_at")
    assert waiting["stage_ends_at"] - waiting["priority_notified_at"] == WAIT
    assert waiting["priority_window_minutes"] == 30
    assert won["mechanic_id"] == won["preferred_mechanic_id"]
    at_about(won, "accepted_at", minutes=12)
    assert won["priority_notified_at"] == waiting["priority_notified_at"]
    assert (won["fallback_broadcast_at"], won["excluded_mechanic_ids"]) == (None, [])
    assert {scene.row["generation"] for scene in played.scenes} == {1}
    for scene in played.scenes:
        assert scene.frames["Max"] == scene.frames["Ida"] == [], "they must hear nothing of it"


async def test_a_winner_who_cancels_reopens_it_for_everybody_else_as_a_second_round(
    tell: Tell,
) -> None:
    played = await tell(five.the_winner_cancels)

    won, reopened, again = (played.row(at) for at in ("+00:30", "+03:00", "+04:00"))
    assert (won["generation"], won["status"]) == (1, "accepted")
    assert passed(won, "expires_at") == TIME_TO_LIVE
    assert (reopened["generation"], reopened["status"], reopened["stage"]) == (2, "pending", "open")
    assert reopened["excluded_mechanic_ids"] == [won["mechanic_id"]]
    assert reopened["offer_id"] != won["offer_id"]
    assert reopened["mechanic_id"] is None
    at_about(reopened, "expires_at", hours=2, minutes=3)
    assert (again["generation"], again["status"]) == (2, "accepted")
    assert again["mechanic_id"] not in (None, won["mechanic_id"])
    assert again["expires_at"] == reopened["expires_at"]
    assert again["priority_notified_at"] is again["fallback_broadcast_at"] is None


async def test_the_first_who_comes_after_an_hour_of_nobody_gets_it(tell: Tell) -> None:
    played = await tell(five.nobody_is_online_for_an_hour)

    alone, won = played.row("+00:00"), played.row("+60:00")
    assert (alone["status"], alone["stage"]) == ("pending", "open")
    assert won["status"] == "accepted"
    assert isinstance(won["mechanic_id"], UUID)
    at_about(won, "accepted_at", hours=1)
    assert won["expires_at"] == alone["expires_at"]
    assert passed(won, "expires_at") == TIME_TO_LIVE
    assert won["generation"] == 1
    assert won["priority_notified_at"] is won["fallback_broadcast_at"] is None


def test_the_page_is_what_is_printed() -> None:
    page = DOCUMENT.read_text()

    assert page == document(transcripts(page))
