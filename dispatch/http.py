"""The HTTP endpoints: parse, call, answer.

One job: turn a request into one call of the dispatcher or a domain module, and its result or its
typed error into JSON. Nothing is decided here. Bodies are decoded into typed structs, at most
64 KiB; whoever may not is told so before anything is read from the database.
"""

import hmac
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dispatch import (
    decoding,
    explain,
    frames,
    handshake,
    mechanics,
    payments,
    people,
    sessions,
)
from dispatch.auth import Identity
from dispatch.core.types import Role
from dispatch.decoding import Undecodable
from dispatch.errors import (
    BadRequest,
    Conflict,
    DispatchError,
    Forbidden,
    NotAuthenticated,
    NotFound,
    TooLarge,
)
from dispatch.hints import Entry
from dispatch.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from dispatch.node import Node
from dispatch.pages import page

log = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 64 * 1024
MAX_WEBHOOK_BYTES: Final = 512 * 1024  # Stripe's events are larger than what clients may send

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]
_encode: Final = msgspec.json.Encoder().encode


class LogIn(Struct, frozen=True):
    """`POST /api/auth/login`."""

    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=200)]


class SignUp(Struct, frozen=True):
    """`POST /api/customer/signup`."""

    name: Annotated[str, Meta(max_length=200)]
    email: Annotated[str, Meta(max_length=254)]
    password: Annotated[str, Meta(max_length=200)]


class Waiver(Struct, frozen=True):
    """`POST /api/waiver/sign`."""

    intake_id: UUID
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    version: Annotated[str, Meta(min_length=1, max_length=50)]


class SessionRef(Struct, frozen=True):
    """A body that names a session."""

    session_id: UUID


