"""Booking one again: the wish of the last session, with the favourite or the workshop first."""

import asyncio
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.acceptance.actors import Answer, Booking, City, Customer, Mechanic, Town, new_id
from tests.acceptance.conftest import BuildTown

WINDOW_SECONDS, WAIT_SECONDS = 60.0, 120.0
PATH = "/api/customer/rebook"
WISH = {"vehicle": "Golf, 2009", "concern": "It smokes"}


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    """Whoever does not look is given up soon, whoever looks has all the time."""
    with build_town(
        offer_retry_seconds=0.25,
        priority_window_seconds=WINDOW_SECONDS,
        wait_window_seconds=WAIT_SECONDS,
    ) as town:
        yield town


async def is_served(booking: Booking, mechanic: Mechanic) -> None:
    """The whole session of that booking."""
    await mechanic.wins(booking)
    for device in (booking.customer.device, mechanic.device):
        await device.ask("session.join", session_id=booking.session_id)
    await mechanic.device.ask("session.end", session_id=booking.session_id)
    await booking.status(status="completed")


async def regulars(city: City, plan: str = "video15", **order: Any) -> tuple[Customer, Mechanic]:
    """A customer, and the mechanic who has served her."""
    ann, mechanic = await city.customer(), await city.mechanic()
    await is_served(await ann.book(plan, **{**WISH, "urgent": True, **order}), mechanic)
    return ann, mechanic


async def rebook(customer: Customer, provider_id: str, **order: Any) -> Answer:
    return await customer.call("POST", PATH, {"provider_id": provider_id} | order)


async def goes_home(city: City, mechanic: Mechanic, asker: Customer) -> None:
    await mechanic.leave()
    await city.is_online(mechanic, asker, False)


def window_of(frame: dict[str, Any], ends: str) -> float:
    began, end = (datetime.fromisoformat(at) for at in (frame["server_time"], ends))
    return (end - began).total_seconds()


@pytest.mark.parametrize("waits", [False, True])
async def test_a_favourite_who_is_here_is_offered_it_first_for_the_usual_window(
    city: City, waits: bool
) -> None:
    ann, favourite = await regulars(city)
    bystander = await city.mechanic()

    intake, booking = await ann.book_again(favourite.id, wait_for_preferred=waits)

    assert intake.body == {
        "ok": True,
        "intake_id": booking.intake_id,
        "redirect": f"/intake/waiver?plan=video15&intake_id={booking.intake_id}",
        "plan": "video15",
        **WISH,
        "routing_type": "priority_broadcast",
    }
    card = await favourite.offered(booking)
    assert (card["stage"], card["score"], card["preferred"]) == ("priority", 100, True)
    assert (card["plan_code"], card["urgent"]) == ("video15", False)
    assert {name: card[name] for name in WISH} == WISH
    window = window_of(card, card["exclusive_until"])
    assert window == pytest.approx(WINDOW_SECONDS, abs=1.5)
    await bystander.device.fence()
    assert not bystander.heard_of(booking.request_id)
    await favourite.wins(booking)
    assert (await booking.status(status="accepted"))["mechanic"]["id"] == favourite.id


async def test_who_waits_for_an_absent_favourite_waits_longer_and_gets_her_when_she_comes(
    city: City,
) -> None:
    ann, favourite = await regulars(city)
    bystander = await city.mechanic()
    await goes_home(city, favourite, ann)

    _, booking = await ann.book_again(favourite.id, wait_for_preferred=True)
    status = await booking.status(stage="priority")
    await favourite.connect()

    assert window_of(status, status["stage_ends_at"]) == pytest.approx(WAIT_SECONDS, abs=1.5)
    card = await favourite.offered(booking)
    assert (card["stage"], card["exclusive_until"]) == ("priority", status["stage_ends_at"])
    await bystander.device.fence()
    assert not bystander.heard_of(booking.request_id)
    await favourite.wins(booking)


async def test_who_does_not_wait_for_an_absent_favourite_gets_somebody_else_soon(
    city: City,
) -> None:
    ann, favourite = await regulars(city)
    bystander = await city.mechanic()
    await goes_home(city, favourite, ann)

    _, booking = await ann.book_again(favourite.id)

    status = await booking.status(stage="priority")
    assert window_of(status, status["stage_ends_at"]) == pytest.approx(WINDOW_SECONDS, abs=1.5)
    wide = await bystander.offered(booking)
    assert (wide["stage"], wide["score"]) == ("open", 50)
    await bystander.wins(booking)


