"""The stand-in for Stripe: connected accounts, transfers and their reversals, refunds that wait."""

import time
import typing
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import stripe

from tests.integration.stripe_servers import (
    ACCOUNT,
    Clock,
    Json,
    Receiver,
    StandInClient,
    serving,
    stand_in,
    unknown_keys,
)
from tests.support import STRIPE_SECRET_KEY, eventually


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
async def client(tmp_path: Path, receiver: Receiver, clock: Clock) -> AsyncIterator[StandInClient]:
    async with (
        serving(receiver.app()) as url,
        stand_in(tmp_path, f"{url}/webhook", now=clock) as client,
    ):
        yield client


def transfer_to(destination: str, amount: int = 2000, **changed: str) -> dict[str, str]:
    form = {"amount": str(amount), "currency": "usd", "destination": destination}
    return form | {"transfer_group": "payout-1", "metadata[payout_id]": "1"} | changed


async def send(client: StandInClient, amount: int = 2000) -> Json:
    """A payment of 25.00, an account, and a transfer to it."""
    await client.paid()
    account = await client.payee()
    status, made, _ = await client.call("POST", "/v1/transfers", transfer_to(account["id"], amount))
    assert status == 200, made
    return made


async def balance(client: StandInClient, account: str | None = None) -> int:
    """The only balance there is, in cents."""
    _, shown, _ = await client.call("GET", "/v1/balance", account=account)
    [funds] = shown["available"]
    return int(funds["amount"])


# --- onboarding ------------------------------------------------------------------------------


async def link_for(client: StandInClient, account_id: str) -> Json:
    form = {"account": account_id, "type": "account_onboarding"}
    form |= {"return_url": "http://localhost/back", "refresh_url": "https://shop.example/again"}
    status, link, _ = await client.call("POST", "/v1/account_links", form)
    assert status == 200, link
    return link


async def test_the_onboarding_page_asks_nothing_and_says_what_it_is(client: StandInClient) -> None:
    name = "<script>alert(1)</script>@shops.example"
    _, refused, _ = await client.call("POST", "/v1/accounts", ACCOUNT | {"email": name})
    _, account, _ = await client.call("POST", "/v1/accounts", ACCOUNT)
    link = await link_for(client, account["id"])

    async with client.http.get(link["url"]) as response:
        shown = await response.text()
        policy = response.headers["content-security-policy"]

    assert refused["error"]["code"] == "email_invalid"
    assert "<script" not in shown
    assert "<input" not in shown
    assert "Not Stripe" in shown
    assert "corner@shops.example" in shown
    for button in ("finish", "leave"):
        assert f'<form method="post" action="{link["url"][len(client.url) :]}/{button}">' in shown
    assert "form-action 'self' http://localhost https://shop.example" in policy


async def test_finishing_enables_the_account_once_and_leads_back(
    client: StandInClient, receiver: Receiver
) -> None:
    _, account, _ = await client.call("POST", "/v1/accounts", ACCOUNT)
    link = await link_for(client, account["id"])

    left = await client.press(link["url"], "leave")
    _, unfinished, _ = await client.call("GET", f"/v1/accounts/{account['id']}")
    pressed = await client.press(link["url"], "finish")
    again = await client.press(link["url"], "finish")

    assert left == pressed == (200, {"ok": True, "redirect": "http://localhost/back"})
    assert unfinished == account
    assert (again[0], again[1]["redirect"]) == (409, "https://shop.example/again")
    hook = await receiver.wait_for("account.updated")
    assert hook.event["account"] == account["id"]
    assert hook.event["data"]["object"]["payouts_enabled"] is True
    previous = hook.event["data"]["previous_attributes"]
    assert (previous["details_submitted"], previous["payouts_enabled"]) == (False, False)
    assert previous["capabilities"] == {"transfers": "inactive"}
    await eventually(lambda: receiver.count() == {"account.updated": 1})


async def test_a_browser_with_an_old_link_is_led_to_a_new_one(
    client: StandInClient, clock: Clock
) -> None:
    _, account, _ = await client.call("POST", "/v1/accounts", ACCOUNT)
    link = await link_for(client, account["id"])
    clock.now += 301

    for ask in (client.http.get(link["url"], allow_redirects=False),
                client.http.post(f"{link['url']}/finish", allow_redirects=False)):  # fmt: skip
        async with ask as response:
            assert response.status == 303
            assert response.headers["location"] == "https://shop.example/again"
    _, after, _ = await client.call("GET", f"/v1/accounts/{account['id']}")
    assert after["details_submitted"] is False


