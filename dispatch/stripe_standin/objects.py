"""Our rows, and how Stripe shows them.

Its one job: give each row the shape that Stripe publishes for `checkout.session`,
`payment_intent`, `charge`, `refund`, `event` and lists (a test holds every key against the types of
the pinned stripe package). Imports msgspec only; pure. A row is the truth, an object is made from
it.
"""

import secrets
from typing import Any, Literal

from msgspec import Struct

Json = dict[str, Any]

DEFAULT_API_VERSION = "2026-10-28.endive"
_NO_ADDRESS: Json = dict.fromkeys(
    ("city", "country", "line1", "line2", "postal_code", "state"),
)


class Item(Struct, frozen=True):
    """One line of a checkout; `unit_amount` in cents."""

    name: str
    quantity: int
    unit_amount: int
    description: str | None = None


class Session(Struct, frozen=True):
    """A Checkout Session. Times are Unix seconds; `amount_total` is the sum of `items`."""

    id: str
    created: int
    expires_at: int
    status: Literal["open", "complete", "expired"]
    currency: str
    amount_total: int
    items: tuple[Item, ...]
    url: str
    success_url: str
    api_version: str
    cancel_url: str | None = None
    client_reference_id: str | None = None
    customer_email: str | None = None
    metadata: dict[str, str] = {}
    intent_metadata: dict[str, str] = {}
    intent_description: str | None = None
    payment_intent: str | None = None


class Payment(Struct, frozen=True):
    """Money received: the PaymentIntent `id` and its one charge. Amounts in cents."""

    id: str
    charge: str
    payment_method: str
    checkout_session: str
    created: int
    amount: int
    currency: str
    api_version: str
    amount_refunded: int = 0
    email: str | None = None
    description: str | None = None
    metadata: dict[str, str] = {}


class Refund(Struct, frozen=True):
    """Money given back, in cents; `failure_reason` only when it failed."""

    id: str
    payment_intent: str
    charge: str
    created: int
    amount: int
    currency: str
    reason: str | None = None
    metadata: dict[str, str] = {}
    status: Literal["pending", "succeeded", "failed"] = "succeeded"
    failure_reason: str | None = None


def new_id(prefix: str) -> str:
    """`prefix_` and 24 characters that nobody guesses."""
    return f"{prefix}_{secrets.token_hex(12)}"


def checkout_session(row: Session) -> Json:
    """The session as Stripe shows it: the link only while it is open, no intent before it."""
    return {
        **dict.fromkeys(_CHECKOUT_SESSION_NULLS),
        "id": row.id,
        "object": "checkout.session",
        "adaptive_pricing": {"enabled": False},
        "amount_subtotal": row.amount_total,
        "amount_total": row.amount_total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "cancel_url": row.cancel_url,
        "client_reference_id": row.client_reference_id,
        "created": row.created,
        "currency": row.currency,
        "custom_fields": [],
        "custom_text": dict.fromkeys(
            ("after_submit", "shipping_address", "submit", "terms_of_service_acceptance")
        ),
        "customer_creation": "if_required",
        "customer_details": _customer_details(row),
        "customer_email": row.customer_email,
        "discounts": [],
        "expires_at": row.expires_at,
        "invoice_creation": {"enabled": False, "invoice_data": _INVOICE_DATA},
        "livemode": False,
        "managed_payments": {"enabled": False},
        "metadata": row.metadata,
        "mode": "payment",
        "payment_intent": row.payment_intent,
        "payment_method_collection": "if_required",
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": "paid" if row.payment_intent else "unpaid",
        "phone_number_collection": {"enabled": False},
        "shipping_options": [],
        "status": row.status,
        "success_url": row.success_url,
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": row.url if row.status == "open" else None,
    }


_CHECKOUT_SESSION_NULLS = (
    *("after_expiration", "allow_promotion_codes", "billing_address_collection"),
    *("client_secret", "collected_information", "consent", "consent_collection"),
    *("currency_conversion", "customer", "customer_account", "integration_identifier"),
    *("invoice", "locale", "origin_context", "payment_link"),
    *("payment_method_configuration_details", "permissions", "recovered_from"),
    *("saved_payment_method_options", "setup_intent", "shipping_address_collection"),
    *("shipping_cost", "submit_type", "subscription", "wallet_options"),
)
_INVOICE_DATA: Json = {
    **dict.fromkeys(
        ("account_tax_ids", "custom_fields", "description", "footer", "issuer"),
    ),
    "metadata": {},
    "rendering_options": None,
}


def _customer_details(row: Session) -> Json | None:
    if row.customer_email is None:
        return None
    return {
        "address": None,
        "business_name": None,
        "email": row.customer_email,
        "individual_name": None,
        "name": None,
        "phone": None,
        "tax_exempt": "none",
        "tax_ids": None,
    }


def payment_intent(row: Payment) -> Json:
    """The intent behind a paid session; ours are made when they succeed."""
    return {
        **dict.fromkeys(_PAYMENT_INTENT_NULLS),
        "id": row.id,
        "object": "payment_intent",
        "amount": row.amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": row.amount,
        "capture_method": "automatic_async",
        "client_secret": f"{row.id}_secret_standin",
        "confirmation_method": "automatic",
        "created": row.created,
        "currency": row.currency,
        "description": row.description,
        "latest_charge": row.charge,
        "livemode": False,
        "managed_payments": {"enabled": False},
        "metadata": row.metadata,
        "payment_method": row.payment_method,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "status": "succeeded",
    }


