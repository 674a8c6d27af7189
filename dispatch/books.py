"""The books: that all money which came in is somewhere, by sums and item by item.

One job: read what is true of money as of one moment, and hold it against itself. By currency, what
came in must be what parties earned, the platform's fees, refunds, credits, and what is still on its
way or waits for a person; each of these is summed from its own rows, none is a remainder. And each
payment, session, credit and payout must follow from the others: `sql/books.sql` finds those that do
not, except for how a session's money is divided, which is computed again here by `core.money`.
Imports `core`, `database`, `queries` and `plain`. Raises `Unavailable`; changes nothing.
"""

from collections.abc import Iterator
from typing import Any, Final

import asyncpg
from msgspec import Struct, field

from dispatch import queries
from dispatch.core import money
from dispatch.database import Connection, Pool, unavailable_when_lost
from dispatch.plain import plain

_SQL: Final = queries.load("books")

PATIENCE_SECONDS: Final = 600.0
BATCH: Final = 2000

# What each query of books.sql that finds something wrong has found.
CHECKS: Final = {
    "over_refunded": "payment gave back more than came in",
    "misplaced": "payment is nowhere",
    "mispriced": "payment was fulfilled at another price",
    "credited": "payment became credits",
    "credit_transactions": "credit transaction",
    "credit_chains": "credit line",
    "set_aside": "session's credits",
    "payout_amounts": "payout's amount",
    "payouts_without_transfer": "payout is paid",
    "payout_statuses": "session's earnings in their payout",
    "undelivered": "delivery",
}


class Mismatch(Struct, frozen=True):
    """Something that is not as it must be: what, the id of it, what it should be and what it is."""

    what: str
    id: str
    expected: str
    found: str


class Matter(Struct, frozen=True):
    """Something that nobody but a person decides; not wrong by itself."""

    what: str
    id: str
    cents: int
    currency: str
    note: str


class Sums(Struct, kw_only=True):
    """Cents of one currency: what came in, where it is, and what parties' part is in."""

    # what came in
    received_cents: int = 0
    granted_cents: int = 0
    # where it is
    workshops_cents: int = 0
    mechanics_cents: int = 0
    platform_cents: int = 0
    refunded_cents: int = 0
    credits_cents: int = 0
    set_aside_cents: int = 0
    in_progress_cents: int = 0
    held_cents: int = 0
    not_given_back_cents: int = 0
    # of what workshops and mechanics have
    due_cents: int = 0
    processing_cents: int = 0
    paid_cents: int = 0

    @property
    def came_in_cents(self) -> int:
        """Money and credits from outside."""
        return self.received_cents + self.granted_cents

    @property
    def accounted_cents(self) -> int:
        """All of it that is somewhere."""
        return sum(getattr(self, name) for name in PLACES)


PLACES: Final = (
    "workshops_cents",
    "mechanics_cents",
    "platform_cents",
    "refunded_cents",
    "credits_cents",
    "set_aside_cents",
    "in_progress_cents",
    "held_cents",
    "not_given_back_cents",
)


class Books(Struct, kw_only=True):
    """All of it as of one moment: sums by currency, what does not agree, what waits for a person.

    `sessions` counts those that were divided again.
    """

    sums: dict[str, Sums] = field(default_factory=dict)
    mismatches: list[Mismatch] = field(default_factory=list)
    for_a_person: list[Matter] = field(default_factory=list)
    sessions: int = 0

    @property
    def match(self) -> bool:
        """Whether nothing is wrong, whatever waits for a person."""
        return not self.mismatches

    def of(self, currency: str) -> Sums:
        """The sums of a currency, made where it is met for the first time."""
        return self.sums.setdefault(currency, Sums())


