"""How often is too often: one number per client, and no timer.

Its one job: say whether one more is allowed now. Imports nothing of ours, reads no clock and
cannot fail; times are seconds of any monotonic clock, passed in.
"""

from collections.abc import Hashable

_SWEEP_AT_LEAST = 1024
_KEYS_AT_MOST = 100_000


class Rate:
    """So many a second, with a burst: the generic cell rate algorithm (ITU-T I.371).

    All that is remembered of a client is its *mark*, the moment when its allowance will be whole
    again; it begins at 0. A rate of 0 allows everything.
    """

    __slots__ = ("_gap_seconds", "_slack_seconds")

    def __init__(self, per_second: float, burst: float) -> None:
        self._gap_seconds = 1 / per_second if per_second > 0 else 0.0
        # A nanosecond more, for the rounding of many small sums.
        self._slack_seconds = burst * self._gap_seconds + 1e-9

    def take(self, mark: float, now: float) -> float | None:
        """The client's new mark, or None if that was one too many (its mark stays)."""
        mark = (mark if mark > now else now) + self._gap_seconds
        return mark if mark - now <= self._slack_seconds else None


class KeyedRate:
    """One `Rate` for many clients by key (an address, a user), in bounded memory.

    Who is quiet is forgotten. With more than 100,000 that are not, everybody's allowance is whole
    again: an attack from that many addresses must not cost memory, nor lock anybody out.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self._rate = Rate(per_second, burst)
        self._marks: dict[Hashable, float] = {}
        self._sweep_at = _SWEEP_AT_LEAST

    def take(self, key: Hashable, now: float) -> bool:
        """Whether this client may do it once more now; counts it if so."""
        mark = self._rate.take(self._marks.get(key, 0.0), now)
        if mark is None:
            return False
        if mark > now:
            if len(self._marks) >= self._sweep_at:
                self._sweep(now)
            self._marks[key] = mark
        return True

    def __len__(self) -> int:
        return len(self._marks)

    def _sweep(self, now: float) -> None:
        self._marks = {key: mark for key, mark in self._marks.items() if mark > now}
        if len(self._marks) >= _KEYS_AT_MOST:
            self._marks.clear()
        # Twice what is left, so that a sweep costs each key a constant.
        self._sweep_at = max(_SWEEP_AT_LEAST, min(_KEYS_AT_MOST, 2 * len(self._marks)))
