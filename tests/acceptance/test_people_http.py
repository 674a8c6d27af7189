"""People over HTTP, from outside: a workshop, its approval, an invite in a mail, a mechanic.

A live server of two workers, a mail server of the test's own, and nothing but their wires.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.acceptance.actors import Answer, Device, new_id
from tests.conftest import StartServer
from tests.integration.mail_server import Mailbox, mail_server
from tests.live_server import LiveServer
from tests.support import eventually

PASSWORD = "correct horse battery staple"
SECONDS = 5.0  # within which everything here must be felt on every node


@dataclass
class Town:
    """A running server and its visitors."""

    server: LiveServer
    http: aiohttp.ClientSession
    mailbox: Mailbox

    async def call(
        self, method: str, path: str, body: Any = None, token: str = "", **headers: str
    ) -> Answer:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = self.server.url + path
        async with self.http.request(method, url, json=body, headers=headers) as response:
            told = {name.lower(): value for name, value in response.headers.items()}
            text = await response.text()
            is_json = told.get("content-type", "").startswith("application/json")
            return Answer(response.status, told, json.loads(text) if is_json else text)

    async def sign_up(self, kind: str, email: str, **more: Any) -> Answer:
        form = {"name": email.partition("@")[0].title(), "email": email, "password": PASSWORD}
        answer = await self.call("POST", f"/api/{kind}", form | more)
        assert answer.status == 201, answer
        assert set(answer.body) >= {"ok", "token", "role", "user_id"}
        return answer

    async def admin(self) -> str:
        """An admin's token."""
        email = f"{new_id()}@dispatch.example"
        await asyncio.to_thread(self.server.cli, "create-admin", "--email", email)
        body = {"email": email, "password": PASSWORD}
        return str((await self.call("POST", "/api/auth/login", body))["token"])

    async def device(self, who: str, token: str, node_id: str | None = None) -> Device:
        """A welcomed socket, on that node where one is named."""
        for _ in range(100):
            device = await Device.dial(self.server.ws_url, who, token)
            await device.expect("welcome")
            if node_id in (None, device.welcome["node_id"]):
                return device
            await device.close()
        raise AssertionError(f"no connection reaches {node_id}")

    async def nodes(self) -> list[str]:
        """The ids of its two nodes."""

        async def both() -> list[str] | None:
            found = json.loads(await asyncio.to_thread(self.server.cli, "nodes", "--json"))
            return [node["node_id"] for node in found] if len(found) == 2 else None

        return await eventually(both)

    async def invited(self, member: str, email: str) -> str:
        """The token in the mail that an invite of this address brings."""
        before = len(self.mailbox.mails)
        body = {"email": email, "name": "Maya"}
        answer = await self.call("POST", "/api/workshop/invites", body, member)
        assert answer.status == 201, answer
        assert set(answer.body) == {"ok", "invite_id", "email", "expires_at"}
        await eventually(lambda: len(self.mailbox.mails) > before)
        (link,) = re.findall(r"^http.*$", self.mailbox.mails[-1].get_content(), re.MULTILINE)
        assert link.strip().startswith(f"{self.server.url}/join?token=")
        return str(link.strip().rpartition("=")[2])


@pytest.fixture
async def town(server: StartServer) -> AsyncIterator[Town]:
    async with mail_server() as mailbox, aiohttp.ClientSession() as http:
        running = await asyncio.to_thread(
            server,
            "--workers",
            2,
            SMTP_URL=f"smtp://127.0.0.1:{mailbox.port}?from=hello@dispatch.example",
            DISPATCH_ADMIN_PASSWORD=PASSWORD,
            DISPATCH_TRUSTED_PROXIES="127.0.0.1",
        )
        yield Town(running, http, mailbox)


async def approved_workshop(town: Town, admin: str) -> tuple[str, str]:
    """Its id, and its member's token."""
    new = await town.sign_up(
        "workshop/signup", f"{new_id()}@garage.example", workshop_name="Harbour Motors"
    )
    path = f"/api/admin/workshops/{new['workshop_id']}/approve"
    assert (await town.call("POST", path, token=admin)).status == 200
    return new["workshop_id"], new["token"]


