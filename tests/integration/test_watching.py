"""Watching a mechanic: what changes of her is told at once, also where she says it herself."""

from dispatch.database import Connection
from dispatch.push_crypto import new_private_key
from tests.conftest import MakeConfig
from tests.integration.living import living_node, two_nodes
from tests.integration.push_service import SUBJECT, Browser
from tests.integration.rows import add_customer, add_mechanic


async def test_who_watches_her_on_her_own_node_hears_at_once_what_she_says(
    connection: Connection, make_config: MakeConfig
) -> None:
    anna, ann = await add_mechanic(connection), await add_customer(connection)
    never_compared = make_config(sweep_seconds=3600.0)
    async with (
        living_node(never_compared) as living,
        living.client(anna, "mechanic") as mechanic,
        living.client(ann, "customer") as customer,
    ):
        await customer.send("mechanic.watch", mechanic_id=anna, id="w")
        assert (await customer.until("mechanic.presence", re="w"))["available"] is True

        for available in (False, True):
            await mechanic.send("availability.set", available=available, id="a")
            await mechanic.until("ok", re="a")
            told = await customer.until("mechanic.presence", available=available)
            assert told["is_online"] is True


async def test_who_watches_her_hears_whether_she_can_be_notified(
    connection: Connection, make_config: MakeConfig
) -> None:
    anna = await add_mechanic(connection)
    ann, bob = await add_customer(connection), await add_customer(connection)
    origin, path = "https://push.example", "/api/push/subscriptions"
    config = make_config(
        vapid_private_key=new_private_key(),
        vapid_subject=SUBJECT,
        push_trusted_origins=(origin,),
        sweep_seconds=3600.0,
    )
    async with (
        two_nodes(config) as (one, other),
        one.client(ann, "customer") as near,
        other.client(bob, "customer") as far,
    ):
        for client in (near, far):
            await client.send("mechanic.watch", mechanic_id=anna, id="w")
            assert (await client.until("mechanic.presence", re="w"))["reachable_by_push"] is False

        form = Browser(f"{origin}/anna", "").form()
        _, device = await one.call(anna, "mechanic", "POST", path, form)
        for client in (near, far):
            await client.until("mechanic.presence", reachable_by_push=True, is_online=False)

        await one.call(anna, "mechanic", "DELETE", f"{path}/{device['id']}")
        for client in (near, far):
            await client.until("mechanic.presence", reachable_by_push=False)
