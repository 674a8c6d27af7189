"""How long `dispatch serve` takes to be ready: its servers running, or embedded, for the first time
and again.

From the start of the process until `GET /readyz` is answered with 200. The yardstick is a Python of
the same kind that only imports what any such server imports, in turns. Nothing is pinned. Imports
`candidates`, `city`, `dispatch_server`, `machine`.
"""

import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.city import city
from bench.dispatch_server import QUIET
from bench.load import LoadError
from bench.options import Options, Say

LIMIT_SECONDS = 60.0
STOP_SECONDS = 45.0
GLANCE_SECONDS = 0.005
IMPORTS = "import asyncpg, msgspec, redis.asyncio, starlette.applications, uvicorn, uvloop"


@dataclass(frozen=True)
class Start:
    """Medians over the rounds of one way to start; seconds until ready, and to the end of an
    orderly stop. `over_imports` compares with Python and the imports alone."""

    name: str
    rounds: int
    ready_seconds: float
    slowest_seconds: float
    stop_seconds: float
    imports_seconds: float
    over_imports: float


COLUMNS: dict[str, Callable[[Start], str]] = {
    "start": lambda row: row.name,
    "ready s": lambda row: f"{row.ready_seconds:.2f}",
    "slowest s": lambda row: f"{row.slowest_seconds:.2f}",
    "stopped s": lambda row: f"{row.stop_seconds:.2f}",
    "imports s": lambda row: f"{row.imports_seconds:.2f}",
    "÷ imports": lambda row: f"{row.over_imports:.1f}",
}


@dataclass(frozen=True)
class Round:
    """One start; seconds."""

    ready: float
    stop: float
    imports: float


def measure(options: Options, say: Say) -> list[Start]:
    """One row a way to start."""
    with city() as place:
        _once([], place.environment)  # what is read from the disk for the first time
        running = [_once([], place.environment) for _ in range(options.rounds)]
    first, again = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="dispatch-bench-") as name:
            embedded = ["--embedded", str(Path(name) / "data")]
            first.append(_once(embedded, {}))
            again.append(_once(embedded, {}))
    rows = [
        _summary("servers running", running),
        _summary("embedded, the first time", first),
        _summary("embedded, again", again),
    ]
    for row in rows:
        say(f"{row.name}: ready after {row.ready_seconds:.2f} s")
    return rows


def _summary(name: str, rounds: Sequence[Round]) -> Start:
    return Start(
        name=name,
        rounds=len(rounds),
        ready_seconds=statistics.median(one.ready for one in rounds),
        slowest_seconds=max(one.ready for one in rounds),
        stop_seconds=statistics.median(one.stop for one in rounds),
        imports_seconds=statistics.median(one.imports for one in rounds),
        over_imports=statistics.median(one.ready / one.imports for one in rounds),
    )


def _once(arguments: list[str], settings: dict[str, str]) -> Round:
    """Starts it, waits until it is ready, and stops it."""
    imports = _imports()
    port = machine.free_port()
    command = [sys.executable, "-m", "dispatch.cli", "serve", "--workers", "1"]
    with tempfile.TemporaryFile() as output:
        began = time.monotonic()
        process = subprocess.Popen(
            [*command, "--port", str(port), *arguments],
            env=os.environ | QUIET | settings,
            stdout=output,
            stderr=output,
        )
        try:
            ready = _until_ready(process, port, began)
        except LoadError as error:
            output.seek(0)
            raise LoadError(f"{error}: {output.read()[-300:].decode(errors='replace')}") from None
        finally:
            stopping = time.monotonic()
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return Round(ready, time.monotonic() - stopping, imports)


def _until_ready(process: subprocess.Popen[bytes], port: int, began: float) -> float:
    while time.monotonic() < began + LIMIT_SECONDS and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_SECONDS)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return time.monotonic() - began
        except (ConnectionError, http.client.HTTPException):
            pass  # nobody listens yet
        finally:
            connection.close()
        time.sleep(GLANCE_SECONDS)
    raise LoadError(f"not ready in {LIMIT_SECONDS:.0f} s")


def _imports() -> float:
    """Seconds of a Python that imports and ends."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=LIMIT_SECONDS)
    return time.monotonic() - began
