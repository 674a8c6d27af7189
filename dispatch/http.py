"""The HTTP side of a node: its areas put together, and every error as a typed answer.

One job: compose. What a path means stands in `endpoints`; here an exception becomes JSON with the
right status, and what nobody foresaw becomes a 500 that says nothing and is logged.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatch import exchange
from dispatch.endpoints.area import Endpoint, Path
from dispatch.endpoints.booking import Bookings
from dispatch.endpoints.credits import Credits
from dispatch.endpoints.earnings import Earnings
from dispatch.endpoints.favorites import Favorites
from dispatch.endpoints.mechanics import Mechanics
from dispatch.endpoints.money import Money
from dispatch.endpoints.operators import Operators
from dispatch.endpoints.people import People
from dispatch.endpoints.push import Push
from dispatch.endpoints.sessions import Sessions
from dispatch.endpoints.workshops import Workshops
from dispatch.errors import Conflict, DispatchError
from dispatch.node import Node

log = logging.getLogger(__name__)

AREAS = (
    People,
    Bookings,
    Credits,
    Favorites,
    Sessions,
    Mechanics,
    Workshops,
    Push,
    Earnings,
    Money,
    Operators,
)


def create_app(node: Node, lifespan: Any) -> Starlette:
    """The Starlette application of a node."""
    app = Starlette(
        routes=_routes(path for area in AREAS for path in area(node).paths()),
        lifespan=lifespan,
        exception_handlers={
            DispatchError: _typed_error,
            HTTPException: _http_error,
            Exception: _unexpected_error,
        },
    )
    app.router.redirect_slashes = False  # it would redirect to whatever Host the client named
    return app


def _routes(paths: Iterable[Path]) -> list[Route]:
    """One route a path, so that whoever asks with another method is told all that it has."""
    by_path: defaultdict[str, dict[str, Endpoint]] = defaultdict(dict)
    for method, path, endpoint in paths:
        by_path[path][method] = endpoint
    return [
        Route(path, _by_method(endpoints), methods=list(endpoints))
        for path, endpoints in by_path.items()
    ]


def _by_method(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await endpoints[method](request)

    return endpoint


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
    return exchange.error(500, "internal", "something went wrong here; it is logged")
