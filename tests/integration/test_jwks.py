"""Tokens of an outside identity provider (P4): whose they are, and what never counts as one."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import jwt
import pytest
from aiohttp import ClientSession, web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from dispatch import jwks
from dispatch.auth import Authenticator, Identity, issue_token
from dispatch.core.types import Role
from dispatch.database import Connection, Pool
from dispatch.errors import Forbidden, NotAuthenticated, Unavailable
from dispatch.jwks import Key, Provider, issued_outside
from dispatch.people import log_out, refresh
from tests.conftest import MakeConfig
from tests.integration.identity_provider import (
    AUDIENCE,
    ISSUER,
    RSA_KEY,
    IdentityProvider,
    claims,
    identity_provider,
    jwk,
)
from tests.integration.living import Client, LivingNode, living_node, two_nodes
from tests.integration.rows import add_customer, add_mechanic, add_user
from tests.support import JWT_SECRET, eventually

MAYA = "maya|0001"


@pytest.fixture
async def outside() -> AsyncIterator[IdentityProvider]:
    async with identity_provider() as provider:
        yield provider


@pytest.fixture
async def provider(outside: IdentityProvider) -> AsyncIterator[Provider]:
    """Our side of it."""
    provider = Provider(outside.url, ISSUER, AUDIENCE)
    yield provider
    await provider.close()


@pytest.fixture
async def maya(connection: Connection) -> UUID:
    """An approved mechanic whom the provider knows."""
    return await known(connection, await add_mechanic(connection), MAYA)


@pytest.fixture
def authenticator(pool: Pool, provider: Provider) -> Authenticator:
    return Authenticator(JWT_SECRET, pool, provider)


async def known(connection: Connection, user_id: UUID, subject: str) -> UUID:
    """The user, to whom the provider's subject is mapped."""
    await connection.execute(
        "UPDATE users SET issuer = $2, subject = $3 WHERE id = $1", user_id, ISSUER, subject
    )
    return user_id


async def refusal(authenticator: Authenticator, token: str) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        await authenticator.authenticate(token)
    return refused.value.message


# --- who it is ------------------------------------------------------------------------------------


