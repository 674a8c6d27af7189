"""One message to one device: what a push service is sent, and what its answers mean."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import uuid4

import pytest
from msgspec.structs import replace

from dispatch import push_client
from dispatch.errors import Unavailable
from dispatch.push_client import SILENT_TIMES, Answer, Device, Message, WebPush
from dispatch.push_guard import look_up
from tests.integration import push_service
from tests.integration.push_service import SUBJECT, Browser, PushService
from tests.integration.stripe_servers import free_socket

MESSAGE = Message(body=b'{"type":"offer"}', ttl_seconds=90, topic="a-topic")


@pytest.fixture
async def service() -> AsyncIterator[PushService]:
    async with push_service.push_service() as service:
        yield service


@pytest.fixture
async def web_push(service: PushService) -> AsyncIterator[WebPush]:
    web_push = WebPush(service.private_key, SUBJECT, (service.url,))
    yield web_push
    await web_push.close()


def device_of(browser: Browser) -> Device:
    keys = browser.form()["keys"]
    return Device(uuid4(), browser.endpoint, keys["p256dh"], keys["auth"])


async def test_a_message_comes_as_the_rfcs_want_it(service: PushService, web_push: WebPush) -> None:
    browser = service.browser()

    answer = await web_push.send(device_of(browser), MESSAGE)

    (delivered,) = browser.got
    assert answer == Answer("delivered", "127.0.0.1 answers 201")
    assert service.complaints == []
    assert delivered.message == {"type": "offer"}
    told = delivered.headers
    assert (told["ttl"], told["topic"], told["urgency"]) == ("90", "a-topic", "high")
    assert told["content-encoding"] == "aes128gcm"
    assert told["content-type"] == "application/octet-stream"
    assert "cookie" not in told
    assert "crypto-key" not in told


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (200, "delivered"),
        (201, "delivered"),
        (202, "delivered"),
        (301, "refused"),
        (307, "refused"),
        (400, "refused"),
        (401, "refused"),
        (403, "refused"),
        (404, "gone"),
        (406, "later"),
        (410, "gone"),
        (413, "refused"),
        (429, "later"),
        (500, "later"),
        (503, "later"),
    ],
)
async def test_every_status_has_one_meaning(
    service: PushService, web_push: WebPush, status: int, fate: str
) -> None:
    browser = service.browser()
    headers = {"Location": f"{service.url}/elsewhere", "Retry-After": "7"}
    browser.answers.append(push_service.Answer(status, headers))

    answer = await web_push.send(device_of(browser), MESSAGE)

    assert (answer.fate, answer.why) == (fate, f"127.0.0.1 answers {status}")
    assert answer.retry_after_seconds == (7 if fate == "later" else 0)
    assert (browser.tries, service.complaints) == (1, [])


async def test_a_service_that_hangs_is_left(
    service: PushService, web_push: WebPush, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_client, "SEND_SECONDS", 0.3)
    browser = service.browser()
    browser.answers.append(push_service.Answer(hangs=True))

    answer = await web_push.send(device_of(browser), MESSAGE)

    assert answer.fate == "later"
    assert browser.tries == 1


async def test_an_answer_without_end_is_not_read(service: PushService, web_push: WebPush) -> None:
    browser = service.browser()
    browser.answers.append(push_service.Answer(endless=True))

    answer = await web_push.send(device_of(browser), MESSAGE)

    assert answer.fate == "delivered"


async def test_where_nobody_listens_it_is_tried_again(service: PushService) -> None:
    with free_socket() as silent:
        origin = "http://{}:{}".format(*silent.getsockname())
        web_push = WebPush(service.private_key, SUBJECT, (origin,))
        device = device_of(Browser(f"{origin}/secret", ""))

        answer = await web_push.send(device, MESSAGE)
        await web_push.close()

    assert answer == Answer("later", "127.0.0.1 does not answer (ClientConnectorError)")


async def test_a_key_that_browsers_did_not_subscribe_with_is_refused(
    service: PushService, web_push: WebPush
) -> None:
    browser = service.browser(application_server_key="another")

    answer = await web_push.send(device_of(browser), MESSAGE)

    assert answer == Answer("refused", "127.0.0.1 answers 403")
    assert service.complaints == [
        "not the key that the browser subscribed with (RFC 8292, 4.2)",
    ]


async def test_where_it_may_not_go_any_more_it_does_not_go(service: PushService) -> None:
    """The endpoint was saved while its origin was trusted, or its name meant somebody else."""
    found = [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], []]

    async def answer(host: str, port: int) -> list[str]:
        return found.pop(0)

    browser = service.browser()
    web_push = WebPush(service.private_key, SUBJECT, (), answer)

    answers = {await web_push.send(device_of(browser), MESSAGE)}
    while found:
        device = device_of(Browser("https://push.example/secret", ""))
        answers.add(await web_push.send(device, MESSAGE))
    await web_push.close()

    assert answers == {
        Answer("refused", "endpoint: must be https on port 443"),
        Answer("refused", "endpoint: its host is not a public one"),
    }
    assert browser.tries == 0


async def test_while_names_cannot_be_looked_up_it_is_tried_again(service: PushService) -> None:
    async def fail(host: str, port: int) -> list[str]:
        raise Unavailable("names cannot be looked up now, try again")

    web_push = WebPush(service.private_key, SUBJECT, (), fail)

    answer = await web_push.send(device_of(Browser("https://push.example/secret", "")), MESSAGE)
    await web_push.close()

    assert answer == Answer("later", "names cannot be looked up now, try again")


async def test_nothing_of_a_subscription_is_logged(
    service: PushService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    web_push = WebPush(service.private_key, SUBJECT, (service.url,))
    browser = service.browser()
    browser.answers.extend([500, 403, 410, 201])

    for _ in range(4):
        await web_push.send(device_of(browser), MESSAGE)
    await web_push.close()

    ours = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("uvicorn"))
    keys = browser.form()["keys"]
    for secret in (browser.endpoint, keys["p256dh"], keys["auth"], service.private_key, "vapid t="):
        assert secret not in ours


async def test_the_system_finds_the_addresses_of_a_name() -> None:
    assert "127.0.0.1" in await look_up("localhost", 443)


async def test_interim_answers_without_end_are_hung_up_on_and_hold_up_nobody(
    service: PushService, web_push: WebPush
) -> None:
    browser = service.browser()
    hung_up = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
                await writer.drain()
        hung_up.set()

    async with await asyncio.start_server(endless, "127.0.0.1", 0) as server:
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ours = WebPush(service.private_key, SUBJECT, (origin,))
        device = replace(device_of(browser), endpoint=f"{origin}/x")

        answer = await ours.send(device, MESSAGE)

        await hung_up.wait()
        await ours.close()
    assert answer.fate == "later"


async def test_a_service_that_is_silent_is_left_alone_for_a_while_and_no_other_is(
    service: PushService, web_push: WebPush, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatch.push_client.SEND_SECONDS", 0.05)
    silent, fine = service.browser(), service.browser()
    ours = WebPush(service.private_key, SUBJECT, (service.url,))
    silent.answers.extend([push_service.Answer(hangs=True)] * (SILENT_TIMES + 1))

    answers = [await ours.send(device_of(silent), MESSAGE) for _ in range(SILENT_TIMES + 1)]

    assert {answer.fate for answer in answers} == {"later"}
    assert silent.tries == SILENT_TIMES
    assert answers[-1].retry_after_seconds > 0
    ours._silent.clear()
    assert (await ours.send(device_of(fine), MESSAGE)).fate == "delivered"
    assert ours._silent == {}
    service.ended.set()
    await ours.close()
