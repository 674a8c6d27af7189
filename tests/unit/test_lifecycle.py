"""How a booking is opened and offered, until somebody takes it or nobody does."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID, uuid4

import pytest
from msgspec.structs import replace

from dispatch.core import messages
from dispatch.core.lifecycle import Deadline, deadlines, decide, due_at, opening_is_due
from dispatch.core.types import (
    Accept,
    Answered,
    Ask,
    Booking,
    Cancel,
    Candidate,
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
    Presence,
    Refund,
    Rejection,
    RequestStatus,
    Role,
    Routing,
    Seen,
    SessionStatus,
    Stage,
    Summon,
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
    after,
    at,
    booking,
    candidate,
    changes,
    in_head_start,
    in_priority,
    opened,
    scheduled,
)

CLOSED = {"stage": None, "stage_ends_at": None, "next_attempt_at": None}
TO_EVERYONE = {"stage": Stage.OPEN, "stage_ends_at": None, "message": messages.LOOKING}
FALLEN_BACK = TO_EVERYONE | {"message": messages.FALLEN_BACK}


# --- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", [Routing.BROADCAST, Routing.WORKSHOP_ONLY])
def test_a_broadcast_and_a_workshop_s_own_booking_open_for_all_who_are_meant(
    routing: Routing,
) -> None:
    new = booking(routing=routing, preferred_workshop_id=NORTH)

    decision = decide(new, Open(), T0, POLICY)

    assert changes(new, decision) == {"stage": Stage.OPEN, "message": messages.LOOKING}
    assert decision.booking.version == new.version + 1
    assert decision.effects == (Log("opened", detail="open"),)
    assert deadlines(decision.booking, POLICY) == {Deadline.EXPIRY: new.expires_at}


def test_a_hybrid_booking_gives_the_preferred_workshop_a_head_start() -> None:
    new = booking(routing=Routing.HYBRID, preferred_workshop_id=NORTH)

    decision = decide(new, Open(preferred_online=True), T0, POLICY)

    assert changes(new, decision) == {
        "stage": Stage.PREFERRED,
        "stage_ends_at": at(3),
        "message": messages.ASKING_WORKSHOP,
    }
    assert decision.effects == (Log("opened", detail="preferred"),)
    assert due_at(decision.booking, POLICY) == at(3)


@pytest.mark.parametrize(
    ("preferred_online", "policy"),
    [(False, POLICY), (True, Policy(head_start_seconds=0))],
    ids=["nobody of it is online", "no head start is configured"],
)
def test_a_hybrid_booking_opens_for_everyone_where_a_head_start_has_no_use(
    preferred_online: bool, policy: Policy
) -> None:
    new = booking(routing=Routing.HYBRID, preferred_workshop_id=NORTH)

    decision = decide(new, Open(preferred_online=preferred_online), T0, policy)

    assert decision.booking.stage is Stage.OPEN


@pytest.mark.parametrize(
    ("waits", "presence", "window_minutes", "next_attempt_at", "message"),
    [
        (False, Presence.ONLINE, 10, at(5), messages.ASKING_FAVOURITE),
        (False, Presence.OFFLINE, 10, at(5), messages.ASKING_FAVOURITE),
        (True, Presence.ONLINE, 10, at(5), messages.ASKING_FAVOURITE),
        (True, Presence.OFFLINE, 30, None, messages.WAITING_FOR_FAVOURITE),
        (True, Presence.UNKNOWN, 30, None, messages.WAITING_FOR_FAVOURITE),
    ],
)
def test_a_favourite_is_asked_alone_and_waited_for_where_the_customer_chose_to(
    waits: bool,
    presence: Presence,
    window_minutes: int,
    next_attempt_at: datetime | None,
    message: str,
) -> None:
    new = booking(routing=Routing.PRIORITY, preferred_mechanic_id=ANNA, wait_for_preferred=waits)

    decision = decide(new, Open(favourite=candidate(ANNA), favourite_presence=presence), T0, POLICY)

    expected = {
        "stage": Stage.PRIORITY,
        "stage_ends_at": at(minutes=window_minutes),
        "priority_notified_at": T0,
        "next_attempt_at": next_attempt_at,
        "message": message,
    }
    if next_attempt_at is None:
        del expected["next_attempt_at"]
    assert changes(new, decision) == expected
    push = presence is not Presence.ONLINE
    assert decision.effects == (Ask(ANNA, 1, push), Log("opened", detail="priority"))


@pytest.mark.parametrize(
    ("favourite", "why"),
    [
        (None, "gone"),
        (candidate(ANNA, approved=False), "not_approved"),
        (candidate(ANNA, available=False), "unavailable"),
        (candidate(ANNA, live_sessions=1), "busy"),
    ],
)
def test_a_favourite_who_cannot_take_it_is_not_waited_for(
    favourite: Candidate | None, why: str
) -> None:
    new = booking(routing=Routing.PRIORITY, preferred_mechanic_id=ANNA)

    decision = decide(new, Open(favourite=favourite), T0, POLICY)

    assert changes(new, decision) == {
        "stage": Stage.OPEN,
        "fallback_broadcast_at": T0,
        "message": messages.FALLEN_BACK,
    }
    assert decision.effects == (Log("opened", detail="open"), Log("widened", detail=why))


def test_a_favourite_who_is_no_specialist_is_not_asked_for_a_specialist_s_work() -> None:
    new = booking(routing=Routing.PRIORITY, preferred_mechanic_id=ANNA, is_specialist=True)

    decision = decide(new, Open(favourite=candidate(ANNA)), T0, POLICY)

    assert decision.effects[-1] == Log("widened", detail="not_specialist")


def test_an_urgent_booking_that_is_open_to_everyone_summons_who_is_not_there() -> None:
    urgent = booking(urgent=True)
    for_favourite = in_priority(urgent=True)
    taken = accepted(urgent=True)

    at_once = decide(urgent, Open(), T0, POLICY)
    fallen_back = decide(for_favourite, Widen(), at(1), POLICY)
    given_back = decide(taken, MechanicCancel(ANNA), at(9), POLICY)

    for decision in (at_once, fallen_back, given_back):
        assert Summon() in decision.effects
    calm = decide(booking(), Open(), T0, POLICY)
    assert Summon() not in calm.effects


@pytest.mark.parametrize("given", [in_priority, in_head_start])
def test_no_stage_outlives_the_request(given: Callable[..., Booking]) -> None:
    staged = given(expires_at=at(2))

    assert staged.stage_ends_at == staged.expires_at == at(2)


def test_a_booking_found_hours_late_expires_without_being_offered_for_an_instant() -> None:
    new = booking(routing=Routing.PRIORITY, preferred_mechanic_id=ANNA)

    decision = decide(new, Open(favourite=candidate(ANNA)), new.expires_at, POLICY)

    assert decision.booking.status is RequestStatus.EXPIRED
    assert decision.effects == (
        EndRound("expired", "released"),
        Refund("expired"),
        Log("expired"),
    )


def test_what_is_opened_already_is_not_opened_again() -> None:
    given = opened()

    decision = decide(given, Open(), at(1), POLICY)

    assert decision.booking is given
    assert decision.rejection == Rejection("not_due", "pending/open", "Open")


# --- a booking for later --------------------------------------------------------------------------


def test_a_booking_for_later_waits_for_its_slot_and_only_then_starts_its_time_to_live() -> None:
    later = scheduled()
    opens_at = later.opens_at

    early = decide(later, Open(), at(-0.001, minutes=60), POLICY)
    on_time = decide(later, Open(), opens_at, POLICY)

    assert not opening_is_due(later, at(-0.001, minutes=60), POLICY)
    assert early.booking is later
    assert early.rejection == Rejection("not_due", "scheduled", "Open")
    assert opening_is_due(later, opens_at, POLICY)
    assert changes(later, on_time) == {
        "status": RequestStatus.PENDING,
        "session_status": SessionStatus.PENDING,
        "stage": Stage.OPEN,
        "message": messages.LOOKING,
    }
    assert on_time.booking.expires_at == at(7200, minutes=60)


def test_a_slot_that_opens_while_another_session_lives_is_tried_until_it_ends() -> None:
    later = scheduled()

    busy = decide(later, Open(customer_busy=True), at(minutes=60), POLICY)
    free = decide(busy.booking, Open(), at(5, minutes=60), POLICY)

    assert changes(later, busy) == {"next_attempt_at": at(5, minutes=60)}
    assert busy.effects == (Log("opening_postponed"),)
    assert due_at(busy.booking, POLICY) == at(5, minutes=60)
    assert free.booking.stage is Stage.OPEN
    assert free.booking.next_attempt_at is None
    assert free.booking.expires_at == at(7205, minutes=60)


def test_a_slot_that_ended_before_the_customer_was_free_is_refunded() -> None:
    later = scheduled()
    busy = after(later, (Open(customer_busy=True), at(-1, minutes=90)))

    decision = decide(busy, Open(customer_busy=True), at(4, minutes=90), POLICY)

    assert changes(later, decision) == {
        "status": RequestStatus.EXPIRED,
        "session_status": SessionStatus.EXPIRED,
        "message": messages.EXPIRED,
    }
    assert Refund("expired") in decision.effects


def test_a_booking_for_later_can_be_cancelled_before_it_opens() -> None:
    decision = decide(scheduled(), Cancel(), T0, POLICY)

    assert decision.booking.status is RequestStatus.CANCELLED
    assert decision.effects == (
        EndRound("cancelled", "released"),
        Refund("cancelled"),
        Log("cancelled"),
    )
    assert deadlines(decision.booking, POLICY) == {}


# --- asking the favourite -------------------------------------------------------------------------


def test_an_unseen_offer_is_sent_again_twice_and_then_everyone_is_asked() -> None:
    first = in_priority()

    second = decide(first, Due(), at(5), POLICY)
    third = decide(second.booking, Due(), at(10), POLICY)
    fallback = decide(third.booking, Due(), at(15), POLICY)

    assert changes(first, second) == {"attempt": 2, "next_attempt_at": at(10)}
    assert second.effects == (Ask(ANNA, 2, push=True), Log("asked_again", ANNA, "2 of 3"))
    assert changes(second.booking, third) == {"attempt": 3, "next_attempt_at": at(15)}
    assert third.effects == (Ask(ANNA, 3, push=True), Log("asked_again", ANNA, "3 of 3"))
    assert changes(third.booking, fallback) == FALLEN_BACK | {
        "attempt": 1,
        "next_attempt_at": None,
        "fallback_broadcast_at": at(15),
    }
    assert fallback.effects == (Log("widened", detail="unseen"),)


def test_a_favourite_who_saw_it_has_her_whole_window() -> None:
    given = in_priority()

    seen = decide(given, Seen(ANNA), at(4), POLICY)
    fallback = decide(seen.booking, Due(), at(minutes=10), POLICY)

    assert changes(given, seen) == {
        "seen_at": at(4),
        "next_attempt_at": None,
        "message": messages.FAVOURITE_SAW,
    }
    assert seen.effects == (Answered(ANNA, "seen"), Log("seen", ANNA))
    assert due_at(seen.booking, POLICY) == at(minutes=10)
    assert changes(seen.booking, fallback) == FALLEN_BACK | {
        "fallback_broadcast_at": at(minutes=10)
    }
    assert fallback.effects == (Log("widened", detail="window_ended"),)


def test_a_favourite_who_is_waited_for_has_half_an_hour_and_no_attempts() -> None:
    given = in_priority(Presence.OFFLINE, wait_for_preferred=True)

    assert deadlines(given, POLICY) == {
        Deadline.EXPIRY: given.expires_at,
        Deadline.STAGE_END: at(minutes=30),
    }
    seen = decide(given, Seen(ANNA), at(60), POLICY)
    assert changes(given, seen) == {"seen_at": at(60), "message": messages.FAVOURITE_SAW}
    assert decide(seen.booking, Seen(ANNA), at(61), POLICY).booking is seen.booking


@pytest.mark.parametrize(
    ("given", "who"), [(in_priority(), BEN), (opened(), ANNA), (in_head_start(), ANNA)]
)
def test_seeing_changes_a_booking_only_where_its_favourite_is_waited_to_see(
    given: Booking, who: UUID
) -> None:
    decision = decide(given, Seen(who), at(1), POLICY)

    assert decision.booking is given
    assert decision.rejection is None


def test_a_favourite_s_decline_asks_everyone_else_at_once() -> None:
    given = in_priority()

    decision = decide(given, Decline(candidate(ANNA), given.offer_id, "far away"), at(2), POLICY)

    assert changes(given, decision) == FALLEN_BACK | {
        "excluded": (ANNA,),
        "next_attempt_at": None,
        "fallback_broadcast_at": at(2),
    }
    assert decision.effects == (
        Answered(ANNA, "declined", "far away"),
        Log("declined", ANNA, "far away"),
        Log("widened", detail="declined"),
    )


@pytest.mark.parametrize("why", ["busy", "unavailable", "gone"])
def test_a_favourite_who_is_lost_is_not_waited_for_any_longer(why: str) -> None:
    given = in_priority()

    decision = decide(given, FavouriteLost(why), at(7), POLICY)

    assert decision.booking.stage is Stage.OPEN
    assert decision.booking.fallback_broadcast_at == at(7)
    assert decision.effects == (Log("widened", detail=why),)


@pytest.mark.parametrize(
    "event",
    [FavouriteLost("unavailable"), Widen(), Decline(candidate(ANNA), in_priority().offer_id)],
)
def test_who_comes_after_the_expiry_finds_it_expired(event: Event) -> None:
    given = in_priority()
    if isinstance(event, Decline):
        event = replace(event, offer_id=given.offer_id)

    decision = decide(given, event, given.expires_at, POLICY)

    assert decision.booking.status is RequestStatus.EXPIRED
    assert Refund("expired") in decision.effects


def test_widening_keeps_the_round_so_that_the_favourite_s_card_still_counts() -> None:
    given = in_priority()

    widened = decide(given, Widen(), at(7), POLICY).booking
    taken = decide(widened, accept(given, ANNA), at(8), POLICY)

    assert (widened.offer_id, widened.generation) == (given.offer_id, given.generation)
    assert taken.booking.mechanic_id == ANNA


# --- the head start -------------------------------------------------------------------------------


def test_a_head_start_ends_by_itself() -> None:
    given = in_head_start()

    decision = decide(given, Due(), at(3), POLICY)

    assert changes(given, decision) == TO_EVERYONE
    assert decision.effects == (Log("widened", detail="head_start_ended"),)


def test_a_customer_ends_a_head_start_at_once() -> None:
    given = in_head_start()

    decision = decide(given, Widen(), at(1), POLICY)

    assert changes(given, decision) == TO_EVERYONE
    assert decision.effects == (Log("widened", detail="customer_widened"),)


def test_a_customer_who_widens_gives_up_on_the_favourite() -> None:
    given = in_priority()

    decision = decide(given, Widen(), at(1), POLICY)

    assert changes(given, decision) == TO_EVERYONE | {
        "next_attempt_at": None,
        "fallback_broadcast_at": at(1),
    }
    assert decision.effects == (Log("widened", detail="customer_widened"),)


# --- declining ------------------------------------------------------------------------------------


def test_a_decline_only_excludes_who_declined() -> None:
    given = opened()

    decision = decide(given, Decline(candidate(BEN), given.offer_id), at(1), POLICY)
    again = decide(decision.booking, Decline(candidate(BEN), given.offer_id), at(2), POLICY)

    assert changes(given, decision) == {"excluded": (BEN,)}
    assert decision.effects == (Answered(BEN, "declined"), Log("declined", BEN))
    assert again.booking is decision.booking
    assert again.rejection is None


@pytest.mark.parametrize(
    "refused",
    [
        lambda given: Decline(candidate(BEN), uuid4()),
        lambda given: Decline(candidate(BEN, approved=False), given.offer_id),
        lambda given: Decline(candidate(BEN, workshop_id=SOUTH), given.offer_id),
    ],
    ids=["another round", "not approved", "not of the workshop"],
)
def test_who_was_not_meant_cannot_decline(refused: Callable[[Booking], Decline]) -> None:
    given = in_head_start()

    decision = decide(given, refused(given), at(1), POLICY)

    assert decision.booking is given
    assert decision.rejection == Rejection("not_found", "pending/preferred", "Decline")


# --- accepting ------------------------------------------------------------------------------------


def test_the_first_accept_wins_and_starts_the_time_to_join() -> None:
    given = opened()
    event = accept(given, ANNA, workshop_id=SOUTH)

    decision = decide(given, event, at(10), POLICY)

    assert changes(given, decision) == {
        "status": RequestStatus.ACCEPTED,
        "session_status": SessionStatus.ACCEPTED,
        "stage": None,
        "mechanic_id": ANNA,
        "workshop_id": SOUTH,
        "accept_id": event.accept_id,
        "accepted_at": at(10),
        "join_by": at(310),
        "message": messages.ACCEPTED,
    }
    assert decision.effects == (Log("accepted", ANNA),)
    assert deadlines(decision.booking, POLICY) == {Deadline.JOIN_BY: at(310)}


def test_an_accept_ends_every_deadline_of_the_stage() -> None:
    given = in_priority()

    decision = decide(given, accept(given, ANNA), at(1), POLICY)

    assert decision.booking.stage_ends_at is None
    assert decision.booking.next_attempt_at is None


def test_the_winner_wins_again_and_everybody_else_is_told_that_it_is_taken() -> None:
    given = accepted()

    winner = decide(given, accept(given, ANNA), at(11), POLICY)
    loser = decide(given, accept(given, BEN), at(11), POLICY)

    assert winner.booking is given
    assert winner.rejection is None
    assert loser.booking is given
    assert loser.rejection == Rejection("taken", "accepted", "Accept")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"approved": False}, "not_found"),
        ({"workshop_id": SOUTH}, "not_found"),
        ({"workshop_id": NORTH, "available": False}, "unavailable"),
        ({"workshop_id": NORTH, "live_sessions": 1}, "busy"),
        ({"workshop_id": SOUTH, "available": False}, "not_found"),
    ],
)
def test_an_accept_that_does_not_count_is_told_why(facts: dict[str, object], reason: str) -> None:
    given = in_head_start()

    decision = decide(given, accept(given, BEN, **facts), at(1), POLICY)

    assert decision.booking is given
    assert decision.rejection == Rejection(reason, "pending/preferred", "Accept")


@pytest.mark.parametrize("given", [in_priority(), in_head_start(), opened(excluded=(BEN,))])
def test_by_hand_it_is_given_to_whom_the_stage_is_not_meant_for(given: Booking) -> None:
    event = replace(accept(given, BEN), assigned_by=uuid4())

    decision = decide(given, event, at(1), POLICY)

    assert decision.booking.mechanic_id == BEN
    assert decision.effects == (Log("accepted", BEN),)
    assert decide(given, accept(given, BEN), at(1), POLICY).rejection is not None


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"approved": False}, "not_found"),
        ({"available": False}, "unavailable"),
        ({"live_sessions": 1}, "busy"),
    ],
)
def test_by_hand_too_she_must_be_able_to_take_it(facts: dict[str, object], reason: str) -> None:
    given = in_priority()
    event = replace(accept(given, BEN, **facts), assigned_by=uuid4())

    decision = decide(given, event, at(1), POLICY)

    assert decision.booking is given
    assert decision.rejection == Rejection(reason, "pending/priority", "Accept")


def test_an_accept_for_another_round_is_unknown() -> None:
    for given in (opened(), accepted()):
        decision = decide(given, Accept(candidate(BEN), uuid4(), uuid4()), at(11), POLICY)
        assert decision.rejection is not None
        assert decision.rejection.code == "not_found"


def test_an_accept_at_the_very_expiry_is_too_late_though_nobody_fired_it_yet() -> None:
    given = opened()

    late = decide(given, accept(given), given.expires_at, POLICY)
    stranger = decide(given, accept(given, approved=False), given.expires_at, POLICY)
    in_time = decide(given, accept(given), at(7199.999), POLICY)

    assert late.rejection == Rejection("expired", "pending/open", "Accept")
    assert stranger.rejection == Rejection("not_found", "pending/open", "Accept")
    assert in_time.booking.mechanic_id == ANNA


def test_nobody_can_take_what_has_not_been_opened() -> None:
    given = booking()

    decision = decide(given, accept(given), T0, POLICY)

    assert decision.rejection == Rejection("not_found", "pending", "Accept")


# --- giving up ------------------------------------------------------------------------------------


def test_who_gives_up_may_have_credits_instead_of_money() -> None:
    given = opened()

    decision = decide(given, Cancel(refund_as="credits"), at(1), POLICY)

    assert decision == replace(
        decide(given, Cancel(), at(1), POLICY),
        effects=(
            EndRound("cancelled", "released"),
            Refund("cancelled", "credits"),
            Log("cancelled"),
        ),
    )


@pytest.mark.parametrize("event", [Cancel(), End(CUSTOMER)])
@pytest.mark.parametrize("given", [booking(), opened(), in_priority(), in_head_start()])
def test_a_customer_who_gives_up_before_an_accept_is_refunded(
    given: Booking, event: Cancel | End
) -> None:
    decision = decide(given, event, at(1), POLICY)

    assert decision.booking.status is RequestStatus.CANCELLED
    assert decision.booking.session_status is SessionStatus.CANCELLED
    assert {name: getattr(decision.booking, name) for name in CLOSED} == CLOSED
    assert decision.booking.message == messages.CANCELLED
    assert decision.effects == (
        EndRound("cancelled", "released"),
        Refund("cancelled"),
        Log("cancelled"),
    )
    assert due_at(decision.booking, POLICY) is None


def test_a_request_that_nobody_takes_expires_and_is_refunded() -> None:
    given = opened()

    decision = decide(given, Due(), given.expires_at, POLICY)

    assert changes(given, decision) == {
        "status": RequestStatus.EXPIRED,
        "session_status": SessionStatus.EXPIRED,
        "stage": None,
        "message": messages.EXPIRED,
    }
    assert decision.effects == (
        EndRound("expired", "released"),
        Refund("expired"),
        Log("expired"),
    )


def test_of_several_deadlines_that_are_due_the_gravest_fires() -> None:
    given = in_priority(expires_at=at(3))

    both = decide(given, Due(), at(6), POLICY)
    window_and_attempt = decide(in_priority(), Due(), at(minutes=10), POLICY)

    assert both.booking.status is RequestStatus.EXPIRED
    assert window_and_attempt.effects == (Log("widened", detail="window_ended"),)


@pytest.mark.parametrize("given", [in_priority(), in_head_start(), opened(), booking()])
def test_time_that_is_not_up_changes_nothing(given: Booking) -> None:
    decision = decide(given, Due(), at(2.999), POLICY)

    assert decision.booking is given
    assert decision.rejection is not None
    assert (decision.rejection.code, decision.rejection.event) == ("not_due", "Due")


def test_a_customer_may_enter_while_a_mechanic_is_looked_for() -> None:
    given = opened()

    decision = decide(given, Join(CUSTOMER, Role.CUSTOMER), at(1), POLICY)

    assert changes(given, decision) == {"customer_joined_at": at(1)}
    assert decision.effects == (Log("joined", CUSTOMER),)


def test_a_mechanic_cannot_enter_what_she_has_not_won() -> None:
    given = opened()

    decision = decide(given, Join(ANNA, Role.MECHANIC), at(1), POLICY)

    assert decision.rejection == Rejection("not_open", "pending/open", "Join")


def test_a_mechanic_who_has_left_cannot_end_what_is_the_customer_s() -> None:
    given = opened()

    decision = decide(given, End(ANNA), at(1), POLICY)

    assert changes(given, decision) == {}
    assert decision.rejection == Rejection("not_found", "pending/open", "End")
