"""A node of ours that dies where it is told to: the product's code, its pool and Stripe's client.

One job: count the steps of a process (each call to Postgres and to Stripe is two: before it and
after it was done) and end it at a chosen one as SIGKILL would: its connections are cut without a
word, its tasks stop, and nothing that it still tries has any effect. The node itself is the real
one, without its loops, and is spoken to through its HTTP application, without a socket.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from importlib.resources import files
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID, uuid4

import asyncpg
import msgspec
from starlette.applications import Starlette

from dispatch import queries
from dispatch.config import Config
from dispatch.node import Node
from dispatch.stripe_client import StripeClient

T = TypeVar("T")
Json = dict[str, Any]

POOL_SIZE: Final = 8  # as the product's
STILL_TURNS: Final = 40
BUSY_SECONDS: Final = 0.001  # less is no pause on this loop

# Whose code is running: inherited by every task that a process starts.
running: ContextVar["Process | None"] = ContextVar("running", default=None)


def _names() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files("dispatch").joinpath("sql").iterdir():
        name = file.name.removesuffix(".sql")
        found |= {text: f"{name}.{query}" for query, text in queries.load(name).items()}
    return found


_NAMES: Final = _names()


class Answer(NamedTuple):
    """What HTTP answered."""

    status: int
    body: Json


class CurrentNode:
    """The node of the process whose code is running: for an application that all of them share,
    because making one costs more than all that a node does in a scenario."""

    def __getattr__(self, name: str) -> Any:
        process = running.get()
        assert process is not None, "only processes answer"
        return getattr(process.node, name)


class Time:
    """The database's clock as scenarios move it: so many seconds ahead of the machine's."""

    def __init__(self) -> None:
        self.offset_seconds = 0.0


class Process:
    """One node. `start` makes it, `close` ends it; between the two it may die at `kill_at`."""

    def __init__(self, name: str, time: Time) -> None:
        self.name = name
        self.time = time
        self.kill_at: int | None = None
        self.alive = True
        self.died_at: str | None = None
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self.in_flight = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.pool: asyncpg.Pool
        self.node: Node
        self.app: Starlette
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        name: str,
        config: Config,
        time: Time,
        stripe: Callable[["Process"], StripeClient],
        policy_id: UUID,
    ) -> "Process":
        """A node on a pool of its own that has done nothing yet. `app` is set by whoever calls."""
        process = cls(name, time)
        process.pool = await open_pool(config.database_url, process)
        process.node = Node(config, uuid4(), process.pool, stripe(process), "none", policy_id)
        return process

    # --- steps

    async def step(self, label: str, call: Callable[[], Awaitable[T]]) -> T:
        """One call to the outside, with a place to die before it and one after it was done."""
        self._reach("before", label)
        self.in_flight += 1
        try:
            given = await call()
        finally:
            self.in_flight -= 1
        self._reach("after", label)
        return given

    def _reach(self, side: str, label: str) -> None:
        if not self.alive:
            raise asyncio.CancelledError(f"{self.name} is dead")
        self.steps += 1
        self.seen[label] += 1
        if self.steps == self.kill_at:
            self.die(f"{side} {label}")
            raise asyncio.CancelledError(f"{self.name} dies")

    def die(self, where: str) -> None:
        """As SIGKILL: nothing is said to anybody, and nothing that is tried after it is done."""
        self.alive = False
        self.died_at = where
        self.pool.terminate()
        current = asyncio.current_task()
        for task in self.tasks - {current}:
            task.cancel()
        self._ending = asyncio.create_task(self.node.tasks.close())

    async def quiet(self) -> None:
        """Returns once no call is under way and no code of the process goes on by itself."""
        turns = 0
        while self.alive and turns < STILL_TURNS:
            turns = 0 if self.in_flight else turns + 1
            await asyncio.sleep(BUSY_SECONDS if self.in_flight else 0)

    # --- doing something

    async def run(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """Does it as this process; None where that died of it."""

        async def inside() -> T:
            running.set(self)
            return await work()

        task = asyncio.ensure_future(inside())
        self.tasks.add(task)
        try:
            return await task
        except BaseException:  # a library is in no state that it knows when it is cut off
            if self.alive:
                raise
            return None
        finally:
            self.tasks.discard(task)

    async def call(
        self, method: str, path: str, token: str = "", body: bytes = b"", **headers: str
    ) -> Answer | None:
        """An HTTP request to this node; None where it died before it answered."""
        return await self.run(partial(self._call, method, path, token, body, headers))

    async def _call(
        self, method: str, path: str, token: str, body: bytes, headers: dict[str, str]
    ) -> Answer:
        target, _, query = path.partition("?")
        lines = {"accept": "application/json", "host": "dispatch.example"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        if token:
            lines["authorization"] = f"Bearer {token}"
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": target,
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "root_path": "",
        }
        sent: list[Json] = []

        async def receive() -> Json:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        try:
            await self.app(scope, receive, send)
        except Exception:
            if not sent:  # what nobody foresaw is answered, and then raised for the server's log
                raise
        text = b"".join(message.get("body", b"") for message in sent)
        decoded = msgspec.json.decode(text) if text[:1] == b"{" else {}
        return Answer(sent[0]["status"], decoded)

    async def close(self) -> None:
        """After its last scenario, dead or alive."""
        self.alive = False
        for task in list(self.tasks):
            task.cancel()
        self.pool.terminate()
        if self._ending is not None:
            await self._ending
        await self.node.tasks.close()


async def open_pool(database_url: str, process: Process) -> asyncpg.Pool:
    """The product's pool, of connections on which `process` can die."""

    async def connect(*given: Any, **options: Any) -> asyncpg.Connection:
        # Not a step: a connection that was made says nothing to anybody.
        process.in_flight += 1
        try:
            connection: asyncpg.Connection = await asyncpg.connect(*given, **options)
        finally:
            process.in_flight -= 1
        if not process.alive:
            connection.terminate()
            raise asyncio.CancelledError(f"{process.name} is dead")
        return connection

    return await asyncpg.create_pool(
        database_url,
        connect=connect,
        connection_class=_connection_of(process),
        min_size=0,
        max_size=POOL_SIZE,
        command_timeout=10.0,
        timeout=5.0,
        max_inactive_connection_lifetime=0,
        ssl=False,  # asked for in vain it costs each new connection a turn
        reset=_nothing_to_reset,
        server_settings={
            "timezone": "UTC",
            "statement_timeout": "10s",
            "idle_in_transaction_session_timeout": "2s",
            "lock_timeout": "4s",
            "jit": "off",
        },
    )


