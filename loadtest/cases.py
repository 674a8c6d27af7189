"""Sorts a history into cases: one per request, with its rounds, accepts, statuses and booking.

One pass over the events, no judgement: `checker` judges and `figures` measures what is found here.
Imports `history` only. A frame without the fields that its type must have raises `KeyError`.
"""

from dataclasses import dataclass, field

from loadtest.history import (
    Booked,
    Connected,
    Event,
    Fault,
    Finished,
    Frame,
    Introduced,
    Lost,
    Received,
    Sent,
)

VERDICTS = frozenset({"offer.won", "offer.lost"})
ROUND_OVER = frozenset({"taken", "expired", "cancelled"})

OnSocket = Connected | Lost | Sent | Received


@dataclass(slots=True)
class Card:
    """An offer as one connection showed it, from a frame of its own or from a snapshot."""

    event: Received
    offer: Frame
    from_snapshot: bool


@dataclass(slots=True)
class Accept:
    """One `accept_id` of one mechanic: every time it was sent, every verdict she got for it."""

    who: str
    accept_id: str
    offer_id: str
    sends: list[Sent] = field(default_factory=list)
    verdicts: list[Received] = field(default_factory=list)


@dataclass(slots=True)
class Round:
    """One `offer_id`: who was shown it, who accepted, who was told what."""

    offer_id: str
    cards: list[Card] = field(default_factory=list)
    accepts: list[Accept] = field(default_factory=list)
    wins: list[Received] = field(default_factory=list)
    endings: list[Received] = field(default_factory=list)

    @property
    def keys(self) -> set[tuple[str, int]]:
        """The (request, generation) pairs that its offers named: one, if all is well."""
        return {(card.offer["request_id"], card.offer["generation"]) for card in self.cards}

    @property
    def generation(self) -> int:
        """0 when nobody was shown the round."""
        return max((generation for _, generation in self.keys), default=0)

    @property
    def ended_at(self) -> float | None:
        """When a client first knew that it was over."""
        return min((event.at for event in self.wins + self.endings), default=None)


@dataclass(slots=True)
class Status:
    """The state of a request or session as it was seen at `event`."""

    event: Received | Booked
    frame: Frame

    @property
    def at(self) -> float:
        return self.event.at


@dataclass(slots=True)
class BookingRecord:
    """One booking, by the steps that its customer took."""

    tag: str
    who: str
    order: Frame
    steps: list[Booked] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def at(self, step: str) -> float | None:
        return next((event.at for event in self.steps if event.step == step), None)


@dataclass(slots=True)
class Case:
    """One request. `booking` is None when it was not booked in this history."""

    request_id: str
    statuses: list[Status] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    booking: BookingRecord | None = None

    @property
    def final(self) -> Frame | None:
        """The highest version that anybody saw; of equal ones the last."""
        if not self.statuses:
            return None
        return max(enumerate(self.statuses), key=lambda item: (item[1].frame["version"], item[0]))[
            1
        ].frame

    @property
    def last_round(self) -> Round | None:
        return max(self.rounds, key=lambda r: r.generation, default=None)


@dataclass(slots=True)
class Cases:
    """A history, sorted: by request, round, accept, booking, session, connection and user.

    `had_sessions` are those whose snapshot held a live session that was not of this history.
    `ends_at` is the time of `Finished`, or of the last event.
    """

    people: dict[str, Introduced] = field(default_factory=dict)
    requests: dict[str, Case] = field(default_factory=dict)
    rounds: dict[str, Round] = field(default_factory=dict)
    accepts: dict[tuple[str, str], Accept] = field(default_factory=dict)
    bookings: dict[str, BookingRecord] = field(default_factory=dict)
    sessions: dict[str, list[Status]] = field(default_factory=dict)
    connections: dict[int, list[OnSocket]] = field(default_factory=dict)
    sent: dict[str, list[Sent]] = field(default_factory=dict)
    wins: dict[str, list[Received]] = field(default_factory=dict)
    had_sessions: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    ends_at: float = 0.0
    _of: dict[str, list[int]] = field(default_factory=dict)

    def connections_of(self, who: str) -> list[list[OnSocket]]:
        """This user's connections, oldest first, each with its events."""
        return [self.connections[connection] for connection in self._of.get(who, ())]

    def gave_back(self, who: str, session_id: str) -> bool:
        """Whether this mechanic herself cancelled or ended the session."""
        return any(
            sent.frame["type"] in ("assignment.cancel", "session.end")
            and sent.frame["session_id"] == session_id
            for sent in self.sent.get(who, ())
        )


