"""What those who earn may see of it: their own."""

from starlette.requests import Request
from starlette.responses import Response

from dispatch import earnings
from dispatch.core.types import Role
from dispatch.endpoints.area import Area, Path
from dispatch.exchange import Page, ok, query


class Earnings(Area):
    """For mechanics and for workshops, about themselves."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("GET", "/api/mechanic/earnings", self.of_mechanic),
            ("GET", "/api/workshop/earnings", self.of_workshop),
        ]

    async def of_mechanic(self, request: Request) -> Response:
        """What the caller is paid for herself, the newest first."""
        caller = await self.caller(request, Role.MECHANIC)
        part = query(request, Page)
        pool = self.node.pool
        return ok(
            await earnings.of_mechanic(pool, caller.user_id, limit=part.limit, offset=part.offset)
        )

    async def of_workshop(self, request: Request) -> Response:
        """What the caller's workshop has of sessions, the newest first."""
        caller = await self.caller(request, Role.WORKSHOP)
        part = query(request, Page)
        pool = self.node.pool
        return ok(
            await earnings.of_workshop(pool, caller.user_id, limit=part.limit, offset=part.offset)
        )
