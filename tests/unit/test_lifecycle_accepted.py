"""What happens to a booking that somebody took: joined, given back, ended, and what is over."""

from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from dispatch.core import messages
from dispatch.core.lifecycle import (
    HANDLERS,
    LIVE,
    MOVES,
    SESSION_OF,
    Deadline,
    deadlines,
    decide,
    due_at,
)
from dispatch.core.types import (
    Booking,
    Cancel,
    Decision,
    Decline,
    Due,
    End,
    EndRound,
    Event,
    FavouriteLost,
    Join,
    Log,
    MechanicCancel,
    Open,
    Policy,
    Refund,
    Rejection,
    RequestStatus,
    Role,
    Routing,
    Seen,
    SessionStatus,
    Stage,
    StartRound,
    Widen,
)
from tests.unit.builders import (
    ANNA,
    BEN,
    CUSTOMER,
    NORTH,
    POLICY,
    SOUTH,
    T0,
    accept,
    accepted,
    active,
    after,
    at,
    booking,
    cancelled,
    candidate,
    changes,
    completed,
    expired,
    in_head_start,
    in_priority,
    opened,
    reopened,
    scheduled,
)

MECHANIC_JOINS = Join(ANNA, Role.MECHANIC)
CUSTOMER_JOINS = Join(CUSTOMER, Role.CUSTOMER)


# --- joining --------------------------------------------------------------------------------------


def test_the_minutes_run_from_when_both_have_joined() -> None:
    given = accepted()

    first = decide(given, MECHANIC_JOINS, at(20), POLICY)
    both = decide(first.booking, CUSTOMER_JOINS, at(30), POLICY)

    assert changes(given, first) == {
        "mechanic_joined_at": at(20),
        "message": messages.MECHANIC_JOINED,
    }
    assert first.effects == (Log("joined", ANNA),)
    assert changes(first.booking, both) == {
        "session_status": SessionStatus.ACTIVE,
        "customer_joined_at": at(30),
        "started_at": at(30),
        "ends_at": at(30, minutes=10),
        "join_by": None,
        "message": messages.STARTED,
    }
    assert both.effects == (Log("joined", CUSTOMER), Log("started"))
    assert deadlines(both.booking, POLICY) == {
        Deadline.WARNING: at(30, minutes=9),
        Deadline.END: at(30, minutes=10),
    }


def test_a_customer_who_was_here_first_starts_it_by_the_mechanic_s_joining() -> None:
    waiting = after(accepted(), (CUSTOMER_JOINS, at(15)))

    decision = decide(waiting, MECHANIC_JOINS, at(20), POLICY)

    assert decision.booking.session_status is SessionStatus.ACTIVE
    assert decision.booking.started_at == at(20)


@pytest.mark.parametrize("event", [MECHANIC_JOINS, CUSTOMER_JOINS])
def test_joining_twice_is_joining_once(event: Join) -> None:
    given = active()

    decision = decide(given, event, at(40), POLICY)

    assert decision == Decision(given)
    assert decision.booking is given


def test_a_session_has_one_mechanic() -> None:
    decision = decide(accepted(), Join(BEN, Role.MECHANIC), at(20), POLICY)

    assert decision.rejection == Rejection("already_joined", "accepted", "Join")


def test_a_customer_signs_the_waiver_before_joining() -> None:
    unsigned = accepted(waiver_signed=False)

    decision = decide(unsigned, CUSTOMER_JOINS, at(20), POLICY)

    assert decision.booking is unsigned
    assert decision.rejection == Rejection("waiver_required", "accepted", "Join")


# --- nobody comes ---------------------------------------------------------------------------------


def test_a_mechanic_who_does_not_come_has_cancelled() -> None:
    waiting = after(accepted(), (CUSTOMER_JOINS, at(15)))
    assert waiting.join_by == due_at(waiting, POLICY) == at(310)

    decision = decide(waiting, Due(), at(310), POLICY)

    assert decision.booking.status is RequestStatus.PENDING
    assert decision.booking.excluded == (ANNA,)
    assert decision.booking.customer_joined_at == at(15)
    assert decision.effects == (
        EndRound("taken", "released"),
        StartRound(),
        Log("mechanic_cancelled", ANNA, "mechanic_absent"),
    )


@pytest.mark.parametrize(
    "given",
    [accepted(), after(accepted(), (MECHANIC_JOINS, at(20)))],
    ids=["nobody came", "only the mechanic came"],
)
def test_a_customer_who_does_not_come_is_refunded(given: Booking) -> None:
    decision = decide(given, Due(), at(310), POLICY)

    assert changes(given, decision) == {
        "status": RequestStatus.CANCELLED,
        "session_status": SessionStatus.CANCELLED,
        "join_by": None,
        "message": messages.CANCELLED,
    }
    assert decision.effects == (
        EndRound("taken", "released"),
        Refund("customer_absent"),
        Log("cancelled", detail="customer_absent"),
    )


