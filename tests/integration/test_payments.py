"""Webhooks of payments in every order and number, what is held, and what is given back."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from itertools import permutations
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from dispatch import refunds, webhooks
from dispatch.config import Config
from dispatch.database import Pool, transaction
from dispatch.errors import BadRequest, Conflict, Unavailable
from tests.integration.stripe_servers import Webhook
from tests.integration.till import (
    COMPLETED,
    PUBLIC_URL,
    Till,
    changed,
    open_till,
    running,
    signed,
)
from tests.support import eventually

ASYNC_SUCCEEDED = "checkout.session.async_payment_succeeded"
ASYNC_FAILED = "checkout.session.async_payment_failed"
EXPIRED = "checkout.session.expired"


@pytest.fixture(params=[False, True], ids=["opened later", "opened at once"])
async def till(
    config: Config, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Till]:
    async with open_till(dataclasses.replace(config, public_url=PUBLIC_URL), tmp_path) as till:
        till.open_at_once = till.decide_first_stage if request.param else None
        yield till


async def paid(till: Till, **form: object) -> tuple[str, Webhook]:
    """A new customer's booking, paid at Stripe; its page, and the webhook that nobody handled."""
    url = await till.ordered(**form)
    return url, await till.pay(url)


# --- one payment, one session ---------------------------------------------------------------------


async def test_a_paid_booking_becomes_a_session(till: Till) -> None:
    url, hook = await paid(till)

    outcome = await till.handle(hook)

    payment = await till.payment(url)
    assert (outcome.result, outcome.refund_queued) == ("fulfilled", False)
    assert outcome.created is not None
    assert (outcome.created.type, outcome.created.status) == ("video", "pending")
    assert (payment["status"], payment["session_id"]) == ("fulfilled", outcome.created.session_id)
    assert payment["payment_intent"] == hook.event["data"]["object"]["payment_intent"]
    [session] = await till.pool.fetch("SELECT * FROM sessions")
    assert (session["stripe_session_id"], session["intake_id"], session["customer_user_id"]) == (
        payment["stripe_session_id"],
        payment["intake_id"],
        outcome.customer_id,
    )
    assert await till.history(session["id"]) == till.made


async def test_a_hundred_identical_webhooks_at_once_make_one_session(till: Till) -> None:
    url, hook = await paid(till)
    till.handling = True

    statuses = await till.deliver_again(hook, times=100)

    assert statuses == [200] * 100
    assert till.results() == {"fulfilled": 1, "duplicate": 99}
    assert await till.count("sessions") == 1
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_in_any_order_a_payment_is_fulfilled_once(till: Till) -> None:
    for order in permutations((COMPLETED, ASYNC_SUCCEEDED, EXPIRED, ASYNC_FAILED)):
        url, hook = await paid(till)

        outcomes = [await till.handle(changed(hook, kind)) for kind in order]

        assert [o.result for o in outcomes].count("fulfilled") == 1, order
        assert sum(o.created is not None for o in outcomes) == 1, order
        assert (await till.payment(url))["status"] == "fulfilled", order
    assert await till.count("sessions") == 24


async def test_different_events_about_one_payment_at_once_make_one_session(till: Till) -> None:
    url, hook = await paid(till)
    kinds = [COMPLETED, ASYNC_SUCCEEDED, EXPIRED, ASYNC_FAILED] * 5

    await asyncio.gather(*(till.handle(changed(hook, kind)) for kind in kinds))

    assert till.results()["fulfilled"] == 1
    assert await till.count("sessions") == 1
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_the_webhook_may_come_before_stripes_answer_to_us(till: Till) -> None:
    url, hook = await paid(till)
    await till.pool.execute("UPDATE payments SET stripe_session_id = NULL, checkout_url = NULL")

    outcome = await till.handle(hook)

    assert outcome.result == "fulfilled"
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_a_webhook_that_loses_its_database_in_the_middle_is_handled_when_it_comes_again(
    till: Till,
) -> None:
    url, hook = await paid(till)
    async with transaction(till.pool) as holding:  # so that the webhook stops in its middle
        await holding.execute("SELECT 1 FROM payments FOR UPDATE")
        first = asyncio.create_task(till.handle(hook))
        await eventually(lambda: end_who_waits(till.pool))
        with pytest.raises(Unavailable):
            await first
    assert await till.count("stripe_events") == 0

    assert (await till.handle(hook)).result == "fulfilled"
    assert (await till.payment(url))["status"] == "fulfilled"


