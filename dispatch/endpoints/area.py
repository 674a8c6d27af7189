"""What the areas share: the node they call, who asks, and what several of them answer."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from dispatch import frames, handshake, sessions
from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.errors import Forbidden, NotAuthenticated
from dispatch.exchange import bearer, fields, ok
from dispatch.hints import Entry
from dispatch.node import Node
from dispatch.sessions import IntakeForm

Endpoint = Callable[[Request], Awaitable[Response]]
Path = tuple[str, str, Endpoint]  # method, path, endpoint


class Area(ABC):
    """The endpoints of one area, on one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @abstractmethod
    def paths(self) -> list[Path]:
        """Every path of the area."""

    async def caller(self, request: Request, *roles: Role) -> Identity:
        """Who asks; 401 without a good token, 403 in another role."""
        token = bearer(request)
        if not token:
            raise NotAuthenticated("a bearer token is required")
        identity = await self.node.authenticator.authenticate(token)
        if roles and identity.role not in roles:
            raise Forbidden(f"not for the role {identity.role.value}")
        return identity

    def address(self, request: Request) -> str:
        """From where it is asked, as far as proxies are trusted."""
        peer = request.client.host if request.client else None
        forwarded_for = request.headers.getlist("x-forwarded-for")
        trusted = frozenset(self.node.config.trusted_proxies)
        return handshake.client_address(peer, forwarded_for, trusted)

    async def start(
        self, customer_id: UUID, form: IntakeForm, received_at: datetime
    ) -> dict[str, Any]:
        """Stores a wish, which was heard of at `received_at`; a free plan is a session at once.

        What to answer: the intake, where the customer goes next, and the session.
        """
        ttl = timedelta(seconds=self.node.config.request_ttl_seconds)
        started = await sessions.start_intake(
            self.node.pool, customer_id, form, ttl, self.node.dispatcher.open_at_once
        )
        answer: dict[str, Any] = {"intake_id": started.intake_id, "redirect": started.redirect}
        created = started.created
        if created is not None:
            self.node.dispatcher.opened(created.request_id, received_at, created.entry)
            answer |= {
                "session_id": created.session_id,
                "request_id": created.request_id,
                "type": created.type,
                "status": created.status,
            }
        return answer

    def request_state(self, entry: Entry) -> Response:
        """A booking as its customer sees it."""
        return ok(fields(self.node.fanout.request_state(entry)))

    def session_state(self, entry: Entry, caller: Identity) -> Response:
        """A session as this participant sees it."""
        now = self.node.clock.now()
        return ok(fields(frames.session_state(entry, caller.role, now)))
