"""Frames of one socket: who it is, in order, answered or refused."""

import asyncio
import json
import logging
from typing import Any, cast
from uuid import uuid4

import pytest

from dispatch.core.types import Role
from dispatch.errors import BadRequest, Conflict, NotAuthenticated, NotFound, Unavailable
from dispatch.protocol import (
    AnyClientFrame,
    AvailabilitySet,
    CloseCode,
    Drain,
    OfferSeen,
    TokenRefresh,
)
from dispatch.websocket import Connection
from tests.support import eventually
from tests.wire import BINARY, CLOSE, TEXT, StandIn, closed, frame, message, read_json, serving

ID = str(uuid4())
SEEN = {"type": "offer.seen", "offer_ids": [ID]}


def available(number: int) -> str:
    return json.dumps({"type": "availability.set", "available": True, "id": str(number)})


# --- who it is ------------------------------------------------------------------------------------


async def test_hello_brings_the_welcome_and_names_the_device() -> None:
    gateway = StandIn()
    token = gateway.token(Role.CUSTOMER)
    async with serving(gateway) as served, served.dial() as client:
        await client.send(json.dumps({"type": "hello", "token": token, "device": "phone"}))

        assert (await read_json(client))["type"] == "welcome"

        (connection,) = gateway.connections
        known = gateway.tokens[token]
        assert connection.user_id == known.user_id
        assert connection.role is Role.CUSTOMER
        assert (connection.epoch, connection.expires_at) == (known.epoch, known.expires_at)
        assert connection.device == "phone"
        assert connection.offers_sent == 0
        assert connection.state is None


@pytest.mark.parametrize(
    "hello", [{"token": "wrong"}, {"token": ""}, {}, {"device": "phone"}, {"token": None}]
)
async def test_hello_without_a_good_token_closes_4401(hello: dict[str, Any]) -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial() as client:
        await client.send(json.dumps({"type": "hello"} | hello))

        assert (await closed(client))[0] == 4401
    assert gateway.connections == gateway.gone == []


@pytest.mark.parametrize("header", ["Bearer wrong", "bearer wrong", "Bearer", "Bearer  "])
async def test_a_bad_token_in_the_header_closes_4401(header: str) -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw()
        assert (await client.handshake({"Authorization": header})).status == 101

        assert await client.read_close() == 4401
    assert gateway.connections == []


async def test_another_scheme_in_the_header_is_not_ours() -> None:
    gateway = StandIn()
    token = gateway.token()
    async with serving(gateway) as served:
        client = await served.raw()
        await client.handshake({"Authorization": "Basic dXNlcjpwYXNzd29yZA=="})

        client.send(json.dumps({"type": "hello", "token": token}))

        assert (await client.read_json())["type"] == "welcome"


async def test_when_nobody_can_say_who_it_is_the_client_is_told_to_come_back() -> None:
    gateway = StandIn()

    async def away(token: str) -> None:
        raise Unavailable("the database does not answer")

    gateway.on_authenticate = away
    async with serving(gateway) as served, served.dial() as client:
        await client.send('{"type":"hello","token":"any","id":"h"}')

        assert await read_json(client) == {
            "type": "error",
            "re": "h",
            "code": "unavailable_now",
            "message": "the database does not answer",
        }
        assert (await closed(client))[0] == 1012
    assert gateway.connections == []


async def test_a_second_hello_is_refused_and_harms_nobody() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        for number in range(5):
            await client.send(json.dumps({"type": "hello", "token": "x", "id": str(number)}))
            answer = await read_json(client)
            assert (answer["code"], answer["re"]) == ("bad_frame", str(number))

        await client.send('{"type":"ping"}')
        assert (await read_json(client))["type"] == "pong"
    assert len(gateway.authenticated) == 1


async def test_a_frame_before_hello_is_a_bad_one() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial() as client:
        for frame in ({"type": "ping", "id": "p"}, SEEN):
            await client.send(json.dumps(frame))
            assert (await read_json(client))["code"] == "bad_frame"

        await client.send(json.dumps({"type": "hello", "token": gateway.token()}))

        assert (await read_json(client))["type"] == "welcome"
    assert gateway.frames == []


async def test_three_frames_before_hello_close_4400() -> None:
    async with serving(StandIn()) as served, served.dial() as client:
        for _ in range(3):
            await client.send('{"type":"ping"}')

        codes = [(await read_json(client))["code"] for _ in range(3)]
        assert codes == ["bad_frame"] * 3
        assert (await closed(client))[0] == 4400


