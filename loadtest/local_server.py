"""A server of our own: `dispatch serve` as a child process, and the commands beside it.

Starts, seeds and stops it from the outside, as an operator would. Imports `people` only. What does
not work raises `ServerFailed` with the last lines that the server said.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from loadtest.people import City

START_SECONDS = 90.0
COMMAND_SECONDS = 120.0
STOP_SECONDS = 45.0
READY = "listening on "


class ServerFailed(Exception):
    """A command of the server did not do what it should."""


class Serving(NamedTuple):
    """A server that is ready. `ended` is done as soon as it is no more."""

    url: str
    ended: asyncio.Task[None]


class Node(msgspec.Struct, frozen=True):
    """One worker of a running server, as `dispatch nodes --json` lists it."""

    node_id: str
    pid: int


@contextlib.asynccontextmanager
async def serving(
    folder: Path, *, port: int, workers: int, settings: Mapping[str, str], log: Path
) -> AsyncIterator[Serving]:
    """Runs `dispatch serve --embedded folder` inside the block.

    The child has a session of its own, so that Ctrl-C reaches only us; it is stopped with
    SIGTERM, and killed when it has not ended in `STOP_SECONDS`.
    """
    with log.open("ab") as errors:
        process = await _spawn(
            ["serve", "--embedded", str(folder), "--port", str(port), "--workers", str(workers)],
            errors,
            settings,
        )
        assert process.stdout is not None
        try:
            url = await _wait_until_ready(process.stdout, log)
            rest = asyncio.create_task(_keep(process.stdout, errors), name="server's output")
            try:
                yield Serving(url, rest)
            finally:
                rest.cancel()
        finally:
            await _stop(process)


async def seed(folder: Path, *, mechanics: int | None, customers: int | None) -> City:
    """The people of `seed-demo` in the server on `folder`, made if they are not there yet."""
    counts: list[str] = []
    if mechanics is not None:
        counts += ["--mechanics", str(mechanics)]
    if customers is not None:
        counts += ["--customers", str(customers)]
    return City.parse(await _command("seed-demo", "--embedded", str(folder), *counts))


async def nodes(folder: Path) -> list[Node]:
    """The workers that are alive now."""
    listed = await _command("nodes", "--json", "--embedded", str(folder))
    return msgspec.json.decode(listed, type=list[Node])


async def replay(folder: Path) -> str:
    """Has the server's own core decide every request on record again; what it says of it.

    Raises `ServerFailed` when anything came out differently.
    """
    said = await _command("replay", "--all", "--embedded", str(folder))
    return said.decode().splitlines()[-1]


async def books(folder: Path) -> str:
    """Has the server's money held against itself, to the cent; what is said of it.

    Raises `ServerFailed` when anything does not match.
    """
    said = await _command("books", "--embedded", str(folder))
    return said.decode().splitlines()[-1]


def free_port(preferred: int | None = None) -> int:
    """`preferred` when nobody listens there, else any free port of the loopback address."""
    for port in ([preferred] if preferred is not None else []) + [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerFailed("no free port")


async def _spawn(
    arguments: list[str], errors: IO[bytes] | int, settings: Mapping[str, str]
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "dispatch.cli",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=errors,
        env=os.environ | settings,
        start_new_session=True,
    )


async def _command(*arguments: str) -> bytes:
    process = await _spawn(list(arguments), asyncio.subprocess.PIPE, {})
    try:
        said, complaint = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    except TimeoutError:
        raise ServerFailed(f"dispatch {arguments[0]} took too long") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = "\n".join((complaint or said).decode(errors="replace").splitlines()[-5:])
        raise ServerFailed(f"dispatch {arguments[0]} failed ({process.returncode}): {last}")
    return said


async def _wait_until_ready(output: asyncio.StreamReader, log: Path) -> str:
    try:
        async with asyncio.timeout(START_SECONDS):
            async for raw in output:
                line = raw.decode(errors="replace").strip()
                if READY in line:
                    return line.partition(READY)[2].split()[0]
    except TimeoutError:
        raise ServerFailed(f"not ready after {START_SECONDS:g} s\n{_tail(log)}") from None
    raise ServerFailed(f"ended before it was ready\n{_tail(log)}")


async def _keep(output: asyncio.StreamReader, log: IO[bytes]) -> None:
    """Moves what the server still prints into its log; over when the server is."""
    async for line in output:
        log.write(line)
        log.flush()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    # Not process.terminate(): that may reap the child behind the event loop's back.
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def _tail(log: Path) -> str:
    return "\n".join(deque(log.read_text(errors="replace").splitlines(), maxlen=12))
