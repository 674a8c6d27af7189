"""Credits in Postgres: what the ledger refuses, grants, statements, and booking with them (C5)."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace

from dispatch import credits, sessions
from dispatch.core.types import Cancel, RequestStatus, Stage
from dispatch.credits import Grant, InsufficientCredits
from dispatch.database import Connection, Pool
from dispatch.errors import BadRequest, Conflict, DispatchError, NotFound
from dispatch.sessions import ActiveSessionExists, Created, IntakeForm, Opening, Prospect, SlotFull
from tests.integration.ledger import (
    CHAT10_CENTS,
    TTL,
    VIDEO15_CENTS,
    accounts,
    book_with_credits,
    check_ledger,
    give,
    history,
    opener,
    settle,
)
from tests.integration.rows import add_customer, add_user, read_entry, until_blocked

LINE = (
    "INSERT INTO credit_entries "
    "(transaction_id, customer_id, account, amount_cents, currency, reason) "
    "VALUES ($1, $2, $3, $4, $5, 'by hand')"
)


async def add_slot(connection: Connection, capacity: int = 1) -> UUID:
    """A slot of tomorrow."""
    slot_id: UUID = await connection.fetchval(
        "INSERT INTO slots (starts_at, ends_at, capacity) VALUES "
        "(now() + interval '24 h', now() + interval '25 h', $1) RETURNING id",
        capacity,
    )
    return slot_id


async def count(connection: Connection, table: str) -> int:
    counted: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    return counted


def goodwill(customer_id: UUID, **changes: Any) -> Grant:
    """Five euros."""
    wanted = Grant(
        grant_id=uuid4(), customer_id=customer_id, amount_cents=500, currency="eur", reason="sorry"
    )
    return replace(wanted, **changes)


# --- the ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        [("grants", -5, "eur", 0)],
        [("customer", 5, "eur", 0)],
        [("grants", -5, "eur", 0), ("customer", 6, "eur", 0)],
        [("grants", -5, "eur", 0), ("customer", 5, "usd", 0)],
        [("grants", -5, "eur", 0), ("customer", 5, "eur", 1)],
    ],
    ids=["half", "other half", "unequal", "two currencies", "two customers"],
)
async def test_a_transaction_that_does_not_balance_is_refused_at_its_commit(
    connection: Connection, lines: list[tuple[str, int, str, int]]
) -> None:
    people = [await add_customer(connection) for _ in range(2)]
    transaction = connection.transaction()
    await transaction.start()
    transaction_id = uuid4()
    for account, cents, currency, who in lines:
        await connection.execute(LINE, transaction_id, people[who], account, cents, currency)

    with pytest.raises(asyncpg.CheckViolationError, match="does not balance") as refused:
        await transaction.commit()

    assert refused.value.constraint_name == "credits_balance"
    assert await count(connection, "credit_entries") == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE credit_entries SET amount_cents = 2 * amount_cents",
        "UPDATE credit_entries SET reason = 'other'",
        "DELETE FROM credit_entries",
    ],
)
async def test_what_was_written_is_neither_changed_nor_deleted(
    connection: Connection, change: str
) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, 500)

    with pytest.raises(asyncpg.RaiseError, match="credit_entries"):
        await connection.execute(change)

    assert await accounts(connection, ann) == {"grants": -500, "customer": 500}


@pytest.mark.parametrize(
    ("source", "target", "cents", "currency"),
    [
        ("customer", "session", 501, "eur"),
        ("customer", "session", 1, "usd"),
        ("session", "customer", 1, "eur"),
        ("earnings", "customer", 1, "eur"),
    ],
)
async def test_no_account_that_people_have_goes_below_zero(
    connection: Connection, source: str, target: str, cents: int, currency: str
) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, 500)

    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await connection.execute(
            "SELECT move_credits($1, $2, $3, $4, $5, $6, 'too much')",
            *(uuid4(), ann, source, target, cents, currency),
        )

    assert refused.value.constraint_name == credits.NEVER_BELOW_ZERO
    assert await accounts(connection, ann) == {"grants": -500, "customer": 500}


async def test_credits_are_set_aside_once_for_a_session(pool: Pool, connection: Connection) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, 3 * CHAT10_CENTS)
    made = await book_with_credits(pool, ann)

    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await credits.set_aside(connection, made.session_id)

    assert refused.value.constraint_name == "credit_entries_set_aside_key"
    await check_ledger(connection)


async def test_who_writes_to_one_ledger_at_once_waits_for_each_other(pool: Pool) -> None:
    async with pool.acquire() as connection:
        ann = await add_customer(connection)

    await asyncio.gather(*(give(pool, ann, cents) for cents in range(1, 31)))

    assert await accounts(pool, ann) == {"grants": -465, "customer": 465}
    assert await pool.fetchval(
        "SELECT array_agg(seq ORDER BY at) = array_agg(seq ORDER BY seq) FROM credit_entries "
        "WHERE account = 'customer'"
    )
    await check_ledger(pool)


# --- goodwill -------------------------------------------------------------------------------------


async def test_a_grant_is_given_once_however_often_it_is_asked_for(
    pool: Pool, connection: Connection
) -> None:
    ann, admin = await add_customer(connection), await add_user(connection, "admin")
    await give(connection, ann, 200)
    wanted = goodwill(ann)

    answers = await asyncio.gather(*(credits.grant(pool, admin, wanted) for _ in range(10)))

    first = answers[0]
    assert answers == [first] * 10
    assert (first.grant_id, first.amount_cents, first.balance_cents) == (wanted.grant_id, 500, 700)
    assert await accounts(connection, ann) == {"grants": -700, "customer": 700}
    lines = await connection.fetch(
        "SELECT DISTINCT created_by, reason FROM credit_entries WHERE transaction_id = $1",
        wanted.grant_id,
    )
    assert [tuple(line) for line in lines] == [(admin, "sorry")]
    await give(connection, ann, 1)
    assert await credits.grant(pool, admin, wanted) == first
    await check_ledger(connection)


@pytest.mark.parametrize(
    "changes", [{"amount_cents": 501}, {"reason": "again"}, {"currency": "usd"}]
)
async def test_a_grant_of_other_content_under_the_same_id_is_refused(
    pool: Pool, connection: Connection, changes: dict[str, Any]
) -> None:
    ann, admin = await add_customer(connection), await add_user(connection, "admin")
    wanted = goodwill(ann)
    await credits.grant(pool, admin, wanted)

    with pytest.raises(Conflict) as refused:
        await credits.grant(pool, admin, replace(wanted, **changes))

    assert refused.value.code == "already_granted"
    assert await accounts(connection, ann) == {"grants": -500, "customer": 500}


async def test_one_grant_for_two_customers_at_once_reaches_one_of_them(
    pool: Pool, connection: Connection
) -> None:
    people = [await add_customer(connection) for _ in range(2)]
    admin = await add_user(connection, "admin")
    wanted = goodwill(people[0])

    told = await asyncio.gather(
        *(credits.grant(pool, admin, replace(wanted, customer_id=who)) for who in people),
        return_exceptions=True,
    )

    (refused,) = [each for each in told if isinstance(each, Conflict)]
    assert refused.code == "already_granted"
    assert await count(connection, "credit_entries") == 2
    await check_ledger(connection)


async def test_the_id_of_another_transaction_is_no_grant(
    pool: Pool, connection: Connection
) -> None:
    ann, admin = await add_customer(connection), await add_user(connection, "admin")
    await give(connection, ann, CHAT10_CENTS)
    await book_with_credits(pool, ann)
    moved = await connection.fetch(
        "SELECT transaction_id AS grant_id, amount_cents, reason FROM credit_entries "
        "WHERE amount_cents > 0 AND account <> 'customer'"
    )
    lines = await count(connection, "credit_entries")

    for row in moved:
        with pytest.raises(Conflict):
            await credits.grant(pool, admin, goodwill(ann, **row))

    assert await count(connection, "credit_entries") == lines


async def test_a_grant_for_nobody_or_in_no_plan_s_currency_is_refused(
    pool: Pool, connection: Connection
) -> None:
    ann, admin = await add_customer(connection), await add_user(connection, "admin")

    with pytest.raises(NotFound):
        await credits.grant(pool, admin, goodwill(uuid4()))
    with pytest.raises(NotFound):
        await credits.grant(pool, admin, goodwill(admin))
    with pytest.raises(BadRequest, match="currency"):
        await credits.grant(pool, admin, goodwill(ann, currency="usd"))

    assert await count(connection, "credit_entries") == 0


# --- statements -----------------------------------------------------------------------------------


async def test_a_statement_tells_balances_and_their_lines_newest_first_in_pages(
    pool: Pool, connection: Connection
) -> None:
    ann, other = await add_customer(connection), await add_customer(connection)
    await give(connection, other, 77)
    await give(connection, ann, 1200)
    await give(connection, ann, 300, "usd")
    made = await book_with_credits(pool, ann)
    await settle(pool, made.request_id, Cancel())

    whole = await credits.statement(pool, ann, limit=20, offset=0)
    parts = [await credits.statement(pool, ann, limit=2, offset=offset) for offset in (0, 2, 4)]

    assert [(each.currency, each.balance_cents) for each in whole.balances] == [
        ("eur", 1200),
        ("usd", 300),
    ]
    assert [
        (line.amount_cents, line.balance_cents, line.currency, line.reason, line.session_id)
        for line in whole.entries
    ] == [
        (1000, 1200, "eur", "cancelled", made.session_id),
        (-1000, 200, "eur", "booked", made.session_id),
        (300, 300, "usd", "goodwill", None),
        (1200, 1200, "eur", "goodwill", None),
    ]
    assert [line.at for line in whole.entries] == sorted(
        (line.at for line in whole.entries), reverse=True
    )
    assert [line for part in parts for line in part.entries] == whole.entries
    assert {part.total for part in [whole, *parts]} == {4}


async def test_who_never_had_credits_has_an_empty_statement(
    pool: Pool, connection: Connection
) -> None:
    ann = await add_customer(connection)

    empty = await credits.statement(pool, ann, limit=20, offset=0)

    assert (empty.balances, empty.entries, empty.total) == ([], [], 0)


# --- booking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_booking_sets_its_price_aside_in_the_transaction_that_makes_it(
    pool: Pool, connection: Connection, at_once: bool
) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, 1200)

    made = await book_with_credits(pool, ann, open_at_once=opener(pool) if at_once else None)

    entry = await read_entry(connection, made.request_id)
    assert entry.paid
    assert (made.status, entry.booking.status) == ("pending", RequestStatus.PENDING)
    assert entry.booking.stage is (Stage.OPEN if at_once else None)
    assert made.entry == (entry if at_once else None)
    assert await accounts(connection, ann) == {"grants": -1200, "customer": 200, "session": 1000}
    lines = ["created", "opened"] if at_once else ["created"]
    assert sorted(await history(connection, made.session_id)) == lines
    await check_ledger(connection)


async def test_a_booking_decided_too_long_ago_is_made_all_the_same_and_taken_once(
    pool: Pool, connection: Connection
) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, 1200)

    async def slowly(prospect: Prospect) -> Opening | None:
        assert prospect.paid
        return await opener(pool)(replace(prospect, now=prospect.now - TTL / 2))

    made = await book_with_credits(pool, ann, open_at_once=slowly)

    assert made.entry is None
    assert await accounts(connection, ann) == {"grants": -1200, "customer": 200, "session": 1000}
    assert await count(connection, "intakes") == 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_free_plan_takes_no_credits(
    pool: Pool, connection: Connection, at_once: bool
) -> None:
    ann, bob = await add_customer(connection), await add_customer(connection)
    await give(connection, ann, 1200)

    of_ann, of_bob = [
        await book_with_credits(pool, who, "free", opener(pool) if at_once else None)
        for who in (ann, bob)
    ]

    assert not (await read_entry(connection, of_ann.request_id)).paid
    assert not (await read_entry(connection, of_bob.request_id)).paid
    assert await accounts(connection, ann) == {"grants": -1200, "customer": 1200}
    assert await accounts(connection, bob) == {}


async def test_whoever_pays_by_card_keeps_her_credits(pool: Pool, connection: Connection) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, 1200)

    for form in (IntakeForm(plan="chat10"), IntakeForm(plan="chat10", payment_method="card")):
        started = await sessions.start_intake(pool, ann, form, TTL, opener(pool))
        assert started.created is None

    assert await accounts(connection, ann) == {"grants": -1200, "customer": 1200}
    assert await count(connection, "sessions") == 0


async def test_a_slot_is_booked_with_credits_and_its_seat_is_taken(
    pool: Pool, connection: Connection
) -> None:
    ann, bob = await add_customer(connection), await add_customer(connection)
    slot_id = await add_slot(connection)
    for who in (ann, bob):
        await give(connection, who, CHAT10_CENTS)

    made = await book_with_credits(pool, ann, open_at_once=opener(pool), slot_id=slot_id)
    with pytest.raises(SlotFull):
        await book_with_credits(pool, bob, slot_id=slot_id)

    assert made.status == "scheduled"
    assert (await accounts(connection, ann))["session"] == CHAT10_CENTS
    assert await accounts(connection, bob) == {"grants": -1000, "customer": 1000}
    assert await connection.fetchval("SELECT taken FROM slots") == 1


@pytest.mark.parametrize("later", [True, False])
async def test_too_few_credits_are_told_with_the_price_and_nothing_is_stored(
    pool: Pool, connection: Connection, later: bool
) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, 999)
    await give(connection, ann, 5000, "usd")
    slot: dict[str, Any] = {"slot_id": await add_slot(connection)} if later else {}

    with pytest.raises(InsufficientCredits) as refused:
        await book_with_credits(pool, ann, open_at_once=opener(pool), **slot)

    assert (refused.value.status, refused.value.code) == (409, "insufficient_credits")
    assert refused.value.fields == {"balance_cents": 999, "price_cents": 1000, "currency": "eur"}
    for table in ("intakes", "sessions", "session_requests", "session_events"):
        assert await count(connection, table) == 0, table
    assert await connection.fetchval("SELECT taken FROM slots") in (0, None)


async def test_what_else_is_wrong_is_told_before_too_few_credits(
    pool: Pool, connection: Connection
) -> None:
    ann = await add_customer(connection)

    with pytest.raises(BadRequest, match="plan"):
        await book_with_credits(pool, ann, "no-such-plan")
    with pytest.raises(BadRequest, match="slot_id"):
        await book_with_credits(pool, ann, slot_id=uuid4())
    await book_with_credits(pool, ann, "free")
    with pytest.raises(ActiveSessionExists):
        await book_with_credits(pool, ann)


@pytest.mark.parametrize("left", [0, 400])
async def test_credits_that_are_spent_while_a_booking_is_decided_are_missed_at_its_commit(
    pool: Pool, connection: Connection, left: int
) -> None:
    """Between the read and the write of one booking another one, for later, takes them."""
    ann, slot_id = await add_customer(connection), await add_slot(connection)
    await give(connection, ann, VIDEO15_CENTS + left)

    async def meanwhile(prospect: Prospect) -> Opening | None:
        await book_with_credits(pool, ann, "video15", slot_id=slot_id)
        return await opener(pool)(prospect)

    with pytest.raises(InsufficientCredits) as refused:
        await book_with_credits(pool, ann, open_at_once=meanwhile)

    assert refused.value.fields["balance_cents"] == left
    assert (await accounts(connection, ann))["session"] == VIDEO15_CENTS
    assert await count(connection, "intakes") == await count(connection, "sessions") == 1
    await check_ledger(connection)


# --- at once --------------------------------------------------------------------------------------


async def both_at_once(
    pool: Pool, customer_id: UUID, *forms: dict[str, Any]
) -> list[Created | DispatchError]:
    """Bookings that have all passed their checks and meet at the customer's credits."""
    async with pool.acquire() as holder, holder.transaction():
        await holder.execute("SELECT FROM customers WHERE id = $1 FOR NO KEY UPDATE", customer_id)
        tasks = [asyncio.create_task(_booked(pool, customer_id, form)) for form in forms]
        await until_blocked(pool, len(forms))
    return list(await asyncio.gather(*tasks))


