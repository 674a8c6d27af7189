"""What Stripe did while nobody listened: found by asking, once, whatever else happens meanwhile."""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from dispatch.config import Config
from dispatch.database import transaction
from dispatch.payments import Outcome
from dispatch.reconciler import Reconciler
from dispatch.refunds import queue_for_session
from tests.integration.till import PUBLIC_URL, Till, open_till, running
from tests.support import eventually


@pytest.fixture
async def till(config: Config, tmp_path: Path) -> AsyncIterator[Till]:
    """Webhooks come, and nobody handles them."""
    async with open_till(dataclasses.replace(config, public_url=PUBLIC_URL), tmp_path) as till:
        yield till


def reconciler(till: Till, took: list[Outcome] | None = None) -> Reconciler:
    heard = took if took is not None else []
    return Reconciler(till.pool, till.stripe, till.config, heard.append)


async def long_ago(till: Till, table: str, column: str = "created_at") -> None:
    """By now a webhook, or the outbox, should have settled it."""
    await till.pool.execute(f"UPDATE {table} SET {column} = {column} - interval '1 day'")


async def workshop_with_account(till: Till) -> tuple[UUID, str]:
    workshop_id = await till.workshop()
    account = await till.stripe.create_account(
        payee=f"workshop-{workshop_id}", email="w@shops.example", metadata={}
    )
    await till.pool.execute(
        "UPDATE organizations SET stripe_connect_account_id = $2 WHERE id = $1",
        workshop_id,
        account.id,
    )
    return workshop_id, account.id


async def test_a_payment_whose_webhook_never_came_is_booked(till: Till) -> None:
    url = await till.ordered()
    await till.pay(url)
    took: list[Outcome] = []

    found = await reconciler(till, took).once()

    assert found == {"checkout.session.completed": 1}
    assert (await till.payment(url))["status"] == "fulfilled"
    assert [outcome.created is not None for outcome in took if outcome.result == "fulfilled"] == [
        True
    ]
    assert await reconciler(till).once() == {}


async def test_what_was_paid_and_given_back_while_nobody_listened_is_not_served(till: Till) -> None:
    url = await till.ordered()
    hook = await till.pay(url)
    await till.at_stripe("refunds", payment_intent=hook.event["data"]["object"]["payment_intent"])

    await reconciler(till).once()

    payment = await till.payment(url)
    assert (payment["status"], payment["received_cents"], payment["refunded_cents"]) == (
        "refunded",
        1500,
        1500,
    )
    assert await till.count("sessions") == 0


async def test_a_payment_that_never_got_a_page_is_over_when_its_time_is(till: Till) -> None:
    url = await till.ordered()
    await till.pool.execute("UPDATE payments SET stripe_session_id = NULL, checkout_url = NULL")
    await long_ago(till, "payments")

    await reconciler(till).once()
    late = await till.handle(await till.pay(url))

    assert late.result == "fulfilled"  # money that comes all the same is answered
    [status] = await till.pool.fetch("SELECT status FROM payments")
    assert status["status"] == "fulfilled"


async def test_two_that_ask_while_webhooks_come_book_once(till: Till) -> None:
    url = await till.ordered()
    hook = await till.pay(url)

    await asyncio.gather(
        reconciler(till).once(), till.handle(hook), reconciler(till).once(), till.handle(hook)
    )

    assert await till.count("sessions") == 1
    assert (await till.payment(url))["status"] == "fulfilled"


async def test_a_refund_by_hand_that_we_were_not_told_of_is_found(till: Till) -> None:
    url = await till.ordered()
    hook = await till.pay(url)
    await till.handle(hook)
    intent = hook.event["data"]["object"]["payment_intent"]
    await till.at_stripe("refunds", payment_intent=intent, amount=500)

    await reconciler(till).once()

    payment = await till.payment(url)
    assert (payment["status"], payment["refunded_cents"]) == ("fulfilled", 500)


