"""Credits: what customers may spend instead of money (C5).

One job: write and read the ledger, of which schema.sql sees to it that every transaction balances,
that no balance is ever below zero, and that what was set aside for a booking leaves it once. They
go back in `refunds`, in the transaction that ends a booking unserved, and are earned in the one
that completes it. Imports `database`, `queries`, `protocol` and `errors`.

It fails with `Unavailable`, and with refusals that have changed nothing: each function names its
own.
"""

from typing import Annotated, Final
from uuid import UUID

import asyncpg
from msgspec import Meta, Struct

from dispatch import queries
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import BadRequest, Conflict, NotFound
from dispatch.protocol import timestamp

NEVER_BELOW_ZERO: Final = "credits_never_below_zero"  # the constraint that says so
MAX_GRANT_CENTS: Final = 100_000

_CONTENT: Final = ("customer_id", "amount_cents", "currency", "reason")  # of a grant
_SQL: Final = queries.load("credits")


class InsufficientCredits(Conflict):
    """409 of a booking that costs more credits than there are; amounts are in cents."""

    def __init__(self, balance_cents: int, price_cents: int, currency: str) -> None:
        super().__init__(
            "insufficient_credits",
            "you have too few credits for this plan",
            fields={
                "balance_cents": balance_cents,
                "price_cents": price_cents,
                "currency": currency,
            },
        )


class Balance(Struct, frozen=True, kw_only=True):
    """What a customer may spend in one currency."""

    currency: str
    balance_cents: int


class CreditLine(Struct, frozen=True, kw_only=True):
    """One change of what a customer may spend, and the balance of its currency after it."""

    amount_cents: int
    balance_cents: int
    currency: str
    reason: str
    session_id: UUID | None
    at: str


class Statement(Struct, frozen=True, kw_only=True):
    """A customer's balances, and one page of what has led to them, the newest first."""

    balances: list[Balance]
    entries: list[CreditLine]
    total: int
    limit: int
    offset: int


class Grant(Struct, frozen=True, kw_only=True):
    """Goodwill, named by whoever gives it, so that it can be asked for again and is given once."""

    grant_id: UUID
    customer_id: UUID
    amount_cents: Annotated[int, Meta(ge=1, le=MAX_GRANT_CENTS)]
    currency: Annotated[str, Meta(max_length=3)]
    reason: Annotated[str, Meta(min_length=1, max_length=200)]


class Granted(Struct, frozen=True, kw_only=True):
    """A grant that was given; `balance_cents` is what the customer had just after it."""

    grant_id: UUID
    customer_id: UUID
    amount_cents: int
    currency: str
    reason: str
    balance_cents: int
    at: str


async def set_aside(connection: Connection, session_id: UUID) -> None:
    """The price of a session leaves its customer's credits, in the transaction that makes it.

    To be called last in it, and once. Raises asyncpg's CheckViolationError of NEVER_BELOW_ZERO
    where there are too few.
    """
    await connection.execute(_SQL["set_aside"], session_id)


async def statement(pool: Pool, customer_id: UUID, *, limit: int, offset: int) -> Statement:
    """What the customer may spend and why, read at one moment."""
    async with (
        unavailable_when_lost(),
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        balances = await connection.fetch(_SQL["balances"], customer_id)
        rows = await connection.fetch(_SQL["entries"], customer_id, limit, offset)
    return Statement(
        balances=[
            Balance(currency=row["currency"], balance_cents=row["balance_cents"])
            for row in balances
        ],
        entries=[_line(row) for row in rows],
        total=sum(row["lines"] for row in balances),
        limit=limit,
        offset=offset,
    )


def _line(row: asyncpg.Record) -> CreditLine:
    return CreditLine(
        amount_cents=row["amount_cents"],
        balance_cents=row["balance_cents"],
        currency=row["currency"],
        reason=row["reason"],
        session_id=row["session_id"],
        at=timestamp(row["at"]),
    )


async def grant(pool: Pool, admin_id: UUID, wanted: Grant) -> Granted:
    """Gives a customer credits, once for each `grant_id`; asked again it answers the same.

    Raises `NotFound` for an unknown customer, `BadRequest` for a currency in which nothing can be
    booked, and `Conflict("already_granted")` where this `grant_id` was used for something else.
    """
    try:
        async with transaction(pool) as connection:
            if await connection.fetchval(_SQL["lock_customer"], wanted.customer_id) is None:
                raise NotFound("no such customer")
            row = await connection.fetchrow(_SQL["transaction"], wanted.grant_id)
            if row is None:
                row = await _give(connection, admin_id, wanted)
    except asyncpg.UniqueViolationError:  # to another customer, in this moment
        raise _already_granted() from None
    if not row["is_grant"] or any(row[name] != getattr(wanted, name) for name in _CONTENT):
        raise _already_granted()
    return Granted(
        **{name: getattr(wanted, name) for name in Grant.__struct_fields__},
        balance_cents=row["balance_cents"],
        at=timestamp(row["at"]),
    )


async def _give(connection: Connection, admin_id: UUID, wanted: Grant) -> asyncpg.Record:
    if not await connection.fetchval(_SQL["is_spendable"], wanted.currency):
        raise BadRequest("currency: no plan has it")
    await connection.execute(
        _SQL["grant"],
        wanted.grant_id,
        wanted.customer_id,
        wanted.amount_cents,
        wanted.currency,
        wanted.reason,
        admin_id,
    )
    row = await connection.fetchrow(_SQL["transaction"], wanted.grant_id)
    assert row is not None
    return row


def _already_granted() -> Conflict:
    return Conflict("already_granted", "this grant_id was used for something else")
