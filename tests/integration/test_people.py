"""Logging in and out, signing up, and whether a token still counts, against a real Postgres."""

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch import people
from dispatch.auth import Authenticator, issue_token, verify_token
from dispatch.config import Config
from dispatch.core.types import Role
from dispatch.database import Pool, close_pool, open_pool
from dispatch.errors import (
    BadRequest,
    Conflict,
    DispatchError,
    NotAuthenticated,
    RateLimited,
    Unavailable,
)
from tests.support import JWT_SECRET, eventually

EMAIL = "ada@drivers.example"
PASSWORD = "correct horse"


@pytest.fixture
async def pool(config: Config) -> AsyncIterator[Pool]:
    pool = await open_pool(config.database_url)
    yield pool
    await close_pool(pool)


@pytest.fixture
async def ada(pool: Pool) -> UUID:
    """A customer who signed up."""
    return await people.sign_up_customer(pool, "Ada Byron", EMAIL, PASSWORD)


@pytest.fixture
async def away() -> AsyncIterator[Pool]:
    """A pool for a port where nobody listens; it connects when it is first used."""
    with socket.socket() as bound:  # bound and never listening: nobody else can take it
        bound.bind(("127.0.0.1", 0))
        url = f"postgresql://nobody@127.0.0.1:{bound.getsockname()[1]}/nothing"
        pool = await asyncpg.create_pool(url, min_size=0)
        yield pool
        await close_pool(pool)


def unlimited() -> people.Rates:
    return people.Rates(0)


async def log_in(pool: Pool, email: str = EMAIL, password: str = PASSWORD) -> people.LoggedIn:
    return await people.log_in(pool, JWT_SECRET, unlimited(), email, password)


async def refusal_of(pool: Pool, email: str, password: str) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        await log_in(pool, email, password)
    return refused.value.message


# --- signing up and logging in --------------------------------------------------------------------


async def test_who_signs_up_can_log_in(pool: Pool) -> None:
    ada = await people.sign_up_customer(pool, "  Ada Byron ", " Ada@Drivers.Example ", PASSWORD)

    logged_in = await log_in(pool, "ADA@drivers.example", PASSWORD)

    assert (logged_in.user_id, logged_in.role) == (ada, Role.CUSTOMER)
    identity = await Authenticator(JWT_SECRET, pool).authenticate(logged_in.token)
    assert (identity.user_id, identity.role, identity.epoch) == (ada, Role.CUSTOMER, 0)
    row = await pool.fetchrow("SELECT u.* FROM users u JOIN customers USING (id)")
    assert row is not None
    assert (row["name"], row["email"]) == ("Ada Byron", EMAIL)
    assert PASSWORD not in str(dict(row))


async def test_an_admin_logs_in_as_one_and_is_no_customer(pool: Pool) -> None:
    grace = await people.create_admin(pool, "grace@dispatch.example", "Grace", PASSWORD)

    logged_in = await log_in(pool, "grace@dispatch.example")

    assert (logged_in.user_id, logged_in.role) == (grace, Role.ADMIN)
    assert await pool.fetchval("SELECT count(*) FROM customers") == 0


async def test_a_workshop_member_logs_in_as_the_workshop(pool: Pool, ada: UUID) -> None:
    await pool.execute("UPDATE users SET role = 'workshop'")
    assert (await log_in(pool)).role is Role.WORKSHOP


async def test_an_email_is_taken_once_however_it_is_spelt(pool: Pool, ada: UUID) -> None:
    with pytest.raises(Conflict) as refused:
        await people.sign_up_customer(pool, "Another Ada", EMAIL.upper(), "another password")

    assert refused.value.code == "email_taken"
    assert (await log_in(pool)).user_id == ada
    assert await pool.fetchval("SELECT count(*) FROM users") == 1


