"""Watching a mechanic: what she says of herself is told at once, also where she says it."""

from dispatch.database import Connection
from tests.conftest import MakeConfig
from tests.integration.living import living_node
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
