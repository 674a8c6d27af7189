"""What a mechanic or a workshop has earned, for herself or its members to read (M2, P5).

One job: sums by currency, a page of sessions and the state of the account, as of one moment. Whose
they are is the caller's identity, never an argument of the request. Imports `database`, `queries`,
`protocol` and `errors`; raises `Forbidden` for a user who is in no workshop, and `Unavailable`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import queries
from dispatch.database import Connection, Pool, unavailable_when_lost
from dispatch.errors import Forbidden
from dispatch.protocol import timestamp

_SQL: Final = queries.load("earnings")


class Account(Struct, frozen=True, kw_only=True):
    """Whether Stripe can pay: there is an account, its forms are filled in, it takes payouts."""

    account: bool
    onboarding_completed: bool
    payouts_enabled: bool


class MechanicSummary(Struct, frozen=True, kw_only=True):
    """A mechanic's sums in one currency. Gross is fee, workshops' referrals and net together; of
    the net `reversed` went back to customers, and the rest is due, in a payout under way, or paid.
    """

    currency: str
    sessions: int
    gross_amount_cents: int
    platform_fee_cents: int
    workshop_fee_cents: int
    mechanic_net_cents: int
    reversed_cents: int
    due_cents: int
    processing_cents: int
    paid_cents: int


class MechanicEarning(Struct, frozen=True, kw_only=True):
    """One session that a mechanic is paid for herself; `payout_id` is None until it is in one."""

    session_id: UUID
    completed_at: str
    session_type: str
    plan_code: str
    currency: str
    gross_amount_cents: int
    platform_fee_cents: int
    workshop_fee_cents: int
    mechanic_net_cents: int
    reversed_cents: int
    payout_status: str
    payout_id: UUID | None


class WorkshopSummary(Struct, frozen=True, kw_only=True):
    """A workshop's sums in one currency, as a mechanic's; the fee is of what it served itself."""

    currency: str
    sessions: int
    gross_amount_cents: int
    platform_fee_cents: int
    workshop_net_cents: int
    reversed_cents: int
    due_cents: int
    processing_cents: int
    paid_cents: int


class WorkshopEarning(Struct, frozen=True, kw_only=True):
    """One session that a workshop served, or that somebody else served for one that had named it:
    then who that was and what she has of it stay between her and the platform, and are None."""

    session_id: UUID
    completed_at: str
    session_type: str
    plan_code: str
    is_referral: bool
    mechanic_id: UUID | None
    mechanic_name: str | None
    currency: str
    gross_amount_cents: int
    platform_fee_cents: int | None
    workshop_net_cents: int
    reversed_cents: int
    payout_status: str
    payout_id: UUID | None


class MechanicEarnings(Struct, frozen=True, kw_only=True):
    """A page of `total` sessions, the newest first, with the sums over all of them."""

    summary: list[MechanicSummary]
    earnings: list[MechanicEarning]
    total: int
    limit: int
    offset: int
    payouts: Account


class WorkshopEarnings(Struct, frozen=True, kw_only=True):
    """The same of a workshop."""

    summary: list[WorkshopSummary]
    earnings: list[WorkshopEarning]
    total: int
    limit: int
    offset: int
    payouts: Account


async def of_mechanic(
    pool: Pool, mechanic_id: UUID, *, limit: int, offset: int
) -> MechanicEarnings:
    """What a mechanic has earned herself. Raises `Unavailable`."""
    async with _moment(pool) as connection:
        account = await connection.fetchrow(_SQL["mechanic_account"], mechanic_id)
        assert account is not None, "who has the role has the row"
        sums = await connection.fetch(_SQL["mechanic_summary"], mechanic_id)
        page = await connection.fetch(_SQL["mechanic_page"], mechanic_id, limit, offset)
    return MechanicEarnings(
        summary=[MechanicSummary(**row) for row in sums],
        earnings=[MechanicEarning(**_timed(row)) for row in page],
        total=sum(row["sessions"] for row in sums),
        limit=limit,
        offset=offset,
        payouts=Account(**account),
    )


async def of_workshop(pool: Pool, member_id: UUID, *, limit: int, offset: int) -> WorkshopEarnings:
    """What the workshop has earned that this user is a member of. Raises `Forbidden` where there is
    none, and `Unavailable`."""
    async with _moment(pool) as connection:
        found = await connection.fetchrow(_SQL["workshop_account"], member_id)
        if found is None:
            raise Forbidden("you are not a member of a workshop")
        account = dict(found)
        workshop_id = account.pop("workshop_id")
        sums = await connection.fetch(_SQL["workshop_summary"], workshop_id)
        page = await connection.fetch(_SQL["workshop_page"], workshop_id, limit, offset)
    return WorkshopEarnings(
        summary=[WorkshopSummary(**row) for row in sums],
        earnings=[WorkshopEarning(**_timed(row)) for row in page],
        total=sum(row["sessions"] for row in sums),
        limit=limit,
        offset=offset,
        payouts=Account(**account),
    )


@asynccontextmanager
async def _moment(pool: Pool) -> AsyncIterator[Connection]:
    """So that the sums are those of the sessions beside them."""
    async with (
        unavailable_when_lost(),
        pool.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


def _timed(row: asyncpg.Record) -> dict[str, Any]:
    return {**row, "completed_at": timestamp(row["completed_at"])}
