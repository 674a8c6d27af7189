"""Lists that people look at: a mechanic's sessions, the operators' board, slots to book."""

import json
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from dispatch.database import Connection, Pool
from dispatch.protocol import MAX_SERVER_FRAME_BYTES
from dispatch.store import Store
from tests.conftest import MakeConfig
from tests.integration.living import Frame, LivingNode, living_node, two_nodes
from tests.integration.rows import (
    add_customer,
    add_mechanic,
    add_user,
    add_workshop,
    book_and_open,
)
from tests.integration.talks import accepted
from tests.support import eventually

UNSWEPT = {"sweep_seconds": 3600.0}


async def get(living: LivingNode, user_id: UUID, role: str, path: str) -> Frame:
    status, told = await living.call(user_id, role, "GET", path)
    assert status == 200, told
    return told


# --- a mechanic's sessions ------------------------------------------------------------------------


async def test_a_mechanic_sees_what_she_may_take_as_offers_are_ranked_and_then_what_she_has(
    connection: Connection, store: Store, make_config: MakeConfig
) -> None:
    workshop_id = await add_workshop(connection)
    mechanic_id = await add_mechanic(connection, workshop_id)
    old = await book_and_open(connection, store)
    named = await book_and_open(
        connection, store, routing_type="workshop_only", workshop_id=workshop_id
    )
    urgent = await book_and_open(connection, store, urgent=True)
    await book_and_open(connection, store, is_specialist=True)
    async with (
        living_node(make_config(**UNSWEPT)) as living,
        living.client(mechanic_id, "mechanic") as phone,
    ):
        path = "/api/mechanic/sessions"
        before = await get(living, mechanic_id, "mechanic", path)
        second = await get(living, mechanic_id, "mechanic", f"{path}?limit=1&offset=1")
        join = f"/api/sessions/{named.session_id}/join"
        assert (await living.call(mechanic_id, "mechanic", "POST", join))[0] == 200
        after = await get(living, mechanic_id, "mechanic", path)
        shown = [card["request_id"] for card in phone.snapshot["offers"]]

    ranked = [str(booking.request_id) for booking in (urgent, named, old)]
    assert [card["request_id"] for card in before["available"]] == ranked == shown
    assert (before["active"], before["total"]) == ([], 3)
    assert [card["request_id"] for card in second["available"]] == [str(named.request_id)]
    assert (second["limit"], second["offset"], second["total"]) == (1, 1, 3)
    (hers,) = after["active"]
    assert hers["session_id"] == str(named.session_id)
    assert (hers["status"], hers["mechanics_connected"]) == ("accepted", 1)
    assert (hers["customer_name"], hers["session_type"], hers["plan_code"]) == (
        "Kim",
        "chat",
        "chat10",
    )
    assert (after["available"], after["total"]) == ([], 0), "she is busy"


# --- the operators' board -------------------------------------------------------------------------


async def test_bookings_are_listed_with_stage_and_deadlines_by_state_and_page(
    connection: Connection, pool: Pool, store: Store, make_config: MakeConfig
) -> None:
    admin_id, favourite = await add_user(connection, "admin"), await add_mechanic(connection)
    first = await book_and_open(
        connection, store, routing_type="priority_broadcast", preferred_mechanic_id=favourite
    )
    second = await accepted(connection, pool)
    third = await book_and_open(connection, store)
    over = await accepted(connection, pool)
    await over.starts()
    await over.ends()
    path = "/api/admin/requests"
    async with living_node(make_config(**UNSWEPT)) as living:
        live = await get(living, admin_id, "admin", path)
        page = await get(living, admin_id, "admin", f"{path}?limit=1&offset=1")
        pending = await get(living, admin_id, "admin", f"{path}?status=pending")
        completed = await get(living, admin_id, "admin", f"{path}?status=completed")
        wrong = await living.call(admin_id, "admin", "GET", f"{path}?status=lost")
        theirs = await living.call(favourite, "mechanic", "GET", path)

    ids = [str(each) for each in (first.request_id, second.request_id, third.request_id)]
    assert [row["request_id"] for row in live["requests"]] == ids
    assert live["total"] == 3
    assert [row["request_id"] for row in page["requests"]] == [ids[1]]
    assert [row["request_id"] for row in pending["requests"]] == [ids[0], ids[2]]
    assert [row["request_id"] for row in completed["requests"]] == [str(over.request_id)]
    waiting, given, _ = live["requests"]
    assert (waiting["status"], waiting["stage"], waiting["attempt"]) == ("pending", "priority", 1)
    assert waiting["stage_ends_at"] < waiting["expires_at"]
    assert {"next_attempt_at", "mechanics_notified", "mechanics_online"} <= waiting.keys()
    assert (given["status"], given["mechanic"]["id"]) == ("accepted", str(second.mechanic_id))
    assert "join_by" in given
    assert (wrong[0], theirs[0]) == (400, 403)