def sort(events: list[Event]) -> Cases:
    """Sorts the events up to `Finished`. Events must be in the order of their times."""
    cases = Cases()
    for event in events:
        if isinstance(event, Finished):
            cases.ends_at = event.at
            break
        cases.ends_at = event.at
        _take(cases, event)
    for offer_round in cases.rounds.values():
        for request_id in sorted(_requests_of(offer_round)):
            _case(cases, request_id).rounds.append(offer_round)
    _match_bookings(cases)
    return cases


def _take(cases: Cases, event: Event) -> None:
    match event:
        case Introduced():
            cases.people[event.who] = event
        case Connected():
            cases.connections[event.connection] = [event]
            cases._of.setdefault(event.who, []).append(event.connection)
        case Lost():
            cases.connections[event.connection].append(event)
        case Sent():
            cases.connections[event.connection].append(event)
            cases.sent.setdefault(event.who, []).append(event)
            if event.frame["type"] == "offer.accept":
                _accept(cases, event.who, event.frame).sends.append(event)
        case Received():
            cases.connections[event.connection].append(event)
            _take_frame(cases, event)
        case Booked():
            _take_step(cases, event)
        case Fault():
            cases.faults.append(event)


def _take_frame(cases: Cases, event: Received) -> None:
    frame = event.frame
    match frame.get("type"):
        case "welcome":
            snapshot = frame["snapshot"]
            for offer in snapshot.get("offers", ()):
                _round(cases, offer["offer_id"]).cards.append(Card(event, offer, True))
            for request in snapshot.get("requests", ()):
                _case(cases, request["request_id"]).statuses.append(Status(event, request))
            for session in snapshot.get("sessions", ()):
                _session(cases, session).append(Status(event, session))
                live = session["status"] in ("pending", "accepted", "active")
                if live and event.who not in cases.wins:
                    cases.had_sessions.add(event.who)
        case "offer":
            _round(cases, frame["offer_id"]).cards.append(Card(event, frame, False))
        case "offer.won":
            _round(cases, frame["offer_id"]).wins.append(event)
            cases.wins.setdefault(event.who, []).append(event)
            _accept(cases, event.who, frame).verdicts.append(event)
        case "offer.lost":
            _accept(cases, event.who, frame).verdicts.append(event)
            if frame["reason"] in ROUND_OVER:
                _round(cases, frame["offer_id"]).endings.append(event)
        case "offer.revoked":
            if frame["reason"] in ROUND_OVER:
                _round(cases, frame["offer_id"]).endings.append(event)
        case "request.status":
            _case(cases, frame["request_id"]).statuses.append(Status(event, frame))
        case "session.status":
            _session(cases, frame).append(Status(event, frame))


def _take_step(cases: Cases, event: Booked) -> None:
    record = cases.bookings.get(event.booking)
    if record is None:
        record = cases.bookings[event.booking] = BookingRecord(event.booking, event.who, {})
    record.steps.append(event)
    if event.step == "ordered":
        record.order = event.fields
    elif event.step == "read":
        case = _case(cases, event.fields["request_id"])
        case.statuses.append(Status(event, event.fields))


def _round(cases: Cases, offer_id: str) -> Round:
    if offer_id not in cases.rounds:
        cases.rounds[offer_id] = Round(offer_id)
    return cases.rounds[offer_id]


def _accept(cases: Cases, who: str, frame: Frame) -> Accept:
    key = (who, frame["accept_id"])
    if key not in cases.accepts:
        accept = cases.accepts[key] = Accept(who, frame["accept_id"], frame["offer_id"])
        _round(cases, frame["offer_id"]).accepts.append(accept)
    return cases.accepts[key]


def _case(cases: Cases, request_id: str) -> Case:
    if request_id not in cases.requests:
        cases.requests[request_id] = Case(request_id)
    return cases.requests[request_id]


def _session(cases: Cases, frame: Frame) -> list[Status]:
    return cases.sessions.setdefault(frame["session_id"], [])


def _requests_of(offer_round: Round) -> set[str]:
    named = {request_id for request_id, _ in offer_round.keys}
    return named | {win.frame["request_id"] for win in offer_round.wins}


def _match_bookings(cases: Cases) -> None:
    """A request belongs to the last booking that its customer had begun to pay when it appeared."""
    by_customer: dict[str, list[tuple[float, BookingRecord]]] = {}
    for record in cases.bookings.values():
        paying_at = record.at("paying")
        if paying_at is not None:
            by_customer.setdefault(record.who, []).append((paying_at, record))
    for case in cases.requests.values():
        if not case.statuses:
            continue
        first = case.statuses[0]
        begun = [pair for pair in by_customer.get(first.event.who, ()) if pair[0] <= first.at]
        if begun:
            case.booking = max(begun, key=lambda pair: pair[0])[1]
            case.booking.requests.append(case.request_id)
