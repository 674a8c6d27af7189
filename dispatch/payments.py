"""Money in and back: a checkout for an intake, Stripe's webhooks, refunds (C1-C4, C6).

One job: move rows of `payments` so that each payment is answered once, by a session or by a refund.
The row is committed before Stripe hears of it and is locked by whatever moves it, so that webhooks
may come doubled, together, in any order, or before Stripe's answer to our own call. Imports
`sessions`, `stripe_client`, `database`, `queries`, `config` and `errors`; whoever calls tells the
dispatcher and the outbox after the commit.

It fails with `Unavailable` (Postgres or Stripe is away: the same call again is right),
`StripeFailed` (Stripe refused), and refusals of what was asked, which have changed nothing.

    created ─┬─ paid in full ────────────> fulfilled ─ its booking ends unserved ─┐
             ├─ paid, but no session ─────────────────────────────────────────────┴> refunding
             ├─ paid, wrongly or unasked ─> held, for a person                          │
             └─ over, or refused ─────────> expired, failed                          refunded

Money that arrives for an expired or failed payment is treated as if it were still created.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from dispatch import queries, sessions
from dispatch.config import Config
from dispatch.core import messages
from dispatch.core.types import Routing
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import BadRequest, Conflict, Unavailable
from dispatch.sessions import (
    Created,
    Intake,
    IntakeForm,
    OpenAtOnce,
    SlotFull,
    Started,
    decode_prospect,
)
from dispatch.stripe_client import (
    MIN_EXPIRY_SECONDS,
    CheckoutSession,
    StripeClient,
    StripeFailed,
    StripeWord,
    WebhookEvent,
    verify_webhook,
)

log = logging.getLogger(__name__)

_SQL: Final = queries.load("payments")

CHECKOUT_SECONDS: Final = 3600
_OPEN: Final = timedelta(seconds=CHECKOUT_SECONDS)
# Stripe takes no checkout that ends sooner, also when it hears of it late.
_MAKEABLE: Final = timedelta(seconds=CHECKOUT_SECONDS - MIN_EXPIRY_SECONDS)

# States in which money may arrive that nothing has answered yet.
_UNANSWERED: Final = ("created", "expired", "failed")
# Why a session could not be made of a payment that is right, by the constraint that said so.
_NO_SESSION: Final = {
    "sessions_one_live_per_customer": "active_session_exists",
    "sessions_intake_id_key": "already_booked",
}

Result = Literal[
    "fulfilled",  # a session was made
    "refunding",  # paid, no session could be made: a refund is queued
    "held",  # paid wrongly or unasked: a person must look
    "unpaid",  # completed, and the money is still to come
    "expired",
    "failed",
    "refunded",
    "wrong_livemode",
    "repeated",  # another event has said the same of this payment before
    "duplicate",  # this very event was here before
    "ignored",
]


class CheckoutQuery(Struct, frozen=True, kw_only=True):
    """What `GET /api/checkout/create-session` is asked with (C1)."""

    intake_id: UUID | None = None
    plan: Annotated[str, Meta(max_length=50)] | None = None
    routing_type: Routing | None = None
    workshop_id: UUID | None = None
    preferred_mechanic_id: UUID | None = None
    slot_id: UUID | None = None
    wait_for_preferred: bool | None = None


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a webhook; `alarm` says what a person must look at."""

    result: Result
    created: Created | None = None
    refund_queued: bool = False
    customer_id: UUID | None = None
    alarm: str | None = None


class _Payment(Struct, frozen=True, kw_only=True):
    """A payment that is expected; `checkout_url` once Stripe has made its page."""

    id: UUID
    amount_cents: int
    currency: str
    checkout_url: str | None
    created_at: datetime


class _Charge(Struct, frozen=True):
    """What `charge.refunded` says; `refunded` when nothing of it is left."""

    payment_intent: StripeWord | None = None
    refunded: bool = False
    metadata: dict[str, str] = {}


# --- checkout ----------------------------------------------------------------------------------


