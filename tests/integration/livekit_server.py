"""A stand-in for LiveKit: rooms that people enter with a token, and the Twirp call that closes one.

By the published shapes of LiveKit's access tokens and of its room service; it verifies both, as the
real one does with its own library.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
from aiohttp import web

API_KEY = "APItests"
API_SECRET = "a-livekit-secret-that-only-tests-know-01"


@dataclass
class LiveKit:
    """`rooms`: who is in them; `closed`: what was closed, in order; `refuse`: statuses to give."""

    url: str = ""
    rooms: dict[str, set[str]] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    refuse: list[int] = field(default_factory=list)
    calls: int = 0

    def enter(self, token: str, room: str, at: float) -> str:
        """Somebody connects at this time (Unix seconds); her name. Raises jwt's errors."""
        claims = self._claims(token, at)
        grant = claims["video"]
        assert grant["roomJoin"] is True
        assert grant["room"] == room, "the token is for another room"
        self.rooms.setdefault(room, set()).add(claims["sub"])
        return str(claims["name"])

    def _claims(self, token: str, at: float | None = None) -> dict[str, Any]:
        options: Any = {"require": ["exp", "iss"], "verify_exp": False, "verify_nbf": False}
        claims: dict[str, Any] = jwt.decode(
            token, API_SECRET, algorithms=["HS256"], issuer=API_KEY, options=options
        )
        if at is not None and not claims.get("nbf", 0) <= at < claims["exp"]:
            raise jwt.ExpiredSignatureError
        return claims

    async def delete_room(self, request: web.Request) -> web.Response:
        """`livekit.RoomService/DeleteRoom`: needs the grant roomCreate."""
        self.calls += 1
        if self.refuse:
            return web.json_response({"code": "unavailable"}, status=self.refuse.pop(0))
        kind, _, token = request.headers["authorization"].partition(" ")
        claims = self._claims(token)
        if kind != "Bearer" or not claims["video"].get("roomCreate"):
            return web.json_response({"code": "permission_denied"}, status=403)
        assert request.content_type == "application/json"
        asked = await request.json()
        assert set(asked) == {"room"}
        self.closed.append(asked["room"])
        if self.rooms.pop(asked["room"], None) is None:
            return web.json_response({"code": "not_found", "msg": "no such room"}, status=404)
        return web.json_response({})


@asynccontextmanager
async def livekit() -> AsyncIterator[LiveKit]:
    """Serves inside the block."""
    server = LiveKit()
    app = web.Application()
    app.router.add_post("/twirp/livekit.RoomService/DeleteRoom", server.delete_room)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"ws://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
