"""After the session: the mechanic's summary and notes, the customer's rating, the prompt (S9)."""

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from dispatch import reviews
from dispatch.core.types import End
from dispatch.database import Connection, Pool
from dispatch.errors import Conflict
from dispatch.reviews import Rating
from dispatch.store import Store
from tests.conftest import MakeConfig
from tests.integration.living import Frame, LivingNode, living_node
from tests.integration.rows import add_mechanic, add_workshop, change
from tests.integration.talks import Talk, accepted, active


async def seen_by(living: LivingNode, talk: Talk, role: str) -> Frame:
    """What `GET /api/sessions/{id}` tells this participant."""
    user_id = talk.customer_id if role == "customer" else talk.mechanic_id
    status, told = await living.call(user_id, role, "GET", f"/api/sessions/{talk.session_id}")
    assert status == 200, told
    return told


async def completed(connection: Connection, pool: Pool, mechanic_id: UUID | None = None) -> Talk:
    talk = await active(connection, pool, mechanic_id)
    await talk.ends()
    return talk


async def test_both_read_the_summary_and_the_mechanic_alone_her_notes(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    talk = await active(connection, pool)
    path = f"/api/sessions/{talk.session_id}/summary"
    async with living_node(make_config()) as living:
        written = {"summary": "The <b>belt</b> is worn.", "notes": "Nice customer."}
        during, told = await living.call(talk.mechanic_id, "mechanic", "PUT", path, written)
        customer = await seen_by(living, talk, "customer")
        await talk.ends()
        changed = {"summary": "Belt replaced."}
        after, again = await living.call(talk.mechanic_id, "mechanic", "PUT", path, changed)
        customer_after = await seen_by(living, talk, "customer")

    assert (during, after) == (200, 200)
    assert (told["summary"], told["notes"]) == (written["summary"], written["notes"])
    assert (told["status"], told["session_type"], told["plan_code"]) == ("active", "chat", "chat10")
    assert customer["summary"] == written["summary"]
    assert "notes" not in customer
    assert (again["summary"], "notes" in again) == ("Belt replaced.", False)
    assert customer_after["summary"] == "Belt replaced."
    assert "Nice" not in str(customer_after)


async def test_only_its_mechanic_summarises_and_only_once_both_have_joined(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    early, begun = await accepted(connection, pool), await active(connection, pool)
    stranger = await add_mechanic(connection)
    answers = {}
    async with living_node(make_config()) as living:
        for name, who, role, session_id, body in (
            ("early", early.mechanic_id, "mechanic", early.session_id, {"summary": "x"}),
            ("stranger", stranger, "mechanic", begun.session_id, {"summary": "x"}),
            ("unknown", stranger, "mechanic", uuid4(), {"summary": "x"}),
            ("customer", begun.customer_id, "customer", begun.session_id, {"summary": "x"}),
            ("long", begun.mechanic_id, "mechanic", begun.session_id, {"summary": "x" * 4001}),
            ("notes", begun.mechanic_id, "mechanic", begun.session_id, {"notes": "x"}),
        ):
            path = f"/api/sessions/{session_id}/summary"
            status, told = await living.call(who, role, "PUT", path, body)
            answers[name] = (status, told["error"])

    assert {name: (status, error["code"]) for name, (status, error) in answers.items()} == {
        "early": (409, "not_started"),
        "stranger": (404, "not_found"),
        "unknown": (404, "not_found"),
        "customer": (403, "forbidden"),
        "long": (400, "bad_request"),
        "notes": (400, "bad_request"),
    }
    assert answers["stranger"] == answers["unknown"]
    assert await connection.fetchval("SELECT count(*) FROM sessions WHERE summary <> ''") == 0


async def test_a_rating_is_given_once_and_counts_at_once(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    workshop_id = await add_workshop(connection)
    mechanic_id = await add_mechanic(connection, workshop_id)
    first, second = [await completed(connection, pool, mechanic_id) for _ in range(2)]
    third = await active(connection, pool, mechanic_id)
    async with (
        living_node(make_config(mechanic_capacity=2)) as living,
        living.client(mechanic_id, "mechanic"),
    ):

        async def rate(talk: Talk, body: Frame, who: UUID | None = None) -> tuple[int, Frame]:
            path = f"/api/sessions/{talk.session_id}/rating"
            return await living.call(who or talk.customer_id, "customer", "POST", path, body)

        given, told = await rate(first, {"stars": 5, "review": "Quick & kind"})
        again, refused = await rate(first, {"stars": 1})
        await rate(second, {"stars": 4})
        running, early = await rate(third, {"stars": 1})
        theirs, nothing = await rate(first, {"stars": 1}, third.customer_id)
        mechanic_sees = await seen_by(living, first, "mechanic")
        customer_sees = await seen_by(living, first, "customer")

        assert (given, told["stars"], told["review"]) == (201, 5, "Quick & kind")
        assert (again, refused["error"]["code"]) == (409, "already_rated")
        assert (running, early["error"]["code"]) == (409, "not_completed")
        assert (theirs, nothing["error"]["code"]) == (404, "not_found")
        assert {"stars", "review"}.isdisjoint(mechanic_sees)
        assert customer_sees["stars"] == 5
        # The mean, in the directory and on the card that the third customer has, once it is told.
        rating = await connection.fetchval(
            "SELECT rating FROM mechanics WHERE id = $1", mechanic_id
        )
        assert rating == Decimal("4.50")
        status, request = await living.call(
            third.customer_id, "customer", "GET", f"/api/requests/{third.request_id}"
        )
        assert (status, request["mechanic"]["rating"]) == (200, 4.5)
    shown = await connection.fetchrow("SELECT * FROM workshop_mechanics")
    assert shown is not None
    assert shown["rating"] == Decimal("4.50")


@pytest.mark.parametrize(
    "body", [{}, {"stars": 0}, {"stars": 6}, {"stars": 4.5}, {"stars": 5, "review": "x" * 2001}]
)
async def test_a_rating_that_is_none_is_refused(
    connection: Connection, pool: Pool, make_config: MakeConfig, body: Frame
) -> None:
    talk = await completed(connection, pool)
    path = f"/api/sessions/{talk.session_id}/rating"
    async with living_node(make_config()) as living:
        status, told = await living.call(talk.customer_id, "customer", "POST", path, body)

    assert (status, told["error"]["code"]) == (400, "bad_request")
    assert await connection.fetchval("SELECT count(*) FROM ratings") == 0


async def test_of_many_ratings_at_once_the_mean_is_taken_of_all(
    connection: Connection, pool: Pool
) -> None:
    mechanic_id = await add_mechanic(connection)
    talks = [await completed(connection, pool, mechanic_id) for _ in range(12)]

    async def rate(number: int, talk: Talk) -> bool:
        try:
            rating = Rating(1 + number % 5)
            await reviews.rate(pool, talk.customer_id, talk.session_id, rating)
        except Conflict:
            return False
        return True

    done = await asyncio.gather(*(rate(n, talk) for n, talk in enumerate(talks) for _ in range(3)))

    assert done.count(True) == 12
    row = await connection.fetchrow(
        "SELECT m.rating, round(avg(r.stars), 2) AS mean FROM mechanics m "
        "JOIN ratings r ON r.mechanic_id = m.id GROUP BY m.id"
    )
    assert row is not None
    assert row["rating"] == row["mean"]


async def test_after_the_end_the_customer_is_asked_for_a_favourite_and_then_for_a_rating(
    connection: Connection, pool: Pool, store: Store, make_config: MakeConfig
) -> None:
    talk = await active(connection, pool)
    async with living_node(make_config()) as living:
        async with living.client(talk.customer_id, "customer") as phone:
            await phone.send("session.end", session_id=talk.session_id)
            ended = await phone.until("session.status", status="completed")
        prompts = [ended.get("prompt")]
        body = {"provider_id": str(talk.mechanic_id), "provider_type": "independent"}
        await living.call(talk.customer_id, "customer", "POST", "/api/customer/favorites", body)
        prompts.append((await seen_by(living, talk, "customer")).get("prompt"))
        async with living.client(talk.customer_id, "customer") as phone:
            prompts.append(phone.snapshot["sessions"][0].get("prompt"))
        path = f"/api/sessions/{talk.session_id}/rating"
        await living.call(talk.customer_id, "customer", "POST", path, {"stars": 5})
        prompts.append((await seen_by(living, talk, "customer")).get("prompt"))
        async with living.client(talk.customer_id, "customer") as phone:
            prompts.append(phone.snapshot["sessions"][0].get("prompt"))

    assert prompts == ["favorite", "rate", "rate", None, None]


async def test_who_is_a_favourite_already_is_not_asked_for_again(
    connection: Connection, pool: Pool, store: Store, make_config: MakeConfig
) -> None:
    talk = await active(connection, pool)
    await connection.execute(
        "INSERT INTO favorites (customer_id, provider_type, mechanic_id) "
        "VALUES ($1, 'independent', $2)",
        talk.customer_id,
        talk.mechanic_id,
    )
    async with (
        living_node(make_config()) as living,
        living.client(talk.customer_id, "customer") as phone,
        living.client(talk.mechanic_id, "mechanic") as tablet,
    ):
        await tablet.send("session.end", session_id=talk.session_id)
        assert (await phone.until("session.status", status="completed"))["prompt"] == "rate"
        assert "prompt" not in await tablet.until("session.status", status="completed")


async def test_a_session_that_was_cancelled_is_not_rated(
    connection: Connection, pool: Pool, store: Store
) -> None:
    talk = await accepted(connection, pool)
    await change(connection, store, talk.request_id, End(talk.customer_id))

    with pytest.raises(Conflict) as refused:
        await reviews.rate(pool, talk.customer_id, talk.session_id, Rating(1))

    assert refused.value.code == "not_completed"
    assert await connection.fetchval("SELECT count(*) FROM ratings") == 0
