"""What a node owes Redis, change by change: in an order in which nobody flaps, until confirmed."""

from uuid import UUID, uuid4

from dispatch.presence_ledger import Change, Connection, Ledger, Removal, Write

GRACE = 5.0
ANNA, BEN = uuid4(), uuid4()


def connection(user_id: UUID = ANNA, workshop_id: UUID | None = None) -> Connection:
    return Connection(user_id, uuid4(), True, "phone", workshop_id)


def take(ledger: Ledger, now: float = 0.0, limit: int = 100) -> list[Change]:
    return ledger.take(now, limit, removals=True)


def written(*connections: Connection) -> Ledger:
    """A ledger whose connections Redis has confirmed."""
    ledger = Ledger(GRACE)
    for one in connections:
        ledger.join(one)
    ledger.confirm(take(ledger))
    return ledger


def test_a_join_is_due_until_it_is_confirmed_and_sent_again_as_a_repetition() -> None:
    ledger, phone = Ledger(GRACE), connection()
    ledger.join(phone)

    assert take(ledger) == [Write(phone)]
    repeated = take(ledger)
    assert repeated == [Write(phone, again=True)]
    assert ledger.unwritten == 1

    ledger.confirm(repeated)
    assert take(ledger) == []
    assert ledger.unwritten == 0
    assert len(ledger) == 1


def test_a_removal_is_due_after_the_grace_and_until_it_is_confirmed() -> None:
    phone = connection()
    ledger = written(phone)

    ledger.leave(phone.connection_id, 100.0)
    assert len(ledger) == 0
    assert not ledger.is_here(ANNA)
    assert ledger.next_removal_at() == 105.0
    assert take(ledger, 104.9) == []
    assert ledger.take(105.0, 100, removals=False) == []
    due = take(ledger, 105.0)
    assert due == take(ledger, 105.0) == [Removal(phone, 100.0)]

    ledger.confirm(due)
    assert take(ledger, 106.0) == []
    assert ledger.next_removal_at() is None


def test_who_came_back_is_written_before_her_old_connection_is_removed() -> None:
    old, new = connection(), connection()
    ledger = written(old)
    ledger.leave(old.connection_id, 0.0)
    ledger.join(new)
    ledger.join(connection(BEN))

    assert take(ledger, GRACE, limit=1) == [Write(new)]
    first, second, third = take(ledger, GRACE)

    assert [type(change) for change in (first, second, third)] == [Write, Write, Removal]
    assert third == Removal(old, 0.0)


def test_who_was_gone_before_redis_could_know_leaves_no_trace() -> None:
    ledger, phone = Ledger(GRACE), connection()
    ledger.join(phone)
    ledger.leave(phone.connection_id, 0.0)
    ledger.leave(uuid4(), 0.0)

    assert take(ledger, GRACE) == []
    assert not ledger.is_here(ANNA)


def test_who_may_have_been_written_is_removed() -> None:
    ledger, phone = Ledger(GRACE), connection()
    ledger.join(phone)
    sent = take(ledger)
    ledger.leave(phone.connection_id, 0.0)

    ledger.confirm(sent)  # the answer comes after she left

    assert take(ledger, GRACE) == [Removal(phone, 0.0)]


def test_what_changed_while_it_was_on_its_way_stays_due() -> None:
    ledger, phone = Ledger(GRACE), connection()
    moved = Connection(ANNA, phone.connection_id, True, "phone", uuid4())
    ledger.join(phone)
    sent = take(ledger)
    ledger.join(moved)

    ledger.confirm(sent)

    assert [change.connection for change in take(ledger)] == [moved]
    assert len(ledger) == 1


def test_a_user_is_here_until_her_last_connection_left() -> None:
    phone, desk = connection(), connection()
    ledger = written(phone, desk)

    ledger.leave(phone.connection_id, 0.0)
    assert ledger.is_here(ANNA)
    ledger.leave(desk.connection_id, 0.0)
    assert not ledger.is_here(ANNA)


def test_when_redis_has_forgotten_everybody_is_written_and_only_the_new_are_told() -> None:
    old, leaving, new = connection(), connection(BEN), connection(BEN)
    ledger = written(old, leaving)
    ledger.leave(leaving.connection_id, 0.0)
    ledger.join(new)
    take(ledger)

    ledger.forgotten()

    assert take(ledger, 1.0) == [Write(old, silent=True), Write(new)]
    assert take(ledger, GRACE)[-1] == Removal(leaving, 0.0)

    ledger.forgotten()  # again, before anything was confirmed
    assert take(ledger, 1.0) == [Write(old, silent=True), Write(new)]


def test_who_left_a_forgotten_redis_before_being_written_again_is_removed_all_the_same() -> None:
    phone = connection()
    ledger = written(phone)
    ledger.forgotten()

    ledger.leave(phone.connection_id, 0.0)

    assert take(ledger, GRACE) == [Removal(phone, 0.0)]


def test_after_its_burial_a_node_begins_with_those_who_are_here() -> None:
    phone, leaving = connection(), connection(BEN)
    ledger = written(phone, leaving)
    ledger.leave(leaving.connection_id, 0.0)

    ledger.buried()

    assert take(ledger, GRACE) == [Write(phone)]
