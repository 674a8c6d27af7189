"""An admin gives an open booking to a mechanic by hand, through the same judge, on record."""

from uuid import UUID, uuid4

import pytest

from dispatch.core.replay import replay
from dispatch.core.types import Cancel
from dispatch.database import Connection, Pool
from dispatch.replay import record_of
from dispatch.store import Store
from tests.conftest import MakeConfig
from tests.integration.living import Frame, LivingNode, living_node, two_nodes
from tests.integration.rows import (
    add_customer,
    add_mechanic,
    add_user,
    add_workshop,
    book,
    book_and_open,
    change,
    occupy,
)

UNSWEPT = {"sweep_seconds": 3600.0}


async def assign(
    living: LivingNode, admin_id: UUID, request_id: UUID, mechanic_id: UUID
) -> tuple[int, Frame]:
    path = f"/api/admin/requests/{request_id}/assign"
    return await living.call(admin_id, "admin", "POST", path, {"mechanic_id": str(mechanic_id)})


async def test_all_her_devices_are_told_that_it_is_hers_and_who_gave_it_is_on_record(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    admin_id = await add_user(connection, "admin")
    chosen, favourite = await add_mechanic(connection), await add_mechanic(connection)
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config(**UNSWEPT, priority_window_seconds=600.0)) as (here, there),
        here.client(chosen, "mechanic") as phone,
        there.client(chosen, "mechanic") as laptop,
        there.client(favourite, "mechanic") as fay,
        there.client(customer_id, "customer") as ann,
    ):
        booked = await here.book(
            customer_id, routing_type="priority_broadcast", preferred_mechanic_id=favourite
        )
        card = await fay.until("offer", stage="priority")

        status, told = await assign(here, admin_id, booked.request_id, chosen)

        for device in (phone, laptop):
            won = await device.until("offer.won", offer_id=card["offer_id"])
            assert won["session_id"] == str(booked.session_id)
            await device.until("session.status", status="accepted")
        await fay.until("offer.revoked", offer_id=card["offer_id"], reason="taken")
        accepted = await ann.until("request.status", status="accepted")
        again = await assign(here, admin_id, booked.request_id, chosen)

    assert (status, told["status"], told["mechanic"]["id"]) == (200, "accepted", str(chosen))
    assert accepted["mechanic"]["id"] == str(chosen)
    assert (again[0], again[1]["version"]) == (200, told["version"])
    (event,) = await connection.fetch("SELECT * FROM session_events WHERE type = 'accepted'")
    assert (event["user_id"], event["metadata"]) == (chosen, f'{{"assigned_by": "{admin_id}"}}')
    replayed = replay(await record_of(pool, booked.request_id))
    assert replayed.differences == ()
    assert replayed.bookings[-1].mechanic_id == chosen


async def test_who_declined_it_before_may_be_given_it_all_the_same(
    connection: Connection, make_config: MakeConfig
) -> None:
    admin_id, mechanic_id = await add_user(connection, "admin"), await add_mechanic(connection)
    async with (
        living_node(make_config()) as living,
        living.client(mechanic_id, "mechanic") as phone,
    ):
        booked = await living.book(await add_customer(connection))
        card = await phone.until("offer")
        await phone.send("offer.decline", offer_id=card["offer_id"])
        await phone.until("ok")

        status, _ = await assign(living, admin_id, booked.request_id, mechanic_id)

        assert status == 200
        await phone.until("offer.won", offer_id=card["offer_id"])


async def test_what_the_judge_refuses_is_told_with_its_reason_and_changes_nothing(
    connection: Connection, store: Store, make_config: MakeConfig
) -> None:
    admin_id, workshop_id = await add_user(connection, "admin"), await add_workshop(connection)
    ready, busy, away, pending, winner = [await add_mechanic(connection) for _ in range(5)]
    await occupy(connection, busy, 1)
    await connection.execute("UPDATE mechanics SET available = false WHERE id = $1", away)
    await connection.execute(
        "UPDATE mechanics SET application_status = 'pending' WHERE id = $1", pending
    )
    open_ = await book_and_open(connection, store)
    workshops = await book_and_open(
        connection, store, routing_type="workshop_only", workshop_id=workshop_id
    )
    specialists = await book_and_open(connection, store, is_specialist=True)
    taken = await book_and_open(connection, store)
    cancelled = await book_and_open(connection, store)
    await change(connection, store, cancelled.request_id, Cancel())
    later = await book(connection, slot_id=await _slot(connection))
    async with living_node(make_config(sweep_seconds=3600.0)) as living:
        assert (await assign(living, admin_id, taken.request_id, winner))[0] == 200
        answers = {
            "busy": await assign(living, admin_id, open_.request_id, busy),
            "unavailable": await assign(living, admin_id, open_.request_id, away),
            "pending": await assign(living, admin_id, open_.request_id, pending),
            "outsider": await assign(living, admin_id, workshops.request_id, ready),
            "no specialist": await assign(living, admin_id, specialists.request_id, ready),
            "taken": await assign(living, admin_id, taken.request_id, ready),
            "cancelled": await assign(living, admin_id, cancelled.request_id, ready),
            "later": await assign(living, admin_id, later.request_id, ready),
            "no mechanic": await assign(living, admin_id, open_.request_id, admin_id),
            "no request": await assign(living, admin_id, uuid4(), ready),
        }
        forbidden = await living.call(
            ready,
            "mechanic",
            "POST",
            f"/api/admin/requests/{open_.request_id}/assign",
            {"mechanic_id": str(ready)},
        )

    assert {name: (status, told["error"]["code"]) for name, (status, told) in answers.items()} == {
        "busy": (409, "busy"),
        "unavailable": (409, "unavailable"),
        "pending": (409, "not_eligible"),
        "outsider": (409, "not_eligible"),
        "no specialist": (409, "not_eligible"),
        "taken": (409, "taken"),
        "cancelled": (409, "cancelled"),
        "later": (409, "not_open"),
        "no mechanic": (400, "bad_request"),
        "no request": (404, "not_found"),
    }
    assert forbidden[0] == 403
    mechanics = await connection.fetch("SELECT mechanic_id FROM session_requests")
    assert [row[0] for row in mechanics if row[0]] == [winner]


@pytest.mark.parametrize("hand", ["first", "second"])
async def test_a_mechanic_and_an_admin_at_once_make_one_winner(
    connection: Connection, pool: Pool, store: Store, make_config: MakeConfig, hand: str
) -> None:
    admin_id = await add_user(connection, "admin")
    quick, chosen = await add_mechanic(connection), await add_mechanic(connection)
    async with (
        living_node(make_config()) as living,
        living.client(quick, "mechanic") as phone,
    ):
        booked = await living.book(await add_customer(connection))
        card = await phone.until("offer")
        if hand == "first":
            assert (await assign(living, admin_id, booked.request_id, chosen))[0] == 200
        await phone.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
        if hand == "first":
            assert (await phone.until("offer.lost"))["reason"] == "taken"
        else:
            await phone.until("offer.won")
            status, told = await assign(living, admin_id, booked.request_id, chosen)
            assert (status, told["error"]["code"]) == (409, "taken")

    winners = await connection.fetch(
        "SELECT user_id FROM session_participants WHERE role = 'mechanic'"
    )
    assert [row[0] for row in winners] == [chosen if hand == "first" else quick]


async def _slot(connection: Connection) -> UUID:
    slot_id: UUID = await connection.fetchval(
        "INSERT INTO slots (starts_at, ends_at, capacity) "
        "VALUES (now() + interval '1 h', now() + interval '2 h', 1) RETURNING id"
    )
    return slot_id
