"""A session from joining to its end: one mechanic, ended once, earned once, and what that frees."""

import asyncio
from uuid import UUID, uuid4

from dispatch.database import Connection, Pool
from tests.conftest import MakeConfig
from tests.integration.living import living_node, pass_time, two_nodes
from tests.integration.rows import add_customer, add_mechanic, book
from tests.integration.talks import active
from tests.support import eventually

UNSWEPT = {"sweep_seconds": 3600.0}


async def test_of_ten_who_join_a_pending_session_at_once_one_is_in_it(
    connection: Connection, make_config: MakeConfig
) -> None:
    mechanics = [await add_mechanic(connection) for _ in range(10)]
    customer_id = await add_customer(connection)
    async with (
        two_nodes(make_config(**UNSWEPT)) as nodes,
        nodes[1].client(customer_id, "customer") as ann,
    ):
        booked = await nodes[0].book(customer_id)
        path = f"/api/sessions/{booked.session_id}/join"
        await eventually(lambda: len(nodes[1].node.board) == 1)

        answers = await asyncio.gather(
            *(
                nodes[n % 2].call(mechanic_id, "mechanic", "POST", path)
                for n, mechanic_id in enumerate(mechanics)
            )
        )
        winner = mechanics[[status for status, _ in answers].index(200)]
        again = await nodes[0].call(winner, "mechanic", "POST", path)
        seen = await ann.until("session.status", mechanics_connected=1)

    assert sorted(status for status, _ in answers) == [200] + [409] * 9
    refused = {told["error"]["code"] for status, told in answers if status == 409}
    assert refused == {"already_joined"}
    assert (again[0], again[1]["version"], again[1]["mechanics_connected"]) == (
        200,
        seen["version"],
        1,
    )
    joined = await connection.fetch(
        "SELECT user_id FROM session_participants WHERE role = 'mechanic'"
    )
    assert [row["user_id"] for row in joined] == [winner]


async def test_ended_by_both_and_by_the_clock_at_once_it_ends_once_and_earns_once(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    talk = await active(connection, pool)
    await _paid(connection, talk.session_id)
    end = f"/api/sessions/{talk.session_id}/end"
    async with two_nodes(make_config(sweep_seconds=0.05)) as (here, there):
        await asyncio.gather(
            pass_time(here.node.config.database_url, 601, here, there),
            *(
                living.call(user_id, role, "POST", end)
                for living in (here, there)
                for user_id, role in (
                    (talk.customer_id, "customer"),
                    (talk.mechanic_id, "mechanic"),
                )
                for _ in range(3)
            ),
        )

    completed = await connection.fetch("SELECT * FROM session_events WHERE type = 'completed'")
    earned = await connection.fetch("SELECT gross_amount_cents FROM mechanic_earnings")
    assert len(completed) == 1
    assert [row["gross_amount_cents"] for row in earned] == [1000]


async def test_who_is_free_again_sees_what_waits_at_once_on_whichever_node_it_ended(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    talk = await active(connection, pool)
    async with (
        two_nodes(make_config(**UNSWEPT)) as (here, there),
        there.client(talk.mechanic_id, "mechanic") as mechanic,
    ):
        waiting = await here.book(await add_customer(connection))
        await eventually(lambda: there.node.board.get(waiting.request_id))
        await mechanic.settle()
        assert mechanic.of("offer") == []

        end = f"/api/sessions/{talk.session_id}/end"
        await here.call(talk.customer_id, "customer", "POST", end)

        await mechanic.until("offer", request_id=waiting.request_id)


async def test_a_session_is_warned_of_and_ended_by_a_node_that_did_not_begin_it(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    talk = await active(connection, pool)
    config = make_config(plan_minute_seconds=60.0, warning_seconds=60.0)
    async with living_node(config):
        pass  # it had its timers, and is gone
    async with (
        living_node(config) as living,
        living.client(talk.customer_id, "customer") as ann,
        living.client(talk.mechanic_id, "mechanic") as max_,
    ):
        await pass_time(config.database_url, 545, living)
        for device in (ann, max_):
            warning = await device.until("session.warning", session_id=talk.session_id)
            assert 0 < warning["seconds_left"] <= 60
        await pass_time(config.database_url, 601, living)
        for device in (ann, max_):
            over = await device.until("session.status", status="completed")
            assert over["ended_by"] == "system"
            assert len(device.of("session.warning")) == 1


async def test_a_booking_for_later_opens_on_time_though_nobody_was_there_when_it_was_made(
    connection: Connection, make_config: MakeConfig
) -> None:
    slot_id: UUID = await connection.fetchval(
        "INSERT INTO slots (starts_at, ends_at, capacity) "
        "VALUES (now() + interval '1 h', now() + interval '2 h', 1) RETURNING id"
    )
    customer_id, mechanic_id = await add_customer(connection), await add_mechanic(connection)
    config = make_config(request_ttl_seconds=7200.0)
    async with living_node(config) as first:
        booked = await first.book(customer_id, slot_id=slot_id)
        assert (await connection.fetchval("SELECT status FROM sessions")) == "scheduled"
    async with (
        living_node(config) as second,
        second.client(customer_id, "customer") as ann,
        second.client(mechanic_id, "mechanic") as max_,
    ):
        await pass_time(config.database_url, 3590, second)
        await max_.settle()
        early = max_.of("offer")
        await pass_time(config.database_url, 3601, second)
        card = await max_.until("offer", request_id=booked.request_id)
        await max_.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
        await ann.until("request.status", status="accepted")

    assert early == []
    row = await connection.fetchrow(
        "SELECT r.*, s.starts_at FROM session_requests r, slots s WHERE r.id = $1",
        booked.request_id,
    )
    assert row is not None
    assert row["opens_at"] == row["starts_at"]
    assert row["accepted_at"] >= row["opens_at"]


async def test_a_slot_that_began_while_no_node_lived_opens_with_the_next(
    connection: Connection, make_config: MakeConfig
) -> None:
    slot_id: UUID = await connection.fetchval(
        "INSERT INTO slots (starts_at, ends_at, capacity) "
        "VALUES (now() + interval '1 h', now() + interval '2 h', 1) RETURNING id"
    )
    mechanic_id = await add_mechanic(connection)
    booking = await book(connection, slot_id=slot_id)
    config = make_config(request_ttl_seconds=7200.0)
    await pass_time(config.database_url, 3700)

    async with living_node(config) as living, living.client(mechanic_id, "mechanic") as max_:
        shown = max_.snapshot["offers"] or [await max_.until("offer")]

    row = await connection.fetchrow("SELECT * FROM session_requests")
    assert row is not None
    assert (row["id"], row["status"]) == (booking.request_id, "pending")
    assert [card["request_id"] for card in shown] == [str(booking.request_id)]


async def _paid(connection: Connection, session_id: UUID) -> None:
    await connection.execute(
        "INSERT INTO payments (customer_id, session_id, amount_cents, currency, received_cents, "
        "received_currency, status) SELECT customer_user_id, id, 1000, 'eur', 1000, 'eur', "
        "'fulfilled' FROM sessions WHERE id = $1",
        session_id,
    )
