"""What happens in one scenario of payouts, all of it drawn from a seed.

One job: `draw(seed) -> Plan`. Pure, as `plan` is for payments.
"""

import random
from typing import Final, Literal

from msgspec import Struct

from loadtest.money.plan import NODES, Deliver, Fault, Kill, weighted

# Who served: a workshop's mechanic, an independent one, or one while the customer had named the
# workshop: then both earn.
Served = Literal["workshop", "independent", "referral"]

PRICES: Final = (300, 1000, 1500, 4900, 333, 1)


class Earned(Struct, frozen=True, tag=True):
    """A completed session of such a price, which earns. It gets the next number."""

    served: Served
    cents: int


class PayOut(Struct, frozen=True, tag=True):
    """An operator has everybody paid who is owed at least so much."""

    node: int
    minimum_cents: int


class GiveBack(Struct, frozen=True, tag=True):
    """A person gives back a share of what was paid for a session, in Stripe's dashboard."""

    sale: int
    share: float


class Sweep(Struct, frozen=True, tag=True):
    """A node delivers what the outbox has."""

    node: int


class Later(Struct, frozen=True, tag=True):
    """Time passes; after a day Stripe has forgotten keys."""

    seconds: int


class Standing(Struct, frozen=True, tag=True):
    """An account takes transfers, or none any more. We may have heard of it, or not."""

    of_workshop: bool
    takes: bool
    heard: bool


Action = Earned | PayOut | GiveBack | Sweep | Later | Standing | Deliver


class Plan(Struct, frozen=True):
    """A scenario: batches happen one after the other, the actions of one batch at once."""

    seed: int
    batches: tuple[tuple[Action, ...], ...]
    kills: tuple[Kill, ...]
    faults: tuple[Fault, ...]
    idle_day: bool  # passes before everything comes to rest: Stripe has forgotten all keys
    unwilling: bool  # Stripe takes back nothing of a transfer: that is owed to us, and earned again


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    dice = random.Random(seed)
    sales = weighted(dice, ((1, 3), (2, 4), (3, 3), (4, 1)))
    early = weighted(dice, ((1, 2), (sales, 3)))
    actions: list[tuple[float, Action]] = []

    def at(begin: float, end: float, action: Action) -> None:
        actions.append((dice.uniform(begin, end), action))

    for _ in range(sales - early):
        at(0, 12, _earned(dice))
    for nth in range(weighted(dice, ((1, 2), (2, 5), (3, 3)))):
        at(4 * nth, 4 * nth + 3, _pay_out(dice))
    for _ in range(weighted(dice, ((0, 1), (1, 4), (2, 3), (3, 1)))):
        at(1, 9, GiveBack(dice.randrange(sales), dice.choice((0.1, 0.3, 0.5, 1.0))))
    for _ in range(2 + dice.randrange(5)):
        at(2, 12, _delivery(dice))
    for _ in range(2 + dice.randrange(5)):
        at(1, 12, Sweep(dice.randrange(NODES)))
    if dice.random() < 0.25:
        at(2, 10, Later(dice.choice((130, 4000, 90_000))))
    if dice.random() < 0.2:
        of_workshop = dice.random() < 0.5
        at(0, 5, Standing(of_workshop, takes=False, heard=dice.random() < 0.4))
        at(3, 12, Standing(of_workshop, takes=True, heard=True))
    rest = [action for _, action in sorted(actions, key=lambda timed: timed[0])]
    batches: list[tuple[Action, ...]] = [tuple(_earned(dice) for _ in range(early))]
    while rest:
        size = weighted(dice, ((1, 4), (2, 4), (3, 3), (4, 1)))
        batches.append(tuple(rest[:size]))
        del rest[:size]
    rate = dice.choice((0.0, 0.2, 0.5))
    return Plan(
        seed=seed,
        batches=tuple(batches),
        kills=tuple(_kill(dice, len(batches)) for _ in range(weighted(dice, _KILLS))),
        faults=tuple(_fault(dice, rate) for _ in range(32)),
        idle_day=dice.random() < 0.25,
        unwilling=dice.random() < 0.1,
    )


_KILLS: Final = ((0, 1), (1, 4), (2, 4), (3, 3), (5, 1))


def _earned(dice: random.Random) -> Earned:
    served: Served = dice.choice(("workshop", "independent", "referral"))
    return Earned(served, dice.choice(PRICES))


def _pay_out(dice: random.Random) -> PayOut:
    return PayOut(dice.randrange(NODES), weighted(dice, ((1, 4), (1000, 1))))


def _delivery(dice: random.Random) -> Deliver:
    return Deliver(dice.random(), dice.randrange(NODES), copies=weighted(dice, ((1, 3), (2, 1))))


def _kill(dice: random.Random, batches: int) -> Kill:
    return Kill(dice.randrange(NODES), dice.randrange(batches), 1 + int(26 * dice.random() ** 1.4))


def _fault(dice: random.Random, rate: float) -> Fault:
    if dice.random() >= rate:
        return ""
    return weighted(dice, (("lost", 4), ("unheard", 6), ("late", 3), ("busy", 2), ("refused", 5)))