async def create_checkout(
    pool: Pool, stripe: StripeClient, config: Config, customer_id: UUID, query: CheckoutQuery
) -> str:
    """The URL of Stripe's page where the customer pays for an intake at the plan's price.

    Asked again while that page is open, it is the same one. Without `intake_id` an intake is stored
    from the query first. Raises `NotFound` (not the customer's intake), `BadRequest` (a query that
    contradicts the intake or names what is not there, `nothing_to_pay`), `ActiveSessionExists`,
    `SlotFull`, `StripeFailed`, and `Conflict`: `already_booked`, `payment_pending` (paid, and not
    yet settled), `waiver_required` with `intake_id` and `redirect`.
    """
    async with transaction(pool) as connection:
        intake_id = query.intake_id
        if intake_id is None:
            intake_id = await _intake_from(connection, customer_id, query)
        await connection.execute(_SQL["lock_intake"], intake_id, customer_id)
        intake = await sessions.intake_of(connection, intake_id, customer_id)
        await _check(connection, intake, query)
        payment = await _expected_payment(connection, intake) if intake.waiver_signed else None
        email: str = await connection.fetchval(_SQL["email_of"], customer_id)
    if payment is None:  # after the commit: an intake that was made here is kept to be signed
        waiver = Started(intake_id=intake.id, plan=intake.plan_code, created=None)
        raise Conflict(
            "waiver_required",
            "the waiver must be signed before you pay",
            fields={"intake_id": str(intake.id), "redirect": waiver.redirect},
        )
    if payment.checkout_url is not None:
        return payment.checkout_url
    return await _make_page(pool, stripe, config, intake, payment, email)


async def _intake_from(connection: Connection, customer_id: UUID, query: CheckoutQuery) -> UUID:
    if not query.plan:
        raise BadRequest("plan: required without intake_id")
    given = {name: value for name, value in msgspec.structs.asdict(query).items() if value}
    form = IntakeForm(**given)
    intake_id = uuid4()
    await sessions.check(connection, customer_id, form, intake_id)
    await sessions.store_intake(connection, customer_id, form, intake_id)
    return intake_id


async def _check(connection: Connection, intake: Intake, query: CheckoutQuery) -> None:
    """Nobody pays for what contradicts the intake, is booked, is free or cannot be served."""
    form = IntakeForm(
        plan=intake.plan_code,
        routing_type=Routing(intake.routing_type),
        workshop_id=intake.workshop_id,
        preferred_mechanic_id=intake.preferred_mechanic_id,
        slot_id=intake.slot_id,
        wait_for_preferred=intake.wait_for_preferred,
    )
    for name, value in msgspec.structs.asdict(query).items():
        if name != "intake_id" and value is not None and value != getattr(form, name):
            raise BadRequest(f"{name}: contradicts the intake")
    if intake.booked:
        raise Conflict("already_booked", "this intake is booked already")
    if intake.price_cents == 0:
        raise BadRequest("plan: there is nothing to pay for", code="nothing_to_pay")
    alone = intake.slot_id is None
    await sessions.check(connection, intake.customer_id, form, intake.id, alone=alone)


async def _expected_payment(connection: Connection, intake: Intake) -> _Payment:
    """The open payment of the locked intake, or a new one at the price of this moment."""
    row = await connection.fetchrow(_SQL["payment_under_way"], intake.id, _OPEN, _MAKEABLE)
    if row is not None:
        if row["status"] == "held" or row["payment_intent"] is not None:
            raise Conflict("payment_pending", "your payment is being processed")
        if row["usable"]:
            return _payment(row)
        await connection.execute(_SQL["supersede_payment"], row["id"])
    row = await connection.fetchrow(
        _SQL["insert_payment"],
        intake.customer_id,
        intake.id,
        intake.plan_code,
        intake.price_cents,
        intake.currency,
    )
    assert row is not None
    return _payment(row)


def _payment(row: asyncpg.Record) -> _Payment:
    return _Payment(**{name: row[name] for name in _Payment.__struct_fields__})


