"""Favourites: whom a customer would like again, and the wish that books one again (F1, R2a).

One job: keep the rows of `favorites`, tell them with what a customer wants to know before booking,
and make an intake of the last session with a provider. A provider is a mechanic by herself
(`independent`, also one who belongs to a workshop) or a workshop. Imports `mechanics`, `sessions`,
`protocol`, `database` and `queries`.

It fails with `Unavailable`, and with refusals that have changed nothing: each function names its
own. Somebody else's favourites are not to be found, as those that do not exist.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import queries, sessions
from dispatch.core.types import Routing
from dispatch.database import Pool, transaction, unavailable_when_lost
from dispatch.errors import Conflict, NotFound
from dispatch.mechanics import Mechanics
from dispatch.protocol import Favorite, timestamp
from dispatch.sessions import IntakeForm

MAX_FAVORITES: Final = 100

ProviderType = Literal["independent", "workshop"]

_SQL: Final = queries.load("favorites")
_PRESENCE: Final = ("presence", "is_online", "available", "reachable_by_push", "last_seen")


class Added(Struct, frozen=True, kw_only=True):
    """A favourite that was added, now or before."""

    provider_id: UUID
    provider_type: ProviderType
    name: str
    added_at: str


class Listed(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A favourite in the customer's list.

    Of a mechanic it says whether she is there, of a workshop how many could take a booking now.
    `sessions` are the completed ones of this customer with it, `last_session_at` is when the last
    of them started. `most_booked`: no other has as many; of equals the one of the latest session.
    """

    provider_id: UUID
    provider_type: ProviderType
    name: str
    sessions: int
    last_session_at: str | None
    most_booked: bool
    added_at: str
    presence: Literal["online", "offline", "unknown"] | None = None
    is_online: bool | None = None
    available: bool | None = None
    reachable_by_push: bool | None = None
    last_seen: str | None = None
    available_mechanics: int | None = None


class Listing(Struct, frozen=True, kw_only=True):
    """One page of a customer's favourites, and how many there are."""

    favorites: list[Listed]
    total: int
    limit: int
    offset: int


# --- adding and removing --------------------------------------------------------------------------


async def add(
    pool: Pool, customer_id: UUID, provider_id: UUID, provider_type: ProviderType
) -> tuple[Added, bool]:
    """The favourite, and whether it is new; adding it again changes nothing.

    Raises `NotFound` for what cannot be booked (a mechanic's has the code `mechanic_gone`), and
    `Conflict("too_many_favorites")` beyond MAX_FAVORITES.
    """
    async with transaction(pool) as connection:
        await connection.execute(_SQL["lock_mechanic"], provider_id)
        provider = await connection.fetchrow(_SQL["provider"], provider_id)
        if (
            provider is None
            or provider["provider_type"] != provider_type
            or not provider["bookable"]
        ):
            raise _gone(provider_type)
        await connection.execute(_SQL["lock_customer"], customer_id)
        added_at = await connection.fetchval(
            _SQL["add"], customer_id, provider_type, provider_id, MAX_FAVORITES
        )
        is_new = added_at is not None
        if not is_new:
            added_at = await connection.fetchval(_SQL["added_at"], customer_id, provider_id)
        if added_at is None:
            raise Conflict("too_many_favorites", f"at most {MAX_FAVORITES} favourites")
    added = Added(
        provider_id=provider_id,
        provider_type=provider_type,
        name=provider["name"],
        added_at=timestamp(added_at),
    )
    return added, is_new


async def remove(pool: Pool, customer_id: UUID, provider_id: UUID) -> None:
    """No longer a favourite of this customer; `NotFound` when it was none."""
    async with unavailable_when_lost():
        removed = await pool.fetchval(_SQL["remove"], customer_id, provider_id)
    if removed is None:
        raise NotFound("no such favourite")


def _gone(provider_type: ProviderType) -> NotFound:
    if provider_type == "workshop":
        return NotFound("no such workshop")
    return NotFound("this mechanic is gone", code="mechanic_gone")


# --- telling --------------------------------------------------------------------------------------


async def of_customers(pool: Pool, customer_ids: Sequence[UUID]) -> dict[UUID, list[Favorite]]:
    """The favourites of these customers for their snapshots; who has none is not in it."""
    found: defaultdict[UUID, list[Favorite]] = defaultdict(list)
    for row in await _rows(pool, customer_ids):
        favorite = Favorite(
            provider_id=row["provider_id"],
            provider_type=row["provider_type"],
            name=row["name"],
            most_booked=row["most_booked"],
        )
        found[row["customer_id"]].append(favorite)
    return dict(found)


