"""Prints docs/stories.md, as the stories go now: `python -m tests.stories > docs/stories.md`.

With the argument `life` it prints docs/life.md.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

from dispatch.migrate import migrate
from tests.conftest import Servers, create_database, drop_database, started_servers
from tests.stories.document import document, life_document
from tests.stories.five import STORIES
from tests.stories.life import lived
from tests.stories.play import Tale, play


def main() -> None:
    """Each story in a database of its own."""
    with started_servers() as servers:
        if sys.argv[1:] == ["life"]:
            print(life_document(_told(lived, servers)), end="")
        else:
            print(document([_told(_played(tale), servers) for tale in STORIES]), end="")


def _played(tale: Tale) -> Callable[[str, str], Awaitable[list[str]]]:
    async def lines(database_url: str, redis_url: str) -> list[str]:
        return (await play(tale, database_url, redis_url)).lines

    return lines


def _told(tell: Callable[[str, str], Awaitable[list[str]]], servers: Servers) -> list[str]:
    async def run() -> list[str]:
        return await tell(database_url, servers.redis_url)

    database_url = create_database(servers)
    try:
        asyncio.run(migrate(database_url))
        return asyncio.run(run())
    finally:
        drop_database(servers, database_url)


if __name__ == "__main__":
    main()
