"""Money that goes back to customers, and the earnings that go back with it (C3, C4, C6, M3).

One job: give each payment back once, and keep our rows what Stripe's are. How much was given back
is never added up from events, which come doubled and in any order: it is read from Stripe, and a
reading that began earlier never overwrites one that began later. Imports `stripe_client`,
`database`, `queries` and `errors`; whoever queues something wakes the outbox after the commit.

It fails with `Unavailable` (the same call again is right) and `StripeFailed`: Stripe refused for
good, and the payment is `held` for a person.
"""

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import queries
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import Unavailable
from dispatch.stripe_client import StripeClient, StripeFailed, our_id

log = logging.getLogger(__name__)

_SQL: Final = queries.load("refunds")

# In what a session is that is still to be served, or is being served.
_GOES_ON: Final = ("scheduled", "pending", "accepted", "active")
# What Stripe calls a refund that did not go through; all others are on their way or there.
UNDONE: Final = ("failed", "canceled")


class Reading(Struct, frozen=True, kw_only=True):
    """What Stripe had given back of a payment when it was asked, or a little later.

    `failed` is why a refund did not go through, if one did not, and `ours` whether we had asked for
    one of these.
    """

    payment_id: UUID
    payment_intent: str
    read_at: datetime
    refunded_cents: int
    failed: str | None
    ours: bool = False


# --- deciding to give back ------------------------------------------------------------------------


async def queue_for_session(
    connection: Connection, session_id: UUID, reason: str, *, as_credits: bool = False
) -> bool:
    """Gives back what a session took, inside the transaction that ends it unserved (C6).

    The caller holds the session's row. Credits, and with `as_credits` also money, are the
    customer's credits again at once; else one refund is in the outbox. True where there is
    something to deliver. Nothing happens where nothing was taken or it is on its way back already.
    """
    if await connection.fetchrow(_SQL["return_credits"], session_id, reason):
        await _log(connection, session_id, "credits_returned", reason)
        return False
    if as_credits:
        if await connection.fetchrow(_SQL["credit_session"], session_id, reason):
            await _log(connection, session_id, "credited", reason)
        return False
    payment_id = await connection.fetchval(_SQL["refund_of_session"], session_id, reason)
    if payment_id is None:
        return False
    await queue(connection, payment_id, reason)
    await _log(connection, session_id, "refunding", reason)
    return True


async def queue(connection: Connection, payment_id: UUID, reason: str) -> None:
    """One refund in the outbox for a payment that is `refunding`, however often it is asked for."""
    await connection.execute(_SQL["queue_refund"], payment_id, reason)


# --- giving back ----------------------------------------------------------------------------------


async def deliver(pool: Pool, stripe: StripeClient, payload: Mapping[str, str]) -> None:
    """What the outbox does for the kind `refund`: the money goes back, then our row says so.

    Done again after a crash anywhere in it, it is the same refund: Stripe has its key. Raises
    `Unavailable` where trying later is right, and `StripeFailed` where a person must look.
    """
    payment_id = UUID(payload["payment_id"])
    async with unavailable_when_lost():
        row = await pool.fetchrow(_SQL["payment_to_refund"], payment_id)
    assert row is not None, "a refund is queued for a payment that exists"
    if row["status"] != "refunding":
        return
    if row["payment_intent"] is None:
        raise Unavailable("what to give back at Stripe is not known yet")
    try:
        made = await stripe.refund(
            payment_id=payment_id, payment_intent=row["payment_intent"], reason=payload["reason"]
        )
        status = await refresh(pool, stripe, payment_id, row["payment_intent"])
        if status == "held":
            raise StripeFailed(f"refund {made.id} did not go through")
    except StripeFailed as refused:
        if not refused.mended_by_time:
            await _hold(pool, payment_id, refused.message)
        raise
    if status == "refunding":
        raise Unavailable(f"refund {made.id} is {made.status}, and not all is given back")


async def _hold(pool: Pool, payment_id: UUID, why: str) -> None:
    async with transaction(pool) as connection:
        await connection.execute(_SQL["lock_session"], payment_id)
        row = await connection.fetchrow(_SQL["hold_refund"], payment_id, f"refund refused: {why}")
        if row is not None and row["session_id"] is not None:
            await _log(connection, row["session_id"], "refund_failed", why)


# --- keeping our rows what Stripe's are -----------------------------------------------------------


