"""What is on record of a booking, mechanic by mechanic, and where its time went."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import pytest

from dispatch.core.types import Booking, Policy
from dispatch.database import Connection
from dispatch.errors import NotFound
from dispatch.explain import CandidateStory, Explanation, explanation
from dispatch.explain_text import as_text
from tests.conftest import MakeConfig
from tests.integration.living import Client, LivingNode, living_node
from tests.integration.rows import add_mechanic, add_workshop, book
from tests.support import eventually

POLICY = Policy()


@pytest.fixture
async def living(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LivingNode]:
    """Its trail is written when a test says so."""
    monkeypatch.setattr("dispatch.audit.FLUSH_SECONDS", 3600.0)
    async with living_node(make_config(head_start_seconds=600.0)) as living:
        yield living


async def opened(living: LivingNode, connection: Connection, **wish: object) -> Booking:
    """A new booking, heard of just now."""
    received_at = living.node.clock.now()
    booking = await book(connection, **wish)
    living.node.dispatcher.opened(booking.request_id, received_at)
    return booking


async def told_of(living: LivingNode, booking: Booking) -> Explanation:
    await living.node.audit.flush()
    return await explanation(living.node.pool, booking.request_id, POLICY)


async def rename(connection: Connection, user_id: UUID, name: str) -> None:
    await connection.execute("UPDATE users SET name = $2 WHERE id = $1", user_id, name)


def by_id(told: Explanation, generation: int = 1) -> dict[UUID, CandidateStory]:
    return {each.mechanic_id: each for each in told.candidates if each.generation == generation}


async def test_every_mechanic_finds_out_why(living: LivingNode, connection: Connection) -> None:
    garage, other = await add_workshop(connection), await add_workshop(connection)
    names = {
        "Anna": await add_mechanic(connection, garage),
        "Ben": await add_mechanic(connection),
        "Cleo": await add_mechanic(connection, garage),
        "Dora": await add_mechanic(connection, other),
        "Emil": await add_mechanic(connection, garage),
    }
    for name, mechanic_id in names.items():
        await rename(connection, mechanic_id, name)
    anna, ben, cleo, dora, emil = names.values()
    await connection.execute("UPDATE mechanics SET available = false WHERE id = $1", cleo)
    async with AsyncExitStack() as stack:
        sockets = {
            who: await stack.enter_async_context(living.client(who, "mechanic"))
            for who in (anna, ben, cleo, dora)
        }
        await eventually(lambda: _is_online(living, anna))
        booking = await opened(living, connection, routing_type="hybrid", workshop_id=garage)
        card = await sockets[anna].until("offer", stage="preferred")
        await sockets[anna].send("offer.seen", offer_id=card["offer_id"])
        await sockets[anna].send("offer.decline", offer_id=card["offer_id"], reason="ill", id="1")
        await sockets[anna].until("ok", re="1")
        await living.node.dispatcher.widen(booking.customer_id, booking.request_id)
        await win(sockets[ben])

        told = await told_of(living, booking)

    story = by_id(told)
    assert [sent.stage for sent in story[anna].sent] == ["preferred"]
    assert (story[anna].sent[0].score, story[anna].sent[0].because) == (
        100,
        "of the chosen workshop",
    )
    assert (story[anna].answer, story[anna].reason) == ("declined", "ill")
    seen_at = story[anna].seen_at
    assert seen_at is not None
    assert story[anna].sent[0].at <= seen_at
    assert [(each.stage, each.reason) for each in story[anna].ruled_out] == [
        ("open", "excluded"),
        ("preferred", "excluded"),
    ]
    assert [(sent.stage, sent.because) for sent in story[ben].sent] == [("open", "independent")]
    assert story[ben].answer == "accepted"
    assert not story[cleo].eligible
    assert {each.reason for each in story[cleo].ruled_out} == {"unavailable"}
    assert (story[dora].sent[0].score, story[dora].answer) == (50, None)
    assert emil not in story
    stages = {each.stage: each for each in told.stages}
    head_start = {each.reason: each.names for each in stages["preferred"].unasked}
    assert head_start == {"other_workshop": ["Ben", "Dora"], "not_connected": ["Emil"]}
    assert {each.reason: each.names for each in stages["open"].unasked} == {
        "not_connected": ["Emil"]
    }
    assert (stages["open"].connected, stages["open"].sent, stages["open"].excluded) == (4, 2, 2)
    text = as_text(told)
    assert "Anna" in text
    assert "declined (ill)" in text
    assert "not asked in open: declined or cancelled this booking before" in text
    assert "2 without a record: only the chosen workshop is asked in this stage (Ben, Dora)" in text


async def test_time_is_told_step_by_step_and_round_by_round(
    living: LivingNode, connection: Connection
) -> None:
    anna, ben = await add_mechanic(connection), await add_mechanic(connection)
    async with living.client(anna, "mechanic") as first, living.client(ben, "mechanic") as second:
        booking = await opened(living, connection)
        await seen(first)
        await win(first)
        session = {"session_id": booking.session_id}
        await first.send("assignment.cancel", **session, id="c")
        await first.until("ok", re="c")
        await win(second, generation=2)
        await second.send("session.join", **session, id="j")
        await second.until("session.status", re="j")

        told = await told_of(living, booking)

    steps = [(moment.step, moment.generation) for moment in told.waterfall]
    assert steps == [
        ("received", None),
        ("committed", None),
        ("written", 1),
        ("seen", 1),
        ("accepted", 1),
        ("joined", 1),
        ("written", 2),
        ("seen", 2),
        ("accepted", 2),
        ("joined", 2),
    ]
    missing = [step for step, moment in zip(steps, told.waterfall, strict=True) if not moment.at]
    assert missing == [("joined", 1), ("seen", 2)]
    times = [moment.at for moment in told.waterfall if moment.at is not None]
    assert times == sorted(times)
    assert all(moment.after_ms is not None for moment in told.waterfall[1:] if moment.at)
    assert by_id(told, generation=2)[anna].ruled_out[0].reason == "excluded"
    metrics = living.node.metrics.render().decode()
    for step in ("committed", "written", "seen", "accepted", "joined"):
        (count,) = [
            line
            for line in metrics.splitlines()
            if line.startswith("dispatch_waterfall_seconds_count") and f'step="{step}"' in line
        ]
        assert float(count.rsplit(" ", 1)[1]) >= 1


async def test_a_favourite_who_was_not_there_was_asked_by_name(
    living: LivingNode, connection: Connection
) -> None:
    anna = await add_mechanic(connection)
    booking = await opened(
        living,
        connection,
        routing_type="priority_broadcast",
        preferred_mechanic_id=anna,
        wait_for_preferred=True,
    )
    await eventually(lambda: living.node.board.get(booking.request_id))

    told = await told_of(living, booking)

    (asked,) = told.candidates
    assert (asked.mechanic_id, asked.eligible, asked.sent) == (anna, True, [])
    assert asked.asked_at is not None
    assert "asked by name" in as_text(told)
    (stage,) = told.stages
    assert (stage.stage, stage.connected, stage.sent) == ("priority", 0, 0)


async def test_a_record_that_was_lost_with_a_node_is_shown_as_unknown(
    living: LivingNode, connection: Connection
) -> None:
    anna = await add_mechanic(connection)
    async with living.client(anna, "mechanic") as mechanic:
        booking = await opened(living, connection)
        await win(mechanic)
        told = await explanation(living.node.pool, booking.request_id, POLICY)

    assert told.stages == []
    (story,) = told.candidates
    assert (story.eligible, story.sent, story.answer) == (True, [], "accepted")
    assert "sent: unknown" in as_text(told)
    assert told.waterfall[2].at is None


async def test_who_lost_is_told_of_whoever_judged_it(
    living: LivingNode, connection: Connection
) -> None:
    anna, ben = await add_mechanic(connection), await add_mechanic(connection)
    async with living.client(anna, "mechanic") as first, living.client(ben, "mechanic") as second:
        booking = await opened(living, connection)
        card = await second.until("offer")
        await win(first)
        await second.until("offer.revoked")
        await second.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
        assert (await second.until("offer.lost"))["reason"] == "taken"
        judged = await connection.fetchval("SELECT count(*) FROM accepts")

        told = await told_of(living, booking)

    assert judged == 1  # the second was answered from the board
    story = by_id(told)
    assert (story[ben].answer, story[ben].reason) == ("lost", "taken")
    assert story[ben].answered_at is not None
    (stage,) = told.stages
    assert (stage.sent, stage.connected) == (2, 2)


async def test_thousands_of_candidates_are_told_in_parts(
    living: LivingNode, connection: Connection
) -> None:
    mechanics = [await add_mechanic(connection) for _ in range(5)]
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(living.client(who, "mechanic")) for who in mechanics
        ]
        booking = await opened(living, connection)
        for socket in sockets:
            await socket.until("offer")
        await win(sockets[3])
        await living.node.audit.flush()

    pool, request_id = living.node.pool, booking.request_id
    whole = await explanation(pool, request_id, POLICY)
    parts = [await explanation(pool, request_id, POLICY, limit=2, offset=at) for at in (0, 2, 4, 6)]

    assert whole.candidates[0].mechanic_id == mechanics[3]
    assert [each for part in parts for each in part.candidates] == whole.candidates
    assert {part.candidates_total for part in parts} == {5}
    with pytest.raises(NotFound):
        await explanation(pool, uuid4(), POLICY)


async def seen(client: Client) -> None:
    card = await client.until("offer")
    await client.send("offer.seen", offer_id=card["offer_id"])


async def win(client: Client, generation: int = 1) -> None:
    if not any(card["generation"] == generation for card in client.of("offer")):
        await client.until("offer", generation=generation)
    card = client.of("offer")[-1]
    await client.send("offer.accept", offer_id=card["offer_id"], accept_id=uuid4())
    await client.until("offer.won")


async def _is_online(living: LivingNode, mechanic_id: UUID) -> bool:
    found = await living.node.presence.look_up([mechanic_id])
    return found[mechanic_id].presence.value == "online"
