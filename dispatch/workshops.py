"""What is shown of workshops: the directory to anybody (W1), its people to a workshop (W3).

One job: pages of the workshops that have a mechanic to offer work to now, and of the mechanics of
one. Who is online is, in the directory, the mirror in Postgres, about a second late, so the
directory may be a second old as well: however many ask a node, it reads at most one directory a
second (30 ms of Postgres for a thousand workshops), and asking, for which nobody needs an account,
cannot slow down dispatching. Imports `core`, `database`, `errors`, `invites`, `presence`,
`protocol` and `queries`; raises `Unavailable` when Postgres is away.
"""

import asyncio
import time
from typing import Final, Literal
from uuid import UUID

from msgspec import Struct

from dispatch import invites, queries
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import Forbidden
from dispatch.invites import OpenInvite
from dispatch.presence import PresenceRegistry
from dispatch.protocol import timestamp

FRESH_SECONDS: Final = 1.0

_SQL: Final = queries.load("workshops")


class Workshop(Struct, frozen=True, kw_only=True):
    """A line of the directory; `avg_rating` is None while none of its mechanics is rated."""

    workshop_id: UUID
    workshop_name: str
    workshop_email: str
    workshop_status: str
    total_mechanics: int
    available_mechanics: int
    avg_rating: float | None
    total_sessions: int
    created_at: str


class DirectoryPage(Struct, frozen=True, kw_only=True):
    """A part of the directory, and of how many workshops it is a part."""

    workshops: list[Workshop]
    total: int
    limit: int
    offset: int


class Directory:
    """One node's copy of the directory, at most a second old."""

    def __init__(self, pool: Pool, capacity: int) -> None:
        self._pool = pool
        self._capacity = capacity
        self._latest: asyncio.Task[list[Workshop]] | None = None
        self._fresh_until = 0.0

    async def page(self, limit: int, offset: int) -> DirectoryPage:
        """Up to `limit` workshops from the `offset`th on. Raises `Unavailable`."""
        workshops = await asyncio.shield(self._read_lately())  # one who leaves takes nobody along
        return DirectoryPage(
            workshops=workshops[offset : offset + limit],
            total=len(workshops),
            limit=limit,
            offset=offset,
        )

    def _read_lately(self) -> asyncio.Task[list[Workshop]]:
        """The read that runs or is fresh, else a new one; a failure is told to all who waited."""
        read, now = self._latest, time.monotonic()
        if read is None or (read.done() and (now >= self._fresh_until or not _succeeded(read))):
            read = self._latest = asyncio.create_task(self._read(), name="read-directory")
            self._fresh_until = now + FRESH_SECONDS
        return read

    async def _read(self) -> list[Workshop]:
        async with unavailable_when_lost():
            rows = await self._pool.fetch(_SQL["directory"], self._capacity)
        return [
            Workshop(**{**dict(row), "created_at": timestamp(row["created_at"])}) for row in rows
        ]


def _succeeded(read: asyncio.Task[list[Workshop]]) -> bool:
    return not read.cancelled() and read.exception() is None


# --- its own people -------------------------------------------------------------------------------


class Colleague(Struct, frozen=True, kw_only=True):
    """A mechanic as her workshop sees her.

    `available` is what she says, `approved` what we say, and both what routing asks for.
    """

    mechanic_id: UUID
    name: str
    email: str
    presence: Literal["online", "offline", "unknown"]
    available: bool
    approved: bool
    is_specialist: bool
    live_sessions: int
    rating: float | None
    sessions_served: int


class Panel(Struct, frozen=True, kw_only=True):
    """A workshop, a part of its mechanics (by name) and of how many, and all its open invites."""

    workshop_id: UUID
    workshop_name: str
    workshop_status: Literal["pending", "active", "suspended"]
    mechanics: list[Colleague]
    total: int
    limit: int
    offset: int
    invites: list[OpenInvite]


async def panel(
    pool: Pool, presence: PresenceRegistry, member_id: UUID, limit: int, offset: int
) -> Panel:
    """What this user may see of the workshop that she acts for. Forbidden where there is none."""
    async with unavailable_when_lost():
        workshop = await pool.fetchrow(_SQL["workshop_of"], member_id)
        if workshop is None:
            raise Forbidden("you act for no workshop")
        rows = await pool.fetch(_SQL["mechanics"], workshop["id"], limit, offset)
    here = await presence.look_up([row["mechanic_id"] for row in rows])
    return Panel(
        workshop_id=workshop["id"],
        workshop_name=workshop["name"],
        workshop_status=workshop["status"],
        mechanics=[
            Colleague(
                mechanic_id=row["mechanic_id"],
                name=row["mechanic_name"],
                email=row["email"],
                presence=here[row["mechanic_id"]].presence.value,
                available=row["available"],
                approved=row["approved"],
                is_specialist=row["is_specialist"],
                live_sessions=row["live_sessions"],
                rating=row["rating"],
                sessions_served=row["sessions_served"],
            )
            for row in rows
        ],
        total=workshop["mechanics"],
        limit=limit,
        offset=offset,
        invites=await invites.of_workshop(pool, workshop["id"]),
    )
