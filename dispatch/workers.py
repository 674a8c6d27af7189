"""Forked workers: start each as a node, replace the dead, end them all within the drain.

Its one job: that every listening socket has a living process. The parent runs no event loop and no
thread, so a fork is safe at any time; the kernel ends the workers with it, however it ends. Imports
`children` and `errors`; what a worker does is passed in. A worker that dies is replaced by a new
node, ever slower if it dies at once. Only two deaths end everything: one before all were ready for
the first time, and one with the exit code of a configuration that cannot work.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from dispatch import children
from dispatch.errors import ConfigError, DispatchError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
LOOK_SECONDS = 1.0
KILL_AFTER_DRAIN_SECONDS = 5.0
AT_ONCE_SECONDS = 5.0  # a worker that lived shorter died at once
FIRST_DELAY_SECONDS = 0.1
MAX_DELAY_SECONDS = 5.0

# What a worker does: serve this socket until SIGTERM, and say when it is ready.
Work = Callable[[socket.socket, Callable[[], None]], None]


def say(message: str) -> None:
    """One line for the operator, on standard error: standard output is for other programs."""
    print(f"dispatch: {message}", file=sys.stderr, flush=True)


class Signals(contextlib.AbstractContextManager["Signals"]):
    """SIGTERM, SIGINT and SIGHUP ask to stop; they and a child's end wake `wait`."""

    _STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.stop_asked = False

    def __enter__(self) -> "Signals":
        self._wakeup, self._writer = socket.socketpair()
        self._wakeup.setblocking(False)
        self._writer.setblocking(False)
        self._before = {
            number: signal.getsignal(number) for number in (*self._STOP, signal.SIGCHLD)
        }
        for number in self._STOP:
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._wakeup.close()
        self._writer.close()

    def _ask_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_asked = True

    def wait(self, timeout_seconds: float, *also: int) -> None:
        """Return at the next signal, when one of the file descriptors is readable, or in time."""
        readers: list[socket.socket | int] = [self._wakeup, *also]
        select.select(readers, [], [], max(timeout_seconds, 0))
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)

    def forget_in_child(self) -> None:
        """A worker has signals of its own; a terminal's Ctrl-C is for the parent to pass on."""
        self.__exit__()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class _Worker:
    """One socket and the process that serves it now; `pid` 0 while there is none."""

    sock: socket.socket
    pid: int = 0
    ready_fd: int = -1
    is_ready: bool = False
    started_at: float = 0.0
    delay_seconds: float = 0.0
    start_at: float = 0.0

    def note_ready(self) -> None:
        if self.ready_fd >= 0 and select.select([self.ready_fd], [], [], 0)[0]:
            self.is_ready = os.read(self.ready_fd, 1) != b""
            self._close_ready()

    def take_exit_code(self) -> int | None:
        """The exit code if the process has ended (minus the signal's number), else None."""
        if self.pid == 0:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.pid, self.is_ready = 0, False
        self._close_ready()
        return os.waitstatus_to_exitcode(status)

    def plan_restart(self, now: float) -> None:
        died_at_once = now - self.started_at < AT_ONCE_SECONDS
        longer = max(2 * self.delay_seconds, FIRST_DELAY_SECONDS)
        self.delay_seconds = min(longer, MAX_DELAY_SECONDS) if died_at_once else 0.0
        self.start_at = now + self.delay_seconds

    def _close_ready(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1


class Workers:
    """One worker per socket. The sockets are the caller's; they are closed when the end begins."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        signals: Signals,
        work: Work,
        drain_seconds: float,
        forget_in_child: Callable[[], None],
    ) -> None:
        self._workers = [_Worker(sock) for sock in sockets]
        self._signals = signals
        self._work = work
        self._drain_seconds = drain_seconds
        self._forget_in_child = forget_in_child

    def run(self, announce: Callable[[], None], look_after: Callable[[], None]) -> int:
        """Start all, call `announce` when all are ready, then `look_after` each second.

        Returns the exit code after a signal to stop or a death that ends everything; no worker is
        left then.
        """
        try:
            return self._watch(announce, look_after)
        finally:
            self._end_all()

    def _watch(self, announce: Callable[[], None], look_after: Callable[[], None]) -> int:
        announced = False
        while not self._signals.stop_asked:
            now = time.monotonic()
            for worker in self._workers:
                worker.note_ready()
                code = worker.take_exit_code()
                if code is not None:
                    say(f"a worker ended with {_meaning(code)}")
                    if code == EXIT_CONFIGURATION or not announced:
                        return EXIT_CONFIGURATION if code == EXIT_CONFIGURATION else EXIT_FAILED
                    worker.plan_restart(now)
                if worker.pid == 0 and worker.start_at <= now:
                    self._start(worker, now)
            if not announced and all(worker.is_ready for worker in self._workers):
                announce()
                announced = True
            look_after()
            self._wait(now)
        return EXIT_DONE

    def _wait(self, now: float) -> None:
        delays = [worker.start_at - now for worker in self._workers if worker.pid == 0]
        pending = [worker.ready_fd for worker in self._workers if worker.ready_fd >= 0]
        self._signals.wait(min([LOOK_SECONDS, *delays]), *pending)

    def _start(self, worker: _Worker, now: float) -> None:
        worker.ready_fd, ready_writer = os.pipe()
        worker.started_at = now
        sys.stdout.flush()
        sys.stderr.flush()
        parent_pid = os.getpid()
        worker.pid = os.fork()
        if worker.pid == 0:
            self._live(worker, ready_writer, parent_pid)
        os.close(ready_writer)

    def _live(self, worker: _Worker, ready_writer: int, parent_pid: int) -> None:
        """The worker's whole life. It never returns: what follows on the stack is the parent's."""
        code = EXIT_FAILED
        try:
            children.die_with_parent(signal.SIGKILL, parent_pid)
            self._signals.forget_in_child()
            self._forget_in_child()
            if self._signals.stop_asked:  # between the fork and here
                os._exit(EXIT_DONE)
            for other in self._workers:
                if other is not worker:
                    other.sock.close()  # else it would go on listening after its own worker's drain
            self._work(worker.sock, lambda: _tell_ready(ready_writer))
            code = EXIT_DONE
        except ConfigError as error:
            say(error.message)
            code = EXIT_CONFIGURATION
        except DispatchError as error:
            say(error.message)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else EXIT_FAILED
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _end_all(self) -> None:
        """SIGTERM, the drain and a little more, SIGKILL. Nobody new can connect meanwhile."""
        for worker in self._workers:
            worker.sock.close()
        self._signal_all(signal.SIGTERM)
        deadline = time.monotonic() + self._drain_seconds + KILL_AFTER_DRAIN_SECONDS
        while self._are_left() and (left_seconds := deadline - time.monotonic()) > 0:
            self._signals.wait(min(left_seconds, LOOK_SECONDS))
        if self._are_left():
            say("workers that did not end in time are killed")
            self._signal_all(signal.SIGKILL)
        while self._are_left():
            self._signals.wait(LOOK_SECONDS)

    def _signal_all(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid != 0:  # not reaped yet, so the number is still its own
                os.kill(worker.pid, number)

    def _are_left(self) -> bool:
        for worker in self._workers:
            worker.take_exit_code()
        return any(worker.pid != 0 for worker in self._workers)


def _tell_ready(writer: int) -> None:
    os.write(writer, b"1")
    os.close(writer)


def _meaning(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