async def test_a_page_that_is_over_is_asked_about_when_its_event_is_long_gone(till: Till) -> None:
    unpaid, paid = await till.ordered(), await till.ordered()
    stripe_id = unpaid.rpartition("/")[2]
    await till.stand_in.call("POST", f"/v1/checkout/sessions/{stripe_id}/expire")
    await till.pay(paid)
    await long_ago(till, "payments")
    await till.pool.execute("UPDATE stripe_reconciled SET looked_at = now() + interval '2 h'")

    found = await reconciler(till).once()

    assert found == {"checkouts_over": 2}
    assert (await till.payment(unpaid))["status"] == "expired"
    assert (await till.payment(paid))["status"] == "fulfilled"


async def test_a_page_that_is_still_open_is_left_open(till: Till) -> None:
    url = await till.ordered()
    await long_ago(till, "payments")

    assert await reconciler(till).once() == {}

    assert (await till.payment(url))["status"] == "created"


async def test_a_refund_that_was_given_up_is_tried_again_and_done(till: Till) -> None:
    url = await till.ordered()
    created = (await till.handle(await till.pay(url))).created
    assert created is not None
    async with transaction(till.pool) as connection:
        await queue_for_session(connection, created.session_id, "expired")
    await till.pool.execute("UPDATE outbox SET failed_at = now(), attempts = 54")

    found = await reconciler(till).once()
    async with running(till.outbox()):
        await eventually(lambda: till.pool.fetchval("SELECT done_at FROM outbox"))

    assert found["revived"] == 1
    assert (await till.payment(url))["status"] == "refunded"


async def test_a_transfer_that_was_made_before_we_could_write_it_down_is_found(till: Till) -> None:
    workshop_id, account_id = await workshop_with_account(till)
    await till.at_stripe(f"accounts/{account_id}")
    payout_id = await till.pool.fetchval(
        "INSERT INTO payouts"
        " (workshop_id, stripe_account_id, amount_cents, currency, status, cause)"
        " VALUES ($1, $2, 1000, 'eur', 'processing', 'hand') RETURNING id",
        workshop_id,
        account_id,
    )
    await till.pay(await till.ordered())  # so that there is money to send
    made = await till.stripe.transfer(
        payout_id=payout_id,
        amount_cents=1000,
        currency="eur",
        destination=account_id,
        metadata={"workshop_id": str(workshop_id)},
    )
    await long_ago(till, "payouts")

    await reconciler(till).once()

    row = await till.pool.fetchrow("SELECT status, stripe_transfer_id FROM payouts")
    assert row is not None
    assert tuple(row) == ("paid", made.id)


async def test_an_account_that_was_set_up_is_found(till: Till) -> None:
    _, account_id = await workshop_with_account(till)
    await till.at_stripe(f"accounts/{account_id}")

    await reconciler(till).once()

    assert await till.pool.fetchval("SELECT stripe_payouts_enabled FROM organizations")


async def test_what_stripe_does_not_know_keeps_nothing_else_from_being_asked(
    till: Till, caplog: pytest.LogCaptureFixture
) -> None:
    lost, paid = await till.ordered(), await till.ordered()
    await till.pool.execute(
        "UPDATE payments SET stripe_session_id = 'cs_test_unknown' WHERE stripe_session_id = $1",
        lost.rpartition("/")[2],
    )
    await till.pay(paid)
    await long_ago(till, "payments")
    await till.pool.execute("UPDATE stripe_reconciled SET looked_at = now() + interval '2 h'")

    found = await reconciler(till).once()

    assert found == {"checkouts_over": 1}
    assert "cs_test_unknown" in caplog.text


async def test_while_stripe_is_away_it_waits_and_then_asks(
    till: Till, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = await till.ordered()
    await till.pay(url)
    # As often as the client tries by itself.
    await till.at_stripe("faults", path="/v1/events", do="fail", method="GET", times=3)

    await reconciler(till).run()

    assert "asked again" in caplog.text
    assert (await till.payment(url))["status"] == "fulfilled"
