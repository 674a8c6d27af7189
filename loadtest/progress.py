"""One line that says how a run is going: in place on a terminal, else now and then as a line.

Counts events as they are added to the history, and judges on the way what can be judged at once: a
second winner of a round. The checker judges everything at the end. Imports `history` only.
"""

import asyncio
import sys
from typing import TextIO

from loadtest.history import Booked, Event, History, Received

IN_PLACE_SECONDS, BY_LINE_SECONDS = 0.2, 2.0
OVER = frozenset({"completed", "cancelled", "expired"})


class Progress:
    """Listens to `history`; `show` prints until it is cancelled."""

    def __init__(self, history: History, bookings: int, out: TextIO = sys.stderr):
        self._history, self._bookings, self._out = history, bookings, out
        self._began = history.now()
        self._stage = "starting"
        self._paid = self._offers = self._frames = self._second_winners = 0
        self._statuses: dict[str, str] = {}
        self._winners: dict[str, str] = {}
        self._accepted: set[str] = set()
        self._width = 0
        history.listeners.append(self.take)

    def stage(self, name: str) -> None:
        """What the run is doing now, in a word or two."""
        self._stage = name

    def take(self, event: Event) -> None:
        if isinstance(event, Booked):
            self._paid += event.step == "paid"
            return
        if not isinstance(event, Received):
            return
        self._frames += 1
        frame = event.frame
        match frame.get("type"):
            case "offer":
                self._offers += 1
            case "request.status":
                self._statuses[frame["request_id"]] = frame["status"]
                if frame["status"] == "accepted":
                    self._accepted.add(frame["request_id"])
            case "offer.won":
                winner = self._winners.setdefault(frame["offer_id"], event.who)
                self._second_winners += winner != event.who

    def line(self) -> str:
        ended = sum(status in OVER for status in self._statuses.values())
        return (
            f"{self._history.now() - self._began:6.1f} s  {self._stage:<12} "
            f"paid {self._paid}/{self._bookings}  accepted {len(self._accepted)}  "
            f"ended {ended}  offers {self._offers}  frames {self._frames}  "
            f"violations so far {self._second_winners}"
        )

    async def show(self) -> None:
        """Prints until cancelled, and a last line then."""
        in_place = self._out.isatty()
        try:
            while True:
                self._print(in_place)
                await asyncio.sleep(IN_PLACE_SECONDS if in_place else BY_LINE_SECONDS)
        finally:
            self._print(in_place)
            if in_place:
                self._out.write("\n")
                self._out.flush()

    def _print(self, in_place: bool) -> None:
        line = self.line()
        if in_place:
            self._out.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._out.write(line + "\n")
        self._out.flush()
