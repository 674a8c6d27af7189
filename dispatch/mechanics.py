"""Whether mechanics are there: their rows and their presence as one answer.

One job: what `GET /api/mechanics/{id}/status` and `mechanic.watch` tell. Imports `people` and
`presence`.
"""

from collections.abc import Callable, Sequence
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
    reachable_by_push: bool
    last_seen: datetime | None

    def frame(self, re: str | None = None) -> MechanicPresence:
        """The frame `mechanic.presence`."""
        return MechanicPresence(
            re=re,
            mechanic_id=self.mechanic_id,
            presence=self.presence.value,
            is_online=self.presence is Presence.ONLINE,
            available=self.available,
            reachable_by_push=self.reachable_by_push,
            last_seen=None if self.last_seen is None else timestamp(self.last_seen),
        )


class Mechanics:
    """Whoever may be asked about."""

    def __init__(
        self,
        pool: Pool,
        presence: PresenceRegistry,
        now: Callable[[], datetime],
        *,
        web_push: bool,
    ) -> None:
        """`web_push`: whether devices are told without a connection (N3)."""
        self._pool = pool
        self._presence = presence
        self._now = now
        self._web_push = web_push

    async def status(self, mechanic_id: UUID) -> Status:
        """One of them; `NotFound("mechanic_gone")` for a deleted or unknown one (F2)."""
        found = await self.statuses([mechanic_id])
        if mechanic_id not in found:
            raise NotFound("this mechanic is gone", code="mechanic_gone")
        return found[mechanic_id]

    async def statuses(self, mechanic_ids: Sequence[UUID]) -> dict[UUID, Status]:
        """The statuses of these mechanics by their ids, without those who are gone.

        One query and one look-up of presence, however many are asked about.
        """
        facts = await people.mechanic_statuses(self._pool, mechanic_ids)
        known = await self._presence.look_up(list(facts))
        now = self._now()
        return {
            mechanic_id: Status(
                mechanic_id=mechanic_id,
                name=fact.name,
                presence=known[mechanic_id].presence,
                available=fact.available,
                reachable_by_push=self._web_push and fact.has_device,
                last_seen=now
                if known[mechanic_id].presence is Presence.ONLINE
                else known[mechanic_id].last_seen or fact.last_seen,
            )
            for mechanic_id, fact in facts.items()
        }


def gone(mechanic_id: UUID) -> MechanicPresence:
    """The last frame `mechanic.presence` of one who was deleted."""
    return MechanicPresence(
        mechanic_id=mechanic_id,
        presence=Presence.OFFLINE.value,
        is_online=False,
        available=False,
        reachable_by_push=False,
    )
