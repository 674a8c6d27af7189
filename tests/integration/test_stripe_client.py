"""Our client of Stripe against the stand-in: real sockets, stripe's own library inside."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import stripe

from dispatch import errors
from dispatch.stripe_client import (
    API_VERSION,
    CheckoutSession,
    StripeClient,
    StripeFailed,
    verify_webhook,
)
from dispatch.stripe_standin.delivery import signature_header
from tests.integration.stripe_servers import (
    PAYMENT_ID,
    Receiver,
    StandInClient,
    booking,
    make_client,
    serving,
    stand_in,
)
from tests.support import STRIPE_WEBHOOK_SECRET, eventually

Sign = Callable[[bytes], str]
SECRETS = (STRIPE_WEBHOOK_SECRET,)
BODY = b'{"id":"evt_1","type":"charge.refunded","livemode":false,"created":5,"data":{"object":{}}}'


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def stripe_stand_in(tmp_path: Path, receiver: Receiver) -> AsyncIterator[StandInClient]:
    async with (
        serving(receiver.app()) as url,
        stand_in(tmp_path, f"{url}/webhook") as client,
    ):
        yield client


@pytest.fixture
async def client(stripe_stand_in: StandInClient) -> AsyncIterator[StripeClient]:
    client = make_client(stripe_stand_in.url)
    yield client
    await client.close()


async def pay(
    client: StripeClient, stripe_stand_in: StandInClient, receiver: Receiver
) -> CheckoutSession:
    """Book, pay, and give what the verified webhook said."""
    checkout = await client.create_checkout(**booking())
    await stripe_stand_in.press(checkout.url, "pay")
    completed = await receiver.wait_for("checkout.session.completed")
    paid = verify_webhook(completed.raw, completed.signature, SECRETS).object
    assert isinstance(paid, CheckoutSession)
    return paid


# --- checkout --------------------------------------------------------------------------------


async def test_a_booking_comes_back_as_a_verified_webhook(
    client: StripeClient, stripe_stand_in: StandInClient, receiver: Receiver
) -> None:
    checkout = await client.create_checkout(**booking())
    status, pressed = await stripe_stand_in.press(checkout.url, "pay")
    hook = await receiver.wait_for("checkout.session.completed")

    event = verify_webhook(hook.raw, hook.signature, SECRETS)

    assert status == 200
    assert pressed["redirect"] == f"http://localhost:8000/intake/done?checkout={checkout.id}"
    carried = {"intake_id": "i-1", "routing_type": "hybrid", "payment_id": str(PAYMENT_ID)}
    [payment] = (await stripe_stand_in.ledger())["payments"]
    assert payment["metadata"] == carried
    assert event.object == CheckoutSession(
        id=checkout.id,
        mode="payment",
        livemode=False,
        payment_status="paid",
        status="complete",
        amount_total=2500,
        currency="usd",
        payment_intent=payment["id"],
        client_reference_id=str(PAYMENT_ID),
        metadata=carried,
    )
    assert (event.type, event.livemode) == ("checkout.session.completed", False)
    theirs = stripe.Webhook.construct_event(hook.raw, hook.signature, STRIPE_WEBHOOK_SECRET)
    assert (theirs.id, theirs.created) == (event.id, event.created)
    assert hook.event["api_version"] == API_VERSION


async def test_a_checkout_made_again_for_its_payment_is_the_same_one(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    created_at = datetime.now(UTC) - timedelta(seconds=90)

    made = await asyncio.gather(
        *(client.create_checkout(**booking(created_at=created_at)) for _ in range(5))
    )
    other = await client.create_checkout(**booking(uuid4(), created_at=created_at))

    assert len({checkout.id for checkout in made}) == 1
    _, listed, _ = await stripe_stand_in.call("GET", "/v1/checkout/sessions")
    assert {session["id"] for session in listed["data"]} == {made[0].id, other.id}
    expiries = {session["expires_at"] for session in listed["data"]}
    assert expiries == {int(created_at.timestamp()) + 3600}


@pytest.mark.parametrize(("asked", "given"), [(1, 31 * 60), (10**9, 24 * 3600 - 60)])
async def test_an_expiry_that_stripe_would_refuse_is_brought_within_its_limits(
    client: StripeClient, stripe_stand_in: StandInClient, asked: int, given: int
) -> None:
    created_at = datetime.now(UTC)

    checkout = await client.create_checkout(
        **booking(created_at=created_at, expires_in_seconds=asked)
    )

    _, session, _ = await stripe_stand_in.call("GET", f"/v1/checkout/sessions/{checkout.id}")
    assert session["expires_at"] == int(created_at.timestamp()) + given


async def test_what_stripe_refuses_is_named_and_is_not_to_be_tried_again(
    client: StripeClient,
) -> None:
    with pytest.raises(StripeFailed) as refused:
        await client.create_checkout(**booking(amount_cents=10))

    assert refused.value.stripe_code == "amount_too_small"
    assert refused.value.status == 502


async def test_the_same_payment_for_another_price_is_refused(client: StripeClient) -> None:
    created_at = datetime.now(UTC)
    await client.create_checkout(**booking(created_at=created_at))

    with pytest.raises(StripeFailed) as refused:
        await client.create_checkout(**booking(created_at=created_at, amount_cents=100))

    assert refused.value.stripe_code == "idempotency_error"


async def test_stripes_library_leaves_nothing_in_the_home_folder(
    client: StripeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr("stripe._telemetry_id._loaded", False)  # as in a new process

    await client.create_checkout(**booking())

    assert list(home.iterdir()) == []


# --- refunds ---------------------------------------------------------------------------------


async def test_a_refund_gives_all_of_it_back_once_however_often_it_is_asked(
    client: StripeClient, stripe_stand_in: StandInClient, receiver: Receiver
) -> None:
    paid = await pay(client, stripe_stand_in, receiver)
    assert paid.payment_intent is not None
    asked: dict[str, Any] = {"payment_id": PAYMENT_ID, "payment_intent": paid.payment_intent}

    first = await client.refund(**asked, reason="expired")
    again = await client.refund(**asked, reason="expired")
    other_reason = await client.refund(**asked, reason="cancelled")

    assert first.status == "succeeded"
    assert first == again == other_reason
    hook = await receiver.wait_for("charge.refunded")
    charge = verify_webhook(hook.raw, hook.signature, SECRETS).object
    assert isinstance(charge, dict)
    assert (charge["payment_intent"], charge["amount_refunded"]) == (paid.payment_intent, 2500)
    [refund] = (await stripe_stand_in.ledger())["refunds"]
    assert (refund["id"], refund["amount"]) == (first.id, 2500)
    assert refund["metadata"] == {"payment_id": str(PAYMENT_ID), "reason": "expired"}


async def test_a_refund_is_found_again_when_stripe_has_forgotten_the_key(
    client: StripeClient, stripe_stand_in: StandInClient, receiver: Receiver
) -> None:
    intent = (await pay(client, stripe_stand_in, receiver)).payment_intent
    assert intent is not None
    _, earlier, _ = await stripe_stand_in.call("POST", "/v1/refunds", {"payment_intent": intent})

    refund = await client.refund(payment_id=PAYMENT_ID, payment_intent=intent, reason="expired")

    assert refund.id == earlier["id"]
    assert len((await stripe_stand_in.ledger())["refunds"]) == 1


async def test_a_payment_that_stripe_does_not_know_cannot_be_refunded(
    client: StripeClient,
) -> None:
    with pytest.raises(StripeFailed) as refused:
        await client.refund(payment_id=PAYMENT_ID, payment_intent="pi_none", reason="expired")

    assert refused.value.stripe_code == "resource_missing"


# --- Stripe away -----------------------------------------------------------------------------


async def test_a_wrong_key_is_unavailable_and_is_not_shown(
    stripe_stand_in: StandInClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(stripe_stand_in.url, "sk_test_wrong_and_secret")

    with pytest.raises(errors.Unavailable) as refused:
        await client.create_checkout(**booking())
    await client.close()

    shown = f"{refused.value!r} {refused.value.__cause__} {caplog.text}"
    assert "refuses our key" in caplog.text
    assert "sk_test" not in shown


async def test_a_stripe_that_is_away_is_unavailable() -> None:
    client = make_client("http://127.0.0.1:1")

    with pytest.raises(errors.Unavailable):
        await client.create_checkout(**booking())

    await client.close()


async def test_a_stripe_that_hangs_up_is_unavailable() -> None:
    """It promises a hundred bytes and closes after two."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        client = make_client(f"http://{host}:{port}")
        with pytest.raises(errors.Unavailable):
            await client.create_checkout(**booking())
        await client.close()


