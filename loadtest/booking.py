"""One customer's booking from the log-in to the end of the session.

`set_up` goes as far as the hosted checkout page, `pay` presses the button, `follow` watches the
request on the customer's own websocket until it ends, joins what is accepted and ends the session,
so that the mechanic is free again. Each step is a `Booked` event. Imports `api`, `client`,
`history`. Faults are recorded (`failed`, `gave_up`), never raised: the checker judges them.
"""

import asyncio
from functools import partial

import aiohttp
import msgspec

from loadtest.api import Api, ApiError, Order
from loadtest.client import ConnectionLost, Customer, NoAnswer
from loadtest.history import Booked, Frame, History, Step

OVER = frozenset({"completed", "cancelled", "expired"})
PAY_TRIES = 4
_FAULTS = (ApiError, aiohttp.ClientError, TimeoutError)


class Booking:
    """`tag` names the booking in the history; `customer` has no other booking meanwhile."""

    def __init__(
        self, tag: str, order: Order, api: Api, customer: Customer, token: str, history: History
    ):
        self.tag, self.order = tag, order
        self.request_id: str | None = None
        self._api, self.customer, self._token = api, customer, token
        self._history = history
        self._checkout_url: str | None = None
        self._price = ""
        self._known: frozenset[str] = frozenset()

    async def set_up(self, customer_name: str, *, looks_at_price: bool = False) -> bool:
        """Intake, waiver, checkout. False (and a `failed` step) when the server refused."""
        self._note("ordered", **msgspec.to_builtins(self.order))
        try:
            await self._clear_desk()
            intake = await self._api.start_intake(self._token, self.order)
            intake_id = str(intake["intake_id"])
            await self._api.sign_waiver(self._token, intake_id, customer_name)
            if intake.get("request_id") is None:
                self._checkout_url = await self._api.checkout_url(
                    self._token, self.order, intake_id
                )
                if looks_at_price:
                    self._price = await self._api.price(self._checkout_url)
        except (*_FAULTS, ConnectionLost, NoAnswer) as fault:
            self._note("failed", why=f"{type(fault).__name__} {fault}")
            return False
        self._known = frozenset(self.customer.requests)
        return True

    async def pay(self) -> bool:
        """Pays on the hosted page; tries again when that could not be reached."""
        assert self._checkout_url is not None, "only after set_up of a paid plan"
        self._note("paying", **({"price": self._price} if self._price else {}))
        fault: Exception | None = None
        for attempt in range(PAY_TRIES):
            try:
                await self._api.pay(self._checkout_url)
            except _FAULTS as met:
                fault = met
                await asyncio.sleep(0.2 * 2**attempt)
            else:
                self._note("paid")
                return True
        self._note("failed", why=str(fault))
        return False

    async def follow(self, limit_seconds: float, hold_seconds: float) -> None:
        """Watches until the request is over, or cancels it when the limit is reached.

        A session that both have joined is held for `hold_seconds` and then ended by the customer.
        Afterwards the request is read once over HTTP, for the record.
        """
        try:
            async with asyncio.timeout(limit_seconds):
                await self._live(hold_seconds)
        except TimeoutError:
            self._note("gave_up", why=f"not over after {limit_seconds:g} s")
            await self._withdraw()
        await self._read()
        self._note("done")

    async def _live(self, hold_seconds: float) -> None:
        customer = self.customer
        await customer.until(lambda: self._request() is not None, 3600)
        while (request := self._request()) is not None and request["status"] not in OVER:
            if request["status"] == "accepted":
                await self._meet(request["session_id"], request["version"], hold_seconds)
            else:
                await customer.until(partial(self._moved, request["version"]), 3600)

    def _moved(self, version: int) -> bool:
        request = self._request()
        return request is not None and request["version"] > version

    async def _meet(self, session_id: str, version: int, hold_seconds: float) -> None:
        """Joins, waits until both are in, holds, ends. Returns early when the request moves on."""
        customer = self.customer
        if not await self._do("session.join", session_id):
            await customer.until(lambda: self._moved(version), 1)
            return
        await customer.until(lambda: self._is_active(session_id) or not self._is_accepted(), 3600)
        if self._is_active(session_id):
            if not await customer.until(lambda: not self._is_active(session_id), hold_seconds):
                await self._do("session.end", session_id)
            await customer.until(lambda: not self._is_accepted(), 10)

    def _is_accepted(self) -> bool:
        request = self._request()
        return request is not None and request["status"] == "accepted"

    def _is_active(self, session_id: str) -> bool:
        session = self.customer.sessions.get(session_id)
        return session is not None and session["status"] == "active"

    def _request(self) -> Frame | None:
        """The request of this booking: the customer's first that was not there before paying."""
        if self.request_id is None:
            new = [r for r in self.customer.requests if r not in self._known]
            self.request_id = new[0] if new else None
        return self.customer.requests.get(self.request_id) if self.request_id else None

    async def _do(self, kind: str, session_id: str) -> bool:
        """Asks until there is an answer; False when that is an error."""
        for _ in range(6):
            await self.customer.until(lambda: self.customer.online, 15)
            try:
                answer = await self.customer.ask(kind, session_id=session_id)
            except (ConnectionLost, NoAnswer):
                continue
            return bool(answer["type"] != "error")
        return False

    async def _withdraw(self) -> None:
        """Cancels or ends what is still open, so that the run can end."""
        request = self._request()
        if request is None:
            return
        try:
            answer = await self.customer.ask("request.cancel", request_id=self.request_id)
            if answer["type"] == "error":
                await self.customer.ask("session.end", session_id=request["session_id"])
        except (ConnectionLost, NoAnswer):
            return
        await self.customer.until(lambda: (self._request() or {}).get("status") in OVER, 5)

    async def _clear_desk(self) -> None:
        """Ends what an earlier run left open: a customer has one active session at most."""
        for request in list(self.customer.requests.values()):
            if request["status"] == "pending":
                await self.customer.ask("request.cancel", request_id=request["request_id"])
        for session in list(self.customer.sessions.values()):
            if session["status"] in ("pending", "accepted", "active"):
                await self.customer.ask("session.end", session_id=session["session_id"])

    async def _read(self) -> None:
        if self.request_id is None:
            return
        try:
            status = await self._api.request(self._token, self.request_id)
        except _FAULTS as fault:
            self._note("failed", why=f"reading the request: {fault}")
        else:
            self._note("read", **status)

    def _note(self, step: Step, **fields: object) -> None:
        self._history.add(Booked(self._history.now(), self.customer.who, self.tag, step, fields))
