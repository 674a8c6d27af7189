"""What a benchmark is asked with. Imports nothing of ours."""

from collections.abc import Callable
from dataclasses import dataclass

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """`sockets` are the numbers of connections to try, where a benchmark has such; medians are
    over `rounds`; `short` asks for a figure within a minute, by fewer cases. `peers` are parts of
    the names of the servers of others that are wanted beside ours; empty means all there are."""

    sockets: tuple[int, ...]
    rounds: int
    short: bool
    peers: tuple[str, ...] = ()

    @classmethod
    def long(cls) -> "Options":
        """What a figure on record is made with."""
        return cls(sockets=(1000, 10000), rounds=5, short=False)

    @classmethod
    def brief(cls) -> "Options":
        """What is enough to see whether something broke."""
        return cls(sockets=(1000,), rounds=3, short=True)
