"""Plays a story: two nodes in this process, people spread over both, hours passed by the clock.

One job: let named people act and wait for what each of them must hear; what everybody got is told
by `transcript`, scene by scene, and the booking's row is kept at the end of each. Windows and
deadlines are those of the default configuration, and nothing is slept: time passes by the
database's clock. It fails when somebody does not hear in time what she must.

A scene is one act, or one move of the clock, and all that follows from it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg

from dispatch.config import load
from dispatch.database import Connection, close_pool, open_pool
from tests.integration.living import Booked, Client, LivingNode, pass_time, two_nodes
from tests.integration.rows import add_customer, add_mechanic
from tests.stories.transcript import Frame, Transcript, clock
from tests.support import (
    JWT_SECRET,
    STRIPE_SECRET_KEY,
    STRIPE_WEBHOOK_SECRET,
    WAIT_SECONDS,
    eventually,
)

# Nodes find what is due within this: how exactly a story's moments are kept.
_SWEEP_SECONDS: Final = 0.05
# Ids of which a story needs none.
_UNTOLD: Final = frozenset({"accept_id", "session_id"})


@dataclass(frozen=True)
class Scene:
    """How it was `at` so many seconds after the booking: what each got, the row at its end."""

    at: int
    frames: dict[str, list[Frame]]
    row: asyncpg.Record


@dataclass
class Person:
    """One of the cast, and the node that she connects to."""

    name: str
    role: str
    id: UUID
    living: LivingNode
    client: Client | None = None
    _told: int = 0

    async def hears(self, type_: str, **fields: object) -> Frame:
        """The frame of this scene that has these fields, which may have come already."""
        client = self._client
        wanted = {"type": type_} | {
            name: str(value) if isinstance(value, UUID) else value for name, value in fields.items()
        }
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    for frame in reversed(self._new):
                        if wanted.items() <= frame.items():
                            return frame
                    client.frames.append(json.loads(await client.link.recv()))
        except TimeoutError:
            heard = "\n".join(map(json.dumps, self._new))
            raise AssertionError(f"{self.name} did not hear {wanted}; only:\n{heard}") from None

    async def scene_ends(self) -> list[Frame]:
        """Everything that this scene brought her."""
        if self.client is None:
            return []
        await self.client.settle()
        frames = [frame for frame in self._new if frame["type"] != "pong"]
        self._told = len(self.client.frames)
        return frames

    @property
    def _new(self) -> list[Frame]:
        return self._client.frames[self._told :]

    @property
    def _client(self) -> Client:
        assert self.client is not None, f"{self.name} is not connected"
        return self.client


@dataclass
class Play:
    """A story in the making. `lines` and `scenes` are whole when the curtain has fallen."""

    database_url: str
    nodes: tuple[LivingNode, LivingNode]
    connection: Connection
    stack: AsyncExitStack
    transcript: Transcript = field(default_factory=Transcript)
    scenes: list[Scene] = field(default_factory=list)
    cast: list[Person] = field(default_factory=list)
    at: int = 0
    booked: Booked | None = None
    offset_seconds: float = 0.0

    @property
    def lines(self) -> list[str]:
        return self.transcript.lines

    @property
    def booking(self) -> Booked:
        assert self.booked is not None, "nobody has booked yet"
        return self.booked

    # --- people

    async def customer(self, name: str) -> Person:
        """A customer, connected to the first node."""
        user_id = await add_customer(self.connection)
        return await self._enter(Person(name, "customer", user_id, self.nodes[0]), True)

    async def mechanic(self, name: str, *, node: int, online: bool = True) -> Person:
        """An independent, approved and available mechanic, connected to that node if online."""
        user_id = await add_mechanic(self.connection)
        return await self._enter(Person(name, "mechanic", user_id, self.nodes[node]), online)

    async def _enter(self, person: Person, online: bool) -> Person:
        await self.connection.execute(
            "UPDATE users SET name = $2 WHERE id = $1", person.id, person.name
        )
        self.cast.append(person)
        self.transcript.names[str(person.id)] = person.name
        if online:
            await self._connect(person)
            await person.scene_ends()
        return person

    async def _connect(self, person: Person) -> None:
        person.client = await self.stack.enter_async_context(
            person.living.client(person.id, person.role)
        )

    async def until_online(self, asker: Person, *mechanics: Person) -> None:
        """Both nodes' customers are told that these mechanics are here."""
        for living in self.nodes:
            for mechanic in mechanics:
                await eventually(partial(living.is_online, mechanic.id, asker.id))

    # --- what happens

    async def books(self, customer: Person, **wish: Any) -> None:
        """A free booking, over HTTP; the story's time begins."""
        told = {
            name: value.name if isinstance(value, Person) else value for name, value in wish.items()
        }
        self.transcript.does(0, customer.name, "books", told)
        form = {
            name: value.id if isinstance(value, Person) else value for name, value in wish.items()
        }
        self.booked = await customer.living.book(customer.id, **form)
        self.transcript.booked_at = (await self._row())["created_at"]

    async def says(self, person: Person, type_: str, **fields: object) -> None:
        """A frame of hers; told without the ids that she makes up."""
        await self._scene_ends()
        told = {name: value for name, value in fields.items() if name not in _UNTOLD}
        self.transcript.does(self.at, person.name, type_, told)
        assert person.client is not None
        await person.client.send(type_, **fields)

    async def accepts(self, person: Person) -> None:
        """She accepts the present round."""
        await self.says(person, "offer.accept", offer_id=await self.offer_id(), accept_id=uuid4())

    async def comes(self, person: Person) -> None:
        """She connects."""
        await self._scene_ends()
        self.transcript.does(self.at, person.name, "connects", {})
        await self._connect(person)

    async def passes(self, minutes: int = 0, seconds: int = 0) -> None:
        """It is so long after the booking."""
        await self._scene_ends()
        self.at = 60 * minutes + seconds
        assert self.transcript.booked_at is not None
        now: datetime = await self.connection.fetchval("SELECT clock_timestamp()")
        offset = self.transcript.booked_at + timedelta(seconds=self.at) - now
        assert offset.total_seconds() > self.offset_seconds, "the real time has overtaken the story"
        self.offset_seconds = offset.total_seconds()
        await pass_time(self.database_url, self.offset_seconds, *self.nodes)

    async def ends(self) -> None:
        """The last scene is over."""
        await self._scene_ends()

    async def offer_id(self) -> str:
        """The present round's."""
        return str((await self._row())["offer_id"])

    async def _scene_ends(self) -> None:
        row = await self._row()
        self.transcript.rounds[str(row["offer_id"])] = row["generation"]
        frames = {}
        for person in self.cast:
            frames[person.name] = await person.scene_ends()
            self.transcript.gets(self.at, person.name, frames[person.name])
        self.scenes.append(Scene(self.at, frames, row))

    async def _row(self) -> asyncpg.Record:
        row = await self.connection.fetchrow(
            "SELECT * FROM session_requests WHERE id = $1", self.booking.request_id
        )
        assert row is not None
        return row