class Api:
    """The endpoints of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[Route]:
        """Every path, with the method and the endpoint."""
        table: list[tuple[str, str, Endpoint]] = [
            ("POST", "/api/auth/login", self.log_in),
            ("POST", "/api/auth/refresh", self.refresh),
            ("POST", "/api/auth/logout", self.log_out),
            ("POST", "/api/customer/signup", self.sign_up_customer),
            ("GET", "/api/mechanics/{id}/status", self.mechanic_status),
            ("POST", "/api/intake/start", self.start_intake),
            ("POST", "/api/waiver/sign", self.sign_waiver),
            ("GET", "/api/checkout/create-session", self.create_checkout),
            ("POST", "/api/stripe/webhook", self.stripe_webhook),
            ("GET", "/api/requests/{id}", self.request),
            ("POST", "/api/requests/{id}/cancel", self.cancel_request),
            ("POST", "/api/requests/{id}/widen", self.widen_request),
            ("GET", "/api/sessions/{id}", self.session),
            ("POST", "/api/sessions/{id}/join", self.join_session),
            ("POST", "/api/admin/sessions/join", self.join_named_session),
            ("POST", "/api/sessions/{id}/end", self.end_session),
            ("GET", "/api/admin/requests/{id}/explain", self.explain),
            ("GET", "/healthz", self.health),
            ("GET", "/readyz", self.readiness),
            ("GET", "/metrics", self.metrics),
            ("GET", "/checkout/success", self.checkout_success),
            ("GET", "/checkout/cancel", self.checkout_cancel),
        ]
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]

    # --- people

    async def log_in(self, request: Request) -> Response:
        """A token for an e-mail and a password."""
        form = await _body(request, LogIn)
        node = self._node
        logged_in = await people.log_in(
            node.pool, node.config.jwt_secret, node.login_rate, form.email, form.password
        )
        return _ok(logged_in)

    async def refresh(self, request: Request) -> Response:
        """A new token for a present one."""
        caller = await self._caller(request)
        return _ok(people.refresh(self._node.config.jwt_secret, caller))

    async def log_out(self, request: Request) -> Response:
        """Revokes every token of the caller and closes her sockets on every node."""
        caller = await self._caller(request)
        epoch = await people.log_out(self._node.pool, caller.user_id)
        self._node.revoke(caller.user_id, epoch)
        return _ok()

    async def sign_up_customer(self, request: Request) -> Response:
        """A new customer, logged in."""
        form = await _body(request, SignUp)
        user_id = await people.sign_up_customer(
            self._node.pool, form.name, form.email, form.password
        )
        newcomer = Identity(user_id, Role.CUSTOMER, 0, 0.0)
        return _ok(people.refresh(self._node.config.jwt_secret, newcomer), status=201)

    async def mechanic_status(self, request: Request) -> Response:
        """Whether a mechanic is there (F2)."""
        await self._caller(request, Role.CUSTOMER)
        try:
            mechanic_id = _id(request)
        except NotFound:
            raise NotFound("this mechanic is gone", code="mechanic_gone") from None
        status = await mechanics.status(self._node.pool, self._node.presence, mechanic_id)
        return _ok({**_fields(status.frame()), "name": status.name})

    # --- booking

    async def start_intake(self, request: Request) -> Response:
        """Stores a wish; a free plan is a session at once."""
        caller = await self._caller(request, Role.CUSTOMER)
        form = await _body(request, sessions.IntakeForm)
        ttl = timedelta(seconds=self._node.config.request_ttl_seconds)
        started = await sessions.start_intake(self._node.pool, caller.user_id, form, ttl)
        answer: dict[str, Any] = {"intake_id": started.intake_id, "redirect": started.redirect}
        if started.created is not None:
            self._node.dispatcher.opened(started.created.request_id)
            answer |= {
                "session_id": started.created.session_id,
                "request_id": started.created.request_id,
                "type": started.created.type,
                "status": started.created.status,
            }
        return _ok(answer, status=201)

    async def sign_waiver(self, request: Request) -> Response:
        """Who, when, which version, from where (S5)."""
        caller = await self._caller(request, Role.CUSTOMER)
        form = await _body(request, Waiver)
        name, address = people.checked_name(form.name), self._address(request)
        await sessions.sign_waiver(
            self._node.pool, caller.user_id, form.intake_id, name, form.version, address
        )
        return _ok({"intake_id": form.intake_id})

    async def create_checkout(self, request: Request) -> Response:
        """To Stripe's hosted page; its address as JSON for who asks for JSON (C1)."""
        caller = await self._caller(request, Role.CUSTOMER)
        query = _query(request, payments.CheckoutQuery)
        node = self._node
        url = await payments.create_checkout(
            node.pool, node.stripe, node.config, caller.user_id, query
        )
        if "application/json" in request.headers.get("accept", ""):
            return _ok({"url": url})
        return RedirectResponse(url, status_code=303, headers={"cache-control": "no-store"})

    async def stripe_webhook(self, request: Request) -> Response:
        """200 after the commit (C2). What was booked is dispatched then."""
        node = self._node
        raw = await _raw_body(request, MAX_WEBHOOK_BYTES)
        signature = request.headers.get("stripe-signature")
        outcome = await payments.handle_webhook(node.pool, node.config, raw, signature)
        node.metrics.webhook(outcome.result)
        if outcome.created is not None:
            node.dispatcher.opened(outcome.created.request_id)
        if outcome.refund_queued:
            node.outbox.wake()
        return _ok()

    # --- requests and sessions

    async def request(self, request: Request) -> Response:
        """The frame `request.status` of the customer's own request."""
        caller = await self._caller(request, Role.CUSTOMER)
        entry = await self._node.dispatcher.customer_entry(caller.user_id, _id(request))
        return self._request_state(entry)

    async def cancel_request(self, request: Request) -> Response:
        """Before an accept; afterwards it is the end of the session."""
        caller = await self._caller(request, Role.CUSTOMER)
        entry = await self._node.dispatcher.cancel(caller.user_id, _id(request))
        return self._request_state(entry)

    async def widen_request(self, request: Request) -> Response:
        """A priority or head-start stage ends now."""
        caller = await self._caller(request, Role.CUSTOMER)
        entry = await self._node.dispatcher.widen(caller.user_id, _id(request))
        return self._request_state(entry)

    async def session(self, request: Request) -> Response:
        """The frame `session.status` for a participant."""
        caller = await self._caller(request, Role.CUSTOMER, Role.MECHANIC)
        entry = await self._node.dispatcher.participant_entry(caller.user_id, _id(request))
        return self._session_state(entry, caller)

    async def join_session(self, request: Request) -> Response:
        """Enters a session; a mechanic on a pending one accepts and joins."""
        caller = await self._caller(request, Role.CUSTOMER, Role.MECHANIC)
        return await self._join(caller, _id(request))

    async def join_named_session(self, request: Request) -> Response:
        """The same with the session in the body."""
        caller = await self._caller(request, Role.CUSTOMER, Role.MECHANIC)
        return await self._join(caller, (await _body(request, SessionRef)).session_id)

    async def end_session(self, request: Request) -> Response:
        """Leaves a session for good; idempotent."""
        caller = await self._caller(request, Role.CUSTOMER, Role.MECHANIC)
        entry = await self._node.dispatcher.end(caller.user_id, _id(request))
        return self._session_state(entry, caller)

    async def _join(self, caller: Identity, session_id: UUID) -> Response:
        entry = await self._node.dispatcher.join(caller.user_id, caller.role, session_id)
        return self._session_state(entry, caller)

    # --- operators

    async def explain(self, request: Request) -> Response:
        """Why a request went as it did, candidate by candidate (R9)."""
        await self._caller(request, Role.ADMIN)
        policy = self._node.config.policy()
        return _ok(await explain.explanation(self._node.pool, _id(request), policy))

    async def health(self, request: Request) -> Response:
        """This process answers."""
        return _ok({"node_id": self._node.node_id})

    async def readiness(self, request: Request) -> Response:
        """503 without Postgres or while draining; 200 with what is degraded otherwise."""
        if not await self._node.is_ready():
            reason = "draining" if self._node.gateway.draining else "postgres"
            return _error(503, "not_ready", f"not ready: {reason}")
        return _ok({"degraded": self._node.degraded()})

    async def metrics(self, request: Request) -> Response:
        """Prometheus's text, for who has the token; without one configured, from loopback."""
        self._may_read_metrics(request)
        headers = handshake.JSON_HEADERS | {"content-type": METRICS_CONTENT_TYPE}
        return Response(self._node.metrics.render(), headers=headers)

    def _may_read_metrics(self, request: Request) -> None:
        wanted = self._node.config.metrics_token
        if wanted:
            if not _same(_bearer(request), wanted):
                raise NotAuthenticated("the metrics token is missing or wrong")
        elif (
            request.client is None
            or not _is_loopback(request.client.host)
            or "x-forwarded-for" in request.headers  # a proxy on this machine, for somebody else
        ):
            raise Forbidden("metrics are for loopback, or set DISPATCH_METRICS_TOKEN")

    # --- pages that Stripe sends people back to

    async def checkout_success(self, request: Request) -> Response:
        """Says thank you. Only the webhook books."""
        return page(
            "Thank you",
            "Your payment is being confirmed. Your booking starts as soon as it is; "
            "you can follow it where you began.",
        )

    async def checkout_cancel(self, request: Request) -> Response:
        """Says that nothing happened."""
        return page("Nothing was charged", "You left the payment page. You can begin again.")

    # --- shared

    async def _caller(self, request: Request, *roles: Role) -> Identity:
        """Who asks; 401 without a good token, 403 in another role."""
        token = _bearer(request)
        if not token:
            raise NotAuthenticated("a bearer token is required")
        identity = await self._node.authenticator.authenticate(token)
        if roles and identity.role not in roles:
            raise Forbidden(f"not for the role {identity.role.value}")
        return identity

    def _address(self, request: Request) -> str:
        """From where it is asked, as far as proxies are trusted."""
        peer = request.client.host if request.client else None
        forwarded_for = request.headers.getlist("x-forwarded-for")
        trusted = frozenset(self._node.config.trusted_proxies)
        return handshake.client_address(peer, forwarded_for, trusted)

    def _request_state(self, entry: Entry) -> Response:
        return _ok(_fields(self._node.fanout.request_state(entry)))

    def _session_state(self, entry: Entry, caller: Identity) -> Response:
        now = self._node.clock.now()
        return _ok(_fields(frames.session_state(entry, caller.role, now)))


