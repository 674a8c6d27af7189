"""The books of a business that was run by the real functions match. Whatever is changed behind
their back is found, and nothing else is."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from dispatch.books import Books, Matter, Mismatch, Sums, read
from dispatch.books_text import as_json, as_text
from dispatch.database import Connection, Pool
from tests.integration.rows import add_customer, add_mechanic, add_workshop
from tests.integration.served import (
    Sold,
    add_payment,
    grant,
    leave_unserved,
    order_payout,
    pay_out,
    refunded,
    sell,
    sell_for_credits,
    serve,
)


class Business(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can become of money, once each; all amounts are in euros' cents."""

    workshop_id: UUID
    independent_id: UUID
    by_workshop: Sold  # 1000, served by its mechanic; in a payout of 800
    reversed_: Sold  # 2000, the same, then 500 refunded: 400 of the payout are reversed
    by_independent: Sold  # 1500, not paid out yet
    referred: Sold  # 3000, the workshop was named, the independent one served
    with_credits: Sold  # 1000
    going_on: Sold  # 1100
    going_on_with_credits: Sold  # 900
    cancelled: Sold  # 700, to be refunded
    credited: Sold  # 600, given back as credits
    held_id: UUID  # 4200, of nobody
    payout_id: UUID


@pytest.fixture
async def business(connection: Connection) -> Business:
    workshop_id = await add_workshop(connection)
    employed, independent = (
        await add_mechanic(connection, workshop_id),
        await add_mechanic(connection),
    )
    by_workshop, reversed_ = await sell(connection, 1000), await sell(connection, 2000)
    await serve(connection, by_workshop, employed)
    await serve(connection, reversed_, employed)
    payout_id = await pay_out(connection, workshop_id)
    await refunded(connection, reversed_, 500)
    by_independent = await sell(connection, 1500)
    await serve(connection, by_independent, independent)
    referred = await sell(connection, 3000, workshop_id=workshop_id)
    await serve(connection, referred, independent)
    with_credits = await sell_for_credits(connection, 1000)
    await serve(connection, with_credits, employed)
    cancelled, credited = await sell(connection, 700), await sell(connection, 600)
    await leave_unserved(connection, cancelled)
    await leave_unserved(connection, credited, as_credits=True)
    gone = await sell(connection, 800)
    await leave_unserved(connection, gone)
    await refunded(connection, gone, 800)
    returned = await sell_for_credits(connection, 500)
    await leave_unserved(connection, returned)
    await add_payment(connection, "created", 1000, received_cents=None, received_currency=None)
    return Business(
        workshop_id=workshop_id,
        independent_id=independent,
        by_workshop=by_workshop,
        reversed_=reversed_,
        by_independent=by_independent,
        referred=referred,
        with_credits=with_credits,
        going_on=await sell(connection, 1100),
        going_on_with_credits=await sell_for_credits(connection, 900),
        cancelled=cancelled,
        credited=credited,
        held_id=await add_payment(connection, "held", 4200, note="paid, and no payment of ours"),
        payout_id=payout_id,
    )


async def behind_its_back(connection: Connection, statement: str, *arguments: Any) -> None:
    """Neither constraint nor trigger of the table looks."""
    table = statement.split()[2 if statement.startswith(("DELETE", "INSERT")) else 1]
    checks = await connection.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = $1::regclass AND contype = 'c'",
        table,
    )
    for check in checks:
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {check['conname']}")
    await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    done = await connection.execute(statement, *arguments)
    assert done.split()[-1] == "1", f"{done}: one row, no more and no less"


# --- what matches ---------------------------------------------------------------------------------


async def test_a_business_that_was_run_by_the_real_functions_matches(
    pool: Pool, business: Business
) -> None:
    books = await read(pool)

    assert books.mismatches == []
    assert books.sums == {
        "eur": Sums(
            received_cents=1000 + 2000 + 1500 + 3000 + 700 + 600 + 800 + 1100 + 4200,
            granted_cents=1000 + 500 + 900,
            workshops_cents=800 + 1600 - 400 + 300 + 800,
            mechanics_cents=1200 + 2100,
            platform_cents=200 + 400 - 100 + 300 + 600 + 200,
            refunded_cents=500 + 800,
            credits_cents=600 + 500,
            set_aside_cents=900,
            in_progress_cents=1100 + 700,
            held_cents=4200,
            due_cents=1200 + 2100 + 300 + 800,
            paid_cents=800 + 1600 - 400,
        )
    }
    assert books.sessions == 5
    reversal_id = await pool.fetchval("SELECT id FROM payout_reversals")
    assert books.for_a_person == [
        Matter("payment held", str(business.held_id), 4200, "eur", "paid, and no payment of ours"),
        Matter("reversal under way", str(reversal_id), 400, "eur", ""),
    ]


