"""The rules of transfers: never more than the platform has, nor back more than was sent.

Its one job: change the ledger as Stripe would and owe the events of it, each function inside one
`ledger.transaction()` of its caller. Imports `connected`, `forms`, `telling` and `ledger`. Fails
with `ApiError` before anything was written.
"""

from msgspec.structs import replace

from . import connected
from .connected import SHOWN_REVERSALS, Account, Reversal, Transfer
from .forms import ListParams, ReversalParams, TransferParams, TransferUpdateParams
from .ledger import BANKS, PLATFORM, Ledger
from .objects import Cause, Json, new_id
from .params import ApiError
from .telling import Happened, missing, tell


def create(
    ledger: Ledger, params: TransferParams, *, api_version: str, cause: Cause, now: float
) -> Transfer:
    """Send money of the platform to an account that may receive it."""
    currency = params.currency.lower()
    destination = ledger.find(Account, id=params.destination)
    if destination is None:
        raise missing("destination", params.destination, param="destination", status=400)
    if not destination.takes_transfers:
        raise ApiError(
            "Your destination account needs to have at least one of the following capabilities "
            "enabled: transfers, crypto_transfers, legacy_payments",
            code="insufficient_capabilities_for_transfer",
        )
    if params.amount > ledger.balance(PLATFORM).get(currency, 0):
        raise ApiError(
            "You have insufficient available funds in your Stripe account.",
            code="balance_insufficient",
        )
    transfer = Transfer(
        id=new_id("tr"),
        created=int(now),
        amount=params.amount,
        currency=currency,
        destination=destination.id,
        api_version=api_version,
        description=params.description,
        transfer_group=params.transfer_group,
        metadata=params.metadata,
    )
    ledger.save(transfer)
    ledger.move(PLATFORM, destination.id, params.amount, currency, about=transfer.id)
    created = Happened("transfer.created", show(ledger, transfer))
    tell(ledger, created, api_version=api_version, cause=cause, now=now)
    return transfer


def find(ledger: Ledger, transfer_id: str) -> Transfer:
    transfer = ledger.find(Transfer, id=transfer_id)
    if transfer is None:
        raise missing("transfer", transfer_id, param="id")
    return transfer


def show(ledger: Ledger, row: Transfer) -> Json:
    """The transfer as Stripe shows it, its latest reversals inside."""
    latest = ListParams(limit=SHOWN_REVERSALS + 1)
    reversals, _ = ledger.page(Reversal, latest, {"transfer": row.id})
    return connected.transfer(row, reversals)


def update(
    ledger: Ledger, transfer_id: str, params: TransferUpdateParams, *, cause: Cause, now: float
) -> Transfer:
    """Other words on a transfer; an empty value takes its key out of the metadata."""
    transfer = find(ledger, transfer_id)
    merged = {**transfer.metadata, **params.metadata}
    changed = replace(
        transfer,
        description=params.description or transfer.description,
        metadata={key: value for key, value in merged.items() if value},
    )
    before = show(ledger, transfer)
    ledger.save(changed)
    updated = Happened("transfer.updated", show(ledger, changed), before=before)
    tell(ledger, updated, api_version=transfer.api_version, cause=cause, now=now)
    return changed


def reverse(
    ledger: Ledger, transfer_id: str, params: ReversalParams, *, cause: Cause, now: float
) -> Reversal:
    """Take back `amount`, or all that is left, whatever the account still has of it."""
    transfer = find(ledger, transfer_id)
    left = transfer.amount - transfer.amount_reversed
    if left == 0:
        raise ApiError(f"Transfer {transfer.id} is already fully reversed.", param="id")
    amount = left if params.amount is None else params.amount
    if amount > left:
        raise ApiError(
            f"Reversal amount ({amount}) is greater than unreversed amount on transfer ({left}).",
            param="amount",
        )
    reversal = Reversal(
        id=new_id("trr"),
        transfer=transfer.id,
        created=int(now),
        amount=amount,
        currency=transfer.currency,
        metadata=params.metadata,
    )
    before = show(ledger, transfer)
    changed = replace(transfer, amount_reversed=transfer.amount_reversed + amount)
    ledger.save(reversal)
    ledger.save(changed)
    ledger.move(transfer.destination, PLATFORM, amount, transfer.currency, about=reversal.id)
    reversed_ = Happened("transfer.reversed", show(ledger, changed), before=before)
    tell(ledger, reversed_, api_version=transfer.api_version, cause=cause, now=now)
    return reversal


def find_reversal(ledger: Ledger, transfer_id: str, reversal_id: str) -> Reversal:
    reversal = ledger.find(Reversal, id=reversal_id)
    if reversal is None or reversal.transfer != transfer_id:
        raise missing("transfer_reversal", reversal_id, param="id")
    return reversal


def pay_out(ledger: Ledger, account: Account, cents: int, currency: str) -> None:
    """The account takes money to its bank, as its schedule does at Stripe; ApiError when it has
    less. What is reversed after that leaves it below zero."""
    if cents > ledger.balance(account.id).get(currency, 0):
        raise ApiError("The account has less than that.", code="balance_insufficient", status=409)
    ledger.move(account.id, BANKS, cents, currency, about=account.id)