def create_app(node: Node, lifespan: Any) -> Starlette:
    """The Starlette application of a node."""
    app = Starlette(
        routes=Api(node).routes(),
        lifespan=lifespan,
        exception_handlers={
            DispatchError: _typed_error,
            HTTPException: _http_error,
            Exception: _unexpected_error,
        },
    )
    app.router.redirect_slashes = False  # it would redirect to whatever Host the client named
    return app


# --- parsing --------------------------------------------------------------------------------------


async def _raw_body(request: Request, limit: int) -> bytes:
    """The body as it came; `TooLarge` as soon as it is longer than `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"at most {limit} bytes")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise TooLarge(f"at most {limit} bytes")
    except ClientDisconnect:
        raise BadRequest("the body did not come whole") from None
    return bytes(body)


async def _body(request: Request, kind: type[T]) -> T:
    """The JSON body as a `kind`; `BadRequest` says what does not fit."""
    raw = await _raw_body(request, MAX_BODY_BYTES)
    try:
        return decoding.decode(raw, msgspec.json.Decoder(kind))
    except Undecodable as error:
        raise BadRequest(str(error)) from None


def _query(request: Request, kind: type[T]) -> T:
    """The query string as a `kind`; a name given twice is refused."""
    pairs = request.query_params.multi_items()
    query = dict(pairs)
    if len(query) != len(pairs):
        raise BadRequest("a parameter is given twice")
    try:
        return decoding.convert(query, kind)
    except Undecodable as error:
        raise BadRequest(str(error)) from None


def _id(request: Request) -> UUID:
    """The path's id, in the spellings that a body may have; what is no id names nothing."""
    try:
        return msgspec.convert(request.path_params["id"], UUID)
    except msgspec.ValidationError:
        raise NotFound from None


