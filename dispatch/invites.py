"""Invites: a workshop asks somebody, by e-mail, to work for it (P3).

One job: make, withdraw and use invites, and write the mail that carries one. Imports `auth`,
`database`, `errors`, `mail`, `people` and `queries`. Fails with the errors named at each function,
and all with `Unavailable` when Postgres does not answer.

Whoever has the token may sign up with the invited e-mail, once, before it expires, while the
workshop is active. It is stored nowhere: only its SHA-256 is. The token follows from the invite's
random id and the server's secret, so whichever node delivers the mail can write it once more, and
who reads the database, or a copy of it, cannot.
"""

import base64
import hashlib
import hmac
import re
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
from msgspec import Struct

from dispatch import queries
from dispatch.auth import hash_password
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import BadRequest, Conflict, Forbidden, NotFound, RateLimited, Refused
from dispatch.mail import Mail, Mailer
from dispatch.people import checked_email, checked_name, checked_password, email_taken
from dispatch.protocol import timestamp

TTL: Final = timedelta(days=7)
MAX_OPEN: Final = 100  # of a workshop
# Mails that nobody asked for are a nuisance, and cost us our name with other mail servers.
PERIOD: Final = timedelta(days=1)
MAX_BY_WORKSHOP: Final = 100
MAX_TO_EMAIL: Final = 5

_SQL: Final = queries.load("invites")
# What HTML calls a valid e-mail address: nothing in it can be more than one recipient.
_MAILABLE: Final = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-z0-9-]+(\.[a-z0-9-]+)*")


class Invited(Struct, frozen=True, kw_only=True):
    """An invite that was made and is on its way."""

    invite_id: UUID
    email: str
    expires_at: str


class OpenInvite(Struct, frozen=True, kw_only=True):
    """An invite as its workshop sees it."""

    invite_id: UUID
    email: str
    name: str | None
    created_at: str
    expires_at: str


