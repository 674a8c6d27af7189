"""What a browser can read and a push service believes, by the examples of the RFCs."""

import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dispatch.config import load
from dispatch.errors import BadRequest
from dispatch.push_crypto import (
    TOKEN_SECONDS,
    Reader,
    Vapid,
    encrypt,
    from_base64url,
    new_private_key,
    to_base64url,
)
from tests.integration.push_service import Browser, unbase64url

# RFC 8291, section 5 and appendix A.
PLAINTEXT = b"When I grow up, I want to be a watermelon"
BROWSER_PRIVATE_KEY = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"
BROWSER_PUBLIC_KEY = (
    "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
)
AUTH = "BTBZMqHH6r4Tts7J_aSIgg"
SENDER_PRIVATE_KEY = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"
SALT = "DGv6ra1nlYgDCS1FRnbzlw"
BODY = (
    "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml"
    "mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT"
    "pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
)


def key_of(secret: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(unbase64url(secret)), ec.SECP256R1())


def test_a_message_is_encrypted_as_in_the_example_of_rfc_8291() -> None:
    reader = Reader.parse(BROWSER_PUBLIC_KEY, AUTH)

    body = encrypt(
        PLAINTEXT, reader, salt=from_base64url(SALT), private_key=key_of(SENDER_PRIVATE_KEY)
    )

    assert to_base64url(body) == BODY


def test_the_browser_of_the_tests_reads_the_example_of_rfc_8291() -> None:
    browser = Browser("https://push.example/1", "")
    browser.private_key, browser.auth = key_of(BROWSER_PRIVATE_KEY), unbase64url(AUTH)

    assert browser.decrypt(unbase64url(BODY)) == PLAINTEXT


@pytest.mark.parametrize("length", [0, 1, 400, 3993])
def test_every_message_is_encrypted_anew_and_can_be_read(length: int) -> None:
    browser = Browser("https://push.example/1", "")
    reader = Reader.parse(**browser.form()["keys"])
    message = b"\x02" * length

    one, other = encrypt(message, reader), encrypt(message, reader)

    assert browser.decrypt(one) == browser.decrypt(other) == message
    assert one[:16] != other[:16]
    assert one[21:86] != other[21:86]
    assert len(one) == length + 103 <= 4096


def test_keys_are_taken_with_and_without_padding() -> None:
    assert Reader.parse(BROWSER_PUBLIC_KEY + "=", AUTH + "==") == Reader.parse(
        BROWSER_PUBLIC_KEY, AUTH
    )


COMPRESSED = to_base64url(b"\x03" + from_base64url(BROWSER_PUBLIC_KEY)[1:33])
OFF_THE_CURVE = to_base64url(from_base64url(BROWSER_PUBLIC_KEY)[:-1] + b"\x0f")


@pytest.mark.parametrize(
    ("p256dh", "auth", "field"),
    [
        ("", AUTH, "keys.p256dh"),
        (COMPRESSED, AUTH, "keys.p256dh"),
        (OFF_THE_CURVE, AUTH, "keys.p256dh"),
        (to_base64url(b"\x04" + bytes(64)), AUTH, "keys.p256dh"),
        (to_base64url(b"\x00"), AUTH, "keys.p256dh"),
        (BROWSER_PUBLIC_KEY[:-2], AUTH, "keys.p256dh"),
        (BROWSER_PUBLIC_KEY + "AAAA", AUTH, "keys.p256dh"),
        (BROWSER_PUBLIC_KEY.replace("_", "!"), AUTH, "keys.p256dh"),
        ("ключ", AUTH, "keys.p256dh"),
        (BROWSER_PUBLIC_KEY, "", "keys.auth"),
        (BROWSER_PUBLIC_KEY, AUTH[:-2], "keys.auth"),
        (BROWSER_PUBLIC_KEY, AUTH + "AA", "keys.auth"),
        (BROWSER_PUBLIC_KEY, AUTH[:-1] + "!", "keys.auth"),
    ],
)
def test_keys_that_are_none_are_refused_by_their_name(p256dh: str, auth: str, field: str) -> None:
    with pytest.raises(BadRequest, match=f"^{field}: ") as refused:
        Reader.parse(p256dh, auth)

    assert not auth or auth not in refused.value.message
    assert not p256dh or p256dh not in refused.value.message


def test_a_token_names_the_service_and_whom_to_write_to_and_ends_within_a_day() -> None:
    vapid = Vapid(new_private_key(), "mailto:ops@dispatch.example")
    now = time.time()

    header = vapid.authorization("https://push.example", now)

    token = header.removeprefix("vapid t=").partition(",")[0]
    shown, claims = (json.loads(unbase64url(part)) for part in token.split(".")[:2])
    assert header == f"vapid t={token}, k={vapid.public_key}"
    assert shown["alg"] == "ES256"
    assert claims == {
        "aud": "https://push.example",
        "exp": int(now) + TOKEN_SECONDS,
        "sub": "mailto:ops@dispatch.example",
    }
    assert TOKEN_SECONDS <= 24 * 3600
    assert len(unbase64url(vapid.public_key)) == 65


def test_every_fresh_key_is_another_and_fit_for_the_configuration() -> None:
    keys = {new_private_key() for _ in range(20)}

    for key in keys:
        config = load({"VAPID_PRIVATE_KEY": key, "VAPID_SUBJECT": "mailto:ops@dispatch.example"})
        assert config.vapid_private_key == key
    assert len(keys) == 20
