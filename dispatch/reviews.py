"""What is written about a session: its mechanic's summary and notes, its customer's rating (S9).

One job: store each where it may be, and read them again. The summary is for both; the notes are for
the mechanic alone. A rating counts in the mechanic's own from its commit on. Imports `core`,
`database`, `errors`, `protocol` and `queries`. It fails with `NotFound`, also for whoever takes no
part in the session, `Conflict` (`not_started`, `not_completed`, `already_rated`) and `Unavailable`.
"""

from typing import Annotated, Final
from uuid import UUID

from msgspec import Meta, Struct
from msgspec.structs import asdict

from dispatch import queries
from dispatch.core.types import Role
from dispatch.database import Pool, unavailable_when_lost
from dispatch.errors import Conflict, NotFound
from dispatch.hints import Entry
from dispatch.protocol import SessionState

_SQL: Final = queries.load("reviews")

Text = Annotated[str, Meta(max_length=4000)]

_WHY_NOT: Final = {
    "not_started": "a session is summarised once both have joined it",
    "not_completed": "a session is rated once it is completed",
    "already_rated": "this session is rated already",
}


class Summary(Struct, frozen=True):
    """`PUT /api/sessions/{id}/summary`: what is written there from now on; notes are the mechanic's
    own, and none where there are none."""

    summary: Text
    notes: Text | None = None


class Rating(Struct, frozen=True):
    """`POST /api/sessions/{id}/rating`."""

    stars: Annotated[int, Meta(ge=1, le=5)]
    review: Annotated[str, Meta(min_length=1, max_length=2000)] | None = None


class SessionDetails(SessionState, frozen=True, kw_only=True, tag="session.status"):
    """The frame `session.status`, with what was booked and what is written about it. `notes` are
    shown to the mechanic only, `stars` and `review` to who gave them."""

    session_type: str
    plan_code: str
    minutes: int
    summary: str | None = None
    notes: str | None = None
    stars: int | None = None
    review: str | None = None


async def summarize(pool: Pool, mechanic_id: UUID, session_id: UUID, form: Summary) -> None:
    """Writes what stands there from now on, during the session or after it."""
    await _write(pool, "summarize", session_id, mechanic_id, form.summary, form.notes)


async def rate(pool: Pool, customer_id: UUID, session_id: UUID, form: Rating) -> None:
    """Rates a completed session, once."""
    await _write(pool, "rate", session_id, customer_id, form.stars, form.review)


async def details(pool: Pool, entry: Entry, state: SessionState, viewer: Role) -> SessionDetails:
    """A session as this participant sees it."""
    booking = entry.booking
    async with unavailable_when_lost():
        row = await pool.fetchrow(_SQL["written"], booking.session_id)
    assert row is not None
    hers = viewer is Role.MECHANIC
    return SessionDetails(
        **asdict(state),
        session_type=booking.session_type,
        plan_code=booking.plan_code,
        minutes=booking.minutes,
        summary=row["summary"],
        notes=row["notes"] if hers else None,
        stars=None if hers else row["stars"],
        review=None if hers else row["review"],
    )


async def _write(pool: Pool, name: str, *values: object) -> None:
    async with unavailable_when_lost():
        refusal = await pool.fetchval(_SQL[name], *values)
    if refusal == "not_found":
        raise NotFound("no such session")
    if refusal is not None:
        raise Conflict(refusal, _WHY_NOT[refusal])
