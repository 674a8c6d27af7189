"""The books: whether money is conserved.

Its one job: hold what payments, refunds, transfers and reversals say against what their owners
have, which is kept apart from them. Imports `ledger`; changes nothing.
"""

from collections import Counter, defaultdict

from .connected import Reversal, Transfer
from .ledger import BANKS, CUSTOMERS, PLATFORM, Ledger
from .objects import Payment, Refund

_SHOWN = (
    *("paid", "refunded", "failed_refunds", "transferred", "reversed"),
    *(PLATFORM, "accounts", BANKS),
)


def sums(ledger: Ledger) -> dict[str, dict[str, int]]:
    """By currency, in cents: what objects say was moved (`refunded` without what failed), what the
    platform, the accounts together and their banks have, and `missing` between the two, which is 0
    while money is conserved."""
    books: dict[str, Counter[str]] = defaultdict(Counter)
    for payment in ledger.all(Payment):
        books[payment.currency]["paid"] += payment.amount
        books[payment.currency]["shown_refunded"] += payment.amount_refunded
    for refund in ledger.all(Refund):
        counted = "failed_refunds" if refund.status == "failed" else "refunded"
        books[refund.currency][counted] += refund.amount
    for transfer in ledger.all(Transfer):
        books[transfer.currency]["transferred"] += transfer.amount
        books[transfer.currency]["shown_reversed"] += transfer.amount_reversed
    for reversal in ledger.all(Reversal):
        books[reversal.currency]["reversed"] += reversal.amount
    for owner, currency, cents in ledger.balances():
        if owner != CUSTOMERS:
            name = owner if owner in (PLATFORM, BANKS) else "accounts"
            books[currency][name] += cents
    return {currency: _summed(book) for currency, book in books.items()}


def _summed(book: Counter[str]) -> dict[str, int]:
    """The book with what is missing: from the whole, from each owner, and from what objects show
    of one another."""
    sent = book["transferred"] - book["reversed"]
    kept = book["paid"] - book["refunded"]
    gaps = (
        kept - book[PLATFORM] - book["accounts"] - book[BANKS],
        kept - sent - book[PLATFORM],
        sent - book["accounts"] - book[BANKS],
        book["refunded"] - book["shown_refunded"],
        book["reversed"] - book["shown_reversed"],
    )
    return {name: book[name] for name in _SHOWN} | {"missing": sum(map(abs, gaps))}
