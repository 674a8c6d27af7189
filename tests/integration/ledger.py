"""Credits in tests: given, spent and looked at, and what must be true of the ledger at any time.

`settle` is one event of a booking with what it does to money, as the dispatcher makes it.
"""

from collections import Counter
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from dispatch import refunds, sessions
from dispatch.changes import change_of
from dispatch.core import lifecycle
from dispatch.core.types import Decision, Event, Open, Policy, Refund
from dispatch.database import Connection, Pool
from dispatch.sessions import Created, IntakeForm, OpenAtOnce, Opening, Prospect
from dispatch.store import Store
from tests.integration.rows import POLICY, change, shift_clock

TTL: Final = timedelta(seconds=POLICY.request_ttl_seconds)
CHAT10_CENTS: Final = 1000
VIDEO15_CENTS: Final = 1500

Accounts = dict[str, int]  # cents in each account of a customer

# What the ledger and the bookings say of each other; every one of these finds nothing.
_WRONG: Final = {
    "a transaction that does not balance":
        "SELECT transaction_id FROM credit_entries GROUP BY transaction_id "
        "HAVING sum(amount_cents) <> 0 OR count(*) <> 2 "
        "OR count(DISTINCT (currency, customer_id)) <> 1",
    "a balance that is not the sum of its lines":
        "SELECT * FROM (SELECT *, row_number() OVER line AS nth, "
        "sum(amount_cents) OVER line AS sum FROM credit_entries WINDOW line AS "
        "(PARTITION BY customer_id, currency, account ORDER BY seq)) e "
        "WHERE nth <> seq OR sum <> balance_cents",
    "a balance below zero":
        "SELECT FROM credit_entries WHERE balance_cents < 0 "
        "AND account IN ('customer', 'session', 'earnings')",
    "credits that were set aside or set free twice":
        "SELECT FROM credit_entries WHERE account = 'session' GROUP BY session_id "
        "HAVING count(*) FILTER (WHERE amount_cents > 0) <> 1 "
        "OR count(*) FILTER (WHERE amount_cents < 0) > 1",
    "credits that are not where their booking's end sends them":
        "SELECT e.session_id FROM credit_entries e JOIN sessions s ON s.id = e.session_id "
        "LEFT JOIN credit_entries free ON free.session_id = s.id AND free.account = 'session' "
        "AND free.amount_cents < 0 "
        "LEFT JOIN credit_entries got ON got.transaction_id = free.transaction_id "
        "AND got.amount_cents > 0 "
        "WHERE e.account = 'session' AND e.amount_cents > 0 "
        "AND coalesce(got.account, 'session') <> CASE s.status WHEN 'completed' THEN 'earnings' "
        "WHEN 'cancelled' THEN 'customer' WHEN 'expired' THEN 'customer' ELSE 'session' END",
}  # fmt: skip


async def give(
    connection: Connection | Pool, customer_id: UUID, cents: int, currency: str = "eur"
) -> None:
    """Goodwill."""
    await connection.execute(
        "SELECT move_credits($1, $2, 'grants', 'customer', $3, $4, 'goodwill')",
        uuid4(),
        customer_id,
        cents,
        currency,
    )


def opener(pool: Pool) -> OpenAtOnce:
    """An `open_at_once`: as the dispatcher decides the first stage, where everybody is there."""

    async def open_at_once(prospect: Prospect) -> Opening:
        made = lifecycle.made(prospect.wish, uuid4(), uuid4(), uuid4(), prospect.now, POLICY)
        event = Open(favourite=prospect.favourite, preferred_online=True)
        decision = lifecycle.decide(made, event, prospect.now, POLICY)
        policy_id = await Store(pool).keep_policy(POLICY)
        change = change_of(made, event, decision, prospect.now, POLICY, policy_id, uuid4())
        return Opening(change.document(), prospect.entry(change.booking))

    return open_at_once


async def book_with_credits(
    pool: Pool,
    customer_id: UUID,
    plan: str = "chat10",
    open_at_once: OpenAtOnce | None = None,
    **form: Any,
) -> Created:
    """A booking as the endpoint makes it."""
    wish = IntakeForm(plan=plan, payment_method="credits", **form)
    started = await sessions.start_intake(pool, customer_id, wish, TTL, open_at_once)
    assert started.created is not None
    return started.created


async def settle(
    pool: Pool, request_id: UUID, event: Event, *, after_seconds: float = 0, policy: Policy = POLICY
) -> Decision:
    """What an event does to a booking, its money included, by a clock that is so far ahead."""
    async with pool.acquire() as connection, connection.transaction():
        await shift_clock(connection, after_seconds)
        decision = await change(connection, Store(pool), request_id, event, policy=policy)
        for effect in decision.effects:
            if isinstance(effect, Refund):
                await refunds.queue_for_session(
                    connection,
                    decision.booking.session_id,
                    effect.reason,
                    as_credits=effect.refund_as == "credits",
                )
        return decision


async def accounts(connection: Connection | Pool, customer_id: UUID) -> Accounts:
    """What is in each account of a customer that was ever used."""
    rows = await connection.fetch(
        "SELECT account, sum(amount_cents)::integer AS cents FROM credit_entries "
        "WHERE customer_id = $1 GROUP BY account",
        customer_id,
    )
    return {row["account"]: row["cents"] for row in rows}


async def history(connection: Connection | Pool, session_id: UUID) -> Counter[str]:
    """How often each kind of line stands in a session's history."""
    rows = await connection.fetch(
        "SELECT type FROM session_events WHERE session_id = $1", session_id
    )
    return Counter(row["type"] for row in rows)


async def check_ledger(connection: Connection | Pool) -> None:
    """What must be true at any moment, over all customers."""
    for what, query in _WRONG.items():
        assert await connection.fetch(query) == [], what
