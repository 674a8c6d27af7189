"""Money that is paid out: accounts of those who are paid, and payouts by hand."""

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Final
from uuid import UUID

from msgspec import Meta, Struct
from starlette.responses import Response

from dispatch import connect, payouts
from dispatch.connect import Payee
from dispatch.database import Pool
from dispatch.endpoints.area import ADMIN, MECHANIC, WORKSHOP, Area, Asked, Path
from dispatch.errors import BadRequest, RateLimited
from dispatch.node import Node
from dispatch.pages import HTML, page
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
            Path(
                "POST",
                "/api/workshop/stripe/onboard",
                self.onboard_workshop,
                roles=WORKSHOP,
                answer=connect.Onboarding,
                errors=("not_found", "rate_limited", "payment_failed"),
            ),
            Path(
                "POST",
                "/api/mechanic/stripe/onboard",
                self.onboard_mechanic,
                roles=MECHANIC,
                answer=connect.Onboarding,
                errors=("not_found", "rate_limited", "payment_failed"),
            ),
            Path("GET", "/connect/return", self.connect_return, media=HTML),
            Path("GET", "/connect/refresh", self.connect_refresh, media=HTML),
            Path(
                "POST",
                "/api/admin/payouts/run",
                self.run_payouts,
                roles=ADMIN,
                body=Run,
                body_optional=True,
                answer=payouts.Report,
                errors=("not_found",),
            ),
            Path(
                "GET",
                "/api/admin/payouts",
                self.payouts,
                roles=ADMIN,
                query=Listed,
                answer=payouts.Listing,
            ),
        ]

    async def onboard_workshop(self, asked: Asked) -> connect.Onboarding:
        """To Stripe's page where a member sets up the workshop's account (M3)."""
        return await self._onboard(asked.caller.user_id, connect.workshop_of)

    async def onboard_mechanic(self, asked: Asked) -> connect.Onboarding:
        """To Stripe's page where a mechanic sets up her own account, also one of a workshop."""
        return await self._onboard(asked.caller.user_id, connect.mechanic)

    async def _onboard(
        self, user_id: UUID, payee_of: Callable[[Pool, UUID], Awaitable[Payee]]
    ) -> connect.Onboarding:
        node = self.node
        payee = await payee_of(node.pool, user_id)
        if payee.id in self._onboarding or not self._rate.take(payee.id, time.monotonic()):
            raise RateLimited("asked too often; try again in a minute")
        self._onboarding.add(payee.id)
        try:
            return await connect.onboard(node.pool, node.stripe, node.config, payee)
        finally:
            self._onboarding.discard(payee.id)

    async def connect_return(self, asked: Asked) -> Response:
        """Where Stripe leads whoever leaves its page, done or not. Only Stripe says which."""
        return page(
            "Welcome back",
            "Stripe is looking at what you entered, which can take some minutes. Your earnings "
            "page shows whether you can be paid; if something is missing, set up payouts there "
            "again.",
        )

    async def connect_refresh(self, asked: Asked) -> Response:
        """Where Stripe leads whoever comes with a link that was used before or is too old."""
        return page(
            "This link is used up",
            "It is good for one visit, for a few minutes. Go back to your earnings page and set "
            "up payouts there again; what you entered is kept.",
        )

    async def run_payouts(self, asked: Asked) -> payouts.Report:
        """Pays out now what is owed (M3): to everybody, to a workshop or to a mechanic."""
        wanted: Run = asked.body
        if wanted.workshop_id is not None and wanted.mechanic_id is not None:
            raise BadRequest("either workshop_id or mechanic_id, not both")
        node = self.node
        try:
            return await payouts.run(
                node.pool,
                cause="hand",
                minimum_cents=wanted.minimum_cents or node.config.payout_minimum_cents,
                created_by=asked.caller.user_id,
                workshop_id=wanted.workshop_id,
                mechanic_id=wanted.mechanic_id,
            )
        finally:
            node.outbox.wake()  # also of a run that was broken off something may have been made

    async def payouts(self, asked: Asked) -> payouts.Listing:
        """Payouts, the newest first."""
        wanted: Listed = asked.query
        return await payouts.listing(self.node.pool, wanted.status, wanted.limit, wanted.offset)
