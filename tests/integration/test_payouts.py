"""Payouts: who is owed enough is paid once, and what is refunded later comes back once."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from dispatch import payouts
from dispatch.config import Config
from dispatch.database import Pool
from dispatch.errors import NotFound, Unavailable
from dispatch.payouts import Payee
from dispatch.stripe_client import StripeFailed
from tests.integration.paydesk import Paydesk, later
from tests.integration.rows import until_blocked
from tests.integration.stripe_servers import Receiver, make_client, serving, stand_in
from tests.integration.till import running
from tests.support import eventually

A_DAY_AND_MORE = 26 * 3600.0


@pytest.fixture
async def desk(pool: Pool, tmp_path: Path) -> AsyncIterator[Paydesk]:
    async with (
        serving(Receiver().app()) as url,
        stand_in(tmp_path, f"{url}/webhook") as client,
    ):
        stripe = make_client(client.url)
        desk = Paydesk(pool, stripe, client)
        await desk.fund()
        yield desk
        await stripe.close()


def alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a person must look at."""
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


async def paid_and_refunded(desk: Paydesk, mechanic_id: UUID, cents: int) -> tuple[UUID, UUID]:
    """A payout that she has, and the reversal of what was refunded to a customer afterwards."""
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run(mechanic_id=mechanic_id)).made
    await desk.transfer(made.payout_id)
    await desk.refund(sold, cents)
    (reversal,) = await desk.reversals(made.payout_id)
    return made.payout_id, reversal["id"]


# --- paying ---------------------------------------------------------------------------------------


async def test_everybody_who_is_owed_something_gets_it_in_one_transfer(desk: Paydesk) -> None:
    """A workshop for its own and for a referral, the other's mechanic, and an independent one."""
    garage, other = await desk.workshop(), await desk.workshop()
    own, theirs, free = (
        await desk.mechanic(garage),
        await desk.mechanic(other),
        await desk.mechanic(),
    )
    for cents in (1000, 1500):
        await desk.earn(own, cents)
        await desk.earn(free, cents)
    await desk.earn(theirs, 1000, workshop_id=garage)

    report = await desk.run()
    async with running(desk.outbox()):
        await eventually(desk.is_delivered)

    assert report.skipped == []
    assert {made.payee.id: made.amount_cents for made in report.made} == {
        garage: 800 + 1200 + 100,
        theirs: 700,
        free: 800 + 1200,
    }
    assert {made.payee.kind for made in report.made if made.payee.id == garage} == {"workshop"}
    assert [await desk.balance(payee) for payee in (garage, other, theirs, free)] == [
        *(2100, 0, 700, 2000),
    ]
    assert (await desk.run()).made == []
    await desk.agrees()


async def test_who_is_owed_too_little_or_cannot_be_paid_stays_owed_and_is_named(
    desk: Paydesk,
) -> None:
    poor, rich = await desk.mechanic(), await desk.mechanic()
    new, barred = await desk.mechanic(account=False), await desk.mechanic()
    await desk.earn(poor, 1249)  # her share is 999 cents
    for mechanic_id in (rich, new, barred):
        await desk.earn(mechanic_id, 1250)
    await desk.pool.execute(
        "UPDATE mechanics SET stripe_payouts_enabled = false WHERE id = $1", barred
    )

    report = await desk.run(minimum_cents=1000)

    assert [(made.payee.id, made.amount_cents) for made in report.made] == [(rich, 1000)]
    assert {each.payee.id: (each.due_cents, each.reason) for each in report.skipped} == {
        poor: (999, "below_minimum"),
        new: (1000, "no_account"),
        barred: (1000, "payouts_disabled"),
    }
    await desk.earn(poor, 100)
    await desk.set_up("mechanics", new)
    again = await desk.run(minimum_cents=1000)
    assert {made.payee.id: made.amount_cents for made in again.made} == {poor: 1079, new: 1000}


async def test_one_payee_is_paid_alone_and_an_unknown_one_is_not_found(desk: Paydesk) -> None:
    garage, free = await desk.workshop(), await desk.mechanic()
    await desk.earn(await desk.mechanic(garage))
    await desk.earn(free)

    (made,) = (await desk.run(workshop_id=garage)).made

    assert made.payee == Payee("workshop", garage, "Garage")
    for workshop_id, mechanic_id in ((None, garage), (free, None), (uuid4(), None)):
        with pytest.raises(NotFound):
            await desk.run(workshop_id=workshop_id, mechanic_id=mechanic_id)
    assert [each.payee.id for each in (await desk.run(mechanic_id=free)).made] == [free]


