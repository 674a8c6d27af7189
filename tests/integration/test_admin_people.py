"""What admins decide about mechanics and workshops (P1, P3, P6), and that it is felt at once.

Nodes here never compare themselves with Postgres: what is felt on the other one was told.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from websockets.exceptions import ConnectionClosed

from dispatch import admin_people, people
from dispatch.auth import Authenticator, issue_token
from dispatch.database import Connection, Pool
from dispatch.errors import Conflict, NotAuthenticated, NotFound
from tests.conftest import MakeConfig
from tests.integration.living import Client, Frame, LivingNode, two_nodes
from tests.integration.rows import add_customer, add_mechanic, add_user, add_workshop
from tests.support import JWT_SECRET, eventually

MECHANICS = "/api/admin/mechanics"
PASSWORD = "correct horse"


@pytest.fixture
async def admin(connection: Connection) -> UUID:
    return await add_user(connection, "admin")


@pytest.fixture
async def maya(pool: Pool) -> UUID:
    """Who has just signed up, and waits."""
    return await people.sign_up_mechanic(pool, "Maya", "maya@mechanics.example", PASSWORD)


async def events(pool: Pool) -> list[tuple[UUID, str, UUID]]:
    rows = await pool.fetch("SELECT admin_id, action, subject_id FROM admin_events ORDER BY id")
    return [(row["admin_id"], row["action"], row["subject_id"]) for row in rows]


async def status_of(pool: Pool, mechanic_id: UUID) -> tuple[str, bool]:
    row = await pool.fetchrow(
        "SELECT application_status, approved FROM mechanics JOIN candidates ON mechanic_id = id "
        "WHERE id = $1",
        mechanic_id,
    )
    assert row is not None
    return row["application_status"], row["approved"]


# --- the rows -------------------------------------------------------------------------------------


async def test_who_signs_up_waits_and_who_is_approved_may_work(
    pool: Pool, admin: UUID, maya: UUID
) -> None:
    assert await status_of(pool, maya) == ("pending", False)

    for _ in range(2):  # again, nothing changes
        approved = await admin_people.approve(pool, admin, maya)

    assert (approved.mechanic_id, approved.application_status) == (maya, "approved")
    assert await status_of(pool, maya) == ("approved", True)
    assert await events(pool) == [(admin, "approve_mechanic", maya)]


async def test_who_is_rejected_may_be_approved_later_but_not_the_other_way_round(
    pool: Pool, admin: UUID, maya: UUID
) -> None:
    for _ in range(2):
        rejected = await admin_people.reject(pool, admin, maya)
    assert rejected.application_status == "rejected"
    await admin_people.approve(pool, admin, maya)

    with pytest.raises(Conflict) as refused:
        await admin_people.reject(pool, admin, maya)

    assert refused.value.code == "not_pending"
    assert [action for _, action, _ in await events(pool)] == [
        "reject_mechanic",
        "approve_mechanic",
    ]


async def test_a_deactivated_mechanic_is_out_and_her_tokens_stay_void_when_she_is_back(
    pool: Pool, admin: UUID, maya: UUID
) -> None:
    await admin_people.approve(pool, admin, maya)
    authenticator = Authenticator(JWT_SECRET, pool)
    token = issue_token(JWT_SECRET, maya, "mechanic", 0, 3600)
    await authenticator.authenticate(token)

    for _ in range(2):
        retired = await admin_people.deactivate(pool, admin, maya)

    assert (retired.mechanic.deactivated, retired.token_epoch) == (True, 1)
    assert await status_of(pool, maya) == ("approved", False)
    with pytest.raises(NotAuthenticated):
        await people.log_in(pool, JWT_SECRET, people.Rates(0), "maya@mechanics.example", PASSWORD)

    back = await admin_people.approve(pool, admin, maya)
    assert (back.deactivated, back.application_status) == (False, "approved")
    assert await status_of(pool, maya) == ("approved", True)
    with pytest.raises(NotAuthenticated):
        await authenticator.authenticate(token)
    logged_in = await people.log_in(
        pool, JWT_SECRET, people.Rates(0), "maya@mechanics.example", PASSWORD
    )
    await authenticator.authenticate(logged_in.token)
    actions = [action for _, action, _ in await events(pool)]
    assert actions == ["approve_mechanic", "deactivate_mechanic", "approve_mechanic"]


async def test_a_deleted_mechanic_is_gone_for_good(
    pool: Pool, connection: Connection, admin: UUID, maya: UUID
) -> None:
    ann = await add_customer(connection)
    await connection.execute(
        "INSERT INTO favorites (customer_id, provider_type, mechanic_id) "
        "VALUES ($1, 'independent', $2)",
        ann,
        maya,
    )

    for _ in range(2):
        await admin_people.delete(pool, admin, maya)

    assert await pool.fetchval("SELECT count(*) FROM favorites") == 0
    for again in (admin_people.approve, admin_people.reject, admin_people.deactivate):
        with pytest.raises(NotFound):
            await again(pool, admin, maya)
    assert (await admin_people.mechanics(pool, None, 20, 0)).total == 0
    assert await events(pool) == [(admin, "delete_mechanic", maya)]
    with pytest.raises(Conflict):  # nobody can become her
        await people.sign_up_mechanic(pool, "Eve", "maya@mechanics.example", PASSWORD)


async def test_nobody_is_changed_by_an_id_that_is_no_mechanics(
    pool: Pool, connection: Connection, admin: UUID
) -> None:
    ann = await add_customer(connection)
    for nobody in (ann, admin, uuid4()):
        for decide in (
            admin_people.approve,
            admin_people.reject,
            admin_people.deactivate,
            admin_people.delete,
            admin_people.approve_workshop,
        ):
            with pytest.raises(NotFound):
                await decide(pool, admin, nobody)

    assert await events(pool) == []
    assert await pool.fetchval("SELECT count(*) FROM users WHERE disabled_at IS NOT NULL") == 0


async def test_ten_admins_who_approve_at_once_are_one_approval(
    pool: Pool, admin: UUID, maya: UUID
) -> None:
    await asyncio.gather(*(admin_people.approve(pool, admin, maya) for _ in range(10)))

    assert len(await events(pool)) == 1


async def test_what_admins_did_cannot_be_changed(pool: Pool, admin: UUID, maya: UUID) -> None:
    await admin_people.approve(pool, admin, maya)

    for change in (
        "UPDATE admin_events SET action = 'reject_mechanic'",
        "DELETE FROM admin_events",
    ):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await pool.execute(change)


async def test_applications_are_listed_by_status_the_latest_first(
    pool: Pool, connection: Connection, admin: UUID
) -> None:
    workshop = await add_workshop(connection)
    of_workshop = await add_mechanic(connection, workshop)
    waiting = [
        await people.sign_up_mechanic(pool, f"M{n}", f"m{n}@mechanics.example", PASSWORD)
        for n in range(3)
    ]

    first = await admin_people.mechanics(pool, "pending", 2, 0)
    rest = await admin_people.mechanics(pool, "pending", 2, 2)
    beyond = await admin_people.mechanics(pool, "pending", 2, 4)

    shown = [each.mechanic_id for each in (*first.mechanics, *rest.mechanics)]
    assert shown == waiting[::-1]
    assert (first.total, rest.total, beyond.total, beyond.mechanics) == (3, 3, 3, [])
    (approved,) = (await admin_people.mechanics(pool, "approved", 20, 0)).mechanics
    assert (approved.mechanic_id, approved.workshop_name) == (of_workshop, "Garage")
    assert (await admin_people.mechanics(pool, None, 20, 0)).total == 4


# --- workshops ------------------------------------------------------------------------------------


async def test_a_new_workshop_can_be_booked_once_an_admin_has_approved_it(
    pool: Pool, connection: Connection, admin: UUID, make_config: MakeConfig
) -> None:
    ann = await add_customer(connection)
    async with told_only(make_config) as (one, other):
        form = {"name": "Olu", "email": "olu@garage.example", "password": PASSWORD}
        form["workshop_name"] = "Harbour Motors"
        status, new = await one.call(ann, "customer", "POST", "/api/workshop/signup", form)
        assert (status, new["role"]) == (201, "workshop")
        wish = {"plan": "free", "routing_type": "hybrid", "workshop_id": new["workshop_id"]}
        status, told = await other.call(ann, "customer", "POST", "/api/intake/start", wish)
        assert (status, told["error"]["message"]) == (400, "workshop_id: there is no such workshop")
        _, listed = await one.call(admin, "admin", "GET", "/api/admin/workshops?status=pending")
        assert [each["workshop_id"] for each in listed["workshops"]] == [new["workshop_id"]]

        path = f"/api/admin/workshops/{new['workshop_id']}/approve"
        for _ in range(2):
            status, approved = await one.call(admin, "admin", "POST", path)
            assert (status, approved["workshop_status"]) == (200, "active")

        status, _ = await other.call(ann, "customer", "POST", "/api/intake/start", wish)
        assert status == 201
    assert await events(pool) == [(admin, "approve_workshop", UUID(new["workshop_id"]))]


# --- felt on every node at once -------------------------------------------------------------------


@asynccontextmanager
async def told_only(
    make_config: MakeConfig, **settings: Any
) -> AsyncIterator[tuple[LivingNode, LivingNode]]:
    """Two nodes that learn only what they are told."""
    async with two_nodes(make_config(sweep_seconds=3600.0, **settings)) as nodes:
        yield nodes


async def closed(client: Client) -> int | None:
    with pytest.raises(ConnectionClosed):
        await client.until("no such frame")
    return client.link.close_code


async def decide(node: LivingNode, admin: UUID, mechanic_id: UUID, what: str) -> Frame:
    status, told = await node.call(admin, "admin", "POST", f"{MECHANICS}/{mechanic_id}/{what}")
    assert status == 200, told
    return told


async def accept(mechanic: Client, request_id: UUID) -> None:
    offer = await mechanic.until("offer", request_id=request_id)
    await mechanic.send("offer.accept", offer_id=offer["offer_id"], accept_id=uuid4())
    await mechanic.until("offer.won", request_id=request_id)


async def test_an_approved_mechanic_gets_what_is_open_on_the_socket_that_she_has(
    connection: Connection, make_config: MakeConfig, admin: UUID, maya: UUID
) -> None:
    ann = await add_customer(connection)
    async with (
        told_only(make_config) as (one, other),
        other.client(maya, "mechanic") as mechanic,
    ):
        booked = await one.book(ann)
        await mechanic.settle()
        assert mechanic.snapshot["offers"] == []
        assert mechanic.of("offer") == []
        assert not await one.is_online(maya, ann)

        await decide(one, admin, maya, "approve")

        await accept(mechanic, booked.request_id)
        await eventually(lambda: one.is_online(maya, ann))


async def test_a_rejected_mechanic_stays_connected_and_is_offered_nothing(
    connection: Connection, make_config: MakeConfig, admin: UUID, maya: UUID
) -> None:
    ann = await add_customer(connection)
    async with (
        told_only(make_config) as (one, other),
        other.client(maya, "mechanic") as mechanic,
    ):
        await decide(one, admin, maya, "reject")
        await one.book(ann)

        await mechanic.settle()
        assert mechanic.of("offer") == []


@pytest.mark.parametrize("how", ["deactivate", "delete"])
async def test_all_sockets_of_one_who_is_let_go_close_on_every_node(
    connection: Connection, make_config: MakeConfig, admin: UUID, how: str
) -> None:
    anna, bea = await add_mechanic(connection), await add_mechanic(connection)
    ann = await add_customer(connection)
    async with (
        told_only(make_config) as (one, other),
        one.client(anna, "mechanic") as near,
        other.client(anna, "mechanic") as far,
        other.client(bea, "mechanic") as colleague,
    ):
        await let_go(one, admin, anna, how)

        async with asyncio.timeout(5):
            assert (await closed(near), await closed(far)) == (4401, 4401)
        status, _ = await other.call(anna, "mechanic", "GET", "/api/mechanic/earnings")
        assert status == 401
        booked = await one.book(ann)
        await accept(colleague, booked.request_id)


async def let_go(node: LivingNode, admin: UUID, mechanic_id: UUID, how: str) -> None:
    if how == "deactivate":
        await decide(node, admin, mechanic_id, how)
        return
    status, _ = await node.call(admin, "admin", "DELETE", f"{MECHANICS}/{mechanic_id}")
    assert status == 200


@pytest.mark.parametrize("how", ["deactivate", "delete"])
async def test_what_she_had_accepted_goes_to_another_at_once(
    connection: Connection, make_config: MakeConfig, admin: UUID, how: str
) -> None:
    anna, bea = await add_mechanic(connection), await add_mechanic(connection)
    ann = await add_customer(connection)
    async with (
        told_only(make_config) as (one, other),
        one.client(ann, "customer") as customer,
        other.client(anna, "mechanic") as mechanic,
    ):
        booked = await one.book(ann)
        await accept(mechanic, booked.request_id)
        await customer.until("request.status", status="accepted")

        async with other.client(bea, "mechanic") as colleague:
            await let_go(one, admin, anna, how)

            await accept(colleague, booked.request_id)
            told = await customer.until("request.status", status="pending", stage="open")
            assert "had to cancel" in told["message"]
    excluded = "SELECT excluded_mechanic_ids FROM session_requests"
    assert await connection.fetchval(excluded) == [anna]


async def test_a_session_that_runs_ends_with_her_and_is_paid_to_the_end(
    connection: Connection, make_config: MakeConfig, admin: UUID
) -> None:
    anna, ann = await add_mechanic(connection), await add_customer(connection)
    async with (
        told_only(make_config, plan_minute_seconds=60.0) as (one, other),
        one.client(ann, "customer") as customer,
        other.client(anna, "mechanic") as mechanic,
    ):
        booked = await one.book(ann)
        await accept(mechanic, booked.request_id)
        await sign_waiver(connection, booked.session_id)
        for client in (mechanic, customer):
            await client.send("session.join", session_id=booked.session_id, id="j")
            await client.until("session.status", re="j")

        await decide(one, admin, anna, "deactivate")

        ended = await customer.until("session.status", status="completed")
        assert ended["ended_by"] == str(anna)


async def sign_waiver(connection: Connection, session_id: UUID) -> None:
    await connection.execute(
        "INSERT INTO waivers (intake_id, user_id, name, version, address) "
        "SELECT intake_id, customer_user_id, 'Ann', '1', '192.0.2.1' FROM sessions WHERE id = $1",
        session_id,
    )


async def test_who_waits_for_her_by_name_waits_no_longer(
    connection: Connection, make_config: MakeConfig, admin: UUID
) -> None:
    anna, bea = await add_mechanic(connection), await add_mechanic(connection)
    ann = await add_customer(connection)
    async with (
        told_only(make_config, priority_window_seconds=600.0, offer_retry_seconds=600.0) as nodes,
        nodes[1].client(anna, "mechanic") as favourite,
        nodes[1].client(bea, "mechanic") as colleague,
    ):
        await eventually(lambda: nodes[0].is_online(anna, ann))
        wish = {"routing_type": "priority_broadcast", "preferred_mechanic_id": anna}
        booked = await nodes[0].book(ann, **wish)
        await favourite.until("offer", request_id=booked.request_id, stage="priority")

        await decide(nodes[0], admin, anna, "deactivate")

        await accept(colleague, booked.request_id)


async def test_a_lost_hint_is_made_up_for_within_five_seconds(
    connection: Connection, make_config: MakeConfig, admin: UUID, maya: UUID
) -> None:
    ann = await add_customer(connection)
    async with (
        two_nodes(make_config()) as (one, other),
        other.client(maya, "mechanic") as mechanic,
    ):
        one.node.bus.publish = lambda hint: None  # type: ignore[method-assign]  # all are lost
        booked = await other.book(ann)
        async with asyncio.timeout(5):
            await decide(one, admin, maya, "approve")
            await mechanic.until("offer", request_id=booked.request_id)

            await decide(one, admin, maya, "deactivate")
            assert await closed(mechanic) == 4401