async def test_who_watches_the_board_sees_it_and_every_change_on_any_node(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    admin_id, mechanic_id = await add_user(connection, "admin"), await add_mechanic(connection)
    late_id = await add_mechanic(connection)
    there_already = await accepted(connection, pool)
    async with (
        two_nodes(make_config(**UNSWEPT)) as (here, there),
        here.client(admin_id, "admin") as watcher,
        here.client(admin_id, "admin") as other,
        there.client(mechanic_id, "mechanic") as mechanic,
    ):
        await watcher.send("board.watch", id="b")
        board = await watcher.until("board", re="b")
        booked = await there.book(await add_customer(connection))
        made = await watcher.until("board.event")
        card = await mechanic.until("offer")
        async with here.client(late_id, "mechanic"):
            counted = await watcher.until("board.event")
            while counted["request"]["mechanics_notified"] < 2:
                counted = await watcher.until("board.event")
        await mechanic.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
        taken = await watcher.until("board.event")
        await mechanic.send("assignment.cancel", session_id=booked.session_id)
        reopened = await watcher.until("board.event")
        cancel = f"/api/requests/{booked.request_id}/cancel"
        await there.call(booked.customer_id, "customer", "POST", cancel)
        over = await watcher.until("board.event")
        await mechanic.send("board.watch", id="no")
        refused = await mechanic.until("error", re="no")
        await other.settle()

    assert [row["request_id"] for row in board["requests"]] == [str(there_already.request_id)]
    assert not board["more_requests"]
    told = [event["request"] for event in (made, counted, taken, reopened, over)]
    assert {row["request_id"] for row in told} == {str(booked.request_id)}
    assert [row["status"] for row in told] == [
        "pending",
        "pending",
        "accepted",
        "pending",
        "cancelled",
    ]
    assert counted["request"]["mechanics_notified"] == 2
    assert told[2]["mechanic"]["id"] == str(mechanic_id)
    assert told[3]["generation"] == 2
    assert refused["code"] == "forbidden"
    assert other.of("board.event") == [], "who did not ask is not told"


async def test_a_board_that_fits_no_frame_says_that_there_is_more(
    connection: Connection, store: Store, make_config: MakeConfig
) -> None:
    admin_id = await add_user(connection, "admin")
    for _ in range(250):
        await book_and_open(connection, store)
    async with (
        living_node(make_config(**UNSWEPT)) as living,
        living.client(admin_id, "admin") as watcher,
    ):
        await eventually(lambda: len(living.node.board) == 250)
        await watcher.send("board.watch")
        board = await watcher.until("board")

    assert board["more_requests"]
    assert 100 < len(board["requests"]) < 250
    assert len(json.dumps(board, separators=(",", ":"))) < MAX_SERVER_FRAME_BYTES


# --- slots ----------------------------------------------------------------------------------------


async def test_the_slots_that_can_be_booked_are_listed_for_anyone(
    connection: Connection, make_config: MakeConfig
) -> None:
    north, south = await add_workshop(connection), await add_workshop(connection)
    await connection.execute("UPDATE organizations SET status = 'suspended' WHERE id = $1", south)
    hours: list[tuple[UUID | None, float, float, int, int]] = [
        (None, 1, 2, 3, 1),  # anybody's, the next but one
        (north, 0.5, 2, 1, 0),  # of North, the next
        (north, -1, 1, 1, 0),  # has begun, and can still be booked
        (north, -2, -1, 1, 0),  # is over
        (north, 3, 4, 2, 2),  # is full
        (south, 3, 4, 2, 0),  # of a workshop that is suspended
    ]
    for workshop_id, starts, ends, capacity, taken in hours:
        await connection.execute(
            "INSERT INTO slots (workshop_id, starts_at, ends_at, capacity, taken) VALUES "
            "($1, now() + $2::interval, now() + $3::interval, $4, $5)",
            workshop_id,
            timedelta(hours=starts),
            timedelta(hours=ends),
            capacity,
            taken,
        )
    nobody = uuid4()  # the token is not looked at
    async with living_node(make_config(**UNSWEPT)) as living:
        all_ = await get(living, nobody, "customer", "/api/slots")
        page = await get(living, nobody, "customer", "/api/slots?limit=1&offset=1")
        norths = await get(living, nobody, "customer", f"/api/slots?workshop_id={north}")
        wrong = await living.call(nobody, "customer", "GET", "/api/slots?limit=0")

    assert [slot.get("workshop_id") for slot in all_["slots"]] == [str(north), str(north), None]
    starts_at = [datetime.fromisoformat(slot["starts_at"]) for slot in all_["slots"]]
    assert starts_at == sorted(starts_at)
    assert (all_["slots"][2]["seats_left"], all_["slots"][2]["capacity"]) == (2, 3)
    assert (all_["slots"][0]["workshop_name"], all_["total"]) == ("Garage", 3)
    assert (page["slots"], page["total"]) == ([all_["slots"][1]], 3)
    assert (norths["slots"], norths["total"]) == (all_["slots"][:2], 2)
    assert wrong[0] == 400
