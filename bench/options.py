"""What a benchmark is asked with. Imports nothing of ours."""

from collections.abc import Callable
from dataclasses import dataclass

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """`sockets` are the numbers of connections to try, where a benchmark has such; medians are
    over `rounds`; `short` asks for a figure within a minute, by fewer cases."""

    sockets: tuple[int, ...]
    rounds: int
    short: bool

    @classmethod
    def long(cls) -> "Options":
        """What a figure on record is made with."""
        return cls(sockets=(1000, 10000), rounds=5, short=False)

    @classmethod
    def brief(cls) -> "Options":
        """What is enough to see whether something broke."""
        return cls(sockets=(1000,), rounds=3, short=True)
