"""What one client may cost: time, bytes and frames, and that nobody else notices."""

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable
from uuid import uuid4

import pytest

from dispatch.protocol import MAX_CLIENT_FRAME_BYTES, AnyClientFrame, CloseCode
from dispatch.websocket import Connection
from tests.support import eventually
from tests.wire import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
    StandIn,
    closed,
    frame,
    limited,
    message,
    read_json,
    serving,
)

PING_FRAME = '{"type":"ping"}'


# --- time -----------------------------------------------------------------------------------------


async def test_who_says_no_hello_in_time_is_closed_4408() -> None:
    async with (
        serving(StandIn(), limited(hello_seconds=0.2)) as served,
        served.dial() as client,
    ):
        assert (await closed(client))[0] == 4408


async def test_one_byte_at_a_time_is_no_hello() -> None:
    gateway = StandIn()
    hello = frame(json.dumps({"type": "hello", "token": gateway.token(), "client": "x" * 60}))
    async with serving(gateway, limited(hello_seconds=0.3, close_seconds=0.2)) as served:
        client = await served.raw()
        await client.handshake()
        drip = asyncio.create_task(_drip(client.write, hello))

        assert (await client.read_frame())[0] == CLOSE
        drip.cancel()
    assert gateway.authenticated == []


async def _drip(write: Callable[[bytes], None], data: bytes) -> None:
    for byte in data:
        write(bytes([byte]))
        await asyncio.sleep(0.05)


async def test_who_is_silent_is_dropped_though_bytes_of_an_endless_frame_trickle_in() -> None:
    gateway = StandIn()
    async with serving(gateway, limited(ping_seconds=0.1, silence_seconds=0.4)) as served:
        client = await served.raw_welcomed(gateway.token())
        drip = asyncio.create_task(_drip(client.write, frame("x" * 1000)))

        assert (await client.read_frame())[0] == PING
        await client.read_end()
        drip.cancel()
        await eventually(lambda: gateway.gone == gateway.connections)
    assert gateway.gone[0].close_code == CloseCode.GOING_AWAY


async def test_who_answers_pings_stays() -> None:
    gateway = StandIn()
    async with serving(gateway, limited(ping_seconds=0.1, silence_seconds=0.4)) as served:
        client = await served.raw_welcomed(gateway.token())
        for _ in range(10):
            opcode, payload = await client.read_frame()
            assert opcode == PING
            client.send(payload, PONG)

        client.send(PING_FRAME)
        while (await client.read_frame())[0] == PING:
            pass
        assert not gateway.connections[0].closing


async def test_an_expired_token_closes_4401() -> None:
    gateway = StandIn()
    token = gateway.token(ttl_seconds=0.3)
    async with (
        serving(gateway, limited(hello_seconds=0.5)) as served,
        served.dial(token) as client,
    ):
        await read_json(client)

        assert (await closed(client))[0] == 4401


async def test_a_refreshed_token_keeps_the_connection() -> None:
    gateway = StandIn()
    token = gateway.token(ttl_seconds=0.3)

    async def refresh(connection: Connection, frame: AnyClientFrame) -> None:
        connection.expires_at = time.time() + 3600

    gateway.on_received = refresh
    async with (
        serving(gateway, limited(hello_seconds=0.5)) as served,
        served.dial(token) as client,
    ):
        await read_json(client)
        expired_at = gateway.connections[0].expires_at
        await client.send('{"type":"token.refresh","token":"new"}')
        await read_json(client)

        await eventually(lambda: time.time() > expired_at)
        await _visited_again(gateway.connections[0])

        await client.send(PING_FRAME)
        assert (await read_json(client))["type"] == "pong"


async def _visited_again(connection: Connection) -> None:
    wheel = connection._endpoint.wheel
    visited_at = wheel.now + 2 * connection.limits.check_seconds()
    await eventually(lambda: wheel.now > visited_at)


async def test_who_never_answers_a_close_is_gone_soon() -> None:
    gateway = StandIn()
    async with serving(gateway, limited(close_seconds=0.3)) as served:
        client = await served.raw_welcomed(gateway.token())

        gateway.connections[0].close(CloseCode.RESTART)

        assert await client.read_frame() == (CLOSE, (1012).to_bytes(2, "big"))
        await eventually(lambda: gateway.gone == gateway.connections)
        await client.read_end()


# --- readers --------------------------------------------------------------------------------------


