"""A push service and its browsers, on a real socket: RFC 8030, 8291 and 8292 from the other side.

It believes nothing: a request that is not as the RFCs want it gets the status that they name, and
what was wrong is kept in `complaints`. A message is decrypted with the keys of the browser that it
is for. Verified and decrypted with `cryptography` alone: no code is shared with what is judged.

    service.browser(...)     a browser that has subscribed; `browser.form()` is what it posts
    browser.answers          how it is to answer next: a status, or an `Answer`; 201 when empty
    browser.got              what was delivered, decrypted, in order; `tries` counts every request
    browser.shown            what a device that was away would find: the last of each topic
"""

import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from dispatch.push_crypto import Vapid, new_private_key
from tests.integration.stripe_servers import serving

Json = dict[str, Any]

SUBJECT: Final = "mailto:ops@dispatch.example"
MAX_BODY_BYTES: Final = 4096
MAX_TOKEN_SECONDS: Final = 24 * 3600
TOPIC_CHARS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


class Refused(Exception):
    """A request that is not as the RFCs want it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """An answer other than a bare status; `hangs` never comes, `endless` has a body without end."""

    status: int = 201
    headers: dict[str, str] = field(default_factory=dict)
    hangs: bool = False
    endless: bool = False


@dataclass(frozen=True)
class Delivered:
    """A message as the browser reads it, and the headers that it came with."""

    message: Json
    headers: dict[str, str]


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unbase64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


class Browser:
    """One subscription of one browser."""

    def __init__(self, endpoint: str, application_server_key: str) -> None:
        self.endpoint: Final = endpoint
        self.application_server_key: Final = application_server_key
        self.private_key = ec.generate_private_key(ec.SECP256R1())
        self.auth = uuid4().bytes
        self.answers: deque[int | Answer] = deque()
        self.got: list[Delivered] = []
        self.tries = 0
        self.shown: dict[str, Json] = {}

    def form(self, **beside: object) -> Json:
        """What `PushSubscription.toJSON()` gives."""
        keys = {"p256dh": base64url(point(self.private_key.public_key()))}
        keys["auth"] = base64url(self.auth)
        return {"endpoint": self.endpoint, "expirationTime": None, "keys": keys, **beside}

    def decrypt(self, body: bytes) -> bytes:
        """RFC 8291, for one record (RFC 8188)."""
        salt, rest = body[:16], body[21:]
        assert int.from_bytes(body[16:20]) >= len(body) - 86, "one record"
        sender, sealed = rest[: body[20]], rest[body[20] :]
        theirs = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
        ours = point(self.private_key.public_key())
        shared = self.private_key.exchange(ec.ECDH(), theirs)
        info = b"WebPush: info\x00" + ours + sender
        secret = HKDF(SHA256(), 32, self.auth, info).derive(shared)
        key = HKDF(SHA256(), 16, salt, b"Content-Encoding: aes128gcm\x00").derive(secret)
        nonce = HKDF(SHA256(), 12, salt, b"Content-Encoding: nonce\x00").derive(secret)
        text, delimiter, padding = AESGCM(key).decrypt(nonce, sealed, None).rpartition(b"\x02")
        assert delimiter, "the last record ends with a delimiter of 2"
        assert not padding.strip(b"\x00"), "which only zeros follow"
        return text


class PushService:
    """Every browser of this service; `private_key` is our server's, which they subscribed with."""

    def __init__(self) -> None:
        self.private_key: Final = new_private_key()
        self.url = ""
        self.browsers: dict[str, Browser] = {}
        self.complaints: list[str] = []
        self.ended = asyncio.Event()

    def browser(self, application_server_key: str | None = None) -> Browser:
        """A browser that has subscribed with this key, our server's own unless given."""
        path = f"/push/{uuid4().hex}%3Aa:b"
        key = application_server_key or Vapid(self.private_key, SUBJECT).public_key
        self.browsers[path] = Browser(self.url + path, key)
        return self.browsers[path]

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/push/{id:path}", self._push, methods=["POST"]),
                Route("/elsewhere", self._elsewhere, methods=["GET", "POST"]),
            ]
        )

    async def _elsewhere(self, request: Request) -> Response:
        """Where redirects lead: nobody may follow one."""
        self.complaints.append("a redirect was followed")
        return Response(status_code=201)

    async def _push(self, request: Request) -> Response:
        browser = self.browsers.get(request.scope["raw_path"].decode())
        if browser is None:
            return Response(status_code=404)
        browser.tries += 1
        answer = browser.answers.popleft() if browser.answers else Answer()
        if isinstance(answer, int):
            answer = Answer(answer)
        try:
            delivered = self._read(browser, await request.body(), dict(request.headers))
        except Refused as refused:
            self.complaints.append(str(refused))
            return Response(status_code=refused.status)
        if 200 <= answer.status < 300:
            browser.got.append(delivered)
            browser.shown[delivered.headers["topic"]] = delivered.message
        if answer.hangs:
            await self.ended.wait()
        if answer.endless:
            return StreamingResponse(self._without_end(), answer.status, answer.headers)
        return Response(status_code=answer.status, headers=answer.headers)

    async def _without_end(self) -> AsyncIterator[bytes]:
        while not self.ended.is_set():
            yield b"x" * 1024
            await asyncio.sleep(0)

    def _read(self, browser: Browser, body: bytes, headers: dict[str, str]) -> Delivered:
        """The message, if all of the request is as it should be."""
        self._check_token(browser, headers.get("authorization", ""))
        if not headers.get("ttl", "").isdecimal():
            raise Refused(400, "TTL is missing or no number (RFC 8030, 5.2)")
        topic = headers.get("topic", "x")
        if not (1 <= len(topic) <= 32 and TOPIC_CHARS.issuperset(topic)):
            raise Refused(400, "Topic is not base64url of at most 32 characters (RFC 8030, 5.4)")
        if headers.get("urgency", "normal") not in ("very-low", "low", "normal", "high"):
            raise Refused(400, "Urgency is unknown (RFC 8030, 5.3)")
        if headers.get("content-encoding") != "aes128gcm":
            raise Refused(400, "Content-Encoding is not aes128gcm (RFC 8291, 4)")
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, "more than 4096 bytes (RFC 8030, 7.2)")
        return Delivered(json.loads(browser.decrypt(body)), headers)

    def _check_token(self, browser: Browser, authorization: str) -> None:
        """RFC 8292: who sends, to us and not to another service, and not for ever."""
        scheme, _, parameters = authorization.partition(" ")
        given = dict(part.strip().split("=", 1) for part in parameters.split(",") if "=" in part)
        if scheme != "vapid" or given.keys() != {"t", "k"}:
            raise Refused(401, "no vapid token (RFC 8292, 3)")
        if given["k"] != browser.application_server_key:
            raise Refused(403, "not the key that the browser subscribed with (RFC 8292, 4.2)")
        signed, _, signature = given["t"].rpartition(".")
        header, claims = (json.loads(unbase64url(part)) for part in signed.split("."))
        _verify(given["k"], signed.encode(), unbase64url(signature))
        left = claims["exp"] - time.time()
        if header["alg"] != "ES256" or claims["aud"] != self.url:
            raise Refused(403, f"a token for {claims['aud']} (RFC 8292, 2)")
        if not 0 < left <= MAX_TOKEN_SECONDS:
            raise Refused(403, f"a token for {left} s (RFC 8292, 2)")
        if claims["sub"] != SUBJECT:
            raise Refused(403, f"a token of {claims['sub']}")


def _verify(public_key: str, signed: bytes, signature: bytes) -> None:
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), unbase64url(public_key))
    r, s = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
    try:
        key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise Refused(403, "the signature is wrong (RFC 8292, 2)") from None


@asynccontextmanager
async def push_service() -> AsyncIterator[PushService]:
    """A service that runs inside the block."""
    service = PushService()
    async with serving(service.app()) as url:
        service.url = url
        try:
            yield service
        finally:
            service.ended.set()
