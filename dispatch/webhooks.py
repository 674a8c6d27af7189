"""Stripe's webhooks: believed once, whatever their order and number (C2, C4).

One job: verify an event, have the one module that knows its rows move them, and remember it. There
are two kinds. A checkout that came to its end is taken as it is said, in one transaction with the
ledger of events: it says so once and for all. Any other event says only that something changed,
and may be old by the time that it is read; what is true now is read again from Stripe. Imports
`payments`, `refunds`, `connect`, `payouts`, `stripe_client`, `database`, `queries`, `config` and
`errors`.

It fails with `BadRequest` (not Stripe's, too old, no event) and `Unavailable` (Postgres, or Stripe
where it must be asked: Stripe sends the same event again); nothing has changed then.
"""

import logging
import time
from datetime import timedelta
from typing import Any, Final

import msgspec
from msgspec import Struct

from dispatch import connect, payments, payouts, queries, refunds
from dispatch.config import Config, is_live_key
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import BadRequest
from dispatch.payments import Outcome
from dispatch.sessions import OpenAtOnce
from dispatch.stripe_client import (
    CheckoutSession,
    StripeClient,
    StripeFailed,
    StripeWord,
    WebhookEvent,
    our_id,
    verify_webhook,
)

log = logging.getLogger(__name__)

_SQL: Final = queries.load("webhooks")

_PAID: Final = ("checkout.session.completed", "checkout.session.async_payment_succeeded")
_REFUNDS: Final = ("refund.updated", "refund.failed", "charge.refund.updated")
_ACCOUNTS: Final = ("account.updated", "account.application.deauthorized")
_DISPUTES: Final = ("charge.dispute.created", "charge.dispute.closed")
_TRANSFERS: Final = ("transfer.created", "transfer.updated", "transfer.reversed")

LATE_SECONDS: Final = 300

# What the reconciler asks Stripe for: every event that moves a row of ours.
TYPES: Final = (
    *_PAID,
    "checkout.session.expired",
    "checkout.session.async_payment_failed",
    "charge.refunded",
    *_REFUNDS,
    *_DISPUTES,
    *_ACCOUNTS,
    *_TRANSFERS,
)


async def handle_webhook(
    pool: Pool,
    stripe: StripeClient,
    config: Config,
    raw: bytes,
    signature: str | None,
    open_at_once: OpenAtOnce | None = None,
) -> Outcome:
    """Believes a webhook and moves what it is about, once (C2).

    `raw` is the body as it came, `signature` the Stripe-Signature header. What was paid for becomes
    a booking, opened in the same transaction where `open_at_once` can. Afterwards the caller tells
    the dispatcher of `created`, and the outbox where `refund_queued`. Raises `BadRequest` for what
    Stripe did not sign, or not lately, and `Unavailable`; nothing has changed then.
    """
    if signature is None:
        raise BadRequest("the Stripe-Signature header is missing")
    event = verify_webhook(raw, signature, config.stripe_webhook_secrets)
    return await take(pool, stripe, config, event, open_at_once)


async def take(
    pool: Pool,
    stripe: StripeClient,
    config: Config,
    event: WebhookEvent,
    open_at_once: OpenAtOnce | None = None,
    *,
    is_late: bool = False,
) -> Outcome:
    """The same for an event that is known to be Stripe's; of one that `is_late` the money may have
    gone back since."""
    if not _is_ours(config, event):
        mode = "test" if is_live_key(config.stripe_secret_key) else "live"
        alarm = f"a {mode} event, which our key is not for"
        outcome = await _remember(pool, event, Outcome(result="wrong_livemode", alarm=alarm))
    elif isinstance(event.object, CheckoutSession):
        if event.type in _PAID and (is_late or event.created < time.time() - LATE_SECONDS):
            await _learn_refunds(pool, stripe, event.object)
        outcome = await _checkout(pool, config, event, event.object, open_at_once)
    else:
        outcome = await _changed(pool, stripe, event, event.object)
    if outcome.alarm is not None:
        log.error("%s of %s: %s", event.type, event.id, outcome.alarm)
    return outcome


def _is_ours(config: Config, event: WebhookEvent) -> bool:
    """Whether the event is of the mode, test or live, that our key is for."""
    modes = {event.livemode}
    if isinstance(event.object, CheckoutSession):
        modes.add(event.object.livemode)
    return modes == {is_live_key(config.stripe_secret_key)}


# --- checkouts ------------------------------------------------------------------------------------


