"""Whether a mechanic fares as the others do: a small city counted by hand, and whose turn it is."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from dispatch import cli, fairness
from dispatch.audience import Audience
from dispatch.audit import Audit
from dispatch.board import Board
from dispatch.config import Config
from dispatch.core.routing import Terms
from dispatch.core.types import Booking, Role, Stage
from dispatch.database import Connection, Pool
from dispatch.fairness import explain_mechanic
from dispatch.fanout import Fanout
from dispatch.hub import NOBODY, Group, Hub, OnlineMechanic
from dispatch.metrics import Metrics
from dispatch.protocol import timestamp
from dispatch.rides import Part, in_turn
from dispatch.store import Store
from dispatch.waterfall import Waterfall
from tests.integration.living import living_node
from tests.integration.rows import (
    add_customer,
    add_mechanic,
    add_user,
    add_workshop,
    book,
)
from tests.integration.trail import decided, declined, judged
from tests.support import JWT_SECRET, STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET
from tests.unit import builders

OTHER_NODE = uuid4()


class Town(msgspec.Struct, frozen=True):
    """Ada of the workshop North, who is no specialist, and two others; all of it until `now`."""

    connection: Connection
    now: datetime
    north: UUID
    south: UUID
    ada: UUID
    ben: UUID
    cem: UUID

    def ago(self, minutes: float) -> datetime:
        return self.now - timedelta(minutes=minutes)

    async def won_by(self, booking: Booking, winner: UUID, generation: int = 1) -> None:
        await self.connection.execute(
            "UPDATE session_assignments SET mechanic_id = $3, outcome = 'taken'"
            " WHERE request_id = $1 AND generation = $2",
            booking.request_id,
            generation,
            winner,
        )


@pytest.fixture
async def town(connection: Connection) -> Town:
    north, south = await add_workshop(connection), await add_workshop(connection)
    return Town(
        connection=connection,
        now=await connection.fetchval("SELECT dispatch_now()"),
        north=north,
        south=south,
        ada=await add_mechanic(connection, north),
        ben=await add_mechanic(connection),
        cem=await add_mechanic(connection, south),
    )


async def live_a_day(town: Town) -> None:
    """Nine rounds that were for Ada, of which she was sent six, and five that were not."""
    connection, ada, ben, cem = town.connection, town.ada, town.ben, town.cem

    first = await book(connection)
    sent = {ada: 0, ben: 1, cem: 2}
    await decided(connection, first, town.ago(600), sent=sent, seen={ada: 1000, ben: 1})
    await town.won_by(first, ada)
    await judged(connection, first, ada, town.ago(599))

    # On two nodes, of which Ben is on both; Ada's is a later row than that of her card.
    second = await book(connection)
    await decided(connection, second, town.ago(500), sent={ben: 0, cem: 0})
    await decided(connection, second, town.ago(500), sent={ben: 0, ada: 10}, node_id=OTHER_NODE)
    late = town.ago(500) + timedelta(seconds=3)
    await decided(connection, second, late, seen={ben: 0, ada: 10}, node_id=OTHER_NODE)
    await town.won_by(second, ben)
    await judged(connection, second, ada, town.ago(499), lost="taken")

    unseen = await book(connection)
    await decided(connection, unseen, town.ago(400), sent={ben: 0, ada: 0}, seen={ben: 100})
    await town.won_by(unseen, ben)

    nobody_won = await book(connection)
    await decided(connection, nobody_won, town.ago(300), sent={ada: 0}, seen={ada: 500})
    await declined(connection, nobody_won, ada, town.ago(299))

    while_busy = await book(connection)
    await decided(connection, while_busy, town.ago(290), sent={cem: 0}, excluded={ada: "busy"})
    await town.won_by(while_busy, cem)
    await judged(connection, while_busy, ada, town.ago(289), lost="busy")

    while_away = await book(connection)
    await decided(connection, while_away, town.ago(280), sent={ben: 0})
    await town.won_by(while_away, ben)

    for_north = await book(connection, routing_type="workshop_only", workshop_id=town.north)
    await decided(connection, for_north, town.ago(270), sent={ada: 0}, seen={ada: 4000})
    await town.won_by(for_north, ada)
    await judged(connection, for_north, ada, town.ago(269))

    north_first = await book(connection, routing_type="hybrid", workshop_id=town.north)
    await decided(connection, north_first, town.ago(260), sent={ada: 0}, stage="preferred")
    then = town.ago(260) + timedelta(seconds=3)
    await decided(connection, north_first, then, sent={ada: 0, ben: 0}, seen={ada: 2000})
    await town.won_by(north_first, ben)

    # She gave the first one back, and is not asked again.
    await connection.execute(
        "INSERT INTO session_assignments (offer_id, request_id, session_id, generation, status,"
        " offered_at) VALUES ($1, $2, $3, 2, 'queued', $4)",
        uuid4(),
        first.request_id,
        first.session_id,
        town.ago(250),
    )
    again: dict[str, Any] = {"sent": {cem: 0}, "excluded": {ada: "excluded"}, "generation": 2}
    await decided(connection, first, town.ago(250), **again)
    await town.won_by(first, cem, generation=2)

    # What was not for her: specialists', another workshop's, another's favourite, yesterday's.
    for_specialists = await book(connection, is_specialist=True)
    await decided(connection, for_specialists, town.ago(240), sent={cem: 0})
    for_south = await book(connection, routing_type="workshop_only", workshop_id=town.south)
    await decided(connection, for_south, town.ago(230), sent={cem: 0})
    for_ben = await book(connection, routing_type="priority_broadcast", preferred_mechanic_id=ben)
    await decided(connection, for_ben, town.ago(220), sent={ben: 0}, stage="priority")
    south_first = await book(connection, routing_type="hybrid", workshop_id=town.south)
    await decided(connection, south_first, town.ago(210), sent={cem: 0}, stage="preferred")
    yesterday = await book(connection)
    await decided(connection, yesterday, town.ago(1441), sent={ada: 0})
    await decided(connection, yesterday, town.ago(1439), seen={ada: 0, ben: 5})
    await judged(connection, yesterday, ada, town.ago(1441), lost="taken")

    await connection.execute("UPDATE session_requests SET due_at = NULL")  # no node opens them


async def test_a_day_is_counted_as_by_hand(town: Town, pool: Pool) -> None:
    await live_a_day(town)

    told = await fairness.fairness(pool, town.ada, 24)

    since = told.since
    assert msgspec.to_builtins(told) == {
        "mechanic_id": str(town.ada),
        "name": "Kim Doe",
        "hours": 24,
        "since": since,
        "is_complete": True,
        "exposure": {
            "could_have_had": 9,
            "offered": 6,
            "share": round(6 / 9, 6),
            "missed": {"busy": 1, "not_connected": 1, "excluded": 1},
        },
        # She saw five, after 0.5, 1, 3, 4 and 3 + 2 seconds.
        "sight": {
            "seen": 5,
            "rate": round(5 / 6, 6),
            "seconds_p50": 3.0,
            "seconds_p90": 4.6,
        },
        "answers": {"won": 2, "declined": 1, "lost": {"busy": 1, "taken": 1}},
        # Of five that somebody won she won two; 3, 3, 2, 1 and 2 had been asked.
        "wins": {
            "decided": 5,
            "won": 2,
            "share": 0.4,
            "expected_share": round((1 / 3 + 1 / 3 + 1 / 2 + 1 + 1 / 2) / 5, 6),
        },
    }
    assert since == timestamp(datetime.fromisoformat(since))


async def test_the_command_line_says_the_same_in_aligned_lines(
    town: Town, config: Config, pool: Pool
) -> None:
    await live_a_day(town)

    lines = (await explain_mechanic(config, town.ada, 24)).splitlines()

    assert lines[0] == f"mechanic {town.ada}  Kim Doe"
    assert lines[1].startswith("  since     ")
    assert lines[1].endswith("Z, of the last 24 h")
    assert lines[2:] == [
        "  offered   6 of 9 rounds that were for her (66.67%);"
        " missed 1 busy, 1 not connected, 1 excluded",
        "  seen      5 of 6 (83.33%), after 3.0 s (median), 4.6 s (p90)",
        "  answered  2 won, 2 lost: 1 busy, 1 taken; 1 declined",
        "  wins      2 of 5 rounds that somebody won (40.00%);"
        " if all who were asked were equal: 53.33%",
    ]


async def test_of_who_has_no_record_nothing_is_said(
    connection: Connection, config: Config, pool: Pool
) -> None:
    newcomer = await add_mechanic(connection)

    told = await fairness.fairness(pool, newcomer, 1)
    lines = (await explain_mechanic(config, newcomer, 1)).splitlines()

    assert (told.exposure.share, told.exposure.missed) == (None, {})
    assert (told.sight.rate, told.sight.seconds_p50, told.sight.seconds_p90) == (None,) * 3
    assert (told.wins.share, told.wins.expected_share) == (None, None)
    assert lines[2:] == [
        "  offered   0 of 0 rounds that were for her (-)",
        "  seen      0 of 0 (-), after - (median), - (p90)",
        "  answered  0 won, 0 lost; 0 declined",
        "  wins      0 of 0 rounds that somebody won (-); if all who were asked were equal: -",
    ]


async def test_only_the_hours_that_were_asked_for_are_looked_at_and_only_so_much(
    town: Town, config: Config, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await live_a_day(town)

    lately = await fairness.fairness(pool, town.ada, 5)
    monkeypatch.setattr(fairness, "MAX_DECISIONS", 8)  # down to the one of 270 minutes ago
    bounded = await fairness.fairness(pool, town.ada, 24)
    text = await explain_mechanic(config, town.ada, 24)

    assert (lately.exposure.could_have_had, lately.is_complete) == (5, True)
    assert lately.answers.lost == {"busy": 1}
    assert (bounded.exposure.could_have_had, bounded.is_complete) == (3, False)
    assert bounded.since == timestamp(town.ago(280))
    assert bounded.answers.won == 1
    assert "of the last 24 h; before that there was too much to read\n" in text


async def test_operators_ask_over_http_and_nobody_else_does(
    town: Town, config: Config, pool: Pool
) -> None:
    await live_a_day(town)
    path = f"/api/admin/mechanics/{town.ada}/fairness"
    admin = await add_user(town.connection, "admin")
    async with living_node(config) as living:

        async def ask(who: UUID, role: str, path: str) -> tuple[int, Any]:
            status, answer = await living.call(who, role, "GET", path)
            return status, answer if status == 200 else answer["error"]["code"]

        status, told = await ask(admin, "admin", path)
        short = (await ask(admin, "admin", f"{path}?hours=5"))[1]
        wrong = [await ask(admin, "admin", f"{path}?hours={h}") for h in ("0", "745", "nan", "x")]
        strangers = [
            await ask(town.ada, "mechanic", path),
            await ask(await add_customer(town.connection), "customer", path),
        ]
        unknown = [
            await ask(admin, "admin", f"/api/admin/mechanics/{each}/fairness")
            for each in (uuid4(), admin, "nobody")
        ]

    assert status == 200
    assert told["wins"] == msgspec.to_builtins((await fairness.fairness(pool, town.ada, 24)).wins)
    assert (told["ok"], told["hours"], told["exposure"]["offered"]) == (True, 24, 6)
    assert (short["hours"], short["exposure"]["could_have_had"]) == (5, 5)
    assert wrong == [(400, "bad_request")] * 4
    assert strangers == [(403, "forbidden")] * 2
    assert unknown == [(404, "not_found")] * 3


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, database_url: str, redis_url: str) -> None:
    for name, value in {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "DISPATCH_JWT_SECRET": JWT_SECRET,
        "STRIPE_SECRET_KEY": STRIPE_SECRET_KEY,
        "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "one of the arguments REQUEST --mechanic is required"),
        (["--mechanic", "Ada"], "invalid UUID"),
        ([str(uuid4()), "--mechanic", str(uuid4())], "not allowed with"),
        (["--mechanic", str(uuid4()), "--hours", "0"], "must be a number from 1 to 744"),
        (["--mechanic", str(uuid4()), "--hours", "745"], "must be a number from 1 to 744"),
        ([str(uuid4()), "--hours", "3"], "--hours is for --mechanic"),
    ],
    ids=range(6),
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = cli.main(["explain", *arguments])
    except SystemExit as ended:
        code = ended.code

    assert code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.usefixtures("configured")
def test_a_mechanic_whom_nobody_knows_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = cli.main(["explain", "--mechanic", str(uuid4())])

    told = capsys.readouterr()
    assert (code, told.out, told.err) == (1, "", "dispatch: no such mechanic\n")


# --- whose turn it is -----------------------------------------------------------------------------


class Receiver:
    """A connection of the hub that notes, in the order of writing, whose card was written."""

    def __init__(self, user_id: UUID, order: list[UUID]) -> None:
        self.connection_id = uuid4()
        self.user_id = user_id
        self.role = Role.MECHANIC
        self.device: str | None = None
        self.epoch = 0
        self.offers_sent = 0
        self.unread_bytes = 0
        self._order = order

    def send(self, data: bytes) -> None:
        self._order.append(self.user_id)

    def post(self, data: bytes) -> None:
        self.send(data)

    def send_frame(self, frame: object) -> None:
        raise AssertionError("only cards are written here")

    def close(self, code: object, reason: str = "") -> None:
        raise AssertionError("nobody is closed here")


def chi_square(counts: Sequence[int], kinds: int) -> float:
    """How far from equal, for so many kinds; its mean is kinds - 1 where all are equally likely."""
    expected = sum(counts) / kinds
    missing = kinds - len(counts)
    return sum((count - expected) ** 2 / expected for count in counts) + missing * expected


@pytest.fixture
def seeded() -> Iterator[None]:
    state = random.getstate()
    random.seed(20261120)
    yield
    random.setstate(state)


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("sizes", [[20], [1, 12, 7], [1] * 20])
def test_everyone_is_written_to_first_and_at_every_place_equally_often(sizes: list[int]) -> None:
    everyone = [OnlineMechanic(builders.candidate(uuid4()), builders.T0) for _ in range(20)]
    rest, terms, broadcasts = iter(everyone), Terms(50, preferred=False, highlighted=False), 4000
    parts = [
        Part(Group(builders.candidate(NOBODY)), terms, list(islice(rest, size))) for size in sizes
    ]

    turns = [in_turn(parts) for _ in range(broadcasts)]

    orders = [[each for part in turn.values() for each in part.members] for turn in turns]
    assert all(len(order) == 20 and set(order) == set(everyone) for order in orders)
    for place in range(20):
        counts = Counter(order[place] for order in orders)
        # 19 degrees of freedom: it is 60 or more once in 200,000 times.
        assert chi_square(list(counts.values()), len(everyone)) < 60
    assert in_turn([]) == {}


@pytest.mark.usefixtures("seeded")
def test_who_stands_behind_those_who_may_not_have_it_is_not_first_more_often(
    store: Store,
) -> None:
    hub, order = Hub(), list[UUID]()
    node_id, broadcasts = uuid4(), 3000
    audit = Audit(store, node_id, lambda: builders.T0, Waterfall(Metrics(node_id)))
    fanout = Fanout(
        hub,
        Board(),
        Audience(node_id, hub.apart),
        audit,
        now=lambda: builders.T0,
        publish=lambda hint: None,
        pace=lambda mechanic, rest: None,
        stood_still=lambda: False,
        capacity=1,
    )
    for number in range(40):  # ten who may have it, thirty who may not, in one run
        mechanic_id = uuid4()
        facts = builders.candidate(mechanic_id, available=number < 10)
        hub.add_mechanic(Receiver(mechanic_id, order), facts, builders.T0)

    for _ in range(broadcasts):
        fanout.apply(builders.entry_of(builders.booking(stage=Stage.OPEN)))

    assert len(order) == broadcasts * 10
    counts = Counter(order[::10])
    # 9 degrees of freedom: it is 45 or more once in a million times.
    assert chi_square(list(counts.values()), 10) < 45


async def test_over_real_sockets_nobody_is_first_more_often_than_chance_has_it(
    connection: Connection, config: Config
) -> None:
    everyone, broadcasts = [await add_mechanic(connection) for _ in range(5)], 150
    async with living_node(config) as living, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(living.client(mechanic_id, "mechanic"))
            for mechanic_id in everyone
        ]
        for _ in range(broadcasts):
            booking = await book(connection)
            await living.node.dispatcher.fire(booking.request_id)
        for client in clients:
            await client.settle()
            assert len(client.of("offer")) == broadcasts
        await living.node.audit.flush()

    first = await connection.fetch(
        "SELECT mechanic_ids[1], count(*) FROM routing_decisions"
        " WHERE cardinality(mechanic_ids) = 5 GROUP BY 1"
    )
    assert sum(count for _, count in first) == broadcasts
    # 4 degrees of freedom: it is 35 or more once in two million times.
    assert chi_square([count for _, count in first], len(everyone)) < 35
