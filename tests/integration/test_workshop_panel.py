"""What a workshop sees of itself (W2, W3): its people, its invites, and what became of bookings."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from dispatch import invites
from dispatch.core.types import Cancel
from dispatch.database import Connection, Pool
from dispatch.store import Store
from tests.conftest import MakeConfig
from tests.integration import rows
from tests.integration.living import Frame, LivingNode, living_node
from tests.integration.rows import add_mechanic, add_user, add_workshop
from tests.support import JWT_SECRET, eventually

PANEL = "/api/workshop/mechanics"


@pytest.fixture
async def workshop(connection: Connection) -> UUID:
    return await add_workshop(connection)


@pytest.fixture
async def member(connection: Connection, workshop: UUID) -> UUID:
    return await add_member(connection, workshop)


async def add_member(connection: Connection, workshop_id: UUID) -> UUID:
    member_id = await add_user(connection, "workshop")
    await connection.execute(
        "INSERT INTO organization_members VALUES ($1, $2)", workshop_id, member_id
    )
    return member_id


async def panel(living: LivingNode, member: UUID, query: str = "") -> Frame:
    status, told = await living.call(member, "workshop", "GET", PANEL + query)
    assert status == 200, told
    return told


async def test_a_workshop_sees_its_mechanics_and_whether_they_are_there(
    connection: Connection, make_config: MakeConfig, workshop: UUID, member: UUID
) -> None:
    anna, bea = [await add_mechanic(connection, workshop) for _ in range(2)]
    await connection.execute("UPDATE users SET name = 'Anna' WHERE id = $1", anna)
    await connection.execute("UPDATE users SET name = 'Bea' WHERE id = $1", bea)
    await connection.execute(
        "UPDATE mechanics SET available = false, rating = 4.25, is_specialist = true WHERE id = $1",
        bea,
    )
    await add_mechanic(connection, await add_workshop(connection))  # somebody else's
    gone = await add_mechanic(connection, workshop)
    await connection.execute("UPDATE mechanics SET deleted_at = now() WHERE id = $1", gone)
    await rows.occupy(connection, anna, 1)

    async with living_node(make_config()) as living, living.client(anna, "mechanic"):

        async def both() -> tuple[Frame, Frame] | None:
            first, second = (await panel(living, member))["mechanics"]
            return (first, second) if first["presence"] == "online" else None

        first, second = await eventually(both)
        told = await panel(living, member)

    assert (told["workshop_id"], told["workshop_status"]) == (str(workshop), "active")
    assert (told["total"], told["limit"], told["offset"], told["invites"]) == (2, 20, 0, [])
    assert {name: first[name] for name in ("mechanic_id", "name", "available", "approved")} == {
        "mechanic_id": str(anna),
        "name": "Anna",
        "available": True,
        "approved": True,
    }
    assert (first["live_sessions"], first["rating"], first["sessions_served"]) == (1, None, 0)
    assert (second["mechanic_id"], second["presence"]) == (str(bea), "offline")
    assert (second["available"], second["is_specialist"], second["rating"]) == (False, True, 4.25)


async def test_the_panel_is_paged_and_shows_every_open_invite(
    pool: Pool, connection: Connection, make_config: MakeConfig, workshop: UUID, member: UUID
) -> None:
    for _ in range(3):
        await add_mechanic(connection, workshop)
    made = [
        await invites.invite(pool, JWT_SECRET, member, f"{n}@mechanics.example", f"M {n}")
        for n in range(3)
    ]
    await invites.withdraw(pool, member, made[0].invite_id)
    stranger = await add_member(connection, await add_workshop(connection))
    await invites.invite(pool, JWT_SECRET, stranger, "else@mechanics.example")

    async with living_node(make_config()) as living:
        first = await panel(living, member, "?limit=2")
        rest = await panel(living, member, "?limit=2&offset=2")
        beyond = await panel(living, member, "?offset=20")
        status, _ = await living.call(member, "workshop", "GET", f"{PANEL}?limit=101")
        assert status == 400

    shown = [each["mechanic_id"] for each in (*first["mechanics"], *rest["mechanics"])]
    assert len(set(shown)) == 3
    assert (beyond["mechanics"], beyond["total"]) == ([], 3)
    for page in (first, rest, beyond):
        shown_invites = [(each["invite_id"], each["name"]) for each in page["invites"]]
        assert shown_invites == [(str(made[n].invite_id), f"M {n}") for n in (2, 1)]


async def test_who_acts_for_no_workshop_sees_none(
    connection: Connection, make_config: MakeConfig, workshop: UUID
) -> None:
    nobody = await add_user(connection, "workshop")

    async with living_node(make_config()) as living:
        status, told = await living.call(nobody, "workshop", "GET", PANEL)

    assert (status, told["error"]["code"]) == (403, "forbidden")


async def test_a_workshop_that_waits_sees_its_panel_and_that_it_waits(
    connection: Connection, make_config: MakeConfig, member: UUID
) -> None:
    await connection.execute("UPDATE organizations SET status = 'pending'")

    async with living_node(make_config()) as living:
        assert (await panel(living, member))["workshop_status"] == "pending"


# --- the views (W2) -------------------------------------------------------------------------------


async def take(connection: Connection, store: Store, mechanic_id: UUID, **wish: Any) -> UUID:
    """A booking that she accepted; its session."""
    booking = await rows.book_and_open(connection, store, **wish)
    assert (await rows.accept(connection, booking.offer_id, mechanic_id)).won
    return booking.session_id


async def complete(connection: Connection, session_id: UUID) -> None:
    await connection.execute("UPDATE sessions SET status = 'completed' WHERE id = $1", session_id)


async def test_analytics_tell_what_became_of_the_bookings_of_each_workshop(
    connection: Connection, store: Store, workshop: UUID
) -> None:
    other = await add_workshop(connection)
    ours, theirs = await add_mechanic(connection, workshop), await add_mechanic(connection, other)
    await complete(connection, await take(connection, store, ours))
    hybrid = {"routing_type": "hybrid", "workshop_id": workshop}
    await complete(connection, await take(connection, store, ours, **hybrid))
    unserved = await rows.book_and_open(connection, store, **hybrid)
    await rows.change(connection, store, unserved.request_id, Cancel())
    opened = await rows.book_and_open(connection, store, routing_type="hybrid", workshop_id=other)
    await connection.execute(
        "UPDATE session_requests SET stage = 'open', stage_ends_at = NULL WHERE id = $1",
        opened.request_id,
    )
    assert (await rows.accept(connection, opened.offer_id, ours)).won
    assert theirs != ours

    found = await connection.fetch(
        "SELECT * FROM workshop_session_analytics ORDER BY workshop_id = $1 DESC, routing_type",
        workshop,
    )

    today = datetime.now(UTC).date()
    named = ("preferred", "served", "preferred_and_served", "completed", "cancelled", "expired")
    told = {
        (row["workshop_id"], row["day"], row["routing_type"]): tuple(row[name] for name in named)
        for row in found
    }
    assert told == {
        (workshop, today, "broadcast"): (0, 1, 0, 1, 0, 0),
        (workshop, today, "hybrid"): (2, 2, 1, 1, 1, 0),
        (other, today, "hybrid"): (1, 0, 0, 0, 0, 0),
    }
    assert all((row["mean_accept_seconds"] is not None) == (row["served"] > 0) for row in found)


async def test_the_view_of_mechanics_counts_what_each_served_for_this_workshop(
    connection: Connection, store: Store, workshop: UUID
) -> None:
    anna = await add_mechanic(connection, workshop)
    await complete(connection, await take(connection, store, anna))
    await take(connection, store, anna)

    row = await connection.fetchrow("SELECT * FROM workshop_mechanics")

    assert row is not None
    assert (row["workshop_id"], row["mechanic_id"]) == (workshop, anna)
    assert (row["sessions_served"], row["live_sessions"]) == (1, 1)
    assert (row["approved"], row["auto_approved"]) == (True, False)
