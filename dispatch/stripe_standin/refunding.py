"""The rules of refunds: never more than was paid, and one that fails gives back what it took.

Its one job: change the ledger as Stripe would and owe the events of it, each function inside one
`ledger.transaction()` of its caller. Imports `objects`, `forms`, `telling` and `ledger`. Fails with
`ApiError` before anything was written.

A refund takes its money from the platform's balance at once, which may go below zero as Stripe then
takes it from the bank; also while it is pending.
"""

from msgspec.structs import replace

from . import objects
from .forms import RefundParams
from .ledger import CUSTOMERS, PLATFORM, Ledger
from .objects import Cause, Payment, Refund, new_id
from .params import ApiError, InvalidParams
from .telling import Happened, missing, tell


def create(
    ledger: Ledger, params: RefundParams, *, cause: Cause, now: float, pending: bool = False
) -> Refund:
    """Give back `amount`, or all that is left; ApiError when it is more than is left.

    It succeeds at once, or stays `pending` until `settle`.
    """
    payment = _payment_to_refund(ledger, params)
    left = payment.amount - payment.amount_refunded
    if left == 0:
        raise ApiError(
            f"Charge {payment.charge} has already been refunded.", code="charge_already_refunded"
        )
    amount = left if params.amount is None else params.amount
    if amount > left:
        raise ApiError(
            f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left}).",
            param="amount",
        )
    refund = Refund(
        id=new_id("re"),
        payment_intent=payment.id,
        charge=payment.charge,
        created=int(now),
        amount=amount,
        currency=payment.currency,
        reason=params.reason,
        metadata=params.metadata,
        status="pending" if pending else "succeeded",
    )
    changed = replace(payment, amount_refunded=payment.amount_refunded + amount)
    ledger.save(refund)
    ledger.save(changed)
    ledger.move(PLATFORM, CUSTOMERS, amount, payment.currency, about=refund.id)
    happened = (
        Happened("refund.created", objects.refund(refund)),
        Happened("charge.refunded", objects.charge(changed), before=objects.charge(payment)),
    )
    tell(ledger, *happened, api_version=payment.api_version, cause=cause, now=now)
    return refund


def settle(ledger: Ledger, refund_id: str, *, failure_reason: str | None, now: float) -> Refund:
    """A pending refund succeeds; or it fails for `failure_reason`, which can also befall one that
    had succeeded. The money of a failed one is the platform's again."""
    refund = ledger.find(Refund, id=refund_id)
    if refund is None:
        raise missing("refund", refund_id, param="id")
    allowed = ("pending",) if failure_reason is None else ("pending", "succeeded")
    if refund.status not in allowed:
        raise ApiError(f"Refund {refund.id} has {refund.status}.", status=409)
    status = "succeeded" if failure_reason is None else "failed"
    settled = replace(refund, status=status, failure_reason=failure_reason)
    ledger.save(settled)
    payment = ledger.find(Payment, id=refund.payment_intent)
    assert payment is not None, "a refund is of a payment"
    shown, before = objects.refund(settled), objects.refund(refund)
    happened = [
        Happened("refund.updated", shown, before=before),
        Happened("charge.refund.updated", shown, before=before),
    ]
    if failure_reason is not None:
        ledger.save(replace(payment, amount_refunded=payment.amount_refunded - refund.amount))
        ledger.move(CUSTOMERS, PLATFORM, refund.amount, refund.currency, about=refund.id)
        happened.append(Happened("refund.failed", shown, before=before))
    tell(ledger, *happened, api_version=payment.api_version, now=now)
    return settled


def _payment_to_refund(ledger: Ledger, params: RefundParams) -> Payment:
    if (params.payment_intent is None) == (params.charge is None):
        raise InvalidParams(
            "One of the following params should be provided for this request: payment_intent or "
            "charge.",
            code="parameter_missing" if params.charge is None else None,
        )
    if params.charge is not None:
        payment = ledger.find(Payment, charge=params.charge)
        if payment is None:
            raise missing("charge", params.charge, param="charge")
    else:
        intent = str(params.payment_intent)
        payment = ledger.find(Payment, id=intent)
        if payment is None:
            raise missing("payment_intent", intent, param="payment_intent")
    return payment
