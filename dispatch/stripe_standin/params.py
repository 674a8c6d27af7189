"""What a caller may send: form-encoded bytes into typed requests, or Stripe's error object.

Its one job: read `line_items[0][price_data][currency]=usd&…` as the stripe libraries write it, and
refuse everything that Stripe would refuse on sight. Imports msgspec only. Fails with `ApiError`
(what Stripe would answer) or its subclass `InvalidParams` (refused before anything was done).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Meta, Struct

Json = dict[str, Any]
Request = TypeVar("Request", bound=Struct)

MAX_FIELDS = 500
MAX_DEPTH = 6
MAX_AMOUNT = 99_999_999  # Stripe's: eight digits
MIN_AMOUNT = 50  # Stripe's for usd, eur and most others
_LISTS = {"line_items"}
_ORIGIN = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?")


class ApiError(Exception):
    """An answer that is an error, in Stripe's shape: `status` and the object under `error`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        named = {"code": code, "message": message, "param": param, "type": kind}
        self.body: Json = {"error": {k: v for k, v in named.items() if v is not None}}


class InvalidParams(ApiError):
    """The parameters themselves are wrong: nothing was tried, nothing is kept for the key."""


_Text = Annotated[str, Meta(min_length=1, max_length=5000)]
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
    customer_email: Annotated[str, Meta(max_length=512)] | None = None
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


class ListParams(Struct, forbid_unknown_fields=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    starting_after: str | None = None


class ListByIntentParams(ListParams, forbid_unknown_fields=True):
    payment_intent: str | None = None


class ListEventsParams(ListParams, forbid_unknown_fields=True):
    type: str | None = None


def parse_form(raw: bytes) -> Json:
    """Nest `a[b][c]=d` as {"a": {"b": {"c": "d"}}}, and what we know to be lists as lists.

    Raises InvalidParams for bytes that are no UTF-8 form, for too many or too deep fields, and for
    a name that is both a value and a parent.
    """
    try:
        pairs = parse_qsl(
            raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError as error:
        raise InvalidParams("Invalid request: the body is not a valid form.") from error
    nested: Json = {}
    for name, value in pairs:
        _put(nested, name, value)
    for name in _LISTS & nested.keys():
        nested[name] = _as_list(name, nested[name])
    return nested


def _put(nested: Json, name: str, value: str) -> None:
    path = name.replace("]", "").split("[")
    if len(path) > MAX_DEPTH:
        raise InvalidParams("Invalid request: parameters are nested too deep.", param=path[0])
    node = nested
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise InvalidParams(f"Invalid parameter: {name}", param=name)
    if isinstance(node.get(path[-1]), dict):
        raise InvalidParams(f"Invalid parameter: {name}", param=name)
    node[path[-1]] = value


def _as_list(name: str, node: object) -> list[object]:
    if not isinstance(node, dict) or set(node) != {str(i) for i in range(len(node))}:
        raise InvalidParams("Invalid array", param=name)
    return [node[str(i)] for i in range(len(node))]


def read(nested: Mapping[str, object], kind: type[Request]) -> Request:
    """The typed request, or InvalidParams as Stripe words it, naming the parameter."""
    try:
        return msgspec.convert(nested, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _worded(str(error)) from None


def _worded(message: str) -> InvalidParams:
    """msgspec's message, `What is wrong - at `$.path``, as Stripe's code, message and param."""
    what, _, where = message.partition(" - at ")
    first, *rest = re.findall(r"\w+", where.replace("[...]", "")) or [""]
    inside = first + "".join(f"[{part}]" for part in rest)
    for start, kind, said in (
        ("Object missing required field", "parameter_missing", "Missing required param"),
        ("Object contains unknown field", "parameter_unknown", "Received unknown parameter"),
    ):
        if what.startswith(start):
            field = what.split("`")[1]
            param = f"{inside}[{field}]" if inside else field
            return InvalidParams(f"{said}: {param}", code=kind, param=param)
    code = "parameter_invalid_integer" if "`int`" in what else None
    return InvalidParams(f"Invalid {inside}: {what}", code=code, param=inside)


def check_checkout(params: CheckoutParams, now: int) -> int:
    """What the types cannot say about a new Checkout Session; returns the total in cents."""
    urls: dict[str, str | None] = {
        "success_url": params.success_url,
        "cancel_url": params.cancel_url,
    }
    for name, url in urls.items():
        if url is not None and origin_of(url) is None:
            raise InvalidParams("Not a valid URL", code="url_invalid", param=name)
    email = params.customer_email
    if email is not None and not re.fullmatch(r"[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+", email):
        raise InvalidParams(
            f"Invalid email address: {email}", code="email_invalid", param="customer_email"
        )
    if params.expires_at is not None and not 1799 <= params.expires_at - now <= 86_400:
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


def origin_of(url: str) -> str | None:
    """`http://host:port` of an absolute web address, or None when it is not one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    plain = url.isprintable() and " " not in url
    if not plain or parts.scheme not in ("http", "https") or not _ORIGIN.fullmatch(parts.netloc):
        return None
    return f"{parts.scheme}://{parts.netloc}"
