"""Chat over real sockets: two nodes, several devices, and everything that gets lost on the way.

Promise: every device of both sees the messages in the order of `seq`, without a gap from when it
connected, each once; nobody sees what is not stored (S7; promises 7, 9, 13).
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from dispatch.bus import Bus
from dispatch.database import Connection, Pool
from dispatch.hints import Hint, Said
from tests.conftest import MakeConfig
from tests.integration.living import Client, LivingNode, two_nodes
from tests.integration.rows import add_customer
from tests.integration.talks import Talk, active, heard, say
from tests.support import eventually

UNSWEPT = {"sweep_seconds": 3600.0}
UNLIMITED = {"rate_messages": 0.0}


@dataclass
class Four:
    """A session, and two devices of each of the two: one on either node."""

    talk: Talk
    here: LivingNode
    there: LivingNode
    phone: Client  # the customer's, here
    laptop: Client  # the customer's, there
    tablet: Client  # the mechanic's, here
    desk: Client  # the mechanic's, there

    @property
    def devices(self) -> tuple[Client, ...]:
        return (self.phone, self.laptop, self.tablet, self.desk)

    async def all_hear(self, wanted: list[tuple[int, str]]) -> None:
        """Every device has heard exactly this, in this order."""
        for device in self.devices:
            await until_heard(device, wanted)


async def until_heard(device: Client, wanted: list[tuple[int, str]]) -> None:
    while len(heard(device)) < len(wanted):
        await device.until("chat.message")
    await device.settle()
    assert heard(device) == wanted


@asynccontextmanager
async def four_devices(
    connection: Connection, pool: Pool, make_config: MakeConfig, **overrides: float
) -> AsyncIterator[Four]:
    talk = await active(connection, pool, plan_code="diagnostic")
    async with AsyncExitStack() as stack:
        here, there = await stack.enter_async_context(two_nodes(make_config(**overrides)))
        devices = [
            await stack.enter_async_context(living.client(user_id, role))
            for user_id, role in (
                (talk.customer_id, "customer"),
                (talk.mechanic_id, "mechanic"),
            )
            for living in (here, there)
        ]
        phone, laptop, tablet, desk = devices
        yield Four(talk, here, there, phone, laptop, tablet, desk)


async def test_every_device_of_both_on_both_nodes_hears_it_at_once(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    stranger_id = await add_customer(connection)
    async with (
        four_devices(connection, pool, make_config, **UNSWEPT, plan_minute_seconds=60.0) as four,
        four.here.client(stranger_id, "customer") as stranger,
    ):
        key = await say(four.phone, four.talk, "It makes a noise")
        answer = await four.phone.until("chat.message", re=key)
        for device in (four.laptop, four.tablet, four.desk):
            told = await device.until("chat.message", client_message_id=key)
            assert told == {name: value for name, value in answer.items() if name != "re"}
        await say(four.desk, four.talk, "What kind of noise?")
        await four.all_hear([(1, "It makes a noise"), (2, "What kind of noise?")])

        assert answer["session_id"] == str(four.talk.session_id)
        assert (answer["sender_id"], answer["sender_role"]) == (
            str(four.talk.customer_id),
            "customer",
        )
        assert answer["body"] == "It makes a noise"
        await stranger.settle()
        assert stranger.of("chat.message") == []


async def test_a_hundred_of_each_at_once_are_heard_in_one_order_by_all(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    async with four_devices(
        connection, pool, make_config, **UNLIMITED, plan_minute_seconds=60.0
    ) as four:
        await asyncio.gather(
            *(
                say(device, four.talk, f"{name} {n}")
                for n in range(50)
                for name, device in enumerate(four.devices)
            )
        )
        for device in four.devices:
            while len(heard(device)) < 200:
                await device.until("chat.message")
            await device.settle()

        stored = await four.talk.bodies()
        assert [seq for seq, _ in stored] == list(range(1, 201))
        for name, device in enumerate(four.devices):
            assert heard(device) == stored
            own = [body for _, body in stored if body.startswith(f"{name} ")]
            assert own == [f"{name} {n}" for n in range(50)], "one device's stay in its order"
            answers = [frame for frame in device.of("chat.message") if "re" in frame]
            assert [frame["body"] for frame in answers] == own
            assert device.of("error") == []


async def test_what_no_hint_told_is_found_within_a_second_and_in_order(
    connection: Connection,
    pool: Pool,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice = random.Random(7)
    publish = Bus.publish

    def lossy(bus: Bus, hint: Hint) -> None:
        """Half of what is said is never told to the other nodes."""
        if not isinstance(hint, Said) or dice.random() < 0.5:
            publish(bus, hint)

    monkeypatch.setattr(Bus, "publish", lossy)
    async with four_devices(
        connection, pool, make_config, **UNLIMITED, plan_minute_seconds=60.0
    ) as four:
        for n in range(30):
            await say(four.devices[n % 4], four.talk, f"{n}")
        for device in four.devices:
            while len(heard(device)) < 30:
                await device.until("chat.message")
            await device.settle()

        stored = await four.talk.bodies()
        for device in four.devices:
            assert heard(device) == stored


async def test_the_last_word_before_the_end_is_heard_though_its_hint_was_lost(
    connection: Connection,
    pool: Pool,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with four_devices(connection, pool, make_config, plan_minute_seconds=60.0) as four:
        four.there.node.bus._receive = lambda hints: None

        await say(four.phone, four.talk, "Thank you!")
        await four.phone.send("session.end", session_id=four.talk.session_id)

        await four.all_hear([(1, "Thank you!")])
        if not _is_over(four.desk):  # which may have come before the message
            await four.desk.until("session.status", status="completed")
        await eventually(lambda: not four.there.node.chats._rooms)


def _is_over(device: Client) -> bool:
    return "completed" in [frame["status"] for frame in device.of("session.status")]


async def test_who_connects_again_asks_for_what_was_said_meanwhile(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    talk = await active(connection, pool, plan_code="diagnostic")
    config = make_config(**UNSWEPT, plan_minute_seconds=60.0)
    async with two_nodes(config) as (here, there), here.client(talk.customer_id, "customer") as ann:
        async with here.client(talk.mechanic_id, "mechanic") as max_:
            await say(ann, talk, "one")
            await max_.until("chat.message", seq=1)
        await say(ann, talk, "two")
        await ann.until("chat.message", seq=2)

        async with there.client(talk.mechanic_id, "mechanic") as max_:
            await max_.send("chat.history", session_id=talk.session_id, after=1, id="h")
            missed = await max_.until("chat.messages", re="h")
            await say(ann, talk, "three")
            await max_.until("chat.message", seq=3)
            await max_.settle()

            assert [(m["seq"], m["body"]) for m in missed["messages"]] == [(2, "two")]
            assert not missed["more"]
            assert missed["messages"][0]["type"] == "chat.message"
            assert heard(max_) == [(3, "three")], "nothing twice"


async def test_a_message_whose_answer_was_lost_is_sent_again_elsewhere_and_is_one(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    async with four_devices(
        connection, pool, make_config, **UNSWEPT, plan_minute_seconds=60.0
    ) as four:
        key = uuid4()
        async with four.here.client(four.talk.customer_id, "customer") as lost:
            await say(lost, four.talk, "Are you there?", key)
            lost.link.transport.abort()
        await four.tablet.until("chat.message", client_message_id=key)

        await say(four.laptop, four.talk, "Are you there?", key)
        again = await four.laptop.until("chat.message", re=str(key))
        for device in (four.phone, four.tablet, four.desk):
            await device.settle()
            assert heard(device) == [(1, "Are you there?")]

        assert again["seq"] == 1
        assert await four.talk.bodies() == [(1, "Are you there?")]


async def test_a_node_that_dies_between_commit_and_tell_leaves_it_to_the_others(
    connection: Connection,
    pool: Pool,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with four_devices(connection, pool, make_config, plan_minute_seconds=60.0) as four:
        chats = four.here.node.chats
        said: list[Any] = []
        # From the commit on this node does nothing any more.
        monkeypatch.setattr(chats, "hear", said.append)
        monkeypatch.setattr(chats, "_publish", said.append)

        await chats.say(four.talk.customer_id, four.talk.session_id, uuid4(), "Now")

        assert len(said) == 2
        for device in (four.laptop, four.desk):
            await until_heard(device, [(1, "Now")])


async def test_a_message_is_answered_in_its_place_where_an_earlier_one_is_still_missing(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    async with four_devices(
        connection, pool, make_config, **UNSWEPT, plan_minute_seconds=60.0
    ) as four:
        four.here.node.bus._receive = lambda hints: None
        await say(four.desk, four.talk, "first")
        await four.desk.until("chat.message", seq=1)

        key = await say(four.phone, four.talk, "second")
        await four.phone.until("chat.message", re=key)

        assert heard(four.phone) == [(1, "first"), (2, "second")]
        await until_heard(four.tablet, [(1, "first"), (2, "second")])


async def test_what_a_session_does_not_take_is_refused_and_said_to_nobody(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    other = await active(connection, pool)
    async with four_devices(
        connection, pool, make_config, **UNSWEPT, plan_minute_seconds=60.0
    ) as four:
        key = {"client_message_id": uuid4(), "session_id": four.talk.session_id}
        refused = {
            "too_long": {**key, "body": "x" * 4001},
            "not_found": {**key, "session_id": other.session_id, "body": "x"},
            "bad_frame": {**key, "body": ""},
        }
        for code, fields in refused.items():
            await four.phone.send("chat.send", id=code, **fields)
            answer = await four.phone.until("error", re=code)
            assert answer["code"] == code
        await four.phone.send("chat.send", **key, body="\0")
        await four.phone.link.send('{"type":"chat.send","body":NaN}')
        await eventually_closed(four.phone)
        await four.desk.settle()
        assert heard(four.desk) == []
        assert await four.talk.bodies() == []


async def eventually_closed(client: Client) -> None:
    """The third bad frame ended it."""
    await eventually(lambda: client.link.close_code == 4400)


@pytest.mark.parametrize("code", ["session_ended", "not_found"])
async def test_a_session_that_is_over_takes_nothing_and_is_still_read(
    connection: Connection, pool: Pool, make_config: MakeConfig, code: str
) -> None:
    talk = await active(connection, pool, plan_code="diagnostic")
    stranger_id = await add_customer(connection)
    who = talk.customer_id if code == "session_ended" else stranger_id
    async with (
        two_nodes(make_config(plan_minute_seconds=60.0)) as (here, _),
        here.client(talk.mechanic_id, "mechanic") as max_,
        here.client(who, "customer") as asker,
    ):
        await say(max_, talk, "Done")
        await max_.until("chat.message", seq=1)
        await max_.send("session.end", session_id=talk.session_id)
        await max_.until("session.status", status="completed")

        await say(asker, talk, "Wait")
        assert (await asker.until("error"))["code"] == code
        await asker.send("chat.history", session_id=talk.session_id)
        if code == "session_ended":
            told = await asker.until("chat.messages")
            assert [message["body"] for message in told["messages"]] == ["Done"]
        else:
            assert (await asker.until("error"))["code"] == "not_found"


async def test_a_long_talk_is_told_as_fast_as_it_is_read(
    connection: Connection, pool: Pool, make_config: MakeConfig
) -> None:
    """The other node was deaf for a hundred of the longest messages: they come, in order, and
    nobody is closed for being slow."""
    config_overrides = {**UNLIMITED, "plan_minute_seconds": 60.0}
    async with four_devices(connection, pool, make_config, **UNSWEPT, **config_overrides) as four:
        there = four.there.node
        receive = there.bus._receive
        there.bus._receive = lambda hints: None
        for n in range(100):
            body = f"{n:03}" + "🚗" * 3997
            await four.here.node.chats.say(
                four.talk.customer_id, four.talk.session_id, uuid4(), body
            )
        there.bus._receive = receive

        await say(four.phone, four.talk, "and now?")
        await asyncio.gather(*(_until(101, device) for device in four.devices))

        for device in four.devices:
            assert [seq for seq, _ in heard(device)] == list(range(1, 102))


async def _until(count: int, device: Client) -> None:
    while len(heard(device)) < count:
        await device.until("chat.message")
