"""What the checker finds, as rows: which rule, about whom, and the events that show it.

Imports `history` only; pure data.
"""

from collections.abc import Callable, Iterator

import msgspec

from loadtest.cases import Cases
from loadtest.history import Event


class Limits(msgspec.Struct, frozen=True):
    """How long the server may take before silence is a fault, and what one mechanic may hold."""

    settle_seconds: float = 5.0
    answer_seconds: float = 10.0
    capacity: int = 1


class Violation(msgspec.Struct, frozen=True):
    """One broken promise. `evidence` are the events that show it, in order of time."""

    rule: str
    detail: str
    evidence: list[Event]
    request_id: str | None = None
    offer_id: str | None = None
    who: str | None = None


Rule = Callable[[Cases, Limits], Iterator[Violation]]
