"""Forked workers: all ready or none, the dead replaced, nobody left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dispatch import children
from dispatch.workers import MAX_DELAY_SECONDS, _Worker
from tests.support import eventually_blocking

# A supervisor whose workers answer every connection with their pid. argv: workers, mode.
PROGRAM = """
import os, signal, sys, time
from dispatch.errors import ConfigError, StartError
from dispatch.supervisor import listen
from dispatch import workers
from dispatch.workers import Signals, Workers

workers.KILL_AFTER_DRAIN_SECONDS = 0.2
mode = sys.argv[2]

def work(sock, ready):
    if mode == "wrong":
        raise ConfigError(["DISPATCH_JWKS_URL cannot work"])
    if mode == "failing":
        raise StartError("no node can start here")
    if mode == "bug":
        raise RuntimeError("a bug")
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    while True:
        connection, _ = sock.accept()
        with connection:
            connection.sendall(str(os.getpid()).encode())

with Signals() as signals:
    sockets = listen("127.0.0.1", 0, int(sys.argv[1]))
    port = sockets[0].getsockname()[1]
    everybody = Workers(sockets, signals, work, 0.1, lambda: None)
    sys.exit(everybody.run(lambda: print(port, flush=True), lambda: None))
"""

Parent = subprocess.Popen[str]
Start = Callable[..., Parent]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def run(workers: int = 2, mode: str = "well") -> Parent:
            parent = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(workers), mode],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            stack.callback(parent.kill)
            return parent

        yield run


def port_of(parent: Parent) -> int:
    assert parent.stdout is not None
    return int(parent.stdout.readline())


def who_answers(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        return int(connection.recv(16))


def all_who_answer(port: int, count: int) -> set[int]:
    """Ask until `count` different workers have answered."""
    pids: set[int] = set()

    def have_answered() -> bool:
        pids.add(who_answers(port))
        return len(pids) == count

    eventually_blocking(have_answered)
    return pids


def are_gone(pids: Sequence[int] | set[int]) -> bool:
    return not any(children.is_alive(pid) for pid in pids)


def test_every_worker_serves_the_one_port_and_all_end_with_the_parent(start: Start) -> None:
    parent = start(workers=3)
    pids = all_who_answer(port_of(parent), 3)

    parent.terminate()

    assert parent.wait(10) == 0
    assert len(pids) == 3
    assert are_gone(pids)


def test_a_dead_worker_is_replaced_and_the_others_go_on(start: Start) -> None:
    parent = start(workers=2)
    port = port_of(parent)
    killed, survivor = all_who_answer(port, 2)

    os.kill(killed, signal.SIGKILL)
    eventually_blocking(lambda: not Path(f"/proc/{killed}/cmdline").exists())  # dead and reaped
    after = {who_answers(port) for _ in range(50)}  # each is answered, however it is routed

    assert killed not in after
    assert all_who_answer(port, 2) > {survivor}
    parent.terminate()
    _, errors = parent.communicate(timeout=10)
    assert "a worker ended with SIGKILL" in errors


def test_a_terminals_interrupt_reaches_the_workers_only_through_the_parent(start: Start) -> None:
    parent = start(workers=2)
    pids = all_who_answer(port := port_of(parent), 2)

    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert {who_answers(port) for _ in range(20)} <= pids
    parent.send_signal(signal.SIGINT)

    assert parent.wait(10) == 0
    assert are_gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children only there")
def test_a_killed_parent_takes_its_workers_along(start: Start) -> None:
    parent = start(workers=2)
    pids = all_who_answer(port_of(parent), 2)

    parent.kill()

    eventually_blocking(lambda: are_gone(pids))


def test_a_worker_that_does_not_end_is_killed_in_the_end(start: Start) -> None:
    parent = start(workers=1, mode="stubborn")
    pid = who_answers(port_of(parent))

    parent.terminate()

    assert parent.wait(30) == 0
    assert are_gone([pid])


@pytest.mark.parametrize(
    ("mode", "code", "reason"),
    [
        ("wrong", 2, "DISPATCH_JWKS_URL cannot work"),
        ("failing", 1, "no node can start here"),
        ("bug", 1, "RuntimeError: a bug"),
    ],
)
def test_a_worker_that_cannot_start_ends_everything_and_says_why(
    start: Start, mode: str, code: int, reason: str
) -> None:
    parent = start(workers=2, mode=mode)

    output, errors = parent.communicate(timeout=20)

    assert parent.returncode == code
    assert reason in errors
    assert ("Traceback" in errors) == (mode == "bug")
    assert output == ""


def test_a_worker_that_dies_at_once_is_started_ever_slower() -> None:
    worker = _Worker(socket.socket())
    delays = []

    for now in range(0, 20, 2):
        worker.started_at = now - 1
        worker.plan_restart(now)
        delays.append(worker.delay_seconds)
    worker.started_at = -1000
    worker.plan_restart(20)

    assert delays == sorted(delays)
    assert 0 < delays[0] < 1
    assert delays[-1] == MAX_DELAY_SECONDS
    assert worker.start_at == 20
    worker.sock.close()
