"""Stripe's client of a process that may die: each call a step, with faults on the way.

One job: stand between our code and whoever is Stripe here. Imports `process` and `plan`.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from dispatch.errors import Unavailable
from dispatch.stripe_client import (
    Account,
    Checkout,
    CheckoutSession,
    Refund,
    Reversal,
    StripeClient,
    StripeFailed,
    Transfer,
    WebhookEvent,
)
from loadtest.money.plan import Fault
from loadtest.money.process import Process

LATE_SECONDS: Final = 0.03

Refuse = Callable[[Fault, str, dict[str, Any]], StripeFailed | None]


@dataclass
class Counter:
    """Stripe as all processes meet it now. `inner` does it: an object with the methods of
    StripeClient, async or not. `fault` says what befalls a call of this name; `refuse` makes a
    refusal of a call, or none where it cannot be."""

    inner: Any
    fault: Callable[[str], Fault]
    refuse: Refuse


class MortalStripe(StripeClient):
    """The client of one process, at the counter that is open: `counter` gives it."""

    def __init__(self, process: Process, counter: Callable[[], Counter]) -> None:
        self._process = process
        self._counter = counter

    async def close(self) -> None:
        """Nothing to close."""

    async def create_checkout(self, **asked: Any) -> Checkout:
        made: Checkout = await self._call("create_checkout", asked)
        return made

    async def refund(self, **asked: Any) -> Refund:
        made: Refund = await self._call("refund", asked)
        return made

    async def refunds(self, payment_intent: str) -> list[Refund]:
        found: list[Refund] = await self._call("refunds", {"payment_intent": payment_intent})
        return found

    async def checkout_session(self, session_id: str) -> CheckoutSession:
        shown: CheckoutSession = await self._call("checkout_session", {"session_id": session_id})
        return shown

    async def events(self, *, since: datetime, types: Sequence[str]) -> AsyncIterator[WebhookEvent]:
        del since  # what is older is known, and is asked for all the same
        for event in await self._call("listing", {"types": types}):
            yield event

    async def account(self, account_id: str) -> Account:
        shown: Account = await self._call("account", {"account_id": account_id})
        return shown

    async def transfer(self, **asked: Any) -> Transfer:
        made: Transfer = await self._call("transfer", asked)
        return made

    async def transfer_of(self, payout_id: UUID) -> Transfer | None:
        found: Transfer | None = await self._call("transfer_of", {"payout_id": payout_id})
        return found

    async def reverse(self, **asked: Any) -> Reversal:
        made: Reversal = await self._call("reverse", asked)
        return made

    async def reversal_of(self, **asked: Any) -> Reversal | None:
        found: Reversal | None = await self._call("reversal_of", asked)
        return found

    async def _call(self, name: str, asked: dict[str, Any]) -> Any:
        counter = self._counter()
        fault = counter.fault(name)
        if fault in ("refused", "busy"):
            refusal = counter.refuse(fault, name, asked)
            if refusal is not None:
                raise refusal
        if fault == "lost":
            raise Unavailable("Stripe was not reached")
        call = partial(self._done, getattr(counter.inner, name), asked)
        given = await self._process.step(f"stripe.{name}", call)
        if fault == "late":
            await asyncio.sleep(LATE_SECONDS)
        if fault == "unheard":
            raise Unavailable("Stripe's answer was lost")
        return given

    async def _done(self, call: Callable[..., Any], asked: dict[str, Any]) -> Any:
        given = call(**asked)
        return await given if inspect.isawaitable(given) else given