async def _make_page(
    pool: Pool,
    stripe: StripeClient,
    config: Config,
    intake: Intake,
    payment: _Payment,
    email: str,
) -> str:
    """Asks Stripe, by arguments that are the same whenever this payment's page is asked for."""
    try:
        checkout = await stripe.create_checkout(
            payment_id=payment.id,
            plan_code=intake.plan_code,
            plan_name=intake.plan_name,
            amount_cents=payment.amount_cents,
            currency=payment.currency,
            customer_email=email,
            metadata=_metadata(intake),
            success_url=f"{config.public_url}/checkout/success?session_id={{CHECKOUT_SESSION_ID}}",
            cancel_url=f"{config.public_url}/checkout/cancel?intake_id={intake.id}",
            expires_in_seconds=CHECKOUT_SECONDS,
            created_at=payment.created_at,
        )
    except StripeFailed as refused:
        async with transaction(pool) as connection:  # asked again, a new payment has a new key
            await connection.execute(_SQL["refuse_checkout"], payment.id, refused.message)
        raise
    async with transaction(pool) as connection:
        await connection.execute(_SQL["store_checkout"], payment.id, checkout.id, checkout.url)
    return checkout.url


def _metadata(intake: Intake) -> dict[str, str]:
    """All that was asked for (C1), for whoever reads it at Stripe."""
    asked = {
        "customer_id": intake.customer_id,
        "intake_id": intake.id,
        "plan": intake.plan_code,
        "routing_type": intake.routing_type,
        "workshop_id": intake.workshop_id,
        "preferred_mechanic_id": intake.preferred_mechanic_id,
        "slot_id": intake.slot_id,
        "wait_for_preferred": "true" if intake.wait_for_preferred else "false",
    }
    return {name: str(value) for name, value in asked.items() if value is not None}


# --- webhooks ----------------------------------------------------------------------------------


async def handle_webhook(
    pool: Pool,
    config: Config,
    raw: bytes,
    signature: str | None,
    open_at_once: OpenAtOnce | None = None,
) -> Outcome:
    """Believes a webhook and moves the payment it is about, in one transaction, once (C2).

    `raw` is the body as it came, `signature` the Stripe-Signature header. What was paid for becomes
    a booking, opened in the same transaction where `open_at_once` can. Afterwards the caller tells
    the dispatcher of `created`, and the outbox where `refund_queued`. Raises `BadRequest` for what
    Stripe did not sign, or not lately, and `Unavailable`; nothing has changed then.
    """
    if signature is None:
        raise BadRequest("the Stripe-Signature header is missing")
    event = verify_webhook(raw, signature, config.stripe_webhook_secrets)
    if open_at_once is not None:
        outcome = await _book_at_once(pool, config, event, open_at_once)
        if outcome is not None:
            return outcome
    async with transaction(pool) as connection:
        if not await connection.fetchval(_SQL["insert_event"], event.id, event.type):
            return Outcome(result="duplicate")
        outcome = await _apply(connection, config, event)
        await connection.execute(_SQL["note_outcome"], event.id, outcome.result)
    if outcome.alarm is not None:
        log.error("%s of %s: %s", event.type, event.id, outcome.alarm)
    return outcome


async def _book_at_once(
    pool: Pool, config: Config, event: WebhookEvent, open_at_once: OpenAtOnce
) -> Outcome | None:
    """The ordinary case in one read and one write: the right money for a booking for now, of a
    customer who is free. None for every other case; nothing was written then."""
    shown = _completed_checkout(event)
    if shown is None or shown.payment_status != "paid" or not _is_ours(config, event):
        return None
    async with unavailable_when_lost():
        sale = await pool.fetchrow(_SQL["sale"], _payment_id(shown.metadata or {}), shown.id)
    if sale is None or sale["prospect"] is None or sale["status"] not in _UNANSWERED:
        return None
    if _paid(shown) != (sale["amount_cents"], sale["currency"]):
        return None
    opening = await open_at_once(replace(decode_prospect(sale["prospect"]), paid=True))
    if opening is None:
        return None
    try:
        async with unavailable_when_lost():
            is_new = await pool.fetchval(
                _SQL["book_paid"],
                event.id,
                event.type,
                sale["id"],
                shown.id,
                shown.payment_intent,
                timedelta(seconds=config.request_ttl_seconds),
                messages.CREATED,
                opening.change,
            )
    except (asyncpg.UniqueViolationError, asyncpg.RaiseError):
        return None  # the customer is not free, the payment was answered, or much time has passed
    if not is_new:
        return Outcome(result="duplicate")
    created = Created.opened(opening.entry)
    return Outcome(result="fulfilled", created=created, customer_id=sale["customer_id"])


