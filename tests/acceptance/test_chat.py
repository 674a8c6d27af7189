"""Chat from outside: over sockets and over HTTP, and with a worker killed in the middle."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.actors import (
    Booking,
    City,
    Customer,
    Device,
    Mechanic,
    Person,
    Town,
    new_id,
    visiting,
)
from tests.acceptance.conftest import BuildTown
from tests.support import eventually, eventually_blocking


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town() as town:
        yield town


async def in_session(city: City, ann: Customer, max_: Mechanic) -> Booking:
    """Both have joined."""
    booking = await ann.book("video15")
    await max_.wins(booking)
    for person in (ann, max_):
        await person.device.ask("session.join", session_id=booking.session_id)
    await booking.session(status="active")
    return booking


async def say(device: Device, booking: Booking, body: str, key: str | None = None) -> Any:
    return await device.ask(
        "chat.send", session_id=booking.session_id, client_message_id=key or new_id(), body=body
    )


def heard(device: Device) -> list[tuple[int, str]]:
    return [(frame["seq"], frame["body"]) for frame in device.got("chat.message")]


async def test_what_is_said_over_http_is_heard_on_the_sockets_and_read_again(city: City) -> None:
    ann, max_ = await city.customer(), await city.mechanic()
    booking = await in_session(city, ann, max_)
    path = f"/api/sessions/{booking.session_id}/messages"
    key = new_id()

    first = await ann.call("POST", path, {"client_message_id": key, "body": "It smokes"})
    again = await ann.call("POST", path, {"client_message_id": key, "body": "It smokes!"})
    answer = await say(max_.device, booking, "Stop at once")
    read = await max_.call("GET", path)
    rest = await ann.call("GET", f"{path}?after=1&limit=200")

    assert (first.status, again.status) == (201, 200)
    assert {**first.body} == {**again.body}
    assert (first["seq"], first["body"], first["sender_role"]) == (1, "It smokes", "customer")
    assert (answer["type"], answer["seq"]) == ("chat.message", 2)
    for person in (ann, max_):
        await person.device.expect("chat.message", seq=2)
        assert heard(person.device) == [(1, "It smokes"), (2, "Stop at once")]
    assert [message["body"] for message in read["messages"]] == ["It smokes", "Stop at once"]
    assert [message["seq"] for message in rest["messages"]] == [2]
    assert (read["more"], rest["more"]) == (False, False)


async def test_what_cannot_be_said_over_http_is_refused(city: City) -> None:
    ann, max_ = await city.customer(), await city.mechanic()
    stranger = await city.customer()
    booking = await in_session(city, ann, max_)
    path = f"/api/sessions/{booking.session_id}/messages"
    key = new_id()

    answers = {
        "long": await ann.call("POST", path, {"client_message_id": key, "body": "x" * 4001}),
        "empty": await ann.call("POST", path, {"client_message_id": key, "body": ""}),
        "nul": await ann.call("POST", path, {"client_message_id": key, "body": "\0"}),
        "no id": await ann.call("POST", path, {"body": "x"}),
        "stranger": await stranger.call("POST", path, {"client_message_id": key, "body": "x"}),
        "reader": await stranger.call("GET", path),
        "limit": await ann.call("GET", f"{path}?limit=201"),
        "admin": await (await city.admin()).call("GET", path),
    }
    await ann.device.ask("session.end", session_id=booking.session_id)
    answers["over"] = await ann.call("POST", path, {"client_message_id": key, "body": "x"})

    assert {name: (answer.status, answer.code) for name, answer in answers.items()} == {
        "long": (400, "too_long"),
        "empty": (400, "bad_request"),
        "nul": (400, "bad_request"),
        "no id": (400, "bad_request"),
        "stranger": (404, "not_found"),
        "reader": (404, "not_found"),
        "limit": (400, "bad_request"),
        "admin": (403, "forbidden"),
        "over": (409, "session_ended"),
    }
    assert (await ann.call("GET", path))["messages"] == []


@pytest.fixture
def two_workers(build_town: BuildTown) -> Iterator[Town]:
    """Its minutes are short enough to see the end."""
    with build_town(workers=2, plan_minute_seconds=0.6, warning_seconds=2.0) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


async def test_a_talk_goes_on_and_ends_in_time_though_a_worker_is_killed_in_it(
    two_workers: Town,
) -> None:
    async with visiting(two_workers) as city:
        living, dying = sorted(city.town.nodes())
        ann, max_ = await city.customer(online=False), await city.mechanic(online=False)
        await ann.connect_to(living)
        await max_.connect_to(dying)
        booking = await in_session(city, ann, max_)
        for n in range(5):
            await say(max_.device, booking, f"before {n}")
        unanswered = new_id()
        await max_.device.send(
            "chat.send", session_id=booking.session_id, client_message_id=unanswered, body="cut"
        )
        os.kill(city.town.nodes()[dying]["pid"], signal.SIGKILL)
        await max_.device.closed()

        await _reconnect(max_, living)
        again = await say(max_.device, booking, "cut", unanswered)
        await say(ann.device, booking, "still here")
        wanted = [*((n + 1, f"before {n}") for n in range(5)), (6, "cut"), (7, "still here")]
        await ann.device.expect("chat.message", seq=7)
        history = await max_.device.ask("chat.history", session_id=booking.session_id)
        warned = await ann.device.expect("session.warning")
        for person in (ann, max_):
            await person.device.expect("session.status", status="completed")

        assert again["seq"] == 6
        assert heard(ann.device) == wanted
        assert [(m["seq"], m["body"]) for m in history["messages"]] == wanted
        assert len(ann.device.got("session.warning")) == 1
        assert warned["session_id"] == booking.session_id


async def _reconnect(person: Person, node_id: str) -> None:
    async def connected() -> bool:
        await person.connect_to(node_id)
        return True

    await eventually(connected)
