"""One node: its parts put together, what it hears from the others, and its loops.

One job: compose. A node is one process with its own sockets, board, timers and pool. It hears
hints and applies them; each second it compares its board and its mechanics with Postgres and
performs the difference, because a hint may be lost after any commit. A loop that fails for a
reason nobody foresaw ends the node: the supervisor starts a new one, and the others go on.
"""

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Self, assert_never
from uuid import UUID

from dispatch import customer_payments, invites, payouts, people, push, refunds
from dispatch.audience import NAMED, Audience
from dispatch.audit import Audit
from dispatch.auth import Authenticator
from dispatch.board import Board
from dispatch.bus import Bus
from dispatch.chat import Chats
from dispatch.config import Config
from dispatch.core.types import Candidate
from dispatch.database import Pool, close_pool, open_pool, unavailable_when_lost
from dispatch.dispatcher import Dispatcher
from dispatch.errors import Unavailable
from dispatch.fanout import Fanout
from dispatch.gateway import Gateway
from dispatch.hints import (
    BookingChanged,
    DevicesChanged,
    Hint,
    MechanicChanged,
    MechanicShared,
    PresenceChanged,
    Reach,
    ReachWanted,
    Roster,
    Said,
    UserRevoked,
)
from dispatch.hub import Hub
from dispatch.jobs import Job, Jobs
from dispatch.jwks import Provider
from dispatch.mail import Mailer
from dispatch.mechanics import Mechanics
from dispatch.metrics import Metrics
from dispatch.namespace import namespace
from dispatch.outbox import Deliver, Outbox
from dispatch.payments import Outcome
from dispatch.people import Rates
from dispatch.presence import PresenceRegistry
from dispatch.protocol import CloseCode, Drain
from dispatch.push_client import WebPush
from dispatch.reconciler import Reconciler
from dispatch.store import Store
from dispatch.stripe_client import StripeClient
from dispatch.tasks import Tasks
from dispatch.timers import Clock, Sweep
from dispatch.video import Video
from dispatch.waterfall import Waterfall

log = logging.getLogger(__name__)

OVERDUE_BATCH: Final = 100
COUNTS_SECONDS: Final = 0.05
ROSTER_REPEAT_SECONDS: Final = 2.0
REACH_SECONDS: Final = 1.0
STILL_SECONDS: Final = 2.0
CATCH_UP_SECONDS: Final = 5.0
CLOCK_SECONDS: Final = 10.0
DEGRADED_RECONCILE_SECONDS: Final = 0.5
READY_SECONDS: Final = 1.0
# A transaction that commits later than this after it began is ended by Postgres.
FACTS_MARGIN: Final = timedelta(seconds=60)
DRAIN_SPREAD_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 5.0


