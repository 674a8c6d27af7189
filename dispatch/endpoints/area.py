"""What the areas share: the node they call, and who asks."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatch import frames, handshake
from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.errors import Forbidden, NotAuthenticated
from dispatch.exchange import bearer, fields, ok
from dispatch.hints import Entry
from dispatch.node import Node

Endpoint = Callable[[Request], Awaitable[Response]]
Path = tuple[str, str, Endpoint]  # method, path, endpoint


class Area(ABC):
    """The endpoints of one area, on one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @abstractmethod
    def paths(self) -> list[Path]:
        """Every path of the area."""

    def routes(self) -> list[Route]:
        """The same for Starlette."""
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in self.paths()]

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

    def request_state(self, entry: Entry) -> Response:
        """A booking as its customer sees it."""
        return ok(fields(self.node.fanout.request_state(entry)))

    def session_state(self, entry: Entry, caller: Identity) -> Response:
        """A session as this participant sees it."""
        now = self.node.clock.now()
        return ok(fields(frames.session_state(entry, caller.role, now)))
