"""What goes to many mechanics of this node: a booking's card, and that it is taken back.

One job: say to whom, in which parts, and what one part is sent. The parts are the hub's groups, so
that what is under way to the same people meets on the `Carousel`. Nothing is awaited. Imports
`core`, `hub` and nothing else of ours.
"""

import random
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple
from uuid import UUID

from dispatch.core import routing
from dispatch.hub import Card, Group, Letter, OnlineMechanic


class Part(NamedTuple):
    """Mechanics of one group who are offered a booking on the same terms."""

    group: Group
    terms: routing.Terms
    members: list[OnlineMechanic]


class Offering:
    """A card on its way to everybody here who may have it.

    Whoever is shown it by another way meanwhile, or may not have it any more, is passed by. `asked`
    are those who are written to.
    """

    def __init__(
        self,
        card: Card,
        parts: Sequence[Part],
        *,
        prepare: Callable[[routing.Terms], bytes],
        asked: Callable[[list[UUID], int], None],
        arrived: Callable[[list[UUID], list[UUID]], None],
    ) -> None:
        """`prepare` makes the bytes for all with the same terms; `asked` is told who was written
        to, with which score, after each part, and `arrived` at the end who was in all, and who was
        not reached."""
        self.card = card
        self.ahead: dict[Hashable, Part] = in_turn(parts)
        self._prepare = prepare
        self._prepared: dict[routing.Terms, bytes] = {}
        self._asked = asked
        self._arrived = arrived
        self._all_asked: list[UUID] = []
        self._passed_by: set[OnlineMechanic] = set()

    def pass_by(self, mechanic: OnlineMechanic) -> None:
        """She is not offered it by this ride."""
        self._passed_by.add(mechanic)

    def __len__(self) -> int:
        return sum(len(part.members) for part in self.ahead.values())

    def visit(self, part: Part) -> Letter:
        """Offers it to one part."""
        data = self._prepared.get(part.terms)
        if data is None:
            data = self._prepared[part.terms] = self._prepare(part.terms)
        here = self._of(part)
        self.card.hand_out(here)
        ids = [each.candidate.mechanic_id for each in here]
        self._all_asked += ids
        self._asked(ids, part.terms.score)
        return Letter(here, data, offers=1)

    def arrived(self) -> None:
        """It is told who was asked, and who would have been had the stage lasted."""
        rest = [each for part in self.ahead.values() for each in self._of(part)]
        self._arrived(self._all_asked, [each.candidate.mechanic_id for each in rest])

    def _of(self, part: Part) -> list[OnlineMechanic]:
        """Who of a part is still here, and not passed by."""
        here = [each for each in part.members if each.sockets]
        return [each for each in here if each not in self._passed_by] if self._passed_by else here


class Revoking:
    """The news that a round is over, on its way to everybody who holds its card."""

    def __init__(self, card: Card, data: bytes) -> None:
        self._card = card
        self._data = data
        self.ahead: dict[Hashable, list[OnlineMechanic]] = {
            group: [each for each in group.members if each in card.holders]
            for group in {holder.group for holder in card.holders}
        }

    def __len__(self) -> int:
        return sum(map(len, self.ahead.values()))

    def visit(self, part: list[OnlineMechanic]) -> Letter:
        """Takes the card from one part."""
        return Letter(self._card.take_back(part), self._data)

    def arrived(self) -> None:
        """Nobody holds it any more."""


def in_turn(parts: Sequence[Part]) -> dict[Hashable, Part]:
    """The parts by names that other broadcasts to the same people use as well, beginning with
    another mechanic each time.

    Whoever is written to first has a head start. So that nobody has it by accident, or because she
    connected early, the beginning is drawn anew for every broadcast, among those who may have it.
    """
    begin = random.randrange(sum(len(part.members) for part in parts) or 1)
    queue = deque(parts)
    while queue and begin >= len(queue[0].members):
        begin -= len(queue[0].members)
        queue.rotate(-1)
    turned: dict[Hashable, Part] = {(part.group, part.terms): part for part in queue}
    if begin > 0:  # in the middle of a part, whose first members are the last of all then
        group, terms, members = queue[0]
        turned[group, terms] = Part(group, terms, members[begin:])
        turned[object()] = Part(group, terms, members[:begin])
    return turned