_PAYMENT_INTENT_NULLS = (
    *("application", "application_fee_amount", "automatic_payment_methods", "canceled_at"),
    *("cancellation_reason", "customer", "customer_account", "excluded_payment_method_types"),
    *("last_payment_error", "next_action", "on_behalf_of"),
    *("payment_method_configuration_details", "processing", "receipt_email", "review"),
    *("setup_future_usage", "shipping", "source", "statement_descriptor"),
    *("statement_descriptor_suffix", "transfer_data", "transfer_group"),
)


def charge(row: Payment) -> Json:
    """The charge of a payment. `refunds` is null: Stripe sends the list only when it is expanded,
    and nobody should come to rely on it here."""
    return {
        **dict.fromkeys(_CHARGE_NULLS),
        "id": row.charge,
        "object": "charge",
        "amount": row.amount,
        "amount_captured": row.amount,
        "amount_refunded": row.amount_refunded,
        "balance_transaction": row.charge.replace("ch_", "txn_"),
        "billing_details": {
            "address": _NO_ADDRESS,
            "email": row.email,
            "name": None,
            "phone": None,
            "tax_id": None,
        },
        "calculated_statement_descriptor": "STAND-IN",
        "captured": True,
        "created": row.created,
        "currency": row.currency,
        "description": row.description,
        "disputed": False,
        "fraud_details": {},
        "livemode": False,
        "metadata": row.metadata,
        "outcome": {
            "advice_code": None,
            "network_advice_code": None,
            "network_decline_code": None,
            "network_status": "approved_by_network",
            "reason": None,
            "seller_message": "Payment complete.",
            "type": "authorized",
        },
        "paid": True,
        "payment_intent": row.id,
        "payment_method": row.payment_method,
        "payment_method_details": {"card": _card(row.amount), "type": "card"},
        "refunded": row.amount_refunded == row.amount,
        "status": "succeeded",
    }


_CHARGE_NULLS = (
    *("application", "application_fee", "application_fee_amount", "customer"),
    *("failure_balance_transaction", "failure_code", "failure_message", "on_behalf_of"),
    *("receipt_email", "receipt_number", "receipt_url", "refunds", "review", "shipping"),
    *("source", "source_transfer", "statement_descriptor", "statement_descriptor_suffix"),
    *("transfer_data", "transfer_group"),
)


def _card(amount: int) -> Json:
    """Stripe's test card 4242 4242 4242 4242."""
    return {
        "amount_authorized": amount,
        "authorization_code": None,
        "brand": "visa",
        "checks": {
            "address_line1_check": None,
            "address_postal_code_check": None,
            "cvc_check": "pass",
        },
        "country": "US",
        "exp_month": 12,
        "exp_year": 2034,
        "extended_authorization": {"status": "disabled"},
        "fingerprint": "standin4242",
        "funding": "credit",
        "incremental_authorization": {"status": "unavailable"},
        "installments": None,
        "last4": "4242",
        "mandate": None,
        "multicapture": {"status": "unavailable"},
        "network": "visa",
        "network_token": {"used": False},
        "network_transaction_id": None,
        "overcapture": {"maximum_amount_capturable": amount, "status": "unavailable"},
        "regulated_status": "unregulated",
        "three_d_secure": None,
        "transaction_link_id": None,
        "wallet": None,
    }


def refund(row: Refund) -> Json:
    """A refund: why it waits or failed is named only while it does or has."""
    return {
        **dict.fromkeys(_REFUND_NULLS),
        **_why(row),
        "id": row.id,
        "object": "refund",
        "amount": row.amount,
        "balance_transaction": row.id.replace("re_", "txn_"),
        "charge": row.charge,
        "created": row.created,
        "currency": row.currency,
        "destination_details": {"card": {"type": "reversal"}, "type": "card"},
        "metadata": row.metadata,
        "payment_intent": row.payment_intent,
        "reason": row.reason,
        "status": row.status,
    }


def _why(row: Refund) -> Json:
    if row.status == "pending":
        return {"pending_reason": "processing"}
    if row.status == "failed":
        returned = row.id.replace("re_", "txn_returned_")
        return {"failure_reason": row.failure_reason, "failure_balance_transaction": returned}
    return {}


_REFUND_NULLS = (
    *("customer", "customer_account", "payment_method", "receipt_number"),
    *("source_transfer_reversal", "transfer_reversal"),
)


class Cause(Struct, frozen=True):
    """The API request that led to an event; both null for what happened on the hosted page."""

    request_id: str | None = None
    idempotency_key: str | None = None


def event(
    kind: str,
    shown: Json,
    *,
    created: int,
    api_version: str,
    cause: Cause,
    previous: Json | None = None,
    account: str | None = None,
) -> Json:
    """A new event about `shown`; `previous` holds the attributes that an update replaced, and
    `account` is named for what happened in a connected account only."""
    data: Json = {"object": shown}
    if previous is not None:
        data["previous_attributes"] = previous
    return {
        "id": new_id("evt"),
        "object": "event",
        **({} if account is None else {"account": account}),
        "api_version": api_version,
        "created": created,
        "data": data,
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": cause.request_id, "idempotency_key": cause.idempotency_key},
        "type": kind,
    }


def listing(url: str, data: list[Json], *, has_more: bool) -> Json:
    """One page of objects, the newest first."""
    return {"object": "list", "url": url, "has_more": has_more, "data": data}
