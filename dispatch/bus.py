"""Node to node over Redis pub/sub: hints that save time.

One job: carry each node's hints to every other node, and know when that does not work. Pub/sub
loses messages without a word (a connection that comes back, a slow reader, a frozen server), so the
bus proves itself: each second every node publishes a canary and must hear its own, and messages are
numbered, so that a gap is seen at the next one. Whoever may have missed something is told to read
again from Postgres (`resync`). Imports `hints`, `redis_link` and `errors`.

Redis away is no failure of the bus: `run` tries again for ever, and `degraded` says so. What
`receive` or `resync` raise is a bug and ends `run`.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final
from uuid import UUID

import msgspec

from dispatch.errors import Unavailable
from dispatch.hints import Envelope, Hint, decode, encode
from dispatch.redis_link import Link

CANARY_SECONDS: Final = 1.0
SILENT_SECONDS: Final = 3.0  # without our own canary: degraded
RETRY_SECONDS: Final = (0.1, 0.5)
PACE_SECONDS: Final = 0.002  # between messages while there is more to say; a round trip costs 50 µs
BUFFERED_HINTS: Final = 10_000  # while Redis is away; then the oldest go
ENVELOPE_HINTS: Final = 1_000  # decoding more would hold a reader's loop for milliseconds
KNOWN_NODES: Final = 1_000
COMPLAINT_SECONDS: Final = 60.0

log = logging.getLogger(__name__)


_HEAD_BYTES: Final = 64  # of an envelope: the sender's id is in it


class Bus:
    """This node's end of the channel `dispatch:{namespace}:hints`.

    `receive` gets the hints of one message of another node, in its order; never our own, which
    were applied here when they were made. `resync` says that hints may have been missed, by us or
    of us. Both are called on the loop and must be quick.
    """

    def __init__(
        self,
        redis_url: str,
        namespace: str,
        node_id: UUID,
        receive: Callable[[list[Hint]], None],
        resync: Callable[[], None],
    ) -> None:
        self._channel = f"dispatch:{namespace}:hints"
        self._node_id = node_id
        self._receive = receive
        self._resync = resync
        self._mouth = Link(redis_url)
        self._ear = Link(redis_url)
        self._name = encode(node_id)  # as it stands at the beginning of what we said ourselves
        self._buffer: deque[Hint] = deque(maxlen=BUFFERED_HINTS)
        self._something_to_say = asyncio.Event()
        self._seq = 0
        self._said_at = -PACE_SECONDS
        self._last_seqs: dict[UUID, int] = {}
        self._heard_ourselves_at: float | None = None  # on the present subscription
        self._lost = False
        self._complained_at = -COMPLAINT_SECONDS

    @property
    def degraded(self) -> bool:
        """True until our own canary was heard, and again when it stays away for 3 s."""
        heard_at = self._heard_ourselves_at
        return heard_at is None or time.monotonic() - heard_at > SILENT_SECONDS

    def publish(self, hint: Hint) -> None:
        """Send it, with whatever else is published in the same two milliseconds; never waits or
        raises.

        While Redis is away hints are kept. Beyond 10,000 the oldest is dropped and its place in
        the numbering left empty: the other nodes see the gap and read again from Postgres.
        """
        if len(self._buffer) == BUFFERED_HINTS:
            self._seq += 1
        self._buffer.append(hint)
        self._something_to_say.set()

    async def run(self) -> None:
        """Speak and listen until cancelled, whatever becomes of Redis."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._speak(), name="bus-speak")
                tasks.create_task(self._listen(), name="bus-listen")
        finally:
            self._heard_ourselves_at = None
            await self._mouth.close()
            await self._ear.close()

    async def close(self) -> None:
        """After `run` was cancelled: say what is left to say, if Redis is there to hear it."""
        if not self._buffer:
            return
        try:
            await self._mouth.open()
            await self._say_everything()
        except Unavailable as error:
            self._lose(error)
        await self._mouth.close()

    # --- speaking ---------------------------------------------------------------------------------

    async def _speak(self) -> None:
        may_be_unheard = False
        while True:
            try:
                await self._mouth.open()
                if may_be_unheard:
                    may_be_unheard = False
                    self._resync()
                while True:
                    await self._say_everything()
                    await self._wait_for_hints()
                    await self._gather_more()
            except Unavailable as error:
                may_be_unheard = True
                self._lose(error)
            await asyncio.sleep(random.uniform(*RETRY_SECONDS))

    async def _say_everything(self) -> None:
        self._said_at = time.monotonic()
        # A message that was not confirmed is not sent again: its number is used up, and whoever
        # missed it sees the gap.
        await self._mouth.ask(*(("PUBLISH", self._channel, data) for data in self._gather()))

    def _gather(self) -> list[bytes]:
        """Everything that was published since the last time; a canary when that is nothing."""
        self._something_to_say.clear()
        hints = list(self._buffer)
        self._buffer.clear()
        return [
            self._envelope(hints[start : start + ENVELOPE_HINTS])
            for start in range(0, max(len(hints), 1), ENVELOPE_HINTS)
        ]

    def _envelope(self, hints: list[Hint]) -> bytes:
        self._seq += 1
        return encode(Envelope(self._node_id, self._seq, hints))

    async def _wait_for_hints(self) -> None:
        try:
            async with asyncio.timeout(CANARY_SECONDS):
                await self._something_to_say.wait()
        except TimeoutError:
            return  # time for a canary

    async def _gather_more(self) -> None:
        """Who speaks after a silence is not kept waiting; those who follow at once go together."""
        pause_seconds = self._said_at + PACE_SECONDS - time.monotonic()
        if pause_seconds > 0:
            await asyncio.sleep(pause_seconds)

    # --- listening --------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                await self._ear.open()
                await self._ear.subscribe(self._channel)
                await self._hear()
            except Unavailable as error:
                self._lose(error)
            self._heard_ourselves_at = None
            await asyncio.sleep(random.uniform(*RETRY_SECONDS))

    async def _hear(self) -> None:
        """Until the connection is lost, or silent for so long that it must be (half-open)."""
        last_sound_at = time.monotonic()
        while True:
            message = await self._ear.receive(CANARY_SECONDS)
            if message is None:
                if time.monotonic() - last_sound_at > SILENT_SECONDS - CANARY_SECONDS:
                    await self._ear.close()
                    raise Unavailable("Redis is silent")
                continue
            last_sound_at = time.monotonic()
            if message[0] == b"subscribe":
                self._last_seqs.clear()
                self._resync()
                self._something_to_say.set()  # a canary, to know at once whether it works
            elif message[0] == b"message":
                self._open_envelope(message[2])

    def _open_envelope(self, data: bytes) -> None:
        if self._name in data[:_HEAD_BYTES]:  # what we said ourselves is not decoded
            self._hear_ourselves()
            return
        try:
            envelope = decode(data)
        except msgspec.DecodeError as error:
            self._complain(error)
            return
        if self._is_gap(envelope):
            self._resync()
        if envelope.hints:
            self._receive(envelope.hints)

    def _hear_ourselves(self) -> None:
        if self._heard_ourselves_at is not None and self.degraded:
            self._resync()  # the same subscription came back to life
        self._heard_ourselves_at = time.monotonic()
        if self._lost:
            self._lost = False
            log.info("bus recovered")

    def _is_gap(self, envelope: Envelope) -> bool:
        """A node's first message since we subscribed is none: the resync then covered the rest."""
        if len(self._last_seqs) >= KNOWN_NODES and envelope.node_id not in self._last_seqs:
            self._last_seqs.clear()
            return True
        last = self._last_seqs.get(envelope.node_id)
        self._last_seqs[envelope.node_id] = envelope.seq
        return last is not None and envelope.seq > last + 1

    def _lose(self, error: Unavailable) -> None:
        if not self._lost:
            self._lost = True
            log.warning("bus lost: %s", error.message)

    def _complain(self, error: msgspec.DecodeError) -> None:
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            log.warning("undecodable message on %s: %s", self._channel, error)
