"""What people got, as lines that are the same in every run.

One job: write frames with names instead of ids and times relative to the booking. Pure; it knows
the wire only as the protocol's description tells it.

    +00:05  Fay  ← offer           offer_id=round-1 stage=priority attempt=2 …

The time in front is the story's: the moment to which the clock was moved. A deadline in a frame is
told to the last full five seconds, the shortest step in any story, because servers take a moment of
real time to act; that it is exact is for the rows to prove.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

Frame = dict[str, Any]

STEP_SECONDS: Final = 5

# The fields that matter, in the order in which they are told; missing ones are left out.
_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "welcome": ("offers",),
    "offer": (
        *("offer_id", "stage", "attempt", "score", "preferred"),
        *("exclusive_until", "expires_at"),
    ),
    "offer.won": ("offer_id",),
    "offer.lost": ("offer_id", "reason"),
    "offer.revoked": ("offer_id", "reason"),
    "request.status": (
        *("status", "stage", "stage_ends_at", "next_stage", "expires_at"),
        *("mechanics_notified", "mechanics_online", "mechanic"),
    ),
    "session.status": ("status", "mechanics_connected", "ends_at", "ended_by", "prompt"),
    "session.warning": ("ends_at",),
    "chat.message": ("seq", "sender_id", "body"),
    "chat.messages": ("messages", "more"),
    "ok": (),
    "error": ("code",),
}
_TIMES: Final = frozenset({"exclusive_until", "expires_at", "stage_ends_at", "ends_at"})
# They say how it is, and a later one replaces an earlier one (`version`).
_STATES: Final = frozenset({"request.status", "session.status"})
# Only while somebody is looked for are they kept current.
_COUNTS: Final = frozenset({"mechanics_notified", "mechanics_online"})


def clock(seconds: int) -> str:
    """`+mm:ss`, minutes beyond an hour too."""
    return f"+{seconds // 60:02}:{seconds % 60:02}"


def instant(moment: datetime) -> str:
    """A time as the protocol writes it: RFC 3339 in UTC, with milliseconds."""
    told = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return told.replace("+00:00", "Z")


class Transcript:
    """The lines of one story. `names` are the people's by id, `rounds` the generations by offer."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, str] = {}
        self.rounds: dict[str, int] = {}
        self.booked_at: datetime | None = None
        self._states: dict[tuple[str, str], tuple[str, str | None]] = {}

    def does(self, at: int, who: str, what: str, fields: Frame) -> None:
        """Somebody acts."""
        self._line(at, who, f"→ {what}", self._told(fields, fields))

    def gets(self, at: int, who: str, frames: list[Frame]) -> None:
        """What came in one scene: of frames that say how it is the last, unless it is known."""
        latest = {frame["type"]: frame for frame in frames if frame["type"] in _STATES}
        for frame in _with_snapshots(frames):
            kind = frame["type"]
            if kind in _STATES:
                if kind in latest:
                    self._state(at, who, latest.pop(kind))
            else:
                self._line(at, who, f"← {kind}", self._told(frame, _FIELDS[kind]))

    def _state(self, at: int, who: str, frame: Frame) -> None:
        kind = frame["type"]
        names = _FIELDS[kind]
        if frame["status"] != "pending":
            names = tuple(name for name in names if name not in _COUNTS)
        told = self._told(frame, names)
        message = frame.get("message")
        if self._states.get((who, kind)) == (told, message):
            return
        self._states[who, kind] = (told, message)
        self._line(at, who, f"← {kind}", told)
        if message is not None:
            self.lines.append(f"{'':<14}“{message}”")

    def _line(self, at: int, who: str, what: str, told: str) -> None:
        self.lines.append(f"{clock(at)}  {who}  {what:<16}  {told}".rstrip())

    def _told(self, frame: Frame, names: Any) -> str:
        return " ".join(
            f"{name}={self._value(name, frame[name])}" for name in names if name in frame
        )

    def _value(self, name: str, value: Any) -> str:
        if name in _TIMES:
            return self._moment(value)
        if name == "offer_id":
            return f"round-{self.rounds[value]}"
        if name == "messages" and isinstance(value, list):
            return f"{value[0]['seq']}…{value[-1]['seq']}"
        if name == "mechanic":
            return str(value["name"])
        if isinstance(value, bool):
            return json.dumps(value)
        return self.names.get(str(value), str(value))

    def _moment(self, told: str) -> str:
        assert self.booked_at is not None
        booked_at = datetime.fromisoformat(instant(self.booked_at))
        passed = (datetime.fromisoformat(told) - booked_at).total_seconds()
        return clock(int(passed // STEP_SECONDS) * STEP_SECONDS)


def _with_snapshots(frames: list[Frame]) -> Iterator[Frame]:
    """The frames, each welcome followed by the cards in its snapshot."""
    for frame in frames:
        if frame["type"] != "welcome":
            yield frame
            continue
        cards = frame["snapshot"]["offers"]
        yield {"type": "welcome", "offers": len(cards)}
        for card in cards:
            yield {"type": "offer"} | card
