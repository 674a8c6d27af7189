"""Timers fire once, in order and never early; the sweep fires what is overdue, come what may."""

import asyncio
import logging
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatch import timers as module
from dispatch.errors import Unavailable
from dispatch.timers import Clock, Sweep, Timers
from tests.support import eventually

T0 = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timers notice within 10 ms that a test has moved the clock."""
    monkeypatch.setattr(module, "LONGEST_SLEEP_SECONDS", 0.01)


class Watch:
    """A monotonic clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Fired:
    """The keys that fired, with the clock's time of each."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.keys: list[UUID] = []
        self.times: list[datetime] = []

    def __call__(self, key: UUID) -> None:
        self.keys.append(key)
        self.times.append(self._clock.now())


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def clock_of(watch: Callable[[], float]) -> Clock:
    return Clock(watch, offset_seconds=T0.timestamp())


async def turns(count: int) -> None:
    """Let the loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_timer_fires_once_when_the_clock_says_so_however_early_the_loop_wakes() -> None:
    watch = Watch()
    fired = Fired(clock_of(watch))
    timers = Timers(clock_of(watch), fired)
    key, other = uuid4(), uuid4()

    timers.arm(key, at(0.005))  # the loop wakes after 5 ms; by the clock no time has passed
    timers.arm(other, at(0.0))
    await eventually(lambda: fired.keys == [other])
    loop_time = asyncio.get_running_loop().time()
    await eventually(lambda: asyncio.get_running_loop().time() > loop_time + 0.02)
    assert fired.keys == [other]
    assert len(timers) == 1

    watch.seconds = 0.005
    await eventually(lambda: fired.keys == [other, key])
    assert fired.times[-1] == at(0.005)
    assert len(timers) == 0


async def test_with_a_running_clock_nothing_fires_before_its_time() -> None:
    clock = clock_of(asyncio.get_running_loop().time)
    fired = Fired(clock)
    timers = Timers(clock, fired)
    start = clock.now()
    wanted = {uuid4(): start + timedelta(milliseconds=random.uniform(0, 60)) for _ in range(300)}

    for key, when in wanted.items():
        timers.arm(key, when)
    await eventually(lambda: len(timers) == 0 and len(fired.keys) == len(wanted))

    assert sorted(fired.keys) == sorted(wanted)
    assert all(time >= wanted[key] for key, time in zip(fired.keys, fired.times, strict=True))
    assert [wanted[key] for key in fired.keys] == sorted(wanted.values())


async def test_arming_again_replaces_and_disarming_forgets() -> None:
    watch = Watch()
    fired = Fired(clock_of(watch))
    timers = Timers(clock_of(watch), fired)
    later, never, sooner = uuid4(), uuid4(), uuid4()
    timers.arm(later, at(1))
    timers.arm(later, at(20))
    timers.arm(sooner, at(20))
    timers.arm(sooner, at(2))
    timers.arm(never, at(1))
    timers.disarm(never)
    timers.disarm(never)
    assert len(timers) == 2

    watch.seconds = 10
    await eventually(lambda: fired.keys == [sooner])
    watch.seconds = 20
    await eventually(lambda: fired.keys == [sooner, later])

    timers.arm(never, at(5))
    await eventually(lambda: fired.keys == [sooner, later, never])


KEYS = [uuid4() for _ in range(6)]
# Within one second, over its edges, and far away.
SECONDS = st.one_of(
    st.integers(0, 40).map(lambda tenths: tenths / 10), st.integers(0, 20), st.floats(0, 500)
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), st.sampled_from(KEYS), SECONDS),
        st.tuples(st.just("disarm"), st.sampled_from(KEYS), st.just(0)),
        st.tuples(st.just("pass"), st.just(None), SECONDS),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_whatever_is_armed_disarmed_and_passes_each_fires_once_in_order_and_on_time(
    steps: list[tuple[str, UUID | None, float]],
) -> None:
    asyncio.run(_against_a_plain_model(steps))


async def _against_a_plain_model(steps: list[tuple[str, UUID | None, float]]) -> None:
    watch = Watch()
    fired = Fired(clock_of(watch))
    timers = Timers(clock_of(watch), fired)
    pending: dict[UUID, datetime] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "LONGEST_SLEEP_SECONDS", 0.0)
        patched.setattr(module, "GARBAGE", 2)  # so that a few steps have it cleared up
        for what, key, seconds in [*steps, ("pass", None, 2000.0)]:
            fired.keys.clear()
            if what == "pass":
                watch.seconds += seconds
            elif what == "arm" and key is not None:
                pending[key] = at(watch.seconds + seconds)
                timers.arm(key, pending[key])
            elif key is not None:
                pending.pop(key, None)
                timers.disarm(key)
            await turns(8)

            now = clock_of(watch).now_seconds()
            due = {key: when for key, when in pending.items() if when.timestamp() <= now}
            assert sorted(fired.keys) == sorted(due)
            assert [due[key] for key in fired.keys] == sorted(due.values())
            for key in due:
                del pending[key]
            assert len(timers) == len(pending)
    assert not pending


