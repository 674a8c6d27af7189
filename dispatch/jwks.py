"""Tokens of an outside identity provider, by the keys that it publishes (P4).

One job: say which subject a token of that provider speaks for, and until when. Imports `config`
and `errors`, and aiohttp late. A token that is not good is None, without saying why; raises
`Unavailable` while the keys were never had. Only RS256 and ES256, the one that the key's type
allows; a key is found by its `kid` among the published ones, and by nothing else that a token says
of itself.

The keys are read at the start, then every REFRESH_SECONDS off everybody's way, and once more for a
`kid` that is not among them, but at most every PAUSE_SECONDS: made-up ones must not make us fetch.
While the provider is away the keys that we have stay.
"""

import asyncio
import base64
import logging
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from msgspec import Meta, Struct

from dispatch.config import Config
from dispatch.errors import Unavailable

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 300.0
PAUSE_SECONDS: Final = 10.0
FETCH_SECONDS: Final = 5.0
MAX_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048
CLOCK_SKEW_SECONDS: Final = 10

# Ways in which a token could name a key of its own (RFC 7515, 4.1), or ask for what we do not know.
_SELF_KEYED: Final = frozenset({"jku", "jwk", "x5u", "x5c", "crit"})
_REQUIRED: Final = ["iss", "aud", "sub", "iat", "exp"]


class Subject(Struct, frozen=True):
    """Whom a good token speaks for. Times are in seconds since the epoch."""

    issuer: str
    subject: str
    issued_at: float
    expires_at: float


class Key(Struct, frozen=True):
    """A published key, and the one algorithm that it is for."""

    algorithm: str
    public: "rsa.RSAPublicKey | ec.EllipticCurvePublicKey"


class _Published(Struct, frozen=True):
    keys: list[dict[str, Any]]


class Provider:
    """The identity provider that is configured, for one event loop; `close()` it at the end."""

    def __init__(self, url: str, issuer: str, audience: str) -> None:
        self._url = url
        self._issuer = issuer
        self._audience = audience
        self._keys: Mapping[str, Key] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_at = -PAUSE_SECONDS  # when it was last tried, by the monotonic clock
        self._session: aiohttp.ClientSession | None = None
        self._is_away = False

    @classmethod
    def of(cls, config: Config) -> Self | None:
        """As configured; None where tokens of ours are the only ones."""
        if not config.jwks_url:
            return None
        return cls(config.jwks_url, config.jwt_issuer, config.jwt_audience)

    async def run(self) -> None:
        """Keeps the keys fresh, until cancelled."""
        while True:
            await self._fetch()
            await asyncio.sleep(REFRESH_SECONDS * random.uniform(0.8, 1.0))

    async def close(self) -> None:
        """Ends what is under way, and the connections."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # --- tokens

    async def verify(self, token: str) -> Subject | None:
        """Whom the token speaks for; None unless it is this provider's, good and for us."""
        head = _head(token)
        if head is None or not _SELF_KEYED.isdisjoint(head):
            return None
        key = await self._key(head.get("kid"))
        if key is None or head.get("alg") != key.algorithm:
            return None
        try:
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=CLOCK_SKEW_SECONDS,
                options={"require": _REQUIRED},
            )
            subject = msgspec.convert(claims, _Claims)
        except (jwt.PyJWTError, ValueError):  # msgspec's errors are ValueErrors
            return None
        if subject.exp <= time.time():  # the leeway above is for clocks that lag
            return None
        return Subject(self._issuer, subject.sub, subject.iat, subject.exp)

    async def _key(self, kid: object) -> Key | None:
        if not isinstance(kid, str):
            return None
        if self._keys is None or kid not in self._keys:
            await self._fetch()
        if self._keys is None:
            raise Unavailable("the identity provider does not answer, try again")
        return self._keys.get(kid)

    # --- keys

    async def _fetch(self) -> None:
        """The keys as they are now, unless they were just asked for; all wait for one answer."""
        if self._fetching is None:
            if time.monotonic() - self._fetched_at < PAUSE_SECONDS:
                return
            self._fetching = asyncio.create_task(self._fetch_once(), name="fetch-jwks")
        await asyncio.shield(self._fetching)  # one who leaves takes nobody along

    async def _fetch_once(self) -> None:
        import aiohttp

        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = _read(await self._download())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if not self._is_away:
                self._is_away = True
                log.warning("the identity provider's keys cannot be read: %s", _why(error))
        else:
            if self._is_away:
                self._is_away = False
                log.info("the identity provider's keys are read again")
        finally:
            self._fetched_at = time.monotonic()
            self._fetching = None

    async def _download(self) -> bytes:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "dispatch", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        # A redirect may lead anywhere, and what stands there would say who is who.
        async with self._session.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"it answers {response.status}")
            text = bytearray()
            async for chunk in response.content.iter_any():
                text += chunk
                if len(text) > MAX_BYTES:
                    raise ValueError(f"it answers more than {MAX_BYTES} bytes")
        return bytes(text)


_Time = Annotated[float, Meta(ge=0, le=1e11)]


class _Claims(Struct, frozen=True):
    """What PyJWT leaves to us: OpenID Connect Core, section 2, says what a `sub` may be."""

    sub: Annotated[str, Meta(pattern=r"^[\x20-\x7e]{1,255}$")]
    iat: _Time
    exp: _Time


def _why(error: Exception) -> str:
    """For the log: what it answered is not ours to show."""
    return str(error) if type(error) is ValueError else type(error).__name__


def _read(document: bytes) -> dict[str, Key]:
    """The usable keys of a key set (RFC 7517) by `kid`. Raises ValueError for what is none."""
    try:
        published = msgspec.json.decode(document, type=_Published).keys
    except msgspec.DecodeError as error:
        raise ValueError("it answers no key set") from error
    keys = {}
    for parameters in published[:MAX_KEYS]:
        key = _usable(parameters)
        if key is not None:
            keys[str(parameters["kid"])] = key
    return keys


def _usable(parameters: Mapping[str, Any]) -> Key | None:
    """A public key for signatures, of a kind and size that we take; None for any other."""
    if not isinstance(parameters.get("kid"), str) or parameters.get("use", "sig") != "sig":
        return None
    algorithm = {"RSA": "RS256", "EC": "ES256"}.get(str(parameters.get("kty")))
    if algorithm is None or parameters.get("alg", algorithm) != algorithm:
        return None
    try:
        public = jwt.PyJWK(dict(parameters), algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= MIN_RSA_BITS:
        return Key(algorithm, public)
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return Key(algorithm, public)
    return None  # also a private one, which nobody should have published


def issued_outside(token: str) -> bool:
    """Whether a token says that it was signed as no token of ours is."""
    head = _head(token)
    return head is not None and head.get("alg") in ("RS256", "ES256")


def _head(token: str) -> dict[str, Any] | None:
    """What a token says of its signature, unverified."""
    head = token.partition(".")[0]
    try:
        decoded = base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
        return msgspec.json.decode(decoded, type=dict[str, Any])
    except (ValueError, RecursionError):  # binascii's and msgspec's errors, and what is not ASCII
        return None