# --- transfers -------------------------------------------------------------------------------


async def test_money_goes_to_an_account_and_part_of_it_comes_back(
    client: StandInClient, receiver: Receiver
) -> None:
    sent = await send(client)
    path = f"/v1/transfers/{sent['id']}"

    _, back, _ = await client.call("POST", f"{path}/reversals", {"amount": "300"})
    _, after, _ = await client.call("GET", path)

    assert (after["amount_reversed"], after["reversed"]) == (300, False)
    assert after["reversals"]["data"] == [back]
    assert await balance(client) == 500 + 300
    assert await balance(client, sent["destination"]) == 1700
    _, one, _ = await client.call("GET", f"{path}/reversals/{back['id']}")
    assert one == back
    created = (await receiver.wait_for("transfer.created")).event
    assert created["data"]["object"] == sent
    assert "account" not in created
    reversed_ = (await receiver.wait_for("transfer.reversed")).event
    assert reversed_["data"]["object"] == after
    assert reversed_["data"]["previous_attributes"]["amount_reversed"] == 0


async def test_an_account_that_took_its_money_owes_what_is_reversed(client: StandInClient) -> None:
    sent = await send(client)
    await client.control("POST", f"accounts/{sent['destination']}/payouts", amount=2000)

    await client.call("POST", f"/v1/transfers/{sent['id']}/reversals")

    assert await balance(client, sent["destination"]) == -2000
    assert await balance(client) == 2500
    summed = (await client.ledger())["sums"]["usd"]
    assert (summed["banks"], summed["accounts"], summed["missing"]) == (2000, -2000, 0)


async def test_a_transfer_is_found_by_its_group(client: StandInClient) -> None:
    sent = await send(client)
    other = transfer_to(sent["destination"], 100, transfer_group="payout-2")
    await client.call("POST", "/v1/transfers", other)

    _, found, _ = await client.call("GET", "/v1/transfers?transfer_group=payout-1")
    _, theirs, _ = await client.call("GET", f"/v1/transfers?destination={sent['destination']}")
    _, none, _ = await client.call("GET", "/v1/transfers?transfer_group=payout-3")

    assert found["data"] == [sent]
    assert len(theirs["data"]) == 2
    assert none["data"] == []


async def test_other_words_on_a_transfer_are_told(
    client: StandInClient, receiver: Receiver
) -> None:
    sent = await send(client)

    _, changed, _ = await client.call(
        "POST", f"/v1/transfers/{sent['id']}", {"metadata[week]": "7", "metadata[payout_id]": ""}
    )

    assert changed["metadata"] == {"week": "7"}
    updated = (await receiver.wait_for("transfer.updated")).event
    assert updated["data"]["previous_attributes"] == {"metadata": {"payout_id": "1"}}


async def test_what_was_tried_and_refused_is_refused_again_for_a_day(
    client: StandInClient, clock: Clock
) -> None:
    """Also when there is money by then; what could not be understood is not kept at all."""
    account = await client.payee()
    form = transfer_to(account["id"])
    await client.call("POST", "/v1/transfers", form | {"amount": "x"}, key="payout-1")
    _, refused, _ = await client.call("POST", "/v1/transfers", form, key="payout-1")
    await client.paid()

    status, again, told = await client.call("POST", "/v1/transfers", form, key="payout-1")
    clock.now += 24 * 3600
    late, made, _ = await client.call("POST", "/v1/transfers", form, key="payout-1")

    assert refused["error"]["code"] == "balance_insufficient"
    assert (status, again, told["idempotent-replayed"]) == (400, refused, "true")
    assert (late, made["amount"]) == (200, 2000)


