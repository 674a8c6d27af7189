"""The rules: a session is paid once, a payment is never refunded beyond what was paid.

Its one job: change the ledger as Stripe would and owe the events of it, each function inside one
`ledger.transaction()` of its caller. Imports `objects`, `params` and `ledger`. Fails with
`ApiError` before anything was written.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from . import objects
from .ledger import Ledger
from .objects import Cause, Item, Json, Payment, Refund, Session, new_id
from .params import ApiError, CheckoutParams, InvalidParams, RefundParams, check_checkout

DAY_SECONDS = 86_400


def create_checkout(
    ledger: Ledger, params: CheckoutParams, *, page_base: str, api_version: str, now: float
) -> Session:
    """A new open session with its hosted page under `page_base`. No event, as at Stripe."""
    amount_total = check_checkout(params, int(now))
    session_id = new_id("cs_test")
    session = Session(
        id=session_id,
        created=int(now),
        expires_at=params.expires_at or int(now) + DAY_SECONDS,
        status="open",
        currency=params.line_items[0].price_data.currency.lower(),
        amount_total=amount_total,
        items=tuple(
            Item(
                name=item.price_data.product_data.name,
                description=item.price_data.product_data.description,
                quantity=item.quantity,
                unit_amount=item.price_data.unit_amount,
            )
            for item in params.line_items
        ),
        url=f"{page_base}/c/pay/{session_id}",
        success_url=params.success_url,
        cancel_url=params.cancel_url,
        client_reference_id=params.client_reference_id,
        customer_email=params.customer_email,
        metadata=params.metadata,
        intent_metadata=params.payment_intent_data.metadata,
        intent_description=params.payment_intent_data.description,
        api_version=api_version,
    )
    ledger.save(session)
    return session


def current(ledger: Ledger, session_id: str, *, now: float) -> Session:
    """The session as it is now, expired if its time is over."""
    session = ledger.find(Session, id=session_id)
    if session is None:
        raise missing("checkout.session", session_id, param="session")
    if session.status == "open" and session.expires_at <= now:
        return expire(ledger, session, cause=Cause(), now=now)
    return session


def pay(ledger: Ledger, session_id: str, *, now: float) -> Session:
    """Pay an open session with the test card; ApiError when it is paid or expired.

    The caller's rollback takes back an expiry noticed here; the next tick notices it again.
    """
    session = current(ledger, session_id, now=now)
    if session.status == "complete":
        raise ApiError("This payment was already made.", status=409, code="already_paid")
    if session.status == "expired":
        raise ApiError("This checkout has expired.", status=409, code="expired")
    payment = Payment(
        id=new_id("pi"),
        charge=new_id("ch"),
        payment_method=new_id("pm"),
        checkout_session=session.id,
        created=int(now),
        amount=session.amount_total,
        currency=session.currency,
        email=session.customer_email,
        description=session.intent_description,
        metadata=session.intent_metadata,
        api_version=session.api_version,
    )
    paid = replace(session, status="complete", payment_intent=payment.id)
    ledger.save(payment)
    ledger.save(paid)
    happened = (
        ("charge.succeeded", objects.charge(payment)),
        ("payment_intent.succeeded", objects.payment_intent(payment)),
        ("checkout.session.completed", objects.checkout_session(paid)),
    )
    _tell(ledger, happened, api_version=session.api_version, cause=Cause(), now=now)
    return paid


def expire(ledger: Ledger, session: Session, *, cause: Cause, now: float) -> Session:
    """Close an open session; ApiError when it is not open any more."""
    if session.status != "open":
        raise ApiError(
            'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout '
            f"Session has a status of {session.status}.",
        )
    expired = replace(session, status="expired")
    ledger.save(expired)
    happened = (("checkout.session.expired", objects.checkout_session(expired)),)
    _tell(ledger, happened, api_version=session.api_version, cause=cause, now=now)
    return expired


def create_refund(ledger: Ledger, params: RefundParams, *, cause: Cause, now: float) -> Refund:
    """Give back `amount`, or all that is left; ApiError when it is more than is left."""
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
    )
    changed = replace(payment, amount_refunded=payment.amount_refunded + amount)
    ledger.save(refund)
    ledger.save(changed)
    happened = (
        ("refund.created", objects.refund(refund)),
        ("charge.refunded", objects.charge(changed)),
    )
    previous = {"charge.refunded": _what_changed(payment, changed)}
    _tell(
        ledger, happened, api_version=payment.api_version, cause=cause, now=now, previous=previous
    )
    return refund


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


def _what_changed(before: Payment, after: Payment) -> Json:
    old, new = objects.charge(before), objects.charge(after)
    return {key: old[key] for key in old if old[key] != new[key]}


def _tell(
    ledger: Ledger,
    happened: Sequence[tuple[str, Json]],
    *,
    api_version: str,
    cause: Cause,
    now: float,
    previous: dict[str, Json] | None = None,
) -> None:
    """Owe an event for each of `happened`; indented like Stripe's, so that a receiver who
    verifies anything but the raw bytes fails here too."""
    for kind, shown in happened:
        event = objects.event(
            kind,
            shown,
            created=int(now),
            api_version=api_version,
            cause=cause,
            previous=(previous or {}).get(kind),
        )
        body = msgspec.json.format(msgspec.json.encode(event), indent=2)
        ledger.add_event(event["id"], kind, body, now=now)


def missing(kind: str, object_id: str, *, param: str) -> ApiError:
    """Stripe's 404."""
    return ApiError(
        f"No such {kind}: '{object_id}'", status=404, code="resource_missing", param=param
    )
