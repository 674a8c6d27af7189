"""What one node knows of its own connections, and what it still has to write to Redis, as data.

One job: turn joins and leaves into the changes that Redis must be told, in an order that never lets
anybody flap. Pure: no I/O, no clock (`now` is passed in, in seconds of any steady clock), imports
nothing of ours. A change stays due until it is confirmed, so a lost connection loses nothing.
"""

from itertools import islice, takewhile
from uuid import UUID

from msgspec import Struct


class Connection(Struct, frozen=True, gc=False):
    """One socket of a user at this node. Only mechanics are counted and told about."""

    user_id: UUID
    connection_id: UUID
    mechanic: bool
    device: str | None
    workshop_id: UUID | None


class Write(Struct, frozen=True, gc=False):
    """The connection is here.

    `silent`: it was confirmed before, and Redis has forgotten it: nobody needs to be told.
    `again`: an attempt was not confirmed, and may have been written all the same.
    """

    connection: Connection
    silent: bool = False
    again: bool = False


class Removal(Struct, frozen=True, gc=False):
    """The connection left at `left_at`; due when the grace is over."""

    connection: Connection
    left_at: float


Change = Write | Removal


class Ledger:
    """The connections here, the writes that are due, and the leaves that wait for their grace."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._here: dict[UUID, Connection] = {}
        self._users: dict[UUID, int] = {}  # how many connections of each user are here
        self._writes: dict[UUID, Write] = {}
        self._in_doubt: set[UUID] = set()  # writes that were sent and not confirmed
        self._leaving: dict[UUID, Removal] = {}  # in the order of leaving

    def __len__(self) -> int:
        """Connections here, those that have left not counted."""
        return len(self._here)

    @property
    def unwritten(self) -> int:
        """How many writes are not confirmed."""
        return len(self._writes)

    def is_here(self, user_id: UUID) -> bool:
        """Whether a connection of the user is here."""
        return user_id in self._users

    def join(self, connection: Connection) -> None:
        """The connection is here; a second time replaces what was known of it."""
        key = connection.connection_id
        if key not in self._here:
            self._users[connection.user_id] = self._users.get(connection.user_id, 0) + 1
        self._here[key] = connection
        self._leaving.pop(key, None)
        self._writes[key] = Write(connection)

    def leave(self, connection_id: UUID, now: float) -> None:
        """The connection is gone; an unknown one is ignored.

        One that Redis cannot know of leaves no trace.
        """
        connection = self._here.pop(connection_id, None)
        if connection is None:
            return
        self._users[connection.user_id] -= 1
        if self._users[connection.user_id] == 0:
            del self._users[connection.user_id]
        write = self._writes.pop(connection_id, None)
        if write is None or write.silent or connection_id in self._in_doubt:
            self._leaving[connection_id] = Removal(connection, now)
        self._in_doubt.discard(connection_id)

    def take(self, now: float, limit: int, *, removals: bool) -> list[Change]:
        """The changes to send next, `limit` at most; they stay due until they are confirmed.

        Writes come first: whoever came back in time is there before the old connection goes.
        Without `removals` none is given: while Redis does not know of everybody, a removal would
        tell people offline who are only not written yet.
        """
        for key, write in list(islice(self._writes.items(), limit)):
            if key in self._in_doubt and not write.again:
                self._writes[key] = Write(write.connection, write.silent, again=True)
            self._in_doubt.add(key)
        changes: list[Change] = list(islice(self._writes.values(), limit))
        if removals:
            due = takewhile(lambda r: self._due_at(r) <= now, self._leaving.values())
            changes += islice(due, limit - len(changes))
        return changes

    def confirm(self, changes: list[Change]) -> None:
        """Redis has them. What changed since they were taken stays due."""
        for change in changes:
            key = change.connection.connection_id
            if isinstance(change, Removal):
                if self._leaving.get(key) is change:
                    del self._leaving[key]
            elif self._writes.get(key) is change:
                del self._writes[key]
                self._in_doubt.discard(key)

    def next_removal_at(self) -> float | None:
        """When the next grace is over; None when nobody is leaving."""
        first = next(iter(self._leaving.values()), None)
        return None if first is None else self._due_at(first)

    def forgotten(self) -> None:
        """Redis was emptied or replaced: everybody here is due again, and leaves go on waiting."""
        told = {key for key in self._here if self._is_told(key)}
        self._in_doubt.clear()
        self._writes = {key: Write(c, silent=key in told) for key, c in self._here.items()}

    def buried(self) -> None:
        """Others have declared this node dead: it begins anew with those who are here now.

        Those who were leaving were removed with the dead node's entries.
        """
        self._in_doubt.clear()
        self._leaving.clear()
        self._writes = {key: Write(connection) for key, connection in self._here.items()}

    def _due_at(self, removal: Removal) -> float:
        return removal.left_at + self._grace_seconds

    def _is_told(self, connection_id: UUID) -> bool:
        write = self._writes.get(connection_id)
        return write is None or write.silent
