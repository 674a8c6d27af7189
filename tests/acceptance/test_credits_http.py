"""Credits over HTTP: goodwill, booking with it, what comes back, the statement, and who may."""

import asyncio
from typing import Any

import pytest

from tests.acceptance.actors import Answer, Booking, City, Customer, Person, new_id

STATEMENT = "/api/customer/credits"
GRANTS = "/api/admin/credits"
REQUESTS = "/api/requests"


async def grant(admin: Person, customer: Person, cents: int = 1000, **changes: Any) -> Answer:
    body = {
        "grant_id": new_id(),
        "customer_id": customer.id,
        "amount_cents": cents,
        "currency": "eur",
        "reason": "for the wait",
    }
    return await admin.call("POST", GRANTS, body | changes)


async def rich(city: City, cents: int, *, online: bool = True) -> Customer:
    """A customer who was given so much by the town's admin, whom the test borrows with that."""
    customer = await city.customer(online=online)
    assert (await grant(await city.admin(), customer, cents)).status == 201
    return customer


async def statement(customer: Customer, **page: int) -> Answer:
    answer = await customer.call("GET", STATEMENT, params=page)
    assert answer.status == 200, answer
    return answer


async def balance(customer: Customer) -> int:
    (euros,) = (await statement(customer))["balances"]
    assert euros["currency"] == "eur"
    return int(euros["balance_cents"])


async def book(customer: Customer, plan: str = "chat10", **order: Any) -> Booking:
    """With credits, and with the waiver signed."""
    intake = await customer.start_intake(plan, payment_method="credits", **order)
    assert intake.status == 201, intake
    waiver = {"intake_id": intake["intake_id"], "name": customer.name, "version": "1"}
    assert (await customer.call("POST", "/api/waiver/sign", waiver)).status == 200
    booking = Booking(customer, intake["request_id"], intake["session_id"], intake["intake_id"], "")
    customer.city.bookings.append(booking)
    return booking


# --- from goodwill to a served session ------------------------------------------------------------


async def test_goodwill_is_spent_on_a_session_and_every_cent_is_on_the_statement(
    city: City,
) -> None:
    ann, mechanic, admin = await city.customer(), await city.mechanic(), await city.admin()

    given = await grant(admin, ann, 2500, reason="for the wait")
    booking = await book(ann, vehicle="Golf, 2009")
    await mechanic.wins(booking)
    for device in (ann.device, mechanic.device):
        await device.ask("session.join", session_id=booking.session_id)
    await ann.device.ask("session.end", session_id=booking.session_id)
    await booking.session(status="completed")

    assert given.status == 201
    assert given.body == {
        "ok": True,
        "grant_id": given["grant_id"],
        "customer_id": ann.id,
        "amount_cents": 2500,
        "currency": "eur",
        "reason": "for the wait",
        "balance_cents": 2500,
        "at": given["at"],
    }
    told = await statement(ann)
    assert told.body == {
        "ok": True,
        "balances": [{"currency": "eur", "balance_cents": 1500}],
        "entries": [
            {
                "amount_cents": -1000,
                "balance_cents": 1500,
                "currency": "eur",
                "reason": "booked",
                "session_id": booking.session_id,
                "at": told["entries"][0]["at"],
            },
            {
                "amount_cents": 2500,
                "balance_cents": 2500,
                "currency": "eur",
                "reason": "for the wait",
                "session_id": None,
                "at": given["at"],
            },
        ],
        "total": 2,
        "limit": 20,
        "offset": 0,
    }
    first, second = [(await statement(ann, limit=1, offset=n))["entries"] for n in (0, 1)]
    assert first + second == told["entries"]


async def test_the_answer_to_a_booking_with_credits_is_that_of_a_free_one(city: City) -> None:
    ann = await rich(city, 1000)

    intake = await ann.start_intake("chat10", payment_method="credits")

    assert intake.status == 201
    assert {name: intake[name] for name in ("type", "status")} == {
        "type": "chat",
        "status": "pending",
    }
    assert intake["redirect"] == (
        f"/intake/waiver?session={intake['session_id']}&plan=chat10&intake_id={intake['intake_id']}"
    )
    status = await ann.device.expect("request.status", request_id=intake["request_id"])
    assert (status["status"], status["session_id"]) == ("pending", intake["session_id"])
    paying = await ann.call(
        "GET",
        "/api/checkout/create-session",
        params={"plan": "chat10", "intake_id": intake["intake_id"]},
    )
    assert paying.code == "already_booked"
    await ann.call("POST", f"{REQUESTS}/{intake['request_id']}/cancel")