async def test_only_its_balance_and_events_are_shown_in_the_name_of_an_account(
    client: StandInClient,
) -> None:
    account = (await client.payee())["id"]
    _, ours, _ = await client.call("GET", "/v1/events")
    _, theirs, _ = await client.call("GET", "/v1/events", account=account)
    status, refused, _ = await client.call(
        "POST", "/v1/transfers", transfer_to(account), account=account
    )
    unknown, told, _ = await client.call("GET", "/v1/balance", account="acct_none")

    assert ours["data"] == []
    assert [event["type"] for event in theirs["data"]] == ["account.updated"]
    assert (await client.call("GET", f"/v1/events/{theirs['data'][0]['id']}"))[0] == 404
    assert (status, refused["error"]["type"]) == (400, "invalid_request_error")
    assert (unknown, told["error"]["code"]) == (403, "account_invalid")


# --- refunds that wait -----------------------------------------------------------------------


async def test_a_refund_that_waits_and_then_succeeds(
    client: StandInClient, receiver: Receiver
) -> None:
    intent = (await client.paid())["payment_intent"]
    await client.control("POST", "faults", path="/v1/refunds", do="pending")

    _, made, _ = await client.call("POST", "/v1/refunds", {"payment_intent": intent})
    waiting = await balance(client)
    done = await client.control("POST", f"refunds/{made['id']}")

    assert (made["status"], made["pending_reason"], waiting) == ("pending", "processing", 0)
    assert (done["status"], await balance(client)) == ("succeeded", 0)
    for kind in ("refund.updated", "charge.refund.updated"):
        event = (await receiver.wait_for(kind)).event
        assert event["data"]["object"] == done
        assert event["data"]["previous_attributes"]["status"] == "pending"
    assert receiver.count()["refund.failed"] == 0


@pytest.mark.parametrize("pending", [True, False])
async def test_a_refund_that_fails_gives_back_what_it_took(
    client: StandInClient, receiver: Receiver, pending: bool
) -> None:
    """One that had succeeded can fail as well."""
    intent = (await client.paid())["payment_intent"]
    made = await client.control("POST", "refunds", payment_intent=intent, pending=pending)
    _, paid, _ = await client.call("GET", f"/v1/payment_intents/{intent}")
    before = await balance(client)

    await client.control("POST", f"refunds/{made['id']}", failure_reason="expired_or_canceled_card")

    _, charge, _ = await client.call("GET", f"/v1/charges/{paid['latest_charge']}")
    _, failed, _ = await client.call("GET", f"/v1/refunds/{made['id']}")
    assert (before, await balance(client)) == (0, 2500)
    assert (charge["amount_refunded"], charge["refunded"]) == (0, False)
    assert (failed["status"], failed["failure_reason"]) == ("failed", "expired_or_canceled_card")
    await receiver.wait_for("refund.failed")
    _, again, _ = await client.call("POST", "/v1/refunds", {"payment_intent": intent})
    assert (again["status"], await balance(client)) == ("succeeded", 0)
    assert (await client.ledger())["sums"]["usd"]["missing"] == 0


async def test_a_refund_by_hand_is_told_like_any_other_but_nobody_asked_for_it(
    client: StandInClient, receiver: Receiver
) -> None:
    intent = (await client.paid())["payment_intent"]

    made = await client.control("POST", "refunds", payment_intent=intent, amount=700)

    event = (await receiver.wait_for("charge.refunded")).event
    assert event["request"] == {"id": None, "idempotency_key": None}
    assert event["data"]["object"]["amount_refunded"] == 700
    assert (made["amount"], made["metadata"]) == (700, {})


# --- lists -----------------------------------------------------------------------------------


async def test_a_list_is_paged_both_ways(client: StandInClient) -> None:
    intent = (await client.paid())["payment_intent"]
    made = [
        (await client.control("POST", "refunds", payment_intent=intent, amount=10))["id"]
        for _ in range(5)
    ]
    newest_first = made[::-1]

    async def page(query: str) -> tuple[list[str], bool]:
        _, found, _ = await client.call("GET", f"/v1/refunds?{query}")
        return [refund["id"] for refund in found["data"]], found["has_more"]

    assert await page("limit=2") == (newest_first[:2], True)
    assert await page(f"limit=2&starting_after={newest_first[1]}") == (newest_first[2:4], True)
    assert await page(f"limit=2&starting_after={newest_first[3]}") == (newest_first[4:], False)
    assert await page(f"limit=2&ending_before={newest_first[4]}") == (newest_first[2:4], True)
    assert await page(f"limit=2&ending_before={newest_first[1]}") == (newest_first[:1], False)


