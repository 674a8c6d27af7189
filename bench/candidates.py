"""The servers that are compared, behind one interface.

A candidate is a name and `serve(sockets)`: a context manager that starts the server on its core,
ready for so many connections, and ends it. What it yields says how to connect, how to publish one
message to every connection, and whose CPU time counts. A server written only for comparison needs
no Python here when it keeps the contract of `BareServer`; another needs its own `serve`.

Imports `machine` and `load`; `dispatch_server` adds Dispatch itself.
"""

import http.client
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench import machine
from bench.load import BINARIES, LoadError

START_SECONDS = 20.0
OUTPUT_BYTES = 800
OFFER_MARKER = '"type":"offer"'


@dataclass(frozen=True)
class Running:
    """A started server.

    `publish` makes the server send one text frame that contains `marker` to every connection;
    `withdraw`, where there is one, takes it back with frames that contain `withdraw_marker`.
    """

    pid: int
    port: int
    publish: Callable[[], None]
    tokens: Path | None = None
    ready: str = "-"
    marker: str = OFFER_MARKER
    ping: str = '{"type":"echo","padding":"0123456789012345678901234567890"}'
    withdraw: Callable[[], None] | None = None
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
    one text frame. `payload_bytes` is the length of what is published.
    """

    name: str
    command: tuple[str, ...]
    payload_bytes: int

    @contextmanager
    def serve(self, sockets: int) -> Iterator[Running]:
        port = machine.free_port()
        padding = self.payload_bytes - len('{"type":"offer","padding":""}')
        body = f'{{"type":"offer","padding":"{"x" * padding}"}}'
        with started([*self.command, str(port)], port) as process:
            yield Running(process.pid, port, lambda: self._publish(port, body))

    @staticmethod
    def _publish(port: int, body: str) -> None:
        answer = json.loads(post(port, "/publish", body))
        if answer["dropped"]:
            raise LoadError(f"{answer['dropped']} of {answer['sockets']} sockets took no message")


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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status >= 300:
        raise LoadError(f"POST {path}: {response.status} {answer[:200]!r}")
    return answer


def _wait_for_port(process: subprocess.Popen[bytes], port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise LoadError(f"nothing listens on port {port}")
