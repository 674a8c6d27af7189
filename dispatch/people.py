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
from uuid import UUID, uuid4

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
from dispatch.errors import BadRequest, Conflict, Forbidden, NotAuthenticated, RateLimited
from dispatch.ratelimit import KeyedRate

TOKEN_TTL_SECONDS: Final = 12 * 3600.0
MAX_EMAIL_CHARS: Final = 254
MAX_NAME_CHARS: Final = 200
PASSWORD_CHARS: Final = (8, 200)
ADDRESS_LOGINS: Final = 20
ADDRESS_SIGNUPS: Final = 4

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


class Rates:
    """What a node remembers of log-ins and sign-ups, to refuse what is too often.

    `per_minute` log-ins an e-mail; ADDRESS_LOGINS times as many from an address, which is one that
    tries a password on everybody; ADDRESS_SIGNUPS times as many sign-ups. At once, then evenly; 0
    is off. An address that is None is not limited.
    """

    def __init__(self, per_minute: float) -> None:
        self._logins = rate_of(per_minute)
        self._address_logins = rate_of(per_minute * ADDRESS_LOGINS)
        self._address_signups = rate_of(per_minute * ADDRESS_SIGNUPS)

    def log_in(self, email: str, address: str | None) -> None:
        """Counts one. Raises RateLimited."""
        now = time.monotonic()
        if address is not None and not self._address_logins.take(address, now):
            raise RateLimited("too many log-ins from this address; try again in a minute")
        if not self._logins.take(email, now):
            raise RateLimited("too many log-ins for this e-mail; try again in a minute")

    def sign_up(self, address: str | None) -> None:
        """Counts one. Raises RateLimited."""
        if address is not None and not self._address_signups.take(address, time.monotonic()):
            raise RateLimited("too many sign-ups from this address; try again in a minute")


def rate_of(per_minute: float) -> KeyedRate:
    """`per_minute` at once, then evenly; 0 is off."""
    return KeyedRate(per_minute / 60, burst=max(per_minute, 1.0))


async def log_in(
    pool: Postgres,
    secret: str,
    rates: Rates,
    email: str,
    password: str,
    address: str | None = None,
) -> LoggedIn:
    """A token for whoever has this e-mail and password, good for TOKEN_TTL_SECONDS.

    Raises NotAuthenticated, the same for an unknown e-mail, a wrong password, and a user who is
    disabled or has no password here; RateLimited; BadRequest for what is no e-mail at all.
    """
    email = checked_email(email)
    rates.log_in(email, address)
    async with unavailable_when_lost():
        user = await pool.fetchrow(_QUERIES["user_by_email"], email)
    matches = await password_matches(user["password_hash"] if user else None, password)
    if not user or not matches or user["disabled"]:
        raise NotAuthenticated("the e-mail or the password is wrong")
    return _logged_in(secret, user["id"], Role(user["role"]), user["token_epoch"])


def refresh(secret: str, identity: Identity) -> LoggedIn:
    """A new token for somebody whose present one was just authenticated.

    Forbidden for another's token: whoever issued it says how long she is let in.
    """
    if identity.outside:
        raise Forbidden("this token is not ours: its issuer gives the next one")
    return _logged_in(secret, identity.user_id, identity.role, identity.epoch)


def first_token(secret: str, user_id: UUID, role: Role) -> LoggedIn:
    """The token of somebody who has just signed up."""
    return _logged_in(secret, user_id, role, epoch=0)


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


async def sign_up_mechanic(pool: Postgres, name: str, email: str, password: str) -> UUID:
    """A new independent mechanic's id: she may connect, and waits for an admin's approval (P3).

    Raises BadRequest naming the field, Conflict `email_taken`.
    """
    return await _create(pool, "create_mechanic", name, email, password)


class NewWorkshop(Struct, frozen=True):
    """A workshop that waits for an admin's approval (P1), and the member who logs in for it."""

    workshop_id: UUID
    user_id: UUID


async def sign_up_workshop(
    pool: Postgres,
    name: str,
    email: str,
    password: str,
    workshop_name: str | None = None,
    workshop_email: str | None = None,
) -> NewWorkshop:
    """A new workshop and its first member.

    Its own name and e-mail, which everybody will see, are the member's unless they are given.
    Raises BadRequest naming the field, Conflict `email_taken`.
    """
    name, email = checked_name(name), checked_email(email)
    own = (
        name if workshop_name is None else checked_name(workshop_name, "workshop_name"),
        email if workshop_email is None else checked_email(workshop_email, "workshop_email"),
    )
    workshop_id = uuid4()
    user_id = await _create(pool, "create_workshop", name, email, password, workshop_id, *own)
    return NewWorkshop(workshop_id, user_id)


async def create_admin(pool: Postgres, email: str, name: str, password: str) -> UUID:
    """A new admin's id. Raises BadRequest naming the field, Conflict `email_taken`."""
    return await _create(pool, "create_admin", name, email, password)


async def _create(
    pool: Postgres, query: str, name: str, email: str, password: str, *more: object
) -> UUID:
    name, email = checked_name(name), checked_email(email)
    # Hashed before it is known whether the e-mail is free, so that a lost race costs nothing more.
    password_hash = await hash_password(checked_password(password))
    try:
        async with unavailable_when_lost():
            created = await pool.fetchval(_QUERIES[query], name, email, password_hash, *more)
    except asyncpg.UniqueViolationError:  # users_email_key: nothing else here can collide
        raise email_taken() from None
    assert isinstance(created, UUID)
    return created


def email_taken() -> Conflict:
    """409: somebody has this e-mail."""
    return Conflict("email_taken", "this e-mail has an account already")


def checked_email(text: str, field: str = "email") -> str:
    """The e-mail as it is stored: trimmed, lower case. Raises BadRequest naming the field."""
    email = text.strip()
    if len(email) > MAX_EMAIL_CHARS or not _EMAIL.fullmatch(email):
        raise BadRequest(
            f"{field}: must be an address in plain ASCII like name@example.com, "
            f"at most {MAX_EMAIL_CHARS} characters"
        )
    return email.lower()  # only now: some letters beyond ASCII have one of ASCII in lower case


def checked_name(text: str, field: str = "name") -> str:
    """The name, trimmed. Raises BadRequest naming the field."""
    name = text.strip()
    if not 1 <= len(name) <= MAX_NAME_CHARS or not _is_readable(name):
        raise BadRequest(f"{field}: must be 1 to {MAX_NAME_CHARS} characters on one line")
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