async def test_each_currency_is_a_payout_of_its_own(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    await desk.earn(mechanic_id, 1000)
    await desk.earn(mechanic_id, 2000)
    await desk.pool.execute(
        "UPDATE mechanic_earnings SET currency = 'usd' WHERE gross_amount_cents = 2000"
    )

    report = await desk.run()

    assert [(made.currency, made.amount_cents) for made in report.made] == [
        ("eur", 800),
        ("usd", 1600),
    ]


async def test_many_runs_at_once_pay_nobody_twice(desk: Paydesk) -> None:
    mechanics = [await desk.mechanic() for _ in range(6)]
    for mechanic_id in mechanics * 2:
        await desk.earn(mechanic_id)

    reports = await asyncio.gather(*(desk.run() for _ in range(12)))
    async with running(desk.outbox(), desk.outbox()):
        await eventually(desk.is_delivered)

    made = [each for report in reports for each in report.made]
    assert Counter(each.payee.id for each in made) == Counter(mechanics)
    assert {each.amount_cents for each in made} == {1600}
    assert len(await desk.transfers()) == 6
    await desk.agrees()


async def test_what_is_earned_while_a_payout_is_made_is_in_the_next(desk: Paydesk) -> None:
    """It is held up between reading what is owed and moving it, and a session ends meanwhile."""
    mechanic_id = await desk.mechanic()
    await desk.earn(mechanic_id)
    async with desk.pool.acquire() as other, other.transaction():
        await other.execute("SELECT 1 FROM mechanic_earnings FOR UPDATE")
        making = asyncio.create_task(desk.run())
        await until_blocked(desk.pool, 1)
        await desk.earn(mechanic_id)
    (first,) = (await making).made

    (second,) = (await desk.run()).made

    assert (first.amount_cents, second.amount_cents) == (800, 800)
    await desk.agrees_when_delivered()


async def test_what_is_refunded_while_a_payout_is_made_is_not_in_it(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    sold = await desk.earn(mechanic_id)
    await desk.earn(mechanic_id)
    async with desk.pool.acquire() as other, other.transaction():
        await other.execute(
            "UPDATE mechanic_earnings SET reversed_cents = 300 WHERE session_id = $1",
            sold.session_id,
        )
        making = asyncio.create_task(desk.run())
        await until_blocked(desk.pool, 1)
    (made,) = (await making).made

    assert made.amount_cents == 1600 - 300
    await desk.agrees_when_delivered()


async def test_a_payout_that_stripe_refuses_has_failed_and_is_in_the_next_run(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    mechanic_id = await desk.mechanic()
    payout_id = await desk.payout(mechanic_id)
    account_id = await desk.account_of(mechanic_id)
    await desk.disable(account_id)

    async with running(desk.outbox()):
        await eventually(desk.is_delivered)
    failed = await desk.row(payout_id)
    assert [each.reason for each in (await desk.run()).skipped] == ["payouts_disabled"]
    await desk.enable(account_id)
    await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made
    async with running(desk.outbox()):
        await eventually(desk.is_delivered)

    assert (failed["status"], failed["stripe_transfer_id"]) == ("failed", None)
    assert [each.startswith(f"payout {payout_id} failed: ") for each in alarms(caplog)] == [True]
    assert "insufficient_capabilities_for_transfer" in failed["note"]
    assert (made.amount_cents, made.payout_id != payout_id) == (1600, True)
    assert await desk.balance(mechanic_id) == 1600
    await desk.agrees()


async def test_without_enough_money_at_stripe_a_transfer_waits_for_it(
    desk: Paydesk, config: Config
) -> None:
    """For a day Stripe repeats the refusal under the same key."""
    mechanic_id = await desk.mechanic()
    await desk.earn(mechanic_id, 10_000_000)
    (made,) = (await desk.run()).made
    async with running(desk.outbox()):
        await eventually(lambda: has_failed_once(desk))
    meanwhile = await desk.row(made.payout_id)
    await desk.fund(10_000_000)
    await desk.stand_in.control("DELETE", "keys")

    async with (
        later(config.database_url, 24.5 * 3600) as pool_later,
        running(desk.outbox(pool_later)),
    ):
        await eventually(desk.is_delivered)

    assert meanwhile["status"] == "processing"
    assert await desk.balance(mechanic_id) == 8_000_000
    await desk.agrees()


async def has_failed_once(desk: Paydesk) -> bool:
    return bool(await desk.pool.fetchval("SELECT last_error FROM outbox"))


async def test_a_transfer_waits_for_money_no_longer_than_stripe_repeats_itself(
    desk: Paydesk, config: Config
) -> None:
    mechanic_id = await desk.mechanic()
    await desk.earn(mechanic_id, 10_000_000)
    (made,) = (await desk.run()).made

    async with (
        later(config.database_url, A_DAY_AND_MORE) as pool_later,
        running(desk.outbox(pool_later)),
    ):
        await eventually(desk.is_delivered)

    assert (await desk.row(made.payout_id))["status"] == "failed"
    await desk.fund(10_000_000)
    assert [each.amount_cents for each in (await desk.run()).made] == [8_000_000]
    await desk.agrees_when_delivered()


async def test_a_key_that_was_used_for_something_else_fails_nothing(desk: Paydesk) -> None:
    """Stripe knows the key, so something may have been sent: it is looked up, and asked again."""
    mechanic_id = await desk.mechanic()
    payout_id = await desk.payout(mechanic_id)
    form = {
        "amount": "1",
        "currency": "eur",
        "destination": await desk.account_of(await desk.mechanic()),
    }
    key = f"payout-{payout_id}"
    assert (await desk.stand_in.call("POST", "/v1/transfers", form, key=key))[0] == 200

    with pytest.raises(Unavailable):
        await desk.transfer(payout_id)

    assert (await desk.row(payout_id))["status"] == "processing"
    await desk.stand_in.control("DELETE", "keys")
    await desk.transfer(payout_id)
    assert await desk.balance(mechanic_id) == 800


# --- taking back ----------------------------------------------------------------------------------


async def test_a_refund_after_the_payout_comes_back_once(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    payout_id, reversal_id = await paid_and_refunded(desk, mechanic_id, 400)

    async with running(desk.outbox(), desk.outbox()):
        await eventually(desk.is_delivered)
    await desk.reverse(reversal_id)  # once more

    (reversal,) = await desk.reversals(payout_id)
    assert (reversal["status"], reversal["amount_cents"]) == ("reversed", 320)
    assert (await desk.row(payout_id))["reversed_cents"] == 320
    assert await desk.balance(mechanic_id) == 800 - 320
    await desk.agrees()


async def test_several_refunds_of_several_sessions_of_one_payout_come_back_each(
    desk: Paydesk,
) -> None:
    mechanic_id = await desk.mechanic()
    sold = [await desk.earn(mechanic_id) for _ in range(3)]
    (made,) = (await desk.run()).made
    await desk.transfer(made.payout_id)
    for each, cents in ((sold[0], 100), (sold[1], 1000), (sold[0], 250)):
        await desk.refund(each, cents)

    async with running(desk.outbox(), desk.outbox()):
        await eventually(desk.is_delivered)

    reversals = await desk.reversals(made.payout_id)
    assert [each["amount_cents"] for each in reversals] == [80, 800, 120]
    assert (await desk.row(made.payout_id))["reversed_cents"] == 1000
    await desk.agrees()


async def test_a_refund_while_the_payout_is_under_way_waits_for_it(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made
    await desk.refund(sold, 1000)
    (reversal,) = await desk.reversals()
    with pytest.raises(Unavailable, match="under way"):
        await desk.reverse(reversal["id"])
    await desk.pool.execute(  # as the outbox would have it by now
        "UPDATE outbox SET next_try_at = dispatch_now() + interval '1 h',"
        " failed_at = dispatch_now() WHERE kind = 'reversal'"
    )

    async with running(desk.outbox()):
        await eventually(desk.is_delivered)

    assert (await desk.row(made.payout_id))["reversed_cents"] == 800
    assert await desk.balance(mechanic_id) == 0
    await desk.agrees()


async def test_a_refund_while_a_payout_fails_only_makes_the_next_one_less(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made
    await desk.refund(sold, 500)
    await desk.disable(await desk.account_of(mechanic_id))

    await desk.transfer(made.payout_id)
    (reversal,) = await desk.reversals(made.payout_id)
    async with running(desk.outbox()):
        await eventually(desk.is_delivered)

    assert reversal["status"] == "void"
    await desk.enable(await desk.account_of(mechanic_id))
    assert [each.amount_cents for each in (await desk.run()).made] == [400]
    await desk.agrees_when_delivered()


async def test_a_refund_of_what_has_failed_only_makes_the_next_one_less(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made
    await desk.disable(await desk.account_of(mechanic_id))
    await desk.transfer(made.payout_id)

    await desk.refund(sold, 500)

    assert await desk.reversals() == []
    await desk.enable(await desk.account_of(mechanic_id))
    assert [each.amount_cents for each in (await desk.run()).made] == [400]


# --- debts ----------------------------------------------------------------------------------------


async def in_debt(desk: Paydesk, mechanic_id: UUID, cents: int = 1000) -> UUID:
    """A payout of which Stripe refused to take back what was refunded."""
    payout_id, reversal_id = await paid_and_refunded(desk, mechanic_id, cents)
    await desk.stand_in.control(
        "POST", "faults", path="/v1/transfers/*/reversals", do="refuse", code="transfer_lost"
    )
    await desk.reverse(reversal_id)
    return payout_id


async def test_what_cannot_be_taken_back_is_a_debt_and_the_next_payout_is_less_by_it(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    mechanic_id = await desk.mechanic()
    payout_id = await in_debt(desk, mechanic_id, 500)
    alarm = alarms(caplog)
    await desk.earn(mechanic_id)

    (made,) = (await desk.run()).made
    await desk.agrees_when_delivered()

    (debt,) = await desk.reversals(payout_id)
    assert alarm == [f"400 cents of payout {payout_id} are owed back: Refused, as was ordered."]
    assert "transfer_lost" in debt["note"]
    assert (debt["status"], debt["settled_by"]) == ("failed", made.payout_id)
    assert made.amount_cents == 800 - 400
    assert await desk.balance(mechanic_id) == 800 + 400
    listed = (await payouts.listing(desk.pool, None, 20, 0)).payouts
    assert [(each.amount_cents, each.debts_cents) for each in listed] == [(400, 400), (800, 0)]


async def test_a_debt_above_what_is_owed_waits_until_more_is_earned(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    await in_debt(desk, mechanic_id, 1000)
    await desk.earn(mechanic_id, 900)

    (skipped,) = (await desk.run()).skipped
    await desk.earn(mechanic_id, 1000)
    (made,) = (await desk.run()).made
    await desk.earn(mechanic_id, 1000)
    (next_one,) = (await desk.run()).made

    assert (skipped.due_cents, skipped.reason) == (720 - 800, "below_minimum")
    assert (made.amount_cents, next_one.amount_cents) == (720 + 800 - 800, 800)
    await desk.agrees_when_delivered()


async def test_a_debt_that_a_failed_payout_bore_is_owed_again(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    first = await in_debt(desk, mechanic_id, 500)
    await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made
    await desk.disable(await desk.account_of(mechanic_id))
    await desk.transfer(made.payout_id)
    (debt,) = await desk.reversals(first)

    await desk.enable(await desk.account_of(mechanic_id))
    (again,) = (await desk.run()).made

    assert debt["settled_by"] is None
    assert again.amount_cents == made.amount_cents == 400
    assert (await desk.reversals(first))[0]["settled_by"] == again.payout_id
    await desk.agrees_when_delivered()


async def test_a_debt_is_borne_once_however_many_runs_there_are(desk: Paydesk) -> None:
    mechanic_id = await desk.mechanic()
    await in_debt(desk, mechanic_id, 500)
    await desk.earn(mechanic_id)

    reports = await asyncio.gather(*(desk.run() for _ in range(8)))

    assert [each.amount_cents for report in reports for each in report.made] == [400]
    await desk.agrees_when_delivered()


async def test_money_that_the_account_has_not_got_is_waited_for_and_then_a_debt(
    desk: Paydesk, config: Config
) -> None:
    mechanic_id = await desk.mechanic()
    payout_id, reversal_id = await paid_and_refunded(desk, mechanic_id, 500)
    fault = {"path": "/v1/transfers/*/reversals", "do": "refuse", "code": "balance_insufficient"}
    await desk.stand_in.control("POST", "faults", **fault)

    with pytest.raises(StripeFailed):
        await desk.reverse(reversal_id)
    (meanwhile,) = await desk.reversals(payout_id)
    async with (
        later(config.database_url, A_DAY_AND_MORE) as pool_later,
        running(desk.outbox(pool_later)),
    ):
        await eventually(desk.is_delivered)

    assert meanwhile["status"] == "pending"
    assert (await desk.reversals(payout_id))[0]["status"] == "failed"


# --- what Stripe says -----------------------------------------------------------------------------


async def test_what_stripe_says_is_written_once_and_never_taken_back(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    """A transfer of which our node did not live to hear, and its reversal by a refund."""
    mechanic_id = await desk.mechanic()
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made
    await desk.transfer(made.payout_id)
    await desk.pool.execute(
        "UPDATE payouts SET status = 'processing', stripe_transfer_id = NULL, settled_at = NULL"
    )
    await desk.pool.execute("UPDATE mechanic_earnings SET payout_status = 'processing'")

    assert await payouts.refresh(desk.pool, desk.stripe, made.payout_id)
    paid = await desk.row(made.payout_id)
    await desk.refund(sold, 500)
    (reversal,) = await desk.reversals()
    await desk.stripe.reverse(
        reversal_id=reversal["id"],
        transfer_id=paid["stripe_transfer_id"],
        amount_cents=reversal["amount_cents"],
    )
    for _ in range(2):
        await payouts.refresh(desk.pool, desk.stripe, made.payout_id)
    reversed_cents = (await desk.row(made.payout_id))["reversed_cents"]
    await desk.reverse(reversal["id"])

    assert paid["status"] == "paid"
    assert reversed_cents == 400
    assert alarms(caplog) == []
    await desk.agrees()


async def test_a_payout_that_stripe_has_not_heard_of_stays_as_it_is(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    payout_id = await desk.payout(await desk.mechanic())

    assert await payouts.refresh(desk.pool, desk.stripe, payout_id)
    assert not await payouts.refresh(desk.pool, desk.stripe, uuid4())

    assert (await desk.row(payout_id))["status"] == "pending"
    assert alarms(caplog) == []


async def test_money_that_was_sent_though_the_payout_failed_is_an_alarm(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    payout_id = await desk.payout(await desk.mechanic())
    await desk.transfer(payout_id)
    await desk.pool.execute("UPDATE mechanic_earnings SET payout_status = 'failed'")
    await desk.pool.execute("UPDATE payouts SET status = 'failed', stripe_transfer_id = NULL")

    await payouts.refresh(desk.pool, desk.stripe, payout_id)

    row = await desk.row(payout_id)
    (transfer,) = await desk.transfers()
    assert (row["status"], row["stripe_transfer_id"]) == ("failed", transfer["id"])
    (alarm,) = alarms(caplog)
    assert "it is held for failed, and was paid" in alarm


async def test_a_second_transfer_of_a_payout_is_an_alarm(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    mechanic_id = await desk.mechanic()
    payout_id = await desk.payout(mechanic_id)
    await desk.transfer(payout_id)
    form = {
        "amount": "900",
        "currency": "eur",
        "destination": await desk.account_of(mechanic_id),
        "transfer_group": f"payout-{payout_id}",
    }
    assert (await desk.stand_in.call("POST", "/v1/transfers", form))[0] == 200

    await payouts.refresh(desk.pool, desk.stripe, payout_id)

    (alarm,) = alarms(caplog)
    assert "it was paid twice" in alarm
    assert "another amount was sent" in alarm
    assert (await desk.row(payout_id))["status"] == "paid"


async def test_more_that_came_back_than_we_asked_for_is_an_alarm(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    payout_id = await desk.payout(await desk.mechanic())
    await desk.transfer(payout_id)
    transfer_id = (await desk.row(payout_id))["stripe_transfer_id"]
    await desk.stand_in.call("POST", f"/v1/transfers/{transfer_id}/reversals", {"amount": "300"})

    await payouts.refresh(desk.pool, desk.stripe, payout_id)

    assert (await desk.row(payout_id))["reversed_cents"] == 300
    (alarm,) = alarms(caplog)
    assert "300 cents came back, not 0" in alarm


async def test_a_paid_payout_of_which_stripe_shows_no_transfer_is_an_alarm(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    payout_id = await desk.payout(await desk.mechanic())
    await desk.pool.execute("SELECT settle_payout($1, 'paid', 'tr_of_nobody', NULL)", payout_id)

    await payouts.refresh(desk.pool, desk.stripe, payout_id)

    assert alarms(caplog) == [f"payout {payout_id} is paid, and Stripe shows no transfer of it"]


# --- the list -------------------------------------------------------------------------------------


async def test_the_list_is_paged_the_newest_first_and_by_status(desk: Paydesk) -> None:
    mechanic_id, garage = await desk.mechanic(), await desk.workshop()
    made = [await desk.payout(mechanic_id) for _ in range(3)]
    await desk.earn(await desk.mechanic(garage))
    made.append((await desk.run()).made[0].payout_id)
    await desk.transfer(made[0])

    everything = await payouts.listing(desk.pool, None, 2, 1)
    paid = await payouts.listing(desk.pool, "paid", 20, 0)
    nothing = await payouts.listing(desk.pool, "failed", 20, 0)

    assert [each.payout_id for each in everything.payouts] == [made[2], made[1]]
    assert (everything.total, everything.limit, everything.offset) == (4, 2, 1)
    (one,) = paid.payouts
    assert (one.payout_id, one.payee) == (made[0], Payee("mechanic", mechanic_id, "Kim Doe"))
    assert (one.status, one.cause, one.settled_at is None) == ("paid", "hand", False)
    assert (nothing.payouts, nothing.total) == ([], 0)
