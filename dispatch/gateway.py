"""What each client frame means: one call of the dispatcher, one answer.

One job: stand behind the sockets of `websocket.py`. It authenticates, welcomes with a snapshot that
is the whole truth of that moment, and matches frames to calls. Who connects is registered and gets
the snapshot without an await in between, so nothing can fall between the two: the board holds every
live booking, and what changes afterwards is pushed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Final, assert_never, cast
from uuid import UUID

from msgspec import Raw

from dispatch import customer_payments, favorites, frames
from dispatch.auth import Authenticator, Identity, judge
from dispatch.board import Board
from dispatch.chat import Chats
from dispatch.config import Config
from dispatch.core.types import Presence, Role
from dispatch.dispatcher import Answer, Dispatcher
from dispatch.errors import DispatchError, NotAuthenticated, NotFound, RateLimited
from dispatch.fanout import Fanout
from dispatch.gathering import Gathering
from dispatch.hints import Entry
from dispatch.hub import Hub, OnlineMechanic
from dispatch.mechanics import Mechanics, Status, gone
from dispatch.pacing import have_unread, until_read
from dispatch.presence import PresenceRegistry
from dispatch.protocol import (
    MAX_SERVER_FRAME_BYTES,
    SNAPSHOT_OFFERS,
    AdminSnapshot,
    AnyClientFrame,
    AssignmentCancel,
    AvailabilitySet,
    BoardState,
    BoardWatch,
    ChatHistory,
    ChatSend,
    CloseCode,
    CustomerSnapshot,
    Favorite,
    Hello,
    MechanicSnapshot,
    MechanicUnwatch,
    MechanicWatch,
    NodeState,
    Offer,
    OfferAccept,
    OfferDecline,
    OfferLost,
    OfferSeen,
    OfferWon,
    Ok,
    PaymentState,
    Ping,
    RequestCancel,
    RequestWiden,
    ServerFrame,
    SessionEnd,
    SessionJoin,
    TokenRefresh,
    Welcome,
    WorkshopMechanic,
    WorkshopSnapshot,
    fitting,
    timestamp,
)
from dispatch.store import Arrivals, Store
from dispatch.tasks import Tasks
from dispatch.timers import Clock
from dispatch.websocket import Connection, Limits

MAX_WATCHED: Final = 50
_LIST_BYTES: Final = MAX_SERVER_FRAME_BYTES - 8 * 1024  # room for the rest of a snapshot
MAX_SOCKETS: Final = 32  # of one user at one node

# What customers who connect have going on, and the favourites and moved money of who has some.
_Customers = tuple[Arrivals, dict[UUID, list[Favorite]], dict[UUID, list[PaymentState]]]


class Gateway:
    """The other side of every socket of this node."""

    def __init__(
        self,
        config: Config,
        node_id: UUID,
        store: Store,
        board: Board,
        hub: Hub,
        fanout: Fanout,
        dispatcher: Dispatcher,
        chats: Chats,
        presence: PresenceRegistry,
        mechanics: Mechanics,
        clock: Clock,
        authenticator: Authenticator,
        tasks: Tasks,
        *,
        up_to_date: Callable[[], Awaitable[None]],
    ) -> None:
        """`up_to_date` returns once the board can be trusted."""
        self.node_id = node_id
        self.draining = False
        self.allowed_origins = frozenset(config.allowed_origins)
        self.trusted_proxies = frozenset(config.trusted_proxies)
        self.rate_messages = config.rate_messages
        self.rate_connects = config.rate_connects
        self._store = store
        self._board = board
        self._hub = hub
        self._fanout = fanout
        self._dispatcher = dispatcher
        self._chats = chats
        self._presence = presence
        self._clock = clock
        self._authenticator = authenticator
        self._tasks = tasks
        self._up_to_date = up_to_date
        self._pacing: dict[UUID, asyncio.Task[None]] = {}
        self._arrivals: Gathering[Arrivals] = Gathering(store.arrivals, "read-arrivals")
        self._customers: Gathering[_Customers] = Gathering(self._read_customers, "read-customers")
        # Reads of presence one after the other: whoever is told later is told what is newer.
        self._statuses: Gathering[dict[UUID, Status]] = Gathering(
            mechanics.statuses, "read-statuses"
        )

    def now(self) -> datetime:
        """The database's time."""
        return self._clock.now()

    async def identify(self, connection: Connection, token: str) -> Identity:
        """Who comes with this token. Raises NotAuthenticated or Unavailable.

        What is read of a mechanic for this is what her welcome needs, too: it waits in the
        connection's `state`.
        """
        identity = await self._authenticator.verify(token)
        if identity.role is not Role.MECHANIC:
            return await self._authenticator.check(identity)
        arrivals = await self._read_arrivals(identity.user_id)
        judge(identity, arrivals.accounts.get(identity.user_id))
        connection.state = arrivals
        return identity

    # --- coming and going

    async def connected(self, connection: Connection, device: str | None) -> None:
        """Registers the connection and sends its welcome, unless its user has too many."""
        if len(self._hub.sockets_of(connection.user_id)) >= MAX_SOCKETS:
            connection.close(CloseCode.FLOOD, "too many connections of this user")
            return
        await self._up_to_date()
        match connection.role:
            case Role.MECHANIC:
                await self._welcome_mechanic(connection, device)
            case Role.CUSTOMER:
                await self._welcome_customer(connection)
            case Role.WORKSHOP:
                await self._welcome_workshop(connection)
            case Role.ADMIN:
                await self._welcome_admin(connection)
            case _ as unreachable:
                assert_never(unreachable)

    def disconnected(self, connection: Connection) -> None:
        """Forgets the connection; its user's leave is told after the grace."""
        self._hub.remove(connection)
        if connection.role is Role.MECHANIC:
            self._presence.leave(connection.user_id, connection.connection_id)

    async def _welcome_mechanic(self, connection: Connection, device: str | None) -> None:
        arrivals, connection.state = connection.state, None
        if self._fanout.is_behind:
            arrivals = await self._read_arrivals(connection.user_id)
        facts = arrivals.facts.get(connection.user_id)
        if facts is None:
            raise NotAuthenticated("no such mechanic")
        self._learn(arrivals)
        if connection.closing:
            return
        candidate = self._fanout.facts_with_sessions(facts.candidate)
        already_here = self._hub.mechanic(connection.user_id)
        if already_here is not None:
            self._fanout.hasten(already_here)
        mechanic = self._hub.add_mechanic(connection, candidate, facts.changed_at)
        if mechanic.candidate.approved:
            self._presence.join(
                connection.user_id,
                connection.role,
                connection.connection_id,
                device,
                mechanic.candidate.workshop_id,
            )
        now = self.now()
        ranked = self._fanout.ranked(mechanic)
        offers = self._snapshot_offers(mechanic, ranked)
        rest = ranked[len(offers) :]
        sessions = self._board.of_mechanic(connection.user_id)
        self._chats.follow(sessions, arrivals.said)
        snapshot = MechanicSnapshot(
            available=mechanic.candidate.available,
            offers=cast(list[Offer], offers),  # that is what they are, encoded
            more_offers=bool(rest),
            sessions=[frames.session_state(entry, Role.MECHANIC, now) for entry in sessions],
        )
        connection.offers_sent += len(offers)
        connection.send_frame(self._welcome(connection, snapshot))
        if rest:
            self.pace(mechanic, rest, only_to=connection)

    async def _read_arrivals(self, user_id: UUID) -> Arrivals:
        """Read again where this node stood still meanwhile."""
        while True:
            await self._up_to_date()
            arrivals = await self._arrivals.get(user_id)
            if not self._fanout.is_behind:
                return arrivals

    def _snapshot_offers(self, mechanic: OnlineMechanic, ranked: list[Entry]) -> list[Raw]:
        """The first offers of a snapshot: at most 50, and no more than a frame may hold."""
        offers: list[Raw] = []
        size = 0
        for entry in ranked[:SNAPSHOT_OFFERS]:
            offer = self._fanout.offer_for(mechanic, entry)
            size += len(offer) + 1
            if size > _LIST_BYTES:
                break
            offers.append(Raw(offer))
            self._fanout.note_shown(mechanic, entry)
        return offers

    def pace(
        self, mechanic: OnlineMechanic, rest: list[Entry], only_to: Connection | None = None
    ) -> None:
        """Sends more cards than should be written at once, as fast as they are read.

        To all devices of a mechanic what is new to her, one such round at a time; to one device
        what did not fit its welcome.
        """
        pacing = self._tasks.spawn(self._send_rest(mechanic, rest, only_to), "offers-paced")
        if only_to is None:
            before = self._pacing.get(mechanic.candidate.mechanic_id)
            if before is not None:
                before.cancel()  # what it had not sent yet is in this one
            self._pacing[mechanic.candidate.mechanic_id] = pacing
            pacing.add_done_callback(partial(self._paced, mechanic.candidate.mechanic_id))

    def _paced(self, mechanic_id: UUID, pacing: asyncio.Task[None]) -> None:
        if self._pacing.get(mechanic_id) is pacing:
            del self._pacing[mechanic_id]

    async def _send_rest(
        self, mechanic: OnlineMechanic, rest: list[Entry], only_to: Connection | None
    ) -> None:
        to = None if only_to is None else (only_to,)
        for number, entry in enumerate(rest):
            await self._up_to_date()
            sockets = to or tuple(mechanic.sockets)
            if number % SNAPSHOT_OFFERS == SNAPSHOT_OFFERS - 1 or have_unread(sockets):
                await until_read(sockets)
            if not mechanic.sockets or (only_to is not None and only_to.closing):
                return
            current = self._board.get(entry.booking.request_id)
            if current is not None:
                self._fanout.show(mechanic, current, to)

    async def _read_customers(self, user_ids: Sequence[UUID]) -> _Customers:
        """The arrivals last: they are what others may change meanwhile."""
        chosen = await favorites.of_customers(self._store.pool, user_ids)
        paid = await customer_payments.of_customers(self._store.pool, user_ids)
        return await self._store.arrivals(user_ids), chosen, paid

    async def _welcome_customer(self, connection: Connection) -> None:
        arrivals, chosen, paid = await self._customers.get(connection.user_id)
        self._learn(arrivals)
        if connection.closing:
            return
        self._hub.add(connection)
        self._chats.follow(arrivals.entries, arrivals.said)
        now = self.now()
        entries = self._board.of_customer(connection.user_id)
        entries += self._ended(connection.user_id, arrivals.entries)
        entries.sort(key=lambda entry: entry.booking.created_at, reverse=True)
        wanted = chosen.get(connection.user_id, [])
        requests = fitting(map(self._fanout.request_state, entries), _LIST_BYTES // 4)
        sessions = [
            frames.session_state(entry, Role.CUSTOMER, now) for entry in entries[: len(requests)]
        ]
        shown = fitting(wanted, _LIST_BYTES // 4)
        snapshot = CustomerSnapshot(
            requests=requests,
            sessions=sessions,
            favorites=shown,
            payments=fitting(paid.get(connection.user_id, []), _LIST_BYTES // 4),
            more_requests=len(requests) < len(entries),
            more_favorites=len(shown) < len(wanted),
        )
        connection.send_frame(self._welcome(connection, snapshot))

    def _ended(self, customer_id: UUID, read: Iterable[Entry]) -> list[Entry]:
        """Those of her bookings that ended. As they were just read, for what she has done since
        (rated, chosen a favourite) is no change of them; or as the board knows that they ended."""
        hers = {e.booking.request_id: e for e in read if e.booking.customer_id == customer_id}
        ended = {entry.booking.request_id: entry for entry in self._board.ended(hers)}
        return [
            hers[key] if hers[key].booking.version == entry.booking.version else entry
            for key, entry in ended.items()
        ]

    async def _welcome_workshop(self, connection: Connection) -> None:
        people = await self._store.workshop_people(connection.user_id)
        presence = await self._presence.look_up([row["id"] for row in people])
        entries = await self._store.sessions_of_workshop(connection.user_id)
        if connection.closing:
            return
        self._hub.add(connection)
        now = self.now()
        mechanics = [
            WorkshopMechanic(
                mechanic_id=row["id"],
                name=row["name"],
                is_online=presence[row["id"]].presence is Presence.ONLINE,
                available=row["available"],
            )
            for row in people
        ]
        sessions = [frames.session_state(entry, Role.WORKSHOP, now) for entry in entries]
        shown, under_way = (
            fitting(mechanics, _LIST_BYTES // 2),
            fitting(sessions, _LIST_BYTES // 2),
        )
        snapshot = WorkshopSnapshot(
            mechanics=shown,
            sessions=under_way,
            more_mechanics=len(shown) < len(mechanics),
            more_sessions=len(under_way) < len(sessions),
        )
        connection.send_frame(self._welcome(connection, snapshot))

    async def _welcome_admin(self, connection: Connection) -> None:
        nodes = await self._store.nodes()
        if connection.closing:
            return
        self._hub.add(connection)
        requests = fitting(map(self._fanout.request_state, self._board), _LIST_BYTES)
        snapshot = AdminSnapshot(
            requests=requests,
            more_requests=len(requests) < len(self._board),
            nodes=[NodeState(node_id=row["node_id"], clients=row["clients"]) for row in nodes],
        )
        connection.send_frame(self._welcome(connection, snapshot))

    def _learn(self, arrivals: Arrivals) -> None:
        """What was just read may be newer than the board."""
        for entry in arrivals.entries:
            self._fanout.apply(entry)

    def _welcome(
        self,
        connection: Connection,
        snapshot: MechanicSnapshot | CustomerSnapshot | WorkshopSnapshot | AdminSnapshot,
    ) -> Welcome:
        return Welcome(
            re=connection.hello_id,
            user_id=connection.user_id,
            role=connection.role,
            connection_id=connection.connection_id,
            node_id=self.node_id,
            server_time=timestamp(self.now()),
            heartbeat_seconds=Limits().ping_seconds,
            snapshot=snapshot,
        )

    # --- frames

    def handled(self, connection: Connection, frame: AnyClientFrame) -> bool:
        """An accept that is lost by what the board knows is answered without waiting for a turn."""
        if not isinstance(frame, OfferAccept):
            return False
        answer = self._dispatcher.lost(connection.user_id, frame.offer_id)
        if answer is None:
            return False
        connection.send_frame(_verdict(frame, answer))
        return True

    async def received(self, connection: Connection, frame: AnyClientFrame) -> None:
        """Handles one frame that this role may send, and answers it."""
        answer = await self._handle(connection, frame)
        if answer is not None:
            connection.send_frame(answer)

    async def _handle(self, connection: Connection, frame: AnyClientFrame) -> ServerFrame | None:
        user_id, re = connection.user_id, frame.id
        dispatcher = self._dispatcher
        match frame:
            case OfferAccept():
                with self._fanout.answering(frame.offer_id, connection):
                    answer = await dispatcher.accept(user_id, frame.offer_id, frame.accept_id)
                return _verdict(frame, answer)
            case OfferSeen():
                for offer_id in frame.all_ids():
                    await dispatcher.seen(user_id, offer_id)
                return None
            case OfferDecline():
                await dispatcher.decline(user_id, frame.offer_id, frame.reason)
                return Ok(re=re)
            case AvailabilitySet():
                facts = await dispatcher.set_available(user_id, frame.available)
                connection.send_frame(Ok(re=re))
                dispatcher.tell_facts(facts)
                return None
            case AssignmentCancel():
                await dispatcher.cancel_assignment(user_id, frame.session_id, frame.reason)
                return Ok(re=re)
            case RequestCancel():
                await dispatcher.cancel(user_id, frame.request_id, frame.refund_as)
                return Ok(re=re)
            case RequestWiden():
                await dispatcher.widen(user_id, frame.request_id)
                return Ok(re=re)
            case SessionJoin():
                entry = await dispatcher.join(user_id, connection.role, frame.session_id)
                return frames.session_state(entry, connection.role, self.now(), re)
            case SessionEnd():
                entry = await dispatcher.end(user_id, frame.session_id)
                return frames.session_state(entry, connection.role, self.now(), re)
            case ChatSend():
                message_id = frame.client_message_id
                await self._chats.say_from(connection, frame.session_id, message_id, frame.body, re)
                return None
            case ChatHistory():
                return await self._chat_history(connection, frame)
            case BoardWatch():
                return self._board_state(connection, re)
            case MechanicWatch():
                return await self._watch(connection, frame)
            case MechanicUnwatch():
                self._hub.unwatch(connection, frame.mechanic_id)
                return await self._presence_of(frame.mechanic_id, re)
            case TokenRefresh():
                return await self._refresh(connection, frame)
            case Hello() | Ping():
                raise AssertionError("answered by the websocket layer")
            case _ as unreachable:
                assert_never(unreachable)

    async def _chat_history(self, connection: Connection, frame: ChatHistory) -> ServerFrame:
        if have_unread((connection,)):
            await until_read((connection,))
        return await self._chats.history(
            connection.user_id,
            frame.session_id,
            after=frame.after,
            limit=frame.limit,
            re=frame.id,
        )

    def _board_state(self, connection: Connection, re: str | None) -> ServerFrame:
        """From now on the connection is told each change of the board; how it is now."""
        self._hub.watch_board(connection)
        entries = sorted(self._board, key=lambda entry: entry.booking.created_at)
        requests = fitting(map(self._fanout.board_request, entries), _LIST_BYTES)
        return BoardState(
            re=re,
            requests=requests,
            more_requests=len(requests) < len(entries),
            server_time=timestamp(self.now()),
        )

    async def _watch(self, connection: Connection, frame: MechanicWatch) -> ServerFrame:
        if self._hub.watched_by(connection) >= MAX_WATCHED:
            raise RateLimited("too many mechanics are watched")
        # Before it is read, so that no change falls between the two.
        self._hub.watch(connection, frame.mechanic_id)
        try:
            return await self._presence_of(frame.mechanic_id, frame.id)
        except DispatchError:  # who is told no watches nobody
            if not connection.closing:
                self._hub.unwatch(connection, frame.mechanic_id)
            raise

    async def _presence_of(self, mechanic_id: UUID, re: str | None) -> ServerFrame:
        status = (await self._statuses.get(mechanic_id)).get(mechanic_id)
        if status is None:
            raise NotFound("no such mechanic")
        return status.frame(re)

    async def tell_watchers(self, mechanic_id: UUID) -> None:
        """A mechanic came, went or changed: whoever watches her here gets her presence.

        Of one who was deleted it is the last, and nobody watches her afterwards.
        """
        if not self._hub.watchers_of(mechanic_id):
            return
        status = (await self._statuses.get(mechanic_id)).get(mechanic_id)
        frame = gone(mechanic_id) if status is None else status.frame()
        for socket in self._hub.watchers_of(mechanic_id):
            socket.send_frame(frame)
            if status is None:
                self._hub.unwatch(socket, mechanic_id)

    async def _refresh(self, connection: Connection, frame: TokenRefresh) -> ServerFrame:
        identity = await self._authenticator.authenticate(frame.token)
        if (identity.user_id, identity.role) != (connection.user_id, connection.role):
            raise NotAuthenticated("the token is somebody else's")
        connection.expires_at = identity.expires_at
        connection.epoch = identity.epoch
        return Ok(re=frame.id)


def _verdict(frame: OfferAccept, answer: Answer) -> ServerFrame:
    if answer.reason is not None:
        return OfferLost(
            re=frame.id, offer_id=frame.offer_id, accept_id=frame.accept_id, reason=answer.reason
        )
    assert answer.request_id is not None
    assert answer.session_id is not None
    return OfferWon(
        re=frame.id,
        offer_id=frame.offer_id,
        request_id=answer.request_id,
        session_id=answer.session_id,
        accept_id=frame.accept_id,
    )