async def test_nobody_joins_what_credits_have_booked_without_a_waiver(city: City) -> None:
    ann, mechanic = await rich(city, 1000), await city.mechanic()
    intake = await ann.start_intake("chat10", payment_method="credits")
    booking = Booking(ann, intake["request_id"], intake["session_id"], intake["intake_id"], "")
    city.bookings.append(booking)
    await mechanic.wins(booking)

    answer = await ann.call("POST", f"/api/sessions/{booking.session_id}/join")

    assert (answer.status, answer.code) == (409, "waiver_required")


async def test_too_few_credits_are_told_with_the_price_and_nothing_is_booked(city: City) -> None:
    ann, poor = await rich(city, 999, online=False), await city.customer(online=False)

    answers = [await who.start_intake("chat10", payment_method="credits") for who in (ann, poor)]

    for answer, cents in zip(answers, (999, 0), strict=True):
        assert answer.status == 409
        assert answer.body == {
            "ok": False,
            "error": {"code": "insufficient_credits", "message": answer["error"]["message"]},
            "balance_cents": cents,
            "price_cents": 1000,
            "currency": "eur",
        }
    assert (await statement(ann))["total"] == 1
    assert (await ann.start_intake("free", payment_method="credits")).status == 201
    assert await balance(ann) == 999


async def test_of_many_bookings_at_once_with_credits_for_one_one_is_made(city: City) -> None:
    ann = await rich(city, 1000)

    answers = await asyncio.gather(
        *(ann.start_intake("chat10", payment_method="credits") for _ in range(8))
    )

    (made,) = [answer for answer in answers if answer.status == 201]
    refused = [answer for answer in answers if answer.status != 201]
    assert {answer.status for answer in refused} == {409}
    assert {answer.code for answer in refused} <= {"active_session_exists", "insufficient_credits"}
    told = await statement(ann)
    assert (told["total"], told["balances"][0]["balance_cents"]) == (2, 0)
    await ann.call("POST", f"{REQUESTS}/{made['request_id']}/cancel")
    assert await balance(ann) == 1000


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, {}, {"refund_as": "money"}, {"refund_as": "credits"}])
async def test_credits_come_back_as_credits_at_once_whatever_is_asked_for(
    city: City, body: Any
) -> None:
    ann = await rich(city, 1200)
    booking = await book(ann)
    assert await balance(ann) == 200

    answer = await ann.call("POST", f"{REQUESTS}/{booking.request_id}/cancel", body)

    assert (answer.status, answer["status"]) == (200, "cancelled")
    assert await balance(ann) == 1200


async def test_who_paid_by_card_may_have_credits_back_and_book_again_with_them(city: City) -> None:
    ann = await city.customer()
    paid = await ann.book("video15")
    before = len((await city.ledger())["refunds"])

    answer = await ann.call(
        "POST", f"{REQUESTS}/{paid.request_id}/cancel", {"refund_as": "credits"}
    )
    again = await book(ann, "chat10")
    cancelled = await ann.device.ask("request.cancel", request_id=again.request_id)

    assert (answer.status, answer["status"]) == (200, "cancelled")
    assert cancelled["type"] == "ok"
    told = await statement(ann)
    assert [(line["amount_cents"], line["session_id"]) for line in told["entries"]] == [
        (1000, again.session_id),
        (-1000, again.session_id),
        (1500, paid.session_id),
    ]
    assert await city.refunds_of(paid) == []
    assert len((await city.ledger())["refunds"]) == before


