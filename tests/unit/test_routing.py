"""Who may have a booking, on what terms, and why not: the four strategies, rule by rule."""

from uuid import UUID

import pytest
from msgspec.structs import replace

from dispatch.core.routing import Terms, exclusion, not_meant, rank, terms
from dispatch.core.types import Booking, Candidate, Routing, Stage
from tests.unit.builders import ANNA, BEN, NORTH, SOUTH, at, booking, candidate

ONE_SESSION = 1

broadcast = booking(stage=Stage.OPEN)
workshop_only = booking(
    stage=Stage.OPEN, routing=Routing.WORKSHOP_ONLY, preferred_workshop_id=NORTH
)
hybrid = booking(stage=Stage.OPEN, routing=Routing.HYBRID, preferred_workshop_id=NORTH)
head_start = replace(hybrid, stage=Stage.PREFERRED)
fallen_back = booking(stage=Stage.OPEN, routing=Routing.PRIORITY, preferred_mechanic_id=ANNA)
priority = replace(fallen_back, stage=Stage.PRIORITY)

of_north = candidate(BEN, workshop_id=NORTH)
of_south = candidate(BEN, workshop_id=SOUTH)
independent = candidate(BEN)
favourite = candidate(ANNA)


@pytest.mark.parametrize(
    ("asked", "mechanic", "expected"),
    [
        (broadcast, of_north, Terms(50, preferred=False, highlighted=False)),
        (broadcast, independent, Terms(50, preferred=False, highlighted=False)),
        (workshop_only, of_north, Terms(100, preferred=False, highlighted=True)),
        (hybrid, of_north, Terms(100, preferred=False, highlighted=True)),
        (hybrid, of_south, Terms(50, preferred=False, highlighted=False)),
        (hybrid, independent, Terms(25, preferred=False, highlighted=False)),
        (head_start, of_north, Terms(100, preferred=False, highlighted=True)),
        (priority, favourite, Terms(100, preferred=True, highlighted=True)),
        (fallen_back, favourite, Terms(100, preferred=True, highlighted=True)),
        (fallen_back, of_north, Terms(50, preferred=False, highlighted=False)),
        (fallen_back, independent, Terms(50, preferred=False, highlighted=False)),
    ],
)
def test_each_strategy_scores_an_eligible_mechanic_on_its_own_terms(
    asked: Booking, mechanic: Candidate, expected: Terms
) -> None:
    assert exclusion(asked, mechanic, ONE_SESSION) is None
    assert terms(asked, mechanic) == expected


@pytest.mark.parametrize("asked", [workshop_only, head_start], ids=["workshop_only", "head start"])
@pytest.mark.parametrize("mechanic", [of_south, independent], ids=["other workshop", "independent"])
def test_what_is_for_one_workshop_is_not_for_others(asked: Booking, mechanic: Candidate) -> None:
    assert not_meant(asked, mechanic) == "other_workshop"


def test_a_chosen_workshop_is_only_preferred_where_the_strategy_is_not_workshop_only() -> None:
    for routing in (Routing.BROADCAST, Routing.PRIORITY):
        asked = replace(broadcast, routing=routing, preferred_workshop_id=NORTH)
        assert not_meant(asked, independent) is None


@pytest.mark.parametrize("mechanic_id", [BEN, UUID(int=99)])
def test_the_priority_stage_is_for_the_favourite_alone(mechanic_id: UUID) -> None:
    assert not_meant(priority, candidate(mechanic_id)) == "not_favourite"
    assert not_meant(fallen_back, candidate(mechanic_id)) is None


def test_a_workshop_s_head_start_is_not_the_favourite_s() -> None:
    assert not_meant(head_start, candidate(ANNA, workshop_id=NORTH)) is None
    assert not_meant(head_start, of_north) is None


def test_only_approved_mechanics_are_asked() -> None:
    assert not_meant(broadcast, replace(independent, approved=False)) == "not_approved"


def test_who_declined_or_cancelled_is_not_asked_again() -> None:
    assert not_meant(replace(broadcast, excluded=(ANNA, BEN)), independent) == "excluded"
    assert not_meant(replace(broadcast, excluded=(ANNA,)), independent) is None


def test_a_specialist_is_needed_only_where_one_was_asked_for() -> None:
    special = replace(broadcast, is_specialist=True)
    assert not_meant(special, independent) == "not_specialist"
    assert not_meant(special, replace(independent, is_specialist=True)) is None
    assert not_meant(broadcast, replace(independent, is_specialist=True)) is None


def test_a_mechanic_who_is_unavailable_or_at_her_capacity_is_meant_but_not_offered() -> None:
    away = replace(independent, available=False)
    working = replace(independent, live_sessions=1)

    assert exclusion(broadcast, away, ONE_SESSION) == "unavailable"
    assert exclusion(broadcast, working, ONE_SESSION) == "busy"
    assert exclusion(broadcast, working, capacity=2) is None
    assert exclusion(broadcast, replace(working, live_sessions=2), capacity=2) == "busy"
    assert not_meant(broadcast, away) is None
    assert not_meant(broadcast, working) is None


def test_the_most_lasting_reason_is_the_one_that_is_told() -> None:
    nothing_right = candidate(
        BEN, workshop_id=SOUTH, approved=False, available=False, live_sessions=1
    )
    asked = replace(workshop_only, is_specialist=True, excluded=(BEN,))
    told = []
    for mending in (
        {"approved": True},
        {"excluded": ()},
        {"is_specialist": True},
        {"workshop_id": NORTH},
        {"available": True},
        {"live_sessions": 0},
    ):
        told.append(exclusion(asked, nothing_right, ONE_SESSION))
        if "excluded" in mending:
            asked = replace(asked, **mending)
        else:
            nothing_right = replace(nothing_right, **mending)

    assert told == [
        "not_approved",
        "excluded",
        "not_specialist",
        "other_workshop",
        "unavailable",
        "busy",
    ]
    assert exclusion(asked, nothing_right, ONE_SESSION) is None


def test_offers_are_ranked_urgent_first_then_by_score_and_then_the_oldest() -> None:
    theirs = {"routing": Routing.WORKSHOP_ONLY, "preferred_workshop_id": NORTH}
    urgent = booking(urgent=True, created_at=at(30))
    named = booking(**theirs, created_at=at(20))
    old, young = booking(created_at=at(0)), booking(created_at=at(10))
    mechanic = candidate(workshop_id=NORTH)

    ranked = sorted([young, old, named, urgent], key=lambda each: rank(each, mechanic))

    assert ranked == [urgent, named, old, young]
