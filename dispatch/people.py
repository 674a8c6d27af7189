"""People: logging in and out, signing up, and the facts that others may see of a mechanic.

Its one job: read and write the rows of `users`, `customers` and `mechanics`, each function one
round trip. May import `auth`, `core`, `database`, `errors`, `queries` and `ratelimit`. Fails with
the errors named at each function, and all with `Unavailable` when Postgres does not answer.

Who has an account: logging in never tells, by answer or by time. Signing up does: a taken e-mail is
refused at once (409 `email_taken`), since without a mail to the owner there is no honest other way.
"""

import re
import time
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import queries
from dispatch.auth import (
    Identity,
    hash_password,
    issue_token,
    password_matches,
)
from dispatch.core.types import Role
from dispatch.database import Connection, Pool, unavailable_when_lost
from dispatch.errors import BadRequest, Conflict, NotAuthenticated, RateLimited
from dispatch.ratelimit import KeyedRate

TOKEN_TTL_SECONDS: Final = 12 * 3600.0
MAX_EMAIL_CHARS: Final = 254
MAX_NAME_CHARS: Final = 200
PASSWORD_CHARS: Final = (8, 200)

Postgres = Pool | Connection

_QUERIES: Final = queries.load("people")
# Not RFC 5322's grammar: enough to catch a slip, and nothing that an index or a log trips over.
_EMAIL: Final = re.compile(r"[!-?A-~]+@[!-?A-~]+")
# They would show the text around a name in another order (UAX #9).
_BIDI_CONTROLS: Final = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


# --- logging in and out ---------------------------------------------------------------------------


class LoggedIn(Struct, frozen=True):
    """What a log-in gives."""

    token: str
    role: Role
    user_id: UUID


def login_rate(per_minute: float) -> KeyedRate:
    """What a node remembers of log-ins, by e-mail: `per_minute` at once, then evenly; 0 is off."""
    return KeyedRate(per_minute / 60, burst=max(per_minute, 1.0))


async def log_in(
    pool: Postgres, secret: str, rate: KeyedRate, email: str, password: str
) -> LoggedIn:
    """A token for whoever has this e-mail and password, good for TOKEN_TTL_SECONDS.

    Raises NotAuthenticated, the same for an unknown e-mail, a wrong password, and a user who is
    disabled or has no password here; RateLimited; BadRequest for what is no e-mail at all.
    """
    email = checked_email(email)
    if not rate.take(email, time.monotonic()):
        raise RateLimited("too many log-ins for this e-mail; try again in a minute")
    async with unavailable_when_lost():
        user = await pool.fetchrow(_QUERIES["user_by_email"], email)
    matches = await password_matches(user["password_hash"] if user else None, password)
    if not user or not matches or user["disabled"]:
        raise NotAuthenticated("the e-mail or the password is wrong")
    return _logged_in(secret, user["id"], Role(user["role"]), user["token_epoch"])


def refresh(secret: str, identity: Identity) -> LoggedIn:
    """A new token for somebody whose present one was just authenticated."""
    return _logged_in(secret, identity.user_id, identity.role, identity.epoch)


def _logged_in(secret: str, user_id: UUID, role: Role, epoch: int) -> LoggedIn:
    token = issue_token(secret, user_id, role, epoch, TOKEN_TTL_SECONDS)
    return LoggedIn(token, role, user_id)


async def log_out(pool: Postgres, user_id: UUID) -> int:
    """Revoke every token of this user and return her new `token_epoch`.

    Her sockets are still open afterwards: the caller tells every node to close them.
    """
    async with unavailable_when_lost():
        epoch = await pool.fetchval(_QUERIES["raise_token_epoch"], user_id)
    assert epoch is not None, "a user who was authenticated has a row"
    return int(epoch)


