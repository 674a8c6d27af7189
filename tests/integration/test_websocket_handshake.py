"""Who may open a websocket, and what the others are told."""

import logging

import pytest

from dispatch.protocol import SUBPROTOCOL
from dispatch.websocket import Connection
from tests.support import eventually
from tests.wire import StandIn, read_json, serving


async def test_a_token_in_the_handshake_is_welcomed_at_once() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as client:
        welcome = await read_json(client)

        assert welcome["type"] == "welcome"
        assert welcome["connection_id"] == str(gateway.connections[0].connection_id)
        assert client.subprotocol == SUBPROTOCOL
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        (None, None),
        (SUBPROTOCOL, SUBPROTOCOL),
        (f"graphql-ws, {SUBPROTOCOL}", SUBPROTOCOL),
        ("graphql-ws", None),
        ("DISPATCH.V1.JSON", None),
    ],
)
async def test_our_subprotocol_is_agreed_on_if_it_is_offered_and_needed_by_nobody(
    offered: str | None, agreed: str | None
) -> None:
    async with serving(StandIn()) as served:
        client = await served.raw()
        headers = {} if offered is None else {"Sec-WebSocket-Protocol": offered}

        answer = await client.handshake(headers)

        assert answer.status == 101
        assert answer.headers.get("sec-websocket-protocol") == agreed


async def test_compression_is_never_agreed_on() -> None:
    async with serving(StandIn()) as served:
        client = await served.raw()

        answer = await client.handshake({"Sec-WebSocket-Extensions": "permessage-deflate"})

        assert answer.status == 101
        assert "sec-websocket-extensions" not in answer.headers


@pytest.mark.parametrize("origin", ["https://app.example", "HTTPS://APP.EXAMPLE:443"])
async def test_an_allowed_origin_may_connect(origin: str) -> None:
    async with serving(StandIn()) as served:
        client = await served.raw()

        assert (await client.handshake({"Origin": origin})).status == 101


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://evil-app.example",
        "https://app.example@evil.example",
        "https://app.example/",
        "https://app.example.",
    ],
)
async def test_another_origin_is_forbidden(origin: str) -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw()

        answer = await client.handshake(
            {"Origin": origin, "Authorization": f"Bearer {gateway.token()}"}
        )

        assert answer.status == 403
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["ok"] is False
        assert answer.json()["error"]["code"] == "forbidden"
        await client.read_end()
        assert gateway.authenticated == []
        assert served.server_state.connections == set()


async def test_a_second_origin_does_not_hide_the_first() -> None:
    async with serving(StandIn()) as served:
        client = await served.raw()

        answer = await client.handshake(
            [("Origin", "https://evil.example"), ("Origin", "https://app.example")]
        )

        assert answer.status == 403


@pytest.mark.parametrize(
    "query",
    [
        "token=secret-1234",
        "x=1&access_token=secret-1234",
        "Authorization=secret-1234",
        "TOKEN=secret-1234",
        "%74oken=secret-1234",
        "token",
    ],
)
async def test_a_token_in_the_query_is_refused_and_stands_in_no_log(
    query: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw()

        answer = await client.handshake(
            {"Authorization": f"Bearer {gateway.token()}"}, target=f"/ws?{query}"
        )

        assert answer.status == 400
        assert answer.json()["error"]["code"] == "bad_request"
        assert b"secret-1234" not in answer.body
        assert gateway.authenticated == []
    assert "secret-1234" not in caplog.text


async def test_frames_and_tokens_stand_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw()
        await client.handshake()

        client.send('{"type":"hello","token":"secret-1234"}')

        assert await client.read_close() == 4401
    assert gateway.authenticated == ["secret-1234"]
    assert "secret-1234" not in caplog.text


@pytest.mark.parametrize("target", ["/", "/ws/", "/WS", "/ws/x", "/api/ws", "//ws"])
async def test_there_is_one_endpoint(target: str) -> None:
    async with serving(StandIn()) as served:
        client = await served.raw()

        answer = await client.handshake(target=target)

        assert answer.status == 404
        assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Version": "8"},
        {"Authorization": "Bearer " + "x" * 10_000},
        [("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
    ],
)
async def test_what_is_no_handshake_is_refused(
    headers: dict[str, str] | list[tuple[str, str]],
) -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw()

        answer = await client.handshake(headers)

        assert answer.status == 400
        assert answer.json()["error"]["code"] == "bad_request"
        await client.read_end()
        assert gateway.authenticated == []


async def test_while_draining_nobody_is_let_in_and_those_inside_stay() -> None:
    gateway = StandIn()
    async with serving(gateway) as served, served.dial(gateway.token()) as inside:
        await read_json(inside)
        gateway.draining = True
        client = await served.raw()

        answer = await client.handshake()

        assert answer.status == 503
        assert answer.json()["error"]["code"] == "unavailable_now"
        await inside.send('{"type":"ping"}')
        assert (await read_json(inside))["type"] == "pong"


async def test_an_address_that_connects_too_often_is_refused_and_others_are_not() -> None:
    gateway = StandIn(rate_connects=0.2, trusted_proxies=frozenset({"127.0.0.0/8"}))
    async with serving(gateway) as served:

        async def connect(address: str) -> int:
            client = await served.raw()
            answer = await client.handshake({"X-Forwarded-For": address})
            if answer.status == 429:
                assert answer.json()["error"]["code"] == "rate_limited"
            client.writer.close()
            return answer.status

        flood = [await connect("203.0.113.9") for _ in range(5)]

        assert flood == [101, 101, 429, 429, 429]
        assert await connect("203.0.113.10") == 101


async def test_an_address_that_nobody_vouches_for_counts_for_nothing() -> None:
    gateway = StandIn(rate_connects=0.2)
    async with serving(gateway) as served:
        for _ in range(5):
            client = await served.raw()
            assert (await client.handshake({"X-Forwarded-For": "203.0.113.9"})).status == 101
            client.writer.close()


async def test_a_user_who_connects_too_often_is_closed_and_others_are_not() -> None:
    gateway = StandIn(rate_connects=0.2)
    token, other = gateway.token(), gateway.token()
    async with serving(gateway) as served:
        for _ in range(2):
            await served.raw_welcomed(token)
        client = await served.raw()
        await client.handshake({"Authorization": f"Bearer {token}"})

        assert await client.read_close() == 4429

        await served.raw_welcomed(other)
        assert len(gateway.connections) == 3


async def test_a_refused_connection_is_never_told_to_the_gateway() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw()
        await client.handshake({"Origin": "null"})
        await client.read_end()

        await eventually(lambda: not served.server_state.connections)

    assert gateway.connections == gateway.gone == []


async def test_a_server_that_goes_down_tells_everybody_to_come_back() -> None:
    gateway = StandIn()
    async with serving(gateway) as served:
        client = await served.raw_welcomed(gateway.token())
        waiting = await served.raw()
        await waiting.handshake()

        served.stop()

        assert await client.read_close() == 1012
        assert await waiting.read_close() == 1012
    assert gateway.gone == gateway.connections
    assert all(isinstance(one, Connection) and one.close_code == 1012 for one in gateway.gone)
