"""Key figures and experiments, for operators."""

from datetime import date

from msgspec import field

from dispatch import analytics, experiments
from dispatch.endpoints.area import ADMIN, Area, Asked, Path
from dispatch.exchange import Page


class Span(Page, frozen=True):
    """Which days (both included, in UTC), grouped by what; and which part of the workshops."""

    from_: date | None = field(default=None, name="from")
    to: date | None = None
    by: analytics.By = "day"


class Analytics(Area):
    """How bookings fare, and what is tried to make them fare better."""

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
            Path(
                "GET",
                "/api/admin/experiments",
                self.list_experiments,
                roles=ADMIN,
                query=Page,
                answer=experiments.Experiments,
            ),
            Path(
                "PUT",
                "/api/admin/experiments",
                self.put_experiment,
                roles=ADMIN,
                body=experiments.ExperimentForm,
                answer=experiments.Experiment,
                errors=("experiment_started",),
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

    async def list_experiments(self, asked: Asked) -> experiments.Experiments:
        """Every experiment, the latest first, with who changed it last."""
        page: Page = asked.query
        return await experiments.listing(self.node.pool, limit=page.limit, offset=page.offset)

    async def put_experiment(self, asked: Asked) -> experiments.Experiment:
        """Makes one experiment, or changes the one of that name, from the next booking on. It is
        never deleted: a rollout of 0 switches it off."""
        return await experiments.put(self.node.pool, asked.caller.user_id, asked.body)