async def test_who_stops_reading_is_closed_at_the_outboxs_bound_and_others_do_not_notice() -> None:
    gateway = StandIn()
    limits = limited(outbox_bytes=50_000, close_seconds=0.3)
    async with serving(gateway, limits) as served, served.dial(gateway.token()) as other:
        await read_json(other)
        client = await served.raw_welcomed(gateway.token())
        client.stop_reading()
        stuck = gateway.connections[1]
        note = message({"type": "note", "padding": "x" * 80})

        written = 0
        while stuck.send(note):
            written += len(note)
            if written % (100 * len(note)) == 0:
                await asyncio.sleep(0)

        assert stuck.closing
        assert stuck.close_code == CloseCode.TOO_SLOW
        assert _buffered(stuck) <= 50_000 + 200
        await other.send(PING_FRAME)
        assert (await read_json(other))["type"] == "pong"
        await eventually(lambda: gateway.gone == [stuck])


async def test_a_slow_reader_who_still_reads_is_told_4410() -> None:
    gateway = StandIn()
    async with serving(gateway, limited(outbox_bytes=50_000)) as served:
        client = await served.raw_welcomed(gateway.token())
        slow = gateway.connections[0]
        note = message({"type": "note"})
        while slow.send(note):
            pass

        assert await client.read_close() == 4410


async def test_who_takes_nothing_of_what_is_buffered_is_dropped_though_he_talks() -> None:
    gateway = StandIn()
    async with serving(gateway, limited(stall_seconds=0.4)) as served:
        client = await served.raw_welcomed(gateway.token())
        client.stop_reading()
        (stuck,) = gateway.connections
        note = message({"type": "note", "padding": "x" * 80})
        while _buffered(stuck) < 50_000:
            assert stuck.send(note)
            await asyncio.sleep(0)
        talk = asyncio.create_task(_drip(client.write, frame("x", PONG) * 100))

        await eventually(lambda: gateway.gone == [stuck])
        talk.cancel()
    assert stuck.close_code == CloseCode.TOO_SLOW


async def test_a_slow_reader_who_makes_progress_stays() -> None:
    gateway = StandIn()
    async with serving(gateway, limited(stall_seconds=0.3)) as served:
        client = await served.raw_welcomed(gateway.token())
        client.stop_reading()
        (slow,) = gateway.connections
        note = message({"type": "note", "padding": "x" * 80})
        sent = 0
        while _buffered(slow) < 200_000:
            assert slow.send(note)
            sent += 1
            if sent % 100 == 0:
                await asyncio.sleep(0)
        client.read_on()

        for _ in range(sent):
            assert (await client.read_json())["type"] == "note"

        assert not slow.closing


async def test_an_overflow_and_the_clients_own_close_in_one_packet_end_the_connection() -> None:
    gateway, problems = StandIn(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    limits = limited(outbox_bytes=50_000, close_seconds=0.3)
    async with serving(gateway, limits) as served:
        client = await served.raw_welcomed(gateway.token())
        client.stop_reading()
        (stuck,) = gateway.connections
        note = message({"type": "note", "padding": "x" * 80})
        while _buffered(stuck) < 49_800:
            assert stuck.send(note)
            await asyncio.sleep(0)

        client.write(frame(PING_FRAME) * 20 + frame((1000).to_bytes(2, "big"), CLOSE))

        await eventually(lambda: gateway.gone == [stuck])
    assert stuck.close_code == CloseCode.TOO_SLOW
    assert problems == []


def _buffered(connection: Connection) -> int:
    return connection._transport.get_write_buffer_size()


# --- writers --------------------------------------------------------------------------------------


async def test_a_client_that_sends_faster_than_it_is_served_has_to_wait() -> None:
    gateway = StandIn()
    go_on = asyncio.Event()
    total = 2000

    async def hold(connection: Connection, frame: AnyClientFrame) -> None:
        await go_on.wait()

    gateway.on_received = hold
    async with serving(gateway, limited(inbox_frames=8, silence_seconds=0.2)) as served:
        client = await served.raw_welcomed(gateway.token())
        (connection,) = gateway.connections
        padding = " " * 20_000
        for number in range(total):
            client.send(_available(number) + padding)

        # The kernel's buffers are full on both sides, so the rest waits at the client.
        await eventually(lambda: _is_paused(connection))
        assert client.writer.transport.get_write_buffer_size() > total * len(padding) / 2
        assert _waiting(connection) < 40
        # It is our fault that nothing is heard of it, so it is not silent.
        wheel = connection._endpoint.wheel
        later = wheel.now + 2 * connection.limits.silence_seconds
        await eventually(lambda: wheel.now > later)
        assert not connection.closing

        go_on.set()
        for number in range(total):
            assert (await client.read_json())["re"] == str(number)
        assert not _is_paused(connection)


async def test_a_close_is_completed_though_reading_was_paused() -> None:
    gateway = StandIn()
    go_on = asyncio.Event()

    async def hold(connection: Connection, frame: AnyClientFrame) -> None:
        await go_on.wait()

    gateway.on_received = hold
    async with serving(gateway, limited(inbox_frames=2, close_seconds=60)) as served:
        client = await served.raw_welcomed(gateway.token())
        (connection,) = gateway.connections
        for number in range(3):
            client.send(_available(number))
        await eventually(lambda: _is_paused(connection))

        connection.close(CloseCode.NORMAL)
        go_on.set()

        assert await client.read_close() == 1000
        await eventually(lambda: gateway.gone == [connection])
    assert [frame.id for frame in gateway.frames] == ["0"]


def _is_paused(connection: Connection) -> bool:
    return connection._reading_paused


def _waiting(connection: Connection) -> int:
    return len(connection._inbox)


def _available(number: int) -> str:
    return json.dumps({"type": "availability.set", "available": True, "id": str(number)})


# --- sizes ----------------------------------------------------------------------------------------


def _padded(size: int) -> str:
    return PING_FRAME + " " * (size - len(PING_FRAME))


async def test_the_largest_message_is_taken() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)

        await client.send(_padded(MAX_CLIENT_FRAME_BYTES))

        assert (await read_json(client))["type"] == "pong"