async def test_of_ten_who_sign_up_with_one_email_at_once_one_does(pool: Pool) -> None:
    attempts = (people.sign_up_customer(pool, "Ada", EMAIL, PASSWORD) for _ in range(10))
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)

    assert sum(isinstance(outcome, UUID) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 9


async def test_a_new_mechanic_logs_in_and_waits_for_her_approval(pool: Pool) -> None:
    maya = await people.sign_up_mechanic(pool, " Maya Okafor ", EMAIL.upper(), PASSWORD)

    logged_in = await log_in(pool)

    assert (logged_in.user_id, logged_in.role) == (maya, Role.MECHANIC)
    row = await pool.fetchrow("SELECT * FROM mechanics")
    assert row is not None
    assert (row["account_type"], row["application_status"]) == ("independent", "pending")
    assert row["workshop_id"] is None
    assert not await pool.fetchval("SELECT approved FROM candidates WHERE mechanic_id = $1", maya)


async def test_a_new_workshop_waits_and_its_member_logs_in_for_it(pool: Pool) -> None:
    new = await people.sign_up_workshop(
        pool, "Olu", EMAIL, PASSWORD, " Harbour Motors ", "Office@Harbour.Example"
    )

    logged_in = await log_in(pool)

    assert (logged_in.user_id, logged_in.role) == (new.user_id, Role.WORKSHOP)
    row = await pool.fetchrow(
        "SELECT o.* FROM organizations o JOIN organization_members m ON o.id = m.organization_id "
        "WHERE m.user_id = $1",
        new.user_id,
    )
    assert row is not None
    assert (row["id"], row["status"]) == (new.workshop_id, "pending")
    assert (row["name"], row["email"]) == ("Harbour Motors", "office@harbour.example")


async def test_a_workshop_without_a_name_of_its_own_has_its_members(pool: Pool) -> None:
    await people.sign_up_workshop(pool, "Olu", EMAIL, PASSWORD)

    row = await pool.fetchrow("SELECT name, email FROM organizations")
    assert row is not None
    assert tuple(row) == ("Olu", EMAIL)


async def test_an_email_is_taken_across_all_kinds_of_people(pool: Pool, ada: UUID) -> None:
    for again in (people.sign_up_customer, people.sign_up_mechanic, people.sign_up_workshop):
        with pytest.raises(Conflict) as refused:
            await again(pool, "Ada", EMAIL, PASSWORD)
        assert refused.value.code == "email_taken"

    for table in ("mechanics", "organizations", "organization_members"):
        assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("workshop_name", "\n"), ("workshop_name", "x" * 201), ("workshop_email", "nobody")],
)
async def test_what_a_workshop_cannot_be_called_is_refused_by_its_name(
    pool: Pool, field: str, value: str
) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: "):
        await people.sign_up_workshop(pool, "Olu", EMAIL, PASSWORD, **{field: value})

    assert await pool.fetchval("SELECT count(*) FROM users") == 0


@pytest.mark.parametrize(
    ("field", "name", "email", "password"),
    [
        ("name", "", EMAIL, PASSWORD),
        ("name", " \t ", EMAIL, PASSWORD),
        ("name", "x" * 201, EMAIL, PASSWORD),
        ("name", "Ada\0Byron", EMAIL, PASSWORD),
        ("name", "Ada\nByron", EMAIL, PASSWORD),
        ("name", "Ada\ud800", EMAIL, PASSWORD),
        ("email", "Ada", "", PASSWORD),
        ("email", "Ada", "ada", PASSWORD),
        ("email", "Ada", "@drivers.example", PASSWORD),
        ("email", "Ada", "ada@", PASSWORD),
        ("email", "Ada", "ada@b@drivers.example", PASSWORD),
        ("email", "Ada", "ada byron@drivers.example", PASSWORD),
        ("email", "Ada", "ada@drivers.example\0", PASSWORD),
        ("email", "Ada", "äda@drivers.example", PASSWORD),
        ("email", "Ada", "x" * 250 + "@d.example", PASSWORD),
        ("password", "Ada", EMAIL, "1234567"),
        ("password", "Ada", EMAIL, "x" * 201),
        ("password", "Ada", EMAIL, "password\0"),
        ("password", "Ada", EMAIL, "password\ud800"),
    ],
)
async def test_what_cannot_be_used_is_refused_by_its_name(
    pool: Pool, field: str, name: str, email: str, password: str
) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: ") as refused:
        await people.sign_up_customer(pool, name, email, password)

    assert field != "password" or password not in refused.value.message
    assert await pool.fetchval("SELECT count(*) FROM users") == 0


