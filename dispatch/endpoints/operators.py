"""What operators and their machines ask: explain, health, metrics."""

import hmac
import ipaddress
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch import explain, fairness, handshake
from dispatch.endpoints.area import ADMIN, Area, Asked, Path
from dispatch.errors import Forbidden, NotAuthenticated
from dispatch.exchange import bearer, error
from dispatch.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE


class Candidates(Struct, frozen=True):
    """Which of a request's candidates are explained: there may be thousands."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 200
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Window(Struct, frozen=True):
    """How far back is looked."""

    hours: Annotated[int, Meta(ge=1, le=fairness.MAX_HOURS)] = fairness.HOURS


class Health(Struct, frozen=True):
    """`GET /healthz`."""

    node_id: UUID


class Readiness(Struct, frozen=True):
    """`GET /readyz` of a node that can serve: what it does without (`redis`, `bus`)."""

    degraded: list[str]


class Operators(Area):
    """For admins and for monitoring."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/admin/requests/{id}/explain",
                self.explain,
                roles=ADMIN,
                query=Candidates,
                answer=explain.Explanation,
            ),
            Path(
                "GET",
                "/api/admin/mechanics/{id}/fairness",
                self.fairness,
                roles=ADMIN,
                query=Window,
                answer=fairness.Fairness,
            ),
            Path("GET", "/healthz", self.health, answer=Health),
            Path("GET", "/readyz", self.readiness, answer=Readiness, errors=("not_ready",)),
            Path(
                "GET",
                "/metrics",
                self.metrics,
                media=METRICS_CONTENT_TYPE,
                errors=("not_authenticated", "forbidden"),
            ),
        ]

    async def explain(self, asked: Asked) -> explain.Explanation:
        """Why a request went as it did, candidate by candidate (R9)."""
        part: Candidates = asked.query
        policy = self.node.config.policy()
        return await explain.explanation(
            self.node.pool, asked.id, policy, limit=part.limit, offset=part.offset
        )

    async def fairness(self, asked: Asked) -> fairness.Fairness:
        """Whether a mechanic is treated as the others are."""
        window: Window = asked.query
        return await fairness.fairness(self.node.pool, asked.id, window.hours)

    async def health(self, asked: Asked) -> Health:
        """This process answers."""
        return Health(self.node.node_id)

    async def readiness(self, asked: Asked) -> Readiness | Response:
        """503 without Postgres or while draining; 200 with what is degraded otherwise."""
        if not await self.node.is_ready():
            reason = "draining" if self.node.gateway.draining else "postgres"
            return error(503, "not_ready", f"not ready: {reason}")
        return Readiness(self.node.degraded())

    async def metrics(self, asked: Asked) -> Response:
        """Prometheus's text, for who has the token; without one configured, from loopback."""
        self._may_read_metrics(asked.request)
        headers = handshake.JSON_HEADERS | {"content-type": METRICS_CONTENT_TYPE}
        return Response(self.node.metrics.render(), headers=headers)

    def _may_read_metrics(self, request: Request) -> None:
        wanted = self.node.config.metrics_token
        if wanted:
            if not _same(bearer(request), wanted):
                raise NotAuthenticated("the metrics token is missing or wrong")
        elif (
            request.client is None
            or not _is_loopback(request.client.host)
            or "x-forwarded-for" in request.headers  # a proxy on this machine, for somebody else
        ):
            raise Forbidden("metrics are for loopback, or set DISPATCH_METRICS_TOKEN")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
