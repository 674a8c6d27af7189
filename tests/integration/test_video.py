"""Video: tokens for the two in a session, for its time, and its room closed at the end (S8)."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import jwt
import pytest

from dispatch.database import Connection, Pool
from tests.conftest import MakeConfig
from tests.integration.livekit_server import API_KEY, API_SECRET, LiveKit, livekit
from tests.integration.living import Frame, LivingNode, living_node, pass_time
from tests.integration.rows import accept, add_customer, add_mechanic, read
from tests.integration.talks import Talk, accepted, active
from tests.support import eventually


@pytest.fixture
async def server() -> AsyncIterator[LiveKit]:
    async with livekit() as server:
        yield server


def with_video(server: LiveKit) -> dict[str, str]:
    return {
        "livekit_url": server.url,
        "livekit_api_key": API_KEY,
        "livekit_api_secret": API_SECRET,
    }


async def ask(living: LivingNode, talk: Talk, user_id: UUID, role: str) -> tuple[int, Frame]:
    return await living.call(user_id, role, "POST", f"/api/sessions/{talk.session_id}/video-token")


def moment(told: str) -> datetime:
    return datetime.fromisoformat(told)


async def test_both_enter_the_one_room_under_their_names_until_the_end_and_it_is_closed(
    connection: Connection, pool: Pool, make_config: MakeConfig, server: LiveKit
) -> None:
    talk = await active(connection, pool, plan_code="diagnostic")
    row = await connection.fetchrow("SELECT * FROM sessions WHERE id = $1", talk.session_id)
    assert row is not None
    async with living_node(make_config(**with_video(server))) as living:
        tokens = {}
        for user_id, role in ((talk.customer_id, "customer"), (talk.mechanic_id, "mechanic")):
            status, tokens[user_id] = await ask(living, talk, user_id, role)
            assert status == 200
        (room,) = {told["room"] for told in tokens.values()}
        now = row["started_at"].timestamp()
        names = {server.enter(told["token"], room, now) for told in tokens.values()}
        (until,) = {moment(told["expires_at"]) for told in tokens.values()}
        with pytest.raises(jwt.ExpiredSignatureError):
            server.enter(tokens[talk.customer_id]["token"], room, until.timestamp() + 1)
        inside = set(server.rooms[room])

        await living.call(
            talk.customer_id, "customer", "POST", f"/api/sessions/{talk.session_id}/end"
        )
        await eventually(lambda: server.closed == [room])
        over, refused = await ask(living, talk, talk.customer_id, "customer")
        again = await living.call(
            talk.mechanic_id, "mechanic", "POST", f"/api/sessions/{talk.session_id}/end"
        )

    assert inside == {str(talk.customer_id), str(talk.mechanic_id)}
    assert names == {"Kim", "Kim Doe"}
    assert {told["url"] for told in tokens.values()} == {server.url}
    assert until - row["ends_at"] < timedelta(seconds=1)
    assert server.rooms == {}
    assert (over, refused["error"]["code"]) == (409, "session_ended")
    assert again[0] == 200
    assert server.calls == 1


async def test_before_it_begins_a_token_is_good_until_both_must_be_there(
    connection: Connection, pool: Pool, make_config: MakeConfig, server: LiveKit
) -> None:
    talk = await accepted(connection, pool, plan_code="video15")
    join_by = await connection.fetchval("SELECT join_by FROM sessions")
    async with living_node(make_config(**with_video(server))) as living:
        _, early = await ask(living, talk, talk.customer_id, "customer")
        await pass_time(living.node.config.database_url, 290, living)
        _, late = await ask(living, talk, talk.customer_id, "customer")
        now = living.node.clock.now()

    assert abs(moment(early["expires_at"]) - join_by) < timedelta(milliseconds=2)
    assert timedelta(seconds=50) < moment(late["expires_at"]) - now <= timedelta(seconds=60)


async def test_who_may_not_enter_gets_nothing(
    connection: Connection, pool: Pool, make_config: MakeConfig, server: LiveKit
) -> None:
    video = await active(connection, pool, plan_code="video15")
    chat = await active(connection, pool, plan_code="chat10")
    stranger = await add_customer(connection)
    async with living_node(make_config(**with_video(server))) as living:
        booked = await living.book(stranger, plan="free")
        path = f"/api/sessions/{booked.session_id}/video-token"
        answers = [
            await ask(living, video, stranger, "customer"),
            await living.call(stranger, "customer", "POST", f"/api/sessions/{uuid4()}/video-token"),
            await ask(living, chat, chat.customer_id, "customer"),
            await living.call(stranger, "customer", "POST", path),
        ]
    async with living_node(make_config()) as without:
        answers.append(await ask(without, video, video.customer_id, "customer"))

    assert [(status, told["error"]["code"]) for status, told in answers] == [
        (404, "not_found"),
        (404, "not_found"),
        (409, "no_video"),
        (409, "no_video"),
        (501, "not_configured"),
    ]


async def test_a_mechanic_who_gives_it_back_is_put_out_and_cannot_enter_the_next_one_s_room(
    connection: Connection, pool: Pool, make_config: MakeConfig, server: LiveKit
) -> None:
    talk = await accepted(connection, pool, plan_code="video15")
    next_id = await add_mechanic(connection)
    async with (
        living_node(make_config(**with_video(server))) as living,
        living.client(talk.mechanic_id, "mechanic") as first,
    ):
        _, hers = await ask(living, talk, talk.mechanic_id, "mechanic")
        server.enter(hers["token"], hers["room"], living.node.clock.now().timestamp())
        await first.send("assignment.cancel", session_id=talk.session_id)
        await eventually(lambda: server.closed == [hers["room"]])
        reopened = await read(connection, talk.request_id)
        assert (await accept(connection, reopened.offer_id, next_id)).won
        refused = await ask(living, talk, talk.mechanic_id, "mechanic")
        _, next_ones = await ask(living, talk, next_id, "mechanic")

    assert server.rooms == {}
    assert refused[0] == 404
    assert next_ones["room"] != hers["room"]


async def test_a_room_is_closed_though_livekit_was_away_and_what_it_refuses_is_given_up(
    connection: Connection, pool: Pool, make_config: MakeConfig, server: LiveKit
) -> None:
    talk, other = [await active(connection, pool, plan_code="video15") for _ in range(2)]
    async with living_node(make_config(**with_video(server))) as living:
        server.refuse = [503]
        end = f"/api/sessions/{talk.session_id}/end"
        await living.call(talk.customer_id, "customer", "POST", end)
        await eventually(lambda: len(server.closed) == 1)
        await eventually(
            lambda: connection.fetchval("SELECT bool_and(done_at > '-infinity') FROM outbox")
        )
        server.refuse = [403]
        end = f"/api/sessions/{other.session_id}/end"
        await living.call(other.customer_id, "customer", "POST", end)
        await eventually(
            lambda: connection.fetchval("SELECT true FROM outbox WHERE failed_at IS NOT NULL")
        )

    rows = await connection.fetch("SELECT kind, attempts FROM outbox ORDER BY id")
    assert [(row["kind"], row["attempts"]) for row in rows] == [("room", 2), ("room", 1)]


async def test_a_room_is_closed_when_its_time_is_up(
    connection: Connection, pool: Pool, make_config: MakeConfig, server: LiveKit
) -> None:
    talk = await active(connection, pool, plan_code="video15")
    async with living_node(make_config(**with_video(server))) as living:
        await pass_time(living.node.config.database_url, 16 * 60, living)
        await eventually(lambda: len(server.closed) == 1)

    status = await connection.fetchval("SELECT status FROM sessions WHERE id = $1", talk.session_id)
    assert status == "completed"


async def test_a_chat_has_no_room_to_close(
    connection: Connection, pool: Pool, make_config: MakeConfig, server: LiveKit
) -> None:
    talk = await active(connection, pool, plan_code="chat10")
    async with living_node(make_config(**with_video(server))) as living:
        end = f"/api/sessions/{talk.session_id}/end"
        assert (await living.call(talk.customer_id, "customer", "POST", end))[0] == 200

    assert await connection.fetchval("SELECT count(*) FROM outbox") == 0
    assert server.calls == 0
