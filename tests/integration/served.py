"""Sessions that were paid and served, refunded and paid out, by the functions that the server uses.

For tests of earnings and of the books: a whole business in a few rows, without a node. Each
function works on the connection it is given, in whatever transaction that is in.
"""

from typing import Any
from uuid import UUID, uuid4

from msgspec import Struct

from dispatch import refunds
from dispatch.database import Connection
from tests.integration.rows import add_customer, add_intake, create

Row = dict[str, Any]


class Sold(Struct, frozen=True):
    """A session and what it was sold for; `payment_id` is None where that was credits."""

    session_id: UUID
    customer_id: UUID
    gross_cents: int
    payment_id: UUID | None = None


async def add_payment(
    connection: Connection, status: str, gross_cents: int, **columns: Any
) -> UUID:
    """A payment of somebody, as `columns` say; received unless they say otherwise."""
    values = {
        "status": status,
        "amount_cents": gross_cents,
        "currency": "eur",
        "received_cents": gross_cents,
        "received_currency": "eur",
        "payment_intent": f"pi_{uuid4().hex}",
    } | columns
    places = ", ".join(f"${n}" for n in range(1, len(values) + 1))
    payment_id: UUID = await connection.fetchval(
        f"INSERT INTO payments ({', '.join(values)}) VALUES ({places}) RETURNING id",
        *values.values(),
    )
    return payment_id


async def sell(
    connection: Connection,
    gross_cents: int = 1000,
    *,
    workshop_id: UUID | None = None,
    currency: str = "eur",
) -> Sold:
    """A new customer's session, paid with money; `workshop_id` is the one that she named."""
    customer_id = await add_customer(connection)
    intake_id = await add_intake(connection, customer_id, workshop_id=workshop_id)
    booking = await create(connection, intake_id)
    payment_id = await add_payment(
        connection,
        "fulfilled",
        gross_cents,
        customer_id=customer_id,
        intake_id=intake_id,
        session_id=booking.session_id,
        currency=currency,
        received_currency=currency,
    )
    return Sold(booking.session_id, customer_id, gross_cents, payment_id)


async def grant(connection: Connection, customer_id: UUID, cents: int) -> None:
    """Credits out of goodwill."""
    await _move(connection, customer_id, "grants", "customer", cents)


async def sell_for_credits(
    connection: Connection, gross_cents: int = 1000, *, workshop_id: UUID | None = None
) -> Sold:
    """The same, of credits that were granted before."""
    customer_id = await add_customer(connection)
    await grant(connection, customer_id, gross_cents)
    intake_id = await add_intake(connection, customer_id, workshop_id=workshop_id)
    booking = await create(connection, intake_id)
    await _move(connection, customer_id, "customer", "session", gross_cents, booking.session_id)
    return Sold(booking.session_id, customer_id, gross_cents)


async def _move(
    connection: Connection,
    customer_id: UUID,
    source: str,
    target: str,
    cents: int,
    session_id: UUID | None = None,
) -> None:
    await connection.execute(
        "SELECT move_credits($1, $2, $3, $4, $5, 'eur', 'a test', $6)",
        uuid4(),
        customer_id,
        source,
        target,
        cents,
        session_id,
    )


async def serve(connection: Connection, sold: Sold, mechanic_id: UUID) -> None:
    """She has served it to its end, and it has earned."""
    await _end(connection, sold, "completed", mechanic_id)
    await connection.execute("SELECT record_session_earnings($1)", sold.session_id)


async def leave_unserved(connection: Connection, sold: Sold, *, as_credits: bool = False) -> None:
    """It was cancelled, and what was paid for it is on its way back."""
    await _end(connection, sold, "cancelled", None)
    await refunds.queue_for_session(connection, sold.session_id, "cancelled", as_credits=as_credits)


async def _end(connection: Connection, sold: Sold, status: str, mechanic_id: UUID | None) -> None:
    await connection.execute(
        "UPDATE session_requests SET mechanic_id = $2, status = $3, stage = NULL"
        " WHERE session_id = $1",
        sold.session_id,
        mechanic_id,
        status,
    )
    await connection.execute(
        "UPDATE sessions SET status = $2, mechanic_id = $3 WHERE id = $1",
        sold.session_id,
        status,
        mechanic_id,
    )


async def refunded(connection: Connection, sold: Sold, cents: int) -> None:
    """Stripe says that so much of it has gone back by now, in all."""
    assert sold.payment_id is not None
    reading = refunds.Reading(
        payment_id=sold.payment_id,
        payment_intent="pi_test",
        read_at=await connection.fetchval("SELECT clock_timestamp()"),
        refunded_cents=cents,
        failed=None,
    )
    await refunds.write(connection, reading)
    if await connection.fetchval("SELECT status FROM payments WHERE id = $1", sold.payment_id) == (
        "refunded"
    ):
        await connection.execute(
            "UPDATE outbox SET done_at = now() WHERE idempotency_key = $1",
            f"refund-{sold.payment_id}",
        )


async def pay_out(connection: Connection, payee_id: UUID, *, status: str = "paid") -> UUID:
    """All that is owed to a workshop or a mechanic, as one payout that is so."""
    payout_id = await order_payout(connection, payee_id)
    await connection.execute(
        "SELECT settle_payout($1, $2, $3, NULL)",
        payout_id,
        status,
        f"tr_{payout_id.hex}" if status == "paid" else None,
    )
    await connection.execute(
        "UPDATE outbox SET done_at = now() WHERE idempotency_key = $1", f"payout-{payout_id}"
    )
    return payout_id


async def order_payout(connection: Connection, payee_id: UUID) -> UUID:
    """The same, still to be delivered; the payee has an account from now on."""
    is_workshop = await connection.fetchval(
        "SELECT EXISTS (SELECT 1 FROM organizations WHERE id = $1)", payee_id
    )
    await connection.execute(
        f"UPDATE {'organizations' if is_workshop else 'mechanics'}"
        " SET stripe_connect_account_id = $2, stripe_payouts_enabled = true WHERE id = $1",
        payee_id,
        f"acct_{payee_id.hex}",
    )
    payout_id: UUID | None = await connection.fetchval(
        "SELECT make_payout($1, $2, 'eur', 1, 'hand', NULL)",
        payee_id if is_workshop else None,
        None if is_workshop else payee_id,
    )
    assert payout_id is not None, "something is owed"
    return payout_id


async def earnings_of(connection: Connection, session_id: UUID) -> tuple[Row | None, Row | None]:
    """The workshop's row of a session, and the mechanic's."""
    workshop = await connection.fetchrow(
        "SELECT * FROM workshop_earnings WHERE session_id = $1", session_id
    )
    mechanic = await connection.fetchrow(
        "SELECT * FROM mechanic_earnings WHERE session_id = $1", session_id
    )
    return (dict(workshop) if workshop else None, dict(mechanic) if mechanic else None)
