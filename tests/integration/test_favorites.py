"""Favourites: their rows, their order, who sees them, and the wish that books one again."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch import favorites
from dispatch.core.types import Routing
from dispatch.database import Connection, Pool
from dispatch.errors import Conflict, NotFound
from dispatch.favorites import MAX_FAVORITES, ProviderType
from dispatch.node import Node
from dispatch.presence import UserPresence
from dispatch.protocol import MAX_SERVER_FRAME_BYTES, Favorite
from dispatch.sessions import ActiveSessionExists, IntakeForm
from tests.conftest import MakeConfig
from tests.integration.living import living_node
from tests.integration.rows import (
    add_customer,
    add_intake,
    add_mechanic,
    add_workshop,
    create,
    until_blocked,
)
from tests.support import eventually

STORM: Final = 100
NOON: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)


async def like(
    pool: Pool, customer_id: UUID, provider_id: UUID, provider_type: ProviderType = "independent"
) -> bool:
    """Whether the favourite is new."""
    _, is_new = await favorites.add(pool, customer_id, provider_id, provider_type)
    return is_new


async def liked(pool: Pool, customer_id: UUID) -> list[Favorite]:
    """As the snapshot shows them."""
    return (await favorites.of_customers(pool, [customer_id])).get(customer_id, [])


async def ids_of(pool: Pool, customer_id: UUID) -> list[UUID]:
    return [favorite.provider_id for favorite in await liked(pool, customer_id)]


async def most_booked(pool: Pool, customer_id: UUID) -> list[UUID]:
    return [each.provider_id for each in await liked(pool, customer_id) if each.most_booked]


async def had_session(
    connection: Connection,
    customer_id: UUID,
    mechanic_id: UUID | None,
    status: str = "completed",
    *,
    days: float = 0,
    **columns: Any,
) -> None:
    """A session that began so many days after noon; served by the mechanic's workshop, if any."""
    at = NOON + timedelta(days=days)
    values = {
        "customer_user_id": customer_id,
        "mechanic_id": mechanic_id,
        "workshop_id": await connection.fetchval(
            "SELECT workshop_id FROM mechanics WHERE id = $1", mechanic_id
        ),
        "type": "chat",
        "status": status,
        "plan": "chat10",
        "created_at": at,
        "started_at": at if status == "completed" else None,
    } | columns
    places = ", ".join(f"${n}" for n in range(1, len(values) + 1))
    await connection.execute(
        f"INSERT INTO sessions ({', '.join(values)}) VALUES ({places})", *values.values()
    )


async def delete_mechanic(connection: Connection, mechanic_id: UUID) -> None:
    await connection.execute("UPDATE mechanics SET deleted_at = now() WHERE id = $1", mechanic_id)


# --- adding and removing --------------------------------------------------------------------------


async def test_adding_again_changes_nothing(pool: Pool, connection: Connection) -> None:
    ann, mechanic = await add_customer(connection), await add_mechanic(connection)

    first, first_is_new = await favorites.add(pool, ann, mechanic, "independent")
    second, second_is_new = await favorites.add(pool, ann, mechanic, "independent")

    assert (first_is_new, second_is_new) == (True, False)
    assert first == second
    assert (first.provider_id, first.name) == (mechanic, "Kim Doe")
    assert await ids_of(pool, ann) == [mechanic]


async def test_adding_twice_at_once_gives_one_row(pool: Pool, connection: Connection) -> None:
    ann, mechanic = await add_customer(connection), await add_mechanic(connection)

    outcomes = await asyncio.gather(*(like(pool, ann, mechanic) for _ in range(10)))

    assert sorted(outcomes) == [False] * 9 + [True]
    assert await connection.fetchval("SELECT count(*) FROM favorites") == 1