async def test_one_byte_more_closes_1009() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)

        await client.send(_padded(MAX_CLIENT_FRAME_BYTES + 1))

        assert (await closed(client))[0] == 1009
    assert gateway.gone[0].close_code == 1009


async def test_a_message_in_fragments_is_whole_again() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())
        text = '{"type":"ping","id":"ä"}'.encode()

        client.send(text[:1], TEXT, fin=False)
        for byte in text[1:-1]:
            client.send(bytes([byte]), CONTINUATION, fin=False)
            client.send(b"between", PING)
        client.send(text[-1:], CONTINUATION)

        answers = [await client.read_frame() for _ in range(len(text) - 1)]
        assert answers.count((PONG, b"between")) == len(text) - 2
        (pong,) = [json.loads(payload) for opcode, payload in answers if opcode == TEXT]
        assert (pong["type"], pong["re"]) == ("pong", "ä")


async def test_fragments_of_too_much_close_1009() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())

        client.send("x" * 1024, TEXT, fin=False)
        for _ in range(MAX_CLIENT_FRAME_BYTES // 1024):
            client.send("x" * 1024, CONTINUATION, fin=False)

        assert await client.read_close() == 1009


async def test_endless_fragments_cost_no_memory() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())
        client.send(" ", TEXT, fin=False)
        empty = frame("", CONTINUATION, fin=False) * 10_000
        await _answered(client, empty)
        tracemalloc.start()
        try:
            await _answered(client, empty)
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(5):
                await _answered(client, empty)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert after - before < 50_000


async def _answered(client: RawClient, data: bytes) -> None:
    client.write(data)
    client.send("done", PING)
    assert await client.read_frame() == (PONG, b"done")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(b'{"type":"ping","id":"\xff"}'), 1007),
        (frame(b'{"type":"ping","new":"\xc0\x80"}'), 1007),
        (frame(b"\xed\xa0\x80"), 1007),
        (frame("x", CONTINUATION), 1002),
        (frame("x", TEXT, fin=False) + frame("x", TEXT), 1002),
        (frame("x" * 126, PING), 1002),
        (frame("x", PING, fin=False), 1002),
        (frame("x", 0x3), 1002),
        (b"\xc1\x80\0\0\0\0", 1002),  # a reserved bit: compression that nobody agreed on
        (b"\x81\x02{}", 1002),  # not masked
        (frame(b"\x03", CLOSE), 1002),
        (frame((999).to_bytes(2, "big"), CLOSE), 1002),
        (b"\x81\xff\x7f" + b"\xff" * 7 + b"\0\0\0\0", 1009),
    ],
)
async def test_bytes_that_break_the_websocket_close_it_cleanly(data: bytes, code: int) -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())

        client.write(data)
        client.send(PING_FRAME)

        assert await client.read_close() == code
        await eventually(lambda: gateway.gone == gateway.connections)
    assert gateway.gone[0].close_code == code
    assert gateway.frames == []


async def test_who_says_much_more_behind_an_error_still_reads_why_it_was_closed() -> None:
    gateway = StandIn()
    async with serving(gateway, limited(close_seconds=60)) as served:
        client = await served.raw_welcomed(gateway.token())
        client.stop_reading()

        client.write(b"\x81\x02{}" + b"x" * 8_000_000)
        await client.writer.drain()
        await eventually(lambda: gateway.connections[0].closing)
        client.read_on()

        assert await client.read_close() == 1002
        await eventually(lambda: gateway.gone == gateway.connections)


