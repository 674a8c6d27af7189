"""Experiments on real bookings: what each arm is dispatched by, on every node, and for good."""

import asyncio
import dataclasses
import json
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch import sessions
from dispatch.core.replay import replay
from dispatch.core.types import Routing, Stage
from dispatch.database import Connection, Pool, transaction
from dispatch.errors import Unavailable
from dispatch.replay import record_of
from dispatch.sessions import IntakeForm, Opening, Prospect
from tests.conftest import MakeConfig
from tests.integration.living import Booked, Frame, LivingNode, living_node, pass_time, two_nodes
from tests.integration.rows import (
    add_customer,
    add_intake,
    add_mechanic,
    add_user,
    until_blocked,
)
from tests.integration.till import PUBLIC_URL, open_till
from tests.support import eventually

PATH = "/api/admin/experiments"
TTL = timedelta(hours=2)

# A favourite is waited for as long as her window is, seen or not.
PATIENT = {"offer_retry_seconds": 3600.0, "request_ttl_seconds": 7200.0, "sweep_seconds": 0.05}

WINDOWS: Frame = {
    "name": "windows",
    "kind": "window",
    "rollout_percentage": 100,
    "arms": [
        {"name": "short", "priority_window_seconds": 30.0},
        {"name": "long", "priority_window_seconds": 90.0},
    ],
}
CONTROL: Frame = {
    "name": "control",
    "kind": "routing",
    "rollout_percentage": 100,
    "arms": [
        {"name": "asked", "routing": "priority_broadcast"},
        {"name": "everybody", "routing": "broadcast"},
    ],
}


async def put(connection: Connection, living: LivingNode, form: Frame, **changes: Any) -> Frame:
    """A new admin sets it up."""
    admin_id = await add_user(connection, "admin")
    status, told = await living.call(admin_id, "admin", "PUT", PATH, form | changes)
    assert status == 200, told
    return told


async def book(living: LivingNode, customer_id: UUID, favourite: UUID, **wish: Any) -> Booked:
    """Favourite first."""
    asked = {"routing_type": "priority_broadcast", "preferred_mechanic_id": favourite}
    return await living.book(customer_id, **(asked | wish))


async def row(connection: Connection, booked: Booked) -> asyncpg.Record:
    found = await connection.fetchrow(
        "SELECT r.*, i.routing_type AS asked_for FROM session_requests r"
        " JOIN sessions s ON s.id = r.session_id JOIN intakes i ON i.id = s.intake_id"
        " WHERE r.id = $1",
        booked.request_id,
    )
    assert found is not None
    return found


async def in_arm(
    connection: Connection, living: LivingNode, favourite: UUID, arm: str, **wish: Any
) -> Booked:
    """A booking of somebody new who is in this arm, of as many new customers as it takes."""
    for _ in range(30):
        booked = await book(living, await add_customer(connection), favourite, **wish)
        if (await row(connection, booked))["arm"] == arm:
            return booked
    raise AssertionError(f"nobody is in {arm}")


async def assert_replays(pool: Pool, booked: Booked) -> None:
    assert replay(await record_of(pool, booked.request_id)).differences == ()


# --- off ------------------------------------------------------------------------------------------


async def test_what_does_not_run_changes_nothing(
    connection: Connection, make_config: MakeConfig
) -> None:
    favourite, customer_id = await add_mechanic(connection), await add_customer(connection)
    async with living_node(make_config(**PATIENT)) as living:
        await put(connection, living, WINDOWS, name="none", rollout_percentage=0)
        await put(connection, living, CONTROL, name="later", active_from="2099-01-01T00:00:00Z")
        await put(
            connection,
            living,
            CONTROL,
            name="over",
            active_from="2020-01-01T00:00:00Z",
            active_until="2021-01-01T00:00:00Z",
        )
        booked = await book(living, customer_id, favourite)
        entry = living.node.board.get(booked.request_id)

    found = await row(connection, booked)
    assert (found["experiment"], found["arm"], found["priority_window_seconds"]) == (
        None,
        None,
        None,
    )
    assert (found["routing_type"], found["stage"]) == ("priority_broadcast", "priority")
    assert found["stage_ends_at"] - found["priority_notified_at"] == timedelta(seconds=5)
    assert entry is not None
    assert entry.booking.experiment is None
    assert await connection.fetchval("SELECT count(*) FROM experiment_assignments") == 0
    assert await connection.fetchval("SELECT count(*) FROM policies") == 1


