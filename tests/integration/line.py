"""The way to Postgres, for tests that cut it."""

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

from tests.integration.stripe_servers import free_socket


class Line:
    """The way to Postgres, which can be cut and mended; `url` is the database through it."""

    def __init__(self, database_url: str) -> None:
        parts = urlsplit(database_url)
        self._there = (parts.hostname or "127.0.0.1", parts.port or 5432)
        with free_socket() as bound:
            host, port = self._here = bound.getsockname()
        login = parts.netloc.rpartition("@")[0]
        self.url = parts._replace(netloc=f"{login}@{host}:{port}").geturl()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._connect, *self._here)

    async def cut(self) -> None:
        """Every connection ends, and nobody gets a new one."""
        assert self._server is not None
        self._server.close()
        while self._writers:
            self._writers.pop().transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._there)
        self._writers |= {writer, there_writer}
        await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while sent := await reader.read(65536):
            writer.write(sent)
    writer.close()