async def test_on_a_socket_too_the_customer_chooses(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    for_credits, for_money = await ann.book(), await bob.book()

    wrong = await ann.device.ask(
        "request.cancel", request_id=for_credits.request_id, refund_as="gold"
    )
    chosen = await ann.device.ask(
        "request.cancel", request_id=for_credits.request_id, refund_as="credits"
    )
    usual = await bob.device.ask("request.cancel", request_id=for_money.request_id)

    assert (wrong["type"], wrong["code"]) == ("error", "bad_frame")
    assert (chosen["type"], usual["type"]) == ("ok", "ok")
    assert await balance(ann) == 1000
    assert (await for_money.refunded())["amount"] == 1000
    assert (await statement(bob))["balances"] == []
    assert await city.refunds_of(for_credits) == []


@pytest.mark.parametrize(
    "body", [{"refund_as": "gold"}, {"refund_as": None}, {"refund_as": 1}, [], "credits", 7]
)
async def test_a_cancel_that_cannot_be_understood_cancels_nothing(city: City, body: Any) -> None:
    ann = await rich(city, 1000)
    booking = await book(ann)

    answer = await ann.call("POST", f"{REQUESTS}/{booking.request_id}/cancel", body)

    assert (answer.status, answer.code) == (400, "bad_request")
    assert (await booking.read())["status"] == "pending"
    assert await balance(ann) == 0


async def test_nobody_has_somebody_elses_booking_turned_into_credits(city: City) -> None:
    ann, bob = await city.customer(), await city.customer(online=False)
    booking = await ann.book()

    answer = await bob.call(
        "POST", f"{REQUESTS}/{booking.request_id}/cancel", {"refund_as": "credits"}
    )

    assert (answer.status, answer.code) == (404, "not_found")
    assert (await booking.read())["status"] == "pending"
    assert (await statement(bob))["total"] == 0


async def test_after_an_accept_leaving_gives_credits_back_too(city: City) -> None:
    ann, mechanic = await rich(city, 1000), await city.mechanic()
    booking = await book(ann)
    await mechanic.wins(booking)

    refused = await ann.call("POST", f"{REQUESTS}/{booking.request_id}/cancel")
    left = await ann.call("POST", f"/api/sessions/{booking.session_id}/end")

    assert (refused.status, refused.code) == (409, "not_open")
    assert (left.status, left["status"]) == (200, "cancelled")
    assert await balance(ann) == 1000


# --- grants ---------------------------------------------------------------------------------------


async def test_a_grant_asked_for_again_answers_the_same_and_gives_nothing(city: City) -> None:
    ann, admin = await city.customer(online=False), await city.admin()
    grant_id = new_id()

    answers = await asyncio.gather(*(grant(admin, ann, grant_id=grant_id) for _ in range(6)))
    await grant(admin, ann, 5)
    later = await grant(admin, ann, grant_id=grant_id)
    other = [
        await grant(admin, ann, 1001, grant_id=grant_id),
        await grant(admin, ann, grant_id=grant_id, reason="twice"),
        await grant(admin, await city.customer(online=False), grant_id=grant_id),
    ]

    assert {answer.status for answer in answers} == {201}
    assert all(answer.body == later.body for answer in answers)
    assert {(answer.status, answer.code) for answer in other} == {(409, "already_granted")}
    assert await balance(ann) == 1005


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"customer_id": "5a1f7e1e-0000-4000-8000-000000000000"}, 404),
        ({"customer_id": "ann"}, 400),
        ({"grant_id": "1"}, 400),
        ({"grant_id": None}, 400),
        ({"amount_cents": 0}, 400),
        ({"amount_cents": -1}, 400),
        ({"amount_cents": 100_001}, 400),
        ({"amount_cents": 10.5}, 400),
        ({"amount_cents": "1000"}, 400),
        ({"currency": "usd"}, 400),
        ({"currency": "EUR"}, 400),
        ({"currency": "euro"}, 400),
        ({"reason": ""}, 400),
        ({"reason": "x" * 201}, 400),
        ({"reason": "a\0b"}, 400),
        ({"reason": None}, 400),
    ],
    ids=str,
)
async def test_a_grant_that_cannot_be_is_refused_and_gives_nothing(
    city: City, changes: dict[str, Any], status: int
) -> None:
    ann, admin = await city.customer(online=False), await city.admin()

    answer = await grant(admin, ann, **changes)

    assert answer.status == status
    assert answer.code == ("not_found" if status == 404 else "bad_request")
    assert (await statement(ann))["total"] == 0


async def test_a_grant_is_given_within_its_limits(city: City) -> None:
    ann, admin = await city.customer(online=False), await city.admin()

    for cents, reason in ((1, "x"), (100_000, "y" * 200)):
        assert (await grant(admin, ann, cents, reason=reason)).status == 201

    assert await balance(ann) == 100_001


# --- who may what ---------------------------------------------------------------------------------


async def test_only_customers_see_a_statement_and_only_admins_give(city: City) -> None:
    ann, bob, admin = await city.customer(), await city.customer(), await city.admin()
    assert (await grant(admin, ann, 700)).status == 201
    others = [await city.mechanic(online=False), await city.workshop()]

    for person in [ann, *others]:
        assert (await grant(person, ann)).code == "forbidden"
    for person in [*others, admin]:
        assert (await person.call("GET", STATEMENT)).code == "forbidden"
    assert (await city.call("GET", STATEMENT)).status == 401
    assert (await city.call("POST", GRANTS, {})).status == 401
    assert (await statement(bob)).body == {
        "ok": True,
        "balances": [],
        "entries": [],
        "total": 0,
        "limit": 20,
        "offset": 0,
    }
    assert await balance(ann) == 700


@pytest.mark.parametrize(
    "page", ["limit=0", "limit=101", "offset=-1", "limit=x", "limit=1&limit=2"]
)
async def test_a_page_out_of_range_is_refused(city: City, page: str) -> None:
    ann = await city.customer(online=False)

    answer = await ann.call("GET", f"{STATEMENT}?{page}")

    assert (answer.status, answer.code) == (400, "bad_request")