async def listing(
    pool: Pool,
    mechanics: Mechanics,
    customer_id: UUID,
    *,
    limit: int,
    offset: int,
    capacity: int,
) -> Listing:
    """One page of the customer's favourites, the most booked first, then the latest added.

    `capacity` is how many live sessions a mechanic may have. Three queries and one look-up of
    presence, however long the page is.
    """
    rows = await _rows(pool, [customer_id])
    page = rows[offset : offset + limit]
    there = await _who_is_there(pool, mechanics, page, capacity)
    listed = [
        _listed(row, there[row["provider_id"]])
        for row in page
        if row["provider_id"] in there  # else she was deleted since the first query
    ]
    return Listing(favorites=listed, total=len(rows), limit=limit, offset=offset)


async def _who_is_there(
    pool: Pool, mechanics: Mechanics, page: list[asyncpg.Record], capacity: int
) -> dict[UUID, dict[str, Any]]:
    """By provider the fields of `Listed` that say whether a booking would be taken now."""
    people = [row["provider_id"] for row in page if row["provider_type"] == "independent"]
    shops = [row["provider_id"] for row in page if row["provider_type"] == "workshop"]
    statuses = await mechanics.statuses(people)
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL["available_mechanics"], shops, capacity)
    free = {row["workshop_id"]: row["available"] for row in rows}
    there: dict[UUID, dict[str, Any]] = {
        shop: {"available_mechanics": free.get(shop, 0)} for shop in shops
    }
    for mechanic_id, status in statuses.items():
        frame = status.frame()
        there[mechanic_id] = {name: getattr(frame, name) for name in _PRESENCE}
    return there


def _listed(row: asyncpg.Record, shown: dict[str, Any]) -> Listed:
    last_session_at: datetime | None = row["last_session_at"]
    return Listed(
        provider_id=row["provider_id"],
        provider_type=row["provider_type"],
        name=row["name"],
        sessions=row["sessions"],
        last_session_at=None if last_session_at is None else timestamp(last_session_at),
        most_booked=row["most_booked"],
        added_at=timestamp(row["added_at"]),
        **shown,
    )


async def _rows(pool: Pool, customer_ids: Sequence[UUID]) -> list[asyncpg.Record]:
    async with unavailable_when_lost():
        return await pool.fetch(_SQL["favorites_of"], customer_ids)


# --- booking one again ----------------------------------------------------------------------------


async def rebooking(
    pool: Pool, customer_id: UUID, provider_id: UUID, *, wait_for_preferred: bool
) -> IntakeForm:
    """The wish of the customer's last session with this provider, for the same provider, for now.

    A mechanic is asked first, a workshop has a head start. Stores nothing. Raises
    `ActiveSessionExists` before anything else is looked at; `NotFound`: `mechanic_gone` (also for
    an id that names nothing), `no_earlier_session`, or a workshop that takes no bookings; and
    `Conflict("plan_gone")`.
    """
    async with unavailable_when_lost(), pool.acquire() as connection:
        await sessions.refuse_second_session(connection, customer_id)
        provider = await connection.fetchrow(_SQL["provider"], provider_id)
        last = await connection.fetchrow(_SQL["last_session"], customer_id, provider_id)
    if provider is None:
        raise _gone("independent")
    is_workshop = provider["provider_type"] == "workshop"
    if not is_workshop and not provider["bookable"]:
        raise _gone("independent")
    if last is None:
        raise NotFound("you had no session with them yet", code="no_earlier_session")
    if not provider["bookable"]:
        raise _gone("workshop")
    if not last["plan_is_active"]:
        raise Conflict("plan_gone", "what you booked then can be booked no longer")
    return IntakeForm(
        plan=last["plan"],
        vehicle=last["vehicle"],
        concern=last["concern"],
        is_specialist=last["is_specialist"],
        routing_type=Routing.HYBRID if is_workshop else Routing.PRIORITY,
        workshop_id=provider_id if is_workshop else None,
        preferred_mechanic_id=None if is_workshop else provider_id,
        wait_for_preferred=wait_for_preferred,
    )
