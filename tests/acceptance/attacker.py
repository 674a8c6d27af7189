"""A client that says anything, byte by byte, and what must be true of every answer it gets."""

import asyncio
import contextlib
import http.client
import json
import socket
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from dispatch.auth import issue_token
from tests.acceptance.actors import Town
from tests.support import JWT_SECRET

TIMEOUT_SECONDS = 20
# Later than the town ever gets: a log-out does not void the tokens of the other tests.
LATE_EPOCH = 1_000_000
# They change by themselves.
RESTLESS_TABLES = ("cluster", "jobs", "nodes", "stripe_reconciled")

# Everybody who may stand before a door. Only the last four have a good token.
CALLERS = ("nobody", "garbage", "expired", "customer", "mechanic", "workshop", "admin")


@dataclass
class Answer:
    """Status, headers with small letters, and the body as it came."""

    method: str
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(self.json["error"]["code"])

    def faults(self) -> list[str]:
        """What no answer of ours may be; empty when all is well."""
        found = []
        if self.status >= 500:
            found.append(f"status {self.status}")
        if self.headers.get("content-type") != "application/json":
            found.append(f"content-type {self.headers.get('content-type')}")
        if self.headers.get("x-content-type-options") != "nosniff":
            found.append("may be sniffed")
        if self.headers.get("cache-control") != "no-store":
            found.append("may be stored")
        if self.method != "HEAD":
            found += self._faults_of_body()
        return found

    def _faults_of_body(self) -> list[str]:
        try:
            told = self.json
        except ValueError:
            return [f"not JSON: {self.body[:200]!r}"]
        if told.get("ok") is not (self.status < 400):
            return [f"ok is {told.get('ok')} with status {self.status}"]
        if not told["ok"]:
            error = told.get("error", {})
            if not all(isinstance(error.get(name), str) for name in ("code", "message")):
                return [f"no error of ours: {told}"]
        return []


@dataclass
class Attacker:
    """Speaks to a town's server. `wrong` is what was wrong with any answer."""

    town: Town
    wrong: list[str] = field(default_factory=list)

    def token(self, caller: str) -> str | None:
        """What this caller shows as a token."""
        if caller == "nobody":
            return None
        if caller == "garbage":
            return "not.a.token"
        role = "customer" if caller == "expired" else caller
        people = self.town.people
        row = people["admin"] if role == "admin" else people[f"{role}s"][-1]
        ttl_seconds = -60 if caller == "expired" else 3600
        return issue_token(JWT_SECRET, row["user_id"], role, LATE_EPOCH, ttl_seconds)

    def call(
        self,
        method: str,
        target: str | bytes,
        body: Any = None,
        *,
        caller: str = "nobody",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> Answer:
        """One request; a body that is not bytes is sent as JSON."""
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        size = None if body is None else len(raw)
        return self.send(method, self._head(method, target, size, caller, headers) + raw)

    def hang_up(self, method: str, path: str, body: bytes, *, caller: str) -> None:
        """A request with one byte of its body missing, and the end of the connection."""
        with self._connect() as link:
            link.sendall(self._head(method, path, len(body) + 1, caller, ()) + body)

    def send(self, method: str, raw: bytes) -> Answer:
        """These bytes, and the answer to them, which is judged."""
        with self._connect() as link:
            with contextlib.suppress(ConnectionError):  # refused before all of it was said
                link.sendall(raw)
            response = http.client.HTTPResponse(link, method=method)
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(method, response.status, headers, response.read())
        self.wrong += [f"{raw[:300]!r}: {fault}" for fault in answer.faults()]
        return answer

    def _connect(self) -> socket.socket:
        at = urlsplit(self.town.server.url)
        assert at.hostname is not None
        return socket.create_connection((at.hostname, at.port or 0), TIMEOUT_SECONDS)

    def _head(
        self,
        method: str,
        target: str | bytes,
        body_bytes: int | None,
        caller: str,
        headers: tuple[tuple[bytes, bytes], ...],
    ) -> bytes:
        lines = [b"%b %b HTTP/1.1" % (method.encode(), _bytes(target)), b"Host: dispatch.example"]
        lines += [b"%b: %b" % header for header in headers]
        if (token := self.token(caller)) is not None:
            lines.append(b"Authorization: Bearer " + token.encode())
        in_chunks = any(name.lower() == b"transfer-encoding" for name, _ in headers)
        if body_bytes is not None and not in_chunks:
            lines.append(b"Content-Length: %d" % body_bytes)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def database(self) -> dict[str, str]:
        """Every table, as the number of its rows with a digest of them."""
        return asyncio.run(_digests(self.town.server.environ["DATABASE_URL"]))

    def log(self) -> str:
        """All that the server said so far."""
        return self.town.server.log.read_text(errors="replace")


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


async def _digests(database_url: str) -> dict[str, str]:
    connection = await asyncpg.connect(database_url)
    try:
        names = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> ALL ($1)",
            RESTLESS_TABLES,
        )
        digests = {}
        for (name,) in names:
            digests[name] = await connection.fetchval(
                "SELECT concat(count(*), md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))))"
                f' FROM "{name}" t'
            )
        return digests
    finally:
        await connection.close()
