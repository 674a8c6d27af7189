"""Accounts of those who are paid: one each, set up at Stripe, and our rows say how far they are."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch import connect
from dispatch.config import Config
from dispatch.connect import Payee
from dispatch.database import Pool
from dispatch.errors import Forbidden, NotFound, Unavailable
from dispatch.stripe_client import Account, StripeClient, StripeFailed
from tests.integration.paydesk import Paydesk
from tests.integration.rows import add_user
from tests.integration.stripe_servers import Json, Receiver, make_client, serving, stand_in

KINDS = ("workshop", "mechanic")
TABLES = {"workshop": "organizations", "mechanic": "mechanics"}


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def desk(pool: Pool, receiver: Receiver, tmp_path: Path) -> AsyncIterator[Paydesk]:
    async with (
        serving(receiver.app()) as url,
        stand_in(tmp_path, f"{url}/webhook") as client,
    ):
        stripe = make_client(client.url)
        yield Paydesk(pool, stripe, client)
        await stripe.close()


async def add(desk: Paydesk, kind: str) -> Payee:
    """Somebody who has no account yet."""
    if kind == "workshop":
        return Payee("workshop", await desk.workshop(account=False))
    return Payee("mechanic", await desk.mechanic(account=False))


async def row(desk: Paydesk, payee: Payee) -> asyncpg.Record:
    found = await desk.pool.fetchrow(f"SELECT * FROM {TABLES[payee.kind]} WHERE id = $1", payee.id)
    assert found is not None
    return found


async def state(desk: Paydesk, payee: Payee) -> tuple[bool, bool]:
    """Whether it was set up, and takes payouts."""
    found = await row(desk, payee)
    return found["stripe_onboarding_completed"], found["stripe_payouts_enabled"]


async def accounts(desk: Paydesk) -> list[Json]:
    """The accounts in Stripe's ledger."""
    found: list[Json] = (await desk.stand_in.ledger())["accounts"]
    return found


# --- setting up -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_payee_is_led_to_stripe_sets_up_the_account_and_can_be_paid(
    desk: Paydesk, config: Config, receiver: Receiver, kind: str
) -> None:
    payee = await add(desk, kind)

    first = await connect.onboard(desk.pool, desk.stripe, config, payee)
    status, back = await desk.stand_in.press(first.url, "finish")
    await receiver.wait_for("account.updated")
    account_id = (await row(desk, payee))["stripe_connect_account_id"]
    assert await connect.refresh(desk.pool, desk.stripe, account_id)
    second = await connect.onboard(desk.pool, desk.stripe, config, payee)

    assert (first.onboarding_completed, first.payouts_enabled) == (False, False)
    assert (status, back["redirect"]) == (200, f"{config.public_url}/connect/return")
    assert (second.onboarding_completed, second.payouts_enabled) == (True, True)
    assert second.url != first.url
    (account,) = await accounts(desk)
    assert account["id"] == account_id
    assert account["metadata"] == {
        f"{kind}_id": str(payee.id),
        "payee": f"{kind}-{payee.id}",
    }
    assert account["email"].endswith("@example.com")


async def test_who_leaves_before_the_end_takes_no_payouts(desk: Paydesk, config: Config) -> None:
    payee = await add(desk, "mechanic")
    link = await connect.onboard(desk.pool, desk.stripe, config, payee)

    await desk.stand_in.press(link.url, "leave")
    account_id = (await row(desk, payee))["stripe_connect_account_id"]
    await connect.refresh(desk.pool, desk.stripe, account_id)

    assert await state(desk, payee) == (False, False)


@pytest.mark.parametrize("kind", KINDS)
async def test_many_at_once_make_one_account(desk: Paydesk, config: Config, kind: str) -> None:
    payee = await add(desk, kind)

    answers = await asyncio.gather(
        *(connect.onboard(desk.pool, desk.stripe, config, payee) for _ in range(8)),
        return_exceptions=True,
    )

    links = [answer for answer in answers if isinstance(answer, connect.Onboarding)]
    assert links
    assert all(isinstance(each, connect.Onboarding | Unavailable) for each in answers)
    (account,) = await accounts(desk)
    assert (await row(desk, payee))["stripe_connect_account_id"] == account["id"]


