"""The checkers of money find each promise that is broken, and nothing where none is."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from loadtest.money import payout_rules, rules
from loadtest.money.payout_rules import CameBack, Payout, Sent, Share, Taken
from loadtest.money.truth import (
    Earning,
    Effect,
    GivenBack,
    Money,
    Payment,
    Session,
    Slot,
    Truth,
    Wallet,
)

ANN, BEA = UUID(int=1), UUID(int=2)
SERVED, UNSERVED = UUID(int=11), UUID(int=12)
SLOT = UUID(int=20)


def payment(number: int, **fields: Any) -> Payment:
    """One that was paid and fulfilled."""
    made = Payment(
        id=UUID(int=100 + number),
        customer_id=ANN,
        intake_id=UUID(int=200 + number),
        session_id=SERVED,
        stripe_session_id=f"cs_{number}",
        payment_intent=f"pi_{number}",
        amount_cents=1000,
        currency="eur",
        received_cents=1000,
        received_currency="eur",
        refunded_cents=0,
        credited_cents=0,
        status="fulfilled",
    )
    return replace(made, **fields)


def money(number: int, **fields: Any) -> Money:
    """What came for it."""
    came = Money(
        checkout_id=f"cs_{number}",
        payment_intent=f"pi_{number}",
        cents=1000,
        currency="eur",
        payment_id=UUID(int=100 + number),
        told=True,
    )
    return replace(came, **fields)


def session(session_id: UUID, number: int, status: str, **fields: Any) -> Session:
    made = Session(
        id=session_id,
        customer_id=ANN,
        intake_id=UUID(int=200 + number),
        slot_id=None,
        stripe_session_id=f"cs_{number}",
        status=status,
        has_workshop=False,
        creations=1,
        refundings=0,
    )
    return replace(made, **fields)


def refund(number: int, **fields: Any) -> GivenBack:
    made = GivenBack(
        id=f"re_{number}",
        payment_intent=f"pi_{number}",
        cents=1000,
        failed=False,
        payment_id=UUID(int=100 + number),
    )
    return replace(made, **fields)


def right() -> Truth:
    """Ann was served; she cancelled another booking, and has its money back. Bea has not paid."""
    return Truth(
        money=[money(1), money(2)],
        given_back=[refund(2)],
        closed={"cs_3": "expired"},
        unwilling=set(),
        answered={"evt_1", "evt_2"},
        unanswered=set(),
        lost=set(),
        taken_wrongly=set(),
        events=["evt_1", "evt_2"],
        payments=[
            payment(1),
            payment(2, session_id=UNSERVED, refunded_cents=1000, status="refunded"),
            payment(
                3,
                customer_id=BEA,
                session_id=None,
                payment_intent=None,
                received_cents=None,
                received_currency=None,
                status="expired",
            ),
        ],
        sessions=[
            session(SERVED, 1, "completed"),
            session(UNSERVED, 2, "cancelled", refundings=1, slot_id=SLOT),
        ],
        slots=[Slot(id=SLOT, capacity=1, taken=0, over=False)],
        effects=[
            Effect(idempotency_key="refund-2", payment_id=UUID(int=102), done=True, given_up=False)
        ],
        earnings=[Earning(session_id=SERVED, gross_cents=1000, net_cents=800, reversed_cents=0)],
        wallets=[],
        cancelled={UNSERVED},
        bugs=[],
    )


def changed(truth: Truth, name: str, index: int, **fields: Any) -> Truth:
    """The truth with one row of one list changed."""
    rows = list(getattr(truth, name))
    rows[index] = replace(rows[index], **fields)
    return replace(truth, **{name: rows})


def test_where_all_is_right_nothing_is_found() -> None:
    assert rules.check(right()) == []


BROKEN: list[tuple[str, Truth]] = [
    ("fulfilled once", changed(right(), "sessions", 0, creations=2)),
    ("fulfilled once", changed(right(), "sessions", 1, intake_id=UUID(int=201))),
    ("refunded once", changed(right(), "sessions", 1, refundings=2)),
    ("no session without payment", replace(right(), payments=right().payments[1:])),
    ("nothing for nothing", changed(right(), "payments", 2, status="fulfilled")),
    ("rows follow Stripe", changed(right(), "payments", 2, status="created")),
    ("rows follow Stripe", changed(right(), "payments", 0, received_cents=900)),
    ("wrong money is held", changed(right(), "money", 0, cents=900)),
    ("served and refunded", replace(right(), given_back=[refund(1), refund(2)])),
    ("every cent has a place", changed(right(), "payments", 1, status="fulfilled")),
    ("every cent has a place", changed(right(), "payments", 0, status="created")),
    ("every cent has a place", replace(right(), given_back=[])),
    ("refunds agree", changed(right(), "payments", 1, refunded_cents=500)),
    ("one refund a payment", replace(right(), given_back=[refund(2), refund(2, id="re_3")])),
    ("unasked money is held once", replace(right(), money=[*right().money, money(9)])),
    ("the ledger is complete", replace(right(), events=["evt_1"])),
    ("the ledger is complete", replace(right(), events=["evt_1", "evt_2", "evt_2"])),
    ("every event is taken in the end", replace(right(), unanswered={"evt_3"})),
    ("only what Stripe signed just now", replace(right(), taken_wrongly={"evt_3 stale"})),
    ("the outbox runs dry", changed(right(), "effects", 0, done=False)),
    ("the outbox runs dry", changed(right(), "effects", 0, done=False, given_up=True)),
    ("seats", changed(right(), "slots", 0, taken=1)),
    ("earned once", replace(right(), earnings=[])),
    ("earned once", changed(right(), "sessions", 0, status="pending")),
    ("earned once", changed(right(), "earnings", 0, gross_cents=900)),
    ("earnings go back", changed(right(), "earnings", 0, net_cents=801)),
    ("said and done", replace(right(), cancelled={SERVED})),
    ("credits", replace(right(), wallets=[Wallet(customer_id=ANN, balance_cents=5)])),
    ("no bug met", replace(right(), bugs=["a traceback"])),
]


@pytest.mark.parametrize(
    ("rule", "truth"), BROKEN, ids=[f"{n} {r}" for n, (r, _) in enumerate(BROKEN)]
)
def test_each_broken_promise_is_found(rule: str, truth: Truth) -> None:
    assert rule in {violation.rule for violation in rules.check(truth)}


def test_who_paid_and_was_not_served_has_a_reason_or_is_found() -> None:
    lonely = replace(
        right(),
        sessions=[],
        slots=[],
        earnings=[],
        cancelled=set(),
        payments=[payment(1, session_id=None, refunded_cents=1000, status="refunded")],
        money=[money(1)],
        given_back=[refund(1)],
        effects=[],
        closed={},
    )
    another = session(SERVED, 1, "pending", id=uuid4(), stripe_session_id="cs_9")

    assert [v.rule for v in rules.check(lonely)] == ["paid and served"]
    assert "paid and served" not in {
        violation.rule for violation in rules.check(replace(lonely, sessions=[another]))
    }


# --- payouts --------------------------------------------------------------------------------------

MAX = UUID(int=31)
PAID, FAILED = UUID(int=41), UUID(int=42)
TAKEN = UUID(int=51)


def paid_out() -> payout_rules.Truth:
    """Max earned twice; the payout of it was paid, and a part came back. Another had failed."""
    return payout_rules.Truth(
        sent=[Sent(id="tr_1", payout_id=PAID, cents=1600, currency="eur", destination="acct_1")],
        came_back=[CameBack(id="trr_1", transfer_id="tr_1", reversal_id=TAKEN, cents=400)],
        payouts=[
            Payout(
                id=PAID,
                payee_id=MAX,
                stripe_account_id="acct_1",
                amount_cents=1600,
                currency="eur",
                status="paid",
                stripe_transfer_id="tr_1",
                reversed_cents=400,
            ),
            Payout(
                id=FAILED,
                payee_id=MAX,
                stripe_account_id="acct_1",
                amount_cents=800,
                currency="eur",
                status="failed",
                stripe_transfer_id=None,
                reversed_cents=0,
            ),
        ],
        taken=[
            Taken(
                id=TAKEN,
                payout_id=PAID,
                amount_cents=400,
                status="reversed",
                stripe_reversal_id="trr_1",
                settled_by=None,
            )
        ],
        shares=[share(1, reversed_cents=400, given_back_cents=500), share(2)],
        accounts={MAX: "acct_1"},
        back_at_stripe={UUID(int=1): 500},
        left_in_outbox=[],
        unanswered=[],
        bugs=[],
    )


def share(number: int, **fields: Any) -> Share:
    earned = Share(
        session_id=UUID(int=number),
        payee_id=MAX,
        gross_cents=1000,
        net_cents=800,
        reversed_cents=0,
        is_referral=False,
        payout_status="paid",
        payout_id=PAID,
        given_back_cents=0,
    )
    return replace(earned, **fields)


def altered(name: str, index: int, **fields: Any) -> payout_rules.Truth:
    """What was paid out, with one row of one list changed."""
    rows = list(getattr(paid_out(), name))
    rows[index] = replace(rows[index], **fields)
    return replace(paid_out(), **{name: rows})


def test_where_all_was_paid_out_right_nothing_is_found() -> None:
    assert payout_rules.check(paid_out()) == []


WRONG: list[tuple[str, payout_rules.Truth]] = [
    ("sent once", replace(paid_out(), sent=[*paid_out().sent, *paid_out().sent])),
    ("sent once", replace(paid_out(), sent=[])),
    ("sent once", altered("sent", 0, payout_id=FAILED)),
    ("sent as it stands", altered("sent", 0, cents=1601)),
    ("sent as it stands", altered("sent", 0, destination="acct_2")),
    ("payouts are settled", altered("payouts", 0, status="processing")),
    ("reversals are settled", altered("taken", 0, status="pending")),
    ("came back once", replace(paid_out(), came_back=[*paid_out().came_back] * 2)),
    ("came back once", altered("taken", 0, status="failed", stripe_reversal_id=None)),
    ("came back as it stands", altered("came_back", 0, cents=401)),
    ("reversals agree", altered("payouts", 0, reversed_cents=0)),
    ("payouts add up", altered("shares", 1, net_cents=801)),
    ("each has what she earned", altered("came_back", 0, cents=399)),
    ("all is paid in the end", altered("shares", 1, payout_status="failed", payout_id=FAILED)),
    ("earnings follow their payout", altered("shares", 1, payout_status="processing")),
    ("refunds agree", altered("shares", 0, given_back_cents=400)),
    ("her share goes back", altered("shares", 0, reversed_cents=399)),
    ("the outbox runs dry", replace(paid_out(), left_in_outbox=["payout-1"])),
]


@pytest.mark.parametrize(
    ("rule", "truth"), WRONG, ids=[f"{n} {r}" for n, (r, _) in enumerate(WRONG)]
)
def test_each_wrong_payout_is_found(rule: str, truth: payout_rules.Truth) -> None:
    assert rule in {violation.rule for violation in payout_rules.check(truth)}
