"""The wheel visits everybody in turn, and a stopped process makes nobody silent."""

import asyncio
import time
from collections.abc import Collection

from dispatch.heartbeat import SLOTS, Wheel
from tests.support import eventually

PERIOD_SECONDS = 0.05


class Visits:
    """What a wheel visited, slice by slice."""

    def __init__(self) -> None:
        self.slices: list[tuple[float, list[int]]] = []

    def __call__(self, members: Collection[int], now: float) -> None:
        self.slices.append((now, list(members)))

    def of(self, member: int) -> list[float]:
        return [now for now, members in self.slices if member in members]


def _wheel(visits: Visits) -> Wheel[int]:
    return Wheel(asyncio.get_running_loop(), PERIOD_SECONDS, visits)


async def test_every_member_is_visited_again_and_again_a_slice_at_a_time() -> None:
    visits = Visits()
    wheel = _wheel(visits)
    for member in range(10 * SLOTS):
        wheel.add(member)

    await eventually(lambda: all(len(visits.of(member)) >= 3 for member in range(10 * SLOTS)))

    assert {len(members) for _, members in visits.slices} == {10}
    times = [now for now, _ in visits.slices]
    assert times == sorted(times)


async def test_who_left_is_not_visited_and_without_members_the_wheel_stands_still() -> None:
    visits = Visits()
    wheel = _wheel(visits)
    wheel.add(1)
    wheel.add(2)
    await eventually(lambda: visits.of(1) and visits.of(2))

    wheel.discard(1)
    wheel.discard(1)
    seen = len(visits.of(1))
    await eventually(lambda: len(visits.of(2)) > 3)
    assert len(visits.of(1)) == seen
    assert len(wheel) == 1

    wheel.discard(2)
    assert len(wheel) == 0
    stood_at = wheel.now
    others = Visits()
    other = _wheel(others)
    other.add(1)
    await eventually(lambda: len(others.of(1)) >= 3)
    assert wheel.now == stood_at
    other.discard(1)


async def test_a_pause_of_the_process_counts_as_one_period_at_most() -> None:
    visits = Visits()
    wheel = _wheel(visits)
    wheel.add(1)
    await eventually(lambda: visits.of(1))
    before = wheel.now

    time.sleep(5 * PERIOD_SECONDS)  # noqa: ASYNC251 - the loop is to stand still
    await eventually(lambda: wheel.now > before)

    assert wheel.now - before <= 1.5 * PERIOD_SECONDS


async def test_a_visit_that_raises_does_not_stop_the_wheel() -> None:
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    visited: list[int] = []

    def visit(members: Collection[int], now: float) -> None:
        visited.extend(members)
        raise ValueError("a bug")

    wheel = Wheel(asyncio.get_running_loop(), PERIOD_SECONDS, visit)
    wheel.add(1)

    await eventually(lambda: len(visited) >= 3)
    assert len(problems) >= 2
    wheel.discard(1)