def _bearer(request: Request) -> str:
    """The token of the request, empty without one."""
    return handshake.bearer_token(request.headers.getlist("authorization")) or ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


# --- answering ------------------------------------------------------------------------------------


def _fields(value: Any) -> dict[str, Any]:
    """A struct's fields as JSON values, without the frame's type."""
    fields: dict[str, Any] = msgspec.to_builtins(value)
    fields.pop("type", None)
    return fields


def _ok(value: Any = None, status: int = 200) -> Response:
    fields = value if isinstance(value, dict) else {} if value is None else _fields(value)
    return _json({"ok": True, **fields}, status)


def _error(status: int, code: str, message: str, **beside: object) -> Response:
    return _json({"ok": False, "error": {"code": code, "message": message}, **beside}, status)


def _json(value: dict[str, Any], status: int) -> Response:
    return Response(_encode(value), status_code=status, headers=handshake.JSON_HEADERS)


async def _typed_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DispatchError)
    beside = error.fields if isinstance(error, Conflict) else {}
    return _error(error.status, error.code, error.message, **beside)


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: an unknown path, a method that the path has not."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    answer = _error(error.status_code, code, str(error.detail).lower())
    answer.headers.update(error.headers or {})
    return answer


async def _unexpected_error(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error(500, "internal", "something went wrong here; it is logged")
