"""Invites of mechanics (P3): one use, in time, for one e-mail, and no token stored anywhere."""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch import invites, people
from dispatch.database import Connection, Pool
from dispatch.errors import (
    BadRequest,
    Conflict,
    DispatchError,
    Forbidden,
    NotFound,
    RateLimited,
    Refused,
)
from dispatch.invites import token_of
from dispatch.mail import Mail, Mailer
from tests.conftest import MakeConfig
from tests.integration.living import living_node, pass_time
from tests.integration.mail_server import Mailbox, mail_server
from tests.integration.rows import add_user, add_workshop
from tests.support import JWT_SECRET, eventually

EMAIL = "maya@mechanics.example"
PASSWORD = "correct horse"
DAY = 24 * 3600.0


class Letters(Mailer):
    """A mailer that hands over what it would send, for tests of what stands in a mail."""

    def __init__(self) -> None:
        super().__init__("smtp://localhost?from=dispatch@localhost")
        self.sent: list[Mail] = []

    async def send(self, mail: Mail) -> None:
        self.sent.append(mail)


@pytest.fixture
async def workshop(connection: Connection) -> UUID:
    return await add_workshop(connection)


@pytest.fixture
async def member(connection: Connection, workshop: UUID) -> UUID:
    return await add_member(connection, workshop)


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    async with mail_server() as mailbox:
        yield mailbox


async def add_member(connection: Connection, workshop_id: UUID) -> UUID:
    member_id = await add_user(connection, "workshop")
    await connection.execute(
        "INSERT INTO organization_members VALUES ($1, $2)", workshop_id, member_id
    )
    return member_id


async def invited(pool: Pool, member_id: UUID, email: str = EMAIL) -> str:
    """The token of a new invite."""
    made = await invites.invite(pool, JWT_SECRET, member_id, email)
    return token_of(JWT_SECRET, made.invite_id)


async def sign_up(pool: Pool, token: str, email: str = EMAIL) -> UUID:
    return await invites.sign_up(pool, token, "Maya Okafor", email, PASSWORD)


async def refused(pool: Pool, token: str, email: str = EMAIL) -> DispatchError:
    """Why nobody could sign up; and nobody did."""
    before = await pool.fetchval("SELECT count(*) FROM users")
    with pytest.raises(DispatchError) as refusal:
        await sign_up(pool, token, email)
    assert await pool.fetchval("SELECT count(*) FROM users") == before
    return refusal.value


async def mechanic(pool: Pool, mechanic_id: UUID) -> asyncpg.Record:
    row = await pool.fetchrow("SELECT * FROM mechanics WHERE id = $1", mechanic_id)
    assert row is not None
    return row


# --- the ordinary way -----------------------------------------------------------------------------


async def test_who_signs_up_through_an_invite_is_of_the_workshop_and_approved(
    pool: Pool, workshop: UUID, member: UUID
) -> None:
    token = await invited(pool, member, " Maya@Mechanics.Example ")

    maya = await sign_up(pool, token)

    row = await mechanic(pool, maya)
    assert (row["workshop_id"], row["account_type"]) == (workshop, "workshop")
    assert (row["application_status"], row["auto_approved"]) == ("approved", True)
    assert row["invited_by"] == member
    assert row["invite_accepted_at"] is not None
    assert await pool.fetchval("SELECT used_by FROM workshop_invites") == maya
    logged_in = await people.log_in(pool, JWT_SECRET, people.Rates(0), EMAIL, PASSWORD)
    assert (logged_in.user_id, logged_in.role) == (maya, "mechanic")


async def test_an_invite_lasts_a_week_and_says_so(pool: Pool, member: UUID) -> None:
    made = await invites.invite(pool, JWT_SECRET, member, EMAIL, "Maya")

    days = await pool.fetchval("SELECT expires_at - created_at FROM workshop_invites")
    assert days == invites.TTL
    workshop_id = await pool.fetchval("SELECT workshop_id FROM workshop_invites")
    (shown,) = await invites.of_workshop(pool, workshop_id)
    assert (shown.invite_id, shown.email, shown.name) == (made.invite_id, EMAIL, "Maya")
    assert shown.expires_at == made.expires_at