async def end_who_waits(pool: Pool) -> bool:
    """Ends the connection that waits for a row of payments, once there is one."""
    ended: bool = await pool.fetchval(
        "SELECT coalesce(bool_or(pg_terminate_backend(pid)), false) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return ended


# --- what is not Stripe's, and what is not right --------------------------------------------------


@pytest.mark.parametrize("fault", ["unsigned", "wrong secret", "re-serialised", "stale", "altered"])
async def test_what_stripe_did_not_sign_just_now_changes_nothing(till: Till, fault: str) -> None:
    url, hook = await paid(till)
    raw, signature = hook.raw, hook.signature
    bad: tuple[bytes, str | None] = {
        "unsigned": (raw, None),
        "wrong secret": (raw, signed(hook.event, secret="whsec_other").signature),
        "re-serialised": (msgspec.json.encode(hook.event), signature),
        "stale": (s := signed(hook.event, age_seconds=301), (s.raw, s.signature))[1],
        "altered": (raw.replace(b'"paid"', b'"PAID"'), signature),
    }[fault]

    with pytest.raises(BadRequest):
        await webhooks.handle_webhook(till.pool, till.stripe, till.config, *bad)

    assert await till.count("sessions") == 0
    assert await till.count("stripe_events") == 0
    assert (await till.payment(url))["status"] == "created"


async def test_a_replayed_event_does_nothing_more(till: Till) -> None:
    _, hook = await paid(till)
    await till.handle(hook)

    again = await till.handle(signed(hook.event))

    assert (again.result, again.created) == ("duplicate", None)
    assert await till.count("sessions") == 1


@pytest.mark.parametrize(
    ("field", "value", "noted"),
    [
        ("amount_total", 1499, "paid 1499 eur, expected 1500 eur"),
        ("amount_total", 1501, "paid 1501 eur, expected 1500 eur"),
        ("amount_total", None, "paid 0 eur, expected 1500 eur"),
        ("currency", "jpy", "paid 1500 jpy, expected 1500 eur"),
    ],
)
async def test_a_wrong_amount_or_currency_is_held_for_a_person(
    till: Till,
    caplog: pytest.LogCaptureFixture,
    field: str,
    value: Any,
    noted: str,
) -> None:
    url, hook = await paid(till)

    outcome = await till.handle(changed(hook, **{field: value}))

    payment = await till.payment(url)
    assert (outcome.result, outcome.created) == ("held", None)
    assert (payment["status"], payment["note"]) == ("held", noted)
    [alarm] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(payment["id"]) in alarm.getMessage()
    assert await till.count("sessions") == 0
    assert (await till.handle(hook)).result == "repeated"  # not until a person has decided
    assert await till.count("sessions") == 0


async def test_who_is_held_is_not_asked_to_pay_again(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    hook = await till.pay(await till.checkout(customer_id, intake_id))
    await till.handle(changed(hook, amount_total=1))

    with pytest.raises(Conflict) as refused:
        await till.checkout(customer_id, intake_id)

    assert refused.value.code == "payment_pending"


@pytest.mark.parametrize("where", ["event", "object"])
async def test_live_money_is_not_for_a_test_key(
    till: Till, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    url, hook = await paid(till)
    event = hook.event
    (event if where == "event" else event["data"]["object"])["livemode"] = True

    outcome = await till.handle(signed(event))

    assert (outcome.result, outcome.created) == ("wrong_livemode", None)
    assert "a live event" in caplog.text
    assert (await till.payment(url))["status"] == "created"


async def test_test_money_is_not_for_a_live_key(till: Till) -> None:
    url, hook = await paid(till)
    till.config = dataclasses.replace(till.config, stripe_secret_key="sk_live_tests")
    live = hook.event | {"id": "evt_live", "livemode": True}
    live["data"]["object"]["livemode"] = True

    refused = await till.handle(hook)
    accepted = await till.handle(signed(live))

    assert (refused.result, accepted.result) == ("wrong_livemode", "fulfilled")
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_a_checkout_that_completes_unpaid_is_served_when_the_money_comes(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    url = await till.checkout(customer_id, intake_id)
    hook = await till.pay(url)

    unpaid = await till.handle(changed(hook, payment_status="unpaid"))
    with pytest.raises(Conflict) as refused:
        await till.checkout(customer_id, intake_id)
    sessions_before = await till.count("sessions")
    succeeded = await till.handle(changed(hook, ASYNC_SUCCEEDED))

    assert (unpaid.result, unpaid.created, sessions_before) == ("unpaid", None, 0)
    assert refused.value.code == "payment_pending"
    assert succeeded.result == "fulfilled"
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_money_that_never_comes_frees_the_intake_for_another_try(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    url = await till.checkout(customer_id, intake_id)
    hook = changed(await till.pay(url), payment_status="unpaid")
    await till.handle(hook)

    failed = await till.handle(changed(hook, ASYNC_FAILED))

    assert failed.result == "failed"
    assert (await till.payment(url))["status"] == "failed"
    assert await till.checkout(customer_id, intake_id) != url


async def test_money_that_nobody_asked_for_is_held_for_a_person(
    till: Till, caplog: pytest.LogCaptureFixture
) -> None:
    session = await till.stand_in.checkout()
    hook = await till.pay(session["url"])

    outcomes = [await till.handle(hook), await till.handle(changed(hook, ASYNC_SUCCEEDED))]

    payment = await till.payment(session["url"])
    assert [o.result for o in outcomes] == ["held", "repeated"]
    assert (payment["status"], payment["amount_cents"], payment["currency"]) == (
        "held",
        2500,
        "usd",
    )
    assert session["id"] in caplog.text
    assert await till.count("sessions") == 0


async def test_one_payment_cannot_answer_for_two_checkouts(till: Till) -> None:
    url, hook = await paid(till)
    payment_id = str((await till.payment(url))["id"])
    other = await till.stand_in.checkout(**{"metadata[payment_id]": payment_id})

    outcome = await till.handle(await till.pay(other["url"]))

    assert outcome.result == "held"
    assert (await till.payment(url))["status"] == "created"
    assert (await till.handle(hook)).result == "fulfilled"


async def test_a_checkout_of_another_kind_is_not_ours(till: Till) -> None:
    url, hook = await paid(till)

    outcome = await till.handle(changed(hook, mode="subscription"))

    assert outcome.result == "ignored"
    assert (await till.payment(url))["status"] == "created"


async def test_events_of_other_kinds_are_recorded_and_change_nothing(till: Till) -> None:
    url, hook = await paid(till)
    others = ["charge.succeeded", "payment_intent.succeeded", "account.updated", "transfer.created"]

    outcomes = [await till.handle(changed(hook, kind)) for kind in others]

    assert [o.result for o in outcomes] == ["ignored"] * 4
    recorded = await till.pool.fetch("SELECT type, outcome FROM stripe_events ORDER BY type")
    assert [tuple(row) for row in recorded] == [(kind, "ignored") for kind in sorted(others)]
    assert (await till.payment(url))["status"] == "created"


async def test_a_cancelled_checkout_expires(till: Till) -> None:
    url = await till.ordered()
    stripe_session_id = url.rpartition("/")[2]
    await till.stand_in.call("POST", f"/v1/checkout/sessions/{stripe_session_id}/expire")

    outcome = await till.handle(await till.hook_of(url, EXPIRED))

    assert outcome.result == "expired"
    assert (await till.payment(url))["status"] == "expired"


# --- money that goes back -------------------------------------------------------------------------


async def test_paying_twice_for_two_bookings_refunds_the_second_once(till: Till) -> None:
    till.handling = True
    customer_id = await till.customer()
    first, second = [await till.intake(customer_id) for _ in range(2)]
    urls = [await till.checkout(customer_id, intake_id) for intake_id in (first, second)]
    await till.pay(urls[0])

    async with running(till.outbox(), till.outbox()):
        hook = await till.pay(urls[1])
        await asyncio.gather(*(till.handle(changed(hook)) for _ in range(20)))
        await eventually(lambda: status_of(till, urls[1], "refunded"))

    [refund] = await till.refunds()
    kept, returned = [await till.payment(url) for url in urls]
    assert (kept["status"], returned["status"]) == ("fulfilled", "refunded")
    assert returned["note"] == "active_session_exists"
    assert (refund["payment_intent"], refund["amount"]) == (returned["payment_intent"], 1500)
    assert refund["metadata"]["reason"] == "active_session_exists"
    assert await till.count("sessions") == 1
    refunding = [o for o in till.outcomes if o.result == "refunding"]
    assert [(o.refund_queued, o.created, o.customer_id) for o in refunding] == [
        (True, None, customer_id)
    ]


async def status_of(till: Till, url: str, status: str) -> bool:
    """Whether the payment behind this page has this state."""
    return bool((await till.payment(url))["status"] == status)


async def test_two_bookings_of_one_customer_paid_at_once_make_one_session(till: Till) -> None:
    customer_id = await till.customer()
    intakes = [await till.intake(customer_id) for _ in range(5)]
    urls = [await till.checkout(customer_id, intake_id) for intake_id in intakes]
    hooks = [await till.pay(url) for url in urls]

    await asyncio.gather(*(till.handle(hook) for hook in hooks))

    assert till.results() == {"fulfilled": 1, "refunding": 4}
    assert await till.count("sessions") == 1
    assert await till.count("outbox") == 4


async def test_the_last_seat_of_a_slot_goes_to_one_and_the_other_is_refunded(till: Till) -> None:
    slot_id = await till.slot(capacity=1)
    urls = [await till.ordered(slot_id=slot_id) for _ in range(2)]
    hooks = [await till.pay(url) for url in urls]

    await asyncio.gather(*(till.handle(hook) for hook in hooks))

    assert till.results() == {"fulfilled": 1, "refunding": 1}
    states = {(p["status"], p["note"]) for p in [await till.payment(url) for url in urls]}
    assert states == {("fulfilled", None), ("refunding", "slot_full")}
    assert await till.pool.fetchval("SELECT taken FROM slots") == 1
    assert await till.pool.fetchval("SELECT status FROM sessions") == "scheduled"


async def test_two_checkouts_of_one_intake_paid_both_make_one_session(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id, slot_id=await till.slot(capacity=2))
    old = await till.checkout(customer_id, intake_id)
    await till.pool.execute("UPDATE payments SET created_at = created_at - interval '61 min'")
    new = await till.checkout(customer_id, intake_id)

    outcomes = [await till.handle(await till.pay(url)) for url in (old, new)]

    assert [o.result for o in outcomes] == ["fulfilled", "refunding"]
    assert (await till.payment(new))["note"] == "already_booked"
    assert await till.count("sessions") == 1
    assert await till.pool.fetchval("SELECT taken FROM slots") == 1


async def test_a_booking_that_ends_unserved_is_refunded_once_and_its_history_says_so(
    till: Till,
) -> None:
    url, hook = await paid(till)
    created = (await till.handle(hook)).created
    assert created is not None

    queued = []
    for _ in range(2):
        async with transaction(till.pool) as connection:
            await connection.execute("SELECT 1 FROM sessions FOR UPDATE")
            queued.append(
                await refunds.queue_for_session(connection, created.session_id, "expired")
            )
    async with running(till.outbox()):
        await eventually(lambda: status_of(till, url, "refunded"))
        told = await till.handle(await eventually(lambda: refund_hook(till)))

    assert queued == [True, False]
    [refund] = await till.refunds()
    assert (refund["amount"], refund["metadata"]["reason"]) == (1500, "expired")
    assert told.result == "repeated"
    assert await till.history(created.session_id) == [*till.made, "refunding", "refunded"]


def refund_hook(till: Till) -> Webhook | None:
    """The first webhook that says that a charge went back."""
    return next((hook for hook in till.got if hook.event["type"] == "charge.refunded"), None)


async def test_a_free_session_has_nothing_to_give_back(till: Till) -> None:
    await till.intake(await till.customer(), "free")
    session_id = await till.pool.fetchval("SELECT id FROM sessions")

    async with transaction(till.pool) as connection:
        assert not await refunds.queue_for_session(connection, session_id, "cancelled")

    assert await till.count("outbox") == 0


@pytest.mark.parametrize("named", [True, False])
async def test_a_refund_by_hand_at_stripe_moves_our_row(till: Till, named: bool) -> None:
    """Without our metadata on the charge, it is found by its intent."""
    url, hook = await paid(till)
    created = (await till.handle(hook)).created
    assert created is not None
    refund = {"payment_intent": hook.event["data"]["object"]["payment_intent"]}

    await till.stand_in.call("POST", "/v1/refunds", refund | {"amount": "500"})
    partly = await eventually(lambda: refund_hook(till))
    in_part = await till.handle(partly)
    till.got.clear()
    await till.stand_in.call("POST", "/v1/refunds", refund)
    wholly = await eventually(lambda: refund_hook(till))
    whole = await till.handle(wholly if named else changed(wholly, metadata={}))

    assert (in_part.result, whole.result) == ("noted", "refunded")
    payment = await till.payment(url)
    assert (payment["status"], payment["refunded_cents"]) == ("refunded", 1500)
    assert await till.history(created.session_id) == [*till.made, "refunded"]


async def test_what_was_refunded_before_we_heard_of_it_is_not_served(till: Till) -> None:
    url, hook = await paid(till)
    intent = hook.event["data"]["object"]["payment_intent"]
    await till.stand_in.call("POST", "/v1/refunds", {"payment_intent": intent})

    results = [
        (await till.handle(late)).result
        for late in (await eventually(lambda: refund_hook(till)), hook)
    ]

    assert results == ["refunded", "repeated"]
    payment = await till.payment(url)
    assert (payment["status"], payment["received_cents"], payment["refunded_cents"]) == (
        "refunded",
        1500,
        1500,
    )
    assert await till.count("sessions") == 0


async def test_a_refund_of_money_that_is_not_ours_is_ignored(till: Till) -> None:
    session = await till.stand_in.paid()
    await till.stand_in.call(
        "POST", "/v1/refunds", {"payment_intent": str(session["payment_intent"])}
    )

    outcome = await till.handle(await eventually(lambda: refund_hook(till)))

    assert outcome.result == "ignored"
    assert await till.count("payments") == 0


async def test_a_refund_that_is_about_no_payment_changes_nothing(till: Till) -> None:
    url, hook = await paid(till)
    await till.handle(hook)

    outcome = await till.handle(changed(hook, "charge.refunded", payment_intent=None))

    assert outcome.result == "ignored"
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_a_part_given_back_by_hand_stays_given_when_the_rest_follows(till: Till) -> None:
    url, hook = await paid(till)
    created = (await till.handle(hook)).created
    assert created is not None
    intent = hook.event["data"]["object"]["payment_intent"]
    await till.at_stripe("refunds", payment_intent=intent, amount=400)
    await till.handle(await till.hook("charge.refunded"))

    async with transaction(till.pool) as connection:
        await refunds.queue_for_session(connection, created.session_id, "expired")
    async with running(till.outbox()):
        await eventually(lambda: status_of(till, url, "refunded"))

    assert (await till.payment(url))["refunded_cents"] == 1500
    assert sorted(refund["amount"] for refund in await till.refunds()) == [400, 1100]


async def given_back(till: Till) -> tuple[str, str, str]:
    """A booking that was paid and then refunded by hand, pending at the bank: its page, its refund
    and its charge's news, handled."""
    url, hook = await paid(till)
    await till.handle(hook)
    intent = hook.event["data"]["object"]["payment_intent"]
    refund = await till.at_stripe("refunds", payment_intent=intent, pending=True)
    await till.handle(await till.hook("charge.refunded"))
    assert (await till.payment(url))["status"] == "refunded"
    return url, intent, refund["id"]


async def test_a_booking_whose_refund_by_hand_fails_at_the_bank_is_paid_all_the_same(
    till: Till, caplog: pytest.LogCaptureFixture
) -> None:
    url, _, refund_id = await given_back(till)
    await till.at_stripe(f"refunds/{refund_id}", failure_reason="expired_or_canceled_card")

    outcome = await till.handle(await till.hook("refund.failed"))

    payment = await till.payment(url)
    assert (outcome.result, payment["status"], payment["refunded_cents"]) == (
        "noted",
        "fulfilled",
        0,
    )
    assert "and its session goes on" in caplog.text
    assert "did not go through: expired_or_canceled_card" in caplog.text
    async with transaction(till.pool) as connection:  # so whoever is not served gets it back
        assert await refunds.queue_for_session(connection, payment["session_id"], "cancelled")


async def test_a_refund_that_fails_at_the_bank_after_the_booking_ended_is_held_for_a_person(
    till: Till, caplog: pytest.LogCaptureFixture
) -> None:
    url, _, refund_id = await given_back(till)
    await till.pool.execute("UPDATE sessions SET status = 'cancelled'")
    await till.at_stripe(f"refunds/{refund_id}", failure_reason="expired_or_canceled_card")

    outcome = await till.handle(await till.hook("refund.failed"))

    payment = await till.payment(url)
    assert (outcome.result, payment["status"], payment["refunded_cents"]) == ("held", "held", 0)
    assert payment["note"].startswith("refund failed")
    assert "failed" in caplog.text
    assert (await till.history(payment["session_id"]))[-2:] == ["refunded", "refund_failed"]


async def test_old_news_of_a_refund_that_has_failed_since_is_not_believed(till: Till) -> None:
    url, _, refund_id = await given_back(till)
    await till.at_stripe(f"refunds/{refund_id}", failure_reason="expired_or_canceled_card")
    await till.handle(await till.hook("refund.failed"))
    old = await till.hook("charge.refunded")

    outcome = await till.handle(changed(old))

    assert outcome.result == "repeated"
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_what_is_read_again_and_is_the_same_is_not_told_again(till: Till) -> None:
    url, intent, _ = await given_back(till)
    before = await till.payment(url)

    await refunds.refresh(till.pool, till.stripe, before["id"], intent)

    after = await till.payment(url)
    assert after["moved_at"] == before["moved_at"]
    assert after["refunds_read_at"] > before["refunds_read_at"]


async def test_what_was_read_of_stripe_earlier_never_overwrites_what_was_read_later(
    till: Till,
) -> None:
    url, intent, refund_id = await given_back(till)
    payment_id = (await till.payment(url))["id"]
    earlier = await refunds.read(till.pool, till.stripe, payment_id, intent)
    await till.at_stripe(f"refunds/{refund_id}", failure_reason="lost_or_stolen_card")
    await refunds.refresh(till.pool, till.stripe, payment_id, intent)

    async with transaction(till.pool) as connection:
        said = await refunds.write(connection, earlier)

    assert said == "known"
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_our_own_refund_that_fails_at_once_is_held_and_its_history_says_so(
    till: Till,
) -> None:
    url, hook = await paid(till)
    created = (await till.handle(hook)).created
    assert created is not None
    await till.pool.execute("UPDATE payments SET payment_intent = 'pi_nobody'")
    async with transaction(till.pool) as connection:
        await refunds.queue_for_session(connection, created.session_id, "expired")

    async with running(till.outbox()):
        await eventually(lambda: status_of(till, url, "held"))

    assert await till.history(created.session_id) == [*till.made, "refunding", "refund_failed"]
    assert await till.refunds() == []


# --- fraud ----------------------------------------------------------------------------------------


async def test_a_checkout_in_somebody_else_s_account_books_nothing(till: Till) -> None:
    """A connected account sells what it likes, with our payment's id on it."""
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    url = await till.checkout(customer_id, intake_id)
    payment = await till.payment(url)
    account = await till.stripe.create_account(
        payee=f"workshop-{uuid4()}", email="w@shops.example", metadata={}
    )
    await till.at_stripe(
        "foreign_checkouts",
        account=account.id,
        amount_total=1500,
        currency="eur",
        metadata={"payment_id": str(payment["id"])},
        client_reference_id=str(payment["id"]),
    )

    outcome = await till.handle(await till.hook(COMPLETED))

    assert outcome.result == "ignored"
    assert (await till.payment(url))["status"] == "created"
    assert await till.count("sessions") == 0


async def test_a_dispute_is_told_to_a_person_and_changes_nothing(
    till: Till, caplog: pytest.LogCaptureFixture
) -> None:
    url, hook = await paid(till)
    await till.handle(hook)
    payment = await till.payment(url)

    outcome = await till.handle(changed(hook, "charge.dispute.created", status="needs_response"))

    assert outcome.result == "noted"
    assert f"a dispute of payment {payment['id']}: needs_response" in caplog.text
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_money_for_a_slot_that_is_over_goes_back(till: Till) -> None:
    customer_id = await till.customer()
    slot_id = await till.slot()
    intake_id = await till.intake(customer_id, slot_id=slot_id)
    hook = await till.pay(await till.checkout(customer_id, intake_id))
    await till.pool.execute(
        "UPDATE slots SET starts_at = now() - interval '2 h', ends_at = now() - interval '1 h'"
    )

    outcome = await till.handle(hook)

    assert (outcome.result, outcome.refund_queued) == ("refunding", True)
    assert await till.pool.fetchval("SELECT note FROM payments") == "slot_over"
    assert await till.count("sessions") == 0
