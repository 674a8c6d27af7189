"""Which arm of which experiment a booking is in, and what follows: shares, and nobody is moved."""

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatch.core.experiments import Arm, Running, Trial, arm_of, policy_of, trial, under
from dispatch.core.types import Routing, Wish
from tests.unit.builders import ANNA, NORTH, POLICY, booking

CUSTOMERS = [UUID(int=n << 64 | n) for n in range(20_000)]

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=50)


def wish(customer_id: UUID = CUSTOMERS[0], **changes: object) -> Wish:
    """Anna first, and everybody after ten minutes."""
    asked = Wish(
        customer_id=customer_id,
        session_type="chat",
        plan_code="chat10",
        minutes=10,
        urgent=False,
        is_specialist=False,
        routing=Routing.PRIORITY,
        preferred_workshop_id=None,
        preferred_mechanic_id=ANNA,
        wait_for_preferred=False,
        waiver_signed=True,
    )
    return replace(asked, **changes)


def windows(
    name: str = "windows",
    rollout_percentage: int = 100,
    assigned: str | None = None,
    weights: tuple[int, ...] = (1, 1),
) -> Running:
    """Arms w1, w2 …, of windows of one minute, two …"""
    arms = tuple(
        Arm(name=f"w{n}", weight=weight, priority_window_seconds=60.0 * n)
        for n, weight in enumerate(weights, start=1)
    )
    return Running(name=name, rollout_percentage=rollout_percentage, arms=arms, assigned=assigned)


CONTROL = Running(
    name="control",
    rollout_percentage=100,
    arms=(
        Arm(name="asked", weight=1, routing=Routing.PRIORITY),
        Arm(name="everybody", weight=1, routing=Routing.BROADCAST),
    ),
)


def within(experiment: Running) -> set[UUID]:
    return {each for each in CUSTOMERS if trial(wish(each), [experiment]) is not None}


# --- whom it touches ------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", [each for each in Routing if each is not Routing.PRIORITY])
def test_only_who_asks_for_a_favourite_first_is_touched(routing: Routing) -> None:
    other = wish(routing=routing, preferred_workshop_id=NORTH)

    assert trial(other, [windows(), CONTROL]) is None


def test_who_chose_to_wait_for_her_favourite_is_not_touched() -> None:
    assert trial(wish(wait_for_preferred=True), [windows(), CONTROL]) is None


def test_without_experiments_nothing_is_tried() -> None:
    assert trial(wish(), []) is None


@pytest.mark.parametrize("percentage", [0, 1, 10, 50, 99, 100])
def test_a_rollout_is_of_so_many_percent(percentage: int) -> None:
    share = len(within(windows(rollout_percentage=percentage))) / len(CUSTOMERS)

    assert share == pytest.approx(percentage / 100, abs=0.01)
    assert share != 0.0 or percentage == 0
    assert share != 1.0 or percentage == 100


@given(st.uuids(), names, st.lists(st.integers(0, 100), min_size=2, max_size=2).map(sorted))
def test_to_raise_the_rollout_moves_nobody_who_is_in(
    customer_id: UUID, name: str, percentages: list[int]
) -> None:
    lower, higher = (
        trial(wish(customer_id), [windows(name, percentage, weights=(1, 2, 3))])
        for percentage in percentages
    )

    assert lower in (None, higher)


# --- which arm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1,), (1, 1), (1, 3), (90, 9, 1), (1000, 1000, 1000, 1000)])
def test_arms_have_the_shares_of_their_weights(weights: tuple[int, ...]) -> None:
    experiment = windows(weights=weights)
    counted = Counter(arm_of(experiment, each).name for each in CUSTOMERS)

    for n, weight in enumerate(weights, start=1):
        share = counted[f"w{n}"] / len(CUSTOMERS)
        assert share == pytest.approx(weight / sum(weights), abs=0.012)


@pytest.mark.parametrize("percentage", [5, 50])
def test_within_any_rollout_the_shares_are_the_same(percentage: int) -> None:
    experiment = windows(rollout_percentage=percentage, weights=(1, 3))
    inside = within(experiment)

    first = sum(arm_of(experiment, each).name == "w1" for each in inside)

    assert first / len(inside) == pytest.approx(0.25, abs=0.04)


