"""The live bookings, in memory, on every node: what could be offered, and to whom it went.

One job: keep the newest version of each live booking and remember for a while how rounds ended.
Nothing here is the truth; hints and reading Postgres keep it true, and a lower version never
overwrites a higher one. Pure bookkeeping: no I/O, imports the core's types and `hints` only.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar
from uuid import UUID

from msgspec import Struct

from dispatch.core.lifecycle import LIVE
from dispatch.core.types import Booking, RequestStatus, Stage
from dispatch.hints import Entry

K = TypeVar("K")
V = TypeVar("V")

REMEMBERED_ROUNDS: Final = 20_000
REMEMBERED_ENDS: Final = 10_000


class Change(Struct, frozen=True):
    """What a put did: the entry that was there (None: it is new here) and the one that is now."""

    before: Entry | None
    after: Entry


class EndedRound(Struct, frozen=True):
    """How a round ended: the booking as it was offered last, who got it (if the board knows)."""

    offered: Booking | None
    winner: UUID | None


class Board:
    """Live bookings by id, by customer and by mechanic; the open ones apart, and of these the ones
    that wait for a favourite by her."""

    def __init__(self) -> None:
        self._live: dict[UUID, Entry] = {}
        self._open: dict[UUID, Entry] = {}
        self._by_customer: defaultdict[UUID, set[UUID]] = defaultdict(set)
        self._by_mechanic: defaultdict[UUID, set[UUID]] = defaultdict(set)
        self._by_favourite: defaultdict[UUID, set[UUID]] = defaultdict(set)
        self._rounds: dict[UUID, UUID] = {}
        self._ended_rounds: dict[UUID, EndedRound] = {}
        self._ends: dict[UUID, Entry] = {}

    def put(self, entry: Entry) -> Change | None:
        """Keeps the entry if it is newer than what is known; None when it is not."""
        booking = entry.booking
        before = self._live.get(booking.request_id) or self._ends.get(booking.request_id)
        if before is not None and before.booking.version >= booking.version:
            return None
        if before is not None:
            self._unlink(before.booking)
        self._remember_round(before, booking)
        if booking.status in LIVE:
            self._link(entry)
        else:
            bounded_put(self._ends, booking.request_id, entry, REMEMBERED_ENDS)
        return Change(before, entry)

    def get(self, request_id: UUID) -> Entry | None:
        """The booking as this board knows it, live or ended lately."""
        return self._live.get(request_id) or self._ends.get(request_id)

    def ended(self, request_ids: Iterable[UUID]) -> list[Entry]:
        """Those of these bookings that ended, as far as this board remembers."""
        return [self._ends[each] for each in request_ids if each in self._ends]

    def accepted(self) -> list[Entry]:
        """Every booking that a mechanic has."""
        return [self._live[key] for keys in self._by_mechanic.values() for key in keys]

    def open_entries(self) -> list[Entry]:
        """Every booking that mechanics may take now."""
        return list(self._open.values())

    def in_round(self, offer_id: UUID) -> Entry | None:
        """The live booking whose present round this is."""
        request_id = self._rounds.get(offer_id)
        return None if request_id is None else self._live.get(request_id)

    def ended_round(self, offer_id: UUID) -> EndedRound | None:
        """How a past round ended, if this board remembers it."""
        return self._ended_rounds.get(offer_id)

    def of_customer(self, customer_id: UUID) -> list[Entry]:
        """The customer's live bookings."""
        return [self._live[each] for each in self._by_customer.get(customer_id, ())]

    def of_mechanic(self, mechanic_id: UUID) -> list[Entry]:
        """The accepted bookings of a mechanic: as many as she is busy with."""
        return [self._live[each] for each in self._by_mechanic.get(mechanic_id, ())]

    def waiting_for(self, mechanic_id: UUID) -> list[Entry]:
        """The open bookings that nobody but this mechanic is asked about now."""
        return [self._live[each] for each in self._by_favourite.get(mechanic_id, ())]

    def live_sessions(self, mechanic_id: UUID) -> int:
        """How many sessions a mechanic is busy with."""
        return len(self._by_mechanic.get(mechanic_id, ()))

    def differences(self, truth: dict[UUID, int]) -> list[UUID]:
        """Requests whose live version in Postgres is not the one on this board."""
        stale = [key for key, entry in self._live.items() if key not in truth]
        newer = [key for key, version in truth.items() if self._version(key) < version]
        return stale + newer

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._live.values()))

    def _version(self, request_id: UUID) -> int:
        entry = self.get(request_id)
        return 0 if entry is None else entry.booking.version

    def _link(self, entry: Entry) -> None:
        booking = entry.booking
        self._live[booking.request_id] = entry
        self._rounds[booking.offer_id] = booking.request_id
        self._by_customer[booking.customer_id].add(booking.request_id)
        if booking.mechanic_id is not None:
            self._by_mechanic[booking.mechanic_id].add(booking.request_id)
        if booking.stage is not None:
            self._open[booking.request_id] = entry
        if booking.stage is Stage.PRIORITY and booking.preferred_mechanic_id is not None:
            self._by_favourite[booking.preferred_mechanic_id].add(booking.request_id)

    def _unlink(self, booking: Booking) -> None:
        key = booking.request_id
        self._live.pop(key, None)
        self._open.pop(key, None)
        self._rounds.pop(booking.offer_id, None)
        _discard(self._by_customer, booking.customer_id, key)
        if booking.mechanic_id is not None:
            _discard(self._by_mechanic, booking.mechanic_id, key)
        if booking.preferred_mechanic_id is not None:
            _discard(self._by_favourite, booking.preferred_mechanic_id, key)

    def _remember_round(self, before: Entry | None, after: Booking) -> None:
        offered = before.booking if before is not None and before.booking.stage else None
        if offered is not None and offered.offer_id != after.offer_id:
            self._end_round(offered.offer_id, EndedRound(offered, None))
            offered = None
        if after.status is RequestStatus.ACCEPTED and after.offer_id not in self._ended_rounds:
            self._end_round(after.offer_id, EndedRound(offered, after.mechanic_id))

    def _end_round(self, offer_id: UUID, ended: EndedRound) -> None:
        bounded_put(self._ended_rounds, offer_id, ended, REMEMBERED_ROUNDS)


def _discard(index: defaultdict[UUID, set[UUID]], key: UUID, value: UUID) -> None:
    members = index.get(key)
    if members is None:
        return
    members.discard(value)
    if not members:
        del index[key]


def bounded_put(mapping: dict[K, V], key: K, value: V, bound: int) -> None:
    """Puts a value and forgets the oldest keys beyond the bound."""
    mapping.pop(key, None)
    mapping[key] = value
    while len(mapping) > bound:
        del mapping[next(iter(mapping))]
