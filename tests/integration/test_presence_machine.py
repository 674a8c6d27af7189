"""Random histories of nodes, people and lost messages against a real Redis: no ghosts, no flaps.

A Hypothesis state machine plays some nodes. Each has a ledger, and speaks to Redis as the registry
does; requests and answers get lost or come late, leases run out, Redis is emptied. Whatever
happened, once everybody has said what they have to say, Redis knows exactly who is connected.
"""

from collections import Counter, defaultdict
from typing import Any, ClassVar
from uuid import UUID, uuid4

import msgspec
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dispatch.presence_ledger import Change, Connection, Ledger
from dispatch.presence_redis import Life, ScriptAnswer, Told, epoch_key, read_script
from dispatch.redis_link import Command

GRACE_SECONDS = 5.0
LEASE_SECONDS = 3600.0  # a lease runs out when the machine says so
USERS = [UUID(int=number) for number in (1, 2)]
WORKSHOPS = [None, UUID(int=101), UUID(int=102)]
NODES = 2
BATCH = 2
EXAMPLES = 60


class Node:
    """A process as the machine plays it."""

    def __init__(self) -> None:
        self.node_id = uuid4()
        self.ledger = Ledger(GRACE_SECONDS)
        self.here: dict[UUID, UUID] = {}  # connection -> user
        self.leaving: dict[UUID, UUID] = {}
        self.incarnation = 1
        self.seq = 0

    @property
    def lease(self) -> str:
        return f"{self.node_id}.{self.incarnation}"

    def begin_lease(self) -> None:
        self.incarnation += 1
        self.seq = 0


