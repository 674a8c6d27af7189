"""One load run: everybody comes online, every booking is paid at the same moment, all end.

Imports `api`, `behaviour`, `booking`, `client`, `crowd`, `history`, `people`, `progress`. Faults of
the server end up in the history; faults of the set-up (nobody can log in) are raised.
"""

import asyncio
import os
import random
import signal
from collections.abc import Sequence
from typing import Literal

import msgspec

from loadtest.api import Api, Order
from loadtest.behaviour import draw
from loadtest.booking import Booking
from loadtest.crowd import Crowd
from loadtest.history import Fault, Finished, History
from loadtest.people import City, Member
from loadtest.progress import Progress

Strategy = Literal["mix", "priority", "broadcast", "workshop_only", "hybrid"]

PLANS = ("chat10", "video15", "diagnostic")
MIX = ("priority", "priority", "broadcast", "workshop_only", "hybrid")
LATE_SHARE, SHARED_SHARE, TWO_DEVICES_SHARE = 0.06, 0.10, 0.05
SET_UPS_AT_ONCE = 16


class Load(msgspec.Struct, frozen=True):
    """What to run. `limit_seconds` is for one booking; a worker of `pids` is killed on the way."""

    bookings: int
    strategy: Strategy
    seed: int
    limit_seconds: float = 90.0
    settle_seconds: float = 5.5
    pids: list[int] = []


async def run(load: Load, api: Api, city: City, history: History, progress: Progress) -> None:
    """Runs to the end and adds `Finished`; takes at most a few times `limit_seconds`."""
    rng = random.Random(load.seed)
    customers = city.customers[: load.bookings]
    async with Crowd(api, history, load.seed) as crowd:
        progress.stage("logging in")
        await crowd.log_in([*city.mechanics, *customers])
        crowd.add_mechanics(city.mechanics, draw(rng, len(city.mechanics)))
        crowd.add_customers(customers)
        late = rng.sample(city.mechanics, round(LATE_SHARE * len(city.mechanics)))
        progress.stage("connecting")
        late_ids = {member.id for member in late}
        early = [member.id for member in city.mechanics if member.id not in late_ids]
        await crowd.connect([*early, *(customer.id for customer in customers)])
        for who in rng.sample(early, round(TWO_DEVICES_SHARE * len(early))):
            await crowd.add_second_device(who)
        progress.stage("setting up")
        bookings = await _set_up(load, crowd, api, city, history, rng)
        progress.stage("running")
        await _release(load, crowd, bookings, late, history, rng)
        progress.stage("settling")
        await asyncio.sleep(load.settle_seconds)
        history.add(Finished(history.now()))
        progress.stage("done")


async def _set_up(
    load: Load, crowd: Crowd, api: Api, city: City, history: History, rng: random.Random
) -> list[Booking]:
    """All bookings as far as the hosted checkout page; refused ones are left out."""
    customers = city.customers[: load.bookings]
    orders = make_orders(load.strategy, len(customers), city, rng)
    bookings = [
        Booking(
            f"B{index + 1}",
            order,
            api,
            crowd.customers[customer.id],
            crowd.tokens[customer.id],
            history,
        )
        for index, (customer, order) in enumerate(zip(customers, orders, strict=True))
    ]
    turn = asyncio.Semaphore(SET_UPS_AT_ONCE)

    async def one(booking: Booking, customer: Member) -> bool:
        async with turn:
            return await booking.set_up(customer.name)

    ready = await asyncio.gather(*(map(one, bookings, customers)))
    return [booking for booking, is_ready in zip(bookings, ready, strict=True) if is_ready]


def make_orders(strategy: Strategy, count: int, city: City, rng: random.Random) -> list[Order]:
    """`count` orders; most favourites are one customer's only, some are shared by two."""
    favourites = rng.sample(city.mechanics, min(count, len(city.mechanics)))
    orders = []
    for index in range(count):
        kind = strategy if strategy != "mix" else MIX[index % len(MIX)]
        plan = rng.choice(PLANS)
        if kind == "priority":
            shared = index >= len(favourites) or rng.random() < SHARED_SHARE
            favourite = rng.choice(favourites) if shared else favourites[index]
            order = Order(
                plan,
                "priority_broadcast",
                preferred_mechanic_id=favourite.id,
                urgent=rng.random() < 0.1,
            )
        elif kind == "broadcast":
            order = Order(plan, "broadcast", urgent=rng.random() < 0.1)
        else:
            order = Order(plan, kind, workshop_id=rng.choice(city.workshops).id)
        orders.append(order)
    return orders


async def _release(
    load: Load,
    crowd: Crowd,
    bookings: Sequence[Booking],
    late: Sequence[Member],
    history: History,
    rng: random.Random,
) -> None:
    """Pays all bookings at the same moment and follows each to its end."""
    gate = asyncio.Event()

    async def one(booking: Booking, hold_seconds: float) -> None:
        await gate.wait()
        if await booking.pay():
            await booking.follow(load.limit_seconds, hold_seconds)

    async def come(member: Member, after_seconds: float) -> None:
        await gate.wait()
        await asyncio.sleep(after_seconds)
        await crowd.connect([member.id])

    async with asyncio.TaskGroup() as group:
        for booking in bookings:
            group.create_task(one(booking, rng.uniform(0.2, 2.0)))
        for member in late:
            group.create_task(come(member, rng.uniform(1.0, 6.0)))
        if load.pids:
            group.create_task(_kill(gate, rng.choice(load.pids), history, rng))
        gate.set()


async def _kill(gate: asyncio.Event, pid: int, history: History, rng: random.Random) -> None:
    """Kills one worker with SIGKILL in the middle of the first offers."""
    await gate.wait()
    await asyncio.sleep(rng.uniform(0.3, 1.2))
    os.kill(pid, signal.SIGKILL)
    history.add(Fault(history.now(), f"worker {pid} killed with SIGKILL"))
