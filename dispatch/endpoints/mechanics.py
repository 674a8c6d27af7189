"""What a mechanic asks about herself."""

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from dispatch.core.types import Role
from dispatch.endpoints.area import Area, Path
from dispatch.errors import RateLimited
from dispatch.exchange import ok
from dispatch.node import Node
from dispatch.ratelimit import KeyedRate
from dispatch.why_no_offers import why_no_offers

WHY_PER_MINUTE: Final = 20  # each costs Postgres up to 20 ms


class Mechanics(Area):
    """For mechanics, about themselves."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._why_rate = KeyedRate(WHY_PER_MINUTE / 60, burst=WHY_PER_MINUTE)

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [("GET", "/api/mechanic/why-no-offers", self.why_no_offers)]

    async def why_no_offers(self, request: Request) -> Response:
        """What keeps her from offers, what is open, and what she was offered of late (R9)."""
        caller = await self.caller(request, Role.MECHANIC)
        if not self._why_rate.take(caller.user_id, time.monotonic()):
            raise RateLimited("asked too often; try again in a few seconds")
        node = self.node
        answer = await why_no_offers(
            node.store,
            node.presence,
            node.board,
            caller.user_id,
            capacity=node.config.mechanic_capacity,
            now=node.clock.now(),
        )
        return ok(answer)