class Node:
    """The parts of one node. Made by `start`, ended by `close`."""

    def __init__(
        self,
        config: Config,
        node_id: UUID,
        pool: Pool,
        stripe: StripeClient,
        space: str,
        policy_id: UUID,
    ) -> None:
        self.config = config
        self.node_id = node_id
        self.pool = pool
        self.stripe = stripe
        self.failed = asyncio.Event()
        self.tasks = Tasks(self.failed.set)
        self.clock = Clock()
        self.store = Store(pool)
        self.board = Board()
        self.hub = Hub()
        self.metrics = Metrics(node_id)
        self.rates = Rates(config.rate_logins)
        self.audience = Audience(node_id, self.hub.apart, self.hub.shared)
        self.waterfall = Waterfall(self.metrics)
        self.audit = Audit(self.store, node_id, self.clock.now, self.waterfall)
        self.bus = Bus(config.redis_url, space, node_id, self._hear, self._resync)
        self.presence = PresenceRegistry(
            config.redis_url,
            space,
            node_id,
            pool,
            config,
            self._presence_changed,
            self._mechanic_shared,
            clients=lambda: len(self.hub),
        )
        self.fanout = self._make_fanout()
        self.web_push = WebPush.of(config)
        self.video = Video.of(config)
        self.mailer = Mailer.of(config)
        self.mechanics = Mechanics(
            pool, self.presence, self.clock.now, web_push=self.web_push is not None
        )
        self.outbox = Outbox(pool, self._deliveries())
        self.dispatcher = self._make_dispatcher(policy_id)
        self.chats = self._make_chats()
        self.identity_provider = Provider.of(config)
        self.authenticator = Authenticator(config.jwt_secret, pool, self.identity_provider)
        self.gateway = self._make_gateway()
        self._reconcile_now = asyncio.Event()
        self._facts_since: datetime | None = None
        self._changes_told: dict[UUID, datetime] = {}  # of mechanics, as far as they are read again
        self._payments_told: dict[UUID, datetime] = {}  # the same of payments
        self._postgres_lost = False
        self._ran_at = time.monotonic()  # when this process was seen to run
        self._caught_up = asyncio.Event()
        self._roster: Roster | None = None  # as it was told last
        self._roster_at = 0.0  # when that was
        self._roster_of = -1  # which changes of the hub were looked at
        self._doubtful = True  # whether presence was unknown when watchers were told of it last
        self._watch_gauges()

    def _make_fanout(self) -> Fanout:
        return Fanout(
            self.hub,
            self.board,
            self.audience,
            self.audit,
            now=self.clock.now,
            publish=self.bus.publish,
            pace=lambda mechanic, rest: self.gateway.pace(mechanic, rest),
            stood_still=self._stood_still,
            capacity=self.config.mechanic_capacity,
        )

    def _deliveries(self) -> dict[str, Deliver]:
        """How each kind of effect is delivered; what is not configured stays in the outbox."""
        deliver: dict[str, Deliver] = {
            "refund": partial(refunds.deliver, self.pool, self.stripe),
            "transfer": partial(payouts.deliver_transfer, self.pool, self.stripe),
            "reversal": partial(payouts.deliver_reversal, self.pool, self.stripe),
        }
        if self.video is not None:
            deliver["room"] = partial(self._close_room, self.video)
        if self.web_push is not None:
            capacity = self.config.mechanic_capacity
            deliver["push"] = partial(push.deliver, self.store, self.web_push, capacity)
        if self.mailer is not None:
            secret, public_url = self.config.jwt_secret, self.config.public_url
            deliver["mail"] = partial(invites.deliver, self.pool, self.mailer, secret, public_url)
        return deliver

    async def _close_room(self, video: Video, payload: dict[str, Any]) -> None:
        await video.close_room(payload, self.clock.now())

    def _jobs(self) -> list[Job]:
        """What the cluster does at a time, whichever node is first to see that it is due."""
        reconciler = Reconciler(
            self.pool, self.stripe, self.config, lambda found: self.took(found, self.clock.now())
        )
        return [
            Job(name="payouts", schedule=self.config.payout_schedule, run=self._pay_out),
            Job(name="reconcile", schedule="hourly", run=reconciler.run, at_start=True),
        ]

    async def _pay_out(self) -> None:
        minimum_cents = self.config.payout_minimum_cents
        report = await payouts.run(self.pool, cause="schedule", minimum_cents=minimum_cents)
        log.info("%d payouts made, %d skipped", len(report.made), len(report.skipped))
        self.outbox.wake()

    def _make_dispatcher(self, policy_id: UUID) -> Dispatcher:
        config = self.config
        return Dispatcher(
            self.store,
            self.board,
            self.fanout,
            self.audience,
            self.audit,
            self.waterfall,
            self.presence,
            self.clock,
            self.tasks,
            self.metrics,
            publish=self._publish,
            effects_queued=self.outbox.wake,
            policy=config.policy(),
            policy_id=policy_id,
            push_urgent_below=None if self.web_push is None else config.push_urgent_below,
            has_video=self.video is not None,
        )

    def _make_chats(self) -> Chats:
        return Chats(
            self.pool,
            self.board,
            self.hub,
            self.tasks,
            publish=self.bus.publish,
            rate_messages=self.config.rate_messages,
        )

    def _make_gateway(self) -> Gateway:
        return Gateway(
            self.config,
            self.node_id,
            self.store,
            self.board,
            self.hub,
            self.fanout,
            self.dispatcher,
            self.chats,
            self.presence,
            self.mechanics,
            self.clock,
            self.authenticator,
            self.tasks,
            up_to_date=self._up_to_date,
        )

    @classmethod
    async def start(cls, config: Config, node_id: UUID) -> Self:
        """A node with a measured clock and a full board. Raises `Unavailable`."""
        pool = await open_pool(config.database_url)
        stripe = await asyncio.to_thread(
            StripeClient,
            config.stripe_secret_key,
            api_base=config.stripe_api_base,
            public_url=config.public_url,
        )
        policy_id = await Store(pool).keep_policy(config.policy())
        node = cls(config, node_id, pool, stripe, await namespace(pool), policy_id)
        await node.clock.measure(pool)
        await node.reconcile()
        return node

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What a node does until it ends, by name; each runs until it is cancelled."""
        sweep = Sweep(self._overdue, self._fire, self.config.sweep_seconds, OVERDUE_BATCH)
        return {
            "bus": self.bus.run(),
            "presence": self.presence.run(),
            "sweep": sweep.run(),
            "audit": self.audit.run(),
            "outbox": self.outbox.run(),
            "jobs": Jobs(self.pool, self._jobs(), self.config.sweep_seconds).run(),
            "reconcile": self._reconcile_loop(),
            "counts": self._counts_loop(),
            "clock": self._clock_loop(),
            **({} if self.identity_provider is None else {"jwks": self.identity_provider.run()}),
        }

    async def drain(self) -> None:
        """No new sockets; everybody here is asked to reconnect elsewhere, spread in time."""
        self.gateway.draining = True
        spread = min(DRAIN_SPREAD_SECONDS, self.config.drain_seconds / 2)
        for number, socket in enumerate(self.hub):
            wait_ms = int(random.uniform(0, spread) * 1000)
            socket.send_frame(Drain(reconnect_after_ms=wait_ms))
            socket.close(CloseCode.RESTART, "restarting")
            if number % 200 == 199:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """After the loops ended: says and writes what is left, and lets go of the servers.

        Each step has its time: a server that is frozen must not keep the node from ending.
        """
        steps: dict[str, Coroutine[Any, Any, None]] = {
            "tasks": self.tasks.close(),
            "audit": self.audit.flush(),
            "outbox": self._give_back(),
            "presence": self.presence.close(),
            "bus": self.bus.close(),
            "stripe": self.stripe.close(),
            **({} if self.web_push is None else {"web push": self.web_push.close()}),
            **({} if self.video is None else {"video": self.video.close()}),
            **({} if self.identity_provider is None else {"jwks": self.identity_provider.close()}),
            "pool": close_pool(self.pool),
        }
        for name, step in steps.items():
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await step
            except TimeoutError:
                log.warning("%s did not close in time", name)

    async def _give_back(self) -> None:
        try:
            await self.outbox.close()
        except Unavailable:
            log.info("what this node was delivering is delivered by another after its lease")

    # --- speaking and hearing

    def _publish(self, hint: Hint) -> None:
        """To the other nodes; what changes of a mechanic is heard here in the same way as there."""
        self.bus.publish(hint)
        if isinstance(hint, MechanicChanged):
            self._mechanic_changed(hint.candidate, hint.changed_at)

    def _hear(self, hints: list[Hint]) -> None:
        for hint in hints:
            self._hear_one(hint)

    def _hear_one(self, hint: Hint) -> None:
        match hint:
            case BookingChanged(entry):
                self.fanout.apply(entry)
            case Said():
                self.chats.hear(hint)
            case MechanicChanged(candidate, changed_at):
                self._mechanic_changed(candidate, changed_at)
            case PresenceChanged(user_id) | DevicesChanged(user_id):
                self._tell_watchers(user_id)
            case MechanicShared(user_id):
                self.hub.share(user_id)
            case ReachWanted():
                self._say_counts()
            case UserRevoked(user_id, token_epoch):
                self.close_revoked(user_id, token_epoch)
            case Reach(_, request_id):
                self.audience.hear_reach(hint)
                self.fanout.counts_changed(request_id)
            case Roster():
                self.audience.hear_roster(hint, time.monotonic())
                self.fanout.all_counts_changed()
            case _ as unreachable:
                assert_never(unreachable)

    def _mechanic_changed(self, candidate: Candidate, changed_at: datetime) -> None:
        """Told by a hint or read again, and often by both: watchers hear of it once."""
        self._learn_facts(candidate, changed_at)
        if self._changes_told.get(candidate.mechanic_id) != changed_at:
            self._changes_told[candidate.mechanic_id] = changed_at
            self._tell_watchers(candidate.mechanic_id)

    def _learn_facts(self, candidate: Candidate, changed_at: datetime) -> None:
        """Facts of a mechanic, if newer; only an approved one is present (P3, P4)."""
        if not self.fanout.facts(candidate, changed_at):
            return
        for socket in self.hub.sockets_of(candidate.mechanic_id):
            if candidate.approved:
                self.presence.join(
                    socket.user_id,
                    socket.role,
                    socket.connection_id,
                    socket.device,
                    candidate.workshop_id,
                )
            else:
                self.presence.leave(socket.user_id, socket.connection_id)

    def _presence_changed(self, changed: PresenceChanged) -> None:
        self.bus.publish(changed)
        self._tell_watchers(changed.user_id)

    def devices_changed(self, mechanic_id: UUID) -> None:
        """She can be reached by web push now, or no longer: whoever watches her is told."""
        self.bus.publish(DevicesChanged(mechanic_id))
        self._tell_watchers(mechanic_id)

    def _mechanic_shared(self, mechanic_id: UUID) -> None:
        self.hub.share(mechanic_id)
        self.bus.publish(MechanicShared(mechanic_id))

    def _tell_watchers(self, mechanic_id: UUID) -> None:
        if self.hub.watchers_of(mechanic_id):
            self.tasks.spawn(self._tell(mechanic_id), f"tell watchers of {mechanic_id}")

    async def _tell(self, mechanic_id: UUID) -> None:
        try:
            await self.gateway.tell_watchers(mechanic_id)
        except Unavailable:
            self._changes_told.pop(mechanic_id, None)  # again when it is read again
            raise

    def revoke(self, user_id: UUID, token_epoch: int) -> None:
        """Tokens below this epoch are void: their sockets close here and on every node."""
        self.close_revoked(user_id, token_epoch)
        self.bus.publish(UserRevoked(user_id, token_epoch))

    def close_revoked(self, user_id: UUID, token_epoch: int) -> None:
        """Closes this node's sockets that were opened with a token below this epoch."""
        for socket in self.hub.sockets_of(user_id):
            if socket.epoch < token_epoch:
                socket.close(CloseCode.NOT_AUTHENTICATED, "the token was revoked")

    def took(self, outcome: Outcome, received_at: datetime) -> None:
        """Stripe said something, and it is committed: what was booked is dispatched, what is to go
        back goes back. `received_at` is when this node had heard of it."""
        self.metrics.webhook(outcome.result)
        created = outcome.created
        if created is not None:
            self.dispatcher.opened(created.request_id, received_at, created.entry)
        if outcome.refund_queued:
            self.outbox.wake()

    # --- comparing with Postgres

    def _resync(self) -> None:
        """Something may not have been heard: what Postgres knows is read, the rest is asked for."""
        self._reconcile_now.set()
        self.bus.publish(ReachWanted())
        self._say_counts()

    def _stood_still(self) -> bool:
        """Whether this process has just not run for a while: stopped, or starved."""
        return time.monotonic() - self._ran_at > STILL_SECONDS

    async def _up_to_date(self) -> None:
        """Returns once the board was compared after this node stood still. Raises `Unavailable`."""
        if self.fanout.is_behind:
            self._caught_up.clear()
            self._reconcile_now.set()
            try:
                async with asyncio.timeout(CATCH_UP_SECONDS):
                    await self._caught_up.wait()
            except TimeoutError:
                raise Unavailable("this node stood still and has not caught up") from None

    def _say_counts(self) -> None:
        """All that this node counts: who has a device elsewhere, whom it asked, who is here."""
        for mechanic_id in self.hub.shared:
            self.bus.publish(MechanicShared(mechanic_id))
        for reach in self.audience.reaches_here():
            self.bus.publish(reach)
        self._roster_at = 0.0

    async def reconcile(self) -> None:
        """Reads what the board and the mechanics here are missing, and performs the difference."""
        was_behind = self.fanout.is_behind
        stale = self.board.differences(await self.store.live_versions())
        entries = await self.store.entries(stale)
        if was_behind:
            self.fanout.catch_up(entries)
            self._caught_up.set()
        else:  # where it stood still meanwhile, nothing is taken and all is read again
            for entry in entries:
                self.fanout.apply(entry)
        await self.chats.reconcile()
        asked_at = await self._database_clock()
        if self._facts_since is not None:  # before the first time nobody is here
            for facts in await self.store.facts_changed_since(self._facts_since):
                self._mechanic_changed(facts.candidate, facts.changed_at)
            for user_id, token_epoch in await people.revoked_since(self.pool, self._facts_since):
                self.close_revoked(user_id, token_epoch)
            for moved in await customer_payments.moved_since(self.pool, self._facts_since):
                self._tell_of_payment(moved)
        self._facts_since = since = asked_at - FACTS_MARGIN
        self._changes_told = _after(since, self._changes_told)
        self._payments_told = _after(since, self._payments_told)

    def _tell_of_payment(self, moved: customer_payments.Moved) -> None:
        """Once a change, to every socket of its customer that is here."""
        sockets = self.hub.sockets_of(moved.customer_id)
        if sockets and self._payments_told.get(moved.state.payment_id) != moved.moved_at:
            self._payments_told[moved.state.payment_id] = moved.moved_at
            for socket in sockets:
                socket.send_frame(moved.state)

    async def _database_clock(self) -> datetime:
        async with unavailable_when_lost():
            moment: datetime = await self.pool.fetchval("SELECT clock_timestamp()")
        return moment

    async def _reconcile_loop(self) -> None:
        while True:
            seconds = self.config.sweep_seconds
            if self.bus.degraded:
                seconds = min(seconds, DEGRADED_RECONCILE_SECONDS)
            try:
                async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):
                    await self._reconcile_now.wait()
            except TimeoutError:
                pass
            self._reconcile_now.clear()
            try:
                await self.reconcile()
            except Unavailable as error:
                if not self._postgres_lost:
                    log.warning("postgres is away: %s", error.__cause__)
                self._postgres_lost = True
            else:
                if self._postgres_lost:
                    log.info("postgres is back")
                self._postgres_lost = False

    # --- the other loops

    async def _overdue(self) -> list[UUID]:
        return await self.store.overdue(OVERDUE_BATCH, self.config.mechanic_capacity)

    async def _fire(self, request_id: UUID) -> None:
        await self.dispatcher.fire(request_id)

    async def _counts_loop(self) -> None:
        """Tells the others who is ready here, and customers how many were notified."""
        apart, looked_at = 0, 0.0
        while True:
            await asyncio.sleep(COUNTS_SECONDS)
            if self.fanout.is_behind:
                self._caught_up.clear()
                self._reconcile_now.set()
            self._ran_at = now = time.monotonic()
            if now - looked_at > REACH_SECONDS and self.hub.parted != apart:
                looked_at, apart = now, self.hub.parted
                for reach in self.audience.reaches_changed():
                    self.bus.publish(reach)
                    self.fanout.counts_changed(reach.request_id)
            self._say_roster(now)
            # While the bus is deaf everybody is silent, and nobody is known to be gone.
            if not self.bus.degraded and self.audience.forget_silent_nodes(now):
                self.fanout.all_counts_changed()
            self.fanout.flush_counts()
            self._tell_of_doubt()

    def _say_roster(self, now: float) -> None:
        """Who is ready here, when that is new, and now and then."""
        is_due = now - self._roster_at > ROSTER_REPEAT_SECONDS
        if not is_due and self.hub.changes == self._roster_of:
            return
        self._roster_of = self.hub.changes
        roster = self.audience.roster(self.hub.ready, self.hub.to_be_named(NAMED))
        if is_due or roster != self._roster:
            self._roster, self._roster_at = roster, now
            self.bus.publish(roster)
            self.audience.hear_roster(roster, now)
            self.fanout.all_counts_changed()

    def _tell_of_doubt(self) -> None:
        """Whoever watches a mechanic hears when it becomes unknown who is here, or known again."""
        if self.presence.degraded != self._doubtful:
            self._doubtful = self.presence.degraded
            for mechanic_id in self.hub.watched():
                self._tell_watchers(mechanic_id)

    async def _clock_loop(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            try:
                await self.clock.measure(self.pool)
            except Unavailable:
                log.debug("the clock runs on by itself")

    # --- how it is

    async def is_ready(self) -> bool:
        """Whether this node can serve: not draining, and Postgres answers."""
        if self.gateway.draining:
            return False
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._database_clock()
        except (TimeoutError, Unavailable):
            return False
        return True

    def degraded(self) -> list[str]:
        """What is lost without keeping this node from serving."""
        lost = {"redis": self.presence.degraded, "bus": self.bus.degraded}
        return [name for name, is_lost in lost.items() if is_lost]

    def _watch_gauges(self) -> None:
        watch = self.metrics.watch
        watch("sockets", "Authenticated websockets", lambda: len(self.hub))
        watch("board_bookings", "Live bookings on the board", lambda: len(self.board))
        watch("timers", "Pending timers", lambda: len(self.dispatcher.timers))
        watch("bus_degraded", "1 while hints may be lost", lambda: int(self.bus.degraded))


def _after(since: datetime, told: dict[UUID, datetime]) -> dict[UUID, datetime]:
    """What is read again, and must not be told again."""
    return {id_: changed_at for id_, changed_at in told.items() if changed_at > since}