@pytest.mark.parametrize("seed", range(3))
async def test_many_that_are_armed_and_disarmed_fire_in_order(seed: int) -> None:
    watch = Watch()
    fired = Fired(clock_of(watch))
    timers = Timers(clock_of(watch), fired)
    draw = random.Random(seed)
    keys = [uuid4() for _ in range(300)]
    pending: dict[UUID, datetime] = {}
    for _ in range(3000):
        key = draw.choice(keys)
        if draw.random() < 0.3:
            timers.disarm(key)
            pending.pop(key, None)
        else:
            pending[key] = at(draw.uniform(1, 1000))
            timers.arm(key, pending[key])

    assert len(timers) == len(pending)
    watch.seconds = 1000
    await eventually(lambda: len(timers) == 0)
    await turns(2)

    assert sorted(fired.keys) == sorted(pending)
    assert [pending[key] for key in fired.keys] == sorted(pending.values())


@pytest.mark.parametrize("seconds", [0.9, 100], ids=["this second", "later"])
async def test_garbage_of_replaced_timers_is_bounded(seconds: float) -> None:
    watch = Watch()
    timers = Timers(clock_of(watch), lambda key: None)
    keys = [uuid4() for _ in range(10)]
    timers.arm(keys[0], at(0))
    await eventually(lambda: len(timers) == 0)  # the second in which it fired is the present one
    tracemalloc.start()

    for round_number in range(10_000):
        for key in keys:
            timers.arm(key, at(seconds + seconds * round_number / 100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(timers) == 10
    assert peak < 2_000_000  # 100,000 timers would be some 10 MB


async def test_a_failing_timer_does_not_keep_the_others_from_firing() -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    watch = Watch()
    fired: list[UUID] = []
    bad, good = uuid4(), uuid4()

    def fire(key: UUID) -> None:
        fired.append(key)
        if key == bad:
            raise ValueError("a bug")

    timers = Timers(clock_of(watch), fire)
    timers.arm(bad, at(0))
    timers.arm(good, at(0))
    await eventually(lambda: len(fired) == 2)
    await turns(1)

    assert [str(context["exception"]) for context in reported] == ["a bug"]


async def test_a_timer_that_fires_may_disarm_one_that_is_due_in_the_same_moment() -> None:
    watch = Watch()
    fired: list[UUID] = []
    first, second, third = uuid4(), uuid4(), uuid4()

    def fire(key: UUID) -> None:
        fired.append(key)
        if key == first:
            timers.disarm(second)
            timers.arm(third, at(60))

    timers = Timers(clock_of(watch), fire)
    timers.arm(first, at(1))
    timers.arm(second, at(2))
    timers.arm(third, at(3))
    watch.seconds = 10
    await eventually(lambda: fired)
    await turns(5)
    assert fired == [first]
    assert len(timers) == 1

    watch.seconds = 60
    await eventually(lambda: fired == [first, third])


async def test_many_that_are_due_at_once_leave_the_loop_its_turns() -> None:
    watch = Watch()
    fired = Fired(clock_of(watch))
    timers = Timers(clock_of(watch), fired)
    for _ in range(1000):
        timers.arm(uuid4(), at(0))
    counts = []

    while len(fired.keys) < 1000:
        await asyncio.sleep(0)
        counts.append(len(fired.keys))

    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= 200


# --- the sweep ------------------------------------------------------------------------------------


@asynccontextmanager
async def running(job: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(job)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class Rows:
    """What is overdue in a database that can go away."""

    def __init__(self, keys: Sequence[UUID]) -> None:
        self.due = list(keys)
        self.fired: list[UUID] = []
        self.asked = 0
        self.away = False
        self.at_once = 0
        self.most_at_once = 0

    async def overdue(self) -> Sequence[UUID]:
        self.asked += 1
        if self.away:
            raise Unavailable("the database is away")
        return self.due[:100]

    async def fire(self, key: UUID) -> None:
        if self.away:
            raise Unavailable("the database is away")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        self.due.remove(key)
        self.fired.append(key)


async def test_full_batches_are_swept_at_once_and_eight_at_a_time() -> None:
    keys = [uuid4() for _ in range(350)]
    rows = Rows(keys)

    async with running(Sweep(rows.overdue, rows.fire, 3600.0).run()):
        await eventually(lambda: not rows.due)
        await turns(5)

    assert sorted(rows.fired) == sorted(keys)
    assert rows.most_at_once == 8
    assert rows.asked == 4  # 100, 100, 100, 50, and then it waits


async def test_a_database_that_is_away_is_tried_again_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dispatch")
    key = uuid4()
    rows = Rows([key])
    rows.away = True

    async with running(Sweep(rows.overdue, rows.fire, 0.001).run()):
        await eventually(lambda: rows.asked > 5)
        rows.away = False
        await eventually(lambda: rows.fired == [key])

    assert caplog.messages == [
        "sweep lost the database: the database is away",
        "sweep recovered the database",
    ]


async def test_rows_that_firing_does_not_help_do_not_make_the_sweep_spin() -> None:
    keys = [uuid4() for _ in range(100)]
    asked = 0

    async def overdue() -> Sequence[UUID]:
        nonlocal asked
        asked += 1
        return keys

    async def fire(key: UUID) -> None:
        return None

    async with running(Sweep(overdue, fire, 3600.0).run()):
        await eventually(lambda: asked == 2)
        await turns(200)

    assert asked == 2


async def test_a_bug_in_firing_ends_the_sweep() -> None:
    async def overdue() -> Sequence[UUID]:
        return [uuid4()]

    async def fire(key: UUID) -> None:
        raise ValueError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        await Sweep(overdue, fire, 0.001).run()
    assert caught.value.subgroup(ValueError) is not None
