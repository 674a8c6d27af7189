"""When a schedule says that something happens, for any moment."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.jobs import Schedule, next_run

START = datetime(2000, 1, 1, tzinfo=UTC)
moments = st.timedeltas(timedelta(0), timedelta(days=365 * 200)).map(lambda since: START + since)
LONGEST = {"hourly": timedelta(hours=1), "weekly": timedelta(days=7), "monthly": timedelta(days=31)}


def is_named(schedule: Schedule, at: datetime) -> bool:
    """Whether the schedule names this moment, said in other words than the code."""
    if (at.minute, at.second, at.microsecond) != (0, 0, 0):
        return False
    if schedule == "hourly":
        return True
    return at.hour == 6 and (at.isoweekday() == 1 if schedule == "weekly" else at.day == 1)


@given(moments, st.sampled_from(["hourly", "weekly", "monthly"]))
def test_the_next_run_is_the_first_moment_after_now_that_the_schedule_names(
    now: datetime, schedule: Schedule
) -> None:
    at = next_run(schedule, now)

    assert at is not None
    assert at > now
    assert is_named(schedule, at)
    hours = range(1, int(LONGEST[schedule].total_seconds() // 3600))
    between = [at - timedelta(hours=back) for back in hours]
    assert not [earlier for earlier in between if earlier > now and is_named(schedule, earlier)]
    assert at - now <= LONGEST[schedule]


@given(moments)
def test_switched_off_there_is_no_next_run(now: datetime) -> None:
    assert next_run("off", now) is None


@given(moments, st.integers(-12, 14), st.sampled_from(["hourly", "weekly", "monthly"]))
def test_it_is_the_same_moment_wherever_one_asks_from(
    now: datetime, hours: int, schedule: Schedule
) -> None:
    there = now.astimezone(timezone(timedelta(hours=hours)))

    assert next_run(schedule, there) == next_run(schedule, now)


@pytest.mark.parametrize(
    ("schedule", "now", "expected"),
    [
        ("weekly", "2026-11-22T23:59:59", "2026-11-23T06:00:00"),
        ("weekly", "2026-11-23T05:59:59.999999", "2026-11-23T06:00:00"),
        ("weekly", "2026-11-23T06:00:00", "2026-11-30T06:00:00"),
        ("monthly", "2026-12-31T23:00:00", "2027-01-01T06:00:00"),
        ("monthly", "2027-01-01T06:00:00", "2027-02-01T06:00:00"),
        ("monthly", "2028-02-29T12:00:00", "2028-03-01T06:00:00"),
        ("hourly", "2026-12-31T23:00:00", "2027-01-01T00:00:00"),
    ],
)
def test_around_the_moment_itself_and_the_ends_of_months_and_years(
    schedule: Schedule, now: str, expected: str
) -> None:
    at = datetime.fromisoformat(now).replace(tzinfo=UTC)

    assert next_run(schedule, at) == datetime.fromisoformat(expected).replace(tzinfo=UTC)
