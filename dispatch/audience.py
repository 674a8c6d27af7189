"""How many mechanics a booking has reached, and how many are there to be reached.

One job: add up what the nodes say of themselves, so that a customer reads "4 notified, 7 online".
A mechanic with devices on several nodes counts once: each node tells by name those who are on
another one too (and everybody while they are few), and how many more there are.
Counts inform, they decide nothing. No I/O; imports `core`, `board` and `hints`. Time is passed in
(monotonic seconds).
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from itertools import takewhile
from typing import Final
from uuid import UUID

from msgspec import Struct, field

from dispatch.board import bounded_put
from dispatch.core.types import Booking, Candidate, Routing
from dispatch.hints import Reach, Roster

REMEMBERED: Final = 20_000  # bookings whose counts are kept after their end
NAMED: Final = 100  # beyond so many a node names only those who are on another node too
ROSTER_SECONDS: Final = 7.0  # a roster that is not repeated within this is forgotten


Group = tuple[UUID | None, bool]  # workshop, specialist


class _Asked(Struct):
    """Whom this node asked in one round, and the number of who had left last when it began."""

    generation: int
    since: int
    mechanic_ids: set[UUID] = field(default_factory=set)


class Audience:
    """The counts of all nodes, as this one has heard them."""

    def __init__(
        self, node_id: UUID, apart: dict[UUID, int], shared: AbstractSet[UUID] = frozenset()
    ) -> None:
        """`shared` always holds the mechanics here who have a device on another node too, `apart`
        those who have left, numbered, the latest last: another node may count them as well."""
        self._node_id = node_id
        self._apart = apart
        self._shared = shared
        self._asked_here: dict[UUID, _Asked] = {}
        self._reaches: dict[UUID, dict[UUID, Reach]] = {}
        self._rosters: dict[UUID, tuple[float, Roster]] = {}
        self._online: Counter[Group] = Counter()

    def asked_here(self, booking: Booking, mechanic_ids: Iterable[UUID]) -> Reach | None:
        """This node asked these mechanics in the present round; what to tell others, if new.

        A mechanic counts once, however often she reconnects and wherever else she is.
        """
        round_ = self._asked_here.get(booking.request_id)
        if round_ is None or round_.generation != booking.generation:
            latest = next(reversed(self._apart.values()), 0)
            round_ = self._asked_here[booking.request_id] = _Asked(booking.generation, latest)
        before = len(round_.mechanic_ids)
        round_.mechanic_ids.update(mechanic_ids)
        if len(round_.mechanic_ids) == before:
            return None
        return self._reach(booking.request_id)

    def _reach(self, request_id: UUID) -> Reach:
        """What this node says of a booking: who may be counted elsewhere too is named."""
        round_ = self._asked_here[request_id]
        asked = round_.mechanic_ids
        named = asked if len(asked) <= NAMED else asked & self._elsewhere(round_.since)
        left = len(asked) - len(named)
        reach = Reach(self._node_id, request_id, round_.generation, left, tuple(sorted(named)))
        self.hear_reach(reach)
        return reach

    def _elsewhere(self, since: int) -> set[UUID]:
        """Who may have been asked on another node too, in a round that began with this number."""
        left = takewhile(lambda item: item[1] > since, reversed(self._apart.items()))
        return {*self._shared, *(mechanic_id for mechanic_id, _ in left)}

    def reaches_here(self) -> list[Reach]:
        """What this node says of the bookings that live, as of now."""
        return [self._reach(request_id) for request_id in self._asked_here]

    def reaches_changed(self) -> list[Reach]:
        """Those that are not what it said last, because somebody left or came to another node."""
        before = {each: self._reaches[each].get(self._node_id) for each in self._asked_here}
        return [reach for reach in self.reaches_here() if reach != before[reach.request_id]]

    def hear_reach(self, reach: Reach) -> None:
        """Takes one node's count for one round."""
        nodes = self._reaches.get(reach.request_id, {})
        nodes[reach.node_id] = reach
        bounded_put(self._reaches, reach.request_id, nodes, REMEMBERED)

    def hear_roster(self, roster: Roster, now: float) -> None:
        """Takes one node's roster."""
        self._rosters[roster.node_id] = (now, roster)
        self._add_up()

    def ended(self, request_id: UUID) -> None:
        """The booking is over: who was asked matters no more, how many is still shown."""
        self._asked_here.pop(request_id, None)

    def forget_silent_nodes(self, now: float) -> bool:
        """Drops rosters of nodes that have said nothing for a while; whether there were any."""
        silent = [key for key, (at, _) in self._rosters.items() if now - at > ROSTER_SECONDS]
        for node_id in silent:
            del self._rosters[node_id]
        if silent:
            self._add_up()
        return bool(silent)

    def _add_up(self) -> None:
        """Who is named counts once, whoever names her."""
        rosters = [roster for _, roster in self._rosters.values()]
        named = {row[0]: (row[1], row[2]) for roster in rosters for row in roster.named}
        self._online = Counter(named.values())
        for roster in rosters:
            for workshop_id, is_specialist, count in roster.ready:
                self._online[workshop_id, is_specialist] += count

    def notified(self, booking: Booking) -> int:
        """Mechanics asked in the booking's present round, on all nodes."""
        reaches = [
            reach
            for reach in self._reaches.get(booking.request_id, {}).values()
            if reach.generation == booking.generation
        ]
        named = set().union(*(reach.mechanic_ids for reach in reaches))
        return len(named) + sum(reach.asked for reach in reaches)

    def online(self, booking: Booking) -> int:
        """Ready mechanics online anywhere who could serve the booking in its widest stage."""
        total = 0
        for (workshop_id, is_specialist), count in self._online.items():
            if booking.is_specialist and not is_specialist:
                continue
            other = workshop_id != booking.preferred_workshop_id
            if booking.routing is Routing.WORKSHOP_ONLY and other:
                continue
            total += count
        return total

    def roster(self, ready: Counter[Group], candidates: Iterable[Candidate]) -> Roster:
        """This node's own roster: its hub's count of who is ready, these of them by name."""
        unnamed = ready.copy()
        named = []
        for each in candidates:
            if each.approved and each.available:
                unnamed[each.workshop_id, each.is_specialist] -= 1
                named.append((each.mechanic_id, each.workshop_id, each.is_specialist))
        groups = sorted(unnamed.items(), key=lambda item: (str(item[0][0]), item[0][1]))
        return Roster(
            self._node_id,
            tuple((*group, count) for group, count in groups if count),
            tuple(named),
        )