async def test_without_any_money_everything_matches(pool: Pool) -> None:
    books = await read(pool)

    assert (books.match, books.sums, books.for_a_person) == (True, {}, [])


async def test_each_currency_is_by_itself(pool: Pool, connection: Connection) -> None:
    mechanic_id = await add_mechanic(connection)
    for currency in ("usd", "eur"):
        await serve(connection, await sell(connection, 1000, currency=currency), mechanic_id)

    books = await read(pool)

    assert books.match
    assert list(books.sums) == ["eur", "usd"]
    assert books.sums["eur"] == books.sums["usd"]
    assert books.sums["eur"].mechanics_cents == 800


async def test_a_refund_that_did_not_go_through_after_all_waits_for_a_person(
    pool: Pool, connection: Connection, business: Business
) -> None:
    """What the workshop and the platform gave back for it is with the platform, as money."""
    await refunded(connection, business.by_independent, 1000)
    await refunded(connection, business.by_independent, 400)

    books = await read(pool)

    assert books.mismatches == []
    assert books.sums["eur"].not_given_back_cents == 600
    assert books.for_a_person[1] == Matter(
        "earnings taken back for a refund that did not go through",
        str(business.by_independent.payment_id),
        600,
        "eur",
        "refund failed: unknown",
    )


async def test_a_payment_that_was_refunded_while_its_session_goes_on_waits_for_a_person(
    pool: Pool, connection: Connection, business: Business
) -> None:
    await refunded(connection, business.going_on, 1100)

    books = await read(pool)

    assert books.mismatches == []
    assert books.for_a_person[1] == Matter(
        "refunded, and its session goes on",
        str(business.going_on.payment_id),
        1100,
        "eur",
        "",
    )


async def test_money_that_went_back_before_we_heard_of_it_had_come(
    pool: Pool, connection: Connection
) -> None:
    await add_payment(
        connection,
        "refunded",
        1000,
        received_cents=None,
        received_currency=None,
        refunded_cents=1000,
    )

    books = await read(pool)

    assert books.match
    assert books.sums == {"eur": Sums(received_cents=1000, refunded_cents=1000)}


async def test_payouts_match_whatever_becomes_of_them(
    pool: Pool, connection: Connection, business: Business
) -> None:
    """One failed and is in the next, one is under way, a debt is settled by a later one."""
    await pay_out(connection, business.independent_id, status="failed")
    await refunded(connection, business.by_independent, 1500)  # not in the next one
    under_way = await order_payout(connection, business.independent_id)
    await refunded(connection, business.referred, 300)  # reversed when it is known
    await connection.execute(
        "UPDATE payout_reversals SET status = 'failed' WHERE payout_id = $1", business.payout_id
    )
    waiting = await read(pool)
    next_one = await pay_out(connection, business.workshop_id)

    settled = await read(pool)

    assert (waiting.mismatches, settled.mismatches) == ([], [])
    (debt,) = (each for each in waiting.for_a_person if each.what == "debt: reversal failed")
    assert debt.cents == 400
    assert "debt: reversal failed" not in [each.what for each in settled.for_a_person]
    amounts = await connection.fetch(
        "SELECT amount_cents FROM payouts WHERE id = ANY ($1) ORDER BY amount_cents",
        [under_way, next_one],
    )
    assert [row["amount_cents"] for row in amounts] == [800 + 270 - 400, 2100]


async def test_a_failed_payout_whose_transfer_is_there_waits_for_a_person(
    pool: Pool, connection: Connection, business: Business
) -> None:
    failed = await pay_out(connection, business.independent_id, status="failed")
    await connection.execute(
        "UPDATE payouts SET stripe_transfer_id = 'tr_late', note = 'no\nline' WHERE id = $1", failed
    )
    await connection.execute(
        "UPDATE payouts SET reversed_cents = 450 WHERE id = $1", business.payout_id
    )

    books = await read(pool)

    assert books.match
    assert [each.what for each in books.for_a_person] == [
        "payment held",
        "payout failed",
        "reversal under way",
        "payout failed and its transfer is there",
        "more reversed than asked for",
    ]
    assert books.for_a_person[1] == Matter("payout failed", str(failed), 3300, "eur", "no\\nline")
    assert books.for_a_person[3:] == [
        Matter("payout failed and its transfer is there", str(failed), 3300, "eur", "no\\nline"),
        Matter("more reversed than asked for", str(business.payout_id), 50, "eur", ""),
    ]


