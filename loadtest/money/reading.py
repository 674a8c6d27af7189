"""Reads the truth: our rows of a scenario's people, and Stripe's books beside them.

One job: SQL and Stripe's books into the types of `truth`. Changes nothing but what stands for time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
from msgspec import Struct

from loadtest.money.bank import Bank
from loadtest.money.truth import (
    Earning,
    Effect,
    GivenBack,
    Money,
    Payment,
    Session,
    Slot,
    Truth,
    Wallet,
)

Row = TypeVar("Row", bound=Struct)

_PAYMENTS = """
SELECT id, customer_id, intake_id, session_id, stripe_session_id, payment_intent, amount_cents,
       currency, received_cents, received_currency, refunded_cents, credited_cents, status
  FROM payments WHERE customer_id = ANY ($1)
     OR (customer_id IS NULL AND stripe_session_id = ANY ($2))
"""
_SESSIONS = """
SELECT s.id, s.customer_user_id AS customer_id, s.intake_id, s.slot_id, s.stripe_session_id,
       s.status, s.workshop_id IS NOT NULL OR s.preferred_workshop_id IS NOT NULL AS has_workshop,
       (SELECT count(*) FROM session_events e WHERE e.session_id = s.id AND e.type = 'created')
           AS creations,
       (SELECT count(*) FROM session_events e WHERE e.session_id = s.id AND e.type = 'refunding')
           AS refundings
  FROM sessions s WHERE s.customer_user_id = ANY ($1)
"""
_SLOTS = """
SELECT id, capacity, taken, ends_at <= dispatch_now() AS over FROM slots WHERE id = ANY ($1)
"""
_EFFECTS = """
SELECT idempotency_key, (payload ->> 'payment_id')::uuid AS payment_id, done_at IS NOT NULL AS done,
       failed_at IS NOT NULL AS given_up
  FROM outbox WHERE idempotency_key = ANY ($1)
"""
_EARNINGS = """
SELECT session_id, gross_amount_cents AS gross_cents, mechanic_net_cents AS net_cents,
       reversed_cents
  FROM mechanic_earnings WHERE session_id = ANY ($1)
"""
_WALLETS = """
SELECT customer_id, sum(amount_cents)::int AS balance_cents
  FROM credit_entries WHERE account = 'customer' AND customer_id = ANY ($1) GROUP BY customer_id
"""


@dataclass(frozen=True)
class Rows:
    """What our database has of some people."""

    payments: list[Payment]
    sessions: list[Session]
    slots: list[Slot]
    effects: list[Effect]
    earnings: list[Earning]
    wallets: list[Wallet]
    events: list[str]
    request_ids: list[UUID]


async def rows(
    db: asyncpg.Pool,
    customers: Sequence[UUID],
    slots: Sequence[UUID],
    checkout_ids: Sequence[str],
    event_ids: Sequence[str],
) -> Rows:
    """Every row of these people, and of what was bought and told at Stripe."""
    payments = _of(Payment, await db.fetch(_PAYMENTS, customers, checkout_ids))
    sessions = _of(Session, await db.fetch(_SESSIONS, customers))
    session_ids = [session.id for session in sessions]
    return Rows(
        payments=payments,
        sessions=sessions,
        slots=_of(Slot, await db.fetch(_SLOTS, slots)),
        effects=_of(Effect, await db.fetch(_EFFECTS, [f"refund-{p.id}" for p in payments])),
        earnings=_of(Earning, await db.fetch(_EARNINGS, session_ids)),
        wallets=_of(Wallet, await db.fetch(_WALLETS, customers)),
        events=[
            row[0]
            for row in await db.fetch("SELECT id FROM stripe_events WHERE id = ANY ($1)", event_ids)
        ],
        request_ids=[
            row[0]
            for row in await db.fetch(
                "SELECT id FROM session_requests WHERE customer_id = ANY ($1)", customers
            )
        ],
    )


def truth(
    bank: Bank,
    rows: Rows,
    *,
    answered: set[str],
    lost: set[str],
    taken_wrongly: set[str],
    cancelled: set[UUID],
    bugs: Iterable[str],
) -> Truth:
    """Stripe's books and our rows side by side."""
    told = {event.tells_paid for event in bank.events if event.id in answered}
    closed = {event.tells_closed for event in bank.events if event.id in answered}
    return Truth(
        money=[
            Money(
                checkout_id=sale.id,
                payment_intent=sale.payment_intent,
                cents=sale.cents,
                currency=sale.currency,
                payment_id=sale.payment_id,
                told=sale.id in told,
            )
            for sale in bank.sales.values()
            if sale.paid and sale.payment_intent is not None
        ],
        given_back=[
            GivenBack(
                id=made.id,
                payment_intent=made.payment_intent,
                cents=made.cents,
                failed=made.status == "failed",
                payment_id=made.payment_id,
            )
            for made in bank.returns
        ],
        closed={
            sale.id: sale.closed
            for sale in bank.sales.values()
            if sale.closed and sale.id in closed
        },
        unwilling=bank.unwilling,
        answered=answered,
        unanswered={event.id for event in bank.events} - answered - lost,
        lost=lost,
        taken_wrongly=taken_wrongly,
        events=rows.events,
        payments=rows.payments,
        sessions=rows.sessions,
        slots=rows.slots,
        effects=rows.effects,
        earnings=rows.earnings,
        wallets=rows.wallets,
        cancelled=cancelled,
        bugs=list(bugs),
    )


async def session_of(db: asyncpg.Pool, checkout_id: str) -> tuple[UUID, UUID, UUID] | None:
    """Session, request and customer of what was bought by a checkout, if there are any."""
    row = await db.fetchrow(
        "SELECT s.id, r.id, s.customer_user_id FROM sessions s"
        " JOIN session_requests r ON r.session_id = s.id WHERE s.stripe_session_id = $1",
        checkout_id,
    )
    return None if row is None else (row[0], row[1], row[2])


async def due_requests(db: asyncpg.Pool, customers: Sequence[UUID]) -> list[UUID]:
    """Requests of these people of which something is due."""
    found = await db.fetch(
        "SELECT id FROM session_requests WHERE customer_id = ANY ($1) AND due_at <= dispatch_now()",
        customers,
    )
    return [row[0] for row in found]


async def outbox_wait(db: asyncpg.Pool) -> float | None:
    """Seconds until the next effect is due, None where there is none left; 0 or less is due."""
    wait: float | None = await db.fetchval(
        "SELECT extract(epoch FROM min(next_try_at) - dispatch_now())::float8 FROM outbox"
        " WHERE done_at IS NULL AND failed_at IS NULL AND kind <> 'push'"
    )
    return wait


async def end_leases(db: asyncpg.Pool) -> None:
    """As if the time were over that a dead node had for what it was delivering."""
    await db.execute(
        "UPDATE outbox SET next_try_at = dispatch_now() WHERE done_at IS NULL AND failed_at IS NULL"
    )


async def age_payments(db: asyncpg.Pool, intake_id: UUID | None) -> None:
    """As if the hosted pages of this intake had been made two hours earlier."""
    await db.execute(
        "UPDATE payments SET created_at = created_at - interval '2 h' WHERE intake_id = $1",
        intake_id,
    )


def _of(kind: type[Row], found: Sequence[Any]) -> list[Row]:
    return [kind(**dict(row)) for row in found]
