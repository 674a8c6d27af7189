"""What operators and their machines ask: explain, health, metrics."""

import hmac
import ipaddress
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch import explain, fairness, handshake, overviews
from dispatch.core.types import RequestStatus
from dispatch.endpoints.area import ADMIN, Area, Asked, Path
from dispatch.errors import Forbidden, NotAuthenticated
from dispatch.exchange import Page, bearer, error
from dispatch.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from dispatch.protocol import BoardRequest


class Candidates(Struct, frozen=True):
    """Which of a request's candidates are explained: there may be thousands."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 200
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Window(Struct, frozen=True):
    """How far back is looked."""

    hours: Annotated[int, Meta(ge=1, le=fairness.MAX_HOURS)] = fairness.HOURS


class Assignment(Struct, frozen=True):
    """`POST /api/admin/requests/{id}/assign`."""

    mechanic_id: UUID


class Wanted(Page, frozen=True):
    """Which bookings are listed: those in one state, or else all that live."""

    status: RequestStatus | None = None


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
                "/api/admin/requests",
                self.requests,
                roles=ADMIN,
                query=Wanted,
                answer=overviews.Requests,
            ),
            Path(
                "POST",
                "/api/admin/requests/{id}/assign",
                self.assign,
                roles=ADMIN,
                body=Assignment,
                answer=BoardRequest,
                errors=(
                    "not_open",
                    "not_eligible",
                    "unavailable",
                    "busy",
                    "taken",
                    "expired",
                    "cancelled",
                ),
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

    async def requests(self, asked: Asked) -> overviews.Requests:
        """Every live booking with its stage, deadlines and counts, the oldest first; or those in
        one state."""
        wanted: Wanted = asked.query
        return await overviews.requests(
            self.node.pool,
            self.node.fanout.board_request,
            wanted.status,
            limit=wanted.limit,
            offset=wanted.offset,
        )

    async def assign(self, asked: Asked) -> BoardRequest:
        """Gives an open booking to a mechanic by hand, through the judge, on record. Whose stage it
        is and whether she was excluded does not matter; all else does."""
        form: Assignment = asked.body
        entry = await self.node.dispatcher.assign(asked.caller.user_id, asked.id, form.mechanic_id)
        return self.node.fanout.board_request(entry)

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