# --- what does not --------------------------------------------------------------------------------

Break = Callable[[Connection, Business], Coroutine[Any, Any, list[Mismatch]]]
BREAKS: dict[str, Break] = {}


def breaks(function: Break) -> Break:
    """One way to make the books wrong; it returns what they must say then."""
    BREAKS[function.__name__] = function
    return function


def sums(expected: int, found: int) -> Mismatch:
    return Mismatch("sum of what came in", "eur", str(expected), str(found))


RECEIVED = 14900 + 2400


@breaks
async def more_refunded_than_received(connection: Connection, shop: Business) -> list[Mismatch]:
    payment_id = shop.going_on.payment_id
    await behind_its_back(
        connection, "UPDATE payments SET refunded_cents = 1101 WHERE id = $1", payment_id
    )
    return [
        Mismatch(
            "payment gave back more than came in",
            str(payment_id),
            "at most 1100",
            "1101 refunded, 0 credited",
        )
    ]


@breaks
async def money_of_a_cancelled_session(connection: Connection, shop: Business) -> list[Mismatch]:
    payment_id = shop.cancelled.payment_id
    await behind_its_back(
        connection, "UPDATE payments SET status = 'fulfilled' WHERE id = $1", payment_id
    )
    return [
        Mismatch(
            "payment is nowhere",
            str(payment_id),
            "earned, in progress, given back or held",
            "700 of a payment that is fulfilled, its session cancelled",
        ),
        sums(RECEIVED, RECEIVED - 700),
    ]


@breaks
async def money_of_an_expired_checkout(connection: Connection, shop: Business) -> list[Mismatch]:
    await behind_its_back(
        connection, "UPDATE payments SET status = 'expired' WHERE id = $1", shop.held_id
    )
    return [
        Mismatch(
            "payment is nowhere",
            str(shop.held_id),
            "earned, in progress, given back or held",
            "4200 of a payment that is expired",
        ),
        sums(RECEIVED, RECEIVED - 4200),
    ]


@breaks
async def fulfilled_at_another_price(connection: Connection, shop: Business) -> list[Mismatch]:
    payment_id = shop.going_on.payment_id
    await behind_its_back(
        connection, "UPDATE payments SET amount_cents = 1200 WHERE id = $1", payment_id
    )
    return [
        Mismatch("payment was fulfilled at another price", str(payment_id), "1200 eur", "1100 eur")
    ]


@breaks
async def credits_without_a_payment(connection: Connection, shop: Business) -> list[Mismatch]:
    payment_id = shop.credited.payment_id
    await behind_its_back(
        connection,
        "UPDATE payments SET credited_cents = 500, refunded_cents = 100 WHERE id = $1",
        payment_id,
    )
    return [
        Mismatch("payment became credits", str(payment_id), "500 eur", "600 eur"),
        sums(RECEIVED, RECEIVED + 100),
    ]


@breaks
async def a_line_of_credits_more(connection: Connection, shop: Business) -> list[Mismatch]:
    transaction_id, customer_id = uuid4(), await add_customer(connection)
    await behind_its_back(
        connection,
        "INSERT INTO credit_entries (transaction_id, customer_id, account, seq, amount_cents,"
        " balance_cents, currency, reason, at)"
        " VALUES ($1, $2, 'customer', 1, 50, 50, 'eur', '', now())",
        transaction_id,
        customer_id,
    )
    return [
        Mismatch(
            "credit transaction",
            str(transaction_id),
            "2 lines of one customer and currency, sum 0",
            "1 lines of 1 customers and currencies, sum 50",
        ),
        sums(RECEIVED, RECEIVED + 50),
    ]


@breaks
async def a_chain_of_credits(connection: Connection, shop: Business) -> list[Mismatch]:
    """The balance of the line that set credits aside, as if they had not been."""
    entry_id = await connection.fetchval(
        "SELECT id FROM credit_entries WHERE session_id = $1 AND account = 'customer'",
        shop.going_on_with_credits.session_id,
    )
    await behind_its_back(
        connection, "UPDATE credit_entries SET balance_cents = 900 WHERE id = $1", entry_id
    )
    return [
        Mismatch(
            "credit line",
            str(entry_id),
            "line 2 of customer, balance 0 eur",
            "line 2 of customer, balance 900 eur",
        )
    ]


