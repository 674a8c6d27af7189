"""A node in a process of its own, to be stopped: `python -m … DATABASE REDIS STAYS LEAVES`.

Two mechanics are connected to it; on SIGUSR1 the second one leaves.
"""

import asyncio
import signal
import sys
from uuid import UUID, uuid4

from dispatch.config import Config
from dispatch.core.types import Role
from dispatch.database import open_pool
from dispatch.namespace import namespace
from dispatch.presence import PresenceRegistry


async def main(database_url: str, redis_url: str, stays: UUID, leaves: UUID) -> None:
    pool = await open_pool(database_url, size=1)
    config = Config(presence_grace_seconds=0.2, node_lease_seconds=1.0)
    registry = PresenceRegistry(
        redis_url,
        await namespace(pool),
        uuid4(),
        pool,
        config,
        lambda changed: None,
        lambda shared: None,
        clients=lambda: 0,
    )
    connection = uuid4()
    registry.join(stays, Role.MECHANIC, uuid4(), "phone", None)
    registry.join(leaves, Role.MECHANIC, connection, "phone", None)
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGUSR1, registry.leave, leaves, connection
    )
    await registry.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], UUID(sys.argv[3]), UUID(sys.argv[4])))
