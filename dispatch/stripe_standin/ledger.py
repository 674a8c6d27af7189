"""What happened so far, in SQLite: sessions, payments, refunds, events, deliveries, answers.

Its one job: keep rows and find them, so that a restart on the same folder continues where it was.
Imports `objects` and the standard library. One process owns the file: a second one fails with
`sqlite3.OperationalError` (database is locked) when it opens it. Calls block for microseconds; the
file is not synced at every commit, as losing the last moment of a development ledger to a power
cut is no loss.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from .objects import Payment, Refund, Session

Row = TypeVar("Row", Session, Payment, Refund)

FILE_NAME = "stripe_standin.sqlite3"
_TABLES: dict[type, str] = {Session: "sessions", Payment: "payments", Refund: "refunds"}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL,
    status AS (json_extract(body, '$.status')),
    expires_at AS (json_extract(body, '$.expires_at')),
    payment_intent AS (json_extract(body, '$.payment_intent')));
CREATE INDEX IF NOT EXISTS sessions_open_idx ON sessions (expires_at) WHERE status = 'open';
CREATE TABLE IF NOT EXISTS payments (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL,
    charge AS (json_extract(body, '$.charge')),
    checkout_session AS (json_extract(body, '$.checkout_session')));
CREATE UNIQUE INDEX IF NOT EXISTS payments_one_a_session_idx ON payments (checkout_session);
CREATE UNIQUE INDEX IF NOT EXISTS payments_charge_idx ON payments (charge);
CREATE TABLE IF NOT EXISTS refunds (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL,
    payment_intent AS (json_extract(body, '$.payment_intent')));
CREATE INDEX IF NOT EXISTS refunds_payment_intent_idx ON refunds (payment_intent);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
    event_id TEXT PRIMARY KEY, due_at REAL NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sending', 'delivered', 'given_up')));
CREATE INDEX IF NOT EXISTS deliveries_due_idx ON deliveries (due_at) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL,
    request_id TEXT NOT NULL);
UPDATE deliveries SET state = 'waiting' WHERE state = 'sending';
"""


class Delivery(Struct, frozen=True):
    """An event that is due: its bytes, and how often it was tried."""

    event_id: str
    attempts: int
    body: bytes


class Answer(Struct, frozen=True):
    """What was answered to the first request with an idempotency key."""

    fingerprint: str
    status: int
    body: bytes
    request_id: str


