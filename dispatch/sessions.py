"""From an intake to a session: what a customer asks for, the waiver, and the one factory (S1).

One job: turn a customer's wish into rows, or into a typed refusal that changed nothing. A booking
for now takes one read and one write: whoever calls passes in how its first stage is decided between
the two, and tells the dispatcher what was made. Imports `credits`, `database`, `errors`, `hints`,
`queries` and the core's words.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal, Self
from uuid import UUID, uuid4

import asyncpg
import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from dispatch import credits, queries
from dispatch.core import messages
from dispatch.core.experiments import Running, trial
from dispatch.core.types import Booking, Candidate, Routing, Wish
from dispatch.credits import InsufficientCredits
from dispatch.database import Connection, Pool, transaction, unavailable_when_lost
from dispatch.errors import BadRequest, Conflict, NotFound, Unavailable
from dispatch.hints import Display, Entry

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
    payment_method: Literal["card", "credits"] | None = None

    @property
    def with_credits(self) -> bool:
        """Whether it is paid at once, with credits, unless it is free."""
        return self.payment_method == "credits"


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


class Prospect(Struct, frozen=True, kw_only=True):
    """What a booking for now would be made of, read at `now`: all that its first stage depends on,
    and what people will see of it."""

    wish: Wish
    customer_name: str
    vehicle: str | None
    concern: str | None
    favourite: Candidate | None
    now: datetime
    experiments: tuple[Running, ...] = ()
    paid: bool = False

    def entry(self, booking: Booking) -> Entry:
        """The booking as boards keep it."""
        display = Display(
            customer_name=self.customer_name,
            vehicle=self.vehicle,
            concern=self.concern,
            mechanic_name=None,
            mechanic_workshop_id=None,
            mechanic_rating=None,
        )
        return Entry(booking=booking, display=display, paid=self.paid)


class Opening(Struct, frozen=True):
    """A booking in its first stage: the `change` to be written by the factory, and what is to be
    told once that is committed."""

    change: str
    entry: Entry


OpenAtOnce = Callable[[Prospect], Awaitable[Opening | None]]

decode_prospect: Final = msgspec.json.Decoder(Prospect).decode


class Created(Struct, frozen=True, kw_only=True):
    """What the factory made. `status` is pending, or scheduled for a slot that opens later; `entry`
    is there where the booking was opened in the same transaction."""

    session_id: UUID
    request_id: UUID
    type: str
    status: str
    entry: Entry | None = None

    @classmethod
    def opened(cls, entry: Entry) -> Self:
        """What was made and opened at once."""
        booking = entry.booking
        return cls(
            session_id=booking.session_id,
            request_id=booking.request_id,
            type=booking.session_type,
            status=booking.session_status.value,
            entry=entry,
        )


class Started(Struct, frozen=True, kw_only=True):
    """An intake; for one that is free or paid with credits also its session."""

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


class SlotOver(Conflict):
    """The slot's time is over."""

    def __init__(self) -> None:
        super().__init__("slot_over", "the time of this slot is over")


class SlotFull(Conflict):
    """Every seat of the slot is taken."""

    def __init__(self) -> None:
        super().__init__("slot_full", "this slot is full")


async def start_intake(
    pool: Pool,
    customer_id: UUID,
    form: IntakeForm,
    ttl: timedelta,
    open_at_once: OpenAtOnce | None = None,
) -> Started:
    """Stores the wish; what is free or paid with credits becomes a session in the same transaction,
    which sets the credits aside, and is opened in it where `open_at_once` can.

    Raises `ActiveSessionExists` before anything else is looked at (unless a slot is asked for),
    `BadRequest` for a wish that cannot be, `SlotFull`, `SlotOver`, and last `InsufficientCredits`.
    Nothing is stored then.
    """
    intake_id = uuid4()
    alone = form.slot_id is None
    async with unavailable_when_lost(), pool.acquire() as connection:
        checked = await check(connection, customer_id, form, intake_id, alone=alone)
    created = None
    try:
        if checked.prospect is not None and open_at_once is not None:
            created = await _book_at_once(
                pool, customer_id, form, intake_id, ttl, checked.prospect, open_at_once
            )
        if created is None:
            created = await _store(pool, customer_id, form, intake_id, ttl, checked)
    except asyncpg.UniqueViolationError:
        async with unavailable_when_lost(), pool.acquire() as connection:
            await refuse_second_session(connection, customer_id)
        raise Unavailable("another booking of yours has just ended, try again") from None
    except asyncpg.CheckViolationError as refused:
        if refused.constraint_name != credits.NEVER_BELOW_ZERO:
            raise
        async with unavailable_when_lost(), pool.acquire() as connection:  # spent meanwhile
            await check(connection, customer_id, form, intake_id, alone=alone)
        raise Unavailable("your credits have just changed, try again") from None
    return Started(intake_id=intake_id, plan=form.plan, created=created)


async def _store(
    pool: Pool,
    customer_id: UUID,
    form: IntakeForm,
    intake_id: UUID,
    ttl: timedelta,
    checked: "Checked",
) -> Created | None:
    """The intake, and where it needs no money also its session, which is to be opened later."""
    async with transaction(pool) as connection:
        await store_intake(connection, customer_id, form, intake_id)
        if checked.price_cents > 0 and not form.with_credits:
            return None
        created = await create(connection, intake_id, form.slot_id, None, ttl)
        if form.with_credits:
            await credits.set_aside(connection, created.session_id)
        return created


