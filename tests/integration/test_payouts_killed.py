"""Money moves exactly once, wherever a node dies and whatever of the network is lost (M3)."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from dispatch import payouts
from dispatch.config import Config
from dispatch.database import Pool
from dispatch.errors import Unavailable
from dispatch.outbox import LEASE
from dispatch.stripe_client import StripeClient
from tests.integration.paydesk import Paydesk, later
from tests.integration.stripe_servers import Receiver, serving, stand_in
from tests.integration.till import PUBLIC_URL, running
from tests.support import STRIPE_SECRET_KEY, eventually

TIMEOUT_SECONDS = 0.5
TRANSFERS, REVERSALS = "/v1/transfers", "/v1/transfers/*/reversals"
TRIES = 3  # of one call by Stripe's client


@pytest.fixture
async def desk(pool: Pool, tmp_path: Path) -> AsyncIterator[Paydesk]:
    async with (
        serving(Receiver().app()) as url,
        stand_in(tmp_path, f"{url}/webhook") as client,
    ):
        stripe = StripeClient(
            STRIPE_SECRET_KEY,
            api_base=client.url,
            public_url=PUBLIC_URL,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        desk = Paydesk(pool, stripe, client)
        await desk.fund()
        yield desk
        await stripe.close()


class Killed(Exception):
    """The node is gone."""


class Life:
    """Ends at a step. A step is a call of Postgres or Stripe that is about to be made, or one that
    was done and of which the node did not live to hear."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def step(self) -> None:
        if self._left == 0:
            raise Killed
        self._left -= 1


class Mortal:
    """A pool or a client that is used by a node during its life."""

    def __init__(self, target: Any, life: Life) -> None:
        self._target = target
        self._life = life

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **named: Any) -> Any:
            self._life.step()
            answer = await getattr(self._target, name)(*args, **named)
            self._life.step()
            return answer

        return call


Deliver = Callable[[Pool, StripeClient, dict[str, str]], Awaitable[None]]


async def dies(desk: Paydesk, deliver: Deliver, payload: dict[str, str], at: int) -> bool:
    """Delivers by a node that lives for so many steps; whether it died in it."""
    life = Life(at)
    pool, stripe = Mortal(desk.pool, life), Mortal(desk.stripe, life)
    try:
        await deliver(cast(Pool, pool), cast(StripeClient, stripe), payload)
    except Killed:
        return True
    return False


async def killed_everywhere(
    desk: Paydesk, deliver: Deliver, due: Callable[[], Awaitable[dict[str, str]]]
) -> int:
    """For each pair of steps: one node dies at the first, one who tries again at the second, and a
    third delivers. Stripe has forgotten all keys before each of them. How many pairs there were."""
    pairs = 0
    for first in count():
        for second in count():
            payload = await due()
            first_died = await dies(desk, deliver, payload, first)
            await desk.stand_in.control("DELETE", "keys")
            second_died = await dies(desk, deliver, payload, second)
            await desk.stand_in.control("DELETE", "keys")
            await deliver(desk.pool, desk.stripe, payload)
            pairs += 1
            if not second_died:
                break
        if not first_died:
            return pairs
    raise AssertionError


async def test_a_node_may_die_at_any_step_of_a_transfer_and_so_may_the_next(
    desk: Paydesk,
) -> None:
    mechanic_id = await desk.mechanic()

    async def due() -> dict[str, str]:
        return {"payout_id": str(await desk.payout(mechanic_id))}

    pairs = await killed_everywhere(desk, payouts.deliver_transfer, due)

    assert pairs > 50
    assert len(await desk.transfers()) == pairs
    assert await desk.balance(mechanic_id) == pairs * 800
    await desk.agrees()


async def test_a_node_may_die_at_any_step_of_a_reversal_and_so_may_the_next(
    desk: Paydesk,
) -> None:
    mechanic_id = await desk.mechanic()

    async def due() -> dict[str, str]:
        sold = await desk.earn(mechanic_id)
        (made,) = (await desk.run()).made
        await desk.transfer(made.payout_id)
        await desk.refund(sold, 500)
        (reversal,) = await desk.reversals(made.payout_id)
        return {"reversal_id": str(reversal["id"])}

    pairs = await killed_everywhere(desk, payouts.deliver_reversal, due)

    assert pairs > 30
    assert len((await desk.stand_in.ledger())["reversals"]) == pairs
    assert await desk.balance(mechanic_id) == pairs * 400
    await desk.agrees()


