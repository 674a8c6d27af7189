"""Hints reach every other node, and whoever may have missed some is told to read again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID, uuid4

import msgspec
import pytest
import redis

from dispatch.bus import BUFFERED_HINTS, Bus
from dispatch.hints import Envelope, Hint, MechanicShared, encode
from tests.integration.own_redis import OwnRedis, own_redis
from tests.support import eventually


class Node:
    """One node's bus, and what it was told."""

    def __init__(self, redis_url: str, namespace: str) -> None:
        self.node_id = uuid4()
        self.received: list[Hint] = []
        self.resyncs = 0
        self.bus = Bus(redis_url, namespace, self.node_id, self.received.extend, self._resync)
        self.task: asyncio.Task[None] | None = None

    def _resync(self) -> None:
        self.resyncs += 1

    async def hears_itself(self) -> None:
        await eventually(lambda: not self.bus.degraded)


Connect = Callable[[str, str], Node]
Said = Callable[[], list[str]]


@asynccontextmanager
async def nodes() -> AsyncIterator[Connect]:
    """Starts nodes that stop with the test."""
    started: list[Node] = []

    def start(redis_url: str, namespace: str) -> Node:
        node = Node(redis_url, namespace)
        node.task = asyncio.create_task(node.bus.run())
        started.append(node)
        return node

    yield start
    for node in started:
        assert node.task is not None
        assert not node.task.done(), "whatever Redis does, the bus goes on"
        node.task.cancel()
        with suppress(asyncio.CancelledError):
            await node.task
        await node.bus.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    async with nodes() as start:
        yield start


@pytest.fixture
def namespace() -> str:
    return uuid4().hex


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """What the bus has logged, without the reasons."""
    caplog.set_level(logging.INFO, "dispatch")
    return lambda: [message.partition(": ")[0] for message in caplog.messages]


@pytest.fixture
def server() -> Iterator[OwnRedis]:
    with own_redis() as server:
        yield server


def hints(count: int) -> list[Hint]:
    return [MechanicShared(UUID(int=number)) for number in range(1, count + 1)]


def publish_raw(redis_url: str, namespace: str, *messages: bytes) -> None:
    with redis.Redis.from_url(redis_url) as client:
        for message in messages:
            client.publish(f"dispatch:{namespace}:hints", message)


async def test_hints_reach_every_other_node_in_order_and_never_the_sender(
    redis_url: str, namespace: str, connect: Connect
) -> None:
    here, there, elsewhere = (connect(redis_url, namespace) for _ in range(3))
    stranger = connect(redis_url, uuid4().hex)
    for node in (here, there, elsewhere, stranger):
        await node.hears_itself()

    for hint in hints(3):
        here.bus.publish(hint)
        await asyncio.sleep(0)
    there.bus.publish(MechanicShared(UUID(int=99)))
    await eventually(lambda: len(elsewhere.received) == 4 and len(there.received) == 3)
    await eventually(lambda: here.received)

    assert there.received == hints(3)
    assert here.received == [MechanicShared(UUID(int=99))]
    assert sorted(str(hint) for hint in elsewhere.received) == sorted(
        str(hint) for hint in [*hints(3), MechanicShared(UUID(int=99))]
    )
    assert stranger.received == []
    assert [node.resyncs for node in (here, there, elsewhere)] == [1, 1, 1]


async def test_what_is_published_in_one_tick_is_one_message(
    redis_url: str, namespace: str, connect: Connect
) -> None:
    node = connect(redis_url, namespace)
    await node.hears_itself()
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as listener:
        listener.subscribe(f"dispatch:{namespace}:hints")
        await eventually(lambda: listener.get_message())

        for hint in hints(50):
            node.bus.publish(hint)

        def envelope_with_hints() -> Envelope | None:
            message = listener.get_message()
            found = message and msgspec.msgpack.decode(message["data"], type=Envelope)
            return found if found and found.hints else None

        envelope = await eventually(envelope_with_hints)
    assert envelope.hints == hints(50)
    assert envelope.node_id == node.node_id


