"""The demonstration city: who is in it, that it is the same again, and that people can log in."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import msgspec
import pytest

from dispatch import people
from dispatch.config import Config
from dispatch.core.types import Role
from dispatch.database import Pool, close_pool, open_pool
from dispatch.errors import ConfigError, StartError, Unavailable
from dispatch.people import Rates
from dispatch.seed import City, Person, seed_demo
from loadtest.people import City as PrintedCity


@pytest.fixture
async def pool(config: Config) -> AsyncIterator[Pool]:
    pool = await open_pool(config.database_url)
    yield pool
    await close_pool(pool)


async def role_of(pool: Pool, config: Config, person: Person) -> Role:
    """Logs in as printed, which must be the printed user."""
    logged_in = await people.log_in(
        pool, config.jwt_secret, Rates(0), person["email"], person["password"]
    )
    assert str(logged_in.user_id) == person["user_id"]
    return logged_in.role


async def counts(pool: Pool) -> dict[str, int]:
    tables = ("users", "organizations", "organization_members", "mechanics", "customers")
    return {table: await pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables}


def everybody(city: City) -> list[Person]:
    return [*city["workshops"], *city["mechanics"], *city["customers"], city["admin"]]


async def test_everybody_in_the_default_city_can_log_in_in_their_role(
    config: Config, pool: Pool
) -> None:
    city = await seed_demo(config, None, None)

    roles = await asyncio.gather(*(role_of(pool, config, person) for person in everybody(city)))

    assert roles == [
        *[Role.WORKSHOP] * 3,
        *[Role.MECHANIC] * 16,
        *[Role.CUSTOMER] * 12,
        Role.ADMIN,
    ]
    printed = everybody(city)
    for unique in ("id", "user_id", "name", "email", "password"):
        assert len({str(dict(person)[unique]) for person in printed}) == len(printed), unique


async def test_the_default_city_has_four_mechanics_in_each_workshop_and_four_independents(
    config: Config, pool: Pool
) -> None:
    city = await seed_demo(config, None, None)

    by_workshop = Counter(mechanic["workshop_id"] for mechanic in city["mechanics"])
    assert by_workshop == {None: 4} | {workshop["id"]: 4 for workshop in city["workshops"]}
    rows = await pool.fetch(
        """SELECT m.id::text, m.workshop_id::text, c.approved, m.available, o.status, m.rating,
                  m.is_specialist
             FROM mechanics m JOIN candidates c ON c.mechanic_id = m.id
             LEFT JOIN organizations o ON o.id = m.workshop_id"""
    )
    assert {row["id"]: row["workshop_id"] for row in rows} == {
        mechanic["id"]: mechanic["workshop_id"] for mechanic in city["mechanics"]
    }
    assert all(row["approved"] and row["available"] for row in rows)
    assert all(row["status"] in ("active", None) for row in rows)
    assert {row["is_specialist"] for row in rows} == {True, False}
    assert len({row["rating"] for row in rows}) > 5


async def test_a_workshops_id_is_the_organizations_and_its_member_logs_in(
    config: Config, pool: Pool
) -> None:
    city = await seed_demo(config, 0, 0)

    rows = await pool.fetch("SELECT organization_id::text, user_id::text FROM organization_members")
    assert {row["organization_id"]: row["user_id"] for row in rows} == {
        workshop["id"]: workshop["user_id"] for workshop in city["workshops"]
    }
    assert all(workshop["id"] != workshop["user_id"] for workshop in city["workshops"])


async def test_seeding_again_prints_the_same_and_adds_nobody(config: Config, pool: Pool) -> None:
    first = await seed_demo(config, None, None)
    after_first = await counts(pool)
    hashes = await pool.fetch("SELECT id, password_hash FROM users ORDER BY id")

    again = await seed_demo(config, None, None)

    assert again == first
    assert await counts(pool) == after_first
    assert await pool.fetch("SELECT id, password_hash FROM users ORDER BY id") == hashes


async def test_two_who_seed_at_once_make_one_city(config: Config, pool: Pool) -> None:
    first, second = await asyncio.gather(seed_demo(config, 20, 20), seed_demo(config, 20, 20))

    assert first == second
    assert await counts(pool) == {
        "users": 3 + 20 + 20 + 1,
        "organizations": 3,
        "organization_members": 3,
        "mechanics": 20,
        "customers": 20,
    }


async def test_a_larger_city_begins_with_the_smaller_one(config: Config, pool: Pool) -> None:
    small = await seed_demo(config, 6, 2)

    large = await seed_demo(config, 400, 300)

    assert (small["workshops"], small["admin"]) == (large["workshops"], large["admin"])
    assert small["mechanics"] == large["mechanics"][:6]
    assert small["customers"] == large["customers"][:2]
    assert (len(large["mechanics"]), len(large["customers"])) == (400, 300)
    assert set(Counter(m["workshop_id"] for m in large["mechanics"]).values()) == {100}
    crowd = [*large["mechanics"][16:], *large["customers"][12:]]
    assert len({person["password"] for person in crowd}) == 1
    assert len({person["email"] for person in everybody(large)}) == 3 + 400 + 300 + 1
    assert await role_of(pool, config, large["mechanics"][-1]) is Role.MECHANIC
    assert await role_of(pool, config, large["customers"][-1]) is Role.CUSTOMER


async def test_mechanics_who_went_away_are_available_again(config: Config, pool: Pool) -> None:
    await seed_demo(config, None, None)
    await pool.execute("UPDATE mechanics SET available = false, application_status = 'rejected'")

    await seed_demo(config, 4, 0)

    rows = await pool.fetch(
        "SELECT available, application_status, count(*) FROM mechanics GROUP BY 1, 2 ORDER BY 3"
    )
    assert [tuple(row) for row in rows] == [(True, "approved", 4), (False, "rejected", 12)]


async def test_another_secret_gives_other_passwords(config: Config) -> None:
    first = await seed_demo(config, 1, 0)
    other = await seed_demo(replace(config, jwt_secret="another-secret-of-over-32-bytes!!"), 1, 0)

    assert other["admin"]["id"] == first["admin"]["id"]
    assert not {person["password"] for person in everybody(first)} & {
        person["password"] for person in everybody(other)
    }


async def test_the_city_is_the_json_that_the_load_test_reads(config: Config) -> None:
    city = await seed_demo(config, None, None)

    read = PrintedCity.parse(msgspec.json.encode(city))

    assert msgspec.to_builtins(read) == city


async def test_an_email_that_somebody_else_has_stops_it_and_adds_nobody(
    config: Config, pool: Pool
) -> None:
    await people.sign_up_customer(pool, "Mallory", "admin@dispatch.example", "correct horse")

    with pytest.raises(StartError, match=r"admin@dispatch\.example .* is no admin"):
        await seed_demo(config, None, None)

    assert (await counts(pool))["users"] == 1


@pytest.mark.parametrize(("mechanics", "customers"), [(-1, 0), (0, -1), (100_001, 0), (0, 100_001)])
async def test_a_city_of_an_impossible_size_is_refused(
    config: Config, mechanics: int, customers: int
) -> None:
    with pytest.raises(ConfigError, match="0 to 100000"):
        await seed_demo(config, mechanics, customers)


async def test_a_database_without_tables_is_named(config: Config) -> None:
    connection = await asyncpg.connect(config.database_url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()

    with pytest.raises(StartError, match="dispatch migrate"):
        await seed_demo(config, None, None)


async def test_without_postgres_it_says_so(config: Config) -> None:
    nowhere = replace(config, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(Unavailable):
        await seed_demo(nowhere, None, None)
