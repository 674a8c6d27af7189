"""Our client's side of paying out: accounts, transfers, reversals, and what happened meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dispatch import errors
from dispatch.stripe_client import (
    Account,
    CheckoutSession,
    Refund,
    Reversal,
    StripeClient,
    StripeFailed,
    Transfer,
    WebhookEvent,
    verify_webhook,
)
from tests.integration.stripe_servers import (
    Clock,
    Receiver,
    StandInClient,
    booking,
    make_client,
    serving,
    stand_in,
)
from tests.support import STRIPE_WEBHOOK_SECRET

SECRETS = (STRIPE_WEBHOOK_SECRET,)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
async def stripe_stand_in(
    tmp_path: Path, receiver: Receiver, clock: Clock
) -> AsyncIterator[StandInClient]:
    async with (
        serving(receiver.app()) as url,
        stand_in(tmp_path, f"{url}/webhook", now=clock) as client,
    ):
        yield client


@pytest.fixture
async def client(stripe_stand_in: StandInClient) -> AsyncIterator[StripeClient]:
    client = make_client(stripe_stand_in.url)
    yield client
    await client.close()


def payout(destination: str, payout_id: UUID | None = None, **changed: Any) -> dict[str, Any]:
    """Arguments of a transfer as payouts pass them."""
    return {
        "payout_id": payout_id or uuid4(),
        "amount_cents": 2000,
        "currency": "usd",
        "destination": destination,
        "metadata": {"workshop_id": "w-1"},
    } | changed


async def sums(stripe_stand_in: StandInClient) -> dict[str, int]:
    """Platform, accounts and what is missing, in cents."""
    summed = (await stripe_stand_in.ledger())["sums"]["usd"]
    return {name: summed[name] for name in ("platform", "accounts", "missing")}


# --- accounts --------------------------------------------------------------------------------


async def test_an_account_is_made_set_up_on_its_page_and_announced(
    client: StripeClient, stripe_stand_in: StandInClient, receiver: Receiver, clock: Clock
) -> None:
    made = await client.create_account(
        payee="workshop-1", email="c@shops.example", metadata={"name": "Corner"}
    )
    link = await client.account_link(
        account_id=made.id, return_url="/workshop/payouts", refresh_url="/workshop/payouts/again"
    )

    status, pressed = await stripe_stand_in.press(link.url, "finish")

    assert (made.details_submitted, made.payouts_enabled) == (False, False)
    assert (status, pressed["redirect"]) == (200, "http://localhost:8000/workshop/payouts")
    assert link.expires_at == datetime.fromtimestamp(int(clock.now) + 300, UTC)
    assert await client.account(made.id) == Account(made.id, True, True)
    hook = await receiver.wait_for("account.updated")
    event = verify_webhook(hook.raw, hook.signature, SECRETS)
    assert event.account == made.id
    assert isinstance(event.object, dict)
    assert event.object["metadata"] == {"name": "Corner", "payee": "workshop-1"}
    assert event.object["capabilities"] == {"transfers": "active"}


async def test_an_account_made_again_for_its_payee_is_the_same_one(client: StripeClient) -> None:
    asked: dict[str, Any] = {"email": "c@shops.example", "metadata": {}}

    made = [await client.create_account(payee="workshop-1", **asked) for _ in range(3)]
    other = await client.create_account(payee="workshop-2", **asked)

    assert len({account.id for account in made}) == 1
    assert other.id != made[0].id


async def test_an_account_that_is_not_ours_is_refused_for_good(client: StripeClient) -> None:
    """Stripe answers 403 to that, as it does to a key that may not do something."""
    with pytest.raises(StripeFailed) as refused:
        await client.account("acct_none")

    assert refused.value.stripe_code == "account_invalid"
    assert not refused.value.mended_by_time


# --- transfers -------------------------------------------------------------------------------


async def test_a_transfer_is_made_once_however_often_it_is_asked(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    await stripe_stand_in.paid()
    destination = (await stripe_stand_in.payee())["id"]
    asked = payout(destination)

    made = [await client.transfer(**asked) for _ in range(3)]

    assert made == [Transfer(made[0].id, 2000, "usd", destination, 0)] * 3
    assert await sums(stripe_stand_in) == {"platform": 500, "accounts": 2000, "missing": 0}
    [transfer] = (await stripe_stand_in.ledger())["transfers"]
    carried = {"workshop_id": "w-1", "payout_id": str(asked["payout_id"])}
    assert transfer["metadata"] == carried
    assert transfer["transfer_group"] == f"payout-{asked['payout_id']}"


async def test_a_transfer_is_found_again_when_its_key_is_forgotten(
    client: StripeClient, stripe_stand_in: StandInClient, clock: Clock
) -> None:
    await stripe_stand_in.paid()
    asked = payout((await stripe_stand_in.payee())["id"], amount_cents=1000)
    before = await client.transfer_of(asked["payout_id"])
    made = await client.transfer(**asked)

    clock.now += 24 * 3600 + 1

    assert before is None
    assert await client.transfer_of(asked["payout_id"]) == made
    again = await client.transfer(**asked)
    assert again.id != made.id, "which is why one has to look first"


@pytest.mark.parametrize(
    ("changed", "code", "mended"),
    [
        ({"amount_cents": 2501}, "balance_insufficient", True),
        ({"currency": "eur"}, "balance_insufficient", True),
        ({"destination": "acct_none"}, "resource_missing", False),
        ({"amount_cents": 0}, "parameter_invalid_integer", False),
    ],
)
async def test_a_transfer_that_cannot_be_is_refused_by_name_and_moves_nothing(
    client: StripeClient,
    stripe_stand_in: StandInClient,
    changed: dict[str, Any],
    code: str,
    mended: bool,
) -> None:
    await stripe_stand_in.paid()
    asked = payout((await stripe_stand_in.payee())["id"]) | changed

    with pytest.raises(StripeFailed) as refused:
        await client.transfer(**asked)

    assert (refused.value.stripe_code, refused.value.mended_by_time) == (code, mended)
    assert await sums(stripe_stand_in) == {"platform": 2500, "accounts": 0, "missing": 0}
    assert await client.transfer_of(asked["payout_id"]) is None


async def test_an_account_that_is_not_set_up_or_disabled_receives_nothing(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    await stripe_stand_in.paid()
    fresh = await client.create_account(payee="workshop-1", email="c@s.example", metadata={})
    closed = (await stripe_stand_in.payee())["id"]
    await stripe_stand_in.control("POST", f"accounts/{closed}", disabled_reason="rejected.fraud")

    for destination in (fresh.id, closed):
        with pytest.raises(StripeFailed) as refused:
            await client.transfer(**payout(destination))
        assert refused.value.stripe_code == "insufficient_capabilities_for_transfer"

    assert await client.account(closed) == Account(closed, True, False)
    assert (await sums(stripe_stand_in))["accounts"] == 0


async def test_another_amount_under_the_same_payout_is_refused(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    await stripe_stand_in.paid()
    asked = payout((await stripe_stand_in.payee())["id"])
    await client.transfer(**asked)

    with pytest.raises(StripeFailed) as refused:
        await client.transfer(**asked | {"amount_cents": 1})

    assert refused.value.stripe_code == "idempotency_error"
    assert (await sums(stripe_stand_in))["accounts"] == 2000


# --- reversals -------------------------------------------------------------------------------


async def test_a_transfer_is_reversed_in_parts_and_never_beyond_what_was_sent(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    await stripe_stand_in.paid()
    asked = payout((await stripe_stand_in.payee())["id"])
    sent = await client.transfer(**asked)
    first = uuid4()

    part = await client.reverse(reversal_id=first, transfer_id=sent.id, amount_cents=500)
    again = await client.reverse(reversal_id=first, transfer_id=sent.id, amount_cents=500)
    with pytest.raises(StripeFailed):
        await client.reverse(reversal_id=uuid4(), transfer_id=sent.id, amount_cents=1501)
    await client.reverse(reversal_id=uuid4(), transfer_id=sent.id, amount_cents=1500)
    with pytest.raises(StripeFailed):
        await client.reverse(reversal_id=uuid4(), transfer_id=sent.id, amount_cents=1)

    assert part == again == Reversal(part.id, 500)
    found = await client.transfer_of(asked["payout_id"])
    assert found is not None
    assert (found.id, found.reversed_cents) == (sent.id, 2000)
    assert await sums(stripe_stand_in) == {"platform": 2500, "accounts": 0, "missing": 0}


async def test_a_reversal_is_found_again_among_more_than_a_page_of_them(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    await stripe_stand_in.paid()
    sent = await client.transfer(**payout((await stripe_stand_in.payee())["id"]))
    ours = uuid4()
    made = await client.reverse(reversal_id=ours, transfer_id=sent.id, amount_cents=7)
    path = f"/v1/transfers/{sent.id}/reversals"
    for _ in range(120):
        await stripe_stand_in.call("POST", path, {"amount": "1"})

    found = await client.reversal_of(reversal_id=ours, transfer_id=sent.id)
    other = await client.reversal_of(reversal_id=uuid4(), transfer_id=sent.id)

    assert (found, other) == (made, None)


# --- what is there and what happened ---------------------------------------------------------


async def test_every_refund_of_a_payment_is_listed_the_newest_first(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    intent = (await stripe_stand_in.paid())["payment_intent"]
    await stripe_stand_in.paid()
    assert await client.refunds(intent) == []
    by_hand = [
        await stripe_stand_in.control("POST", "refunds", payment_intent=intent, amount=10)
        for _ in range(101)
    ]

    ours = uuid4()
    rest = await client.refund(payment_id=ours, payment_intent=intent, reason="expired")
    found = await client.refunds(intent)

    assert rest == Refund(rest.id, "succeeded", 2500 - 1010, "usd", payment_id=ours)
    assert found[0] == rest
    assert [refund.id for refund in found[1:]] == [made["id"] for made in reversed(by_hand)]


async def test_a_refund_that_fails_says_why(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    intent = (await stripe_stand_in.paid())["payment_intent"]
    await stripe_stand_in.control("POST", "faults", path="/v1/refunds", do="pending")

    ours = uuid4()
    made = await client.refund(payment_id=ours, payment_intent=intent, reason="expired")
    await stripe_stand_in.control(
        "POST", f"refunds/{made.id}", failure_reason="lost_or_stolen_card"
    )

    assert (made.status, made.failure_reason) == ("pending", None)
    [failed] = await client.refunds(intent)
    assert failed == Refund(made.id, "failed", 2500, "usd", "lost_or_stolen_card", ours)


async def test_a_checkout_asked_for_is_what_its_webhook_said(
    client: StripeClient, stripe_stand_in: StandInClient, receiver: Receiver
) -> None:
    checkout = await client.create_checkout(**booking())
    before = await client.checkout_session(checkout.id)
    await stripe_stand_in.press(checkout.url, "pay")
    hook = await receiver.wait_for("checkout.session.completed")

    after = await client.checkout_session(checkout.id)

    assert (before.status, before.payment_status) == ("open", "unpaid")
    assert after == verify_webhook(hook.raw, hook.signature, SECRETS).object
    with pytest.raises(StripeFailed) as refused:
        await client.checkout_session("cs_none")
    assert refused.value.stripe_code == "resource_missing"


async def test_events_are_handed_out_over_all_pages_the_oldest_first(
    client: StripeClient, stripe_stand_in: StandInClient, clock: Clock
) -> None:
    await stripe_stand_in.paid()
    since = datetime.fromtimestamp(clock.now, UTC) + timedelta(seconds=60)
    clock.now += 61
    paid = [await stripe_stand_in.paid() for _ in range(110)]
    await stripe_stand_in.payee()  # what happens in somebody else's account is not among them

    types = ["checkout.session.completed", "checkout.session.expired", "account.updated"]
    found: list[WebhookEvent] = [event async for event in client.events(since=since, types=types)]

    assert {event.type for event in found} == {"checkout.session.completed"}
    shown = [event.object for event in found]
    assert all(isinstance(session, CheckoutSession) for session in shown)
    assert [getattr(session, "id", None) for session in shown] == [one["id"] for one in paid]


async def test_an_event_that_cannot_be_read_does_not_hold_up_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = {"type": "charge.refunded", "livemode": False, "created": 5, "data": {"object": {}}}
    bad = good | {"id": "evt_2", "type": "checkout.session.completed"}
    listed = {"object": "list", "url": "/v1/events", "has_more": False}
    listed["data"] = [good | {"id": "evt_3"}, bad, good | {"id": "evt_1"}]

    async def events(_request: Request) -> JSONResponse:
        return JSONResponse(listed)

    async with serving(Starlette(routes=[Route("/v1/events", events)])) as url:
        client = make_client(url)
        found = [
            event.id async for event in client.events(since=datetime.now(UTC), types=["a", "b"])
        ]
        await client.close()

    assert found == ["evt_1", "evt_3"]
    assert "is left out" in caplog.text


async def test_a_checkout_of_a_connected_account_is_told_apart(
    stripe_stand_in: StandInClient, receiver: Receiver
) -> None:
    account = await stripe_stand_in.payee()

    await stripe_stand_in.control(
        "POST", "foreign_checkouts", account=account["id"], metadata={"payment_id": "ours"}
    )

    hook = await receiver.wait_for("checkout.session.completed")
    event = verify_webhook(hook.raw, hook.signature, SECRETS)
    assert event.account == account["id"]
    assert isinstance(event.object, CheckoutSession)
    assert event.object.metadata == {"payment_id": "ours"}
    assert (await stripe_stand_in.ledger())["payments"] == []


# --- Stripe away -----------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["drop_reply", "drop_request", "fail", "rate_limit"])
async def test_money_moves_once_through_lost_replies(
    client: StripeClient, stripe_stand_in: StandInClient, do: str
) -> None:
    """Three attempts fail, so that the client gives up; the same call again finds the money moved,
    or moves it."""
    await stripe_stand_in.paid()
    asked = payout((await stripe_stand_in.payee())["id"])
    await stripe_stand_in.control("POST", "faults", path="/v1/transfers", do=do, times=3)

    with pytest.raises(errors.Unavailable):
        await client.transfer(**asked)
    await stripe_stand_in.control("DELETE", "faults")
    made = await client.transfer(**asked)

    assert await client.transfer_of(asked["payout_id"]) == made
    assert await sums(stripe_stand_in) == {"platform": 500, "accounts": 2000, "missing": 0}


async def test_one_lost_reply_is_not_even_noticed(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    await stripe_stand_in.paid()
    await stripe_stand_in.control("POST", "faults", path="/v1/transfers", do="drop_reply")

    await client.transfer(**payout((await stripe_stand_in.payee())["id"]))

    assert (await sums(stripe_stand_in))["accounts"] == 2000


async def test_a_key_that_is_in_use_is_unavailable_and_not_a_refusal(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    await stripe_stand_in.paid()
    asked = payout((await stripe_stand_in.payee())["id"])
    fault = {"path": "/v1/transfers", "do": "refuse", "status": 409, "times": 3}
    await stripe_stand_in.control("POST", "faults", **fault, code="idempotency_key_in_use")

    with pytest.raises(errors.Unavailable):
        await client.transfer(**asked)

    assert await client.transfer_of(asked["payout_id"]) is None
    made = await client.transfer(**asked)
    assert await client.transfer_of(asked["payout_id"]) == made


async def test_two_who_pay_out_at_once_move_the_money_once(
    client: StripeClient, stripe_stand_in: StandInClient
) -> None:
    """The first is still under way at Stripe when the second asks."""
    await stripe_stand_in.paid()
    asked = payout((await stripe_stand_in.payee())["id"])
    fault = {"path": "/v1/transfers", "do": "late_start", "late_ms": 200}
    await stripe_stand_in.control("POST", "faults", **fault)

    first, second = await asyncio.gather(client.transfer(**asked), client.transfer(**asked))

    assert first == second
    assert (await sums(stripe_stand_in))["accounts"] == 2000
