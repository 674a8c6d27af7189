"""What a change of the board means for the sockets of this node.

One job: compare an entry with what was there and write the difference: offers, revokes, status
frames. Every node does this for its own sockets only, from the same hints and the same rows, so
nobody computes another's list. No await anywhere: a change is shown in its order, and as a whole
unless it concerns hundreds: those are written to a slice at a time (`carousel`, `rides`), with
everybody else's turn in between. Who comes or changes meanwhile is served at once, by the rules of
that moment, and the ride passes her by. Imports `core`, `board`, `hub`, `audience`, `audit`,
`carousel`, `rides`, `frames`, `hints` and `protocol`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID

from msgspec.structs import replace

from dispatch import frames
from dispatch.audience import Audience
from dispatch.audit import Audit
from dispatch.board import Board, Change, bounded_put
from dispatch.carousel import Carousel
from dispatch.core import routing
from dispatch.core.lifecycle import LIVE
from dispatch.core.types import Booking, Candidate, RequestStatus, Role, Stage
from dispatch.hints import Entry, Hint
from dispatch.hub import Card, Group, Hub, OnlineMechanic, Socket
from dispatch.protocol import (
    BoardEvent,
    BoardRequest,
    OfferRevoked,
    OfferWon,
    RequestState,
    prepare,
    text_message,
    timestamp,
)
from dispatch.rides import Offering, Part, Revoking
from dispatch.shared_offers import SharedOffers

# Rules that anybody can read off the booking need no line per mechanic in the audit trail.
_SELF_EVIDENT = frozenset({"not_favourite", "other_workshop"})
REMEMBERED = 500  # bookings of which it is known what each mechanic here has on record already
AT_ONCE = 8  # cards that fit any outbox; more are paced
OVER: Final = "over"  # why somebody was not asked: her stage had ended before her turn came


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
        self._carousel = Carousel(lambda: not (self.is_behind or self._catching_up))
        self._cards: dict[UUID, Card] = {}  # by request: of the round that is open
        self._offerings: dict[UUID, Offering] = {}  # by request: those under way
        self._answering: dict[UUID, set[Socket]] = {}
        self._counts_changed: set[UUID] = set()
        self._shown: dict[UUID, tuple[int, list[UUID]]] = {}  # to whom since they were counted
        self._shared = SharedOffers(now)
        self._told: dict[UUID, tuple[int, int]] = {}  # the counts that customers here read last
        self._told_board: dict[UUID, int] = {}  # how many notified who watches the board read last

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
            else:
                self._stop_offering(entry.booking.request_id)
        self._catching_up = False
        answered, self._answered = self._answered, []
        for offer_id, socket in answered:
            self._is_answered(offer_id, socket)
        late, self._late = self._late, set()
        for mechanic_id in late:
            mechanic = self._hub.mechanic(mechanic_id)
            if mechanic is not None:
                self._set_facts(mechanic, mechanic.candidate)
        self._carousel.turn()

    @property
    def is_writing(self) -> bool:
        """Whether a card, or that one is taken back, is still on its way to somebody here."""
        return len(self._carousel) > 0

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
        self._tell_board(change.after)
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
        self._stop_offering(was.request_id)
        card = self._cards.pop(was.request_id, None)
        if was.offer_id == now.offer_id and now.mechanic_id is not None:
            self._tell_winner(now, card)
        if card is not None:
            reason = frames.REVOKED[now.status]
            revoked = prepare(OfferRevoked(offer_id=was.offer_id, reason=reason))
            self._carousel.board(Revoking(card, revoked))

    def _tell_winner(self, booking: Booking, card: Card | None) -> None:
        assert booking.mechanic_id is not None
        assert booking.accept_id is not None
        winner = self._hub.mechanic(booking.mechanic_id)
        if winner is None:
            return
        if card is not None:
            winner.lose(card)
        won = prepare(
            OfferWon(
                offer_id=booking.offer_id,
                request_id=booking.request_id,
                session_id=booking.session_id,
                accept_id=booking.accept_id,
            )
        )
        answered = self._answering.get(booking.offer_id, set())
        for socket in winner.sockets:
            if socket not in answered:
                socket.post(won)

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
        self._stop_offering(booking.request_id)
        parts, excluded, others = self._routed(booking)
        now = self._now()
        self._audit.passed_over(booking, others, excluded, now)
        if not parts:
            self._audit.asked(booking, [], 0, now)
            return
        card = self._card_of(booking)
        card.edition += 1
        offering = self._offerings[booking.request_id] = Offering(
            card,
            parts,
            prepare=lambda terms: prepare(frames.offer(change.after, terms, now)),
            asked=lambda ids, score: self._audit.asked(booking, ids, score, self._now()),
            arrived=partial(self._offered, booking),
        )
        self._carousel.board(offering)

    def _routed(self, booking: Booking) -> tuple[list[Part], list[tuple[UUID, str]], int]:
        """Everybody here by what becomes of her: who is offered the booking, who is not and why,
        and how many more the strategy itself rules out.

        Routing is asked once for a group, and once for each of those whom the booking names.
        """
        known = self._known_to(booking)
        units = [(each.group, each.candidate, [each]) for each in known]
        if booking.stage is not Stage.PRIORITY:  # nobody but the favourite is looked at in hers
            units += [(group, group.kind, group.without(known)) for group in self._hub.groups()]
        parts: dict[tuple[Group, routing.Terms], Part] = {}
        excluded: list[tuple[UUID, str]] = []
        others = 0
        for group, candidate, members in units:
            reason = routing.exclusion(booking, candidate, self._capacity)
            if reason is None:
                terms = routing.terms(booking, candidate)
                parts.setdefault((group, terms), Part(group, terms, [])).members.extend(members)
            elif reason in _SELF_EVIDENT:
                others += len(members)
            else:
                excluded += [(each.candidate.mechanic_id, reason) for each in members]
        return [part for part in parts.values() if part.members], excluded, others

    def _known_to(self, booking: Booking) -> set[OnlineMechanic]:
        """Those here whom the booking knows: its favourite, who declined it or gave it back, and
        the people of its workshop."""
        names = {booking.preferred_mechanic_id}
        if booking.stage is not Stage.PRIORITY:
            names.update(booking.excluded)
        here = (None if each is None else self._hub.mechanic(each) for each in names)
        known = {each for each in here if each is not None}
        if booking.preferred_workshop_id is not None and booking.stage is not Stage.PRIORITY:
            known.update(self._hub.of_workshop(booking.preferred_workshop_id))
        return known

    def _card_of(self, booking: Booking) -> Card:
        """The card of the round that is open."""
        card = self._cards.get(booking.request_id)
        if card is None:
            card = Card(booking.request_id, booking.offer_id)
            self._cards[booking.request_id] = card
        assert card.offer_id == booking.offer_id
        return card

    def _holds(self, mechanic: OnlineMechanic, booking: Booking) -> bool:
        """Whether she is shown the card of the booking's present round."""
        card = self._cards.get(booking.request_id)
        return card is not None and card in mechanic.cards

    def _has_edition(self, mechanic: OnlineMechanic, booking: Booking) -> bool:
        """Whether it is the one of the present stage, which may still be on its way to her."""
        card = self._cards.get(booking.request_id)
        return card is not None and mechanic.cards.get(card) == card.edition

    def _offered(self, booking: Booking, asked: list[UUID], unreached: list[UUID]) -> None:
        """Everybody here who may have it was written to, or the stage was over before."""
        del self._offerings[booking.request_id]
        if unreached:
            late = [(mechanic_id, OVER) for mechanic_id in unreached]
            self._audit.passed_over(booking, 0, late, self._now())
        self._count(booking, asked)

    def hasten(self, mechanic: OnlineMechanic) -> None:
        """She is shown at once what is on its way to her: on a further device that has just come
        she sees it anyway, and would count as having it."""
        for offering in list(self._offerings.values()):
            entry = self._board.get(offering.card.request_id)
            if entry is not None and not self._has_edition(mechanic, entry.booking):
                offering.pass_by(mechanic)
                self.show(mechanic, entry)

    def _pass_by(self, mechanic: OnlineMechanic) -> None:
        """What is on its way does not stop at her: she changed, and is judged by herself."""
        for offering in self._offerings.values():
            offering.pass_by(mechanic)
            entry = self._board.get(offering.card.request_id)
            if entry is not None and not self._has_edition(mechanic, entry.booking):
                reason = self._exclusion(mechanic, entry.booking)
                if reason is not None:
                    self._rule_out(mechanic, entry.booking, reason)

    def _stop_offering(self, request_id: UUID) -> None:
        offering = self._offerings.get(request_id)
        if offering is not None:
            self._carousel.leave(offering)

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
        if mechanic is None or booking.stage is None or not self._holds(mechanic, booking):
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
        self._pass_by(mechanic)
        if self.is_behind or self._catching_up:
            self._late.add(candidate.mechanic_id)
        missing = [
            entry
            for entry in (self.ranked(mechanic) if self._can_be_shown(mechanic) else ())
            if not self._has_edition(mechanic, entry.booking)
            or routing.terms(entry.booking, before) != routing.terms(entry.booking, candidate)
        ]
        if len(missing) > AT_ONCE:
            self._pace(mechanic, missing)
        else:
            for entry in missing:
                self.show(mechanic, entry)
        for card in list(mechanic.cards):
            held = self._board.in_round(card.offer_id)
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
        return sorted(eligible, key=lambda entry: routing.rank(entry.booking, candidate))

    def show(
        self, mechanic: OnlineMechanic, entry: Entry, to: Iterable[Socket] | None = None
    ) -> None:
        """Sends one card to all devices of a mechanic, or to these, if she may still have it."""
        booking = entry.booking
        if booking.stage is None or self._exclusion(mechanic, booking) is not None:
            return
        data = text_message(self.offer_for(mechanic, entry))
        self.note_shown(mechanic, entry)
        mechanic.post(data, 1, to)

    def offer_for(self, mechanic: OnlineMechanic, entry: Entry) -> bytes:
        """The card of an open booking as this mechanic sees it, in JSON."""
        return self._shared.json(entry, routing.terms(entry.booking, mechanic.candidate))

    def note_shown(self, mechanic: OnlineMechanic, entry: Entry) -> None:
        """A card went out, by itself or in a snapshot: count and record it."""
        booking = entry.booking
        mechanic.hold(self._card_of(booking))
        mechanic_id = mechanic.candidate.mechanic_id
        score = routing.terms(booking, mechanic.candidate).score
        self._audit.asked(booking, [mechanic_id], score, self._now())
        generation, shown_to = self._shown.get(booking.request_id, (0, []))
        if generation != booking.generation:
            shown_to = []
            self._shown[booking.request_id] = (booking.generation, shown_to)
        shown_to.append(mechanic_id)

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
        if mechanic is None:
            return
        offering = self._offerings.get(booking.request_id)
        if offering is not None:
            offering.pass_by(mechanic)
        card = self._cards.get(booking.request_id)
        if card is not None and mechanic.lose(card):
            mechanic.post(prepare(OfferRevoked(offer_id=booking.offer_id, reason="withdrawn")))
        elif offering is None:
            return
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
            self._audit.passed_over(booking, 0, [(mechanic_id, reason)], self._now())

    # --- counts and words

    def request_state(self, entry: Entry) -> RequestState:
        """The customer's frame, with the counts as they are known here."""
        return frames.request_state(entry, *self._counts(entry.booking), self._now())

    def board_request(self, entry: Entry) -> BoardRequest:
        """A booking as operators see it, with the counts as they are known here."""
        return frames.board_request(entry, *self._counts(entry.booking))

    def _tell_board(self, entry: Entry) -> None:
        """Whoever watches the board is told of each change."""
        watchers = self._hub.board_watchers()
        if not watchers:
            return
        request, booking = self.board_request(entry), entry.booking
        event = prepare(BoardEvent(request=request, server_time=timestamp(self._now())))
        for socket in watchers:
            socket.post(event)
        if booking.status in LIVE:
            self._told_board[booking.request_id] = request.mechanics_notified
        else:
            self._told_board.pop(booking.request_id, None)

    def _tell_customer(self, entry: Entry) -> None:
        self._told[entry.booking.request_id] = self._counts(entry.booking)
        self._hub.send(entry.booking.customer_id, self.request_state(entry))

    def _counts(self, booking: Booking) -> tuple[int, int]:
        self._count_shown(booking)
        return self._audience.notified(booking), self._audience.online(booking)

    def counts_changed(self, request_id: UUID) -> None:
        """The next flush tells the customer the new counts."""
        self._counts_changed.add(request_id)

    def all_counts_changed(self) -> None:
        """The same for every open booking."""
        for entry in self._board.open_entries():
            self._counts_changed.add(entry.booking.request_id)

    def flush_counts(self) -> None:
        """Tells customers here the counts that changed; many changes become one frame. Who watches
        the board is told when more were notified, not whenever somebody comes or goes."""
        for request_id in list(self._shown):
            shown = self._board.get(request_id)
            if shown is None or shown.booking.status is not RequestStatus.PENDING:
                del self._shown[request_id]
            else:
                self._count_shown(shown.booking)
        changed, self._counts_changed = self._counts_changed, set()
        for request_id in changed:
            entry = self._board.get(request_id)
            if entry is None or entry.booking.status is not RequestStatus.PENDING:
                continue
            here = self._hub.is_here(entry.booking.customer_id)
            if here and self._told.get(request_id) != self._counts(entry.booking):
                self._tell_customer(entry)
            told = self._told_board.get(request_id)
            if told is not None and told != self._counts(entry.booking)[0]:
                self._tell_board(entry)

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

    def _count_shown(self, booking: Booking) -> None:
        """Counts who was shown the card one by one since the last time, if it is still the same."""
        generation, shown_to = self._shown.pop(booking.request_id, (0, []))
        if shown_to and generation == booking.generation:
            self._count(booking, shown_to)

    def _count(self, booking: Booking, mechanic_ids: Iterable[UUID]) -> None:
        reach = self._audience.asked_here(booking, mechanic_ids)
        if reach is not None:
            self._publish(reach)
            self.counts_changed(booking.request_id)


def _workers(change: Change) -> set[UUID]:
    """Who had the booking and who has it now: nobody, one mechanic, or two."""
    entries = (change.before, change.after)
    had = {entry.booking.mechanic_id for entry in entries if entry is not None}
    return {mechanic_id for mechanic_id in had if mechanic_id is not None}
