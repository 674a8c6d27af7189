"""The way to Stripe's page: a checkout for an intake (C1).

One job: commit the row of a payment that is expected, at the plan's price, then ask Stripe for its
page. The row comes first, so that a webhook finds it however early it is, and a crash between the
two leaves a row that nobody pays. Imports `sessions`, `stripe_client`, `database`, `queries`,
`config` and `errors`.

It fails with `Unavailable` (Postgres or Stripe is away: the same call again is right),
`StripeFailed` (Stripe refused), and refusals of what was asked, which have changed nothing.
"""

from datetime import datetime, timedelta
from typing import Annotated, Final
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import Meta, Struct

from dispatch import queries, sessions
from dispatch.config import Config
from dispatch.core.types import Routing
from dispatch.database import Connection, Pool, transaction
from dispatch.errors import BadRequest, Conflict
from dispatch.sessions import Intake, IntakeForm, Started
from dispatch.stripe_client import MIN_EXPIRY_SECONDS, StripeClient, StripeFailed

_SQL: Final = queries.load("checkout")

CHECKOUT_SECONDS: Final = 3600
_OPEN: Final = timedelta(seconds=CHECKOUT_SECONDS)
# Stripe takes no checkout that ends sooner, also when it hears of it late.
_MAKEABLE: Final = timedelta(seconds=CHECKOUT_SECONDS - MIN_EXPIRY_SECONDS)


class CheckoutQuery(Struct, frozen=True, kw_only=True):
    """What `GET /api/checkout/create-session` is asked with (C1)."""

    intake_id: UUID | None = None
    plan: Annotated[str, Meta(max_length=50)] | None = None
    routing_type: Routing | None = None
    workshop_id: UUID | None = None
    preferred_mechanic_id: UUID | None = None
    slot_id: UUID | None = None
    wait_for_preferred: bool | None = None


class _Payment(Struct, frozen=True, kw_only=True):
    """A payment that is expected; `checkout_url` once Stripe has made its page."""

    id: UUID
    amount_cents: int
    currency: str
    checkout_url: str | None
    created_at: datetime


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