# --- webhooks --------------------------------------------------------------------------------


def signed(body: bytes, secret: str = STRIPE_WEBHOOK_SECRET, age_seconds: int = 0) -> str:
    """As stripe's own code signs."""
    header: str = stripe.WebhookSignature.generate_signature_header(
        body.decode(), secret, int(time.time()) - age_seconds
    )
    return header


@pytest.mark.parametrize("age_seconds", [0, 290, -60])
def test_a_webhook_signed_by_stripes_own_code_is_believed(age_seconds: int) -> None:
    event = verify_webhook(BODY, signed(BODY, age_seconds=age_seconds), SECRETS)

    assert (event.id, event.type, event.created) == ("evt_1", "charge.refunded", 5)
    assert event.object == {}


def test_either_secret_is_good_while_one_replaces_the_other() -> None:
    secrets = ("whsec_old", "whsec_new")

    for secret in secrets:
        assert verify_webhook(BODY, signed(BODY, secret), secrets).id == "evt_1"
    two_signatures = f"{signed(BODY, 'whsec_older')},{signed(BODY, 'whsec_new').split(',')[1]}"
    assert verify_webhook(BODY, two_signatures, secrets).id == "evt_1"
    with pytest.raises(errors.BadRequest, match="signature"):
        verify_webhook(BODY, signed(BODY, "whsec_older"), secrets)


