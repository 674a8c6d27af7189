"""Child processes that never outlive us: start, recognise and end them within bounds.

Its one job: the few facts of the operating system that `embedded` and `supervisor` share. Imports
nothing of ours. On Linux the kernel itself signals a child when its parent dies, however it dies;
elsewhere the next start finds what is left. Everything here is blocking and meant for the parent,
which runs no event loop.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

POLL_SECONDS = 0.01
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(death_signal: signal.Signals, parent_pid: int) -> None:
    """To be called in a fresh child: it gets `death_signal` when the thread that made it ends.

    A parent that is already gone (it died between fork and this call) ends the child at once.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent_pid:
            os._exit(1)


def spawn(
    argv: Sequence[str],
    *,
    death_signal: signal.Signals,
    cwd: Path,
    output: IO[Any] | int | None = None,
    stdin: IO[Any] | int = subprocess.DEVNULL,
    environ: Mapping[str, str] | None = None,
    identity: Mapping[str, Any] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that a terminal's Ctrl-C does not reach it.

    `identity` is the `user`, `group` and `extra_groups` to run as, none means ours. `output` takes
    standard output and error. Call it from the main thread: the death signal follows the thread.
    """
    parent_pid = os.getpid()
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=environ,
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
        pass_fds=pass_fds,
        # The kernel forgets the death signal when the user changes: this runs after that.
        preexec_fn=lambda: die_with_parent(death_signal, parent_pid),
        **(identity or {}),
    )


def end(process: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float]) -> None:
    """Send each signal in turn and wait its seconds, then SIGKILL. The process is gone after it."""
    for step, wait_seconds in steps:
        if process.poll() is not None:
            return
        process.send_signal(step)
        if wait_until(lambda: process.poll() is not None, wait_seconds):
            return
    process.kill()
    process.wait()


def end_stranger(pid: int, *steps: tuple[signal.Signals, float]) -> None:
    """The same for a process that is not our child; the caller has checked that it is meant."""
    for step, wait_seconds in (*steps, (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, step)
        except ProcessLookupError:
            return
        if wait_until(lambda: not is_alive(pid), wait_seconds):
            return


def is_alive(pid: int) -> bool:
    """Whether a process of this number exists and is more than a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    except (FileNotFoundError, ProcessLookupError, IndexError):
        if sys.platform == "linux":
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def works_in(pid: int, folder: Path) -> bool:
    """Whether this process is alive and its working directory is `folder`.

    Numbers are used again, all the more in a container: a number from a file proves nothing. Where
    working directories cannot be seen the command line has to name the folder.
    """
    if not is_alive(pid):
        return False
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder.resolve()
    except OSError:
        if sys.platform == "linux":
            return False
    shown = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
    return str(folder.resolve()) in shown.stdout


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Poll the condition until it holds (True) or the time is over (False)."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def free_port(preferred: int = 0, host: str = "127.0.0.1") -> int:
    """A port on which nobody listens now: the preferred one when it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no port is free on {host}")
