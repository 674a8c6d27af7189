"""Checkout's rules: a session is paid once, or expires.

Its one job: change the ledger as Stripe would and owe the events of it, each function inside one
`ledger.transaction()` of its caller. Imports `objects`, `forms`, `telling` and `ledger`. Fails with
`ApiError` before anything was written.
"""

from msgspec.structs import replace

from . import objects
from .connected import Account
from .forms import DAY_SECONDS, CheckoutParams, check_checkout
from .ledger import CUSTOMERS, PLATFORM, Ledger
from .objects import Cause, Item, Payment, Session, new_id
from .params import ApiError
from .telling import Happened, missing, tell


def create(
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
    ledger.move(CUSTOMERS, PLATFORM, payment.amount, payment.currency, about=payment.charge)
    happened = (
        Happened("charge.succeeded", objects.charge(payment)),
        Happened("payment_intent.succeeded", objects.payment_intent(payment)),
        Happened("checkout.session.completed", objects.checkout_session(paid)),
    )
    tell(ledger, *happened, api_version=session.api_version, now=now)
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
    happened = Happened("checkout.session.expired", objects.checkout_session(expired))
    tell(ledger, happened, api_version=session.api_version, cause=cause, now=now)
    return expired


def tell_foreign(
    ledger: Ledger,
    *,
    account: Account,
    amount_total: int,
    currency: str,
    client_reference_id: str | None,
    metadata: dict[str, str],
    now: float,
) -> Session:
    """A checkout was paid in a connected account, with whatever its owner wrote onto it: we are
    told, and nothing of it is ours."""
    item = Item(name="Anything", quantity=1, unit_amount=amount_total)
    session = Session(
        id=new_id("cs_test"),
        created=int(now),
        expires_at=int(now) + DAY_SECONDS,
        status="complete",
        currency=currency,
        amount_total=amount_total,
        items=(item,),
        url="",
        success_url="https://elsewhere.example/done",
        api_version=account.api_version,
        client_reference_id=client_reference_id,
        metadata=metadata,
        payment_intent=new_id("pi"),
    )
    completed = Happened("checkout.session.completed", objects.checkout_session(session))
    tell(ledger, completed, api_version=account.api_version, account=account.id, now=now)
    return session
