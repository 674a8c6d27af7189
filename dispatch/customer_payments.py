"""What customers are told of their money: what is held, what goes back, and why (C3, C6).

One job: read payments as their customer sees them. A node asks each second what has moved and tells
it to the sockets that it has; so it is told once on every device, whichever node moved it, and
nobody has to remember to tell. Imports `core.messages`, `protocol`, `database` and `queries`. It
fails with `Unavailable`.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import queries
from dispatch.core import messages
from dispatch.database import Pool, unavailable_when_lost
from dispatch.protocol import PaymentState, timestamp

_SQL: Final = queries.load("customer_payments")

# A snapshot shows what moved so lately; `GET /api/customer/payments` shows all.
LATELY: Final = timedelta(days=1)


class Moved(Struct, frozen=True):
    """A payment of which its customer is to be told, and since when."""

    customer_id: UUID
    moved_at: datetime
    state: PaymentState


async def moved_since(pool: Pool, since: datetime) -> list[Moved]:
    """What was held or went back after `since`, by the server's own clock."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["moved_since"], since)
    return [Moved(row["customer_id"], row["moved_at"], _state(row)) for row in rows]


async def of_customers(pool: Pool, customer_ids: Sequence[UUID]) -> dict[UUID, list[PaymentState]]:
    """What was held or went back of late, the newest first, by customer."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["of_customers"], customer_ids, LATELY)
    found: defaultdict[UUID, list[PaymentState]] = defaultdict(list)
    for row in rows:
        found[row["customer_id"]].append(_state(row))
    return dict(found)


async def listing(pool: Pool, customer_id: UUID, *, limit: int, offset: int) -> dict[str, Any]:
    """A page of all that the customer has paid, the newest first."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["page"], customer_id, limit, offset)
        total = await pool.fetchval(_SQL["count"], customer_id)
    return {
        "payments": [_state(row) for row in rows],
        "total": total,
        "limit": limit,
        "offset": offset,
    }


async def of_checkout(pool: Pool, stripe_session_id: str) -> PaymentState | None:
    """The payment of a checkout that somebody came back from; its id is all that they have."""
    async with unavailable_when_lost():
        row = await pool.fetchrow(_SQL["of_checkout"], stripe_session_id)
    return None if row is None else _state(row)


def _state(row: asyncpg.Record) -> PaymentState:
    return PaymentState(
        payment_id=row["id"],
        session_id=row["session_id"],
        status=row["status"],
        amount_cents=row["amount_cents"],
        currency=row["currency"],
        refunded_cents=row["refunded_cents"],
        credited_cents=row["credited_cents"],
        message=message(row),
        created_at=timestamp(row["created_at"]),
        server_time=timestamp(row["now"]),
    )


def message(row: asyncpg.Record) -> str:
    """What has become of a payment, in words; empty where there is nothing to say."""
    note = row["note"] or ""
    texts = []
    match row["status"]:
        case "created":
            texts = [messages.PAYMENT_EXPECTED if row["is_paid"] else messages.PAYMENT_OPEN]
        case "held":
            texts = [messages.PAYMENT_HELD]
        case "refunding":
            texts = [messages.WHY_REFUNDED.get(note, ""), messages.PAYMENT_REFUNDING]
        case "fulfilled" | "refunded":
            texts = _given_back(row)
    told = " ".join(filter(None, texts))
    return told.format(
        received=_money(row["amount_cents"], row["currency"]),
        left=_money(row["amount_cents"] - row["refunded_cents"], row["currency"]),
        refunded=_money(row["refunded_cents"], row["currency"]),
        credited=_money(row["credited_cents"], row["currency"]),
    )


def _given_back(row: asyncpg.Record) -> list[str]:
    """The parts that went back, and why; of a payment of which nothing did that it is in order."""
    note = row["note"] or ""
    parts = []
    if row["refunded_cents"]:
        parts.append(messages.PAYMENT_REFUNDED)
    if row["credited_cents"]:
        parts.append(messages.PAYMENT_CREDITED)
    if parts:
        return [messages.WHY_REFUNDED.get(note, ""), *parts]
    if note.startswith("refund failed"):
        return [messages.PAYMENT_REFUND_FAILED]
    return [messages.CREATED]


def _money(cents: int, currency: str) -> str:
    """15.00 EUR. Every currency of ours has cents."""
    return f"{cents // 100}.{cents % 100:02} {currency.upper()}"
