"""Where the credits of a booking go when it ends: back if nobody served it, else to who did, once.

On a living node for each way to end, then by acts that meet at the locked booking in every order.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import permutations
from uuid import UUID, uuid4

import pytest

from dispatch import refunds
from dispatch.config import Config
from dispatch.core.replay import replay
from dispatch.core.types import Cancel, Due, End, Event, Join, RequestStatus, Role
from dispatch.database import Connection, Pool
from dispatch.replay import record_of
from tests.integration.ledger import (
    CHAT10_CENTS,
    accounts,
    book_with_credits,
    check_ledger,
    give,
    history,
    opener,
    settle,
)
from tests.integration.living import Booked, LivingNode, living_node, pass_time
from tests.integration.rows import (
    POLICY,
    accept,
    add_customer,
    add_mechanic,
    add_workshop,
    read,
    until_blocked,
)
from tests.support import eventually

GIVEN_CENTS = 2500
ASIDE = {"grants": -2500, "customer": 1500, "session": 1000}
BACK = {"grants": -2500, "customer": 2500, "session": 0}
EARNED = {"grants": -2500, "customer": 1500, "session": 0, "earnings": 1000}


async def sign(connection: Connection | Pool, session_id: UUID) -> None:
    """Without it the customer cannot join."""
    await connection.execute(
        "INSERT INTO waivers (intake_id, user_id, name, version, address) "
        "SELECT intake_id, customer_user_id, 'Kim', '1', '192.0.2.1' FROM sessions WHERE id = $1",
        session_id,
    )


@dataclass
class Scene:
    """A node, a customer who has booked with credits, and a mechanic."""

    living: LivingNode
    connection: Connection
    database_url: str
    ann: UUID
    max: UUID

    async def book(self, plan: str = "chat10", **wish: object) -> Booked:
        booked = await self.living.book(self.ann, plan=plan, payment_method="credits", **wish)
        await sign(self.connection, booked.session_id)
        return booked

    async def book_slot(self, starts_seconds: float, ends_seconds: float) -> Booked:
        slot_id = await self.connection.fetchval(
            "INSERT INTO slots (starts_at, ends_at, capacity) VALUES "
            "(now() + $1 * interval '1 s', now() + $2 * interval '1 s', 1) RETURNING id",
            starts_seconds,
            ends_seconds,
        )
        return await self.book(slot_id=slot_id)

    async def accept(self, booked: Booked) -> None:
        """The mechanic has it."""
        offer_id = (await read(self.connection, booked.request_id)).offer_id
        answer = await self.living.node.dispatcher.accept(self.max, offer_id, uuid4())
        assert answer.reason is None

    async def join(self, booked: Booked, *roles: Role) -> None:
        who = {Role.MECHANIC: self.max, Role.CUSTOMER: self.ann}
        for role in roles:
            await self.living.node.dispatcher.join(who[role], role, booked.session_id)

    async def end(self, booked: Booked, user_id: UUID) -> None:
        await self.living.node.dispatcher.end(user_id, booked.session_id)

    async def cancel(self, booked: Booked, body: object = None) -> None:
        path = f"/api/requests/{booked.request_id}/cancel"
        status, told = await self.living.call(self.ann, "customer", "POST", path, body)
        assert (status, told["status"]) == (200, "cancelled")

    async def pass_time(self, seconds: float) -> None:
        await pass_time(self.database_url, seconds, self.living)

    async def becomes(self, booked: Booked, status: str) -> None:
        async def is_so() -> bool:
            return (await read(self.connection, booked.request_id)).status == status

        await eventually(is_so)


@pytest.fixture
async def scene(config: Config, connection: Connection, database_url: str) -> AsyncIterator[Scene]:
    ann, max_ = await add_customer(connection), await add_mechanic(connection)
    await give(connection, ann, GIVEN_CENTS)
    async with living_node(config) as living:
        yield Scene(living, connection, database_url, ann, max_)


# --- unserved -------------------------------------------------------------------------------------


async def cancelled(scene: Scene) -> Booked:
    booked = await scene.book()
    await scene.cancel(booked)
    return booked


async def cancelled_for_credits(scene: Scene) -> Booked:
    booked = await scene.book()
    await scene.cancel(booked, {"refund_as": "credits"})
    return booked


async def cancelled_on_a_socket(scene: Scene) -> Booked:
    booked = await scene.book()
    async with scene.living.client(scene.ann, "customer") as device:
        await device.send("request.cancel", request_id=booked.request_id, refund_as="credits")
        await device.until("ok")
    return booked


async def expired(scene: Scene) -> Booked:
    booked = await scene.book()
    await scene.pass_time(61)
    await scene.becomes(booked, "expired")
    return booked


async def cancelled_before_its_slot(scene: Scene) -> Booked:
    booked = await scene.book_slot(3600, 7200)
    await scene.cancel(booked)
    return booked


async def expired_in_its_slot(scene: Scene) -> Booked:
    booked = await scene.book_slot(3600, 7200)
    await scene.pass_time(3601)
    await scene.becomes(booked, "pending")
    assert await accounts(scene.connection, scene.ann) == ASIDE
    await scene.pass_time(3665)
    await scene.becomes(booked, "expired")
    return booked


async def busy_throughout_its_slot(scene: Scene) -> Booked:
    booked = await scene.book_slot(20, 40)
    await scene.book("free")
    await scene.pass_time(30)
    await scene.living.node.dispatcher.fire(booked.request_id)
    assert (await read(scene.connection, booked.request_id)).status == "scheduled"
    await scene.pass_time(41)
    await scene.becomes(booked, "expired")
    return booked


async def customer_absent(scene: Scene) -> Booked:
    booked = await scene.book()
    await scene.accept(booked)
    await scene.join(booked, Role.MECHANIC)
    await scene.pass_time(31)
    await scene.becomes(booked, "cancelled")
    return booked


async def both_absent(scene: Scene) -> Booked:
    booked = await scene.book()
    await scene.accept(booked)
    await scene.pass_time(31)
    await scene.becomes(booked, "cancelled")
    return booked


async def mechanic_absent_and_nobody_else_there(scene: Scene) -> Booked:
    booked = await scene.book()
    await scene.accept(booked)
    await scene.join(booked, Role.CUSTOMER)
    await scene.pass_time(31)
    await scene.becomes(booked, "pending")
    assert await accounts(scene.connection, scene.ann) == ASIDE
    await scene.pass_time(31 + 65)
    await scene.becomes(booked, "expired")
    return booked


async def customer_left_before_both_were_there(scene: Scene) -> Booked:
    booked = await scene.book()
    await scene.accept(booked)
    await scene.join(booked, Role.CUSTOMER)
    await scene.end(booked, scene.ann)
    return booked


@pytest.mark.parametrize(
    "ends",
    [
        cancelled,
        cancelled_for_credits,
        cancelled_on_a_socket,
        expired,
        cancelled_before_its_slot,
        expired_in_its_slot,
        busy_throughout_its_slot,
        customer_absent,
        both_absent,
        mechanic_absent_and_nobody_else_there,
        customer_left_before_both_were_there,
    ],
    ids=lambda ends: ends.__name__,
)
async def test_who_was_not_served_has_her_credits_back_once_by_the_transaction_that_ended_it(
    scene: Scene, ends: Callable[[Scene], Awaitable[Booked]]
) -> None:
    booked = await ends(scene)

    assert await accounts(scene.connection, scene.ann) == BACK
    assert await scene.connection.fetchval(
        "SELECT s.xmin = e.xmin FROM sessions s JOIN credit_entries e ON e.session_id = s.id "
        "WHERE s.id = $1 AND e.account = 'session' AND e.amount_cents < 0",
        booked.session_id,
    )
    assert (await history(scene.connection, booked.session_id))["credits_returned"] == 1
    assert await scene.connection.fetchval("SELECT count(*) FROM outbox") == 0
    await check_ledger(scene.connection)
    assert replay(await record_of(scene.living.node.pool, booked.request_id)).differences == ()


# --- served ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended_by", ["customer", "mechanic", "its minutes"])
async def test_a_completed_session_earns_the_credits_once(scene: Scene, ended_by: str) -> None:
    booked = await scene.book()
    await scene.accept(booked)
    await scene.join(booked, Role.MECHANIC, Role.CUSTOMER)
    assert await accounts(scene.connection, scene.ann) == ASIDE

    if ended_by == "its minutes":
        await scene.pass_time(11)
        await scene.becomes(booked, "completed")
    else:
        await scene.end(booked, scene.ann if ended_by == "customer" else scene.max)
    for user_id in (scene.ann, scene.max):  # idempotent
        await scene.end(booked, user_id)

    assert await accounts(scene.connection, scene.ann) == EARNED
    (earned,) = await scene.connection.fetch("SELECT * FROM mechanic_earnings")
    assert (earned["session_id"], earned["mechanic_id"]) == (booked.session_id, scene.max)
    assert (earned["gross_amount_cents"], earned["currency"]) == (CHAT10_CENTS, "eur")
    assert (earned["platform_fee_cents"], earned["mechanic_net_cents"]) == (200, 800)
    assert "credits_returned" not in await history(scene.connection, booked.session_id)
    await check_ledger(scene.connection)


async def test_credits_are_shared_as_money_is(scene: Scene) -> None:
    """Ann names one workshop, and another one's mechanic serves: 20, 10 and 70 percent."""
    named, serving = await add_workshop(scene.connection), await add_workshop(scene.connection)
    scene.max = await add_mechanic(scene.connection, serving)
    booked = await scene.book(routing_type="hybrid", workshop_id=named)
    await scene.living.node.dispatcher.fire(booked.request_id)
    await scene.accept(booked)
    await scene.join(booked, Role.MECHANIC, Role.CUSTOMER)

    await scene.end(booked, scene.ann)

    (of_workshop,) = await scene.connection.fetch("SELECT * FROM workshop_earnings")
    (of_mechanic,) = await scene.connection.fetch("SELECT * FROM mechanic_earnings")
    assert (of_workshop["workshop_id"], of_workshop["workshop_net_cents"]) == (named, 100)
    assert (of_mechanic["mechanic_id"], of_mechanic["mechanic_net_cents"]) == (scene.max, 700)
    assert await accounts(scene.connection, scene.ann) == EARNED


