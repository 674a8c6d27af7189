"""The stand-in for Stripe: what it promises to a server that talks to it as if to Stripe."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import stripe
from stripe.checkout import Session as CheckoutSession

from dispatch.stripe_standin import create_app
from tests.integration.stripe_servers import (
    CHECKOUT,
    Clock,
    Json,
    Receiver,
    StandInClient,
    free_socket,
    serving,
    stand_in,
    unknown_keys,
)
from tests.support import STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, eventually

PAID_EVENTS = {"charge.succeeded", "payment_intent.succeeded", "checkout.session.completed"}


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def webhook_url(receiver: Receiver) -> AsyncIterator[str]:
    async with serving(receiver.app()) as url:
        yield f"{url}/webhook"


@pytest.fixture
async def client(tmp_path: Path, webhook_url: str) -> AsyncIterator[StandInClient]:
    async with stand_in(tmp_path, webhook_url) as client:
        yield client


async def all_delivered(client: StandInClient, count: int) -> Json:
    """The ledger, once `count` events were delivered and nothing waits."""

    async def ledger() -> Json | None:
        shown = await client.ledger()
        return shown if shown["deliveries"]["delivered"] == count else None

    return await eventually(ledger)


# --- paying ----------------------------------------------------------------------------------


async def test_paying_leads_back_and_delivers_signed_events(
    client: StandInClient, receiver: Receiver
) -> None:
    session = await client.checkout()
    assert (session["status"], session["payment_status"]) == ("open", "unpaid")
    assert session["payment_intent"] is None

    status, answer = await client.press(session["url"], "pay")

    back = f"http://localhost/done?session={session['id']}"
    assert (status, answer) == (200, {"ok": True, "redirect": back})
    ledger = await all_delivered(client, 3)
    assert receiver.count() == dict.fromkeys(PAID_EVENTS, 1)
    for webhook in receiver.got:
        verified = stripe.Webhook.construct_event(
            webhook.raw, webhook.signature, STRIPE_WEBHOOK_SECRET
        )
        assert verified.id == webhook.event["id"]
    completed = (await receiver.wait_for("checkout.session.completed")).event["data"]["object"]
    [payment] = ledger["payments"]
    assert completed["payment_status"] == "paid"
    assert completed["status"] == "complete"
    assert completed["url"] is None
    assert (completed["amount_total"], completed["currency"]) == (2500, "usd")
    assert completed["metadata"] == {"plan": "video15"}
    assert completed["payment_intent"] == payment["id"]
    _, intent, _ = await client.call("GET", f"/v1/payment_intents/{payment['id']}")
    assert (intent["amount_received"], intent["status"]) == (2500, "succeeded")
    assert intent["metadata"] == {"plan": "video15"}
    assert intent["latest_charge"] == payment["charge"]


async def test_a_browser_is_redirected_after_paying(client: StandInClient) -> None:
    session = await client.checkout()

    async with client.http.post(f"{session['url']}/pay", allow_redirects=False) as response:
        assert response.status == 303
        assert response.headers["location"] == f"http://localhost/done?session={session['id']}"


async def test_twenty_presses_at_once_are_one_payment(
    client: StandInClient, receiver: Receiver
) -> None:
    session = await client.checkout()

    pressed = await asyncio.gather(*(client.press(session["url"], "pay") for _ in range(20)))

    assert sorted(status for status, _ in pressed) == [200] + [409] * 19
    assert {told["error"]["code"] for status, told in pressed if status == 409} == {"already_paid"}
    ledger = await all_delivered(client, 3)
    assert [payment["checkout_session"] for payment in ledger["payments"]] == [session["id"]]
    assert receiver.count() == dict.fromkeys(PAID_EVENTS, 1)


async def test_cancelling_leads_back_and_the_session_can_still_be_paid(
    client: StandInClient,
) -> None:
    session = await client.checkout()

    assert await client.press(session["url"], "cancel") == (
        200,
        {"ok": True, "redirect": "http://localhost/back"},
    )

    _, after, _ = await client.call("GET", f"/v1/checkout/sessions/{session['id']}")
    assert after == session
    assert (await client.press(session["url"], "pay"))[0] == 200


async def test_a_hundred_payments_at_once_are_all_delivered(
    client: StandInClient, receiver: Receiver
) -> None:
    sessions = [await client.paid() for _ in range(2)]
    sessions += await asyncio.gather(*(client.paid() for _ in range(98)))

    ledger = await all_delivered(client, 300)

    assert receiver.count() == dict.fromkeys(PAID_EVENTS, 100)
    assert len({webhook.event["id"] for webhook in receiver.got}) == 300
    paid = {payment["checkout_session"]: payment["id"] for payment in ledger["payments"]}
    assert paid == {session["id"]: session["payment_intent"] for session in sessions}


# --- expiry ----------------------------------------------------------------------------------


async def test_a_session_whose_time_is_over_expires_by_itself(
    tmp_path: Path, webhook_url: str, receiver: Receiver
) -> None:
    clock = Clock(time.time())
    async with stand_in(tmp_path, webhook_url, now=clock) as client:
        session = await client.checkout(expires_at=str(int(clock.now) + 1800))
        clock.now += 1801

        expired = (await receiver.wait_for("checkout.session.expired")).event["data"]["object"]

        assert (expired["id"], expired["status"]) == (session["id"], "expired")
        assert expired["url"] is None
        status, told = await client.press(session["url"], "pay")
        assert (status, told["error"]["code"]) == (409, "expired")
        assert (await client.ledger())["payments"] == []


async def test_a_session_can_be_expired_once_and_only_while_open(
    client: StandInClient, receiver: Receiver
) -> None:
    session = await client.checkout()
    path = f"/v1/checkout/sessions/{session['id']}/expire"

    status, expired, _ = await client.call("POST", path)
    again, error, _ = await client.call("POST", path)

    assert (status, expired["status"]) == (200, "expired")
    assert (again, error["error"]["type"]) == (400, "invalid_request_error")
    await all_delivered(client, 1)
    assert receiver.count() == {"checkout.session.expired": 1}


# --- refunds ---------------------------------------------------------------------------------


async def test_a_refund_in_two_parts_gives_back_all_and_no_more(
    client: StandInClient, receiver: Receiver
) -> None:
    intent = (await client.paid())["payment_intent"]

    _, part, _ = await client.call(
        "POST", "/v1/refunds", {"payment_intent": intent, "amount": "1000"}
    )
    too_much = await client.call(
        "POST", "/v1/refunds", {"payment_intent": intent, "amount": "1501"}
    )
    _, rest, _ = await client.call("POST", "/v1/refunds", {"charge": part["charge"]})
    nothing_left = await client.call("POST", "/v1/refunds", {"payment_intent": intent})

    assert (part["amount"], rest["amount"], rest["status"]) == (1000, 1500, "succeeded")
    assert (too_much[0], too_much[1]["error"]["param"]) == (400, "amount")
    assert (nothing_left[0], nothing_left[1]["error"]["code"]) == (400, "charge_already_refunded")
    ledger = await all_delivered(client, 7)
    assert [payment["amount_refunded"] for payment in ledger["payments"]] == [2500]
    assert [refund["amount"] for refund in ledger["refunds"]] == [1000, 1500]
    charges = sorted(
        (hook.event["data"]["object"]["amount_refunded"], hook.event["data"]["object"]["refunded"])
        for hook in receiver.got
        if hook.event["type"] == "charge.refunded"
    )
    assert charges == [(1000, False), (2500, True)]
    assert receiver.count()["refund.created"] == 2
    _, shown, _ = await client.call("GET", f"/v1/refunds/{rest['id']}")
    assert shown == rest


# --- idempotency -----------------------------------------------------------------------------


async def test_a_key_gives_the_first_answer_again_even_after_a_restart(
    tmp_path: Path, webhook_url: str
) -> None:
    async with stand_in(tmp_path, webhook_url) as client:
        _, first, told = await client.call("POST", "/v1/checkout/sessions", CHECKOUT, key="k")
        assert "idempotent-replayed" not in told
        _, other, _ = await client.call("POST", "/v1/checkout/sessions", CHECKOUT, key="k2")
        assert other["id"] != first["id"]

    async with stand_in(tmp_path, webhook_url) as client:
        status, again, told = await client.call("POST", "/v1/checkout/sessions", CHECKOUT, key="k")
        changed = CHECKOUT | {"client_reference_id": "payment-2"}
        refused, error, _ = await client.call("POST", "/v1/checkout/sessions", changed, key="k")
        _, listed, _ = await client.call("GET", "/v1/checkout/sessions")

    assert (status, again) == (200, first)
    assert told["idempotent-replayed"] == "true"
    assert (refused, error["error"]["type"]) == (400, "idempotency_error")
    assert [session["id"] for session in listed["data"]] == [other["id"], first["id"]]


async def test_a_refund_repeated_with_its_key_is_one_refund(client: StandInClient) -> None:
    form = {"payment_intent": (await client.paid())["payment_intent"]}

    answers = await asyncio.gather(
        *(client.call("POST", "/v1/refunds", form, key="refund-1") for _ in range(10))
    )

    assert len({refund["id"] for _, refund, _ in answers}) == 1
    assert len((await client.ledger())["refunds"]) == 1


async def test_a_refused_form_does_not_use_up_its_key(client: StandInClient) -> None:
    wrong = CHECKOUT | {"mode": "setup"}
    assert (await client.call("POST", "/v1/checkout/sessions", wrong, key="k"))[0] == 400

    assert (await client.call("POST", "/v1/checkout/sessions", CHECKOUT, key="k"))[0] == 200


# --- delivery --------------------------------------------------------------------------------


async def test_a_receiver_that_is_away_gets_the_events_when_it_is_back(
    tmp_path: Path, receiver: Receiver
) -> None:
    away = free_socket()  # bound and not listening: connections are refused
    host, port = away.getsockname()
    async with stand_in(tmp_path, f"http://{host}:{port}/webhook") as client:
        await client.paid()

        async with serving(receiver.app(), away):
            await all_delivered(client, 3)

    assert receiver.count() == dict.fromkeys(PAID_EVENTS, 1)


async def test_an_answer_that_is_not_2xx_is_tried_again_with_the_same_bytes(
    client: StandInClient, receiver: Receiver
) -> None:
    receiver.status = 500
    await client.paid()
    await eventually(lambda: len(receiver.got) >= 6)
    receiver.status = 204

    await all_delivered(client, 3)

    bodies = {webhook.event["id"]: webhook.raw for webhook in receiver.got}
    assert len(bodies) == 3
    assert all(webhook.raw == bodies[webhook.event["id"]] for webhook in receiver.got)


async def test_it_gives_up_after_its_attempts_and_goes_on(
    tmp_path: Path, webhook_url: str, receiver: Receiver
) -> None:
    receiver.status = 500
    async with stand_in(tmp_path, webhook_url, attempts=3) as client:
        await client.paid()

        async def given_up() -> bool:
            counts = (await client.ledger())["deliveries"]
            return bool(counts == {"waiting": 0, "sending": 0, "delivered": 0, "given_up": 3})

        await eventually(given_up)
        assert receiver.count() == dict.fromkeys(PAID_EVENTS, 3)
        receiver.status = 200
        await client.paid()
        await all_delivered(client, 3)


async def test_a_restart_delivers_what_the_last_life_could_not(
    tmp_path: Path, webhook_url: str, receiver: Receiver
) -> None:
    async with stand_in(tmp_path, "http://127.0.0.1:1/webhook") as client:
        paid = await client.paid()

    async with stand_in(tmp_path, webhook_url) as client:
        await all_delivered(client, 3)
        _, session, _ = await client.call("GET", f"/v1/checkout/sessions/{paid['id']}")

    assert receiver.count() == dict.fromkeys(PAID_EVENTS, 1)
    assert session == paid


async def test_one_event_can_be_delivered_again_many_times_at_once(
    client: StandInClient, receiver: Receiver
) -> None:
    await client.paid()
    await all_delivered(client, 3)
    first = await receiver.wait_for("checkout.session.completed")

    async with client.http.post(
        f"{client.url}/_standin/deliver", json={"event_id": first.event["id"], "times": 50}
    ) as response:
        assert await response.json() == {"statuses": [200] * 50}

    assert [hook.raw for hook in receiver.got if hook.raw == first.raw] == [first.raw] * 51


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"event_id":"evt_none"}', b'{"event_id":"e","times":0}']
)
async def test_an_event_that_is_not_there_is_not_delivered(
    client: StandInClient, receiver: Receiver, body: bytes
) -> None:
    async with client.http.post(f"{client.url}/_standin/deliver", data=body) as response:
        assert response.status in (400, 404)

    assert receiver.got == []


async def test_control_answers_this_machine_only(tmp_path: Path) -> None:
    app = create_app(
        STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, "http://127.0.0.1:1/webhook", tmp_path
    )

    elsewhere = httpx2.ASGITransport(app, client=("203.0.113.9", 40000))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=elsewhere, base_url="http://stand-in") as stranger,
    ):
        for asked in (stranger.get("/_standin/ledger"), stranger.post("/_standin/deliver")):
            assert (await asked).status_code == 404


# --- objects ---------------------------------------------------------------------------------


async def test_every_key_sent_is_one_that_stripes_own_types_name(
    client: StandInClient, receiver: Receiver
) -> None:
    paid = await client.paid()
    intent = paid["payment_intent"]
    _, refund, _ = await client.call("POST", "/v1/refunds", {"payment_intent": intent})
    await all_delivered(client, 5)
    _, payment_intent, _ = await client.call("GET", f"/v1/payment_intents/{intent}")
    refunded = (await receiver.wait_for("charge.refunded")).event

    found = [
        *unknown_keys(await client.checkout(), CheckoutSession),
        *unknown_keys(paid, CheckoutSession),
        *unknown_keys(payment_intent, stripe.PaymentIntent),
        *unknown_keys(refunded["data"]["object"], stripe.Charge),
        *unknown_keys(refund, stripe.Refund),
        *unknown_keys(refunded, stripe.Event),
    ]

    assert found == []


async def test_events_are_listed_newest_first_in_pages(
    client: StandInClient, receiver: Receiver
) -> None:
    for _ in range(2):
        await client.paid()
    await all_delivered(client, 6)

    _, page, _ = await client.call("GET", "/v1/events?limit=4")
    _, rest, _ = await client.call("GET", f"/v1/events?starting_after={page['data'][-1]['id']}")
    _, completed, _ = await client.call("GET", "/v1/events?type=checkout.session.completed")
    _, one, _ = await client.call("GET", f"/v1/events/{page['data'][0]['id']}")

    assert (page["object"], page["has_more"], rest["has_more"]) == ("list", True, False)
    listed = [event["id"] for event in page["data"] + rest["data"]]
    assert sorted(listed) == sorted(webhook.event["id"] for webhook in receiver.got)
    assert {event["type"] for event in completed["data"]} == {"checkout.session.completed"}
    assert len(completed["data"]) == 2
    assert one == page["data"][0]


# --- the page --------------------------------------------------------------------------------


async def test_the_page_shows_what_is_paid_and_runs_nothing(client: StandInClient) -> None:
    name = "line_items[0][price_data][product_data][name]"
    session = await client.checkout(
        **{name: "<script>alert(1)</script> & help", "success_url": "https://shop.example/done"}
    )

    async with client.http.get(session["url"]) as response:
        shown = await response.text()
        policy = response.headers["content-security-policy"]

    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; help" in shown
    assert "<script" not in shown
    assert "$25.00" in shown
    for button in ("pay", "cancel"):
        assert f'<form method="post" action="/c/pay/{session["id"]}/{button}">' in shown
    assert "Not Stripe" in shown
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["form-action"] == "'self' http://localhost https://shop.example"
    assert "unsafe" not in policy


async def test_the_page_of_a_paid_session_has_no_buttons(client: StandInClient) -> None:
    session = await client.checkout()
    await client.press(session["url"], "pay")

    async with client.http.get(session["url"]) as response:
        shown = await response.text()
    async with client.http.post(f"{session['url']}/pay") as again:
        told = await again.text()

    assert "<form" not in shown
    assert "already made" in shown
    assert again.status == 409
    assert "already made" in told


async def test_the_page_of_an_unknown_session_is_not_there(client: StandInClient) -> None:
    async with client.http.get(f"{client.url}/c/pay/cs_test_<b>") as response:
        assert response.status == 404
        assert "<b>" not in await response.text()
    assert (await client.press(f"{client.url}/c/pay/cs_none", "pay"))[0] == 404


# --- the process -----------------------------------------------------------------------------


async def start(
    data_dir: Path, secret_key: str = STRIPE_SECRET_KEY, host: str = "127.0.0.1"
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatch.stripe_standin", "--port", "0", "--host", host),
        *("--data-dir", str(data_dir), "--webhook-url", "http://127.0.0.1:1/webhook"),
        env=os.environ
        | {"STRIPE_SECRET_KEY": secret_key, "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET},
        stderr=PIPE,
    )


async def test_the_process_says_where_it_listens_and_leaves_when_told(tmp_path: Path) -> None:
    process = await start(tmp_path)
    assert process.stderr is not None
    ready = (await process.stderr.readline()).decode()
    assert ready.startswith("NOT STRIPE, a stand-in that moves no money: http://127.0.0.1:")

    second = await start(tmp_path)  # while the first holds the ledger
    _, refused = await second.communicate()
    process.send_signal(signal.SIGTERM)
    _, rest = await process.communicate()

    assert (second.returncode, len(refused.splitlines())) == (1, 1)
    assert (process.returncode, rest) == (0, b"")


async def test_the_process_refuses_a_live_key(tmp_path: Path) -> None:
    process = await start(tmp_path, "sk_live_secret")
    _, told = await process.communicate()

    assert process.returncode == 2
    assert b"sk_test_" in told
    assert b"sk_live_secret" not in told


async def test_the_process_refuses_to_listen_where_others_could_reach_it(tmp_path: Path) -> None:
    process = await start(tmp_path, host="0.0.0.0")
    _, told = await process.communicate()

    assert process.returncode == 2
    assert b"loopback" in told
