"""The checkout of an intake: what it costs, who may ask for it, and that it is made once."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from dispatch import checkout
from dispatch.config import Config
from dispatch.core.types import Routing
from dispatch.database import Pool, transaction
from dispatch.errors import BadRequest, Conflict, NotFound, Unavailable
from dispatch.sessions import ActiveSessionExists, SlotFull
from dispatch.stripe_client import StripeClient, StripeFailed
from tests.integration.stripe_servers import free_socket
from tests.integration.till import PUBLIC_URL, Till, open_till
from tests.support import STRIPE_SECRET_KEY, eventually


@pytest.fixture
async def till(config: Config, tmp_path: Path) -> AsyncIterator[Till]:
    async with open_till(dataclasses.replace(config, public_url=PUBLIC_URL), tmp_path) as till:
        yield till


async def open_sessions(till: Till) -> list[dict[str, object]]:
    """All Checkout Sessions at Stripe, the newest first."""
    _, listed, _ = await till.stand_in.call("GET", "/v1/checkout/sessions")
    found: list[dict[str, object]] = listed["data"]
    return found


async def test_a_checkout_asks_the_plans_price_and_carries_all_that_was_asked_for(
    till: Till,
) -> None:
    customer_id = await till.customer()
    wish = await till.everything(customer_id)
    asked = {name: getattr(wish, name) for name in checkout.CheckoutQuery.__struct_fields__[1:]}
    intake_id = await till.intake(customer_id, **asked)

    url = await till.checkout(customer_id, intake_id, **asked)

    [session] = await open_sessions(till)
    payment = await till.payment(url)
    assert session["url"] == url
    assert (session["amount_total"], session["currency"]) == (4900, "eur")
    assert session["metadata"] == {
        "payment_id": str(payment["id"]),
        "customer_id": str(customer_id),
        "intake_id": str(intake_id),
        "plan": "diagnostic",
        "routing_type": "hybrid",
        "workshop_id": str(wish.workshop_id),
        "preferred_mechanic_id": str(wish.preferred_mechanic_id),
        "slot_id": str(wish.slot_id),
        "wait_for_preferred": "true",
    }
    assert session["success_url"] == (
        f"{PUBLIC_URL}/checkout/success?session_id={{CHECKOUT_SESSION_ID}}"
    )
    assert session["cancel_url"] == f"{PUBLIC_URL}/checkout/cancel?intake_id={intake_id}"
    assert (payment["status"], payment["amount_cents"], payment["currency"]) == (
        "created",
        4900,
        "eur",
    )


async def test_the_client_has_no_say_in_the_price(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id, "standard")
    sent = {"intake_id": str(intake_id), "amount_cents": "1", "price": "1", "currency": "jpy"}
    query = msgspec.convert(sent, checkout.CheckoutQuery, strict=False)

    url = await checkout.create_checkout(till.pool, till.stripe, till.config, customer_id, query)

    [session] = await open_sessions(till)
    assert (session["amount_total"], session["currency"]) == (2900, "eur")
    assert (await till.payment(url))["amount_cents"] == 2900


async def test_asking_again_gives_the_open_checkout(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    async with transaction(till.pool) as holding:  # until several are between look and insert
        await holding.execute("LOCK TABLE payments IN EXCLUSIVE MODE")
        asked = [asyncio.create_task(till.checkout(customer_id, intake_id)) for _ in range(5)]
        await eventually(lambda: several_wait(till.pool))

    urls = [*await asyncio.gather(*asked), await till.checkout(customer_id, intake_id)]

    assert len(set(urls)) == 1
    assert await till.count("payments") == 1
    assert len(await open_sessions(till)) == 1


async def several_wait(pool: Pool) -> bool:
    """Whether several connections to this database wait for a lock."""
    waiting: int = await pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return waiting >= 3


async def test_a_crash_before_stripes_answer_was_stored_leads_to_the_same_page(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    url = await till.checkout(customer_id, intake_id)
    await till.pool.execute("UPDATE payments SET stripe_session_id = NULL, checkout_url = NULL")

    assert await till.checkout(customer_id, intake_id) == url
    assert await till.count("payments") == 1


async def test_a_checkout_whose_time_is_over_is_replaced(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    old = await till.checkout(customer_id, intake_id)
    await till.pool.execute("UPDATE payments SET created_at = created_at - interval '61 min'")

    new = await till.checkout(customer_id, intake_id)

    assert new != old
    assert (await till.payment(old))["status"] == "expired"
    assert (await till.payment(new))["status"] == "created"


async def test_without_an_intake_one_is_made_and_the_waiver_comes_first(till: Till) -> None:
    customer_id = await till.customer()

    with pytest.raises(Conflict) as refused:
        await till.checkout(customer_id, plan="chat10")

    assert refused.value.code == "waiver_required"
    intake_id = UUID(str(refused.value.fields["intake_id"]))
    assert refused.value.fields["redirect"] == f"/intake/waiver?plan=chat10&intake_id={intake_id}"
    assert await till.count("payments") == 0
    await till.sign(customer_id, intake_id)
    assert (await till.payment(await till.checkout(customer_id, intake_id)))[
        "plan_code"
    ] == "chat10"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("plan", "chat10"),
        ("routing_type", Routing.PRIORITY),
        ("workshop_id", uuid4()),
        ("preferred_mechanic_id", uuid4()),
        ("slot_id", uuid4()),
        ("wait_for_preferred", True),
    ],
)
async def test_a_query_that_contradicts_the_intake_is_refused_by_name(
    till: Till, field: str, value: object
) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)

    with pytest.raises(BadRequest, match=f"^{field}: "):
        await till.checkout(customer_id, intake_id, **{field: value})

    assert await till.count("payments") == 0


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({}, "plan: required"),
        ({"plan": "gold"}, "plan: there is no such plan"),
        ({"plan": "chat10", "routing_type": Routing.HYBRID}, "workshop_id: required for hybrid"),
        ({"plan": "chat10", "workshop_id": uuid4()}, "workshop_id: there is no such workshop"),
        ({"plan": "free"}, "plan: there is nothing to pay for"),
    ],
)
async def test_a_query_that_cannot_be_an_intake_leaves_nothing_behind(
    till: Till, query: dict[str, Any], said: str
) -> None:
    customer_id = await till.customer()

    with pytest.raises(BadRequest, match=said):
        await till.checkout(customer_id, **query)

    assert await till.count("intakes") == 0


async def test_nobody_pays_for_somebody_elses_intake_or_an_unknown_one(till: Till) -> None:
    others = await till.intake(await till.customer())
    customer_id = await till.customer()

    answers = []
    for intake_id in (others, uuid4()):
        with pytest.raises(NotFound) as refused:
            await till.checkout(customer_id, intake_id)
        answers.append((refused.value.code, refused.value.message))

    assert answers[0] == answers[1]
    assert await till.count("payments") == 0


async def test_a_free_intake_is_booked_and_not_paid(till: Till) -> None:
    customer_id = await till.customer()
    free = await till.intake(customer_id, "free")

    with pytest.raises(Conflict, match="booked already"):
        await till.checkout(customer_id, free)


async def test_what_is_booked_cannot_be_paid_again(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    await till.handle(await till.pay(await till.checkout(customer_id, intake_id)))

    with pytest.raises(Conflict) as refused:
        await till.checkout(customer_id, intake_id)

    assert refused.value.code == "already_booked"


async def test_who_has_a_session_pays_for_no_second_one_unless_it_is_for_later(till: Till) -> None:
    customer_id = await till.customer()
    now = await till.intake(customer_id)
    later = await till.intake(customer_id, slot_id=await till.slot())
    created = (await till.handle(await till.pay(await till.checkout(customer_id, now)))).created
    assert created is not None
    before = await till.count("payments")

    with pytest.raises(ActiveSessionExists) as refused:
        await till.checkout(customer_id, plan="chat10")

    assert refused.value.fields["activeSessionId"] == str(created.session_id)
    assert await till.count("payments") == before
    assert await till.checkout(customer_id, later)


async def test_nobody_pays_for_what_cannot_be_served_any_more(till: Till) -> None:
    customer_id, mechanic_id = await till.customer(), await till.mechanic()
    slot_id = await till.slot()
    seat = await till.intake(customer_id, slot_id=slot_id)
    favourite = await till.intake(customer_id, preferred_mechanic_id=mechanic_id)
    await till.pool.execute("UPDATE slots SET taken = capacity")
    await till.pool.execute("UPDATE mechanics SET deleted_at = now()")

    with pytest.raises(SlotFull):
        await till.checkout(customer_id, seat)
    with pytest.raises(BadRequest, match=r"^preferred_mechanic_id: "):
        await till.checkout(customer_id, favourite)

    assert await till.count("payments") == 0


async def test_while_stripe_is_away_the_payment_waits_and_keeps_its_key(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    with free_socket() as silent:
        there = till.stripe
        address = "http://{}:{}".format(*silent.getsockname())
        till.stripe = StripeClient(STRIPE_SECRET_KEY, api_base=address, public_url=PUBLIC_URL)
        with pytest.raises(Unavailable):
            await till.checkout(customer_id, intake_id)
        await till.stripe.close()
    [before] = await till.pool.fetch("SELECT id, status FROM payments")
    till.stripe = there

    url = await till.checkout(customer_id, intake_id)

    assert before["status"] == "created"
    assert (await till.payment(url))["id"] == before["id"]
    assert await till.count("payments") == 1


async def test_what_stripe_refuses_is_failed_and_may_be_tried_anew(till: Till) -> None:
    customer_id = await till.customer()
    intake_id = await till.intake(customer_id)
    await till.pool.execute("UPDATE plans SET price_cents = 1 WHERE code = 'video15'")
    with pytest.raises(StripeFailed):
        await till.checkout(customer_id, intake_id)
    await till.pool.execute("UPDATE plans SET price_cents = 1500 WHERE code = 'video15'")

    url = await till.checkout(customer_id, intake_id)

    rows = await till.pool.fetch("SELECT status, amount_cents FROM payments ORDER BY created_at")
    assert [tuple(row) for row in rows] == [("failed", 1), ("created", 1500)]
    assert (await till.payment(url))["amount_cents"] == 1500
