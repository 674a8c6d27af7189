"""What customers see of their money when it is held or goes back: at once, later, and where they
come back from Stripe's page."""

import asyncio

from tests.acceptance.actors import City, Customer
from tests.acceptance.shapes import Frame
from tests.acceptance.test_webhooks import completed, deliver


async def goes_back(customer: Customer) -> Frame:
    """The frame that says that a payment went back, after the one that says that it will."""
    back = await customer.device.expect("payment.status", status="refunded")
    assert customer.device.got("payment.status")[-1] == back
    return back


async def test_who_cancels_is_told_that_the_money_comes_back_and_that_it_did(city: City) -> None:
    ann = await city.customer()
    booking = await ann.book("video15")

    await ann.device.ask("request.cancel", request_id=booking.request_id)

    back = await goes_back(ann)
    assert back["message"] == (
        "Your booking was cancelled. 15.00 EUR of your payment of 15.00 EUR was given back."
    )
    assert (back["session_id"], back["amount_cents"], back["refunded_cents"], back["currency"]) == (
        booking.session_id,
        1500,
        1500,
        "eur",
    )
    assert len(await city.refunds_of(booking)) == 1


async def test_a_second_payment_goes_back_and_its_customer_is_told_why_on_every_device(
    city: City,
) -> None:
    """C3: she opened two checkouts and paid both."""
    ann = await city.customer()
    phone, laptop = ann.device, await ann.connect()
    first, second = await ann.checkout(), await ann.checkout("video15")
    booking = await ann.pay(*first)

    await city.pay(second[1])

    for device in (phone, laptop):
        told = await device.expect("payment.status", status="refunded")
        assert told["message"].startswith("You have an active session already. 15.00 EUR")
        assert "session_id" not in told
    assert (await booking.read())["status"] == "pending"
    assert await city.refunds_of(booking) == []


async def test_who_was_away_finds_it_in_the_welcome_and_in_the_list(city: City) -> None:
    ann = await city.customer()
    booking = await ann.book("video15")
    await ann.device.ask("request.cancel", request_id=booking.request_id)
    await goes_back(ann)

    device = await ann.connect()

    [shown] = device.snapshot["payments"]
    listed = await ann.call("GET", "/api/customer/payments", params={"limit": "1"})
    [same] = listed["payments"]
    assert (shown["status"], listed["total"]) == ("refunded", 1)
    assert {**same, "server_time": None} == {**shown, "server_time": None}


async def test_only_customers_see_payments_and_only_their_own(city: City) -> None:
    ann, ben = await city.customer(), await city.customer()
    await ann.book()

    for person, status in ((await city.mechanic(), 403), (await city.admin(), 403)):
        assert (await person.call("GET", "/api/customer/payments")).status == status
    assert (await ben.call("GET", "/api/customer/payments"))["payments"] == []
    assert (await city.call("GET", "/api/customer/payments")).status == 401
    assert (await ben.call("GET", "/api/customer/payments", params={"limit": "0"})).status == 400


async def test_a_wrong_amount_is_held_and_its_customer_is_told(city: City) -> None:
    ann = await city.customer()

    answer = await deliver(city, await completed(city, ann, amount_total=1))

    held = await ann.device.expect("payment.status", status="held")
    assert answer.status == 200
    assert held["message"].startswith("We are looking at your payment of 0.01 EUR")
    assert ann.device.got("request.status") == []


async def came_back(city: City, url: str) -> str:
    """The page that Stripe sends a customer to after paying."""
    checkout_id = url.rsplit("/", 1)[1]
    async with city.http.get(
        f"{city.town.server.url}/checkout/success", params={"session_id": checkout_id}
    ) as response:
        assert response.status == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        return await response.text()


async def test_the_page_one_comes_back_to_says_what_has_become_of_the_payment(city: City) -> None:
    ann = await city.customer()
    _, unpaid = await ann.checkout()
    waiting = await came_back(city, unpaid)
    booking = await ann.pay("", unpaid)
    booked = await came_back(city, unpaid)
    await ann.device.ask("request.cancel", request_id=booking.request_id)
    await goes_back(ann)
    back = await came_back(city, unpaid)
    unknown = await came_back(city, "/cs_test_<b>nobody</b>")

    assert "is being confirmed" in waiting
    assert "http-equiv=refresh" in waiting
    assert "Your booking is confirmed." in booked
    assert "was given back" in back
    assert "http-equiv=refresh" not in booked + back + unknown
    assert "<b>" not in unknown


async def test_coming_back_without_having_paid_books_nothing(city: City) -> None:
    ann = await city.customer()
    _, url = await ann.checkout()

    await asyncio.gather(*(came_back(city, url) for _ in range(10)))

    await ann.device.fence()
    assert ann.device.got("request.status") == []
    listed = await ann.call("GET", "/api/customer/payments")
    assert [payment["status"] for payment in listed["payments"]] == ["created"]
