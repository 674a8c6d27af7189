"""The routes: Stripe's API under `/v1`, the hosted page under `/c/pay`, control for tests.

Its one job: bytes in, one action on the ledger, bytes out. Imports Starlette, uvicorn and the rest
of this package. Every `/v1` answer that is an error has Stripe's shape; bad input never is a 500.
"""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from . import actions, objects, page
from .delivery import Deliverer
from .ledger import Answer, Ledger
from .objects import DEFAULT_API_VERSION, Cause, Json, Payment, Refund, Session, new_id
from .params import (
    ApiError,
    CheckoutParams,
    InvalidParams,
    ListByIntentParams,
    ListEventsParams,
    NoParams,
    RefundParams,
    parse_form,
    read,
)

log = logging.getLogger(__name__)

BODY_LIMIT_BYTES = 64 * 1024
EXPIRY_TICK_SECONDS = 0.25
MAX_REDELIVERIES = 200
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

Endpoint = Callable[[Request], Awaitable[Response]]


class Call(Struct, frozen=True):
    """One API request, understood so far: its form is nested and not yet typed."""

    form: Json
    path: dict[str, str]
    base_url: str
    request_id: str
    api_version: str
    idempotency_key: str | None

    @property
    def cause(self) -> Cause:
        return Cause(self.request_id, self.idempotency_key)


class Redelivery(Struct, forbid_unknown_fields=True):
    """Body of `POST /_standin/deliver`."""

    event_id: str
    times: int = 1


Handler = Callable[[Call], Json]