async def _nothing_to_reset(_connection: asyncpg.Connection) -> None:
    pass


def _connection_of(process: Process) -> type[asyncpg.Connection]:
    class Mortal(asyncpg.Connection):
        """Each statement is a step of the process; its clock is the scenario's."""

        offset_seconds = 0.0

        async def execute(self, *given: Any, **options: Any) -> Any:
            return await self._step(super().execute, given, options)

        async def executemany(self, *given: Any, **options: Any) -> Any:
            return await self._step(super().executemany, given, options)

        async def fetch(self, *given: Any, **options: Any) -> Any:
            return await self._step(super().fetch, given, options)

        async def fetchrow(self, *given: Any, **options: Any) -> Any:
            return await self._step(super().fetchrow, given, options)

        async def fetchval(self, *given: Any, **options: Any) -> Any:
            return await self._step(super().fetchval, given, options)

        async def _step(self, call: Any, given: tuple[Any, ...], options: Json) -> Any:
            seconds = process.time.offset_seconds
            if self.offset_seconds != seconds and process.alive and not self.is_in_transaction():
                await super().execute(f"SET dispatch.clock_offset = '{seconds} s'")
                self.offset_seconds = seconds
            return await process.step(_label(given[0]), partial(call, *given, **options))

    return Mortal


def _label(sql: str) -> str:
    name = _NAMES.get(sql)
    return name if name is not None else sql.strip().partition(" ")[0].rstrip(";").lower()