@breaks
async def a_gap_in_a_chain_of_credits(connection: Connection, shop: Business) -> list[Mismatch]:
    entry_id = await connection.fetchval(
        "SELECT id FROM credit_entries WHERE session_id = $1 AND account = 'customer'",
        shop.going_on_with_credits.session_id,
    )
    await behind_its_back(connection, "UPDATE credit_entries SET seq = 3 WHERE id = $1", entry_id)
    return [
        Mismatch(
            "credit line",
            str(entry_id),
            "line 2 of customer, balance 0 eur",
            "line 3 of customer, balance 0 eur",
        )
    ]


@breaks
async def spent_twice(connection: Connection, shop: Business) -> list[Mismatch]:
    """A balance below zero, though every line follows."""
    customer_id = await add_customer(connection)
    await connection.execute("ALTER TABLE credit_entries DROP CONSTRAINT credits_never_below_zero")
    await grant(connection, customer_id, 100)
    await connection.execute(
        "SELECT move_credits(gen_random_uuid(), $1, 'customer', 'grants', 150, 'eur', '')",
        customer_id,
    )
    entry_id = await connection.fetchval(
        "SELECT id FROM credit_entries WHERE customer_id = $1 AND balance_cents = -50"
        " AND account = 'customer'",
        customer_id,
    )
    return [
        Mismatch(
            "credit line",
            str(entry_id),
            "line 2 of customer, balance at least 0 eur",
            "line 2 of customer, balance -50 eur",
        )
    ]