def token_of(secret: str, invite_id: UUID) -> str:
    """The token of an invite: 256 bits that only the secret gives, in base64url."""
    digest = hmac.digest(secret.encode(), b"workshop invite " + invite_id.bytes, "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


# --- inviting -------------------------------------------------------------------------------------


async def invite(
    pool: Pool, secret: str, member_id: UUID, email: str, name: str | None = None
) -> Invited:
    """Invites an e-mail to the workshop that this user acts for; the mail is in the outbox.

    Invited again, the older invite is void. Raises BadRequest naming the field, Forbidden for who
    acts for no workshop, Conflict `workshop_not_active` or `email_taken`, and RateLimited.
    """
    email = _mailable(checked_email(email))
    name = None if name is None else checked_name(name)
    async with transaction(pool) as connection:
        workshop = await connection.fetchrow(_SQL["lock_workshop_of"], member_id)
        if workshop is None:
            raise Forbidden("you act for no workshop")
        if workshop["status"] != "active":
            raise Conflict("workshop_not_active", "your workshop has not been approved yet")
        await _check_limits(connection, workshop["id"], email)
        await connection.execute(_SQL["withdraw_older"], workshop["id"], email)
        invite_id = uuid4()
        expires_at: datetime = await connection.fetchval(
            _SQL["add"],
            invite_id,
            workshop["id"],
            email,
            name,
            _hash(token_of(secret, invite_id)),
            member_id,
            TTL,
        )
        await connection.execute(_SQL["queue_mail"], invite_id)
    return Invited(invite_id=invite_id, email=email, expires_at=timestamp(expires_at))


def _mailable(email: str) -> str:
    if not _MAILABLE.fullmatch(email):
        raise BadRequest("email: this address cannot be written to")
    return email


async def _check_limits(connection: Connection, workshop_id: UUID, email: str) -> None:
    standing = await connection.fetchrow(_SQL["standing"], workshop_id, email, PERIOD)
    assert standing is not None
    if standing["taken"]:
        raise email_taken()
    if standing["open"] >= MAX_OPEN or standing["by_workshop"] >= MAX_BY_WORKSHOP:
        raise RateLimited("your workshop has invited too many; try again tomorrow")
    if standing["to_email"] >= MAX_TO_EMAIL:
        raise RateLimited("this e-mail was written to too often; try again tomorrow")


async def withdraw(pool: Pool, member_id: UUID, invite_id: UUID) -> None:
    """Nobody can use this invite of the member's workshop any more; again it changes nothing.

    NotFound for one that is unknown, another workshop's, or used.
    """
    async with unavailable_when_lost():
        if await pool.fetchval(_SQL["withdraw"], invite_id, member_id) is None:
            raise NotFound("no such invite")


async def of_workshop(pool: Pool, workshop_id: UUID) -> list[OpenInvite]:
    """The invites of a workshop that are open: at most MAX_OPEN, the latest first."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["open_of_workshop"], workshop_id)
    return [
        OpenInvite(
            invite_id=row["id"],
            email=row["email"],
            name=row["name"],
            created_at=timestamp(row["created_at"]),
            expires_at=timestamp(row["expires_at"]),
        )
        for row in rows
    ]


# --- the mail -------------------------------------------------------------------------------------

_LETTER: Final = """Hello{name},

{inviter} of {workshop} invites you to work for them as a mechanic.

Open this link to sign up, before {day}:

{link}

It works once, and only with the address that this mail came to.
If you did not expect it, there is nothing that you need to do.
"""


async def deliver(
    pool: Pool, mailer: Mailer, secret: str, public_url: str, payload: dict[str, Any]
) -> None:
    """Delivers an effect of the outbox: sends an invite's mail, unless nobody may use it any more.

    Twice is harmless: both mails carry the same link under the same Message-ID. Raises
    `Unavailable` where trying later is right, and `Refused` where that is useless.
    """
    invite_id = UUID(payload["invite_id"])
    async with unavailable_when_lost():
        letter = await pool.fetchrow(_SQL["letter"], invite_id)
    if letter is None:
        return
    token = token_of(secret, invite_id)
    if _hash(token) != letter["token_hash"]:
        raise Refused("DISPATCH_JWT_SECRET has changed since: the workshop must invite again")
    text = _LETTER.format(
        name="" if letter["name"] is None else f" {letter['name']}",
        inviter=letter["inviter"],
        workshop=letter["workshop_name"],
        day=f"{letter['expires_at']:%d %B %Y}",
        link=f"{public_url}/join?token={token}",
    )
    await mailer.send(
        Mail(
            to=letter["email"],
            subject=f"{letter['workshop_name']} invites you",
            text=text,
            message_id=str(invite_id),
        )
    )


# --- signing up -----------------------------------------------------------------------------------


async def inviting_workshop(pool: Pool, token: str) -> str | None:
    """The name of the workshop that this token was made for; None once it cannot be used."""
    found = await _find(pool, token)
    return None if found is None else str(found["workshop_name"])


async def sign_up(pool: Pool, token: str, name: str, email: str, password: str) -> UUID:
    """A new mechanic's id: linked to the workshop that invited her, and approved (P3).

    Raises NotFound for a token that is unknown, used, withdrawn or expired, or whose workshop is
    not active; BadRequest naming the field, also for an e-mail that was not the one invited;
    Conflict `email_taken`. The invite stays as it was then.
    """
    name, email, password = checked_name(name), checked_email(email), checked_password(password)
    _check(await _find(pool, token), email)  # before a hash is computed for nothing
    password_hash = await hash_password(password)
    try:
        async with transaction(pool) as connection:
            taken = await connection.fetchrow(_SQL["take"], _hash(token))
            _check(taken, email)
            assert taken is not None
            created: UUID = await connection.fetchval(
                _SQL["create_mechanic"],
                name,
                email,
                password_hash,
                taken["workshop_id"],
                taken["invited_by"],
            )
            await connection.execute(_SQL["used_by"], taken["id"], created)
    except asyncpg.UniqueViolationError:  # users_email_key: nothing else here can collide
        raise email_taken() from None
    return created


async def _find(pool: Pool, token: str) -> asyncpg.Record | None:
    async with unavailable_when_lost():
        return await pool.fetchrow(_SQL["open"], _hash(token))


def _check(found: asyncpg.Record | None, email: str) -> None:
    if found is None:
        raise NotFound("this invite is not good (any longer); ask your workshop for another")
    if found["email"] != email:
        raise BadRequest("email: the invite is for another address")
