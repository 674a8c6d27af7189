"""Money is divided by the SQL as the core divides it, and each session's once (M1, M2, M3).

Property tests: amounts and fees in batches, and businesses of random sessions whose refunds come in
any order, before and after the end.
"""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatch.core.money import Split, give_back, split
from dispatch.database import Connection, Pool
from tests.integration import served
from tests.integration.rows import add_mechanic, add_workshop, rolled_back
from tests.integration.served import Row, Sold, earnings_of

WORKSHOPS = [None, uuid4(), uuid4()]

amounts = st.integers(0, 10**8)
fees = st.integers(0, 10_000)
places = st.sampled_from(WORKSHOPS)
questions = st.lists(st.tuples(amounts, places, places, fees), min_size=1, max_size=50)


def database_settings(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        # The database is the ground; each example leaves it as it found it.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@given(asked=questions)
@database_settings(200)
async def test_the_sql_divides_any_amount_at_any_fee_as_the_core_does(
    connection: Connection, asked: list[tuple[int, UUID | None, UUID | None, int]]
) -> None:
    gross, serving, preferred, fee = (list(column) for column in zip(*asked, strict=True))

    rows = await connection.fetch(
        "SELECT s.* FROM unnest($1::int[], $2::uuid[], $3::uuid[], $4::int[])"
        " WITH ORDINALITY AS q (gross, serving, preferred, fee, nth)"
        " CROSS JOIN calculate_revenue_split(gross, serving, preferred, fee / 100.0) s"
        " ORDER BY nth",
        gross,
        serving,
        preferred,
        fee,
    )

    assert [Split(**row) for row in rows] == [divide(*question) for question in asked]


def divide(gross: int, serving: UUID | None, preferred: UUID | None, fee: int) -> Split:
    return split(
        gross, serving_workshop_id=serving, preferred_workshop_id=preferred, fee_basis_points=fee
    )


@given(asked=st.lists(st.tuples(st.integers(1, 2**31 - 1), fees, st.data()), max_size=20))
@database_settings(200)
async def test_the_sql_divides_what_goes_back_as_the_core_does(
    connection: Connection, asked: list[tuple[int, int, st.DataObject]]
) -> None:
    for gross, fee, data in asked:
        returned = data.draw(st.integers(0, gross))
        parts = divide(gross, None, WORKSHOPS[1], fee)
        expected = give_back(parts, returned)

        row = await connection.fetchrow(
            "SELECT returned_share($1, $3, $4, true), returned_share($2, $3, $4, false)",
            parts.mechanic_net_cents,
            parts.referral_cents,
            gross,
            returned,
        )

        assert row is not None
        assert tuple(row) == (expected.mechanic_net_cents, expected.referral_cents)


# --- what sessions earn ---------------------------------------------------------------------------


class Town(msgspec.Struct, frozen=True):
    """Two workshops with a mechanic each, and one who is independent."""

    workshops: list[UUID]
    mechanics: list[UUID]


class Story(msgspec.Struct, frozen=True):
    """One session that could be: by whom it is served, and what goes back when, in all, as seen.

    `server` is the number of a workshop, or 2 for the independent mechanic.
    """

    gross: int
    named: int | None
    server: int
    with_credits: bool
    before: list[int]
    after: list[int]


@pytest.fixture
async def town(connection: Connection) -> Town:
    workshops = [await add_workshop(connection) for _ in range(2)]
    mechanics = [await add_mechanic(connection, workshop) for workshop in [*workshops, None]]
    return Town(workshops, mechanics)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    gross = draw(st.integers(1, 60) | st.integers(1, 10**6))
    with_credits = draw(st.sampled_from([False, False, True]))
    readings = st.lists(st.integers(0, gross), max_size=0 if with_credits else 3)
    return Story(
        gross=gross,
        named=draw(st.sampled_from([None, 0, 1])),
        server=draw(st.integers(0, 2)),
        with_credits=with_credits,
        before=draw(readings),
        after=draw(readings),
    )


async def play(connection: Connection, town: Town, story: Story) -> Sold:
    """It happens; every step that has happened once is then done again."""
    named = None if story.named is None else town.workshops[story.named]
    sell = served.sell_for_credits if story.with_credits else served.sell
    sold = await sell(connection, story.gross, workshop_id=named)
    for cents in story.before:
        await served.refunded(connection, sold, cents)
    await served.serve(connection, sold, town.mechanics[story.server])
    for cents in story.after:
        await served.refunded(connection, sold, cents)
    for again in ("record_session_earnings", "take_back_earnings"):
        await connection.execute(f"SELECT {again}($1)", sold.session_id)
    return sold


def expected_rows(town: Town, story: Story, fee: int) -> tuple[Row | None, Row | None]:
    """The two rows of a session, without what the database makes up."""
    serving = town.workshops[story.server] if story.server < 2 else None
    named = None if story.named is None else town.workshops[story.named]
    parts = divide(story.gross, serving, named, fee)
    back = give_back(parts, most_returned(story))
    both = {
        "mechanic_id": town.mechanics[story.server],
        "currency": "eur",
        "gross_amount_cents": story.gross,
        "platform_fee_cents": parts.platform_fee_cents,
        "mechanic_net_cents": parts.mechanic_net_cents,
    }
    workshop: Row | None = None
    if named or serving:
        workshop = both | {
            "workshop_id": named or serving,
            "is_referral": named not in (None, serving),
            "workshop_net_cents": parts.referral_cents + parts.workshop_net_cents,
            "reversed_cents": back.referral_cents + back.workshop_net_cents,
        }
    mechanic: Row | None = None
    if serving is None or named not in (None, serving):
        mechanic = both | {
            "workshop_fee_cents": parts.referral_cents,
            "reversed_cents": back.mechanic_net_cents,
        }
    return workshop, mechanic


def most_returned(story: Story) -> int:
    """Earnings are not given again: the last reading before the end counts, and any after it."""
    return max([*story.before[-1:], *story.after], default=0)


@given(
    told=st.lists(stories(), min_size=1, max_size=4),
    custom=st.tuples(fees, st.booleans()),
)
@database_settings(150)
async def test_each_session_earns_once_what_the_core_says_and_refunds_only_take(
    connection: Connection, town: Town, told: list[Story], custom: tuple[int, bool]
) -> None:
    """The first workshop has a fee of its own, which counts where that is agreed."""
    fee, is_agreed = custom
    async with rolled_back(connection):
        await connection.execute(
            "UPDATE organizations SET platform_fee_percentage = $2 / 100.0,"
            " custom_fee_agreement = $3 WHERE id = $1",
            town.workshops[0],
            fee,
            is_agreed,
        )
        for story in told:
            sold = await play(connection, town, story)

            rows = await earnings_of(connection, sold.session_id)

            rate = fee if is_agreed and story.server == 0 else 2000
            expected = expected_rows(town, story, rate)
            assert [row and only(row, like) for row, like in zip(rows, expected, strict=True)] == (
                list(expected)
            )
            kept = sum(
                row[net] - row["reversed_cents"]
                for row, net in zip(rows, ("workshop_net_cents", "mechanic_net_cents"), strict=True)
                if row
            )
            assert 0 <= kept <= story.gross - most_returned(story)


def only(row: Row, like: Row | None) -> Row:
    return row if like is None else {name: row[name] for name in like}


async def test_free_sessions_earn_nothing_and_only_completed_ones_earn(
    connection: Connection, town: Town
) -> None:
    free = await served.sell(connection, 0)
    await served.serve(connection, free, town.mechanics[0])
    open_still = await served.sell(connection, 1000)

    with pytest.raises(asyncpg.RaiseError, match="is pending"):
        await connection.execute("SELECT record_session_earnings($1)", open_still.session_id)

    assert await earnings_of(connection, free.session_id) == (None, None)
    assert await earnings_of(connection, open_still.session_id) == (None, None)


async def test_two_who_record_and_two_who_take_back_at_once_are_as_one(pool: Pool) -> None:
    async with pool.acquire() as connection:
        workshop_id = await add_workshop(connection)
        mechanic_id = await add_mechanic(connection, workshop_id)
        sold = await served.sell(connection, 1000)
        await served.serve(connection, sold, mechanic_id)
        payout_id = await served.pay_out(connection, workshop_id)
        await connection.execute(
            "UPDATE payments SET refunded_cents = 250 WHERE id = $1", sold.payment_id
        )

    async def take(function: str) -> None:
        await pool.execute(f"SELECT {function}($1)", sold.session_id)

    names = ["record_session_earnings", "take_back_earnings"] * 4
    await asyncio.gather(*(take(name) for name in names))

    async with pool.acquire() as connection:
        row, _ = await earnings_of(connection, sold.session_id)
    assert row is not None
    assert (row["workshop_net_cents"], row["reversed_cents"]) == (800, 200)
    reversals = await pool.fetch("SELECT payout_id, amount_cents, status FROM payout_reversals")
    assert [tuple(each) for each in reversals] == [(payout_id, 200, "pending")]