async def test_the_longest_and_strangest_values_that_are_allowed_are_kept(pool: Pool) -> None:
    name = "Zoë 'Robert'); DROP TABLE users; -- <b>" + "x" * 161
    email = 'o\'hara+%_"x"@' + "d" * 241
    password = "\N{SNOWMAN}" * 200

    ada = await people.sign_up_customer(pool, name, email, password)

    assert (await log_in(pool, email, password)).user_id == ada
    assert await pool.fetchval("SELECT name FROM users") == name


async def test_a_refused_log_in_says_nothing_about_why(pool: Pool, ada: UUID) -> None:
    bob = await people.sign_up_customer(pool, "Bob", "bob@drivers.example", PASSWORD)
    await pool.execute("UPDATE users SET disabled_at = now() WHERE id = $1", bob)
    eve = await people.sign_up_customer(pool, "Eve", "eve@drivers.example", PASSWORD)
    await pool.execute("UPDATE users SET password_hash = NULL WHERE id = $1", eve)

    refusals = {
        await refusal_of(pool, EMAIL, "wrong password"),
        await refusal_of(pool, EMAIL, ""),
        await refusal_of(pool, "unknown@drivers.example", PASSWORD),
        await refusal_of(pool, "bob@drivers.example", PASSWORD),
        await refusal_of(pool, "eve@drivers.example", PASSWORD),
    }

    assert len(refusals) == 1


async def test_log_ins_for_one_email_are_limited_and_others_are_not(pool: Pool, ada: UUID) -> None:
    rate = people.Rates(5)
    for _ in range(5):
        with pytest.raises(NotAuthenticated):
            await people.log_in(pool, JWT_SECRET, rate, EMAIL, "a guess")

    with pytest.raises(RateLimited):
        await people.log_in(pool, JWT_SECRET, rate, EMAIL.upper(), PASSWORD)
    with pytest.raises(NotAuthenticated):
        await people.log_in(pool, JWT_SECRET, rate, "bob@drivers.example", PASSWORD)


async def test_who_tries_a_password_on_everybody_is_limited_by_address(pool: Pool) -> None:
    rates = people.Rates(0.5)  # ten from an address

    async def attempt(number: int, address: str | None) -> None:
        email = f"{number}@drivers.example"
        await people.log_in(pool, JWT_SECRET, rates, email, "a guess", address)

    for number in range(10):
        with pytest.raises(NotAuthenticated):
            await attempt(number, "192.0.2.1")
    with pytest.raises(RateLimited):
        await attempt(10, "192.0.2.1")
    for address in ("192.0.2.2", None):
        with pytest.raises(NotAuthenticated):
            await attempt(11 if address else 12, address)


def test_sign_ups_are_limited_by_address() -> None:
    rates = people.Rates(1)
    for _ in range(people.ADDRESS_SIGNUPS):
        rates.sign_up("192.0.2.1")

    with pytest.raises(RateLimited):
        rates.sign_up("192.0.2.1")
    rates.sign_up("192.0.2.2")
    for _ in range(100):
        rates.sign_up(None)


def test_the_limit_gives_one_log_in_back_each_fifth_of_a_minute() -> None:
    rate = people.rate_of(5)
    assert [rate.take(EMAIL, 1000.3) for _ in range(6)] == [True] * 5 + [False]

    assert not rate.take(EMAIL, 1012.2)
    assert rate.take(EMAIL, 1012.4)
    assert not rate.take(EMAIL, 1012.5)
    assert [rate.take(EMAIL, 1080.0) for _ in range(6)] == [True] * 5 + [False]


# --- whether a token still counts -----------------------------------------------------------------


