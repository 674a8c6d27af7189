"""What an operator is told of a request, over HTTP and on the command line."""

from typing import Any

import pytest

from tests.acceptance.actors import Booking, City, Customer, Mechanic, Person, new_id
from tests.acceptance.shapes import Frame
from tests.support import eventually


async def explained(admin: Person, booking: Booking, **wanted: Any) -> Frame:
    """The explanation, once a candidate with those fields is on record."""

    async def told() -> Frame | None:
        answer = await admin.call("GET", f"/api/admin/requests/{booking.request_id}/explain")
        assert answer.status == 200, answer
        story: Frame = answer.body
        found = [each for each in story["candidates"] if wanted.items() <= each.items()]
        return story if found and all(each["sent"] for each in found) else None

    return await eventually(told)


async def test_an_operator_is_told_mechanic_by_mechanic_and_step_by_step(city: City) -> None:
    ann, admin = await city.customer(), await city.admin()
    favourite, other = await city.mechanics(2)
    await city.is_online(favourite, ann)
    booking = await ann.book(routing_type="priority_broadcast", preferred_mechanic_id=favourite.id)
    card = await favourite.offered(booking)
    await favourite.device.ask("offer.decline", offer_id=card["offer_id"], reason="ill")
    await other.wins(booking)
    await other.call("POST", f"/api/sessions/{booking.session_id}/join")

    story = await explained(admin, booking, mechanic_id=other.id, answer="accepted")

    candidates = {each["mechanic_id"]: each for each in story["candidates"]}
    declined, won = candidates[favourite.id], candidates[other.id]
    assert [(sent["stage"], sent["score"]) for sent in declined["sent"]] == [("priority", 100)]
    assert (declined["answer"], declined["reason"]) == ("declined", "ill")
    assert declined["ruled_out"][0] | {"because": ""} == {
        "stage": "open",
        "reason": "excluded",
        "because": "",
    }
    assert won["sent"][0]["because"] == "not the favourite"
    assert [stage["stage"] for stage in story["stages"]] == ["priority", "open"]
    waterfall = {moment["step"]: moment for moment in story["waterfall"]}
    assert list(waterfall) == ["received", "committed", "written", "seen", "accepted", "joined"]
    assert all(moment["at"] for moment in waterfall.values())
    lines = [line["type"] for line in story["history"]]
    assert lines[:6] == ["created", "opened", "seen", "declined", "widened", "accepted"]

    text = city.town.server.cli("explain", booking.request_id)
    assert f"{favourite.name:<24}  score 100 (the favourite)" in text
    assert "declined (ill)" in text
    again = city.town.server.cli("replay", booking.request_id)
    assert (
        again.splitlines()[-1] == f"the same: {len(again.splitlines()) - 3} changes decided again"
    )


@pytest.mark.parametrize("part", ["limit=0", "limit=1001", "offset=-1", "limit=many"])
async def test_a_part_that_is_out_of_range_is_refused(city: City, part: str) -> None:
    admin = await city.admin()

    answer = await admin.call("GET", f"/api/admin/requests/{new_id()}/explain?{part}")

    assert (answer.status, answer["error"]["code"]) == (400, "bad_request")


async def test_only_an_operator_is_told(city: City) -> None:
    ann, mechanic = await city.customer(), await city.mechanic()
    booking = await ann.book()
    await mechanic.offered(booking)
    people: list[Customer | Mechanic | Person] = [ann, mechanic, await city.workshop()]

    for person in people:
        answer = await person.call("GET", f"/api/admin/requests/{booking.request_id}/explain")
        assert (answer.status, answer["error"]["code"]) == (403, "forbidden")
