"""Postgres dies and comes back under load: clean errors, and nothing announced that is not kept."""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from dispatch.embedded import Running
from tests.acceptance.actors import City, Customer, Mechanic, Town, new_id, visiting
from tests.acceptance.conftest import STEADY_SECONDS
from tests.acceptance.shapes import Frame
from tests.chaos.persistent import accept, call, come_back
from tests.live_server import LiveServer
from tests.support import eventually, eventually_blocking

BOOKINGS = 4


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """On embedded servers of its own, which start again what dies."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DISPATCH_PORT": "0",
        **{f"DISPATCH_{name.upper()}": str(value) for name, value in STEADY_SECONDS.items()},
    }
    data = str(tmp_path / "data")
    arguments = ("--embedded", data, "--workers", "2")
    with LiveServer.start(tmp_path, environ, *arguments) as server:
        people = json.loads(server.cli("seed-demo"))
        town = Town(lambda: server, people, {}, "")
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


@pytest.fixture
async def city(town: Town) -> AsyncIterator[City]:
    async with visiting(town) as city:
        yield city


class Outage:
    """Kills Postgres, and knows what `readyz` said until it was whole again."""

    def __init__(self, city: City, folder: Path) -> None:
        self._city = city
        self._running = folder / "data" / "embedded.json"

    async def strike(self) -> list[int]:
        """The statuses of `readyz` from the blow until it answers 200 again."""
        running = msgspec.json.decode(self._running.read_bytes(), type=Running)
        statuses: list[int] = []

        async def seen(status: int) -> bool:
            ready = await self._city.call("GET", "/readyz")
            statuses.append(ready.status)
            return ready.status == status

        os.kill(running.postgres_pid, signal.SIGKILL)
        await eventually(lambda: seen(503), 20)
        await eventually(lambda: seen(200), 30)
        return statuses


async def take_everything(mechanic: Mechanic, wins: list[Frame]) -> None:
    """Accepts whatever card she sees, as often as it takes to hear the verdict."""
    decided: set[str] = set()
    while True:
        shown = mechanic.device.snapshot["offers"] + mechanic.device.got("offer")
        cards = [card for card in shown if card["offer_id"] not in decided]
        if not cards:
            if mechanic.device.socket.close_code is not None:
                await come_back(mechanic)
            await asyncio.sleep(0.01)
            continue
        verdict = await accept(mechanic, cards[0]["offer_id"], new_id())
        if verdict.get("reason") == "busy":  # She may have it when her own job is over.
            await asyncio.sleep(0.1)
            continue
        decided.add(cards[0]["offer_id"])
        if verdict["type"] == "offer.won":
            wins.append(verdict | {"mechanic_id": mechanic.id})


async def book_and_be_served(customer: Customer) -> Frame:
    """A free booking until it is accepted, and what was kept of it; ended afterwards."""
    started = await call(customer, "POST", "/api/intake/start", {"plan": "free"})
    assert started.status in (201, 409), started
    session_id = started.body.get("session_id") or started["activeSessionId"]

    async def announced() -> Frame | None:
        if customer.device.socket.close_code is not None:
            await come_back(customer)
        told = customer.device.snapshot["requests"] + customer.device.got("request.status")
        ours = [f for f in told if f["session_id"] == session_id]
        return next((f for f in ours if f["status"] == "accepted"), None)

    frame = await eventually(announced, 40)
    kept = await call(customer, "GET", f"/api/requests/{frame['request_id']}")
    assert (kept["status"], kept["mechanic"]) == ("accepted", frame["mechanic"])
    ended = await call(customer, "POST", f"/api/sessions/{session_id}/end")
    assert (ended.status, ended["status"]) == (200, "cancelled")
    read: Frame = kept.body
    return read


async def test_postgres_dies_twice_under_load(city: City, tmp_path: Path) -> None:
    customers = [await city.customer() for _ in range(4)]
    mechanics = await city.mechanics(3)
    wins: list[Frame] = []
    outage = Outage(city, tmp_path)
    workers = [asyncio.create_task(take_everything(m, wins)) for m in mechanics]

    async def book_often(customer: Customer) -> list[Frame]:
        return [await book_and_be_served(customer) for _ in range(BOOKINGS)]

    loads = [asyncio.create_task(book_often(customer)) for customer in customers]
    await eventually(lambda: wins)
    for _ in range(2):
        statuses = await outage.strike()
        assert set(statuses) == {200, 503}
    served = [kept for load in loads for kept in await load]
    for worker in workers:
        worker.cancel()

    assert len(served) == len({kept["request_id"] for kept in served}) == 4 * BOOKINGS
    told = Counter((win["request_id"], win["mechanic_id"]) for win in wins)
    assert told == Counter((kept["request_id"], kept["mechanic"]["id"]) for kept in served)
    assert [worker for worker in workers if worker.done() and worker.exception()] == []
