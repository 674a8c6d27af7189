"""What a client may not do: each gets a typed error or a close code, and changes nothing."""

import asyncio
import json
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.acceptance.actors import City, Device, Person, new_id

LARGEST = 64 * 1024


async def refused(city: City, person: Person, **options: Any) -> int:
    """The status of a handshake that is not accepted."""
    with pytest.raises(InvalidStatus) as refusal:
        await Device.dial(**({"url": city.town.server.ws_url} | options), who=person.name)
    return refusal.value.response.status_code


@pytest.mark.parametrize(
    "message",
    [
        "not json",
        "",
        "[]",
        '"offer.accept"',
        "null",
        "{}",
        '{"type": 7}',
        '{"type": "offer.accept"}',
        '{"type": "offer.accept", "offer_id": "x", "accept_id": "y"}',
        '{"type": "availability.set", "available": "yes"}',
        '{"type": "offer.seen", "offer_ids": []}',
        '{"type": "ping", "id": 5}',
        '{"type": "ping", "id": "%s"}' % ("i" * 65),
        '{"type": "ping", "id": NaN}',
        b"\x00\x01binary",
    ],
    ids=repr,
)
async def test_the_third_bad_frame_closes(city: City, message: str | bytes) -> None:
    mechanic = await city.mechanic()

    for _ in range(2):
        await mechanic.device.socket.send(message)
    second = await mechanic.device.expect("error", nth=2)
    still_here = await mechanic.device.ask("ping")
    await mechanic.device.socket.send(message)

    assert (second["code"], still_here["type"]) == ("bad_frame", "pong")
    assert await mechanic.device.closed() == 4400
    assert {frame["code"] for frame in mechanic.device.got("error")} == {"bad_frame"}


async def test_an_unknown_type_is_told_so_and_an_unknown_field_ignored(city: City) -> None:
    ann = await city.customer()

    unknown = [await ann.device.ask("offer.steal") for _ in range(4)]
    pong = await ann.device.ask("ping", colour="blue")

    assert {(frame["type"], frame["code"]) for frame in unknown} == {("error", "unknown_type")}
    assert pong["type"] == "pong"


async def test_a_type_of_another_role_is_forbidden(city: City) -> None:
    ann, mechanic, shop = await city.customer(), await city.mechanic(), await city.workshop()
    booking = await ann.book()
    card = await mechanic.offered(booking)
    await shop.connect()

    answers = [
        await ann.device.ask("offer.accept", offer_id=card["offer_id"], accept_id=new_id()),
        await ann.device.ask("offer.decline", offer_id=card["offer_id"]),
        await ann.device.ask("availability.set", available=False),
        await ann.device.ask("assignment.cancel", session_id=booking.session_id),
        await mechanic.device.ask("request.cancel", request_id=booking.request_id),
        await mechanic.device.ask("request.widen", request_id=booking.request_id),
        await shop.device.ask("offer.accept", offer_id=card["offer_id"], accept_id=new_id()),
        await shop.device.ask("session.join", session_id=booking.session_id),
    ]

    assert {(frame["type"], frame["code"]) for frame in answers} == {("error", "forbidden")}
    assert (await booking.read())["status"] == "pending"


async def test_what_comes_too_fast_is_refused_and_a_flood_is_closed(city: City) -> None:
    hasty, calm = await city.mechanic(), await city.mechanic()

    async def flood() -> None:
        for _ in range(20_000):
            await hasty.device.socket.send('{"type":"ping"}')
            await asyncio.sleep(0)

    with pytest.raises(ConnectionClosed):
        await flood()

    await calm.device.fence()
    assert await hasty.device.closed() == 4429
    assert {frame["code"] for frame in hasty.device.got("error")} == {"rate_limited"}
    assert len(hasty.device.got("pong")) >= 60


async def test_a_burst_is_answered_and_what_goes_beyond_it_refused(city: City) -> None:
    ann = await city.customer()

    for _ in range(90):
        await ann.device.send("ping")
    await ann.device.until(
        lambda: len(ann.device.got("pong") + ann.device.got("error")) == 90, "90 answers"
    )

    refused = ann.device.got("error")
    assert {frame["code"] for frame in refused} == {"rate_limited"}
    assert len(ann.device.got("pong")) >= 60
    assert all("re" in frame for frame in refused)


async def test_the_largest_message_is_64_kib(city: City) -> None:
    ann = await city.customer()
    frame = {"type": "ping", "id": "1", "padding": ""}
    frame["padding"] = "x" * (LARGEST - len(json.dumps(frame)))

    await ann.device.socket.send(json.dumps(frame))
    await ann.device.expect("pong", re="1")
    await ann.device.socket.send(json.dumps(frame | {"id": "12"}))

    assert await ann.device.closed() == 1009
    assert ann.device.got("pong", re="12") == []


async def test_a_token_in_the_address_is_refused_even_beside_a_good_one(city: City) -> None:
    ann = await city.customer(online=False)
    ws_url = city.town.server.ws_url

    for name in ("token", "access_token"):
        in_query = await refused(city, ann, url=f"{ws_url}?{name}={ann.token}", token=None)
        beside = await refused(city, ann, url=f"{ws_url}?{name}={ann.token}", token=ann.token)
        assert (in_query, beside) == (400, 400)
    assert ann.token not in city.town.server.log.read_text()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "https://127.0.0.1"]
)
async def test_a_page_from_elsewhere_is_refused(city: City, origin: str) -> None:
    ann = await city.customer(online=False)

    assert await refused(city, ann, token=ann.token, origin=origin) == 403


async def test_a_page_of_our_own_is_welcome(city: City) -> None:
    ann = await city.customer(online=False)

    device = await ann.connect(origin=city.town.server.url)

    assert device.welcome["user_id"] == ann.id


async def test_who_does_not_say_hello_in_ten_seconds_is_closed(city: City) -> None:
    silent = await Device.dial(city.town.server.ws_url, "nobody", None)
    chatty = await Device.dial(city.town.server.ws_url, "nobody", None)
    await chatty.send("ping")

    codes = [await device.closed() for device in (silent, chatty)]

    assert codes[0] == 4408
    assert codes[1] in (4400, 4401, 4408)
    assert silent.frames == chatty.got("welcome") == chatty.got("pong") == []
