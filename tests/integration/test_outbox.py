"""The outbox: every effect delivered, through crashes and the absence of Stripe and Postgres."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch.config import Config
from dispatch.database import Pool, close_pool, open_pool, transaction
from dispatch.errors import Refused, Unavailable
from dispatch.outbox import (
    CONCURRENCY,
    LEASE,
    MAX_ATTEMPTS,
    MAX_RETRY_SECONDS,
    Outbox,
    Payload,
    retry_seconds,
)
from dispatch.refunds import queue_for_session
from dispatch.stripe_client import StripeClient, StripeFailed
from tests.integration.line import Line
from tests.integration.stripe_servers import free_socket
from tests.integration.till import PUBLIC_URL, Till, open_till, running
from tests.support import STRIPE_SECRET_KEY, eventually


@pytest.fixture
async def till(config: Config, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(config, tmp_path) as till:
        yield till


@pytest.fixture
async def pool(config: Config) -> AsyncIterator[Pool]:
    pool = await open_pool(config.database_url)
    yield pool
    await close_pool(pool)


@asynccontextmanager
async def later(config: Config, seconds: float) -> AsyncIterator[Pool]:
    """A pool to which it is later by so much."""
    settings = {"dispatch.clock_offset": f"{seconds} seconds", "timezone": "UTC"}
    pool = await asyncpg.create_pool(config.database_url, min_size=1, server_settings=settings)
    yield pool
    await close_pool(pool)


def after_the_lease(config: Config) -> AbstractAsyncContextManager[Pool]:
    """A pool to which every claim of now is over."""
    return later(config, LEASE["refund"].total_seconds() + 1)


async def put(
    pool: Pool, number: int = 1, *, attempts: int = 0, kind: Literal["refund", "push"] = "refund"
) -> None:
    """An effect that is due, and has been tried so often."""
    await pool.execute(
        "INSERT INTO outbox (kind, idempotency_key, payload, attempts, next_try_at)"
        " VALUES ($4, $1, jsonb_build_object('number', $2::int), $3, dispatch_now())",
        f"effect-{number}",
        number,
        attempts,
        kind,
    )


async def effect(pool: Pool, number: int = 1) -> asyncpg.Record:
    """The row, with whether it is due again only after a while."""
    row = await pool.fetchrow(
        "SELECT *, next_try_at > dispatch_now() AS waits FROM outbox WHERE idempotency_key = $1",
        f"effect-{number}",
    )
    assert row is not None
    return row


async def is_done(pool: Pool, number: int = 1) -> bool:
    return (await effect(pool, number))["done_at"] is not None


class Courier:
    """Delivers by noting it; before that it raises what it was given, one after the other."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.delivered: list[int] = []

    async def __call__(self, payload: Payload) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.delivered.append(payload["number"])


def has_delivered(courier: Courier) -> bool:
    return bool(courier.delivered)


# --- delivering -----------------------------------------------------------------------------------


async def test_what_is_put_while_it_runs_is_delivered_and_done(pool: Pool) -> None:
    courier = Courier()
    outbox = Outbox(pool, {"refund": courier})

    async with running(outbox):
        for number in range(20):
            await put(pool, number)
            outbox.wake()
        await eventually(lambda: len(courier.delivered) == 20)
        await eventually(lambda: is_done(pool, 19))

    assert sorted(courier.delivered) == list(range(20))
    assert (await effect(pool, 19))["attempts"] == 1


async def test_without_a_wake_it_looks_by_itself(pool: Pool) -> None:
    async with running(Outbox(pool, {"refund": Courier()})):
        for number in range(3):  # what another node has put
            await put(pool, number)
            await eventually(partial(is_done, pool, number))


async def test_many_nodes_deliver_each_effect_once(pool: Pool) -> None:
    for number in range(40):
        await put(pool, number)
    couriers = [Courier() for _ in range(4)]

    async with running(*(Outbox(pool, {"refund": courier}) for courier in couriers)):
        await eventually(lambda: sum(len(courier.delivered) for courier in couriers) >= 40)

    delivered = [number for courier in couriers for number in courier.delivered]
    assert sorted(delivered) == list(range(40))


