"""Who is offered a booking: from intake, waiver and checkout through the webhook to the offer."""

from tests.acceptance.actors import Booking, City, Mechanic
from tests.acceptance.shapes import Frame
from tests.support import eventually


async def test_broadcast_goes_to_everybody_alike(city: City) -> None:
    ann = await city.customer()
    mechanics = [*await city.mechanics(2), await city.mechanic(workshop=0)]

    booking = await ann.book("video15", concern="It smokes", vehicle="Golf, 2009", urgent=True)

    cards = [await mechanic.offered(booking) for mechanic in mechanics]
    for card in cards:
        assert (card["stage"], card["score"], card["generation"]) == ("open", 50, 1)
        assert (card["preferred"], card["highlighted"], card["attempt"]) == (False, False, 1)
        assert (card["session_type"], card["plan_code"]) == ("video", "video15")
        assert (card["minutes"], card["urgent"], card["is_specialist"]) == (15, True, False)
        assert (card["concern"], card["vehicle"]) == ("It smokes", "Golf, 2009")
        assert card.keys().isdisjoint({"exclusive_until", "workshop_id"})
    assert len({card["offer_id"] for card in cards}) == 1
    status = await booking.status(
        status="pending", stage="open", mechanics_notified=3, mechanics_online=3
    )
    assert status["expires_at"] == cards[0]["expires_at"]
    assert status.keys().isdisjoint({"stage_ends_at", "next_stage", "mechanic"})
    read = await booking.read()
    assert {name: read[name] for name in status if name not in ("type", "server_time")} == {
        name: value for name, value in status.items() if name not in ("type", "server_time")
    }


async def test_workshop_only_goes_to_that_workshop_and_nobody_else(city: City) -> None:
    ann = await city.customer()
    own = [await city.mechanic(workshop=0), await city.mechanic(workshop=0)]
    others = [await city.mechanic(workshop=1), await city.mechanic()]

    booking = await ann.book(
        routing_type="workshop_only", workshop_id=city.town.workshop_ids[0], plan="standard"
    )

    for mechanic in own:
        card = await mechanic.offered(booking)
        assert (card["stage"], card["score"], card["preferred"]) == ("open", 100, False)
        assert card["workshop_id"] == city.town.workshop_ids[0]
    widened = await ann.device.ask("request.widen", request_id=booking.request_id)
    assert (widened["type"], widened["code"]) == ("error", "nothing_to_widen")
    await own[0].wins(booking)
    accepted = await booking.status(status="accepted")
    assert accepted["mechanic"]["id"] == own[0].id
    assert accepted["mechanic"]["name"] == own[0].name
    assert accepted["mechanic"]["workshop_id"] == city.town.workshop_ids[0]
    for mechanic in others:
        await mechanic.device.fence()
        assert not mechanic.heard_of(booking.request_id)


async def test_hybrid_gives_the_workshop_a_head_start_and_then_everybody_a_card(
    city: City,
) -> None:
    ann = await city.customer()
    preferred = await city.mechanic(workshop=0)
    rival, independent = await city.mechanic(workshop=1), await city.mechanic()
    await city.is_online(preferred, ann)

    booking = await ann.book(routing_type="hybrid", workshop_id=city.town.workshop_ids[0])
    first = await preferred.offered(booking)
    status = await booking.status(stage="preferred")
    for mechanic in (rival, independent):
        await mechanic.device.fence()
        assert not mechanic.heard_of(booking.request_id)
    widened = await ann.device.ask("request.widen", request_id=booking.request_id)

    assert widened["type"] == "ok"
    assert (first["stage"], first["score"], first["highlighted"]) == ("preferred", 100, True)
    assert first["exclusive_until"] == status["stage_ends_at"]
    assert status["next_stage"] == "open"
    cards = [await mechanic.offered(booking) for mechanic in (rival, independent)]
    assert [(card["stage"], card["score"], card["highlighted"]) for card in cards] == [
        ("open", 50, False),
        ("open", 25, False),
    ]
    assert {card["offer_id"] for card in cards} == {first["offer_id"]}
    opened = await booking.status(stage="open")
    assert opened["version"] > status["version"]
    assert opened.keys().isdisjoint({"stage_ends_at", "next_stage"})
    assert preferred.device.got("offer.revoked") == []
    await preferred.wins(booking)


async def test_hybrid_skips_the_head_start_when_nobody_of_the_workshop_is_online(
    city: City,
) -> None:
    ann = await city.customer()
    rival = await city.mechanic(workshop=1)

    booking = await ann.book(routing_type="hybrid", workshop_id=city.town.workshop_ids[2])

    card = await rival.offered(booking)
    assert (card["stage"], card["score"], card["highlighted"]) == ("open", 50, False)
    late = await city.mechanic(workshop=2)
    assert ((await late.offered(booking))["score"], late.device.cards(booking.request_id)) == (
        100,
        [await late.offered(booking, highlighted=True, stage="open")],
    )