# --- giving it back -------------------------------------------------------------------------------


def test_a_cancelled_booking_is_offered_again_in_its_widest_stage_with_a_fresh_time_to_live() -> (
    None
):
    given = accepted()

    decision = decide(given, MechanicCancel(ANNA, "flat tyre"), at(40), POLICY)

    assert changes(given, decision) == {
        "status": RequestStatus.PENDING,
        "session_status": SessionStatus.PENDING,
        "stage": Stage.OPEN,
        "generation": 2,
        "excluded": (ANNA,),
        "mechanic_id": None,
        "accept_id": None,
        "accepted_at": None,
        "join_by": None,
        "expires_at": at(7240),
        "message": messages.MECHANIC_CANCELLED,
    }
    assert decision.effects == (
        EndRound("taken", "released"),
        StartRound(),
        Log("mechanic_cancelled", ANNA, "flat tyre"),
    )
    assert deadlines(decision.booking, POLICY) == {Deadline.EXPIRY: at(7240)}


def test_a_favourite_who_cancels_is_not_asked_alone_again() -> None:
    asked = in_priority()
    given = after(asked, (accept(asked, ANNA), at(2)))

    decision = decide(given, MechanicCancel(ANNA), at(40), POLICY)

    assert decision.booking.stage is Stage.OPEN
    assert decision.booking.stage_ends_at is None
    assert decision.booking.next_attempt_at is None
    assert decision.effects[-1] == Log("mechanic_cancelled", ANNA, "mechanic_cancelled")


def test_the_widest_stage_of_a_workshop_s_own_booking_is_the_workshop() -> None:
    asked = opened(routing=Routing.WORKSHOP_ONLY, preferred_workshop_id=NORTH)
    again = after(
        asked,
        (accept(asked, ANNA, workshop_id=NORTH), at(10)),
        (MechanicCancel(ANNA), at(40)),
    )

    stranger = decide(again, accept(again, BEN, workshop_id=SOUTH), at(50), POLICY)
    colleague = decide(again, accept(again, BEN, workshop_id=NORTH), at(50), POLICY)

    assert again.workshop_id is None
    assert stranger.rejection == Rejection("not_found", "pending/open", "Accept")
    assert colleague.booking.mechanic_id == BEN
    assert colleague.booking.workshop_id == NORTH


def test_who_gave_it_back_cannot_take_it_again_and_another_can() -> None:
    again = reopened()

    first = decide(again, accept(again, ANNA), at(50), POLICY)
    other = decide(again, accept(again, BEN), at(50), POLICY)

    assert first.rejection == Rejection("not_found", "pending/open", "Accept")
    assert other.booking.mechanic_id == BEN


def test_a_mechanic_who_leaves_before_both_were_there_has_cancelled() -> None:
    here_alone = after(accepted(), (MECHANIC_JOINS, at(20)))

    decision = decide(here_alone, End(ANNA), at(40), POLICY)

    assert decision.booking.status is RequestStatus.PENDING
    assert decision.booking.mechanic_joined_at is None
    assert decision.effects[-1] == Log("mechanic_cancelled", ANNA, "mechanic_left")


def test_a_customer_who_leaves_before_both_were_there_is_refunded() -> None:
    given = accepted()

    decision = decide(given, End(CUSTOMER), at(40), POLICY)

    assert changes(given, decision) == {
        "status": RequestStatus.CANCELLED,
        "session_status": SessionStatus.CANCELLED,
        "join_by": None,
        "ended_by": CUSTOMER,
        "message": messages.CANCELLED,
    }
    assert decision.effects == (
        EndRound("taken", "released"),
        Refund("customer_left"),
        Log("cancelled", detail="customer_left"),
    )


def test_only_the_one_who_took_it_can_give_it_back() -> None:
    decision = decide(accepted(), MechanicCancel(BEN), at(40), POLICY)

    assert decision.rejection == Rejection("not_found", "accepted", "MechanicCancel")


def test_what_has_started_is_ended_and_not_given_back() -> None:
    decision = decide(active(), MechanicCancel(ANNA), at(40), POLICY)

    assert decision.rejection == Rejection("not_open", "accepted", "MechanicCancel")


# --- the end --------------------------------------------------------------------------------------


