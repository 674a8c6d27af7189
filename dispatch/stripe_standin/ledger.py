"""What happened so far, in SQLite: rows, balances, events, deliveries, answers.

Its one job: keep rows and find them, so that a restart on the same folder continues where it was.
Imports `objects`, `connected`, `forms`, `params`, `schedule` and the standard library. One process
owns the file: a second one fails with `sqlite3.OperationalError` (database is locked) when it opens
it, and a file of another version with `sqlite3.DatabaseError`. Calls block for microseconds; the
file is not synced at every commit, as losing the last moment of a development ledger to a power cut
is no loss.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from .connected import Account, Link, Reversal, Transfer
from .forms import CreatedRange, ListParams
from .objects import Payment, Refund, Session
from .params import ApiError
from .schedule import Schedule

Row = TypeVar("Row", Session, Payment, Refund, Account, Link, Transfer, Reversal)

# Owners of money beside the accounts: ours, and the two places where it comes from and goes to.
PLATFORM: Final = "platform"
CUSTOMERS: Final = "customers"
BANKS: Final = "banks"

KEY_SECONDS = 86_400  # how long Stripe keeps an answer for its key
FILE_NAME = "stripe_standin.sqlite3"
VERSION = 2
_TABLES: dict[type, str] = {
    Session: "sessions",
    Payment: "payments",
    Refund: "refunds",
    Account: "accounts",
    Link: "links",
    Transfer: "transfers",
    Reversal: "reversals",
}
# What rows are found by, beside `id` and `created`.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "sessions": ("status", "expires_at", "payment_intent"),
    "payments": ("charge", "checkout_session"),
    "refunds": ("payment_intent",),
    "accounts": (),
    "links": (),
    "transfers": ("transfer_group", "destination"),
    "reversals": ("transfer",),
}


def _table(name: str, columns: tuple[str, ...]) -> str:
    generated = "".join(
        f", {column} AS (json_extract(body, '$.{column}'))" for column in ("created", *columns)
    )
    return (
        f"CREATE TABLE IF NOT EXISTS {name} "
        f"(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL{generated});"
    )


_SCHEMA = (
    "".join(_table(name, columns) for name, columns in _COLUMNS.items())
    + """
