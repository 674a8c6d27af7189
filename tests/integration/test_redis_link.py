"""A link answers in order, or is closed: nobody ever reads an answer that was meant for another."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dispatch.errors import Unavailable
from dispatch.redis_link import Link
from tests.integration.own_redis import OwnRedis, own_redis
from tests.support import eventually


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    link = Link(redis_url)
    await link.open()
    yield link
    await link.close()


async def test_answers_come_in_the_order_of_the_commands(link: Link) -> None:
    assert await link.ask(("SET", "a", "1"), ("GET", "a"), ("ECHO", b"x y")) == [
        b"OK",
        b"1",
        b"x y",
    ]


async def test_a_cancelled_call_does_not_leave_its_answer_to_the_next(link: Link) -> None:
    waiting = asyncio.create_task(link.ask(("BLPOP", "nothing", 30)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    with pytest.raises(Unavailable):
        await link.ask(("ECHO", "closed"))
    await link.open()
    assert await link.ask(("ECHO", "mine")) == [b"mine"]


async def test_an_answer_that_does_not_come_in_time_is_unavailable(link: Link) -> None:
    with pytest.raises(Unavailable):
        await link.ask(("BLPOP", "nothing", 30))

    await link.open()
    assert await link.ask(("ECHO", "mine")) == [b"mine"]


async def test_an_error_for_an_answer_closes_the_link(link: Link) -> None:
    with pytest.raises(Unavailable, match="unknown command"):
        await link.ask(("NOSUCH",), ("ECHO", "unread"))

    await link.open()
    assert await link.ask(("ECHO", "mine")) == [b"mine"]


async def test_a_lost_server_is_noticed_and_never_silently_replaced() -> None:
    with own_redis() as server:
        link = Link(server.url)
        await link.open()
        server.kill()
        server.start()

        with pytest.raises(Unavailable):
            await link.ask(("ECHO", "lost"))
        await link.open()
        assert await link.ask(("ECHO", "found")) == [b"found"]
        await link.close()


async def test_messages_come_after_the_subscription_and_silence_is_nothing(
    link: Link, redis_url: str
) -> None:
    listener = Link(redis_url)
    await listener.open()
    await listener.subscribe("news")

    assert await listener.receive(5.0) == [b"subscribe", b"news", 1]
    assert await listener.receive(0.01) is None
    await link.ask(("PUBLISH", "news", "first"), ("PUBLISH", "news", "second"))
    assert await listener.receive(5.0) == [b"message", b"news", b"first"]
    assert await listener.receive(5.0) == [b"message", b"news", b"second"]
    await listener.close()


async def test_a_frozen_server_cannot_be_opened_and_a_thawed_one_can() -> None:
    with own_redis() as server:
        link = Link(server.url)
        server.freeze()
        with pytest.raises(Unavailable):
            await link.open()
        server.thaw()
        await eventually(lambda: _opens(link))
        assert await link.ask(("ECHO", "mine")) == [b"mine"]
        await link.close()


async def test_nobody_there_is_unavailable() -> None:
    absent = OwnRedis()
    with pytest.raises(Unavailable):
        await Link(absent.url).open()


async def _opens(link: Link) -> bool:
    try:
        await link.open()
    except Unavailable:
        return False
    return True
