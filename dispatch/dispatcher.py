"""The story of a booking: load, decide, commit, perform. The one module that knows it all.

One job: carry every event of a booking to its rows and its consequences. Each change is one
transaction that locks the booking, lets the pure core decide by the database's clock, and writes
what was decided; only then is anybody told: this node's own sockets, the other nodes by one hint,
and this node's timers. Accepting is one call of the judge in Postgres.

It fails with `Unavailable` (Postgres is away: nothing was changed, or the caller cannot know and
asks again), `NotFound`, and `Rejected`, which carries the core's code for why nothing changed.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg
from msgspec import Struct
from msgspec.structs import replace

from dispatch import push, refunds, video
from dispatch.audience import Audience
from dispatch.audit import Audit
from dispatch.board import Board
from dispatch.changes import Change, change_of
from dispatch.core import experiments, lifecycle, messages, routing
from dispatch.core.types import (
    Ask,
    Booking,
    Cancel,
    Candidate,
    Decision,
    Decline,
    Due,
    Effect,
    End,
    Event,
    FavouriteLost,
    Join,
    MechanicCancel,
    Open,
    Policy,
    Presence,
    Refund,
    RefundAs,
    Rejection,
    RequestStatus,
    Role,
    Routing,
    Seen,
    Stage,
    Summon,
    Widen,
)
from dispatch.database import Connection
from dispatch.errors import BadRequest, Conflict, NotFound, Unavailable
from dispatch.fanout import Fanout
from dispatch.hints import BookingChanged, Entry, Hint, MechanicChanged
from dispatch.metrics import Metrics
from dispatch.presence import PresenceRegistry
from dispatch.protocol import LostReason
from dispatch.sessions import Opening, Prospect
from dispatch.store import Facts, Locked, Store, policy_row
from dispatch.tasks import Tasks
from dispatch.timers import Clock, Timers
from dispatch.waterfall import Waterfall

log = logging.getLogger(__name__)

# More deadlines of one booking than this cannot be due at once.
_MAX_STEPS: Final = 8
_AGAIN_SECONDS: Final = 1.0
_SUMMONED: Final = 50  # mechanics who are notified of one urgent booking
_FIRES_AT_ONCE: Final = 4  # half of the connections to Postgres
_NOT_EARLY: Final = timedelta(milliseconds=5)


class Rejected(Conflict):
    """The core refused: `code` for the client; state and event are in the message."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(
            rejection.code, f"{rejection.event} is not possible in state {rejection.state}"
        )
        if rejection.code == "not_found":
            self.status = NotFound.status


class Answer(Struct, frozen=True):
    """The answer to an accept: a session for the winner, a reason for a loser."""

    session_id: UUID | None = None
    request_id: UUID | None = None
    reason: LostReason | None = None