async def test_events_are_chosen_by_type_and_time(client: StandInClient, clock: Clock) -> None:
    await client.paid()
    moment = int(clock.now) + 5
    clock.now += 10
    await client.paid()

    async def count(query: str) -> int:
        _, found, _ = await client.call("GET", f"/v1/events?limit=100&{query}")
        return len(found["data"])

    assert await count("") == 6
    assert await count("types[]=charge.succeeded&types[]=payment_intent.succeeded") == 4
    assert await count("types[0]=charge.succeeded&types[1]=transfer.created") == 2
    assert await count("type=charge.*") == 2
    assert await count(f"created[gte]={moment}") == 3
    assert await count(f"created[lt]={moment}&type=charge.succeeded") == 1
    assert await count(f"created={int(clock.now)}") == 3


# --- shapes ----------------------------------------------------------------------------------


async def test_every_key_of_connect_is_one_that_stripes_own_types_name(
    client: StandInClient,
) -> None:
    sent = await send(client)
    _, fresh, _ = await client.call("POST", "/v1/accounts", ACCOUNT)
    _, back, _ = await client.call("POST", f"/v1/transfers/{sent['id']}/reversals")
    _, after, _ = await client.call("GET", f"/v1/transfers/{sent['id']}")
    _, account, _ = await client.call("GET", f"/v1/accounts/{sent['destination']}")
    _, shown, _ = await client.call("GET", "/v1/balance")
    pending = await client.control(
        *("POST", "refunds"),
        payment_intent=(await client.ledger())["payments"][0]["id"],
        pending=True,
    )
    failed = await client.control("POST", f"refunds/{pending['id']}", failure_reason="unknown")
    _, events, _ = await client.call("GET", "/v1/events", account=account["id"])

    found = [
        *unknown_keys(fresh, stripe.Account),
        *unknown_keys(account, stripe.Account),
        *unknown_keys(await link_for(client, fresh["id"]), stripe.AccountLink),
        *unknown_keys(sent, stripe.Transfer),
        *unknown_keys(after, stripe.Transfer),
        *unknown_keys(back, stripe.TransferReversal),
        *unknown_keys(shown, stripe.Balance),
        *(
            key
            for funds in shown["available"]
            for key in unknown_keys(funds, stripe.Balance.Available)
        ),
        *unknown_keys(pending, stripe.Refund),
        *unknown_keys(failed, stripe.Refund),
        *unknown_keys(events["data"][0], stripe.Event),
    ]

    assert found == []


async def test_every_event_is_one_that_stripe_sends(client: StandInClient) -> None:
    sent = await send(client)
    path = f"/v1/transfers/{sent['id']}"
    await client.call("POST", path, {"description": "week 7"})
    await client.call("POST", f"{path}/reversals")
    [payment] = (await client.ledger())["payments"]
    made = await client.control("POST", "refunds", payment_intent=payment["id"])
    await client.control("POST", f"refunds/{made['id']}", failure_reason="unknown")

    _, ours, _ = await client.call("GET", "/v1/events?limit=100")
    _, theirs, _ = await client.call("GET", "/v1/events", account=sent["destination"])

    sent_kinds = {event["type"] for event in ours["data"] + theirs["data"]}
    assert len(sent_kinds) == 12
    assert sent_kinds <= set(typing.get_args(stripe.Event.__annotations__["type"]))


async def test_stripes_own_library_pages_and_pays_out(client: StandInClient) -> None:
    """Its objects and lists, not ours: `auto_paging_iter` is what anybody would use."""
    account = await client.payee()
    await client.paid()
    theirs = stripe.StripeClient(
        STRIPE_SECRET_KEY,
        base_addresses={"api": client.url},
        http_client=stripe.AIOHTTPClient(),
    )
    for _ in range(5):
        await theirs.v1.transfers.create_async(
            {"amount": 100, "currency": "usd", "destination": account["id"]}
        )

    listed = await theirs.v1.transfers.list_async({"limit": 2, "created": {"gte": 1}})
    found = [transfer async for transfer in listed.auto_paging_iter()]
    held = await theirs.v1.balance.retrieve_async(options={"stripe_account": account["id"]})

    assert len({transfer.id for transfer in found}) == 5
    assert [transfer.destination for transfer in found] == [account["id"]] * 5
    assert [funds.amount for funds in held.available] == [500]