def test_a_session_warns_once_and_ends_at_its_minutes() -> None:
    given = active()

    warned = decide(given, Due(), at(30, minutes=9), POLICY)
    too_early = decide(warned.booking, Due(), at(29.999, minutes=10), POLICY)
    ended = decide(warned.booking, Due(), at(30, minutes=10), POLICY)

    assert changes(given, warned) == {"warned_at": at(30, minutes=9)}
    assert warned.effects == (Log("warned"),)
    assert deadlines(warned.booking, POLICY) == {Deadline.END: at(30, minutes=10)}
    assert too_early.rejection == Rejection("not_due", "accepted", "Due")
    assert changes(warned.booking, ended) == {
        "status": RequestStatus.COMPLETED,
        "session_status": SessionStatus.COMPLETED,
        "message": messages.COMPLETED,
    }
    assert ended.effects == (EndRound("taken", "completed"), Log("completed"))
    assert due_at(ended.booking, POLICY) is None


def test_a_session_found_late_ends_without_a_warning() -> None:
    decision = decide(active(), Due(), at(minutes=60), POLICY)

    assert decision.booking.status is RequestStatus.COMPLETED
    assert decision.booking.warned_at is None


def test_a_session_shorter_than_the_warning_warns_at_once() -> None:
    short = after(
        accepted(minutes=1),
        (MECHANIC_JOINS, at(20)),
        (CUSTOMER_JOINS, at(30)),
        policy=Policy(plan_minute_seconds=1),
    )

    decision = decide(short, Due(), at(30), POLICY)

    assert short.ends_at == at(31)
    assert decision.effects == (Log("warned"),)


@pytest.mark.parametrize("who", [ANNA, CUSTOMER])
def test_either_side_ends_a_session_and_nothing_is_refunded(who: UUID) -> None:
    given = active()

    decision = decide(given, End(who), at(60), POLICY)

    assert changes(given, decision) == {
        "status": RequestStatus.COMPLETED,
        "session_status": SessionStatus.COMPLETED,
        "ended_by": who,
        "message": messages.COMPLETED,
    }
    assert decision.effects == (
        EndRound("taken", "completed"),
        Log("completed", who),
    )


def test_ending_is_idempotent() -> None:
    for over in (completed(), cancelled(), expired()):
        decision = decide(over, End(ANNA), at(minutes=300), POLICY)
        assert decision.booking is over
        assert decision.rejection is None


def test_everyone_who_comes_too_late_is_told_what_became_of_it() -> None:
    left = after(accepted(), (End(CUSTOMER), at(40)))
    told = [
        decide(over, accept(over, BEN), at(minutes=300), POLICY).rejection
        for over in (completed(), left, cancelled(), expired())
    ]

    assert told == [
        Rejection("taken", "completed", "Accept"),
        Rejection("taken", "cancelled", "Accept"),
        Rejection("cancelled", "cancelled", "Accept"),
        Rejection("expired", "expired", "Accept"),
    ]


def test_won_stays_won_when_it_is_over() -> None:
    over = completed()

    assert decide(over, accept(over, ANNA), at(90), POLICY).rejection is None


def test_who_was_never_meant_does_not_learn_that_it_existed() -> None:
    asked = opened(routing=Routing.WORKSHOP_ONLY, preferred_workshop_id=NORTH)
    taken = after(asked, (accept(asked, ANNA, workshop_id=NORTH), at(10)))
    over = after(asked, (Cancel(), at(10)))

    for given in (taken, over):
        decision = decide(given, accept(given, BEN, workshop_id=SOUTH), at(20), POLICY)
        assert decision.rejection is not None
        assert decision.rejection.code == "not_found"


def test_an_accept_for_a_round_before_the_last_is_unknown_to_the_core() -> None:
    over = completed()
    older = replace(accept(over, ANNA), offer_id=uuid4())

    decision = decide(over, older, at(90), POLICY)

    assert decision.rejection == Rejection("not_found", "completed", "Accept")


# --- the whole table ------------------------------------------------------------------------------

EVENTS: dict[str, Event] = {
    "open": Open(preferred_online=True),
    "due": Due(),
    "seen": Seen(ANNA),
    "lost": FavouriteLost("busy"),
    "cancel": Cancel(),
    "widen": Widen(),
    "give_back": MechanicCancel(ANNA),
    "join": CUSTOMER_JOINS,
    "end": End(CUSTOMER),
}