async def _checkout(
    pool: Pool,
    config: Config,
    event: WebhookEvent,
    shown: CheckoutSession,
    open_at_once: OpenAtOnce | None,
) -> Outcome:
    ttl = timedelta(seconds=config.request_ttl_seconds)
    # What a connected account sells is none of ours, whatever its metadata say.
    is_sale = event.type in _PAID and shown.mode == "payment" and event.account is None
    if is_sale and shown.payment_status == "paid" and open_at_once is not None:
        booked = await payments.book_at_once(pool, event.id, event.type, shown, ttl, open_at_once)
        if booked is not None:
            return booked
    async with transaction(pool) as connection:
        if not await connection.fetchval(_SQL["insert_event"], event.id, event.type, "received"):
            return Outcome(result="duplicate")
        outcome = Outcome(result="ignored")
        if is_sale:
            outcome = await payments.completed(connection, ttl, shown)
        elif event.account is None:
            outcome = await _ended(connection, event.type, shown)
        await connection.execute(_SQL["note_outcome"], event.id, outcome.result)
    return outcome


async def _learn_refunds(pool: Pool, stripe: StripeClient, shown: CheckoutSession) -> None:
    payment_id = await refunds.payment_of(pool, shown.payment_intent, shown.metadata)
    if payment_id is not None and shown.payment_intent is not None:
        try:
            await refunds.refresh(pool, stripe, payment_id, shown.payment_intent)
        except StripeFailed as refused:
            log.error("the refunds of payment %s cannot be read: %s", payment_id, refused.message)


async def _ended(connection: Connection, event_type: str, shown: CheckoutSession) -> Outcome:
    match event_type:
        case "checkout.session.expired":
            return await payments.closed(connection, shown, "expired")
        case "checkout.session.async_payment_failed":
            return await payments.closed(connection, shown, "failed")
        case _:
            return Outcome(result="ignored")


# --- what is read again ---------------------------------------------------------------------------


async def _changed(
    pool: Pool, stripe: StripeClient, event: WebhookEvent, shown: dict[str, Any]
) -> Outcome:
    async with unavailable_when_lost():
        if await pool.fetchval(_SQL["event_is_known"], event.id):
            return Outcome(result="duplicate")
    try:
        outcome = await _read_again(pool, stripe, event, shown)
    except StripeFailed as refused:  # it told us of something that it does not show
        outcome = Outcome(result="ignored", alarm=f"cannot be read: {refused.message}")
    return await _remember(pool, event, outcome)


class _Thing(Struct, frozen=True):
    """What we read of an object that has changed: enough to find the row that it belongs to."""

    id: StripeWord
    payment_intent: StripeWord | None = None
    status: StripeWord | None = None
    metadata: dict[str, str] | None = None


async def _read_again(
    pool: Pool, stripe: StripeClient, event: WebhookEvent, object_: dict[str, Any]
) -> Outcome:
    if event.type not in TYPES:
        return Outcome(result="ignored")
    try:
        shown = msgspec.convert(object_, _Thing)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the webhook is not about what it says: {error}") from None
    if event.type in _ACCOUNTS:
        # What was disconnected is an application, and the account is the event's.
        known = await connect.refresh(pool, stripe, event.account or shown.id)
        return Outcome(result="noted" if known else "ignored")
    if event.account is not None:
        return Outcome(result="ignored")
    if event.type == "charge.refunded" or (
        event.type in _REFUNDS and shown.status in refunds.UNDONE
    ):
        return await _refunded(pool, stripe, shown)
    if event.type in _DISPUTES:
        payment_id = await refunds.payment_of(pool, shown.payment_intent, shown.metadata)
        alarm = f"a dispute of payment {payment_id or 'of nobody'}: {shown.status}"
        return Outcome(result="noted", alarm=alarm)
    if event.type in _TRANSFERS:
        payout_id = our_id(shown.metadata, "payout_id")
        known = payout_id is not None and await payouts.refresh(pool, stripe, payout_id)
        return Outcome(result="noted" if known else "ignored")
    return Outcome(result="ignored")


async def _refunded(pool: Pool, stripe: StripeClient, shown: _Thing) -> Outcome:
    payment_id = await refunds.payment_of(pool, shown.payment_intent, shown.metadata)
    if payment_id is None or shown.payment_intent is None:
        return Outcome(result="ignored")
    match await refunds.refresh(pool, stripe, payment_id, shown.payment_intent):
        case "refunded":
            return Outcome(result="refunded")
        case "held":
            return Outcome(result="held", alarm=f"a refund of payment {payment_id} failed")
        case "known":
            return Outcome(result="repeated")
        case _:
            return Outcome(result="noted")


async def _remember(pool: Pool, event: WebhookEvent, outcome: Outcome) -> Outcome:
    async with unavailable_when_lost():
        is_new = await pool.fetchval(_SQL["insert_event"], event.id, event.type, outcome.result)
    return outcome if is_new else Outcome(result="duplicate")