async def read(pool: Pool) -> Books:
    """Everything that there is to hold against each other, from one snapshot that locks nothing."""
    books = Books()
    async with (
        unavailable_when_lost(),
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await _fetch(connection, "patience")
        await _sum(connection, books)
        await _judge_sessions(connection, books)
        for query, what in CHECKS.items():
            rows = await _fetch(connection, query)
            books.mismatches += [
                Mismatch(what, row["id"], plain(row["expected"]), plain(row["found"]))
                for row in rows
            ]
        books.for_a_person += [
            Matter(**{**dict(row), "note": plain(row["note"])})
            for row in await _fetch(connection, "for_a_person")
        ]
    books.mismatches += _unequal(books.sums)
    books.sums = dict(sorted(books.sums.items()))
    return books


async def _fetch(connection: Connection, query: str) -> list[asyncpg.Record]:
    return await connection.fetch(_SQL[query], timeout=PATIENCE_SECONDS)


# --- by currency ----------------------------------------------------------------------------------


async def _sum(connection: Connection, books: Books) -> None:
    for row in await _fetch(connection, "payments"):
        sums = books.of(row["currency"])
        sums.received_cents = row["received_cents"]
        sums.refunded_cents = row["refunded_cents"]
        sums.in_progress_cents = row["in_progress_cents"]
        sums.held_cents = row["held_cents"]
    for row in await _fetch(connection, "credits"):
        sums = books.of(row["currency"])
        match row["account"]:
            case "grants":
                sums.granted_cents = -row["cents"]
            case "customer":
                sums.credits_cents = row["cents"]
            case "session":
                sums.set_aside_cents = row["cents"]
    for row in await _fetch(connection, "earned"):
        sums = books.of(row["currency"])
        setattr(sums, f"{row['kind']}_cents", row["cents"])
        sums.due_cents += row["due_cents"]
        sums.processing_cents += row["processing_cents"]
        sums.paid_cents += row["paid_cents"]


def _unequal(sums: dict[str, Sums]) -> Iterator[Mismatch]:
    for currency, each in sorted(sums.items()):
        if each.came_in_cents != each.accounted_cents:
            yield Mismatch(
                "sum of what came in", currency, str(each.came_in_cents), str(each.accounted_cents)
            )


# --- session by session ---------------------------------------------------------------------------


async def _judge_sessions(connection: Connection, books: Books) -> None:
    rows = connection.cursor(_SQL["sessions"], prefetch=BATCH, timeout=PATIENCE_SECONDS)
    async for row in rows:
        books.sessions += 1
        books.mismatches += _judge(row, books)


def _judge(row: Any, books: Books) -> Iterator[Mismatch]:
    """What is wrong with the earnings of one session; adds what the platform has of it."""
    session_id = str(row["session_id"])
    if row["status"] != "completed" or row["gross_cents"] == 0:
        why = "not for money" if row["status"] == "completed" else row["status"]
        yield Mismatch("session's earnings", session_id, f"none: {why}", _kinds(row))
        return
    fee = row["m_fee_basis_points"] if row["has_mechanic"] else row["w_fee_basis_points"]
    if fee is None:
        yield Mismatch("session's earnings", session_id, _cents(row, "gross_cents"), "none")
        return
    parts = money.split(
        row["gross_cents"],
        serving_workshop_id=row["workshop_id"],
        preferred_workshop_id=row["preferred_workshop_id"],
        fee_basis_points=fee,
    )
    taken_back = min(row["taken_back_cents"], row["gross_cents"])
    back = money.give_back(parts, taken_back)
    recorded_fee = row["m_platform_fee_cents" if row["has_mechanic"] else "w_platform_fee_cents"]
    sums = books.of(row["currency"])
    sums.platform_cents += recorded_fee - back.platform_fee_cents
    returned = min(row["returned_cents"], row["gross_cents"])
    if returned > taken_back:
        yield Mismatch("session's earnings taken back", session_id, str(returned), str(taken_back))
    sums.not_given_back_cents += max(taken_back - returned, 0)
    yield from _differences(row, "w", "workshop", _workshop_row(row, parts, back, fee))
    yield from _differences(row, "m", "mechanic", _mechanic_row(row, parts, back, fee))


def _workshop_row(
    row: Any, parts: money.Split, back: money.Split, fee: int
) -> dict[str, Any] | None:
    """What a workshop's row must be: of the one that was named, else of the one that served."""
    workshop_id = row["preferred_workshop_id"] or row["workshop_id"]
    if workshop_id is None:
        return None
    return {
        "workshop_id": workshop_id,
        "mechanic_id": row["mechanic_id"],
        "is_referral": workshop_id != row["workshop_id"],
        "currency": row["currency"],
        "gross_amount_cents": row["gross_cents"],
        "fee_basis_points": fee,
        "platform_fee_cents": parts.platform_fee_cents,
        "mechanic_net_cents": parts.mechanic_net_cents,
        "workshop_net_cents": parts.referral_cents + parts.workshop_net_cents,
        "reversed_cents": back.referral_cents + back.workshop_net_cents,
    }


def _mechanic_row(
    row: Any, parts: money.Split, back: money.Split, fee: int
) -> dict[str, Any] | None:
    """What a mechanic's row must be, where she is paid herself."""
    if row["workshop_id"] is not None and row["preferred_workshop_id"] in (
        None,
        row["workshop_id"],
    ):
        return None
    return {
        "mechanic_id": row["mechanic_id"],
        "currency": row["currency"],
        "gross_amount_cents": row["gross_cents"],
        "fee_basis_points": fee,
        "platform_fee_cents": parts.platform_fee_cents,
        "workshop_fee_cents": parts.referral_cents,
        "mechanic_net_cents": parts.mechanic_net_cents,
        "reversed_cents": back.mechanic_net_cents,
    }


def _differences(
    row: Any, prefix: str, party: str, expected: dict[str, Any] | None
) -> Iterator[Mismatch]:
    session_id = str(row["session_id"])
    is_there = row[f"has_{party}"]
    if expected is None or not is_there:
        if is_there:
            yield Mismatch(f"session's {party}_earnings", session_id, "none", "a row")
        elif expected is not None:
            yield Mismatch(f"session's {party}_earnings", session_id, "a row", "none")
        return
    for name, wanted in expected.items():
        found = row[f"{prefix}_{name}"]
        if found != wanted:
            what = f"session's {party}_earnings.{name}"
            yield Mismatch(what, session_id, str(wanted), str(found))


def _kinds(row: Any) -> str:
    kinds = [party for party in ("workshop", "mechanic") if row[f"has_{party}"]]
    return " and ".join(f"{kind}_earnings" for kind in kinds)


def _cents(row: Any, name: str) -> str:
    return f"{row[name]} {row['currency']}"
