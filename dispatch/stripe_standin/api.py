"""Stripe's API on the wire: who may call, what a key repeats, errors in Stripe's shape.

Its one job: bytes in, one call of `handlers` inside one transaction, bytes out. Imports Starlette
and the rest of this package below `server`. Every answer that is an error has Stripe's shape; bad
input never is a 500.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import handlers, onboarding
from .delivery import Deliverer
from .faults import Fault, Faults
from .handlers import Call, Handler
from .ledger import Answer, Ledger
from .objects import DEFAULT_API_VERSION, Json, new_id
from .params import ApiError, InvalidParams, parse_form

BODY_LIMIT_BYTES = 64 * 1024
MAX_KEY_CHARACTERS = 255
TRANSPORT = "stand_in.transport"  # in the scope of a request: its connection
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """The endpoints under `/v1` on one ledger."""

    def __init__(
        self,
        ledger: Ledger,
        deliverer: Deliverer,
        faults: Faults,
        secret_key: str,
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._deliverer = deliverer
        self._faults = faults
        self._secret_key = secret_key
        self._now = now
        self._keys_in_use: set[str] = set()

    def routes(self) -> list[Route]:
        """All routes, the catch-all for unknown addresses last."""
        return [
            *(
                Route(path, self._endpoint(handler), methods=[method])
                for method, path, handler in handlers.TABLE
            ),
            Route("/v1/{rest:path}", self._endpoint(None), methods=list(_METHODS)),
        ]

    def _endpoint(self, handler: Handler | None) -> Endpoint:
        """Authentication, form, faults, idempotency and error objects around one handler."""

        async def endpoint(request: Request) -> Response:
            request_id = new_id("req")
            version = request.headers.get("stripe-version", DEFAULT_API_VERSION)
            headers = {"Request-Id": request_id, "Stripe-Version": version}
            try:
                self._authenticate(request)
                if handler is None:
                    raise _unknown_url(request)
                call = await self._understood(request, request_id, version)
                if call.account is not None:
                    self._check_account(call.account, handler)
                fault = self._faults.befalls(request.method, request.url.path)
                with self._using(call.idempotency_key):
                    answer = await self._befallen(request, call, handler, fault)
            except ApiError as error:
                return JSONResponse(error.body, error.status, headers)
            if answer is None:
                return Response()  # nobody is there to read it
            if call.idempotency_key is not None:
                headers["Idempotency-Key"] = call.idempotency_key
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

    async def _understood(self, request: Request, request_id: str, version: str) -> Call:
        posted = request.method == "POST"
        key = request.headers.get("idempotency-key") if posted else None
        if key is not None and len(key) > MAX_KEY_CHARACTERS:
            raise InvalidParams("Idempotency keys can be at most 255 characters.")
        return Call(
            form=parse_form(await read_body(request) if posted else _query(request)),
            path=request.path_params,
            base_url=str(request.base_url).rstrip("/"),
            request_id=request_id,
            api_version=version,
            idempotency_key=key,
            account=request.headers.get("stripe-account"),
            now=self._now(),
        )

    def _check_account(self, account_id: str, handler: Handler) -> None:
        """A call in the name of a connected account: of one that is ours, and where it can be."""
        onboarding.find_account(self._ledger, account_id)
        if handler not in handlers.IN_ITS_NAME:
            raise InvalidParams("The stand-in does not do this in the name of an account.")

    @contextmanager
    def _using(self, key: str | None) -> Iterator[None]:
        """The key is in use inside; ApiError when it is already."""
        if key is None:
            yield
            return
        if key in self._keys_in_use:
            raise ApiError(
                "There is currently another in-progress request using this Idempotency Key (that "
                "probably means you submitted twice, and the other request is still going "
                "through). Please try again later.",
                status=409,
                kind="idempotency_error",
                code="idempotency_key_in_use",
            )
        self._keys_in_use.add(key)
        try:
            yield
        finally:
            self._keys_in_use.remove(key)

    async def _befallen(
        self, request: Request, call: Call, handler: Handler, fault: Fault | None
    ) -> Answer | None:
        """The answer after what befalls the call; None when the connection is gone."""
        if fault is None:
            return self._perform(request, call, handler)
        if fault.do == "drop_request":
            await _drop(request)
            return None
        if fault.error is not None and not fault.is_kept:
            raise fault.error
        if fault.do == "late_start":
            await asyncio.sleep(fault.late_ms / 1000)
        call = replace(call, now=self._now(), pending=fault.do == "pending")
        answer = self._perform(request, call, _refusing(fault) or handler)
        if fault.do == "late":
            await asyncio.sleep(fault.late_ms / 1000)
        if fault.do == "drop_reply":
            await _drop(request)
            return None
        return answer

    def _perform(self, request: Request, call: Call, handler: Handler) -> Answer:
        """The handler's answer, or the one already given for this idempotency key."""
        key = call.idempotency_key
        asked = msgspec.json.encode([request.method, request.url.path, call.form], order="sorted")
        fingerprint = hashlib.sha256(asked).hexdigest()
        with self._ledger.transaction():
            earlier = self._ledger.answer(key, now=call.now) if key is not None else None
            if earlier is not None:
                if earlier.fingerprint == fingerprint:
                    return earlier
                raise ApiError(
                    "Keys for idempotent requests can only be used with the same parameters they "
                    f"were first used with. Try using a key other than '{key}' if you meant to "
                    "execute a different request.",
                    kind="idempotency_error",
                )
            status, shown = _outcome(handler, self._ledger, call)
            answer = Answer(fingerprint, status, msgspec.json.encode(shown), call.request_id)
            if key is not None:
                self._ledger.remember(key, answer, now=call.now)
        self._deliverer.wake()
        return answer


def _outcome(handler: Handler, ledger: Ledger, call: Call) -> tuple[int, Json]:
    """What is kept for an idempotency key: what was tried, whether or not it succeeded."""
    try:
        return 200, handler(ledger, call)
    except InvalidParams:
        raise
    except ApiError as error:
        return error.status, error.body


def _refusing(fault: Fault) -> Handler | None:
    """Instead of the handler, when the call is to be refused."""
    error = fault.error
    if error is None:
        return None

    def refuse(_ledger: Ledger, _call: Call) -> Json:
        raise error

    return refuse


async def _drop(request: Request) -> None:
    """Close the connection without a word."""
    request.scope[TRANSPORT].abort()
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unknown_url(request: Request) -> ApiError:
    where = f"{request.method}: {request.url.path}"
    return ApiError(f"Unrecognized request URL ({where}).", status=404)


def _query(request: Request) -> bytes:
    query: bytes = request.scope["query_string"]
    return query


async def read_body(request: Request) -> bytes:
    """The whole body, or a 413 as soon as it is too long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT_BYTES:
            raise ApiError("Request body is too large.", status=413)
    return bytes(body)