CREATE INDEX IF NOT EXISTS sessions_open_idx ON sessions (expires_at) WHERE status = 'open';
CREATE UNIQUE INDEX IF NOT EXISTS payments_one_a_session_idx ON payments (checkout_session);
CREATE UNIQUE INDEX IF NOT EXISTS payments_charge_idx ON payments (charge);
CREATE INDEX IF NOT EXISTS refunds_payment_intent_idx ON refunds (payment_intent);
CREATE INDEX IF NOT EXISTS transfers_group_idx ON transfers (transfer_group);
CREATE INDEX IF NOT EXISTS reversals_transfer_idx ON reversals (transfer);
CREATE TABLE IF NOT EXISTS movements (
    seq INTEGER PRIMARY KEY, source TEXT NOT NULL, target TEXT NOT NULL, currency TEXT NOT NULL,
    cents INTEGER NOT NULL CHECK (cents > 0), about TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS balances (
    owner TEXT NOT NULL, currency TEXT NOT NULL, cents INTEGER NOT NULL,
    PRIMARY KEY (owner, currency)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, created INTEGER NOT NULL,
    account TEXT, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS deliveries (
    event_id TEXT NOT NULL, copy INTEGER NOT NULL, due_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sending', 'delivered', 'given_up')),
    PRIMARY KEY (event_id, copy));
CREATE INDEX IF NOT EXISTS deliveries_due_idx ON deliveries (due_at) WHERE state = 'waiting';
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, status INTEGER NOT NULL, body BLOB NOT NULL,
    request_id TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS answers_at_idx ON answers (at);
UPDATE deliveries SET state = 'waiting' WHERE state = 'sending';
"""
)


class Delivery(Struct, frozen=True):
    """An event that is due: its bytes, and how often this copy of it was tried."""

    event_id: str
    copy: int
    attempts: int
    body: bytes


class Answer(Struct, frozen=True):
    """What was answered to the first request with an idempotency key."""

    fingerprint: str
    status: int
    body: bytes
    request_id: str


class Ledger:
    """All state of the stand-in. Every change is made inside `transaction()`.

    `schedule` says when an event that is added is to be delivered.
    """

    def __init__(self, data_dir: Path, schedule: Schedule | None = None) -> None:
        self.schedule = schedule or Schedule()
        data_dir.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(data_dir / FILE_NAME, isolation_level=None, timeout=0.2)
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._check_version()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.executescript(_SCHEMA)
        except BaseException:
            self._db.close()
            raise

    def _check_version(self) -> None:
        [[version]] = self._db.execute("PRAGMA user_version")
        [[tables]] = self._db.execute("SELECT count(*) FROM sqlite_schema")
        if tables and version != VERSION:
            raise sqlite3.DatabaseError(f"{FILE_NAME} is of another version; delete it")
        self._db.execute(f"PRAGMA user_version = {VERSION}")

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

    def save(self, row: Row) -> None:
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
        self, kind: type[Row], asked: ListParams, filters: Mapping[str, str | None]
    ) -> tuple[list[Row], bool]:
        """The page of rows that was asked for, the newest first, and whether there are more.

        A filter that is None filters nothing. ApiError for a cursor that is no row.
        """
        conditions = [
            (f"{column} = ?", value) for column, value in filters.items() if value is not None
        ]
        bodies, more = self._page(_TABLES[kind], asked, conditions)
        return [msgspec.json.decode(body, type=kind) for body in bodies], more

    def event_page(
        self, asked: ListParams, *, types: list[str] | None, account: str | None
    ) -> tuple[list[bytes], bool]:
        """As `page`, of one account's events (None: ours) as the bytes that were delivered.

        `types` may have `*` in them.
        """
        conditions: list[tuple[str, object]] = [("account IS ?", account)]
        if types is not None:
            wanted = (
                "EXISTS (SELECT 1 FROM json_each(?) AS wanted WHERE events.type GLOB wanted.value)"
            )
            conditions.append((wanted, msgspec.json.encode(types).decode()))
        return self._page("events", asked, conditions)

    def _page(
        self, table: str, asked: ListParams, conditions: Sequence[tuple[str, object]]
    ) -> tuple[list[Any], bool]:
        backwards = asked.ending_before is not None
        conditions = [
            *conditions,
            *_created(asked.created),
            *self._cursor(table, "starting_after", "<", asked.starting_after),
            *self._cursor(table, "ending_before", ">", asked.ending_before),
        ]
        found = self._db.execute(
            f"SELECT body FROM {table}"
            f" WHERE {' AND '.join(text for text, _ in conditions) or 'true'}"
            f" ORDER BY seq {'ASC' if backwards else 'DESC'} LIMIT ?",
            (*(value for _, value in conditions), asked.limit + 1),
        ).fetchall()
        bodies = [body for (body,) in found[: asked.limit]]
        return bodies[::-1] if backwards else bodies, len(found) > asked.limit

    def _cursor(
        self, table: str, name: str, side: str, object_id: str | None
    ) -> list[tuple[str, object]]:
        """The rows on one `side` of that one in the order in which they were made."""
        if object_id is None:
            return []
        found = self._db.execute(f"SELECT seq FROM {table} WHERE id = ?", (object_id,)).fetchone()
        if found is None:
            raise ApiError(f"No such object: '{object_id}'", code="resource_missing", param=name)
        return [(f"seq {side} ?", found[0])]

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

    def move(self, source: str, target: str, cents: int, currency: str, *, about: str) -> None:
        """Money goes from one owner to another, because of the object `about`."""
        self._db.execute(
            "INSERT INTO movements (source, target, currency, cents, about) VALUES (?, ?, ?, ?, ?)",
            (source, target, currency, cents, about),
        )
        self._db.executemany(
            "INSERT INTO balances (owner, currency, cents) VALUES (?, ?, ?)"
            " ON CONFLICT (owner, currency) DO UPDATE SET cents = cents + excluded.cents",
            ((source, currency, -cents), (target, currency, cents)),
        )

    def balance(self, owner: str) -> dict[str, int]:
        """What an owner has, in cents by currency; may be below zero."""
        found = self._db.execute("SELECT currency, cents FROM balances WHERE owner = ?", (owner,))
        return dict(found.fetchall())

    def balances(self) -> list[tuple[str, str, int]]:
        """Owner, currency and cents of all."""
        return self._db.execute("SELECT owner, currency, cents FROM balances").fetchall()

    def add_event(
        self, event_id: str, kind: str, body: bytes, *, account: str | None, now: float
    ) -> None:
        """Keep the event and owe its deliveries, as often and when `schedule` says."""
        self._db.execute(
            "INSERT INTO events (id, type, created, account, body) VALUES (?, ?, ?, ?, ?)",
            (event_id, kind, int(now), account, body),
        )
        self._db.executemany(
            "INSERT INTO deliveries (event_id, copy, due_at, state) VALUES (?, ?, ?, 'waiting')",
            (
                (event_id, copy, due_at)
                for copy, due_at in enumerate(self.schedule.due_times(now), start=1)
            ),
        )

    def event_body(self, event_id: str) -> bytes | None:
        """The event as it was delivered, whosever it is."""
        found = self._db.execute("SELECT body FROM events WHERE id = ?", (event_id,)).fetchone()
        return None if found is None else bytes(found[0])

    def claim_deliveries(self, now: float, limit: int) -> list[Delivery]:
        """Up to `limit` deliveries that are due, the longest first, now marked as being sent."""
        found = self._db.execute(
            "UPDATE deliveries SET state = 'sending', attempts = attempts + 1 WHERE rowid IN ("
            " SELECT rowid FROM deliveries WHERE state = 'waiting' AND due_at <= ?"
            " ORDER BY due_at, rowid LIMIT ?)"
            " RETURNING event_id, copy, attempts,"
            " (SELECT body FROM events WHERE events.id = deliveries.event_id), due_at",
            (now, limit),
        ).fetchall()
        found.sort(key=itemgetter(4))  # what is returned has no order of its own
        return [Delivery(*columns[:4]) for columns in found]

    def next_due(self) -> float | None:
        """When the next waiting delivery is due."""
        found = self._db.execute("SELECT min(due_at) FROM deliveries WHERE state = 'waiting'")
        due_at: float | None = found.fetchone()[0]
        return due_at

    def end_attempt(self, delivery: Delivery, state: str, *, due_at: float) -> None:
        """The attempt is over: `delivered`, `given_up`, or `waiting` until `due_at`."""
        self._db.execute(
            "UPDATE deliveries SET state = ?, due_at = ? WHERE event_id = ? AND copy = ?",
            (state, due_at, delivery.event_id, delivery.copy),
        )

    def delivery_counts(self) -> dict[str, int]:
        """How many deliveries are in each state."""
        counts = dict.fromkeys(("waiting", "sending", "delivered", "given_up"), 0)
        counts.update(self._db.execute("SELECT state, count(*) FROM deliveries GROUP BY state"))
        return counts

    def answer(self, key: str, *, now: float) -> Answer | None:
        """What was answered under this key, unless that is so long ago that it is forgotten."""
        self._db.execute("DELETE FROM answers WHERE at <= ?", (now - KEY_SECONDS,))
        found = self._db.execute(
            "SELECT fingerprint, status, body, request_id FROM answers WHERE key = ?", (key,)
        ).fetchone()
        return Answer(*found) if found else None

    def remember(self, key: str, answer: Answer, *, now: float) -> None:
        self._db.execute(
            "INSERT INTO answers (key, fingerprint, status, body, request_id, at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (key, answer.fingerprint, answer.status, answer.body, answer.request_id, now),
        )

    def forget_answers(self) -> int:
        """As if a day had passed for every key; how many there were."""
        return self._db.execute("DELETE FROM answers").rowcount


def _created(asked: int | CreatedRange | None) -> list[tuple[str, object]]:
    if asked is None:
        return []
    if isinstance(asked, int):
        return [("created = ?", asked)]
    limits = ((">", asked.gt), (">=", asked.gte), ("<", asked.lt), ("<=", asked.lte))
    return [(f"created {side} ?", moment) for side, moment in limits if moment is not None]