async def test_nobody_online_then_the_first_who_comes_gets_it(city: City) -> None:
    ann = await city.customer()
    await city.deserted(ann)

    booking = await ann.book()
    told = await booking.status(stage="open", mechanics_notified=0, mechanics_online=0)
    mechanic = await city.mechanic()

    assert told["status"] == "pending"
    assert "Nobody is online" in told["message"]
    (card,) = mechanic.device.snapshot["offers"]
    assert card["request_id"] == booking.request_id
    await mechanic.wins(booking)
    await booking.status(status="accepted")


async def test_only_specialists_are_asked_when_one_is_wanted(city: City) -> None:
    ann, admin = await city.customer(), await city.admin()
    mechanics = await city.mechanics(6)

    booking = await ann.book(is_specialist=True)

    async def explained() -> dict[str, bool] | None:
        path = f"/api/admin/requests/{booking.request_id}/explain"
        answer = await admin.call("GET", path)
        eligible = {c["mechanic_id"]: c["eligible"] for c in answer["candidates"]}
        return eligible if all(mechanic.id in eligible for mechanic in mechanics) else None

    eligible = await eventually(explained)
    assert {True, False} == {eligible[mechanic.id] for mechanic in mechanics}
    for mechanic in mechanics:
        await mechanic.device.fence()
        cards = mechanic.device.cards(booking.request_id)
        assert [card["is_specialist"] for card in cards] == [True] * eligible[mechanic.id]
        if not eligible[mechanic.id]:
            refused = await mechanic.accept(await specialists_card(mechanics, booking))
            assert refused["reason"] == "not_found"


async def specialists_card(mechanics: list[Mechanic], booking: Booking) -> Frame:
    return next(card for m in mechanics for card in m.device.cards(booking.request_id))


async def test_who_is_withdrawn_or_free_again_sees_what_she_may_take_at_once(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    mechanic = await city.mechanic()
    first = await ann.book()
    second = await bob.book()
    (first_card, second_card) = [await mechanic.offered(booking) for booking in (first, second)]

    won = await mechanic.accept(first_card)

    revoked = await mechanic.device.expect("offer.revoked", offer_id=second_card["offer_id"])
    assert (won["type"], revoked["reason"]) == ("offer.won", "withdrawn")
    await mechanic.call("POST", f"/api/sessions/{first.session_id}/end")
    again = await mechanic.offered(second, nth=2)
    assert again["offer_id"] == second_card["offer_id"]


async def test_the_customer_cancels_and_every_card_goes(city: City) -> None:
    ann = await city.customer()
    mechanics = await city.mechanics(2)
    booking = await ann.book()
    card = await mechanics[0].offered(booking)
    await mechanics[1].offered(booking)

    answer = await ann.device.ask("request.cancel", request_id=booking.request_id)

    assert answer["type"] == "ok"
    for mechanic in mechanics:
        revoked = await mechanic.device.expect("offer.revoked", offer_id=card["offer_id"])
        assert revoked["reason"] == "cancelled"
    await booking.status(status="cancelled")
    await booking.session(status="cancelled")
    late = await mechanics[0].accept(card)
    assert (late["type"], late["reason"]) == ("offer.lost", "cancelled")
    assert (await booking.refunded())["amount"] == 1000
    again = await ann.device.ask("request.cancel", request_id=booking.request_id)
    assert again["type"] in ("ok", "error")
    assert (await booking.read())["status"] == "cancelled"


async def test_after_an_accept_the_customer_cannot_cancel_the_request(city: City) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic()
    booking = await ann.book()
    await mechanic.wins(booking)

    answer = await ann.device.ask("request.cancel", request_id=booking.request_id)

    assert (answer["type"], answer["code"]) == ("error", "not_open")
    over_http = await ann.call("POST", f"/api/requests/{booking.request_id}/cancel")
    assert (over_http.status, over_http.code) == (409, "not_open")
    assert (await booking.read())["status"] == "accepted"


async def test_a_mechanic_who_cancels_reopens_it_for_everybody_else(city: City) -> None:
    ann = await city.customer()
    quitter, other = await city.mechanics(2)
    booking = await ann.book()
    card = await quitter.offered(booking)
    await quitter.accept(card)
    before = await booking.status(status="accepted")

    answer = await quitter.device.ask(
        "assignment.cancel", session_id=booking.session_id, reason="flat tyre"
    )

    assert answer["type"] == "ok"
    new = await other.offered(booking, generation=2)
    assert new["offer_id"] != card["offer_id"]
    assert (new["stage"], new["score"], new["attempt"]) == ("open", 50, 1)
    assert new["expires_at"] > before["expires_at"]
    status = await booking.status(
        message="Your mechanic had to cancel. Finding you another mechanic…"
    )
    assert (status["status"], status["stage"]) == ("pending", "open")
    assert status["expires_at"] == new["expires_at"]
    assert status["version"] > before["version"]
    assert "mechanic" not in status
    refused = await quitter.accept(new)
    assert (refused["type"], refused["reason"]) == ("offer.lost", "not_found")
    assert quitter.device.cards(booking.request_id, generation=2) == []
    assert (await quitter.connect()).snapshot["offers"] == []
    await other.wins(booking, generation=2)
    assert (await booking.status(status="accepted", nth=2))["mechanic"]["id"] == other.id
