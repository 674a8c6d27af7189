"""A load client that asks little and measures closely: a ping each millisecond, and few accepts.

    python -m bench.prober PORT TOKENS    TOKENS has a bearer token per line: of who pings, then of
                                          the mechanics

It connects everybody, says one line of JSON, and then answers one line for each command:

    offers COUNT SECONDS        waits until so many offers by name have come since the last probe
    probe SECONDS FILE          pings each millisecond, and sends the lines of FILE ("mechanic
                                frame") spread evenly over that time; what was won

Times are from the moment for which a frame was planned, so nothing is left out by waiting for an
answer; `late_ms` is how late the prober itself was. It runs before everybody else on its core,
where the machine lets it. Imports nothing of ours.
"""

import contextlib
import json
import os
import re
import select
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

PING_SECONDS = 0.001
GRACE_SECONDS = 10.0
READ_BYTES = 1 << 18
CARRIED_BYTES = 30  # of what was read before, so that nothing is cut in two and missed
PONG = b"\x8a\x80\0\0\0\0"  # a sign of life, in place of an answer to each ping of the server's
ANSWERED = re.compile(rb'"re":"(\d{8})"')
BY_NAME = re.compile(rb'"stage":"priority"')
VERDICT = re.compile(rb'"type":"(offer\.won|offer\.lost|error)"')


class Failed(Exception):
    """The server did not do what it should."""


class Socket:
    """One websocket; only what is looked for is understood."""

    def __init__(self, port: int, token: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ZGlzcGF0Y2ggYmVuY2htYQ==\r\n"
            b"Authorization: Bearer " + token.encode() + b"\r\n\r\n"
        )
        self._carried = b""
        while b'"type":"welcome"' not in self._carried:
            self._carried += self._receive()
        self._carried = b""
        self.socket.setblocking(False)

    def find(self, *patterns: re.Pattern[bytes]) -> list[list[re.Match[bytes]]]:
        """Reads what is there: what each pattern matches in it."""
        carried, text = self._carried, self._carried + self._receive()
        self._carried = text[-CARRIED_BYTES:]
        # What lies wholly in what was carried was found before.
        return [
            [found for found in pattern.finditer(text) if found.end() > len(carried)]
            for pattern in patterns
        ]

    def send(self, text: bytes) -> None:
        """One text frame, masked with zeros."""
        size = len(text)
        head = struct.pack("!BB", 0x81, 0x80 | size)
        if size > 125:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, size)
        self.socket.sendall(head + b"\0\0\0\0" + text)

    def _receive(self) -> bytes:
        got = self.socket.recv(READ_BYTES)
        if not got:
            raise Failed(f"a connection was closed: {self._carried[-80:]!r}")
        return got


class Prober:
    """Who pings, and the mechanics."""

    def __init__(self, port: int, tokens: list[str]) -> None:
        self._pinger, *self._mechanics = (Socket(port, each) for each in tokens)
        self._poll = select.epoll()
        self._by_number = {one.socket.fileno(): one for one in (self._pinger, *self._mechanics)}
        for number in self._by_number:
            self._poll.register(number, select.EPOLLIN)
        self._offers = 0

    def offers(self, count: int, seconds: float) -> Any:
        """Waits for the offers."""
        deadline = time.monotonic() + seconds
        for mechanic in self._mechanics:
            mechanic.socket.sendall(PONG)
        while self._offers < count:
            if time.monotonic() > deadline:
                raise Failed(f"{self._offers} of {count} offers in {seconds} s")
            for number, _ in self._poll.poll(0.1):
                self._offers += len(self._by_number[number].find(BY_NAME)[0])
        return {"offers": self._offers}

    def probe(self, seconds: float, lines: list[str]) -> Any:
        """Milliseconds to each answer."""
        self._offers = 0
        run = _Run(seconds, lines)
        while not run.is_over():
            # An epoll's own timeout is in whole milliseconds.
            select.select([self._poll], [], [], run.wait_seconds())
            for number, _ in self._poll.poll(0):
                one = self._by_number[number]
                pings, verdicts = one.find(ANSWERED, VERDICT)
                for ping in pings:
                    run.ponged(int(ping[1]))
                for verdict in verdicts:
                    run.judged(number, verdict[1])
            while run.ping_is_due():
                self._pinger.send(b'{"type":"ping","id":"%08d"}' % run.next_ping())
            while run.accept_is_due():
                mechanic, frame = run.next_accept()
                run.accepting(self._mechanics[mechanic].socket.fileno())
                self._mechanics[mechanic].send(frame)
        return {"ping_ms": run.ping_ms, "accept_ms": run.accept_ms, "late_ms": run.late_ms}


class _Run:
    """One `probe`: what was planned for when, and what has come of it."""

    def __init__(self, seconds: float, lines: list[str]) -> None:
        self._lines = [line.split(" ", 1) for line in lines]
        self._began = time.perf_counter()
        self._pings = int(seconds / PING_SECONDS)
        self._accept_every = seconds / max(len(lines), 1)
        self._pinged = self._accepted = 0
        self._asked: dict[int, float] = {}
        self._deadline = self._began + seconds + GRACE_SECONDS
        self.ping_ms: list[float] = []
        self.accept_ms: list[float] = []
        self.late_ms: list[float] = []

    def is_over(self) -> bool:
        if time.perf_counter() > self._deadline:
            raise Failed(f"{len(self.ping_ms)} of {self._pings} pings were answered")
        done = len(self.ping_ms) == self._pings
        return done and len(self.accept_ms) == len(self._lines)

    def wait_seconds(self) -> float:
        if self._pinged == self._pings and self._accepted == len(self._lines):
            return 0.1
        return max(min(self._ping_at(), self._accept_at()) - time.perf_counter(), 0.0)

    def _ping_at(self) -> float:
        return self._began + self._pinged * PING_SECONDS if self._pinged < self._pings else 1e99

    def _accept_at(self) -> float:
        is_left = self._accepted < len(self._lines)
        return self._began + self._accepted * self._accept_every if is_left else 1e99

    def ping_is_due(self) -> bool:
        return self._ping_at() <= time.perf_counter()

    def accept_is_due(self) -> bool:
        return self._accept_at() <= time.perf_counter()

    def next_ping(self) -> int:
        self.late_ms.append((time.perf_counter() - self._ping_at()) * 1000)
        self._pinged += 1
        return self._pinged - 1

    def next_accept(self) -> tuple[int, bytes]:
        mechanic, frame = self._lines[self._accepted]
        return int(mechanic), frame.encode()

    def accepting(self, number: int) -> None:
        self._asked[number] = self._accept_at()
        self._accepted += 1

    def ponged(self, ping: int) -> None:
        planned = self._began + ping * PING_SECONDS
        self.ping_ms.append((time.perf_counter() - planned) * 1000)

    def judged(self, number: int, verdict: bytes) -> None:
        planned = self._asked.pop(number, None)
        if planned is None:
            return
        if verdict != b"offer.won":
            raise Failed(f"an accept got {verdict.decode()}")
        self.accept_ms.append((time.perf_counter() - planned) * 1000)


def main() -> int:
    """Connects, then does what standard input says."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    prober = Prober(int(sys.argv[1]), Path(sys.argv[2]).read_text().split())
    print(json.dumps({"connected": True}), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["offers", count, seconds]:
                said = prober.offers(int(count), float(seconds))
            case ["probe", seconds, name]:
                said = prober.probe(float(seconds), Path(name).read_text().splitlines())
            case _:
                raise Failed(f"cannot do: {line}")
        print(json.dumps(said), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        print(json.dumps({"failure": str(failure)}), flush=True)
        sys.exit(1)
