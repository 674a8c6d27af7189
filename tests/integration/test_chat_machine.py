"""Random talks of two, said and sent again, one after the other and at once, on two nodes.

A Hypothesis state machine speaks through two nodes' `Chats`, each with a device of one of the two.
The other node's hints are lost, doubled, late and out of order. After every step what is stored is
what the model says, and each device has heard a beginning of it, in order; after a comparison with
Postgres, all of it.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any, ClassVar, TypeVar
from uuid import UUID, uuid4

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dispatch.board import Board
from dispatch.chat import Chats
from dispatch.core.types import Role
from dispatch.database import Connection, Pool, close_pool, open_pool
from dispatch.errors import Conflict
from dispatch.hints import Hint, Said
from dispatch.hub import Hub
from dispatch.protocol import CloseCode, ServerFrame, prepare
from dispatch.store import Store
from dispatch.tasks import Tasks
from tests.integration.talks import Talk, active

T = TypeVar("T")

EXAMPLES = 25
STEPS = 30
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12)


class Device:
    """A socket that keeps what is written to it."""

    unread_bytes = 0
    epoch = 0
    offers_sent = 0
    device: str | None = None

    def __init__(self, user_id: UUID, role: Role) -> None:
        self.connection_id = uuid4()
        self.user_id = user_id
        self.role = role
        self.heard: list[tuple[int, str]] = []

    def send(self, data: bytes) -> None:
        self.post(data)

    def post(self, data: bytes) -> None:
        start = data.index(b"{")
        frame: dict[str, Any] = msgspec.json.decode(data[start:])
        self.heard.append((frame["seq"], frame["body"]))

    def send_frame(self, frame: ServerFrame) -> None:
        self.post(prepare(frame))

    def close(self, code: CloseCode, reason: str = "") -> None:
        raise AssertionError("a device was closed")


class Side:
    """One of the two: a node of her own, her device, and what the other node told this one."""

    def __init__(self, pool: Pool, user_id: UUID, role: Role) -> None:
        self.device = Device(user_id, role)
        self.board, hub = Board(), Hub()
        hub.add(self.device)
        self.sent: list[Said] = []
        self.chats = Chats(
            pool, self.board, hub, Tasks(lambda: None), publish=self._publish, rate_messages=0.0
        )

    def _publish(self, hint: Hint) -> None:
        assert isinstance(hint, Said)
        self.sent.append(hint)


class Talking(RuleBasedStateMachine):
    loop: ClassVar[asyncio.AbstractEventLoop]
    pool: ClassVar[Pool]
    connection: ClassVar[Connection]

    def __init__(self) -> None:
        super().__init__()
        self.talk: Talk = self._run(active(self.connection, self.pool, plan_code="diagnostic"))
        self.sides = (
            Side(self.pool, self.talk.customer_id, Role.CUSTOMER),
            Side(self.pool, self.talk.mechanic_id, Role.MECHANIC),
        )
        entry = self._run(Store(self.pool).entry(self.talk.request_id))
        assert entry is not None
        for side in self.sides:
            side.board.put(entry)
        self.said: list[tuple[UUID, str]] = []  # the model: every message, in order
        self.over = False

    def _run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 10))

    async def _say(self, who: int, key: UUID, body: str) -> int:
        """Its seq; 0 where it was refused because the session is over."""
        side = self.sides[who]
        try:
            message, _ = await side.chats.say(side.device.user_id, self.talk.session_id, key, body)
        except Conflict:
            return 0
        return message.seq

    @rule(who=st.integers(0, 1), body=TEXTS)
    def somebody_speaks(self, who: int, body: str) -> None:
        key = uuid4()
        seq = self._run(self._say(who, key, body))
        if not self.over:
            self.said.append((key, body))
        assert seq == (0 if self.over else len(self.said))

    @rule(who=st.integers(0, 1), number=st.integers(0, 100), body=TEXTS)
    def it_is_sent_again(self, who: int, number: int, body: str) -> None:
        """Also after the end, also by the other, also with another text: it is what it was."""
        if self.said:
            at = number % len(self.said)
            assert self._run(self._say(who, self.said[at][0], body)) == at + 1

    @rule(bodies=st.lists(TEXTS, min_size=2, max_size=5))
    def several_speak_at_once(self, bodies: list[str]) -> None:
        keys = [uuid4() for _ in bodies]

        async def all_at_once() -> list[int]:
            speaking = (self._say(n % 2, keys[n], body) for n, body in enumerate(bodies))
            return await asyncio.gather(*speaking)

        seqs = self._run(all_at_once())
        if self.over:
            assert set(seqs) == {0}
            return
        first = len(self.said) + 1
        assert sorted(seqs) == list(range(first, first + len(bodies)))
        told = dict(zip(seqs, zip(keys, bodies, strict=True), strict=True))
        self.said += [told[seq] for seq in sorted(seqs)]

    @rule(of=st.integers(0, 1), order=st.randoms(use_true_random=False))
    def some_hints_arrive(self, of: int, order: Any) -> None:
        """In any order, some of them twice, and some never."""
        hints = self.sides[of].sent

        async def arrive() -> None:
            for hint in order.sample(hints, order.randint(0, len(hints))):
                for _ in range(order.randint(1, 2)):
                    self.sides[1 - of].chats.hear(hint)
            await self._settled()

        self._run(arrive())

    @rule()
    def nodes_compare_with_postgres(self) -> None:
        for side in self.sides:
            self._run(side.chats.reconcile())
        self._run(self._settled())
        for side in self.sides:
            assert len(side.device.heard) == len(self.said)

    @rule()
    def it_ends(self) -> None:
        if not self.over and len(self.said) > 5:
            self._run(self.talk.ends())
            self.over = True

    async def _settled(self) -> None:
        for side in self.sides:
            while fetching := list(side.chats._fetching.values()):
                await asyncio.wait(fetching)

    @invariant()
    def what_is_stored_is_what_was_said(self) -> None:
        bodies = [(n, body) for n, (_, body) in enumerate(self.said, 1)]
        assert self._run(self.talk.bodies()) == bodies
        for side in self.sides:
            heard = side.device.heard
            assert heard == bodies[: len(heard)], "in order, without gaps, each once"


def test_whatever_is_said_and_lost_both_hear_the_same_in_one_order(database_url: str) -> None:
    loop = asyncio.new_event_loop()
    Talking.loop = loop
    Talking.pool = loop.run_until_complete(open_pool(database_url, size=4))
    Talking.connection = loop.run_until_complete(Talking.pool.acquire())
    try:
        run_state_machine_as_test(
            Talking,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.run_until_complete(Talking.pool.release(Talking.connection))
        loop.run_until_complete(close_pool(Talking.pool))
        loop.close()
