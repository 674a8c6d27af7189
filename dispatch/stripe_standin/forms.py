"""What may be asked: a typed request for every call.

Its one job: name each parameter that the stand-in understands, with its limits, so that anything
else is refused as Stripe refuses what it does not know. Imports `params`; pure. Fails with
`InvalidParams`.
"""

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from .params import InvalidParams, origin_of

MAX_AMOUNT = 99_999_999  # Stripe's: eight digits
MIN_AMOUNT = 50  # Stripe's for usd, eur and most others
DAY_SECONDS = 86_400

_Text = Annotated[str, Meta(min_length=1, max_length=5000)]
_Email = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=40)], Annotated[str, Meta(max_length=500)]],
    Meta(max_length=50),
]


class ProductData(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=250)]
    description: _Text | None = None
    metadata: Metadata = {}


class PriceData(Struct, forbid_unknown_fields=True):
    currency: str
    product_data: ProductData
    unit_amount: Annotated[int, Meta(ge=0, le=MAX_AMOUNT)]


class LineItem(Struct, forbid_unknown_fields=True):
    price_data: PriceData
    quantity: Annotated[int, Meta(ge=1, le=999_999)]


class PaymentIntentData(Struct, frozen=True, forbid_unknown_fields=True):
    metadata: Metadata = {}
    description: _Text | None = None


class CheckoutParams(Struct, forbid_unknown_fields=True):
    mode: Literal["payment"]
    success_url: _Text
    line_items: Annotated[list[LineItem], Meta(min_length=1, max_length=100)]
    cancel_url: _Text | None = None
    client_reference_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    customer_email: _Email | None = None
    expires_at: int | None = None
    metadata: Metadata = {}
    payment_intent_data: PaymentIntentData = PaymentIntentData()


class RefundParams(Struct, forbid_unknown_fields=True):
    payment_intent: str | None = None
    charge: str | None = None
    amount: Annotated[int, Meta(ge=1, le=MAX_AMOUNT)] | None = None
    reason: Literal["duplicate", "fraudulent", "requested_by_customer"] | None = None
    metadata: Metadata = {}


class NoParams(Struct, forbid_unknown_fields=True):
    pass


_Moment = Annotated[int, Meta(ge=0, le=2**40)]


class CreatedRange(Struct, forbid_unknown_fields=True):
    """`created[gte]=…` and so on, in Unix seconds."""

    gt: _Moment | None = None
    gte: _Moment | None = None
    lt: _Moment | None = None
    lte: _Moment | None = None


class ListParams(Struct, forbid_unknown_fields=True):
    """One page of a list, which has the newest first."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    starting_after: str | None = None
    ending_before: str | None = None
    created: _Moment | CreatedRange | None = None


class ListByIntentParams(ListParams, forbid_unknown_fields=True):
    payment_intent: str | None = None


_EventType = Annotated[str, Meta(pattern=r"^[a-z_.*]+\Z", max_length=100)]


class ListEventsParams(ListParams, forbid_unknown_fields=True):
    type: _EventType | None = None
    types: Annotated[list[_EventType], Meta(min_length=1, max_length=20)] | None = None


class ListTransfersParams(ListParams, forbid_unknown_fields=True):
    transfer_group: str | None = None
    destination: str | None = None


class Requested(Struct, frozen=True, forbid_unknown_fields=True):
    requested: bool = False


class Capabilities(Struct, frozen=True, forbid_unknown_fields=True):
    transfers: Requested = Requested()


class AccountParams(Struct, forbid_unknown_fields=True):
    """Express accounts only; `country` is where they are, in two capitals."""

    type: Literal["express"]
    country: Annotated[str, Meta(pattern=r"^[A-Z]{2}\Z")] = "US"
    email: _Email | None = None
    business_type: Literal["company", "government_entity", "individual", "non_profit"] | None = None
    capabilities: Capabilities = Capabilities()
    metadata: Metadata = {}


class AccountLinkParams(Struct, forbid_unknown_fields=True):
    account: _Text
    return_url: _Text
    refresh_url: _Text
    type: Literal["account_onboarding"]


class TransferParams(Struct, forbid_unknown_fields=True):
    amount: Annotated[int, Meta(ge=1, le=MAX_AMOUNT)]
    currency: Annotated[str, Meta(pattern=r"^[A-Za-z]{3}\Z")]
    destination: _Text
    transfer_group: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    description: _Text | None = None
    metadata: Metadata = {}


class TransferUpdateParams(Struct, forbid_unknown_fields=True):
    """An empty value takes the key out of the metadata."""

    description: _Text | None = None
    metadata: Metadata = {}


class ReversalParams(Struct, forbid_unknown_fields=True):
    amount: Annotated[int, Meta(ge=1, le=MAX_AMOUNT)] | None = None
    description: _Text | None = None
    metadata: Metadata = {}


def check_urls(**urls: str | None) -> None:
    """InvalidParams for the first that is there and is no web address."""
    for name, url in urls.items():
        if url is not None and origin_of(url) is None:
            raise InvalidParams("Not a valid URL", code="url_invalid", param=name)


def check_email(name: str, email: str | None) -> None:
    if email is not None and not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+", email):
        raise InvalidParams(f"Invalid email address: {email}", code="email_invalid", param=name)


def check_checkout(params: CheckoutParams, now: int) -> int:
    """What the types cannot say about a new Checkout Session; returns the total in cents."""
    check_urls(success_url=params.success_url, cancel_url=params.cancel_url)
    check_email("customer_email", params.customer_email)
    if params.expires_at is not None and not 1799 <= params.expires_at - now <= DAY_SECONDS:
        raise InvalidParams(
            "The `expires_at` timestamp must be at least 30 minutes and less than 24 hours from "
            "Checkout Session creation.",
            param="expires_at",
        )
    currencies = {item.price_data.currency.lower() for item in params.line_items}
    currency = min(currencies)
    if len(currencies) > 1 or not re.fullmatch("[a-z]{3}", currency):
        raise InvalidParams(
            f"Invalid currency: {currency}. All line items need the same three-letter code.",
            param="line_items[0][price_data][currency]",
        )
    total = sum(item.price_data.unit_amount * item.quantity for item in params.line_items)
    if not MIN_AMOUNT <= total <= MAX_AMOUNT:
        raise InvalidParams(
            "The Checkout Session's total amount due must be between "
            f"{MIN_AMOUNT} and {MAX_AMOUNT}, in the smallest unit of {currency}.",
            code="amount_too_small" if total < MIN_AMOUNT else "amount_too_large",
            param="line_items",
        )
    return total
