"""The C programs from Python: building them, and driving `client.c` line by line.

Imports `machine`. Whatever the client reports as failed, closed or late raises `LoadError`: a
figure is only worth something when every delivery arrived.
"""

import json
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine

HERE = Path(__file__).parent
BINARIES = HERE / "bin"
ANSWER_GRACE_SECONDS = 10.0


class LoadError(Exception):
    """The load client, or the server it loads, did not do what the measurement needs."""


def build() -> None:
    """Compiles `raw.c` and `client.c` into `bin/` where their sources are newer."""
    BINARIES.mkdir(exist_ok=True)
    for name in ("raw", "client"):
        sources = [HERE / f"{name}.c", HERE / "wire.h"]
        binary = BINARIES / name
        newest = max(source.stat().st_mtime for source in sources)
        if binary.exists() and binary.stat().st_mtime > newest:
            continue
        command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(binary), str(sources[0])]
        try:
            subprocess.run(command, check=True, timeout=60)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise LoadError(f"a C compiler is needed to build {sources[0].name}: {error}") from None


@dataclass(frozen=True)
class Dialect:
    """How to talk to a server: what to ask for, and what to say first, in which kind of frame."""

    path: str = "/ws"
    hello: str = ""
    binary: bool = False

    @property
    def arguments(self) -> list[str]:
        """The same for `client.c`."""
        hello = ["-s", self.hello] if self.hello else []
        return ["-p", self.path, *hello, *(["-b"] if self.binary else [])]


PLAIN = Dialect()
ANY = "-"
NUMBER = "#" * 12


@dataclass(frozen=True)
class Outcome:
    """What one command of the client saw. Times are `time.monotonic_ns()`, latencies ns.

    `frames` that were waited for came in so many `reads`.
    """

    done: int
    begin_ns: int
    first_ns: int
    last_ns: int
    spare_ns: int
    payload_bytes: int
    won: int = 0
    lost: int = 0
    p50_ns: int = 0
    p99_ns: int = 0
    frames: int = 0
    reads: int = 0

    @property
    def spread_seconds(self) -> float:
        """From the first event to the last."""
        return (self.last_ns - self.first_ns) / 1e9

    @property
    def seconds(self) -> float:
        """From the command to the last event."""
        return (self.last_ns - self.begin_ns) / 1e9

    @property
    def busy(self) -> float:
        """The share of the spread that the client needed: 1 is a bottleneck."""
        return 1 - self.spare_ns / max(self.last_ns - self.first_ns, 1)


class LoadClient:
    """A running load client; one command at a time."""

    def __init__(self, process: subprocess.Popen[bytes], sockets: int) -> None:
        self._process = process
        self._output = b""
        self.sockets = sockets

    @property
    def pid(self) -> int:
        """Of the client's process."""
        return self._process.pid

    def connect(self, in_flight: int = 128, seconds: float = 60) -> Outcome:
        """Closes what is open, all at once, and opens every connection, `in_flight` handshakes at
        a time; until all are ready."""
        self._send(f"connect {in_flight} {seconds}")
        return self._outcome(seconds)

    def expect(self, count: int, marker: str, each: int = 1, seconds: float = 30) -> None:
        """Starts counting connections that get `each` frames with `marker`, until `count` of
        them had; then call `counted`."""
        self._send(f"expect {count} {each} {seconds} {marker}")
        self._line(ANSWER_GRACE_SECONDS)

    def counted(self, seconds: float = 30) -> Outcome:
        """Waits until the frames of the last `expect` are there."""
        return self._outcome(seconds)

    def script(self, path: Path, in_flight: int, marker: str, seconds: float = 60) -> Outcome:
        """Plays the lines of `path`, `in_flight` at a time; `marker` is a win."""
        self._send(f"script {path} {in_flight} {seconds} {marker}")
        return self._outcome(seconds)

    def echo(self, sockets: int, payload: str, seconds: float, marker: str = ANY) -> Outcome:
        """Sends `payload` on the first `sockets` connections, each again when an answer with
        `marker` is there; NUMBER in it becomes a rising number."""
        self._send(f"echo {sockets} {seconds} {marker} {payload}")
        return self._outcome(seconds)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """The client stands still: what is sent to it waits in the kernel."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _send(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def _outcome(self, seconds: float) -> Outcome:
        said = self._line(seconds + ANSWER_GRACE_SECONDS)
        if said["failed"] or said["closed"]:
            raise LoadError(f"{said['event']}: {said['failed']} failed; {said['failure']}")
        if said["timed_out"]:
            raise LoadError(f"{said['event']}: {said['done']} of {said['expected']} in {seconds} s")
        if said["extra"]:
            raise LoadError(f"{said['event']}: {said['extra']} frames came twice")
        return Outcome(**{k: v for k, v in said.items() if k in Outcome.__dataclass_fields__})

    def _line(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._output:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise LoadError(f"the load client said nothing for {seconds} s")
            chunk = self._process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not chunk:
                raise LoadError(f"the load client ended with {self._process.wait(5)}")
            self._output += chunk
        line, self._output = self._output.split(b"\n", 1)
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def load_client(
    port: int,
    sockets: int,
    tokens: Path | None = None,
    ready: str = "-",
    dialect: Dialect = PLAIN,
) -> Iterator[LoadClient]:
    """A load client on its core, not yet connected; ended with its connections at the end."""
    command = [str(BINARIES / "client"), *dialect.arguments]
    command += [str(port), str(sockets), str(tokens or "-"), ready]
    with machine.pinned(machine.CLIENT_CORE):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield LoadClient(process, sockets)
    finally:
        process.kill()
        process.communicate()
