"""The stand-in for Stripe and a receiver of its webhooks, on real sockets in the test's loop."""

import asyncio
import inspect
import socket
import typing
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import aiohttp
import msgspec
import stripe
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatch.stripe_client import StripeClient
from dispatch.stripe_standin import create_app
from tests.support import STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, eventually

Json = dict[str, Any]

PAYMENT_ID = UUID("2f6b2a0e-1111-4222-8333-444455556666")

CHECKOUT: dict[str, str] = {
    "mode": "payment",
    "success_url": "http://localhost/done?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "http://localhost/back",
    "client_reference_id": "payment-1",
    "customer_email": "ann@example.com",
    "line_items[0][quantity]": "1",
    "line_items[0][price_data][currency]": "usd",
    "line_items[0][price_data][unit_amount]": "2500",
    "line_items[0][price_data][product_data][name]": "Video, 15 minutes",
    "metadata[plan]": "video15",
    "payment_intent_data[metadata][plan]": "video15",
}

ACCOUNT: dict[str, str] = {
    "type": "express",
    "email": "corner@shops.example",
    "capabilities[transfers][requested]": "true",
    "metadata[payee]": "workshop-1",
}


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the signals are pytest's


@asynccontextmanager
async def serving(app: Starlette, listening: socket.socket | None = None) -> AsyncIterator[str]:
    """Serve the app on a free port (or the socket given); gives its base URL."""
    bound = listening or free_socket()
    host, port = bound.getsockname()
    server = _Server(uvicorn.Config(app, lifespan="on", log_level="warning", access_log=False))
    task = asyncio.create_task(server.serve(sockets=[bound]))
    await eventually(lambda: server.started or task.done())
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await task
        bound.close()


def free_socket() -> socket.socket:
    """A bound socket on loopback, which holds its port before anything listens."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


@dataclass
class Webhook:
    """One delivery as it arrived."""

    raw: bytes
    signature: str

    @property
    def event(self) -> Json:
        decoded: Json = msgspec.json.decode(self.raw)
        return decoded


@dataclass
class Receiver:
    """Takes webhooks; answers `status`, and keeps all of them in order of arrival."""

    status: int = 200
    got: list[Webhook] = field(default_factory=list)

    def app(self) -> Starlette:
        async def take(request: Request) -> Response:
            self.got.append(Webhook(await request.body(), request.headers["stripe-signature"]))
            return Response(status_code=self.status)

        return Starlette(routes=[Route("/webhook", take, methods=["POST"])])

    def count(self) -> Counter[str]:
        """How often each type of event arrived."""
        return Counter(webhook.event["type"] for webhook in self.got)

    async def wait_for(self, kind: str) -> Webhook:
        """The first webhook of this type, as soon as it is here."""
        return await eventually(
            lambda: next((hook for hook in self.got if hook.event["type"] == kind), None)
        )


@dataclass
class Clock:
    """Real time, moved forward by hand."""

    now: float

    def __call__(self) -> float:
        return self.now


@dataclass
class StandInClient:
    """Speaks to the stand-in as curl would."""

    url: str
    http: aiohttp.ClientSession

    async def call(
        self,
        method: str,
        path: str,
        form: dict[str, str] | bytes | None = None,
        *,
        key: str | None = None,
        secret: str | None = STRIPE_SECRET_KEY,
        account: str | None = None,
    ) -> tuple[int, Json, dict[str, str]]:
        """Status, body and headers (names in lower case) of one API call, made in the name of a
        connected `account` if one is given."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        if key is not None:
            headers["Idempotency-Key"] = key
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        if account is not None:
            headers["Stripe-Account"] = account
        body = form if isinstance(form, bytes) else urlencode(form or {}).encode()
        async with self.http.request(
            method, self.url + path, data=body, headers=headers
        ) as response:
            told = {name.lower(): value for name, value in response.headers.items()}
            return response.status, await response.json(), told

    async def checkout(self, **changed: str) -> Json:
        """A new Checkout Session."""
        status, session, _ = await self.call("POST", "/v1/checkout/sessions", CHECKOUT | changed)
        assert status == 200, session
        return session

    async def press(self, page_url: str, button: str) -> tuple[int, Json]:
        """Press `pay` or `cancel` on a hosted page, asking for JSON."""
        async with self.http.post(
            f"{page_url}/{button}", headers={"Accept": "application/json"}
        ) as response:
            return response.status, await response.json()

    async def paid(self, **changed: str) -> Json:
        """A new Checkout Session, paid; as it is afterwards."""
        session = await self.checkout(**changed)
        assert (await self.press(session["url"], "pay"))[0] == 200
        _, paid, _ = await self.call("GET", f"/v1/checkout/sessions/{session['id']}")
        return paid

    async def control(self, method: str, path: str, /, **body: Any) -> Json:
        """Have the stand-in do something, by `/_standin/…`; what it answers."""
        url = f"{self.url}/_standin/{path}"
        async with self.http.request(method, url, json=body) as response:
            answer: Json = await response.json()
            assert response.status == 200, answer
            return answer

    async def ledger(self) -> Json:
        """Everything with its cents, and the state of the deliveries."""
        return await self.control("GET", "ledger")

    async def payee(self, **changed: str) -> Json:
        """A connected account that was set up and may receive transfers."""
        _, account, _ = await self.call("POST", "/v1/accounts", ACCOUNT | changed)
        return await self.control("POST", f"accounts/{account['id']}")


@asynccontextmanager
async def stand_in(
    data_dir: Path, webhook_url: str, **options: Any
) -> AsyncIterator[StandInClient]:
    """A stand-in on `data_dir` that delivers to `webhook_url`, retrying after milliseconds."""
    options = {"first_retry_seconds": 0.005} | options
    app = create_app(STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, webhook_url, data_dir, **options)
    async with serving(app) as url, aiohttp.ClientSession() as http:
        yield StandInClient(url, http)


def make_client(api_base: str, secret_key: str = STRIPE_SECRET_KEY) -> StripeClient:
    return StripeClient(secret_key, api_base=api_base, public_url="http://localhost:8000/")


def booking(payment_id: UUID = PAYMENT_ID, **changed: Any) -> dict[str, Any]:
    """Arguments of a checkout as the payments module passes them."""
    return {
        "payment_id": payment_id,
        "plan_code": "video15",
        "plan_name": "Video, 15 minutes",
        "amount_cents": 2500,
        "currency": "usd",
        "customer_email": "ann@example.com",
        "metadata": {"intake_id": "i-1", "routing_type": "hybrid"},
        "success_url": "/intake/done?checkout={CHECKOUT_SESSION_ID}",
        "cancel_url": "/intake/back",
        "expires_in_seconds": 3600,
    } | changed


def unknown_keys(shown: Json, kind: type[stripe.StripeObject], path: str = "") -> list[str]:
    """Keys, at any depth, that stripe's own class does not name."""
    named: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        named |= inspect.get_annotations(base)
    unknown = [f"{path}{key}" for key in shown if key not in named]
    for key, value in shown.items():
        inner = nested_class(named.get(key))
        if isinstance(value, dict) and inner is not None:
            unknown += unknown_keys(value, inner, f"{path}{key}.")
    return unknown


def nested_class(annotation: Any) -> type[stripe.StripeObject] | None:
    """The resource class in `Optional[Inner]`, where it is one with fields of its own."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, stripe.StripeObject):
            return candidate if inspect.get_annotations(candidate) else None
    return None
