"""What happens in one scenario, all of it drawn from a seed.

One job: `draw(seed) -> Plan`. Pure: the same seed is the same plan, on every machine. It knows no
ids: whoever performs it resolves `order` and `pick` to what there is by then.
"""

import random
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

from msgspec import Struct

T = TypeVar("T")

# How an order is paid at Stripe: at once; too little, too much, in another money; later, or then
# not; not at all, until its page expires.
Pay = Literal["right", "short", "over", "currency", "later", "fails", "never", "expires"]
# What is wrong with a delivery: it must be refused, and change nothing.
Flaw = Literal["reserialised", "stale", "unsigned", "wrong_secret"]
# Events that say again what another has said, are none of ours, or say what we never asked for.
Odd = Literal["twin", "foreign", "live", "unknown", "noise"]
# What befalls a call to Stripe: nothing was done; it was done and nobody heard; it was done and is
# heard late; refused for good; refused for now.
Fault = Literal["", "lost", "unheard", "late", "refused", "busy"]

NODES: Final = 2


class Order(Struct, frozen=True):
    """Something to buy. `again`: a second checkout of that order's intake, once its page is old."""

    customer: int
    plan: str
    pay: Pay
    slot: int | None = None
    again: int | None = None


class Checkout(Struct, frozen=True, tag=True):
    """The customer asks for the hosted page, and pays there as the order says."""

    order: int


class Deliver(Struct, frozen=True, tag=True):
    """Stripe delivers one event: `copies` at once, spread over the nodes from `node` on."""

    pick: float
    node: int
    copies: int
    flaw: Flaw | None = None


class Settle(Struct, frozen=True, tag=True):
    """Money that was to come later has come, or has not."""

    order: int


class Cancel(Struct, frozen=True, tag=True):
    """The customer cancels, for her money or for credits."""

    order: int
    node: int
    as_credits: bool


class Serve(Struct, frozen=True, tag=True):
    """A mechanic takes the booking; both join, and the session ends: completed."""

    order: int
    node: int


class Later(Struct, frozen=True, tag=True):
    """Time passes, and what is due of the order's booking happens."""

    order: int
    node: int
    seconds: int


class HandRefund(Struct, frozen=True, tag=True):
    """A person gives back a share of it in Stripe's dashboard."""

    order: int
    share: float


class TwoRefunds(Struct, frozen=True, tag=True):
    """A person gives back a part, and another one before we have Stripe's answer about the first:
    what it says is old by the time that it is here."""

    order: int
    node: int


class RefundEnds(Struct, frozen=True, tag=True):
    """A refund of ours that was pending, or believed to be there, ends."""

    order: int
    fails: bool


class Oddity(Struct, frozen=True, tag=True):
    """Stripe makes an event that must do nothing to the order."""

    order: int
    kind: Odd


class Sweep(Struct, frozen=True, tag=True):
    """A node delivers what the outbox has."""

    node: int


class Reconcile(Struct, frozen=True, tag=True):
    """A node asks Stripe what happened that it has not heard of."""

    node: int


Action = (
    Checkout
    | Deliver
    | Settle
    | Cancel
    | Serve
    | Later
    | HandRefund
    | TwoRefunds
    | RefundEnds
    | Oddity
    | Sweep
    | Reconcile
)


class Kill(Struct, frozen=True):
    """From the beginning of that batch on, so many steps until the node dies."""

    node: int
    batch: int
    step: int


class Plan(Struct, frozen=True):
    """A scenario: batches happen one after the other, the actions of one batch at once."""

    seed: int
    slots: tuple[int, ...]  # minutes from now to the end of each, which has one seat
    orders: tuple[Order, ...]
    batches: tuple[tuple[Action, ...], ...]
    kills: tuple[Kill, ...]
    faults: tuple[Fault, ...]  # of the calls to Stripe in their order; none after these
    pending_refunds: bool  # Stripe says so of each refund that we make, and settles it later
    deaf: bool  # what was not delivered by the end never is: only asking helps
    age_seconds: int  # how long ago it was that Stripe made each event
    idle_day: bool  # passes before everything comes to rest: Stripe has forgotten all keys


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    dice = random.Random(seed)
    slots = tuple(dice.choice((30, 24 * 60)) for _ in range(dice.choice((0, 0, 0, 1))))
    orders = _orders(dice, len(slots))
    first: list[tuple[Action, ...]] = [(Checkout(number),) for number in range(len(orders))]
    if len({order.customer for order in orders}) == len(orders) and dice.random() < 0.5:
        first = [tuple(batch[0] for batch in first)]
    rest = _rest(dice, orders)
    dice.shuffle(rest)
    batches = (*first, *_batches(dice, rest))
    kills = tuple(
        Kill(
            dice.randrange(NODES), dice.randrange(len(batches)), 1 + int(36 * dice.random() ** 1.5)
        )
        for _ in range(weighted(dice, ((0, 1), (1, 4), (2, 4), (3, 2), (4, 1))))
    )
    rate = dice.choice((0.0, 0.0, 0.15, 0.4))
    deaf = dice.random() < 0.1
    faults = tuple(_fault(dice, rate) for _ in range(24))
    return Plan(
        seed=seed,
        slots=slots,
        orders=orders,
        batches=batches,
        kills=tuple(sorted(kills, key=lambda kill: kill.batch)),
        faults=faults,
        pending_refunds=dice.random() < 0.12,
        deaf=deaf,
        age_seconds=0 if deaf else dice.choice((0, 0, 0, 7200)),
        idle_day=dice.random() < 0.1,
    )


