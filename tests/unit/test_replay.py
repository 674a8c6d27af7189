"""Deciding a recorded booking again: what is the same, and how a difference is named."""

import msgspec
import pytest
from msgspec.structs import replace

from dispatch.core.lifecycle import decide
from dispatch.core.replay import Difference, Record, Step, first_state, replay
from dispatch.core.types import (
    Accept,
    Booking,
    Cancel,
    Event,
    Join,
    Log,
    MechanicCancel,
    Open,
    Policy,
    Role,
    StartRound,
)
from tests.unit.builders import ANNA, BEN, CUSTOMER, POLICY, T0, at, booking, candidate, effects

MADE = booking(waiver_signed=True)
SECOND_OFFER = BEN  # any id will do


def recorded(*events: tuple[float, Event], policy: Policy = POLICY) -> Record:
    """The record of a booking to which these events happened, seconds after T0."""
    made = now = MADE
    offer_ids = {1: made.offer_id}
    steps = []
    for seconds, event in events:
        decision = decide(now, event, at(seconds), policy)
        assert decision.booking is not now, event
        now = decision.booking
        if effects(decision, StartRound):
            now = replace(now, offer_id=SECOND_OFFER)
            offer_ids[now.generation] = SECOND_OFFER
        lines = tuple(effects(decision, Log))
        steps.append(
            Step(version=now.version, at=at(seconds), event=event, policy=policy, lines=lines)
        )
    return Record(
        now=now,
        first_expires_at=made.expires_at,
        first_message=made.message,
        offer_ids=offer_ids,
        waiver_signed_at=T0,
        steps=steps,
    )


def a_life() -> Record:
    """Anna wins and gives it back, Ben wins and both join."""
    return recorded(
        (0.0, Open()),
        (2.0, Accept(candidate(ANNA), MADE.offer_id, ANNA)),
        (9.0, MechanicCancel(ANNA, "flat tyre")),
        (11.0, Accept(candidate(BEN), SECOND_OFFER, BEN)),
        (12.0, Join(CUSTOMER, Role.CUSTOMER)),
        (13.0, Join(BEN, Role.MECHANIC)),
    )


def test_what_happened_is_decided_again() -> None:
    record = a_life()

    replayed = replay(record)

    assert replayed.differences == ()
    assert [each.version for each in replayed.bookings] == [1, 2, 3, 4, 5, 6, 7]
    assert replayed.bookings[0] == replace(MADE, waiver_signed=False)
    assert replayed.bookings[-1] == record.now


def test_a_booking_to_which_nothing_happened_is_as_it_was_made() -> None:
    record = recorded()

    assert replay(record).bookings == (first_state(record),)
    assert replay(record).differences == ()


@pytest.mark.parametrize(
    ("document", "event"),
    [
        ('{"type": "Cancel"}', Cancel(refund_as="money")),
        ('{"type": "Cancel", "refund_as": "credits"}', Cancel(refund_as="credits")),
    ],
)
def test_a_cancel_is_read_as_recorded_also_from_before_one_could_choose(
    document: str, event: Event
) -> None:
    read: Event = msgspec.json.decode(document, type=Event)

    record = recorded((0.0, Open()), (2.0, read))

    assert read == event
    assert replay(record).differences == ()


def test_another_policy_comes_out_differently_and_is_named() -> None:
    record = a_life()
    longer = replace(POLICY, join_seconds=900.0, request_ttl_seconds=60.0)
    steps = [replace(step, policy=longer) for step in record.steps]

    replayed = replay(replace(record, steps=steps))

    assert replayed.differences == (
        Difference(7, "expires_at", record.now.expires_at, at(9.0 + 60)),
    )


def test_a_line_that_would_read_otherwise_is_named() -> None:
    record = a_life()
    told = replace(record.steps[0], lines=(Log("opened", detail="preferred"),))

    replayed = replay(replace(record, steps=[told, *record.steps[1:]]))

    assert replayed.differences == (
        Difference(2, "lines", told.lines, (Log("opened", detail="open"),)),
    )


@pytest.mark.parametrize(
    ("event", "refusal"),
    [
        (Accept(candidate(ANNA, available=False), MADE.offer_id, ANNA), "unavailable"),
        (Accept(candidate(ANNA), SECOND_OFFER, ANNA), "not_found"),
    ],
)
def test_what_would_be_refused_today_ends_the_replay(event: Event, refusal: str) -> None:
    record = a_life()
    steps = list(record.steps)
    steps[1] = replace(steps[1], event=event)

    replayed = replay(replace(record, steps=steps))

    assert replayed.differences == (Difference(3, "refused", None, refusal),)
    assert [each.version for each in replayed.bookings] == [1, 2]


def test_what_would_change_nothing_today_ends_the_replay() -> None:
    record = a_life()
    steps = list(record.steps)
    steps[5] = replace(steps[5], event=Join(CUSTOMER, Role.CUSTOMER))

    assert replay(replace(record, steps=steps)).differences == (
        Difference(7, "refused", None, "no change"),
    )


def test_a_hole_in_the_record_is_named() -> None:
    record = a_life()

    replayed = replay(replace(record, steps=[record.steps[0], *record.steps[2:]]))

    assert replayed.differences == (Difference(4, "version", 4, 3),)


def test_the_waiver_counts_from_when_it_was_signed() -> None:
    record = a_life()

    unsigned = replay(replace(record, waiver_signed_at=None))
    too_late = replay(replace(record, waiver_signed_at=at(12.5)))

    refused = (Difference(6, "refused", None, "waiver_required"),)
    assert unsigned.differences == too_late.differences == refused


def test_a_booking_for_later_begins_as_scheduled() -> None:
    later = replace(MADE, opens_at=at(minutes=60))
    record = replace(recorded(), now=later)

    first: Booking = first_state(record)

    assert (first.status, first.session_status) == ("scheduled", "scheduled")
