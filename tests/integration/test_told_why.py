"""Whoever held a card, or wants it too late, is told why it is gone, on whichever node (O1).

Two nodes that hear each other, windows and hours of their true length. Near is connected to one,
Far to the other, Both to both.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import UUID, uuid4

import pytest

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import Booked, Client, Frame, LivingNode, pass_time, two_nodes
from tests.integration.rows import add_customer, add_mechanic, add_workshop
from tests.integration.test_hours import TRUE_SECONDS
from tests.support import eventually


@dataclass
class Held:
    """One booking, and the devices that hold its card."""

    nodes: tuple[LivingNode, LivingNode]
    stack: AsyncExitStack
    connection: Connection
    database_url: str
    customer: Client
    booked: Booked
    offer_id: str
    near: UUID
    far: UUID
    both: UUID
    devices: dict[str, Client]

    async def connect(self, mechanic_id: UUID, node: int) -> Client:
        """One more device of hers."""
        client = self.nodes[node].client(mechanic_id, "mechanic")
        return await self.stack.enter_async_context(client)


@pytest.fixture
async def held(
    connection: Connection, database_url: str, make_config: MakeConfig
) -> AsyncIterator[Held]:
    customer_id = await add_customer(connection)
    near, far, both = [await add_mechanic(connection) for _ in range(3)]
    async with (
        two_nodes(make_config(**TRUE_SECONDS)) as (here, there),
        AsyncExitStack() as stack,
    ):
        enter = stack.enter_async_context
        customer = await enter(here.client(customer_id, "customer"))
        devices = {
            "near": await enter(here.client(near, "mechanic")),
            "far": await enter(there.client(far, "mechanic")),
            "both, here": await enter(here.client(both, "mechanic")),
            "both, there": await enter(there.client(both, "mechanic")),
        }
        booked = await here.book(customer_id)
        (offer_id,) = {(await device.until("offer"))["offer_id"] for device in devices.values()}
        yield Held(
            (here, there),
            stack,
            connection,
            database_url,
            customer,
            booked,
            offer_id,
            near,
            far,
            both,
            devices,
        )


async def accept(client: Client, offer_id: str, accept_id: UUID | None = None) -> Frame:
    """She accepts; the verdict, without what names the question."""
    re = str(uuid4())
    await client.send("offer.accept", id=re, offer_id=offer_id, accept_id=accept_id or uuid4())
    while True:
        await client.settle()
        for frame in client.frames:
            if frame.get("re") == re:
                return frame


# --- how a round ends -----------------------------------------------------------------------------


async def is_taken(held: Held) -> str:
    winner = await held.connect(await add_mechanic(held.connection), 1)
    assert (await accept(winner, held.offer_id))["type"] == "offer.won"
    return "taken"


async def is_cancelled(held: Held) -> str:
    await held.customer.send("request.cancel", request_id=held.booked.request_id)
    return "cancelled"


async def expires(held: Held) -> str:
    await pass_time(held.database_url, 7201, *held.nodes)
    return "expired"


End = Callable[[Held], Awaitable[str]]


@pytest.mark.parametrize("end", [is_taken, is_cancelled, expires])
async def test_when_a_round_ends_every_holder_on_every_device_is_told_why_once(
    held: Held, end: End
) -> None:
    reason = await end(held)

    for name, device in held.devices.items():
        await device.until("offer.revoked", offer_id=held.offer_id, reason=reason)
        await device.settle()
        assert len(device.of("offer.revoked")) == 1, name
    for mechanic_id, node in ((held.near, 1), (held.far, 0)):
        again = await held.connect(mechanic_id, node)
        assert again.snapshot["offers"] == []


@pytest.mark.parametrize("end", [is_taken, is_cancelled, expires])
async def test_who_accepts_too_late_is_told_why_on_either_node_and_again_the_same(
    held: Held, end: End
) -> None:
    reason = await end(held)
    accept_ids = {name: uuid4() for name in held.devices}

    for device in held.devices.values():
        await device.until("offer.revoked")
    for name, device in held.devices.items():
        lost = await accept(device, held.offer_id, accept_ids[name])
        again = await accept(device, held.offer_id, accept_ids[name])
        for verdict in (lost, again):
            assert (verdict["type"], verdict["reason"]) == ("offer.lost", reason), name
            assert verdict["accept_id"] == str(accept_ids[name])
    elsewhere = await held.connect(held.near, 1)
    lost = await accept(elsewhere, held.offer_id, accept_ids["near"])
    assert (lost["type"], lost["reason"]) == ("offer.lost", reason)


# --- how one mechanic's card goes -----------------------------------------------------------------


async def declines(held: Held) -> None:
    await held.devices["both, here"].send("offer.decline", offer_id=held.offer_id)


async def is_unavailable(held: Held) -> None:
    await held.devices["both, here"].send("availability.set", available=False)


async def wins_another(held: Held) -> None:
    device = held.devices["both, here"]
    customer_id = await add_customer(held.connection)
    other = await held.nodes[1].book(customer_id)
    card = await device.until("offer", request_id=other.request_id)
    await device.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())


async def loses_her_approval(held: Held) -> None:
    await held.connection.execute(
        "UPDATE mechanics SET application_status = 'rejected' WHERE id = $1", held.both
    )


Withdrawal = Callable[[Held], Awaitable[None]]


@pytest.mark.parametrize(
    ("withdraw", "reason"),
    [
        (declines, "not_found"),
        (is_unavailable, "unavailable"),
        (wins_another, "busy"),
        (loses_her_approval, "not_found"),
    ],
)
async def test_who_may_not_have_it_any_more_is_told_on_all_her_devices_and_others_keep_theirs(
    held: Held, withdraw: Withdrawal, reason: str
) -> None:
    await withdraw(held)

    for name in ("both, here", "both, there"):
        device = held.devices[name]
        await device.until("offer.revoked", offer_id=held.offer_id, reason="withdrawn")
        late = await accept(device, held.offer_id)
        assert (late["type"], late["reason"]) == ("offer.lost", reason), name
    for name in ("near", "far"):
        await held.devices[name].settle()
        revoked = [frame["offer_id"] for frame in held.devices[name].of("offer.revoked")]
        assert held.offer_id not in revoked, name
    assert (await accept(held.devices["far"], held.offer_id))["type"] == "offer.won"


@pytest.mark.parametrize("node", [0, 1])
async def test_who_was_never_meant_learns_no_more_than_of_an_offer_that_does_not_exist(
    held: Held, node: int
) -> None:
    workshop = await add_workshop(held.connection)
    own = await held.connect(await add_mechanic(held.connection, workshop), 0)
    customer_id = await add_customer(held.connection)
    booked = await held.nodes[1].book(
        customer_id, routing_type="workshop_only", workshop_id=workshop
    )
    card = await own.until("offer", request_id=booked.request_id)
    outsider = held.devices["near"] if node == 0 else held.devices["far"]

    not_meant = await accept(outsider, card["offer_id"])
    await accept(own, card["offer_id"])
    await eventually(lambda: _is_accepted(held, booked))
    after = await accept(outsider, card["offer_id"])
    unknown = await accept(outsider, str(uuid4()))

    assert not_meant["reason"] == after["reason"] == unknown["reason"] == "not_found"
    assert not_meant.keys() == after.keys() == unknown.keys()


async def _is_accepted(held: Held, booked: Booked) -> bool:
    path = f"/api/requests/{booked.request_id}"
    _, told = await held.nodes[0].call(booked.customer_id, "customer", "GET", path)
    return bool(told["status"] == "accepted")