async def test_from_a_workshops_sign_up_to_its_invited_mechanics_first_booking(town: Town) -> None:
    one, other = await town.nodes()
    admin = await town.admin()
    new = await town.sign_up("workshop/signup", "olu@garage.example", workshop_name="Harbour")
    assert new["role"] == "workshop"
    body = {"email": "maya@mechanics.example"}
    early = await town.call("POST", "/api/workshop/invites", body, new["token"])
    assert (early.status, early.code) == (409, "workshop_not_active")
    path = f"/api/admin/workshops/{new['workshop_id']}/approve"
    approved = await town.call("POST", path, token=admin)
    assert (approved.status, approved["workshop_status"]) == (200, "active")

    token = await town.invited(new["token"], "maya@mechanics.example")
    page = await town.call("GET", f"/join?token={token}")
    assert page.status == 200
    assert "Harbour invites you" in page.body
    assert token not in page.body
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    maya = await town.sign_up("mechanic/workshop-signup", "maya@mechanics.example", token=token)
    assert maya["role"] == "mechanic"

    ann = await town.sign_up("customer/signup", "ann@drivers.example")
    device = await town.device("Maya", maya["token"], other)
    customer = await town.device("Ann", ann["token"], one)
    wish = {"plan": "free", "routing_type": "workshop_only", "workshop_id": new["workshop_id"]}
    booked = await town.call("POST", "/api/intake/start", wish, ann["token"])
    assert booked.status == 201, booked
    card = await device.card(booked["request_id"])
    verdict = await device.ask("offer.accept", offer_id=card["offer_id"], accept_id=new_id())
    assert verdict["type"] == "offer.won"
    await customer.expect("request.status", request_id=booked["request_id"], status="accepted")
    panel = await town.call("GET", "/api/workshop/mechanics", token=new["token"])
    (colleague,) = panel["mechanics"]
    assert (colleague["name"], colleague["live_sessions"]) == ("Maya", 1)
    assert panel["invites"] == []
    for each in (device, customer):
        await each.close()
        assert each.wrong == []


async def test_an_invite_is_used_once_by_whoever_was_invited_and_no_log_has_it(town: Town) -> None:
    admin = await town.admin()
    _, member = await approved_workshop(town, admin)
    old = await town.invited(member, "maya@mechanics.example")
    token = await town.invited(member, "maya@mechanics.example")
    form = {"name": "Maya", "email": "maya@mechanics.example", "password": PASSWORD}
    path = "/api/mechanic/workshop-signup"

    eve = await town.call("POST", path, form | {"token": token, "email": "eve@evil.example"})
    assert (eve.status, eve.code) == (400, "bad_request")
    assert "maya" not in eve.body["error"]["message"]
    void = await town.call("POST", path, form | {"token": old})
    junk = await town.call("POST", path, form | {"token": "x" * 43})
    assert void.body == junk.body
    assert (void.status, void.code) == (404, "not_found")
    assert "is over" in (await town.call("GET", f"/join?token={old}")).body

    tries = (town.call("POST", path, form | {"token": token}) for _ in range(6))
    answers = await asyncio.gather(*tries)

    assert sorted(answer.status for answer in answers) == [201, 404, 404, 404, 404, 404]
    assert "is over" in (await town.call("GET", f"/join?token={token}")).body
    log = town.server.log.read_text()
    assert token not in log
    assert old not in log
    assert PASSWORD not in log


async def test_another_workshop_neither_sees_nor_withdraws_an_invite(town: Town) -> None:
    admin = await town.admin()
    (_, member), (_, stranger) = [await approved_workshop(town, admin) for _ in range(2)]
    token = await town.invited(member, "maya@mechanics.example")
    (invite,) = (await town.call("GET", "/api/workshop/mechanics", token=member))["invites"]
    path = f"/api/workshop/invites/{invite['invite_id']}"

    theirs = await town.call("DELETE", path, token=stranger)
    unknown = await town.call("DELETE", f"/api/workshop/invites/{new_id()}", token=stranger)

    assert theirs.body == unknown.body
    assert theirs.status == 404
    assert (await town.call("GET", "/api/workshop/mechanics", token=stranger))["invites"] == []
    assert (await town.call("DELETE", path, token=member)).status == 200
    form = {"name": "Maya", "email": "maya@mechanics.example", "password": PASSWORD}
    answer = await town.call("POST", "/api/mechanic/workshop-signup", form | {"token": token})
    assert answer.status == 404


