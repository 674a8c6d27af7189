"""Clients of `dispatch.v1` over real websockets: a mechanic and a customer.

A client keeps one connection until it is closed: it reconnects with jittered backoff, obeys
`drain`, takes each `welcome` snapshot as the whole truth, and records every frame that it sends and
receives. What it *wants* is decided elsewhere (`behaviour`, `booking`). Imports `history` only.
A call whose connection goes away raises `ConnectionLost`, one that is not answered `NoAnswer`; a
server that refuses the token ends `run` with `Refused`.
"""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from loadtest.history import Connected, Frame, History, Lost, Received, Sent

ANSWER_SECONDS = 15.0
BACKOFF_SECONDS, BACKOFF_CAP_SECONDS = 0.1, 5.0
ACCEPT_TRIES = 12
SEEN_AT_ONCE = 100
NOT_AUTHENTICATED = 4401


class ConnectionLost(Exception):
    """The connection went away before the answer came, or there is none now."""


class NoAnswer(Exception):
    """The connection lives, but the answer did not come in time."""


class Refused(Exception):
    """The server does not take this token."""


class Client:
    """One device of one user. `run` it in a task of its own; `close` ends that task.

    `online` from each `welcome` until its connection is lost; `faults` are errors of our own in
    what it was told to do.
    """

    def __init__(
        self,
        url: str,
        who: str,
        token: str,
        history: History,
        rng: random.Random,
        *,
        says_hello: bool = False,
    ):
        """`says_hello` sends the token as the first frame instead of as a header."""
        self.who = who
        self.rng = rng
        self.online = False
        self.connection = 0
        self._url, self._token, self.history = url, token, history
        self._says_hello = says_hello
        self._socket: ClientConnection | None = None
        self._asked: dict[str, asyncio.Future[Frame]] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._closing = asyncio.Event()
        self._away_until = 0.0
        self._left = False
        self._frames = 0
        self.faults: list[BaseException] = []
        self._tasks: set[asyncio.Task[None]] = set()

    # What a subclass adds.

    def welcomed(self, snapshot: Frame) -> None:
        """The snapshot is the whole truth now."""

    def took(self, frame: Frame) -> None:
        """A change to it arrived."""

    # The connection.

    async def run(self) -> None:
        """Connects, and connects again, until `close`. Raises `Refused`."""
        failures = 0
        while not self._closing.is_set():
            try:
                await self._one_connection()
                failures = 0
            except InvalidStatus as refusal:
                if refusal.response.status_code in (400, 401, 403):
                    raise Refused(f"{self.who}: {refusal}") from refusal
                failures += 1
            except (OSError, TimeoutError, WebSocketException):
                failures += 1
            await self._pause(failures)

    async def close(self) -> None:
        """Ends the connection normally and whatever the client was doing."""
        self._closing.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._socket is not None:
            self._left = True
            await self._socket.close()

    def hang_up(self, away_seconds: float = 0.0) -> None:
        """Loses the connection without a goodbye, as a tunnel would; comes back later."""
        self._away_until = asyncio.get_running_loop().time() + away_seconds
        if self._socket is not None:
            self._left = True
            self._socket.transport.abort()
            self._socket, self.online = None, False

    async def _one_connection(self) -> None:
        headers = {} if self._says_hello else {"Authorization": f"Bearer {self._token}"}
        socket = await connect(
            self._url,
            additional_headers=headers,
            subprotocols=[Subprotocol("dispatch.v1.json")],
            compression=None,
            proxy=None,
            max_size=256 * 1024,
            close_timeout=2,
        )
        self._socket, self._left = socket, False
        self.connection = self.history.next_connection()
        self.history.add(Connected(self.history.now(), self.who, self.connection))
        try:
            if self._says_hello:
                await self.send("hello", token=self._token, client="loadtest")
            async for message in socket:
                self._take(msgspec.json.decode(message, type=dict[str, Any]))
        except ConnectionClosed:
            pass
        finally:
            self._gone(socket)
        if socket.close_code == NOT_AUTHENTICATED:
            raise Refused(f"{self.who}: closed {NOT_AUTHENTICATED}")

    def _gone(self, socket: ClientConnection) -> None:
        self._socket, self.online = None, False
        now = self.history.now()
        self.history.add(Lost(now, self.who, self.connection, socket.close_code, self._left))
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ConnectionLost())
        self._asked.clear()
        self._beat()

    async def _pause(self, failures: int) -> None:
        away_seconds = self._away_until - asyncio.get_running_loop().time()
        if away_seconds <= 0:
            ceiling = min(BACKOFF_CAP_SECONDS, BACKOFF_SECONDS * 2.0**failures)
            away_seconds = self.rng.uniform(0, ceiling)
        # Not wait_for: in Python 3.11 it can swallow a cancellation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(away_seconds):
                await self._closing.wait()

    def _drain(self, frame: Frame) -> None:
        """Leaves when told to; the server's own close may come first and changes nothing."""
        delay_seconds = frame["reconnect_after_ms"] / 1000
        self._away_until = asyncio.get_running_loop().time() + delay_seconds
        socket = self._socket

        async def leave() -> None:
            await asyncio.sleep(delay_seconds)
            if socket is not None and socket is self._socket:
                self._left = True
                await socket.close()

        self.start(leave())

    # Frames.

    async def send(self, kind: str, **fields: Any) -> str:
        """Sends one frame and returns the `id` that it carried. Raises `ConnectionLost`."""
        frame = self._frame(kind, fields)
        await self._write(frame)
        return str(frame["id"])

    async def ask(self, kind: str, **fields: Any) -> Frame:
        """Sends one frame and returns its answer, which may be an `error` frame.

        Raises `ConnectionLost` or `NoAnswer`; then it is unknown whether it was done.
        """
        frame = self._frame(kind, fields)
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._asked[frame["id"]] = answer
        try:
            await self._write(frame)
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            raise NoAnswer(f"{self.who}: {kind}") from None
        finally:
            self._asked.pop(frame["id"], None)

    def _frame(self, kind: str, fields: Frame) -> Frame:
        self._frames += 1
        return {"type": kind, "id": str(self._frames)} | fields

    async def _write(self, frame: Frame) -> None:
        socket = self._socket
        if socket is None:
            raise ConnectionLost
        recorded = frame | {"token": "***"} if "token" in frame else frame
        self.history.add(Sent(self.history.now(), self.who, self.connection, recorded))
        try:
            await socket.send(msgspec.json.encode(frame), text=True)
        except ConnectionClosed:
            raise ConnectionLost from None

    def _take(self, frame: Frame) -> None:
        self.history.add(Received(self.history.now(), self.who, self.connection, frame))
        match frame.get("type"):
            case "welcome":
                self.online = True
                self.welcomed(frame["snapshot"])
            case "drain":
                self._drain(frame)
            case _:
                self.took(frame)
        asked = self._asked.get(str(frame.get("re")))
        if asked is not None and not asked.done():
            asked.set_result(frame)
        self._beat()

    # Waiting and doing.

    def _beat(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, holds: Callable[[], bool], limit_seconds: float) -> bool:
        """Waits, frame by frame, until `holds()`. False when the limit came first."""
        try:
            async with asyncio.timeout(limit_seconds):
                while not holds():
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiter)
                    await waiter
        except TimeoutError:
            return holds()
        return True

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` in a task that lives no longer than the client."""

        async def quietly() -> None:
            try:
                await work
            except (ConnectionLost, NoAnswer):
                return  # The history has both; whoever needs the answer asks again.

        task = asyncio.create_task(quietly(), name=f"{type(self).__name__} {self.who}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self.faults.append(fault)


class Mechanic(Client):
    """Shows the cards it is offered and calls `on_offer` whenever there is one to look at.

    `offers` are the cards shown now, `considered` those of them that were decided about, and
    `session_id` the live session that she holds, if any.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.offers: dict[str, Frame] = {}
        self.session_id: str | None = None
        self.acknowledges = True
        self.considered: set[str] = set()
        self._unseen: list[str] = []
        self.on_offer: Callable[[Mechanic], Coroutine[Any, Any, None]] | None = None

    def welcomed(self, snapshot: Frame) -> None:
        self.offers.clear()
        self._unseen.clear()
        self.considered &= {offer["offer_id"] for offer in snapshot["offers"]}
        live = [s for s in snapshot["sessions"] if s["status"] in ("pending", "accepted", "active")]
        self.session_id = live[0]["session_id"] if live else None
        for offer in snapshot["offers"]:
            self._show(offer)

    def took(self, frame: Frame) -> None:
        match frame.get("type"):
            case "offer":
                self._show(frame)
            case "offer.won":
                self._hide(frame["offer_id"])
                self.session_id = frame["session_id"]
            case "offer.lost" | "offer.revoked":
                self._hide(frame["offer_id"])
            case "session.status":
                over = frame["status"] in ("completed", "cancelled", "expired")
                if over and frame["session_id"] == self.session_id:
                    self.session_id = None

    def _show(self, offer: Frame) -> None:
        offer_id = offer["offer_id"]
        self.offers[offer_id] = offer
        if self.acknowledges:
            if not self._unseen:
                self.start(self._acknowledge())
            self._unseen.append(offer_id)
        if self.on_offer is not None:
            self.start(self.on_offer(self))

    def _hide(self, offer_id: str) -> None:
        self.offers.pop(offer_id, None)
        self.considered.discard(offer_id)

    async def _acknowledge(self) -> None:
        """One frame for all cards that came in one go."""
        while self._unseen:
            seen, self._unseen = self._unseen[:SEEN_AT_ONCE], self._unseen[SEEN_AT_ONCE:]
            await self.send("offer.seen", offer_ids=seen)

    async def accept(self, offer_id: str, *, loses_first_reply: bool = False) -> Frame | None:
        """Accepts until there is a verdict, with one `accept_id` for all tries.

        After an error or a lost connection the same `accept_id` goes out again, on whatever
        connection there is then. None when no verdict came in `ACCEPT_TRIES`.
        """
        accept_id = str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        for attempt in range(ACCEPT_TRIES):
            if not await self.until(lambda: self.online, ANSWER_SECONDS):
                continue
            try:
                if loses_first_reply and attempt == 0:
                    await self.send("offer.accept", offer_id=offer_id, accept_id=accept_id)
                    await asyncio.sleep(self.rng.uniform(0, 0.01))
                    self.hang_up(self.rng.uniform(0.05, 0.4))
                    await self.until(lambda: not self.online, ANSWER_SECONDS)
                    continue
                verdict = await self.ask("offer.accept", offer_id=offer_id, accept_id=accept_id)
            except ConnectionLost:
                continue
            except NoAnswer:
                self.hang_up()
                continue
            if verdict["type"] != "error":
                return verdict
            await asyncio.sleep(self.rng.uniform(0.1, 0.5))
        return None


class Customer(Client):
    """Keeps the highest version of each of its requests and sessions."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.requests: dict[str, Frame] = {}
        self.sessions: dict[str, Frame] = {}

    def welcomed(self, snapshot: Frame) -> None:
        for request in snapshot["requests"]:
            _keep_newest(self.requests, request["request_id"], request)
        for session in snapshot["sessions"]:
            _keep_newest(self.sessions, session["session_id"], session)

    def took(self, frame: Frame) -> None:
        match frame.get("type"):
            case "request.status":
                _keep_newest(self.requests, frame["request_id"], frame)
            case "session.status":
                _keep_newest(self.sessions, frame["session_id"], frame)


def _keep_newest(shelf: dict[str, Frame], key: str, frame: Frame) -> None:
    held = shelf.get(key)
    if held is None or frame["version"] >= held["version"]:
        shelf[key] = frame