# --- security 15: single use, expiring, unguessable, only hashes stored ---------------------------


async def test_of_ten_who_use_one_invite_at_once_one_signs_up(pool: Pool, member: UUID) -> None:
    token = await invited(pool, member)

    outcomes = await asyncio.gather(
        *(sign_up(pool, token) for _ in range(10)), return_exceptions=True
    )

    (maya,) = [outcome for outcome in outcomes if isinstance(outcome, UUID)]
    assert sum(isinstance(outcome, NotFound) for outcome in outcomes) == 9
    assert await pool.fetchval("SELECT array_agg(id) FROM mechanics") == [maya]
    assert isinstance(await refused(pool, token), NotFound)


async def test_an_invite_that_is_too_old_is_none(
    pool: Pool, member: UUID, database_url: str
) -> None:
    token = await invited(pool, member)

    await pass_time(database_url, 7 * DAY - 60)
    await pool.expire_connections()
    assert await invites.inviting_workshop(pool, token) == "Garage"

    await pass_time(database_url, 7 * DAY + 60)
    await pool.expire_connections()
    assert await invites.inviting_workshop(pool, token) is None
    assert isinstance(await refused(pool, token), NotFound)


async def test_invited_again_only_the_newer_token_is_good(pool: Pool, member: UUID) -> None:
    old = await invited(pool, member)
    new = await invited(pool, member)

    assert isinstance(await refused(pool, old), NotFound)
    assert isinstance(await sign_up(pool, new), UUID)


async def test_two_who_invite_the_same_person_at_once_leave_one_invite(
    pool: Pool, connection: Connection, workshop: UUID, member: UUID
) -> None:
    colleague = await add_member(connection, workshop)

    await asyncio.gather(*(invited(pool, who) for who in (member, colleague) * 2))

    assert await pool.fetchval("SELECT count(*) FROM open_invites") == 1
    assert await pool.fetchval("SELECT count(*) FROM workshop_invites") == 4


async def test_a_withdrawn_invite_is_none_and_nobody_else_can_withdraw_it(
    pool: Pool, connection: Connection, member: UUID
) -> None:
    made = await invites.invite(pool, JWT_SECRET, member, EMAIL)
    stranger = await add_member(connection, await add_workshop(connection))
    with pytest.raises(NotFound):
        await invites.withdraw(pool, stranger, made.invite_id)
    with pytest.raises(NotFound):
        await invites.withdraw(pool, member, uuid4())

    for _ in range(2):  # again it changes nothing
        await invites.withdraw(pool, member, made.invite_id)

    token = token_of(JWT_SECRET, made.invite_id)
    assert isinstance(await refused(pool, token), NotFound)


async def test_the_invite_is_for_the_address_that_was_written_to(pool: Pool, member: UUID) -> None:
    token = await invited(pool, member)

    refusal = await refused(pool, token, "eve@mechanics.example")

    assert isinstance(refusal, BadRequest)
    assert refusal.message == "email: the invite is for another address"  # not for whose
    assert isinstance(await sign_up(pool, token, EMAIL.upper()), UUID)  # it was not used up


@pytest.mark.parametrize("token", ["", "x", "x" * 200, "é", "' OR true --", "\N{SNOWMAN}"])
async def test_what_is_no_token_gets_the_answer_of_an_unknown_one(
    pool: Pool, member: UUID, token: str
) -> None:
    good = await invited(pool, member)

    almost = good[:-1] + ("A" if good[-1] != "A" else "B")
    messages = {(await refused(pool, wrong)).message for wrong in (token, almost)}

    assert len(messages) == 1


