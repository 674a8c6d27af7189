"""Paying out in tests: who is paid, what they earned, both outboxes, and whether Stripe agrees.

A `Paydesk` stands on the stand-in for Stripe, whose platform has money, and on sessions of
`served.py`. `agrees` compares every payout and reversal of ours with those of the stand-in.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg

from dispatch import connect, payouts
from dispatch.database import Pool, close_pool
from dispatch.outbox import Outbox
from dispatch.stripe_client import StripeClient
from tests.integration.rows import add_mechanic, add_workshop
from tests.integration.served import Sold, refunded, sell, serve
from tests.integration.stripe_servers import Json, StandInClient
from tests.integration.till import running
from tests.support import eventually

FUNDS_CENTS = 5_000_000


@dataclass
class Paydesk:
    """The world of one test."""

    pool: Pool
    stripe: StripeClient
    stand_in: StandInClient

    async def fund(self, cents: int = FUNDS_CENTS) -> None:
        """Customers have paid so much to the platform."""
        price = "line_items[0][price_data]"
        await self.stand_in.paid(
            **{f"{price}[currency]": "eur", f"{price}[unit_amount]": str(cents)}
        )

    # --- who is paid

    async def workshop(self, *, account: bool = True) -> UUID:
        """A workshop that can be paid, or that has no account yet."""
        async with self.pool.acquire() as connection:
            workshop_id = await add_workshop(connection)
        if account:
            await self.set_up("organizations", workshop_id)
        return workshop_id

    async def mechanic(self, workshop_id: UUID | None = None, *, account: bool = True) -> UUID:
        """The same of a mechanic, who is independent or a workshop's."""
        async with self.pool.acquire() as connection:
            mechanic_id = await add_mechanic(connection, workshop_id)
        if account:
            await self.set_up("mechanics", mechanic_id)
        return mechanic_id

    async def set_up(self, table: str, payee_id: UUID) -> None:
        """An account at Stripe that takes transfers, and we know it."""
        account = await self.stand_in.payee()
        await self.pool.execute(
            f"UPDATE {table} SET stripe_connect_account_id = $2, stripe_payouts_enabled = true,"
            " stripe_onboarding_completed = true WHERE id = $1",
            payee_id,
            account["id"],
        )

    async def disable(self, account_id: str) -> None:
        """Stripe sends nothing to this account any more; we do not know."""
        await self.stand_in.control("POST", f"accounts/{account_id}", disabled_reason="listed")

    async def enable(self, account_id: str) -> None:
        """The same the other way round, and we hear of it."""
        await self.stand_in.control("POST", f"accounts/{account_id}")
        await connect.refresh(self.pool, self.stripe, account_id)

    # --- what they earn

    async def earn(
        self, mechanic_id: UUID, cents: int = 1000, *, workshop_id: UUID | None = None
    ) -> Sold:
        """She served a session that was sold for so much to somebody who named this workshop."""
        async with self.pool.acquire() as connection, connection.transaction():
            sold = await sell(connection, cents, workshop_id=workshop_id)
            await serve(connection, sold, mechanic_id)
        return sold

    async def refund(self, sold: Sold, cents: int) -> None:
        """So much of it went back to the customer in all."""
        async with self.pool.acquire() as connection, connection.transaction():
            await refunded(connection, sold, cents)

    # --- paying

    async def run(
        self,
        minimum_cents: int = 1,
        *,
        workshop_id: UUID | None = None,
        mechanic_id: UUID | None = None,
    ) -> payouts.Report:
        """Payouts by hand."""
        return await payouts.run(
            self.pool,
            cause="hand",
            minimum_cents=minimum_cents,
            workshop_id=workshop_id,
            mechanic_id=mechanic_id,
        )

    async def payout(self, mechanic_id: UUID, cents: int = 1000) -> UUID:
        """A payout of one more session of hers, whose transfer is in the outbox."""
        await self.earn(mechanic_id, cents)
        (made,) = (await self.run(mechanic_id=mechanic_id)).made
        return made.payout_id

    def outbox(self, pool: Pool | None = None) -> Outbox:
        """One node's outbox, as the server makes it."""
        mine = pool or self.pool
        return Outbox(
            mine,
            {
                "transfer": partial(payouts.deliver_transfer, mine, self.stripe),
                "reversal": partial(payouts.deliver_reversal, mine, self.stripe),
            },
        )

    async def transfer(self, payout_id: UUID) -> None:
        """Delivers the transfer of a payout, and says so in the outbox."""
        payload = {"payout_id": str(payout_id)}
        await payouts.deliver_transfer(self.pool, self.stripe, payload)
        await self._done(f"payout-{payout_id}")

    async def reverse(self, reversal_id: UUID) -> None:
        """The same of a reversal."""
        payload = {"reversal_id": str(reversal_id)}
        await payouts.deliver_reversal(self.pool, self.stripe, payload)
        await self._done(f"reversal-{reversal_id}")

    async def _done(self, key: str) -> None:
        await self.pool.execute(
            "UPDATE outbox SET done_at = dispatch_now() WHERE idempotency_key = $1", key
        )

    async def waiting(self) -> list[asyncpg.Record]:
        """What the outbox has still to deliver."""
        rows: list[asyncpg.Record] = await self.pool.fetch(
            "SELECT * FROM outbox WHERE done_at IS NULL ORDER BY id"
        )
        return rows

    async def is_delivered(self) -> bool:
        """Whether there is nothing in the outbox."""
        return not await self.waiting()

    # --- looking

    async def row(self, payout_id: UUID) -> asyncpg.Record:
        """A payout."""
        row = await self.pool.fetchrow("SELECT * FROM payouts WHERE id = $1", payout_id)
        assert row is not None
        return row

    async def reversals(self, payout_id: UUID | None = None) -> list[asyncpg.Record]:
        """What is to come back of a payout, or of all, the oldest first."""
        rows: list[asyncpg.Record] = await self.pool.fetch(
            "SELECT * FROM payout_reversals WHERE $1::uuid IS NULL OR payout_id = $1"
            " ORDER BY created_at",
            payout_id,
        )
        return rows

    async def transfers(self) -> list[Json]:
        """The transfers in Stripe's ledger."""
        transfers: list[Json] = (await self.stand_in.ledger())["transfers"]
        return transfers

    async def account_of(self, payee_id: UUID) -> str:
        """The payee's account at Stripe."""
        account_id: str = await self.pool.fetchval(
            "SELECT stripe_connect_account_id FROM organizations WHERE id = $1 UNION ALL"
            " SELECT stripe_connect_account_id FROM mechanics WHERE id = $1",
            payee_id,
        )
        return account_id

    async def balance(self, payee_id: UUID) -> int:
        """What the payee has got in cents, less what was taken back."""
        account_id = await self.account_of(payee_id)
        accounts = (await self.stand_in.ledger())["accounts"]
        (cents,) = [each["balance_cents"] for each in accounts if each["id"] == account_id]
        return int(cents.get("eur", 0))

    async def agrees(self) -> None:
        """Every payout and every reversal is at Stripe exactly once where our rows say so, nothing
        else is there, and each amount of ours can be proved."""
        ledger = await self.stand_in.ledger()
        assert await self._ours() == _theirs(ledger)
        assert [book["missing"] for book in ledger["sums"].values()] == [0]
        assert await self.pool.fetch(_UNPROVED) == []

    async def agrees_when_delivered(self) -> None:
        """The same once the outbox has delivered everything."""
        async with running(self.outbox()):
            await eventually(self.is_delivered)
        await self.agrees()

    async def _ours(self) -> Any:
        paid = await self.pool.fetch("SELECT * FROM payouts WHERE status = 'paid'")
        done = await self.pool.fetch(
            "SELECT r.*, p.stripe_transfer_id FROM payout_reversals r"
            " JOIN payouts p ON p.id = r.payout_id WHERE r.status = 'reversed'"
        )
        return (
            sorted(
                (
                    *(f"payout-{row['id']}", row["stripe_transfer_id"], row["amount_cents"]),
                    *(row["currency"], row["stripe_account_id"], row["reversed_cents"]),
                )
                for row in paid
            ),
            sorted(
                (
                    *(str(row["id"]), row["stripe_reversal_id"], row["stripe_transfer_id"]),
                    row["amount_cents"],
                )
                for row in done
            ),
        )