def _is_ours(config: Config, event: WebhookEvent) -> bool:
    """Whether the event is of the mode, test or live, that our key is for."""
    shown = event.object
    modes = {event.livemode}
    if isinstance(shown, CheckoutSession):
        modes.add(shown.livemode)
    return modes == {_is_live(config)}


def _is_live(config: Config) -> bool:
    return config.stripe_secret_key.startswith(("sk_live_", "rk_live_"))


def _completed_checkout(event: WebhookEvent) -> CheckoutSession | None:
    """The checkout that a customer came to the end of, if the event is about that."""
    shown = event.object
    kinds = ("checkout.session.completed", "checkout.session.async_payment_succeeded")
    if event.type in kinds and isinstance(shown, CheckoutSession) and shown.mode == "payment":
        return shown
    return None


def _paid(shown: CheckoutSession) -> tuple[int | None, str]:
    return shown.amount_total, (shown.currency or "").lower()


async def _apply(connection: Connection, config: Config, event: WebhookEvent) -> Outcome:
    if not _is_ours(config, event):
        mode = "test" if _is_live(config) else "live"
        return Outcome(result="wrong_livemode", alarm=f"a {mode} event, which our key is not for")
    completed = _completed_checkout(event)
    if completed is not None:
        ttl = timedelta(seconds=config.request_ttl_seconds)
        return await _completed(connection, ttl, completed)
    shown = event.object
    if isinstance(shown, CheckoutSession):
        if event.type == "checkout.session.expired":
            return await _closed(connection, shown, "expired")
        if event.type == "checkout.session.async_payment_failed":
            return await _closed(connection, shown, "failed")
    elif event.type == "charge.refunded":
        return await _charge_refunded(connection, shown)
    return Outcome(result="ignored")


async def _completed(connection: Connection, ttl: timedelta, shown: CheckoutSession) -> Outcome:
    """Money arrived, or will: right money becomes a session, all other money is held."""
    payment = await _lock_payment(connection, shown)
    if shown.payment_status != "paid":
        if payment is not None:
            await _move(connection, payment, payment["status"], shown)
        return Outcome(result="unpaid")
    if payment is None:
        note = "paid, and no payment of ours"
        await connection.execute(
            _SQL["hold_unknown"],
            shown.id,
            shown.payment_intent,
            shown.amount_total or 0,
            shown.currency or "",
            note,
        )
        return Outcome(result="held", alarm=f"checkout {shown.id}: {note}")
    if payment["status"] not in _UNANSWERED:
        return Outcome(result="repeated")
    paid = _paid(shown)
    expected = (payment["amount_cents"], payment["currency"])
    if paid != expected:
        note = "paid {} {}, expected {} {}".format(*paid, *expected)
        await _move(connection, payment, "held", shown, note=note)
        return Outcome(
            result="held",
            customer_id=payment["customer_id"],
            alarm=f"payment {payment['id']}: {note}",
        )
    return await _fulfil(connection, ttl, payment, shown)


async def _fulfil(
    connection: Connection, ttl: timedelta, payment: asyncpg.Record, shown: CheckoutSession
) -> Outcome:
    """A session for the locked payment; or, where there can be none, its refund (C3)."""
    try:
        async with connection.transaction():  # a savepoint: the payment outlives the conflict
            created = await sessions.create(
                connection, payment["intake_id"], payment["slot_id"], shown.id, ttl
            )
    except SlotFull as refused:
        reason = refused.code
    except asyncpg.UniqueViolationError as refused:
        if refused.constraint_name not in _NO_SESSION:
            raise
        reason = _NO_SESSION[refused.constraint_name]
    else:
        await _move(connection, payment, "fulfilled", shown, session_id=created.session_id)
        return Outcome(result="fulfilled", created=created, customer_id=payment["customer_id"])
    await _move(connection, payment, "refunding", shown, note=reason)
    await connection.execute(_SQL["queue_refund"], payment["id"], reason)
    return Outcome(result="refunding", refund_queued=True, customer_id=payment["customer_id"])