class StandIn:
    """The state of one stand-in and the endpoints on it."""

    def __init__(
        self, ledger: Ledger, deliverer: Deliverer, secret_key: str, now: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._deliverer = deliverer
        self._secret_key = secret_key
        self._now = now

    def routes(self) -> list[Route]:
        """All routes, the catch-all for unknown API addresses last."""
        api = (
            ("POST", "/v1/checkout/sessions", self.create_session),
            ("GET", "/v1/checkout/sessions", self.list_sessions),
            ("GET", "/v1/checkout/sessions/{id}", self.get_session),
            ("POST", "/v1/checkout/sessions/{id}/expire", self.expire_session),
            ("POST", "/v1/refunds", self.create_refund),
            ("GET", "/v1/refunds", self.list_refunds),
            ("GET", "/v1/refunds/{id}", self.get_refund),
            ("GET", "/v1/payment_intents/{id}", self.get_payment_intent),
            ("GET", "/v1/events", self.list_events),
            ("GET", "/v1/events/{id}", self.get_event),
        )
        return [
            *(Route(path, self._api(handler), methods=[method]) for method, path, handler in api),
            Route("/v1/{rest:path}", self._api(None), methods=list(_METHODS)),
            Route("/c/pay/{id}", self.show, methods=["GET"]),
            Route("/c/pay/{id}/pay", self.pay, methods=["POST"]),
            Route("/c/pay/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/_standin/deliver", self.deliver, methods=["POST"]),
            Route("/_standin/ledger", self.show_ledger, methods=["GET"]),
        ]

    async def expire_forever(self) -> None:
        """Close sessions when their time is over, until cancelled."""
        while True:
            with self._ledger.transaction():
                past = self._ledger.sessions_past(self._now())
                for session in past:
                    actions.expire(self._ledger, session, cause=Cause(), now=self._now())
            if past:
                self._deliverer.wake()
            await asyncio.sleep(EXPIRY_TICK_SECONDS)

    # --- the API -----------------------------------------------------------------------------

    def _api(self, handler: Handler | None) -> Endpoint:
        """Authentication, form, idempotency and error objects around one handler."""

        async def endpoint(request: Request) -> Response:
            request_id = new_id("req")
            version = request.headers.get("stripe-version", DEFAULT_API_VERSION)
            key = request.headers.get("idempotency-key") if request.method == "POST" else None
            headers = {"Request-Id": request_id, "Stripe-Version": version}
            try:
                self._authenticate(request)
                if handler is None:
                    raise _unknown_url(request)
                raw = await _body(request) if request.method == "POST" else _query(request)
                call = Call(
                    form=parse_form(raw),
                    path=request.path_params,
                    base_url=str(request.base_url).rstrip("/"),
                    request_id=request_id,
                    api_version=version,
                    idempotency_key=key,
                )
                answer = self._perform(request, call, handler)
            except ApiError as error:
                return JSONResponse(error.body, error.status, headers)
            if key is not None:
                headers["Idempotency-Key"] = key
                headers["Original-Request"] = answer.request_id
            if answer.request_id != request_id:
                headers["Idempotent-Replayed"] = "true"
            return Response(answer.body, answer.status, headers, "application/json")

        return endpoint

    def _authenticate(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise ApiError(
                "You did not provide an API key. You need to provide your API key in the "
                "Authorization header, using Bearer auth.",
                status=401,
            )
        if not hmac.compare_digest(given.encode(), self._secret_key.encode()):
            raise ApiError(f"Invalid API Key provided: {given[:8]}****", status=401)

    def _perform(self, request: Request, call: Call, handler: Handler) -> Answer:
        """The handler's answer, or the one already given for this idempotency key."""
        key = call.idempotency_key
        asked = msgspec.json.encode([request.method, request.url.path, call.form], order="sorted")
        fingerprint = hashlib.sha256(asked).hexdigest()
        if key is not None and len(key) > 255:
            raise InvalidParams("Idempotency keys can be at most 255 characters.")
        with self._ledger.transaction():
            earlier = self._ledger.answer(key) if key is not None else None
            if earlier is not None:
                if earlier.fingerprint == fingerprint:
                    return earlier
                raise ApiError(
                    "Keys for idempotent requests can only be used with the same parameters they "
                    f"were first used with. Try using a key other than '{key}' if you meant to "
                    "execute a different request.",
                    kind="idempotency_error",
                )
            status, shown = _outcome(handler, call)
            answer = Answer(fingerprint, status, msgspec.json.encode(shown), call.request_id)
            if key is not None:
                self._ledger.remember(key, answer)
        self._deliverer.wake()
        return answer

    def create_session(self, call: Call) -> Json:
        params = read(call.form, CheckoutParams)
        session = actions.create_checkout(
            self._ledger,
            params,
            page_base=call.base_url,
            api_version=call.api_version,
            now=self._now(),
        )
        return objects.checkout_session(session)

    def get_session(self, call: Call) -> Json:
        read(call.form, NoParams)
        session = actions.current(self._ledger, call.path["id"], now=self._now())
        return objects.checkout_session(session)

    def list_sessions(self, call: Call) -> Json:
        asked = read(call.form, ListByIntentParams)
        rows, more = self._ledger.page(
            Session, limit=asked.limit, after=asked.starting_after, intent=asked.payment_intent
        )
        shown = [objects.checkout_session(row) for row in rows]
        return objects.listing("/v1/checkout/sessions", shown, has_more=more)

    def expire_session(self, call: Call) -> Json:
        read(call.form, NoParams)
        session = actions.current(self._ledger, call.path["id"], now=self._now())
        expired = actions.expire(self._ledger, session, cause=call.cause, now=self._now())
        return objects.checkout_session(expired)

    def create_refund(self, call: Call) -> Json:
        params = read(call.form, RefundParams)
        refund = actions.create_refund(self._ledger, params, cause=call.cause, now=self._now())
        return objects.refund(refund)

    def get_refund(self, call: Call) -> Json:
        read(call.form, NoParams)
        row = self._ledger.find(Refund, id=call.path["id"])
        if row is None:
            raise actions.missing("refund", call.path["id"], param="id")
        return objects.refund(row)

    def list_refunds(self, call: Call) -> Json:
        asked = read(call.form, ListByIntentParams)
        rows, more = self._ledger.page(
            Refund, limit=asked.limit, after=asked.starting_after, intent=asked.payment_intent
        )
        return objects.listing("/v1/refunds", [objects.refund(row) for row in rows], has_more=more)

    def get_payment_intent(self, call: Call) -> Json:
        read(call.form, NoParams)
        row = self._ledger.find(Payment, id=call.path["id"])
        if row is None:
            raise actions.missing("payment_intent", call.path["id"], param="intent")
        return objects.payment_intent(row)

    def get_event(self, call: Call) -> Json:
        read(call.form, NoParams)
        event: Json = msgspec.json.decode(self._event_body(call.path["id"]))
        return event

    def list_events(self, call: Call) -> Json:
        asked = read(call.form, ListEventsParams)
        bodies, more = self._ledger.event_page(
            limit=asked.limit, after=asked.starting_after, kind=asked.type
        )
        events = [msgspec.json.decode(body) for body in bodies]
        return objects.listing("/v1/events", events, has_more=more)

    def _event_body(self, event_id: str) -> bytes:
        body = self._ledger.event_body(event_id)
        if body is None:
            raise actions.missing("event", event_id, param="id")
        return body

    # --- the hosted page ---------------------------------------------------------------------

    async def show(self, request: Request) -> Response:
        try:
            session = self._current(request)
        except ApiError as error:
            return _told(request, error)
        if session.status == "complete":
            text = "It was paid here before. Nothing more is taken."
            shown = page.message("This payment was already made", text, _way_back(session))
        elif session.status == "expired":
            text = "The time to pay is over and nothing was taken."
            shown = page.message("This checkout has expired", text, session.cancel_url)
        else:
            shown = page.checkout(session)
        return HTMLResponse(shown, headers=page.headers(session))

    async def pay(self, request: Request) -> Response:
        try:
            with self._ledger.transaction():
                session = actions.pay(self._ledger, request.path_params["id"], now=self._now())
        except ApiError as error:
            return _told(request, error)
        self._deliverer.wake()
        return _onward(request, _way_back(session))

    async def cancel(self, request: Request) -> Response:
        try:
            session = self._current(request)
            if session.cancel_url is None:
                raise ApiError("This checkout cannot be left by cancelling.", status=409)
        except ApiError as error:
            return _told(request, error)
        return _onward(request, session.cancel_url)

    def _current(self, request: Request) -> Session:
        with self._ledger.transaction():
            return actions.current(self._ledger, request.path_params["id"], now=self._now())

    # --- for tests ---------------------------------------------------------------------------

    async def deliver(self, request: Request) -> Response:
        """Deliver one event again, `times` times at once; the receiver's status of each."""
        if not _is_local(request):
            return Response(status_code=404)
        try:
            asked = msgspec.json.decode(await _body(request), type=Redelivery)
            if not 1 <= asked.times <= MAX_REDELIVERIES:
                raise InvalidParams(f"times must be 1 to {MAX_REDELIVERIES}", param="times")
            body = self._event_body(asked.event_id)
        except msgspec.MsgspecError as error:
            return JSONResponse(InvalidParams(str(error)).body, 400)
        except ApiError as error:
            return JSONResponse(error.body, error.status)
        return JSONResponse({"statuses": await self._deliverer.again(body, asked.times)})

    async def show_ledger(self, request: Request) -> Response:
        """Every payment and refund with its cents, and how far the deliveries are."""
        if not _is_local(request):
            return Response(status_code=404)
        shown = {
            "payments": self._ledger.all(Payment),
            "refunds": self._ledger.all(Refund),
            "deliveries": self._ledger.delivery_counts(),
        }
        return Response(msgspec.json.encode(shown), media_type="application/json")


def _outcome(handler: Handler, call: Call) -> tuple[int, Json]:
    """What is kept for an idempotency key: what was tried, whether or not it succeeded."""
    try:
        return 200, handler(call)
    except InvalidParams:
        raise
    except ApiError as error:
        return error.status, error.body


def _unknown_url(request: Request) -> ApiError:
    where = f"{request.method}: {request.url.path}"
    return ApiError(f"Unrecognized request URL ({where}).", status=404)


def _query(request: Request) -> bytes:
    query: bytes = request.scope["query_string"]
    return query


async def _body(request: Request) -> bytes:
    """The whole body, or a 413 as soon as it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT_BYTES:
            raise ApiError("Request body is too large.", status=413)
    return bytes(body)


def _way_back(session: Session) -> str:
    return session.success_url.replace("{CHECKOUT_SESSION_ID}", session.id)


def _wants_json(request: Request) -> bool:
    return "application/json" in request.headers.get("accept", "")


def _onward(request: Request, url: str) -> Response:
    if _wants_json(request):
        return JSONResponse({"ok": True, "redirect": url})
    return RedirectResponse(url, status_code=303, headers=page.headers())


def _told(request: Request, error: ApiError) -> Response:
    said = error.body["error"]
    if _wants_json(request):
        code = said.get("code", "conflict")
        told = {"ok": False, "error": {"code": code, "message": said["message"]}}
        return JSONResponse(told, error.status)
    shown = page.message("That did not work", said["message"])
    return HTMLResponse(shown, error.status, headers=page.headers())


def _is_local(request: Request) -> bool:
    return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback


def create_app(
    secret_key: str,
    webhook_secret: str,
    webhook_url: str,
    data_dir: Path,
    *,
    now: Callable[[], float] = time.time,
    first_retry_seconds: float = 1.0,
    attempts: int = 10,
) -> Starlette:
    """The stand-in as an app on the ledger in `data_dir`; its lifespan delivers, then closes it.

    `webhook_url` gets every event, tried up to `attempts` times, first again after
    `first_retry_seconds`, then twice that, and so on. Raises ValueError for anything but a test
    key: a live key must never come near it.
    """
    if not secret_key.startswith("sk_test_"):
        raise ValueError("STRIPE_SECRET_KEY must be a test key (sk_test_…)")
    if not webhook_secret:
        raise ValueError("STRIPE_WEBHOOK_SECRET is missing")
    ledger = Ledger(data_dir)
    deliverer = Deliverer(
        ledger,
        url=webhook_url,
        secret=webhook_secret,
        now=now,
        first_retry_seconds=first_retry_seconds,
        attempts=attempts,
    )
    stand_in = StandIn(ledger, deliverer, secret_key, now)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(deliverer.run(), name="deliveries"),
            asyncio.create_task(stand_in.expire_forever(), name="expiry"),
        ]
        for task in tasks:
            task.add_done_callback(_report)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            ledger.close()

    return Starlette(routes=stand_in.routes(), lifespan=lifespan)


def _report(task: asyncio.Task[None]) -> None:
    """Both tasks run until they are cancelled: any other end is a bug, and is said at once."""
    if not task.cancelled():
        log.critical("the task %r ended", task.get_name(), exc_info=task.exception())


class _Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"stand-in for Stripe on http://{host}:{port}", file=sys.stderr, flush=True)


def run(app: Starlette, *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then exit with 0. `port` 0 takes a free one."""
    # uvicorn closes first and then raises the signal again: leaving at that is the clean exit.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    _Server(config).run()
