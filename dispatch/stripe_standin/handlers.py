"""Stripe's API under `/v1`: which call does what.

Its one job: for each call, read its form, do one action on the ledger, and show the result. Imports
the rest of this package below `api`. Fails with `ApiError`. Each runs inside one transaction.
"""

from collections.abc import Callable

import msgspec
from msgspec import Struct

from . import checkout, connected, objects, onboarding, refunding, transferring
from .connected import Account, Reversal, Transfer
from .forms import (
    AccountLinkParams,
    AccountParams,
    CheckoutParams,
    ListByIntentParams,
    ListEventsParams,
    ListParams,
    ListTransfersParams,
    NoParams,
    RefundParams,
    ReversalParams,
    TransferParams,
    TransferUpdateParams,
)
from .ledger import PLATFORM, Ledger, Row
from .objects import Cause, Json, Payment, Refund, Session
from .params import InvalidParams, read
from .telling import missing


class Call(Struct, frozen=True):
    """One API request, understood so far: its form is nested and not yet typed.

    `account` is the connected account in whose name it is made; `pending` says that a refund made
    by it is not to succeed yet.
    """

    form: Json
    path: dict[str, str]
    base_url: str
    request_id: str
    api_version: str
    idempotency_key: str | None
    account: str | None
    now: float
    pending: bool = False

    @property
    def cause(self) -> Cause:
        return Cause(self.request_id, self.idempotency_key)


Handler = Callable[[Ledger, Call], Json]


def _listed(
    ledger: Ledger,
    kind: type[Row],
    show: Callable[[Row], Json],
    asked: ListParams,
    *,
    url: str,
    **filters: str | None,
) -> Json:
    rows, more = ledger.page(kind, asked, filters)
    return objects.listing(url, [show(row) for row in rows], has_more=more)


# --- checkout --------------------------------------------------------------------------------


def create_session(ledger: Ledger, call: Call) -> Json:
    session = checkout.create(
        ledger,
        read(call.form, CheckoutParams),
        page_base=call.base_url,
        api_version=call.api_version,
        now=call.now,
    )
    return objects.checkout_session(session)