def _theirs(ledger: Json) -> Any:
    return (
        sorted(
            (
                *(each["transfer_group"], each["id"], each["amount"], each["currency"]),
                *(each["destination"], each["amount_reversed"]),
            )
            for each in ledger["transfers"]
        ),
        sorted(
            (each["metadata"]["reversal_id"], each["id"], each["transfer"], each["amount"])
            for each in ledger["reversals"]
        ),
    )


# Payouts that did not fail, and are not what schema.sql says of them.
_UNPROVED = """
    SELECT p.id, p.amount_cents, earned.net, own.back, debts.borne
      FROM payouts p,
   LATERAL (SELECT coalesce(sum(net), 0) AS net FROM (
                SELECT workshop_net_cents - reversed_cents AS net, payout_status
                  FROM workshop_earnings WHERE payout_id = p.id
                UNION ALL
                SELECT mechanic_net_cents - reversed_cents, payout_status
                  FROM mechanic_earnings WHERE payout_id = p.id) e
             WHERE payout_status = CASE p.status WHEN 'paid' THEN 'paid' ELSE 'processing' END
           ) earned,
   LATERAL (SELECT coalesce(sum(amount_cents), 0) AS back FROM payout_reversals
             WHERE payout_id = p.id) own,
   LATERAL (SELECT coalesce(sum(amount_cents), 0) AS borne FROM payout_reversals
             WHERE settled_by = p.id) debts
     WHERE p.status <> 'failed' AND p.amount_cents <> earned.net + own.back - debts.borne
"""


@asynccontextmanager
async def later(database_url: str, seconds: float) -> AsyncIterator[Pool]:
    """A pool to which it is later by so much."""
    settings = {"dispatch.clock_offset": f"{seconds} seconds", "timezone": "UTC"}
    pool = await asyncpg.create_pool(database_url, min_size=1, server_settings=settings)
    yield pool
    await close_pool(pool)
