"""A card is made once for all who are shown it in the same moment, and says what time it is."""

from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from dispatch import frames
from dispatch.core.routing import Terms
from dispatch.hints import Display, Entry
from dispatch.protocol import encode
from dispatch.shared_offers import MOMENT, SharedOffers
from tests.unit.builders import at, opened

DISPLAY = Display(
    customer_name="Ann",
    vehicle=None,
    concern=None,
    mechanic_name=None,
    mechanic_workshop_id=None,
    mechanic_rating=None,
)
EVERYBODY = Terms(50, preferred=False, highlighted=False)
FAVOURITE = Terms(100, preferred=True, highlighted=True)


class Wall:
    """A clock that stands."""

    def __init__(self) -> None:
        self.shows = at(1)

    def now(self) -> datetime:
        return self.shows


def entry(**changes: Any) -> Entry:
    return Entry(booking=opened(**changes), display=DISPLAY, paid=False)


def test_it_is_the_same_for_the_same_terms_only() -> None:
    wall, one = Wall(), entry()
    offers = SharedOffers(wall.now)

    for_everybody = offers.json(one, EVERYBODY)

    assert for_everybody == encode(frames.offer(one, EVERYBODY, at(1)))
    assert offers.json(one, EVERYBODY) is for_everybody
    assert offers.json(one, FAVOURITE) == encode(frames.offer(one, FAVOURITE, at(1)))


def test_a_newer_entry_of_the_booking_is_a_card_of_its_own() -> None:
    wall, one = Wall(), entry()
    offers = SharedOffers(wall.now)
    offers.json(one, EVERYBODY)
    newer = replace(one, booking=replace(one.booking, attempt=2))

    assert msgspec.json.decode(offers.json(newer, EVERYBODY))["attempt"] == 2
    assert msgspec.json.decode(offers.json(one, EVERYBODY))["attempt"] == one.booking.attempt


def test_another_moment_has_another_time_also_when_the_clock_was_wrong() -> None:
    wall, one = Wall(), entry()
    offers = SharedOffers(wall.now)
    before = offers.json(one, EVERYBODY)

    for later in (MOMENT, MOMENT * 2 + timedelta(milliseconds=1), -MOMENT):
        wall.shows = at(1) + later
        is_same = offers.json(one, EVERYBODY) is before
        assert is_same == (later == MOMENT)
        if not is_same:
            assert offers.json(one, EVERYBODY) == encode(frames.offer(one, EVERYBODY, wall.shows))
