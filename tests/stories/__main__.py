"""Prints docs/stories.md, as the stories go now: `python -m tests.stories > docs/stories.md`."""

import asyncio

from dispatch.migrate import migrate
from tests.conftest import Servers, create_database, drop_database, started_servers
from tests.stories.document import document
from tests.stories.five import STORIES
from tests.stories.play import Tale, play


def main() -> None:
    """Each story in a database of its own."""
    with started_servers() as servers:
        print(document([_told(tale, servers) for tale in STORIES]), end="")


def _told(tale: Tale, servers: Servers) -> list[str]:
    database_url = create_database(servers)
    try:
        asyncio.run(migrate(database_url))
        return asyncio.run(play(tale, database_url, servers.redis_url)).lines
    finally:
        drop_database(servers, database_url)


if __name__ == "__main__":
    main()
