"""Whether a mechanic is there: her row and her presence as one answer.

One job: what `GET /api/mechanics/{id}/status` and `mechanic.watch` tell. Imports `people` and
`presence`.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from dispatch import people
from dispatch.core.types import Presence
from dispatch.database import Pool
from dispatch.errors import NotFound
from dispatch.presence import PresenceRegistry
from dispatch.protocol import MechanicPresence, timestamp


class Status(Struct, frozen=True, kw_only=True):
    """A mechanic as a customer may see her before booking."""

    mechanic_id: UUID
    name: str
    presence: Presence
    available: bool
    last_seen: datetime | None

    def frame(self, re: str | None = None) -> MechanicPresence:
        """The frame `mechanic.presence`."""
        return MechanicPresence(
            re=re,
            mechanic_id=self.mechanic_id,
            presence=self.presence.value,
            is_online=self.presence is Presence.ONLINE,
            available=self.available,
            reachable_by_push=False,  # web push is not configured in this version
            last_seen=None if self.last_seen is None else timestamp(self.last_seen),
        )


async def status(pool: Pool, presence: PresenceRegistry, mechanic_id: UUID) -> Status:
    """The status of a mechanic; `NotFound("mechanic_gone")` for a deleted or unknown one (F2)."""
    facts = await people.mechanic_status(pool, mechanic_id)
    if facts is None:
        raise NotFound("this mechanic is gone", code="mechanic_gone")
    known = (await presence.look_up([mechanic_id]))[mechanic_id]
    return Status(
        mechanic_id=mechanic_id,
        name=facts.name,
        presence=known.presence,
        available=facts.available,
        last_seen=known.last_seen or facts.last_seen,
    )