async def test_the_token_is_nowhere_in_the_database(pool: Pool, member: UUID) -> None:
    token = await invited(pool, member)

    stored = await pool.fetchval("SELECT token_hash FROM workshop_invites")
    assert stored == hashlib.sha256(token.encode()).digest()
    for table in ("workshop_invites", "outbox", "users", "admin_events"):
        everything = await pool.fetchval(f"SELECT json_agg(t)::text FROM {table} t")
        assert everything is None or token not in everything


def test_a_token_has_256_bits_that_nothing_but_the_secret_gives() -> None:
    one, other = uuid4(), uuid4()

    tokens = {token_of(secret, id_) for secret in ("s" * 32, "t" * 32) for id_ in (one, other)}

    assert len(tokens) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)


# --- who may invite whom, and how often -----------------------------------------------------------


async def test_only_an_active_workshop_invites(
    pool: Pool, connection: Connection, workshop: UUID, member: UUID
) -> None:
    for status in ("pending", "suspended"):
        await pool.execute("UPDATE organizations SET status = $1", status)
        with pytest.raises(Conflict) as refusal:
            await invites.invite(pool, JWT_SECRET, member, EMAIL)
        assert refusal.value.code == "workshop_not_active"
    with pytest.raises(Forbidden):
        await invites.invite(pool, JWT_SECRET, await add_user(connection, "workshop"), EMAIL)

    assert await pool.fetchval("SELECT count(*) FROM workshop_invites") == 0
    assert await pool.fetchval("SELECT count(*) FROM outbox") == 0


async def test_the_invite_of_a_workshop_that_was_suspended_waits_until_it_is_active(
    pool: Pool, member: UUID
) -> None:
    token = await invited(pool, member)
    await pool.execute("UPDATE organizations SET status = 'suspended'")
    assert isinstance(await refused(pool, token), NotFound)

    await pool.execute("UPDATE organizations SET status = 'active'")
    assert isinstance(await sign_up(pool, token), UUID)


async def test_who_has_an_account_is_not_invited(pool: Pool, member: UUID) -> None:
    await people.sign_up_mechanic(pool, "Maya", EMAIL, PASSWORD)

    with pytest.raises(Conflict) as refusal:
        await invites.invite(pool, JWT_SECRET, member, EMAIL.upper())

    assert refusal.value.code == "email_taken"


async def test_who_got_an_account_meanwhile_is_told_and_the_invite_stays(
    pool: Pool, member: UUID
) -> None:
    token = await invited(pool, member)
    await people.sign_up_customer(pool, "Maya", EMAIL, PASSWORD)

    refusal = await refused(pool, token)

    assert refusal.code == "email_taken"
    assert await pool.fetchval("SELECT count(*) FROM open_invites") == 1


@pytest.mark.parametrize(
    "email",
    [
        *("maya", "a,b@c.example", "a@b@c.example", "<a@b.example>", '"a"@b.example'),
        *("a@b.example\r\nBcc: e@e.example", "a b@c.example", "ä@b.example", "a@b..example"),
        "a" * 255 + "@b.example",
    ],
)
async def test_an_address_that_is_not_one_address_is_refused(
    pool: Pool, member: UUID, email: str
) -> None:
    with pytest.raises(BadRequest, match=r"^email: "):
        await invites.invite(pool, JWT_SECRET, member, email)

    assert await pool.fetchval("SELECT count(*) FROM outbox") == 0


async def test_one_address_is_written_to_five_times_a_day_whoever_invites(
    pool: Pool, connection: Connection, member: UUID, database_url: str
) -> None:
    other = await add_member(connection, await add_workshop(connection))
    for who in (member, other, member, other, member):
        await invited(pool, who)
    with pytest.raises(RateLimited):
        await invited(pool, other)
    await invited(pool, other, "another@mechanics.example")

    await pass_time(database_url, DAY + 1)
    await pool.expire_connections()
    await invited(pool, other)


async def test_a_workshop_invites_a_hundred_a_day(pool: Pool, member: UUID) -> None:
    for number in range(invites.MAX_BY_WORKSHOP):
        await invited(pool, member, f"{number}@mechanics.example")

    with pytest.raises(RateLimited):
        await invited(pool, member)