async def test_only_who_asks_for_a_favourite_first_and_would_not_wait_is_touched(
    connection: Connection, make_config: MakeConfig
) -> None:
    favourite = await add_mechanic(connection)
    async with living_node(make_config(**PATIENT)) as living:
        await put(connection, living, CONTROL)
        anybodys = await living.book(
            await add_customer(connection), preferred_mechanic_id=favourite
        )
        waiting = await book(
            living, await add_customer(connection), favourite, wait_for_preferred=True
        )

    for booked, routing in ((anybodys, "broadcast"), (waiting, "priority_broadcast")):
        found = await row(connection, booked)
        assert (found["experiment"], found["routing_type"]) == (None, routing)


# --- windows --------------------------------------------------------------------------------------


async def test_nodes_of_any_configuration_keep_to_the_window_of_a_bookings_arm(
    connection: Connection, pool: Pool, database_url: str, make_config: MakeConfig
) -> None:
    favourite, stranger = await add_mechanic(connection), await add_mechanic(connection)
    one_config = make_config(**PATIENT, priority_window_seconds=5.0)
    other_config = make_config(**PATIENT, priority_window_seconds=6.0)
    async with (
        living_node(one_config) as one,
        living_node(other_config) as other,
        other.client(favourite, "mechanic") as phone,
        one.client(stranger, "mechanic") as elsewhere,
    ):
        await put(connection, one, WINDOWS)
        short = await in_arm(connection, one, favourite, "short")
        cards = [await phone.until("offer", request_id=short.request_id)]
        long = await in_arm(connection, other, favourite, "long")
        cards += [await phone.until("offer", request_id=long.request_id)]
        # Whatever becomes of the experiment: what was booked stays as it was booked.
        await put(connection, other, WINDOWS, rollout_percentage=0)
        await pass_time(database_url, 31, one, other)
        await elsewhere.until("offer", request_id=short.request_id)
        known = [
            (await eventually(partial(living.node.board.get, long.request_id))).booking
            for living in (one, other)
        ]
        await pass_time(database_url, 95, one, other)
        await elsewhere.until("offer", request_id=long.request_id)

    for booked, seconds, card in ((short, 30, cards[0]), (long, 90, cards[1])):
        found = await row(connection, booked)
        notified, fell_back = found["priority_notified_at"], found["fallback_broadcast_at"]
        until = datetime.fromisoformat(card["exclusive_until"])
        assert (until - notified).total_seconds() == pytest.approx(seconds, abs=0.001)
        assert fell_back - notified >= timedelta(seconds=seconds)
        assert "windows" not in json.dumps(card)
        await assert_replays(pool, booked)
    assert known[0] == known[1]
    assert (known[0].stage, known[0].arm) == (Stage.PRIORITY, "long")


async def test_a_window_is_on_record_as_the_policy_of_its_bookings(
    connection: Connection, make_config: MakeConfig
) -> None:
    favourite = await add_mechanic(connection)
    async with living_node(make_config(**PATIENT)) as living:
        await put(connection, living, WINDOWS)
        booked = await in_arm(connection, living, favourite, "long")

    policy = await connection.fetchval(
        "SELECT p.policy FROM session_events e JOIN policies p ON p.id = e.policy_id"
        " WHERE e.session_id = $1 AND e.version = 2",
        booked.session_id,
    )
    assert json.loads(policy)["priority_window_seconds"] == 90.0


