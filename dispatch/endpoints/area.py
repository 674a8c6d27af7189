"""What the areas share: how a path is declared, what its endpoint is given, and the node it calls.

An endpoint is a method of an area and a line of its table, which says everything about it that the
outside may rely on; `http` does what the line says, and `openapi` tells it:

    def paths(self) -> list[Path]:
        return [
            Path("POST", "/api/teapots", self.brew, roles=CUSTOMER, body=Tea, answer=Brewed,
                 status=201, errors=("pot_full",)),
            Path("GET", "/api/teapots/{id}", self.teapot, roles=CUSTOMER | MECHANIC, answer=Pot),
        ]

    async def brew(self, asked: Asked) -> Brewed:
        \"\"\"Brews tea, for who may drink it.\"\"\"
        tea: Tea = asked.body
        return await teapots.brew(self.node.pool, asked.caller.user_id, tea)

Who has not one of `roles` is refused before anything is read (401, 403), and what is not of the
declared types before the endpoint is called (400). The endpoint reads `asked.id` for the `{id}` of
its path (404 for what is no UUID) and gives back its answer, a struct, or None for a bare `ok`; or
a whole `Response` where the status depends on what it found: `ok(brewed, status=200)`, which the
line declares as `also=(200,)`. Errors are raised. Each code is one of `errors.STATUSES`, and beyond
those that any such path may answer it is declared in the line.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from dispatch import frames, handshake, sessions
from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.errors import STATUSES
from dispatch.exchange import JSON, MAX_BODY_BYTES, path_id
from dispatch.hints import Entry
from dispatch.node import Node
from dispatch.protocol import RequestState, SessionState
from dispatch.sessions import IntakeForm

ANYONE: Final[frozenset[Role]] = frozenset()  # who needs no token
CUSTOMER: Final = frozenset({Role.CUSTOMER})
MECHANIC: Final = frozenset({Role.MECHANIC})
WORKSHOP: Final = frozenset({Role.WORKSHOP})
ADMIN: Final = frozenset({Role.ADMIN})
PARTICIPANTS: Final = CUSTOMER | MECHANIC
EVERY_ROLE: Final = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that may be answered: who asks, and what for.

    `received_at` is by the database's clock, before anything of the body was read. `body` and
    `query` are of the types that the path declares, or None.
    """

    request: Request
    received_at: datetime
    identity: Identity | None
    body: Any
    query: Any

    @property
    def caller(self) -> Identity:
        """Who asks, in one of the path's roles."""
        assert self.identity is not None, "the path is for anyone: nobody was authenticated"
        return self.identity

    @property
    def id(self) -> UUID:
        """The `{id}` of the path. Raises NotFound for what is no id."""
        return path_id(self.request)


Endpoint = Callable[[Asked], Awaitable[Struct | Response | None]]


class Path(Struct, frozen=True):
    """One line of an area's table: all that may be said of an endpoint without calling it.

    `body` is the type of a JSON body, or `bytes` for a body that is taken as it comes, of at most
    `body_bytes`; with `body_optional` none means an empty object. `headers` are those that it reads
    beside the token. `answer` is the struct whose fields stand beside `ok`; another `media` than
    JSON has none. `status` is that of success, or `also` of these. `errors` are codes of
    `errors.STATUSES`, beyond those of every such path.
    """

    method: str
    path: str
    endpoint: Endpoint
    roles: frozenset[Role] = ANYONE
    body: type | None = None
    body_optional: bool = False
    body_bytes: int = MAX_BODY_BYTES
    query: type | None = None
    headers: tuple[str, ...] = ()
    answer: type[Struct] | None = None
    media: str = JSON
    status: int = 200
    also: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert STATUSES.keys() >= set(self.errors), f"{self.errors} are not all in errors.STATUSES"

    @property
    def summary(self) -> str:
        """What it does: the first paragraph of the endpoint's docstring, on one line."""
        return " ".join((self.endpoint.__doc__ or "").partition("\n\n")[0].split())


class Area(ABC):
    """The endpoints of one area, on one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @abstractmethod
    def paths(self) -> list[Path]:
        """Every path of the area."""

    def address(self, request: Request) -> str:
        """From where it is asked, as far as proxies are trusted."""
        peer = request.client.host if request.client else None
        forwarded_for = request.headers.getlist("x-forwarded-for")
        trusted = frozenset(self.node.config.trusted_proxies)
        return handshake.client_address(peer, forwarded_for, trusted)

    async def start(
        self, customer_id: UUID, form: IntakeForm, received_at: datetime
    ) -> "IntakeStarted":
        """Stores a wish, which was heard of at `received_at`; a free plan is a session at once."""
        ttl = timedelta(seconds=self.node.config.request_ttl_seconds)
        started = await sessions.start_intake(
            self.node.pool, customer_id, form, ttl, self.node.dispatcher.open_at_once
        )
        created = started.created
        if created is None:
            return IntakeStarted(intake_id=started.intake_id, redirect=started.redirect)
        self.node.dispatcher.opened(created.request_id, received_at, created.entry)
        return IntakeStarted(
            intake_id=started.intake_id,
            redirect=started.redirect,
            session_id=created.session_id,
            request_id=created.request_id,
            type=created.type,
            status=created.status,
        )

    def request_state(self, entry: Entry) -> RequestState:
        """A booking as its customer sees it."""
        return self.node.fanout.request_state(entry)

    def session_state(self, entry: Entry, caller: Identity) -> SessionState:
        """A session as this participant sees it."""
        return frames.session_state(entry, caller.role, self.node.clock.now())


class IntakeStarted(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored wish, and where the customer goes next; for a free plan also its session."""

    intake_id: UUID
    redirect: str
    session_id: UUID | None = None
    request_id: UUID | None = None
    type: str | None = None
    status: str | None = None
