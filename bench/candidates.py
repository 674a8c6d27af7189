"""The servers that are compared, behind one interface.

A candidate is a name and `serve(sockets)`: a context manager that starts the server on its core,
ready for so many connections, and ends it. What it yields says how to connect, how to publish one
message to every connection, and whose CPU time counts. A server written only for comparison needs
no Python here when it keeps the contract of `BareServer`; another needs its own `serve`.

Imports `machine` and `load`; `dispatch_server` adds Dispatch itself.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench import machine
from bench.load import BINARIES, PLAIN, Dialect, LoadError

START_SECONDS = 20.0
OUTPUT_BYTES = 800
ROOT = Path(__file__).parent.parent
PING = '{"type":"echo","padding":"0123456789012345678901234567890"}'
OFFER_MARKER = '"type":"offer"'


@dataclass(frozen=True)
class Running:
    """A started server, and how to use it.

    `publish` makes the server send one frame that contains `marker` to every connection;
    `withdraw`, where there is one, takes it back with frames that contain `withdraw_marker`.
    `burst(n)` makes it publish so many at the same moment, `calm(n)`, where there is one, takes
    those back. `ping` is answered by one frame; it is empty where the server answers nothing.
    """

    pid: int
    port: int
    publish: Callable[[], None]
    burst: Callable[[int], None]
    dialect: Dialect = PLAIN
    tokens: Path | None = None
    ready: str = "-"
    marker: str = OFFER_MARKER
    ping: str = PING
    withdraw: Callable[[], None] | None = None
    calm: Callable[[int], None] | None = None
    withdraw_marker: str = '"type":"offer.revoked"'


class Candidate(Protocol):
    """Something that can be measured."""

    @property
    def name(self) -> str: ...

    def serve(self, sockets: int) -> AbstractContextManager[Running]: ...


@dataclass(frozen=True)
class BareServer:
    """A server without a product: `command` plus a port serves on 127.0.0.1.

    GET /ws upgrades and echoes text frames; POST /publish sends its body to every open websocket as
    one text frame. One whose library cannot take a POST is given a second port for that (`apart`).
    `payload_bytes` is the length of what is published.
    """

    name: str
    command: tuple[str, ...]
    payload_bytes: int
    apart: bool = False
    dialect: Dialect = PLAIN
    ready: str = "-"
    ping: str = PING

    @contextmanager
    def serve(self, sockets: int) -> Iterator[Running]:
        port = machine.free_port()
        publish_port = machine.free_port() if self.apart else port
        command = [*self.command, str(port), *([str(publish_port)] if self.apart else [])]
        body = message(self.payload_bytes)

        def burst(count: int) -> None:
            for answer in post_at_once(publish_port, [Post("/publish", body)] * count):
                _nothing_dropped(answer)

        with started(command, port, environment=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
            yield Running(
                process.pid,
                port,
                lambda: burst(1),
                burst,
                dialect=self.dialect,
                ready=self.ready,
                ping=self.ping,
            )


def message(size: int) -> str:
    """What stands for an offer: JSON of so many bytes."""
    padding = size - len('{"type":"offer","padding":""}')
    return f'{{"type":"offer","padding":"{"x" * padding}"}}'


def _nothing_dropped(answer: bytes) -> None:
    said = json.loads(answer)
    if said["dropped"]:
        raise LoadError(f"{said['dropped']} of {said['sockets']} sockets took no message")


def raw(payload_bytes: int) -> BareServer:
    """The yardstick: one write(2) of the same bytes per delivery, in C."""
    return BareServer("raw C loop", (str(BINARIES / "raw"),), payload_bytes)


def starlette(payload_bytes: int, ws: str) -> BareServer:
    """A bare loop of `send_text` over uvicorn's own websocket implementation `ws`."""
    command = (sys.executable, "-m", "bench.starlette_server", ws)
    return BareServer(f"Starlette, uvicorn {ws}", command, payload_bytes)


@contextmanager
def started(
    command: list[str],
    port: int,
    *,
    core: int | None = machine.SERVER_CORE,
    environment: dict[str, str] | None = None,
    seconds: float = START_SECONDS,
) -> Iterator[subprocess.Popen[bytes]]:
    """A child process that listens on `port`, pinned to `core`; terminated at the end.

    Raises LoadError when it does not come up in `seconds`. What the process said last is added to
    whatever LoadError leaves the block.
    """
    with tempfile.TemporaryFile() as output:
        with machine.pinned(core):
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            _wait_for_port(process, port, seconds)
            yield process
        except LoadError as error:
            output.seek(0)
            said = output.read()[-OUTPUT_BYTES:].decode(errors="replace").strip()
            raise LoadError(f"{error}; the server said: {said}" if said else str(error)) from None
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def post(
    port: int, path: str, body: str, headers: dict[str, str] | None = None, seconds: float = 30
) -> bytes:
    """One POST to 127.0.0.1; the body of a 2xx answer. Raises LoadError for any other."""
    return post_at_once(port, [Post(path, body, headers or {})], seconds)[0]


@dataclass(frozen=True)
class Post:
    """A request."""

    path: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


def post_at_once(port: int, posts: Sequence[Post], seconds: float = 30) -> list[bytes]:
    """All of them, each on a connection that is open before the first is sent; the bodies of their
    2xx answers. Raises LoadError for any other."""
    answers = []
    with ExitStack() as stack:
        connections = [
            stack.enter_context(
                closing(http.client.HTTPConnection("127.0.0.1", port, timeout=seconds))
            )
            for _ in posts
        ]
        for connection in connections:
            connection.connect()
        for connection, one in zip(connections, posts, strict=True):
            connection.request("POST", one.path, one.body, dict(one.headers))
        for connection, one in zip(connections, posts, strict=True):
            response = connection.getresponse()
            answers.append(response.read())
            if response.status >= 300:
                raise LoadError(f"POST {one.path}: {response.status} {answers[-1][:200]!r}")
    return answers


def _wait_for_port(process: subprocess.Popen[bytes], port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise LoadError(f"nothing listens on port {port}")
