"""What admins do to mechanics and workshops: approve, reject, deactivate, delete (P1, P3, P6).

One job: change the rows, record who did it and when in the same transaction, and list whom there is
to decide about. Done again, nothing changes and nothing is recorded. Imports `database`, `errors`,
`protocol` and `queries`; raises `NotFound`, Conflict `not_pending`, and `Unavailable` when Postgres
is away. Nobody is told here: the caller tells the nodes after the commit.
"""

from typing import Final, Literal
from uuid import UUID

import asyncpg
from msgspec import Struct

from dispatch import queries
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import Conflict, NotFound
from dispatch.protocol import timestamp

ApplicationStatus = Literal["pending", "approved", "rejected"]
WorkshopStatus = Literal["pending", "active", "suspended"]
Action = Literal[
    "approve_mechanic",
    "reject_mechanic",
    "deactivate_mechanic",
    "delete_mechanic",
    "approve_workshop",
]

_SQL: Final = queries.load("admin_people")


# --- whom there is --------------------------------------------------------------------------------


class Applicant(Struct, frozen=True, kw_only=True):
    """A mechanic as admins see her. `deactivated`: she cannot log in."""

    mechanic_id: UUID
    name: str
    email: str
    account_type: Literal["independent", "workshop"]
    workshop_id: UUID | None
    workshop_name: str | None
    application_status: ApplicationStatus
    auto_approved: bool
    is_specialist: bool
    deactivated: bool
    created_at: str


class Applicants(Struct, frozen=True, kw_only=True):
    """A part of the mechanics, and of how many it is a part."""

    mechanics: list[Applicant]
    total: int
    limit: int
    offset: int


class VettedWorkshop(Struct, frozen=True, kw_only=True):
    """A workshop as admins see it."""

    workshop_id: UUID
    workshop_name: str
    workshop_email: str
    workshop_status: WorkshopStatus
    created_at: str


class VettedWorkshops(Struct, frozen=True, kw_only=True):
    """A part of the workshops, and of how many it is a part."""

    workshops: list[VettedWorkshop]
    total: int
    limit: int
    offset: int


async def mechanics(
    pool: Pool, status: ApplicationStatus | None, limit: int, offset: int
) -> Applicants:
    """The mechanics of this status, or all, the latest sign-up first; without the deleted."""
    rows, total = await _page(pool, "mechanics", status, limit, offset)
    return Applicants(
        mechanics=[_applicant(row) for row in rows], total=total, limit=limit, offset=offset
    )


async def workshops(
    pool: Pool, status: WorkshopStatus | None, limit: int, offset: int
) -> VettedWorkshops:
    """The workshops of this status, or all, the latest sign-up first."""
    rows, total = await _page(pool, "workshops", status, limit, offset)
    return VettedWorkshops(
        workshops=[_workshop(row) for row in rows], total=total, limit=limit, offset=offset
    )


async def _page(
    pool: Pool, name: str, status: str | None, limit: int, offset: int
) -> tuple[list[asyncpg.Record], int]:
    async with unavailable_when_lost():
        rows = await pool.fetch(_SQL[name], status, limit, offset)
        if rows:
            return rows, rows[0]["total"]
        return [], await pool.fetchval(_SQL[f"count_{name}"], status)


def _applicant(row: asyncpg.Record) -> Applicant:
    return Applicant(
        mechanic_id=row["id"],
        name=row["name"],
        email=row["email"],
        account_type=row["account_type"],
        workshop_id=row["workshop_id"],
        workshop_name=row["workshop_name"],
        application_status=row["application_status"],
        auto_approved=row["auto_approved"],
        is_specialist=row["is_specialist"],
        deactivated=row["deactivated"],
        created_at=timestamp(row["created_at"]),
    )


def _workshop(row: asyncpg.Record) -> VettedWorkshop:
    return VettedWorkshop(
        workshop_id=row["id"],
        workshop_name=row["name"],
        workshop_email=row["email"],
        workshop_status=row["status"],
        created_at=timestamp(row["created_at"]),
    )


