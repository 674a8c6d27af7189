"""The directory of workshops: who is in it, in which order and pages, and how a node shares it."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from dispatch.database import Connection, Pool, close_pool, open_pool
from dispatch.errors import Unavailable
from dispatch.workshops import Directory
from tests.integration.rows import add_customer, add_mechanic, occupy
from tests.support import eventually

NOBODY_HERE = "postgresql://nobody@127.0.0.1:9/nothing"


async def add_named_workshop(
    connection: Connection, name: str, *, status: str = "active", mechanics: int = 0
) -> tuple[UUID, list[UUID]]:
    """A workshop with so many mechanics who could be offered work now."""
    workshop_id: UUID = await connection.fetchval(
        "INSERT INTO organizations (name, email, status) VALUES ($1, $2, $3) RETURNING id",
        name,
        f"{name.lower()}@shops.example",
        status,
    )
    people = [await add_online(connection, workshop_id) for _ in range(mechanics)]
    return workshop_id, people


async def add_online(connection: Connection, workshop_id: UUID | None, **facts: Any) -> UUID:
    """A mechanic who is online; `facts` are other columns of hers."""
    mechanic_id = await add_mechanic(connection, workshop_id)
    await change(connection, mechanic_id, is_online=True, **facts)
    return mechanic_id


async def change(connection: Connection, mechanic_id: UUID, **facts: Any) -> None:
    for column, value in facts.items():
        await connection.execute(
            f"UPDATE mechanics SET {column} = $2 WHERE id = $1", mechanic_id, value
        )


async def add_session(connection: Connection, workshop_id: UUID, status: str) -> None:
    await connection.execute(
        "INSERT INTO sessions (customer_user_id, workshop_id, status, type, plan)"
        " VALUES ($1, $2, $3, 'chat', 'chat10')",
        await add_customer(connection),
        workshop_id,
        status,
    )


async def listed(connection: Connection, *arguments: int | None) -> list[asyncpg.Record]:
    places = ", ".join(f"${n + 1}" for n in range(len(arguments)))
    return await connection.fetch(f"SELECT * FROM get_workshop_directory({places})", *arguments)


async def names(connection: Connection, *arguments: int | None) -> list[str]:
    return [row["workshop_name"] for row in await listed(connection, *arguments)]


async def test_a_line_says_who_there_is_and_what_the_workshop_has_done(
    connection: Connection,
) -> None:
    workshop_id, (first, second) = await add_named_workshop(connection, "North", mechanics=2)
    await change(connection, first, rating=4)
    await change(connection, second, rating=3)
    await add_online(connection, workshop_id, rating=4, available=False)
    await add_online(connection, workshop_id)  # not rated
    await add_online(connection, workshop_id, rating=1, application_status="pending")
    for status in ("completed", "completed", "cancelled", "expired"):
        await add_session(connection, workshop_id, status)

    (line,) = await listed(connection)

    assert dict(line) | {"avg_rating": float(line["avg_rating"])} == {
        "workshop_id": workshop_id,
        "workshop_name": "North",
        "workshop_email": "north@shops.example",
        "workshop_status": "active",
        "total_mechanics": 4,
        "available_mechanics": 3,
        "avg_rating": 3.67,
        "total_sessions": 2,
        "created_at": line["created_at"],
    }


async def test_a_workshop_is_listed_while_somebody_there_could_be_offered_work(
    connection: Connection,
) -> None:
    await add_named_workshop(connection, "Empty")
    await add_named_workshop(connection, "Pending", status="pending", mechanics=1)
    await add_named_workshop(connection, "Suspended", status="suspended", mechanics=1)
    lacking: dict[str, dict[str, Any]] = {
        "Offline": {"is_online": False},
        "Unavailable": {"available": False},
        "Unapproved": {"application_status": "rejected"},
    }
    for name, facts in lacking.items():
        _, (mechanic_id,) = await add_named_workshop(connection, name, mechanics=1)
        await change(connection, mechanic_id, **facts)
    _, (busy,) = await add_named_workshop(connection, "Busy", mechanics=1)
    await occupy(connection, busy, 1)
    _, (deleted,) = await add_named_workshop(connection, "Deleted", mechanics=1)
    await connection.execute("UPDATE mechanics SET deleted_at = now() WHERE id = $1", deleted)
    _, (disabled,) = await add_named_workshop(connection, "Disabled", mechanics=1)
    await connection.execute("UPDATE users SET disabled_at = now() WHERE id = $1", disabled)
    await add_online(connection, None)  # independent
    await add_named_workshop(connection, "Open", mechanics=1)

    assert await names(connection) == ["Open"]
    assert await names(connection, 20, 0, 2) == ["Busy", "Open"]


async def test_most_available_come_first_then_best_rated_then_by_name(
    connection: Connection,
) -> None:
    ratings: dict[str, list[float | None]] = {
        "Many": [1, None, None],
        "Good": [4.9, 4.7],
        "Fair": [3, 4],
        "Alike": [3.5, 3.5],
        "Unrated": [None, None],
        "Single": [5],
    }
    for name, each in ratings.items():
        _, people = await add_named_workshop(connection, name, mechanics=len(each))
        for mechanic_id, rating in zip(people, each, strict=True):
            await change(connection, mechanic_id, rating=rating)

    in_order = ["Many", "Good", "Alike", "Fair", "Unrated", "Single"]
    assert await names(connection) == in_order
    assert await names(connection, None, 0) == in_order
    pages = [await names(connection, 4, offset) for offset in (0, 4, 8)]
    assert pages == [in_order[:4], in_order[4:], []]


async def test_twenty_workshops_are_a_page_unless_told_otherwise(connection: Connection) -> None:
    for number in range(21):
        await add_named_workshop(connection, f"Garage{number:02}", mechanics=1)

    assert len(await names(connection)) == 20
    with pytest.raises(asyncpg.PostgresError, match="LIMIT must not be negative"):
        await names(connection, -1)


async def test_the_free_mechanics_of_a_workshop_are_listed_best_rated_first(
    connection: Connection,
) -> None:
    north, (good, better) = await add_named_workshop(connection, "North", mechanics=2)
    await change(connection, good, rating=4.1)
    await change(connection, better, rating=4.2, is_specialist=True)
    unrated = await add_online(connection, north)
    busy = await add_online(connection, north, rating=5)
    await occupy(connection, busy, 1)
    await add_online(connection, north, available=False)
    await add_named_workshop(connection, "South", mechanics=1)

    rows = await connection.fetch("SELECT * FROM get_available_workshop_mechanics($1)", north)
    with_two = await connection.fetch(
        "SELECT * FROM get_available_workshop_mechanics($1, 2)", north
    )

    assert [(row["mechanic_id"], row["is_specialist"]) for row in rows] == [
        (better, True),
        (good, False),
        (unrated, False),
    ]
    assert [row["mechanic_name"] for row in rows] == ["Kim Doe"] * 3
    assert with_two[0]["mechanic_id"] == busy


# --- what a node makes of it ----------------------------------------------------------------------


async def test_pages_are_parts_of_one_directory(connection: Connection, pool: Pool) -> None:
    for name in ("North", "South", "West"):
        await add_named_workshop(connection, name, mechanics=1)
    directory = Directory(pool, capacity=1)

    first, second, beyond = [await directory.page(2, offset) for offset in (0, 2, 4)]

    assert [line.workshop_name for line in first.workshops] == ["North", "South"]
    assert [line.workshop_name for line in second.workshops] == ["West"]
    assert beyond.workshops == []
    assert [(page.total, page.limit, page.offset) for page in (first, second, beyond)] == [
        (3, 2, 0),
        (3, 2, 2),
        (3, 2, 4),
    ]


async def test_however_many_ask_one_read_answers_and_news_are_read_a_second_later(
    connection: Connection, pool: Pool
) -> None:
    await add_named_workshop(connection, "North", mechanics=1)
    directory = Directory(pool, capacity=1)

    pages = await asyncio.gather(*(directory.page(20, 0) for _ in range(50)))
    await add_named_workshop(connection, "South", mechanics=1)
    again = await directory.page(20, 0)

    assert len({id(page.workshops[0]) for page in (*pages, again)}) == 1

    async def both_listed() -> bool:
        return (await directory.page(20, 0)).total == 2

    await eventually(both_listed)


async def test_while_postgres_is_away_all_who_wait_are_told_and_the_next_one_asks_again(
    connection: Connection, database_url: str
) -> None:
    await add_named_workshop(connection, "North", mechanics=1)
    pool = await open_pool(NOBODY_HERE)
    directory = Directory(pool, capacity=1)

    waiting = (directory.page(20, 0) for _ in range(3))
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    pool.set_connect_args(database_url)
    found = await directory.page(20, 0)
    await close_pool(pool)

    assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert found.total == 1