class Ledger:
    """All state of the stand-in. Every change is made inside `transaction()`."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(data_dir / FILE_NAME, isolation_level=None, timeout=0.2)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing when it raises."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def save(self, row: Session | Payment | Refund) -> None:
        """Insert the row, or replace the one with its id."""
        self._db.execute(
            f"INSERT INTO {_TABLES[type(row)]} (id, body) VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (row.id, msgspec.json.encode(row).decode()),
        )

    def find(self, kind: type[Row], **where: str) -> Row | None:
        """The row where one column has one value, by default `id`."""
        [(column, value)] = where.items()
        found = self._db.execute(
            f"SELECT body FROM {_TABLES[kind]} WHERE {column} = ?", (value,)
        ).fetchone()
        return msgspec.json.decode(found[0], type=kind) if found else None

    def page(
        self, kind: type[Row], *, limit: int, after: str | None = None, intent: str | None = None
    ) -> tuple[list[Row], bool]:
        """Up to `limit` rows older than `after`, the newest first, and whether there are more."""
        filters: dict[str, str] = {} if intent is None else {"payment_intent": intent}
        bodies, more = self._page(_TABLES[kind], limit, after, filters)
        return [msgspec.json.decode(body, type=kind) for body in bodies], more

    def event_page(
        self, *, limit: int, after: str | None = None, kind: str | None = None
    ) -> tuple[list[bytes], bool]:
        """As `page`, of events as the bytes that were delivered."""
        return self._page("events", limit, after, {} if kind is None else {"type": kind})

    def _page(
        self, table: str, limit: int, after: str | None, filters: dict[str, str]
    ) -> tuple[list[Any], bool]:
        conditions = [f"{column} = ?" for column in filters]
        values: list[object] = list(filters.values())
        if after is not None:
            conditions.append(f"seq < (SELECT seq FROM {table} WHERE id = ?)")
            values.append(after)
        found = self._db.execute(
            f"SELECT body FROM {table} WHERE {' AND '.join(conditions) or 'true'}"
            " ORDER BY seq DESC LIMIT ?",
            (*values, limit + 1),
        ).fetchall()
        return [body for (body,) in found[:limit]], len(found) > limit

    def all(self, kind: type[Row]) -> list[Row]:
        """Every row, the oldest first."""
        found = self._db.execute(f"SELECT body FROM {_TABLES[kind]} ORDER BY seq")
        return [msgspec.json.decode(body, type=kind) for (body,) in found]

    def sessions_past(self, now: float) -> list[Session]:
        """Open sessions whose time is over."""
        found = self._db.execute(
            "SELECT body FROM sessions WHERE status = 'open' AND expires_at <= ?", (now,)
        )
        return [msgspec.json.decode(body, type=Session) for (body,) in found]

    def add_event(self, event_id: str, kind: str, body: bytes, *, now: float) -> None:
        """Keep the event and owe its delivery from now on."""
        self._db.execute(
            "INSERT INTO events (id, type, body) VALUES (?, ?, ?)", (event_id, kind, body)
        )
        self._db.execute(
            "INSERT INTO deliveries (event_id, due_at, state) VALUES (?, ?, 'waiting')",
            (event_id, now),
        )

    def event_body(self, event_id: str) -> bytes | None:
        found = self._db.execute("SELECT body FROM events WHERE id = ?", (event_id,)).fetchone()
        return None if found is None else bytes(found[0])

    def claim_deliveries(self, now: float, limit: int) -> list[Delivery]:
        """Up to `limit` deliveries that are due, now marked as being sent."""
        found = self._db.execute(
            "UPDATE deliveries SET state = 'sending', attempts = attempts + 1 WHERE event_id IN ("
            " SELECT event_id FROM deliveries WHERE state = 'waiting' AND due_at <= ?"
            " ORDER BY due_at, rowid LIMIT ?)"
            " RETURNING event_id, attempts,"
            " (SELECT body FROM events WHERE events.id = deliveries.event_id)",
            (now, limit),
        ).fetchall()
        return [Delivery(*columns) for columns in found]

    def next_due(self) -> float | None:
        """When the next waiting delivery is due."""
        found = self._db.execute("SELECT min(due_at) FROM deliveries WHERE state = 'waiting'")
        due_at: float | None = found.fetchone()[0]
        return due_at

    def end_attempt(self, event_id: str, state: str, *, due_at: float) -> None:
        """The attempt is over: `delivered`, `given_up`, or `waiting` until `due_at`."""
        self._db.execute(
            "UPDATE deliveries SET state = ?, due_at = ? WHERE event_id = ?",
            (state, due_at, event_id),
        )

    def delivery_counts(self) -> dict[str, int]:
        """How many deliveries are in each state."""
        counts = dict.fromkeys(("waiting", "sending", "delivered", "given_up"), 0)
        counts.update(self._db.execute("SELECT state, count(*) FROM deliveries GROUP BY state"))
        return counts

    def answer(self, key: str) -> Answer | None:
        found = self._db.execute(
            "SELECT fingerprint, status, body, request_id FROM answers WHERE key = ?", (key,)
        ).fetchone()
        return Answer(*found) if found else None

    def remember(self, key: str, answer: Answer) -> None:
        self._db.execute(
            "INSERT INTO answers (key, fingerprint, status, body, request_id)"
            " VALUES (?, ?, ?, ?, ?)",
            (key, answer.fingerprint, answer.status, answer.body, answer.request_id),
        )
