"""Money from the customer's card to what a mechanic and a workshop read of it, and the books."""

import json

from tests.acceptance.actors import Answer, Booking, City, Mechanic, Person
from tests.support import eventually


async def is_served(booking: Booking, mechanic: Mechanic) -> None:
    """The whole session of that booking."""
    await mechanic.wins(booking)
    for device in (booking.customer.device, mechanic.device):
        await device.ask("session.join", session_id=booking.session_id)
    await mechanic.device.ask("session.end", session_id=booking.session_id)
    await booking.status(status="completed")


async def earnings(person: Person, whose: str) -> Answer:
    answer = await person.call("GET", f"/api/{whose}/earnings")
    assert answer.status == 200, answer
    return answer


async def test_what_a_customer_pays_is_what_is_earned_and_the_books_match(city: City) -> None:
    """One session is served by the workshop that was named, one by somebody else, one by nobody."""
    ann, ben, cem = [await city.customer() for _ in range(3)]
    shop, shops_own = await city.workshop(0), await city.mechanic(workshop=0)
    shop_id = city.town.workshop_ids[0]
    own = await ann.book("video15", routing_type="workshop_only", workshop_id=shop_id)
    await is_served(own, shops_own)
    await shops_own.leave()
    independent = await city.mechanic()
    referred = await ben.book("diagnostic", routing_type="hybrid", workshop_id=shop_id)
    await ben.call("POST", f"/api/requests/{referred.request_id}/widen")
    await is_served(referred, independent)
    await independent.leave()
    unserved = await cem.book("chat10")
    assert (await cem.call("POST", f"/api/requests/{unserved.request_id}/cancel")).status == 200
    await eventually(lambda: city.refunds_of(unserved))

    shops, hers = await earnings(shop, "workshop"), await earnings(independent, "mechanic")
    nothing = await earnings(shops_own, "mechanic")

    assert [
        (
            row["session_id"],
            row["gross_amount_cents"],
            row["workshop_net_cents"],
            row["is_referral"],
        )
        for row in shops["earnings"]
    ] == [(referred.session_id, 4900, 490, True), (own.session_id, 1500, 1200, False)]
    assert [row["mechanic_name"] for row in shops["earnings"]] == [None, shops_own.name]
    assert [
        (row["session_id"], row["mechanic_net_cents"], row["workshop_fee_cents"])
        for row in hers["earnings"]
    ] == [(referred.session_id, 4900 - 980 - 490, 490)]
    assert (nothing["total"], nothing["summary"]) == (0, [])

    async def is_refunded() -> bool:
        sums = json.loads(city.town.server.cli("books", "--json"))["sums"]["eur"]
        return bool(sums["refunded_cents"] == 1000)

    await eventually(is_refunded)
    books = json.loads(city.town.server.cli("books", "--json"))
    assert (books["match"], books["for_a_person"]) == (True, [])
    assert {name: cents for name, cents in books["sums"]["eur"].items() if cents} == {
        "came_in_cents": 1500 + 4900 + 1000,
        "accounted_cents": 1500 + 4900 + 1000,
        "received_cents": 1500 + 4900 + 1000,
        "workshops_cents": 1200 + 490,
        "mechanics_cents": 3430,
        "platform_cents": 300 + 980,
        "refunded_cents": 1000,
        "due_cents": 1200 + 490 + 3430,
    }