async def payment_of(
    pool: Pool, payment_intent: str | None, metadata: Mapping[str, str] | None
) -> UUID | None:
    """Our payment of a charge, refund or dispute at Stripe; None where it is not ours."""
    if payment_intent is None:
        return None
    ours = our_id(metadata, "payment_id")
    async with unavailable_when_lost():
        found: UUID | None = await pool.fetchval(_SQL["payment_of_charge"], ours, payment_intent)
    return found


async def read(pool: Pool, stripe: StripeClient, payment_id: UUID, payment_intent: str) -> Reading:
    """Asks Stripe what it has given back. Raises `Unavailable` or `StripeFailed`."""
    async with unavailable_when_lost():
        read_at: datetime = await pool.fetchval(_SQL["moment"])
    found = await stripe.refunds(payment_intent)
    undone = [refund for refund in found if refund.status in UNDONE]
    return Reading(
        payment_id=payment_id,
        payment_intent=payment_intent,
        read_at=read_at,
        refunded_cents=sum(refund.amount_cents for refund in found if refund not in undone),
        failed=undone[0].failure_reason or undone[0].status if undone else None,
        ours=any(refund.payment_id == payment_id for refund in undone),
    )


async def refresh(
    pool: Pool, stripe: StripeClient, payment_id: UUID, payment_intent: str
) -> "Status":
    """Reads and writes: our row says what Stripe has given back. See `write`."""
    reading = await read(pool, stripe, payment_id, payment_intent)
    async with transaction(pool) as connection:
        return await write(connection, reading)


Status = Literal["refunded", "held", "refunding", "partly", "known"]


async def write(connection: Connection, reading: Reading) -> Status:
    """Our row says what Stripe has given back, and the earnings follow; what it is now.

    `refunded`: all of it, for the first time; `held`: a refund that we believed in did not go
    through; `refunding`: it is still to come; `partly`: some, and the payment stands otherwise;
    `known`: that was known, or a later reading has been written.
    """
    await connection.execute(_SQL["lock_session"], reading.payment_id)
    row = await connection.fetchrow(_SQL["lock_payment"], reading.payment_id, reading.read_at)
    if row is None:
        return "known"
    status = _status_after(row, reading)
    failed = status == "held" != row["status"] or reading.refunded_cents < row["refunded_cents"]
    await connection.execute(
        _SQL["write_refunds"],
        reading.payment_id,
        reading.refunded_cents,
        reading.read_at,
        status,
        f"refund failed: {reading.failed or 'unknown'}" if failed else None,
        reading.payment_intent,
    )
    if row["session_id"] is not None:
        if reading.refunded_cents > row["refunded_cents"]:
            await connection.execute(_SQL["take_back_earnings"], row["session_id"])
        if failed:
            await _log(connection, row["session_id"], "refund_failed", reading.failed)
        elif status != row["status"]:
            await _log(connection, row["session_id"], "refunded", None)
    _raise_alarms(row, reading, status, failed)
    if status != row["status"]:
        return "refunded" if status == "refunded" else "held" if status == "held" else "partly"
    if status == "refunding":
        return "refunding"
    return "partly" if reading.refunded_cents != row["refunded_cents"] else "known"


def _raise_alarms(row: asyncpg.Record, reading: Reading, status: str, failed: bool) -> None:
    """Says what a person must look at."""
    payment, session = reading.payment_id, row["session_status"]
    given_back = reading.refunded_cents + row["credited_cents"]
    if row["received_cents"] is not None and given_back > row["received_cents"]:
        log.error("more of payment %s was given back than came in", payment)
    if failed:
        log.error("a refund of payment %s did not go through: %s", payment, reading.failed)
        if row["taken_back_cents"] > given_back:
            log.error("earnings were taken back for it, of the session of payment %s", payment)
    if status == "refunded" != row["status"] and session in _GOES_ON:
        log.error("payment %s was given back, and its session goes on", payment)


def _status_after(row: asyncpg.Record, reading: Reading) -> str:
    """The payment's status: `refunded` when nothing is left. Where a refund that we believed in did
    not go through, it pays for its session again, if that is served; else a person must look."""
    received = row["amount_cents"] if row["received_cents"] is None else row["received_cents"]
    before: str = row["status"]
    if reading.refunded_cents + row["credited_cents"] >= received:
        return "refunded"
    if before == "refunding":
        return "held" if reading.ours else before
    if before == "refunded":
        is_served = row["session_status"] in (*_GOES_ON, "completed")
        return "fulfilled" if is_served and not reading.ours else "held"
    return before


async def _log(connection: Connection, session_id: UUID, line: str, detail: str | None) -> None:
    await connection.execute(_SQL["log_event"], session_id, line, detail)
