"""What is tried on whom: in which arm of which experiment a booking is, and what follows (F5).

One job: decide by values alone. An experiment touches bookings that ask for a favourite first, and
only those of customers within its rollout. Imports the core's types.

Both questions, whether a customer is within the rollout and in which arm, are answered by hashes of
the experiment's name and her id: independent of each other, of the node and of the time. So whoever
is in stays in while the rollout rises, and stays in her arm. Her arm is kept all the same, with
the first booking that is touched; a booking's row says what it is dispatched by, and that is what
every later decision about it follows, whatever has become of the experiment.

A customer who chose to wait for a favourite who is away is never touched: she was promised that.
"""

from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate
from typing import Final
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from dispatch.core.types import Booking, Policy, Routing, Wish

_BITS: Final = 64


class Arm(Struct, frozen=True, kw_only=True):
    """One way to dispatch: by `routing` instead of favourite first, or with another window.

    `weight`: its share of the customers is that of the weights.
    """

    name: str
    weight: int
    routing: Routing | None = None
    priority_window_seconds: float | None = None


class Running(Struct, frozen=True, kw_only=True):
    """An experiment that runs now, as one customer meets it: `assigned` is her arm, if kept."""

    name: str
    rollout_percentage: int
    arms: tuple[Arm, ...]
    assigned: str | None = None


class Trial(Struct, frozen=True, kw_only=True):
    """What a booking is dispatched by, and because of which experiment: fields of its row."""

    experiment: str
    arm: str
    routing: Routing
    priority_window_seconds: float | None


def trial(wish: Wish, running: Sequence[Running]) -> Trial | None:
    """How this wish is dispatched otherwise; None: as it is.

    One experiment touches a booking: of those whose rollout she is within, the first that has her
    already, or else the first.
    """
    if wish.routing is not Routing.PRIORITY or wish.wait_for_preferred:
        return None
    around = [each for each in running if _is_within(each, wish.customer_id)]
    if not around:
        return None
    chosen = min(around, key=lambda each: each.assigned is None)
    arm = arm_of(chosen, wish.customer_id)
    return Trial(
        experiment=chosen.name,
        arm=arm.name,
        routing=arm.routing or wish.routing,
        priority_window_seconds=arm.priority_window_seconds,
    )


def arm_of(experiment: Running, customer_id: UUID) -> Arm:
    """The customer's arm: the one that she is in, or else the one that her hash falls on."""
    arms = experiment.arms
    for arm in arms:
        if arm.name == experiment.assigned:
            return arm
    ends = list(accumulate(arm.weight for arm in arms))
    place = _hash(experiment.name, "arm", customer_id) * ends[-1] >> _BITS
    return next(arm for arm, end in zip(arms, ends, strict=True) if place < end)


def _is_within(experiment: Running, customer_id: UUID) -> bool:
    """Whether it may touch her. Not where her arm is none of its arms any more."""
    if experiment.assigned not in (None, *(arm.name for arm in experiment.arms)):
        return False
    place = _hash(experiment.name, "rollout", customer_id)
    return place * 100 < experiment.rollout_percentage << _BITS


def _hash(experiment: str, question: str, customer_id: UUID) -> int:
    """Between 0 and 2 ** _BITS, evenly."""
    digest = sha256(f"{experiment}/{question}/{customer_id}".encode()).digest()
    return int.from_bytes(digest[: _BITS // 8])


def under(booking: Booking, found: Trial | None) -> Booking:
    """A booking that nobody has looked at yet, as it is dispatched."""
    if found is None:
        return booking
    return replace(
        booking,
        experiment=found.experiment,
        arm=found.arm,
        routing=found.routing,
        priority_window_seconds=found.priority_window_seconds,
    )


def policy_of(booking: Booking, policy: Policy) -> Policy:
    """The policy that this booking is decided by: its own window in place of the node's."""
    if booking.priority_window_seconds is None:
        return policy
    return replace(policy, priority_window_seconds=booking.priority_window_seconds)
