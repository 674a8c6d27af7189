"""Writing to thousands without holding the loop: a slice at a time, together where two coincide.

One job: take each `Ride` past all of its parts, so many writes a turn of the loop, with some turns
for everybody else in between. The rides lead in rotation: each says which part is next, and whoever
has that part ahead as well comes along. So what is under way to the same people at the same time is
written to them at once, as one. A small ride waits for nobody. No I/O of its own, no decisions;
imports `hub` and nothing else of ours.

    first    a  b  c  d       1: a       3: c, for both       5: a, for the second
    second   a  b  c  d       2: b, for both       4: d, for both
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any, Final, Protocol

from dispatch.hub import Letter, deliver

SLICE: Final = 128  # people a turn who are written to: a millisecond or less
AT_ONCE: Final = SLICE  # people to whom something is written whoever else is under way
RESTS: Final = 4  # turns of the loop for everybody else: an accept takes half a dozen to its answer
SEATS: Final = 32  # rides that go past one part together
FREE: Final = 4  # letters in one write that cost as much as the write itself


class Ride(Protocol):
    """Something to be written to many, in parts. Rides share the parts that have equal names."""

    ahead: dict[Hashable, Any]

    def __len__(self) -> int:
        """To how many people it is to be written still."""

    def visit(self, part: Any) -> Letter:
        """What the people of one part are to be sent now, as if they had it already."""

    def arrived(self) -> None:
        """All parts were visited, or nothing more is to be written."""


class Carousel:
    """All rides of this node."""

    def __init__(self, may_turn: Callable[[], bool]) -> None:
        """Nobody is written to while `may_turn` is false; call `turn` when that is over."""
        self._may_turn = may_turn
        self._rides: deque[Ride] = deque()  # the first leads
        self._next_turn: asyncio.Handle | None = None

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._rides)

    def board(self, ride: Ride) -> None:
        """Begins at once if it is small, or nobody is under way: a small round is over when this
        returns."""
        if not ride.ahead:
            ride.arrived()
            return
        if len(ride) <= AT_ONCE and self._may_turn():
            parts, ride.ahead = ride.ahead, {}
            deliver([ride.visit(part) for part in parts.values()])
            ride.arrived()
            return
        self._rides.append(ride)
        if self._next_turn is None:
            self.turn()

    def leave(self, ride: Ride) -> None:
        """Nothing more of it is written. Nothing happens if it has arrived already."""
        if ride in self._rides:
            self._rides.remove(ride)
            ride.arrived()

    def turn(self) -> None:
        """Writes one slice; while anything is left, the next one after everybody else's turns."""
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        room: float = SLICE
        while room > 0 and self._rides and self._may_turn():
            letters = self._visit_next()
            room -= sum(len(letter.to) for letter in letters) * (1 / len(letters) + 1 / FREE)
        if self._rides and self._may_turn():
            self._rest(RESTS)

    def _rest(self, turns: int) -> None:
        loop = asyncio.get_running_loop()
        if turns == 0:
            self._next_turn = loop.call_soon(self.turn)
        else:
            self._next_turn = loop.call_soon(self._rest, turns - 1)

    def _visit_next(self) -> list[Letter]:
        """The leader's next part, for everybody who has it ahead; what was written."""
        leader = self._rides[0]
        name = next(iter(leader.ahead))
        together = [ride for ride in islice(self._rides, SEATS) if name in ride.ahead]
        letters = [ride.visit(ride.ahead.pop(name)) for ride in together]
        deliver(letters)
        for ride in together:
            if not ride.ahead:
                self.leave(ride)
        self._rides.rotate(-1)
        return letters