async def test_a_free_session_with_credits_at_hand_takes_and_earns_nothing(scene: Scene) -> None:
    booked = await scene.book("free")
    await scene.accept(booked)
    await scene.join(booked, Role.MECHANIC, Role.CUSTOMER)

    await scene.end(booked, scene.ann)

    assert await accounts(scene.connection, scene.ann) == {"grants": -2500, "customer": 2500}
    assert await scene.connection.fetchval("SELECT count(*) FROM mechanic_earnings") == 0


async def test_without_a_waiver_nobody_joins_what_credits_have_booked(scene: Scene) -> None:
    booked = await scene.living.book(scene.ann, plan="chat10", payment_method="credits")
    await scene.accept(booked)

    path = f"/api/sessions/{booked.session_id}/join"
    status, told = await scene.living.call(scene.ann, "customer", "POST", path)

    assert (status, told["error"]["code"]) == (409, "waiver_required")


# --- money that becomes credits -------------------------------------------------------------------


async def paid_booking(scene: Scene, refunded_cents: int = 0) -> Booked:
    """A booking whose ten euros came by card; so much of them went back at Stripe already."""
    booked = await scene.living.book(scene.ann, plan="free")
    await pay(scene.connection, booked.session_id, refunded_cents)
    return booked


async def pay(connection: Connection | Pool, session_id: UUID, refunded_cents: int = 0) -> None:
    await connection.execute(
        "INSERT INTO payments (customer_id, session_id, amount_cents, currency, received_cents, "
        "received_currency, refunded_cents, payment_intent, status) "
        "SELECT customer_user_id, id, 1000, 'eur', 1000, 'eur', $2, 'pi_' || id, 'fulfilled' "
        "FROM sessions WHERE id = $1",
        session_id,
        refunded_cents,
    )


