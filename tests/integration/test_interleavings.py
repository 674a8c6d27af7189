"""Whatever meets at one booking, the outcome is one that some order of one after the other gives.

The real SQL against the pure core: acts are brought to the locked row one by one and wait there
together; then the lock is let go. What they say, the booking afterwards and its history must be
those of a serial order, which the core tells by deciding act after act. Every order of arrival is
tried, for two and for three acts, before an accept, after it and while the session runs. The same
holds when the first act has written and is not committed, or is rolled back.

Each act has a clock of its own, so that an accept in time meets the expiry that comes later.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import permutations
from typing import Final
from uuid import UUID, uuid4

import msgspec
import pytest
from msgspec.structs import replace

from dispatch.core.lifecycle import decide
from dispatch.core.types import (
    Accept,
    Booking,
    Cancel,
    Candidate,
    Decision,
    Decline,
    Due,
    End,
    Event,
    FavouriteLost,
    Join,
    Log,
    MechanicCancel,
    Role,
    Seen,
    StartRound,
    Widen,
)
from dispatch.database import Connection, Pool
from dispatch.store import Store
from tests.integration.rows import (
    POLICY,
    accept,
    add_mechanic,
    book_and_open,
    candidate,
    change,
    read,
    shift_clock,
    until_blocked,
)


@dataclass(frozen=True)
class Act:
    """Somebody does something, by a clock that is so far ahead."""

    name: str
    event: Callable[["Scene"], Event]
    seconds: float = 0


@dataclass(frozen=True)
class Scene:
    """The booking that everybody acts on, as it was at `now`, and the two mechanics."""

    booking: Booking
    anna: Candidate
    ben: Candidate
    now: datetime


@dataclass(frozen=True)
class Outcome:
    """What each act was told, the booking without its instants, and what its history tells."""

    told: frozenset[tuple[str, str]]
    booking: tuple[object, ...]
    history: tuple[tuple[str, UUID | None], ...]


def taken_by(name: str) -> Callable[[Scene], Event]:
    def event(scene: Scene) -> Event:
        who: Candidate = getattr(scene, name)
        return Accept(who, scene.booking.offer_id, uuid4())

    return event


ANNA_ACCEPTS = Act("Anna accepts", taken_by("anna"))
BEN_ACCEPTS = Act("Ben accepts", taken_by("ben"))
ANNA_DECLINES = Act("Anna declines", lambda scene: Decline(scene.anna, scene.booking.offer_id))
ANNA_SEES = Act("Anna sees it", lambda scene: Seen(scene.anna.mechanic_id))
ANNA_GIVES_BACK = Act("Anna gives back", lambda scene: MechanicCancel(scene.anna.mechanic_id))
ANNA_JOINS = Act("Anna joins", lambda scene: Join(scene.anna.mechanic_id, Role.MECHANIC))
ANNA_LEAVES = Act("Anna leaves", lambda scene: End(scene.anna.mechanic_id))
CUSTOMER_JOINS = Act("they join", lambda scene: Join(scene.booking.customer_id, Role.CUSTOMER))
CUSTOMER_LEAVES = Act("they leave", lambda scene: End(scene.booking.customer_id))
CANCEL = Act("they cancel", lambda _: Cancel())
WIDEN = Act("they widen", lambda _: Widen())
FAVOURITE_LOST = Act("Anna is busy", lambda _: FavouriteLost("busy"))
RETRY = Act("unseen", lambda _: Due(), POLICY.offer_retry_seconds)
WINDOW_ENDS = Act("the window ends", lambda _: Due(), POLICY.priority_window_seconds)
EXPIRES = Act("it expires", lambda _: Due(), POLICY.request_ttl_seconds + 60)
NOBODY_JOINED = Act("nobody joined", lambda _: Due(), POLICY.join_seconds + 60)
WARNING = Act("it warns", lambda _: Due(), 60 * 10 - POLICY.warning_seconds + 5)
MINUTES_ARE_UP = Act("the minutes are up", lambda _: Due(), 60 * 10 + 5)

WHILE_ASKED = [
    ANNA_ACCEPTS,
    BEN_ACCEPTS,
    ANNA_DECLINES,
    CANCEL,
    WIDEN,
    WINDOW_ENDS,
    EXPIRES,
    ANNA_GIVES_BACK,
    FAVOURITE_LOST,
    ANNA_SEES,
    RETRY,
    CUSTOMER_JOINS,
]
ONCE_TAKEN = [
    BEN_ACCEPTS,
    ANNA_ACCEPTS,
    ANNA_GIVES_BACK,
    ANNA_JOINS,
    CUSTOMER_JOINS,
    NOBODY_JOINED,
    CUSTOMER_LEAVES,
    ANNA_LEAVES,
    CANCEL,
]
WHILE_IT_RUNS = [
    ANNA_LEAVES,
    CUSTOMER_LEAVES,
    MINUTES_ARE_UP,
    WARNING,
    ANNA_GIVES_BACK,
    BEN_ACCEPTS,
]
THREE_OF: Final = 6  # triples are made of the first so many acts


# --- the serial orders, told by the core ----------------------------------------------------------


def serial_outcomes(scene: Scene, acts: Iterable[Act]) -> set[Outcome]:
    return {serial_outcome(scene, order) for order in permutations(acts)}


def serial_outcome(scene: Scene, order: Sequence[Act]) -> Outcome:
    """Act after act through the core; of an older round it is told what the judge keeps of it."""
    booking = scene.booking
    told: dict[str, str] = {}
    history: list[tuple[str, UUID | None]] = []
    gave_back: set[UUID] = set()
    for act in order:
        event = act.event(scene)
        if isinstance(event, Accept) and event.offer_id != booking.offer_id:
            hers = event.candidate.mechanic_id in gave_back
            told[act.name] = "cancelled" if hers else "taken"
            continue
        now = scene.now + timedelta(seconds=act.seconds)
        decision = decide(booking, event, now, POLICY)
        told[act.name] = said(decision)
        history += [(e.type, e.user_id) for e in decision.effects if isinstance(e, Log)]
        if StartRound() in decision.effects and booking.mechanic_id is not None:
            gave_back.add(booking.mechanic_id)
            decision = replace(decision, booking=replace(decision.booking, offer_id=uuid4()))
        booking = decision.booking
    return Outcome(frozenset(told.items()), without_instants(booking), tuple(history))


def said(decision: Decision) -> str:
    return decision.rejection.code if decision.rejection else "ok"


def without_instants(booking: Booking) -> tuple[object, ...]:
    """What does not depend on the moment and on ids that are drawn."""
    fields = msgspec.structs.asdict(booking)
    drawn = ("offer_id", "accept_id")
    return tuple(
        value is None if name in drawn or isinstance(value, datetime) else value
        for name, value in fields.items()
    )


# --- the same on real rows ------------------------------------------------------------------------


async def set_scene(connection: Connection, store: Store, before: Sequence[Act]) -> Scene:
    """A new booking, offered to its favourite Anna alone, and then what happened before."""
    anna, ben = [await add_mechanic(connection) for _ in range(2)]
    booking = await book_and_open(
        connection, store, routing_type="priority_broadcast", preferred_mechanic_id=anna
    )
    scene = Scene(
        booking,
        await candidate(connection, anna),
        await candidate(connection, ben),
        await connection.fetchval("SELECT dispatch_now()"),
    )
    for act in before:
        assert await perform(connection, store, scene, act) == "ok"
    return Scene(
        await read(connection, booking.request_id),
        scene.anna,
        scene.ben,
        await connection.fetchval("SELECT dispatch_now()"),
    )


async def perform(connection: Connection, store: Store, scene: Scene, act: Act) -> str:
    """The act in a transaction; what it was told."""
    event = act.event(scene)
    async with connection.transaction():
        await shift_clock(connection, act.seconds)
        if isinstance(event, Accept):
            verdict = await accept(
                connection, event.offer_id, event.candidate.mechanic_id, event.accept_id
            )
            return verdict.reason or "ok"
        return said(await change(connection, store, scene.booking.request_id, event))


async def perform_alone(pool: Pool, store: Store, scene: Scene, act: Act) -> str:
    async with pool.acquire() as connection:
        return await perform(connection, store, scene, act)


async def read_outcome(
    connection: Connection, scene: Scene, acts: Sequence[Act], told: Sequence[str]
) -> Outcome:
    booking = await read(connection, scene.booking.request_id)
    events = await connection.fetch(
        "SELECT type, user_id FROM session_events WHERE session_id = $1 AND at > $2 ORDER BY id",
        booking.session_id,
        scene.now,
    )
    names = [act.name for act in acts]
    return Outcome(
        frozenset(zip(names, told, strict=True)),
        without_instants(booking),
        tuple((row["type"], row["user_id"]) for row in events),
    )


async def race(pool: Pool, store: Store, scene: Scene, order: Sequence[Act]) -> Outcome:
    """All acts wait for the locked booking, arrived in this order, when the lock is let go."""
    async with pool.acquire() as gate:
        async with gate.transaction():
            await gate.execute(
                "SELECT 1 FROM session_requests WHERE id = $1 FOR UPDATE", scene.booking.request_id
            )
            acts = []
            for arrived, act in enumerate(order, 1):
                acts.append(asyncio.create_task(perform_alone(pool, store, scene, act)))
                await until_blocked(pool, arrived)
        told = await asyncio.gather(*acts)
        return await read_outcome(gate, scene, order, told)


SITUATIONS = {
    "while the favourite is asked": ([], WHILE_ASKED),
    "once she has taken it": ([ANNA_ACCEPTS], ONCE_TAKEN),
    "while the session runs": ([ANNA_ACCEPTS, ANNA_JOINS, CUSTOMER_JOINS], WHILE_IT_RUNS),
}
situations = pytest.mark.parametrize(("before", "acts"), SITUATIONS.values(), ids=SITUATIONS.keys())


@pytest.mark.parametrize("at_once", [2, 3])
@situations
async def test_acts_that_meet_have_the_outcome_of_some_serial_order(
    pool: Pool,
    connection: Connection,
    store: Store,
    before: list[Act],
    acts: list[Act],
    at_once: int,
) -> None:
    chosen = acts if at_once == 2 else acts[:THREE_OF]
    for order in permutations(chosen, at_once):
        scene = await set_scene(connection, store, before)

        outcome = await race(pool, store, scene, order)

        assert outcome in serial_outcomes(scene, order), [act.name for act in order]


@pytest.mark.parametrize("commits", [True, False], ids=["is committed", "is rolled back"])
@situations
async def test_an_act_that_meets_an_unfinished_one_waits_for_what_becomes_of_it(
    pool: Pool,
    connection: Connection,
    store: Store,
    before: list[Act],
    acts: list[Act],
    commits: bool,
) -> None:
    for first, second in permutations(acts, 2):
        scene = await set_scene(connection, store, before)
        unfinished = connection.transaction()
        await unfinished.start()
        told = [await perform(connection, store, scene, first)]
        waiting = asyncio.create_task(perform_alone(pool, store, scene, second))
        await until_blocked(pool, 1)

        await (unfinished.commit() if commits else unfinished.rollback())
        told.append(await waiting)

        order = [first, second] if commits else [second]
        outcome = await read_outcome(connection, scene, order, told[-len(order) :])
        assert outcome == serial_outcome(scene, order), (first.name, second.name)
