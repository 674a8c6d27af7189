"""Rounds of a candidate and of its yardstick, taken in turns, and what is made of them.

A machine that is shared changes its speed within seconds; so each round is compared with the
yardstick's round just before it and just after it. Imports nothing of ours.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

Round = TypeVar("Round")


@dataclass(frozen=True)
class Turns(Generic[Round]):
    """The rounds of one candidate, and for each of them the yardstick's that stood beside it."""

    rounds: Sequence[Round]
    beside: Sequence[tuple[Round, Round]]

    def median(self, read: Callable[[Round], float]) -> float:
        """Of one figure of the rounds."""
        return statistics.median(map(read, self.rounds))

    def ratio(
        self, read: Callable[[Round], float], yard: Callable[[Round], float] | None = None
    ) -> float:
        """Of one figure over the same, or over `yard`, of the yardstick beside it."""
        pairs = zip(self.rounds, self.beside, strict=True)
        return statistics.median(
            read(one) / statistics.mean(map(yard or read, two)) for one, two in pairs
        )


def take_turns(
    rounds: int, candidate: Callable[[], Round], yardstick: Callable[[], Round]
) -> tuple[Turns[Round], list[Round]]:
    """`rounds` of the candidate, with one more of the yardstick around them, which come second."""
    around, seen = [yardstick()], []
    for _ in range(rounds):
        seen.append(candidate())
        around.append(yardstick())
    return Turns(seen, list(pairwise(around))), around


def of_yardstick(rounds: Sequence[Round]) -> Turns[Round]:
    """The yardstick's own row: all its rounds, each beside itself."""
    return Turns(rounds, [(one, one) for one in rounds])
