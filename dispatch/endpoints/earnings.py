"""What those who earn may see of it: their own."""

from dispatch import earnings
from dispatch.endpoints.area import MECHANIC, WORKSHOP, Area, Asked, Path
from dispatch.exchange import Page


class Earnings(Area):
    """For mechanics and for workshops, about themselves."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/mechanic/earnings",
                self.of_mechanic,
                roles=MECHANIC,
                query=Page,
                answer=earnings.MechanicEarnings,
            ),
            Path(
                "GET",
                "/api/workshop/earnings",
                self.of_workshop,
                roles=WORKSHOP,
                query=Page,
                answer=earnings.WorkshopEarnings,
            ),
        ]

    async def of_mechanic(self, asked: Asked) -> earnings.MechanicEarnings:
        """What the caller is paid for herself, the newest first."""
        part: Page = asked.query
        return await earnings.of_mechanic(
            self.node.pool, asked.caller.user_id, limit=part.limit, offset=part.offset
        )

    async def of_workshop(self, asked: Asked) -> earnings.WorkshopEarnings:
        """What the caller's workshop has of sessions, the newest first."""
        part: Page = asked.query
        return await earnings.of_workshop(
            self.node.pool, asked.caller.user_id, limit=part.limit, offset=part.offset
        )