# --- by trigger, when the row is written by another path ------------------------------------------


async def write_mechanic(connection: Connection, email: str, *, claimed: bool = False) -> UUID:
    """As an identity provider's hook or an import does."""
    user_id: UUID = await connection.fetchval(
        "INSERT INTO users (email, name, role, email_claimed) VALUES ($1, 'Maya', 'mechanic', $2) "
        "RETURNING id",
        email,
        claimed,
    )
    await connection.execute("INSERT INTO mechanics (id) VALUES ($1)", user_id)
    return user_id


async def test_an_invited_mechanic_who_comes_by_another_path_is_linked_all_the_same(
    pool: Pool, connection: Connection, workshop: UUID, member: UUID
) -> None:
    token = await invited(pool, member)

    maya = await write_mechanic(connection, "Maya@Mechanics.Example")

    row = await mechanic(pool, maya)
    assert (row["workshop_id"], row["account_type"]) == (workshop, "workshop")
    assert (row["application_status"], row["auto_approved"]) == ("approved", True)
    assert row["invited_by"] == member
    assert await pool.fetchval("SELECT used_by FROM workshop_invites") == maya
    assert isinstance(await refused(pool, token), NotFound)


async def test_who_was_invited_by_two_belongs_to_the_first(
    pool: Pool, connection: Connection, workshop: UUID, member: UUID
) -> None:
    other = await add_member(connection, await add_workshop(connection))
    await invited(pool, member)
    await invited(pool, other)

    maya = await write_mechanic(connection, EMAIL)

    assert (await mechanic(pool, maya))["workshop_id"] == workshop


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE workshop_invites SET expires_at = created_at",
        "UPDATE workshop_invites SET withdrawn_at = created_at",
        "UPDATE organizations SET status = 'suspended'",
        "UPDATE workshop_invites SET email = 'bob@mechanics.example'",
    ],
)
async def test_an_invite_that_is_not_open_links_nobody(
    pool: Pool, connection: Connection, member: UUID, spoil: str
) -> None:
    await invited(pool, member)
    await pool.execute(spoil)

    row = await mechanic(pool, await write_mechanic(connection, EMAIL))

    assert (row["workshop_id"], row["application_status"]) == (None, "pending")


async def test_claiming_an_invited_email_is_no_approval(
    pool: Pool, connection: Connection, member: UUID
) -> None:
    await invited(pool, member)

    eve = await people.sign_up_mechanic(pool, "Eve", EMAIL, PASSWORD)

    row = await mechanic(pool, eve)
    assert (row["workshop_id"], row["application_status"]) == (None, "pending")
    assert await pool.fetchval("SELECT count(*) FROM open_invites") == 1


# --- the mail -------------------------------------------------------------------------------------


async def test_the_mail_leads_to_the_sign_up_and_is_plain(pool: Pool, member: UUID) -> None:
    await pool.execute("UPDATE organizations SET name = 'Zoë {token} & Söhne'")
    made = await invites.invite(pool, JWT_SECRET, member, EMAIL, "Maya {x}")
    letters = Letters()

    payload = json.loads(await pool.fetchval("SELECT payload FROM outbox"))
    assert payload == {"invite_id": str(made.invite_id)}
    await invites.deliver(pool, letters, JWT_SECRET, "https://dispatch.example", payload)

    (letter,) = letters.sent
    token = token_of(JWT_SECRET, made.invite_id)
    assert letter.to == EMAIL
    assert letter.subject == "Zoë {token} & Söhne invites you"
    assert "Hello Maya {x}," in letter.text
    assert letter.text.count(f"https://dispatch.example/join?token={token}\n") == 1
    assert letter.text.count(token) == 1


