"""Who is online where: in Redis for everybody, mirrored to Postgres for the SQL.

One job: keep this node's connections, and its lease, written in Redis; answer who is online; tell
when a mechanic comes or goes as the whole cluster sees it. Imports `hints`, `core.types`, `config`,
`errors`, `database`, and the other modules of presence:

    presence_ledger   this node's connections and the changes to write, as data
    presence_redis    keys, script and answers        lua/presence.lua   what must be atomic
    presence_mirror   the lease in Postgres, the mirror

The rules. A connection is written under its node's lease; heartbeats renew leases, not connections.
A lease in Redis outlives the last heartbeat by the lease and the grace, so that people of a crashed
node have the grace to come back elsewhere; then any node removes what is left. A leave is written
when its grace is over. A node whose lease ran out can write nothing under it (it was stopped, and
its people may have been told offline); it takes a new one and writes everybody again.

Presence ends in doubt, never in an error. It is *unknown* while Redis is away; after Redis was
emptied or replaced, until every node with a live lease in Postgres has written its people again;
and for somebody who is not to be found while a node that lives in Postgres is cut off from Redis.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

from msgspec import Struct

from dispatch.config import Config
from dispatch.core.types import Presence, Role
from dispatch.database import Pool
from dispatch.errors import Unavailable
from dispatch.hints import PresenceChanged
from dispatch.presence_ledger import Change, Connection, Ledger
from dispatch.presence_mirror import PAGE, Mirror, NodeLease
from dispatch.presence_redis import (
    KEEP_SECONDS,
    Life,
    Told,
    View,
    entries_of,
    epoch_key,
    node_of,
    read_script,
    run_id_of,
    time_of,
)
from dispatch.redis_link import ANSWER_SECONDS, Command, Link

BATCH: Final = 500  # changes in one call of the script: 1 to 2 ms of Redis
QUESTIONS: Final = 100  # answered in one round trip
BEATS_PER_LEASE: Final = 3
UNSETTLED_SECONDS: Final = 0.2  # how often to look whether everybody has published
PACE_SECONDS: Final = 0.02  # between round trips that only write, while people keep coming
RETRY_SECONDS: Final = (0.1, 0.5)
FIRST_PUBLISH_SECONDS: Final = 1.0
MIRROR_SECONDS: Final = 1.0
DOUBT_SECONDS: Final = 2.0  # a difference that is as old is no delay of the mirror

log = logging.getLogger(__name__)


class Device(NamedTuple):
    """One live connection of a user: the name that the client gave, and its node."""

    device: str | None
    node_id: UUID


class UserPresence(Struct, frozen=True):
    """Where a user stands. `last_seen` of a mechanic is now while she is online."""

    presence: Presence
    last_seen: datetime | None = None
    devices: tuple[Device, ...] = ()


class _Answer(NamedTuple):
    replies: list[Any]
    view: View


class _Question(NamedTuple):
    commands: tuple[Command, ...]
    answer: asyncio.Future[_Answer | None]


class PresenceRegistry:
    """This node's part of presence, and everybody's answers.

    `changed` is called on the loop when a mechanic comes (by the node that wrote her first
    connection) or goes (by the node that removed the last). It may be called again with what was
    told before; `at` (Redis's clock) says which is the latest. `shared` is called when a mechanic
    who is here is found to be on another node too. `clients` counts everybody's sockets here.
    """

    def __init__(
        self,
        redis_url: str,
        namespace: str,
        node_id: UUID,
        pool: Pool,
        config: Config,
        changed: Callable[[PresenceChanged], None],
        shared: Callable[[UUID], None],
        *,
        clients: Callable[[], int],
    ) -> None:
        self._namespace = namespace
        self._node_id = node_id
        self._changed = changed
        self._shared = shared
        self._clients = clients
        self._grace_seconds = config.presence_grace_seconds
        self._lease_seconds = config.node_lease_seconds
        self._beat_seconds = config.node_lease_seconds / BEATS_PER_LEASE
        self._link = Link(redis_url)
        self._ledger = Ledger(config.presence_grace_seconds)
        self._mirror = Mirror(pool)
        self._node_lease = NodeLease(pool, node_id, config.node_lease_seconds)

        self._connected = False
        self._life: Life | None = None
        self._incarnation = 0
        self._seq = 0
        self._published = False  # everybody here is written under the present lease
        self._settled = False  # every node of Postgres has published in this life
        self._leased: frozenset[UUID] | None = None  # the nodes with a live lease in Postgres
        self._view: View | None = None
        self._graves: dict[str, bool] = {}  # leases to bury; True: our own former ones
        self._questions: deque[_Question] = deque()
        self._work = asyncio.Event()
        self._asked = asyncio.Event()  # a question waits
        self._round_at = -PACE_SECONDS
        self._first_published = asyncio.Event()
        self._lease_asked = asyncio.Event()
        self._beat_at = 0.0
        self._look_at = 0.0
        self._suspects: dict[UUID, bool] = {}  # mechanics whose mirror was wrong, the last time
        self._compare_at = 0.0
        self._lost: set[str] = set()  # servers whose loss is in the log

    # --- what the node says -----------------------------------------------------------------------

    def join(
        self,
        user_id: UUID,
        role: Role,
        connection_id: UUID,
        device: str | None,
        workshop_id: UUID | None,
    ) -> None:
        """A user's connection is here; again with another workshop when she changes it."""
        self._ledger.join(
            Connection(user_id, connection_id, role is Role.MECHANIC, device, workshop_id)
        )
        self._work.set()

    def leave(self, user_id: UUID, connection_id: UUID) -> None:
        """This connection of the user is gone. Told after the grace, if it was her last."""
        self._ledger.leave(connection_id, time.monotonic())
        self._work.set()

    # --- what everybody asks ----------------------------------------------------------------------

    @property
    def degraded(self) -> bool:
        """Whether presence is unknown, because Redis is away or not everybody has published."""
        return not (self._connected and self._settled)

    async def look_up(self, user_ids: Sequence[UUID]) -> dict[UUID, UserPresence]:
        """Each of these users, after at most 0.5 s a page of 500; unknown when Redis cannot say."""
        found: dict[UUID, UserPresence] = {}
        for start in range(0, len(user_ids), PAGE):
            page = user_ids[start : start + PAGE]
            names = [user_id.hex for user_id in page]
            answer = await self._ask_hashes(("users", names), ("seen", names))
            if answer is None:
                found |= dict.fromkeys(page, UserPresence(Presence.UNKNOWN))
                continue
            users, seen = answer.replies
            for user_id, packed, seen_us in zip(page, users, seen, strict=True):
                found[user_id] = self._presence_of(user_id, packed, seen_us, answer.view)
        return found

    async def of(self, user_id: UUID) -> Presence:
        """One user's; without asking Redis where she is connected here and Redis is well."""
        if self._settled and not self.degraded and self._ledger.is_here(user_id):
            return Presence.ONLINE
        return (await self.look_up([user_id]))[user_id].presence

    async def anyone_of_workshop(self, workshop_id: UUID) -> Presence:
        """ONLINE when at least one mechanic of the workshop is; UNKNOWN if Redis cannot say."""
        answer = await self._ask_hashes(("workshops", [workshop_id.hex]))
        if answer is None or not self._settled:
            return Presence.UNKNOWN
        if answer.replies[0][0] is not None:
            return Presence.ONLINE
        return self._absent(answer.view)

    async def online_mechanics(self) -> int | None:
        """How many mechanics are online; None if Redis cannot say."""
        life = self._life
        answer = await self._ask(("HLEN", life.key("mechanics"))) if life else None
        return answer.replies[0] if answer and self._settled else None

    def _presence_of(
        self, user_id: UUID, packed: bytes | None, seen_us: bytes | None, view: View
    ) -> UserPresence:
        last_seen = time_of(int(seen_us)) if seen_us else None
        if not self._settled:
            return UserPresence(Presence.UNKNOWN, last_seen)
        devices = tuple(
            Device(device, node_of(lease))
            for lease, device in entries_of(packed)
            if lease in view.live
        )
        # Who has just connected here may not be written yet, and is online all the same.
        if devices or self._ledger.is_here(user_id):
            return UserPresence(Presence.ONLINE, view.at, devices)
        return UserPresence(self._absent(view), last_seen)

    def _absent(self, view: View) -> Presence:
        """What it means not to be found: a node that is cut off from Redis may have her."""
        complete = self._leased is not None and self._leased <= view.published
        return Presence.OFFLINE if complete else Presence.UNKNOWN

    async def _ask_hashes(self, *fields: tuple[str, list[str]]) -> _Answer | None:
        life = self._life
        if life is None:
            return None
        return await self._ask(*(("HMGET", life.key(name), *keys) for name, keys in fields))

    async def _ask(self, *commands: Command) -> _Answer | None:
        """The answers, together with the leases of the same moment; None if Redis cannot say."""
        if not self._connected:
            return None
        question = _Question(commands, asyncio.get_running_loop().create_future())
        self._questions.append(question)
        self._work.set()
        self._asked.set()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await question.answer
        except TimeoutError:
            return None

    # --- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep everything written until cancelled, whatever becomes of Redis and Postgres.

        Cancelling alone is like a crash: the other nodes notice when the lease runs out.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_in_redis(), name="presence-redis")
                tasks.create_task(self._keep_lease(), name="presence-lease")
                tasks.create_task(self._keep_mirror(), name="presence-mirror")
        finally:
            self._connected = False
            await self._link.close()

    async def close(self) -> None:
        """After `run` was cancelled, on drain: give the lease back.

        The people who were here have the grace to come back on the other nodes, which then remove
        and tell. Without other nodes they are removed and told at once.
        """
        try:
            await self._node_lease.give_back()
        except Unavailable as error:
            self._lose("postgres", error)
        try:
            await self._link.open()
            await self._hand_over()
        except Unavailable as error:
            self._lose("redis", error)
        await self._link.close()
        await self._flush()

    async def _hand_over(self) -> None:
        life = self._life
        if life is None:
            return
        view = life.read_view(await self._link.ask(*life.view()))
        if view is None:
            return
        if view.published - {self._node_id}:
            self._seq += 1
            await self._link.ask(
                life.apply(self._lease, self._seq, self._grace_seconds, published=True, now=0.0)
            )
            return
        status = "more"
        while status == "more":
            [reply] = await self._link.ask(life.bury(self._lease, BATCH, forced=True))
            status, at, told, _ = read_script(reply)
            self._tell(told, at)

    # --- Redis ------------------------------------------------------------------------------------

    @property
    def _lease(self) -> str:
        return f"{self._node_id}.{self._incarnation}"

    async def _keep_in_redis(self) -> None:
        while True:
            try:
                await self._link.open()
                await self._enter()
                self._recover("redis")
                self._connected = True
                while True:
                    await self._wait_for_work()
                    if not await self._round():
                        await self._enter()
            except Unavailable as error:
                self._lose("redis", error)
            self._connected = False
            self._fail_questions()
            await asyncio.sleep(random.uniform(*RETRY_SECONDS))

    async def _enter(self) -> None:
        """Find the present epoch, or begin one; in a new one everything is written again."""
        [info] = await self._link.ask(("INFO", "server"))
        run_id, fresh = run_id_of(info), uuid4().hex
        key = epoch_key(self._namespace, run_id)
        [epoch] = await self._link.ask(("SET", key, fresh, "NX", "GET", "EX", KEEP_SECONDS))
        life = Life(self._namespace, run_id, epoch.decode() if epoch else fresh)
        if life == self._life:
            return
        self._life = life
        self._settled = False
        self._leased = None
        self._view = None
        self._graves.clear()
        self._suspects.clear()
        self._fail_questions()  # they were asked of another life
        self._ledger.forgotten()
        self._begin_lease()
        self._lease_asked.set()

    def _begin_lease(self) -> None:
        self._incarnation += 1
        self._seq = 0
        self._published = False
        self._beat_at = 0.0

    async def _wait_for_work(self) -> None:
        if self._ledger.unwritten or self._questions or self._graves:
            await asyncio.sleep(0)  # whoever speaks in this tick of the loop comes along
            await self._gather()
            return
        self._work.clear()
        wake_at = self._beat_at if self._settled else min(self._beat_at, self._look_at)
        removal_at = self._ledger.next_removal_at()
        if removal_at is not None and self._settled:
            wake_at = min(wake_at, removal_at)
        await _within(max(0.0, wake_at - time.monotonic()), self._work)

    async def _gather(self) -> None:
        """Let more come along while people come faster than one round trip each is worth.

        A question does not wait, nor does a full batch, nor whoever comes alone.
        """
        pause_seconds = self._round_at + PACE_SECONDS - time.monotonic()
        if pause_seconds > 0 and not self._graves and self._ledger.unwritten < BATCH:
            self._asked.clear()
            if not self._questions:
                await _within(pause_seconds, self._asked)

    async def _round(self) -> bool:
        """One round trip: write, bury, ask, look at the leases. False when this life is over."""
        life, now = self._life, time.monotonic()
        assert life is not None
        self._round_at = now
        changes = self._ledger.take(now, BATCH, removals=self._settled)
        complete = self._ledger.unwritten <= BATCH
        beats = bool(changes) or now >= self._beat_at or (complete and not self._published)
        graves = [lease for lease, own in self._graves.items() if self._published or not own]
        questions = [self._questions.popleft() for _ in range(min(len(self._questions), QUESTIONS))]
        commands: list[Command] = []
        if beats:
            commands.append(self._beat(life, changes, published=self._published or complete))
        commands += [life.bury(lease, BATCH, forced=self._graves[lease]) for lease in graves]
        commands += [command for question in questions for command in question.commands]
        if now >= self._beat_at:
            commands += life.keep(self._lease)
        try:
            replies = await self._link.ask(*commands, *life.view())
            view = life.read_view(replies[-3:])
            if view is None:
                return False
            rest = iter(replies)
            if beats:
                self._written(next(rest), changes, complete)
            for lease in graves:
                self._buried(lease, next(rest))
            for question in questions:
                answer = _Answer([next(rest) for _ in question.commands], view)
                if not question.answer.done():
                    question.answer.set_result(answer)
        finally:
            _cannot_say(questions)
        self._look(view)
        return True

    def _beat(self, life: Life, changes: list[Change], *, published: bool) -> Command:
        self._seq += 1
        seconds = self._lease_seconds + self._grace_seconds
        return life.apply(
            self._lease, self._seq, seconds, changes, published=published, now=time.monotonic()
        )

    def _written(self, reply: bytes, changes: list[Change], complete: bool) -> None:
        answer = read_script(reply)
        if answer.status == "ok":
            self._ledger.confirm(changes)
            self._published = self._published or complete
            self._first_published.set()
            self._beat_at = time.monotonic() + self._beat_seconds
            self._tell(answer.told, answer.at)
            for mechanic_id in answer.shared:
                self._shared(mechanic_id)
        else:
            log.warning("the lease %s is %s: a new one begins", self._lease, answer.status)
            self._graves[self._lease] = True
            self._ledger.buried()
            self._begin_lease()

    def _buried(self, lease: str, reply: bytes) -> None:
        answer = read_script(reply)
        if answer.status != "more":
            del self._graves[lease]
        self._tell(answer.told, answer.at)

    def _look(self, view: View) -> None:
        """See who has published, and whose lease ran out."""
        self._view = view
        self._look_at = time.monotonic() + UNSETTLED_SECONDS
        if self._leased is None:
            return
        if not self._settled and self._leased <= view.published:
            self._settled = True
            self._compare_at = 0.0
        for lease in view.expired:
            node_id = node_of(lease)
            # One that lives in Postgres is only cut off from Redis: its people are still there.
            if node_id not in self._leased or node_id in view.published:
                self._graves.setdefault(lease, False)

    def _tell(self, told: Iterable[Told], at: datetime) -> None:
        for user_id, online, seen in told:
            self._mirror.note(user_id, online, seen)
            presence = Presence.ONLINE if online else Presence.OFFLINE
            self._changed(PresenceChanged(user_id, presence, at))

    def _fail_questions(self) -> None:
        _cannot_say(self._questions)
        self._questions.clear()

    # --- Postgres ---------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Renew the lease in Postgres, and learn who else has one.

        People are in Redis before the lease is in Postgres, so that a node that starts does not
        make presence unknown; when Redis is away the lease does not wait.
        """
        await _within(FIRST_PUBLISH_SECONDS, self._first_published)
        lag_ms = 0.0
        while True:
            self._lease_asked.clear()
            life = self._life
            try:
                leased = await self._node_lease.renew(self._incarnation, self._clients(), lag_ms)
                self._recover("postgres")
                if self._life is life:
                    self._leased = leased
                    self._look_at = 0.0
                    self._work.set()
            except Unavailable as error:
                self._lose("postgres", error)
            due_at = time.monotonic() + self._beat_seconds
            if not await _within(self._beat_seconds, self._lease_asked):
                lag_ms = max(0.0, time.monotonic() - due_at) * 1000

    async def _keep_mirror(self) -> None:
        while True:
            await asyncio.sleep(MIRROR_SECONDS)
            await self._flush()
            leads = self._view is not None and min(self._view.live, default="") == self._lease
            if leads and self._settled and time.monotonic() >= self._compare_at:
                try:
                    await self._compare()
                except Unavailable as error:
                    self._lose("postgres", error)

    async def _flush(self) -> None:
        try:
            await self._mirror.flush()
        except Unavailable as error:
            self._lose("postgres", error)

    async def _compare(self) -> None:
        """Tell and mirror what two comparisons in a row found wrong in the mirror.

        That is how people of a crashed node are told offline when Redis was lost with it, and how
        what a killed node had not mirrored yet is mended. One node does it for all.
        """
        wrong: dict[UUID, bool] = {}
        told: list[Told] = []
        async for mechanic_id, online in self._differences():
            if self._suspects.get(mechanic_id) is online:
                told.append(Told(mechanic_id, online, None))
            else:
                wrong[mechanic_id] = online
        if told and self._view is not None:
            self._tell(told, self._view.at)
        self._suspects = wrong
        self._compare_at = time.monotonic() + (DOUBT_SECONDS if wrong else 2 * self._lease_seconds)

    async def _differences(self) -> AsyncIterator[tuple[UUID, bool]]:
        """Mechanics whose mirror is wrong, with what Redis says; ends early if it cannot say."""
        page = await self._mirror.online_page(UUID(int=0))
        while page:
            answer = await self._ask_hashes(("mechanics", [one.hex for one in page]))
            if answer is None:
                return
            for mechanic_id, workshop in zip(page, answer.replies[0], strict=True):
                if workshop is None:
                    yield mechanic_id, False
            page = await self._mirror.online_page(page[-1])
        cursor = None
        while cursor != 0 and self._life is not None:
            key = self._life.key("mechanics")
            answer = await self._ask(("HSCAN", key, cursor or 0, "COUNT", PAGE))
            if answer is None:
                return
            [[next_cursor, fields]] = answer.replies
            cursor = int(next_cursor)
            online = [UUID(field.decode()) for field in fields[::2]]
            for mechanic_id in await self._mirror.offline_among(online):
                yield mechanic_id, True

    # --- the log ----------------------------------------------------------------------------------

    def _lose(self, server: str, error: Unavailable) -> None:
        if server not in self._lost:
            self._lost.add(server)
            log.warning("presence lost %s: %s", server, error.message)

    def _recover(self, server: str) -> None:
        if server in self._lost:
            self._lost.discard(server)
            log.info("presence recovered %s", server)


def _cannot_say(questions: Iterable[_Question]) -> None:
    for question in questions:
        if not question.answer.done():
            question.answer.set_result(None)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for the event so long at most; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