# --- what is done to them -------------------------------------------------------------------------


class Retired(Struct, frozen=True):
    """A mechanic who is kept out, and below which epoch every token of hers is void."""

    mechanic: Applicant
    token_epoch: int


async def approve(pool: Pool, admin_id: UUID, mechanic_id: UUID) -> Applicant:
    """She may be offered work: also one who was rejected, or deactivated, before."""
    async with transaction(pool) as connection:
        before = await _lock(connection, mechanic_id)
        if before["application_status"] != "approved" or before["deactivated"]:
            await connection.execute(_SQL["set_status"], mechanic_id, "approved")
            if before["deactivated"]:
                await connection.execute(_SQL["enable"], mechanic_id)
            await _record(connection, admin_id, "approve_mechanic", mechanic_id)
        return await _read(connection, mechanic_id)


async def reject(pool: Pool, admin_id: UUID, mechanic_id: UUID) -> Applicant:
    """Her application is refused; she may still log in. Conflict `not_pending` once approved."""
    async with transaction(pool) as connection:
        before = await _lock(connection, mechanic_id)
        if before["application_status"] == "approved":
            raise Conflict("not_pending", "this mechanic is approved: deactivate her instead")
        if before["application_status"] == "pending":
            await connection.execute(_SQL["set_status"], mechanic_id, "rejected")
            await _record(connection, admin_id, "reject_mechanic", mechanic_id)
        return await _read(connection, mechanic_id)


async def deactivate(pool: Pool, admin_id: UUID, mechanic_id: UUID) -> Retired:
    """She is kept out, until she is approved again; every token of hers is void for good."""
    async with transaction(pool) as connection:
        before = await _lock(connection, mechanic_id)
        epoch = before["token_epoch"]
        if not before["deactivated"]:
            epoch = await connection.fetchval(_SQL["disable"], mechanic_id)
            await _record(connection, admin_id, "deactivate_mechanic", mechanic_id)
        return Retired(await _read(connection, mechanic_id), epoch)


async def delete(pool: Pool, admin_id: UUID, mechanic_id: UUID) -> Retired:
    """She is gone for good, and nobody's favourite; what she did and earned stays, and so does her
    e-mail, which nobody else can sign up with."""
    async with transaction(pool) as connection:
        before = await _lock(connection, mechanic_id, or_deleted=True)
        epoch = before["token_epoch"]
        if not before["deleted"]:
            await connection.execute(_SQL["delete_mechanic"], mechanic_id)
            epoch = await connection.fetchval(_SQL["disable"], mechanic_id)
            await _record(connection, admin_id, "delete_mechanic", mechanic_id)
        return Retired(await _read(connection, mechanic_id), epoch)


async def approve_workshop(pool: Pool, admin_id: UUID, workshop_id: UUID) -> VettedWorkshop:
    """The workshop can be booked, and may invite mechanics: also one that was suspended."""
    async with transaction(pool) as connection:
        before = await connection.fetchrow(_SQL["lock_workshop"], workshop_id)
        if before is None:
            raise NotFound("no such workshop")
        if before["status"] != "active":
            await connection.execute(_SQL["approve_workshop"], workshop_id)
            await _record(connection, admin_id, "approve_workshop", workshop_id)
        after = await connection.fetchrow(_SQL["lock_workshop"], workshop_id)
        assert after is not None
        return _workshop(after)


async def _lock(
    connection: Connection, mechanic_id: UUID, *, or_deleted: bool = False
) -> asyncpg.Record:
    row = await connection.fetchrow(_SQL["lock_mechanic"], mechanic_id)
    if row is None or (row["deleted"] and not or_deleted):
        raise NotFound("no such mechanic")
    return row


async def _read(connection: Connection, mechanic_id: UUID) -> Applicant:
    row = await connection.fetchrow(_SQL["mechanic"], mechanic_id)
    assert row is not None
    return _applicant(row)


async def _record(connection: Connection, admin_id: UUID, action: Action, subject_id: UUID) -> None:
    await connection.execute(_SQL["record"], admin_id, action, subject_id)