# --- in order -------------------------------------------------------------------------------------


async def test_frames_between_hello_and_welcome_are_answered_after_it() -> None:
    gateway = StandIn()
    token, go_on = gateway.token(), asyncio.Event()

    async def slowly(token: str) -> None:
        await go_on.wait()

    gateway.on_authenticate = slowly
    async with serving(gateway) as served, served.dial() as client:
        await client.send(json.dumps({"type": "hello", "token": token}))
        await client.send('{"type":"ping","id":"1"}')
        await client.send("no json")
        await client.send(json.dumps({"type": "request.cancel", "id": "3", "request_id": ID}))
        await client.send(available(4))
        await client.send('{"type":"ping","id":"5"}')
        await eventually(lambda: gateway.authenticated)
        go_on.set()

        answers = [await read_json(client) for _ in range(6)]

        assert [answer["type"] for answer in answers] == [
            "welcome",
            "pong",
            "error",
            "error",
            "ok",
            "pong",
        ]
        assert [answer.get("re") for answer in answers] == [None, "1", None, "3", "4", "5"]


async def test_frames_of_one_connection_are_handled_one_at_a_time_and_in_order() -> None:
    gateway = StandIn()
    handled: list[str | None] = []

    async def slower_first(connection: Connection, frame: AnyClientFrame) -> None:
        handled.append(f"+{frame.id}")
        for _ in range(20 - int(frame.id or 0)):
            await asyncio.sleep(0)
        handled.append(f"-{frame.id}")

    gateway.on_received = slower_first
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        for number in range(20):
            await client.send(available(number))

        assert [(await read_json(client))["re"] for _ in range(20)] == [str(n) for n in range(20)]
    assert handled == [f"{sign}{number}" for number in range(20) for sign in "+-"]


async def test_an_idle_connection_has_no_task() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        before = asyncio.all_tasks()
        async with served.dial(gateway.token()) as client:
            await read_json(client)
            await client.send(available(1))
            await read_json(client)

            await eventually(lambda: not served.server_state.tasks)
            ours = {task for task in asyncio.all_tasks() - before if "websocket" in task.get_name()}
            assert ours == set()


# --- answers --------------------------------------------------------------------------------------


async def test_ping_is_answered_with_the_time() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)

        await client.send('{"type":"ping","id":"a"}')

        pong = await read_json(client)
        assert (pong["type"], pong["re"]) == ("pong", "a")
        assert pong["server_time"].endswith("Z")
    assert gateway.frames == []


async def test_a_frame_reaches_the_gateway_as_what_it_is() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)

        await client.send('{"type":"availability.set","available":false,"id":"x","new":[{}]}')

        assert await read_json(client) == {"type": "ok", "re": "x"}
    assert gateway.frames == [AvailabilitySet(available=False, id="x")]


@pytest.mark.parametrize(
    ("role", "frame"),
    [
        (Role.CUSTOMER, {"type": "availability.set", "available": True}),
        (Role.CUSTOMER, {"type": "offer.accept", "offer_id": 0, "accept_id": 0}),
        (Role.CUSTOMER, SEEN),
        (Role.MECHANIC, {"type": "request.cancel", "request_id": 0}),
        (Role.ADMIN, {"type": "session.join", "session_id": 0}),
        (Role.WORKSHOP, {"type": "mechanic.watch", "mechanic_id": 0}),
    ],
)
async def test_what_a_role_may_not_send_is_forbidden(role: Role, frame: dict[str, Any]) -> None:
    frame = {name: str(uuid4()) if value == 0 else value for name, value in frame.items()}
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token(role)) as client:
        await read_json(client)

        await client.send(json.dumps(frame | {"id": "f"}))

        answer = await read_json(client)
        assert (answer["type"], answer["code"], answer["re"]) == ("error", "forbidden", "f")
    assert gateway.frames == []


async def test_unknown_types_are_answered_and_close_nothing() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        for number in range(10):
            await client.send(json.dumps({"type": "teleport", "id": str(number)}))
            answer = await read_json(client)
            assert (answer["code"], answer["re"]) == ("unknown_type", str(number))


