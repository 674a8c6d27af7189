"""The books as a person reads them, and as a program does, for `dispatch books`.

One job: lay out. Imports `books`, `config` and `database`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from msgspec.structs import asdict

from dispatch.books import Books, read
from dispatch.config import Config
from dispatch.database import close_pool, open_pool


async def books(config: Config) -> Books:
    """The books of the database that is configured. Raises `Unavailable`."""
    pool = await open_pool(config.database_url, size=1)
    try:
        return await read(pool)
    finally:
        await close_pool(pool)


def as_json(books: Books) -> dict[str, Any]:
    """The books as JSON values; sums in cents."""
    return {
        "match": books.match,
        "sessions": books.sessions,
        "sums": {
            currency: {
                "came_in_cents": sums.came_in_cents,
                "accounted_cents": sums.accounted_cents,
                **asdict(sums),
            }
            for currency, sums in books.sums.items()
        },
        "mismatches": [asdict(each) for each in books.mismatches],
        "for_a_person": [asdict(each) for each in books.for_a_person],
    }


_LINES: Final = (
    ("came in", "came_in_cents"),
    ("  payments received", "received_cents"),
    ("  credits granted", "granted_cents"),
    ("is now", "accounted_cents"),
    ("  earned by workshops", "workshops_cents"),
    ("  earned by mechanics", "mechanics_cents"),
    ("  the platform's fees", "platform_cents"),
    ("  refunded", "refunded_cents"),
    ("  credits of customers", "credits_cents"),
    ("  credits set aside", "set_aside_cents"),
    ("  in progress", "in_progress_cents"),
    ("  held for a person", "held_cents"),
    ("  taken back, not refunded", "not_given_back_cents"),
    ("of what was earned", ""),
    ("  due", "due_cents"),
    ("  in a payout under way", "processing_cents"),
    ("  paid out", "paid_cents"),
)


def as_text(books: Books) -> str:
    """A table with a column for each currency, what waits for a person, and the verdict."""
    return "\n".join(_text(books))


def _text(books: Books) -> Iterator[str]:
    yield _row("", books.sums)
    for title, name in _LINES:
        yield _row(title, (_amount(getattr(sums, name)) for sums in books.sums.values() if name))
    if books.for_a_person:
        yield "for a person"
    for matter in books.for_a_person:
        amount = f"{_amount(matter.cents)} {matter.currency}"
        yield f"  {matter.what}: {matter.id}  {amount}  {matter.note}".rstrip()
    for each in books.mismatches:
        yield f"MISMATCH {each.what}: {each.id}  expected {each.expected}  found {each.found}"
    count = len(books.mismatches)
    yield "everything matches" if books.match else f"{count} mismatch{'es' if count > 1 else ''}"


def _row(title: str, cells: Iterable[str]) -> str:
    return (f"{title:<28}" + "".join(f"{cell:>18}" for cell in cells)).rstrip()


def _amount(cents: int) -> str:
    whole, rest = divmod(abs(cents), 100)
    return f"{'-' if cents < 0 else ''}{whole:,}.{rest:02}"
