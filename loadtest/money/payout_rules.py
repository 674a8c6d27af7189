"""The checker of payouts: money was sent once and came back once, and each has what she earned.

One job: from the truth at the end to the promises that were broken. Pure; it knows the rules and
nothing of how the server works. `sent`, `came_back` are Stripe's books, all others our rows.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from uuid import UUID

from msgspec import Struct

from loadtest.money.rules import Violation


class Sent(Struct, frozen=True, kw_only=True):
    """A transfer at Stripe."""

    id: str
    payout_id: UUID
    cents: int
    currency: str
    destination: str


class CameBack(Struct, frozen=True, kw_only=True):
    """A reversal at Stripe, under the id that we gave it."""

    id: str
    transfer_id: str
    reversal_id: UUID
    cents: int


class Payout(Struct, frozen=True, kw_only=True):
    """A row of ours; `payee_id` is a workshop's or a mechanic's."""

    id: UUID
    payee_id: UUID
    stripe_account_id: str
    amount_cents: int
    currency: str
    status: str
    stripe_transfer_id: str | None
    reversed_cents: int


class Taken(Struct, frozen=True, kw_only=True):
    """What was taken back of a payout: a row of ours."""

    id: UUID
    payout_id: UUID
    amount_cents: int
    status: str
    stripe_reversal_id: str | None
    settled_by: UUID | None


class Share(Struct, frozen=True, kw_only=True):
    """What somebody earned of a session: a row of ours, with what its customer got back."""

    session_id: UUID
    payee_id: UUID
    gross_cents: int
    net_cents: int
    reversed_cents: int
    is_referral: bool
    payout_status: str
    payout_id: UUID | None
    given_back_cents: int


class Truth(Struct, frozen=True, kw_only=True):
    """All of it, when nothing is due any more and everybody was paid who can be. `owed` is what
    payees could still be paid by our own account; `accounts` tells whom accounts belong to."""

    sent: list[Sent]
    came_back: list[CameBack]
    payouts: list[Payout]
    taken: list[Taken]
    shares: list[Share]
    accounts: dict[UUID, str]
    back_at_stripe: dict[UUID, int]  # cents by session
    left_in_outbox: list[str]
    unanswered: list[str]
    bugs: list[str]


Rule = Callable[[Truth], Iterator[Violation]]


def check(truth: Truth) -> list[Violation]:
    """Every violation, rule by rule. Empty: all promises held."""
    return [violation for rule in RULES for violation in rule(truth)]


def _sent_once(truth: Truth) -> Iterator[Violation]:
    """A payout is one transfer of just that, if it was paid, and none if it failed."""
    sent = Counter(transfer.payout_id for transfer in truth.sent)
    by_payout = {transfer.payout_id: transfer for transfer in truth.sent}
    for payout in truth.payouts:
        if payout.status not in ("paid", "failed"):
            yield Violation("payouts are settled", f"{payout.id} is {payout.status}")
        if sent[payout.id] != (payout.status == "paid"):
            yield Violation("sent once", f"{payout.id} is {payout.status}: {sent[payout.id]} sent")
        made = by_payout.get(payout.id)
        if made is None:
            continue
        if (made.cents, made.currency, made.destination) != (
            payout.amount_cents,
            payout.currency,
            payout.stripe_account_id,
        ) or made.id != payout.stripe_transfer_id:
            yield Violation("sent as it stands", f"{payout.id}: {payout.amount_cents}, {made}")
    for payout_id in sent.keys() - {payout.id for payout in truth.payouts}:
        yield Violation("sent once", f"{payout_id} is no payout of ours")


def _came_back_once(truth: Truth) -> Iterator[Violation]:
    """A reversal is made once where it was not refused, and never of what was not paid."""
    made = Counter(back.reversal_id for back in truth.came_back)
    by_id = {back.reversal_id: back for back in truth.came_back}
    transfers = {payout.id: payout.stripe_transfer_id for payout in truth.payouts}
    for taken in truth.taken:
        if taken.status not in ("reversed", "failed", "void"):
            yield Violation("reversals are settled", f"{taken.id} is {taken.status}")
        if made[taken.id] != (taken.status == "reversed"):
            yield Violation("came back once", f"{taken.id} is {taken.status}: {made[taken.id]}")
        back = by_id.get(taken.id)
        if back is not None and (back.cents, back.id, back.transfer_id) != (
            taken.amount_cents,
            taken.stripe_reversal_id,
            transfers[taken.payout_id],
        ):
            yield Violation("came back as it stands", f"{taken}, {back}")
    for reversal_id in made.keys() - {taken.id for taken in truth.taken}:
        yield Violation("came back once", f"{reversal_id} is no reversal of ours")
    came = Counter[str | None]()
    for back in truth.came_back:
        came[back.transfer_id] += back.cents
    for payout in truth.payouts:
        if payout.stripe_transfer_id and payout.reversed_cents != came[payout.stripe_transfer_id]:
            yield Violation("reversals agree", f"{payout}: {came[payout.stripe_transfer_id]}")


def _amounts(truth: Truth) -> Iterator[Violation]:
    """A payout that was paid is, to the cent, what it was made of."""
    for payout in truth.payouts:
        if payout.status != "paid":
            continue
        earned = sum(_left(share) for share in truth.shares if share.payout_id == payout.id)
        taken = sum(t.amount_cents for t in truth.taken if t.payout_id == payout.id)
        debts = sum(t.amount_cents for t in truth.taken if t.settled_by == payout.id)
        if payout.amount_cents != earned + taken - debts:
            parts = f"{earned} + {taken} - {debts}"
            yield Violation("payouts add up", f"{payout.id}: {payout.amount_cents} is not {parts}")


def _each_has(truth: Truth) -> Iterator[Violation]:
    """What a payee has of us is what she earned in paid payouts, and what she owes."""
    statuses = {payout.id: payout.status for payout in truth.payouts}
    payees = {payout.id: payout.payee_id for payout in truth.payouts}
    back = Counter[str]()
    for reversal in truth.came_back:
        back[reversal.transfer_id] += reversal.cents
    for payee_id, account in truth.accounts.items():
        has = sum(t.cents - back[t.id] for t in truth.sent if t.destination == account)
        shares = [share for share in truth.shares if share.payee_id == payee_id]
        earned = sum(_left(share) for share in shares if share.payout_status == "paid")
        owes = sum(
            taken.amount_cents
            for taken in truth.taken
            if payees[taken.payout_id] == payee_id
            and taken.status == "failed"
            and (taken.settled_by is None or statuses[taken.settled_by] != "paid")
        )
        if has != earned + owes:
            yield Violation("each has what she earned", f"{has} is not {earned} + {owes}")
        due = sum(_left(share) for share in shares if share.payout_status != "paid")
        if due > owes:
            yield Violation("all is paid in the end", f"{due} due, and {owes} owed back")
        for share in shares:
            if share.payout_id is not None and statuses[share.payout_id] != share.payout_status:
                yield Violation("earnings follow their payout", f"{share}")


def _shares(truth: Truth) -> Iterator[Violation]:
    """Who earned gives back her share of what the customer got back: no more, and no less."""
    for share in truth.shares:
        back = truth.back_at_stripe.get(share.session_id, 0)
        if share.given_back_cents != back:
            yield Violation("refunds agree", f"{share}: {back} at Stripe")
        twice = 2 * share.net_cents * back + share.gross_cents - share.is_referral
        if share.reversed_cents != twice // (2 * share.gross_cents):
            yield Violation("her share goes back", f"{share}: of {back}")


def _rest(truth: Truth) -> Iterator[Violation]:
    for key in truth.left_in_outbox:
        yield Violation("the outbox runs dry", key)
    for event_id in truth.unanswered:
        yield Violation("every event is taken in the end", event_id)
    for bug in truth.bugs:
        yield Violation("no bug met", bug)


RULES: tuple[Rule, ...] = (_sent_once, _came_back_once, _amounts, _each_has, _shares, _rest)


def _left(share: Share) -> int:
    return share.net_cents - share.reversed_cents
