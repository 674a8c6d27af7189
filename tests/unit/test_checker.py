"""The checker over recorded histories: a true story is clean, each planted lie is found by name.

Every story is written frame by frame as clients would have recorded it; nothing runs.
"""

from pathlib import Path

from loadtest.checker import check
from loadtest.history import History
from tests.unit.recorded import Actor, Recorder, round_id, session_id


def rules_broken(recorder: Recorder) -> set[str]:
    return {violation.rule for violation in check(recorder.cases())}


def city() -> tuple[Recorder, Actor, Actor, Actor]:
    """Ana the customer; Bruno and Carla of one workshop's two."""
    recorder = Recorder()
    ana = recorder.customer("ana")
    bruno = recorder.mechanic("bruno", workshop_id="north")
    carla = recorder.mechanic("carla", workshop_id="south")
    return recorder, ana, bruno, carla


def ends_well(ana: Actor, winner: Actor, request: str = "r1") -> None:
    """From the win to the completed session, both sides told."""
    ana.sees(request, "accepted", 3, mechanic={"id": winner.who})
    for person in (winner, ana):
        join = person.sends("session.join", session_id=session_id(request))
        person.session(request, "active", 4, re=join)
    end = ana.sends("session.end", session_id=session_id(request))
    ana.session(request, "completed", 5, re=end)
    winner.session(request, "completed", 5)
    ana.sees(request, "completed", 5, mechanic={"id": winner.who})
    ana.reads(request, "completed", 5, mechanic={"id": winner.who})


def race(ana: Actor, bruno: Actor, carla: Actor) -> None:
    """A broadcast that both accept and Bruno wins, up to the verdicts."""
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")
    carla.is_offered("r1")
    first, second = bruno.accepts("r1"), carla.accepts("r1")
    bruno.wins("r1", re=first)
    carla.loses("r1", re=second)


# True stories.


def test_a_race_that_one_wins_and_the_other_hears_of() -> None:
    recorder, ana, bruno, carla = city()

    race(ana, bruno, carla)
    ends_well(ana, bruno)

    assert rules_broken(recorder) == set()


def test_a_favourite_who_stays_silent_for_her_window_and_then_everyone() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2)
    bruno.is_offered_alone("r1")

    recorder.later(3)
    carla.is_offered("r1")
    carla.wins("r1", re=carla.accepts("r1"))
    bruno.is_revoked("r1")
    ends_well(ana, carla)

    assert rules_broken(recorder) == set()


def test_a_favourite_who_declines_and_everyone_at_once() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2)
    bruno.is_offered_alone("r1")

    no = bruno.sends("offer.decline", offer_id=round_id("r1"))
    bruno.gets("ok", re=no)
    bruno.is_revoked("r1", "withdrawn")
    carla.is_offered("r1")
    carla.wins("r1", re=carla.accepts("r1"))
    ends_well(ana, carla)

    assert rules_broken(recorder) == set()


def test_a_favourite_who_takes_another_round_while_she_is_waited_for() -> None:
    recorder, ana, bruno, carla = city()
    eva = recorder.customer("eva")
    eva.orders("B2")
    eva.sees("r2", "pending", 2)
    bruno.is_offered("r2")
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2)
    bruno.is_offered_alone("r1")

    accept = bruno.accepts("r2", accept_id="a2")
    carla.is_offered("r1")
    bruno.wins("r2", accept_id="a2", re=accept)
    bruno.is_revoked("r1", "withdrawn")
    carla.wins("r1", re=carla.accepts("r1"))
    ends_well(ana, carla)
    eva.sees("r2", "accepted", 3, mechanic={"id": "bruno"})

    assert rules_broken(recorder) == set()


def test_an_accept_whose_reply_was_lost_is_repeated_and_gets_the_same_verdict() -> None:
    recorder, ana, bruno, _ = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")

    bruno.accepts("r1")
    bruno.is_lost()
    bruno.connects()
    bruno.wins("r1", re=bruno.accepts("r1"))
    ends_well(ana, bruno)

    assert rules_broken(recorder) == set()


def test_a_winner_who_cancels_and_another_who_takes_over() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ana.sees("r1", "accepted", 3, mechanic={"id": "bruno"})

    bruno.gets("ok", re=bruno.sends("assignment.cancel", session_id=session_id("r1")))
    ana.sees("r1", "pending", 4)
    carla.is_offered("r1", generation=2)
    carla.wins("r1", 2, "a2", re=carla.accepts("r1", 2, "a2"))
    ana.sees("r1", "accepted", 5, mechanic={"id": "carla"})
    ana.reads("r1", "accepted", 5, mechanic={"id": "carla"})

    assert rules_broken(recorder) == set()


def test_a_mechanic_who_was_away_finds_the_round_gone_from_her_next_snapshot() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")
    carla.is_offered("r1")

    carla.is_lost()
    bruno.wins("r1", re=bruno.accepts("r1"))
    ends_well(ana, bruno)
    carla.connects()

    assert rules_broken(recorder) == set()


