"""The directory over HTTP, as somebody without an account meets it, and how it follows the city."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.actors import Answer, City
from tests.support import eventually

DIRECTORY = "/api/workshops/directory"
FIELDS = {
    "workshop_id",
    "workshop_name",
    "workshop_email",
    "workshop_status",
    "total_mechanics",
    "available_mechanics",
    "avg_rating",
    "total_sessions",
    "created_at",
}


async def ask(city: City, **query: Any) -> Answer:
    return await city.call("GET", DIRECTORY, params=query)


async def until(city: City, holds: Callable[[list[dict[str, Any]]], bool]) -> Answer:
    """The directory, once it is so: the mirror of presence is a second late, and so is a node."""

    async def told() -> Answer | None:
        answer = await ask(city)
        assert answer.status == 200, answer
        return answer if holds(answer["workshops"]) else None

    return await eventually(told)


async def test_the_directory_follows_who_is_there_and_free(city: City) -> None:
    ann = await city.customer()
    await city.deserted(ann)
    await until(city, lambda lines: lines == [])
    first = await city.mechanic(workshop=0)
    await city.mechanic(workshop=0)
    await city.mechanic(workshop=1)
    await city.mechanic()  # independent

    both = await until(city, lambda lines: sum(w["available_mechanics"] for w in lines) == 3)

    assert (both["total"], both["limit"], both["offset"]) == (2, 20, 0)
    assert [set(line) for line in both["workshops"]] == [FIELDS, FIELDS]
    shops = city.town.workshop_ids
    assert [line["workshop_id"] for line in both["workshops"]] == shops[:2]
    line = both["workshops"][0]
    assert line["total_mechanics"] > line["available_mechanics"] == 2
    assert line["workshop_status"] == "active"
    assert line["created_at"].endswith("Z")
    sessions_before = line["total_sessions"]

    # The second of two becomes busy with a booking, and has served it in the end.
    booking = await ann.book(routing_type="workshop_only", workshop_id=shops[0])
    await first.wins(booking)
    await until(city, lambda lines: [w["available_mechanics"] for w in lines] == [1, 1])
    for person in (first, ann):
        await person.call("POST", f"/api/sessions/{booking.session_id}/join")
    await ann.call("POST", f"/api/sessions/{booking.session_id}/end")
    served = await until(city, lambda lines: [w["available_mechanics"] for w in lines] == [2, 1])
    assert served["workshops"][0]["total_sessions"] == sessions_before + 1


async def test_pages_are_parts_of_the_whole(city: City) -> None:
    for number in range(3):
        await city.mechanic(workshop=number)
    everyone = await until(city, lambda lines: len(lines) == 3)

    pages = [await ask(city, limit=2, offset=offset) for offset in (0, 2, 1_000_000)]

    assert [page["total"] for page in pages] == [3, 3, 3]
    assert [len(page["workshops"]) for page in pages] == [2, 1, 0]
    assert [(page["limit"], page["offset"]) for page in pages] == [(2, 0), (2, 2), (2, 1_000_000)]
    assert pages[0]["workshops"] + pages[1]["workshops"] == everyone["workshops"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=1.5",
        "offset=-1",
        "offset=1000001",
        "limit=1&limit=2",
    ],
)
async def test_a_page_out_of_range_is_refused(city: City, query: str) -> None:
    answer = await city.call("GET", f"{DIRECTORY}?{query}")

    assert (answer.status, answer.code) == (400, "bad_request")


async def test_only_reading_is_possible(city: City) -> None:
    answer = await city.call("POST", DIRECTORY, {})

    assert (answer.status, answer.code) == (405, "method_not_allowed")
