"""Control for tests, under `/_standin`: to this machine, and to no page in a browser.

Its one job: make happen what Stripe or its network does by itself, and show the books. Imports
Starlette and the rest of this package below `server`. Bad input is answered in Stripe's shape and
changes nothing.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import books, checkout, connected, objects, onboarding, refunding, transferring
from .api import read_body
from .connected import Account, Reversal, Transfer
from .delivery import Deliverer
from .faults import Fault, Faults
from .forms import MAX_AMOUNT, Metadata, RefundParams
from .ledger import Ledger
from .objects import Cause, Json, Payment, Refund
from .params import ApiError, InvalidParams
from .schedule import DeliverySettings
from .telling import missing

MAX_REDELIVERIES = 200

Body = TypeVar("Body", bound=Struct)
_Cents = Annotated[int, Meta(ge=1, le=MAX_AMOUNT)]


class Redelivery(Struct, forbid_unknown_fields=True):
    """Deliver one event again, `times` times at once."""

    event_id: str
    times: Annotated[int, Meta(ge=1, le=MAX_REDELIVERIES)] = 1


class HandRefund(Struct, forbid_unknown_fields=True):
    """A refund made by hand, as the dashboard does: without a key and without our metadata."""

    payment_intent: str
    amount: _Cents | None = None
    pending: bool = False


class Settlement(Struct, forbid_unknown_fields=True):
    """How a refund ends: it succeeds, or fails for a reason of Stripe's."""

    failure_reason: Annotated[str, Meta(min_length=1, max_length=100)] | None = None


class Standing(Struct, forbid_unknown_fields=True):
    """What became of an account: disabled for a reason of Stripe's, or set up (again)."""

    disabled_reason: Annotated[str, Meta(min_length=1, max_length=100)] | None = None


class ToBank(Struct, forbid_unknown_fields=True):
    """Money that an account takes to its bank."""

    amount: _Cents
    currency: str = "usd"


class ForeignCheckout(Struct, forbid_unknown_fields=True):
    """A checkout that was paid to a connected account, which wrote what it liked onto it."""

    account: str
    metadata: Metadata = {}
    client_reference_id: str | None = None
    amount_total: _Cents = 2500
    currency: str = "usd"


