"""The narrator over recorded histories: what happened, in the words that a watcher reads."""

import pytest

from loadtest.narrator import Narrator
from loadtest.tale import Line
from tests.unit.recorded import Actor, Recorder, round_id, session_id


def told(recorder: Recorder) -> list[str]:
    """All lines, asked for after every event as the demo does, and once more at the end."""
    narrator = Narrator({"north": "North Gate"})
    lines: list[Line] = []
    for event in recorder.events:
        narrator.take(event)
        lines += narrator.lines(event.at)
    lines += narrator.lines(recorder.at, all_of_it=True)
    return [f"{line.tag}: {line.text}" for line in lines]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def city(recorder: Recorder) -> tuple[Actor, Actor, Actor]:
    return recorder.customer("ana"), recorder.mechanic("bruno"), recorder.mechanic("carla")


def works(ana: Actor, mechanic: Actor, *, by_hand: bool) -> None:
    ana.sees("r1", "accepted", 3, mechanic={"id": mechanic.who})
    ana.session("r1", "active", 4, started_at=ana.recorder.stamp())
    if by_hand:
        ana.sends("session.end", session_id=session_id("r1"))
    ana.session("r1", "completed", 5)
    ana.sees("r1", "completed", 5, mechanic={"id": mechanic.who})
    ana.reads("r1", "completed", 5)


def test_a_favourite_who_declines_and_a_race_for_the_rest(recorder: Recorder) -> None:
    ana, bruno, carla = city(recorder)
    dora = recorder.mechanic("dora")
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2, stage="priority")
    bruno.is_offered_alone("r1")
    recorder.later(1)
    bruno.sends("offer.decline", offer_id=round_id("r1"))
    carla.is_offered("r1")
    dora.is_offered("r1")
    recorder.later(1)
    carla.accepts("r1")
    dora.accepts("r1")
    carla.wins("r1")
    dora.loses("r1")
    works(ana, carla, by_hand=True)

    assert told(recorder) == [
        "B1: Ana pays for video15, wants the favourite Bruno",
        "B1: offered to Bruno alone for 3 s",
        "B1: Bruno declines → everyone (Carla, Dora)",
        "B1: 2 mechanics accept at once: Carla won, 1 lost (already taken)",
        "B1: Ana and Carla are connected",
        "B1: Ana ends the session",
        "B1: session completed",
    ]


def test_a_workshop_where_nobody_is_there_and_then_somebody_comes(recorder: Recorder) -> None:
    ana, bruno, _ = city(recorder)
    ana.orders(routing_type="workshop_only", workshop_id="north")
    ana.sees("r1", "pending", 2, stage="open")
    recorder.later(5)
    ana.sees("r1", "pending", 3, stage="open")
    bruno.connects(offers=[bruno.offer("r1") | {"score": 100}])
    recorder.later(1)
    bruno.accepts("r1")
    bruno.wins("r1")
    works(ana, bruno, by_hand=False)

    assert told(recorder) == [
        "B1: Ana pays for video15, only from North Gate",
        "B1: nobody is there to ask: the request stays open",
        "B1: offered to the workshop (Bruno)",
        "B1: Bruno accepts and won",
        "B1: Ana and Bruno are connected",
        "B1: the minutes are up: completed",
    ]


def test_a_favourite_who_comes_late_and_then_takes_another(recorder: Recorder) -> None:
    ana, bruno, carla = city(recorder)
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2, stage="priority")
    recorder.later(5)
    ana.sees("r1", "pending", 2, stage="priority")
    bruno.is_offered_alone("r1")
    recorder.later(1)
    carla.is_offered("r1")

    assert told(recorder) == [
        "B1: Ana pays for video15, wants the favourite Bruno",
        "B1: Bruno is not there: the request waits for Bruno",
        "B1: offered to Bruno alone for 3 s",
        "B1: Bruno is not free any more → everyone (Carla)",
    ]


def test_a_deaf_favourite_is_asked_again_and_given_up(recorder: Recorder) -> None:
    ana, bruno, carla = city(recorder)
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2, stage="priority")
    for attempt in (1, 2, 3):
        bruno.is_offered("r1", stage="priority", attempt=attempt)
        recorder.later(1)
    carla.is_offered("r1")
    recorder.later(1)
    ana.sends("request.cancel", request_id="r1")
    ana.sees("r1", "cancelled", 3)
    ana.reads("r1", "cancelled", 3)

    assert told(recorder) == [
        "B1: Ana pays for video15, wants the favourite Bruno",
        "B1: offered to Bruno alone",
        "B1: no sign from Bruno: asked again (2 of 3)",
        "B1: no sign from Bruno: asked again (3 of 3)",
        "B1: the favourite cannot be reached → everyone (Carla)",
        "B1: cancelled, Ana's payment goes back",
    ]


def test_a_winner_who_cancels(recorder: Recorder) -> None:
    ana, bruno, carla = city(recorder)
    ana.orders()
    ana.sees("r1", "pending", 2, stage="open")
    bruno.is_offered("r1")
    carla.is_offered("r1")
    recorder.later(1)
    bruno.accepts("r1")
    bruno.wins("r1")
    recorder.later(1)
    bruno.sends("assignment.cancel", session_id=session_id("r1"), reason="flat tyre")
    carla.is_offered("r1", generation=2)

    assert told(recorder)[-3:] == [
        "B1: Bruno accepts and won",
        "B1: Bruno has to cancel (flat tyre)",
        "B1: offered to everyone (Carla)",
    ]


def test_offers_that_come_before_the_customers_own_news_are_told_after_it(
    recorder: Recorder,
) -> None:
    ana, bruno, _ = city(recorder)
    ana.orders()
    bruno.is_offered("r1")
    ana.sees("r1", "pending", 2, stage="open")

    assert told(recorder) == [
        "B1: Ana pays for video15, from anyone",
        "B1: offered to everyone (Bruno)",
    ]
