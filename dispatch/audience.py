"""How many mechanics a booking has reached, and how many are there to be reached.

One job: add up what the nodes say of themselves, so that a customer reads "4 notified, 7 online".
Counts inform, they decide nothing. No I/O; imports `core` and `hints`. Time is passed in
(monotonic seconds).
"""

from collections import Counter
from typing import Final
from uuid import UUID

from dispatch.core.types import Booking, Routing
from dispatch.hints import Reach, Roster

ROSTER_SECONDS: Final = 15.0  # a roster that is not repeated within this is forgotten


class Audience:
    """The counts of all nodes, as this one has heard them."""

    def __init__(self, node_id: UUID) -> None:
        self._node_id = node_id
        self._asked: dict[UUID, dict[UUID, tuple[int, int]]] = {}
        self._rosters: dict[UUID, tuple[float, Roster]] = {}

    def asked_here(self, booking: Booking, more: int) -> Reach:
        """Counts mechanics whom this node just asked in the present round; what to tell others."""
        generation, count = self._asked.get(booking.request_id, {}).get(self._node_id, (0, 0))
        if generation != booking.generation:
            count = 0
        reach = Reach(self._node_id, booking.request_id, booking.generation, count + more)
        self.hear_reach(reach)
        return reach

    def hear_reach(self, reach: Reach) -> None:
        """Takes one node's count for one round."""
        nodes = self._asked.setdefault(reach.request_id, {})
        nodes[reach.node_id] = (reach.generation, reach.asked)

    def hear_roster(self, roster: Roster, now: float) -> None:
        """Takes one node's roster."""
        self._rosters[roster.node_id] = (now, roster)

    def forget(self, request_id: UUID) -> None:
        """The booking is over."""
        self._asked.pop(request_id, None)

    def forget_silent_nodes(self, now: float) -> bool:
        """Drops rosters of nodes that have said nothing for a while; whether there were any."""
        silent = [key for key, (at, _) in self._rosters.items() if now - at > ROSTER_SECONDS]
        for node_id in silent:
            del self._rosters[node_id]
        return bool(silent)

    def notified(self, booking: Booking) -> int:
        """Mechanics asked in the booking's present round, on all nodes."""
        nodes = self._asked.get(booking.request_id, {})
        return sum(
            count for generation, count in nodes.values() if generation == booking.generation
        )

    def online(self, booking: Booking) -> int:
        """Ready mechanics online anywhere who could serve the booking in its widest stage."""
        total = 0
        for _, roster in self._rosters.values():
            for workshop_id, is_specialist, count in roster.ready:
                if booking.is_specialist and not is_specialist:
                    continue
                other = workshop_id != booking.preferred_workshop_id
                if booking.routing is Routing.WORKSHOP_ONLY and other:
                    continue
                total += count
        return total

    def roster(self, ready: Counter[tuple[UUID | None, bool]]) -> Roster:
        """This node's own roster, from its hub's count of who is ready."""
        groups = sorted(ready.items(), key=lambda item: (str(item[0][0]), item[0][1]))
        return Roster(
            self._node_id,
            tuple((*group, count) for group, count in groups if count),
        )