@pytest.mark.parametrize("refunded_cents", [0, 350])
async def test_who_cancels_for_credits_has_what_she_paid_as_credits_and_no_refund(
    scene: Scene, refunded_cents: int
) -> None:
    booked = await paid_booking(scene, refunded_cents)
    left = 1000 - refunded_cents

    await scene.cancel(booked, {"refund_as": "credits"})

    (payment,) = await scene.connection.fetch("SELECT * FROM payments")
    assert (payment["status"], payment["credited_cents"]) == ("refunded", left)
    assert payment["refunded_cents"] == refunded_cents
    assert await accounts(scene.connection, scene.ann) == {
        "grants": -2500,
        "payments": -left,
        "customer": 2500 + left,
    }
    assert await scene.connection.fetchval("SELECT count(*) FROM outbox") == 0
    assert (await history(scene.connection, booked.session_id))["credited"] == 1
    assert (
        await scene.connection.fetchval(
            "SELECT event->>'refund_as' FROM session_events WHERE session_id = $1 "
            "AND type = 'cancelled'",
            booked.session_id,
        )
        == "credits"
    )
    assert replay(await record_of(scene.living.node.pool, booked.request_id)).differences == ()
    again = await scene.book("standard")  # 29 euros of which 25 were there before
    assert (await read(scene.connection, again.request_id)).plan_code == "standard"
    await check_ledger(scene.connection)