class Dying:
    """A pool of a node that is killed before it stores anything."""

    def __init__(self, pool: Pool) -> None:
        self.fetchrow = pool.fetchrow

    async def fetchval(self, *_: Any) -> None:
        raise ConnectionError("killed")


async def test_after_a_crash_between_stripe_and_our_row_it_is_the_same_account(
    desk: Paydesk, config: Config
) -> None:
    payee = await add(desk, "workshop")
    pool: Any = Dying(desk.pool)
    with pytest.raises(Unavailable):
        await connect.onboard(pool, desk.stripe, config, payee)
    (made,) = await accounts(desk)

    await connect.onboard(desk.pool, desk.stripe, config, payee)

    assert len(await accounts(desk)) == 1
    assert (await row(desk, payee))["stripe_connect_account_id"] == made["id"]


@pytest.mark.parametrize("path", ["/v1/accounts", "/v1/account_links"])
async def test_whatever_of_it_is_lost_there_is_one_account_in_the_end(
    desk: Paydesk, config: Config, path: str
) -> None:
    payee = await add(desk, "workshop")
    await desk.stand_in.control("POST", "faults", path=path, do="drop_reply", times=3)
    with pytest.raises(Unavailable):
        await connect.onboard(desk.pool, desk.stripe, config, payee)

    await connect.onboard(desk.pool, desk.stripe, config, payee)

    (account,) = await accounts(desk)
    assert (await row(desk, payee))["stripe_connect_account_id"] == account["id"]


async def test_what_stripe_refuses_stores_nothing(desk: Paydesk, config: Config) -> None:
    payee = await add(desk, "workshop")
    fault = {"path": "/v1/accounts", "do": "refuse", "code": "country_unsupported"}
    await desk.stand_in.control("POST", "faults", **fault)

    with pytest.raises(StripeFailed):
        await connect.onboard(desk.pool, desk.stripe, config, payee)

    assert (await row(desk, payee))["stripe_connect_account_id"] is None


# --- who may --------------------------------------------------------------------------------------


async def test_a_member_acts_for_the_workshop_once_it_was_approved(desk: Paydesk) -> None:
    workshop_id = await desk.workshop(account=False)
    async with desk.pool.acquire() as connection:
        member, stranger = [await add_user(connection, "workshop") for _ in range(2)]
    await desk.pool.execute(
        "INSERT INTO organization_members (organization_id, user_id) VALUES ($1, $2)",
        workshop_id,
        member,
    )

    assert await connect.workshop_of(desk.pool, member) == Payee("workshop", workshop_id)
    with pytest.raises(NotFound):
        await connect.workshop_of(desk.pool, stranger)
    await desk.pool.execute("UPDATE organizations SET status = 'pending'")
    with pytest.raises(Forbidden):
        await connect.workshop_of(desk.pool, member)


@pytest.mark.parametrize("of_a_workshop", [True, False])
async def test_an_approved_mechanic_is_paid_herself_also_one_of_a_workshop(
    desk: Paydesk, of_a_workshop: bool
) -> None:
    workshop_id = await desk.workshop(account=False) if of_a_workshop else None
    mechanic_id = await desk.mechanic(workshop_id, account=False)

    assert await connect.mechanic(desk.pool, mechanic_id) == Payee("mechanic", mechanic_id)


@pytest.mark.parametrize(
    "change",
    [
        "application_status = 'pending'",
        "application_status = 'rejected'",
        "deleted_at = now()",
    ],
)
async def test_who_is_not_approved_gets_no_account(desk: Paydesk, change: str) -> None:
    mechanic_id = await desk.mechanic(account=False)
    await desk.pool.execute(f"UPDATE mechanics SET {change}")

    for user_id in (mechanic_id, uuid4()):
        with pytest.raises(Forbidden):
            await connect.mechanic(desk.pool, user_id)


