"""What a mechanic asks about herself."""

import time
from typing import Final

from dispatch import overviews
from dispatch.endpoints.area import MECHANIC, Area, Asked, Path
from dispatch.errors import RateLimited
from dispatch.exchange import Page
from dispatch.node import Node
from dispatch.overviews import MechanicSessions
from dispatch.ratelimit import KeyedRate
from dispatch.why_no_offers import Answer, why_no_offers

WHY_PER_MINUTE: Final = 20  # each costs Postgres up to 20 ms


class Mechanics(Area):
    """For mechanics, about themselves."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._why_rate = KeyedRate(WHY_PER_MINUTE / 60, burst=WHY_PER_MINUTE)

    def paths(self) -> list[Path]:
        """Every path of the area."""
        return [
            Path(
                "GET",
                "/api/mechanic/sessions",
                self.sessions,
                roles=MECHANIC,
                query=Page,
                answer=MechanicSessions,
                errors=("not_found",),
            ),
            Path(
                "GET",
                "/api/mechanic/why-no-offers",
                self.why_no_offers,
                roles=MECHANIC,
                answer=Answer,
                errors=("not_found", "rate_limited"),
            ),
        ]

    async def sessions(self, asked: Asked) -> MechanicSessions:
        """The caller's live sessions, and a page of what she may take now, as offers are ranked."""
        node, part = self.node, asked.query
        return await overviews.of_mechanic(
            node.store,
            node.board,
            asked.caller.user_id,
            node.clock.now(),
            capacity=node.config.mechanic_capacity,
            limit=part.limit,
            offset=part.offset,
        )

    async def why_no_offers(self, asked: Asked) -> Answer:
        """What keeps her from offers, what is open, and what she was offered of late (R9)."""
        caller = asked.caller
        if not self._why_rate.take(caller.user_id, time.monotonic()):
            raise RateLimited("asked too often; try again in a few seconds")
        node = self.node
        return await why_no_offers(
            node.store,
            node.presence,
            node.board,
            caller.user_id,
            capacity=node.config.mechanic_capacity,
            now=node.clock.now(),
        )