def test_a_request_that_nobody_took_expires() -> None:
    recorder, ana, bruno, _ = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")

    bruno.is_revoked("r1", "expired")
    ana.sees("r1", "expired", 3)
    ana.reads("r1", "expired", 3)

    assert rules_broken(recorder) == set()


def test_a_history_judged_from_its_file_is_the_one_that_was_written(tmp_path: Path) -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    path = tmp_path / "history.jsonl"

    History(recorder.events).write(path)

    assert History.read(path).events == recorder.events


# One winner, one verdict, nobody left in silence.


def test_two_winners_of_one_round() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    carla.wins("r1", accept_id="a2", re=carla.accepts("r1", accept_id="a2"))
    ends_well(ana, bruno)

    violations = check(recorder.cases())

    assert "two_winners" in {violation.rule for violation in violations}
    found = next(violation for violation in violations if violation.rule == "two_winners")
    assert found.request_id == "r1"
    assert [event.who for event in found.evidence if hasattr(event, "who")] == ["bruno", "carla"]


def test_a_verdict_that_flips_when_the_accept_is_repeated() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    bruno.is_lost()
    bruno.connects()
    bruno.loses("r1", re=bruno.accepts("r1"))
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"verdict_flipped"}


def test_a_winner_whose_second_accept_is_told_lost() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    bruno.loses("r1", accept_id="a2", re=bruno.accepts("r1", accept_id="a2"))
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"winner_told_lost"}


def test_an_accept_that_is_never_answered() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    carla.accepts("r1", accept_id="a2")
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"unanswered"}


def test_an_accept_that_is_answered_twice() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    carla.loses("r1", re="2")
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"answered_twice", "too_many_verdicts"}


def test_an_accept_that_is_answered_by_something_else() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    carla.gets("ok", re=carla.accepts("r1", accept_id="a2"))
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"answered_wrongly"}


def test_an_acknowledgement_that_is_answered() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    late = carla.sends("offer.seen", offer_id=round_id("r1"))
    carla.gets("error", re=late, code="not_found", message="no such offer")
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"answered_wrongly"}


def test_a_mechanic_who_keeps_showing_a_round_that_is_over() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")
    carla.is_offered("r1")
    bruno.wins("r1", re=bruno.accepts("r1"))
    ends_well(ana, bruno)

    violations = check(recorder.cases())

    assert [(violation.rule, violation.who) for violation in violations] == [
        ("never_told", "carla")
    ]


def test_a_round_that_is_offered_after_it_was_won() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ends_well(ana, bruno)
    recorder.later(10)
    carla.is_lost()
    carla.connects(offers=[carla.offer("r1")])
    carla.is_revoked("r1")

    assert rules_broken(recorder) == {"ghost_offer"}


def test_one_offer_id_for_two_generations() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ends_well(ana, bruno)
    carla.is_offered("r1", generation=1, offer_id=round_id("r1"), request_id="r2")
    carla.is_revoked("r1")

    assert "round_identity" in rules_broken(recorder)


def test_a_win_after_the_customer_was_told_of_the_end() -> None:
    recorder, ana, bruno, _ = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")
    ana.gets("ok", re=ana.sends("request.cancel", request_id="r1"))
    ana.sees("r1", "cancelled", 3)
    bruno.wins("r1", re=bruno.accepts("r1"))
    ana.reads("r1", "cancelled", 3)

    assert rules_broken(recorder) == {"won_after_end"}


def test_a_mechanic_who_wins_while_she_is_at_work() -> None:
    recorder, ana, bruno, carla = city()
    eva = recorder.customer("eva")
    race(ana, bruno, carla)
    ana.sees("r1", "accepted", 3, mechanic={"id": "bruno"})
    eva.orders("B2")
    eva.sees("r2", "pending", 2)
    bruno.is_offered("r2")
    bruno.wins("r2", re=bruno.accepts("r2", accept_id="a2"), accept_id="a2")
    eva.sees("r2", "accepted", 3, mechanic={"id": "bruno"})
    recorder.later(10)
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"over_capacity"}


# Bookings.


def test_a_paid_booking_that_never_became_a_request() -> None:
    recorder, ana, _, _ = city()
    ana.orders()

    assert rules_broken(recorder) == {"lost_booking"}


def test_a_payment_that_became_two_requests() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ends_well(ana, bruno)
    ana.sees("r2", "expired", 2)

    assert rules_broken(recorder) == {"doubled_booking"}


def test_a_booking_that_the_server_refused() -> None:
    recorder, ana, _, _ = city()
    ana.step("B1", "ordered", plan="video15")
    ana.step("B1", "failed", why="POST /api/intake/start: 500")

    assert rules_broken(recorder) == {"not_booked"}


def test_a_version_that_goes_down_on_one_connection() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ends_well(ana, bruno)
    ana.sees("r1", "accepted", 3, mechanic={"id": "bruno"})

    assert rules_broken(recorder) == {"version_fell"}


