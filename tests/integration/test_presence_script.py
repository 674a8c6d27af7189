"""The script in Redis: what it refuses, so that nothing that comes too late is ever believed."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis

from dispatch.presence_ledger import Change, Connection, Removal, Write
from dispatch.presence_redis import Life, ScriptAnswer, epoch_key, node_of, read_script
from dispatch.redis_link import Command

ANNA = UUID(int=1)
LEASE = f"{uuid4()}.1"
MINUTE = 60.0


class Cluster:
    """One life of presence in Redis, spoken to by hand."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.life = Life(uuid4().hex, "run", uuid4().hex)
        client.set(epoch_key(self.life.namespace, "run"), self.life.epoch)

    def apply(
        self, seq: int, *changes: Change, lease: str = LEASE, lease_seconds: float = MINUTE
    ) -> ScriptAnswer:
        command = self.life.apply(lease, seq, lease_seconds, changes, published=True, now=0.0)
        return read_script(self.ask(command))

    def bury(self, lease: str = LEASE, limit: int = 10, *, forced: bool = False) -> ScriptAnswer:
        return read_script(self.ask(self.life.bury(lease, limit, forced=forced)))

    def ask(self, command: Command) -> Any:
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def online(self) -> set[UUID]:
        return {UUID(user.decode()) for user in self.ask(("HKEYS", self.life.key("users")))}


@pytest.fixture
def cluster(redis_url: str) -> Iterator[Cluster]:
    with redis.Redis.from_url(redis_url) as client:
        yield Cluster(client)


def connection(user_id: UUID = ANNA) -> Connection:
    return Connection(user_id, uuid4(), True, None, None)


def test_the_first_connection_and_the_last_are_told(cluster: Cluster) -> None:
    phone, desk = connection(), connection()

    came = cluster.apply(1, Write(phone), Write(desk))
    stayed = cluster.apply(2, Removal(phone, -1.0))
    left = cluster.apply(3, Removal(desk, -1.0))

    assert [(one.user_id, one.online) for one in came.told] == [(ANNA, True)]
    assert stayed.told == []
    assert [(one.user_id, one.online) for one in left.told] == [(ANNA, False)]
    assert cluster.online() == set()


def test_a_first_connection_that_redis_only_forgot_is_not_told(cluster: Cluster) -> None:
    assert cluster.apply(1, Write(connection(), silent=True)).told == []
    assert cluster.online() == {ANNA}


def test_a_repetition_whose_answer_was_lost_is_told_again(cluster: Cluster) -> None:
    phone = connection()
    cluster.apply(1, Write(phone))

    repeated = cluster.apply(2, Write(phone, again=True))

    assert [(one.user_id, one.online) for one in repeated.told] == [(ANNA, True)]


def test_a_batch_that_was_overtaken_is_void(cluster: Cluster) -> None:
    phone = connection()
    cluster.apply(1)
    cluster.apply(3, Write(phone))
    cluster.apply(4, Removal(phone, -1.0))

    late = cluster.apply(2, Write(phone))

    assert (late.status, late.told) == ("late", [])
    assert cluster.apply(4, Write(phone)).status == "late"
    assert cluster.online() == set()


def test_a_lease_that_ran_out_writes_nothing_and_is_never_renewed(cluster: Cluster) -> None:
    cluster.apply(1, lease_seconds=-1.0)

    for seq in (2, 3):
        fenced = cluster.apply(seq, Write(connection()))
        assert (fenced.status, fenced.told) == ("fenced", [])
    assert cluster.online() == set()


def test_a_buried_lease_does_not_come_back(cluster: Cluster) -> None:
    cluster.apply(1, Write(connection()), lease_seconds=-1.0)
    buried = cluster.bury()
    assert buried.status == "gone"
    assert [(one.user_id, one.online) for one in buried.told] == [(ANNA, False)]

    assert cluster.apply(2, Write(connection())).status == "fenced"
    assert cluster.bury().told == []
    assert cluster.online() == set()


def test_a_live_lease_is_buried_by_its_own_node_only(cluster: Cluster) -> None:
    cluster.apply(1, Write(connection()))

    assert cluster.bury().status == "alive"
    assert cluster.online() == {ANNA}
    assert cluster.bury(forced=True).status == "gone"
    assert cluster.online() == set()


def test_a_large_grave_is_dug_in_parts_and_each_user_told_once(cluster: Cluster) -> None:
    people = [UUID(int=number) for number in range(1, 26)]
    cluster.apply(1, *(Write(connection(user_id)) for user_id in people), lease_seconds=-1.0)

    answers = [cluster.bury() for _ in range(3)]

    assert [answer.status for answer in answers] == ["more", "more", "gone"]
    told = [one.user_id for answer in answers for one in answer.told]
    assert sorted(told) == people


def test_nothing_is_written_in_a_life_that_is_over(cluster: Cluster) -> None:
    cluster.apply(1)
    cluster.ask(("SET", epoch_key(cluster.life.namespace, "run"), "another"))

    assert cluster.apply(2, Write(connection())).status == "lost"
    assert cluster.bury(forced=True).status == "lost"
    assert cluster.life.read_view([cluster.ask(command) for command in cluster.life.view()]) is None
    assert cluster.online() == set()


def test_the_view_tells_the_living_from_the_expired(cluster: Cluster) -> None:
    other = f"{uuid4()}.1"
    cluster.apply(1)
    cluster.apply(1, lease=other, lease_seconds=-1.0)

    view = cluster.life.read_view([cluster.ask(command) for command in cluster.life.view()])

    assert view is not None
    assert view.live == {LEASE}
    assert view.expired == {other}
    assert view.published == {node_of(LEASE)}