Tale = Callable[[Play], Awaitable[None]]


@dataclass(frozen=True)
class Played:
    """A story that was played: its lines, and how it was at the end of each scene."""

    lines: list[str]
    scenes: list[Scene]

    def row(self, at: str) -> asyncpg.Record:
        """The booking's row at the end of the last scene of that moment."""
        return [scene.row for scene in self.scenes if clock(scene.at) == at][-1]


async def play(tale: Tale, database_url: str, redis_url: str) -> Played:
    """Plays it on a fresh database with the schema, whose clock it moves."""
    async with _stage(database_url, redis_url) as stage:
        await tale(stage)
        await stage.ends()
    return Played(stage.lines, stage.scenes)


@asynccontextmanager
async def _stage(database_url: str, redis_url: str) -> AsyncIterator[Play]:
    environ = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "DISPATCH_JWT_SECRET": JWT_SECRET,
        "STRIPE_SECRET_KEY": STRIPE_SECRET_KEY,
        "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
    }
    config = replace(load(environ), sweep_seconds=_SWEEP_SECONDS)
    pool = await open_pool(database_url, size=1)
    async with (
        pool.acquire() as connection,
        two_nodes(config) as nodes,
        AsyncExitStack() as stack,
    ):
        yield Play(database_url, nodes, connection, stack)
    await close_pool(pool)
