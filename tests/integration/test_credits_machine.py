"""Random histories of customers who are given credits, spend them, give up and are served.

A Hypothesis state machine does one act, or two at once on two connections, through the functions
that the server calls. Each act says what it moved; after every step the ledger must hold exactly
that, and what it must hold at any time (`check_ledger`).
"""

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar
from uuid import UUID, uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from dispatch import credits
from dispatch.core.types import Cancel, Decision, Due, End, Event, Join, RefundAs, Role
from dispatch.credits import Grant, InsufficientCredits
from dispatch.database import Connection, Pool, close_pool, open_pool
from dispatch.errors import Unavailable
from dispatch.sessions import ActiveSessionExists, Created
from tests.integration.ledger import accounts, book_with_credits, check_ledger, opener, settle
from tests.integration.rows import POLICY, accept, add_customer, add_mechanic, add_user
from tests.integration.test_credits_ends import sign

T = TypeVar("T")

CUSTOMERS = 3
CONNECTIONS = 2
EXAMPLES = 40
STEPS = 30
PRICES = {"free": 0, "trial": 300, "chat10": 1000, "video15": 1500}
NO_LIMIT = replace(POLICY, mechanic_capacity=1000)


@dataclass(eq=False)
class Booking:
    """A session that was made, and what is set aside for it (or was paid by card)."""

    made: Created
    customer_id: UUID
    offer_id: UUID
    cents: int
    by_card: bool = False


@dataclass(frozen=True)
class Act:
    """Who does what: `number` chooses one of what there is. To serve is to accept and to join."""

    what: str
    customer: int
    number: int
    cents: int
    plan: str
    refund_as: RefundAs


acts = st.builds(
    Act,
    what=st.sampled_from(
        [
            *("grant", "grant again", "book", "book", "book by card", "book later"),
            *("cancel", "cancel", "expire", "accept", "join", "nobody joined"),
            *("serve", "serve", "end", "end", "end by mechanic"),
        ]
    ),
    customer=st.integers(0, CUSTOMERS - 1),
    number=st.integers(0, 3),
    cents=st.sampled_from([1, 999, 1000, 5000, 5000, 100_000]),
    plan=st.sampled_from(sorted(PRICES)),
    refund_as=st.sampled_from(["money", "credits"]),
)


