"""The machine under the measurements: cores, limits, CPU time, memory, and how it is described.

Imports nothing of ours. Linux only: it reads /proc and pins processes to cores.
"""

import os
import platform
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER_CORE = 0
CLIENT_CORE = 1


def cpu_ns(pid: int) -> int:
    """CPU time, user and system, that process `pid` and its threads have used, in nanoseconds.

    The same sum as utime + stime of /proc/PID/stat, which counts in steps of 10 ms: too coarse for
    one round of 1,000 deliveries. The clock's number is made as in the kernel's
    `MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED)`.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def core_busy_seconds(core: int = CLIENT_CORE) -> float:
    """How long this core has been in use by anybody, in steps of a hundredth of a second."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, ticks)
            return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return 0.0


def rss_bytes(pid: int) -> int:
    """Resident memory of process `pid`; what the kernel keeps for its sockets is not in it."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def writes(pid: int) -> int:
    """How many system calls that write process `pid` and its threads have made."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, count = line.partition(": ")
        if name == "syscw":
            return int(count)
    raise OSError(f"/proc/{pid}/io does not count writes")


def raise_descriptor_limit() -> int:
    """Lets this process and its children open as many files as the machine allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started inside run on `core` only, if the machine has it, from their first step;
    with None anywhere."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if core is None else {core} & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def describe() -> dict[str, str | int]:
    """What a figure has to be read with: CPU model, cores, memory, kernel, Python."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_mib": memory_bytes >> 20,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