async def test_a_workshop_is_booked_again_with_a_head_start(city: City) -> None:
    workshop = city.town.workshop_ids[0]
    ann, own = await city.customer(), await city.mechanic(workshop=0)
    rival = await city.mechanic(workshop=1)
    await is_served(await ann.book("standard", **WISH), own)
    colleague = await city.mechanic(workshop=0)
    await city.is_online(colleague, ann)

    intake, booking = await ann.book_again(workshop)

    assert (intake["routing_type"], intake["plan"]) == ("hybrid", "standard")
    for mechanic in (own, colleague):
        card = await mechanic.offered(booking)
        assert (card["stage"], card["score"], card["highlighted"]) == ("preferred", 100, True)
        assert (card["workshop_id"], card["concern"]) == (workshop, WISH["concern"])
    await rival.device.fence()
    assert not rival.heard_of(booking.request_id)
    await ann.device.ask("request.widen", request_id=booking.request_id)
    assert (await rival.offered(booking))["score"] == 50
    await colleague.wins(booking)


async def test_a_free_plan_is_a_session_at_once_and_dispatched(city: City) -> None:
    ann, favourite = await city.customer(), await city.mechanic()
    await is_served(await ann.book_free(**WISH), favourite)
    bystander = await city.mechanic()

    answer = await rebook(ann, favourite.id)

    assert answer.status == 201
    session_id, request_id = answer["session_id"], answer["request_id"]
    booking = Booking(ann, request_id, session_id, answer["intake_id"], "")
    city.bookings.append(booking)
    assert answer.body == {
        "ok": True,
        "intake_id": booking.intake_id,
        "redirect": f"/intake/waiver?session={session_id}&plan=free&intake_id={booking.intake_id}",
        "session_id": session_id,
        "request_id": request_id,
        "type": "chat",
        "status": "pending",
        "plan": "free",
        **WISH,
        "routing_type": "priority_broadcast",
    }
    assert (await favourite.offered(booking))["stage"] == "priority"
    await bystander.device.fence()
    assert not bystander.heard_of(request_id)
    refused = await rebook(ann, favourite.id)
    assert (refused.status, refused.code) == (409, "active_session_exists")
    assert refused["activeSessionId"] == session_id


async def test_of_many_at_once_one_is_booked(city: City) -> None:
    ann, favourite = await city.customer(), await city.mechanic()
    await is_served(await ann.book_free(), favourite)

    answers = await asyncio.gather(*(rebook(ann, favourite.id) for _ in range(6)))

    (started,) = [answer for answer in answers if answer.status == 201]
    booking = Booking(ann, started["request_id"], started["session_id"], started["intake_id"], "")
    city.bookings.append(booking)
    refused = [answer for answer in answers if answer.status == 409]
    assert [each["activeSessionId"] for each in refused] == [started["session_id"]] * 5
    await favourite.wins(booking)


async def test_the_latest_wish_counts_also_one_that_was_cancelled_after_an_accept(
    city: City,
) -> None:
    ann, favourite = await regulars(city)
    later = await ann.book("diagnostic", concern="It rattles")
    await favourite.wins(later)
    await ann.device.ask("session.end", session_id=later.session_id)
    await later.status(status="cancelled")

    answer = await rebook(ann, favourite.id)

    assert (answer["plan"], answer["concern"]) == ("diagnostic", "It rattles")
    assert answer["vehicle"] is None


async def test_who_gave_the_booking_back_did_not_serve_it(city: City) -> None:
    ann, quitter, finisher = await city.customer(), await city.mechanic(), await city.mechanic()
    booking = await ann.book("chat10")
    await quitter.wins(booking)
    await quitter.device.ask("assignment.cancel", session_id=booking.session_id)
    await finisher.offered(booking, generation=2)
    verdict = await finisher.accept(await finisher.offered(booking, generation=2))
    assert verdict["type"] == "offer.won"
    await ann.device.ask("session.end", session_id=booking.session_id)

    from_quitter, from_finisher = await rebook(ann, quitter.id), await rebook(ann, finisher.id)

    assert (from_quitter.status, from_quitter.code) == (404, "no_earlier_session")
    assert (from_finisher.status, from_finisher["plan"]) == (201, "chat10")


async def test_nobody_is_booked_again_who_was_not_booked_before(city: City) -> None:
    ann, mechanic = await regulars(city)
    bob = await city.customer(online=False)

    somebody_elses = await rebook(bob, mechanic.id)
    workshop = await rebook(bob, city.town.workshop_ids[2])
    unknown = await rebook(bob, new_id())
    himself = await rebook(bob, bob.id)

    for answer in (somebody_elses, workshop):
        assert (answer.status, answer.code) == (404, "no_earlier_session")
    for answer in (unknown, himself):
        assert (answer.status, answer.code) == (404, "mechanic_gone")
    assert (await rebook(ann, mechanic.id)).status == 201


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        [],
        {"provider_id": "1"},
        {"provider_id": new_id(), "wait_for_preferred": "yes"},
        {"provider_id": new_id(), "wait_for_preferred": None},
    ],
)
async def test_what_is_no_rebooking_is_refused(city: City, body: object) -> None:
    ann = await city.customer(online=False)

    answer = await ann.call("POST", PATH, body)

    assert (answer.status, answer.code) == (400, "bad_request")
