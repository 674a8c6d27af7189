"""Bring a database to the schema of this version: `schema.sql`, then numbered migrations.

Its one job: apply what is missing, each file in a transaction of its own, recorded in
`schema_migrations`. Nodes that start at once take turns under an advisory lock. May import
`config` and `errors`. Fails with `Unavailable` when Postgres does not answer and with `StartError`
when the database is not one that this version may touch; what was applied before stays applied.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from dispatch.config import without_password
from dispatch.errors import StartError, Unavailable

CONNECT_SECONDS = 5
LOCK_SECONDS = 60
_LOCK_KEY = 0x6469737061746368  # "dispatch" in ASCII
_FILE_NAME = re.compile(r"(\d{4})-[a-z0-9-]+\.sql")


@dataclass(frozen=True)
class Step:
    """One file of SQL."""

    number: int
    name: str
    sql: str


@dataclass(frozen=True)
class Source:
    """Where the SQL is: `schema.sql` and the folder of `NNNN-name.sql` files."""

    schema: Path
    migrations: Path

    def steps(self) -> list[Step]:
        """Every file in order; the schema is number 0. Raises StartError for a bad name."""
        steps = [Step(0, self.schema.name, self.schema.read_text())]
        for path in sorted(self.migrations.glob("*.sql")):
            match = _FILE_NAME.fullmatch(path.name)
            number = int(match[1]) if match else 0
            if number <= steps[-1].number:
                raise StartError(f"{path.name}: migrations are NNNN-name.sql, each number once")
            steps.append(Step(number, path.name, path.read_text()))
        return steps


def shipped() -> Source:
    """The SQL of this version: inside an installed package, else at the top of the checkout."""
    package = Path(__file__).parent
    folder = package if (package / "schema.sql").exists() else package.parent
    return Source(folder / "schema.sql", folder / "migrations")


async def connect(database_url: str) -> asyncpg.Connection:
    """One connection, for what happens before there is a pool. Raises Unavailable, saying why."""
    try:
        return await asyncpg.connect(database_url, timeout=CONNECT_SECONDS)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        where = urlsplit(without_password(database_url)).netloc.rpartition("@")[2]
        reason = str(error) or type(error).__name__
        raise Unavailable(
            f"Postgres at {where or 'the default'} cannot be used: {reason}"
        ) from None


async def migrate(database_url: str, source: Source | None = None) -> list[str]:
    """Apply what is missing and return the names of the files applied, in order.

    Safe to call from several processes at once and again at any time.
    """
    steps = (source or shipped()).steps()
    connection = await connect(database_url)
    try:
        await _take_turn(connection)
        applied = await _applied(connection, newest=steps[-1].number)
        missing = [step for step in steps if step.number not in applied]
        for step in missing:
            await _apply(connection, step)
        return [step.name for step in missing]
    finally:
        await connection.close(timeout=CONNECT_SECONDS)


async def _take_turn(connection: asyncpg.Connection) -> None:
    """Hold the lock until the connection ends, whoever ends it."""
    try:
        await connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
    except asyncpg.LockNotAvailableError:
        raise StartError(
            f"another process has been migrating this database for {LOCK_SECONDS} s"
        ) from None


async def _applied(connection: asyncpg.Connection, newest: int) -> set[int]:
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    names = {row["tablename"] for row in tables}
    if not names:
        return set()
    if "schema_migrations" not in names:
        raise StartError(
            "this database has tables that are not ours and no schema_migrations: "
            "give Dispatch an empty database"
        )
    rows = await connection.fetch("SELECT version FROM schema_migrations")
    applied = {int(row["version"]) for row in rows}
    if applied and max(applied) > newest:
        raise StartError(
            f"this database has migration {max(applied):04}, and this version knows "
            f"only {newest:04}: start a newer version"
        )
    return applied


async def _apply(connection: asyncpg.Connection, step: Step) -> None:
    try:
        async with connection.transaction():
            await connection.execute(step.sql)
            await connection.execute(
                """CREATE TABLE IF NOT EXISTS schema_migrations (
                     version integer PRIMARY KEY,
                     name text NOT NULL,
                     applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"""
            )
            await connection.execute(
                "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)",
                step.number,
                step.name,
            )
    except asyncpg.PostgresError as error:
        raise StartError(f"{step.name} cannot be applied: {error}") from error