async def test_a_flood_of_bytes_behind_a_close_is_dropped_and_ends() -> None:
    gateway = StandIn()
    async with serving(gateway, limited(close_seconds=0.3)) as served:
        client = await served.raw_welcomed(gateway.token())
        client.write(b"\x81\x02{}")
        flood = asyncio.create_task(_flood(client.writer))

        assert (await client.read_frame())[0] == CLOSE
        await eventually(lambda: gateway.gone == gateway.connections)
        flood.cancel()


async def _flood(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"\xff" * 65536)
        await writer.drain()


# --- rates ----------------------------------------------------------------------------------------


async def test_what_comes_too_fast_is_refused_and_later_frames_are_not() -> None:
    gateway = StandIn(rate_messages=2)
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        await read_json(client)
        for number in range(8):
            await client.send(json.dumps({"type": "ping", "id": str(number)}))

        answers = [await read_json(client) for _ in range(8)]

        assert [answer["type"] for answer in answers] == ["pong"] * 6 + ["error"] * 2
        assert [answer["re"] for answer in answers] == [str(number) for number in range(8)]
        assert {answer["code"] for answer in answers[6:]} == {"rate_limited"}

        await eventually(lambda: _has_room(gateway.connections[0]))
        await client.send(PING_FRAME)
        assert (await read_json(client))["type"] == "pong"


def _has_room(connection: Connection) -> bool:
    rate = connection._endpoint.messages
    return rate.take(connection._message_mark, connection._endpoint.now()) is not None


@pytest.mark.parametrize(
    "text",
    [
        PING_FRAME,
        '{"type":"teleport"}',
        json.dumps({"type": "session.end", "session_id": str(uuid4())}),
    ],
    ids=["answered by us", "unknown", "for the gateway"],
)
async def test_a_flood_closes_4429_and_others_do_not_notice(text: str) -> None:
    gateway = StandIn(rate_messages=2)
    async with serving(gateway) as served:
        other = await served.raw_welcomed(gateway.token())
        client = await served.raw_welcomed(gateway.token())

        client.write(frame(text) * 1000)

        assert await client.read_close() == 4429
        other.send(PING_FRAME)
        assert (await other.read_json())["type"] == "pong"
    assert len(gateway.frames) <= 7


@pytest.mark.parametrize(
    "data", [frame("x", PING), frame("", PONG), frame("", CONTINUATION, fin=False)]
)
async def test_a_flood_of_control_frames_or_fragments_closes_4429(data: bytes) -> None:
    gateway = StandIn(rate_messages=2)
    async with serving(gateway, limited(close_seconds=60)) as served:
        client = await served.raw_welcomed(gateway.token())

        client.write(frame("x", TEXT, fin=False) + data * 5000)

        pongs = 0
        while (answer := await client.read_frame())[0] == PONG:
            pongs += 1
        assert answer == (CLOSE, (4429).to_bytes(2, "big") + answer[1][2:])
        assert pongs < 1000
        await client.read_end()  # at once: nobody waits for what a flood has to say


async def test_seen_counts_by_the_offers_that_were_sent() -> None:
    gateway = StandIn(rate_messages=0.1)
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())
        gateway.connections[0].offers_sent += 20
        seen = {"type": "offer.seen", "offer_ids": [str(uuid4()), str(uuid4())]}
        for number in range(10):
            client.send(json.dumps(seen | {"id": str(number)}))
            assert await client.read_json() == {"type": "ok", "re": str(number)}

        client.send(json.dumps(seen | {"id": "one more"}))
        assert (await client.read_json())["type"] == "ok"
        client.send(json.dumps(seen | {"id": "too many"}))
        answer = await client.read_json()
        assert (answer["code"], answer["re"]) == ("rate_limited", "too many")

        gateway.connections[0].offers_sent += 2
        client.send(json.dumps(seen))
        assert (await client.read_json())["type"] == "ok"


@pytest.mark.parametrize(
    ("before", "answered"),
    [
        (b"", 4400),
        # Behind a fragment the grammar reads all of it before the first is judged.
        (frame('{"type":', fin=False) + frame('"ping"}', CONTINUATION), 1000),
    ],
)
async def test_the_third_bad_frame_and_the_clients_own_close_in_one_packet_end_it(
    before: bytes, answered: int
) -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())

        client.write(before + frame("no json") * 3 + frame((1000).to_bytes(2, "big"), CLOSE))

        assert await client.read_close() == answered
        await eventually(lambda: gateway.gone == gateway.connections)
    assert gateway.gone[0].close_code == 4400


async def test_bad_frames_are_not_let_off_by_a_rate() -> None:
    gateway = StandIn(rate_messages=0.1)
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())

        client.write(frame("no json") * 100)

        assert [(await client.read_json())["code"] for _ in range(3)] == ["bad_frame"] * 3
        assert await client.read_close() == 4400
