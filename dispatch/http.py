"""The HTTP side of a node: its areas put together, and every error as a typed answer.

One job: what is the same for every endpoint. Each path is declared in `endpoints`; here it is seen
to, once, that only its roles get in and only what is of its types; an exception becomes JSON with
the right status, and what nobody foresaw becomes a 500 that says nothing and is logged.
"""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import NoneType
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatch import exchange
from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.endpoints.admin_people import AdminPeople
from dispatch.endpoints.analytics import Analytics
from dispatch.endpoints.area import Area, Asked, Path
from dispatch.endpoints.booking import Bookings
from dispatch.endpoints.credits import Credits
from dispatch.endpoints.documents import Documents
from dispatch.endpoints.earnings import Earnings
from dispatch.endpoints.favorites import Favorites
from dispatch.endpoints.mechanics import Mechanics
from dispatch.endpoints.money import Money
from dispatch.endpoints.operators import Operators
from dispatch.endpoints.pages import Pages
from dispatch.endpoints.people import People
from dispatch.endpoints.push import Push
from dispatch.endpoints.sessions import Sessions
from dispatch.endpoints.slots import Slots
from dispatch.endpoints.workshops import Workshops
from dispatch.errors import Conflict, DispatchError, Forbidden, NotAuthenticated
from dispatch.node import Node

log = logging.getLogger(__name__)

AREAS: Final[tuple[type[Area], ...]] = (
    People,
    Bookings,
    Credits,
    Favorites,
    Sessions,
    Mechanics,
    Workshops,
    Slots,
    Push,
    Earnings,
    Money,
    AdminPeople,
    Operators,
    Analytics,
    Pages,
)

Handler = Callable[[Request], Awaitable[Response]]


def create_app(node: Node, lifespan: Any) -> Starlette:
    """The Starlette application of a node."""
    app = Starlette(
        routes=_routes(node, (path for area in areas(node) for path in area.paths())),
        lifespan=lifespan,
        exception_handlers={
            DispatchError: _typed_error,
            HTTPException: _http_error,
            Exception: _unexpected_error,
        },
    )
    app.router.redirect_slashes = False  # it would redirect to whatever Host the client named
    return app


def areas(node: Node) -> list[Area]:
    """Everything that is served, with what describes it."""
    served = [area(node) for area in AREAS]
    return [*served, Documents(node, served)]


def _routes(node: Node, paths: Iterable[Path]) -> list[Route]:
    """One route a path, so that whoever asks with another method is told all that it has."""
    by_path: defaultdict[str, dict[str, Handler]] = defaultdict(dict)
    for path in paths:
        by_path[path.path][path.method] = _handler(node, path)
    return [
        Route(path, _by_method(handlers), methods=list(handlers))
        for path, handlers in by_path.items()
    ]


def _by_method(handlers: Mapping[str, Handler]) -> Handler:
    async def handle(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](request)

    return handle


def _handler(node: Node, path: Path) -> Handler:
    """Does what the path's line says: who may, then what was sent, then the endpoint."""
    read_body = _body_reader(path)

    async def handle(request: Request) -> Response:
        received_at = node.clock.now()
        identity = await _caller(node, request, path.roles) if path.roles else None
        body = await read_body(request)
        query = None if path.query is None else exchange.query(request, path.query)
        answer = await path.endpoint(Asked(request, received_at, identity, body, query))
        if isinstance(answer, Response):
            return answer
        assert isinstance(answer, path.answer or NoneType), f"{path.path} answers {type(answer)}"
        return exchange.ok(answer, path.status)

    return handle


async def _caller(node: Node, request: Request, roles: frozenset[Role]) -> Identity:
    """Who asks; 401 without a good token, 403 in another role."""
    token = exchange.bearer(request)
    if not token:
        raise NotAuthenticated("a bearer token is required")
    identity = await node.authenticator.authenticate(token)
    if identity.role not in roles:
        raise Forbidden(f"not for the role {identity.role.value}")
    return identity


def _body_reader(path: Path) -> Callable[[Request], Awaitable[Any]]:
    """Reads a body of the declared type; none is read where none is declared."""
    if path.body is None:
        return _no_body
    if path.body is bytes:
        return lambda request: exchange.raw_body(request, path.body_bytes)
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(path.body)

    async def read(request: Request) -> Any:
        raw = await exchange.raw_body(request, path.body_bytes)
        return exchange.body(raw or (b"{}" if path.body_optional else b""), decoder)

    return read


async def _no_body(request: Request) -> None:
    return None


async def _typed_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DispatchError)
    beside = error.fields if isinstance(error, Conflict) else {}
    return exchange.error(error.status, error.code, error.message, **beside)


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: an unknown path, a method that the path has not."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    answer = exchange.error(error.status_code, code, str(error.detail).lower())
    answer.headers.update(error.headers or {})
    return answer


async def _unexpected_error(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    answer = exchange.error(500, "internal", "something went wrong here; it is logged")
    answer.headers["connection"] = "close"  # Starlette raises it again, and uvicorn hangs up
    return answer
