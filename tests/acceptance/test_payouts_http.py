"""Being paid: from the account at Stripe to the money on it, and back after a refund; who may."""

from typing import Any

import pytest

from tests.acceptance.actors import Answer, Booking, City, Mechanic, Person, new_id
from tests.acceptance.shapes import Frame
from tests.acceptance.test_earnings_http import earnings, is_served
from tests.support import eventually

RUN, LIST = "/api/admin/payouts/run", "/api/admin/payouts"
ONBOARD = {
    "workshop": "/api/workshop/stripe/onboard",
    "mechanic": "/api/mechanic/stripe/onboard",
}


async def onboard(person: Person, kind: str) -> Answer:
    answer = await person.call("POST", ONBOARD[kind])
    assert answer.status == 200, answer
    return answer


async def set_up(city: City, person: Person, kind: str) -> None:
    """At Stripe; our server hears of it by a webhook."""
    link = await onboard(person, kind)
    assert (await city.call("POST", f"{link['url']}/finish")).status in (200, 303)

    async def is_known() -> bool:
        return bool((await earnings(person, kind))["payouts"]["payouts_enabled"])

    await eventually(is_known)


async def run(admin: Person, **body: Any) -> Answer:
    answer = await admin.call("POST", RUN, body)
    assert answer.status == 200, answer
    return answer


async def transfer_of(city: City, payout_id: str) -> Frame:
    """The one transfer of a payout, once Stripe has it."""

    async def made() -> list[Frame]:
        transfers = (await city.ledger())["transfers"]
        return [each for each in transfers if each["transfer_group"] == f"payout-{payout_id}"]

    (transfer,) = await eventually(made)
    return transfer


async def payout(admin: Person, payout_id: str, **fields: Any) -> Frame:
    """The payout in the list, once it has those fields."""

    async def listed() -> Frame | None:
        answer = await admin.call("GET", LIST, params={"limit": 100})
        (row,) = [each for each in answer["payouts"] if each["payout_id"] == payout_id]
        return row if fields.items() <= row.items() else None

    return await eventually(listed)


async def refund_by_hand(city: City, booking: Booking, cents: int) -> None:
    """As support does it in Stripe's dashboard."""
    checkout_id = booking.checkout_url.rsplit("/", 1)[1]
    ledger = await city.ledger()
    (paid,) = [each for each in ledger["payments"] if each["checkout_session"] == checkout_id]
    body = {"payment_intent": paid["id"], "amount": cents}
    url = f"{city.town.stripe_url}/_standin/refunds"
    assert (await city.call("POST", url, body)).status == 200


async def served(city: City, mechanic: Mechanic, **order: Any) -> Booking:
    """A new customer's session, paid and served to its end."""
    booking = await (await city.customer()).book("video15", **order)
    await is_served(booking, mechanic)
    return booking


# --- the way of the money -------------------------------------------------------------------------


async def test_a_mechanic_is_paid_once_and_what_is_refunded_later_comes_back_once(
    city: City,
) -> None:
    admin, mechanic = await city.admin(), await city.mechanic()
    before = (await earnings(mechanic, "mechanic"))["payouts"]
    booking = await served(city, mechanic)
    unpaid = await run(admin, mechanic_id=mechanic.id)
    await set_up(city, mechanic, "mechanic")

    (made,) = (await run(admin, mechanic_id=mechanic.id))["made"]
    again = await run(admin, mechanic_id=mechanic.id)
    transfer = await transfer_of(city, made["payout_id"])
    paid = await payout(admin, made["payout_id"], status="paid")
    row = (await earnings(mechanic, "mechanic"))["earnings"][0]
    await refund_by_hand(city, booking, 500)
    after = await payout(admin, made["payout_id"], reversed_cents=400)

    payee = {"kind": "mechanic", "id": mechanic.id, "name": mechanic.name}
    assert before["payouts_enabled"] is False
    assert unpaid["skipped"] == [
        {"payee": payee, "due_cents": 1200, "currency": "eur", "reason": "no_account"}
    ]
    assert made == {
        "payout_id": made["payout_id"],
        "payee": payee,
        "amount_cents": 1200,
        "currency": "eur",
    }
    assert (again["made"], again["skipped"]) == ([], [])
    assert (transfer["amount"], transfer["currency"]) == (1200, "eur")
    assert paid == {
        "payout_id": made["payout_id"],
        "payee": payee,
        "amount_cents": 1200,
        "reversed_cents": 0,
        "debts_cents": 0,
        "currency": "eur",
        "status": "paid",
        "cause": "hand",
        "created_by": admin.id,
        "note": None,
        "stripe_transfer_id": transfer["id"],
        "created_at": paid["created_at"],
        "settled_at": paid["settled_at"],
    }
    assert (row["payout_status"], row["payout_id"]) == ("paid", made["payout_id"])
    assert after["status"] == "paid"
    reversals = (await city.ledger())["reversals"]
    assert [each["amount"] for each in reversals if each["transfer"] == transfer["id"]] == [400]