async def test_an_independent_mechanic_works_from_the_moment_of_her_approval_until_its_end(
    town: Town,
) -> None:
    one, other = await town.nodes()
    admin = await town.admin()
    maya = await town.sign_up("mechanic/signup", "maya@mechanics.example")
    ann = await town.sign_up("customer/signup", "ann@drivers.example")
    devices = [await town.device("Maya", maya["token"], node) for node in (one, other)]
    booked = await town.call("POST", "/api/intake/start", {"plan": "free"}, ann["token"])
    for device in devices:
        await device.fence()
        assert device.cards(booked["request_id"]) == []
    path = "/api/admin/mechanics"
    waiting = await town.call("GET", f"{path}?status=pending", token=admin)
    assert [each["mechanic_id"] for each in waiting["mechanics"]] == [maya["user_id"]]

    began = time.monotonic()
    answer = await town.call("POST", f"{path}/{maya['user_id']}/approve", token=admin)
    assert (answer.status, answer["application_status"]) == (200, "approved")
    for device in devices:
        await device.card(booked["request_id"])
    assert time.monotonic() - began < SECONDS

    began = time.monotonic()
    answer = await town.call("POST", f"{path}/{maya['user_id']}/deactivate", token=admin)
    assert (answer.status, answer["deactivated"]) == (200, True)
    assert [await device.closed() for device in devices] == [4401, 4401]
    assert time.monotonic() - began < SECONDS
    refused = await Device.dial(town.server.ws_url, "Maya", maya["token"])
    assert await refused.closed() == 4401
    log_in = {"email": "maya@mechanics.example", "password": PASSWORD}
    assert (await town.call("POST", "/api/auth/login", log_in)).status == 401
    unknown = await town.call(
        "POST", "/api/auth/login", log_in | {"email": "nobody@mechanics.example"}
    )
    assert unknown.body == (await town.call("POST", "/api/auth/login", log_in)).body


async def test_sign_ups_and_log_ins_of_one_address_are_limited_and_others_are_not(
    town: Town,
) -> None:
    async def attempt(path: str, address: str, number: int) -> int:
        form = {"name": "Bob", "email": f"bob{number}", "password": PASSWORD}  # is no address
        if path.endswith("login"):
            form = {"email": f"bob{number}@drivers.example", "password": "a guess"}
        headers = {"X-Forwarded-For": address}
        return (await town.call("POST", path, form, **headers)).status

    # Each of two nodes counts for itself: 4 times 5 sign-ups, 20 times 5 log-ins.
    for path, enough in (("/api/mechanic/signup", 41), ("/api/auth/login", 201)):
        statuses = [await attempt(path, "203.0.113.7", number) for number in range(enough)]
        assert 429 in statuses
        assert await attempt(path, "203.0.113.8", 999) in (400, 401)


async def test_in_the_embedded_mode_mails_are_kept_in_files(
    server: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    running = await asyncio.to_thread(
        server, "--embedded", folder, DISPATCH_ADMIN_PASSWORD=PASSWORD
    )
    async with aiohttp.ClientSession() as http:
        town = Town(running, http, Mailbox())
        _, member = await approved_workshop(town, await town.admin())
        body = {"email": "maya@mechanics.example"}
        assert (await town.call("POST", "/api/workshop/invites", body, member)).status == 201
        mails = folder / "mails"
        (path,) = await eventually(lambda: list(mails.glob("*.eml")))

    assert (path.stat().st_mode & 0o777, mails.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "/join?token=" in path.read_text()
    log = running.log.read_text()
    assert f"a mail to maya@mechanics.example is kept in {path}" in log
    assert "/join?token=" not in log