async def test_no_mail_goes_out_for_an_invite_that_is_over(pool: Pool, member: UUID) -> None:
    made = await invites.invite(pool, JWT_SECRET, member, EMAIL)
    await invites.withdraw(pool, member, made.invite_id)
    letters = Letters()

    payload = {"invite_id": str(made.invite_id)}
    await invites.deliver(pool, letters, JWT_SECRET, "https://dispatch.example", payload)

    assert letters.sent == []


async def test_a_changed_secret_is_said_and_no_dead_link_is_sent(pool: Pool, member: UUID) -> None:
    made = await invites.invite(pool, JWT_SECRET, member, EMAIL)
    letters = Letters()

    payload = {"invite_id": str(made.invite_id)}
    with pytest.raises(Refused, match="invite again"):
        await invites.deliver(pool, letters, "another-secret" * 3, "https://d.example", payload)

    assert letters.sent == []


async def test_a_changed_secret_does_not_void_what_was_sent_before(
    pool: Pool, member: UUID
) -> None:
    token = await invited(pool, member)

    assert isinstance(await sign_up(pool, token), UUID)  # no secret is asked


# --- all of it, over HTTP -------------------------------------------------------------------------


def form(token: str, email: str = EMAIL) -> dict[str, Any]:
    return {"name": "Maya Okafor", "email": email, "password": PASSWORD, "token": token}


def token_in(mailbox: Mailbox) -> str:
    (link,) = re.findall(r"/join\?token=(\S+)", mailbox.mails[-1].get_content())
    return str(link)


async def test_an_invite_arrives_leads_to_a_page_and_makes_a_mechanic(
    connection: Connection,
    make_config: MakeConfig,
    member: UUID,
    mailbox: Mailbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    config = make_config(smtp_url=f"smtp://127.0.0.1:{mailbox.port}")
    async with living_node(config) as living:
        invite = {"email": EMAIL, "name": "Maya"}
        path = "/api/workshop/invites"
        status, made = await living.call(member, "workshop", "POST", path, invite)
        assert (status, made["email"]) == (201, EMAIL)
        await eventually(lambda: mailbox.mails)
        token = token_in(mailbox)
        assert token not in json.dumps(made)

        status, new = await living.call(
            member, "workshop", "POST", "/api/mechanic/workshop-signup", form(token)
        )

        assert (status, new["role"]) == (201, "mechanic")
        status, _ = await living.call(
            member, "workshop", "POST", "/api/mechanic/workshop-signup", form(token)
        )
        assert status == 404
        done = "SELECT done_at IS NOT NULL FROM outbox"
        await eventually(lambda: connection.fetchval(done))
    theirs = "mail.log"  # the test's mail server logs what it hears
    said = "\n".join(each.getMessage() for each in caplog.records if each.name != theirs)
    assert token not in said
    assert EMAIL not in said


async def test_a_mail_that_is_refused_for_good_is_given_up_without_its_words(
    connection: Connection, make_config: MakeConfig, member: UUID, mailbox: Mailbox
) -> None:
    mailbox.answer = f"550 no {EMAIL} here"
    async with living_node(make_config(smtp_url=f"smtp://127.0.0.1:{mailbox.port}")) as living:
        path = "/api/workshop/invites"
        assert (await living.call(member, "workshop", "POST", path, {"email": EMAIL}))[0] == 201
        given_up = "SELECT last_error FROM outbox WHERE failed_at IS NOT NULL"
        error = await eventually(lambda: connection.fetchval(given_up))

    assert error == "the mail server says 550"


async def test_without_mail_nobody_is_invited_and_nothing_is_stored(
    connection: Connection, make_config: MakeConfig, member: UUID
) -> None:
    async with living_node(make_config()) as living:
        path = "/api/workshop/invites"
        status, told = await living.call(member, "workshop", "POST", path, {"email": EMAIL})

    assert (status, told["error"]["code"]) == (501, "not_configured")
    assert await connection.fetchval("SELECT count(*) FROM workshop_invites") == 0
    assert await connection.fetchval("SELECT count(*) FROM outbox") == 0
