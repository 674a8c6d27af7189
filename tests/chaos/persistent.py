"""People who do not give up: they come back after a loss and ask again what was not answered."""

import asyncio
from typing import Any

import aiohttp
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from tests.acceptance.actors import Answer, Mechanic, Person
from tests.acceptance.shapes import Frame

LIMIT_SECONDS = 30.0
_PAUSE_SECONDS = 0.05
_AWAY = (OSError, ConnectionClosed, InvalidMessage, InvalidStatus, AssertionError)


async def come_back(person: Person, **options: Any) -> None:
    """A new device as soon as the server takes one."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            try:
                await person.connect(**options)
            except _AWAY:
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return


async def accept(mechanic: Mechanic, offer_id: str, accept_id: str) -> Frame:
    """The verdict: the same `accept_id` goes out again after every error and every loss."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            try:
                verdict = await mechanic.accept({"offer_id": offer_id}, accept_id)
            except (ConnectionClosed, AssertionError):
                await come_back(mechanic)
                continue
            if verdict["type"] != "error":
                return verdict
            assert verdict["code"] in ("unavailable_now", "rate_limited"), verdict
            await asyncio.sleep(_PAUSE_SECONDS)


async def call(person: Person, method: str, path: str, body: Any = None) -> Answer:
    """The first answer that is not 503, which every answer until then was."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            try:
                answer = await person.call(method, path, body)
            except aiohttp.ClientError:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if answer.status < 500:
                return answer
            assert answer.status == 503, answer
            assert answer.code == "unavailable_now", answer
            await asyncio.sleep(_PAUSE_SECONDS)
