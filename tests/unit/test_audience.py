"""Counts of what nodes say of themselves."""

from uuid import uuid4

from msgspec.structs import replace

from dispatch.audience import NAMED, ROSTER_SECONDS, Audience
from dispatch.core.types import Routing, Stage
from dispatch.hints import Reach, Roster
from tests.unit.builders import booking as a_booking

BOOKING = a_booking(stage=Stage.OPEN, is_specialist=False)


def test_notified_adds_up_the_nodes_of_the_present_round_only() -> None:
    audience = Audience(uuid4())
    audience.asked_here(BOOKING, [uuid4(), uuid4()])
    audience.asked_here(BOOKING, [uuid4()])
    audience.hear_reach(Reach(uuid4(), BOOKING.request_id, BOOKING.generation, 4))
    audience.hear_reach(Reach(uuid4(), BOOKING.request_id, BOOKING.generation - 1, 9))
    assert audience.notified(BOOKING) == 7

    audience.ended(BOOKING.request_id)
    assert audience.notified(BOOKING) == 7


def test_who_is_asked_again_counts_once_and_again_in_the_next_round() -> None:
    audience, mechanic_id = Audience(uuid4()), uuid4()
    first = audience.asked_here(BOOKING, [mechanic_id])
    assert first is not None
    assert first.asked == 1
    assert audience.asked_here(BOOKING, [mechanic_id]) is None

    again = replace(BOOKING, generation=BOOKING.generation + 1)
    assert audience.asked_here(again, [mechanic_id]) is not None
    assert audience.notified(again) == 1


def test_who_was_asked_on_two_nodes_counts_once_while_they_are_few() -> None:
    audience, both = Audience(uuid4()), uuid4()
    audience.asked_here(BOOKING, [both, uuid4()])
    audience.hear_reach(Reach(uuid4(), BOOKING.request_id, BOOKING.generation, 1, (both,)))
    assert audience.notified(BOOKING) == 2

    audience.asked_here(BOOKING, [uuid4() for _ in range(NAMED)])
    assert audience.notified(BOOKING) == NAMED + 3


def test_online_counts_who_could_serve_the_booking_in_its_widest_stage() -> None:
    workshop_id, audience = uuid4(), Audience(uuid4())
    ready = ((workshop_id, False, 2), (workshop_id, True, 1), (None, False, 5))
    audience.hear_roster(Roster(uuid4(), ready), now=0.0)

    assert audience.online(BOOKING) == 8
    only = replace(BOOKING, routing=Routing.WORKSHOP_ONLY, preferred_workshop_id=workshop_id)
    assert audience.online(only) == 3
    assert audience.online(replace(only, is_specialist=True)) == 1


def test_a_silent_node_is_no_longer_counted() -> None:
    audience = Audience(uuid4())
    audience.hear_roster(Roster(uuid4(), ((None, False, 3),)), now=0.0)
    audience.forget_silent_nodes(ROSTER_SECONDS)
    assert audience.online(BOOKING) == 3
    audience.forget_silent_nodes(ROSTER_SECONDS + 0.1)
    assert audience.online(BOOKING) == 0
