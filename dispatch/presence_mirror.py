"""Presence in Postgres: this node's lease there, and the mirror in the rows of mechanics.

One job: the SQL of presence. The mirror (`is_online`, `last_seen`) is for the directory and the
SQL functions; it is about a second late, and a comparison page by page mends what a killed node or
a lost Redis left behind. Imports `database` and `queries`. Raises Unavailable; what was to be
mirrored stays due.
"""

import os
import socket
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from dispatch.database import Pool, unavailable_when_lost
from dispatch.queries import load

PAGE: Final = 500
DATABASE_SECONDS: Final = 2.0

_SQL: Final = load("presence")


class NodeLease:
    """The row of this node in `nodes`."""

    def __init__(self, pool: Pool, node_id: UUID, lease_seconds: float) -> None:
        self._pool = pool
        self._node_id = node_id
        self._lease_seconds = lease_seconds

    async def renew(self, incarnation: int, clients: int, lag_ms: float) -> frozenset[UUID]:
        """Renew it; gives every node with a live lease, this one included."""
        async with unavailable_when_lost():
            rows = await self._pool.fetch(
                _SQL["renew_node"],
                self._node_id,
                incarnation,
                os.getpid(),
                socket.gethostname(),
                clients,
                lag_ms,
                self._lease_seconds,
                timeout=DATABASE_SECONDS,
            )
        return frozenset(row[0] for row in rows)

    async def give_back(self) -> None:
        """The node is gone."""
        async with unavailable_when_lost():
            await self._pool.execute(
                _SQL["give_back_node"], self._node_id, timeout=DATABASE_SECONDS
            )


class Mirror:
    """`mechanics.is_online` and `last_seen`, written in batches: the latest of each mechanic."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._due: dict[UUID, tuple[bool, datetime | None]] = {}

    def note(self, mechanic_id: UUID, online: bool, seen: datetime | None) -> None:
        """Write it with the next flush; without `seen` the row's `last_seen` stays."""
        self._due[mechanic_id] = (online, seen)

    async def flush(self) -> None:
        """Write what is due. Rows that somebody else holds at this moment stay due."""
        due = list(self._due.items())
        for start in range(0, len(due), PAGE):
            page = dict(due[start : start + PAGE])
            async with unavailable_when_lost():
                rows = await self._pool.fetch(
                    _SQL["mirror_presence"],
                    list(page),
                    [online for online, _ in page.values()],
                    [seen for _, seen in page.values()],
                    timeout=DATABASE_SECONDS,
                )
            for row in rows:
                if self._due.get(row[0]) is page[row[0]]:
                    del self._due[row[0]]

    async def online_page(self, after: UUID) -> list[UUID]:
        """Up to 500 mechanics whom the mirror shows as online, in order, those after this id."""
        async with unavailable_when_lost():
            rows = await self._pool.fetch(
                _SQL["mirrored_online"], after, PAGE, timeout=DATABASE_SECONDS
            )
        return [row[0] for row in rows]

    async def offline_among(self, mechanic_ids: Sequence[UUID]) -> list[UUID]:
        """Those of these mechanics whom the mirror shows as offline."""
        async with unavailable_when_lost():
            rows = await self._pool.fetch(
                _SQL["mirrored_offline"], mechanic_ids, timeout=DATABASE_SECONDS
            )
        return [row[0] for row in rows]