def _orders(dice: random.Random, slots: int) -> tuple[Order, ...]:
    orders: list[Order] = []
    for number in range(weighted(dice, ((1, 4), (2, 5), (3, 2)))):
        again = None
        if number and dice.random() < 0.2:
            again = dice.randrange(number)
            while orders[again].again is not None:
                again -= 1
        earlier = orders[again] if again is not None else None
        slot = 0 if slots and dice.random() < 0.8 else None
        orders.append(
            Order(
                customer=earlier.customer if earlier else dice.randrange(2),
                plan=earlier.plan if earlier else dice.choice(("video15", "chat10", "trial")),
                pay=weighted(
                    dice,
                    (
                        *(("right", 12), ("later", 3), ("fails", 1), ("short", 1), ("over", 1)),
                        *(("currency", 1), ("never", 1), ("expires", 1)),
                    ),
                ),
                slot=earlier.slot if earlier else slot,
                again=again,
            )
        )
    return tuple(orders)


def _rest(dice: random.Random, orders: Sequence[Order]) -> list[Action]:
    """What happens after the checkouts, in no order."""
    actions: list[Action] = []
    for number, order in enumerate(orders):
        node, by_hand = dice.randrange(NODES), dice.random() < 0.22
        actions += [
            _delivery(dice) for _ in range(weighted(dice, ((1, 2), (2, 3), (3, 2), (5, 1))))
        ]
        if order.pay in ("later", "fails"):
            actions += [Settle(number), _delivery(dice)]
        fate = weighted(
            dice, (("", 5), ("cancel", 4), ("serve", 3), ("later", 2), ("cancel serve", 1))
        )
        if "cancel" in fate:
            # Who gives back by hand what a customer has as credits already pays it twice.
            actions.append(Cancel(number, node, as_credits=not by_hand and dice.random() < 0.25))
        if "serve" in fate:
            actions.append(Serve(number, dice.randrange(NODES)))
        if "later" in fate:
            actions.append(Later(number, node, seconds=dice.choice((2000, 8000, 100_000))))
        if by_hand:
            for _ in range(dice.choice((1, 1, 2, 3))):
                actions += [HandRefund(number, dice.choice((0.3, 0.5, 1.0))), _delivery(dice)]
        if by_hand and dice.random() < 0.3:
            actions.append(TwoRefunds(number, dice.randrange(NODES)))
        if dice.random() < 0.06:
            actions += [RefundEnds(number, fails=True), _delivery(dice)]
        if dice.random() < 0.25:
            kind: Odd = dice.choice(("twin", "twin", "foreign", "live", "unknown", "noise"))
            actions += [Oddity(number, kind), _delivery(dice)]
    actions += [Sweep(dice.randrange(NODES)) for _ in range(dice.randrange(4))]
    if dice.random() < 0.1:
        actions.append(Reconcile(dice.randrange(NODES)))
    return actions


def _delivery(dice: random.Random) -> Deliver:
    flaws: tuple[Flaw, ...] = ("reserialised", "stale", "unsigned", "wrong_secret")
    return Deliver(
        pick=dice.random(),
        node=dice.randrange(NODES),
        copies=weighted(dice, ((1, 6), (2, 3), (4, 1))),
        flaw=dice.choice(flaws) if dice.random() < 0.08 else None,
    )


def _batches(dice: random.Random, actions: Sequence[Action]) -> list[tuple[Action, ...]]:
    batches = []
    rest = list(actions)
    while rest:
        size = weighted(dice, ((1, 5), (2, 4), (3, 2), (5, 1)))
        batches.append(tuple(rest[:size]))
        del rest[:size]
    return batches


def _fault(dice: random.Random, rate: float) -> Fault:
    if dice.random() >= rate:
        return ""
    return weighted(dice, (("lost", 4), ("unheard", 5), ("late", 6), ("busy", 2), ("refused", 1)))


def weighted(dice: random.Random, choices: Sequence[tuple[T, int]]) -> T:
    """One of them, by their weights."""
    return dice.choices([one for one, _ in choices], [weight for _, weight in choices])[0]
