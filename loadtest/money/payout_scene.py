"""Performs one plan of payouts: sessions that earned, runs, refunds, and nodes that die in them.

One job: carry out the actions of a `payout_plan.Plan` in a `World`, pay in the end everybody who
can be paid, and read the truth. Sessions are written as completed, and earn by the function by
which every session does.
"""

from collections import Counter
from typing import Final, assert_never
from uuid import UUID, uuid4

import asyncpg
import msgspec

from loadtest.money import people
from loadtest.money.bank import Bank, Sale
from loadtest.money.payout_plan import (
    Action,
    Earned,
    GiveBack,
    Later,
    PayOut,
    Plan,
    Standing,
    Sweep,
    draw,
)
from loadtest.money.payout_rules import CameBack, Payout, Sent, Share, Taken, Truth, check
from loadtest.money.plan import Deliver, Fault
from loadtest.money.rules import Violation
from loadtest.money.stage import Stage
from loadtest.money.world import World

CURRENCY: Final = "eur"
MINIMUM_CENTS: Final = 1
LAST_CENTS: Final = 20_000

_COMPLETED = """
WITH i AS (INSERT INTO intakes (customer_id, plan_code) VALUES ($1, 'video15') RETURNING id),
     s AS (INSERT INTO sessions (customer_user_id, mechanic_id, type, status, plan, intake_id,
                                 stripe_session_id, workshop_id, preferred_workshop_id)
           SELECT $1, $2, 'video', 'completed', 'video15', i.id, $5, $3, $4 FROM i
           RETURNING id, intake_id)
INSERT INTO payments (id, customer_id, intake_id, plan_code, session_id, stripe_session_id,
                      payment_intent, amount_cents, currency, received_cents, received_currency,
                      status)
SELECT $6, $1, s.intake_id, 'video15', s.id, $5, $7, $8, $9, $8, $9, 'fulfilled' FROM s
RETURNING session_id
"""
_STANDING = """
WITH w AS (UPDATE organizations SET stripe_payouts_enabled = $2 WHERE id = $1)
UPDATE mechanics SET stripe_payouts_enabled = $2 WHERE id = $1
"""
_PAYOUTS = """
SELECT id, coalesce(workshop_id, mechanic_id) AS payee_id, stripe_account_id, amount_cents,
       currency, status, stripe_transfer_id, reversed_cents
  FROM payouts WHERE coalesce(workshop_id, mechanic_id) = ANY ($1)
"""
_TAKEN = """
SELECT id, payout_id, amount_cents, status, stripe_reversal_id, settled_by
  FROM payout_reversals WHERE payout_id = ANY ($1)
"""
_SHARES = """
SELECT e.session_id, e.workshop_id AS payee_id, e.gross_amount_cents AS gross_cents,
       e.workshop_net_cents AS net_cents, e.reversed_cents, e.is_referral, e.payout_status,
       e.payout_id, p.refunded_cents AS given_back_cents
  FROM workshop_earnings e JOIN payments p ON p.session_id = e.session_id
 WHERE e.workshop_id = ANY ($1)
UNION ALL
SELECT e.session_id, e.mechanic_id, e.gross_amount_cents, e.mechanic_net_cents, e.reversed_cents,
       false, e.payout_status, e.payout_id, p.refunded_cents
  FROM mechanic_earnings e JOIN payments p ON p.session_id = e.session_id
 WHERE e.mechanic_id = ANY ($1)
"""
_LEFT = """
SELECT idempotency_key FROM outbox
 WHERE done_at IS NULL AND idempotency_key = ANY ($1)
"""


