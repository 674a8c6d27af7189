"""What operators and their machines ask: explain, health, metrics."""

import hmac
import ipaddress
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch import explain, fairness, handshake
from dispatch.core.types import Role
from dispatch.endpoints.area import Area, Path
from dispatch.errors import Forbidden, NotAuthenticated
from dispatch.exchange import bearer, error, ok, path_id, query
from dispatch.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE


class Candidates(Struct, frozen=True):
    """Which of a request's candidates are explained: there may be thousands."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 200
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Window(Struct, frozen=True):
    """How far back is looked."""

    hours: Annotated[int, Meta(ge=1, le=fairness.MAX_HOURS)] = fairness.HOURS


class Operators(Area):
    """For admins and for monitoring."""

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            ("GET", "/api/admin/requests/{id}/explain", self.explain),
            ("GET", "/api/admin/mechanics/{id}/fairness", self.fairness),
            ("GET", "/healthz", self.health),
            ("GET", "/readyz", self.readiness),
            ("GET", "/metrics", self.metrics),
        ]

    async def explain(self, request: Request) -> Response:
        """Why a request went as it did, candidate by candidate (R9)."""
        await self.caller(request, Role.ADMIN)
        part = query(request, Candidates)
        policy = self.node.config.policy()
        explanation = await explain.explanation(
            self.node.pool, path_id(request), policy, limit=part.limit, offset=part.offset
        )
        return ok(explanation)

    async def fairness(self, request: Request) -> Response:
        """Whether a mechanic is treated as the others are."""
        await self.caller(request, Role.ADMIN)
        hours = query(request, Window).hours
        return ok(await fairness.fairness(self.node.pool, path_id(request), hours))

    async def health(self, request: Request) -> Response:
        """This process answers."""
        return ok({"node_id": self.node.node_id})

    async def readiness(self, request: Request) -> Response:
        """503 without Postgres or while draining; 200 with what is degraded otherwise."""
        if not await self.node.is_ready():
            reason = "draining" if self.node.gateway.draining else "postgres"
            return error(503, "not_ready", f"not ready: {reason}")
        return ok({"degraded": self.node.degraded()})

    async def metrics(self, request: Request) -> Response:
        """Prometheus's text, for who has the token; without one configured, from loopback."""
        self._may_read_metrics(request)
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
