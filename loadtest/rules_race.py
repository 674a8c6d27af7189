"""Rules about rounds, accepts and verdicts: one winner, one answer, nobody left in silence.

Each rule takes the sorted history and yields violations. Imports `cases`, `violation`, `history`.
"""

from collections.abc import Iterator

from loadtest.cases import VERDICTS, Accept, Cases, OnSocket, Round
from loadtest.history import Lost, Received, Sent
from loadtest.violation import Limits, Violation

ANSWERS = {
    "ping": {"pong"},
    "offer.seen": set(),
    "offer.accept": VERDICTS,
    "offer.decline": {"ok"},
    "assignment.cancel": {"ok"},
    "availability.set": {"ok"},
    "request.cancel": {"ok"},
    "request.widen": {"ok"},
    "session.join": {"session.status"},
    "session.end": {"session.status"},
}
"""Which frames answer which; an `error` may answer any that has an answer."""


def round_identity(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """An offer_id names exactly one (request, generation), and the other way round."""
    by_key: dict[tuple[str, int], Round] = {}
    for offer_round in cases.rounds.values():
        if len(offer_round.keys) > 1:
            yield Violation(
                "round_identity",
                f"one offer_id for {sorted(offer_round.keys)}",
                [card.event for card in offer_round.cards[:4]],
                offer_id=offer_round.offer_id,
            )
        for key in offer_round.keys:
            other = by_key.setdefault(key, offer_round)
            if other is not offer_round:
                yield Violation(
                    "round_identity",
                    f"generation {key[1]} has two offer_ids",
                    [other.cards[0].event, offer_round.cards[0].event],
                    request_id=key[0],
                    offer_id=offer_round.offer_id,
                )


def two_winners(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """At most one mechanic wins a round, on any number of devices."""
    for offer_round in cases.rounds.values():
        winners = {win.who for win in offer_round.wins}
        if len(winners) > 1:
            yield Violation(
                "two_winners",
                f"{len(winners)} mechanics won one round",
                list(offer_round.wins),
                request_id=offer_round.wins[0].frame["request_id"],
                offer_id=offer_round.offer_id,
            )


def answered_once(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """Every frame that has an answer gets exactly one, of its kind, or the connection is lost.

    What has none (`offer.seen`) is not answered, not even with an error.
    """
    for events in cases.connections.values():
        answers: dict[str, list[Received]] = {}
        for event in events:
            if isinstance(event, Received) and (re := event.frame.get("re")) is not None:
                answers.setdefault(re, []).append(event)
        alive_until = _alive_until(events, cases.ends_at)
        for event in events:
            if isinstance(event, Sent) and event.frame["type"] in ANSWERS:
                got = answers.get(event.frame.get("id", ""), [])
                waited_seconds = alive_until - event.at
                yield from _judge_answers(event, got, waited_seconds > limits.answer_seconds)


def _judge_answers(sent: Sent, got: list[Received], overdue: bool) -> Iterator[Violation]:
    kind = sent.frame["type"]
    offer_id = sent.frame.get("offer_id")
    kinds = ANSWERS[kind] | {"error"} if ANSWERS[kind] else set()
    if not got and kinds and overdue:
        yield Violation(
            "unanswered", f"no answer to {kind}", [sent], offer_id=offer_id, who=sent.who
        )
    if len(got) > 1:
        yield Violation(
            "answered_twice",
            f"{len(got)} answers to one {kind}",
            [sent, *got],
            offer_id=offer_id,
            who=sent.who,
        )
    for answer in got:
        if answer.frame["type"] not in kinds:
            yield Violation(
                "answered_wrongly",
                f"{kind} was answered by {answer.frame['type']}",
                [sent, answer],
                offer_id=offer_id,
                who=sent.who,
            )


def too_many_verdicts(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """No connection hears more verdicts for an accept_id than the accept was sent times."""
    for accept in cases.accepts.values():
        by_connection: dict[int, list[Received]] = {}
        for verdict in accept.verdicts:
            by_connection.setdefault(verdict.connection, []).append(verdict)
        for verdicts in by_connection.values():
            if len(verdicts) > max(1, len(accept.sends)):
                yield Violation(
                    "too_many_verdicts",
                    f"sent {len(accept.sends)} times, {len(verdicts)} verdicts",
                    [*accept.sends, *verdicts],
                    offer_id=accept.offer_id,
                    who=accept.who,
                )


def verdict_flipped(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """Won stays won and lost stays lost for an accept_id."""
    for accept in cases.accepts.values():
        if len({verdict.frame["type"] for verdict in accept.verdicts}) > 1:
            yield Violation(
                "verdict_flipped",
                "one accept_id was told both won and lost",
                [*accept.sends, *accept.verdicts],
                offer_id=accept.offer_id,
                who=accept.who,
            )


def winner_told_lost(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """The winner's second accept_id for the same round is won too, while she holds it."""
    for offer_round in cases.rounds.values():
        for win in offer_round.wins:
            if cases.gave_back(win.who, win.frame["session_id"]):
                continue
            for accept in offer_round.accepts:
                if accept.who == win.who and _lost_after(accept, win.at):
                    yield Violation(
                        "winner_told_lost",
                        "the winner accepted once more and was told lost",
                        [win, *accept.sends, *accept.verdicts],
                        request_id=win.frame["request_id"],
                        offer_id=offer_round.offer_id,
                        who=win.who,
                    )


def _lost_after(accept: Accept, won_at: float) -> bool:
    return accept.sends[0].at > won_at and any(
        verdict.frame["type"] == "offer.lost" for verdict in accept.verdicts
    )


def never_told(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """A connection that shows a card of a round that ended is told, and not left in silence."""
    for events in cases.connections.values():
        if not events or isinstance(events[-1], Lost):
            continue  # Whoever is away finds it gone from the next snapshot, or `ghost_offer`.
        for offer_id, shown in _open_cards(events).items():
            ended_at = cases.rounds[offer_id].ended_at
            if ended_at is not None and ended_at < cases.ends_at - limits.settle_seconds:
                yield Violation(
                    "never_told",
                    f"the round was over {cases.ends_at - ended_at:.1f} s before the end",
                    [shown, *cases.rounds[offer_id].wins[:1]],
                    offer_id=offer_id,
                    who=shown.who,
                )


def _open_cards(events: list[OnSocket]) -> dict[str, Received]:
    """What one connection would still show at its last event."""
    cards: dict[str, Received] = {}
    for event in events:
        if not isinstance(event, Received):
            continue
        match event.frame.get("type"):
            case "welcome":
                cards = {
                    offer["offer_id"]: event for offer in event.frame["snapshot"].get("offers", ())
                }
            case "offer":
                cards[event.frame["offer_id"]] = event
            case "offer.won" | "offer.lost" | "offer.revoked":
                cards.pop(event.frame["offer_id"], None)
    return cards


def ghost_offer(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """A round that is over is not offered any more, to anybody, in frames or snapshots."""
    for offer_round in cases.rounds.values():
        ended_at = offer_round.ended_at
        if ended_at is None:
            continue
        for card in offer_round.cards:
            if card.event.at > ended_at + limits.settle_seconds:
                yield Violation(
                    "ghost_offer",
                    f"offered {card.event.at - ended_at:.1f} s after the round was over",
                    [*offer_round.wins[:1], card.event],
                    request_id=card.offer["request_id"],
                    offer_id=offer_round.offer_id,
                    who=card.event.who,
                )


def won_after_end(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """Nobody wins with an accept sent after the customer knew that the request was over."""
    for case in cases.requests.values():
        overs = [s for s in case.statuses if s.frame["status"] in ("cancelled", "expired")]
        if not overs:
            continue
        for offer_round in case.rounds:
            for accept in offer_round.accepts:
                won = [v for v in accept.verdicts if v.frame["type"] == "offer.won"]
                if won and accept.sends and accept.sends[0].at > overs[0].at:
                    yield Violation(
                        "won_after_end",
                        f"won a request that was {overs[0].frame['status']}",
                        [overs[0].event, *accept.sends, *won],
                        request_id=case.request_id,
                        offer_id=offer_round.offer_id,
                        who=accept.who,
                    )


def over_capacity(cases: Cases, limits: Limits) -> Iterator[Violation]:
    """A mechanic does not win another round while she holds as many sessions as she may."""
    for who, wins in cases.wins.items():
        by_session: dict[str, Received] = {}
        for win in wins:
            by_session.setdefault(win.frame["session_id"], win)
        in_order = list(by_session.values())
        for index, win in enumerate(in_order):
            holding = [
                earlier
                for earlier in in_order[:index]
                if _known_held(cases, earlier, win.at + limits.settle_seconds)
            ]
            if len(holding) >= limits.capacity:
                yield Violation(
                    "over_capacity",
                    f"won another round while holding {len(holding)}",
                    [*holding, win],
                    request_id=win.frame["request_id"],
                    offer_id=win.frame["offer_id"],
                    who=who,
                )


def _known_held(cases: Cases, win: Received, at: float) -> bool:
    """Whether the winner is known to have held the session of `win` still at this time."""
    session_id, request_id = win.frame["session_id"], win.frame["request_id"]
    if cases.gave_back(win.who, session_id):
        return False
    if any(r.offer_id != win.frame["offer_id"] for r in cases.requests[request_id].rounds):
        return False  # Re-opened: it may have been given to somebody else at any time.
    return any(
        status.at > at and status.frame["status"] in ("accepted", "active")
        for status in cases.sessions.get(session_id, ())
    )


def _alive_until(events: list[OnSocket], ends_at: float) -> float:
    last = events[-1]
    return last.at if isinstance(last, Lost) else ends_at
