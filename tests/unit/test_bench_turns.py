"""Rounds of a candidate and of its yardstick, taken in turns."""

from collections.abc import Iterator

from bench.turns import of_yardstick, take_turns


def _counting(*values: float) -> Iterator[float]:
    yield from values


def test_each_round_is_divided_by_the_mean_of_the_yardstick_just_before_and_after() -> None:
    candidate, yardstick = _counting(6.0, 40.0, 10.0), _counting(1.0, 3.0, 7.0, 13.0)

    turns, around = take_turns(3, lambda: next(candidate), lambda: next(yardstick))

    assert around == [1.0, 3.0, 7.0, 13.0]
    assert turns.beside == [(1.0, 3.0), (3.0, 7.0), (7.0, 13.0)]
    assert turns.ratio(lambda one: one) == 3.0  # the median of 6 / 2, 40 / 5 and 10 / 10
    assert turns.median(lambda one: one) == 10.0


def test_another_figure_can_be_compared_with_the_cost_of_the_yardstick() -> None:
    turns, _ = take_turns(1, lambda: (5.0, 12.0), lambda: (4.0, 99.0))

    assert turns.ratio(lambda one: one[1], lambda one: one[0]) == 3.0


def test_the_yardstick_is_as_good_as_itself() -> None:
    assert of_yardstick([2.0, 50.0]).ratio(lambda one: one) == 1.0
