"""From an accepted offer to the end of the session: joining, minutes, warning, time-up, ends."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from tests.acceptance.actors import Booking, City, Customer, Mechanic, Town
from tests.acceptance.conftest import BuildTown

MINUTE_SECONDS = 0.15


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    """Ten minutes are over in a second and a half; nobody is in a hurry to join."""
    with build_town(plan_minute_seconds=MINUTE_SECONDS, warning_seconds=1.0) as town:
        yield town


async def accepted(city: City, plan: str = "video15") -> tuple[Customer, Mechanic, Booking]:
    """A booking that a mechanic has won."""
    ann, mechanic = await city.customer(), await city.mechanic()
    booking = await ann.book(plan)
    await mechanic.wins(booking)
    await booking.status(status="accepted")
    return ann, mechanic, booking


async def test_the_session_runs_from_when_both_are_in_until_its_minutes_are_over(
    city: City,
) -> None:
    ann, mechanic, booking = await accepted(city)

    waiting = await ann.device.ask("session.join", session_id=booking.session_id)
    joined = await mechanic.device.ask("session.join", session_id=booking.session_id)

    assert (waiting["status"], waiting["mechanics_connected"]) == ("accepted", 0)
    assert waiting.keys().isdisjoint({"started_at", "ends_at"})
    assert (joined["status"], joined["mechanics_connected"]) == ("active", 1)
    active = await booking.session(status="active", mechanics_connected=1)
    started, ends = (datetime.fromisoformat(active[name]) for name in ("started_at", "ends_at"))
    assert ends - started == timedelta(seconds=15 * MINUTE_SECONDS)
    for device in (ann.device, mechanic.device):
        warning = await device.expect("session.warning", session_id=booking.session_id)
        assert warning["ends_at"] == active["ends_at"]
        assert 0 < warning["seconds_left"] <= 1
        over = await device.expect(
            "session.status", session_id=booking.session_id, status="completed"
        )
        assert over["version"] > active["version"]
        assert over["server_time"] >= active["ends_at"]
    await booking.status(status="completed")
    assert len(ann.device.got("session.warning")) == 1
    prompted = ann.device.got("session.status", status="completed")[0]
    assert prompted["prompt"] in ("favorite", "rate")


async def test_the_mechanic_may_be_there_first(city: City) -> None:
    ann, mechanic, booking = await accepted(city)

    first = await mechanic.device.ask("session.join", session_id=booking.session_id)
    told = await booking.session(mechanics_connected=1)
    second = await ann.device.ask("session.join", session_id=booking.session_id)

    assert (first["status"], first["mechanics_connected"]) == ("accepted", 1)
    assert told["status"] == "accepted"
    assert (second["status"], second["mechanics_connected"]) == ("active", 1)
    await mechanic.device.expect("session.status", status="active")


@pytest.mark.parametrize("who", ["customer", "mechanic"])
async def test_either_can_end_it_and_again(city: City, who: str) -> None:
    ann, mechanic, booking = await accepted(city)
    for device in (ann.device, mechanic.device):
        await device.ask("session.join", session_id=booking.session_id)
    ender, other = (ann, mechanic) if who == "customer" else (mechanic, ann)

    ended = await ender.device.ask("session.end", session_id=booking.session_id)

    assert ended["status"] == "completed"
    assert ended["ended_by"] in (who, ender.id)
    told = await other.device.expect("session.status", status="completed")
    assert told["version"] == ended["version"]
    again = await ender.device.ask("session.end", session_id=booking.session_id)
    http = await other.call("POST", f"/api/sessions/{booking.session_id}/end")
    assert (again["type"], again["version"]) == ("session.status", ended["version"])
    assert (http.status, http["status"], http["version"]) == (200, "completed", ended["version"])
    joined = await ender.device.ask("session.join", session_id=booking.session_id)
    assert (joined["type"], joined["code"]) == ("error", "session_ended")


async def test_after_the_end_both_are_free_for_the_next(city: City) -> None:
    ann, mechanic, booking = await accepted(city)
    for device in (ann.device, mechanic.device):
        await device.ask("session.join", session_id=booking.session_id)
    await ann.device.ask("session.end", session_id=booking.session_id)

    again = await ann.book()

    await mechanic.wins(again)
    assert again.session_id != booking.session_id


async def test_joining_from_the_dashboard_is_accepting(city: City) -> None:
    ann = await city.customer()
    mechanic, other = await city.mechanics(2)
    booking = await ann.book()
    card = await mechanic.offered(booking)
    path = f"/api/sessions/{booking.session_id}/join"

    joined = await mechanic.call("POST", path)

    assert (joined.status, joined["status"], joined["mechanics_connected"]) == (200, "accepted", 1)
    assert (await booking.status(status="accepted"))["mechanic"]["id"] == mechanic.id
    await booking.session(mechanics_connected=1)
    revoked = await other.device.expect("offer.revoked", offer_id=card["offer_id"])
    assert revoked["reason"] == "taken"
    won = await mechanic.device.expect("offer.won", offer_id=card["offer_id"])
    assert won["session_id"] == booking.session_id
    late = await other.call("POST", path)
    assert (late.status, late.code) == (409, "already_joined")
    again = await mechanic.call("POST", path)
    assert (again.status, again["version"]) == (200, joined["version"])
    assert (await ann.call("POST", path))["status"] == "active"


async def test_a_session_of_others_is_not_there(city: City) -> None:
    ann, mechanic, booking = await accepted(city)
    stranger = await city.customer()

    for asker in (stranger,):
        for kind in ("session.join", "session.end"):
            others = await asker.device.ask(kind, session_id=booking.session_id)
            unknown = await asker.device.ask(kind, session_id=booking.intake_id)
            assert (others["type"], others["code"]) == ("error", "not_found")
            assert others["message"] == unknown["message"]
    assert (await booking.read())["status"] == "accepted"
    assert (await ann.device.ask("session.join", session_id=booking.session_id))["version"]
    assert mechanic.device.got("error") == []


async def test_a_customer_who_leaves_before_it_began_is_refunded(city: City) -> None:
    ann, mechanic, booking = await accepted(city)

    ended = await ann.device.ask("session.end", session_id=booking.session_id)

    assert ended["status"] == "cancelled"
    assert (await booking.refunded())["amount"] == 1500
    await mechanic.device.expect(
        "session.status", session_id=booking.session_id, status="cancelled"
    )
    await booking.status(status="cancelled")


async def test_a_mechanic_who_leaves_before_it_began_has_cancelled(city: City) -> None:
    _, mechanic, booking = await accepted(city)
    await mechanic.device.ask("session.join", session_id=booking.session_id)
    other = await city.mechanic()

    await mechanic.device.ask("session.end", session_id=booking.session_id)

    await booking.status(
        status="pending",
        message="Your mechanic had to cancel. Finding you another mechanic…",
    )
    assert (await other.offered(booking))["generation"] == 2
    assert mechanic.device.cards(booking.request_id, generation=2) == []


async def test_a_free_session_is_joined_only_with_a_signed_waiver(city: City) -> None:
    ann, mechanic = await city.customer(), await city.mechanic()
    intake = await ann.start_intake("free")
    session_id, request_id = intake["session_id"], intake["request_id"]
    card = await mechanic.device.card(request_id)
    assert (await mechanic.accept(card))["type"] == "offer.won"

    early = await ann.device.ask("session.join", session_id=session_id)
    over_http = await ann.call("POST", f"/api/sessions/{session_id}/join")
    waiver = {"intake_id": intake["intake_id"], "name": ann.name, "version": "1"}
    signed = await ann.call("POST", "/api/waiver/sign", waiver)
    joined = await ann.device.ask("session.join", session_id=session_id)

    assert (early["type"], early["code"]) == ("error", "waiver_required")
    assert (over_http.status, over_http.code) == (409, "waiver_required")
    assert (signed.status, joined["status"]) == (200, "accepted")
    await ann.device.ask("session.end", session_id=session_id)
