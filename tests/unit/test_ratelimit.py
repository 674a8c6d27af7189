"""A burst, then a steady rate, in memory that an attack cannot grow."""

from dispatch.ratelimit import KeyedRate, Rate


def _allowed(rate: Rate, times: list[float]) -> list[float]:
    mark, allowed = 0.0, []
    for now in times:
        taken = rate.take(mark, now)
        if taken is not None:
            mark = taken
            allowed.append(now)
    return allowed


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    rate = Rate(per_second=20, burst=60)

    assert len(_allowed(rate, [1000.0] * 100)) == 60
    steady = [1000.0] * 60 + [1000 + tenth / 10 for tenth in range(1, 101)] * 5
    assert len(_allowed(rate, sorted(steady))) == 60 + 10 * 20


def test_after_a_pause_the_burst_is_whole_again_and_never_larger() -> None:
    rate = Rate(per_second=2, burst=6)

    assert len(_allowed(rate, [0.0] * 9 + [3.0] * 9 + [1000.0] * 9)) == 18


def test_a_rate_of_zero_allows_everything() -> None:
    assert len(_allowed(Rate(per_second=0, burst=1), [5.0] * 1000)) == 1000


def test_every_key_has_its_own_allowance() -> None:
    connects = KeyedRate(per_second=1, burst=2)

    assert [connects.take("a", 10.0) for _ in range(3)] == [True, True, False]
    assert [connects.take("b", 10.0) for _ in range(3)] == [True, True, False]
    assert connects.take("a", 11.0)


def test_who_is_quiet_is_forgotten() -> None:
    connects = KeyedRate(per_second=1, burst=2)
    for key in range(100_000):
        assert connects.take(key, now=float(key))

    assert len(connects) < 2000


def test_an_attack_from_very_many_addresses_costs_bounded_memory_and_locks_nobody_out() -> None:
    connects = KeyedRate(per_second=1, burst=2)

    assert all(connects.take(key, now=0.0) for key in range(250_000))

    assert len(connects) <= 100_000
    assert connects.take("somebody else", now=0.0)