class PayoutScene(Stage[Action]):
    """One run of a plan; `run` gives the truth."""

    def __init__(self, plan: Plan, world: World, bank: Bank) -> None:
        super().__init__(world, bank, plan.faults)
        self.plan = plan
        self.payees: dict[UUID, str] = {}  # with their accounts
        self.disabled: set[UUID] = set()
        self._earned_again = False
        self.sales: list[Sale] = []
        self.sessions: dict[str, UUID] = {}  # by payment intent

    async def run(self) -> Truth:
        """Everything that is planned, then whatever is left."""
        db = self.world.db
        prefix = self.bank.prefix
        self.workshop_id = await people.workshop(db, f"acct_{prefix}w")
        self.employee_id = await people.mechanic(db, self.workshop_id)
        self.mechanic_id = await people.mechanic(db, account=f"acct_{prefix}m")
        self.admin_id = await people.admin(db)
        self.customer_id = await people.customer(db)
        self.payees = {self.workshop_id: f"acct_{prefix}w", self.mechanic_id: f"acct_{prefix}m"}
        self.bank.accounts = dict.fromkeys(self.payees.values(), True)
        await self.play(self.plan.batches, self.plan.kills, idle_day=self.plan.idle_day)
        return await self._truth()

    async def perform(self, action: Action) -> None:
        """One action of the plan."""
        match action:
            case Earned():
                await self._earn(action)
            case PayOut(node, minimum_cents):
                await self._pay_out(node, minimum_cents)
            case GiveBack(number, share):
                if number < len(self.sales):
                    sale = self.sales[number]
                    self.bank.refund_by_hand(sale, max(1, round(sale.cents * share)))
            case Sweep(node):
                await self.sweep(node)
            case Later(seconds):
                await self.world.pass_time(seconds)
            case Standing():
                await self._stand(action)
            case Deliver():
                await self.deliver_one(action)
            case _ as unreachable:
                assert_never(unreachable)

    async def settle(self) -> bool:
        """Everybody can be paid, and is, until nobody is owed anything."""
        for payee_id in self.disabled:
            self.bank.accounts[self.payees[payee_id]] = True
            await self.world.db.execute(_STANDING, payee_id, True)
        self.disabled.clear()
        if await self._pay_out(0, MINIMUM_CENTS):
            return True
        if self.plan.unwilling and not self._earned_again:
            self._earned_again = True
            await self._earn(Earned("referral", LAST_CENTS))
            return True
        return False

    def fault(self, name: str) -> Fault:
        """What befalls the next call to Stripe, which has this name."""
        refused = name == "reverse" and self.plan.unwilling
        return "refused" if refused else super().fault(name)

    async def _earn(self, action: Earned) -> None:
        db = self.world.db
        payment_id = uuid4()
        sale = self.bank.sold(payment_id, action.cents, CURRENCY)
        ours = action.served == "workshop"
        named = None if action.served == "independent" else self.workshop_id
        async with db.acquire() as connection, connection.transaction():
            session_id = await connection.fetchval(
                _COMPLETED,
                self.customer_id,
                self.employee_id if ours else self.mechanic_id,
                self.workshop_id if ours else None,
                named,
                sale.id,
                payment_id,
                sale.payment_intent,
                sale.cents,
                sale.currency,
            )
            await connection.execute("SELECT record_session_earnings($1)", session_id)
        assert sale.payment_intent is not None
        self.sessions[sale.payment_intent] = session_id
        self.sales.append(sale)

    async def _pay_out(self, node: int, minimum_cents: int) -> bool:
        """Whether anybody is paid."""
        token = self.world.token(self.admin_id, "admin")
        wish = {"minimum_cents": minimum_cents}
        path = "/api/admin/payouts/run"
        answer = await self.call(node, "POST", path, token, msgspec.json.encode(wish))
        return answer is not None and answer.status == 200 and bool(answer.body["made"])

    async def _stand(self, action: Standing) -> None:
        payee_id = self.workshop_id if action.of_workshop else self.mechanic_id
        self.bank.accounts[self.payees[payee_id]] = action.takes
        self.disabled.add(payee_id)
        if action.heard:
            await self.world.db.execute(_STANDING, payee_id, action.takes)

    # --- the truth

    async def _truth(self) -> Truth:
        await self.quiet()
        db, payees = self.world.db, list(self.payees)
        payouts = [Payout(**dict(row)) for row in await db.fetch(_PAYOUTS, payees)]
        payout_ids = [payout.id for payout in payouts]
        taken = [Taken(**dict(row)) for row in await db.fetch(_TAKEN, payout_ids)]
        return Truth(
            sent=[
                Sent(
                    id=made.id,
                    payout_id=made.payout_id,
                    cents=made.cents,
                    currency=made.currency,
                    destination=made.destination,
                )
                for made in self.bank.sendings
            ],
            came_back=[
                CameBack(id=made_id, transfer_id=made.id, reversal_id=our_id, cents=cents)
                for made in self.bank.sendings
                for our_id, made_id, cents in made.reversals
            ],
            payouts=payouts,
            taken=taken,
            shares=[Share(**dict(row)) for row in await db.fetch(_SHARES, payees)],
            accounts=self.payees,
            back_at_stripe=self._back(),
            left_in_outbox=await _left(db, payout_ids, [row.id for row in taken]),
            unanswered=[event.id for event in self.fresh()],
            bugs=[*self.bugs, *self.world.bugs.met],
        )

    def _back(self) -> dict[UUID, int]:
        back: Counter[UUID] = Counter()
        for made in self.bank.returns:
            back[self.sessions[made.payment_intent]] += made.cents
        return dict(back)


async def _left(db: asyncpg.Pool, payouts: list[UUID], reversals: list[UUID]) -> list[str]:
    keys = [f"payout-{one}" for one in payouts] + [f"reversal-{one}" for one in reversals]
    return [row[0] for row in await db.fetch(_LEFT, keys)]


async def play(world: World, seed: int) -> tuple[list[Violation], Counter[str]]:
    """Draws, performs and judges one seed."""
    bank = Bank(f"t{seed}x", world.now)
    scene = PayoutScene(draw(seed), world, bank)
    truth = await scene.run()
    counts: Counter[str] = Counter({"deliveries": scene.deliveries, "events": len(bank.events)})
    counts.update(f"payouts {payout.status}" for payout in truth.payouts)
    counts.update(f"reversals {taken.status}" for taken in truth.taken)
    counts["debts settled"] += sum(taken.settled_by is not None for taken in truth.taken)
    counts["refunds"] += len(bank.returns)
    return check(truth), counts