@pytest.mark.parametrize("keys_are_kept", [True, False])
async def test_a_node_may_die_at_any_step_of_a_refused_transfer(
    desk: Paydesk, keys_are_kept: bool
) -> None:
    """And whoever delivers it again, to an account that is in order by then, sends it once."""
    mechanic_id = await desk.mechanic()
    account_id = await desk.account_of(mechanic_id)
    paid = 0
    for step in count():
        payout_id = await desk.payout(mechanic_id)
        payload = {"payout_id": str(payout_id)}
        await desk.disable(account_id)
        died = await dies(desk, payouts.deliver_transfer, payload, step)
        await desk.enable(account_id)
        if not keys_are_kept:
            await desk.stand_in.control("DELETE", "keys")
        await desk.transfer(payout_id)
        for made in (await desk.run()).made:  # where it failed
            await desk.transfer(made.payout_id)
        paid += 800
        assert await desk.balance(mechanic_id) == paid
        if not died:
            break

    assert step > 5
    await desk.agrees()


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("do", "times"),
    [
        ("drop_reply", 1),
        ("drop_reply", TRIES),
        ("drop_request", TRIES),
        ("drop_request", 2 * TRIES),
        ("fail", TRIES),
        ("rate_limit", 2),
    ],
)
async def test_whatever_of_a_call_is_lost_the_money_moves_once(
    desk: Paydesk, config: Config, do: str, times: int
) -> None:
    mechanic_id = await desk.mechanic()
    for path in (TRANSFERS, REVERSALS):
        await desk.stand_in.control("POST", "faults", path=path, do=do, times=times)
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made

    await delivered_in_the_end(desk, config)
    await desk.refund(sold, 500)
    await delivered_in_the_end(desk, config)

    assert (await desk.row(made.payout_id))["status"] == "paid"
    assert await desk.balance(mechanic_id) == 400
    await desk.agrees()


@pytest.mark.parametrize("do", ["late", "late_start"])
async def test_a_call_that_is_still_on_its_way_is_not_made_a_second_time(
    desk: Paydesk, config: Config, do: str
) -> None:
    """What is looked up meanwhile is not there yet: the key is what holds it."""
    mechanic_id = await desk.mechanic()
    late_ms = int(TIMEOUT_SECONDS * 5000)
    for path in (TRANSFERS, REVERSALS):
        await desk.stand_in.control("POST", "faults", path=path, do=do, late_ms=late_ms)
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made
    payload = {"payout_id": str(made.payout_id)}

    await asyncio.gather(*(tried(desk, payouts.deliver_transfer, payload) for _ in range(4)))
    await delivered_in_the_end(desk, config)
    await desk.refund(sold, 500)
    (reversal,) = await desk.reversals()
    payload = {"reversal_id": str(reversal["id"])}
    await asyncio.gather(*(tried(desk, payouts.deliver_reversal, payload) for _ in range(4)))
    await delivered_in_the_end(desk, config)

    assert (len(await desk.transfers()), await desk.balance(mechanic_id)) == (1, 400)
    await desk.agrees()


async def tried(desk: Paydesk, deliver: Deliver, payload: dict[str, str]) -> None:
    """Once, whatever comes of it."""
    try:
        await deliver(desk.pool, desk.stripe, payload)
    except Unavailable:
        return


async def delivered_in_the_end(desk: Paydesk, config: Config) -> None:
    """The outbox tries again until nothing is left, some hours later."""
    async with running(desk.outbox()):
        await eventually(partial(nothing_is_due, desk.pool))
    for hours in (1, 2, 3):
        if await desk.is_delivered():
            return
        async with (
            later(config.database_url, hours * 3600.0) as pool_later,
            running(desk.outbox(pool_later)),
        ):
            await eventually(partial(nothing_is_due, pool_later))
    assert await desk.is_delivered()


async def nothing_is_due(pool: Pool) -> bool:
    """Whether everything was tried, as far as it is due."""
    return not await pool.fetchval(
        "SELECT count(*) FROM outbox WHERE done_at IS NULL AND failed_at IS NULL"
        " AND (next_try_at <= dispatch_now() OR last_error IS NULL"
        "      OR next_try_at > dispatch_now() + interval '60 s')"
    )


