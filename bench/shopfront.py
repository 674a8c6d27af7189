"""The load client of bookings: posts prepared webhooks, and watches mechanics' sockets for offers.

    python -m bench.shopfront PORT TOKENS     TOKENS has one mechanic's bearer token per line

It connects everybody, says one line of JSON, and then answers one line for each command:

    post FILE IN_FLIGHT OFFERS SECONDS   posts the requests of FILE (one JSON string a line), so
                                         many at a time, each on a connection of its own; the next
                                         one when its 200 and OFFERS offers of it have come
    revoked COUNT SECONDS                waits until so many offers of the post were revoked

A process of its own with prepared bytes, and no parsing: an offer is known by the number in its
concern. `cpu_seconds` of an answer is what the client itself used. Imports nothing of ours.
"""

import json
import re
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

OFFER = re.compile(rb'"concern":"Noise (\d{6})"')
REVOKED = b'"type":"offer.revoked"'
CARRIED_BYTES = 40  # of what was read before, so that nothing is cut in two and missed
PONG = b"\x8a\x80\0\0\0\0"  # a sign of life before each post, in place of an answer to each ping
READ_BYTES = 1 << 18
ANSWER_END = b'{"ok":true}'


class Failed(Exception):
    """The server did not do what it should."""


class Shopfront:
    """The sockets of `tokens`, and as many connections to post on as were ever needed."""

    def __init__(self, port: int, tokens: list[str]) -> None:
        self._port = port
        self._poll = select.epoll()
        self._mechanics: dict[int, socket.socket] = {}
        self._carried: dict[int, bytes] = {}
        self._posters: list[socket.socket] = []
        self._revoked = 0
        for token in tokens:
            self._connect_mechanic(token)

    def _connect_mechanic(self, token: str) -> None:
        one = self._open()
        one.sendall(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ZGlzcGF0Y2ggYmVuY2htYQ==\r\n"
            b"Authorization: Bearer " + token.encode() + b"\r\n\r\n"
        )
        seen = b""
        while b'"type":"welcome"' not in seen:
            got = one.recv(READ_BYTES)
            if not got:
                raise Failed(f"a mechanic was not welcomed: {seen[:80]!r}")
            seen += got
        one.setblocking(False)
        self._mechanics[one.fileno()] = one
        self._poll.register(one.fileno(), select.EPOLLIN)

    def _open(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port), 20)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def post(self, requests: list[bytes], in_flight: int, offers: int, seconds: float) -> Any:
        """Milliseconds from each POST to its 200, to the first offer and to the last."""
        while len(self._posters) < in_flight:
            made = self._open()
            made.setblocking(False)
            self._posters.append(made)
            self._poll.register(made.fileno(), select.EPOLLIN)
        self._revoked = 0
        for mechanic in self._mechanics.values():
            mechanic.sendall(PONG)
        run = _Run(requests, offers)
        cpu, began = time.process_time(), time.perf_counter()
        for poster in self._posters[:in_flight]:
            run.send_next(poster)
        self._until(lambda: run.done == len(requests), seconds, run)
        return {
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "answered_ms": run.answered_ms,
            "first_ms": run.first_ms,
            "last_ms": run.last_ms,
        }

    def revoked(self, count: int, seconds: float) -> Any:
        """Waits for it."""
        self._until(lambda: self._revoked >= count, seconds, None)
        return {"revoked": self._revoked}

    def _until(self, reached: Any, seconds: float, run: "_Run | None") -> None:
        by_number = {poster.fileno(): poster for poster in self._posters}
        deadline = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > deadline:
                raise Failed(f"not done in {seconds} s" + (f": {run.done}" if run else ""))
            for number, event in self._poll.poll(0.5):
                if number in self._mechanics:
                    self._read(number, run)
                elif run is None or event & ~select.EPOLLIN:
                    raise Failed("a connection to post on was closed")
                else:
                    run.answered(by_number[number])

    def _read(self, number: int, run: "_Run | None") -> None:
        got = self._mechanics[number].recv(READ_BYTES)
        if not got:
            raise Failed("a mechanic's socket was closed")
        carried = self._carried.get(number, b"")
        text = carried + got
        for found in OFFER.finditer(text):
            if run is not None:
                run.offered(int(found[1]))
        self._revoked += text.count(REVOKED) - carried.count(REVOKED)
        # What was counted must not be there again: only the beginning of something may be kept.
        tail = text[-CARRIED_BYTES:]
        whole = OFFER.search(tail)
        self._carried[number] = tail[whole.end() :] if whole else tail


class _Run:
    """One `post`."""

    def __init__(self, requests: list[bytes], offers: int) -> None:
        count = len(requests)
        self._waiting = deque(enumerate(requests))
        self._offers = offers
        self._sent = [0.0] * count
        self._seen = [0] * count
        self._poster: list[socket.socket | None] = [None] * count
        self._answer = [b""] * count
        self._number: dict[socket.socket, int] = {}
        self.answered_ms = [0.0] * count
        self.first_ms = [0.0] * count
        self.last_ms = [0.0] * count
        self.done = 0

    def send_next(self, poster: socket.socket) -> None:
        """Posts the next request, if there is one left."""
        if self._waiting:
            number, request = self._waiting.popleft()
            self._poster[number], self._number[poster] = poster, number
            self._sent[number] = time.perf_counter()
            poster.sendall(request)

    def answered(self, poster: socket.socket) -> None:
        """The answer to this connection's request has come, or a part of it."""
        number = self._number[poster]
        self._answer[number] += poster.recv(READ_BYTES)
        answer = self._answer[number]
        if not answer.startswith(b"HTTP/1.1 200"):
            raise Failed(f"a webhook was answered with {answer[:200]!r}")
        if not answer.endswith(ANSWER_END):
            return
        self.answered_ms[number] = self._ms(number)
        self._end(number)

    def offered(self, number: int) -> None:
        """A mechanic was offered this booking."""
        self._seen[number] += 1
        self.last_ms[number] = self._ms(number)
        if self._seen[number] == 1:
            self.first_ms[number] = self.last_ms[number]
        if self._seen[number] == self._offers:
            self._end(number)
        elif self._seen[number] > self._offers:
            raise Failed(f"booking {number} was offered {self._seen[number]} times")

    def _ms(self, number: int) -> float:
        return (time.perf_counter() - self._sent[number]) * 1000

    def _end(self, number: int) -> None:
        if self.answered_ms[number] and self._seen[number] == self._offers:
            self.done += 1
            poster = self._poster[number]
            assert poster is not None
            self.send_next(poster)


def main() -> int:
    """Connects, then does what standard input says."""
    front = Shopfront(int(sys.argv[1]), Path(sys.argv[2]).read_text().split())
    print(json.dumps({"connected": True}), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["post", name, in_flight, offers, seconds]:
                lines = Path(name).read_text().splitlines()
                requests = [json.loads(each).encode() for each in lines]
                said = front.post(requests, int(in_flight), int(offers), float(seconds))
            case ["revoked", count, seconds]:
                said = front.revoked(int(count), float(seconds))
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
