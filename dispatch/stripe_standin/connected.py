"""What belongs to connected accounts: their rows, and how Stripe shows them.

Its one job: give accounts, account links, transfers, reversals and balances the shape that Stripe
publishes. Imports `objects` and msgspec; pure. A row is the truth, an object is made from it.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from .objects import Json, listing

SHOWN_REVERSALS = 10  # how many Stripe shows inside a transfer


class Account(Struct, frozen=True):
    """An Express account. It may receive transfers once it was set up, until it is disabled."""

    id: str
    created: int
    api_version: str
    country: str
    transfers_requested: bool
    email: str | None = None
    business_type: str | None = None
    metadata: dict[str, str] = {}
    details_submitted: bool = False
    disabled_reason: str | None = None

    @property
    def is_enabled(self) -> bool:
        return self.details_submitted and self.disabled_reason is None

    @property
    def takes_transfers(self) -> bool:
        return self.transfers_requested and self.is_enabled


class Link(Struct, frozen=True):
    """A visit to the onboarding page of an account, for a few minutes."""

    id: str
    account: str
    created: int
    expires_at: int
    return_url: str
    refresh_url: str
    page_base: str
    used: bool = False


class Transfer(Struct, frozen=True):
    """Money sent from the platform to an account, in cents; some of it may have come back."""

    id: str
    created: int
    amount: int
    currency: str
    destination: str
    api_version: str
    amount_reversed: int = 0
    description: str | None = None
    transfer_group: str | None = None
    metadata: dict[str, str] = {}


class Reversal(Struct, frozen=True):
    """Money taken back from a transfer, in cents."""

    id: str
    transfer: str
    created: int
    amount: int
    currency: str
    metadata: dict[str, str] = {}


def account(row: Account) -> Json:
    """The account as Stripe shows it to the platform."""
    due = [] if row.details_submitted else list(_TO_BE_GIVEN)
    asked = [] if not row.transfers_requested else ["transfers"]
    state = "active" if row.takes_transfers else "inactive"
    return {
        "id": row.id,
        "object": "account",
        "business_profile": _BUSINESS_PROFILE,
        "business_type": row.business_type,
        "capabilities": dict.fromkeys(asked, state),
        "charges_enabled": False,  # about taking cards, which these accounts do not
        "controller": {
            "fees": {"payer": "application_express"},
            "is_controller": True,
            "losses": {"payments": "application"},
            "requirement_collection": "stripe",
            "stripe_dashboard": {"type": "express"},
            "type": "application",
        },
        "country": row.country,
        "created": row.created,
        "default_currency": "usd",
        "details_submitted": row.details_submitted,
        "email": row.email,
        "external_accounts": listing(
            f"/v1/accounts/{row.id}/external_accounts", [], has_more=False
        ),
        "future_requirements": _requirements([], None),
        "metadata": row.metadata,
        "payouts_enabled": row.is_enabled,
        "requirements": _requirements(
            due, row.disabled_reason or ("requirements.past_due" if due else None)
        ),
        "settings": _SETTINGS,
        "tos_acceptance": {"date": None, "ip": None, "user_agent": None},
        "type": "express",
    }


_TO_BE_GIVEN = (*("business_type", "external_account", "tos_acceptance.date", "tos_acceptance.ip"),)
_BUSINESS_PROFILE: Json = {
    **dict.fromkeys(
        ("estimated_worker_count", "mcc", "minority_owned_business_designation", "name"),
    ),
    **dict.fromkeys(("product_description", "support_email", "support_phone", "support_url")),
    "annual_revenue": None,
    "support_address": None,
    "url": None,
}
_SETTINGS: Json = {
    "bacs_debit_payments": {"display_name": None, "service_user_number": None},
    "branding": dict.fromkeys(("icon", "logo", "primary_color", "secondary_color")),
    "card_issuing": {"tos_acceptance": {"date": None, "ip": None}},
    "card_payments": {
        "decline_on": {"avs_failure": False, "cvc_failure": False},
        **dict.fromkeys(
            (
                *("statement_descriptor_prefix", "statement_descriptor_prefix_kana"),
                "statement_descriptor_prefix_kanji",
            )
        ),
    },
    "dashboard": {"display_name": None, "timezone": "Etc/UTC"},
    "invoices": {"default_account_tax_ids": None, "hosted_payment_method_save": None},
    "payments": dict.fromkeys(
        (
            *("statement_descriptor", "statement_descriptor_kana", "statement_descriptor_kanji"),
            *("statement_descriptor_prefix_kana", "statement_descriptor_prefix_kanji"),
        )
    ),
    "payouts": {
        "debit_negative_balances": True,
        "schedule": {"delay_days": 2, "interval": "daily"},
        "statement_descriptor": None,
    },
    "sepa_debit_payments": {},
}


def _requirements(due: list[str], disabled_reason: str | None) -> Json:
    return {
        "alternatives": [],
        "current_deadline": None,
        "currently_due": due,
        "disabled_reason": disabled_reason,
        "errors": [],
        "eventually_due": due,
        "past_due": due,
        "pending_verification": [],
    }


def page_of(link: Link) -> str:
    """The address of a link's page."""
    return f"{link.page_base}/c/onboard/{link.id}"


def account_link(row: Link) -> Json:
    """The link; it has no id of its own at Stripe."""
    return {
        "object": "account_link",
        "created": row.created,
        "expires_at": row.expires_at,
        "url": page_of(row),
    }


def transfer(row: Transfer, reversals: Sequence[Reversal]) -> Json:
    """The transfer with its latest reversals, the newest first: `reversals` may have more."""
    return {
        "id": row.id,
        "object": "transfer",
        "amount": row.amount,
        "amount_reversed": row.amount_reversed,
        "balance_transaction": row.id.replace("tr_", "txn_"),
        "created": row.created,
        "currency": row.currency,
        "description": row.description,
        "destination": row.destination,
        "destination_payment": row.id.replace("tr_", "py_"),
        "livemode": False,
        "metadata": row.metadata,
        "reversals": listing(
            f"/v1/transfers/{row.id}/reversals",
            [reversal(one) for one in reversals[:SHOWN_REVERSALS]],
            has_more=len(reversals) > SHOWN_REVERSALS,
        ),
        "reversed": row.amount_reversed == row.amount,
        "source_transaction": None,
        "source_type": "card",
        "transfer_group": row.transfer_group,
    }


def reversal(row: Reversal) -> Json:
    return {
        "id": row.id,
        "object": "transfer_reversal",
        "amount": row.amount,
        "balance_transaction": row.id.replace("trr_", "txn_"),
        "created": row.created,
        "currency": row.currency,
        "destination_payment_refund": row.id.replace("trr_", "pyr_"),
        "metadata": row.metadata,
        "source_refund": None,
        "transfer": row.transfer,
    }


def balance(cents: Mapping[str, int]) -> Json:
    """A balance from cents by currency; all of it is available at once."""
    currencies = sorted(cents) or ["usd"]
    return {
        "object": "balance",
        "available": [_funds(currency, cents.get(currency, 0)) for currency in currencies],
        "connect_reserved": [{"amount": 0, "currency": currency} for currency in currencies],
        "livemode": False,
        "pending": [_funds(currency, 0) for currency in currencies],
    }


def _funds(currency: str, amount: int) -> Json:
    return {"amount": amount, "currency": currency, "source_types": {"card": amount}}