class Dispatcher:
    """Every way in which a booking changes, on any node."""

    def __init__(
        self,
        store: Store,
        board: Board,
        fanout: Fanout,
        audience: Audience,
        audit: Audit,
        waterfall: Waterfall,
        presence: PresenceRegistry,
        clock: Clock,
        tasks: Tasks,
        metrics: Metrics,
        *,
        publish: Callable[[Hint], None],
        effects_queued: Callable[[], None],
        policy: Policy,
        policy_id: UUID,
        push_urgent_below: int | None,
        has_video: bool,
    ) -> None:
        """`push_urgent_below`: an urgent booking is pushed where fewer mechanics than that are
        online; None where there is no web push at all. `has_video`: rooms are to be closed."""
        self._store = store
        self._board = board
        self._fanout = fanout
        self._audience = audience
        self._audit = audit
        self._waterfall = waterfall
        self._presence = presence
        self._clock = clock
        self._tasks = tasks
        self._metrics = metrics
        self._publish = publish
        self._effects_queued = effects_queued
        self._policy = policy
        self._policy_id = policy_id
        self._push_urgent_below = push_urgent_below
        self._has_video = has_video
        self._firing: set[UUID] = set()
        self._due: deque[UUID] = deque()  # whose timers have fired
        self._firers = 0
        self.timers = Timers(clock, self._timer_fired)

    # --- time

    async def open_at_once(self, prospect: Prospect) -> Opening | None:
        """The first stage of a booking for now, decided before anything of it is written.

        Whoever writes it tells `opened` after the commit. None where it must be written first,
        because notifications are to be queued with it.
        """
        made = lifecycle.made(prospect.wish, uuid4(), uuid4(), uuid4(), prospect.now, self._policy)
        made = experiments.under(made, experiments.trial(prospect.wish, prospect.experiments))
        event = await self._opening(made, prospect.favourite)
        policy = experiments.policy_of(made, self._policy)
        decision = lifecycle.decide(made, event, prospect.now, policy)
        if any(self._is_queued(decision.booking, effect) for effect in decision.effects):
            return None
        change = self._change_of(made, event, decision, prospect.now)
        return Opening(change.document(), prospect.entry(change.booking))

    def opened(self, request_id: UUID, received_at: datetime, entry: Entry | None = None) -> None:
        """A session was made and committed. Opened with it, it is told to everybody as `entry`;
        else its request opens now, or its slot's time is armed.

        `received_at` is when this node had heard of the booking (the waterfall of R8a).
        """
        self._audit.receipt(request_id, received_at)
        if entry is not None:
            self._announce(entry)
        else:
            self._tasks.spawn(self.fire(request_id), f"open {request_id}")

    async def fire(self, request_id: UUID) -> None:
        """Lets whatever is due of this booking happen: the opening, a deadline, a lost favourite.

        Safe at any time, twice, and on every node: what is not due by the database's clock changes
        nothing. Who calls for what is being fired here already finds it done by that.
        """
        if request_id in self._firing:
            return
        self._firing.add(request_id)
        try:
            await self._fire(request_id)
        finally:
            self._firing.discard(request_id)

    async def _fire(self, request_id: UUID) -> None:
        entry = self._board.get(request_id) or await self._store.entry(request_id)
        for _ in range(_MAX_STEPS):
            if entry is None:
                return
            try:
                entry = await self._change(request_id, await self._due_event(entry.booking))
            except Rejected:
                await self._look_again(request_id)
                return
            except asyncpg.UniqueViolationError:
                log.info("request %s stays scheduled: its customer is busy", request_id)
                return
            due_at = lifecycle.due_at(entry.booking, self._policy)
            if due_at is None or due_at > self._clock.now():
                return

    async def _look_again(self, request_id: UUID) -> None:
        """Nothing was due: the board is behind, or our clock a trifle ahead of the database's."""
        entry = await self._store.entry(request_id)
        if entry is not None:
            self._fanout.apply(entry)
            self._arm(entry.booking, not_before=self._clock.now() + _NOT_EARLY)

    async def _due_event(self, booking: Booking) -> Event:
        """What may be due of this booking, with what the core needs to know of people."""
        opening = lifecycle.Deadline.OPENING in lifecycle.deadlines(booking, self._policy)
        favourite = None
        if booking.preferred_mechanic_id is not None and (
            opening or booking.stage is Stage.PRIORITY
        ):
            favourite = await self._store.candidate(booking.preferred_mechanic_id)
        if opening:
            return await self._opening(booking, favourite)
        lost = self._why_lost(booking, favourite)
        return Due() if lost is None else FavouriteLost(lost)

    async def _opening(self, booking: Booking, favourite: Candidate | None) -> Open:
        """The event, with who of the people asked by name is there."""
        presence = Presence.UNKNOWN
        if favourite is not None:
            presence = await self._presence.of(favourite.mechanic_id)
        preferred_online = False
        if booking.routing is Routing.HYBRID and booking.preferred_workshop_id is not None:
            anyone = await self._presence.anyone_of_workshop(booking.preferred_workshop_id)
            preferred_online = anyone is not Presence.OFFLINE
        return Open(
            favourite=favourite,
            favourite_presence=presence,
            preferred_online=preferred_online,
        )

    def _why_lost(self, booking: Booking, favourite: Candidate | None) -> str | None:
        if booking.stage is not Stage.PRIORITY:
            return None
        if favourite is None:
            return "gone"
        return routing.exclusion(booking, favourite, self._policy.mechanic_capacity)

    # --- mechanics

    async def accept(self, mechanic_id: UUID, offer_id: UUID, accept_id: UUID) -> Answer:
        """First accept wins (O1). The same `accept_id` gets the same verdict (O2).

        Only where this node knows that somebody else won this very round, and that this mechanic
        was meant, it answers by itself; in every other case Postgres judges.
        """
        started_at = time.perf_counter()
        answer = self.lost(mechanic_id, offer_id)
        if answer is None:
            answer = await self._judge(mechanic_id, offer_id, accept_id)
            self._metrics.accept(answer.reason or "won", time.perf_counter() - started_at)
        return answer

    def lost(self, mechanic_id: UUID, offer_id: UUID) -> Answer | None:
        """The answer where this node knows it by itself; None where Postgres must judge."""
        offered = self._lost_for_certain(mechanic_id, offer_id)
        if offered is None:
            return None
        self._audit.lost(offered, mechanic_id)
        self._metrics.accept("taken", 0.0)
        return Answer(reason="taken")

    async def _judge(
        self,
        mechanic_id: UUID,
        offer_id: UUID,
        accept_id: UUID,
        assigned_by: UUID | None = None,
    ) -> Answer:
        try:
            verdict = await self._store.accept(
                offer_id,
                mechanic_id,
                accept_id,
                capacity=self._policy.mechanic_capacity,
                join_seconds=self._policy.join_seconds,
                message=messages.ACCEPTED,
                policy_id=self._policy_id,
                assigned_by=assigned_by,
            )
        except asyncpg.UniqueViolationError:  # the backstop: her slot was taken meanwhile
            return Answer(reason="busy")
        if verdict.entry is not None:
            self._announce(verdict.entry)
            self._waterfall.accepted(verdict.entry.booking)
            self._release_other_favourites(mechanic_id)
        if not verdict.won:
            return Answer(reason=verdict.reason)
        return Answer(session_id=verdict.session_id, request_id=verdict.request_id)

    def _lost_for_certain(self, mechanic_id: UUID, offer_id: UUID) -> Booking | None:
        """The booking as it was offered, where this node knows that somebody else won it."""
        ended = self._board.ended_round(offer_id)
        if ended is None or ended.offered is None or ended.winner in (None, mechanic_id):
            return None
        candidate = self._fanout.candidate(mechanic_id)
        if candidate is None or routing.not_meant(ended.offered, candidate) is not None:
            return None
        return ended.offered

    def _release_other_favourites(self, mechanic_id: UUID) -> None:
        """Whoever waits for her by name must not wait any longer (F4)."""
        for entry in self._board.waiting_for(mechanic_id):
            self._timer_fired(entry.booking.request_id)

    async def decline(self, mechanic_id: UUID, offer_id: UUID, reason: str | None) -> None:
        """She does not want this round; a favourite's decline falls back at once (F4)."""
        entry = self._board.in_round(offer_id) or await self._store.entry_of_round(offer_id)
        candidate = await self._store.candidate(mechanic_id)
        if entry is None or candidate is None:
            raise NotFound("no such offer")
        try:
            await self._change(entry.booking.request_id, Decline(candidate, offer_id, reason))
        except Rejected as refused:
            if refused.code == "not_found":  # in the words that an unknown one gets
                raise NotFound("no such offer") from None
            raise

    async def seen(self, mechanic_id: UUID, offer_id: UUID) -> None:
        """Her client showed the card; a favourite's first sight ends the re-sends (O3).

        A card that is gone by now changes nothing, and is no error: nobody waits for an answer.
        """
        entry = self._board.in_round(offer_id)
        if entry is None or entry.booking.stage is None:
            return
        booking = entry.booking
        self._fanout.note_seen(mechanic_id, booking)
        named = booking.stage is Stage.PRIORITY and mechanic_id == booking.preferred_mechanic_id
        if named and booking.seen_at is None:
            try:
                await self._saw(booking.request_id, mechanic_id)
            except Unavailable:
                self._tasks.spawn(self._saw_before(booking.request_id, mechanic_id), "seen")

    async def _saw(self, request_id: UUID, mechanic_id: UUID) -> None:
        with contextlib.suppress(Rejected):
            await self._change(request_id, Seen(mechanic_id))

    async def _saw_before(self, request_id: UUID, mechanic_id: UUID) -> None:
        """Postgres was away when she looked: nobody waits for an answer, and it is not lost."""
        while True:
            await asyncio.sleep(_AGAIN_SECONDS)
            with contextlib.suppress(Unavailable):
                await self._saw(request_id, mechanic_id)
                return

    async def set_available(self, mechanic_id: UUID, available: bool) -> Facts:
        """Stores what she says of herself. The caller answers her, then calls `tell_facts`."""
        facts = await self._store.set_available(mechanic_id, available)
        if facts is None:
            raise NotFound("no such mechanic")
        return facts

    def tell_facts(self, facts: Facts) -> None:
        """Facts of a mechanic changed: her cards follow on every node, this one included (R10)."""
        self._publish(MechanicChanged(facts.candidate, facts.changed_at))
        if not (facts.candidate.available and facts.candidate.approved):
            self._release_other_favourites(facts.candidate.mechanic_id)

    async def tell_changed(self, mechanic_id: UUID) -> None:
        """The same where somebody else changed her row, and committed it."""
        facts = await self._store.facts(mechanic_id)
        if facts is not None:
            self.tell_facts(facts)

    async def retire(self, mechanic_id: UUID) -> None:
        """She was deactivated or deleted, and that is committed: she leaves all that she has (P6).

        What has not started is as if she had cancelled (O4); what runs ends, as when she ends it.
        """
        await self.tell_changed(mechanic_id)
        for session_id in await self._store.live_sessions_of(mechanic_id):
            with contextlib.suppress(NotFound, Rejected):  # it was over meanwhile
                await self.end(mechanic_id, session_id)

    async def cancel_assignment(
        self, mechanic_id: UUID, session_id: UUID, reason: str | None
    ) -> None:
        """She gives an accepted booking back (O4): it re-opens at once without her."""
        entry = await self.participant_entry(mechanic_id, session_id)
        await self._change(entry.booking.request_id, MechanicCancel(mechanic_id, reason))

    # --- customers

    async def cancel(
        self, customer_id: UUID, request_id: UUID, refund_as: RefundAs = "money"
    ) -> Entry:
        """The customer gives up before anybody accepted; what she paid is given back (C5, C6)."""
        await self.customer_entry(customer_id, request_id)
        return await self._change(request_id, Cancel(refund_as))

    async def widen(self, customer_id: UUID, request_id: UUID) -> Entry:
        """A priority or head-start stage ends now (O6)."""
        await self.customer_entry(customer_id, request_id)
        return await self._change(request_id, Widen())

    async def customer_entry(self, customer_id: UUID, request_id: UUID) -> Entry:
        """The customer's own booking; `NotFound` for an unknown one and for somebody else's."""
        entry = await self._store.entry(request_id)
        if entry is None or entry.booking.customer_id != customer_id:
            raise NotFound("no such request")
        return entry

    # --- admins

    async def assign(self, admin_id: UUID, request_id: UUID, mechanic_id: UUID) -> Entry:
        """Gives an open booking to a mechanic by hand, through the same judge.

        She must be approved, available and below capacity, and such as the customer asked for (a
        specialist, of the chosen workshop for `workshop_only`). Whose stage it is, and whether she
        was excluded, does not matter. Raises `Conflict` with the judge's reason.
        """
        entry = await self._store.entry(request_id)
        if entry is None:
            raise NotFound("no such request")
        if await self._store.candidate(mechanic_id) is None:
            raise BadRequest("mechanic_id: there is no such mechanic")
        booking = entry.booking
        if booking.stage is None and booking.status in (
            RequestStatus.SCHEDULED,
            RequestStatus.PENDING,
        ):
            raise Conflict("not_open", "this request is not open yet")
        answer = await self._judge(mechanic_id, booking.offer_id, uuid4(), admin_id)
        match answer.reason:
            case None:
                won = await self._store.entry(request_id)
                assert won is not None
                return self._newest(won)
            case "not_found":
                raise Conflict("not_eligible", "this mechanic may not serve this request")
            case reason:
                raise Conflict(reason, f"this request cannot be given to her: {reason}")

    # --- both

    async def join(self, user_id: UUID, role: Role, session_id: UUID) -> Entry:
        """Enters the session; for a mechanic and a pending one this is accept and join (S6)."""
        entry = await self._store.entry_of_session(session_id)
        if entry is None or (role is Role.CUSTOMER and entry.booking.customer_id != user_id):
            raise NotFound("no such session")
        booking = entry.booking
        if role is Role.MECHANIC and booking.mechanic_id != user_id:
            await self._accept_to_join(user_id, booking)
        joined = await self._change(booking.request_id, Join(user_id, role))
        if role is Role.MECHANIC and booking.mechanic_joined_at is None:
            self._waterfall.joined(joined.booking)
        return joined

    async def _accept_to_join(self, mechanic_id: UUID, booking: Booking) -> None:
        """Through the same judge. Who was not meant must not learn that the session exists."""
        candidate = await self._store.candidate(mechanic_id)
        if candidate is None or routing.not_meant(booking, candidate) is not None:
            raise NotFound("no such session")
        answer = await self.accept(mechanic_id, booking.offer_id, uuid4())
        match answer.reason:
            case None:
                return
            case "not_found":
                raise NotFound("no such session")
            case "taken":
                raise Conflict("already_joined", "another mechanic has this session")
            case "expired" | "cancelled":
                raise Conflict("session_ended", "this session has ended")
            case reason:
                raise Conflict("not_open", f"you cannot take this session: {reason}")

    async def end(self, user_id: UUID, session_id: UUID) -> Entry:
        """Leaves the session for good; idempotent. Before both have joined: O4 or a refund."""
        entry = await self.participant_entry(user_id, session_id)
        try:
            return await self._change(entry.booking.request_id, End(user_id))
        except Rejected as refused:
            if refused.code == "not_found":  # since she was looked up, she takes part no longer
                raise NotFound("no such session") from None
            raise

    async def participant_entry(self, user_id: UUID, session_id: UUID) -> Entry:
        """The booking of a session that the user takes part in; `NotFound` otherwise."""
        entry = await self._store.entry_of_session(session_id)
        if entry is None or user_id not in (entry.booking.customer_id, entry.booking.mechanic_id):
            raise NotFound("no such session")
        return entry

    # --- load, decide, commit, perform

    async def _change(self, request_id: UUID, event: Event) -> Entry:
        """One event, one transaction; the booking afterwards. Told to everybody after the commit.

        Raises `Rejected`, and then nothing has changed.
        """
        async with self._store.lock(request_id) as locked:
            if locked is None:
                raise NotFound("no such request")
            if isinstance(event, Open) and locked.entry.booking.status is RequestStatus.SCHEDULED:
                busy = await self._store.customer_is_busy(locked)
                event = replace(event, customer_busy=busy)
            before = locked.entry.booking
            policy = experiments.policy_of(before, self._policy)
            decision = lifecycle.decide(before, event, locked.now, policy)
            if decision.rejection is not None:
                raise Rejected(decision.rejection)
            changed = decision.booking is not before
            after = await self._write(locked, event, decision) if changed else locked.entry
            queued = await self._queue(locked, after.booking, decision.effects)
            if self._has_video and _has_left_room(before, after.booking):
                queued |= await video.queue_close(locked.connection, before)
        if changed:
            self._announce(after)
        if queued:
            self._effects_queued()
        return self._newest(after)

    def _newest(self, entry: Entry) -> Entry:
        """The board may have heard of a later change while our commit's reply was on its way."""
        known = self._board.get(entry.booking.request_id)
        return entry if known is None or known.booking.version < entry.booking.version else known

    async def _write(self, locked: Locked, event: Event, decision: Decision) -> Entry:
        """The booking as it was decided, its history, and what else stands in rows of its own."""
        change = self._change_of(locked.entry.booking, event, decision, locked.now)
        await self._store.write(locked, change)
        display = locked.entry.display
        if change.booking.mechanic_id is None:
            display = replace(
                display,
                mechanic_name=None,
                mechanic_workshop_id=None,
                mechanic_rating=None,
                is_favorite=False,
            )
        return replace(locked.entry, booking=change.booking, display=display)

    def _change_of(self, before: Booking, event: Event, decision: Decision, at: datetime) -> Change:
        policy = experiments.policy_of(before, self._policy)
        own = None if policy is self._policy else policy  # the node's is kept already
        policy_id = self._policy_id if own is None else policy_row(own)[0]
        change = change_of(before, event, decision, at, policy, policy_id, uuid4())
        change.policy = own
        return change

    async def _queue(self, locked: Locked, booking: Booking, effects: tuple[Effect, ...]) -> bool:
        """What is to be done outside the database: refunds, notifications. Whether there is any."""
        queued = False
        for effect in effects:
            if self._is_queued(booking, effect):
                queued |= await self._queue_one(locked.connection, booking, effect)
        return queued

    def _is_queued(self, booking: Booking, effect: Effect) -> bool:
        match effect:
            case Refund():
                return True
            case Ask(push=True):
                return self._push_urgent_below is not None
            case Summon():
                return self._audience.online(booking) < (self._push_urgent_below or 0)
            case _:
                return False

    async def _queue_one(self, connection: Connection, booking: Booking, effect: Effect) -> bool:
        match effect:
            case Refund(reason, refund_as):
                return await refunds.queue_for_session(
                    connection, booking.session_id, reason, as_credits=refund_as == "credits"
                )
            case Ask(mechanic_id):
                return await push.queue_offer(connection, booking, mechanic_id)
            case _:
                told = await push.queue_urgent(
                    connection,
                    booking,
                    capacity=self._policy.mechanic_capacity,
                    limit=_SUMMONED,
                )
                return told > 0

    def _announce(self, entry: Entry) -> None:
        """After a commit: our sockets, the other nodes, our clock. Never awaits, so never half."""
        self._fanout.apply(entry)
        self._publish(BookingChanged(entry))
        self._metrics.change(entry.booking.status.value)
        self._arm(entry.booking)

    def _arm(self, booking: Booking, not_before: datetime | None = None) -> None:
        due_at = lifecycle.due_at(booking, self._policy)
        if due_at is None:
            self.timers.disarm(booking.request_id)
        else:
            self.timers.arm(booking.request_id, max(due_at, not_before or due_at))

    def _timer_fired(self, request_id: UUID) -> None:
        self._due.append(request_id)
        if self._firers < _FIRES_AT_ONCE:
            self._firers += 1
            self._tasks.spawn(self._fire_due(), "fire what is due")

    async def _fire_due(self) -> None:
        """One after the other: thousands that are due at once must not keep users from Postgres."""
        try:
            while self._due:
                with contextlib.suppress(NotFound):
                    await self.fire(self._due.popleft())
        except Unavailable as error:
            log.warning("%d that are due are left to the sweep: %s", len(self._due), error.message)
            self._due.clear()
        finally:
            self._firers -= 1


def _has_left_room(before: Booking, after: Booking) -> bool:
    """Whether the two who had this round of the booking are not in it together any more."""
    return before.status is RequestStatus.ACCEPTED and after.status is not RequestStatus.ACCEPTED
