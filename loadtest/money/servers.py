"""Postgres and Redis for a campaign: our own, in a folder that goes away, one database a worker.

One job: start, copy databases, stop. Fails with `StartError` where the servers do not come up.
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from dispatch.embedded import Embedded
from dispatch.migrate import migrate


class Servers(NamedTuple):
    """Where they are."""

    database_url: str
    redis_url: str
    folder: Path


@contextlib.contextmanager
def serving() -> Iterator[Servers]:
    """Both servers inside the block, without fsync: what is killed here is never Postgres."""
    folder = Path(tempfile.mkdtemp(prefix="dispatch-money-"))
    embedded = Embedded.start(folder, durable=False)
    try:
        values: dict[str, Any] = embedded.values
        yield Servers(values["database_url"], values["redis_url"], folder)
    finally:
        embedded.stop()
        shutil.rmtree(folder)


async def new_database(database_url: str) -> str:
    """A database of its own on that server, with the whole schema; its URL."""
    name = f"money_{uuid4().hex}"
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    url = urlsplit(database_url)._replace(path=f"/{name}").geturl()
    await migrate(url)
    return url


def new_databases(servers: Servers, count: int) -> list[str]:
    """As many databases."""

    async def make() -> list[str]:
        return [await new_database(servers.database_url) for _ in range(count)]

    return asyncio.run(make())
