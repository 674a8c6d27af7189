"""Who somebody is: our own tokens, those of an identity provider, and passwords.

Its one job: say whose token this is, and whether a password is right. May import `core`,
`database`, `errors`, `gathering`, `jwks` and `queries`. A token that is forged, expired or revoked
gets the same `NotAuthenticated`, without saying which. Fails with `Unavailable` when Postgres does
not answer: nobody is let in on a guess.

Our tokens are HS256 only, with every claim required. Those of the identity provider, where there
is one, say who somebody is and nothing more: the role is that of her row (P4). The clocks of two
nodes may differ by CLOCK_SKEW_SECONDS, so a token may look that much younger than now; it never
lives past its `exp`.
"""

import asyncio
import base64
import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar
from uuid import UUID

import argon2
import jwt
import msgspec
from msgspec import Struct

from dispatch import queries
from dispatch.core.types import Role
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import NotAuthenticated, Unavailable
from dispatch.gathering import Gathering
from dispatch.jwks import Provider, issued_outside

ISSUER: Final = "dispatch"  # these two also stand in `_Signed`
AUDIENCE: Final = "dispatch"
ALGORITHM: Final = "HS256"
MIN_SECRET_BYTES: Final = 32
MAX_TOKEN_CHARS: Final = 8192
CLOCK_SKEW_SECONDS: Final = 10
QUERY_SECONDS: Final = 5.0

T = TypeVar("T")

# How every token of ours begins.
_HEAD: Final = jwt.encode({}, "-" * MIN_SECRET_BYTES, algorithm=ALGORITHM).partition(".")[0]
_REFUSED: Final = "not authenticated: the token is missing, wrong, expired or revoked"
_QUERIES: Final = queries.load("people")


# --- tokens ---------------------------------------------------------------------------------------


class Identity(Struct, frozen=True):
    """Who a token speaks for. `expires_at` is in seconds since the epoch, as `time.time()`.

    `outside`: an identity provider issued it. Then role and epoch are those of her row.
    """

    user_id: UUID
    role: Role
    epoch: int
    expires_at: float
    outside: bool = False


class _Signed(Struct, frozen=True, forbid_unknown_fields=True):
    """All that `issue_token` signs, and nothing else."""

    iss: Literal["dispatch"]
    aud: Literal["dispatch"]
    sub: UUID
    role: Role
    epoch: int
    iat: float
    exp: float


class _Claims(Struct, frozen=True):
    """The shape of what we sign; PyJWT checks who, for whom and when."""

    sub: UUID
    role: Role
    epoch: int
    exp: float


_decode_signed: Final = msgspec.json.Decoder(_Signed).decode


def issue_token(secret: str, user_id: UUID, role: str, epoch: int, ttl_seconds: float) -> str:
    """A signed token for `ttl_seconds` from now. `epoch` is the user's `token_epoch`."""
    assert len(secret.encode()) >= MIN_SECRET_BYTES, "the configuration checks the secret's length"
    now = time.time()
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(user_id),
        "role": str(Role(role)),
        "epoch": epoch,
        "iat": now,
        "exp": now + ttl_seconds,
    }
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def verify_token(secret: str, token: str) -> Identity:
    """What the token says, without asking whether it was revoked. Raises NotAuthenticated."""
    if len(token) > MAX_TOKEN_CHARS:
        raise NotAuthenticated(_REFUSED)
    return read_quickly(secret, token) or read_fully(secret, token)


