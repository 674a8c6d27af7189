"""A customer's favourites, and booking one of them again."""

from uuid import UUID

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch import favorites
from dispatch.core.types import Role
from dispatch.endpoints.area import Area, Path
from dispatch.exchange import Page, body, ok, path_id, query


class NewFavorite(Struct, frozen=True):
    """`POST /api/customer/favorites`: a mechanic by herself, or a workshop."""

    provider_id: UUID
    provider_type: favorites.ProviderType


class Rebooking(Struct, frozen=True):
    """`POST /api/customer/rebook`."""

    provider_id: UUID
    wait_for_preferred: bool = False


class Favorites(Area):
    """Whom a customer would like again."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("GET", "/api/customer/favorites", self.favorites),
            ("POST", "/api/customer/favorites", self.add_favorite),
            ("DELETE", "/api/customer/favorites/{id}", self.remove_favorite),
            ("POST", "/api/customer/rebook", self.rebook),
        ]

    async def favorites(self, request: Request) -> Response:
        """The caller's own, a page of them, the most booked first."""
        caller = await self.caller(request, Role.CUSTOMER)
        page = query(request, Page)
        node = self.node
        listing = await favorites.listing(
            node.pool,
            node.mechanics,
            caller.user_id,
            limit=page.limit,
            offset=page.offset,
            capacity=node.config.mechanic_capacity,
        )
        return ok(listing)

    async def add_favorite(self, request: Request) -> Response:
        """201 for a new one, 200 for one that was there."""
        caller = await self.caller(request, Role.CUSTOMER)
        form = await body(request, NewFavorite)
        added, is_new = await favorites.add(
            self.node.pool, caller.user_id, form.provider_id, form.provider_type
        )
        return ok(added, status=201 if is_new else 200)

    async def remove_favorite(self, request: Request) -> Response:
        """By the provider's id."""
        caller = await self.caller(request, Role.CUSTOMER)
        await favorites.remove(self.node.pool, caller.user_id, path_id(request))
        return ok()

    async def rebook(self, request: Request) -> Response:
        """An intake made of the last session with a provider, and what it was made of."""
        received_at = self.node.clock.now()
        caller = await self.caller(request, Role.CUSTOMER)
        asked = await body(request, Rebooking)
        form = await favorites.rebooking(
            self.node.pool,
            caller.user_id,
            asked.provider_id,
            wait_for_preferred=asked.wait_for_preferred,
        )
        answer = await self.start(caller.user_id, form, received_at)
        answer |= {
            "plan": form.plan,
            "vehicle": form.vehicle,
            "concern": form.concern,
            "routing_type": form.routing_type,
        }
        return ok(answer, status=201)