async def _book_at_once(
    pool: Pool,
    customer_id: UUID,
    form: IntakeForm,
    intake_id: UUID,
    ttl: timedelta,
    prospect: Prospect,
    open_at_once: OpenAtOnce,
) -> Created | None:
    """Intake, session and first stage in one statement; None where they cannot be."""
    opening = await open_at_once(prospect)
    if opening is None:
        return None
    row = _row(customer_id, form, intake_id)
    try:
        async with unavailable_when_lost():
            await pool.execute(
                _SQL["book_intake"], row, ttl, messages.CREATED, opening.change, form.with_credits
            )
    except asyncpg.RaiseError:
        return None  # too long ago that it was decided
    return Created.opened(opening.entry)


async def store_intake(
    connection: Connection, customer_id: UUID, form: IntakeForm, intake_id: UUID
) -> None:
    """Stores a wish that was checked under this new id, inside the caller's transaction."""
    await connection.execute(_SQL["insert_intake"], _row(customer_id, form, intake_id))


def _row(customer_id: UUID, form: IntakeForm, intake_id: UUID) -> str:
    """The JSON of the row of `intakes` that stores a wish."""
    row = {"id": intake_id, "customer_id": customer_id, "plan_code": form.plan, **asdict(form)}
    del row["plan"], row["payment_method"]
    return msgspec.json.encode(row).decode()


async def create(
    connection: Connection,
    intake_id: UUID,
    slot_id: UUID | None,
    stripe_session_id: str | None,
    ttl: timedelta,
) -> Created:
    """The one factory (S1), inside the caller's transaction.

    Raises asyncpg's UniqueViolationError where the customer has a live session (S3; the database
    enforces it), `SlotFull` and `SlotOver`; the transaction, or the caller's savepoint, is void
    then.
    """
    message = messages.CREATED if slot_id is None else messages.SCHEDULED
    tried = await _trial(connection, intake_id)
    try:
        row = await connection.fetchrow(
            _SQL["create_session"], intake_id, stripe_session_id, ttl, message, tried
        )
    except asyncpg.RaiseError as error:
        raise Unavailable("another booking of yours was just made, try again") from error
    except asyncpg.CheckViolationError as error:
        if error.constraint_name == "slots_not_overfull":
            raise SlotFull from error
        if error.constraint_name == "slots_not_over":
            raise SlotOver from error
        raise
    assert row is not None
    return Created(
        session_id=row["session_id"],
        request_id=row["request_id"],
        type=row["session_type"],
        status=row["session_status"],
    )


async def _trial(connection: Connection, intake_id: UUID) -> str | None:
    """The JSON of the experiment that touches this intake's booking, if one does."""
    found = decode_prospect(await connection.fetchval(_SQL["prospect"], intake_id))
    tried = trial(found.wish, found.experiments)
    return None if tried is None else msgspec.json.encode(tried).decode()


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


class Checked(Struct, frozen=True):
    """A wish that can be. `prospect` is there where it costs no money and is for now."""

    price_cents: int
    prospect: Prospect | None


async def check(
    connection: Connection,
    customer_id: UUID,
    form: IntakeForm,
    intake_id: UUID,
    *,
    alone: bool = False,
) -> Checked:
    """The price, after everything that the wish names was found to exist, all in one read.

    Raises `ActiveSessionExists` first, where the customer may have no other live session (`alone`),
    `BadRequest`, which names the field, `SlotFull`, and `InsufficientCredits` where it is to be
    paid with them.
    """
    row = _row(customer_id, form, intake_id)
    found = await connection.fetchrow(_SQL["look"], row, form.with_credits)
    assert found is not None
    if alone and found["live_id"] is not None:
        raise ActiveSessionExists(found["live_id"], found["live_type"], found["live_status"])
    if found["price_cents"] is None:
        raise BadRequest("plan: there is no such plan")
    needs_workshop = form.routing_type in (Routing.WORKSHOP_ONLY, Routing.HYBRID)
    if needs_workshop and form.workshop_id is None:
        raise BadRequest(f"workshop_id: required for {form.routing_type.value}")
    if form.routing_type is Routing.PRIORITY and form.preferred_mechanic_id is None:
        raise BadRequest("preferred_mechanic_id: required for priority_broadcast")
    if form.workshop_id is not None and not found["workshop_bookable"]:
        raise BadRequest("workshop_id: there is no such workshop")
    if form.preferred_mechanic_id is not None and not found["mechanic_bookable"]:
        raise BadRequest("preferred_mechanic_id: there is no such mechanic")
    if form.slot_id is not None:
        if found["seats"] is None:
            raise BadRequest("slot_id: there is no such slot")
        if found["slot_workshop_id"] not in (None, form.workshop_id):
            raise BadRequest("slot_id: the slot is another workshop's")
        if found["seats"] < 1:
            raise SlotFull
    price_cents: int = found["price_cents"]
    if form.with_credits and found["balance_cents"] < price_cents:
        raise InsufficientCredits(found["balance_cents"], price_cents, found["currency"])
    if found["prospect"] is None:
        return Checked(price_cents, None)
    prospect = decode_prospect(found["prospect"])
    return Checked(price_cents, replace(prospect, paid=price_cents > 0))
