"""The tale of one booking: its events, in order, as sentences.

Sentences about several people (asked, raced) stay open for a moment to gather them. Imports
`history` only; pure but for what it remembers of the booking.
"""

import enum
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from loadtest.history import Booked, Frame, Received, Sent

GATHER_SECONDS = 0.35
VERDICT_SECONDS = 4.0
UNASKED_SECONDS = 1.2
EARLY = timedelta(seconds=0.3)
REASONS = {"taken": "already taken", "busy": "busy with another", "expired": "too late"}


class Mood(enum.Enum):
    """How a line is meant, for its colour."""

    PLAIN = "plain"
    DIM = "dim"
    GOOD = "good"
    TURN = "turn"
    BAD = "bad"


class Line(NamedTuple):
    """One sentence; `tag` names its booking and is empty for the city."""

    tag: str
    mood: Mood
    text: str


@dataclass
class _Asked:
    """Who was shown one stage of a round, gathered for a moment."""

    due: float
    offer: Frame
    names: list[str] = field(default_factory=list)


@dataclass
class _Race:
    """Who accepted a round, and what they were told; open until everybody was told."""

    began_at: float
    offer_id: str
    names: list[str] = field(default_factory=list)
    winner: str | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def due(self) -> float:
        verdicts = len(self.reasons) + (self.winner is not None)
        answered = verdicts >= len(set(self.names))
        return self.began_at + (GATHER_SECONDS if answered else VERDICT_SECONDS)


