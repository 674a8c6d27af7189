"""A database with people and open bookings, on real servers of its own, for one measurement.

Imports `machine` and of the product only what starts and migrates servers and issues tokens. The
SQL is in `city.sql`. Everything is gone at the end.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from bench import machine
from dispatch import migrate
from dispatch.embedded import Embedded

SQL = Path(__file__).parent / "city.sql"


class City:
    """Running Postgres and Valkey with the schema, and what to reach them with."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = folder
        self.database_url: str = values["database_url"]
        self.redis_url: str = values["redis_url"]
        self.jwt_secret: str = values["jwt_secret"]
        self.webhook_secret: str = values["stripe_webhook_secrets"][0]
        self.environment = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "DISPATCH_JWT_SECRET": self.jwt_secret,
            "STRIPE_SECRET_KEY": values["stripe_secret_key"],
            "STRIPE_WEBHOOK_SECRET": self.webhook_secret,
        }

    def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """The rows of one statement, over a connection of its own."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.database_url)
            try:
                rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
                return rows
            finally:
                await connection.close()

        return asyncio.run(run())

    def add_mechanics(self, count: int, per_workshop: int) -> list[UUID]:
        """Ids of new mechanics, in the order of their numbers."""
        self.fetch("SELECT bench.add_mechanics($1, $2)", count, per_workshop)
        self.fetch("ANALYZE")
        rows = self.fetch("SELECT id FROM bench.mechanics ORDER BY n")
        return [row["id"] for row in rows]

    def open_bookings(self, first: int, count: int, routing: str) -> None:
        """An open booking for each of `count` mechanics from number `first` on; their accepts are
        then in `bench.accepts`."""
        self.fetch("SELECT bench.open_bookings($1, $2, $3)", first, count, routing)
        self.fetch("ANALYZE")

    def sell(self, count: int, routing: str) -> list[asyncpg.Record]:
        """Paid checkouts whose webhooks are to come, in the order of their numbers; each names the
        mechanic of its number, as far as there are so many."""
        self.fetch("SELECT bench.sell($1, $2)", count, routing)
        self.fetch("ANALYZE")
        return self.fetch("SELECT payment_id, stripe_session_id FROM bench.sales ORDER BY n")

    def add_customers(self, count: int) -> list[UUID]:
        """The ids of so many new customers."""
        made = self.fetch("SELECT bench.add_customer() AS id FROM generate_series(1, $1)", count)
        return [row["id"] for row in made]


@contextmanager
def city(core: int | None = None) -> Iterator[City]:
    """Starts the servers (on `core`, if given) in a temporary folder and applies the schema."""
    with tempfile.TemporaryDirectory(prefix="dispatch-bench-") as name:
        folder = Path(name)
        with machine.pinned(core):
            servers = Embedded.start(folder / "data")
        try:
            made = City(folder, servers.values)
            asyncio.run(migrate.migrate(made.database_url))
            asyncio.run(_execute(made.database_url, SQL.read_text()))
            yield made
        finally:
            servers.stop()


async def _execute(database_url: str, sql: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
