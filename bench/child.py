"""A load client in Python as a child process: a command in, one line of JSON out.

Imports `load` for its error.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import machine
from bench.load import LoadError

ROOT = Path(__file__).parent.parent


class Child:
    """One that is running; one command at a time."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process

    def ask(self, command: str) -> dict[str, Any]:
        """What it says of one command. Raises LoadError when it could not be done."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """The next thing that it says; it ends by itself when something takes too long."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"{self._name} ended")
        said: dict[str, Any] = json.loads(line)
        if "failure" in said:
            raise LoadError(f"{self._name}: {said['failure']}")
        return said


@contextmanager
def child(module: str, *arguments: object, core: int | None = None) -> Iterator[Child]:
    """`python -m MODULE ARGUMENTS`, on `core` if given, once it is ready; ended at the end."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with machine.pinned(core):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
    try:
        one = Child(module, process)
        one.hear()
        yield one
    finally:
        process.kill()
        process.communicate()
