"""Money that is paid out: accounts of those who are paid, and payouts by hand."""

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Final
from uuid import UUID

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch import connect, payouts
from dispatch.connect import Payee
from dispatch.core.types import Role
from dispatch.database import Pool
from dispatch.endpoints.area import Area, Path
from dispatch.errors import BadRequest, RateLimited
from dispatch.exchange import ok, optional_body, query
from dispatch.node import Node
from dispatch.pages import page
from dispatch.ratelimit import KeyedRate

# Each asks Stripe once or twice.
ONBOARDINGS_PER_MINUTE: Final = 12


class Run(Struct, frozen=True):
    """`POST /api/admin/payouts/run`: everybody, or one; by the usual minimum, or another."""

    workshop_id: UUID | None = None
    mechanic_id: UUID | None = None
    minimum_cents: Annotated[int, Meta(ge=1, le=100_000_000)] | None = None


class Listed(Struct, frozen=True):
    """Which payouts are listed."""

    status: payouts.Status | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Money(Area):
    """Accounts at Stripe, and payouts."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._onboarding: set[UUID] = set()
        self._rate = KeyedRate(ONBOARDINGS_PER_MINUTE / 60, burst=ONBOARDINGS_PER_MINUTE)

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("POST", "/api/workshop/stripe/onboard", self.onboard_workshop),
            ("POST", "/api/mechanic/stripe/onboard", self.onboard_mechanic),
            ("GET", "/connect/return", self.connect_return),
            ("GET", "/connect/refresh", self.connect_refresh),
            ("POST", "/api/admin/payouts/run", self.run_payouts),
            ("GET", "/api/admin/payouts", self.payouts),
        ]

    async def onboard_workshop(self, request: Request) -> Response:
        """To Stripe's page where a member sets up the workshop's account (M3)."""
        return await self._onboard(request, Role.WORKSHOP, connect.workshop_of)

    async def onboard_mechanic(self, request: Request) -> Response:
        """To Stripe's page where a mechanic sets up her own account, also one of a workshop."""
        return await self._onboard(request, Role.MECHANIC, connect.mechanic)

    async def _onboard(
        self, request: Request, role: Role, payee_of: Callable[[Pool, UUID], Awaitable[Payee]]
    ) -> Response:
        caller = await self.caller(request, role)
        node = self.node
        payee = await payee_of(node.pool, caller.user_id)
        if payee.id in self._onboarding or not self._rate.take(payee.id, time.monotonic()):
            raise RateLimited("asked too often; try again in a minute")
        self._onboarding.add(payee.id)
        try:
            return ok(await connect.onboard(node.pool, node.stripe, node.config, payee))
        finally:
            self._onboarding.discard(payee.id)

    async def connect_return(self, request: Request) -> Response:
        """Where Stripe leads whoever leaves its page, done or not. Only Stripe says which."""
        return page(
            "Welcome back",
            "Stripe is looking at what you entered, which can take some minutes. Your earnings "
            "page shows whether you can be paid; if something is missing, set up payouts there "
            "again.",
        )

    async def connect_refresh(self, request: Request) -> Response:
        """Where Stripe leads whoever comes with a link that was used before or is too old."""
        return page(
            "This link is used up",
            "It is good for one visit, for a few minutes. Go back to your earnings page and set "
            "up payouts there again; what you entered is kept.",
        )

    async def run_payouts(self, request: Request) -> Response:
        """Pays out now what is owed (M3): to everybody, to a workshop or to a mechanic."""
        caller = await self.caller(request, Role.ADMIN)
        asked = await optional_body(request, Run)
        if asked.workshop_id is not None and asked.mechanic_id is not None:
            raise BadRequest("either workshop_id or mechanic_id, not both")
        node = self.node
        try:
            report = await payouts.run(
                node.pool,
                cause="hand",
                minimum_cents=asked.minimum_cents or node.config.payout_minimum_cents,
                created_by=caller.user_id,
                workshop_id=asked.workshop_id,
                mechanic_id=asked.mechanic_id,
            )
        finally:
            node.outbox.wake()  # also of a run that was broken off something may have been made
        return ok(report)

    async def payouts(self, request: Request) -> Response:
        """Payouts, the newest first."""
        await self.caller(request, Role.ADMIN)
        asked = query(request, Listed)
        return ok(await payouts.listing(self.node.pool, asked.status, asked.limit, asked.offset))