async def revoked_since(pool: Pool, since: datetime) -> list[tuple[UUID, int]]:
    """Whose tokens became void after `since` (the server's own clock), and below which epoch they
    are: all of them, where the account is disabled."""
    async with unavailable_when_lost():
        rows = await pool.fetch(_QUERIES["revoked"], since)
    return [(row["id"], row["token_epoch"]) for row in rows]


# --- signing up -----------------------------------------------------------------------------------


async def sign_up_customer(pool: Postgres, name: str, email: str, password: str) -> UUID:
    """A new customer's id. Raises BadRequest naming the field, Conflict `email_taken`."""
    return await _create(pool, "create_customer", name, email, password)


async def create_admin(pool: Postgres, email: str, name: str, password: str) -> UUID:
    """A new admin's id. Raises BadRequest naming the field, Conflict `email_taken`."""
    return await _create(pool, "create_admin", name, email, password)


async def _create(pool: Postgres, query: str, name: str, email: str, password: str) -> UUID:
    name, email = checked_name(name), checked_email(email)
    # Hashed before it is known whether the e-mail is free, so that a lost race costs nothing more.
    password_hash = await hash_password(checked_password(password))
    try:
        async with unavailable_when_lost():
            created = await pool.fetchval(_QUERIES[query], name, email, password_hash)
    except asyncpg.UniqueViolationError:  # users_email_key: nothing else here can collide
        raise Conflict("email_taken", "this e-mail has an account already") from None
    assert isinstance(created, UUID)
    return created


def checked_email(text: str) -> str:
    """The e-mail as it is stored: trimmed, lower case. Raises BadRequest."""
    email = text.strip()
    if len(email) > MAX_EMAIL_CHARS or not _EMAIL.fullmatch(email):
        raise BadRequest(
            "email: must be an address in plain ASCII like name@example.com, "
            f"at most {MAX_EMAIL_CHARS} characters"
        )
    return email.lower()  # only now: some letters beyond ASCII have one of ASCII in lower case


def checked_name(text: str) -> str:
    """The name, trimmed. Raises BadRequest."""
    name = text.strip()
    if not 1 <= len(name) <= MAX_NAME_CHARS or not _is_readable(name):
        raise BadRequest(f"name: must be 1 to {MAX_NAME_CHARS} characters on one line")
    return name


def checked_password(text: str) -> str:
    """The password, every character of it. Raises BadRequest, which does not show it."""
    least, most = PASSWORD_CHARS
    if not least <= len(text) <= most or _has_controls(text):
        raise BadRequest(f"password: must be {least} to {most} characters on one line")
    return text


def _is_readable(text: str) -> bool:
    """Whether something is seen, on one line, and no other text is turned around by it."""
    kinds = {unicodedata.category(character) for character in text}
    turns = {unicodedata.bidirectional(character) for character in text}
    return (
        any(kind[0] in "LNPS" for kind in kinds)  # letters, numbers, punctuation and symbols
        and not kinds & {"Cc", "Cs", "Zl", "Zp"}  # controls, surrogates, ends of lines
        and not turns & _BIDI_CONTROLS
    )


def _has_controls(text: str) -> bool:
    """Control characters and lone surrogates, which Postgres or UTF-8 would refuse."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


# --- what others see ------------------------------------------------------------------------------


class MechanicFacts(Struct, frozen=True):
    """What a customer may see of a mechanic, beside her presence.

    `has_device`: one of hers is subscribed to web push.
    """

    name: str
    available: bool
    last_seen: datetime | None
    has_device: bool = False


async def mechanic_statuses(
    pool: Postgres, mechanic_ids: Sequence[UUID]
) -> dict[UUID, MechanicFacts]:
    """The rows of these mechanics by their ids; who is unknown or gone has none.

    `available` is what routing would say: not approved, or disabled, is not available.
    """
    async with unavailable_when_lost():
        rows = await pool.fetch(_QUERIES["mechanic_facts"], mechanic_ids)
    return {
        row["id"]: MechanicFacts(row["name"], row["available"], row["last_seen"], row["has_device"])
        for row in rows
    }