async def test_a_mechanic_of_a_workshop_and_her_workshop_are_two_favourites(
    pool: Pool, connection: Connection
) -> None:
    ann, workshop = await add_customer(connection), await add_workshop(connection)
    mechanic = await add_mechanic(connection, workshop)

    await like(pool, ann, mechanic)
    await like(pool, ann, workshop, "workshop")

    told = {(each.provider_id, each.provider_type, each.name) for each in await liked(pool, ann)}
    assert told == {(mechanic, "independent", "Kim Doe"), (workshop, "workshop", "Garage")}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE mechanics SET application_status = 'pending'",
        "UPDATE mechanics SET application_status = 'rejected'",
        "UPDATE mechanics SET deleted_at = now()",
        "UPDATE users SET disabled_at = now() WHERE role = 'mechanic'",
    ],
)
async def test_who_cannot_be_asked_is_nobodys_new_favourite(
    pool: Pool, connection: Connection, change: str
) -> None:
    ann, mechanic = await add_customer(connection), await add_mechanic(connection)
    await connection.execute(change)

    for provider in (mechanic, uuid4(), ann):
        with pytest.raises(NotFound) as refused:
            await like(pool, ann, provider)
        assert refused.value.code == "mechanic_gone"
    assert await liked(pool, ann) == []


@pytest.mark.parametrize("status", ["pending", "suspended"])
async def test_a_workshop_that_is_not_active_is_nobodys_new_favourite(
    pool: Pool, connection: Connection, status: str
) -> None:
    ann, workshop = await add_customer(connection), await add_workshop(connection)
    await connection.execute("UPDATE organizations SET status = $1", status)

    for provider in (workshop, uuid4()):
        with pytest.raises(NotFound) as refused:
            await like(pool, ann, provider, "workshop")
        assert refused.value.code == "not_found"
    assert await liked(pool, ann) == []


async def test_an_id_of_the_other_kind_is_not_there(pool: Pool, connection: Connection) -> None:
    ann, workshop = await add_customer(connection), await add_workshop(connection)
    mechanic = await add_mechanic(connection, workshop)

    with pytest.raises(NotFound):
        await like(pool, ann, mechanic, "workshop")
    with pytest.raises(NotFound):
        await like(pool, ann, workshop)
    assert await liked(pool, ann) == []


async def test_a_customer_has_at_most_a_hundred(pool: Pool, connection: Connection) -> None:
    ann, bob = await add_customer(connection), await add_customer(connection)
    mechanics = [await add_mechanic(connection) for _ in range(MAX_FAVORITES + 1)]
    for mechanic in mechanics[: MAX_FAVORITES - 1]:
        await like(pool, ann, mechanic)

    async with connection.transaction():  # whoever adds for her stands at the same line
        await connection.execute("SELECT FROM customers WHERE id = $1 FOR UPDATE", ann)
        last = [like(pool, ann, mechanic) for mechanic in mechanics[MAX_FAVORITES - 1 :]]
        racing = asyncio.gather(*last, return_exceptions=True)
        await until_blocked(pool, 2)
    outcomes = await racing

    (refused,) = [outcome for outcome in outcomes if outcome is not True]
    assert isinstance(refused, Conflict)
    assert refused.code == "too_many_favorites"
    chosen = await ids_of(pool, ann)
    assert len(chosen) == MAX_FAVORITES
    assert not await like(pool, ann, chosen[0]), "what is there is there"
    assert await like(pool, bob, mechanics[0])
    await favorites.remove(pool, ann, chosen[0])
    (left_out,) = set(mechanics) - set(chosen)
    assert await like(pool, ann, left_out)


async def test_only_ones_own_favourite_can_be_removed(pool: Pool, connection: Connection) -> None:
    ann, bob = await add_customer(connection), await add_customer(connection)
    mechanic, workshop = await add_mechanic(connection), await add_workshop(connection)
    for customer in (ann, bob):
        await like(pool, customer, mechanic)
    await like(pool, bob, workshop, "workshop")

    await favorites.remove(pool, bob, mechanic)

    for customer, provider in ((bob, mechanic), (ann, workshop), (ann, uuid4())):
        with pytest.raises(NotFound):
            await favorites.remove(pool, customer, provider)
    assert await ids_of(pool, ann) == [mechanic]
    assert await ids_of(pool, bob) == [workshop]


