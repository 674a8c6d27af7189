"""A customer's favourites, and booking one of them again."""

from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict
from starlette.responses import Response

from dispatch import favorites
from dispatch.core.types import Routing
from dispatch.endpoints.area import CUSTOMER, Area, Asked, IntakeStarted, Path
from dispatch.exchange import Page, ok


class NewFavorite(Struct, frozen=True):
    """`POST /api/customer/favorites`: a mechanic by herself, or a workshop."""

    provider_id: UUID
    provider_type: favorites.ProviderType


class Rebooking(Struct, frozen=True):
    """`POST /api/customer/rebook`."""

    provider_id: UUID
    wait_for_preferred: bool = False


class Rebooked(IntakeStarted, frozen=True, kw_only=True, omit_defaults=True):
    """A started intake, and what it was made of."""

    plan: str
    vehicle: str | None
    concern: str | None
    routing_type: Routing


class Favorites(Area):
    """Whom a customer would like again."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/customer/favorites",
                self.favorites,
                roles=CUSTOMER,
                query=Page,
                answer=favorites.Listing,
            ),
            Path(
                "POST",
                "/api/customer/favorites",
                self.add_favorite,
                roles=CUSTOMER,
                body=NewFavorite,
                answer=favorites.Added,
                status=201,
                also=(200,),
                errors=("not_found", "mechanic_gone", "too_many_favorites"),
            ),
            Path(
                "DELETE",
                "/api/customer/favorites/{id}",
                self.remove_favorite,
                roles=CUSTOMER,
            ),
            Path(
                "POST",
                "/api/customer/rebook",
                self.rebook,
                roles=CUSTOMER,
                body=Rebooking,
                answer=Rebooked,
                status=201,
                errors=(
                    "not_found",
                    "mechanic_gone",
                    "no_earlier_session",
                    "active_session_exists",
                    "plan_gone",
                ),
            ),
        ]

    async def favorites(self, asked: Asked) -> favorites.Listing:
        """The caller's own, a page of them, the most booked first."""
        page: Page = asked.query
        node = self.node
        return await favorites.listing(
            node.pool,
            node.mechanics,
            asked.caller.user_id,
            limit=page.limit,
            offset=page.offset,
            capacity=node.config.mechanic_capacity,
        )

    async def add_favorite(self, asked: Asked) -> Response:
        """Remembers a provider: 201 for a new favourite, 200 for one that was there."""
        form: NewFavorite = asked.body
        added, is_new = await favorites.add(
            self.node.pool, asked.caller.user_id, form.provider_id, form.provider_type
        )
        return ok(added, status=201 if is_new else 200)

    async def remove_favorite(self, asked: Asked) -> None:
        """Forgets a favourite, by the provider's id."""
        await favorites.remove(self.node.pool, asked.caller.user_id, asked.id)

    async def rebook(self, asked: Asked) -> Rebooked:
        """An intake made of the last session with a provider, and what it was made of."""
        customer_id = asked.caller.user_id
        wanted: Rebooking = asked.body
        form = await favorites.rebooking(
            self.node.pool,
            customer_id,
            wanted.provider_id,
            wait_for_preferred=wanted.wait_for_preferred,
        )
        started = await self.start(customer_id, form, asked.received_at)
        return Rebooked(
            **asdict(started),
            plan=form.plan,
            vehicle=form.vehicle,
            concern=form.concern,
            routing_type=form.routing_type,
        )
