"""Webhooks as Stripe sends them, and as it never would: one fulfilment, or nothing."""

import asyncio
import copy
import hashlib
import hmac
import json
import time
from collections import Counter
from typing import Any

import pytest

from tests.acceptance.actors import Answer, City, Customer
from tests.acceptance.shapes import Frame
from tests.support import STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, eventually

PATH = "/api/stripe/webhook"


def signature(body: bytes, secret: str = STRIPE_WEBHOOK_SECRET, age_seconds: int = 0) -> str:
    at = int(time.time()) - age_seconds
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


async def deliver(city: City, event: Frame, header: str | None = None) -> Answer:
    """The event as a webhook with this signature, or with a good one."""
    body = json.dumps(event).encode()
    headers = {"Stripe-Signature": header or signature(body), "Content-Type": "application/json"}
    return await city.call("POST", PATH, data=body, headers=headers)


async def stripe(city: City, path: str) -> Any:
    """A GET at Stripe's own API."""
    return (await city.call("GET", f"{city.town.stripe_url}{path}", token=STRIPE_SECRET_KEY)).body


async def paid_event(city: City, checkout_url: str) -> Frame:
    """The event that says that this page's checkout was completed, once it exists."""
    checkout_id = checkout_url.rsplit("/", 1)[1]

    async def event() -> Frame | None:
        listed = (await stripe(city, "/v1/events?type=checkout.session.completed"))["data"]
        return next((e for e in listed if e["data"]["object"]["id"] == checkout_id), None)

    return await eventually(event)


async def completed(city: City, customer: Customer, **changes: Any) -> Frame:
    """A signed-to-be event for a checkout that Stripe itself never saw paid."""
    _, url = await customer.checkout()
    session = await stripe(city, f"/v1/checkout/sessions/{url.rsplit('/', 1)[1]}")
    paid = {"status": "complete", "payment_status": "paid", "payment_intent": "pi_of_a_test"}
    return {
        "id": f"evt_{session['id']}",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": int(time.time()),
        "livemode": changes.pop("livemode", False),
        "pending_webhooks": 1,
        "request": None,
        "type": changes.pop("type", "checkout.session.completed"),
        "data": {"object": session | paid | changes},
    }


async def test_the_same_event_a_hundred_times_at_once_is_one_booking(city: City) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic()
    booking = await ann.book()
    event = await paid_event(city, booking.checkout_url)

    again = await city.call(
        "POST",
        f"{city.town.stripe_url}/_standin/deliver",
        {"event_id": event["id"], "times": 100},
    )

    assert again.body == {"statuses": [200] * 100}
    await ann.device.fence()
    assert {f["request_id"] for f in ann.device.got("request.status")} == {booking.request_id}
    await mechanic.wins(booking)
    assert len({c["request_id"] for c in mechanic.device.got("offer")}) == 1
    assert await city.refunds_of(booking) == []


async def test_a_hundred_at_once_that_are_the_first_are_one_booking(city: City) -> None:
    ann = await city.customer()
    event = await completed(city, ann)

    answers = await asyncio.gather(*(deliver(city, event) for _ in range(100)))

    assert Counter(answer.status for answer in answers) == {200: 100}
    await ann.device.expect("request.status")
    device = await ann.connect()
    assert len(device.snapshot["requests"]) == len(device.snapshot["sessions"]) == 1


async def test_two_events_of_one_payment_in_any_order_are_one_booking(city: City) -> None:
    ann = await city.customer()
    event = await completed(city, ann)
    other = copy.deepcopy(event) | {
        "id": event["id"] + "_late",
        "type": "checkout.session.async_payment_succeeded",
    }

    answers = [await deliver(city, e) for e in (other, event, other, event)]

    assert [answer.status for answer in answers] == [200] * 4
    await ann.device.expect("request.status")
    device = await ann.connect()
    assert len(device.snapshot["requests"]) == len(device.snapshot["sessions"]) == 1


@pytest.mark.parametrize("wrong", ["secret", "body", "age", "shape", "missing"])
async def test_what_stripe_did_not_sign_is_refused(city: City, wrong: str) -> None:
    ann = await city.customer()
    event = await completed(city, ann)
    body = json.dumps(event).encode()
    header = {
        "secret": signature(body, "whsec_other"),
        "body": signature(body + b" "),
        "age": signature(body, age_seconds=301),
        "shape": "v1=,t",
        "missing": "",
    }[wrong]

    headers = {"Stripe-Signature": header} if header else {}
    answer = await city.call("POST", PATH, data=body, headers=headers)

    assert (answer.status, answer.body["ok"]) == (400, False)
    await ann.device.fence()
    assert ann.device.got("request.status") == []
    assert (await deliver(city, event)).status == 200
    await ann.device.expect("request.status")


@pytest.mark.parametrize(
    "changes",
    [
        {"payment_status": "unpaid"},
        {"currency": "usd"},
        {"livemode": True},
        {"amount_total": 1},
        {"amount_total": 100_000},
    ],
    ids=str,
)
async def test_a_payment_that_is_not_as_ordered_dispatches_nothing(
    city: City, changes: dict[str, Any]
) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic()
    event = await completed(city, ann, **changes)

    answer = await deliver(city, event)

    assert answer.status == 200
    for device in (ann.device, mechanic.device):
        await device.fence()
    assert ann.device.got("request.status") == []
    assert mechanic.device.got("offer") == []
    assert (await ann.connect()).snapshot["requests"] == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"id": 1}'])
async def test_a_signed_body_that_is_no_event_is_refused(city: City, body: bytes) -> None:
    headers = {"Stripe-Signature": signature(body)}

    answer = await city.call("POST", PATH, data=body, headers=headers)

    assert (answer.status, answer.body["ok"]) == (400, False)


async def test_an_event_of_no_interest_or_of_nobody_is_taken_and_changes_nothing(
    city: City,
) -> None:
    ann = await city.customer()
    event = await completed(city, ann)
    nobodys = copy.deepcopy(event) | {"id": "evt_nobodys"}
    nobodys["data"]["object"] |= {"id": "cs_test_nobodys", "metadata": {}}

    answers = [
        await deliver(city, event | {"id": "evt_other", "type": "customer.created"}),
        await deliver(city, nobodys),
    ]

    assert [answer.status for answer in answers] == [200, 200]
    await ann.device.fence()
    assert ann.device.got("request.status") == []