async def test_logging_out_revokes_every_token_of_that_user_only(pool: Pool, ada: UUID) -> None:
    bob = await people.sign_up_customer(pool, "Bob", "bob@drivers.example", PASSWORD)
    authenticator = Authenticator(JWT_SECRET, pool)
    phone, laptop = await log_in(pool), await log_in(pool)
    bobs = await log_in(pool, "bob@drivers.example")

    epoch = await people.log_out(pool, ada)

    for token in (phone.token, laptop.token):
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(token)
    assert (await authenticator.authenticate(bobs.token)).user_id == bob
    again = await authenticator.authenticate((await log_in(pool)).token)
    assert (epoch, again.epoch) == (1, 1)


async def test_a_refreshed_token_lasts_longer_and_is_revoked_with_the_first(
    pool: Pool, ada: UUID
) -> None:
    authenticator = Authenticator(JWT_SECRET, pool)
    first = await authenticator.authenticate(issue_token(JWT_SECRET, ada, "customer", 0, 60))

    second = people.refresh(JWT_SECRET, first)

    identity = await authenticator.authenticate(second.token)
    assert (identity.user_id, identity.role) == (ada, Role.CUSTOMER)
    assert identity.expires_at > first.expires_at
    await people.log_out(pool, ada)
    with pytest.raises(NotAuthenticated):
        await authenticator.authenticate(second.token)


async def test_in_another_role_the_tokens_of_the_one_before_are_void_for_good(
    pool: Pool, ada: UUID
) -> None:
    token = (await log_in(pool)).token
    for role in ("workshop", "customer"):
        await pool.execute("UPDATE users SET role = $1", role)

    with pytest.raises(NotAuthenticated):
        await Authenticator(JWT_SECRET, pool).authenticate(token)
    since = datetime(2000, 1, 1, tzinfo=UTC)
    assert await people.revoked_since(pool, since) == [(ada, 2)]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET disabled_at = now()",
        "UPDATE users SET role = 'admin'",
        "UPDATE users SET token_epoch = 1",
        "DELETE FROM customers; DELETE FROM users",
    ],
)
async def test_a_token_dies_with_what_it_says(pool: Pool, ada: UUID, change: str) -> None:
    authenticator = Authenticator(JWT_SECRET, pool)
    token = (await log_in(pool)).token
    assert (await authenticator.authenticate(token)).user_id == ada

    await pool.execute(change)

    with pytest.raises(NotAuthenticated):
        await authenticator.authenticate(token)


async def test_the_role_comes_from_the_row_and_never_from_the_claim(pool: Pool, ada: UUID) -> None:
    authenticator = Authenticator(JWT_SECRET, pool)
    for role in ("admin", "mechanic", "workshop"):
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(issue_token(JWT_SECRET, ada, role, 0, 60))


async def test_a_forged_token_costs_no_query(away: Pool) -> None:
    forged = issue_token("another-secret-of-more-than-32-bytes", uuid4(), "admin", 0, 60)
    with pytest.raises(NotAuthenticated):
        await Authenticator(JWT_SECRET, away).authenticate(forged)


async def test_thousands_who_connect_at_once_share_a_query(pool: Pool) -> None:
    ids = await people_of(pool, 2000)
    sent = await count_queries(pool)
    authenticator = Authenticator(JWT_SECRET, pool)
    tokens = [issue_token(JWT_SECRET, user_id, "customer", 0, 60) for user_id in ids]
    unknown = issue_token(JWT_SECRET, uuid4(), "customer", 0, 60)

    outcomes = await asyncio.gather(
        *(authenticator.authenticate(token) for token in [*tokens, *tokens, unknown]),
        return_exceptions=True,
    )

    assert [getattr(outcome, "user_id", None) for outcome in outcomes] == [*ids, *ids, None]
    assert isinstance(outcomes[-1], NotAuthenticated)
    assert sum(sent) == 1


