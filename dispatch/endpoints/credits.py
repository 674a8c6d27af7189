"""What customers may spend instead of money, and what admins give them."""

from dispatch import credits
from dispatch.endpoints.area import ADMIN, CUSTOMER, Area, Asked, Path
from dispatch.exchange import Page


class Credits(Area):
    """The ledger of credits."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/customer/credits",
                self.statement,
                roles=CUSTOMER,
                query=Page,
                answer=credits.Statement,
            ),
            Path(
                "POST",
                "/api/admin/credits",
                self.grant,
                roles=ADMIN,
                body=credits.Grant,
                answer=credits.Granted,
                status=201,
                errors=("not_found", "already_granted"),
            ),
        ]

    async def statement(self, asked: Asked) -> credits.Statement:
        """The caller's balances, and a page of what has led to them."""
        page: Page = asked.query
        return await credits.statement(
            self.node.pool, asked.caller.user_id, limit=page.limit, offset=page.offset
        )

    async def grant(self, asked: Asked) -> credits.Granted:
        """Goodwill; 201, also when it is asked for again."""
        return await credits.grant(self.node.pool, asked.caller.user_id, asked.body)
