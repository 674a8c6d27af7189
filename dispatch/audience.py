"""How many mechanics a booking has reached, and how many are there to be reached.

One job: add up what the nodes say of themselves, so that a customer reads "4 notified, 7 online".
Counts inform, they decide nothing; whom this node itself has asked is exact and is kept as long as
the booking lives, so that its end finds everybody who holds a card. No I/O; imports `core`, `board`
and `hints`. Time is passed in (monotonic seconds).
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final
from uuid import UUID

from dispatch.board import bounded_put
from dispatch.core.types import Booking, Routing
from dispatch.hints import Reach, Roster

REMEMBERED: Final = 20_000  # bookings whose counts are kept after their end
NAMED: Final = 100  # beyond so many a node tells how many it asked, and no longer whom
ROSTER_SECONDS: Final = 15.0  # a roster that is not repeated within this is forgotten


class Audience:
    """The counts of all nodes, as this one has heard them."""

    def __init__(self, node_id: UUID) -> None:
        self._node_id = node_id
        self._asked_here: dict[UUID, tuple[int, set[UUID]]] = {}
        self._reaches: dict[UUID, dict[UUID, Reach]] = {}
        self._rosters: dict[UUID, tuple[float, Roster]] = {}

    def asked_here(self, booking: Booking, mechanic_ids: Iterable[UUID]) -> Reach | None:
        """This node asked these mechanics in the present round; what to tell others, if new.

        A mechanic counts once, however often she reconnects. One who is on several nodes counts
        once too while each of them has asked few; beyond that once a node.
        """
        generation, asked = self._asked_here.get(booking.request_id, (0, set()))
        if generation != booking.generation:
            asked = set()
        before = len(asked)
        asked.update(mechanic_ids)
        if len(asked) == before:
            return None
        self._asked_here[booking.request_id] = (booking.generation, asked)
        named = tuple(asked) if len(asked) <= NAMED else ()
        reach = Reach(self._node_id, booking.request_id, booking.generation, len(asked), named)
        self.hear_reach(reach)
        return reach

    def asked_by_us(self, booking: Booking) -> frozenset[UUID]:
        """Whom this node has asked in the booking's round."""
        generation, asked = self._asked_here.get(booking.request_id, (0, set()))
        return frozenset(asked) if generation == booking.generation else frozenset()

    def hear_reach(self, reach: Reach) -> None:
        """Takes one node's count for one round."""
        nodes = self._reaches.get(reach.request_id, {})
        nodes[reach.node_id] = reach
        bounded_put(self._reaches, reach.request_id, nodes, REMEMBERED)

    def hear_roster(self, roster: Roster, now: float) -> None:
        """Takes one node's roster."""
        self._rosters[roster.node_id] = (now, roster)

    def ended(self, request_id: UUID) -> None:
        """The booking is over: who was asked matters no more, how many is still shown."""
        self._asked_here.pop(request_id, None)

    def forget_silent_nodes(self, now: float) -> bool:
        """Drops rosters of nodes that have said nothing for a while; whether there were any."""
        silent = [key for key, (at, _) in self._rosters.items() if now - at > ROSTER_SECONDS]
        for node_id in silent:
            del self._rosters[node_id]
        return bool(silent)

    def notified(self, booking: Booking) -> int:
        """Mechanics asked in the booking's present round, on all nodes."""
        reaches = [
            reach
            for reach in self._reaches.get(booking.request_id, {}).values()
            if reach.generation == booking.generation
        ]
        if all(len(reach.mechanic_ids) == reach.asked for reach in reaches):
            return len(set().union(*(reach.mechanic_ids for reach in reaches)))
        return sum(reach.asked for reach in reaches)

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