async def test_who_comes_during_a_query_is_judged_by_the_next_one(config: Config) -> None:
    pool = await open_pool(config.database_url, size=2)
    first, *others = await people_of(pool, 50)
    sent = await count_queries(pool)
    authenticator = Authenticator(JWT_SECRET, pool)

    def arrive(user_id: UUID) -> asyncio.Task[object]:
        token = issue_token(JWT_SECRET, user_id, "customer", 0, 60)
        return asyncio.create_task(authenticator.authenticate(token))

    holder = await asyncpg.connect(config.database_url)
    async with holder.transaction():
        await holder.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        early = arrive(first)
        await eventually(
            lambda: holder.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        )
        late = [arrive(user_id) for user_id in (first, *others)]
        impatient = late.pop()
        await asyncio.sleep(0)
        impatient.cancel()
        await holder.execute("UPDATE users SET token_epoch = 1 WHERE id = $1", others[0])

    judged = await asyncio.gather(early, *late, return_exceptions=True)
    await holder.close()
    await close_pool(pool)
    assert sum(sent) == 2
    assert impatient.cancelled()
    assert [isinstance(outcome, NotAuthenticated) for outcome in judged[:4]] == [
        False,  # the same row, asked for before and during the query
        False,
        True,  # revoked in between
        False,
    ]


async def people_of(pool: Pool, how_many: int) -> list[UUID]:
    rows = await pool.fetch(
        """INSERT INTO users (email, name, role)
           SELECT n || '@crowd.example', 'Somebody', 'customer' FROM generate_series(1, $1) n
           RETURNING id""",
        how_many,
    )
    return [row["id"] for row in rows]


async def count_queries(pool: Pool) -> list[int]:
    """A list that grows by 1 with every query for accounts that the pool really sends."""
    sent: list[int] = []

    def note(query: asyncpg.connection.LoggedQuery) -> None:
        if "token_epoch" in query.query and "revoked_at" not in query.query:  # that is the node's
            sent.append(1)

    connections = [await pool.acquire() for _ in range(pool.get_max_size())]
    for connection in connections:
        connection.add_query_logger(note)
        await pool.release(connection)
    return sent


# --- what others see ------------------------------------------------------------------------------


async def test_a_mechanics_status_is_what_routing_would_say(pool: Pool, ada: UUID) -> None:
    seen_at = datetime(2026, 11, 20, 12, tzinfo=UTC)
    await pool.execute("UPDATE users SET role = 'mechanic'")
    await pool.execute(
        "INSERT INTO mechanics (id, application_status, last_seen) VALUES ($1, 'approved', $2)",
        ada,
        seen_at,
    )
    found = await people.mechanic_statuses(pool, [ada, uuid4()])
    assert found == {ada: people.MechanicFacts("Ada Byron", available=True, last_seen=seen_at)}

    for change in (
        "UPDATE mechanics SET available = false",
        "UPDATE mechanics SET available = true, application_status = 'rejected'",
        """UPDATE mechanics SET application_status = 'approved';
           UPDATE users SET disabled_at = now()""",
    ):
        await pool.execute(change)
        found = await people.mechanic_statuses(pool, [ada])
        assert found == {ada: people.MechanicFacts("Ada Byron", available=False, last_seen=seen_at)}


async def test_a_mechanic_who_is_gone_or_never_was_has_no_status(pool: Pool, ada: UUID) -> None:
    assert await people.mechanic_statuses(pool, [ada]) == {}, "a customer is no mechanic"
    await pool.execute("INSERT INTO mechanics (id, deleted_at) VALUES ($1, now())", ada)

    assert await people.mechanic_statuses(pool, [ada, uuid4()]) == {}


async def test_without_postgres_everything_is_unavailable_and_nothing_is_let_in(away: Pool) -> None:
    token = issue_token(JWT_SECRET, uuid4(), "customer", 0, 60)
    assert verify_token(JWT_SECRET, token)
    for attempt in (
        Authenticator(JWT_SECRET, away).authenticate(token),
        log_in(away),
        people.log_out(away, uuid4()),
        people.sign_up_customer(away, "Ada", EMAIL, PASSWORD),
        people.mechanic_statuses(away, [uuid4()]),
    ):
        with pytest.raises(DispatchError) as refused:
            await attempt
        assert isinstance(refused.value, Unavailable)
