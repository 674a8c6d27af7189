"""What mechanics and workshops read of their earnings: their own, newest first, no one else's."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec
import pytest

from dispatch.config import Config
from dispatch.database import Connection
from tests.integration.living import LivingNode, living_node
from tests.integration.rows import add_mechanic, add_user, add_workshop
from tests.integration.served import Sold, pay_out, refunded, sell, sell_for_credits, serve

HERS, SHOPS = "/api/mechanic/earnings", "/api/workshop/earnings"


@pytest.fixture
async def node(config: Config) -> AsyncIterator[LivingNode]:
    async with living_node(config) as node:
        yield node


class Garage(msgspec.Struct, frozen=True):
    """A workshop, the user who acts for it, and its one mechanic."""

    id: UUID
    member_id: UUID
    mechanic_id: UUID


async def add_garage(connection: Connection, mechanic_name: str) -> Garage:
    workshop_id, member_id = await add_workshop(connection), await add_user(connection, "workshop")
    await connection.execute(
        "INSERT INTO organization_members VALUES ($1, $2)", workshop_id, member_id
    )
    mechanic_id = await add_mechanic(connection, workshop_id)
    await connection.execute("UPDATE users SET name = $2 WHERE id = $1", mechanic_id, mechanic_name)
    return Garage(workshop_id, member_id, mechanic_id)


async def served(connection: Connection, gross: int, mechanic_id: UUID, **options: Any) -> Sold:
    sold = await sell(connection, gross, **options)
    await serve(connection, sold, mechanic_id)
    return sold


async def ask(node: LivingNode, user_id: UUID, role: str, path: str) -> dict[str, Any]:
    status, told = await node.call(user_id, role, "GET", path)
    assert status == 200, told
    return told


def sums(**told: int) -> dict[str, Any]:
    """A line of a mechanic's summary; what is not named is nothing."""
    names = (
        "sessions",
        "gross_amount_cents",
        "platform_fee_cents",
        "workshop_fee_cents",
        "mechanic_net_cents",
        "reversed_cents",
        "due_cents",
        "processing_cents",
        "paid_cents",
    )
    return {"currency": "eur"} | dict.fromkeys(names, 0) | told


async def test_a_mechanic_reads_her_sums_her_sessions_and_whether_she_can_be_paid(
    node: LivingNode, connection: Connection
) -> None:
    mechanic_id, other_id = await add_mechanic(connection), await add_mechanic(connection)
    garage = await add_garage(connection, "Max")
    await served(connection, 9900, other_id)  # somebody else's
    paid = await served(connection, 1000, mechanic_id)
    payout_id = await pay_out(connection, mechanic_id)
    await refunded(connection, paid, 500)
    referred = await served(connection, 2000, mechanic_id, workshop_id=garage.id)
    in_dollars = await served(connection, 100, mechanic_id, currency="usd")

    told = await ask(node, mechanic_id, "mechanic", HERS)

    assert told["summary"] == [
        sums(
            sessions=2,
            gross_amount_cents=3000,
            platform_fee_cents=600,
            workshop_fee_cents=200,
            mechanic_net_cents=2200,
            reversed_cents=400,
            due_cents=1400,
            paid_cents=400,
        ),
        sums(
            sessions=1,
            gross_amount_cents=100,
            platform_fee_cents=20,
            mechanic_net_cents=80,
            due_cents=80,
        )
        | {"currency": "usd"},
    ]
    assert (told["total"], told["limit"], told["offset"]) == (3, 20, 0)
    assert [row["session_id"] for row in told["earnings"]] == [
        str(sold.session_id) for sold in (in_dollars, referred, paid)
    ]
    oldest = told["earnings"][-1]
    assert oldest.pop("completed_at").endswith("Z")
    assert oldest == {
        "session_id": str(paid.session_id),
        "session_type": "chat",
        "plan_code": "chat10",
        "currency": "eur",
        "gross_amount_cents": 1000,
        "platform_fee_cents": 200,
        "workshop_fee_cents": 0,
        "mechanic_net_cents": 800,
        "reversed_cents": 400,
        "payout_status": "paid",
        "payout_id": str(payout_id),
    }
    assert told["payouts"] == {
        "account": True,
        "onboarding_completed": False,
        "payouts_enabled": True,
    }


