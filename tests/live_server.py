"""A live server for acceptance and chaos tests: `dispatch serve` in processes of its own.

Nothing of it runs in the test's process: what a test sees, a client or an operator would see.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from dispatch.children import wait_until

START_SECONDS = 30.0
STOP_SECONDS = 45.0


class LiveServer:
    """One `dispatch serve`: started by `start`, ready when that returns.

    `url` is http://HOST:PORT, `ws_url` the websocket's; `environ` what it was started with, `log`
    the file with all it said on standard error, `pid` the supervisor's.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str], *arguments: str) -> None:
        self.environ = dict(environ)
        self.log = folder / "server.log"
        self.url = ""
        self._embedded: tuple[str, ...] = ()
        if "--embedded" in arguments:
            at = arguments.index("--embedded")
            self._embedded = arguments[at : at + 2]
        self._output = folder / "server.out"
        with self.log.open("wb") as log, self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dispatch.cli", "serve", *arguments],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
            )

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, folder: Path, environ: Mapping[str, str], *arguments: str
    ) -> Iterator["LiveServer"]:
        """Ready inside the block, gone after it; its log is printed, for a test that fails."""
        server = cls(folder, environ, *arguments)
        try:
            server._await_ready()
            yield server
        finally:
            server.stop()
            print(f"--- {server.log.name}\n{server.log.read_text(errors='replace')}---")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ws_url(self) -> str:
        return f"{self.url.replace('http', 'ws', 1)}/ws"

    def cli(self, *arguments: str) -> str:
        """Standard output of another command with the same environment and embedded folder."""
        finished = subprocess.run(
            [sys.executable, "-m", "dispatch.cli", *arguments, *self._embedded],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def stop(self) -> int:
        """SIGTERM and the whole drain; the exit code. Killed if it does not end."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL to the supervisor; the kernel ends its workers."""
        self._process.kill()
        self._process.wait()

    def _await_ready(self) -> None:
        wait_until(lambda: self._says_ready() or self._process.poll() is not None, START_SECONDS)
        assert self._says_ready(), f"the server did not start: {self.log.read_text()}"
        (line,) = self._output.read_text().splitlines()
        self.url = line.removeprefix("listening on ")

    def _says_ready(self) -> bool:
        text = self._output.read_text()
        return text.startswith("listening on http") and text.endswith("\n")
