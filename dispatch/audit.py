"""The audit trail of routing: what this node decided, sent and heard, written in batches (R8).

One job: gather rows off the hot path and write them every half second. At most that much is lost
with a killed node, and explain shows it as unknown. Imports `core`, `store` and `waterfall`; while
Postgres is away the rows are kept, up to a bound, and the newest are dropped beyond it with a
warning.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Final
from uuid import UUID

from dispatch.core.types import Booking, Stage
from dispatch.errors import Unavailable
from dispatch.store import DecisionBatch, Receipt, Store
from dispatch.waterfall import Waterfall

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 0.5
MAX_BATCHES: Final = 10_000
BATCH_CANDIDATES: Final = 1000  # a row of so many holds the loop for a millisecond


class Audit:
    """One node's part of the trail."""

    def __init__(
        self, store: Store, node_id: UUID, now: Callable[[], datetime], waterfall: Waterfall
    ) -> None:
        self._store = store
        self._node_id = node_id
        self._now = now
        self._waterfall = waterfall
        self._next_batch = 1
        self._batches: deque[DecisionBatch] = deque(maxlen=MAX_BATCHES)
        self._open: dict[tuple[UUID, int, Stage], DecisionBatch] = {}  # those that may still grow
        self._receipts: deque[Receipt] = deque(maxlen=MAX_BATCHES)

    def asked(self, booking: Booking, mechanic_ids: list[UUID], score: int, at: datetime) -> None:
        """These mechanics were written the same offer at `at`: perhaps nobody, the first time.

        A broadcast to thousands costs as much as one to few, until the rows are written.
        """
        for start in range(0, len(mechanic_ids), BATCH_CANDIDATES):
            part = mechanic_ids[start : start + BATCH_CANDIDATES]
            batch = self._batch(booking, at)
            batch.mechanic_ids += part
            batch.scores += [score] * len(part)
            batch.sent_ms += [_ms_after(batch.at, at)] * len(part)
        self._waterfall.written(booking, at, len(mechanic_ids))

    def passed_over(
        self, booking: Booking, others: int, excluded: list[tuple[UUID, str]], at: datetime
    ) -> None:
        """Who is here and was not written an offer, and why; `others` is how many more the strategy
        itself ruled out."""
        self._batch(booking, at).others += others
        for start in range(0, len(excluded), BATCH_CANDIDATES):
            part = excluded[start : start + BATCH_CANDIDATES]
            batch = self._batch(booking, at)
            batch.excluded_ids += [mechanic_id for mechanic_id, _ in part]
            batch.excluded_reasons += [reason for _, reason in part]

    def seen(self, booking: Booking, mechanic_id: UUID) -> None:
        """A mechanic's client showed the card."""
        at = self._now()
        batch = self._batch(booking, at)
        batch.seen_mechanic_ids.append(mechanic_id)
        batch.seen_ms.append(_ms_after(batch.at, at))
        self._waterfall.seen(booking, at)

    def lost(self, offered: Booking, mechanic_id: UUID) -> None:
        """This node told her by itself that somebody else has the round that was offered."""
        at = self._now()
        batch = self._batch(offered, at)
        batch.lost_mechanic_ids.append(mechanic_id)
        batch.lost_ms.append(_ms_after(batch.at, at))

    def receipt(self, request_id: UUID, received_at: datetime) -> None:
        """A booking that this node had heard of at `received_at` has just been committed."""
        committed_at = self._now()
        self._receipts.append(Receipt(request_id, self._node_id, received_at, committed_at))
        self._waterfall.committed(request_id, received_at, committed_at)

    async def run(self) -> None:
        """Writes what was gathered, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Writes what was gathered now; keeps it for later when Postgres is away."""
        if not (self._batches or self._receipts):
            return
        batches, self._batches = self._batches, deque(maxlen=MAX_BATCHES)
        receipts, self._receipts = self._receipts, deque(maxlen=MAX_BATCHES)
        self._open = {}
        try:
            await self._store.write_audit(batches, receipts)
        except Unavailable:
            if len(batches) + len(self._batches) > MAX_BATCHES:
                log.warning("audit: rows are dropped, the database is away for too long")
            self._batches.extendleft(reversed(batches))
            self._receipts.extendleft(reversed(receipts))

    def _batch(self, booking: Booking, at: datetime) -> DecisionBatch:
        assert booking.stage is not None
        key = (booking.request_id, booking.generation, booking.stage)
        batch = self._open.get(key)
        if batch is None or batch.size() >= BATCH_CANDIDATES:
            batch = self._open[key] = DecisionBatch(
                request_id=booking.request_id,
                generation=booking.generation,
                stage=booking.stage.value,
                node_id=self._node_id,
                batch=self._next_batch,
                strategy=booking.routing.value,
                at=at,
                others=0,
                mechanic_ids=[],
                scores=[],
                sent_ms=[],
                excluded_ids=[],
                excluded_reasons=[],
                seen_mechanic_ids=[],
                seen_ms=[],
                lost_mechanic_ids=[],
                lost_ms=[],
            )
            self._next_batch += 1
            self._batches.append(batch)
        return batch


def _ms_after(begin: datetime, moment: datetime) -> int:
    return round((moment - begin).total_seconds() * 1000)