async def test_what_hangs_holds_up_nobody_and_is_not_claimed_twice(pool: Pool) -> None:
    begun: list[int] = []

    async def hang_on_the_first(payload: Payload) -> None:
        begun.append(payload["number"])
        if payload["number"] == 0:
            await asyncio.Event().wait()

    await put(pool, 0)
    outboxes = [Outbox(pool, {"refund": hang_on_the_first}) for _ in range(2)]
    async with running(*outboxes):
        await eventually(lambda: begun == [0])
        for number in range(1, 10):
            await put(pool, number)
        outboxes[0].wake()
        await eventually(lambda: is_done(pool, 9))

    assert sorted(begun) == list(range(10))
    assert not await is_done(pool, 0)


async def test_a_kind_whose_server_hangs_holds_up_no_other_kind(pool: Pool) -> None:
    begun: list[int] = []

    async def hang(payload: Payload) -> None:
        begun.append(payload["number"])
        await asyncio.Event().wait()

    places = CONCURRENCY["push"]
    for number in range(places + 5):
        await put(pool, number, kind="push")
    refunds = Courier()
    async with running(Outbox(pool, {"push": hang, "refund": refunds})):
        await eventually(lambda: len(begun) == places)
        for number in range(100, 110):
            await put(pool, number)
        await eventually(lambda: len(refunds.delivered) == 10)

    assert len(begun) == places


async def test_a_kind_that_this_node_does_not_know_is_left_to_one_that_does(pool: Pool) -> None:
    await put(pool)
    old, new = Outbox(pool, {}), Outbox(pool, {"refund": Courier()})

    claimed = await old._claim()
    async with running(new):
        await eventually(lambda: is_done(pool))

    assert claimed == []
    assert (await effect(pool))["attempts"] == 1


# --- what does not work at first ------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Unavailable("Stripe is away"),
        TimeoutError(),
        StripeFailed("too little money now", stripe_code="balance_insufficient"),
        Refused("not in this minute", mended_by_time=True),
        ZeroDivisionError("a bug"),
    ],
)
async def test_what_time_may_mend_is_tried_again_after_a_while(
    config: Config, pool: Pool, fault: Exception
) -> None:
    await put(pool)
    courier = Courier(fault)

    async with running(Outbox(pool, {"refund": courier})):
        await eventually(lambda: courier.errors == [])
        row = await eventually(lambda: tried(pool))
    assert (row["waits"], row["failed_at"], row["done_at"]) == (True, None, None)
    async with later(config, 2) as pool_later, running(Outbox(pool_later, {"refund": courier})):
        await eventually(lambda: is_done(pool))

    assert courier.delivered == [1]
    assert ((await effect(pool))["attempts"], (await effect(pool))["last_error"]) == (2, None)


async def tried(pool: Pool) -> asyncpg.Record | None:
    """The effect, once an attempt of it has failed."""
    row = await effect(pool)
    return row if row["last_error"] is not None else None


@pytest.mark.parametrize(
    ("fault", "attempts_before"),
    [
        (StripeFailed("No such payment_intent", stripe_code="resource_missing"), 0),
        (Refused("too large"), 0),
        (Unavailable("Stripe is away"), MAX_ATTEMPTS - 1),
        (ZeroDivisionError("a bug"), MAX_ATTEMPTS - 1),
    ],
)
async def test_what_cannot_be_delivered_is_given_up_with_an_alarm(
    pool: Pool, caplog: pytest.LogCaptureFixture, fault: Exception, attempts_before: int
) -> None:
    await put(pool, attempts=attempts_before)
    await put(pool, 2)
    courier = Courier(fault)

    async with running(Outbox(pool, {"refund": courier})):
        await eventually(lambda: is_done(pool, 2))
        row = await eventually(lambda: given_up(pool))

    assert courier.delivered == [2]
    assert row["attempts"] == attempts_before + 1
    assert str(fault) in row["last_error"]
    alarms = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "effect-1 is given up" in alarms[-1]


