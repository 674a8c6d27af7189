"""What all scenarios share: Stripe's deliveries, nodes that die and come back, and coming to rest.

One job: a base for what performs plans. It delivers events as Stripe would, calls nodes as people
do, runs outboxes, arms the kills of each batch, and in the end goes on without deaths and faults
until nothing is due, nothing undelivered and nothing pending.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from dispatch.errors import DispatchError
from dispatch.stripe_client import StripeFailed
from loadtest.money import reading
from loadtest.money.bank import Bank, Event, signature
from loadtest.money.mortal_stripe import Counter
from loadtest.money.plan import NODES, Deliver, Fault, Flaw, Kill
from loadtest.money.process import Answer
from loadtest.money.world import WEBHOOK_SECRET, World

T = TypeVar("T")
Action = TypeVar("Action")

TRIES: Final = 3
ROUNDS: Final = 400  # some effects are tried again each hour for more than a day
BUGS: Final = 20  # enough is known
AT_ONCE: Final = 4
IDLE_SECONDS: Final = 90_000.0
STALE_SECONDS: Final = 305
REFUSALS: Final = {"refused": "charge_disputed", "busy": "balance_insufficient"}
NO_FAULT: Final[Fault] = ""
HOOK: Final = "/api/stripe/webhook"


class Stage(ABC, Generic[Action]):
    """One run of a plan's batches; who performs them says what each action is."""

    def __init__(self, world: World, bank: Bank, faults: Sequence[Fault]) -> None:
        self.world = world
        self.bank = bank
        self.answered: set[str] = set()
        self.lost: set[str] = set()  # never delivered, and rightly so
        self.taken_wrongly: set[str] = set()
        self.bugs: list[str] = []
        self.deliveries = 0
        self._faults = iter(faults)
        self._faulty = True
        world.bugs.met.clear()
        world.counter = Counter(bank, self.fault, self._refuse)

    @abstractmethod
    async def perform(self, action: Action) -> None:
        """One action of the plan."""

    async def settle(self) -> bool:
        """Ends what somebody waits for at Stripe, and does what else is due; whether there was
        anything. Asked in each round of coming to rest."""
        return False

    async def play(
        self, batches: Sequence[Sequence[Action]], kills: Sequence[Kill], *, idle_day: bool
    ) -> None:
        """Every batch, perhaps a day on which nothing happens, then rest."""
        for number, batch in enumerate(batches):
            for kill in kills:
                if kill.batch == number:
                    process = await self.world.node(kill.node)
                    process.kill_at = process.steps + kill.step
            await asyncio.gather(*(self.perform(action) for action in batch))
        if idle_day:
            self.world.skip(IDLE_SECONDS)
        await self.rest()

    async def rest(self) -> None:
        """No more deaths or faults: all is delivered, again and again, until nothing is due."""
        self._faulty = False
        for process in filter(None, self.world.nodes):
            process.kill_at = None
        for round_ in range(ROUNDS):
            if len(self.world.bugs.met) > BUGS:
                return
            await self.settle()
            await self.deliver_rest()
            nodes = range(NODES) if round_ == 0 else (round_ % NODES,)
            await asyncio.gather(*(self.sweep(node) for node in nodes))
            wait_seconds = await reading.outbox_wait(self.world.db)
            if wait_seconds is None and not self.fresh() and not await self.settle():
                return
            if wait_seconds is not None and wait_seconds > 0:
                self.world.skip(wait_seconds + 0.01)
        self.bugs.append(f"not at rest after {ROUNDS} rounds")

    async def quiet(self) -> None:
        """Nothing goes on by itself in any node."""
        for process in filter(None, self.world.nodes):
            if process.alive:
                await process.quiet()

    # --- faults

    def fault(self, name: str) -> Fault:
        """What befalls the next call to Stripe, which has this name."""
        del name
        return next(self._faults, NO_FAULT) if self._faulty else NO_FAULT

    def _refuse(self, fault: Fault, name: str, asked: dict[str, Any]) -> StripeFailed | None:
        """A refusal that Stripe repeats for a day, of a call that moves something for the first
        time."""
        key = key_of(name, asked)
        refusal = StripeFailed("no", stripe_code=REFUSALS[fault])
        if key is None or not self.bank.refuse(key, refusal):
            return None
        if name == "refund" and fault == "refused":
            self.bank.unwilling.add(asked["payment_id"])
        return refusal

    # --- Stripe's deliveries

    def fresh(self) -> list[Event]:
        return [event for event in self.bank.events if event.id not in self.answered | self.lost]

    async def deliver_one(self, action: Deliver) -> None:
        fresh = self.fresh()
        again = action.pick > 0.8 or not fresh
        events = self.bank.events if again else fresh
        if not events:
            return
        event = events[int(action.pick * 997) % len(events)]
        nodes = [(action.node + copy) % NODES for copy in range(action.copies)]
        if action.flaw is not None:
            await self._deliver_flawed(nodes[0], event, action.flaw)
        else:
            await asyncio.gather(*(self.deliver(node, event) for node in nodes))

    async def deliver(self, number: int, event: Event) -> None:
        self.deliveries += 1
        process = await self.world.node(number)
        signed = signature(event.body, WEBHOOK_SECRET)
        answer = await process.call("POST", HOOK, "", event.body, stripe_signature=signed)
        if answer is not None and 200 <= answer.status < 300:
            self.answered.add(event.id)

    async def _deliver_flawed(self, number: int, event: Event, flaw: Flaw) -> None:
        body, signed = event.body, signature(event.body, WEBHOOK_SECRET)
        match flaw:
            case "reserialised":
                body = msgspec.json.encode(msgspec.json.decode(body))
            case "stale":
                signed = signature(body, WEBHOOK_SECRET, age_seconds=STALE_SECONDS)
            case "wrong_secret":
                signed = signature(body, "whsec_somebody_else")
            case "unsigned":
                signed = ""
        process = await self.world.node(number)
        headers = {"stripe_signature": signed} if signed else {}
        answer = await process.call("POST", HOOK, "", body, **headers)
        if answer is not None and answer.status != 400:
            self.taken_wrongly.add(f"{event.id} {flaw}: {answer.status}")

    async def deliver_rest(self) -> None:
        fresh = self.fresh()
        for start in range(0, len(fresh), AT_ONCE):
            part = fresh[start : start + AT_ONCE]
            await asyncio.gather(*(self.deliver(i % NODES, e) for i, e in enumerate(part)))

    # --- nodes

    async def call(
        self, number: int, method: str, path: str, token: str, body: bytes = b""
    ) -> Answer | None:
        """As people ask: again, a few times, where nobody answered."""
        answer = None
        for attempt in range(TRIES):
            process = await self.world.node((number + attempt) % NODES)
            answer = await process.call(method, path, token, body)
            if answer is not None and answer.status < 500:
                return answer
        return answer

    async def sweep(self, number: int) -> None:
        process = await self.world.node(number)
        delivering = asyncio.ensure_future(process.run(process.node.outbox.run))
        await asyncio.sleep(0)
        await process.quiet()  # it looks again after whatever it has delivered
        delivering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await delivering


def key_of(name: str, asked: dict[str, Any]) -> str | None:
    """The idempotency key of a call; None where it has none."""
    match name:
        case "refund":
            return f"refund-{asked['payment_id']}"
        case "create_checkout":
            return f"checkout-{asked['payment_id']}"
        case "transfer":
            return f"payout-{asked['payout_id']}"
        case "reverse":
            return f"reversal-{asked['reversal_id']}"
        case _:
            return None


async def forgiving(work: Awaitable[T]) -> T | None:
    """None for what may be met; the same again later is right."""
    try:
        return await work
    except DispatchError:
        return None