async def test_who_says_nothing_gets_money_back(scene: Scene) -> None:
    booked = await paid_booking(scene)

    await scene.cancel(booked)

    (queued,) = await scene.connection.fetch("SELECT * FROM outbox")
    (payment,) = await scene.connection.fetch("SELECT * FROM payments")
    assert queued["idempotency_key"] == f"refund-{payment['id']}"
    assert (payment["status"], payment["credited_cents"]) == ("refunding", 0)
    assert await accounts(scene.connection, scene.ann) == {"grants": -2500, "customer": 2500}


@pytest.mark.parametrize("status", ["refunding", "refunded", "held"])
async def test_money_that_goes_back_already_or_is_held_does_not_become_credits(
    scene: Scene, status: str
) -> None:
    booked = await paid_booking(scene)
    await scene.connection.execute("UPDATE payments SET status = $1", status)

    await scene.cancel(booked, {"refund_as": "credits"})

    assert await scene.connection.fetchval("SELECT status FROM payments") == status
    assert await accounts(scene.connection, scene.ann) == {"grants": -2500, "customer": 2500}


# --- at once --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    """Something that happens to a booking, by a clock that is so far ahead."""

    name: str
    event: Callable[[UUID, UUID], Event]  # of the customer and the mechanic
    after_seconds: float = 0

    def __str__(self) -> str:
        return self.name


CANCEL = Act("cancel", lambda ann, max_: Cancel())
CANCEL_FOR_CREDITS = Act("for credits", lambda ann, max_: Cancel("credits"))
ANN_ENDS = Act("ann ends", lambda ann, max_: End(ann))
MAX_ENDS = Act("max ends", lambda ann, max_: End(max_))
EXPIRES = Act("expires", lambda ann, max_: Due(), POLICY.request_ttl_seconds + 1)
NOBODY_JOINED = Act("nobody joined", lambda ann, max_: Due(), POLICY.join_seconds + 1)
MINUTES_UP = Act("minutes up", lambda ann, max_: Due(), 10 * POLICY.plan_minute_seconds + 1)
JOINS = Act("max joins", lambda ann, max_: Join(max_, Role.MECHANIC))
ACCEPT = Act("accept", lambda ann, max_: Cancel())  # judged, not decided: its event is not used

PENDING = [ACCEPT, CANCEL, CANCEL_FOR_CREDITS, ANN_ENDS, EXPIRES]
TAKEN = [ANN_ENDS, MAX_ENDS, NOBODY_JOINED, JOINS]
RUNNING = [ANN_ENDS, MAX_ENDS, MINUTES_UP]

MEETINGS = [
    (stage, acts)
    for stage, there in (("pending", PENDING), ("taken", TAKEN), ("running", RUNNING))
    for acts in permutations(there, 2)
] + [(stage, (act, act)) for stage, act in (("pending", CANCEL), ("running", ANN_ENDS))]


@dataclass
class Meeting:
    """A booking at which acts meet."""

    pool: Pool
    request_id: UUID
    session_id: UUID
    offer_id: UUID
    ann: UUID
    max: UUID

    async def do(self, act: Act) -> None:
        if act is ACCEPT:
            async with self.pool.acquire() as connection:
                await accept(connection, self.offer_id, self.max)
        else:
            event = act.event(self.ann, self.max)
            await settle(self.pool, self.request_id, event, after_seconds=act.after_seconds)

    async def meet(self, *acts: Act) -> None:
        """The acts come to the locked booking in this order, and then it is let go."""
        async with self.pool.acquire() as holder, holder.transaction():
            await holder.execute(
                "SELECT FROM session_requests WHERE id = $1 FOR UPDATE", self.request_id
            )
            tasks = []
            for number, act in enumerate(acts, start=1):
                tasks.append(asyncio.create_task(self.do(act)))
                await until_blocked(self.pool, number)
        await asyncio.gather(*tasks)