def get_session(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    return objects.checkout_session(checkout.current(ledger, call.path["id"], now=call.now))


def list_sessions(ledger: Ledger, call: Call) -> Json:
    asked = read(call.form, ListByIntentParams)
    return _listed(
        *(ledger, Session, objects.checkout_session, asked),
        url="/v1/checkout/sessions",
        payment_intent=asked.payment_intent,
    )


def expire_session(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    session = checkout.current(ledger, call.path["id"], now=call.now)
    expired = checkout.expire(ledger, session, cause=call.cause, now=call.now)
    return objects.checkout_session(expired)


def get_payment_intent(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    row = ledger.find(Payment, id=call.path["id"])
    if row is None:
        raise missing("payment_intent", call.path["id"], param="intent")
    return objects.payment_intent(row)


def get_charge(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    row = ledger.find(Payment, charge=call.path["id"])
    if row is None:
        raise missing("charge", call.path["id"], param="charge")
    return objects.charge(row)


# --- refunds ---------------------------------------------------------------------------------


def create_refund(ledger: Ledger, call: Call) -> Json:
    params = read(call.form, RefundParams)
    made = refunding.create(ledger, params, cause=call.cause, now=call.now, pending=call.pending)
    return objects.refund(made)


def get_refund(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    row = ledger.find(Refund, id=call.path["id"])
    if row is None:
        raise missing("refund", call.path["id"], param="id")
    return objects.refund(row)


def list_refunds(ledger: Ledger, call: Call) -> Json:
    asked = read(call.form, ListByIntentParams)
    return _listed(
        *(ledger, Refund, objects.refund, asked),
        url="/v1/refunds",
        payment_intent=asked.payment_intent,
    )


# --- accounts --------------------------------------------------------------------------------


def create_account(ledger: Ledger, call: Call) -> Json:
    params = read(call.form, AccountParams)
    made = onboarding.create_account(ledger, params, api_version=call.api_version, now=call.now)
    return connected.account(made)


def get_account(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    return connected.account(onboarding.find_account(ledger, call.path["id"]))


def list_accounts(ledger: Ledger, call: Call) -> Json:
    asked = read(call.form, ListParams)
    return _listed(ledger, Account, connected.account, asked, url="/v1/accounts")


def create_account_link(ledger: Ledger, call: Call) -> Json:
    params = read(call.form, AccountLinkParams)
    link = onboarding.create_link(ledger, params, page_base=call.base_url, now=call.now)
    return connected.account_link(link)


def get_balance(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    return connected.balance(ledger.balance(call.account or PLATFORM))


# --- transfers -------------------------------------------------------------------------------


def create_transfer(ledger: Ledger, call: Call) -> Json:
    made = transferring.create(
        ledger,
        read(call.form, TransferParams),
        api_version=call.api_version,
        cause=call.cause,
        now=call.now,
    )
    return transferring.show(ledger, made)


def get_transfer(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    return transferring.show(ledger, transferring.find(ledger, call.path["id"]))


def update_transfer(ledger: Ledger, call: Call) -> Json:
    params = read(call.form, TransferUpdateParams)
    changed = transferring.update(ledger, call.path["id"], params, cause=call.cause, now=call.now)
    return transferring.show(ledger, changed)


def list_transfers(ledger: Ledger, call: Call) -> Json:
    asked = read(call.form, ListTransfersParams)

    def show(row: Transfer) -> Json:
        return transferring.show(ledger, row)

    return _listed(
        *(ledger, Transfer, show, asked),
        url="/v1/transfers",
        transfer_group=asked.transfer_group,
        destination=asked.destination,
    )


def create_reversal(ledger: Ledger, call: Call) -> Json:
    params = read(call.form, ReversalParams)
    made = transferring.reverse(ledger, call.path["id"], params, cause=call.cause, now=call.now)
    return connected.reversal(made)


def get_reversal(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    found = transferring.find_reversal(ledger, call.path["id"], call.path["reversal"])
    return connected.reversal(found)


def list_reversals(ledger: Ledger, call: Call) -> Json:
    asked = read(call.form, ListParams)
    transfer = transferring.find(ledger, call.path["id"])
    return _listed(
        *(ledger, Reversal, connected.reversal, asked),
        url=f"/v1/transfers/{transfer.id}/reversals",
        transfer=transfer.id,
    )


# --- events ----------------------------------------------------------------------------------


def get_event(ledger: Ledger, call: Call) -> Json:
    read(call.form, NoParams)
    body = ledger.event_body(call.path["id"])
    event: Json = {} if body is None else msgspec.json.decode(body)
    if not event or event.get("account") != call.account:
        raise missing("event", call.path["id"], param="id")
    return event


def list_events(ledger: Ledger, call: Call) -> Json:
    """Of one account: those of connected ones are seen in their name only, as at Stripe."""
    asked = read(call.form, ListEventsParams)
    if asked.type is not None and asked.types is not None:
        raise InvalidParams("You may pass either `type` or `types`, but not both.", param="types")
    types = asked.types if asked.type is None else [asked.type]
    bodies, more = ledger.event_page(asked, types=types, account=call.account)
    events = [msgspec.json.decode(body) for body in bodies]
    return objects.listing("/v1/events", events, has_more=more)


# Which of them can be made in the name of a connected account.
IN_ITS_NAME = {get_balance, get_event, list_events}

TABLE: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/checkout/sessions", create_session),
    ("GET", "/v1/checkout/sessions", list_sessions),
    ("GET", "/v1/checkout/sessions/{id}", get_session),
    ("POST", "/v1/checkout/sessions/{id}/expire", expire_session),
    ("GET", "/v1/payment_intents/{id}", get_payment_intent),
    ("GET", "/v1/charges/{id}", get_charge),
    ("POST", "/v1/refunds", create_refund),
    ("GET", "/v1/refunds", list_refunds),
    ("GET", "/v1/refunds/{id}", get_refund),
    ("POST", "/v1/accounts", create_account),
    ("GET", "/v1/accounts", list_accounts),
    ("GET", "/v1/accounts/{id}", get_account),
    ("POST", "/v1/account_links", create_account_link),
    ("GET", "/v1/balance", get_balance),
    ("POST", "/v1/transfers", create_transfer),
    ("GET", "/v1/transfers", list_transfers),
    ("GET", "/v1/transfers/{id}", get_transfer),
    ("POST", "/v1/transfers/{id}", update_transfer),
    ("POST", "/v1/transfers/{id}/reversals", create_reversal),
    ("GET", "/v1/transfers/{id}/reversals", list_reversals),
    ("GET", "/v1/transfers/{id}/reversals/{reversal}", get_reversal),
    ("GET", "/v1/events", list_events),
    ("GET", "/v1/events/{id}", get_event),
)
