"""An identity provider of the test's own: keys on a real socket, and tokens signed with them.

It can rotate its keys, fall silent, answer nonsense, and counts how often it is asked.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER: Final = "https://id.example"
AUDIENCE: Final = "dispatch-app"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

# Made once: a key of RSA takes a tenth of a second.
RSA_KEY: Final = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwk(key: PrivateKey, kid: str, **parameters: Any) -> dict[str, Any]:
    """The public half as it is published."""
    if isinstance(key, rsa.RSAPrivateKey):
        public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**public, "kid": kid, "use": "sig", **parameters}


def claims(subject: str, **changes: Any) -> dict[str, Any]:
    """Good claims with changes; None takes one away."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 300}
    return {name: value for name, value in (good | changes).items() if value is not None}


@dataclass
class IdentityProvider:
    """Who signs. `keys` are published by their `kid`; `answer` is sent in their place."""

    url: str = ""
    keys: dict[str, PrivateKey] = field(default_factory=lambda: {"first": RSA_KEY})
    answer: web.Response | None = None
    hangs: bool = False
    asked: int = 0

    def token(
        self,
        subject: str,
        kid: str = "first",
        *,
        key: PrivateKey | None = None,
        algorithm: str | None = None,
        headers: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """A token of this subject, signed with the key of that name unless another is given."""
        key = self.keys[kid] if key is None else key
        usual = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(
            claims(subject, **changes),
            key,
            algorithm=algorithm or usual,
            headers={"kid": kid, **(headers or {})},
        )

    async def serve(self, request: web.Request) -> web.Response:
        """`GET /jwks`."""
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.answer is not None:
            return self.answer
        published = {"keys": [jwk(key, kid) for kid, key in self.keys.items()]}
        return web.Response(body=json.dumps(published), content_type="application/json")


@contextlib.asynccontextmanager
async def identity_provider() -> AsyncIterator[IdentityProvider]:
    """Serves inside the block."""
    provider = IdentityProvider()
    app = web.Application()
    app.router.add_get("/jwks", provider.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    try:
        yield provider
    finally:
        await runner.cleanup()