# --- routing --------------------------------------------------------------------------------------


async def test_the_control_is_offered_to_everybody_at_once_and_its_customer_sees_no_experiment(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    favourite, stranger = await add_mechanic(connection), await add_mechanic(connection)
    async with (
        two_nodes(make_config(**PATIENT)) as (here, there),
        there.client(favourite, "mechanic") as asked,
        here.client(stranger, "mechanic") as other,
    ):
        await put(connection, here, CONTROL)
        booked = await in_arm(connection, here, favourite, "everybody")
        cards = [
            await client.until("offer", request_id=booked.request_id) for client in (asked, other)
        ]
        async with here.client(booked.customer_id, "customer") as customer:
            seen = customer.snapshot
        await other.send("offer.accept", offer_id=cards[1]["offer_id"], accept_id=uuid4())
        await other.until("offer.won")

    assert {(card["stage"], card["score"], card["preferred"]) for card in cards} == {
        ("open", 50, False)
    }
    found = await row(connection, booked)
    assert (found["routing_type"], found["asked_for"]) == ("broadcast", "priority_broadcast")
    assert (found["experiment"], found["arm"]) == ("control", "everybody")
    assert (found["preferred_mechanic_id"], found["mechanic_id"]) == (favourite, stranger)
    assert "control" not in json.dumps(seen)
    await assert_replays(pool, booked)


# --- who is in which arm --------------------------------------------------------------------------


async def test_an_arm_is_kept_with_the_first_booking_and_with_nothing_that_was_refused(
    connection: Connection, make_config: MakeConfig
) -> None:
    favourite, customer_id = await add_mechanic(connection), await add_customer(connection)
    async with living_node(make_config(**PATIENT)) as living:
        busy = await living.book(customer_id)
        await put(connection, living, WINDOWS)
        form = {
            "plan": "free",
            "routing_type": "priority_broadcast",
            "preferred_mechanic_id": str(favourite),
        }
        refused = await living.call(customer_id, "customer", "POST", "/api/intake/start", form)
        before = await connection.fetchval("SELECT count(*) FROM experiment_assignments")
        arms = []
        previous = busy
        for _ in range(3):
            cancel = f"/api/requests/{previous.request_id}/cancel"
            assert (await living.call(customer_id, "customer", "POST", cancel))[0] == 200
            previous = await book(living, customer_id, favourite)
            arms.append((await row(connection, previous))["arm"])

    assert (refused[0], before) == (409, 0)
    kept = await connection.fetch("SELECT customer_id, experiment, arm FROM experiment_assignments")
    assert [tuple(each) for each in kept] == [(customer_id, "windows", arms[0])]
    assert len(set(arms)) == 1


async def test_a_booking_for_later_is_touched_when_it_is_made_and_opens_so(
    connection: Connection, pool: Pool, database_url: str, make_config: MakeConfig
) -> None:
    favourite = await add_mechanic(connection)
    slot_id = await connection.fetchval(
        "INSERT INTO slots (starts_at, ends_at, capacity)"
        " VALUES (now() + interval '1 h', now() + interval '2 h', 50) RETURNING id"
    )
    async with (
        living_node(make_config(**PATIENT)) as living,
        living.client(favourite, "mechanic") as phone,
    ):
        await put(connection, living, WINDOWS)
        booked = await in_arm(connection, living, favourite, "long", slot_id=slot_id)
        made = await row(connection, booked)
        await put(connection, living, WINDOWS, rollout_percentage=0)
        await pass_time(database_url, 3601, living)
        await phone.until("offer", request_id=booked.request_id)

    opened = await row(connection, booked)
    assert (made["status"], made["arm"], made["priority_window_seconds"]) == (
        "scheduled",
        "long",
        90.0,
    )
    assert opened["stage_ends_at"] - opened["priority_notified_at"] == timedelta(seconds=90)
    await assert_replays(pool, booked)


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_is_paid_for_is_touched_as_what_is_free(
    connection: Connection, make_config: MakeConfig, tmp_path: Path, at_once: bool
) -> None:
    """Opened with its making, or made first and opened later."""
    config = dataclasses.replace(make_config(**PATIENT), public_url=PUBLIC_URL)
    async with living_node(config) as living, open_till(config, tmp_path) as till:
        await put(connection, living, CONTROL)
        if at_once:
            till.open_at_once = living.node.dispatcher.open_at_once
        favourite = await till.mechanic()
        hook = await till.pay(
            await till.ordered(routing_type="priority_broadcast", preferred_mechanic_id=favourite)
        )
        created = (await till.handle(hook)).created

    assert created is not None
    assert (created.entry is not None) == at_once
    found = await connection.fetchrow(
        "SELECT r.arm, r.routing_type, a.arm AS kept FROM session_requests r"
        " JOIN experiment_assignments a USING (customer_id, experiment) WHERE r.id = $1",
        created.request_id,
    )
    assert found is not None
    assert found["kept"] == found["arm"]
    strategies = {"asked": "priority_broadcast", "everybody": "broadcast"}
    assert found["routing_type"] == strategies[found["arm"]]


async def test_a_touched_booking_takes_one_read_and_one_statement_as_every_other(
    connection: Connection, database_url: str, make_config: MakeConfig
) -> None:
    favourite = await add_mechanic(connection)
    asked: list[str] = []

    async def listen(opened: asyncpg.Connection) -> None:
        opened.add_query_logger(lambda record: asked.append(record.query))

    async with (
        living_node(make_config(**PATIENT)) as living,
        asyncpg.create_pool(
            database_url, min_size=0, max_size=1, init=listen, reset=_nothing
        ) as pool,
    ):
        await put(connection, living, WINDOWS)
        form = IntakeForm(
            plan="free", routing_type=Routing.PRIORITY, preferred_mechanic_id=favourite
        )
        started = await sessions.start_intake(
            pool, await add_customer(connection), form, TTL, living.node.dispatcher.open_at_once
        )

    assert started.created is not None
    assert started.created.entry is not None
    assert started.created.entry.booking.experiment == "windows"
    assert len(asked) == 2
    assert "book_intake" in asked[1]


async def _nothing(connection: asyncpg.Connection) -> None:
    return None


async def test_who_was_put_in_another_arm_meanwhile_is_in_that_one(
    connection: Connection, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    favourite, customer_id = await add_mechanic(connection), await add_customer(connection)
    async with living_node(make_config(**PATIENT)) as living:
        await put(connection, living, WINDOWS)
        decide = living.node.dispatcher.open_at_once
        arms: list[str | None] = []

        async def decided_before(prospect: Prospect) -> Opening | None:
            opening = await decide(prospect)
            assert opening is not None
            arms.append(opening.entry.booking.arm)
            other = "long" if arms[0] == "short" else "short"
            await _assign(connection, customer_id, other)
            return opening

        monkeypatch.setattr(living.node.dispatcher, "open_at_once", decided_before)
        booked = await book(living, customer_id, favourite)

    found = await row(connection, booked)
    assert len(arms) == 1
    assert found["arm"] == {"long": "short", "short": "long"}[str(arms[0])]


async def test_two_first_bookings_at_once_that_fall_in_two_arms_are_not_both_made(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    favourite, customer_id = await add_mechanic(connection), await add_customer(connection)
    async with living_node(make_config(**PATIENT)) as living:
        await put(connection, living, WINDOWS)
    intake_id = await add_intake(
        connection,
        customer_id,
        routing_type="priority_broadcast",
        preferred_mechanic_id=favourite,
    )

    async def make() -> None:
        async with transaction(pool) as mine:
            await sessions.create(mine, intake_id, None, None, TTL)

    other = connection.transaction()
    await other.start()
    await _assign(connection, customer_id, "neither")
    making = asyncio.create_task(make())
    await until_blocked(pool, 1)
    await other.commit()

    with pytest.raises(Unavailable, match="try again"):
        await making
    assert await connection.fetchval("SELECT count(*) FROM session_requests") == 0


async def _assign(connection: Connection, customer_id: UUID, arm: str) -> None:
    await connection.execute(
        "INSERT INTO experiment_assignments VALUES ($1, 'windows', $2, now())", customer_id, arm
    )


# --- figures --------------------------------------------------------------------------------------


async def test_the_figures_of_each_arm_are_told(
    connection: Connection, make_config: MakeConfig
) -> None:
    favourite = await add_mechanic(connection)
    admin_id = await add_user(connection, "admin")
    async with living_node(make_config(**PATIENT)) as living:
        untouched = await living.book(await add_customer(connection))
        await put(connection, living, CONTROL)
        booked = [
            await in_arm(connection, living, favourite, arm) for arm in ("asked", "everybody")
        ]
        offer_id = (await row(connection, booked[1]))["offer_id"]
        async with living.client(favourite, "mechanic") as phone:
            await phone.send("offer.accept", offer_id=offer_id, accept_id=uuid4())
            await phone.until("offer.won")
        status, told = await living.call(
            admin_id, "admin", "GET", "/api/admin/analytics?by=experiment"
        )
        counted = await connection.fetch(
            "SELECT arm, count(*) FROM session_requests WHERE arm IS NOT NULL GROUP BY 1 ORDER BY 1"
        )

    assert status == 200
    assert untouched.request_id is not None
    assert [(group["experiment"], group["arm"], group["requests"]) for group in told["groups"]] == [
        ("control", arm, number) for arm, number in counted
    ]
    asked, everybody = told["groups"]
    assert (everybody["favorite_acceptance_rate"], everybody["fallback_rate"]) == (1.0, None)
    assert (asked["favorite_acceptance_rate"], asked["accepted"]) == (None, 0)
    assert told["total"]["requests"] == 1 + sum(number for _, number in counted)


# --- setting them up ------------------------------------------------------------------------------


async def test_an_admin_makes_and_changes_experiments_and_all_of_it_is_kept(
    connection: Connection, make_config: MakeConfig
) -> None:
    first, second = await add_user(connection, "admin"), await add_user(connection, "admin")
    async with living_node(make_config()) as living:
        made = await living.call(first, "admin", "PUT", PATH, WINDOWS)
        await living.call(first, "admin", "PUT", PATH, CONTROL | {"rollout_percentage": 0})
        changed = await living.call(
            second,
            "admin",
            "PUT",
            PATH,
            WINDOWS | {"rollout_percentage": 50, "active_until": "2099-01-01T02:00:00+02:00"},
        )
        listed = await living.call(first, "admin", "GET", PATH)
        page = await living.call(first, "admin", "GET", f"{PATH}?limit=1&offset=1")
        # What was read may be sent back as it is.
        again = await living.call(first, "admin", "PUT", PATH, listed[1]["experiments"][1])

    assert (made[0], changed[0], again[0]) == (200, 200, 200)
    assert made[1]["is_running"]
    assert made[1]["arms"] == [
        {"name": "short", "weight": 1, "priority_window_seconds": 30.0, "customers": 0},
        {"name": "long", "weight": 1, "priority_window_seconds": 90.0, "customers": 0},
    ]
    assert (made[1]["changed_by"], changed[1]["changed_by"]) == (str(first), str(second))
    assert changed[1]["active_from"] == made[1]["active_from"]
    assert changed[1]["active_until"] == "2099-01-01T00:00:00.000Z"
    assert changed[1]["created_at"] < changed[1]["changed_at"]
    control, windows = listed[1]["experiments"]
    assert (control["name"], control["is_running"]) == ("control", False)
    assert {"ok": True, **windows} == changed[1]
    assert (page[1]["experiments"], page[1]["total"]) == ([windows], 2)
    history = await connection.fetch(
        "SELECT changed_by, settings ->> 'rollout_percentage' AS rollout FROM experiment_changes"
        " WHERE experiment = 'windows' ORDER BY id"
    )
    assert [tuple(each) for each in history] == [(first, "100"), (second, "50"), (first, "50")]


async def test_arms_that_customers_are_in_stay_as_they_are(
    connection: Connection, make_config: MakeConfig
) -> None:
    admin_id, favourite = await add_user(connection, "admin"), await add_mechanic(connection)
    other_arms = [{"name": "short", "priority_window_seconds": 31.0}, WINDOWS["arms"][1]]
    async with living_node(make_config(**PATIENT)) as living:
        await living.call(admin_id, "admin", "PUT", PATH, WINDOWS | {"arms": other_arms})
        unstarted = await living.call(admin_id, "admin", "PUT", PATH, WINDOWS)
        await in_arm(connection, living, favourite, "long")
        refused = [
            await living.call(admin_id, "admin", "PUT", PATH, form)
            for form in (WINDOWS | {"arms": other_arms}, CONTROL | {"name": "windows"})
        ]
        less = await living.call(
            admin_id, "admin", "PUT", PATH, WINDOWS | {"rollout_percentage": 1}
        )

    assert (unstarted[0], less[0]) == (200, 200)
    assert {(status, told["error"]["code"]) for status, told in refused} == {
        (409, "experiment_started")
    }
    assert less[1]["arms"][1]["customers"] == 1
    assert await connection.fetchval("SELECT count(*) FROM experiment_changes") == 3


async def test_what_cannot_be_an_experiment_is_refused_and_changes_nothing(
    connection: Connection, make_config: MakeConfig
) -> None:
    admin_id, mechanic_id = await add_user(connection, "admin"), await add_mechanic(connection)
    arm = {"name": "a", "priority_window_seconds": 30.0}
    wrong: list[dict[str, Any]] = [
        {"name": "With Spaces"},
        {"name": "line\n"},
        {"name": "x" * 51},
        {"name": ""},
        {"kind": "colour"},
        {"rollout_percentage": 101},
        {"rollout_percentage": -1},
        {"rollout_percentage": 0.5},
        {"arms": []},
        {"arms": [arm, arm]},
        {"arms": [{"name": f"a{n}", "priority_window_seconds": 1.0} for n in range(11)]},
        {"arms": [{"name": "a"}]},
        {"arms": [arm | {"routing": "broadcast"}]},
        {"arms": [arm | {"priority_window_seconds": 0.0}]},
        {"arms": [arm | {"priority_window_seconds": 86_401.0}]},
        {"arms": [arm | {"weight": 0}]},
        {"kind": "routing"},
        {"kind": "routing", "arms": [{"name": "a", "routing": "hybrid"}]},
        {"active_from": "2030-01-02T00:00:00Z", "active_until": "2030-01-02T00:00:00Z"},
        {"active_until": "2020-01-01T00:00:00Z"},
        {"active_from": "2030-01-02T00:00:00"},
        {"active_from": "0001-01-01T00:00:00+14:00"},
        {"active_until": "9999-12-31T23:59:59-14:00"},
    ]
    async with living_node(make_config()) as living:
        answers = [
            await living.call(admin_id, "admin", "PUT", PATH, WINDOWS | each) for each in wrong
        ]
        theirs = [
            (await living.call(mechanic_id, "mechanic", method, PATH, WINDOWS))[0]
            for method in ("GET", "PUT")
        ]

    told = [(status, answer["error"]["code"]) for status, answer in answers]
    assert told == [(400, "bad_request")] * len(wrong)
    assert theirs == [403, 403]
    assert await connection.fetchval("SELECT count(*) FROM experiments") == 0