BAD_TEXTS = {
    "no JSON": "hello",
    "nothing": "",
    "no object": "[1]",
    "null": "null",
    "no type": "{}",
    "type is no text": '{"type":7}',
    "missing field": '{"type":"availability.set"}',
    "wrong field": '{"type":"availability.set","available":"yes"}',
    "no UUID": '{"type":"offer.accept","offer_id":"1","accept_id":"2"}',
    "long id": '{"type":"ping","id":"%s"}' % ("x" * 65),
    "NaN": '{"type":"ping","x":NaN}',
    "infinity": '{"type":"ping","x":-Infinity}',
    "deep": '{"type":"ping","x":' + "[" * 30_000 + "]" * 30_000 + "}",
    "deep objects": '{"type":"ping","x":' + '{"a":' * 10_000 + "1" + "}" * 10_001,
    "two types": '{"type":"ping","type":"hello"}',
    "half a surrogate": '{"type":"ping","id":"\\ud800"}',
    "trailing": '{"type":"ping"}{"type":"ping"}',
}


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
async def test_the_third_bad_frame_closes_4400(text: str) -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        for _ in range(2):
            await client.send(text)
            assert (await read_json(client))["code"] == "bad_frame"
        await client.send('{"type":"ping"}')
        assert (await read_json(client))["type"] == "pong"

        await client.send(text)

        assert (await read_json(client))["code"] == "bad_frame"
        assert (await closed(client))[0] == 4400
    assert gateway.frames == []
    assert [connection.close_code for connection in gateway.gone] == [4400]


async def test_the_last_of_doubled_fields_counts() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)

        await client.send('{"available":true,"id":"a","type":"availability.set","id":"b"}')

        assert await read_json(client) == {"type": "ok", "re": "b"}


async def test_binary_messages_are_bad_frames_also_in_fragments() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())
        client.send('{"type":"ping"}', BINARY)
        assert (await client.read_json())["code"] == "bad_frame"

        client.send('{"type":', BINARY, fin=False)
        client.send('"ping"}', 0)
        assert (await client.read_json())["code"] == "bad_frame"
        client.send('{"type":', TEXT, fin=False)
        client.send('"ping"}', 0)
        assert (await client.read_json())["type"] == "pong"

        client.send(b"\xff", BINARY)
        assert (await client.read_json())["code"] == "bad_frame"
        assert await client.read_close() == 4400


# --- errors of the gateway ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound(), "not_found"),
        (Conflict("not_open", "already accepted"), "not_open"),
        (Unavailable("later"), "unavailable_now"),
        (BadRequest("not one of the protocol's codes"), "unavailable_now"),
        (ValueError("a bug"), "unavailable_now"),
    ],
)
async def test_an_error_is_answered_and_the_connection_goes_on(error: Exception, code: str) -> None:
    gateway = StandIn()
    errors = [error]

    async def fail(connection: Connection, frame: AnyClientFrame) -> None:
        if errors:
            raise errors.pop()

    gateway.on_received = fail
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        await client.send(available(1))
        await client.send(available(2))

        answer = await read_json(client)
        assert (answer["type"], answer["code"], answer["re"]) == ("error", code, "1")
        assert await read_json(client) == {"type": "ok", "re": "2"}


async def test_a_bug_is_logged_with_the_type_of_the_frame_and_not_its_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = StandIn()

    async def fail(connection: Connection, frame: AnyClientFrame) -> None:
        raise ValueError("a bug")

    gateway.on_received = fail
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        await client.send('{"type":"token.refresh","token":"secret-1234"}')
        await read_json(client)

    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert "token.refresh" in record.getMessage()
    assert "a bug" in caplog.text
    assert "secret-1234" not in caplog.text


async def test_a_refresh_that_is_refused_closes_4401_and_drops_what_came_after_it() -> None:
    gateway = StandIn()

    async def refuse(connection: Connection, frame: AnyClientFrame) -> None:
        if isinstance(frame, TokenRefresh):
            raise NotAuthenticated("revoked")

    gateway.on_received = refuse
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        await client.send('{"type":"token.refresh","token":"bad"}')
        await client.send(available(1))

        assert (await closed(client))[0] == 4401
    assert gateway.frames == []


async def test_an_error_while_connecting_closes_and_is_told_once() -> None:
    gateway = StandIn()

    async def fail(connection: Connection) -> None:
        raise ValueError("a bug")

    gateway.on_connected = fail
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        assert (await read_json(client))["code"] == "unavailable_now"
        assert (await closed(client))[0] == 1012
    assert gateway.gone == gateway.connections
    assert len(gateway.gone) == 1


