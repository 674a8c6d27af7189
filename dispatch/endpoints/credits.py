"""What customers may spend instead of money, and what admins give them."""

from starlette.requests import Request
from starlette.responses import Response

from dispatch import credits
from dispatch.core.types import Role
from dispatch.endpoints.area import Area, Path
from dispatch.exchange import Page, body, ok, query


class Credits(Area):
    """The ledger of credits."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("GET", "/api/customer/credits", self.statement),
            ("POST", "/api/admin/credits", self.grant),
        ]

    async def statement(self, request: Request) -> Response:
        """The caller's balances, and a page of what has led to them."""
        caller = await self.caller(request, Role.CUSTOMER)
        page = query(request, Page)
        return ok(
            await credits.statement(
                self.node.pool, caller.user_id, limit=page.limit, offset=page.offset
            )
        )

    async def grant(self, request: Request) -> Response:
        """Goodwill; 201, also when it is asked for again."""
        caller = await self.caller(request, Role.ADMIN)
        wanted = await body(request, credits.Grant)
        return ok(await credits.grant(self.node.pool, caller.user_id, wanted), status=201)
