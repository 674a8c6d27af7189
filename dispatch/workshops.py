"""The directory of workshops, for anybody who asks (W1).

One job: pages of the workshops that have a mechanic to offer work to now. Who is online is the
mirror in Postgres, about a second late, so the directory may be a second old as well: however many
ask a node, it reads at most one directory a second (30 ms of Postgres for a thousand workshops),
and asking, for which nobody needs an account, cannot slow down dispatching. Imports `database`,
`protocol` and `queries`; raises `Unavailable` when Postgres is away.
"""

import asyncio
import time
from typing import Final
from uuid import UUID

from msgspec import Struct

from dispatch import queries
from dispatch.database import Pool, unavailable_when_lost
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
