"""Tells the events of a history as lines that people read, booking by booking, while it happens.

What happens at once is told in one line (who was asked, who raced), so a line comes a moment after
its first event: `take` events, then ask `lines` for what is ready. Imports `history` and `tale`;
prints nothing.
"""

from collections import deque
from collections.abc import Iterator

from loadtest.history import Booked, Connected, Event, Frame, Introduced, Lost, Received, Sent
from loadtest.tale import Line, Mood, Tale

CITY = ""
EARLY_REQUESTS = 64


class Narrator:
    """Knows who is who, finds the booking that an event belongs to, and lets its tale go on."""

    def __init__(self, workshop_names: dict[str, str]) -> None:
        self._workshop_names = workshop_names
        self._people: dict[str, Introduced] = {}
        self._tales: dict[str, Tale] = {}
        self._current: dict[str, Tale] = {}
        self._by_request: dict[str, Tale] = {}
        self._by_round: dict[str, Tale] = {}
        self._by_session: dict[str, Tale] = {}
        self._early: dict[str, list[Received]] = {}
        self._city: deque[Line] = deque()

    def say(self, text: str, mood: Mood = Mood.PLAIN) -> None:
        """A line that belongs to no booking."""
        self._city.append(Line(CITY, mood, text))

    def lines(self, now: float, *, all_of_it: bool = False) -> Iterator[Line]:
        """What can be told by now, in the order in which it happened within each booking."""
        while self._city:
            yield self._city.popleft()
        for tale in list(self._tales.values()):
            yield from tale.ready(float("inf") if all_of_it else now)
            if tale.is_told:
                self._forget(tale)

    def take(self, event: Event) -> None:
        match event:
            case Introduced():
                self._people[event.who] = event
            case Booked():
                self._take_step(event)
            case Sent():
                self._take_sent(event)
            case Received():
                self._take_received(event)
            case Connected() | Lost() if event.who in self._people:
                came = isinstance(event, Connected)
                for tale in self._tales.values():
                    tale.mechanic_moved(event.at, event.who, came=came)

    def _take_step(self, event: Booked) -> None:
        if event.step == "ordered":
            tale = Tale(event.booking, event.who, event.fields, self.name)
            self._tales[event.booking] = self._current[event.who] = tale
        elif (known := self._tales.get(event.booking)) is not None:
            known.step(event)

    def _take_sent(self, event: Sent) -> None:
        tale = self._tale_of(event.frame)
        if tale is not None:
            tale.sent(event)

    def _take_received(self, event: Received) -> None:
        frame = event.frame
        match frame.get("type"):
            case "welcome":
                for part in ("requests", "offers"):
                    for item in frame["snapshot"].get(part, ()):
                        kind = "offer" if part == "offers" else "request.status"
                        self._take_known(event, {"type": kind, "snapshot": True} | item)
            case "payment.status":
                if frame["status"] == "refunded":  # its booking's tale is over by now
                    self.say(f"{self.name(event.who)} reads: {frame['message']}", Mood.DIM)
            case _:
                self._take_known(event, frame)

    def _take_known(self, event: Received, frame: Frame) -> None:
        """A frame about one request; one that came before its customer's status waits for that."""
        if frame.get("type") == "request.status" and frame["request_id"] not in self._by_request:
            tale = self._current.get(event.who)
            if tale is None or not tale.is_paid or tale.request_id is not None:
                return  # Left over from another time.
            tale.request_id = frame["request_id"]
            self._by_request[frame["request_id"]] = tale
            self._by_session[frame["session_id"]] = tale
            tale.received(event, frame)
            for early in self._early.pop(frame["request_id"], ()):
                self._take_known(early, early.frame)
            return
        if frame.get("type") == "offer":
            request_id = frame["request_id"]
            if request_id not in self._by_request:
                self._early.setdefault(request_id, []).append(_with(event, frame))
                while len(self._early) > EARLY_REQUESTS:  # Somebody else's: never told.
                    del self._early[next(iter(self._early))]
                return
            self._by_round[frame["offer_id"]] = self._by_request[request_id]
        tale = self._tale_of(frame)
        if tale is not None:
            tale.received(event, frame)

    def _tale_of(self, frame: Frame) -> Tale | None:
        for index, key in (
            (self._by_request, "request_id"),
            (self._by_round, "offer_id"),
            (self._by_session, "session_id"),
        ):
            tale = index.get(str(frame.get(key)))
            if tale is not None:
                return tale
        return None

    def _forget(self, tale: Tale) -> None:
        del self._tales[tale.tag]
        for index in (self._by_request, self._by_round, self._by_session, self._current):
            for key in [key for key, held in index.items() if held is tale]:
                del index[key]

    def name(self, who: str) -> str:
        """A workshop's name, or a person's first; all of it where two share the first."""
        if who in self._workshop_names:
            return self._workshop_names[who]
        person = self._people.get(who)
        if person is None:
            return "somebody else"
        first = person.name.split()[0]
        alike = sum(other.name.split()[0] == first for other in self._people.values())
        return first if alike == 1 else person.name


def _with(event: Received, frame: Frame) -> Received:
    return Received(event.at, event.who, event.connection, frame)
