"""Where the time of a booking goes, measured as it happens on this node (R8a).

One job: turn moments into the steps of the waterfall and observe each once a round: committed
(after the booking was heard of), written (its first card, at the opening, by the node that heard of
it), seen and accepted
(after the first card), joined (after the accept). The same steps of one booking are read from the
rows by `explain`. Keeps a bounded memory of rounds; imports `core`, `board` and `metrics`.
"""

from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from dispatch.board import bounded_put
from dispatch.core.types import Booking
from dispatch.metrics import Metrics

REMEMBERED: Final = 20_000

Step = Literal["committed", "written", "seen", "accepted", "joined"]


class Waterfall:
    """One node's measurements."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._heard: dict[UUID, datetime] = {}  # by request: heard of here, and not yet opened
        self._written: dict[UUID, datetime] = {}  # by round: its first card here
        self._seen: dict[UUID, bool] = {}

    def committed(self, request_id: UUID, received_at: datetime, at: datetime) -> None:
        """A booking that this node had heard of at `received_at` is committed."""
        bounded_put(self._heard, request_id, at, REMEMBERED)
        self._observe("committed", received_at, at)

    def written(self, booking: Booking, at: datetime, count: int) -> None:
        """This node wrote `count` cards of the present round, the first time perhaps none."""
        heard_of = self._heard.pop(booking.request_id, None)
        if count == 0 or booking.offer_id in self._written:
            return
        bounded_put(self._written, booking.offer_id, at, REMEMBERED)
        if heard_of is not None:
            self._observe("written", booking.opens_at, at)

    def seen(self, booking: Booking, at: datetime) -> None:
        """A mechanic here saw a card of the present round."""
        written_at = self._written.get(booking.offer_id)
        if written_at is not None and booking.offer_id not in self._seen:
            bounded_put(self._seen, booking.offer_id, True, REMEMBERED)
            self._observe("seen", written_at, at)

    def accepted(self, booking: Booking) -> None:
        """The present round was won through this node."""
        written_at = self._written.get(booking.offer_id)
        if written_at is not None and booking.accepted_at is not None:
            self._observe("accepted", written_at, booking.accepted_at)

    def joined(self, booking: Booking) -> None:
        """The mechanic who won has joined through this node."""
        if booking.accepted_at is not None and booking.mechanic_joined_at is not None:
            self._observe("joined", booking.accepted_at, booking.mechanic_joined_at)

    def _observe(self, step: Step, begin: datetime, end: datetime) -> None:
        self._metrics.step(step, max(0.0, (end - begin).total_seconds()))