# --- the end --------------------------------------------------------------------------------------


async def test_the_gateway_closes_a_connection() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        (connection,) = gateway.connections

        connection.send_frame(Drain(reconnect_after_ms=250))
        connection.close(CloseCode.RESTART, "drained")

        assert connection.closing
        assert not connection.send(b"\x81\x02{}")
        connection.close(CloseCode.NORMAL)
        assert await read_json(client) == {"type": "drain", "reconnect_after_ms": 250}
        assert await closed(client) == (1012, "drained")
        await eventually(lambda: gateway.gone == [connection])
        assert not connection.send(b"\x81\x02{}")
        assert connection.close_code == 1012
        assert served.server_state.connections == set()


async def test_a_client_that_closes_is_answered_and_forgotten() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())

        client.send((1000).to_bytes(2, "big") + b"bye", CLOSE)

        assert await client.read_close() == 1000
        await eventually(lambda: gateway.gone == gateway.connections)
        assert gateway.gone[0].close_code == 1000


async def test_frames_before_the_clients_close_are_still_handled() -> None:
    gateway = StandIn()

    async def slowly(connection: Connection, frame: AnyClientFrame) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    gateway.on_received = slowly
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())
        for number in range(3):
            client.send(available(number))
        client.send((1001).to_bytes(2, "big"), CLOSE)

        assert await client.read_close() == 1001
        await eventually(lambda: gateway.gone)
    assert [frame.id for frame in gateway.frames] == ["0", "1", "2"]


@pytest.mark.parametrize(("goodbye", "code"), [(b"", 1006), (frame(b"", CLOSE), 1005)])
async def test_a_connection_that_breaks_is_told_once_and_gets_no_more_frames(
    goodbye: bytes, code: int
) -> None:
    gateway = StandIn()
    go_on = asyncio.Event()

    async def hold(connection: Connection, frame: AnyClientFrame) -> None:
        await go_on.wait()

    gateway.on_received = hold
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())
        for number in range(3):
            client.send(available(number))
        client.write(goodbye)
        await eventually(lambda: gateway.connections[0].busy)
        await eventually(lambda: gateway.connections[0].closing or not goodbye)

        client.writer.transport.abort()

        await eventually(lambda: gateway.gone == gateway.connections)
        go_on.set()
        await eventually(lambda: not served.server_state.tasks)
    assert [frame.id for frame in gateway.frames] == ["0"]
    assert gateway.gone[0].close_code == code


async def test_who_leaves_before_it_is_known_who_it_is_was_never_there() -> None:
    gateway = StandIn()
    go_on = asyncio.Event()

    async def slowly(token: str) -> None:
        await go_on.wait()

    gateway.on_authenticate = slowly
    async with serving(gateway) as served:
        client = await served.raw()
        await client.handshake({"Authorization": f"Bearer {gateway.token()}"})
        client.send(available(1))
        client.send((1000).to_bytes(2, "big"), CLOSE)
        (connection,) = served.server_state.connections
        assert isinstance(connection, Connection)
        await eventually(lambda: connection.closing)

        go_on.set()

        assert await client.read_close() == 1000
        await eventually(lambda: not served.server_state.connections)
    assert gateway.connections == gateway.gone == []
    assert gateway.frames == []


async def test_seen_is_passed_on_and_not_answered_by_us() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        await client.send(json.dumps(SEEN))
        await eventually(lambda: gateway.frames)
    assert isinstance(gateway.frames[0], OfferSeen)


async def test_what_is_posted_in_one_turn_of_the_loop_is_one_write_and_stays_in_order() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())
        (socket,) = gateway.connections
        writes: list[bytes] = []
        transport = socket._transport

        class Watched:
            def write(self, data: bytes) -> None:
                writes.append(data)
                transport.write(data)

            def __getattr__(self, name: str) -> object:
                return getattr(transport, name)

        socket._transport = cast(asyncio.Transport, Watched())
        notes = [message({"type": "note", "number": number}) for number in range(6)]

        for note in notes[:3]:
            assert socket.post(note)
        assert writes == []
        assert socket.send(notes[3])
        for note in notes[4:]:
            assert socket.post(note)
        socket.close(CloseCode.GOING_AWAY)

        assert [(await client.read_json())["number"] for _ in notes] == list(range(6))
        assert writes[:3] == [b"".join(notes[:3]), notes[3], b"".join(notes[4:])]
        assert not socket.post(notes[0])