async def test_many_who_deliver_the_same_at_once_move_the_money_once(desk: Paydesk) -> None:
    """As nodes do that stood still until others had their leases."""
    mechanic_id = await desk.mechanic()
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made

    payload = {"payout_id": str(made.payout_id)}
    await asyncio.gather(*(tried(desk, payouts.deliver_transfer, payload) for _ in range(12)))
    await desk.transfer(made.payout_id)
    await desk.refund(sold, 500)
    (reversal,) = await desk.reversals()
    payload = {"reversal_id": str(reversal["id"])}
    await asyncio.gather(*(tried(desk, payouts.deliver_reversal, payload) for _ in range(12)))
    await desk.reverse(reversal["id"])

    assert (len(await desk.transfers()), await desk.balance(mechanic_id)) == (1, 400)
    await desk.agrees()


# --- a process ------------------------------------------------------------------------------------


_KILLED = """
import asyncio, os, signal, sys
from dispatch import payouts
from dispatch.database import open_pool
from dispatch.outbox import Outbox
from dispatch.stripe_client import StripeClient

async def main(step, kind, database_url, stripe_url, key):
    stripe = StripeClient(key, api_base=stripe_url, public_url="http://dispatch.example")
    pool = await open_pool(database_url)
    call = {"transfer": "transfer", "reversal": "reverse"}[kind]
    done = getattr(stripe, call)

    async def die(**named):
        if step == "answered":
            await done(**named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(stripe, call, die)
    async def deliver(payload):
        await getattr(payouts, f"deliver_{kind}")(pool, stripe, payload)
    await Outbox(pool, {kind: deliver}).run()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", ["transfer", "reversal"])
@pytest.mark.parametrize("step", ["called", "answered"])
async def test_a_process_killed_in_the_middle_leaves_it_to_the_next(
    desk: Paydesk, config: Config, kind: str, step: str
) -> None:
    mechanic_id = await desk.mechanic()
    sold = await desk.earn(mechanic_id)
    (made,) = (await desk.run()).made
    if kind == "reversal":
        await desk.transfer(made.payout_id)
        await desk.refund(sold, 500)

    node = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _KILLED, step, kind, config.database_url, desk.stand_in.url),
        STRIPE_SECRET_KEY,
    )
    exit_code = await node.wait()
    moved_before = len((await desk.stand_in.ledger())[f"{kind}s"])
    await desk.stand_in.control("DELETE", "keys")
    after_the_lease = LEASE["transfer"].total_seconds() + 1
    async with (
        later(config.database_url, after_the_lease) as pool_later,
        running(desk.outbox(pool_later)),
    ):
        await eventually(desk.is_delivered)

    assert exit_code == -signal.SIGKILL
    assert moved_before == (1 if step == "answered" else 0)
    assert await desk.balance(mechanic_id) == (800 if kind == "transfer" else 400)
    await desk.agrees()


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_earnings_payouts_and_refunds_with_nodes_that_die_at_any_time(
    desk: Paydesk, seed: int
) -> None:
    """At the end everybody has what was earned less what was refunded, but for what Stripe would
    not take back and nobody has earned since."""
    dice = random.Random(seed)
    mechanics = [await desk.mechanic() for _ in range(3)]

    async def deliver_something() -> None:
        for row in dice.sample(waiting := await desk.waiting(), min(2, len(waiting))):
            deliver = {
                "transfer": payouts.deliver_transfer,
                "reversal": payouts.deliver_reversal,
            }[row["kind"]]
            payload = msgspec.json.decode(row["payload"], type=dict[str, str])
            try:
                await dies(desk, deliver, payload, dice.randrange(15))
            except Unavailable:
                continue

    sold = []
    for _ in range(25):
        sold.append(await desk.earn(dice.choice(mechanics), dice.randrange(1, 3000)))
        if dice.random() < 0.3:
            await desk.run(dice.choice((1, 500)))
        gone = dice.choice(sold)
        await asyncio.gather(
            deliver_something(),
            deliver_something(),
            desk.refund(gone, dice.randrange(gone.gross_cents + 1)),
        )
        if dice.random() < 0.2:
            await desk.stand_in.control("DELETE", "keys")
    for _ in range(2):
        await desk.run()
        await desk.agrees_when_delivered()

    owed = await desk.pool.fetch(
        "SELECT mechanic_id, sum(mechanic_net_cents - reversed_cents)::int AS cents,"
        " count(*) FILTER (WHERE payout_status = 'processing') AS under_way"
        " FROM mechanic_earnings GROUP BY mechanic_id"
    )
    for row in owed:
        assert (await desk.balance(row["mechanic_id"]), row["under_way"]) == (row["cents"], 0)