async def test_a_subject_is_the_user_she_is_mapped_to_in_her_rows_role(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    token = outside.token(MAYA, role="admin", epoch=99)  # what it claims beside is not asked

    identity = await authenticator.authenticate(token)

    expires_at = jwt.decode(token, options={"verify_signature": False})["exp"]
    assert identity == Identity(maya, Role.MECHANIC, 0, expires_at, outside=True)


async def test_both_kinds_of_keys_are_good(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    outside.keys["curve"] = ec.generate_private_key(ec.SECP256R1())

    for kid in ("first", "curve"):
        assert (await authenticator.authenticate(outside.token(MAYA, kid))).user_id == maya


async def test_our_own_tokens_count_as_before_and_ask_no_provider(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    token = issue_token(JWT_SECRET, maya, "mechanic", 0, 60)

    assert not (await authenticator.authenticate(token)).outside
    assert outside.asked == 0


async def test_who_is_not_mapped_is_nobody(
    authenticator: Authenticator, outside: IdentityProvider, connection: Connection, maya: UUID
) -> None:
    of_another_issuer = await known(connection, await add_customer(connection), "bob")
    await connection.execute(
        "UPDATE users SET issuer = 'https://else.example' WHERE id = $1", of_another_issuer
    )

    for subject in ("nobody", MAYA.upper(), "bob", str(maya)):
        await refusal(authenticator, outside.token(subject))


async def test_our_token_is_not_given_for_anothers(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    identity = await authenticator.authenticate(outside.token(MAYA))

    with pytest.raises(Forbidden):
        refresh(JWT_SECRET, identity)


# --- security 4: what never counts ----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"iss": None},
        {"aud": "another-app"},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 256},
        {"sub": "maya\0"},
        {"sub": "ümlaut"},
        {"exp": None},
        {"exp": int(time.time()) - 1},
        {"exp": 1e300},
        {"iat": None},
        {"iat": int(time.time()) + 3600},
        {"iat": -1},
        {"iat": "now"},
        {"nbf": int(time.time()) + 3600},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_wrong_claims_are_refused_although_the_provider_signed_them(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID, changes: dict[str, Any]
) -> None:
    claimed = claims(MAYA, **changes)  # PyJWT would not sign some of them
    signed = jwt.api_jws.encode(
        json.dumps(claimed).encode(), RSA_KEY, algorithm="RS256", headers={"kid": "first"}
    )

    await refusal(authenticator, signed)


async def test_a_key_of_its_own_makes_no_token_good(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    public = jwk(own, "own")
    fetched = f"{outside.url}?of-the-token"
    for headers in (
        {},
        {"jwk": public},
        {"jku": fetched},
        {"x5u": fetched},
        {"x5c": ["MII"]},
        {"kid": "own"},
        {"kid": "../first"},
    ):
        await refusal(authenticator, outside.token(MAYA, key=own, headers=headers))
    # Not even a good one is, that names a key of its own or asks for what we do not know.
    for headers in ({"jwk": public}, {"jku": fetched}, {"crit": ["exp"]}):
        await refusal(authenticator, outside.token(MAYA, headers=headers))


async def test_a_key_is_good_for_its_own_algorithm_only(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    public_pem = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head = base64.urlsafe_b64encode(b'{"alg":"none","kid":"first"}').decode().rstrip("=")
    body = outside.token(MAYA).split(".")[1]
    hmac_key = public_pem + b"\n" * 40

    for forged in (
        f"{head}.{body}.",
        _hs256(body, hmac_key),
        outside.token(MAYA, algorithm="RS512"),
        outside.token(MAYA, algorithm="PS256"),
    ):
        await refusal(authenticator, forged)


def _hs256(body: str, secret: bytes) -> str:
    """A token of HMAC with the provider's public key as its secret."""
    import hmac

    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"first"}').decode().rstrip("=")
    digest = hmac.digest(secret, f"{head}.{body}".encode(), "sha256")
    return f"{head}.{body}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


async def test_a_token_that_was_touched_is_refused(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    head, body, signature = outside.token("nobody").split(".")
    hers = outside.token(MAYA).split(".")[1]

    for touched in (f"{head}.{hers}.{signature}", f"{head}.{body}", f"{head}..", "e30.e30.e30"):
        await refusal(authenticator, touched)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
heads = st.fixed_dictionaries(
    {"alg": st.sampled_from(["RS256", "ES256", "none", "HS256", 7]), "kid": st.just("first")},
    optional=dict.fromkeys(("typ", "cty", "b64", "x5t", "jwk", "crit", "iss"), json_values),
)


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@given(heads | json_values, json_values, st.binary(max_size=80))
def test_whatever_is_not_signed_is_refused_and_nothing_else_happens(
    head: object, body: object, signature: bytes
) -> None:
    last = base64.urlsafe_b64encode(signature).decode().rstrip("=")
    assert asyncio.run(verified(f"{segment(head)}.{segment(body)}.{last}")) is None


@pytest.mark.parametrize("text", ["[" * 5000, '{"alg":"RS256","kid":"first","x":' + "[" * 5000])
def test_a_head_that_is_nested_very_deeply_is_refused(text: str) -> None:
    deep = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    assert not issued_outside(f"{deep}.e30.e30")
    assert asyncio.run(verified(f"{deep}.e30.e30")) is None


async def verified(token: str) -> object:
    """What a provider whose keys we have says."""
    provider = Provider("http://127.0.0.1:9/jwks", ISSUER, AUDIENCE)
    provider._keys = {"first": Key("RS256", RSA_KEY.public_key())}
    return await provider.verify(token)


async def test_keys_that_are_too_weak_or_for_something_else_are_no_keys(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    other_curve = ec.generate_private_key(ec.SECP384R1())
    published = [
        jwk(weak, "weak"),
        jwk(other_curve, "curve", alg="ES256"),
        jwk(RSA_KEY, "encryption", use="enc"),
        jwk(RSA_KEY, "another", alg="RS512"),
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "broken", "n": "?", "e": "AQAB"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kid": 7},
        jwk(RSA_KEY, "first"),
    ]
    outside.answer = web.json_response({"keys": published})

    assert (await authenticator.authenticate(outside.token(MAYA))).user_id == maya
    for kid in ("encryption", "another", "broken", "secret"):
        await refusal(authenticator, outside.token(MAYA, kid, key=RSA_KEY))
    await refusal(authenticator, outside.token(MAYA, "weak", key=weak))
    assert outside.asked == 1


# --- keys: cached, rotated, fetched without blocking ----------------------------------------------


async def test_the_keys_are_fetched_once_for_all_who_come(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    tokens = [outside.token(MAYA) for _ in range(50)]

    await asyncio.gather(*map(authenticator.authenticate, tokens))

    assert outside.asked == 1


async def test_a_new_key_counts_at_once_and_an_old_one_no_longer(
    authenticator: Authenticator,
    outside: IdentityProvider,
    provider: Provider,
    maya: UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = outside.token(MAYA)
    assert (await authenticator.authenticate(old)).user_id == maya
    monkeypatch.setattr(jwks, "PAUSE_SECONDS", 0.0)

    outside.keys = {"second": ec.generate_private_key(ec.SECP256R1())}

    assert (await authenticator.authenticate(outside.token(MAYA, "second"))).user_id == maya
    await refusal(authenticator, old)


async def test_made_up_key_names_do_not_make_us_fetch(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    good = outside.token(MAYA)
    await authenticator.authenticate(good)

    for number in range(100):
        await refusal(authenticator, outside.token(MAYA, f"junk{number}", key=RSA_KEY))

    assert outside.asked == 1  # within the pause since the first time
    assert (await authenticator.authenticate(good)).user_id == maya


async def test_in_the_background_keys_are_fetched_again_and_again(
    outside: IdentityProvider, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(jwks, "PAUSE_SECONDS", 0.0)
    keeping = asyncio.create_task(provider.run())

    await eventually(lambda: outside.asked > 3)

    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


@pytest.mark.parametrize(
    "trouble",
    [
        web.Response(status=503),
        web.Response(status=302, headers={"Location": "http://127.0.0.1:1/jwks"}),
        web.Response(text="<html>"),
        web.Response(text='{"keys": 7}'),
        web.Response(text='{"keys": []}' + " " * jwks.MAX_BYTES),
    ],
    ids=["503", "redirect", "html", "shape", "size"],
)
async def test_while_the_provider_is_in_trouble_the_keys_that_we_have_stay(
    authenticator: Authenticator,
    outside: IdentityProvider,
    provider: Provider,
    maya: UUID,
    monkeypatch: pytest.MonkeyPatch,
    trouble: web.Response,
) -> None:
    good = outside.token(MAYA)
    await authenticator.authenticate(good)
    monkeypatch.setattr(jwks, "PAUSE_SECONDS", 0.0)
    outside.answer = trouble

    await refusal(authenticator, outside.token(MAYA, "unknown", key=RSA_KEY))

    assert outside.asked == 2
    assert (await authenticator.authenticate(good)).user_id == maya


async def test_a_provider_that_hangs_holds_up_nobody_whose_key_we_have(
    authenticator: Authenticator,
    outside: IdentityProvider,
    maya: UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = outside.token(MAYA)
    await authenticator.authenticate(good)
    monkeypatch.setattr(jwks, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.3)
    outside.hangs = True

    waiting = asyncio.create_task(
        refusal(authenticator, outside.token(MAYA, "unknown", key=RSA_KEY))
    )
    await eventually(lambda: outside.asked == 2)
    assert (await authenticator.authenticate(good)).user_id == maya
    assert not waiting.done()
    await waiting


async def test_before_the_keys_were_ever_had_nobody_is_refused_for_good(
    authenticator: Authenticator, outside: IdentityProvider, maya: UUID
) -> None:
    outside.answer = web.Response(status=500)
    token = outside.token(MAYA)

    with pytest.raises(Unavailable):
        await authenticator.authenticate(token)


# --- revoking: by `iat` ---------------------------------------------------------------------------


async def test_a_log_out_voids_the_tokens_that_were_issued_before_it(
    authenticator: Authenticator, outside: IdentityProvider, pool: Pool, maya: UUID
) -> None:
    now = int(time.time())
    before = outside.token(MAYA, iat=now - 5)
    await authenticator.authenticate(before)

    await log_out(pool, maya)

    await refusal(authenticator, before)
    later = outside.token(MAYA, iat=now + 5)  # its clock may be a few seconds ahead
    assert (await authenticator.authenticate(later)).epoch == 1


async def test_who_is_disabled_is_refused_and_who_changed_roles_has_the_new_one(
    authenticator: Authenticator, outside: IdentityProvider, connection: Connection, maya: UUID
) -> None:
    before, after = outside.token(MAYA), outside.token(MAYA, iat=int(time.time()) + 5)
    await connection.execute("UPDATE users SET role = 'customer' WHERE id = $1", maya)
    await refusal(authenticator, before)
    assert (await authenticator.authenticate(after)).role is Role.CUSTOMER

    await connection.execute("UPDATE users SET disabled_at = now() WHERE id = $1", maya)
    await refusal(authenticator, after)


# --- on sockets and over HTTP ---------------------------------------------------------------------


async def opened(living: LivingNode, token: str) -> Client:
    headers = {"Authorization": f"Bearer {token}"}
    client = Client(await connect(living.ws_url, additional_headers=headers, compression=None))
    await client.until("welcome")
    return client


async def get(living: LivingNode, path: str, token: str) -> int:
    url = living.ws_url.replace("ws", "http", 1).removesuffix("/ws") + path
    headers = {"Authorization": f"Bearer {token}"}
    async with ClientSession() as http, http.get(url, headers=headers) as response:
        return response.status


async def closed(client: Client) -> int | None:
    with pytest.raises(ConnectionClosed):
        await client.until("no such frame")
    return client.link.close_code


async def test_a_mechanic_of_the_provider_works_as_any_other_and_log_out_closes_her_sockets(
    connection: Connection, make_config: MakeConfig, outside: IdentityProvider, maya: UUID
) -> None:
    config = make_config(
        jwks_url=outside.url, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, sweep_seconds=3600.0
    )
    ann = await known(connection, await add_customer(connection), "ann")
    board = await known(connection, await add_user(connection, "admin"), "board")
    async with two_nodes(config) as (one, other):
        mechanic = await opened(other, outside.token(MAYA))
        for subject, user_id in (("ann", ann), ("board", board)):
            person = await opened(one, outside.token(subject))
            assert person.frames[0]["user_id"] == str(user_id)
            await person.link.close()
        booked = await one.book(ann)

        offer = await mechanic.until("offer", request_id=booked.request_id)
        await mechanic.send("offer.accept", offer_id=offer["offer_id"], accept_id=board)
        await mechanic.until("offer.won", request_id=booked.request_id)
        token = outside.token(MAYA)
        assert await get(one, "/api/mechanic/earnings", token) == 200
        assert await get(one, "/api/workshop/earnings", token) == 403
        await mechanic.send("token.refresh", token=token, id="r")
        await mechanic.until("ok", re="r")

        await one.call(maya, "mechanic", "POST", "/api/auth/logout")

        assert await closed(mechanic) == 4401
        assert await get(other, "/api/mechanic/earnings", token) == 401


async def test_without_a_provider_its_tokens_are_nobodys(
    make_config: MakeConfig, outside: IdentityProvider, maya: UUID
) -> None:
    async with living_node(make_config()) as living:
        assert await get(living, "/api/mechanic/earnings", outside.token(MAYA)) == 401
    assert outside.asked == 0
