"""Random histories of one booking: whatever happens in whatever order, the promises hold.

A Hypothesis state machine draws a policy and a booking, then events of people and of time. It
plays the shell (a new round gets a new `offer_id`) and keeps its own account of rounds, winners
and money, against which every decision is checked.
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from dispatch.core.lifecycle import (
    LIVE,
    SESSION_OF,
    deadlines,
    decide,
    due_at,
    opening_is_due,
)
from dispatch.core.replay import Record, Step, replay
from dispatch.core.types import (
    Accept,
    Answered,
    Booking,
    Cancel,
    Candidate,
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
    Presence,
    Refund,
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
    CLEO,
    CUSTOMER,
    NORTH,
    SOUTH,
    T0,
    booking,
    changes,
    effects,
    scheduled,
)

MECHANICS = (ANNA, BEN, CLEO)
BOTH = [Role.CUSTOMER, Role.MECHANIC]
JOININGS = [BOTH, BOTH[::-1], BOTH[:1], BOTH[1:]]
PATIENCE = 12  # events after which a booking that is only waited for must be over

seldom = st.integers(0, 7).map(lambda n: n == 7)
seconds = st.sampled_from([0.0, 0.5, 1.0, 3.0, 5.0, 60.0, 600.0])
policies = st.builds(
    Policy,
    priority_window_seconds=st.sampled_from([600.0, 5.0, 0.0]),
    wait_window_seconds=st.sampled_from([1800.0, 5.0, 0.0]),
    head_start_seconds=seconds,
    offer_retry_seconds=st.sampled_from([0.5, 5.0]),
    offer_attempts=st.integers(1, 4),
    request_ttl_seconds=st.sampled_from([7200.0, 7200.0, 7200.0, 1.0]),
    join_seconds=st.sampled_from([300.0, 300.0, 5.0, 0.0]),
    plan_minute_seconds=st.sampled_from([1.0, 60.0]),
    warning_seconds=seconds,
    mechanic_capacity=st.integers(1, 2),
)
anybody = st.builds(
    Candidate,
    mechanic_id=st.sampled_from(MECHANICS),
    workshop_id=st.sampled_from([None, NORTH, SOUTH]),
    approved=st.booleans(),
    available=st.booleans(),
    is_specialist=st.booleans(),
    live_sessions=st.integers(0, 2),
)
whom_all_suits = st.builds(
    Candidate,
    mechanic_id=st.sampled_from(MECHANICS),
    workshop_id=st.just(NORTH),
    approved=st.just(True),
    available=st.just(True),
    is_specialist=st.just(True),
    live_sessions=st.just(0),
)
mechanics = anybody | whom_all_suits
anything = st.sampled_from(
    [
        Open(),
        Due(),
        Seen(ANNA),
        Seen(BEN),
        FavouriteLost("gone"),
        Widen(),
        MechanicCancel(CLEO),
        Join(CUSTOMER, Role.CUSTOMER),
        Join(CLEO, Role.MECHANIC),
    ]
)
openings = st.builds(
    Open,
    favourite=st.none()
    | (mechanics | whom_all_suits).map(lambda mechanic: replace(mechanic, mechanic_id=ANNA)),
    favourite_presence=st.sampled_from(Presence),
    preferred_online=st.booleans(),
    customer_busy=seldom,
)


@st.composite
def new_bookings(draw: st.DrawFn, policy: Policy) -> Booking:
    """A booking as the factory makes it, for now or for a slot."""
    wish: dict[str, Any] = {
        "routing": draw(st.sampled_from(Routing)),
        "preferred_workshop_id": NORTH,
        "preferred_mechanic_id": ANNA,
        "wait_for_preferred": draw(st.booleans()),
        "is_specialist": draw(st.booleans()),
        "waiver_signed": not draw(seldom),
        "minutes": draw(st.sampled_from([1, 10])),
    }
    make = draw(st.sampled_from([booking, scheduled]))
    made: Booking = make(**wish)
    lives = timedelta(seconds=policy.request_ttl_seconds)
    return replace(made, expires_at=made.opens_at + lives)


class Life(RuleBasedStateMachine):
    """One booking and what its shell would know."""

    @initialize(
        data=st.data(),
        policy=policies,
        opening=openings,
        late=st.sampled_from([0.0, 0.0, 4.0, 7200.0]),
        progress=st.integers(0, 3),
    )
    def begin(
        self, data: st.DataObject, policy: Policy, opening: Open, late: float, progress: int
    ) -> None:
        self.policy = policy
        self.booking = data.draw(new_bookings(policy))
        self.made = self.booking
        self.offer_ids = {1: self.booking.offer_id}
        self.steps: list[Step] = []
        self.now = T0
        self.winners: dict[int, set[UUID]] = {}
        self.rounds_ended: Counter[int] = Counter()
        self.rounds_started: Counter[int] = Counter({1: 1})
        self.refunds = 0
        self.opened_to_all = False
        self.out: set[UUID] = set()
        # Random events alone seldom come far: some histories begin later in the story.
        if progress > 0:
            self.now = self.booking.opens_at + timedelta(seconds=late)
            self.happens(opening)
        if progress > 1:
            self.a_mechanic_accepts(data.draw(whom_all_suits), stale=False)
        if progress > 2 and self.booking.status is RequestStatus.ACCEPTED:
            self.they_join(BOTH)

    # --- what happens -----------------------------------------------------------------------------

    @rule(pause=st.sampled_from([0.001, 0.5, 3.0, 10.0, 60.0]))
    def time_passes(self, pause: float) -> None:
        self.now += timedelta(seconds=pause)

    # The one deadline of an open request is its end, which comes to all in the teardown.
    @precondition(lambda self: self.booking.stage is not Stage.OPEN or self.booking.version > 4)
    @rule(late=st.sampled_from([0.0, 0.0, 0.001, 4.0, 3600.0]))
    def a_deadline_fires(self, late: float) -> None:
        due = due_at(self.booking, self.policy)
        if due is not None:
            self.now = max(self.now, due + timedelta(seconds=late))
        self.happens(Due())

    @precondition(lambda self: opening_is_due(self.booking, self.now, self.policy))
    @rule(event=openings)
    def it_is_opened(self, event: Open) -> None:
        self.happens(event)

    @rule(mechanic=mechanics, stale=seldom)
    def a_mechanic_accepts(self, mechanic: Candidate, stale: bool) -> None:
        offer_id = uuid4() if stale else self.booking.offer_id
        before = self.booking
        decision = self.happens(Accept(mechanic, offer_id, uuid4()))
        if decision.rejection is None:
            assert not stale
            self.winners.setdefault(before.generation, set()).add(mechanic.mechanic_id)
        if decision.booking is not before:
            self.check_winner(before, mechanic)

    @precondition(lambda self: self.booking.stage is not None)
    @rule(mechanic=mechanics, stale=seldom)
    def a_mechanic_declines(self, mechanic: Candidate, stale: bool) -> None:
        offer_id = uuid4() if stale else self.booking.offer_id
        self.happens(Decline(mechanic, offer_id))

    @precondition(lambda self: self.booking.stage is Stage.PRIORITY)
    @rule(event=st.sampled_from([Seen(ANNA), FavouriteLost("busy"), Widen()]))
    def the_favourite_is_settled(self, event: Event) -> None:
        self.happens(event)

    @precondition(lambda self: self.booking.stage is Stage.PREFERRED)
    @rule()
    def the_customer_ends_the_head_start(self) -> None:
        self.happens(Widen())

    @precondition(lambda self: self.booking.session_status is SessionStatus.ACCEPTED)
    @rule(roles=st.sampled_from(JOININGS))
    def they_join(self, roles: list[Role]) -> None:
        for role in roles:
            user_id = self.booking.mechanic_id if role is Role.MECHANIC else CUSTOMER
            assert user_id is not None
            self.happens(Join(user_id, role))

    @precondition(lambda self: self.booking.status is RequestStatus.ACCEPTED)
    @rule(leaves=st.booleans())
    def the_mechanic_gives_it_back(self, leaves: bool) -> None:
        mechanic_id = self.booking.mechanic_id
        assert mechanic_id is not None
        self.happens(End(mechanic_id) if leaves else MechanicCancel(mechanic_id))

    # Not at once, or few histories would become long.
    @precondition(lambda self: self.booking.version > 4)
    @rule(event=st.sampled_from([Cancel(), End(CUSTOMER)]))
    def the_customer_gives_up(self, event: Event) -> None:
        self.happens(event)

    @rule(event=anything)
    def something_happens_out_of_place(self, event: Event) -> None:
        self.happens(event)

    # --- what must hold of every decision ---------------------------------------------------------

    def happens(self, event: Event) -> Decision:
        before = self.booking
        decision = decide(before, event, self.now, self.policy)
        after = decision.booking
        if after is before:
            assert decision.effects == ()
            if decision.rejection is not None:
                assert decision.rejection.event == type(event).__name__
                assert decision.rejection.state.startswith(before.status.value)
        else:
            assert decision.rejection is None
            assert before.status in LIVE
            assert after.version == before.version + 1
            assert changes(before, decision) != {}
        if isinstance(event, Due):
            self.check_due(before, decision)
        if isinstance(event, Open) and after is not before:
            assert after.stage is None or self.now < after.expires_at
        self.account(before, decision)
        self.booking = self.with_new_round(decision)
        if after is not before:
            self.record(event, decision)
        self.opened_to_all = self.opened_to_all or self.booking.stage is Stage.OPEN
        return decision

    def record(self, event: Event, decision: Decision) -> None:
        self.offer_ids[self.booking.generation] = self.booking.offer_id
        step = Step(
            version=self.booking.version,
            at=self.now,
            event=event,
            policy=self.policy,
            lines=tuple(effects(decision, Log)),
        )
        self.steps.append(step)

    def check_due(self, before: Booking, decision: Decision) -> None:
        """It fires exactly when something is due; an opening is another event."""
        due = due_at(before, self.policy)
        is_due = due is not None and due <= self.now
        if not opening_is_due(before, self.now, self.policy):
            assert (decision.booking is not before) == is_due

    def account(self, before: Booking, decision: Decision) -> None:
        ended, started = effects(decision, EndRound), effects(decision, StartRound)
        self.refunds += len(effects(decision, Refund))
        self.rounds_ended[before.generation] += len(ended)
        self.rounds_started[decision.booking.generation] += len(started)
        self.out |= {e.mechanic_id for e in effects(decision, Answered) if e.status == "declined"}
        rise = decision.booking.generation - before.generation
        assert rise == len(started) <= len(ended) <= 1
        if started:
            assert before.mechanic_id is not None
            self.out.add(before.mechanic_id)
            lives = timedelta(seconds=self.policy.request_ttl_seconds)
            assert decision.booking.expires_at == self.now + lives
        if ended:
            was_taken = before.mechanic_id is not None
            assert (ended[0].outcome == "taken") == was_taken

    def with_new_round(self, decision: Decision) -> Booking:
        """What the shell does with StartRound."""
        if effects(decision, StartRound):
            return replace(decision.booking, offer_id=uuid4())
        return decision.booking

    def check_winner(self, before: Booking, mechanic: Candidate) -> None:
        """Nobody takes what was not hers to take."""
        assert before.status is RequestStatus.PENDING
        assert mechanic.mechanic_id not in self.out
        assert mechanic.approved
        assert mechanic.available
        assert mechanic.live_sessions < self.policy.mechanic_capacity
        assert self.now < before.expires_at
        assert mechanic.is_specialist or not before.is_specialist
        if before.routing is Routing.WORKSHOP_ONLY or before.stage is Stage.PREFERRED:
            assert mechanic.workshop_id == NORTH
        if before.stage is Stage.PRIORITY:
            assert mechanic.mechanic_id == ANNA
        if before.routing is Routing.PRIORITY and mechanic.mechanic_id != ANNA:
            assert self.opened_to_all
        assert self.booking.workshop_id == mechanic.workshop_id

    # --- what must hold at every moment -----------------------------------------------------------

    @invariant()
    def the_statuses_agree(self) -> None:
        assert self.booking.session_status in SESSION_OF[self.booking.status]

    @invariant()
    def a_round_has_at_most_one_winner(self) -> None:
        assert all(len(winners) == 1 for winners in self.winners.values())

    @invariant()
    def a_mechanic_has_it_exactly_while_it_is_taken(self) -> None:
        given = self.booking
        if given.status in (RequestStatus.SCHEDULED, RequestStatus.PENDING):
            taken = (
                given.mechanic_id,
                given.accept_id,
                given.accepted_at,
                given.mechanic_joined_at,
            )
            assert taken == (None, None, None, None)
        if given.status in (RequestStatus.ACCEPTED, RequestStatus.COMPLETED):
            assert given.mechanic_id is not None
            assert given.accept_id is not None
            assert given.mechanic_id not in given.excluded

    @invariant()
    def only_what_is_pending_has_a_stage(self) -> None:
        given = self.booking
        assert given.stage is None or given.status is RequestStatus.PENDING
        if given.stage is None or given.stage is Stage.OPEN:
            assert given.stage_ends_at is None
        if given.stage_ends_at is not None:
            assert given.stage_ends_at <= given.expires_at
        assert given.generation == 1 or given.stage in (None, Stage.OPEN)

    @invariant()
    def who_declined_or_gave_it_back_is_out_once_and_for_all(self) -> None:
        assert sorted(self.booking.excluded) == sorted(self.out)

    @invariant()
    def what_lives_is_due_and_what_is_over_is_not(self) -> None:
        due = due_at(self.booking, self.policy)
        assert (due is not None) == (self.booking.status in LIVE)

    @invariant()
    def money_goes_back_at_most_once_and_never_for_served_work(self) -> None:
        given_back = self.booking.status in (RequestStatus.CANCELLED, RequestStatus.EXPIRED)
        assert self.refunds == int(given_back)

    @invariant()
    def every_round_but_a_live_one_ended_exactly_once(self) -> None:
        present = self.booking.generation
        alive = self.booking.status in LIVE
        for generation in range(1, present + 1):
            assert self.rounds_started[generation] == 1
            ended = generation < present or not alive
            assert self.rounds_ended[generation] == int(ended)

    def teardown(self) -> None:
        """Left alone, with only its deadlines firing, every booking ends and stays ended."""
        if not hasattr(self, "booking"):
            return
        for _ in range(PATIENCE):
            if self.booking.status not in LIVE:
                break
            due = due_at(self.booking, self.policy)
            assert due is not None
            self.now = max(self.now, due)
            is_opening = opening_is_due(self.booking, self.now, self.policy)
            self.happens(Open(preferred_online=True) if is_opening else Due())
            self.nothing_overdue_is_left()
            self.every_round_but_a_live_one_ended_exactly_once()
        assert self.booking.status not in LIVE
        self.money_goes_back_at_most_once_and_never_for_served_work()
        over = self.booking
        assert (
            decide(over, Due(), datetime.max.replace(tzinfo=T0.tzinfo), self.policy).booking is over
        )
        self.it_can_be_decided_again()

    def it_can_be_decided_again(self) -> None:
        """R11a: the record of a life, decided once more, is that life."""
        record = Record(
            now=self.booking,
            first_expires_at=self.made.expires_at,
            first_message=self.made.message,
            offer_ids=self.offer_ids,
            waiver_signed_at=T0 if self.made.waiver_signed else None,
            steps=self.steps,
        )
        replayed = replay(record)
        assert replayed.differences == ()
        assert len(replayed.bookings) == len(self.steps) + 1
        assert replayed.bookings[-1] == self.booking

    def nothing_overdue_is_left(self) -> None:
        """Fired until nothing is due, no deadline lies in the past."""
        for _ in range(PATIENCE):
            if decide(self.booking, Due(), self.now, self.policy).booking is self.booking:
                break
            self.happens(Due())
        if not opening_is_due(self.booking, self.now, self.policy):
            assert all(at > self.now for at in deadlines(self.booking, self.policy).values())


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=300,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # says more of the machine than of the code
)