# --- what Stripe says -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_what_stripe_takes_and_gives_again_is_in_our_row(desk: Paydesk, kind: str) -> None:
    payee = Payee(
        "workshop" if kind == "workshop" else "mechanic",
        await (desk.workshop() if kind == "workshop" else desk.mechanic()),
    )
    account_id = await desk.account_of(payee.id)
    seen = []
    for change in (desk.disable, desk.enable):
        await change(account_id)
        await connect.refresh(desk.pool, desk.stripe, account_id)
        seen.append(await state(desk, payee))

    assert seen == [(True, False), (True, True)]


class Slow:
    """A client whose answer is old by the time that it comes."""

    def __init__(self, stripe: StripeClient) -> None:
        self._stripe = stripe
        self.has_asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def account(self, account_id: str) -> Account:
        answer = await self._stripe.account(account_id)
        self.has_asked.set()
        await self.go_on.wait()
        return answer


async def test_a_reading_that_began_earlier_never_overwrites_one_that_began_later(
    desk: Paydesk,
) -> None:
    payee = Payee("mechanic", await desk.mechanic())
    account_id = await desk.account_of(payee.id)
    slow: Any = Slow(desk.stripe)
    reading = asyncio.create_task(connect.refresh(desk.pool, slow, account_id))
    await slow.has_asked.wait()
    await desk.disable(account_id)
    await connect.refresh(desk.pool, desk.stripe, account_id)

    slow.go_on.set()
    await reading

    assert await state(desk, payee) == (True, False)


async def test_an_account_that_is_not_ours_any_more_takes_no_payouts(
    desk: Paydesk, caplog: pytest.LogCaptureFixture
) -> None:
    payee = Payee("workshop", await desk.workshop())
    await desk.pool.execute("UPDATE organizations SET stripe_connect_account_id = 'acct_gone'")

    assert await connect.refresh(desk.pool, desk.stripe, "acct_gone")

    assert await state(desk, payee) == (False, False)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "account acct_gone is not ours any more: nothing is paid out to it"
    ]


async def test_who_has_lost_the_account_at_stripe_sets_up_another(
    desk: Paydesk, config: Config
) -> None:
    payee = Payee("mechanic", await desk.mechanic())
    await desk.pool.execute("UPDATE mechanics SET stripe_connect_account_id = 'acct_gone'")

    await connect.onboard(desk.pool, desk.stripe, config, payee)

    another = await desk.account_of(payee.id)
    assert another.startswith("acct_")
    assert another != "acct_gone"


async def test_an_account_of_nobody_is_not_asked_about(desk: Paydesk) -> None:
    await desk.stripe.close()

    assert not await connect.refresh(desk.pool, desk.stripe, "acct_of_nobody")


async def test_while_stripe_is_away_our_row_stays_as_it_is(desk: Paydesk) -> None:
    payee = Payee("mechanic", await desk.mechanic())
    account_id = await desk.account_of(payee.id)
    await desk.disable(account_id)
    fault = {"path": "/v1/accounts/*", "method": "GET", "do": "fail", "times": 3}
    await desk.stand_in.control("POST", "faults", **fault)

    with pytest.raises(Unavailable):
        await connect.refresh(desk.pool, desk.stripe, account_id)

    assert await state(desk, payee) == (True, True)


async def test_another_payees_account_is_never_stored_twice(desk: Paydesk) -> None:
    account_id = await desk.account_of(await desk.mechanic())
    other: UUID = await desk.mechanic(account=False)

    with pytest.raises(asyncpg.UniqueViolationError):
        await desk.pool.execute(
            "UPDATE mechanics SET stripe_connect_account_id = $2 WHERE id = $1", other, account_id
        )
