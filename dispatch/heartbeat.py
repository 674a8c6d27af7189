"""One clock for all connections of a process.

Its one job: let something be looked at about once in a period, a slice of all at a time, with one
timer however many there are (a timer each costs 588 bytes and 3 µs on uvloop). Imports nothing of
ours and does no I/O. What a visit raises goes to the loop's exception handler; the wheel turns on.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Final, Generic, TypeVar

Member = TypeVar("Member")

# A slice of 10,000 is looked at, and pinged when all came at once, in a millisecond or two. Prime,
# because objects lie in memory at even distances, and their hashes are their places.
SLOTS: Final = 127


class Wheel(Generic[Member]):
    """Visits its members, each about once in `period_seconds`; without members it stands still.

    `now` is the wheel's own time in seconds. It runs like the loop's clock, but a pause of the
    process counts as one period at most: after a stop of a minute nobody has been silent for a
    minute, since nobody could have been heard.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        period_seconds: float,
        visit: Callable[[Collection[Member], float], None],
    ) -> None:
        """`visit(members, now)` is called for one slice at a time, never for an empty one."""
        self.now = 0.0
        self._loop = loop
        self._period_seconds = period_seconds
        self._visit = visit
        self._slots: list[set[Member]] = [set() for _ in range(SLOTS)]
        self._hand = 0  # which slice is visited next
        self._members = 0
        self._ticked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._members

    def add(self, member: Member) -> None:
        """Begin to visit it; it must not be a member already."""
        self._slot_of(member).add(member)
        self._members += 1
        if self._timer is None:
            self._ticked_at = self._loop.time()
            self._wind()

    def discard(self, member: Member) -> None:
        """Never visit it again; nothing happens if it is no member."""
        slot = self._slot_of(member)
        if member in slot:
            slot.remove(member)
            self._members -= 1

    def _slot_of(self, member: Member) -> set[Member]:
        return self._slots[hash(member) % SLOTS]

    def _wind(self) -> None:
        self._timer = self._loop.call_later(self._period_seconds / SLOTS, self._tick)

    def _tick(self) -> None:
        if self._members == 0:  # only now: a timer each for those who come alone would cost more
            self._timer = None
            return
        loop_now = self._loop.time()
        self.now += min(loop_now - self._ticked_at, self._period_seconds)
        self._ticked_at = loop_now
        self._wind()
        members = tuple(self._slots[self._hand])
        self._hand = (self._hand + 1) % SLOTS
        if members:
            self._visit(members, self.now)