async def _booked(pool: Pool, customer_id: UUID, form: dict[str, Any]) -> Created | DispatchError:
    try:
        return await book_with_credits(pool, customer_id, **form)
    except DispatchError as refused:
        return refused


@pytest.mark.parametrize("at_once", [True, False])
async def test_two_bookings_for_now_at_once_with_credits_for_one_are_one_session_and_one_409(
    pool: Pool, connection: Connection, at_once: bool
) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, CHAT10_CENTS)
    form = {"open_at_once": opener(pool) if at_once else None}

    told = await both_at_once(pool, ann, form, form)

    (refused,) = [each for each in told if isinstance(each, DispatchError)]
    (made,) = [each for each in told if isinstance(each, Created)]
    assert (refused.status, refused.code) == (409, "active_session_exists")
    assert isinstance(refused, ActiveSessionExists)
    assert refused.fields["activeSessionId"] == str(made.session_id)
    assert await count(connection, "intakes") == await count(connection, "sessions") == 1
    assert await accounts(connection, ann) == {"grants": -1000, "customer": 0, "session": 1000}


async def test_two_bookings_for_later_at_once_with_credits_for_one_are_one_session_and_one_409(
    pool: Pool, connection: Connection
) -> None:
    ann = await add_customer(connection)
    await give(connection, ann, CHAT10_CENTS)
    forms = [{"slot_id": await add_slot(connection)} for _ in range(2)]

    told = await both_at_once(pool, ann, *forms)

    (refused,) = [each for each in told if isinstance(each, DispatchError)]
    assert isinstance(refused, InsufficientCredits)
    assert refused.fields["balance_cents"] == 0
    assert await count(connection, "intakes") == await count(connection, "sessions") == 1
    assert await connection.fetchval("SELECT sum(taken) FROM slots") == 1
    assert await accounts(connection, ann) == {"grants": -1000, "customer": 0, "session": 1000}
    await check_ledger(connection)


async def test_a_hundred_bookings_at_once_spend_what_there_is_and_no_cent_more(
    pool: Pool, connection: Connection
) -> None:
    people = [await add_customer(connection) for _ in range(5)]
    slots = [await add_slot(connection, capacity=100) for _ in range(4)]
    for who in people:
        await give(connection, who, 7 * CHAT10_CENTS + 999)

    told = await asyncio.gather(
        *(
            _booked(pool, who, {"slot_id": slots[number % 4]})
            for number in range(20)
            for who in people
        )
    )

    refused = [each for each in told if isinstance(each, DispatchError)]
    assert {each.code for each in refused} == {"insufficient_credits"}
    assert len(told) - len(refused) == 35
    for who in people:
        assert await accounts(connection, who) == {
            "grants": -7999,
            "customer": 999,
            "session": 7000,
        }
    assert await connection.fetchval("SELECT sum(taken) FROM slots") == 35
    await check_ledger(connection)
