"""A customer's favourites over HTTP and in her snapshot: adding, listing, removing, who may."""

import asyncio
from typing import Any

import pytest

from tests.acceptance.actors import Answer, City, Customer, Mechanic, Person, new_id
from tests.support import eventually

PATH = "/api/customer/favorites"


async def add(person: Person, provider_id: str, provider_type: str = "independent") -> Answer:
    body = {"provider_id": provider_id, "provider_type": provider_type}
    return await person.call("POST", PATH, body)


async def listed(customer: Customer, **page: int) -> Answer:
    answer = await customer.call("GET", PATH, params=page)
    assert answer.status == 200, answer
    return answer


async def ids_of(customer: Customer) -> list[str]:
    return [each["provider_id"] for each in (await listed(customer))["favorites"]]


async def is_served(customer: Customer, mechanic: Mechanic) -> None:
    """A whole session of the two."""
    booking = await customer.book()
    await mechanic.wins(booking)
    for device in (customer.device, mechanic.device):
        await device.ask("session.join", session_id=booking.session_id)
    await customer.device.ask("session.end", session_id=booking.session_id)
    await booking.session(status="completed", prompt="favorite")


async def test_a_favourite_is_added_once_listed_and_removed(city: City) -> None:
    ann, mechanic = await city.customer(), await city.mechanic()
    await city.is_online(mechanic, ann)

    added, again = await add(ann, mechanic.id), await add(ann, mechanic.id)

    assert (added.status, again.status) == (201, 200)
    assert added.body == again.body
    assert added.body == {
        "ok": True,
        "provider_id": mechanic.id,
        "provider_type": "independent",
        "name": mechanic.name,
        "added_at": added["added_at"],
    }
    listing = await listed(ann)
    assert (listing["total"], listing["limit"], listing["offset"]) == (1, 20, 0)
    (favourite,) = listing["favorites"]
    assert favourite.pop("last_seen")
    assert favourite == {
        "provider_id": mechanic.id,
        "provider_type": "independent",
        "name": mechanic.name,
        "sessions": 0,
        "last_session_at": None,
        "most_booked": False,
        "added_at": added["added_at"],
        "presence": "online",
        "is_online": True,
        "available": True,
        "reachable_by_push": False,
    }
    removed = await ann.call("DELETE", f"{PATH}/{mechanic.id}")
    assert (removed.status, removed.body) == (200, {"ok": True})
    assert (await ann.call("DELETE", f"{PATH}/{mechanic.id}")).code == "not_found"
    assert await ids_of(ann) == []


async def test_adding_twice_at_once_gives_one_favourite(city: City) -> None:
    ann, mechanic = await city.customer(online=False), await city.mechanic(online=False)

    answers = await asyncio.gather(*(add(ann, mechanic.id) for _ in range(8)))

    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert await ids_of(ann) == [mechanic.id]