class Machine(RuleBasedStateMachine):
    """Three customers, one mechanic without limits, one slot for later, two connections."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    pool: ClassVar[Pool]

    def __init__(self) -> None:
        super().__init__()
        self.bookings: list[Booking] = []
        self.grants: list[Grant] = []
        self.holds: defaultdict[UUID, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.run(self._people())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        """What went wrong in one history is not found again in the next."""
        self.run(self.pool.execute("TRUNCATE sessions, credit_entries CASCADE"))

    async def _people(self) -> None:
        async with self.pool.acquire() as connection:
            self.customers = [await add_customer(connection) for _ in range(CUSTOMERS)]
            self.mechanic = await add_mechanic(connection)
            self.admin = await add_user(connection, "admin")
            self.slot_id: UUID = await connection.fetchval(
                "INSERT INTO slots (starts_at, ends_at, capacity) VALUES "
                "(now() + interval '24 h', now() + interval '25 h', 1000) RETURNING id"
            )

    # --- what is done

    @rule(act=acts)
    def one(self, act: Act) -> None:
        self.run(self._do(act))

    @rule(first=acts, second=acts)
    def two_at_once(self, first: Act, second: Act) -> None:
        self.run(self._both(self._do(first), self._do(second)))

    @rule(act=acts)
    def the_same_twice_at_once(self, act: Act) -> None:
        self.run(self._both(self._do(act), self._do(act)))

    async def _both(self, *works: Awaitable[None]) -> None:
        await asyncio.gather(*works)

    async def _do(self, act: Act) -> None:
        match act.what:
            case "grant":
                wanted = Grant(
                    grant_id=uuid4(),
                    customer_id=self.customers[act.customer],
                    amount_cents=act.cents,
                    currency="eur",
                    reason="sorry",
                )
                await self._grant(wanted)
            case "grant again" if self.grants:
                await self._grant(self.grants[act.number % len(self.grants)])
            case "book" | "book by card" | "book later":
                await self._book(act)
            case "accept" if self.bookings:
                await self._accept(self._chosen(act))
            case "serve" if self.bookings:
                booking = self._chosen(act)
                await self._accept(booking)
                await self._happens(booking, dataclasses.replace(act, what="join"))
            case _ if self.bookings:
                await self._happens(self._chosen(act), act)

    def _chosen(self, act: Act) -> Booking:
        """One of the newest."""
        return self.bookings[-1 - act.number % len(self.bookings)]

    async def _grant(self, wanted: Grant) -> None:
        given = await credits.grant(self.pool, self.admin, wanted)
        assert given.amount_cents == wanted.amount_cents
        if wanted not in self.grants:
            self.grants.append(wanted)
            self._moved(wanted.customer_id, "grants", "customer", wanted.amount_cents)

    async def _book(self, act: Act) -> None:
        customer_id = self.customers[act.customer]
        by_card = act.what == "book by card"
        slot = {"slot_id": self.slot_id} if act.what == "book later" else {}
        plan = "free" if by_card else act.plan
        open_at_once = opener(self.pool) if act.number % 2 else None
        try:
            made = await book_with_credits(self.pool, customer_id, plan, open_at_once, **slot)
        except (InsufficientCredits, ActiveSessionExists, Unavailable):
            return  # or what stood in the way was gone in that moment
        cents = act.cents if by_card else PRICES[plan]
        booking = Booking(made, customer_id, await self._after_it(made, cents, by_card), cents)
        booking.by_card = by_card
        if not by_card:
            self._moved(customer_id, "customer", "session", cents)
        self.bookings.append(booking)

    async def _after_it(self, made: Created, cents: int, by_card: bool) -> UUID:
        """What came by card, the waiver, and the round in which it can be taken."""
        async with self.pool.acquire() as connection:
            if by_card:
                await _pay(connection, made.session_id, cents)
            await sign(connection, made.session_id)
            offer_id: UUID = await connection.fetchval(
                "SELECT offer_id FROM session_requests WHERE id = $1", made.request_id
            )
            return offer_id

    async def _accept(self, booking: Booking) -> None:
        async with self.pool.acquire() as connection:
            await accept(connection, booking.offer_id, self.mechanic, policy=NO_LIMIT)

    async def _happens(self, booking: Booking, act: Act) -> None:
        """An event of the booking, and what that moves; most of them change nothing."""
        events: dict[str, list[tuple[Event, float]]] = {
            "cancel": [(Cancel(act.refund_as), 0)],
            "expire": [(Due(), POLICY.request_ttl_seconds + 1)],
            "nobody joined": [(Due(), POLICY.join_seconds + 1)],
            "join": [
                (Join(self.mechanic, Role.MECHANIC), 0),
                (Join(booking.customer_id, Role.CUSTOMER), 0),
            ],
            "end": [(End(booking.customer_id), 0)],
            "end by mechanic": [(End(self.mechanic), 0)],
        }
        for event, seconds in events.get(act.what, []):
            decision = await settle(
                self.pool, booking.made.request_id, event, after_seconds=seconds, policy=NO_LIMIT
            )
            self._follow(booking, decision, act)

    def _follow(self, booking: Booking, decision: Decision, act: Act) -> None:
        """What a decision that changed something has moved."""
        if not decision.effects:
            return
        match decision.booking.status:
            case "completed" if not booking.by_card:
                self._moved(booking.customer_id, "session", "earnings", booking.cents)
            case "cancelled" | "expired" if not booking.by_card:
                self._moved(booking.customer_id, "session", "customer", booking.cents)
            case "cancelled" if act.what == "cancel" and act.refund_as == "credits":
                self._moved(booking.customer_id, "payments", "customer", booking.cents)

    def _moved(self, customer_id: UUID, source: str, target: str, cents: int) -> None:
        self.holds[customer_id][source] -= cents
        self.holds[customer_id][target] += cents

    # --- what must be

    @invariant()
    def the_ledger_holds_what_was_moved(self) -> None:
        self.run(self._check())

    async def _check(self) -> None:
        await check_ledger(self.pool)
        for customer_id in self.customers:
            found = {k: v for k, v in (await accounts(self.pool, customer_id)).items() if v}
            assert found == {k: v for k, v in self.holds[customer_id].items() if v}
            assert await self._spendable(customer_id) == found.get("customer", 0)

    async def _spendable(self, customer_id: UUID) -> int:
        told = await credits.statement(self.pool, customer_id, limit=1, offset=0)
        return sum(balance.balance_cents for balance in told.balances)


async def _pay(connection: Connection, session_id: UUID, cents: int) -> None:
    """Money came for it, by card."""
    await connection.execute(
        "INSERT INTO payments (customer_id, session_id, amount_cents, currency, received_cents, "
        "received_currency, payment_intent, status) "
        "SELECT customer_user_id, id, $2, 'eur', $2, 'eur', 'pi_' || id, 'fulfilled' "
        "FROM sessions WHERE id = $1",
        session_id,
        cents,
    )


def test_whatever_customers_do_the_ledger_holds_what_was_moved(database_url: str) -> None:
    loop = asyncio.new_event_loop()
    Machine.loop = loop
    Machine.pool = loop.run_until_complete(open_pool(database_url, size=CONNECTIONS))
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(close_pool(Machine.pool))
        loop.close()