def test_a_snapshot_older_than_what_the_last_connection_said() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ana.sees("r1", "accepted", 3, mechanic={"id": "bruno"})
    ana.is_lost()
    stale = {"request_id": "r1", "session_id": "r1-session", "status": "pending", "version": 2}
    ana.connects(requests=[stale])
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"version_fell"}


def test_a_request_accepted_by_one_who_never_won() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ends_well(ana, carla)

    assert rules_broken(recorder) == {"unexplained_end"}


def test_a_request_that_expired_although_somebody_won() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ana.sees("r1", "expired", 3)
    ana.reads("r1", "expired", 3)

    assert rules_broken(recorder) == {"unexplained_end"}


def test_a_request_that_was_cancelled_by_nobody() -> None:
    recorder, ana, bruno, _ = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")
    bruno.is_revoked("r1", "cancelled")
    ana.sees("r1", "cancelled", 3)
    ana.reads("r1", "cancelled", 3)

    assert rules_broken(recorder) == {"unexplained_end"}


def test_a_request_that_is_still_pending_when_all_is_over() -> None:
    recorder, ana, bruno, _ = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")

    assert rules_broken(recorder) == {"unexplained_end"}


def test_a_customer_whose_websocket_never_said_what_http_says() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    ana.reads("r1", "accepted", 3, mechanic={"id": "bruno"})

    assert rules_broken(recorder) == {"customer_not_told"}


def test_a_request_that_was_opened_again_while_its_winner_was_at_work() -> None:
    recorder, ana, bruno, carla = city()
    race(ana, bruno, carla)
    bruno.session("r1", "active", 4, re=bruno.sends("session.join", session_id="r1-session"))
    carla.is_offered("r1", generation=2)
    carla.wins("r1", 2, "a2", re=carla.accepts("r1", 2, "a2"))
    ana.sees("r1", "accepted", 6, mechanic={"id": "carla"})

    assert rules_broken(recorder) == {"reopened_without_cause"}


# Who is asked.


def test_a_priority_offer_to_somebody_else() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2)
    bruno.is_offered_alone("r1")
    carla.is_offered_alone("r1")
    bruno.wins("r1", re=bruno.accepts("r1"))
    carla.is_revoked("r1")
    ends_well(ana, bruno)

    assert {"priority_leak", "early_fallback"} <= rules_broken(recorder)


def test_a_fallback_before_the_window_of_a_favourite_who_is_looking_at_it() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2)
    bruno.is_offered_alone("r1")
    recorder.later(1)
    carla.is_offered("r1")
    carla.wins("r1", re=carla.accepts("r1"))
    bruno.is_revoked("r1")
    ends_well(ana, carla)

    assert rules_broken(recorder) == {"early_fallback"}


def test_a_favourite_who_is_free_and_never_asked() -> None:
    recorder, ana, _, carla = city()
    ana.orders(routing_type="priority_broadcast", preferred_mechanic_id="bruno")
    ana.sees("r1", "pending", 2)
    carla.is_offered("r1")
    carla.wins("r1", re=carla.accepts("r1"))
    ends_well(ana, carla)

    assert rules_broken(recorder) == {"favourite_skipped"}


def test_a_workshop_only_request_shown_elsewhere() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders(routing_type="workshop_only", workshop_id="north")
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1", score=100)
    carla.is_offered("r1", score=100)
    bruno.wins("r1", re=bruno.accepts("r1"))
    carla.is_revoked("r1")
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"workshop_leak"}


def test_a_hybrid_score_that_the_strategy_does_not_give() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders(routing_type="hybrid", workshop_id="north")
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1", stage="preferred", score=100)
    carla.is_offered("r1", score=25)
    bruno.wins("r1", re=bruno.accepts("r1"))
    carla.is_revoked("r1")
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"wrong_score"}


def test_a_mechanic_who_declined_and_is_asked_again() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")
    bruno.gets("ok", re=bruno.sends("offer.decline", offer_id=round_id("r1")))
    bruno.is_revoked("r1", "withdrawn")
    recorder.later(10)
    bruno.is_offered("r1")
    carla.is_offered("r1")
    carla.wins("r1", re=carla.accepts("r1"))
    bruno.is_revoked("r1")
    ends_well(ana, carla)

    assert rules_broken(recorder) == {"offered_after_no"}


def test_a_deadline_that_is_not_the_same_instant_for_all() -> None:
    recorder, ana, bruno, carla = city()
    ana.orders()
    ana.sees("r1", "pending", 2)
    bruno.is_offered("r1")
    carla.is_offered("r1", expires_at="2026-11-20T14:00:00.250Z")
    bruno.wins("r1", re=bruno.accepts("r1"))
    carla.is_revoked("r1")
    ends_well(ana, bruno)

    assert rules_broken(recorder) == {"deadline_differs"}
