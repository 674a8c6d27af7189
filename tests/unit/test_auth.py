"""Tokens and passwords, without a database: what is let in, and what never is."""

import base64
import hmac
import json
import time
from typing import Any
from uuid import UUID

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatch.auth import (
    MAX_TOKEN_CHARS,
    Identity,
    hash_password,
    issue_token,
    password_matches,
    read_fully,
    read_quickly,
    verify_token,
)
from dispatch.core.types import Role
from dispatch.errors import NotAuthenticated
from tests.support import JWT_SECRET

MAYA = UUID("6d1c1a52-3f3f-4c1d-9a55-6a3d6c2a2c11")


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims with changes; None takes one away."""
    now = time.time()
    good = {
        "iss": "dispatch",
        "aud": "dispatch",
        "sub": str(MAYA),
        "role": "mechanic",
        "epoch": 0,
        "iat": now,
        "exp": now + 60,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(payload: dict[str, Any], secret: str = JWT_SECRET, **headers: Any) -> str:
    return jwt.encode(payload, secret, algorithm="HS256", headers=headers)


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def refusal_of(token: str) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        verify_token(JWT_SECRET, token)
    return refused.value.message


def test_a_token_says_who_in_which_role_and_until_when() -> None:
    before = time.time()

    token = issue_token(JWT_SECRET, MAYA, "mechanic", epoch=3, ttl_seconds=0.5 + 60)

    identity = verify_token(JWT_SECRET, token)
    assert identity == Identity(MAYA, Role.MECHANIC, 3, identity.expires_at)
    assert before + 60.5 <= identity.expires_at <= time.time() + 60.5


def test_a_token_lives_no_longer_than_it_says() -> None:
    assert refusal_of(issue_token(JWT_SECRET, MAYA, "customer", 0, ttl_seconds=-0.001))


def test_a_token_of_a_node_whose_clock_is_ahead_is_good() -> None:
    now = time.time()
    assert verify_token(JWT_SECRET, signed(claims(iat=now + 5, exp=now + 65))).user_id == MAYA


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "role", "epoch", "iat", "exp"])
def test_every_claim_is_required(name: str) -> None:
    assert verify_token(JWT_SECRET, signed(claims()))
    refusal_of(signed(claims(**{name: None})))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "somebody-else"},
        {"aud": "somebody-else"},
        {"aud": ["dispatch", "somebody-else"]},
        {"sub": "not-a-uuid"},
        {"sub": 7},
        {"role": "root"},
        {"epoch": "0"},
        {"epoch": 0.5},
        {"iat": time.time() + 3600},
        {"nbf": time.time() + 3600},
        {"exp": "tomorrow"},
        {"exp": time.time() - 1},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_wrong_claims_are_refused_although_we_signed_them(changes: dict[str, Any]) -> None:
    refusal_of(signed(claims(**changes)))


@given(
    changes=st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "role", "epoch", "iat", "exp", "nbf", "jti", "x"]),
        st.sampled_from(
            [
                *(None, "dispatch", ["dispatch"], str(MAYA), MAYA.hex, "admin", "root", "", "7"),
                *(7, 7.0, True, 0.5, -1, 2**70, 1e18, -1e18),
            ]
        )
        | st.floats(-20, 20).map(lambda by: time.time() + by),
        max_size=2,
    ),
    headers=st.sampled_from([{}, {"kid": "a"}, {"typ": "at+jwt"}, {"crit": ["b64"], "b64": True}]),
    damage=st.none() | st.tuples(st.integers(0, 400), st.sampled_from([*"AQgw._-=", ""])),
)
def test_what_is_read_quickly_is_what_the_full_reader_says(
    changes: dict[str, Any], headers: dict[str, Any], damage: tuple[int, str] | None
) -> None:
    payload = json.dumps({**claims(), **changes}).encode()
    token = jwt.PyJWS().encode(payload, JWT_SECRET, algorithm="HS256", headers=headers)
    if damage is not None:
        at, character = damage
        token = token[:at] + character + token[at + 1 :]

    quick = read_quickly(JWT_SECRET, token)

    if quick is not None:
        assert quick == read_fully(JWT_SECRET, token)


def test_our_own_tokens_are_read_quickly_and_nobody_elses() -> None:
    token = issue_token(JWT_SECRET, MAYA, "mechanic", epoch=3, ttl_seconds=60)

    identity = read_quickly(JWT_SECRET, token)

    assert identity == read_fully(JWT_SECRET, token)
    assert read_quickly("another-secret-of-more-than-32-bytes", token) is None
    assert read_quickly(JWT_SECRET, issue_token(JWT_SECRET, MAYA, "admin", 0, -0.001)) is None


def test_a_token_that_is_not_signed_is_refused() -> None:
    for algorithm in ("none", "None", "nOnE", ""):
        for signature in ("", "AAAA"):
            header = segment({"alg": algorithm, "typ": "JWT"})
            refusal_of(f"{header}.{segment(claims())}.{signature}")


def test_only_our_secret_and_our_algorithm_count() -> None:
    refusal_of(signed(claims(), secret="another-secret-of-more-than-32-bytes"))
    refusal_of(jwt.encode(claims(), JWT_SECRET + "x" * 64, algorithm="HS512"))
    refusal_of(jwt.encode(claims(), JWT_SECRET + "x" * 64, algorithm="HS384"))


def test_a_public_key_is_no_secret() -> None:
    public_key = b"-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZI\n-----END PUBLIC KEY-----"
    content = f"{segment({'alg': 'HS256', 'typ': 'JWT'})}.{segment(claims())}"
    digest = hmac.digest(public_key, content.encode(), "sha256")
    signature = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    refusal_of(f"{content}.{signature}")


def test_a_short_secret_verifies_nothing() -> None:
    short = "only-thirty-one-bytes-long-....."[:31]
    with pytest.warns(Warning, match="below the minimum"):
        token = signed(claims(), secret=short)
    with pytest.raises(NotAuthenticated):
        verify_token(short, token)


def test_a_key_that_the_token_brings_along_is_not_used() -> None:
    theirs = "the-secret-of-an-attacker-32-bytes-long"
    key = {"kty": "oct", "k": base64.urlsafe_b64encode(theirs.encode()).decode()}
    for headers in (
        {"jwk": key},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://e.example"},
    ):
        refusal_of(signed(claims(), secret=theirs, **headers))
        assert verify_token(JWT_SECRET, signed(claims(), **headers)).user_id == MAYA


def test_a_changed_payload_is_refused() -> None:
    header, _, signature = signed(claims()).split(".")
    refusal_of(f"{header}.{segment(claims(role='admin'))}.{signature}")


def test_every_refusal_says_the_same_and_nothing_of_the_token() -> None:
    tokens = [
        "",
        "nonsense",
        signed(claims(role="root")),
        signed(claims(exp=1)),
        signed(claims(), secret="another-secret-of-more-than-32-bytes"),
        "x" * (MAX_TOKEN_CHARS + 1),
    ]
    assert len({refusal_of(token) for token in tokens}) == 1


@given(st.text())
def test_whatever_text_comes_is_refused(text: str) -> None:
    refusal_of(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
header_names = st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "jku", "cty"])


@given(st.dictionaries(header_names, json_values) | json_values, json_values, st.binary())
def test_whatever_header_and_payload_come_unsigned_is_refused(
    header: object, payload: object, signature: bytes
) -> None:
    last = base64.urlsafe_b64encode(signature).decode().rstrip("=")
    refusal_of(f"{segment(header)}.{segment(payload)}.{last}")


def test_a_header_that_is_nested_very_deeply_is_refused() -> None:
    deep = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")
    refusal_of(f"{deep}.{deep}.")


async def test_a_password_matches_its_own_hash_and_no_other() -> None:
    hashed = await hash_password("correct horse")

    assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert "correct horse" not in hashed
    assert hashed != await hash_password("correct horse"), "each hash has a salt of its own"
    assert await password_matches(hashed, "correct horse")
    assert not await password_matches(hashed, "correct horse ")


async def test_nobody_has_no_password() -> None:
    for guess in ("", "\0", "password"):
        assert not await password_matches(None, guess)
