"""From an intake to a session: what a customer asks for, the waiver, and the one factory (S1).

One job: turn a customer's wish into rows, or into a typed refusal that changed nothing. Imports
`database`, `errors`, `queries` and the core's words; whoever calls tells the dispatcher what was
made.
"""

from datetime import timedelta
from typing import Annotated, Final, Literal
from uuid import UUID

import asyncpg
from msgspec import Meta, Struct

from dispatch import queries
from dispatch.core import messages
from dispatch.core.types import Routing
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import BadRequest, Conflict, NotFound, Unavailable

_SQL: Final = queries.load("sessions")


class IntakeForm(Struct, frozen=True, kw_only=True):
    """What `POST /api/intake/start` takes. Only `plan` is required."""

    plan: Annotated[str, Meta(max_length=50)]
    vehicle: Annotated[str, Meta(max_length=200)] | None = None
    concern: Annotated[str, Meta(max_length=2000)] | None = None
    urgent: bool = False
    is_specialist: bool = False
    preferred_mechanic_id: UUID | None = None
    routing_type: Routing = Routing.BROADCAST
    workshop_id: UUID | None = None
    slot_id: UUID | None = None
    wait_for_preferred: bool = False
    payment_method: Literal["card"] | None = None


class Intake(Struct, frozen=True, kw_only=True):
    """A stored wish, with the price of its plan."""

    id: UUID
    customer_id: UUID
    plan_code: str
    plan_name: str
    price_cents: int
    currency: str
    routing_type: str
    workshop_id: UUID | None
    preferred_mechanic_id: UUID | None
    wait_for_preferred: bool
    slot_id: UUID | None
    waiver_signed: bool
    booked: bool


class Created(Struct, frozen=True, kw_only=True):
    """What the factory made. `status` is pending, or scheduled for a slot that opens later."""

    session_id: UUID
    request_id: UUID
    type: str
    status: str


class Started(Struct, frozen=True, kw_only=True):
    """An intake; for a free plan also its session."""

    intake_id: UUID
    plan: str
    created: Created | None

    @property
    def redirect(self) -> str:
        """Where the customer goes next: to the waiver."""
        session = f"session={self.created.session_id}&" if self.created else ""
        return f"/intake/waiver?{session}plan={self.plan}&intake_id={self.intake_id}"


class ActiveSessionExists(Conflict):
    """409 of S3, with the session that is in the way."""

    def __init__(self, session_id: UUID, kind: str, status: str) -> None:
        super().__init__(
            "active_session_exists",
            "you have an active session already",
            fields={
                "activeSessionId": str(session_id),
                "activeSessionType": kind,
                "activeSessionStatus": status,
            },
        )


class SlotFull(Conflict):
    """Every seat of the slot is taken."""

    def __init__(self) -> None:
        super().__init__("slot_full", "this slot is full")


async def start_intake(pool: Pool, customer_id: UUID, form: IntakeForm, ttl: timedelta) -> Started:
    """Stores the wish; a free plan becomes a session in the same transaction.

    Raises `ActiveSessionExists` before anything else is looked at (unless a slot is asked for),
    `BadRequest` for a wish that cannot be, `SlotFull`. Nothing is stored then.
    """
    try:
        async with transaction(pool) as connection:
            if form.slot_id is None:
                await refuse_second_session(connection, customer_id)
            price_cents = await check(connection, form)
            intake_id = await store_intake(connection, customer_id, form)
            created = None
            if price_cents == 0:
                created = await create(connection, intake_id, form.slot_id, None, ttl)
            return Started(intake_id=intake_id, plan=form.plan, created=created)
    except asyncpg.UniqueViolationError:
        async with unavailable_when_lost(), pool.acquire() as connection:
            await refuse_second_session(connection, customer_id)
        raise Unavailable("another booking of yours has just ended, try again") from None


