"""Rules about bookings: none lost, none doubled, each ended in a state that its history explains.

Each rule takes the sorted history and yields violations. Imports `cases`, `violation`, `history`.
"""

from collections.abc import Iterator
from itertools import pairwise

from loadtest.cases import BookingRecord, Case, Cases, Status
from loadtest.history import Booked, Lost, Received
from loadtest.violation import Limits, Violation


def lost_booking(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """Every booking that was paid became a request that its customer was shown."""
    for record in cases.bookings.values():
        paid_at = record.at("paid")
        failed = [step for step in record.steps if step.step == "failed"]
        if paid_at is None and failed:
            yield Violation(
                "not_booked", str(failed[0].fields.get("why")), list(failed), who=record.who
            )
        elif (
            paid_at is not None
            and not record.requests
            and paid_at < cases.ends_at - limits.settle_seconds
        ):
            yield Violation(
                "lost_booking",
                f"booking {record.tag} was paid and never became a request",
                list(record.steps),
                who=record.who,
            )


def doubled_booking(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """One payment makes one request."""
    for record in cases.bookings.values():
        if len(record.requests) > 1:
            firsts = [cases.requests[request].statuses[0].event for request in record.requests]
            yield Violation(
                "doubled_booking",
                f"booking {record.tag} became {len(record.requests)} requests",
                [*record.steps, *firsts],
                request_id=record.requests[1],
                who=record.who,
            )


def version_fell(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """Versions of a request or session never go down for one who watches it."""
    for request_id, case in cases.requests.items():
        yield from _falls(cases, request_id, case.statuses)
    for session_id, statuses in cases.sessions.items():
        yield from _falls(cases, session_id, statuses)


def _falls(cases: Cases, subject_id: str, statuses: list[Status]) -> Iterator[Violation]:
    """On one connection never down; a later connection starts where the earlier ones stood."""
    highest: dict[tuple[str, int], Status] = {}
    for status in statuses:
        event = status.event
        if not isinstance(event, Received):
            continue
        connected_at = cases.connections[event.connection][0].at
        for (who, connection), seen in list(highest.items()):
            same = connection == event.connection
            before = who == event.who and seen.at < connected_at
            if (same or before) and status.frame["version"] < seen.frame["version"]:
                yield Violation(
                    "version_fell",
                    f"{seen.frame['version']} and then {status.frame['version']} ({subject_id})",
                    [seen.event, event],
                    request_id=status.frame.get("request_id"),
                    who=event.who,
                )
        key = (event.who, event.connection)
        if key not in highest or status.frame["version"] >= highest[key].frame["version"]:
            highest[key] = status


def unexplained_end(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """The last state of each booking follows from what its people did."""
    for case in cases.requests.values():
        if case.booking is None or case.final is None:
            continue
        why = _what_is_wrong(cases, case, case.booking)
        if why is not None:
            rounds = sorted(case.rounds, key=lambda r: r.generation)
            yield Violation(
                "unexplained_end",
                why,
                [*[win for r in rounds for win in r.wins], case.statuses[-1].event],
                request_id=case.request_id,
                who=case.booking.who,
            )


def _what_is_wrong(cases: Cases, case: Case, record: BookingRecord) -> str | None:
    assert case.final is not None
    status = case.final["status"]
    last = case.last_round
    wins = last.wins if last is not None else []
    holder = wins[-1] if wins and not _cancelled_by(cases, wins[-1]) else None
    match status:
        case "pending" if holder is not None:
            return "somebody won, and the request is still pending"
        case "pending":
            return "the request is still pending"
        case "accepted" | "completed":
            return _wrong_mechanic(case, holder, status)
        case "expired":
            return "expired, although somebody won" if holder is not None else None
        case "cancelled":
            explained = holder is not None or _customer_left(cases, case, record)
            return None if explained else "cancelled, and nobody had asked for it"
        case "scheduled":
            return None
        case _:
            return f"a status that the protocol does not have: {status}"


def _wrong_mechanic(case: Case, holder: Received | None, status: str) -> str | None:
    if holder is None:
        return f"{status}, and no mechanic was told that she won"
    named = ((case.final or {}).get("mechanic") or {}).get("id")
    if named not in (None, holder.who):
        return f"{status} by {named}, but {holder.who} was told that she won"
    return None


def _cancelled_by(cases: Cases, win: Received) -> bool:
    return any(
        sent.frame["type"] == "assignment.cancel"
        and sent.frame["session_id"] == win.frame["session_id"]
        for sent in cases.sent.get(win.who, ())
    )


def _customer_left(cases: Cases, case: Case, record: BookingRecord) -> bool:
    session_ids = {status.frame.get("session_id") for status in case.statuses}
    return any(
        sent.frame["request_id"] == case.request_id
        if sent.frame["type"] == "request.cancel"
        else sent.frame["type"] == "session.end" and sent.frame["session_id"] in session_ids
        for sent in cases.sent.get(record.who, ())
    )


def customer_not_told(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """What a customer reads over HTTP about her request, her websocket told her as well."""
    for case in cases.requests.values():
        reads = [status for status in case.statuses if isinstance(status.event, Booked)]
        if not reads or reads[-1].at > cases.ends_at - limits.settle_seconds:
            continue
        read = reads[-1]
        connection = _live_connection(cases, read.event.who)
        pushed = [
            status
            for status in case.statuses
            if isinstance(status.event, Received) and status.event.connection == connection
        ]
        if pushed and max(s.frame["version"] for s in pushed) < read.frame["version"]:
            yield Violation(
                "customer_not_told",
                f"the request is {read.frame['status']}, her websocket never said so",
                [pushed[-1].event, read.event],
                request_id=case.request_id,
                who=read.event.who,
            )


def _live_connection(cases: Cases, who: str) -> int | None:
    """The last connection of this user, if it was open at the end of the history."""
    connections = cases.connections_of(who)
    if not connections or isinstance(connections[-1][-1], Lost):
        return None
    return connections[-1][-1].connection


def reopened_without_cause(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """A new generation follows a winner who left or never came, not one who is at work."""
    for case in cases.requests.values():
        rounds = sorted(case.rounds, key=lambda r: r.generation)
        for earlier, later in pairwise(rounds):
            if not earlier.wins or not later.cards:
                continue
            win, reopened_at = earlier.wins[0], later.cards[0].event.at
            session_id = win.frame["session_id"]
            at_work = [
                status
                for status in cases.sessions.get(session_id, ())
                if win.at <= status.at < reopened_at and status.frame["status"] == "active"
            ]
            if at_work and not cases.gave_back(win.who, session_id):
                yield Violation(
                    "reopened_without_cause",
                    f"generation {later.generation} while the winner was at work",
                    [win, at_work[-1].event, later.cards[0].event],
                    request_id=case.request_id,
                    offer_id=later.offer_id,
                    who=win.who,
                )
