"""Key figures, for operators."""

from datetime import date

from msgspec import field

from dispatch import analytics
from dispatch.endpoints.area import ADMIN, Area, Asked, Path
from dispatch.exchange import Page


class Span(Page, frozen=True):
    """Which days (both included, in UTC), grouped by what; and which part of the workshops."""

    from_: date | None = field(default=None, name="from")
    to: date | None = None
    by: analytics.By = "day"


class Analytics(Area):
    """How bookings fare."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/admin/analytics",
                self.analytics,
                roles=ADMIN,
                query=Span,
                answer=analytics.Analytics,
            ),
        ]

    async def analytics(self, asked: Asked) -> analytics.Analytics:
        """The key figures of the requests of some days, by default the latest 30, as a whole and by
        day, strategy or experiment; and what each workshop served."""
        wanted: Span = asked.query
        first, last = analytics.span(wanted.from_, wanted.to, asked.received_at.date())
        return await analytics.analytics(
            self.node.pool, first, last, wanted.by, limit=wanted.limit, offset=wanted.offset
        )