# --- one who is deleted ---------------------------------------------------------------------------


async def test_a_deleted_mechanic_is_nobodys_favourite_any_more(
    pool: Pool, connection: Connection
) -> None:
    ann, bob = await add_customer(connection), await add_customer(connection)
    workshop = await add_workshop(connection)
    gone, staying = await add_mechanic(connection, workshop), await add_mechanic(connection)
    for customer in (ann, bob):
        await like(pool, customer, gone)
    await like(pool, ann, workshop, "workshop")
    await like(pool, bob, staying)

    await delete_mechanic(connection, gone)

    assert await ids_of(pool, ann) == [workshop]
    assert await ids_of(pool, bob) == [staying]


async def test_who_is_just_being_deleted_does_not_become_a_favourite(
    pool: Pool, connection: Connection
) -> None:
    ann, mechanic = await add_customer(connection), await add_mechanic(connection)

    async with connection.transaction():
        await delete_mechanic(connection, mechanic)
        adding = asyncio.create_task(like(pool, ann, mechanic))
        await until_blocked(pool, 1)

    with pytest.raises(NotFound):
        await adding
    assert await connection.fetchval("SELECT count(*) FROM favorites") == 0


# --- the list -------------------------------------------------------------------------------------


async def test_the_most_booked_comes_first_and_is_marked(
    pool: Pool, connection: Connection
) -> None:
    ann = await add_customer(connection)
    once, never, twice_long_ago, twice_lately, newest = [
        await add_mechanic(connection) for _ in range(5)
    ]
    for mechanic in (once, never, twice_lately, twice_long_ago, newest):
        await like(pool, ann, mechanic)
    for mechanic, days in ((twice_long_ago, 0), (twice_long_ago, 1), (twice_lately, 0)):
        await had_session(connection, ann, mechanic, days=days)
    await had_session(connection, ann, twice_lately, days=2)
    await had_session(connection, ann, once, days=9)

    assert await most_booked(pool, ann) == [twice_lately]
    assert await ids_of(pool, ann) == [twice_lately, twice_long_ago, once, newest, never]


async def test_of_those_with_the_same_sessions_one_is_marked(
    pool: Pool, connection: Connection
) -> None:
    ann = await add_customer(connection)
    mechanics = [await add_mechanic(connection) for _ in range(4)]
    for mechanic in mechanics:
        await like(pool, ann, mechanic)
        await had_session(connection, ann, mechanic)

    assert await most_booked(pool, ann) == [min(mechanics)]
    assert (await ids_of(pool, ann))[0] == min(mechanics)


async def test_only_ones_own_completed_sessions_count(pool: Pool, connection: Connection) -> None:
    ann, bob = await add_customer(connection), await add_customer(connection)
    mechanic, workshop = await add_mechanic(connection), await add_workshop(connection)
    for provider, kind in ((mechanic, "independent"), (workshop, "workshop")):
        await favorites.add(pool, ann, provider, kind)  # type: ignore[arg-type]
    await had_session(connection, bob, mechanic)
    await had_session(connection, ann, mechanic, "cancelled")
    await had_session(connection, ann, mechanic, "accepted", mechanic_slot=1)
    stranger = await add_mechanic(connection)
    await had_session(connection, ann, stranger, preferred_workshop_id=workshop)

    assert await most_booked(pool, ann) == []


async def test_a_workshops_sessions_are_those_that_it_served(
    pool: Pool, connection: Connection
) -> None:
    ann, workshop = await add_customer(connection), await add_workshop(connection)
    kim, lee = [await add_mechanic(connection, workshop) for _ in range(2)]
    await like(pool, ann, kim)
    await like(pool, ann, workshop, "workshop")
    for mechanic in (kim, kim, lee):
        await had_session(connection, ann, mechanic)

    assert await most_booked(pool, ann) == [workshop]
    await delete_mechanic(connection, lee)
    assert await most_booked(pool, ann) == [workshop], "what she served stays served"


