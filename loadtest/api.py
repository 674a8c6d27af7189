"""The HTTP endpoints that a booking needs, each as one call.

Imports only aiohttp and the order of a booking. An answer of 400 or more raises `ApiError`; a
server that cannot be reached raises `aiohttp.ClientError` or `TimeoutError`.
"""

import re
from html import unescape
from typing import Any

import aiohttp
import msgspec

Json = dict[str, Any]


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a customer asks for; the names are those of `POST /api/intake/start`."""

    plan: str
    routing_type: str | None = None
    workshop_id: str | None = None
    preferred_mechanic_id: str | None = None
    wait_for_preferred: bool = False
    urgent: bool = False
    concern: str | None = None
    vehicle: str | None = None


class ApiError(Exception):
    """The server said no: `status` is HTTP's, `code` the server's own (or empty)."""

    def __init__(self, what: str, status: int, code: str, body: Json):
        super().__init__(f"{what}: {status} {code}")
        self.status = status
        self.code = code
        self.body = body


class Api:
    """One server, spoken to over one connection pool that the caller owns."""

    def __init__(self, http: aiohttp.ClientSession, url: str):
        self._http = http
        self._url = url.rstrip("/")

    @property
    def websocket_url(self) -> str:
        return "ws" + self._url.removeprefix("http") + "/ws"

    async def login(self, email: str, password: str) -> str:
        """Returns a bearer token."""
        return str((await self.identify(email, password))["token"])

    async def identify(self, email: str, password: str) -> Json:
        """Logs in: returns `token`, `role` and `user_id`."""
        body = {"email": email, "password": password}
        return await self._call("POST", "/api/auth/login", json=body)

    async def sign_up(self, role: str, name: str, email: str, password: str) -> Json:
        """A new customer or mechanic: returns `token`, `role` and `user_id`."""
        body = {"name": name, "email": email, "password": password}
        return await self._call("POST", f"/api/{role}/signup", json=body)

    async def approve(self, admin_token: str, mechanic_id: str) -> None:
        await self._call("POST", f"/api/admin/mechanics/{mechanic_id}/approve", token=admin_token)

    async def add_favorite(self, token: str, mechanic_id: str) -> None:
        body = {"provider_id": mechanic_id, "provider_type": "independent"}
        await self._call("POST", "/api/customer/favorites", token=token, json=body)

    async def start_intake(self, token: str, order: Order) -> Json:
        """Returns `intake_id` and `redirect`; free plans also `session_id` and `request_id`."""
        return await self._call(
            "POST", "/api/intake/start", token=token, json=msgspec.to_builtins(order)
        )

    async def sign_waiver(self, token: str, intake_id: str, name: str) -> None:
        body = {"intake_id": intake_id, "name": name, "version": "1"}
        await self._call("POST", "/api/waiver/sign", token=token, json=body)

    async def checkout_url(self, token: str, order: Order, intake_id: str) -> str:
        """Makes a Checkout Session and returns the address of its hosted page."""
        query = {"plan": order.plan, "intake_id": intake_id}
        for name in ("routing_type", "workshop_id", "preferred_mechanic_id"):
            value = getattr(order, name)
            if value is not None:
                query[name] = value
        if order.wait_for_preferred:
            query["wait_for_preferred"] = "true"
        answer = await self._call("GET", "/api/checkout/create-session", token=token, params=query)
        return str(answer["url"])

    async def price(self, checkout_url: str) -> str:
        """The total as the hosted page shows it; empty when it shows none."""
        async with self._http.get(checkout_url) as response:
            total = re.search(r'class="total">([^<]*)<', await response.text())
        return unescape(total[1]) if total else ""

    async def pay(self, checkout_url: str) -> None:
        """Presses the hosted page's "Pay"; the webhook is on its way when this returns."""
        async with self._http.post(f"{checkout_url}/pay", allow_redirects=False) as response:
            if response.status >= 400:
                raise ApiError("pay", response.status, "", {})

    async def request(self, token: str, request_id: str) -> Json:
        """The customer's own request, in the shape of a `request.status` frame."""
        return await self._call("GET", f"/api/requests/{request_id}", token=token)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        json: Any = None,
        params: dict[str, str] | None = None,
    ) -> Json:
        headers = {"Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self._http.request(
            method,
            self._url + path,
            headers=headers,
            json=json,
            params=params,
            allow_redirects=False,
        ) as response:
            raw = await response.read()
            try:
                body = msgspec.json.decode(raw, type=Json)
            except msgspec.DecodeError:
                body = {}
            if response.status >= 300:
                code = str(body.get("error", {}).get("code", ""))
                raise ApiError(f"{method} {path}", response.status, code, body)
            return body