async def test_a_workshop_is_paid_by_whoever_acts_for_it_has_set_up(city: City) -> None:
    admin, member, mechanic = (
        await city.admin(),
        await city.workshop(1),
        await city.mechanic(workshop=1),
    )
    shop_id = city.town.workshop_ids[1]
    await set_up(city, member, "workshop")
    await served(city, mechanic, routing_type="workshop_only", workshop_id=shop_id)

    (made,) = (await run(admin, workshop_id=shop_id, minimum_cents=1))["made"]
    transfer = await transfer_of(city, made["payout_id"])

    assert made["payee"] == {"kind": "workshop", "id": shop_id, "name": made["payee"]["name"]}
    assert (made["amount_cents"], transfer["amount"]) == (1200, 1200)
    link = await onboard(member, "workshop")
    assert (link["onboarding_completed"], link["payouts_enabled"]) == (True, True)


async def test_the_link_leads_to_stripe_and_back_to_pages_that_say_what_is_next(
    city: City,
) -> None:
    mechanic = await city.mechanic(online=False)
    link = await onboard(mechanic, "mechanic")

    done = await city.call("POST", f"{link['url']}/finish")
    again = await city.call("POST", f"{link['url']}/finish")
    pages = [
        await city.call("GET", f"{city.town.server.url}/connect/{name}")
        for name in ("return", "refresh")
    ]

    assert set(link.body) == {
        "ok",
        "url",
        "expires_at",
        "onboarding_completed",
        "payouts_enabled",
    }
    assert link["url"].startswith(city.town.stripe_url)
    assert link["expires_at"].endswith("Z")
    assert done["redirect"].endswith("/connect/return")
    assert again["redirect"].endswith("/connect/refresh")
    assert [page.status for page in pages] == [200, 200]
    assert all("set up payouts" in " ".join(page.body.split()) for page in pages)
    assert all("default-src 'none'" in p.headers["content-security-policy"] for p in pages)


# --- who may, and what is refused -----------------------------------------------------------------


async def test_only_admins_pay_out_and_only_payees_set_up_accounts(city: City) -> None:
    people = {
        "customer": await city.customer(online=False),
        "mechanic": await city.mechanic(online=False),
        "workshop": await city.workshop(0),
        "admin": await city.admin(),
    }
    paths = (("POST", RUN), ("GET", LIST), *(("POST", path) for path in ONBOARD.values()))
    body = {"minimum_cents": 10**8}  # nobody is owed as much
    answers = {
        (role, path): await person.call(method, path, body if path == RUN else None)
        for role, person in people.items()
        for method, path in paths
    }
    strangers = [(await city.call(method, path)).status for method, path in paths]

    may = {asked for asked, answer in answers.items() if answer.status == 200}
    assert may == {
        ("admin", RUN),
        ("admin", LIST),
        ("mechanic", ONBOARD["mechanic"]),
        ("workshop", ONBOARD["workshop"]),
    }
    assert {answer.status for asked, answer in answers.items() if asked not in may} == {403}
    assert strangers == [401] * len(paths)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"minimum_cents": 0}, 400),
        ({"minimum_cents": -5}, 400),
        ({"minimum_cents": 100_000_001}, 400),
        ({"minimum_cents": "all"}, 400),
        ({"minimum_cents": 1.5}, 400),
        ({"workshop_id": "garage"}, 400),
        ({"workshop_id": new_id(), "mechanic_id": new_id()}, 400),
        ([], 400),
        ({"workshop_id": new_id()}, 404),
        ({"mechanic_id": new_id()}, 404),
    ],
)
async def test_a_run_that_makes_no_sense_is_refused_and_pays_nobody(
    city: City, body: Any, status: int
) -> None:
    admin = await city.admin()
    before = (await admin.call("GET", LIST))["total"]

    answer = await admin.call("POST", RUN, body)

    assert (answer.status, answer.body["ok"]) == (status, False)
    assert (await admin.call("GET", LIST))["total"] == before


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 101}, {"offset": -1}, {"status": "lost"}, {"limit": "x"}]
)
async def test_a_page_out_of_range_is_refused(city: City, query: dict[str, Any]) -> None:
    admin = await city.admin()

    assert (await admin.call("GET", LIST, params=query)).status == 400


async def test_a_run_without_a_body_is_for_everybody_by_the_usual_minimum(city: City) -> None:
    admin, mechanic = await city.admin(), await city.mechanic()
    booking = await (await city.customer()).book("chat10")
    await is_served(booking, mechanic)

    report = await admin.call("POST", RUN)

    mine = [each for each in report["skipped"] if each["payee"]["id"] == mechanic.id]
    assert report.status == 200
    assert [(each["due_cents"], each["reason"]) for each in mine] == [(800, "below_minimum")]


async def test_who_asks_for_links_too_often_is_told_to_wait(city: City) -> None:
    mechanic = await city.mechanic(online=False)

    statuses = [(await mechanic.call("POST", ONBOARD["mechanic"])).status for _ in range(15)]

    assert set(statuses[:12]) == {200}
    assert statuses[-1] == 429