async def test_the_favourites_of_many_customers_are_kept_apart(
    pool: Pool, connection: Connection
) -> None:
    ann, bob, eve = [await add_customer(connection) for _ in range(3)]
    mechanic, other = await add_mechanic(connection), await add_mechanic(connection)
    for customer, provider in ((ann, mechanic), (ann, other), (bob, mechanic)):
        await like(pool, customer, provider)
        await had_session(connection, customer, mechanic)

    found = await favorites.of_customers(pool, [ann, bob, eve])

    assert {
        customer: [(each.provider_id, each.most_booked) for each in chosen]
        for customer, chosen in found.items()
    } == {ann: [(mechanic, True), (other, False)], bob: [(mechanic, True)]}


async def test_the_list_tells_who_is_there_with_one_look_up_of_presence(
    connection: Connection, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, workshop = await add_customer(connection), await add_workshop(connection)
    here, away, withdrawn = [await add_mechanic(connection, workshop) for _ in range(3)]
    await connection.execute("UPDATE mechanics SET available = false WHERE id = $1", withdrawn)
    async with (
        living_node(make_config()) as living,
        living.client(here, "mechanic"),
        living.client(withdrawn, "mechanic"),
    ):
        node = living.node
        for mechanic in (here, away, withdrawn):
            await like(node.pool, ann, mechanic)
        await like(node.pool, ann, workshop, "workshop")
        await eventually(lambda: are_mirrored(connection, 2))
        asked = count_look_ups(node, monkeypatch)

        listing = await list_favorites(node, ann)

    assert asked == [3]
    told = {
        each.provider_id: (each.presence, each.is_online, each.available, each.available_mechanics)
        for each in listing.favorites
    }
    assert told == {
        here: ("online", True, True, None),
        away: ("offline", False, True, None),
        withdrawn: ("online", True, False, None),
        workshop: (None, None, None, 1),
    }
    seen = {each.provider_id: each.last_seen is not None for each in listing.favorites}
    assert seen == {here: True, away: False, withdrawn: True, workshop: False}


async def list_favorites(
    node: Node, customer_id: UUID, limit: int = 100, offset: int = 0
) -> favorites.Listing:
    return await favorites.listing(
        node.pool, node.mechanics, customer_id, limit=limit, offset=offset, capacity=1
    )


def count_look_ups(node: Node, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many people each look-up of presence was for, from now on."""
    asked: list[int] = []
    look_up = node.presence.look_up

    async def counted(user_ids: Sequence[UUID]) -> dict[UUID, UserPresence]:
        asked.append(len(user_ids))
        return await look_up(user_ids)

    monkeypatch.setattr(node.presence, "look_up", counted)
    return asked


async def test_the_list_comes_in_pages_that_agree(
    connection: Connection, make_config: MakeConfig
) -> None:
    ann = await add_customer(connection)
    mechanics = [await add_mechanic(connection) for _ in range(5)]
    async with living_node(make_config()) as living:
        node = living.node
        for number, mechanic in enumerate(mechanics):
            await like(node.pool, ann, mechanic)
            for _ in range(number):
                await had_session(connection, ann, mechanic, days=number)

        whole = await list_favorites(node, ann)
        pages = [await list_favorites(node, ann, limit=2, offset=start) for start in (0, 2, 4)]
        beyond = await list_favorites(node, ann, limit=2, offset=5)

    assert [each.provider_id for each in whole.favorites] == mechanics[::-1]
    assert [each.sessions for each in whole.favorites] == [4, 3, 2, 1, 0]
    assert [each.most_booked for each in whole.favorites] == [True] + 4 * [False]
    assert whole.favorites[0].last_session_at == "2026-11-24T12:00:00.000Z"
    assert whole.favorites[4].last_session_at is None
    paged = [(each.provider_id, each.most_booked) for page in pages for each in page.favorites]
    assert paged == [(each.provider_id, each.most_booked) for each in whole.favorites]
    assert [(page.total, page.limit, page.offset) for page in pages] == [
        (5, 2, 0),
        (5, 2, 2),
        (5, 2, 4),
    ]
    assert (beyond.favorites, beyond.total) == ([], 5)


async def are_mirrored(connection: Connection, count: int) -> bool:
    online = await connection.fetchval("SELECT count(*) FROM mechanics WHERE is_online")
    return bool(online == count)


# --- the snapshot ---------------------------------------------------------------------------------


async def test_a_snapshot_shows_the_favourites_and_who_is_booked_most(
    pool: Pool, connection: Connection, make_config: MakeConfig
) -> None:
    ann, workshop = await add_customer(connection), await add_workshop(connection)
    mechanic = await add_mechanic(connection)
    await like(pool, ann, mechanic)
    await like(pool, ann, workshop, "workshop")
    await had_session(connection, ann, mechanic)

    async with living_node(make_config()) as living, living.client(ann, "customer") as client:
        assert client.snapshot["favorites"] == [
            {
                "provider_id": str(mechanic),
                "provider_type": "independent",
                "name": "Kim Doe",
                "most_booked": True,
            },
            {
                "provider_id": str(workshop),
                "provider_type": "workshop",
                "name": "Garage",
                "most_booked": False,
            },
        ]
        assert client.snapshot["more_favorites"] is False


async def test_a_snapshot_ends_its_favourites_where_a_frame_is_full(
    pool: Pool, connection: Connection, make_config: MakeConfig
) -> None:
    ann = await add_customer(connection)
    for _ in range(MAX_FAVORITES):
        await like(pool, ann, await add_mechanic(connection))
    booked = (await ids_of(pool, ann))[-1]
    await had_session(connection, ann, booked)
    await connection.execute("UPDATE users SET name = repeat('🔧', 200)")
    slot = await connection.fetchval(
        "INSERT INTO slots (starts_at, ends_at, capacity) "
        "VALUES (now() + interval '1 day', now() + interval '2 days', 100) RETURNING id"
    )
    for _ in range(90):
        await create(connection, await add_intake(connection, ann, slot_id=slot))

    async with living_node(make_config()) as living, living.client(ann, "customer") as client:
        shown = client.snapshot["favorites"]
        size = len(json.dumps(client.frames[0], ensure_ascii=False, separators=(",", ":")).encode())

    assert size <= MAX_SERVER_FRAME_BYTES
    assert 20 < len(shown) < MAX_FAVORITES
    assert shown[0]["provider_id"] == str(booked)
    assert client.snapshot["more_favorites"] is True
    assert len(client.snapshot["requests"]) == 90


async def test_a_storm_of_customers_costs_a_few_queries(
    pool: Pool, connection: Connection, make_config: MakeConfig
) -> None:
    mechanic = await add_mechanic(connection)
    customers = [await add_customer(connection) for _ in range(STORM)]
    for customer in customers:
        await like(pool, customer, mechanic)

    async with living_node(make_config()) as living, AsyncExitStack() as stack:
        sent = await count_queries(living.node.pool, "FROM favorites")
        clients = await asyncio.gather(
            *(stack.enter_async_context(living.client(each, "customer")) for each in customers)
        )

    assert [len(client.snapshot["favorites"]) for client in clients] == [1] * STORM
    assert len(sent) < STORM / 4


async def count_queries(pool: Pool, part: str) -> list[str]:
    """A list that grows with every query that has this part and that the pool really sends."""
    sent: list[str] = []

    def note(query: asyncpg.connection.LoggedQuery) -> None:
        if part in query.query:
            sent.append(query.query)

    connections = [await pool.acquire() for _ in range(pool.get_max_size())]
    for each in connections:
        each.add_query_logger(note)
        await pool.release(each)
    return sent


# --- booking one again ----------------------------------------------------------------------------


async def rebooking(pool: Pool, customer_id: UUID, provider_id: UUID) -> IntakeForm:
    return await favorites.rebooking(pool, customer_id, provider_id, wait_for_preferred=True)


async def refusal_of(pool: Pool, customer_id: UUID, provider_id: UUID) -> str:
    with pytest.raises((NotFound, Conflict)) as refused:
        await rebooking(pool, customer_id, provider_id)
    return refused.value.code


async def test_the_wish_is_that_of_the_last_session_which_the_mechanic_accepted(
    pool: Pool, connection: Connection
) -> None:
    ann, bob = await add_customer(connection), await add_customer(connection)
    mechanic, other = await add_mechanic(connection), await add_mechanic(connection)
    smoke = {"plan_code": "video15", "vehicle": "Golf", "concern": "Smoke", "urgent": True}
    wish = await add_intake(connection, ann, is_specialist=True, **smoke)
    await had_session(connection, ann, mechanic, days=0, plan="chat10")
    await had_session(
        connection, ann, mechanic, "cancelled", days=5, plan="video15", intake_id=wish
    )
    await had_session(connection, ann, None, "cancelled", days=6)
    await had_session(connection, ann, other, days=7)
    await had_session(connection, bob, mechanic, days=8)

    assert await rebooking(pool, ann, mechanic) == IntakeForm(
        plan="video15",
        vehicle="Golf",
        concern="Smoke",
        urgent=False,
        is_specialist=True,
        preferred_mechanic_id=mechanic,
        routing_type=Routing.PRIORITY,
        wait_for_preferred=True,
    )


async def test_a_workshop_is_booked_again_by_what_it_served(
    pool: Pool, connection: Connection
) -> None:
    ann, workshop = await add_customer(connection), await add_workshop(connection)
    mechanic, stranger = await add_mechanic(connection, workshop), await add_mechanic(connection)
    await had_session(connection, ann, mechanic, plan="standard")
    await had_session(connection, ann, stranger, days=1, preferred_workshop_id=workshop)

    form = await rebooking(pool, ann, workshop)

    assert (form.routing_type, form.workshop_id) == (Routing.HYBRID, workshop)
    assert (form.plan, form.preferred_mechanic_id) == ("standard", None)
    assert (form.vehicle, form.concern, form.is_specialist) == (None, None, False)


async def test_why_one_cannot_be_booked_again(pool: Pool, connection: Connection) -> None:
    ann, workshop = await add_customer(connection), await add_workshop(connection)
    mechanic, new = await add_mechanic(connection, workshop), await add_mechanic(connection)
    await had_session(connection, ann, mechanic)

    assert await refusal_of(pool, ann, new) == "no_earlier_session"
    assert await refusal_of(pool, await add_customer(connection), mechanic) == "no_earlier_session"
    assert await refusal_of(pool, ann, await add_workshop(connection)) == "no_earlier_session"
    assert await refusal_of(pool, ann, uuid4()) == "mechanic_gone"

    await connection.execute("UPDATE plans SET active = false WHERE code = 'chat10'")
    assert await refusal_of(pool, ann, mechanic) == "plan_gone"
    assert await refusal_of(pool, ann, workshop) == "plan_gone"
    await connection.execute("UPDATE organizations SET status = 'suspended'")
    assert await refusal_of(pool, ann, workshop) == "not_found"
    await delete_mechanic(connection, mechanic)
    assert await refusal_of(pool, ann, mechanic) == "mechanic_gone"

    await had_session(connection, ann, new, "accepted", mechanic_slot=1)
    with pytest.raises(ActiveSessionExists):
        await rebooking(pool, ann, mechanic)
    assert await connection.fetchval("SELECT count(*) FROM intakes") == 0
