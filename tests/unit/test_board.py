"""The board keeps the newest of what it is told, whatever the order, and how rounds ended."""

from typing import Any
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dispatch import board as board_module
from dispatch.board import Board
from dispatch.core.types import Booking, RequestStatus, SessionStatus, Stage
from dispatch.hints import Display, Entry
from tests.unit.builders import booking as a_booking

DISPLAY = Display(
    customer_name="Kim",
    vehicle=None,
    concern=None,
    mechanic_name=None,
    mechanic_workshop_id=None,
    mechanic_rating=None,
)


def entry(booking: Booking, **changes: Any) -> Entry:
    return Entry(booking=replace(booking, **changes), display=DISPLAY, paid=False)


def an_open_one(**changes: Any) -> Entry:
    return entry(a_booking(stage=Stage.OPEN, version=2), **changes)


def accepted(before: Entry, mechanic_id: UUID) -> Entry:
    return entry(
        before.booking,
        version=before.booking.version + 1,
        status=RequestStatus.ACCEPTED,
        session_status=SessionStatus.ACCEPTED,
        stage=None,
        mechanic_id=mechanic_id,
    )


def ended(before: Entry, status: RequestStatus) -> Entry:
    return entry(
        before.booking,
        version=before.booking.version + 1,
        status=status,
        session_status=SessionStatus(status.value),
        stage=None,
    )


def test_a_higher_version_replaces_a_lower_one_and_never_the_other_way_round() -> None:
    board, first = Board(), an_open_one()
    second = accepted(first, uuid4())

    assert board.put(second) is not None
    assert board.put(first) is None
    assert board.put(second) is None

    assert board.get(first.booking.request_id) == second
    assert board.open_entries() == []


@given(st.permutations(range(1, 6)))
def test_whatever_the_order_the_newest_stays(order: list[int]) -> None:
    board, first = Board(), an_open_one()
    for version in order:
        board.put(entry(first.booking, version=version))
    kept = board.get(first.booking.request_id)
    assert kept is not None
    assert kept.booking.version == 5


def test_an_accepted_booking_makes_its_mechanic_busy_until_it_ends() -> None:
    board, mechanic_id, first = Board(), uuid4(), an_open_one()
    board.put(first)

    taken = accepted(first, mechanic_id)
    board.put(taken)
    assert board.live_sessions(mechanic_id) == 1
    assert board.of_mechanic(mechanic_id) == [taken]

    board.put(ended(taken, RequestStatus.COMPLETED))
    assert board.live_sessions(mechanic_id) == 0
    assert len(board) == 0
    assert [each.booking.status for each in board.ended([first.booking.request_id])] == [
        RequestStatus.COMPLETED
    ]


def test_a_late_hint_does_not_bring_an_ended_booking_back() -> None:
    board, first = Board(), an_open_one()
    board.put(first)
    board.put(ended(first, RequestStatus.CANCELLED))

    assert board.put(first) is None
    assert board.of_customer(first.booking.customer_id) == []


def test_the_winner_of_a_round_is_remembered_with_what_was_offered() -> None:
    board, mechanic_id, first = Board(), uuid4(), an_open_one()
    board.put(first)
    board.put(accepted(first, mechanic_id))

    round_ = board.ended_round(first.booking.offer_id)
    assert round_ is not None
    assert round_.winner == mechanic_id
    assert round_.offered == first.booking


def test_a_round_whose_accept_was_missed_has_no_known_winner() -> None:
    board, first = Board(), an_open_one()
    board.put(first)
    reopened = an_open_one(
        request_id=first.booking.request_id, offer_id=uuid4(), generation=2, version=7
    )
    board.put(reopened)

    round_ = board.ended_round(first.booking.offer_id)
    assert round_ is not None
    assert round_.winner is None
    assert board.in_round(first.booking.offer_id) is None
    assert board.in_round(reopened.booking.offer_id) == reopened


def test_who_waits_for_a_favourite_is_found_by_her_while_nobody_else_is_asked() -> None:
    board, favourite_id = Board(), uuid4()
    waiting = an_open_one(preferred_mechanic_id=favourite_id, stage=Stage.PRIORITY)
    of_another = an_open_one(preferred_mechanic_id=uuid4(), stage=Stage.PRIORITY)
    for each in (waiting, of_another):
        board.put(each)
    assert board.waiting_for(favourite_id) == [waiting]

    asked_all = replace(waiting.booking, version=waiting.booking.version + 1, stage=Stage.OPEN)
    board.put(replace(waiting, booking=asked_all))

    assert board.waiting_for(favourite_id) == []


def test_differences_name_what_is_missing_older_or_gone() -> None:
    board = Board()
    same, older, gone = an_open_one(), an_open_one(), an_open_one()
    for each in (same, older, gone):
        board.put(each)
    missing = uuid4()
    truth = {
        same.booking.request_id: same.booking.version,
        older.booking.request_id: older.booking.version + 1,
        missing: 1,
    }

    assert set(board.differences(truth)) == {
        older.booking.request_id,
        gone.booking.request_id,
        missing,
    }


def test_a_board_that_is_ahead_of_what_was_read_is_left_alone() -> None:
    board, first = Board(), an_open_one()
    board.put(accepted(first, uuid4()))
    assert board.differences({first.booking.request_id: first.booking.version}) == []


def test_what_ended_is_forgotten_beyond_a_bound(monkeypatch: Any) -> None:
    monkeypatch.setattr(board_module, "REMEMBERED_ENDS", 2)
    board = Board()
    endings = [ended(an_open_one(), RequestStatus.EXPIRED) for _ in range(3)]
    for each in endings:
        board.put(each)
    assert board.ended(each.booking.request_id for each in endings) == endings[1:]
