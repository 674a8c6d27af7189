"""The cryptography of web push: a message that only one browser can read, and who sends it.

One job: RFC 8291 (the message is encrypted to the keys of a subscription, as one record of RFC
8188) and RFC 8292 (VAPID: we sign whom we speak to, so that nobody else can use our
subscriptions). Imports `errors`. Pure but for random numbers; a message and its signature take 0.2
ms. It fails with `BadRequest` for keys that are none.

Both RFCs are built of what cryptography and PyJWT have; the example of RFC 8291 is a test.
"""

import base64
import os
from typing import Final, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dispatch.errors import BadRequest

AUTH_BYTES: Final = 16
SALT_BYTES: Final = 16
PRIVATE_KEY_BYTES: Final = 32
RECORD_BYTES: Final = 4096  # what every push service takes (RFC 8030, section 7.2)
TOKEN_SECONDS: Final = 12 * 3600  # RFC 8292 allows 24 hours; half of it is left to wrong clocks

_CURVE: Final = ec.SECP256R1()
_LAST_RECORD: Final = b"\x02"


def to_base64url(data: bytes) -> str:
    """As RFC 8291 and 8292 write bytes: without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """The bytes, with or without padding. Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


# --- RFC 8291 -------------------------------------------------------------------------------------


class Reader(NamedTuple):
    """Who can read a message: the public key and the secret of a browser's subscription."""

    public_key: bytes
    auth: bytes

    @classmethod
    def parse(cls, p256dh: str, auth: str) -> "Reader":
        """Of the two texts that a browser gives. Raises `BadRequest` naming the wrong one."""
        try:
            public_key = from_base64url(p256dh)
            _public_key(public_key)
        except ValueError:
            raise BadRequest("keys.p256dh: must be an uncompressed point of P-256") from None
        try:
            secret = from_base64url(auth)
        except ValueError:
            secret = b""
        if len(secret) != AUTH_BYTES:
            raise BadRequest(f"keys.auth: must be {AUTH_BYTES} bytes")
        return cls(public_key, secret)


def encrypt(
    message: bytes,
    reader: Reader,
    *,
    salt: bytes | None = None,
    private_key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """The body of a push request in the coding `aes128gcm`, for a message of at most 3993 bytes.

    `salt` and the private key are drawn anew for each message; only the RFC's example gives them.
    """
    salt = salt or os.urandom(SALT_BYTES)
    private_key = private_key or ec.generate_private_key(_CURVE)
    sender = _uncompressed(private_key.public_key())
    header = salt + RECORD_BYTES.to_bytes(4) + bytes([len(sender)]) + sender
    shared = private_key.exchange(ec.ECDH(), _public_key(reader.public_key))
    info = b"WebPush: info\0" + reader.public_key + sender
    secret = _derive(32, shared, reader.auth, info)
    key = _derive(16, secret, salt, b"Content-Encoding: aes128gcm\0")
    nonce = _derive(12, secret, salt, b"Content-Encoding: nonce\0")
    body = header + AESGCM(key).encrypt(nonce, message + _LAST_RECORD, None)
    assert len(body) <= RECORD_BYTES, "a push service need not take it"
    return body


def _derive(length: int, secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), length, salt, info).derive(secret)


def _public_key(point: bytes) -> ec.EllipticCurvePublicKey:
    """Of an uncompressed point. Raises ValueError, also where the point is not on the curve."""
    if point[:1] != b"\x04":
        raise ValueError("not uncompressed")
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)


def _uncompressed(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


# --- RFC 8292 -------------------------------------------------------------------------------------


class Vapid:
    """Who we are to push services. `public_key` is what a browser subscribes with."""

    def __init__(self, private_key: str, subject: str) -> None:
        """`private_key` as `new_private_key` makes it; `subject` is how to reach an operator."""
        secret = int.from_bytes(from_base64url(private_key))
        self._key = ec.derive_private_key(secret, _CURVE)
        self._subject = subject
        self.public_key: Final = to_base64url(_uncompressed(self._key.public_key()))

    def authorization(self, audience: str, now: float) -> str:
        """The header `Authorization` for a push service by its origin; `now` in Unix seconds."""
        # In the order of the alphabet: some push services have wanted it so.
        claims = {"aud": audience, "exp": int(now) + TOKEN_SECONDS, "sub": self._subject}
        return f"vapid t={jwt.encode(claims, self._key, 'ES256')}, k={self.public_key}"


def new_private_key() -> str:
    """A fresh key in the form that VAPID_PRIVATE_KEY takes."""
    secret = ec.generate_private_key(_CURVE).private_numbers().private_value
    return to_base64url(secret.to_bytes(PRIVATE_KEY_BYTES))
