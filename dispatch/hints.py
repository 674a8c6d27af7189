"""What nodes tell each other: hints that save time, never the truth.

One job: name the messages of the bus. Whatever a hint carries can be read again from Postgres, so
a lost, late or doubled one does no harm. Imports the core's types only; does no I/O.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from msgspec import Struct

from dispatch.core.types import Booking, Candidate, Presence, Role


class Display(Struct, frozen=True, kw_only=True):
    """What people see of a booking beside its state.

    `is_favorite`: its mechanic is among the customer's favourites; `is_rated`: the customer has
    rated the session. Both as of when the booking changed last.
    """

    customer_name: str
    vehicle: str | None
    concern: str | None
    mechanic_name: str | None
    mechanic_workshop_id: UUID | None
    mechanic_rating: float | None
    is_favorite: bool = False
    is_rated: bool = False


class Entry(Struct, frozen=True, kw_only=True):
    """A booking as every board keeps it. `paid`: money was taken for it."""

    booking: Booking
    display: Display
    paid: bool


class BookingChanged(Struct, frozen=True, tag="b"):
    """A transaction committed this state. A lower version never replaces a higher one."""

    entry: Entry


class Message(Struct, frozen=True, kw_only=True):
    """What somebody said in a session; `seq` is 1, 2, 3 … of that session."""

    session_id: UUID
    message_id: UUID
    seq: int
    client_message_id: UUID
    sender_id: UUID
    sender_role: Role
    body: str
    sent_at: datetime


class Said(Struct, frozen=True, kw_only=True, tag="c"):
    """A message was committed, and who are in its session."""

    request_id: UUID
    customer_id: UUID
    mechanic_id: UUID | None
    message: Message


class MechanicChanged(Struct, frozen=True, tag="m"):
    """Facts of a mechanic changed (approved, available, workshop, specialist)."""

    candidate: Candidate
    changed_at: datetime


class UserRevoked(Struct, frozen=True, tag="r"):
    """Tokens of this user below this epoch are void: close the sockets that they opened."""

    user_id: UUID
    token_epoch: int


class PresenceChanged(Struct, frozen=True, tag="p"):
    """A mechanic came or went, told after the grace."""

    user_id: UUID
    presence: Presence
    at: datetime


class DevicesChanged(Struct, frozen=True, tag="v"):
    """A mechanic can be reached by web push now, or no longer."""

    user_id: UUID


class MechanicShared(Struct, frozen=True, tag="d"):
    """A mechanic has devices on more than one node: whoever counts her must name her."""

    user_id: UUID


class Reach(Struct, frozen=True, tag="s"):
    """Whom one node has asked in a round so far: `mechanic_ids` by name, `asked` more without."""

    node_id: UUID
    request_id: UUID
    generation: int
    asked: int
    mechanic_ids: tuple[UUID, ...] = ()


class ReachWanted(Struct, frozen=True, tag="a"):
    """The sender is new, or has missed something: every node is to tell its reaches again."""


class Roster(Struct, frozen=True, tag="o"):
    """Ready mechanics (approved, available, connected) of one node.

    `named` has one row a mechanic: id, workshop or None, specialist. `ready` counts the others, one
    row per (workshop, specialist).
    """

    node_id: UUID
    ready: tuple[tuple[UUID | None, bool, int], ...]
    named: tuple[tuple[UUID, UUID | None, bool], ...] = ()


Hint = (
    BookingChanged
    | Said
    | MechanicChanged
    | UserRevoked
    | PresenceChanged
    | DevicesChanged
    | MechanicShared
    | Reach
    | ReachWanted
    | Roster
)


class Envelope(Struct, frozen=True):
    """One message of the bus: who sent it, its number there, and the hints of one moment."""

    node_id: UUID
    seq: int
    hints: list[Hint]


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Envelope).decode