async def test_the_most_booked_is_marked_in_the_list_and_in_the_snapshot(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    served, other = await city.mechanic(workshop=0), await city.mechanic(online=False)
    workshop = city.town.workshop_ids[0]
    await is_served(ann, served)
    for provider, kind in ((served.id, "independent"), (workshop, "workshop")):
        assert (await add(ann, provider, kind)).status == 201
    assert (await add(ann, other.id)).status == 201
    assert (await add(bob, served.id)).status == 201

    listing = (await listed(ann))["favorites"]
    device = await ann.connect()

    assert [each["sessions"] for each in listing] == [1, 1, 0]
    assert [each["most_booked"] for each in listing] == [True, False, False]
    assert {each["provider_id"] for each in listing[:2]} == {served.id, workshop}
    assert listing[0]["last_session_at"] == listing[1]["last_session_at"] is not None
    told = ("provider_id", "provider_type", "name", "most_booked")
    shown = [{name: each[name] for name in told} for each in listing]
    assert device.snapshot["favorites"] == shown
    assert device.snapshot["more_favorites"] is False
    (bobs,) = (await listed(bob))["favorites"]
    assert (bobs["provider_id"], bobs["sessions"], bobs["most_booked"]) == (served.id, 0, False)
    first = (await listed(ann, limit=1))["favorites"]
    rest = (await listed(ann, limit=2, offset=1))["favorites"]
    assert [each["provider_id"] for each in first + rest] == [e["provider_id"] for e in listing]


async def test_the_list_follows_who_comes_and_goes(city: City) -> None:
    ann, mechanic = await city.customer(online=False), await city.mechanic(online=False)
    await add(ann, mechanic.id)

    async def told(**wanted: Any) -> bool:
        (favourite,) = (await listed(ann))["favorites"]
        return {name: favourite[name] for name in wanted} == wanted

    await eventually(lambda: told(presence="offline", is_online=False, available=True))
    device = await mechanic.connect()
    await eventually(lambda: told(presence="online", is_online=True, available=True))
    await device.ask("availability.set", available=False)
    assert await told(is_online=True, available=False)
    await device.ask("availability.set", available=True)
    await mechanic.leave()
    await eventually(lambda: told(presence="offline", is_online=False, available=True))


async def test_a_workshop_tells_how_many_of_its_mechanics_are_free(city: City) -> None:
    ann, mechanic = await city.customer(online=False), await city.mechanic(workshop=1)
    workshop = city.town.workshop_ids[1]
    await add(ann, workshop, "workshop")

    async def free() -> int:
        (favourite,) = (await listed(ann))["favorites"]
        assert favourite.keys().isdisjoint({"presence", "is_online", "reachable_by_push"})
        return int(favourite["available_mechanics"])

    before = await eventually(free)
    await mechanic.device.ask("availability.set", available=False)
    assert await free() == before - 1
    await mechanic.device.ask("availability.set", available=True)


async def test_nobody_sees_or_removes_somebody_elses(city: City) -> None:
    ann, bob = await city.customer(online=False), await city.customer(online=False)
    mechanic = await city.mechanic(online=False)
    await add(ann, mechanic.id)

    others = await bob.call("DELETE", f"{PATH}/{mechanic.id}")
    unknown = await bob.call("DELETE", f"{PATH}/{new_id()}")
    no_id = await bob.call("DELETE", f"{PATH}/nothing")

    assert [each.status for each in (others, unknown, no_id)] == [404] * 3
    assert others.code == unknown.code == no_id.code == "not_found"
    assert await ids_of(bob) == []
    assert await ids_of(ann) == [mechanic.id]


async def test_what_does_not_exist_is_no_favourite(city: City) -> None:
    ann, mechanic = await city.customer(online=False), await city.mechanic(online=False)

    unknown = await add(ann, new_id())
    customer = await add(ann, ann.id)
    no_workshop = await add(ann, new_id(), "workshop")
    other_kind = await add(ann, mechanic.id, "workshop")
    workshop = await add(ann, city.town.workshop_ids[0])

    for answer in (unknown, customer, workshop):
        assert (answer.status, answer.code) == (404, "mechanic_gone")
    for answer in (no_workshop, other_kind):
        assert (answer.status, answer.code) == (404, "not_found")
    assert await ids_of(ann) == []


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        [],
        {"provider_id": "1", "provider_type": "independent"},
        {"provider_id": new_id()},
        {"provider_id": new_id(), "provider_type": "mechanic"},
        {"provider_id": new_id(), "provider_type": None},
        {"provider_type": "workshop"},
    ],
)
async def test_what_is_no_favourite_is_refused(city: City, body: object) -> None:
    ann = await city.customer(online=False)

    answer = await ann.call("POST", PATH, body)

    assert (answer.status, answer.code) == (400, "bad_request")
    assert await ids_of(ann) == []


@pytest.mark.parametrize(
    "page", ["limit=0", "limit=101", "offset=-1", "limit=x", "limit=1&limit=2"]
)
async def test_a_page_out_of_range_is_refused(city: City, page: str) -> None:
    ann = await city.customer(online=False)

    answer = await ann.call("GET", f"{PATH}?{page}")

    assert (answer.status, answer.code) == (400, "bad_request")


async def test_favourites_are_for_customers(city: City) -> None:
    mechanic = await city.mechanic(online=False)
    others = [mechanic, await city.workshop(), await city.admin()]
    calls: list[tuple[str, str, object]] = [
        ("GET", PATH, None),
        ("POST", PATH, {"provider_id": mechanic.id, "provider_type": "independent"}),
        ("DELETE", f"{PATH}/{mechanic.id}", None),
        ("POST", "/api/customer/rebook", {"provider_id": mechanic.id}),
    ]

    for method, path, body in calls:
        for person in others:
            answer = await person.call(method, path, body)
            assert (answer.status, answer.code) == (403, "forbidden")
        nobody = await city.call(method, path, body)
        assert (nobody.status, nobody.code) == (401, "not_authenticated")