async def given_up(pool: Pool) -> asyncpg.Record | None:
    row = await effect(pool)
    return row if row["failed_at"] is not None else None


def test_pauses_double_up_to_an_hour_and_differ_between_nodes() -> None:
    for attempts in range(1, MAX_ATTEMPTS):
        longest = min(2 ** (attempts - 1), MAX_RETRY_SECONDS)
        pauses = {retry_seconds(attempts) for _ in range(50)}
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


@pytest.mark.parametrize(("asked_seconds", "waits_seconds"), [(90.0, 90.0), (1e9, 3600.0)])
async def test_it_waits_as_long_as_it_is_asked_to_but_not_for_ever(
    pool: Pool, asked_seconds: float, waits_seconds: float
) -> None:
    await put(pool)
    too_many = Unavailable("too many", retry_after_seconds=asked_seconds)

    async with running(Outbox(pool, {"refund": Courier(too_many)})):
        await eventually(lambda: tried(pool))
    seconds = await pool.fetchval(
        "SELECT extract(epoch FROM next_try_at - dispatch_now())::float FROM outbox"
    )

    assert waits_seconds - 5 < seconds <= waits_seconds


async def test_what_is_made_due_while_it_is_delivered_here_is_delivered_here_twice(
    pool: Pool,
) -> None:
    """As when what it waits for has just been settled: harmless, and the outbox goes on."""
    go_on = asyncio.Event()
    begun: list[int] = []

    async def wait(payload: Payload) -> None:
        begun.append(payload["number"])
        await go_on.wait()

    await put(pool)
    outbox = Outbox(pool, {"refund": wait})
    async with running(outbox):
        await eventually(lambda: begun == [1])
        await pool.execute("UPDATE outbox SET next_try_at = dispatch_now()")
        outbox.wake()
        await eventually(lambda: begun == [1, 1])
        go_on.set()
        await eventually(lambda: is_done(pool))
        await put(pool, 2)
        await eventually(lambda: is_done(pool, 2))

    assert begun == [1, 1, 2]


async def test_who_is_overtaken_by_the_end_of_the_lease_spoils_nothing(
    config: Config, pool: Pool
) -> None:
    """A node that stood still fails late, while another already tries again."""
    go_on = asyncio.Event()
    begun: list[str] = []

    async def stand_still(payload: Payload) -> None:
        begun.append("first")
        await go_on.wait()
        raise Unavailable("woken too late")

    async def take_over(payload: Payload) -> None:
        begun.append("second")
        go_on.set()
        await eventually(lambda: slow._free["refund"] == 4)  # the first has settled
        assert (await effect(pool))["last_error"] is None

    await put(pool)
    slow = Outbox(pool, {"refund": stand_still})
    async with running(slow):
        await eventually(lambda: begun == ["first"])
        async with (
            after_the_lease(config) as pool_later,
            running(Outbox(pool_later, {"refund": take_over})),
        ):
            await eventually(lambda: is_done(pool))

    assert begun == ["first", "second"]


# --- servers that are away ------------------------------------------------------------------------


@pytest.fixture
async def line(config: Config) -> AsyncIterator[Line]:
    line = Line(config.database_url)
    await line.mend()
    yield line
    await line.cut()


@pytest.fixture
async def far_pool(line: Line) -> AsyncIterator[Pool]:
    """The pool of a node at the end of the line."""
    pool = await open_pool(line.url)
    yield pool
    await close_pool(pool)