async def test_a_workshop_reads_what_it_served_and_its_part_of_what_it_referred(
    node: LivingNode, connection: Connection
) -> None:
    """Of the mechanic who served for another neither name nor net can be read or reckoned."""
    garage, other = await add_garage(connection, "Max"), await add_garage(connection, "Eva")
    own = await served(connection, 1000, garage.mechanic_id)
    credits = await sell_for_credits(connection, 500)
    await serve(connection, credits, garage.mechanic_id)
    referral = await served(connection, 3000, other.mechanic_id, workshop_id=garage.id)

    told = await ask(node, garage.member_id, "workshop", SHOPS)
    others = await ask(node, other.member_id, "workshop", SHOPS)
    hers = await ask(node, other.mechanic_id, "mechanic", HERS)

    assert told["summary"] == [
        {
            "currency": "eur",
            "sessions": 3,
            "gross_amount_cents": 4500,
            "platform_fee_cents": 300,
            "workshop_net_cents": 800 + 400 + 300,
            "reversed_cents": 0,
            "due_cents": 1500,
            "processing_cents": 0,
            "paid_cents": 0,
        }
    ]
    newest, _, oldest = told["earnings"]
    assert newest.pop("completed_at") > oldest.pop("completed_at")
    assert newest == {
        "session_id": str(referral.session_id),
        "session_type": "chat",
        "plan_code": "chat10",
        "is_referral": True,
        "mechanic_id": None,
        "mechanic_name": None,
        "currency": "eur",
        "gross_amount_cents": 3000,
        "platform_fee_cents": None,
        "workshop_net_cents": 300,
        "reversed_cents": 0,
        "payout_status": "pending",
        "payout_id": None,
    }
    assert oldest == newest | {
        "session_id": str(own.session_id),
        "is_referral": False,
        "mechanic_id": str(garage.mechanic_id),
        "mechanic_name": "Max",
        "gross_amount_cents": 1000,
        "platform_fee_cents": 200,
        "workshop_net_cents": 800,
    }
    assert "Eva" not in str(told)
    assert (others["summary"], others["earnings"], others["total"]) == ([], [], 0)
    assert hers["summary"][0]["mechanic_net_cents"] == 2100


async def test_who_has_earned_nothing_reads_nothing_and_never_null(
    node: LivingNode, connection: Connection
) -> None:
    garage = await add_garage(connection, "Max")

    shops = await ask(node, garage.member_id, "workshop", SHOPS)
    hers = await ask(node, garage.mechanic_id, "mechanic", HERS)

    assert (
        shops
        == hers
        == {
            "ok": True,
            "summary": [],
            "earnings": [],
            "total": 0,
            "limit": 20,
            "offset": 0,
            "payouts": {"account": False, "onboarding_completed": False, "payouts_enabled": False},
        }
    )


async def test_pages_are_parts_of_the_whole_newest_first(
    node: LivingNode, connection: Connection
) -> None:
    mechanic_id = await add_mechanic(connection)
    ids = [str((await served(connection, 100, mechanic_id)).session_id) for _ in range(5)]

    pages = [
        await ask(node, mechanic_id, "mechanic", f"{HERS}?limit=2&offset={offset}")
        for offset in (0, 2, 4, 6)
    ]

    assert [[row["session_id"] for row in page["earnings"]] for page in pages] == [
        [ids[4], ids[3]],
        [ids[2], ids[1]],
        [ids[0]],
        [],
    ]
    assert {page["total"] for page in pages} == {5}
    assert {page["summary"][0]["gross_amount_cents"] for page in pages} == {500}


@pytest.mark.parametrize(
    "asked",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "offset=-1",
        "offset=1000001",
        "limit=1e3",
        "limit=",
        "limit=5&limit=6",
        "limit=1%3B%20DROP%20TABLE%20payouts",
    ],
)
@pytest.mark.parametrize(("role", "path"), [("mechanic", HERS), ("workshop", SHOPS)])
async def test_a_page_that_does_not_exist_is_refused(
    node: LivingNode, connection: Connection, role: str, path: str, asked: str
) -> None:
    garage = await add_garage(connection, "Max")
    caller = garage.mechanic_id if role == "mechanic" else garage.member_id

    status, told = await node.call(caller, role, "GET", f"{path}?{asked}")

    assert (status, told["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("role", "path"),
    [
        ("customer", HERS),
        ("workshop", HERS),
        ("admin", HERS),
        ("customer", SHOPS),
        ("mechanic", SHOPS),
        ("admin", SHOPS),
        ("workshop", SHOPS),  # of a user who is a member of no workshop
    ],
)
async def test_whose_they_are_not_is_refused(
    node: LivingNode, connection: Connection, role: str, path: str
) -> None:
    user_id = await (add_mechanic(connection) if role == "mechanic" else add_user(connection, role))

    status, told = await node.call(user_id, role, "GET", path)

    assert (status, told["error"]["code"]) == (403, "forbidden")