class Tale:
    """`name` turns the id of a user or workshop into a name. `is_told` once its end was told."""

    def __init__(self, tag: str, customer: str, order: Frame, name: Callable[[str], str]):
        self.tag = tag
        self.request_id: str | None = None
        self.is_paid = False
        self.is_told = False
        self._customer, self._order, self._name = customer, order, name
        self._open: deque[Line | _Asked | _Race] = deque()
        self._why = ""
        self._stage: str | None = None  # as told, which is a moment behind
        self._shown_stage: str | None = None  # as shown
        self._shown: set[tuple[str, str]] = set()
        self._attempt = 1
        self._generation = 1
        self._winner = ""
        self._unasked_since: float | None = None
        self._unasked_told = False
        self._alone_until: datetime | None = None
        self._connected = self._ended_by_hand = self._completed = self._is_over = False

    def ready(self, now: float) -> Iterator[Line]:
        """The lines that are complete by now, oldest first."""
        if self._unasked_since is not None and now > self._unasked_since + UNASKED_SECONDS:
            self._unasked_since = None
            self._say_unasked()
        while self._open:
            first = self._open[0]
            if isinstance(first, _Asked | _Race) and now < first.due:
                return
            self._open.popleft()
            match first:
                case _Asked():
                    yield self._tell_asked(first)
                case _Race():
                    yield self._tell_race(first)
                case Line():
                    yield first
        self.is_told = self._is_over

    def say(self, text: str, mood: Mood = Mood.PLAIN) -> None:
        self._open.append(Line(self.tag, mood, text))

    # Events.

    def step(self, event: Booked) -> None:
        who = self._name(self._customer)
        match event.step:
            case "paying":
                self.is_paid = True
                price = f" {event.fields['price']}" if "price" in event.fields else ""
                self.say(f"{who} pays{price} for {self._wish()}")
            case "failed":
                self.say(f"{who} could not book: {event.fields['why']}", Mood.BAD)
                self._is_over = True
            case "gave_up":
                self.say(f"{who} has waited long enough", Mood.DIM)
            case "done":
                self._is_over = True

    def _wish(self) -> str:
        order, plan = self._order, self._order["plan"]
        match order.get("routing_type"):
            case "priority_broadcast":
                favourite = self._name(order["preferred_mechanic_id"])
                patience = ", will wait for them" if order.get("wait_for_preferred") else ""
                return f"{plan}, wants the favourite {favourite}{patience}"
            case "workshop_only":
                return f"{plan}, only from {self._name(order['workshop_id'])}"
            case "hybrid":
                return f"{plan}, best from {self._name(order['workshop_id'])}"
            case _:
                return f"{plan}, from anyone"

    def sent(self, event: Sent) -> None:
        who = self._name(event.who)
        match event.frame["type"]:
            case "offer.accept":
                self._race(event.at, event.frame["offer_id"]).names.append(who)
            case "offer.decline":
                if self._shown_stage == "priority":
                    self._why = f"{who} declines"
                else:
                    self.say(f"{who} declines", Mood.DIM)
            case "assignment.cancel":
                self.say(
                    f"{who} has to cancel ({event.frame.get('reason', 'no reason')})", Mood.BAD
                )
                self._connected = False
            case "request.widen":
                self._why = f"{who} will not wait for the favourite any longer"
            case "session.end":
                if not self._ended_by_hand:
                    self.say(f"{who} ends the session", Mood.DIM)
                self._ended_by_hand = True

    def received(self, event: Received, frame: Frame) -> None:
        match frame.get("type"):
            case "offer":
                self._offered(event, frame)
            case "offer.won":
                race = self._race(event.at, frame["offer_id"])
                race.winner = self._winner = self._name(event.who)
            case "offer.lost":
                race = self._race(event.at, frame["offer_id"])
                reason = str(frame["reason"])
                race.reasons.append(REASONS.get(reason, reason))
            case "request.status" if event.who == self._customer:
                self._status(event.at, frame)
            case "session.status" if event.who == self._customer:
                self._session(frame)

    def mechanic_moved(self, at: float, who: str, *, came: bool) -> None:
        """Somebody's connection came or went: told while the favourite is waited for."""
        alone = self._shown_stage == "priority" and not self._is_over
        if alone and who == self._order.get("preferred_mechanic_id") and self.request_id:
            news = "is online" if came else "loses the connection"
            self.say(f"{self._name(who)} {news}", Mood.DIM)

    # Sentences.

    def _offered(self, event: Received, offer: Frame) -> None:
        if offer["attempt"] > self._attempt and offer["stage"] == "priority":
            self._attempt = offer["attempt"]
            name = self._name(event.who)
            self.say(f"no sign from {name}: asked again ({self._attempt} of 3)", Mood.DIM)
            return
        key = (f"{offer['offer_id']} {offer['stage']}", event.who)
        if key in self._shown:
            return
        self._shown.add(key)
        self._shown_stage = offer["stage"]
        self._unasked_since = None
        asked = next(
            (
                item
                for item in reversed(self._open)
                if isinstance(item, _Asked)
                and item.offer["stage"] == offer["stage"]
                and item.offer["offer_id"] == offer["offer_id"]
            ),
            None,
        )
        if asked is None:
            asked = _Asked(event.at + GATHER_SECONDS, offer)
            self._open.append(asked)
        asked.names.append(self._name(event.who))

    def _tell_asked(self, asked: _Asked) -> Line:
        offer, names = asked.offer, asked.names
        stage, previous = offer["stage"], self._stage
        again = stage == previous and offer["generation"] == self._generation
        reopened = offer["generation"] > self._generation
        self._stage, self._generation = stage, offer["generation"]
        told = f"{len(names)} told" if len(names) > 3 else ", ".join(sorted(names))
        if again:
            return Line(self.tag, Mood.DIM, f"also offered to {told}")
        if stage == "priority":
            if "exclusive_until" in offer:
                self._alone_until = datetime.fromisoformat(offer["exclusive_until"])
            return Line(self.tag, Mood.PLAIN, f"offered to {told} alone{_seconds_left(offer)}")
        if stage == "preferred":
            seconds = _seconds_left(offer)
            return Line(
                self.tag, Mood.PLAIN, f"offered to the workshop's own first{seconds} ({told})"
            )
        whom = "the workshop" if self._order.get("routing_type") == "workshop_only" else "everyone"
        why, self._why = self._why, ""
        if not why and not reopened:
            why = self._why_everyone(previous, offer)
        mood = Mood.TURN if why else Mood.PLAIN
        arrow = f"{why} → {whom}" if why else f"offered to {whom}"
        return Line(self.tag, mood, f"{arrow} ({told})")

    def _why_everyone(self, previous: str | None, offer: Frame) -> str:
        """What led to the widest stage, as far as a watcher can know; empty when it was meant."""
        favourite = self._order.get("preferred_mechanic_id")
        if previous == "priority":
            if self._attempt > 1:
                return "the favourite cannot be reached"
            now = datetime.fromisoformat(offer["server_time"])
            if self._alone_until is not None and self._alone_until > now + EARLY:
                return f"{self._name(str(favourite))} is not free any more"
            return "the window is over"
        if previous == "preferred":
            return "the head start is over"
        if previous is None and favourite is not None:
            reason = "has not come" if self._unasked_told else "is not free"
            return f"{self._name(favourite)} {reason}"
        if previous is None and self._order.get("routing_type") == "hybrid":
            return f"nobody of {self._name(self._order['workshop_id'])} is there"
        return ""

    def _race(self, at: float, offer_id: str) -> _Race:
        for item in self._open:
            if isinstance(item, _Race) and item.offer_id == offer_id:
                return item
        race = _Race(at, offer_id)
        self._open.append(race)
        return race

    def _tell_race(self, race: _Race) -> Line:
        names = list(dict.fromkeys(race.names))
        lost = Counter(race.reasons)
        why = ", ".join(lost)
        if race.winner is None:
            text = f"{_listed(names)} comes too late ({why or 'no answer yet'})"
            return Line(self.tag, Mood.DIM, text)
        if len(names) > 1:
            text = f"{len(names)} mechanics accept at once: {race.winner} won"
            if lost:
                text += f", {lost.total()} lost ({why})"
            return Line(self.tag, Mood.GOOD, text)
        return Line(self.tag, Mood.GOOD, f"{race.winner} accepts and won")

    def _status(self, at: float, frame: Frame) -> None:
        status = frame["status"]
        unasked = status == "pending" and not self._shown and not self._unasked_told
        if unasked and self._unasked_since is None:
            self._unasked_since = at
        who = self._name(self._customer)
        if status in ("expired", "cancelled"):
            self._unasked_since = None
        if status == "expired":
            self.say("nobody took it in time: expired, the payment goes back", Mood.BAD)
        elif status == "cancelled":
            self.say(f"cancelled, {who}'s payment goes back", Mood.BAD)

    def _say_unasked(self) -> None:
        """Nobody was asked when the request opened. Told once."""
        self._unasked_told = True
        favourite = self._order.get("preferred_mechanic_id")
        if favourite is not None:
            name = self._name(favourite)
            self._shown_stage = "priority"
            self.say(f"{name} is not there: the request waits for {name}", Mood.TURN)
        else:
            self.say("nobody is there to ask: the request stays open", Mood.TURN)

    def _session(self, frame: Frame) -> None:
        both = frame["status"] == "active" and frame["mechanics_connected"] > 0
        if both and frame.get("started_at") and not self._connected:
            self._connected = True
            self.say(f"{self._name(self._customer)} and {self._winner} are connected", Mood.GOOD)
        if frame["status"] == "completed" and not self._completed:
            self._completed = True
            text = "session completed" if self._ended_by_hand else "the minutes are up: completed"
            self.say(text, Mood.GOOD)


def _seconds_left(offer: Frame) -> str:
    ends = offer.get("exclusive_until")
    if ends is None:
        return ""
    left = datetime.fromisoformat(ends) - datetime.fromisoformat(offer["server_time"])
    return f" for {math.ceil(left.total_seconds())} s"


def _listed(names: list[str]) -> str:
    if len(names) < 2:
        return "".join(names) or "somebody"
    return f"{', '.join(names[:-1])} and {names[-1]}"
