"""A cluster of registries in the test's own process, and what it said."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from dispatch.config import Config
from dispatch.core.types import Presence, Role
from dispatch.database import Pool
from dispatch.hints import PresenceChanged
from dispatch.namespace import namespace
from dispatch.presence import PresenceRegistry
from tests.conftest import MakeConfig
from tests.support import eventually

ONLINE: Final = Presence.ONLINE
OFFLINE: Final = Presence.OFFLINE
UNKNOWN: Final = Presence.UNKNOWN


class Node:
    """One node's registry, and what it told."""

    def __init__(self, redis_url: str, space: str, pool: Pool, config: Config) -> None:
        self.node_id = uuid4()
        self.told: list[PresenceChanged] = []
        self.shared: list[UUID] = []
        self.registry = PresenceRegistry(
            redis_url,
            space,
            self.node_id,
            pool,
            config,
            self.told.append,
            self.shared.append,
            clients=lambda: 3,
        )
        self._task = asyncio.create_task(self.registry.run())

    async def settled(self) -> "Node":
        await eventually(lambda: not self.registry.degraded)
        return self

    def join(self, user_id: UUID, device: str | None = None, **fields: Any) -> UUID:
        """A new connection of the user, a mechanic unless said otherwise."""
        connection_id: UUID = fields.get("connection_id", uuid4())
        role, workshop_id = fields.get("role", Role.MECHANIC), fields.get("workshop_id")
        self.registry.join(user_id, role, connection_id, device, workshop_id)
        return connection_id

    async def sees(self, user_id: UUID) -> Presence:
        return (await self.registry.look_up([user_id]))[user_id].presence

    async def devices_of(self, user_id: UUID) -> set[tuple[str | None, UUID]]:
        found = await self.registry.look_up([user_id])
        return {(device, node_id) for device, node_id in found[user_id].devices}

    async def crash(self) -> None:
        """The process is gone, without a word."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def drain(self) -> None:
        await self.crash()
        await self.registry.close()


Start = Callable[..., Node]


@asynccontextmanager
async def cluster(redis_url: str, pool: Pool, make_config: MakeConfig) -> AsyncIterator[Start]:
    """Gives `start(**overrides of the configuration)`. The nodes crash at the latest at the end."""
    space = await namespace(pool)
    nodes: list[Node] = []

    def start(**overrides: object) -> Node:
        nodes.append(Node(redis_url, space, pool, make_config(**overrides)))
        return nodes[-1]

    yield start
    for node in nodes:
        await node.crash()


def told(*nodes: Node) -> list[tuple[UUID, Presence]]:
    """What the cluster was told, in the order of the times."""
    changes = sorted((change for node in nodes for change in node.told), key=lambda c: c.at)
    return [(change.user_id, change.presence) for change in changes]


async def mirrored(pool: Pool, mechanic_id: UUID) -> tuple[bool, datetime | None]:
    row = await pool.fetchrow(
        "SELECT is_online, last_seen FROM mechanics WHERE id = $1", mechanic_id
    )
    assert row is not None
    return row["is_online"], row["last_seen"]


async def equals(found: Awaitable[object], wanted: object) -> bool:
    return bool(await found == wanted)


async def mirror_says(pool: Pool, mechanic_id: UUID, online: bool) -> bool:
    return (await mirrored(pool, mechanic_id))[0] is online


async def lives_in_postgres(pool: Pool, node_id: UUID, life: timedelta) -> None:
    await pool.execute(
        "UPDATE nodes SET lease_until = clock_timestamp() + $2 WHERE node_id = $1", node_id, life
    )
