"""Writes histories by hand, as clients would have recorded them. Imports the load test only."""

from datetime import UTC, datetime, timedelta
from typing import Any

from loadtest.cases import Cases, sort
from loadtest.history import (
    Booked,
    Connected,
    Event,
    Finished,
    Frame,
    Introduced,
    Lost,
    Received,
    Sent,
    Step,
)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
WINDOW_SECONDS = 3.0


class Recorder:
    """A history in the making; every event comes a tenth of a second after the one before."""

    def __init__(self) -> None:
        self.at = 0.0
        self.events: list[Event] = []
        self._connections = 0

    def later(self, seconds: float = 0.1) -> float:
        self.at = round(self.at + seconds, 3)
        return self.at

    def stamp(self, offset_seconds: float = 0.0) -> str:
        """The server's clock, which runs with ours."""
        moment = NOON + timedelta(seconds=self.at + offset_seconds)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def next_connection(self) -> int:
        self._connections += 1
        return self._connections

    def mechanic(self, who: str, workshop_id: str | None = None) -> "Actor":
        return self._enter(who, "mechanic", workshop_id)

    def customer(self, who: str) -> "Actor":
        return self._enter(who, "customer", None)

    def _enter(self, who: str, role: str, workshop_id: str | None) -> "Actor":
        name = who.capitalize()
        self.events.append(Introduced(self.later(), who, role, name, workshop_id))
        actor = Actor(self, who, role)
        actor.connects()
        return actor

    def cases(self) -> Cases:
        """The history, finished a minute later, sorted."""
        return sort([*self.events, Finished(self.later(60))])


class Actor:
    """One device of one person, writing down what it sent and received."""

    def __init__(self, recorder: Recorder, who: str, role: str):
        self.recorder, self.who, self.role = recorder, who, role
        self.connection = 0
        self._sent = 0

    def connects(self, **snapshot: Any) -> None:
        self.connection = self.recorder.next_connection()
        self.recorder.events.append(Connected(self.recorder.later(), self.who, self.connection))
        if self.role == "mechanic":
            whole: Frame = {"available": True, "offers": [], "more_offers": False, "sessions": []}
        else:
            whole = {"requests": [], "sessions": [], "favorites": []}
        self.gets("welcome", user_id=self.who, role=self.role, snapshot=whole | snapshot)

    def is_lost(self) -> None:
        self.recorder.events.append(
            Lost(self.recorder.later(), self.who, self.connection, 1006, False)
        )

    def sends(self, kind: str, **fields: Any) -> str:
        self._sent += 1
        frame = {"type": kind, "id": str(self._sent)} | fields
        self.recorder.events.append(Sent(self.recorder.later(), self.who, self.connection, frame))
        return str(self._sent)

    def gets(self, kind: str, **fields: Any) -> None:
        at = self.recorder.later()
        frame = {"type": kind, "server_time": self.recorder.stamp()} | fields
        self.recorder.events.append(Received(at, self.who, self.connection, frame))

    def step(self, booking: str, step: Step, **fields: Any) -> None:
        self.recorder.events.append(Booked(self.recorder.later(), self.who, booking, step, fields))

    # Whole exchanges.

    def orders(self, booking: str = "B1", **order: Any) -> None:
        """Orders and pays, a while after everybody came."""
        self.recorder.later(20)
        self.step(booking, "ordered", plan="video15", **order)
        self.step(booking, "paying")
        self.step(booking, "paid")

    def sees(self, request: str, status: str, version: int, **fields: Any) -> None:
        self.gets("request.status", **state(request, status, version), **fields)

    def reads(self, request: str, status: str, version: int, **fields: Any) -> None:
        self.step("B1", "read", **state(request, status, version), **fields)
        self.step("B1", "done")

    def is_offered(self, request: str, generation: int = 1, **fields: Any) -> None:
        self.gets("offer", **(self.offer(request, generation) | fields))
        self.sends("offer.seen", offer_id=round_id(request, generation))

    def offer(self, request: str, generation: int = 1) -> Frame:
        return {
            "offer_id": round_id(request, generation),
            "request_id": request,
            "generation": generation,
            "stage": "open",
            "score": 50,
            "attempt": 1,
            "expires_at": "2026-11-20T14:00:00.000Z",
            "server_time": self.recorder.stamp(),
        }

    def is_offered_alone(self, request: str) -> None:
        """A priority offer whose window ends in `WINDOW_SECONDS`."""
        self.is_offered(
            request,
            stage="priority",
            score=100,
            exclusive_until=self.recorder.stamp(WINDOW_SECONDS),
        )

    def accepts(self, request: str, generation: int = 1, accept_id: str = "a1") -> str:
        offer_id = round_id(request, generation)
        return self.sends("offer.accept", offer_id=offer_id, accept_id=accept_id)

    def wins(self, request: str, generation: int = 1, accept_id: str = "a1", **re: str) -> None:
        self.gets(
            "offer.won",
            offer_id=round_id(request, generation),
            request_id=request,
            session_id=session_id(request),
            accept_id=accept_id,
            **re,
        )

    def loses(
        self,
        request: str,
        reason: str = "taken",
        generation: int = 1,
        accept_id: str = "a1",
        **re: str,
    ) -> None:
        offer_id = round_id(request, generation)
        self.gets("offer.lost", offer_id=offer_id, accept_id=accept_id, reason=reason, **re)

    def is_revoked(self, request: str, reason: str = "taken", generation: int = 1) -> None:
        self.gets("offer.revoked", offer_id=round_id(request, generation), reason=reason)

    def session(self, request: str, status: str, version: int, **fields: Any) -> None:
        self.gets(
            "session.status",
            session_id=session_id(request),
            status=status,
            version=version,
            mechanics_connected=int(status == "active"),
            **fields,
        )


def round_id(request: str, generation: int = 1) -> str:
    return f"{request}-round-{generation}"


def session_id(request: str) -> str:
    return f"{request}-session"


def state(request: str, status: str, version: int) -> Frame:
    return {
        "request_id": request,
        "session_id": session_id(request),
        "status": status,
        "version": version,
    }
