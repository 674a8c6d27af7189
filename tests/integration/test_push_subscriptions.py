"""Where a mechanic wants to be told: her devices over HTTP, and what customers see of it (N3)."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatch.database import Connection
from dispatch.endpoints.push import SUBSCRIPTIONS_PER_MINUTE
from dispatch.push import MAX_DEVICES
from dispatch.push_crypto import Vapid, new_private_key
from tests.conftest import MakeConfig
from tests.integration.living import LivingNode, living_node
from tests.integration.push_service import SUBJECT, Browser
from tests.integration.rows import add_customer, add_mechanic, add_user, add_workshop

Json = dict[str, Any]

PATH = "/api/push/subscriptions"
ORIGIN = "https://push.example"
PRIVATE_KEY = new_private_key()


@pytest.fixture
async def living(make_config: MakeConfig) -> AsyncIterator[LivingNode]:
    """A node with web push, to which one push service is known."""
    config = make_config(
        vapid_private_key=PRIVATE_KEY, vapid_subject=SUBJECT, push_trusted_origins=(ORIGIN,)
    )
    async with living_node(config) as living:
        yield living


@pytest.fixture
async def mechanic(connection: Connection) -> UUID:
    return await add_mechanic(connection)


def a_browser() -> Browser:
    return Browser(f"{ORIGIN}/{uuid4()}", "")


async def post(living: LivingNode, mechanic_id: UUID, form: object) -> tuple[int, Json]:
    return await living.call(mechanic_id, "mechanic", "POST", PATH, form)


async def devices(living: LivingNode, mechanic_id: UUID) -> list[Json]:
    status, told = await living.call(mechanic_id, "mechanic", "GET", PATH)
    assert status == 200
    listed: list[Json] = told["subscriptions"]
    return listed


# --- keeping and forgetting -----------------------------------------------------------------------


async def test_a_device_is_kept_listed_and_forgotten(living: LivingNode, mechanic: UUID) -> None:
    browser = a_browser()

    status, made = await post(living, mechanic, browser.form(device="phone"))
    listed = await living.call(mechanic, "mechanic", "GET", PATH)
    forgotten = await living.call(mechanic, "mechanic", "DELETE", f"{PATH}/{made['id']}")

    device = {"id": made["id"], "device": "phone", "delivered_at": None}
    device["created_at"] = made["created_at"]
    key = Vapid(PRIVATE_KEY, "").public_key
    assert (status, made) == (201, {"ok": True, **device})
    assert listed == (
        200,
        {"ok": True, "application_server_key": key, "subscriptions": [device]},
    )
    assert forgotten == (200, {"ok": True})
    assert await devices(living, mechanic) == []
    again = await living.call(mechanic, "mechanic", "DELETE", f"{PATH}/{made['id']}")
    assert again[0] == 404


async def test_the_same_browser_again_is_the_same_device_with_its_new_keys(
    living: LivingNode, connection: Connection, mechanic: UUID
) -> None:
    browser = a_browser()
    _, made = await post(living, mechanic, browser.form(device="phone"))
    await connection.execute("UPDATE push_subscriptions SET delivered_at = created_at")
    renewed = a_browser().form(device="work phone") | {"endpoint": browser.endpoint}

    status, again = await post(living, mechanic, renewed)

    assert status == 200
    assert again == made | {"device": "work phone", "delivered_at": made["created_at"]}
    row = await connection.fetchrow("SELECT p256dh, auth FROM push_subscriptions")
    assert dict(row or {}) == renewed["keys"]


async def test_a_browser_is_hers_who_logged_in_last(
    living: LivingNode, connection: Connection, mechanic: UUID
) -> None:
    colleague, browser = await add_mechanic(connection), a_browser()
    _, made = await post(living, mechanic, browser.form(device="shared"))
    await connection.execute("UPDATE push_subscriptions SET delivered_at = created_at")

    status, hers = await post(living, colleague, browser.form())

    assert status == 201
    assert hers["id"] != made["id"]
    assert (hers["device"], hers["delivered_at"]) == (None, None)
    assert await devices(living, mechanic) == []
    assert [device["id"] for device in await devices(living, colleague)] == [hers["id"]]


async def test_of_too_many_devices_the_oldest_go(living: LivingNode, mechanic: UUID) -> None:
    first = a_browser()
    browsers = [first, *(a_browser() for _ in range(MAX_DEVICES))]
    ids = [(await post(living, mechanic, browser.form()))[1]["id"] for browser in browsers]

    kept = [device["id"] for device in await devices(living, mechanic)]

    assert kept == ids[:0:-1]
    assert (await post(living, mechanic, first.form()))[0] == 201


async def test_keys_are_kept_in_one_spelling(
    living: LivingNode, connection: Connection, mechanic: UUID
) -> None:
    form = a_browser().form()
    padded = {"p256dh": form["keys"]["p256dh"] + "=", "auth": form["keys"]["auth"] + "=="}

    status, _ = await post(living, mechanic, form | {"keys": padded})

    assert status == 201
    row = await connection.fetchrow("SELECT p256dh, auth FROM push_subscriptions")
    assert dict(row or {}) == form["keys"]


# --- who may, and what ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"endpoint": 7}, "$.endpoint"),
        ({"endpoint": f"{ORIGIN}/{'x' * 2048}"}, "$.endpoint"),
        ({"endpoint": "http://push.example/x"}, "endpoint: must be https on port 443"),
        ({"endpoint": "https://127.0.0.1/x"}, "endpoint: its host is not a public one"),
        ({"endpoint": "https://localhost/x"}, "endpoint: its host is not a public one"),
        ({"keys": {}}, "p256dh"),
        ({"keys": {"p256dh": "AAAA", "auth": "A" * 22}}, "keys.p256dh: "),
        ({"keys": {"p256dh": "A" * 129, "auth": "A" * 22}}, "$.keys.p256dh"),
        ({"device": "x" * 65}, "$.device"),
        ({"device": "a\0b"}, "U+0000"),
    ],
)
async def test_what_is_no_subscription_is_refused_by_its_field(
    living: LivingNode, mechanic: UUID, change: Json, says: str
) -> None:
    status, told = await post(living, mechanic, a_browser().form() | change)

    assert (status, told["error"]["code"]) == (400, "bad_request")
    assert says in told["error"]["message"]
    assert await devices(living, mechanic) == []


async def test_only_mechanics_have_devices(living: LivingNode, connection: Connection) -> None:
    admin, member = await add_user(connection, "admin"), await add_user(connection, "workshop")
    await add_workshop(connection)
    others = ((await add_customer(connection), "customer"), (admin, "admin"), (member, "workshop"))

    for user_id, role in others:
        for method, path in (("GET", PATH), ("POST", PATH), ("DELETE", f"{PATH}/{uuid4()}")):
            status, told = await living.call(user_id, role, method, path)
            assert (status, told["error"]["code"]) == (403, "forbidden")
    unknown = await living.call(uuid4(), "mechanic", "GET", PATH)
    assert unknown[0] == 401


async def test_another_mechanics_device_is_as_if_it_did_not_exist(
    living: LivingNode, connection: Connection, mechanic: UUID
) -> None:
    _, made = await post(living, mechanic, a_browser().form())
    stranger = await add_mechanic(connection)

    answers = [
        await living.call(stranger, "mechanic", "DELETE", f"{PATH}/{id_}")
        for id_ in (made["id"], uuid4(), "17")
    ]

    assert [status for status, _ in answers] == [404, 404, 404]
    assert answers[0] == answers[1]
    assert await devices(living, stranger) == []
    assert len(await devices(living, mechanic)) == 1


async def test_a_device_that_is_registered_while_its_mechanic_is_deleted_is_not_kept(
    living: LivingNode, connection: Connection, mechanic: UUID
) -> None:
    await post(living, mechanic, a_browser().form())

    await connection.execute("UPDATE mechanics SET deleted_at = now() WHERE id = $1", mechanic)
    status, _ = await post(living, mechanic, a_browser().form())

    assert status == 404
    assert await connection.fetchval("SELECT count(*) FROM push_subscriptions") == 0


async def test_who_subscribes_without_end_is_slowed_down_and_nobody_else(
    living: LivingNode, connection: Connection, mechanic: UUID
) -> None:
    form = a_browser().form()
    for _ in range(SUBSCRIPTIONS_PER_MINUTE):
        assert (await post(living, mechanic, form))[0] in (200, 201)

    status, told = await post(living, mechanic, form)

    assert (status, told["error"]["code"]) == (429, "rate_limited")
    assert (await post(living, await add_mechanic(connection), form))[0] == 201


async def test_without_a_key_there_is_no_web_push(
    make_config: MakeConfig, connection: Connection, mechanic: UUID
) -> None:
    async with living_node(make_config()) as living:
        answers = [
            await living.call(mechanic, "mechanic", method, path, body)
            for method, path, body in (
                ("GET", PATH, None),
                ("POST", PATH, a_browser().form()),
                ("DELETE", f"{PATH}/{uuid4()}", None),
            )
        ]
        customer = await add_customer(connection)
        refused, _ = await living.call(customer, "customer", "GET", PATH)

    assert [(status, told["error"]["code"]) for status, told in answers] == [
        (501, "not_configured")
    ] * 3
    assert refused == 403


# --- what customers see ---------------------------------------------------------------------------


async def reachable(living: LivingNode, customer: UUID, mechanic: UUID) -> tuple[bool, bool]:
    """What HTTP and what the socket say."""
    path = f"/api/mechanics/{mechanic}/status"
    _, status = await living.call(customer, "customer", "GET", path)
    async with living.client(customer, "customer") as client:
        await client.send("mechanic.watch", mechanic_id=mechanic)
        frame = await client.until("mechanic.presence", mechanic_id=mechanic)
    return status["reachable_by_push"], frame["reachable_by_push"]


async def test_a_mechanic_with_a_device_is_reachable_by_push(
    living: LivingNode, connection: Connection, mechanic: UUID
) -> None:
    customer = await add_customer(connection)
    before = await reachable(living, customer, mechanic)
    _, made = await post(living, mechanic, a_browser().form())

    while_subscribed = await reachable(living, customer, mechanic)
    await living.call(mechanic, "mechanic", "DELETE", f"{PATH}/{made['id']}")

    assert before == (False, False)
    assert while_subscribed == (True, True)
    assert await reachable(living, customer, mechanic) == (False, False)


async def test_who_leaves_is_told_of_as_still_reachable(
    living: LivingNode, connection: Connection, mechanic: UUID
) -> None:
    customer = await add_customer(connection)
    await post(living, mechanic, a_browser().form())
    async with living.client(customer, "customer") as client:
        async with living.client(mechanic, "mechanic"):
            await client.send("mechanic.watch", mechanic_id=mechanic)
            await client.until("mechanic.presence", is_online=True, reachable_by_push=True)

        gone = await client.until("mechanic.presence", is_online=False)

    assert (gone["presence"], gone["reachable_by_push"]) == ("offline", True)


async def test_without_a_key_nobody_is_reachable_by_push(
    living: LivingNode, make_config: MakeConfig, connection: Connection, mechanic: UUID
) -> None:
    customer = await add_customer(connection)
    await post(living, mechanic, a_browser().form())

    async with living_node(make_config()) as without_key:
        assert await reachable(without_key, customer, mechanic) == (False, False)