def test_two_experiments_divide_the_same_people_each_in_its_own_way() -> None:
    pairs = Counter(
        (arm_of(windows("one"), each).name, arm_of(windows("other"), each).name)
        for each in CUSTOMERS
    )

    assert all(count / len(CUSTOMERS) == pytest.approx(0.25, abs=0.015) for count in pairs.values())
    assert len(pairs) == 4


@given(
    st.uuids(),
    names,
    st.lists(st.integers(1, 1000), min_size=1, max_size=10).map(tuple),
    st.lists(st.integers(1, 1000), min_size=10, max_size=10).map(tuple),
)
def test_whoever_is_in_an_arm_stays_in_it_whatever_the_weights_become(
    customer_id: UUID, name: str, weights: tuple[int, ...], others: tuple[int, ...]
) -> None:
    first = trial(wish(customer_id), [windows(name, weights=weights)])
    assert first is not None

    again = trial(wish(customer_id), [windows(name, assigned=first.arm, weights=others)])

    assert again == first


def test_arms_are_the_same_in_every_version_and_on_every_machine() -> None:
    """Customers are in them: a hash that changes would move everybody who is not kept yet."""
    drawn = [arm_of(windows(weights=(1, 2, 3)), each).name for each in CUSTOMERS[:12]]
    inside = [trial(wish(each), [windows("b", 50)]) is not None for each in CUSTOMERS[:12]]

    assert drawn == ["w3", "w2", "w1", "w2", "w2", "w2", "w3", "w2", "w2", "w2", "w3", "w3"]
    assert inside == [bool(int(each)) for each in "011100101111"]


# --- which experiment -----------------------------------------------------------------------------


def test_one_experiment_touches_a_booking_the_first_that_may() -> None:
    first, second = windows("first", 50), windows("second", 100)

    chosen = Counter(
        found.experiment
        for each in CUSTOMERS
        if (found := trial(wish(each), [first, second])) is not None
    )

    assert chosen["first"] == len(within(first))
    assert chosen["first"] + chosen["second"] == len(CUSTOMERS)


def test_who_is_in_a_later_one_is_not_moved_by_an_earlier_one_that_grows() -> None:
    grown, hers = windows("first", 100), windows("second", 100, assigned="w2")

    found = trial(wish(), [grown, hers])

    assert found is not None
    assert (found.experiment, found.arm) == ("second", "w2")


def test_who_is_beyond_the_rollout_is_not_touched_though_she_once_was() -> None:
    assert trial(wish(), [windows("off", 0, assigned="w1")]) is None


def test_an_arm_that_there_is_not_touches_nobody() -> None:
    assert trial(wish(), [windows(assigned="gone")]) is None


# --- what follows ---------------------------------------------------------------------------------


def test_an_arm_of_windows_is_a_policy_of_the_bookings_own() -> None:
    found = trial(wish(), [windows(assigned="w2")])

    tried = under(booking(routing=Routing.PRIORITY, preferred_mechanic_id=ANNA), found)

    assert found == Trial(
        experiment="windows",
        arm="w2",
        routing=Routing.PRIORITY,
        priority_window_seconds=120.0,
    )
    assert (tried.experiment, tried.arm, tried.routing) == ("windows", "w2", Routing.PRIORITY)
    assert policy_of(tried, POLICY) == replace(POLICY, priority_window_seconds=120.0)


@pytest.mark.parametrize(
    ("arm", "routing"), [("asked", Routing.PRIORITY), ("everybody", Routing.BROADCAST)]
)
def test_an_arm_of_routing_is_another_strategy_under_the_same_policy(
    arm: str, routing: Routing
) -> None:
    given = booking(routing=Routing.PRIORITY, preferred_mechanic_id=ANNA)

    tried = under(given, trial(wish(), [replace(CONTROL, assigned=arm)]))

    assert tried == replace(given, experiment="control", arm=arm, routing=routing)
    assert policy_of(tried, POLICY) is POLICY


def test_what_is_not_tried_is_as_it_was() -> None:
    given = booking()

    assert under(given, None) is given
    assert policy_of(given, POLICY) is POLICY
