"""Counts of what nodes say of themselves."""

from collections import Counter
from uuid import uuid4

from msgspec.structs import replace

from dispatch.audience import NAMED, ROSTER_SECONDS, Audience, Group
from dispatch.core.types import Routing, Stage
from dispatch.hints import Reach, Roster
from tests.unit.builders import booking as a_booking
from tests.unit.builders import candidate

BOOKING = a_booking(stage=Stage.OPEN, is_specialist=False)


def test_notified_adds_up_the_nodes_of_the_present_round_only() -> None:
    audience = Audience(uuid4(), {})
    audience.asked_here(BOOKING, [uuid4(), uuid4()])
    audience.asked_here(BOOKING, [uuid4()])
    audience.hear_reach(Reach(uuid4(), BOOKING.request_id, BOOKING.generation, 4))
    audience.hear_reach(Reach(uuid4(), BOOKING.request_id, BOOKING.generation - 1, 9))
    assert audience.notified(BOOKING) == 7

    audience.ended(BOOKING.request_id)
    assert audience.notified(BOOKING) == 7


def test_who_is_asked_again_counts_once_and_again_in_the_next_round() -> None:
    audience, mechanic_id = Audience(uuid4(), {}), uuid4()
    first = audience.asked_here(BOOKING, [mechanic_id])
    assert first is not None
    assert (first.asked, first.mechanic_ids) == (0, (mechanic_id,))
    assert audience.asked_here(BOOKING, [mechanic_id]) is None

    again = replace(BOOKING, generation=BOOKING.generation + 1)
    assert audience.asked_here(again, [mechanic_id]) is not None
    assert audience.notified(again) == 1


def test_who_was_asked_on_two_nodes_counts_once() -> None:
    both = uuid4()
    audience = Audience(uuid4(), {}, {both})
    audience.asked_here(BOOKING, [both, uuid4()])
    audience.hear_reach(Reach(uuid4(), BOOKING.request_id, BOOKING.generation, 300, (both,)))
    assert audience.notified(BOOKING) == 302

    many = audience.asked_here(BOOKING, [uuid4() for _ in range(NAMED)])

    assert many is not None
    assert (many.asked, many.mechanic_ids) == (NAMED + 1, (both,))
    assert audience.notified(BOOKING) == NAMED + 302


def test_who_had_left_and_was_back_before_the_round_began_is_not_named() -> None:
    back, left = uuid4(), uuid4()
    apart = {back: 1}
    audience = Audience(uuid4(), apart)
    audience.asked_here(BOOKING, [back, left, *(uuid4() for _ in range(NAMED))])

    apart[left] = 2
    (reach,) = audience.reaches_here()

    assert (reach.asked, reach.mechanic_ids) == (NAMED + 1, (left,))


def test_who_is_ready_on_two_nodes_counts_once() -> None:
    workshop_id = uuid4()
    anna = candidate(uuid4(), workshop_id=workshop_id)
    away = candidate(uuid4(), available=False)
    here, there = Audience(uuid4(), {}), Audience(uuid4(), {})
    both_say: Counter[Group] = Counter({(workshop_id, False): 1})

    for node, more in ((here, 2), (there, 300)):
        ready = both_say + Counter[Group]({(None, False): more})
        here.hear_roster(node.roster(ready, [anna, away]), now=0.0)

    assert here.online(BOOKING) == 303


def test_online_counts_who_could_serve_the_booking_in_its_widest_stage() -> None:
    workshop_id, audience = uuid4(), Audience(uuid4(), {})
    ready = ((workshop_id, False, 2), (workshop_id, True, 1), (None, False, 5))
    audience.hear_roster(Roster(uuid4(), ready), now=0.0)

    assert audience.online(BOOKING) == 8
    only = replace(BOOKING, routing=Routing.WORKSHOP_ONLY, preferred_workshop_id=workshop_id)
    assert audience.online(only) == 3
    assert audience.online(replace(only, is_specialist=True)) == 1


def test_a_silent_node_is_no_longer_counted() -> None:
    audience = Audience(uuid4(), {})
    audience.hear_roster(Roster(uuid4(), ((None, False, 3),)), now=0.0)
    audience.forget_silent_nodes(ROSTER_SECONDS)
    assert audience.online(BOOKING) == 3
    audience.forget_silent_nodes(ROSTER_SECONDS + 0.1)
    assert audience.online(BOOKING) == 0
