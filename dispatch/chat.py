"""What the two in a session say to each other: stored, then told to every device, in order (S7).

One job: store a message, once however often it is sent, and carry it to the devices of both here.
What is told was committed. Each node knows up to which `seq` it has told a session; a message that
is not the next one waits until what is missing before it was read, and each second what no hint
told is read, too. So every device sees `seq` rise without gaps from when it connected; what was
said before it asks for (`history`). Imports `board`, `hub`, `frames`, `hints`, `protocol`,
`ratelimit`, `database` and `queries`.

It fails with `NotFound` (also for whoever takes no part in the session), `TooLong`, `RateLimited`,
`Conflict` (`not_open`, `session_ended`) and `Unavailable`, after which the same message may be sent
again.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import frames, queries
from dispatch.board import Board
from dispatch.core.lifecycle import LIVE
from dispatch.core.types import Role
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import Conflict, NotFound, RateLimited, TooLong
from dispatch.hints import Entry, Hint, Message, Said
from dispatch.hub import Hub, Socket
from dispatch.pacing import until_read
from dispatch.protocol import MAX_SERVER_FRAME_BYTES, ChatMessages, fitting, prepare
from dispatch.ratelimit import KeyedRate
from dispatch.tasks import Tasks

_SQL: Final = queries.load("chat")

MAX_CHARACTERS: Final = 4000
MAX_MESSAGES: Final = 5000  # of one session
BURST_SECONDS: Final = 3  # as of a connection's messages
_PART: Final = 10  # messages that are told in one go: of the longest 160 KB, which any outbox holds
_LIST_BYTES: Final = MAX_SERVER_FRAME_BYTES - 1024


class Room(Struct):
    """A session with a device here: the `seq` up to which it was told, and the highest that was
    heard of since what is missing was last read."""

    request_id: UUID
    told: int
    heard: int = 0


class Chats:
    """The chats of this node's people."""

    def __init__(
        self,
        pool: Pool,
        board: Board,
        hub: Hub,
        tasks: Tasks,
        *,
        publish: Callable[[Hint], None],
        rate_messages: float,
    ) -> None:
        """`rate_messages`: so many a second may one say in a session here, on all devices."""
        self._pool = pool
        self._board = board
        self._hub = hub
        self._tasks = tasks
        self._publish = publish
        self._rate = KeyedRate(rate_messages, max(1.0, rate_messages * BURST_SECONDS))
        self._rooms: dict[UUID, Room] = {}
        self._fetching: dict[UUID, asyncio.Task[None]] = {}
        # Who waits for the answer to a message of which it is the sender, with the answer's `re`.
        self._asking: dict[tuple[UUID, UUID], dict[Socket, str | None]] = {}

    # --- saying

    async def say(
        self, sender_id: UUID, session_id: UUID, client_message_id: UUID, body: str
    ) -> tuple[Message, bool]:
        """Stores it and tells both; the message, and whether it is new. Sent again, it is the one
        that was stored first."""
        if len(body) > MAX_CHARACTERS:
            raise TooLong(f"a message has at most {MAX_CHARACTERS} characters")
        if not self._rate.take((sender_id, session_id), time.monotonic()):
            raise RateLimited("too many messages")
        async with unavailable_when_lost():
            row = await self._pool.fetchrow(
                _SQL["say"], session_id, sender_id, client_message_id, body, MAX_MESSAGES
            )
        assert row is not None
        _refuse(row["refusal"])
        said = _said(row)
        if row["is_new"]:
            self._publish(said)
        self.hear(said)
        return said.message, row["is_new"]

    async def say_from(
        self,
        socket: Socket,
        session_id: UUID,
        client_message_id: UUID,
        body: str,
        re: str | None,
    ) -> None:
        """The same from a device, which gets the message once, with `re`, and in its turn."""
        key = (session_id, client_message_id)
        asking = self._asking.setdefault(key, {})
        asking[socket] = re
        try:
            message, _ = await self.say(socket.user_id, session_id, client_message_id, body)
            while self._is_behind(message) and self._hub.is_here(socket.user_id):
                await asyncio.shield(self._fetch_soon(session_id))
            if socket in asking:  # it was told before
                socket.send_frame(frames.chat_message(message, re))
        finally:
            asking.pop(socket, None)
            if not asking:
                self._asking.pop(key, None)

    # --- reading

    async def history(
        self, user_id: UUID, session_id: UUID, *, after: int, limit: int, re: str | None = None
    ) -> ChatMessages:
        """What was said after a `seq`, in order: so many, or as many as a frame holds."""
        async with unavailable_when_lost(), self._pool.acquire() as connection:
            if not await connection.fetchval(_SQL["is_participant"], session_id, user_id):
                raise NotFound("no such session")
            rows = await connection.fetch(_SQL["history"], session_id, after, limit + 1)
        shown = (frames.chat_message(_message(row)) for row in rows[:limit])
        messages = fitting(shown, _LIST_BYTES)
        return ChatMessages(
            re=re, session_id=session_id, messages=messages, more=len(messages) < len(rows)
        )

    # --- telling

    def follow(self, entries: Iterable[Entry], said: Mapping[UUID, int]) -> None:
        """Somebody came who is in these bookings, in whose sessions so much had been said: she
        asks for that herself, and is told what comes after it."""
        for entry in entries:
            session_id = entry.booking.session_id
            if entry.booking.status in LIVE:
                room = Room(entry.booking.request_id, said.get(session_id, 0))
                self._rooms.setdefault(session_id, room)

    def hear(self, said: Said) -> None:
        """A message was committed, here or elsewhere: it is told to whom it concerns here, unless
        it was told already, or something before it was not."""
        message = said.message
        if not self._is_here(said.customer_id, said.mechanic_id):
            return
        room = self._rooms.setdefault(message.session_id, Room(said.request_id, 0))
        if message.seq == room.told + 1:
            room.told = message.seq
            self._tell(said)
        elif message.seq > room.told:
            room.heard = max(room.heard, message.seq)
            self._fetch_soon(message.session_id)

    async def reconcile(self) -> None:
        """Tells what no hint has told. Raises `Unavailable`."""
        for entry in self._board.accepted():
            booking = entry.booking
            if self._is_here(booking.customer_id, booking.mechanic_id):
                self._rooms.setdefault(booking.session_id, Room(booking.request_id, 0))
        over = [session_id for session_id, room in self._rooms.items() if self._is_over(room)]
        known = {session_id: room.told for session_id, room in self._rooms.items()}
        if known:
            for said in await self._missing(known):
                self.hear(said)
        for session_id in over:  # nothing is said there any more, or nobody is here to be told
            if session_id not in self._fetching:
                self._rooms.pop(session_id, None)

    def _is_over(self, room: Room) -> bool:
        entry = self._board.get(room.request_id)
        if entry is None or entry.booking.status not in LIVE:
            return True
        return not self._is_here(entry.booking.customer_id, entry.booking.mechanic_id)

    def _is_here(self, customer_id: UUID, mechanic_id: UUID | None) -> bool:
        hub = self._hub
        return hub.is_here(customer_id) or (mechanic_id is not None and hub.is_here(mechanic_id))

    def _is_behind(self, message: Message) -> bool:
        room = self._rooms.get(message.session_id)
        return room is not None and room.told < message.seq

    def _tell(self, said: Said) -> None:
        """To every device of both; to who said it as the answer."""
        message = said.message
        asking = self._asking.get((message.session_id, message.client_message_id), {})
        data = prepare(frames.chat_message(message))
        for socket in self._sockets(said):
            if socket in asking:
                socket.send_frame(frames.chat_message(message, asking.pop(socket)))
            else:
                socket.post(data)

    def _sockets(self, said: Said) -> list[Socket]:
        people = (said.customer_id, said.mechanic_id)
        return [
            socket
            for user_id in people
            if user_id is not None
            for socket in self._hub.sockets_of(user_id)
        ]

    # --- what is missing

    def _fetch_soon(self, session_id: UUID) -> asyncio.Task[None]:
        fetching = self._fetching.get(session_id)
        if fetching is None:
            fetching = self._tasks.spawn(self._fetch(session_id), f"chat of {session_id}")
            self._fetching[session_id] = fetching
        return fetching

    async def _fetch(self, session_id: UUID) -> None:
        """Tells what is missing in a session, as fast as it is read. Raises `Unavailable`."""
        try:
            while (room := self._rooms.get(session_id)) is not None:
                told, room.heard = room.told, 0
                missing = await self._missing({session_id: told})
                for said in missing:
                    self.hear(said)
                if missing and room.told == told:  # nobody is here any more
                    return
                if len(missing) == _PART:
                    await until_read(self._sockets(missing[-1]))
                elif room.heard <= room.told:
                    return
        finally:
            del self._fetching[session_id]

    async def _missing(self, known: Mapping[UUID, int]) -> list[Said]:
        async with unavailable_when_lost():
            rows = await self._pool.fetch(_SQL["missing"], list(known), list(known.values()), _PART)
        return [_said(row) for row in rows]


def _refuse(refusal: str | None) -> None:
    match refusal:
        case None:
            return
        case "not_found":
            raise NotFound("no such session")
        case "rate_limited":
            raise RateLimited(f"a session has at most {MAX_MESSAGES} messages")
        case "session_ended":
            raise Conflict(refusal, "this session has ended")
        case _:
            raise Conflict(refusal, "nobody has this session yet")


def _message(row: asyncpg.Record) -> Message:
    return Message(
        session_id=row["session_id"],
        message_id=row["id"],
        seq=row["seq"],
        client_message_id=row["client_message_id"],
        sender_id=row["sender_id"],
        sender_role=Role(row["sender_role"]),
        body=row["body"],
        sent_at=row["sent_at"],
    )


def _said(row: asyncpg.Record) -> Said:
    return Said(
        request_id=row["request_id"],
        customer_id=row["customer_id"],
        mechanic_id=row["mechanic_id"],
        message=_message(row),
    )