async def meeting(pool: Pool, stage: str, *, by_card: bool = False) -> Meeting:
    """A booking of ten euros, in credits or by card, that is pending, taken or running."""
    async with pool.acquire() as connection:
        ann, max_ = await add_customer(connection), await add_mechanic(connection)
    await give(pool, ann, GIVEN_CENTS)
    made = await book_with_credits(pool, ann, "free" if by_card else "chat10", opener(pool))
    if by_card:
        await pay(pool, made.session_id)
    await sign(pool, made.session_id)
    assert made.entry is not None
    offer_id = made.entry.booking.offer_id
    here = Meeting(pool, made.request_id, made.session_id, offer_id, ann, max_)
    if stage != "pending":
        await here.do(ACCEPT)
    if stage == "running":
        for user_id, role in ((ann, Role.CUSTOMER), (max_, Role.MECHANIC)):
            await settle(pool, made.request_id, Join(user_id, role))
    return here


@pytest.mark.parametrize(
    ("stage", "acts"),
    MEETINGS,
    ids=lambda it: it if isinstance(it, str) else "+".join(map(str, it)),
)
async def test_whatever_meets_at_a_booking_its_credits_go_one_way_once(
    pool: Pool, stage: str, acts: tuple[Act, ...]
) -> None:
    here = await meeting(pool, stage)

    await here.meet(*acts)

    async with pool.acquire() as connection:
        status = (await read(connection, here.request_id)).status
    told = await history(pool, here.session_id)
    found = await accounts(pool, here.ann)
    match status:
        case RequestStatus.CANCELLED | RequestStatus.EXPIRED:
            assert (found, told["credits_returned"]) == (BACK, 1)
        case RequestStatus.COMPLETED:
            assert (found, told["credits_returned"], told["completed"]) == (EARNED, 0, 1)
            assert await pool.fetchval("SELECT count(*) FROM mechanic_earnings") == 1
        case _:
            assert (found, told["credits_returned"]) == (ASIDE, 0)
    await check_ledger(pool)


@pytest.mark.parametrize(
    "acts",
    [*permutations([CANCEL, CANCEL_FOR_CREDITS])],
    ids=lambda acts: "+".join(act.name for act in acts),
)
async def test_who_asks_for_money_and_for_credits_at_once_gets_what_came_first(
    pool: Pool, acts: tuple[Act, ...]
) -> None:
    here = await meeting(pool, "pending", by_card=True)

    await here.meet(*acts)

    (payment,) = await pool.fetch("SELECT * FROM payments")
    queued = await pool.fetchval("SELECT count(*) FROM outbox")
    found = await accounts(pool, here.ann)
    if acts[0] is CANCEL:
        assert (payment["status"], payment["credited_cents"], queued) == ("refunding", 0, 1)
        assert found == {"grants": -2500, "customer": 2500}
    else:
        assert (payment["status"], payment["credited_cents"], queued) == ("refunded", 1000, 0)
        assert found == {"grants": -2500, "customer": 3500, "payments": -1000}


@pytest.mark.parametrize("as_credits", [True, False])
@pytest.mark.parametrize(
    ("stage", "act", "by_card"),
    [
        ("pending", CANCEL_FOR_CREDITS, True),
        ("pending", CANCEL_FOR_CREDITS, False),
        ("running", ANN_ENDS, False),
    ],
    ids=["paid by card", "paid with credits", "served"],
)
async def test_giving_back_what_went_its_way_gives_nothing(
    pool: Pool, stage: str, act: Act, by_card: bool, as_credits: bool
) -> None:
    """Whoever would call it twice in one transaction, or in another one later."""
    here = await meeting(pool, stage, by_card=by_card)
    await here.meet(act)
    before = await accounts(pool, here.ann)
    told = await history(pool, here.session_id)

    async with pool.acquire() as connection, connection.transaction():
        for _ in range(2):
            queued = await refunds.queue_for_session(
                connection, here.session_id, "again", as_credits=as_credits
            )
            assert not queued

    assert await accounts(pool, here.ann) == before
    assert await pool.fetchval("SELECT count(*) FROM outbox") == 0
    assert await history(pool, here.session_id) == told