class Machine(RuleBasedStateMachine):
    """Two nodes, two mechanics, one Redis."""

    client: ClassVar[redis.Redis]
    connections = Bundle("connections")

    def __init__(self) -> None:
        super().__init__()
        self.namespace = uuid4().hex
        self.now = 0.0
        self.nodes = [Node() for _ in range(NODES)]
        self.late: list[Command] = []  # requests that are still on their way
        self.told: defaultdict[UUID, list[Told]] = defaultdict(list)
        self.lossy = False  # somebody may not have been told
        self._begin_life()

    def teardown(self) -> None:
        for key in self.client.scan_iter(f"dispatch:{self.namespace}:*"):
            self.client.delete(key)

    # --- people

    @rule(
        target=connections,
        number=st.integers(0, NODES - 1),
        user_id=st.sampled_from(USERS),
        workshop_id=st.sampled_from(WORKSHOPS),
    )
    def join(self, number: int, user_id: UUID, workshop_id: UUID | None) -> tuple[Node, UUID]:
        node, connection_id = self.nodes[number], uuid4()
        node.ledger.join(Connection(user_id, connection_id, True, "phone", workshop_id))
        node.here[connection_id] = user_id
        return node, connection_id

    @rule(connection=consumes(connections))
    def leave(self, connection: tuple[Node, UUID]) -> None:
        node, connection_id = connection
        node.ledger.leave(connection_id, self.now)
        if connection_id in node.here:
            node.leaving[connection_id] = node.here.pop(connection_id)

    @rule(seconds=st.sampled_from([1.0, 4.0, 6.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    # --- messages

    @rule(number=st.integers(0, NODES - 1))
    def speak(self, number: int) -> None:
        node = self.nodes[number]
        command, changes = self._next(node)
        self._hear(node, changes, self._run(command))

    @rule(number=st.integers(0, NODES - 1))
    def speak_and_hear_nothing(self, number: int) -> None:
        self._run(self._next(self.nodes[number])[0])
        self.lossy = True

    @rule(number=st.integers(0, NODES - 1))
    def speak_late(self, number: int) -> None:
        self.late.append(self._next(self.nodes[number])[0])

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def deliver_late(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.late) - 1))
        if self._run(self.late.pop(number)).status == "ok":
            self.lossy = True

    # --- faults

    @rule(number=st.integers(0, NODES - 1))
    def stop(self, number: int) -> None:
        """The node stands still for so long that its lease runs out."""
        self._run_out(self.nodes[number].lease)

    @rule(number=st.integers(0, NODES - 1))
    def crash(self, number: int) -> None:
        self._run_out(self.nodes[number].lease)
        self.nodes[number] = Node()

    @rule()
    def bury(self) -> None:
        """Any node buries whoever is expired."""
        view = self.life.read_view([self._ask(command) for command in self.life.view()])
        assert view is not None
        for lease in view.expired:
            status = "more"
            while status == "more":
                answer = self._run(self.life.bury(lease, BATCH))
                self._note(answer.told)
                status = answer.status
            assert status == "gone"

    @rule()
    def empty(self) -> None:
        self.client.delete(epoch_key(self.namespace, "run"))
        self._begin_life()
        for node in self.nodes:
            node.ledger.forgotten()
            node.begin_lease()
        self.lossy = True

    # --- what must hold

    @rule()
    def everybody_says_what_there_is_to_say(self) -> None:
        """Then Redis knows who is connected, and the told ones are those."""
        for node in self.nodes:
            for _ in range(100):
                command, changes = self._next(node)
                self._hear(node, changes, self._run(command))
                if not node.ledger.take(self.now, BATCH, removals=True):
                    break
        leases = {node.lease for node in self.nodes}
        for lease in self._hash("nodes"):
            if lease not in leases:
                self._run_out(lease)
        self.bury()
        self._check_redis()
        self._check_told()

    @invariant()
    def who_is_told_comes_and_goes_in_turn(self) -> None:
        for told in self.told.values():
            seen = [one.seen for one in told if one.seen is not None]
            assert seen == sorted(set(seen)), "each time is later than the one before"
            if not self.lossy:
                assert [one.online for one in told] == [n % 2 == 0 for n in range(len(told))]

    def _check_redis(self) -> None:
        entries = {
            UUID(user): msgspec.msgpack.decode(packed, type=dict[str, str])
            for user, packed in self._hash("users").items()
        }
        found = {(user_id, name) for user_id, names in entries.items() for name in names}
        must = {
            (user_id, f"{node.lease}.{connection_id.hex}")
            for node in self.nodes
            for connection_id, user_id in node.here.items()
        }
        may = {
            (user_id, f"{node.lease}.{connection_id.hex}")
            for node in self.nodes
            for connection_id, user_id in node.leaving.items()
        }
        assert must <= found <= must | may
        mechanics = self._hash("mechanics")
        assert {UUID(user) for user in mechanics} == entries.keys()
        counts = {workshop.encode(): int(n) for workshop, n in self._hash("workshops").items()}
        assert counts == Counter(workshop for workshop in mechanics.values() if workshop)
        members = {
            (UUID(member[:32].decode()), f"{node.lease}.{member[32:].decode()}")
            for node in self.nodes
            for member in self._ask(("SMEMBERS", self.life.key(f"members:{node.lease}")))
        }
        assert members == found

    def _check_told(self) -> None:
        if not self.lossy:
            online = {user_id for user_id, told in self.told.items() if told[-1].online}
            assert online == {UUID(user) for user in self._hash("users")}

    # --- how it is done

    def _begin_life(self) -> None:
        self.life = Life(self.namespace, "run", uuid4().hex)
        self.client.set(epoch_key(self.namespace, "run"), self.life.epoch)
        self.told.clear()

    def _next(self, node: Node) -> tuple[Command, list[Change]]:
        changes = node.ledger.take(self.now, BATCH, removals=True)
        node.seq += 1
        command = self.life.apply(
            node.lease, node.seq, LEASE_SECONDS, changes, published=True, now=self.now
        )
        return command, changes

    def _hear(self, node: Node, changes: list[Change], answer: ScriptAnswer) -> None:
        self._note(answer.told)
        if answer.status == "ok":
            node.ledger.confirm(changes)
        else:
            assert answer.status == "fenced"
            node.ledger.buried()
            node.leaving.clear()
            node.begin_lease()

    def _run(self, command: Command) -> ScriptAnswer:
        return read_script(self._ask(command))

    def _ask(self, command: Command) -> Any:
        return self.client.execute_command(*command)  # type: ignore[no-untyped-call]

    def _hash(self, name: str) -> dict[str, bytes]:
        found = self._ask(("HGETALL", self.life.key(name)))
        return {field.decode(): value for field, value in found.items()}

    def _note(self, told: list[Told]) -> None:
        for one in told:
            self.told[one.user_id].append(one)

    def _run_out(self, lease: str) -> None:
        packed = self._hash("nodes").get(lease)
        if packed is not None:
            _, *rest = msgspec.msgpack.decode(packed)
            self.client.hset(self.life.key("nodes"), lease, msgspec.msgpack.encode([1, *rest]))


def test_whatever_happens_redis_ends_up_knowing_exactly_who_is_here(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        Machine.client = client
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
        )
