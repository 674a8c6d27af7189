"""Durable effects: what a transaction decided is done outside the database, by some node, once.

One job: claim rows of `outbox`, deliver them, and try again what did not succeed. A claim is a
lease that is committed before the delivery begins, so a node that dies with one leaves it to the
next; each row's idempotency key makes a second delivery harmless. Imports `database`, `errors` and
`queries`; how a kind is delivered is passed in. The loss of Postgres is logged once and waited for.
A row that cannot be delivered is given up for a person to look at, with an error in the log, and
never stops the others; a kind whose server hangs holds up no other kind.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final

import asyncpg
import msgspec
from msgspec import Struct

from dispatch import queries
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import Refused, Unavailable

log = logging.getLogger(__name__)

_SQL: Final = queries.load("outbox")

LOOK_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 600.0
# Of each kind at once: half of the pool, because people come first. A notification mostly waits for
# somebody else's server, and one that hangs must not keep the others.
CONCURRENCY: Final = {"refund": 4, "transfer": 4, "reversal": 4, "push": 32, "mail": 4, "room": 4}
# Three attempts of Stripe's client and its pauses, all hanging; the lease outlasts it.
DELIVERY_SECONDS: Final = {
    "refund": 90.0,
    "transfer": 90.0,
    "reversal": 90.0,
    "push": 12.0,
    "mail": 60.0,
    "room": 12.0,
}
_OF_STRIPE: Final = timedelta(seconds=120)
LEASE: Final = {
    "refund": _OF_STRIPE,
    "transfer": _OF_STRIPE,
    "reversal": _OF_STRIPE,
    "push": timedelta(seconds=15),
    "mail": timedelta(seconds=75),
    "room": timedelta(seconds=15),
}
# 1 s, 2 s, 4 s … then every hour: most of two days, which outlasts an outage and the day for
# which Stripe repeats a refusal under the same key.
FIRST_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 3600.0
MAX_ATTEMPTS: Final = 54

Payload = dict[str, Any]
Deliver = Callable[[Payload], Awaitable[None]]


class Effect(Struct, frozen=True, kw_only=True):
    """A claimed row. `attempts` counts this one and is the fence of its lease."""

    id: int
    kind: str
    idempotency_key: str
    payload: Payload
    attempts: int


class Outbox:
    """This node's part in delivering; any number of nodes work on the same rows."""

    def __init__(self, pool: Pool, deliver: Mapping[str, Deliver]) -> None:
        """`deliver` by kind: takes the row's payload, returns once it is done for good, raises
        `Unavailable` where trying later is right and `Refused` where that is useless. Doing the
        same payload twice must be harmless.
        """
        self._pool = pool
        self._deliver = deliver
        self._woken = asyncio.Event()
        self._free = {kind: CONCURRENCY[kind] for kind in deliver}
        # Id and attempt of what is being delivered: where the lease of one attempt ended, or it was
        # made due meanwhile, the next may have begun here as well.
        self._under_way: set[tuple[int, int]] = set()
        self._is_away = False

    def wake(self) -> None:
        """Something may be due."""
        self._woken.set()

    async def run(self) -> None:
        """Delivers what is due, until cancelled. What is under way then stays leased."""
        forget_at = time.monotonic()
        async with asyncio.TaskGroup() as deliveries:
            while True:
                self._woken.clear()
                if time.monotonic() >= forget_at:
                    forget_at = time.monotonic() + FORGET_SECONDS
                    await self._forget()
                for effect in await self._claim():
                    self._free[effect.kind] -= 1
                    self._under_way.add((effect.id, effect.attempts))
                    deliveries.create_task(self._attempt(effect), name=effect.idempotency_key)
                # Not wait_for: in Python 3.11 it can swallow a cancellation.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._woken.wait()

    async def close(self) -> None:
        """After `run` was cancelled: gives back what was under way, so that no node need wait for
        the lease. Raises `Unavailable`."""
        async with unavailable_when_lost():
            ids, attempts = zip(*self._under_way, strict=True) if self._under_way else ((), ())
            await self._pool.execute(_SQL["give_back"], list(ids), list(attempts))

    async def _claim(self) -> list[Effect]:
        """As many rows of each kind as can be delivered now; none while Postgres is away."""
        claimed: list[asyncpg.Record] = []
        try:
            for kind, free in self._free.items():
                if free:
                    async with unavailable_when_lost():
                        claimed += await self._pool.fetch(_SQL["claim"], [kind], free, LEASE[kind])
                    self._note_back()
        except Unavailable as error:  # what was claimed before it is delivered all the same
            self._note_away(error)
        return [_effect(row) for row in claimed]

    async def _forget(self) -> None:
        """Notifications, mails and rooms that are settled for a day; money is kept."""
        try:
            async with unavailable_when_lost():
                await self._pool.execute(_SQL["forget"])
        except Unavailable as error:
            self._note_away(error)

    async def _attempt(self, effect: Effect) -> None:
        try:
            await self._settle(effect, await self._try(effect))
            self._under_way.discard((effect.id, effect.attempts))
        except Unavailable as error:  # it stays leased, and is delivered again after the lease
            self._under_way.discard((effect.id, effect.attempts))
            self._note_away(error)
        finally:
            self._free[effect.kind] += 1
            self.wake()

    async def _try(self, effect: Effect) -> "_Failure | None":
        """Delivers; why not, if it did not work."""
        try:
            async with asyncio.timeout(DELIVERY_SECONDS[effect.kind]):
                await self._deliver[effect.kind](effect.payload)
        except Unavailable as error:
            return _Failure(error.message, pause_seconds=error.retry_after_seconds)
        except TimeoutError:
            return _Failure(f"no answer within {DELIVERY_SECONDS[effect.kind]:.0f} s")
        except Refused as refused:
            why = " ".join(filter(None, (refused.message, refused.reason)))
            return _Failure(why, for_good=not refused.mended_by_time)
        except Exception as error:  # a bug in one effect must not keep all the others from money
            log.exception("delivering %s failed", effect.idempotency_key)
            return _Failure(repr(error))
        return None

    async def _settle(self, effect: Effect, failure: "_Failure | None") -> None:
        async with unavailable_when_lost():
            if failure is None:
                await self._pool.execute(_SQL["done"], effect.id)
                return
            key = effect.idempotency_key
            if failure.for_good or effect.attempts >= MAX_ATTEMPTS:
                log.error("%s is given up after %d attempts: %s", key, effect.attempts, failure.why)
                await self._pool.execute(_SQL["give_up"], effect.id, effect.attempts, failure.why)
                return
            if effect.attempts == 1:  # the later ones are in the row
                log.warning("%s is tried again: %s", key, failure.why)
            seconds = max(retry_seconds(effect.attempts), failure.pause_seconds)
            pause = timedelta(seconds=min(seconds, MAX_RETRY_SECONDS))
            await self._pool.execute(_SQL["retry"], effect.id, effect.attempts, pause, failure.why)

    def _note_away(self, error: Unavailable) -> None:
        if not self._is_away:
            self._is_away = True
            log.warning("the outbox waits: %s", error.message)

    def _note_back(self) -> None:
        if self._is_away:
            self._is_away = False
            log.info("the outbox goes on")


class _Failure(Struct, frozen=True):
    why: str
    for_good: bool = False
    pause_seconds: float = 0.0


def _effect(row: asyncpg.Record) -> Effect:
    columns = dict(row)
    columns["payload"] = msgspec.json.decode(columns["payload"], type=Payload)
    return Effect(**columns)


def retry_seconds(attempts: int) -> float:
    """The pause after that many attempts: doubling, bounded, and spread so that nodes disagree."""
    pause = min(FIRST_RETRY_SECONDS * 2.0 ** (attempts - 1), MAX_RETRY_SECONDS)
    return pause * random.uniform(0.5, 1.0)