class Control:
    """The endpoints under `/_standin` on one ledger."""

    def __init__(
        self, ledger: Ledger, deliverer: Deliverer, faults: Faults, now: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._deliverer = deliverer
        self._faults = faults
        self._now = now

    def routes(self) -> list[Route]:
        table = (
            ("GET", "ledger", self.show_ledger),
            ("POST", "deliver", self.deliver),
            ("POST", "delivery", self.set_delivery),
            ("POST", "faults", self.order_fault),
            ("GET", "faults", self.show_faults),
            ("DELETE", "faults", self.clear_faults),
            ("DELETE", "keys", self.forget_keys),
            ("POST", "refunds", self.refund_by_hand),
            ("POST", "refunds/{id}", self.settle_refund),
            ("POST", "accounts/{id}", self.change_account),
            ("POST", "accounts/{id}/payouts", self.pay_out),
            ("POST", "foreign_checkouts", self.foreign_checkout),
        )
        return [
            Route(f"/_standin/{path}", _guarded(endpoint), methods=[method])
            for method, path, endpoint in table
        ]

    # --- deliveries and faults ---------------------------------------------------------------

    async def deliver(self, request: Request) -> Json:
        """Deliver one event again; the receiver's status of each."""
        asked = await _read(request, Redelivery)
        body = self._ledger.event_body(asked.event_id)
        if body is None:
            raise missing("event", asked.event_id, param="id")
        return {"statuses": await self._deliverer.again(body, asked.times)}

    async def set_delivery(self, request: Request) -> DeliverySettings:
        """How events are delivered from now on; releases them when it does not hold them."""
        self._ledger.schedule.set(await _read(request, DeliverySettings))
        self._deliverer.wake()
        return self._ledger.schedule.settings

    async def order_fault(self, request: Request) -> Fault:
        fault = await _read(request, Fault)
        self._faults.order(fault)
        return fault

    async def show_faults(self, _request: Request) -> Json:
        return {"left": self._faults.left()}

    async def clear_faults(self, _request: Request) -> Json:
        self._faults.clear()
        return {"left": []}

    async def forget_keys(self, _request: Request) -> Json:
        """As if a day had passed for every idempotency key."""
        with self._ledger.transaction():
            return {"forgotten": self._ledger.forget_answers()}

    # --- what Stripe, or somebody else there, does -------------------------------------------

    async def refund_by_hand(self, request: Request) -> Json:
        asked = await _read(request, HandRefund)
        params = RefundParams(payment_intent=asked.payment_intent, amount=asked.amount)
        with self._changing():
            made = refunding.create(
                self._ledger, params, cause=Cause(), now=self._now(), pending=asked.pending
            )
        return objects.refund(made)

    async def settle_refund(self, request: Request) -> Json:
        asked = await _read(request, Settlement)
        with self._changing():
            settled = refunding.settle(
                self._ledger,
                request.path_params["id"],
                failure_reason=asked.failure_reason,
                now=self._now(),
            )
        return objects.refund(settled)

    async def change_account(self, request: Request) -> Json:
        """Disable an account, or set it up without its page."""
        asked = await _read(request, Standing)
        with self._changing():
            account = onboarding.find_account(self._ledger, request.path_params["id"])
            changed = onboarding.change(
                self._ledger,
                account,
                details_submitted=account.details_submitted or asked.disabled_reason is None,
                disabled_reason=asked.disabled_reason,
                now=self._now(),
            )
        return connected.account(changed)

    async def pay_out(self, request: Request) -> Json:
        """An account takes its money to its bank."""
        asked = await _read(request, ToBank)
        with self._changing():
            account = onboarding.find_account(self._ledger, request.path_params["id"])
            transferring.pay_out(self._ledger, account, asked.amount, asked.currency)
        return connected.balance(self._ledger.balance(account.id))

    async def foreign_checkout(self, request: Request) -> Json:
        """A `checkout.session.completed` of a connected account. Not a cent of it is ours."""
        asked = await _read(request, ForeignCheckout)
        with self._changing():
            account = onboarding.find_account(self._ledger, asked.account)
            session = checkout.tell_foreign(
                self._ledger,
                account=account,
                amount_total=asked.amount_total,
                currency=asked.currency,
                client_reference_id=asked.client_reference_id,
                metadata=asked.metadata,
                now=self._now(),
            )
        return objects.checkout_session(session)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One transaction, and the deliveries that it owes."""
        with self._ledger.transaction():
            yield
        self._deliverer.wake()

    # --- the books ---------------------------------------------------------------------------

    async def show_ledger(self, _request: Request) -> Json:
        """Every payment, refund, account, transfer and reversal with its cents, whether the sum of
        it is right, and how far the deliveries are."""
        accounts = [
            {**msgspec.to_builtins(account), "balance_cents": self._ledger.balance(account.id)}
            for account in self._ledger.all(Account)
        ]
        return {
            "payments": self._ledger.all(Payment),
            "refunds": self._ledger.all(Refund),
            "accounts": accounts,
            "transfers": self._ledger.all(Transfer),
            "reversals": self._ledger.all(Reversal),
            "sums": books.sums(self._ledger),
            "deliveries": self._ledger.delivery_counts(),
        }


Endpoint = Callable[[Request], Awaitable[Any]]


def _guarded(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """For this machine only, and for no page in a browser, which would name its origin."""

    async def guarded(request: Request) -> Response:
        if not _is_local(request) or "origin" in request.headers:
            return Response(status_code=404)
        try:
            return _json(await endpoint(request))
        except ApiError as error:
            return JSONResponse(error.body, error.status)

    return guarded


def _is_local(request: Request) -> bool:
    return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback


def _json(shown: object) -> Response:
    return Response(msgspec.json.encode(shown), media_type="application/json")


async def _read(request: Request, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(await read_body(request), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidParams(str(error)) from None