async def test_who_speaks_again_at_once_waits_for_those_who_follow(
    redis_url: str, namespace: str, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatch.bus.PACE_SECONDS", 0.5)
    heard: list[list[Hint]] = []
    here, there = connect(redis_url, namespace), connect(redis_url, namespace)
    there.bus._receive = heard.append
    for node in (here, there):
        await node.hears_itself()
    first, *rest = hints(10)

    here.bus.publish(first)
    await eventually(lambda: heard)
    for hint in rest:
        here.bus.publish(hint)
        await asyncio.sleep(0)
    await eventually(lambda: len(heard) > 1)

    assert heard == [[first], rest]


async def test_a_gap_in_another_nodes_numbers_asks_for_a_resync(
    redis_url: str, namespace: str, connect: Connect
) -> None:
    node = connect(redis_url, namespace)
    await node.hears_itself()
    before, other = node.resyncs, uuid4()
    first, second, third, fourth = hints(4)

    publish_raw(redis_url, namespace, encode(Envelope(other, 41, [first])))
    publish_raw(redis_url, namespace, encode(Envelope(other, 42, [second])))
    await eventually(lambda: node.received == [first, second])
    assert node.resyncs == before

    publish_raw(redis_url, namespace, encode(Envelope(other, 44, [third])))
    publish_raw(redis_url, namespace, encode(Envelope(other, 45, [fourth])))
    await eventually(lambda: node.received == [first, second, third, fourth])
    assert node.resyncs == before + 1

    publish_raw(redis_url, namespace, encode(Envelope(other, 47, [])))  # even a canary shows it
    await eventually(lambda: node.resyncs == before + 2)


async def test_what_cannot_be_decoded_is_ignored_and_logged_once(
    redis_url: str, namespace: str, connect: Connect, said: Said
) -> None:
    node = connect(redis_url, namespace)
    await node.hears_itself()

    garbage = [b"", b"\xc1", b"not msgpack", msgspec.msgpack.encode({"node_id": 1})] * 5
    publish_raw(redis_url, namespace, *garbage)
    publish_raw(redis_url, namespace, encode(Envelope(uuid4(), 1, hints(1))))
    await eventually(lambda: node.received == hints(1))

    assert said() == [f"undecodable message on dispatch:{namespace}:hints"]


async def test_more_hints_than_can_be_kept_lose_the_oldest_and_the_others_resync(
    redis_url: str, namespace: str, connect: Connect
) -> None:
    here, there = connect(redis_url, namespace), connect(redis_url, namespace)
    await here.hears_itself()
    await there.hears_itself()
    here.bus.publish(MechanicShared(uuid4()))
    await eventually(lambda: there.received)
    there.received.clear()
    before = there.resyncs

    for hint in hints(BUFFERED_HINTS + 5):
        here.bus.publish(hint)
    await eventually(lambda: len(there.received) == BUFFERED_HINTS)

    assert there.received == hints(BUFFERED_HINTS + 5)[5:]
    assert there.resyncs == before + 1


async def test_redis_may_be_absent_at_the_start(
    namespace: str, connect: Connect, said: Said
) -> None:
    with own_redis(started=False) as server:
        here, there = connect(server.url, namespace), connect(server.url, namespace)
        await eventually(lambda: said() == ["bus lost"] * 2)
        assert here.bus.degraded
        assert there.bus.degraded
        assert there.resyncs == 0

        server.start()
        await here.hears_itself()
        await there.hears_itself()
        here.bus.publish(hints(1)[0])
        await eventually(lambda: there.received == hints(1))

    assert [node.resyncs for node in (here, there)] == [2, 2]  # for what we heard, and what we said
    assert said() == ["bus lost"] * 2 + ["bus recovered"] * 2


async def test_a_killed_redis_is_noticed_survived_and_read_again_after(
    server: OwnRedis, namespace: str, connect: Connect, said: Said
) -> None:
    here, there = connect(server.url, namespace), connect(server.url, namespace)
    await here.hears_itself()
    await there.hears_itself()

    server.kill()
    await eventually(lambda: here.bus.degraded and there.bus.degraded)
    here.bus.publish(hints(1)[0])  # kept, and sent when Redis is there again, heard or not
    server.start()
    await eventually(lambda: here.resyncs >= 2 and there.resyncs >= 2)
    await here.hears_itself()
    await there.hears_itself()
    here.bus.publish(MechanicShared(UUID(int=2)))
    await eventually(lambda: MechanicShared(UUID(int=2)) in there.received)

    assert said() == ["bus lost"] * 2 + ["bus recovered"] * 2


async def test_a_frozen_redis_is_noticed_within_five_seconds_though_its_connections_stay_open(
    server: OwnRedis, namespace: str, connect: Connect
) -> None:
    here, there = connect(server.url, namespace), connect(server.url, namespace)
    await here.hears_itself()
    await there.hears_itself()

    server.freeze()
    await eventually(lambda: here.bus.degraded and there.bus.degraded, timeout_seconds=5.0)
    here.bus.publish(hints(1)[0])
    server.thaw()

    await eventually(lambda: here.resyncs >= 2 and there.resyncs >= 2)
    await here.hears_itself()
    await there.hears_itself()
    here.bus.publish(MechanicShared(UUID(int=2)))
    await eventually(lambda: MechanicShared(UUID(int=2)) in there.received)


async def test_what_was_published_last_is_said_before_the_end(
    redis_url: str, namespace: str, connect: Connect
) -> None:
    there = connect(redis_url, namespace)
    await there.hears_itself()
    async with nodes() as start:
        here = start(redis_url, namespace)
        await here.hears_itself()
        here.bus.publish(hints(1)[0])

    await eventually(lambda: there.received == hints(1))