@breaks
async def credits_of_a_cancelled_session(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.going_on_with_credits.session_id
    await behind_its_back(
        connection, "UPDATE sessions SET status = 'cancelled' WHERE id = $1", session_id
    )
    return [
        Mismatch(
            "session's credits",
            str(session_id),
            "cancelled: 0 set aside, 0 earned, 900 returned",
            "cancelled: 900 set aside, 0 earned, 0 returned",
        )
    ]


@breaks
async def earnings_of_a_session_that_goes_on(
    connection: Connection, shop: Business
) -> list[Mismatch]:
    session_id = shop.with_credits.session_id
    await behind_its_back(
        connection,
        "UPDATE sessions SET status = 'active', started_at = now() WHERE id = $1",
        session_id,
    )
    return [
        Mismatch("session's earnings", str(session_id), "none: active", "workshop_earnings"),
        Mismatch(
            "session's credits",
            str(session_id),
            "active: 1000 set aside, 0 earned, 0 returned",
            "active: 0 set aside, 1000 earned, 0 returned",
        ),
        sums(RECEIVED, RECEIVED - 200),
    ]


@breaks
async def earnings_of_a_free_session(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.by_independent.session_id
    await behind_its_back(
        connection,
        "UPDATE payments SET session_id = NULL, status = 'held' WHERE session_id = $1",
        session_id,
    )
    return [
        Mismatch("session's earnings", str(session_id), "none: not for money", "mechanic_earnings"),
        sums(RECEIVED, RECEIVED + 1200),
    ]


@breaks
async def no_earnings_at_all(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.by_independent.session_id
    await behind_its_back(
        connection, "DELETE FROM mechanic_earnings WHERE session_id = $1", session_id
    )
    return [
        Mismatch("session's earnings", str(session_id), "1500 eur", "none"),
        sums(RECEIVED, RECEIVED - 1500),
    ]


@breaks
async def one_party_without_its_earnings(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.referred.session_id
    await behind_its_back(
        connection, "DELETE FROM workshop_earnings WHERE session_id = $1", session_id
    )
    return [
        Mismatch("session's workshop_earnings", str(session_id), "a row", "none"),
        sums(RECEIVED, RECEIVED - 300),
    ]


@breaks
async def earnings_of_nobody(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.by_independent.session_id
    await behind_its_back(
        connection,
        "INSERT INTO workshop_earnings (session_id, workshop_id, mechanic_id, is_referral,"
        " currency, gross_amount_cents, platform_fee_percentage, platform_fee_cents,"
        " mechanic_net_cents, workshop_net_cents)"
        " VALUES ($1, $2, $3, false, 'eur', 1, 20, 0, 0, 1)",
        session_id,
        shop.workshop_id,
        shop.independent_id,
    )
    return [
        Mismatch("session's workshop_earnings", str(session_id), "none", "a row"),
        sums(RECEIVED, RECEIVED + 1),
    ]


@breaks
async def a_cent_moved_to_the_platform(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.by_independent.session_id
    await behind_its_back(
        connection,
        "UPDATE mechanic_earnings SET platform_fee_cents = 301, mechanic_net_cents = 1199"
        " WHERE session_id = $1",
        session_id,
    )
    return [
        Mismatch("session's mechanic_earnings.platform_fee_cents", str(session_id), "300", "301"),
        Mismatch("session's mechanic_earnings.mechanic_net_cents", str(session_id), "1200", "1199"),
    ]


@breaks
async def another_fee_for_each_party(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.referred.session_id
    await behind_its_back(
        connection,
        "UPDATE workshop_earnings SET platform_fee_percentage = 15 WHERE session_id = $1",
        session_id,
    )
    what = "session's workshop_earnings.fee_basis_points"
    return [Mismatch(what, str(session_id), "2000", "1500")]


@breaks
async def a_referral_for_one_who_served(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.by_workshop.session_id
    await behind_its_back(
        connection,
        "UPDATE workshop_earnings SET is_referral = true WHERE session_id = $1",
        session_id,
    )
    what = "session's workshop_earnings.is_referral"
    return [Mismatch(what, str(session_id), "False", "True")]


@breaks
async def too_little_taken_back(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.by_independent.session_id
    await behind_its_back(
        connection, "UPDATE payments SET refunded_cents = 100 WHERE session_id = $1", session_id
    )
    return [
        Mismatch("session's earnings taken back", str(session_id), "100", "0"),
        sums(RECEIVED, RECEIVED + 100),
    ]


@breaks
async def too_much_taken_back(connection: Connection, shop: Business) -> list[Mismatch]:
    session_id = shop.by_independent.session_id
    await behind_its_back(
        connection,
        "UPDATE mechanic_earnings SET reversed_cents = 1 WHERE session_id = $1",
        session_id,
    )
    return [
        Mismatch("session's mechanic_earnings.reversed_cents", str(session_id), "0", "1"),
        sums(RECEIVED, RECEIVED - 1),
    ]


@breaks
async def a_payout_of_more_than_was_owed(connection: Connection, shop: Business) -> list[Mismatch]:
    await behind_its_back(
        connection, "UPDATE payouts SET amount_cents = 2500 WHERE id = $1", shop.payout_id
    )
    return [Mismatch("payout's amount", str(shop.payout_id), "2400", "2500")]


@breaks
async def a_reversal_of_more_than_was_taken_back(
    connection: Connection, shop: Business
) -> list[Mismatch]:
    await behind_its_back(
        connection,
        "UPDATE payout_reversals SET amount_cents = 401 WHERE payout_id = $1",
        shop.payout_id,
    )
    return [Mismatch("payout's amount", str(shop.payout_id), "2401", "2400")]


@breaks
async def paid_without_a_transfer(connection: Connection, shop: Business) -> list[Mismatch]:
    await behind_its_back(
        connection, "UPDATE payouts SET stripe_transfer_id = NULL WHERE id = $1", shop.payout_id
    )
    return [Mismatch("payout is paid", str(shop.payout_id), "a transfer", "paid without one")]


@breaks
async def earnings_that_think_they_are_paid(
    connection: Connection, shop: Business
) -> list[Mismatch]:
    session_id, party = shop.by_independent.session_id, shop.independent_id
    await behind_its_back(
        connection,
        "UPDATE mechanic_earnings SET payout_status = 'paid' WHERE session_id = $1",
        session_id,
    )
    what = "session's earnings in their payout"
    return [Mismatch(what, str(session_id), f"{party} eur pending", f"{party} eur paid")]


@breaks
async def earnings_in_somebody_elses_payout(
    connection: Connection, shop: Business
) -> list[Mismatch]:
    session_id = shop.by_independent.session_id
    await behind_its_back(
        connection,
        "UPDATE mechanic_earnings SET payout_status = 'paid', payout_id = $2 WHERE session_id = $1",
        session_id,
        shop.payout_id,
    )
    return [
        Mismatch("payout's amount", str(shop.payout_id), "3600", "2400"),
        Mismatch(
            "session's earnings in their payout",
            str(session_id),
            f"{shop.workshop_id} eur paid",
            f"{shop.independent_id} eur paid",
        ),
    ]


@breaks
async def a_refund_that_was_given_up(connection: Connection, shop: Business) -> list[Mismatch]:
    key = f"refund-{shop.cancelled.payment_id}"
    await behind_its_back(
        connection,
        "UPDATE outbox SET failed_at = now(), last_error = $2 WHERE idempotency_key = $1",
        key,
        "after 54 attempts:\nno answer",
    )
    found = "given up: after 54 attempts:\\nno answer"
    return [Mismatch("delivery", key, "waiting in the outbox", found)]


@breaks
async def a_refund_that_nobody_delivers(connection: Connection, shop: Business) -> list[Mismatch]:
    key = f"refund-{shop.cancelled.payment_id}"
    await behind_its_back(connection, "DELETE FROM outbox WHERE idempotency_key = $1", key)
    return [Mismatch("delivery", key, "waiting in the outbox", "not there")]


@breaks
async def a_reversal_that_is_said_to_be_done(
    connection: Connection, shop: Business
) -> list[Mismatch]:
    key = await connection.fetchval("SELECT idempotency_key FROM outbox WHERE kind = 'reversal'")
    await behind_its_back(
        connection, "UPDATE outbox SET done_at = now() WHERE idempotency_key = $1", key
    )
    return [Mismatch("delivery", key, "waiting in the outbox", "done")]


@breaks
async def a_payout_that_nobody_delivers(connection: Connection, shop: Business) -> list[Mismatch]:
    payout_id = await order_payout(connection, shop.independent_id)
    key = f"payout-{payout_id}"
    await behind_its_back(connection, "DELETE FROM outbox WHERE idempotency_key = $1", key)
    return [Mismatch("delivery", key, "waiting in the outbox", "not there")]


@pytest.mark.parametrize("name", BREAKS)
async def test_whatever_is_changed_is_found_and_nothing_else(
    pool: Pool, connection: Connection, business: Business, name: str
) -> None:
    expected = await BREAKS[name](connection, business)

    books = await read(pool)

    assert books.mismatches == expected
    assert not books.match


# --- what it says ---------------------------------------------------------------------------------


async def test_a_person_reads_a_table_what_waits_for_her_and_the_verdict(
    pool: Pool, business: Business
) -> None:
    reversal_id = await pool.fetchval("SELECT id FROM payout_reversals")

    assert (
        as_text(await read(pool))
        == f"""\
                                           eur
came in                                 173.00
  payments received                     149.00
  credits granted                        24.00
is now                                  173.00
  earned by workshops                    31.00
  earned by mechanics                    33.00
  the platform's fees                    16.00
  refunded                               13.00
  credits of customers                   11.00
  credits set aside                       9.00
  in progress                            18.00
  held for a person                      42.00
  taken back, not refunded                0.00
of what was earned
  due                                    44.00
  in a payout under way                   0.00
  paid out                               20.00
for a person
  payment held: {business.held_id}  42.00 eur  paid, and no payment of ours
  reversal under way: {reversal_id}  4.00 eur
everything matches"""
    )


def test_each_mismatch_is_a_line() -> None:
    books = Books(mismatches=[Mismatch("what", "1", "2", "3"), Mismatch("that", "4", "5", "6")])

    assert as_text(books).splitlines()[-3:] == [
        "MISMATCH what: 1  expected 2  found 3",
        "MISMATCH that: 4  expected 5  found 6",
        "2 mismatches",
    ]
    books.mismatches.pop()
    assert as_text(books).splitlines()[-1] == "1 mismatch"


async def test_a_program_reads_the_same(pool: Pool, business: Business) -> None:
    told = as_json(await read(pool))

    assert told == msgspec.json.decode(msgspec.json.encode(told))
    assert (told["match"], told["mismatches"]) == (True, [])
    assert told["sums"]["eur"]["came_in_cents"] == told["sums"]["eur"]["accounted_cents"] == 17300
    assert told["for_a_person"][0] == {
        "what": "payment held",
        "id": str(business.held_id),
        "cents": 4200,
        "currency": "eur",
        "note": "paid, and no payment of ours",
    }


async def test_the_books_are_of_one_moment_whatever_is_going_on(
    pool: Pool, connection: Connection, business: Business
) -> None:
    """Sessions are sold, served and refunded while the books are read, again and again."""

    async def trade() -> None:
        for _ in range(10):
            async with connection.transaction():
                sold = await sell(connection, 1000)
            async with connection.transaction():
                await serve(connection, sold, business.independent_id)
            async with connection.transaction():
                await refunded(connection, sold, 1000)

    trading = asyncio.create_task(trade())
    seen = [await read(pool)]
    while not trading.done():
        seen.append(await read(pool))
    await trading

    assert [books.mismatches for books in seen] == [[]] * len(seen)
    assert len({books.sums["eur"].received_cents for books in seen}) > 2
