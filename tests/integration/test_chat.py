"""What is said in a session: stored once, by whom and when it may be, and read again (S7)."""

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from dispatch import chat
from dispatch.board import Board
from dispatch.chat import Chats
from dispatch.core.types import MechanicCancel
from dispatch.database import Connection, Pool
from dispatch.errors import Conflict, NotFound, RateLimited, TooLong
from dispatch.hub import Hub
from dispatch.store import Store
from dispatch.tasks import Tasks
from tests.integration.rows import (
    accept,
    add_customer,
    add_mechanic,
    book,
    change,
    read,
    rolled_back,
    shift_clock,
    until_blocked,
)
from tests.integration.talks import Talk, accepted, active


def chats_of(pool: Pool, rate_messages: float = 0.0) -> Chats:
    """What a node without anybody connected says and reads with."""
    nobody = Hub()
    return Chats(
        pool,
        Board(),
        nobody,
        Tasks(lambda: None),
        publish=lambda hint: None,
        rate_messages=rate_messages,
    )


@pytest.fixture
def chats(pool: Pool) -> Chats:
    return chats_of(pool)


async def test_what_both_say_is_numbered_as_it_comes(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    talk = await accepted(connection, pool)

    first, new = await chats.say(talk.customer_id, talk.session_id, uuid4(), "Hello?")
    second, _ = await chats.say(talk.mechanic_id, talk.session_id, uuid4(), "Hello!")
    await talk.starts()
    third, _ = await chats.say(talk.mechanic_id, talk.session_id, uuid4(), "What is it?")

    assert new
    assert [m.seq for m in (first, second, third)] == [1, 2, 3]
    assert [m.sender_role for m in (first, second, third)] == ["customer", "mechanic", "mechanic"]
    assert first.sent_at <= second.sent_at <= third.sent_at
    assert await talk.bodies() == [(1, "Hello?"), (2, "Hello!"), (3, "What is it?")]


async def test_the_same_message_again_is_the_one_that_was_stored(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    talk = await active(connection, pool)
    key = uuid4()
    first, _ = await chats.say(talk.customer_id, talk.session_id, key, "It smokes")
    await chats.say(talk.mechanic_id, talk.session_id, uuid4(), "Turn it off")

    again, new = await chats.say(talk.customer_id, talk.session_id, key, "It really smokes")
    await talk.ends()
    after_the_end, _ = await chats.say(talk.customer_id, talk.session_id, key, "It smokes")

    assert not new
    assert again == after_the_end == first
    assert await talk.bodies() == [(1, "It smokes"), (2, "Turn it off")]


async def test_a_hundred_at_once_of_each_are_two_hundred_in_one_order(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    talk = await active(connection, pool)
    people = [talk.customer_id, talk.mechanic_id]

    said = await asyncio.gather(
        *(chats.say(people[n % 2], talk.session_id, uuid4(), f"{n}") for n in range(200))
    )

    assert sorted(message.seq for message, _ in said) == list(range(1, 201))
    assert [seq for seq, _ in await talk.bodies()] == list(range(1, 201))
    assert {body for _, body in await talk.bodies()} == {f"{n}" for n in range(200)}


async def test_one_message_sent_twenty_times_at_once_is_one(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    talk = await active(connection, pool)
    key = uuid4()

    said = await asyncio.gather(
        *(chats.say(talk.customer_id, talk.session_id, key, "Hello") for _ in range(20))
    )

    assert len({message.message_id for message, _ in said}) == 1
    assert [new for _, new in said].count(True) == 1
    assert await talk.bodies() == [(1, "Hello")]


async def test_nobody_else_may_say_or_read_anything(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    talk = await active(connection, pool)
    await chats.say(talk.customer_id, talk.session_id, uuid4(), "My address is …")
    strangers = [await add_customer(connection), await add_mechanic(connection)]

    for stranger in strangers:
        for session_id in (talk.session_id, uuid4()):
            with pytest.raises(NotFound) as refused:
                await chats.say(stranger, session_id, uuid4(), "Hello")
            assert refused.value.message == "no such session"
            with pytest.raises(NotFound) as refused:
                await chats.history(stranger, session_id, after=0, limit=10)
            assert refused.value.message == "no such session"
    assert [seq for seq, _ in await talk.bodies()] == [1]


async def test_there_is_talk_from_the_accept_to_the_end_and_reading_for_ever(
    connection: Connection, pool: Pool, store: Store, chats: Chats
) -> None:
    booking = await book(connection)
    with pytest.raises(Conflict) as refused:
        await chats.say(booking.customer_id, booking.session_id, uuid4(), "Anybody there?")
    assert refused.value.code == "not_open"

    talk = await active(connection, pool)
    await chats.say(talk.customer_id, talk.session_id, uuid4(), "Thank you")
    await talk.ends()
    for person in (talk.customer_id, talk.mechanic_id):
        with pytest.raises(Conflict) as refused:
            await chats.say(person, talk.session_id, uuid4(), "One more thing")
        assert refused.value.code == "session_ended"
        told = await chats.history(person, talk.session_id, after=0, limit=10)
        assert [message.body for message in told.messages] == ["Thank you"]


async def test_nothing_is_said_after_the_last_minute_whoever_finds_out_first(
    connection: Connection, pool: Pool
) -> None:
    talk = await active(connection, pool, plan_code="chat10")
    refusal = "SELECT refusal FROM say_in_session($1, $2, gen_random_uuid(), 'Hello', 100)"

    async with rolled_back(connection):
        await shift_clock(connection, 10 * 60 - 5)
        assert await connection.fetchval(refusal, talk.session_id, talk.customer_id) is None
        await shift_clock(connection, 10 * 60 + 1)
        late = await connection.fetchval(refusal, talk.session_id, talk.customer_id)
        assert late == "session_ended"


async def test_a_mechanic_who_gave_it_back_reads_it_no_more_and_the_next_one_does(
    connection: Connection, pool: Pool, store: Store, chats: Chats
) -> None:
    talk = await accepted(connection, pool)
    await chats.say(talk.customer_id, talk.session_id, uuid4(), "I am on the A4")
    await change(connection, store, talk.request_id, MechanicCancel(talk.mechanic_id))
    next_id = await add_mechanic(connection)
    reopened = await read(connection, talk.request_id)
    assert (await accept(connection, reopened.offer_id, next_id)).won

    told = await chats.history(next_id, talk.session_id, after=0, limit=10)
    with pytest.raises(NotFound):
        await chats.history(talk.mechanic_id, talk.session_id, after=0, limit=10)
    with pytest.raises(NotFound):
        await chats.say(talk.mechanic_id, talk.session_id, uuid4(), "Sorry")

    assert [message.body for message in told.messages] == ["I am on the A4"]


async def test_a_text_is_kept_as_it_is_up_to_4000_characters(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    talk = await active(connection, pool)
    texts = [
        "🚗" * chat.MAX_CHARACTERS,
        "<script>alert(1)</script>'; DROP TABLE users; --",
        "two\nlines\tand \x1b[31mred\x07",
        " ",
        "e\u0301 is not \u00e9; \u202etfel ot thgir",
    ]

    for text in texts:
        await chats.say(talk.customer_id, talk.session_id, uuid4(), text)
    with pytest.raises(TooLong):
        await chats.say(talk.customer_id, talk.session_id, uuid4(), "🚗" * 4001)

    assert [body for _, body in await talk.bodies()] == texts


async def test_a_page_of_history_ends_where_a_frame_is_full(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    talk = await active(connection, pool)
    for n in range(9):
        await chats.say(talk.customer_id, talk.session_id, uuid4(), f"{n}" + "🚗" * 3999)

    pages, after = [], 0
    while True:
        page = await chats.history(talk.mechanic_id, talk.session_id, after=after, limit=200)
        pages.append([message.seq for message in page.messages])
        after = pages[-1][-1]
        if not page.more:
            break
    short = await chats.history(talk.mechanic_id, talk.session_id, after=2, limit=3)
    none = await chats.history(talk.mechanic_id, talk.session_id, after=9, limit=3)

    assert pages == [[1, 2, 3, 4, 5, 6, 7], [8, 9]]
    assert ([message.seq for message in short.messages], short.more) == ([3, 4, 5], True)
    assert (none.messages, none.more) == ([], False)


async def test_who_says_too_much_too_fast_is_refused_by_the_session(
    connection: Connection, pool: Pool
) -> None:
    chats = chats_of(pool, rate_messages=10)
    talk, other = await active(connection, pool), await active(connection, pool)

    async def until_refused() -> int:
        for n in range(100):
            try:
                await chats.say(talk.customer_id, talk.session_id, uuid4(), "x")
            except RateLimited:
                return n
        return 100

    assert 30 <= await until_refused() < 60
    await chats.say(talk.mechanic_id, talk.session_id, uuid4(), "slowly!")
    await chats.say(other.customer_id, other.session_id, uuid4(), "unconcerned")


async def test_a_session_holds_so_many_messages_and_no_more(
    connection: Connection, pool: Pool, chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MAX_MESSAGES", 3)
    talk = await active(connection, pool)
    keys = [uuid4() for _ in range(4)]
    for key in keys[:3]:
        await chats.say(talk.customer_id, talk.session_id, key, "x")

    with pytest.raises(RateLimited):
        await chats.say(talk.customer_id, talk.session_id, keys[3], "x")

    again, new = await chats.say(talk.customer_id, talk.session_id, keys[1], "x")
    assert (again.seq, new) == (2, False)


async def test_what_was_said_cannot_be_unsaid(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    talk = await active(connection, pool)
    await chats.say(talk.customer_id, talk.session_id, uuid4(), "x")

    for change_ in ("UPDATE chat_messages SET body = 'y'", "DELETE FROM chat_messages"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await connection.execute(change_)


async def test_who_waits_for_the_session_is_judged_after_its_end(
    connection: Connection, pool: Pool, chats: Chats
) -> None:
    """The end holds the session while somebody speaks: nothing is stored after it."""
    talk = await active(connection, pool)
    async with pool.acquire() as ending:
        transaction = ending.transaction()
        await transaction.start()
        inside = Talk(ending, Store(pool), *_ids(talk))
        await inside.ends()
        speaking = asyncio.create_task(
            chats.say(talk.customer_id, talk.session_id, uuid4(), "One more")
        )
        await until_blocked(pool, 1)
        await transaction.commit()
        with pytest.raises(Conflict) as refused:
            await speaking

    assert refused.value.code == "session_ended"
    assert await talk.bodies() == []


def _ids(talk: Talk) -> tuple[UUID, UUID, UUID, UUID]:
    return talk.request_id, talk.session_id, talk.customer_id, talk.mechanic_id