async def store_intake(connection: Connection, customer_id: UUID, form: IntakeForm) -> UUID:
    """Stores a wish that was checked, inside the caller's transaction; its id."""
    intake_id: UUID = await connection.fetchval(
        _SQL["insert_intake"],
        customer_id,
        form.plan,
        form.vehicle,
        form.concern,
        form.urgent,
        form.is_specialist,
        form.routing_type.value,
        form.workshop_id,
        form.preferred_mechanic_id,
        form.wait_for_preferred,
        form.slot_id,
    )
    return intake_id


async def create(
    connection: Connection,
    intake_id: UUID,
    slot_id: UUID | None,
    stripe_session_id: str | None,
    ttl: timedelta,
) -> Created:
    """The one factory (S1), inside the caller's transaction.

    Raises asyncpg's UniqueViolationError where the customer has a live session (S3; the database
    enforces it) and `SlotFull`; the transaction, or the caller's savepoint, is void then.
    """
    message = messages.CREATED if slot_id is None else messages.SCHEDULED
    try:
        row = await connection.fetchrow(
            _SQL["create_session"], intake_id, stripe_session_id, ttl, message
        )
    except asyncpg.CheckViolationError as error:
        if error.constraint_name == "slots_not_overfull":
            raise SlotFull from error
        raise
    assert row is not None
    return Created(
        session_id=row["session_id"],
        request_id=row["request_id"],
        type=row["session_type"],
        status=row["session_status"],
    )


async def intake_of(connection: Connection, intake_id: UUID, customer_id: UUID) -> Intake:
    """The customer's own intake; `NotFound` for an unknown one and for somebody else's."""
    row = await connection.fetchrow(_SQL["intake_of"], intake_id, customer_id)
    if row is None:
        raise NotFound("no such intake")
    return Intake(**{name: row[name] for name in Intake.__struct_fields__})


async def sign_waiver(
    pool: Pool, customer_id: UUID, intake_id: UUID, name: str, version: str, address: str
) -> None:
    """Signs the waiver of the customer's own intake; signing again keeps the first signature."""
    async with transaction(pool) as connection:
        await intake_of(connection, intake_id, customer_id)
        await connection.execute(
            _SQL["sign_waiver"], intake_id, customer_id, name, version, address
        )


async def refuse_second_session(connection: Connection, customer_id: UUID) -> None:
    """Raises `ActiveSessionExists` where the customer has a live session (S3)."""
    row = await connection.fetchrow(_SQL["live_session"], customer_id)
    if row is not None:
        raise ActiveSessionExists(row["id"], row["type"], row["status"])


async def check(connection: Connection, form: IntakeForm) -> int:
    """The price in cents, after everything that the wish names was found to exist.

    Raises `BadRequest`, which names the field, and `SlotFull`.
    """
    plan = await connection.fetchrow(_SQL["plan"], form.plan)
    if plan is None:
        raise BadRequest("plan: there is no such plan")
    needs_workshop = form.routing_type in (Routing.WORKSHOP_ONLY, Routing.HYBRID)
    if needs_workshop and form.workshop_id is None:
        raise BadRequest(f"workshop_id: required for {form.routing_type.value}")
    if form.routing_type is Routing.PRIORITY and form.preferred_mechanic_id is None:
        raise BadRequest("preferred_mechanic_id: required for priority_broadcast")
    if form.workshop_id is not None and not await connection.fetchval(
        _SQL["bookable_workshop"], form.workshop_id
    ):
        raise BadRequest("workshop_id: there is no such workshop")
    if form.preferred_mechanic_id is not None and not await connection.fetchval(
        _SQL["bookable_mechanic"], form.preferred_mechanic_id
    ):
        raise BadRequest("preferred_mechanic_id: there is no such mechanic")
    if form.slot_id is not None:
        slot = await connection.fetchrow(_SQL["slot"], form.slot_id)
        if slot is None:
            raise BadRequest("slot_id: there is no such slot")
        if slot["workshop_id"] not in (None, form.workshop_id):
            raise BadRequest("slot_id: the slot is another workshop's")
        if slot["seats"] < 1:
            raise SlotFull
    price_cents: int = plan["price_cents"]
    return price_cents
