"""The cards that many are shown in the same moment, encoded once.

Its one job: give the JSON of an open booking's offer. When thousands come back at once, each is
shown the same cards on the same terms, and making one costs more than sending it. May import
`core`, `frames`, `hints` and `protocol`; no I/O. Time is read through what it is given.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from dispatch import frames
from dispatch.core.routing import Terms
from dispatch.hints import Entry
from dispatch.protocol import encode

# An offer says what time it is, for a client to set its clock by: no more late than this.
MOMENT: Final = timedelta(milliseconds=50)


class SharedOffers:
    """Encoded offers of the present moment; all are forgotten when it is over."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        """`now` is the database's time, which the offers say."""
        self._now = now
        self._since = datetime.min.replace(tzinfo=UTC)
        self._made: dict[tuple[UUID, Terms], tuple[Entry, bytes]] = {}

    def json(self, entry: Entry, terms: Terms) -> bytes:
        """The offer of this very entry for everybody with these terms."""
        now = self._now()
        if abs(now - self._since) > MOMENT:  # the clock may be corrected backwards
            self._made.clear()
            self._since = now
        key = (entry.booking.request_id, terms)
        made = self._made.get(key)
        if made is None or made[0] is not entry:
            made = self._made[key] = (entry, encode(frames.offer(entry, terms, now)))
        return made[1]
