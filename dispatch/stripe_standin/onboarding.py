"""The rules of connected accounts: who may receive transfers, and since when.

Its one job: change the ledger as Stripe would and owe the events of it, each function inside one
`ledger.transaction()` of its caller. Imports `connected`, `forms`, `telling` and `ledger`. Fails
with `ApiError` before anything was written.
"""

from msgspec.structs import replace

from . import connected
from .connected import Account, Link
from .forms import AccountLinkParams, AccountParams, check_email, check_urls
from .ledger import Ledger
from .objects import Cause, new_id
from .params import ApiError
from .telling import Happened, missing, tell

LINK_SECONDS = 300


def create_account(
    ledger: Ledger, params: AccountParams, *, api_version: str, now: float
) -> Account:
    """A new account that was not set up yet. No event, as at Stripe."""
    check_email("email", params.email)
    account = Account(
        id=new_id("acct"),
        created=int(now),
        api_version=api_version,
        country=params.country,
        transfers_requested=params.capabilities.transfers.requested,
        email=params.email,
        business_type=params.business_type,
        metadata=params.metadata,
    )
    ledger.save(account)
    return account


def find_account(ledger: Ledger, account_id: str) -> Account:
    """The account; ApiError as Stripe words it for one that is unknown or somebody else's."""
    account = ledger.find(Account, id=account_id)
    if account is None:
        raise ApiError(
            f"The provided key does not have access to account '{account_id}' (or that account "
            "does not exist). Application access may have been revoked.",
            status=403,
            code="account_invalid",
        )
    return account


def create_link(ledger: Ledger, params: AccountLinkParams, *, page_base: str, now: float) -> Link:
    """A visit to the onboarding page of an account, for five minutes."""
    check_urls(return_url=params.return_url, refresh_url=params.refresh_url)
    if ledger.find(Account, id=params.account) is None:
        raise missing("account", params.account, param="account", status=400)
    link = Link(
        id=new_id("link"),
        account=params.account,
        created=int(now),
        expires_at=int(now) + LINK_SECONDS,
        return_url=params.return_url,
        refresh_url=params.refresh_url,
        page_base=page_base,
    )
    ledger.save(link)
    return link


def open_link(ledger: Ledger, link_id: str) -> tuple[Link, Account]:
    """The link and its account, or Stripe's 404."""
    link = ledger.find(Link, id=link_id)
    account = None if link is None else ledger.find(Account, id=link.account)
    if link is None or account is None:
        raise missing("account_link", link_id, param="id")
    return link, account


def finish(ledger: Ledger, link: Link, account: Account, *, now: float) -> Account:
    """The person gave all that is asked for: the account may receive transfers from now on."""
    ledger.save(replace(link, used=True))
    return change(ledger, account, details_submitted=True, disabled_reason=None, now=now)


def change(
    ledger: Ledger,
    account: Account,
    *,
    details_submitted: bool,
    disabled_reason: str | None,
    now: float,
) -> Account:
    """The account is set up, or disabled for a reason of Stripe's, or enabled again."""
    changed = replace(account, details_submitted=details_submitted, disabled_reason=disabled_reason)
    ledger.save(changed)
    updated = Happened(
        "account.updated", connected.account(changed), before=connected.account(account)
    )
    tell(
        *(ledger, updated),
        api_version=account.api_version,
        cause=Cause(),
        account=account.id,
        now=now,
    )
    return changed
