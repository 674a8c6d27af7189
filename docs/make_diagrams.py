"""Draws the diagrams and tables of docs/lifecycle.md from the core itself.

    python docs/make_diagrams.py            rewrites what is stale in the document
    python docs/make_diagrams.py --check    changes nothing; exit code 1 when something is stale

It walks `decide` from new bookings through every event that HANDLERS knows, and every deadline that
a booking has, until no new state turns up; what it draws is what it met. MOVES must allow each of
these steps, and each of MOVES must be met.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from dispatch.core.lifecycle import HANDLERS, LIVE, MOVES, SESSION_OF, Deadline, deadlines, decide
from dispatch.core.types import (
    Accept,
    Booking,
    Cancel,
    Candidate,
    Decline,
    Due,
    End,
    Event,
    FavouriteLost,
    Join,
    MechanicCancel,
    Open,
    Policy,
    RequestStatus,
    Role,
    Routing,
    Seen,
    SessionStatus,
    Widen,
)

DOCUMENT: Final = Path(__file__).with_name("lifecycle.md")
BLOCK: Final = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
POLICY: Final = Policy()
START: Final = datetime(2030, 1, 1, tzinfo=UTC)
WORKSHOP, CUSTOMER, FAVOURITE, OTHER = (UUID(int=n) for n in range(1, 5))

Arrow = tuple[str, str, str]  # from, event or deadline, to


@dataclass
class Walk:
    """What was met: arrows between states, one booking of each state, steps between statuses."""

    arrows: set[Arrow] = field(default_factory=set)
    samples: dict[str, Booking] = field(default_factory=dict)
    moves: set[tuple[RequestStatus, RequestStatus]] = field(default_factory=set)
    due: set[tuple[str, str]] = field(default_factory=set)


def walk() -> Walk:
    found = Walk()
    seen: set[tuple[object, ...]] = set()
    waiting = [(booking, START) for booking in new_bookings()]
    while waiting:
        booking, now = waiting.pop()
        if (key := essence(booking)) in seen:
            continue
        seen.add(key)
        found.samples.setdefault(state(booking), booking)
        found.due |= {(state(booking), kind.value) for kind in deadlines(booking, POLICY)}
        for label, event, at in happenings(booking, now):
            after = decide(booking, event, at, POLICY).booking
            if after is not booking:
                found.arrows.add((state(booking), label, state(after)))
                found.moves.add((booking.status, after.status))
                waiting.append((after, at))
    allowed = {(status, to) for status, moves in MOVES.items() for to in moves}
    assert found.moves == allowed, f"MOVES says otherwise: {found.moves ^ allowed}"
    return found


def state(booking: Booking) -> str:
    """A status, or while it is pending its stage."""
    if booking.status is RequestStatus.PENDING:
        return booking.stage.value if booking.stage else "new"
    return booking.session_status.value


def essence(booking: Booking) -> tuple[object, ...]:
    """What may change what follows; two bookings with the same are one to the walk."""
    instants = (
        booking.next_attempt_at,
        booking.customer_joined_at,
        booking.mechanic_joined_at,
        booking.warned_at,
    )
    known = tuple(instant is not None for instant in instants)
    return (state(booking), booking.routing, booking.attempt, len(booking.excluded) > 0, *known)


def new_bookings() -> Iterator[Booking]:
    """For a slot and for now, by every strategy."""
    kinds = (
        (RequestStatus.SCHEDULED, START + timedelta(minutes=30)),
        (RequestStatus.PENDING, None),
    )
    for (status, slot_ends_at), routing in product(kinds, Routing):
        fields: dict[str, Any] = dict.fromkeys(Booking.__struct_fields__) | {
            "customer_id": CUSTOMER,
            "offer_id": UUID(int=0),
            "minutes": 10,
            "is_specialist": False,
            "wait_for_preferred": False,
            "waiver_signed": True,
            "routing": routing,
            "preferred_workshop_id": WORKSHOP,
            "preferred_mechanic_id": FAVOURITE,
            "excluded": (),
            "status": status,
            "session_status": SessionStatus(status.value),
            "generation": 1,
            "version": 1,
            "attempt": 1,
            "opens_at": START,
            "slot_ends_at": slot_ends_at,
            "expires_at": START + timedelta(seconds=POLICY.request_ttl_seconds),
            "message": "",
        }
        yield Booking(**fields)


def happenings(booking: Booking, now: datetime) -> Iterator[tuple[str, Event, datetime]]:
    """Everything that can happen to it: deadlines when they are due, people now."""
    due = deadlines(booking, POLICY)
    for kind, at in due.items():
        yield kind.value, Due(), at
    for event in events(booking):
        if type(event) in HANDLERS[booking.status] and not isinstance(event, Due):
            yield type(event).__name__, event, now
    if Deadline.OPENING in due:  # and hours late
        yield "Open", Open(), booking.slot_ends_at or booking.expires_at


def events(booking: Booking) -> list[Event]:
    mechanics = [
        Candidate(
            mechanic_id=mechanic_id,
            workshop_id=WORKSHOP,
            approved=True,
            available=True,
            is_specialist=False,
            live_sessions=0,
        )
        for mechanic_id in (FAVOURITE, OTHER)
    ]
    winner = booking.mechanic_id or FAVOURITE
    return [
        Open(favourite=mechanics[0], preferred_online=True),
        Open(),
        Open(customer_busy=True),
        Due(),
        Seen(FAVOURITE),
        *(Accept(mechanic, booking.offer_id, UUID(int=0)) for mechanic in mechanics),
        *(Decline(mechanic, booking.offer_id) for mechanic in mechanics),
        FavouriteLost("busy"),
        Widen(),
        Cancel(),
        MechanicCancel(winner),
        Join(CUSTOMER, Role.CUSTOMER),
        Join(winner, Role.MECHANIC),
        End(CUSTOMER),
        End(winner),
    ]


# --- what is drawn --------------------------------------------------------------------------------


def diagram(found: Walk) -> str:
    """The states of a booking and what leads from one to another."""
    labels: dict[tuple[str, str], set[str]] = {}
    for start, label, end in found.arrows:
        if start != end:
            labels.setdefault((start, end), set()).add(label)
    lines = ["stateDiagram-v2", "    [*] --> new", "    [*] --> scheduled"]
    lines += [
        f"    {start} --> {end}: {', '.join(sorted(names))}"
        for (start, end), names in sorted(labels.items())
    ]
    over = sorted({state(b) for b in found.samples.values() if b.status not in LIVE})
    lines += [f"    {name} --> [*]" for name in over]
    return "\n".join(["```mermaid", *lines, "```"])


def handled(found: Walk) -> str:
    """For each event and status: handled there, or the code of the refusal."""
    samples = {sample.status: sample for sample in found.samples.values()}
    rows = [["event", *(status.value for status in RequestStatus)]]
    for event_type in Event.__args__:
        cells = []
        for status in RequestStatus:
            if event_type in HANDLERS[status]:
                cells.append("handled")
            else:
                rejection = refusal(samples[status], event_type)
                cells.append(f"`{rejection}`")
        rows.append([f"`{event_type.__name__}`", *cells])
    return table(rows)


def refusal(booking: Booking, event_type: type[Event]) -> str:
    event = next(event for event in events(booking) if type(event) is event_type)
    rejection = decide(booking, event, START, POLICY).rejection
    assert rejection is not None
    return rejection.code


def due(found: Walk) -> str:
    """Which deadlines a booking has in which state."""
    rows = [["state", "session", "deadlines"]]
    for name, sample in sorted(found.samples.items()):
        kinds = sorted(kind for where, kind in found.due if where == name)
        rows.append([name, sample.session_status.value, ", ".join(kinds) or "none: it is over"])
    return table(rows)


def sessions(found: Walk) -> str:
    """Which session statuses go with a request status."""
    rows = [["request", "session"]]
    rows += [
        [status.value, " or ".join(sorted(session.value for session in SESSION_OF[status]))]
        for status in RequestStatus
    ]
    return table(rows)


def table(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def rendered(document: str) -> str:
    """The document with every made block as it should be."""
    found = walk()
    makers = {"diagram": diagram, "handled": handled, "due": due, "sessions": sessions}
    return BLOCK.sub(lambda m: f"{m[1]}{makers[m[2]](found)}\n{m[3]}", document)


def main(arguments: list[str]) -> int:
    written = DOCUMENT.read_text("utf-8")
    current = rendered(written)
    if arguments == ["--check"]:
        return int(written != current)
    DOCUMENT.write_text(current, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
