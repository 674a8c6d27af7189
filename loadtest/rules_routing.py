"""Rules about who is asked: the favourite first and alone, the workshop only, never who said no.

Each rule takes the sorted history and yields violations. Imports `cases`, `violation`, `history`.
"""

from collections.abc import Iterator
from datetime import datetime

from loadtest.cases import Card, Case, Cases, Round
from loadtest.history import Frame, Lost, Received, Sent
from loadtest.violation import Limits, Violation

CLOCK_SECONDS = 0.25
"""How far a frame's `server_time` may be from the database's clock."""


def priority_leak(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """The priority stage is for the favourite; the preferred stage for the chosen workshop."""
    for case, order in _booked(cases):
        for card in _cards(case):
            stage, who = card.offer["stage"], card.event.who
            leaks = stage == "priority" and who != order.get("preferred_mechanic_id")
            leaks = leaks or (stage == "preferred" and not _is_of(cases, who, order))
            if leaks:
                yield Violation(
                    "priority_leak",
                    f"shown the {stage} stage, which was not for her",
                    [card.event],
                    request_id=case.request_id,
                    offer_id=card.offer["offer_id"],
                    who=who,
                )


def workshop_leak(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """workshop_only is offered to the chosen workshop's mechanics, and won by one of them."""
    for case, order in _booked(cases):
        if order.get("routing_type") != "workshop_only":
            continue
        shown = [card.event for card in _cards(case)]
        won = [win for offer_round in case.rounds for win in offer_round.wins]
        for event in shown + won:
            if not _is_of(cases, event.who, order):
                yield Violation(
                    "workshop_leak",
                    "a mechanic of elsewhere had a part in a workshop_only request",
                    [event],
                    request_id=case.request_id,
                    who=event.who,
                )


def wrong_score(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """Scores are those of the strategy."""
    for case, order in _booked(cases):
        for card in _cards(case):
            expected = _score(cases, card, order)
            if expected is not None and card.offer["score"] != expected:
                yield Violation(
                    "wrong_score",
                    f"score {card.offer['score']}, the strategy says {expected}",
                    [card.event],
                    request_id=case.request_id,
                    offer_id=card.offer["offer_id"],
                    who=card.event.who,
                )


def _score(cases: Cases, card: Card, order: Frame) -> int | None:
    """None where the strategy leaves it open (a fallback's scores)."""
    who = card.event.who
    match order.get("routing_type"):
        case "workshop_only":
            return 100
        case "hybrid":
            if _is_of(cases, who, order):
                return 100
            return 50 if cases.people[who].workshop_id is not None else 25
        case "priority_broadcast":
            return 100 if card.offer["stage"] == "priority" else None
        case _:
            return 50


def early_fallback(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """Others are asked after the favourite's window, or once she is out for a reason."""
    for case, order in _booked(cases):
        favourite = order.get("preferred_mechanic_id")
        first_round = min(case.rounds, key=lambda r: r.generation, default=None)
        if order.get("routing_type") != "priority_broadcast" or first_round is None:
            continue
        others = [card for card in first_round.cards if card.event.who != favourite]
        if not others:
            continue
        first = min(others, key=lambda card: card.event.at)
        alone = [
            card
            for card in first_round.cards
            if card.event.who == favourite and card.offer["stage"] == "priority"
        ]
        if alone:
            yield from _judge_window(cases, case, first_round, alone, first)
        elif _was_free(cases, str(favourite), case, first, limits):
            yield Violation(
                "favourite_skipped",
                "the favourite was there and free, and others were asked without her",
                [first.event],
                request_id=case.request_id,
                offer_id=first_round.offer_id,
                who=favourite,
            )


def _judge_window(
    cases: Cases, case: Case, offer_round: Round, alone: list[Card], first: Card
) -> Iterator[Violation]:
    favourite = alone[0].event.who
    ends = alone[-1].offer.get("exclusive_until")
    if ends is None:
        yield Violation(
            "no_deadline",
            "a priority offer without exclusive_until",
            [alone[-1].event],
            request_id=case.request_id,
            who=favourite,
        )
        return
    early_seconds = (_time(ends) - _time(first.offer["server_time"])).total_seconds()
    if early_seconds <= CLOCK_SECONDS:
        return
    if not _is_out(cases, case, offer_round, alone[0], first.event.at):
        yield Violation(
            "early_fallback",
            f"others were asked {early_seconds:.1f} s before the favourite's window ended",
            [alone[0].event, first.event],
            request_id=case.request_id,
            offer_id=offer_round.offer_id,
            who=favourite,
        )


def _is_out(cases: Cases, case: Case, offer_round: Round, shown: Card, at: float) -> bool:
    """Whether the favourite was out by then, or the customer had asked for everyone."""
    favourite = shown.event.who
    before = [sent for sent in cases.sent.get(favourite, ()) if sent.at <= at]
    declined = any(
        sent.frame["type"] == "offer.decline" and sent.frame["offer_id"] == offer_round.offer_id
        for sent in before
    )
    unavailable = any(
        sent.frame["type"] == "availability.set" and not sent.frame["available"] for sent in before
    )
    unseen = not any(_saw(sent, offer_round.offer_id) for sent in before)
    # A win is committed between its accept and its verdict: she may be busy since the accept.
    busy = any(
        sent.at <= at
        for win in cases.wins.get(favourite, ())
        for sent in cases.accepts[favourite, win.frame["accept_id"]].sends[:1]
    )
    left = any(
        isinstance(events[-1], Lost) and shown.event.at <= events[-1].at <= at
        for events in cases.connections_of(favourite)
    )
    widened = case.booking is not None and any(
        sent.frame["type"] == "request.widen" and sent.frame["request_id"] == case.request_id
        for sent in cases.sent.get(case.booking.who, ())
    )
    return declined or unavailable or unseen or busy or left or widened


def _saw(sent: Sent, offer_id: str) -> bool:
    frame = sent.frame
    named = {frame.get("offer_id"), *frame.get("offer_ids", ())}
    return frame["type"] == "offer.seen" and offer_id in named


def _was_free(cases: Cases, who: str, case: Case, first: Card, limits: Limits) -> bool:
    """Whether she was connected, and held nothing, since well before the booking was paid."""
    paying_at = case.booking.at("paying") if case.booking is not None else None
    if paying_at is None or who in cases.wins or who in cases.had_sessions:
        return False
    if any(sent.frame["type"] == "availability.set" for sent in cases.sent.get(who, ())):
        return False
    since = paying_at - limits.settle_seconds
    return any(
        events[0].at < since
        and not (isinstance(events[-1], Lost) and events[-1].at <= first.event.at)
        for events in cases.connections_of(who)
    )


def offered_after_no(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """Who declined a request, or cancelled it, is not asked about it again."""
    for case in cases.requests.values():
        offer_ids = {offer_round.offer_id for offer_round in case.rounds}
        session_ids = {
            win.frame["session_id"] for offer_round in case.rounds for win in offer_round.wins
        }
        refused: dict[str, Received] = {}
        for who in {card.event.who for card in _cards(case)}:
            for sent in cases.sent.get(who, ()):
                declined = (
                    sent.frame["type"] == "offer.decline" and sent.frame["offer_id"] in offer_ids
                )
                cancelled = (
                    sent.frame["type"] == "assignment.cancel"
                    and sent.frame["session_id"] in session_ids
                )
                if (declined or cancelled) and (ok := _ok_to(cases, sent)) is not None:
                    refused.setdefault(who, ok)
        for card in _cards(case):
            no = refused.get(card.event.who)
            if no is not None and card.event.at > no.at + limits.settle_seconds:
                yield Violation(
                    "offered_after_no",
                    "asked again about a request that she had turned down",
                    [no, card.event],
                    request_id=case.request_id,
                    offer_id=card.offer["offer_id"],
                    who=card.event.who,
                )


def _ok_to(cases: Cases, sent: Sent) -> Received | None:
    for event in cases.connections[sent.connection]:
        if isinstance(event, Received) and event.frame.get("re") == sent.frame.get("id"):
            return event if event.frame["type"] == "ok" else None
    return None


def deadline_differs(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """A deadline is the same instant on every card of the round."""
    for offer_round in cases.rounds.values():
        for name in ("expires_at", "exclusive_until"):
            seen: dict[tuple[str, str], Card] = {}
            for card in offer_round.cards:
                value = card.offer.get(name)
                if value is not None:
                    seen.setdefault((card.offer["stage"], value), card)
            stages = {stage for stage, _ in seen}
            if len(seen) > len(stages):
                yield Violation(
                    "deadline_differs",
                    f"{name} is {sorted({value for _, value in seen})}",
                    [card.event for card in seen.values()],
                    request_id=offer_round.cards[0].offer["request_id"],
                    offer_id=offer_round.offer_id,
                )


def _booked(cases: Cases) -> Iterator[tuple[Case, Frame]]:
    for case in cases.requests.values():
        if case.booking is not None:
            yield case, case.booking.order


def _cards(case: Case) -> list[Card]:
    return [card for offer_round in case.rounds for card in offer_round.cards]


def _is_of(cases: Cases, who: str, order: Frame) -> bool:
    """Whether this mechanic belongs to the workshop that the order names."""
    workshop_id = order.get("workshop_id")
    return workshop_id is not None and cases.people[who].workshop_id == workshop_id


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
