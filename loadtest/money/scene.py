"""Performs one plan: people, Stripe and nodes that die, until nothing is left to be done.

One job: carry out the actions of a `Plan` in a `World`, deliver again as Stripe would, let the
outboxes run dry, and read the truth. It decides nothing about what is right.
"""

import asyncio
from collections import Counter
from functools import partial
from typing import Any, assert_never
from uuid import UUID

import msgspec

from dispatch.reconciler import Reconciler
from dispatch.webhooks import TYPES
from loadtest.money import people, reading
from loadtest.money.bank import Bank, Event, Return, Sale
from loadtest.money.mortal_stripe import LATE_SECONDS
from loadtest.money.plan import (
    NODES,
    Action,
    Cancel,
    Checkout,
    Deliver,
    Fault,
    HandRefund,
    Later,
    Oddity,
    Order,
    Plan,
    Reconcile,
    RefundEnds,
    Serve,
    Settle,
    Sweep,
    TwoRefunds,
    draw,
)
from loadtest.money.rules import Violation, check
from loadtest.money.stage import Stage, forgiving
from loadtest.money.truth import Truth
from loadtest.money.world import World


class Scene(Stage[Action]):
    """One run of a plan; `run` gives the truth."""

    def __init__(self, plan: Plan, world: World, bank: Bank) -> None:
        super().__init__(world, bank, plan.faults)
        self.plan = plan
        self.cancelled: set[UUID] = set()
        self.customers: dict[int, UUID] = {}
        self.intakes: dict[int, UUID] = {}
        self.sales: dict[int, Sale] = {}
        self.slots: list[UUID] = []
        self.late_readings = 0

    async def run(self) -> Truth:
        """Everything that is planned, then whatever is left."""
        for minutes in self.plan.slots:
            self.slots.append(await self.world.slot(minutes))
        await self.play(self.plan.batches, self.plan.kills, idle_day=self.plan.idle_day)
        return await self._truth()

    async def perform(self, action: Action) -> None:
        """One action of the plan."""
        match action:
            case Checkout(order):
                await self._check_out(order)
            case Deliver():
                await self.deliver_one(action)
            case Cancel():
                await self._cancel(action)
            case Serve():
                await self._serve(action)
            case Later(order, node, seconds):
                await self._pass_time(order, node, seconds)
            case TwoRefunds():
                await self._two_refunds(action)
            case Reconcile(node):
                await self._reconcile(node)
            case Sweep(node):
                await self.sweep(node)
            case _:
                self._happens(action)

    def _happens(self, action: Settle | HandRefund | RefundEnds | Oddity) -> None:
        """At Stripe, by somebody else."""
        sale = self.sales.get(action.order)
        if sale is None:
            return
        match action:
            case Settle(order):
                if sale.payment_intent and not sale.paid and not sale.closed:
                    self.bank.settle(sale, comes=self.plan.orders[order].pay == "later")
            case HandRefund(_, share):
                if sale.paid:
                    self.bank.refund_by_hand(sale, max(1, round(sale.cents * share)))
            case RefundEnds(order, fails):
                for made in self._ours(order)[:1]:
                    self.bank.end_refund(made, fails=fails)
            case Oddity(_, kind):
                self.bank.odd(kind, sale)
            case _ as unreachable:
                assert_never(unreachable)

    async def deliver_rest(self) -> None:
        """Or, where Stripe has given up delivering, one node asks."""
        if not self.plan.deaf:
            return await super().deliver_rest()
        told = self.fresh()
        if await self._reconcile(1):
            heard = {event.id for event in told if event.listed and event.type in TYPES}
            self.answered |= heard
            self.lost |= {event.id for event in told} - heard

    async def _reconcile(self, number: int) -> bool:
        """Whether everything was asked for."""
        process = await self.world.node(number)
        node = process.node

        async def ask() -> bool:
            asking = Reconciler(
                node.pool, node.stripe, node.config, lambda o: node.took(o, node.clock.now())
            )
            await asking.once()
            return True

        return bool(await forgiving(process.run(ask)))

    async def _two_refunds(self, action: TwoRefunds) -> None:
        sale = self.sales.get(action.order)
        if sale is None or not sale.paid:
            return
        first = self._gives_back(sale)
        self.late_readings += 1
        reading_first = asyncio.create_task(self.deliver(action.node, first))
        await asyncio.sleep(LATE_SECONDS / 3)
        await self.deliver(1 - action.node, self._gives_back(sale))
        await reading_first

    def _gives_back(self, sale: Sale) -> Event:
        """A tenth by hand; the event of it, or the last one where nothing is left."""
        self.bank.refund_by_hand(sale, sale.cents // 10)
        return self.bank.events[-1]

    def fault(self, name: str) -> Fault:
        """What befalls the next call to Stripe, which has this name."""
        if name == "refunds" and self.late_readings:
            self.late_readings -= 1
            return "late"
        return super().fault(name)

    async def settle(self) -> bool:
        """Money and refunds that are awaited come; what is due of bookings happens."""
        pending = [made for made in self.bank.returns if made.status == "pending"]
        for made in pending:
            self.bank.end_refund(made, fails=False)
        for sale in self.sales.values():
            if sale.payment_intent and not sale.paid and not sale.closed:
                self.bank.settle(sale, comes=True)
        due = await reading.due_requests(self.world.db, list(self.customers.values()))
        for request_id in due:
            await self._fire(0, request_id)
        return bool(pending or due)

    async def _pass_time(self, order: int, node: int, seconds: int) -> None:
        await self.world.pass_time(seconds)
        found = await self._session_of(order)
        if found is not None:
            await self._fire(node, found[1])

    # --- customers and mechanics

    async def _check_out(self, number: int) -> None:
        order = self.plan.orders[number]
        customer_id = await self._customer(order.customer)
        intake_id = await self._intake(number, order, customer_id)
        if intake_id is None:
            return
        token = self.world.token(customer_id, "customer")
        path = f"/api/checkout/create-session?intake_id={intake_id}"
        answer = await self.call(number % NODES, "GET", path, token)
        if answer is None or answer.status != 200:
            return
        sale = self.bank.sales[answer.body["url"].rpartition("/")[2]]
        if sale.payment_intent is None and not sale.closed:
            self.sales[number] = sale
            self._pay(order, sale)

    def _pay(self, order: Order, sale: Sale) -> None:
        match order.pay:
            case "never":
                return
            case "expires":
                self.bank.expire(sale)
                return
            case "short":
                sale.cents -= 100
            case "over":
                sale.cents += 100
            case "currency":
                sale.currency = "usd"
            case _:
                pass
        self.bank.pay(sale, at_once=order.pay not in ("later", "fails"))

    async def _customer(self, number: int) -> UUID:
        if number not in self.customers:
            self.customers[number] = await people.customer(self.world.db)
        return self.customers[number]

    async def _intake(self, number: int, order: Order, customer_id: UUID) -> UUID | None:
        """The signed intake of an order; of an earlier one, its page has become too old."""
        if order.again is not None:
            intake_id = self.intakes.get(order.again)
            await reading.age_payments(self.world.db, intake_id)
            return intake_id
        token = self.world.token(customer_id, "customer")
        wish: dict[str, Any] = {"plan": order.plan}
        if order.slot is not None:
            wish["slot_id"] = self.slots[order.slot]
        steady = self.world.steady
        body = msgspec.json.encode(wish)
        answer = await steady.call("POST", "/api/intake/start", token, body)
        if answer is None or answer.status != 201:
            return None
        self.intakes[number] = UUID(answer.body["intake_id"])
        signed = {"intake_id": self.intakes[number], "name": "Ann", "version": "1"}
        await steady.call("POST", "/api/waiver/sign", token, msgspec.json.encode(signed))
        return self.intakes[number]

    async def _cancel(self, action: Cancel) -> None:
        found = await self._session_of(action.order)
        if found is None:
            return
        session_id, request_id, customer_id = found
        wish = {"refund_as": "credits" if action.as_credits else "money"}
        token = self.world.token(customer_id, "customer")
        path = f"/api/requests/{request_id}/cancel"
        answer = await self.call(action.node, "POST", path, token, msgspec.json.encode(wish))
        if answer is not None and answer.status == 200:
            self.cancelled.add(session_id)

    async def _serve(self, action: Serve) -> None:
        found = await self._session_of(action.order)
        if found is None:
            return
        session_id, _, customer_id = found
        mechanic = self.world.token(await people.mechanic(self.world.db), "mechanic")
        customer = self.world.token(customer_id, "customer")
        for token, verb in ((mechanic, "join"), (customer, "join"), (mechanic, "end")):
            path = f"/api/sessions/{session_id}/{verb}"
            answer = await self.call(action.node, "POST", path, token)
            if answer is None or answer.status != 200:
                return

    async def _session_of(self, order: int) -> tuple[UUID, UUID, UUID] | None:
        sale = self.sales.get(order)
        return None if sale is None else await reading.session_of(self.world.db, sale.id)

    def _ours(self, order: int) -> list[Return]:
        sale = self.sales.get(order)
        intent = None if sale is None else sale.payment_intent
        return [
            made
            for made in self.bank.returns
            if made.payment_intent == intent and made.payment_id and made.status != "failed"
        ]

    # --- nodes

    async def _fire(self, number: int, request_id: UUID) -> None:
        process = await self.world.node(number)
        await forgiving(process.run(partial(process.node.dispatcher.fire, request_id)))

    # --- the truth

    async def _truth(self) -> Truth:
        await self.quiet()
        rows = await reading.rows(
            self.world.db,
            list(self.customers.values()),
            self.slots,
            [*self.bank.sales, *self.bank.foreign],
            [event.id for event in self.bank.events],
        )
        for request_id in rows.request_ids:
            for process in filter(None, [self.world.steady, *self.world.nodes]):
                process.node.dispatcher.timers.disarm(request_id)
        return reading.truth(
            self.bank,
            rows,
            answered=self.answered,
            lost=self.lost,
            taken_wrongly=self.taken_wrongly,
            cancelled=self.cancelled,
            bugs=[*self.bugs, *self.world.bugs.met],
        )


async def play(world: World, seed: int) -> tuple[list[Violation], Counter[str]]:
    """Draws, performs and judges one seed."""
    plan = draw(seed)
    bank = Bank(f"s{seed}x", world.now, plan.pending_refunds, plan.age_seconds)
    scene = Scene(plan, world, bank)
    truth = await scene.run()
    counts = Counter({"deliveries": scene.deliveries, "events": len(bank.events)})
    counts.update(f"payments {payment.status}" for payment in truth.payments)
    counts.update(f"sessions {session.status}" for session in truth.sessions)
    counts.update("refunds" for made in truth.given_back if not made.failed)
    return check(truth), counts
