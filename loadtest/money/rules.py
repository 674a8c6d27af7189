"""The checker: what must be true of money, whatever happened to those who moved it.

One job: from the truth at the end to the promises that were broken. Pure; it knows the rules of
`truth` and nothing of how the server works. Once everything was delivered and the outboxes are
empty, each received cent is a session's, was given back, is credits, or is held for a person.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

from msgspec import Struct

from loadtest.money.truth import GivenBack, Money, Payment, Session, Truth

UNSERVED = ("cancelled", "expired")
WITHOUT_MONEY = ("created", "expired", "failed")
PLATFORM_PERCENT = 20


class Violation(Struct, frozen=True):
    """One broken promise: which rule, and what shows it."""

    rule: str
    detail: str


Rule = Callable[[Truth], Iterator[Violation]]


def check(truth: Truth) -> list[Violation]:
    """Every violation, rule by rule. Empty: all promises held."""
    return [violation for rule in RULES for violation in rule(truth)]


def _once(truth: Truth) -> Iterator[Violation]:
    """At most one session for a payment and for an intake, and none that nobody paid for."""
    paid = {p.session_id: p for p in truth.payments if p.session_id is not None}
    for name in ("stripe_session_id", "intake_id"):
        counts = Counter(getattr(session, name) for session in truth.sessions)
        for key, count in counts.items():
            if key is not None and count > 1:
                yield Violation("fulfilled once", f"{count} sessions with {name} {key}")
    for session in truth.sessions:
        payment = paid.get(session.id)
        if payment is None:
            yield Violation("no session without payment", f"session {session.id}")
        elif payment.stripe_session_id != session.stripe_session_id:
            yield Violation("no session without payment", f"session {session.id} names another")
        if session.creations != 1:
            yield Violation("fulfilled once", f"session {session.id}: {session.creations} created")
        if session.refundings > 1:
            yield Violation("refunded once", f"session {session.id}: {session.refundings} lines")


def _answers(truth: Truth) -> Iterator[Violation]:
    """Each payment is answered as it should be, by what Stripe has."""
    money = {came.payment_id: came for came in truth.money if came.payment_id is not None}
    sessions = {session.id: session for session in truth.sessions}
    for payment in truth.payments:
        if payment.customer_id is None:
            continue  # unasked money, judged by `_unasked`
        came = money.get(payment.id)
        session = sessions.get(payment.session_id) if payment.session_id else None
        if came is None or not came.told:
            yield from _no_money(truth, payment)
        elif (came.cents, came.currency) != (payment.amount_cents, payment.currency):
            yield from _wrong_money(truth, payment, came)
        else:
            yield from _right_money(truth, payment, came, session)


def _no_money(truth: Truth, payment: Payment) -> Iterator[Violation]:
    if payment.status not in WITHOUT_MONEY or payment.received_cents is not None:
        yield Violation("nothing for nothing", _told(payment))
    if payment.session_id is not None:
        yield Violation("nothing for nothing", f"{_told(payment)} has a session")
    ended = truth.closed.get(payment.stripe_session_id or "")
    if ended is not None and payment.status == "created":
        yield Violation("rows follow Stripe", f"{_told(payment)}, at Stripe {ended}")


def _wrong_money(truth: Truth, payment: Payment, came: Money) -> Iterator[Violation]:
    back = _back(truth, came.payment_intent)
    # All of it back: who was held before we heard of it may stay so, as a person looks at either.
    expected = ("held", "refunded") if back >= came.cents else ("held",)
    if payment.status not in expected:
        yield Violation("wrong money is held", f"{_told(payment)}, expected {expected[0]}")
    if payment.session_id is not None:
        yield Violation("wrong money is held", f"{_told(payment)} has a session")
    if payment.received_cents != came.cents:
        yield Violation("rows follow Stripe", f"{_told(payment)}: received {came.cents}")
    if _ours(truth, payment.id):
        yield Violation("wrong money is held", f"{_told(payment)} was refunded by itself")


def _right_money(
    truth: Truth, payment: Payment, came: Money, session: Session | None
) -> Iterator[Violation]:
    if (payment.received_cents, payment.received_currency) != (came.cents, came.currency):
        yield Violation("rows follow Stripe", f"{_told(payment)}: received {came.cents}")
    back = _back(truth, came.payment_intent) + payment.credited_cents
    if session is None and not _excused(truth, payment, came):
        yield Violation("paid and served", f"{_told(payment)} has no session")
    failed = any(refund.failed for refund in _of(truth, came.payment_intent))
    if session is not None and session.status not in UNSERVED:
        expected = ["refunded"] if back >= came.cents else ["fulfilled"]
        if _ours(truth, payment.id):
            yield Violation("served and refunded", f"{_told(payment)}: {session.status}")
    elif back >= came.cents:
        expected = ["refunded"]
    else:
        expected = ["held"] if failed or payment.id in truth.unwilling else ["given back"]
    if payment.status not in expected:
        yield Violation("every cent has a place", f"{_told(payment)}, expected {expected[0]}")


def _excused(truth: Truth, payment: Payment, came: Money) -> bool:
    """Whether somebody else stands where its session would be, or it went back before."""
    others = [s for s in truth.sessions if s.id != payment.session_id]
    intakes = {p.intake_id for p in truth.payments if p.customer_id == payment.customer_id}
    slots = {s.slot_id for s in others if s.slot_id is not None}
    by_hand = sum(
        refund.cents for refund in _of(truth, came.payment_intent) if refund.payment_id is None
    )
    return (
        by_hand >= came.cents
        or any(s.customer_id == payment.customer_id for s in others if s.intake_id in intakes)
        or bool(slots)
        or any(slot.over for slot in truth.slots)
    )


def _unasked(truth: Truth) -> Iterator[Violation]:
    """Money that we did not ask for is held once; what is not ours leaves nothing."""
    known = {payment.id for payment in truth.payments if payment.customer_id is not None}
    held = Counter(p.stripe_session_id for p in truth.payments if p.customer_id is None)
    for came in truth.money:
        if came.payment_id in known:
            continue
        if came.told and held[came.checkout_id] != 1:
            found = held[came.checkout_id]
            yield Violation("unasked money is held once", f"{came.checkout_id}: {found} rows")
    expected = {came.checkout_id for came in truth.money}
    for checkout_id in held:
        if checkout_id not in expected:
            yield Violation("unasked money is held once", f"{checkout_id} is none of ours")


def _refunds(truth: Truth) -> Iterator[Violation]:
    """Our rows say what Stripe has given back; we have asked for it at most once."""
    intents = {came.payment_id: came.payment_intent for came in truth.money if came.payment_id}
    for payment in truth.payments:
        intent = intents.get(payment.id) or payment.payment_intent
        back = _back(truth, intent) if intent else 0
        if payment.refunded_cents != back:
            yield Violation("refunds agree", f"{_told(payment)}: {back} at Stripe")
        if (asked := len(_ours(truth, payment.id))) > 1:
            yield Violation("one refund a payment", f"{_told(payment)}: {asked} at Stripe")
        # A person at Stripe may give back what the customer has as credits: nobody asked us.
        ours = sum(refund.cents for refund in _ours(truth, payment.id) if not refund.failed)
        given = (ours or back) if payment.credited_cents == 0 else payment.credited_cents + ours
        received = payment.received_cents
        if received is not None and given > received:
            yield Violation("never more than came", f"{_told(payment)}: {back} back")


def _ledger(truth: Truth) -> Iterator[Violation]:
    """Every event that was taken stands in the ledger once, and no other."""
    counts = Counter(truth.events)
    for event_id in truth.answered - set(truth.events):
        yield Violation("the ledger is complete", f"{event_id} was answered, and is not there")
    for event_id, count in counts.items():
        if count > 1:
            yield Violation("the ledger is complete", f"{event_id} is there {count} times")
        if event_id not in truth.answered | truth.unanswered | truth.lost:
            yield Violation("the ledger is complete", f"{event_id} was never delivered")
    for event_id in truth.unanswered:
        yield Violation("every event is taken in the end", event_id)
    for event_id in truth.taken_wrongly:
        yield Violation("only what Stripe signed just now", event_id)


def _outbox(truth: Truth) -> Iterator[Violation]:
    """Nothing is left to be done, nor given up but where Stripe is unwilling."""
    undone = {r.payment_id for r in truth.given_back if r.failed}
    for effect in truth.effects:
        if effect.given_up and effect.payment_id not in truth.unwilling | undone:
            yield Violation("the outbox runs dry", f"{effect.idempotency_key} was given up")
        if not effect.done and not effect.given_up:
            yield Violation("the outbox runs dry", f"{effect.idempotency_key} is left")


def _seats(truth: Truth) -> Iterator[Violation]:
    """A seat is taken by each booking that is not over unserved."""
    for slot in truth.slots:
        taken = sum(s.slot_id == slot.id and s.status not in UNSERVED for s in truth.sessions)
        if slot.taken != taken or taken > slot.capacity:
            yield Violation("seats", f"slot {slot.id}: {slot.taken} of {slot.capacity}, is {taken}")


def _earned(truth: Truth) -> Iterator[Violation]:
    """A completed session earns what was received, less what went back; nothing else earns."""
    earned = {earning.session_id: earning for earning in truth.earnings}
    by_session = {p.session_id: p for p in truth.payments if p.session_id is not None}
    for session in truth.sessions:
        earning = earned.get(session.id)
        if (session.status == "completed") != (earning is not None):
            yield Violation("earned once", f"session {session.id} is {session.status}")
            continue
        payment = by_session.get(session.id)
        if earning is None or payment is None or session.has_workshop:
            continue
        if earning.gross_cents != payment.received_cents:
            yield Violation("earned once", f"session {session.id}: gross {earning.gross_cents}")
        left = earning.gross_cents - payment.refunded_cents - payment.credited_cents
        net = left - (left * PLATFORM_PERCENT + 50) // 100
        has = earning.net_cents - earning.reversed_cents
        if has > net:  # less is right where a refund failed after it had been taken
            yield Violation("earnings go back", f"session {session.id}: {has} left, of {net}")
    if len(earned) != len(truth.earnings):
        yield Violation("earned once", "two rows for a session")


def _promises(truth: Truth) -> Iterator[Violation]:
    """Who was told that it is cancelled is not served; credits are what was credited."""
    for session in truth.sessions:
        if session.id in truth.cancelled and session.status != "cancelled":
            yield Violation("said and done", f"session {session.id} is {session.status}")
    credited: Counter[UUID | None] = Counter()
    for payment in truth.payments:
        credited[payment.customer_id] += payment.credited_cents
    wallets = {wallet.customer_id: wallet.balance_cents for wallet in truth.wallets}
    for customer_id, cents in credited.items():
        if customer_id is not None and wallets.get(customer_id, 0) != cents:
            found = wallets.get(customer_id, 0)
            yield Violation("credits", f"customer {customer_id}: {found}, credited {cents}")


def _bugs(truth: Truth) -> Iterator[Violation]:
    for bug in truth.bugs:
        yield Violation("no bug met", bug)


RULES: tuple[Rule, ...] = (
    _once,
    _answers,
    _unasked,
    _refunds,
    _ledger,
    _outbox,
    _seats,
    _earned,
    _promises,
    _bugs,
)


def _of(truth: Truth, payment_intent: str) -> list[GivenBack]:
    return [refund for refund in truth.given_back if refund.payment_intent == payment_intent]


def _back(truth: Truth, payment_intent: str) -> int:
    return sum(refund.cents for refund in _of(truth, payment_intent) if not refund.failed)


def _ours(truth: Truth, payment_id: UUID) -> list[GivenBack]:
    return [refund for refund in truth.given_back if refund.payment_id == payment_id]


def _told(payment: Payment) -> str:
    return (
        f"payment {payment.id} ({payment.status}, asked {payment.amount_cents} {payment.currency}, "
        f"received {payment.received_cents}, back {payment.refunded_cents} + "
        f"{payment.credited_cents})"
    )