# State, when, and what every event does there: `+` changes it, `=` is so already, else the refusal.
# Accept and decline are Anna's, for the present round.
TABLE = """
state       open     due      seen       accept     decline    lost     cancel    widen             give_back  join           end
scheduled   not_due  not_due  not_found  not_found  not_found  not_due  +         nothing_to_widen  not_open   not_open       +
new         +        not_due  =          not_found  not_found  not_due  +         nothing_to_widen  not_open   +              +
priority    not_due  not_due  +          +          +          +        +         +                 not_open   +              +
preferred   not_due  not_due  =          +          +          not_due  +         +                 not_open   +              +
open        not_due  not_due  =          +          +          not_due  +         nothing_to_widen  not_open   +              +
accepted    not_due  not_due  not_found  =          not_found  not_due  not_open  nothing_to_widen  +          +              +
active      not_due  not_due  not_found  =          not_found  not_due  not_open  nothing_to_widen  not_open   =              +
reopened    not_due  not_due  =          not_found  =          not_due  +         nothing_to_widen  not_open   +              +
completed   not_due  not_due  not_found  =          not_found  not_due  not_open  nothing_to_widen  not_open   session_ended  =
cancelled   not_due  not_due  not_found  cancelled  not_found  not_due  not_open  nothing_to_widen  not_open   session_ended  =
expired     not_due  not_due  not_found  expired    not_found  not_due  not_open  nothing_to_widen  not_open   session_ended  =
"""  # noqa: E501 - one line a state, or it is no table

STATES: dict[str, Booking] = {
    "scheduled": scheduled(),
    "new": booking(),
    "priority": in_priority(),
    "preferred": in_head_start(),
    "open": opened(),
    "accepted": accepted(),
    "active": active(),
    "reopened": reopened(),
    "completed": completed(),
    "cancelled": cancelled(),
    "expired": expired(),
}

HEADER, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [
    (row[0], event, outcome)
    for row in ROWS
    for event, outcome in zip(HEADER[1:], row[1:], strict=True)
]


def told_state(booking: Booking) -> str:
    return f"pending/{booking.stage.value}" if booking.stage else booking.status.value


@pytest.mark.parametrize(("state", "name", "outcome"), CELLS)
def test_every_event_in_every_state_changes_it_or_names_both_and_leaves_the_very_same(
    state: str, name: str, outcome: str
) -> None:
    given = STATES[state]
    answers: dict[str, Event] = {
        "accept": accept(given, ANNA, workshop_id=NORTH),
        "decline": Decline(candidate(ANNA, workshop_id=NORTH), given.offer_id),
    }
    event = (EVENTS | answers)[name]

    decision = decide(given, event, T0, POLICY)

    if outcome == "+":
        assert decision.rejection is None
        assert decision.booking.version == given.version + 1
        assert changes(given, decision) != {}
        return
    assert decision.booking is given
    assert decision.effects == ()
    expected = (
        None if outcome == "=" else Rejection(outcome, told_state(given), type(event).__name__)
    )
    assert decision.rejection == expected


def test_the_tables_speak_of_every_status_and_agree_on_what_is_over() -> None:
    final = {RequestStatus.COMPLETED, RequestStatus.CANCELLED, RequestStatus.EXPIRED}

    assert set(MOVES) == set(SESSION_OF) == set(HANDLERS) == set(RequestStatus)
    assert set(RequestStatus) - LIVE == final
    assert {row[0] for row in ROWS} == set(STATES)


@pytest.mark.parametrize(("who", "role"), [(CUSTOMER, Role.CUSTOMER), (ANNA, Role.MECHANIC)])
def test_who_joins_after_the_deadline_is_too_late_whoever_finds_it_first(
    who: UUID, role: Role
) -> None:
    given = accepted()
    assert given.join_by is not None

    late = decide(given, Join(who, role), given.join_by, POLICY)

    assert late.booking.status is RequestStatus.CANCELLED
    assert Refund("customer_absent") in late.effects


def test_a_mechanic_who_comes_too_late_to_a_customer_who_waits_has_lost_it() -> None:
    given = decide(accepted(), Join(CUSTOMER, Role.CUSTOMER), at(5), POLICY).booking
    assert given.join_by is not None

    late = decide(given, Join(ANNA, Role.MECHANIC), given.join_by, POLICY)

    assert (late.booking.status, late.booking.generation) == (RequestStatus.PENDING, 2)
    assert late.booking.excluded == (ANNA,)


@pytest.mark.parametrize("given", [accepted(), active()], ids=["accepted", "active"])
def test_who_takes_no_part_any_more_ends_nothing(given: Booking) -> None:
    decision = decide(given, End(uuid4()), at(60), POLICY)

    assert changes(given, decision) == {}
    assert decision.rejection == Rejection("not_found", "accepted", "End")