def read_quickly(secret: str, token: str) -> Identity | None:
    """The same for a token that is good and spelled as `issue_token` does; None for all others.

    It refuses nothing: PyJWT has the last word, in 45 µs instead of 6. Verdicts are not kept by
    token, which would save the rest and have to be bounded, to expire and to hold secrets.
    """
    signed, _, signature = token.rpartition(".")
    head, _, payload = signed.partition(".")
    if head != _HEAD or len(secret) < MIN_SECRET_BYTES:
        return None
    try:
        digest = hmac.digest(secret.encode(), signed.encode("ascii"), "sha256")
        right = base64.urlsafe_b64encode(digest).rstrip(b"=")
        if not hmac.compare_digest(right, signature.encode("ascii")):
            return None
        claims = _decode_signed(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:  # binascii's and msgspec's errors, and what is not ASCII
        return None
    now = time.time()
    if claims.exp <= now or claims.iat > now:
        return None
    return Identity(claims.sub, claims.role, claims.epoch, claims.exp)


def read_fully(secret: str, token: str) -> Identity:
    """The same for any token, as PyJWT says. Raises NotAuthenticated."""
    try:
        signed = jwt.decode(
            token,
            secret,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            leeway=CLOCK_SKEW_SECONDS,
            options={
                "require": ["iss", "aud", "sub", "role", "epoch", "iat", "exp"],
                "strict_aud": True,
                "enforce_minimum_key_length": True,
            },
        )
        claims = msgspec.convert(signed, _Claims)
    except (jwt.PyJWTError, ValueError):  # msgspec's errors are ValueErrors
        raise NotAuthenticated(_REFUSED) from None
    if claims.exp <= time.time():  # the leeway above is for clocks that lag, not for old tokens
        raise NotAuthenticated(_REFUSED)
    return Identity(claims.sub, claims.role, claims.epoch, claims.exp)


# --- whether a token still counts -----------------------------------------------------------------


class Account(Struct, frozen=True):
    """What a user's row says about her tokens."""

    role: str
    token_epoch: int
    disabled: bool


def judge(identity: Identity, account: Account | None) -> Identity:
    """The identity, if her row still agrees; without a row she is gone. Raises NotAuthenticated."""
    if (
        account is None
        or account.disabled
        or account.role != identity.role
        or account.token_epoch > identity.epoch
    ):
        raise NotAuthenticated(_REFUSED)
    return identity


class Authenticator:
    """Verifies tokens against the secret, or the provider's keys, and the users' rows."""

    def __init__(self, secret: str, pool: Pool, provider: Provider | None = None) -> None:
        self._secret = secret
        self._pool = pool
        self._provider = provider
        self._accounts = Gathering(self._read_accounts, "read-accounts")

    async def authenticate(self, token: str) -> Identity:
        """Who holds this token. Raises NotAuthenticated, or Unavailable when Postgres is away.

        The row is read after the call, so a token that was revoked before it is always refused.
        """
        return await self.check(await self.verify(token))

    async def verify(self, token: str) -> Identity:
        """What the token says. Whoever asks reads the row and lets `judge` decide.

        For a token of ours nothing is waited for.
        """
        if self._provider is not None and _is_foreign(token):
            return await self._verify_outside(self._provider, token)
        return verify_token(self._secret, token)

    async def check(self, identity: Identity) -> Identity:
        """The identity, if her row, which is read now, agrees. Raises as `authenticate`."""
        accounts = await self._accounts.get(identity.user_id)
        return judge(identity, accounts.get(identity.user_id))

    async def _verify_outside(self, provider: Provider, token: str) -> Identity:
        """Whom the provider's token speaks for. It has no epoch: one that was issued before her
        tokens were last made void is refused here, and what is made void from now on is judged by
        the epoch that her row has now."""
        subject = await provider.verify(token)
        if subject is None:
            raise NotAuthenticated(_REFUSED)
        issued_at = datetime.fromtimestamp(subject.issued_at, UTC)
        async with unavailable_when_lost(), asyncio.timeout(QUERY_SECONDS):
            user = await self._pool.fetchrow(
                _QUERIES["user_of_identity"], subject.issuer, subject.subject, issued_at
            )
        if user is None:
            raise NotAuthenticated(_REFUSED)
        return Identity(
            user["id"], Role(user["role"]), user["token_epoch"], subject.expires_at, outside=True
        )

    async def _read_accounts(self, user_ids: Sequence[UUID]) -> Mapping[UUID, Account]:
        # A frozen server must not hold up everybody who comes after.
        async with unavailable_when_lost(), asyncio.timeout(QUERY_SECONDS):
            rows = await self._pool.fetch(_QUERIES["accounts"], user_ids)
        return {
            row["id"]: Account(row["role"], row["token_epoch"], row["disabled"]) for row in rows
        }


def _is_foreign(token: str) -> bool:
    """Whether it says that it was signed as no token of ours is."""
    if token.startswith(_HEAD) or len(token) > MAX_TOKEN_CHARS:
        return False
    return issued_outside(token)


# --- passwords ------------------------------------------------------------------------------------

# OWASP's least for argon2id: 19 MiB, two passes, one lane.
_HASHER: Final = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
HASHING_AT_ONCE: Final = 2
MAX_HASHES_IN_LINE: Final = 1000


def _hash_of_nothing() -> str:
    """A hash with today's parameters that no known password has: it costs as much to verify."""

    def encoded(length: int) -> str:
        return base64.b64encode(bytes(length)).decode().rstrip("=")

    cost = f"m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}"
    return f"$argon2id$v=19${cost}${encoded(_HASHER.salt_len)}${encoded(_HASHER.hash_len)}"


_NOBODY: Final = _hash_of_nothing()


class _Threads:
    """A few threads for argon2, so that log-ins leave the cores to the sockets; a bounded line."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(HASHING_AT_ONCE, thread_name_prefix="argon2")
        self._in_line = 0

    async def run(self, function: Callable[..., T], *args: str) -> T:
        if self._in_line >= MAX_HASHES_IN_LINE:
            raise Unavailable("too many people are logging in; try again in a few seconds")
        self._in_line += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)
        finally:
            self._in_line -= 1


_threads: Final = _Threads()


async def hash_password(password: str) -> str:
    """The argon2id hash to be stored. Takes tens of milliseconds of a thread, some MiB.

    Raises Unavailable when MAX_HASHES_IN_LINE are waiting.
    """
    return await _threads.run(_HASHER.hash, password)


async def password_matches(password_hash: str | None, password: str) -> bool:
    """Whether this is the password. None (nobody, or no password) takes as long and is False.

    Raises Unavailable when MAX_HASHES_IN_LINE are waiting.
    """
    matches = await _threads.run(_matches, password_hash or _NOBODY, password)
    return matches and password_hash is not None


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except argon2.exceptions.VerifyMismatchError:
        return False
