"""What the clients saw and did, as an append-only list of typed events.

Everything that judges or reports reads only this, so a run can be written to a file (JSON lines)
and judged again later. Times are seconds of one monotonic clock, shared by all clients of a run.
Imports nothing of ours; reading a damaged file raises `msgspec.DecodeError`.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

Frame = dict[str, Any]
Step = Literal["ordered", "paying", "paid", "failed", "gave_up", "read", "done"]


class Introduced(msgspec.Struct, frozen=True, tag="introduced"):
    """Somebody takes part. `who` is the user's id, the same as in every frame."""

    at: float
    who: str
    role: str
    name: str
    workshop_id: str | None = None


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    """The websocket handshake succeeded; `connection` is unique in the history."""

    at: float
    who: str
    connection: int


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """The connection is over. `by_us` when the client itself ended it."""

    at: float
    who: str
    connection: int
    code: int | None
    by_us: bool


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    """The client handed this frame to its socket."""

    at: float
    who: str
    connection: int
    frame: Frame


class Received(msgspec.Struct, frozen=True, tag="received"):
    """The client read this frame from its socket."""

    at: float
    who: str
    connection: int
    frame: Frame


class Booked(msgspec.Struct, frozen=True, tag="booked"):
    """A step of one booking, taken over HTTP by its customer.

    `ordered` carries the order (plan, routing_type, workshop_id, preferred_mechanic_id), `read`
    the answer of `GET /api/requests/{id}`, `failed` and `gave_up` a `why`.
    """

    at: float
    who: str
    booking: str
    step: Step
    fields: Frame


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Something was broken on purpose."""

    at: float
    what: str


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The run is over and has settled; what comes later (closing sockets) is not judged."""

    at: float


Event = Introduced | Connected | Lost | Sent | Received | Booked | Fault | Finished


class History:
    """Append-only. Listeners are called with each event as it is added, in order.

    With `keeps=False` listeners are all there is: what runs for ever is told, not kept.
    """

    def __init__(
        self,
        events: Iterable[Event] = (),
        clock: Callable[[], float] = time.monotonic,
        *,
        keeps: bool = True,
    ):
        self.events: list[Event] = list(events)
        self._keeps = keeps
        self.listeners: list[Callable[[Event], None]] = []
        self._clock = clock
        self._connections = itertools.count(1)

    def now(self) -> float:
        return self._clock()

    def next_connection(self) -> int:
        return next(self._connections)

    def add(self, event: Event) -> None:
        if self._keeps:
            self.events.append(event)
        for listener in self.listeners:
            listener(event)

    def write(self, path: Path) -> None:
        """Writes JSON lines, one event each, in order."""
        encoder = msgspec.json.Encoder()
        path.write_bytes(encoder.encode_lines(self.events))

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls(msgspec.json.Decoder(Event).decode_lines(path.read_bytes()))
