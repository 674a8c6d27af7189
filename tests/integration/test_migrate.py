"""A database becomes ours in one step, exactly once, however many try at the same time."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from dispatch.children import free_port
from dispatch.errors import StartError, Unavailable
from dispatch.migrate import Source, migrate, shipped


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "README.md").write_text("not SQL")
    (tmp_path / "schema.sql").write_text("CREATE TABLE jobs (id integer PRIMARY KEY);")
    return Source(tmp_path / "schema.sql", tmp_path / "migrations")


def add(source: Source, name: str, sql: str) -> None:
    (source.migrations / name).write_text(sql)


async def fetch(url: str, sql: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def test_an_empty_database_gets_the_schema_and_every_migration_in_order(
    empty_database_url: str, source: Source
) -> None:
    add(source, "0002-fill.sql", "INSERT INTO jobs (id, name) VALUES (1, 'tow')")
    add(source, "0001-name.sql", "ALTER TABLE jobs ADD name text")

    applied = await migrate(empty_database_url, source)

    assert applied == ["schema.sql", "0001-name.sql", "0002-fill.sql"]
    assert await fetch(empty_database_url, "SELECT id, name FROM jobs") == [(1, "tow")]
    assert await fetch(
        empty_database_url, "SELECT version, name FROM schema_migrations ORDER BY version"
    ) == [(0, "schema.sql"), (1, "0001-name.sql"), (2, "0002-fill.sql")]


async def test_only_what_is_new_is_applied_later(empty_database_url: str, source: Source) -> None:
    await migrate(empty_database_url, source)
    add(source, "0001-name.sql", "ALTER TABLE jobs ADD name text")

    assert await migrate(empty_database_url, source) == ["0001-name.sql"]
    assert await migrate(empty_database_url, source) == []


async def test_nodes_that_start_at_once_take_turns(empty_database_url: str) -> None:
    results = await asyncio.gather(*(migrate(empty_database_url) for _ in range(8)))

    everything = [step.name for step in shipped().steps()]
    assert sorted(results, key=len) == [[], [], [], [], [], [], [], everything]


async def test_a_migration_that_fails_leaves_nothing_of_itself(
    empty_database_url: str, source: Source
) -> None:
    add(source, "0001-name.sql", "ALTER TABLE jobs ADD name text")
    add(source, "0002-bad.sql", "INSERT INTO jobs (id) VALUES (1); SELECT no_such_thing()")

    with pytest.raises(StartError, match=r"0002-bad.sql cannot be applied: .*no_such_thing"):
        await migrate(empty_database_url, source)

    assert await fetch(empty_database_url, "SELECT count(*) FROM jobs") == [(0,)]
    assert await fetch(empty_database_url, "SELECT max(version) FROM schema_migrations") == [(1,)]


async def test_a_database_of_a_newer_version_is_left_alone(
    empty_database_url: str, source: Source
) -> None:
    add(source, "0007-later.sql", "SELECT 1")
    await migrate(empty_database_url, source)
    (source.migrations / "0007-later.sql").unlink()

    with pytest.raises(StartError, match="has migration 0007, and this version knows only 0000"):
        await migrate(empty_database_url, source)


async def test_somebody_elses_database_is_left_alone(
    empty_database_url: str, source: Source
) -> None:
    await fetch(empty_database_url, "CREATE TABLE invoices (id integer)")

    with pytest.raises(StartError, match="tables that are not ours"):
        await migrate(empty_database_url, source)

    assert await fetch(empty_database_url, "SELECT to_regclass('jobs')") == [(None,)]


@pytest.mark.parametrize("names", [["1-short.sql"], ["0001-a.sql", "0001-b.sql"], ["0000-a.sql"]])
def test_migrations_must_be_numbered_once(source: Source, names: list[str]) -> None:
    for name in names:
        add(source, name, "SELECT 1")

    with pytest.raises(StartError, match=f"{names[-1]}: migrations are NNNN-name.sql"):
        source.steps()


async def test_a_postgres_that_does_not_answer_is_named_without_its_password() -> None:
    port = free_port()

    with pytest.raises(Unavailable) as raised:
        await migrate(f"postgresql://dispatch:hunter2@127.0.0.1:{port}/dispatch")

    assert f"Postgres at 127.0.0.1:{port} cannot be used" in raised.value.message
    assert "hunter2" not in raised.value.message


async def test_a_database_that_does_not_exist_is_named(empty_database_url: str) -> None:
    with pytest.raises(Unavailable, match=r'database ".*_gone" does not exist'):
        await migrate(f"{empty_database_url}_gone")
