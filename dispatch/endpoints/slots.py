"""When one may book for later."""

from uuid import UUID

from dispatch import overviews
from dispatch.endpoints.area import Area, Asked, Path
from dispatch.exchange import Page
from dispatch.overviews import Slots as SlotList


class WantedSlots(Page, frozen=True):
    """Of which workshop; those of all without."""

    workshop_id: UUID | None = None


class Slots(Area):
    """For anyone."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [Path("GET", "/api/slots", self.slots, query=WantedSlots, answer=SlotList)]

    async def slots(self, asked: Asked) -> SlotList:
        """The slots that are not over and have a seat left, the next first."""
        wanted: WantedSlots = asked.query
        return await overviews.slots(
            self.node.pool, wanted.workshop_id, limit=wanted.limit, offset=wanted.offset
        )
