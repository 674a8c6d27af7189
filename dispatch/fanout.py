"""What a change of the board means for the sockets of this node.

One job: compare an entry with what was there and write the difference: offers, revokes, status
frames. Every node does this for its own sockets only, from the same hints and the same rows, so
nobody computes another's list. No await anywhere: a change is shown as a whole, in its order.
Imports `core`, `board`, `hub`, `audience`, `audit`, `frames`, `hints` and `protocol`.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from msgspec.structs import replace

from dispatch import frames
from dispatch.audience import Audience
from dispatch.audit import Audit
from dispatch.board import Board, Change, bounded_put
from dispatch.core import routing
from dispatch.core.lifecycle import LIVE
from dispatch.core.types import Booking, Candidate, RequestStatus, Role, Stage
from dispatch.hints import Entry, Hint
from dispatch.hub import Hub, OnlineMechanic, Socket
from dispatch.protocol import (
    Offer,
    OfferRevoked,
    OfferWon,
    RequestState,
    prepare,
)

T = TypeVar("T")

# Rules that anybody can read off the booking need no line per mechanic in the audit trail.
_SELF_EVIDENT = frozenset({"not_favourite", "other_workshop"})
REMEMBERED = 500  # bookings of which it is known what each mechanic here has on record already
AT_ONCE = 8  # cards that fit any outbox; more are paced


class Fanout:
    """Keeps the sockets of this node at the state of its board."""

    def __init__(
        self,
        hub: Hub,
        board: Board,
        audience: Audience,
        audit: Audit,
        *,
        now: Callable[[], datetime],
        publish: Callable[[Hint], None],
        pace: Callable[[OnlineMechanic, list[Entry]], None],
        stood_still: Callable[[], bool],
        capacity: int,
    ) -> None:
        """`pace` sends more cards than should be written at once; `stood_still` says whether this
        process has not run for a while."""
        self._hub = hub
        self._board = board
        self._audience = audience
        self._audit = audit
        self._now = now
        self._publish = publish
        self._pace = pace
        self._stood_still = stood_still
        self._behind = False
        self._catching_up = False
        self._refused: dict[UUID, int] = {}  # the highest version that was not taken
        self._answered: list[tuple[UUID, Socket]] = []  # while nothing was taken
        self._late: set[UUID] = set()  # whose cards wait for `catch_up`
        self._capacity = capacity
        self._answering: dict[UUID, set[Socket]] = {}
        self._counts_changed: set[UUID] = set()
        self._told: dict[UUID, tuple[int, int]] = {}  # the counts that customers here read last

    # --- a node that stood still

    @property
    def is_behind(self) -> bool:
        """Whether this node stood still and has not compared its board with Postgres since.

        What its board says is open may long be over, and what it has just heard or read may be as
        old: nothing is taken, and nothing shown, until `catch_up`.
        """
        self._behind = self._behind or self._stood_still()
        return self._behind

    def catch_up(self, entries: Iterable[Entry]) -> None:
        """Takes what Postgres has and the board has not; then everybody sees what she may have."""
        self._behind, self._catching_up = False, True
        refused, self._refused = self._refused, {}
        for entry in entries:
            # Somebody here may have been answered with a higher one, which is read the next time.
            if entry.booking.version >= refused.get(entry.booking.request_id, 0):
                self.apply(entry)
        self._catching_up = False
        answered, self._answered = self._answered, []
        for offer_id, socket in answered:
            self._is_answered(offer_id, socket)
        late, self._late = self._late, set()
        for mechanic_id in late:
            mechanic = self._hub.mechanic(mechanic_id)
            if mechanic is not None:
                self._set_facts(mechanic, mechanic.candidate)

    # --- a booking changed

    def apply(self, entry: Entry) -> bool:
        """Puts the entry on the board and shows the difference; False when it is not newer, or when
        nothing is taken because this node stood still."""
        if self.is_behind:
            request_id, version = entry.booking.request_id, entry.booking.version
            self._refused[request_id] = max(version, self._refused.get(request_id, 0))
            return False
        change = self._board.put(entry)
        if change is None:
            return False
        self._end_round(change)
        self._offer(change)
        self._tell_participants(change)
        self._warn(change)
        self._tell_busy(change)
        return True

    @contextmanager
    def answering(self, offer_id: UUID, socket: Socket) -> Iterator[None]:
        """Inside the block the socket waits for the verdict on its accept, and will be answered.

        It is not told a second time that it won, by whatever path the news comes first: the
        commit's reply, a hint, or the comparison with Postgres.
        """
        sockets = self._answering.setdefault(offer_id, set())
        sockets.add(socket)
        try:
            yield
        finally:
            if self._behind:  # what it was answered is heard only when we catch up
                self._answered.append((offer_id, socket))
            else:
                self._is_answered(offer_id, socket)

    def _is_answered(self, offer_id: UUID, socket: Socket) -> None:
        sockets = self._answering.get(offer_id, set())
        sockets.discard(socket)
        if not sockets:
            self._answering.pop(offer_id, None)

    def _end_round(self, change: Change) -> None:
        """Whoever holds a card of a round that is over gets it won or revoked, never silence."""
        if change.before is None:
            return
        was, now = change.before.booking, change.after.booking
        if was.stage is None or (now.stage is not None and now.offer_id == was.offer_id):
            return
        if was.offer_id == now.offer_id and now.mechanic_id is not None:
            self._tell_winner(now)
        reason = frames.REVOKED[now.status]
        revoked = prepare(OfferRevoked(offer_id=was.offer_id, reason=reason))
        for mechanic_id in self._audience.asked_by_us(was):
            mechanic = self._hub.mechanic(mechanic_id)
            if mechanic is not None and mechanic.shown.get(was.request_id) == was.offer_id:
                del mechanic.shown[was.request_id]
                mechanic.send(revoked)

    def _tell_winner(self, booking: Booking) -> None:
        assert booking.mechanic_id is not None
        assert booking.accept_id is not None
        winner = self._hub.mechanic(booking.mechanic_id)
        if winner is None:
            return
        winner.shown.pop(booking.request_id, None)
        won = prepare(
            OfferWon(
                offer_id=booking.offer_id,
                request_id=booking.request_id,
                session_id=booking.session_id,
                accept_id=booking.accept_id,
            )
        )
        for socket in winner.sockets - self._answering.get(booking.offer_id, set()):
            socket.send(won)

    def _offer(self, change: Change) -> None:
        """Offers an open booking to everyone eligible here, when it is new or its stage is."""
        booking = change.after.booking
        if booking.stage is None:
            return
        before = None if change.before is None else change.before.booking
        if before is not None and before.offer_id == booking.offer_id:
            for mechanic_id in booking.excluded[len(before.excluded) :]:
                self._withdraw(self._hub.mechanic(mechanic_id), booking, "excluded")
            if (before.stage, before.attempt) == (booking.stage, booking.attempt):
                return
        now = self._now()
        pool = self._pool_of(booking)
        eligible: list[tuple[OnlineMechanic, routing.Terms]] = []
        excluded: list[tuple[UUID, str]] = []
        for mechanic in pool:
            reason = routing.exclusion(booking, mechanic.candidate, self._capacity)
            if reason is None:
                eligible.append((mechanic, routing.terms(booking, mechanic.candidate)))
            elif reason not in _SELF_EVIDENT:
                excluded.append((mechanic.candidate.mechanic_id, reason))
        asked: list[UUID] = []
        scores: list[int] = []
        prepared: dict[routing.Terms, bytes] = {}
        for mechanic, terms in in_turn(eligible):
            data = prepared.get(terms)
            if data is None:
                data = prepared[terms] = prepare(frames.offer(change.after, terms, now))
            mechanic.offer(data, booking.request_id, booking.offer_id)
            asked.append(mechanic.candidate.mechanic_id)
            scores.append(terms.score)
        others = len(pool) - len(asked) - len(excluded)
        self._audit.considered(booking, others, asked, scores, excluded, now)
        self._count(booking, asked)

    def _pool_of(self, booking: Booking) -> Sequence[OnlineMechanic]:
        """Whom to ask about: nobody but the favourite is looked at in her stage."""
        if booking.stage is not Stage.PRIORITY:
            return self._hub.mechanics()
        assert booking.preferred_mechanic_id is not None
        favourite = self._hub.mechanic(booking.preferred_mechanic_id)
        return () if favourite is None else (favourite,)

    def _tell_participants(self, change: Change) -> None:
        entry, booking = change.after, change.after.booking
        now = self._now()
        if self._hub.is_here(booking.customer_id):
            self._tell_customer(entry)
            self._hub.send(booking.customer_id, frames.session_state(entry, Role.CUSTOMER, now))
        for mechanic_id in _workers(change):
            self._hub.send(mechanic_id, frames.session_state(entry, Role.MECHANIC, now))
        if booking.status not in LIVE:
            self._audience.ended(booking.request_id)
            self._told.pop(booking.request_id, None)

    def _tell_busy(self, change: Change) -> None:
        """Who became busy loses her other cards; who became free sees what is open (R10)."""
        for mechanic_id in _workers(change):
            mechanic = self._hub.mechanic(mechanic_id)
            if mechanic is not None:
                self._set_facts(mechanic, mechanic.candidate)

    # --- a mechanic changed

    def facts(self, candidate: Candidate, changed_at: datetime) -> bool:
        """Newer facts of a mechanic who is here: her cards follow. False when nothing changed."""
        mechanic = self._hub.mechanic(candidate.mechanic_id)
        if mechanic is None or mechanic.changed_at >= changed_at:
            return False
        mechanic.changed_at = changed_at
        self._set_facts(mechanic, candidate)
        return True

    def candidate(self, mechanic_id: UUID) -> Candidate | None:
        """What this node knows of a mechanic who is here."""
        mechanic = self._hub.mechanic(mechanic_id)
        return None if mechanic is None else mechanic.candidate

    def note_seen(self, mechanic_id: UUID, booking: Booking) -> None:
        """Records, once a round and stage, that a card which she was shown here was seen."""
        mechanic = self._hub.mechanic(mechanic_id)
        if mechanic is None or booking.stage is None or booking.request_id not in mechanic.shown:
            return
        sight = (booking.offer_id, booking.stage)
        if mechanic.seen.get(booking.request_id) != sight:
            bounded_put(mechanic.seen, booking.request_id, sight, REMEMBERED)
            self._audit.seen(booking, mechanic_id)

    def facts_with_sessions(self, candidate: Candidate) -> Candidate:
        """The candidate, busy with as many sessions as this board knows."""
        return replace(candidate, live_sessions=self._board.live_sessions(candidate.mechanic_id))

    def _set_facts(self, mechanic: OnlineMechanic, candidate: Candidate) -> None:
        before = mechanic.candidate
        self._hub.set_candidate(mechanic, self.facts_with_sessions(candidate))
        if self.is_behind or self._catching_up:
            self._late.add(candidate.mechanic_id)
        missing = [
            entry
            for entry in (self.ranked(mechanic) if self._can_be_shown(mechanic) else ())
            if mechanic.shown.get(entry.booking.request_id) != entry.booking.offer_id
            or routing.terms(entry.booking, before) != routing.terms(entry.booking, candidate)
        ]
        if len(missing) > AT_ONCE:
            self._pace(mechanic, missing)
        else:
            for entry in missing:
                self.show(mechanic, entry)
        for request_id in list(mechanic.shown):
            held = self._board.get(request_id)
            reason = None if held is None else self._exclusion(mechanic, held.booking)
            if held is not None and reason is not None:
                self._withdraw(mechanic, held.booking, reason)

    def ranked(self, mechanic: OnlineMechanic) -> list[Entry]:
        """The open bookings that she may have: urgent first, then score, then oldest.

        Why she may not have the others is put on record.
        """
        eligible = []
        for entry in self._board.open_entries():
            reason = self._exclusion(mechanic, entry.booking)
            if reason is None:
                eligible.append(entry)
            else:
                self._rule_out(mechanic, entry.booking, reason)
        candidate = mechanic.candidate
        return sorted(
            eligible,
            key=lambda entry: (
                not entry.booking.urgent,
                -routing.terms(entry.booking, candidate).score,
                entry.booking.created_at,
            ),
        )

    def show(
        self, mechanic: OnlineMechanic, entry: Entry, to: Iterable[Socket] | None = None
    ) -> None:
        """Sends one card to all devices of a mechanic, or to these, if she may still have it."""
        booking = entry.booking
        if booking.stage is None or self._exclusion(mechanic, booking) is not None:
            return
        data = prepare(self.offer_for(mechanic, entry))
        self.note_shown(mechanic, entry)
        mechanic.offer(data, booking.request_id, booking.offer_id, to)

    def offer_for(self, mechanic: OnlineMechanic, entry: Entry) -> Offer:
        """The card of an open booking as this mechanic sees it."""
        terms = routing.terms(entry.booking, mechanic.candidate)
        return frames.offer(entry, terms, self._now())

    def note_shown(self, mechanic: OnlineMechanic, entry: Entry) -> None:
        """A card went out, by itself or in a snapshot: count and record it."""
        booking = entry.booking
        mechanic.shown[booking.request_id] = booking.offer_id
        score = routing.terms(booking, mechanic.candidate).score
        mechanic_id = mechanic.candidate.mechanic_id
        self._audit.considered(booking, 0, [mechanic_id], [score], [], self._now())
        self._count(booking, (mechanic.candidate.mechanic_id,))

    def _can_be_shown(self, mechanic: OnlineMechanic) -> bool:
        """Whether there can be anything for her at all, before every open booking is looked at."""
        candidate = mechanic.candidate
        is_free = candidate.available and candidate.live_sessions < self._capacity
        return is_free and not (self._behind or self._catching_up)

    def _exclusion(self, mechanic: OnlineMechanic, booking: Booking) -> routing.Exclusion | None:
        return routing.exclusion(booking, mechanic.candidate, self._capacity)

    def _withdraw(
        self, mechanic: OnlineMechanic | None, booking: Booking, reason: routing.Exclusion
    ) -> None:
        if mechanic is None or mechanic.shown.pop(booking.request_id, None) is None:
            return
        mechanic.send(prepare(OfferRevoked(offer_id=booking.offer_id, reason="withdrawn")))
        self._rule_out(mechanic, booking, reason)

    def _rule_out(
        self, mechanic: OnlineMechanic, booking: Booking, reason: routing.Exclusion
    ) -> None:
        """Puts on record, once a round and stage, why a mechanic who is here may not have it."""
        if reason in _SELF_EVIDENT or booking.stage is None:
            return
        why = (booking.offer_id, booking.stage, reason)
        if mechanic.ruled_out.get(booking.request_id) != why:
            bounded_put(mechanic.ruled_out, booking.request_id, why, REMEMBERED)
            mechanic_id = mechanic.candidate.mechanic_id
            self._audit.considered(booking, 0, [], [], [(mechanic_id, reason)], self._now())

    # --- counts and words

    def request_state(self, entry: Entry) -> RequestState:
        """The customer's frame, with the counts as they are known here."""
        return frames.request_state(entry, *self._counts(entry.booking), self._now())

    def _tell_customer(self, entry: Entry) -> None:
        self._told[entry.booking.request_id] = self._counts(entry.booking)
        self._hub.send(entry.booking.customer_id, self.request_state(entry))

    def _counts(self, booking: Booking) -> tuple[int, int]:
        return self._audience.notified(booking), self._audience.online(booking)

    def counts_changed(self, request_id: UUID) -> None:
        """The next flush tells the customer the new counts."""
        self._counts_changed.add(request_id)

    def all_counts_changed(self) -> None:
        """The same for every open booking."""
        for entry in self._board.open_entries():
            self._counts_changed.add(entry.booking.request_id)

    def flush_counts(self) -> None:
        """Tells customers here the counts that changed; many changes become one frame."""
        changed, self._counts_changed = self._counts_changed, set()
        for request_id in changed:
            entry = self._board.get(request_id)
            if entry is None or entry.booking.status is not RequestStatus.PENDING:
                continue
            here = self._hub.is_here(entry.booking.customer_id)
            if here and self._told.get(request_id) != self._counts(entry.booking):
                self._tell_customer(entry)

    def _warn(self, change: Change) -> None:
        """Tells both sides that the end of their session is near, however that was heard."""
        if change.before is None or change.before.booking.warned_at is not None:
            return
        warning = frames.session_warning(change.after, self._now())
        booking = change.after.booking
        if warning is not None and booking.warned_at is not None:
            for user_id in (booking.customer_id, booking.mechanic_id):
                if user_id is not None:
                    self._hub.send(user_id, warning)

    def _count(self, booking: Booking, mechanic_ids: Iterable[UUID]) -> None:
        reach = self._audience.asked_here(booking, mechanic_ids)
        if reach is not None:
            self._publish(reach)
            self.counts_changed(booking.request_id)


def in_turn(eligible: list[T]) -> list[T]:
    """The same, beginning with another one each time.

    Whoever is written to first has a head start. So that nobody has it by accident, or because she
    connected early, the beginning is drawn anew for every broadcast, among those who may have it.
    """
    begin = random.randrange(len(eligible)) if eligible else 0
    return eligible[begin:] + eligible[:begin]


def _workers(change: Change) -> set[UUID]:
    """Who had the booking and who has it now: nobody, one mechanic, or two."""
    entries = (change.before, change.after)
    had = {entry.booking.mechanic_id for entry in entries if entry is not None}
    return {mechanic_id for mechanic_id in had if mechanic_id is not None}
