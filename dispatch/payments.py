"""What becomes of money that arrives: a session, a refund, or a row that a person must look at.

One job: move rows of `payments` so that each payment is answered once. The row is locked by
whatever moves it, so that Stripe may say things doubled, together, in any order, or before its
answer to our own call. Imports `sessions`, `refunds`, `stripe_client`, `database`, `queries` and
`errors`; whoever calls tells the dispatcher and the outbox after the commit.

    created ─┬─ paid in full ────────────> fulfilled ─ its booking ends unserved ─┐
             ├─ paid, but no session ─────────────────────────────────────────────┴> refunding
             ├─ paid, wrongly or unasked ─> held, for a person <─ Stripe refused ───────┤
             └─ over, or refused ─────────> expired, failed                          refunded

Money that arrives for an expired or failed payment is treated as if it were still created. Any of
them is `refunded` once Stripe has given back all of it, whoever asked for that (see `refunds`).
"""

from datetime import timedelta
from typing import Final, Literal
from uuid import UUID

import asyncpg
from msgspec import Struct
from msgspec.structs import replace

from dispatch import queries, refunds, sessions
from dispatch.core import messages
from dispatch.database import Connection, Pool, unavailable_when_lost
from dispatch.errors import Conflict
from dispatch.sessions import Created, OpenAtOnce, decode_prospect
from dispatch.stripe_client import CheckoutSession, our_id

_SQL: Final = queries.load("payments")

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
    "noted",  # our row of an account, a transfer or a partial refund says the same now
    "wrong_livemode",
    "repeated",  # another event has said the same before
    "duplicate",  # this very event was here before
    "ignored",
]


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of something that Stripe said; `alarm` is what a person must look at."""

    result: Result
    created: Created | None = None
    refund_queued: bool = False
    customer_id: UUID | None = None
    alarm: str | None = None


def paid(shown: CheckoutSession) -> tuple[int, str]:
    """Cents and currency of a checkout."""
    return shown.amount_total or 0, (shown.currency or "").lower()


async def book_at_once(
    pool: Pool,
    event_id: str,
    event_type: str,
    shown: CheckoutSession,
    ttl: timedelta,
    open_at_once: OpenAtOnce,
) -> Outcome | None:
    """The ordinary case in one read and one write: the right money for a booking for now, of a
    customer who is free. None for every other case; nothing was written then."""
    async with unavailable_when_lost():
        sale = await pool.fetchrow(_SQL["sale"], our_id(shown.metadata, "payment_id"), shown.id)
    if sale is None or sale["prospect"] is None or sale["status"] not in _UNANSWERED:
        return None
    if paid(shown) != (sale["amount_cents"], sale["currency"]):
        return None
    opening = await open_at_once(replace(decode_prospect(sale["prospect"]), paid=True))
    if opening is None:
        return None
    try:
        async with unavailable_when_lost():
            is_new = await pool.fetchval(
                _SQL["book_paid"],
                event_id,
                event_type,
                sale["id"],
                shown.id,
                shown.payment_intent,
                ttl,
                messages.CREATED,
                opening.change,
            )
    except (asyncpg.UniqueViolationError, asyncpg.RaiseError):
        return None  # the customer is not free, the payment was answered, or much time has passed
    if not is_new:
        return Outcome(result="duplicate")
    created = Created.opened(opening.entry)
    return Outcome(result="fulfilled", created=created, customer_id=sale["customer_id"])


async def completed(connection: Connection, ttl: timedelta, shown: CheckoutSession) -> Outcome:
    """Money arrived, or will: right money becomes a session, all other money is held."""
    payment = await _lock(connection, shown)
    if shown.payment_status != "paid":
        if payment is not None:
            await _move(connection, payment, payment["status"], shown)
        return Outcome(result="unpaid")
    if payment is None:
        return await _hold_unknown(connection, shown)
    if payment["status"] not in _UNANSWERED:
        # It may have gone back before we heard that it had come, or where from.
        if payment["received_cents"] is None or payment["payment_intent"] is None:
            await _move(connection, payment, payment["status"], shown)
        return Outcome(result="repeated")
    expected = (payment["amount_cents"], payment["currency"])
    if paid(shown) != expected:
        note = "paid {} {}, expected {} {}".format(*paid(shown), *expected)
        await _move(connection, payment, "held", shown, note=note)
        return Outcome(
            result="held",
            customer_id=payment["customer_id"],
            alarm=f"payment {payment['id']}: {note}",
        )
    return await _fulfil(connection, ttl, payment, shown)


async def closed(
    connection: Connection, shown: CheckoutSession, status: Literal["expired", "failed"]
) -> Outcome:
    """The checkout is over without money; what is known to be paid stays so."""
    payment = await _lock(connection, shown)
    if payment is None or payment["status"] != "created":
        return Outcome(result="ignored")
    await _move(connection, payment, status, shown)
    return Outcome(result=status)


async def _fulfil(
    connection: Connection, ttl: timedelta, payment: asyncpg.Record, shown: CheckoutSession
) -> Outcome:
    """A session for the locked payment; or, where there can be none, its refund (C3)."""
    try:
        async with connection.transaction():  # a savepoint: the payment outlives the conflict
            created = await sessions.create(
                connection, payment["intake_id"], payment["slot_id"], shown.id, ttl
            )
    except Conflict as refused:
        reason = refused.code
    except asyncpg.UniqueViolationError as refused:
        if refused.constraint_name not in _NO_SESSION:
            raise
        reason = _NO_SESSION[refused.constraint_name]
    else:
        await _move(connection, payment, "fulfilled", shown, session_id=created.session_id)
        return Outcome(result="fulfilled", created=created, customer_id=payment["customer_id"])
    await _move(connection, payment, "refunding", shown, note=reason)
    await refunds.queue(connection, payment["id"], reason)
    return Outcome(result="refunding", refund_queued=True, customer_id=payment["customer_id"])


async def _hold_unknown(connection: Connection, shown: CheckoutSession) -> Outcome:
    note = "paid, and no payment of ours"
    await connection.execute(
        _SQL["hold_unknown"], shown.id, shown.payment_intent, *paid(shown), note
    )
    return Outcome(result="held", alarm=f"checkout {shown.id}: {note}")


async def _lock(connection: Connection, shown: CheckoutSession) -> asyncpg.Record | None:
    return await connection.fetchrow(
        _SQL["lock_payment"], our_id(shown.metadata, "payment_id"), shown.id
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
    received = paid(shown) if shown.payment_status == "paid" else (None, None)
    await connection.execute(
        _SQL["move_payment"],
        payment["id"],
        status,
        session_id,
        note,
        shown.id,
        shown.payment_intent,
        *received,
    )
