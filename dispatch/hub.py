"""The sockets of this node: who is connected with what, and the one way to write to them.

One job: find the sockets of a user, and keep beside each online mechanic what routing must know of
her and which cards she is shown. Bytes are prepared once and written to many; a socket bounds its
own outbox. No I/O of its own, no decisions; imports `core`, `protocol` and nothing else of ours.

Mechanics whom routing tells apart by nothing but who they are, and whose workshop they are of,
stand in one group: a booking is routed once for all of them, but for the few whom it names and the
people of the workshop that it names.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from msgspec.structs import replace

from dispatch.core.types import Candidate, Role, Stage
from dispatch.protocol import CloseCode, ServerFrame, prepare

APART: Final = 20_000
GROUP: Final = 128  # mechanics in a group: they are written to in one go, within a millisecond
NOBODY: Final = UUID(int=0)


class Socket(Protocol):
    """What the hub needs of a connection."""

    connection_id: UUID
    user_id: UUID
    role: Role
    device: str | None
    epoch: int
    offers_sent: int

    @property
    def unread_bytes(self) -> int: ...
    def send(self, data: bytes) -> object: ...
    def post(self, data: bytes) -> object: ...
    def send_frame(self, frame: ServerFrame) -> object: ...
    def close(self, code: CloseCode, reason: str = "") -> None: ...


class Card:
    """One round of a booking as mechanics here are shown it; `holders` have it on their screens.

    `edition` is raised whenever all are to be shown it anew, in another stage.
    """

    __slots__ = ("edition", "holders", "offer_id", "request_id")

    def __init__(self, request_id: UUID, offer_id: UUID) -> None:
        self.request_id = request_id
        self.offer_id = offer_id
        self.edition = 0
        self.holders: set[OnlineMechanic] = set()

    def hand_out(self, mechanics: "Sequence[OnlineMechanic]") -> None:
        """These mechanics hold it from now on."""
        for mechanic in mechanics:
            mechanic.cards[self] = self.edition
        self.holders.update(mechanics)

    def take_back(self, mechanics: "Sequence[OnlineMechanic]") -> "list[OnlineMechanic]":
        """These mechanics hold it no longer; those of them who did."""
        had = [mechanic for mechanic in mechanics if self in mechanic.cards]
        for mechanic in had:
            del mechanic.cards[self]
        self.holders.difference_update(had)
        return had


class Group:
    """Some mechanics whom routing cannot tell apart, unless by their names or their workshop's.

    `kind` is what they have in common: a candidate who is `NOBODY`, of nobody's workshop or none.
    """

    __slots__ = ("kind", "members")

    def __init__(self, kind: Candidate) -> None:
        self.kind = kind
        self.members: dict[OnlineMechanic, None] = {}

    def without(self, these: "AbstractSet[OnlineMechanic]") -> "list[OnlineMechanic]":
        """Its members, but for these."""
        if these.isdisjoint(self.members):
            return list(self.members)
        return [each for each in self.members if each not in these]


class OnlineMechanic:
    """A mechanic with at least one socket here: her facts, her sockets, the cards she is shown.

    `cards` maps those that she holds to the edition she has, `seen` a request to the round and
    stage in which she looked at it, `ruled_out` one to the round and stage that she may not have,
    and why.
    """

    __slots__ = ("candidate", "cards", "changed_at", "group", "ruled_out", "seen", "sockets")

    group: Group

    def __init__(self, candidate: Candidate, changed_at: datetime) -> None:
        self.candidate = candidate
        self.changed_at = changed_at
        self.sockets: tuple[Socket, ...] = ()
        self.cards: dict[Card, int] = {}
        self.seen: dict[UUID, tuple[UUID, Stage]] = {}
        self.ruled_out: dict[UUID, tuple[UUID, Stage, str]] = {}

    def hold(self, card: Card) -> None:
        """She has the card from now on."""
        card.hand_out((self,))

    def lose(self, card: Card) -> bool:
        """She has it no longer; False when she did not have it."""
        return bool(card.take_back((self,)))

    def post(self, data: bytes, offers: int = 0, to: "Iterable[Socket] | None" = None) -> None:
        """Posts prepared bytes to every device, or to these; so many offers are in them."""
        for socket in self.sockets if to is None else to:
            socket.offers_sent += offers
            socket.post(data)


class Letter(NamedTuple):
    """Prepared bytes for some mechanics; so many offers are in them."""

    to: list[OnlineMechanic]
    data: bytes
    offers: int = 0


def deliver(letters: Sequence[Letter]) -> None:
    """Writes each letter to everybody whom it is for.

    What is for the same people is written to each of them as one: a write of sixteen frames costs
    the kernel hardly more than a write of one.
    """
    while letters:
        to = letters[0].to
        together = [letter for letter in letters if letter.to == to]
        letters = [letter for letter in letters if letter.to != to]
        data = b"".join(letter.data for letter in together)
        offers = sum(letter.offers for letter in together)
        for mechanic in to:
            for socket in mechanic.sockets:
                socket.offers_sent += offers
                socket.send(data)


class Hub:
    """Every authenticated socket of this node.

    `ready` counts its approved and available mechanics by (workshop, specialist); `changes` goes up
    whenever there is something new to say of them to the other nodes. `shared` holds
    those here who have a device on another node too, `apart` who have become shared, or have left,
    perhaps for there: numbered, and the latest of them.
    """

    def __init__(self) -> None:
        self._sockets: dict[UUID, tuple[Socket, ...]] = {}
        self._mechanics: dict[UUID, OnlineMechanic] = {}
        self._groups: defaultdict[Candidate, list[Group]] = defaultdict(list)
        self._by_workshop: defaultdict[UUID, dict[OnlineMechanic, None]] = defaultdict(dict)
        self.ready: Counter[tuple[UUID | None, bool]] = Counter()
        self.apart: dict[UUID, int] = {}
        self.parted = 0  # how often somebody was added to it
        self.shared: set[UUID] = set()
        self.changes = 0
        self._watchers: defaultdict[UUID, set[Socket]] = defaultdict(set)
        self._watched: defaultdict[UUID, set[UUID]] = defaultdict(set)
        self._board_watchers: dict[Socket, None] = {}

    def add(self, socket: Socket) -> None:
        """From now on the socket gets what is sent to its user."""
        self._sockets[socket.user_id] = (*self._sockets.get(socket.user_id, ()), socket)

    def add_mechanic(
        self, socket: Socket, candidate: Candidate, changed_at: datetime
    ) -> OnlineMechanic:
        """The same for a mechanic's socket, whose facts count for routing from now on."""
        self.add(socket)
        mechanic = self._mechanics.get(socket.user_id)
        if mechanic is None:
            mechanic = self._mechanics[socket.user_id] = OnlineMechanic(candidate, changed_at)
            self._count_ready(candidate, 1)
            self._place(mechanic)
        mechanic.sockets = (*mechanic.sockets, socket)
        return mechanic

    def remove(self, socket: Socket) -> None:
        """The socket is gone; a mechanic without any is no longer online here."""
        left = _without(self._sockets.get(socket.user_id, ()), socket)
        if left:
            self._sockets[socket.user_id] = left
        else:
            self._sockets.pop(socket.user_id, None)
        mechanic = self._mechanics.get(socket.user_id)
        if mechanic is not None:
            mechanic.sockets = _without(mechanic.sockets, socket)
            if not mechanic.sockets:
                self._remove_mechanic(mechanic)
        self._board_watchers.pop(socket, None)
        for mechanic_id in self._watched.pop(socket.connection_id, set()):
            self._unwatch(socket, mechanic_id)

    def _remove_mechanic(self, mechanic: OnlineMechanic) -> None:
        mechanic_id = mechanic.candidate.mechanic_id
        del self._mechanics[mechanic_id]
        self.shared.discard(mechanic_id)
        self._set_apart(mechanic_id)
        self._count_ready(mechanic.candidate, -1)
        self._displace(mechanic)
        for card in list(mechanic.cards):
            mechanic.lose(card)

    def mechanic(self, mechanic_id: UUID) -> OnlineMechanic | None:
        """The mechanic, if she has a socket here."""
        return self._mechanics.get(mechanic_id)

    def mechanics(self) -> list[OnlineMechanic]:
        """Everyone who has a socket here, in the order of coming."""
        return list(self._mechanics.values())

    def groups(self) -> list[Group]:
        """Everyone who has a socket here, by what routing makes of them."""
        return [group for groups in self._groups.values() for group in groups]

    def of_workshop(self, workshop_id: UUID) -> Collection[OnlineMechanic]:
        """The people of a workshop who have a socket here."""
        return self._by_workshop.get(workshop_id, ())

    def share(self, mechanic_id: UUID) -> None:
        """The mechanic, if she is here, has a device on another node too."""
        if mechanic_id in self._mechanics:
            self.shared.add(mechanic_id)
            self._set_apart(mechanic_id)

    def _set_apart(self, mechanic_id: UUID) -> None:
        self.parted += 1
        self.changes += 1
        self.apart.pop(mechanic_id, None)
        self.apart[mechanic_id] = self.parted
        if len(self.apart) > APART:
            del self.apart[next(iter(self.apart))]

    def to_be_named(self, at_most: int) -> list[Candidate]:
        """Everyone while they are no more than that, else those who are on another node too."""
        if len(self._mechanics) <= at_most:
            return [mechanic.candidate for mechanic in self._mechanics.values()]
        return [self._mechanics[each].candidate for each in self.shared]

    def set_candidate(self, mechanic: OnlineMechanic, candidate: Candidate) -> None:
        """Routing sees these facts of her from now on."""
        self._count_ready(mechanic.candidate, -1)
        self._displace(mechanic)
        mechanic.candidate = candidate
        self._place(mechanic)
        self._count_ready(candidate, 1)

    def sockets_of(self, user_id: UUID) -> tuple[Socket, ...]:
        """The user's sockets here."""
        return self._sockets.get(user_id, ())

    def is_here(self, user_id: UUID) -> bool:
        """Whether the user has a socket on this node."""
        return user_id in self._sockets

    def send(self, user_id: UUID, frame: ServerFrame) -> None:
        """Posts a frame to every device of a user here."""
        sockets = self._sockets.get(user_id)
        if sockets:
            data = prepare(frame)
            for socket in sockets:
                socket.post(data)

    def watch(self, socket: Socket, mechanic_id: UUID) -> None:
        """The socket is told when this mechanic comes or goes."""
        self._watchers[mechanic_id].add(socket)
        self._watched[socket.connection_id].add(mechanic_id)

    def unwatch(self, socket: Socket, mechanic_id: UUID) -> None:
        """No longer."""
        self._watched[socket.connection_id].discard(mechanic_id)
        self._unwatch(socket, mechanic_id)

    def watchers_of(self, mechanic_id: UUID) -> tuple[Socket, ...]:
        """Who wants to know about this mechanic."""
        return tuple(self._watchers.get(mechanic_id, ()))

    def watched(self) -> list[UUID]:
        """Every mechanic whom somebody here watches."""
        return list(self._watchers)

    def watched_by(self, socket: Socket) -> int:
        """How many mechanics the socket watches."""
        return len(self._watched.get(socket.connection_id, ()))

    def watch_board(self, socket: Socket) -> None:
        """The socket is told every change of the board."""
        self._board_watchers[socket] = None

    def board_watchers(self) -> tuple[Socket, ...]:
        """Who wants to know about every booking."""
        return tuple(self._board_watchers)

    def __iter__(self) -> Iterator[Socket]:
        return iter([socket for sockets in self._sockets.values() for socket in sockets])

    def __len__(self) -> int:
        return sum(map(len, self._sockets.values()))

    def _count_ready(self, candidate: Candidate, more: int) -> None:
        self.changes += 1
        if candidate.approved and candidate.available:
            self.ready[candidate.workshop_id, candidate.is_specialist] += more

    def _place(self, mechanic: OnlineMechanic) -> None:
        candidate = mechanic.candidate
        of = None if candidate.workshop_id is None else NOBODY
        kind = replace(candidate, mechanic_id=NOBODY, workshop_id=of)
        groups = self._groups[kind]
        if not groups or len(groups[-1].members) >= GROUP:
            groups.append(Group(kind))
        mechanic.group = groups[-1]
        mechanic.group.members[mechanic] = None
        if candidate.workshop_id is not None:
            self._by_workshop[candidate.workshop_id][mechanic] = None

    def _displace(self, mechanic: OnlineMechanic) -> None:
        group, workshop_id = mechanic.group, mechanic.candidate.workshop_id
        del group.members[mechanic]
        if not group.members:
            self._groups[group.kind].remove(group)
            if not self._groups[group.kind]:
                del self._groups[group.kind]
        if workshop_id is not None:
            del self._by_workshop[workshop_id][mechanic]
            if not self._by_workshop[workshop_id]:
                del self._by_workshop[workshop_id]

    def _unwatch(self, socket: Socket, mechanic_id: UUID) -> None:
        watchers = self._watchers.get(mechanic_id)
        if watchers is not None:
            watchers.discard(socket)
            if not watchers:
                del self._watchers[mechanic_id]


def _without(sockets: tuple[Socket, ...], socket: Socket) -> tuple[Socket, ...]:
    return tuple(each for each in sockets if each is not socket)