async def _closed(
    connection: Connection, shown: CheckoutSession, status: Literal["expired", "failed"]
) -> Outcome:
    """The checkout is over without money; what is known to be paid stays so."""
    payment = await _lock_payment(connection, shown)
    if payment is None or payment["status"] != "created":
        return Outcome(result="ignored")
    await _move(connection, payment, status, shown)
    return Outcome(result=status)


async def _charge_refunded(connection: Connection, shown: dict[str, Any]) -> Outcome:
    """The money went back, by us or by hand at Stripe; part of it changes nothing."""
    try:
        charge = msgspec.convert(shown, _Charge)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the webhook is not about a charge: {error}") from None
    if not charge.refunded:
        return Outcome(result="ignored")
    payment_id = await connection.fetchval(
        _SQL["payment_of_charge"], _payment_id(charge.metadata), charge.payment_intent
    )
    if payment_id is None:
        return Outcome(result="ignored")
    changed = await _mark_refunded(connection, payment_id, charge.payment_intent)
    return Outcome(result="refunded" if changed else "repeated")


async def _lock_payment(connection: Connection, shown: CheckoutSession) -> asyncpg.Record | None:
    return await connection.fetchrow(
        _SQL["lock_payment"], _payment_id(shown.metadata or {}), shown.id
    )


async def _move(
    connection: Connection,
    payment: asyncpg.Record,
    status: str,
    shown: CheckoutSession,
    *,
    session_id: UUID | None = None,
    note: str | None = None,
) -> None:
    await connection.execute(
        _SQL["move_payment"],
        payment["id"],
        status,
        session_id,
        note,
        shown.id,
        shown.payment_intent,
    )


def _payment_id(metadata: Mapping[str, str]) -> UUID | None:
    try:
        return UUID(metadata["payment_id"])
    except (KeyError, ValueError):
        return None


# --- refunds -----------------------------------------------------------------------------------


async def queue_refund(connection: Connection, session_id: UUID, reason: str) -> bool:
    """Gives a session's payment back, inside the transaction that ends the session (C6).

    The caller holds the session's row and wakes the outbox after its commit. True where there was
    a fulfilled payment: it is `refunding` now, and one refund is in the outbox. False where nothing
    was paid or it is on its way back already.
    """
    payment_id = await connection.fetchval(_SQL["refund_of_session"], session_id, reason)
    if payment_id is None:
        return False
    await connection.execute(_SQL["queue_refund"], payment_id, reason)
    await connection.execute(_SQL["log_event"], session_id, "refunding", reason)
    return True


async def deliver_refund(pool: Pool, stripe: StripeClient, payload: Mapping[str, str]) -> None:
    """What the outbox does for the kind `refund`: the money goes back, then the row says so.

    Done again after a crash anywhere in it, it is the same refund: Stripe has its key. Raises
    `Unavailable` where trying later is right, and `StripeFailed` where a person must look.
    """
    payment_id = UUID(payload["payment_id"])
    async with unavailable_when_lost():
        row = await pool.fetchrow(_SQL["payment_to_refund"], payment_id)
    assert row is not None, "a refund is queued for a payment that exists"
    if row["status"] == "refunded":
        return
    if row["payment_intent"] is None:
        raise Unavailable("what to give back at Stripe is not known yet")
    refund = await stripe.refund(
        payment_id=payment_id, payment_intent=row["payment_intent"], reason=payload["reason"]
    )
    if refund.status not in ("succeeded", "pending"):
        raise StripeFailed(f"refund {refund.id} is {refund.status}")
    async with transaction(pool) as connection:
        await _mark_refunded(connection, payment_id, None)


async def _mark_refunded(
    connection: Connection, payment_id: UUID, payment_intent: str | None
) -> bool:
    """The payment is refunded, and its session's history says so once; whether that was news."""
    await connection.execute(_SQL["lock_session"], payment_id)
    row = await connection.fetchrow(_SQL["refunded"], payment_id, payment_intent)
    if row is None:
        return False
    if row["session_id"] is not None:
        await connection.execute(_SQL["log_event"], row["session_id"], "refunded", None)
    return True
