"""What Stripe did and we have not heard: asked for, at the start of a node and every hour.

One job: bring our rows to what Stripe says, by two questions. *What happened* since the last time:
events that never came as webhooks are taken as if they had. *What became of* everything that our
rows still wait for: checkouts whose time is over, refunds, payouts and accounts under way. Each is
moved by the one module that knows its rows, so that doing it twice, or while webhooks arrive, is
harmless. Imports `payments`, `refunds`, `payouts`, `connect`, `webhooks`, `stripe_client`,
`database`, `queries`, `config` and `errors`.

While Stripe or Postgres is away it tries again, ever more slowly. What Stripe refuses is logged for
a person, and keeps nothing else from being asked.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg

from dispatch import connect, payments, payouts, queries, refunds, webhooks
from dispatch.config import Config
from dispatch.database import Pool, transaction, unavailable_when_lost
from dispatch.errors import Unavailable
from dispatch.payments import Outcome
from dispatch.stripe_client import StripeClient, StripeFailed

log = logging.getLogger(__name__)

_SQL: Final = queries.load("reconciler")

# Looked at again, because an event is listed a little later than it happened.
MARGIN: Final = timedelta(hours=1)
FIRST_LOOK: Final = timedelta(days=3)  # as long as Stripe itself goes on sending a webhook
OVERDUE: Final = timedelta(minutes=5)  # by then the outbox, or a webhook, should have settled it
BATCH: Final = 500  # of each kind in one run; the next run asks for the others
LONGEST_PAUSE_SECONDS: Final = 60.0

Took = Callable[[Outcome], None]


class Reconciler:
    """Asks Stripe; `took` hears of each outcome after its commit, as it does of webhooks."""

    def __init__(self, pool: Pool, stripe: StripeClient, config: Config, took: Took) -> None:
        self._pool = pool
        self._stripe = stripe
        self._config = config
        self._took = took

    async def run(self) -> None:
        """Until everything was asked once."""
        pause_seconds = 1.0
        while True:
            try:
                found = await self.once()
                break
            except Unavailable as error:
                log.info("what Stripe did is asked again in %.0f s: %s", pause_seconds, error)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        if found:
            log.warning("Stripe had done what we had not heard: %s", dict(found))

    async def once(self) -> Counter[str]:
        """What was moved, by kind: empty when we knew everything. Raises `Unavailable`."""
        found: Counter[str] = Counter()
        async with unavailable_when_lost():
            began_at: datetime = await self._pool.fetchval(_SQL["moment"])
        await self._events(found)
        await self._waiting("checkouts_over", self._checkout, found)
        await self._waiting("refunds_under_way", self._refund, found)
        await self._waiting("payouts_under_way", self._payout, found)
        await self._waiting("accounts_under_way", self._account, found)
        async with unavailable_when_lost():
            await self._pool.execute(_SQL["expire"], OVERDUE)
            revived = await self._pool.fetch(_SQL["revive"])
            await self._pool.execute(_SQL["remember"], began_at)
        found["revived"] += len(revived)
        return +found

    # --- what happened

    async def _events(self, found: Counter[str]) -> None:
        async with unavailable_when_lost():
            last: datetime | None = await self._pool.fetchval(_SQL["looked_at"])
        since = datetime.now(UTC) - FIRST_LOOK if last is None else last - MARGIN
        async for event in self._stripe.events(since=since, types=webhooks.TYPES):
            async with unavailable_when_lost():
                if await self._pool.fetchval(_SQL["event_is_known"], event.id):
                    continue
            outcome = await webhooks.take(
                self._pool, self._stripe, self._config, event, is_late=True
            )
            self._took(outcome)
            if outcome.result not in ("duplicate", "repeated", "ignored"):
                found[event.type] += 1

    # --- what became of what we wait for

    async def _waiting(
        self,
        query: str,
        ask: Callable[[asyncpg.Record], Awaitable[bool]],
        found: Counter[str],
    ) -> None:
        """Asks for each row of a query; whether something had moved is counted."""
        async with unavailable_when_lost():
            rows = await self._pool.fetch(_SQL[query], OVERDUE, BATCH)
        for row in rows:
            async with _for_a_person(query, row):
                found[query] += await ask(row)

    async def _checkout(self, row: asyncpg.Record) -> bool:
        """A page that nobody can pay on any more, or money of which the intent is not known."""
        shown = await self._stripe.checkout_session(row["stripe_session_id"])
        ttl = timedelta(seconds=self._config.request_ttl_seconds)
        async with transaction(self._pool) as connection:
            if shown.status == "expired":
                outcome = await payments.closed(connection, shown, "expired")
            elif shown.status == "complete":
                outcome = await payments.completed(connection, ttl, shown)
            else:
                return False
        if outcome.alarm is not None:
            log.error("checkout %s: %s", shown.id, outcome.alarm)
        self._took(outcome)
        return outcome.result not in ("ignored", "repeated", "unpaid")

    async def _refund(self, row: asyncpg.Record) -> bool:
        status = await refunds.refresh(self._pool, self._stripe, row["id"], row["payment_intent"])
        return status in ("refunded", "held")

    async def _payout(self, row: asyncpg.Record) -> bool:
        await payouts.refresh(self._pool, self._stripe, row["id"])
        async with unavailable_when_lost():
            return await self._pool.fetchval(_SQL["payout_is_settled"], row["id"]) is True

    async def _account(self, row: asyncpg.Record) -> bool:
        await connect.refresh(self._pool, self._stripe, row["stripe_connect_account_id"])
        return False  # asked as a matter of course


@asynccontextmanager
async def _for_a_person(what: str, row: Any) -> AsyncIterator[None]:
    try:
        yield
    except StripeFailed as refused:
        log.error("%s %s: Stripe says %s", what, row["id"], refused.message)
