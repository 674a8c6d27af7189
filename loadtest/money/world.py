"""Where scenarios happen: one database, two nodes that may die, and one that does not.

One job: keep the processes of a worker alive across scenarios, and the few statements by which
scenarios make people and read what is there. Imports `process`. Bugs that the product logs while
its process is alive are collected here.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Self, cast
from uuid import UUID

import asyncpg
from starlette.applications import Starlette

from dispatch.auth import issue_token
from dispatch.config import Config, load
from dispatch.http import create_app
from dispatch.node import Node
from dispatch.store import Store
from loadtest.money.mortal_stripe import Counter, MortalStripe
from loadtest.money.plan import NODES
from loadtest.money.process import CurrentNode, Process, Time, running

SECRET: Final = "a-secret-of-the-load-test-0123456789"
WEBHOOK_SECRET: Final = "whsec_load_test"
TOKEN_SECONDS: Final = 86_400.0
_LOG: Final = logging.getLogger("dispatch")


def make_config(database_url: str, redis_url: str) -> Config:
    """The configuration of every node here: the product's own but for secrets."""
    return load(
        {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "DISPATCH_JWT_SECRET": SECRET,
            "STRIPE_SECRET_KEY": "sk_test_load_test",
            "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "DISPATCH_PUBLIC_URL": "http://dispatch.example",
        }
    )


@dataclass
class World:
    """One worker's. `counter` is where its processes meet Stripe."""

    config: Config
    policy_id: UUID
    bugs: "Bugs"
    clock: Time = field(default_factory=Time)
    nodes: list[Process | None] = field(default_factory=lambda: [None] * NODES)
    steady: Process = field(init=False)
    app: Starlette = field(init=False)
    counter: Counter = field(init=False)
    deaths: list[str] = field(default_factory=list)
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    async def open(cls, config: Config) -> Self:
        """A world on a database that has the schema."""
        pool = await asyncpg.create_pool(config.database_url, min_size=0, max_size=1)
        policy_id = await Store(pool).keep_policy(config.policy())
        await pool.close()
        world = cls(config, policy_id, Bugs.watching())
        world.steady = await world._start("steady")
        running.set(world.steady)
        world.app = world.steady.app = create_app(cast(Node, CurrentNode()), None)
        return world

    async def close(self) -> None:
        """Every process ends."""
        for process in [self.steady, *filter(None, self.nodes)]:
            await process.close()
        self.bugs.stop()

    async def forget(self) -> None:
        """What an earlier scenario left undone is nobody's any more."""
        await self.db.execute(
            "UPDATE outbox SET failed_at = dispatch_now()"
            " WHERE done_at IS NULL AND failed_at IS NULL"
        )
        await self.db.execute("UPDATE organizations SET stripe_payouts_enabled = false")
        await self.db.execute("UPDATE mechanics SET stripe_payouts_enabled = false")

    async def node(self, number: int) -> Process:
        """The living node of this number: a new one where the last has died."""
        async with self._starting:  # of several who need it now, one starts it
            process = self.nodes[number]
            if process is None or not process.alive:
                if process is not None:
                    self.deaths.append(process.died_at or "")
                    await process.close()
                process = await self._start(f"node {number}")
                self.nodes[number] = process
            return process

    async def _start(self, name: str) -> Process:
        process = await Process.start(
            name,
            self.config,
            self.clock,
            lambda process: MortalStripe(process, lambda: self.counter),
            self.policy_id,
        )
        await self._set_clock(process)
        if hasattr(self, "app"):
            process.app = self.app
        return process

    def now(self) -> float:
        """Seconds by the clock of scenarios."""
        return time.time() + self.clock.offset_seconds

    def skip(self, seconds: float) -> None:
        """The database's clock goes on, and nodes have not measured it yet: theirs are behind."""
        self.clock.offset_seconds += seconds

    async def pass_time(self, seconds: float) -> None:
        """The database's clock goes on; nodes know it as they would after some seconds."""
        self.skip(seconds)
        for process in [self.steady, *filter(None, self.nodes)]:
            if process.alive:
                await self._set_clock(process)

    async def _set_clock(self, process: Process) -> None:
        observer = self.steady if hasattr(self, "steady") else process
        await process.node.clock.measure(observer.pool)

    # --- people, and what is read

    @property
    def db(self) -> asyncpg.Pool:
        """For looking, and for what is no part of the product."""
        return self.steady.pool

    async def slot(self, minutes: int) -> UUID:
        """A slot with one seat that ends so many minutes from now, an hour or ten minutes long."""
        length = timedelta(minutes=60 if minutes > 60 else 10)
        made: UUID = await self.db.fetchval(
            "INSERT INTO slots (starts_at, ends_at, capacity)"
            " SELECT dispatch_now() + $1::interval - $2::interval, dispatch_now() + $1::interval, 1"
            " RETURNING id",
            timedelta(minutes=minutes),
            length,
        )
        return made

    def token(self, user_id: UUID, role: str) -> str:
        """What this user sends with each request."""
        return issue_token(SECRET, user_id, role, 0, TOKEN_SECONDS)


class Bugs(logging.Handler):
    """What the product logs with a traceback: nobody foresaw it. A dying process may say so."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.met: list[str] = []

    @classmethod
    def watching(cls) -> Self:
        """Collects from now on, and keeps the log quiet."""
        bugs = cls()
        _LOG.addHandler(bugs)
        _LOG.propagate = False
        return bugs

    def stop(self) -> None:
        """The log is as it was."""
        _LOG.removeHandler(self)
        _LOG.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        process = running.get()
        if record.exc_info and (process is None or process.alive):
            error: Any = record.exc_info[1]
            self.met.append(f"{record.getMessage()}: {error!r}")