def unsigned(header: str) -> Sign:
    return lambda body: header


NO_LIST = BODY.replace(b'"object":{}', b'"object":[]')
NO_SESSION = BODY.replace(b"charge.refunded", b"checkout.session.completed")
REFUSED: dict[str, tuple[bytes, Sign, str]] = {
    "another secret": (BODY, lambda body: signed(body, "whsec_other"), "signature is wrong"),
    "another body": (BODY, lambda body: signed(body.replace(b"5", b"6")), "signature is wrong"),
    "re-serialised": (json.dumps(json.loads(BODY)).encode(), lambda _: signed(BODY), "is wrong"),
    "another time": (BODY, lambda body: "t=2" + signed(body)[3:], "signature is wrong"),
    "an older scheme": (BODY, lambda body: signed(body).replace("v1=", "v0="), "is wrong"),
    "not ASCII": (BODY, unsigned("t=1,v1=\u00e9"), "signature is wrong"),
    "too old": (BODY, lambda body: signed(body, age_seconds=302), "too old"),
    "no header": (BODY, unsigned(""), "no timestamp"),
    "no time": (BODY, unsigned("t=,v1=aa"), "no timestamp"),
    "a time that is no number": (BODY, unsigned("t=\u0665,v1=aa"), "no timestamp"),
    "an endless time": (BODY, unsigned(f"t={'9' * 5000},v1=aa"), "no timestamp"),
    "no JSON": (b"hello", signed, "not an event"),
    "no object": (b"[]", signed, "not an event"),
    "no event": (b'{"id":"evt_1"}', signed, "not an event"),
    "an event about no object": (NO_LIST, signed, "not an event"),
    "a session that is none": (NO_SESSION, signed, "not an event"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_from_stripe_or_no_event_is_a_bad_request(case: str) -> None:
    body, sign, why = REFUSED[case]

    with pytest.raises(errors.BadRequest, match=why):
        verify_webhook(body, sign(body), SECRETS)


def test_a_body_that_is_not_utf8_is_a_bad_request() -> None:
    body = b'{"id":"\xff"}'
    signature = signature_header(body, STRIPE_WEBHOOK_SECRET, int(time.time()))

    with pytest.raises(errors.BadRequest, match="not an event"):
        verify_webhook(body, signature, SECRETS)


def test_without_a_secret_no_webhook_is_believed() -> None:
    with pytest.raises(errors.NotConfigured):
        verify_webhook(BODY, signed(BODY, "x"), ())


async def test_an_event_delivered_again_verifies_again(
    client: StripeClient, stripe_stand_in: StandInClient, receiver: Receiver
) -> None:
    await pay(client, stripe_stand_in, receiver)
    first = await receiver.wait_for("checkout.session.completed")
    event_id = first.event["id"]

    async with stripe_stand_in.http.post(
        f"{stripe_stand_in.url}/_standin/deliver", json={"event_id": event_id, "times": 3}
    ) as response:
        assert response.status == 200

    again = [hook for hook in receiver.got if hook.raw == first.raw]
    seen = [verify_webhook(hook.raw, hook.signature, SECRETS) for hook in again]
    assert len(seen) == 4
    assert {event.id for event in seen} == {event_id}
    await eventually(lambda: len(receiver.got) == 6)