async def test_without_postgres_it_waits_says_so_once_and_goes_on(
    pool: Pool, far_pool: Pool, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatch.outbox")
    outbox = Outbox(far_pool, {"refund": Courier()})

    async with running(outbox):
        await put(pool, 1)
        await eventually(lambda: is_done(pool, 1))
        await line.cut()
        await eventually(lambda: "the outbox waits" in caplog.text)
        assert [await outbox._claim() for _ in range(5)] == [[]] * 5
        await put(pool, 2)
        await line.mend()
        await eventually(lambda: is_done(pool, 2))

    assert [r.getMessage() for r in caplog.records if r.name == "dispatch.outbox"] == [
        "the outbox waits: the database did not answer, try again",
        "the outbox goes on",
    ]


async def test_an_effect_whose_end_cannot_be_written_is_delivered_again_after_the_lease(
    config: Config, pool: Pool, far_pool: Pool, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    delivered: list[int] = []

    async def lose_postgres(payload: Payload) -> None:
        delivered.append(payload["number"])
        await line.cut()

    await put(pool)
    async with running(Outbox(far_pool, {"refund": lose_postgres})):
        await eventually(lambda: "the outbox waits" in caplog.text)
    row = await effect(pool)
    second = Courier()
    async with (
        after_the_lease(config) as pool_later,
        running(Outbox(pool_later, {"refund": second})),
    ):
        await eventually(lambda: is_done(pool))

    assert (row["done_at"], row["waits"]) == (None, True)
    assert delivered == second.delivered == [1]


# --- refunds, with Stripe -------------------------------------------------------------------------


async def owed(till: Till) -> UUID:
    """A booking that was paid and ended unserved: its payment, of which the refund is queued."""
    url = await till.ordered()
    created = (await till.handle(await till.pay(url))).created
    assert created is not None
    async with transaction(till.pool) as connection:
        assert await queue_for_session(connection, created.session_id, "expired")
    payment_id: UUID = (await till.payment(url))["id"]
    return payment_id


async def is_refunded(till: Till, payment_id: UUID) -> bool:
    """Whether the payment is refunded and its effect done."""
    done: bool = await till.pool.fetchval(
        "SELECT p.status = 'refunded' AND o.done_at IS NOT NULL FROM payments p JOIN outbox o"
        " ON o.idempotency_key = 'refund-' || p.id WHERE p.id = $1",
        payment_id,
    )
    return done


_KILLED = """
import asyncio, os, signal, sys
from uuid import UUID
from dispatch.database import open_pool
from dispatch.outbox import Outbox
from dispatch.stripe_client import StripeClient

async def main(step, database_url, stripe_url, key, payment_intent):
    stripe = StripeClient(key, api_base=stripe_url, public_url="http://dispatch.example")

    async def die(payload):
        if step == "answered":
            await stripe.refund(payment_id=UUID(payload["payment_id"]),
                                payment_intent=payment_intent, reason=payload["reason"])
        os.kill(os.getpid(), signal.SIGKILL)

    await Outbox(await open_pool(database_url), {"refund": die}).run()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("step", ["claimed", "answered"])
async def test_a_node_killed_in_the_middle_of_a_refund_leaves_it_to_the_next(
    till: Till, config: Config, step: str
) -> None:
    payment_id = await owed(till)
    intent = await till.pool.fetchval("SELECT payment_intent FROM payments")

    node = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _KILLED, step, config.database_url, till.stand_in.url),
        *(STRIPE_SECRET_KEY, intent),
    )
    exit_code = await node.wait()
    left = await till.pool.fetchrow("SELECT attempts, done_at FROM outbox")
    refunds_before = len(await till.refunds())
    async with after_the_lease(config) as pool_later, running(till.outbox(pool_later)):
        await eventually(lambda: is_refunded(till, payment_id))

    assert exit_code == -signal.SIGKILL
    assert tuple(left or ()) == (1, None)
    assert refunds_before == (1 if step == "answered" else 0)
    assert len(await till.refunds()) == 1
    assert await till.pool.fetchval("SELECT attempts FROM outbox") == 2


async def test_a_crash_before_the_effect_is_done_does_not_ask_stripe_again(till: Till) -> None:
    payment_id = await owed(till)
    async with running(till.outbox()):
        await eventually(lambda: is_refunded(till, payment_id))
    await till.pool.execute("UPDATE outbox SET done_at = NULL, next_try_at = dispatch_now()")
    await till.stripe.close()

    async with running(till.outbox()):
        await eventually(lambda: is_refunded(till, payment_id))

    assert len(await till.refunds()) == 1


async def test_while_stripe_is_away_the_refund_waits(
    till: Till, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    payment_id = await owed(till)
    there = till.stripe
    with free_socket() as silent:
        address = "http://{}:{}".format(*silent.getsockname())
        till.stripe = StripeClient(STRIPE_SECRET_KEY, api_base=address, public_url=PUBLIC_URL)
        async with running(till.outbox()):
            await eventually(lambda: "is tried again: Stripe" in caplog.text)
        await till.stripe.close()
    status_meanwhile = await till.pool.fetchval("SELECT status FROM payments")
    till.stripe = there

    async with after_the_lease(config) as pool_later, running(till.outbox(pool_later)):
        await eventually(lambda: is_refunded(till, payment_id))

    assert status_meanwhile == "refunding"
    assert len(await till.refunds()) == 1


async def test_a_refund_waits_until_its_intent_is_known(till: Till, config: Config) -> None:
    payment_id = await owed(till)
    intent = await till.pool.fetchval("SELECT payment_intent FROM payments")
    await till.pool.execute("UPDATE payments SET payment_intent = NULL")
    async with running(till.outbox()):
        await eventually(lambda: till.pool.fetchval("SELECT last_error FROM outbox"))
    await till.pool.execute("UPDATE payments SET payment_intent = $1", intent)

    async with later(config, 2) as pool_later, running(till.outbox(pool_later)):
        await eventually(lambda: is_refunded(till, payment_id))

    assert len(await till.refunds()) == 1


async def test_a_refund_that_stripe_refuses_is_held_for_a_person(
    till: Till, caplog: pytest.LogCaptureFixture
) -> None:
    await owed(till)
    await till.pool.execute("UPDATE payments SET payment_intent = $1", f"pi_{uuid4().hex}")

    async with running(till.outbox()):
        row = await eventually(
            lambda: till.pool.fetchrow("SELECT * FROM outbox WHERE failed_at IS NOT NULL")
        )

    assert "resource_missing" in row["last_error"]
    assert await till.pool.fetchval("SELECT status FROM payments") == "held"
    assert "is given up after 1 attempts" in caplog.text
    assert STRIPE_SECRET_KEY not in caplog.text + row["last_error"]


async def test_a_payment_that_was_paid_by_hand_back_is_not_refunded_twice(till: Till) -> None:
    payment_id = await owed(till)
    intent = await till.pool.fetchval("SELECT payment_intent FROM payments")
    await till.stand_in.call("POST", "/v1/refunds", {"payment_intent": intent})

    async with running(till.outbox()):
        await eventually(lambda: is_refunded(till, payment_id))

    assert len(await till.refunds()) == 1


async def test_settled_notifications_are_forgotten_after_a_day_and_money_is_not(
    config: Config, pool: Pool
) -> None:
    await put(pool, 1, kind="push")
    await put(pool, 2, kind="refund")
    await put(pool, 3, kind="push")
    await pool.execute("UPDATE outbox SET done_at = dispatch_now() WHERE id <= 2")

    kept = []
    for number, hours in ((4, 23.0), (5, 25.0)):  # what is delivered comes after what is forgotten
        courier = Courier()
        async with later(config, hours * 3600) as pool_then:
            await put(pool_then, number)
            async with running(Outbox(pool_then, {"refund": courier})):
                await eventually(partial(has_delivered, courier))
        rows = await pool.fetch("SELECT idempotency_key AS key FROM outbox WHERE id <= 3")
        kept.append({row["key"] for row in rows})

    assert kept == [{"effect-1", "effect-2", "effect-3"}, {"effect-2", "effect-3"}]


async def test_a_node_that_ends_gives_back_what_it_was_delivering(pool: Pool) -> None:
    begun = asyncio.Event()

    async def hang(payload: Payload) -> None:
        begun.set()
        await asyncio.Event().wait()

    await put(pool)
    ending = Outbox(pool, {"refund": hang})
    async with running(ending):
        await begun.wait()
    assert (await effect(pool))["waits"]

    await ending.close()

    courier = Courier()
    async with running(Outbox(pool, {"refund": courier})):
        await eventually(partial(has_delivered, courier))
    assert (await effect(pool))["attempts"] == 2
