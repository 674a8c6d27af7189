"""Broadcasts that are under way while people come, go and change: nobody is left out or behind.

The real hub, board and fan-out, with sockets that keep what they are sent. Groups, slices and small
rides are made tiny, so that a dozen mechanics are as many to it as thousands.
"""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from dispatch import carousel, hub
from dispatch.audience import Audience
from dispatch.audit import Audit
from dispatch.board import Board
from dispatch.carousel import Carousel
from dispatch.core import routing
from dispatch.core.types import Booking, Candidate, RequestStatus, Role, Routing, Stage
from dispatch.fanout import Fanout
from dispatch.hints import Entry
from dispatch.hub import Card, Hub, Letter, OnlineMechanic
from dispatch.metrics import Metrics
from dispatch.protocol import CloseCode, ServerFrame, prepare
from dispatch.waterfall import Waterfall
from tests.support import eventually
from tests.unit import builders
from tests.unit.builders import NORTH, SOUTH, T0, entry_of

OVER = ("taken", "cancelled", "expired")


class Device:
    """A socket that keeps what it is sent, as (offer_id, what)."""

    def __init__(self, user_id: UUID) -> None:
        self.connection_id = uuid4()
        self.user_id = user_id
        self.role = Role.MECHANIC
        self.device: str | None = None
        self.epoch = 0
        self.offers_sent = 0
        self.unread_bytes = 0
        self.told: list[tuple[UUID, str]] = []
        self.writes = 0

    def send(self, data: bytes) -> None:
        self.writes += 1
        while data:
            head, size = (2, data[1]) if data[1] < 126 else (4, int.from_bytes(data[2:4], "big"))
            frame, data = json.loads(data[head : head + size]), data[head + size :]
            if frame["type"] == "offer":
                self.told.append((UUID(frame["offer_id"]), frame["stage"]))
            elif frame["type"] == "offer.revoked":
                self.told.append((UUID(frame["offer_id"]), frame["reason"]))
            elif frame["type"] == "offer.won":
                self.told.append((UUID(frame["offer_id"]), "taken"))

    def post(self, data: bytes) -> None:
        self.send(data)

    def send_frame(self, frame: ServerFrame) -> None:
        self.send(prepare(frame))

    def close(self, code: CloseCode, reason: str = "") -> None:
        raise AssertionError("nobody is closed here")

    def shows(self) -> dict[UUID, str]:
        """The cards on its screen, each with the stage that it says."""
        screen: dict[UUID, str] = {}
        for offer_id, what in self.told:
            if what in ("open", "preferred", "priority"):
                screen[offer_id] = what
            else:
                screen.pop(offer_id, None)
        return screen


class Broadcasts(RuleBasedStateMachine):
    """One node; each rule is one turn of the loop, in which at most a slice is written."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(carousel, "SLICE", 2)
        self.patch.setattr(carousel, "AT_ONCE", 1)
        self.patch.setattr(hub, "GROUP", 2)
        self.loop = asyncio.new_event_loop()
        self.hub, self.board = Hub(), Board()
        node_id = uuid4()
        self.audit = audit = Audit(None, node_id, lambda: T0, Waterfall(Metrics(node_id)))  # type: ignore[arg-type]  # never flushed
        self.fanout = Fanout(
            self.hub,
            self.board,
            Audience(node_id, self.hub.apart),
            audit,
            now=lambda: T0,
            publish=lambda hint: None,
            pace=self.show_all,
            stood_still=lambda: self.still,
            capacity=1,
        )
        self.devices: dict[UUID, list[Device]] = {}
        self.still = False
        self.changes = 0

    def teardown(self) -> None:
        self.settle()
        self.loop.close()
        self.patch.undo()

    def show_all(self, mechanic: OnlineMechanic, rest: list[Entry]) -> None:
        for entry in rest:
            self.fanout.show(mechanic, entry)

    def turn(self, action: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(action)

    def someone(self, number: int) -> OnlineMechanic | None:
        everyone = self.hub.mechanics()
        return everyone[number % len(everyone)] if everyone else None

    def some_booking(self, number: int) -> Booking | None:
        entries = self.board.open_entries()
        return entries[number % len(entries)].booking if entries else None

    # --- people

    @initialize(count=st.integers(0, 9))
    def a_city(self, count: int) -> None:
        for number in range(count):
            self.come((None, NORTH, SOUTH)[number % 3], True)

    @rule(workshop=st.sampled_from([None, NORTH, SOUTH]), available=st.booleans())
    def come(self, workshop: UUID | None, available: bool) -> None:
        facts = builders.candidate(uuid4(), workshop_id=workshop, available=available)

        async def action() -> None:
            self.connect(facts)

        self.turn(action())

    def connect(self, facts: Candidate) -> None:
        """As the gateway does it: registered, then shown in the snapshot what is open for her."""
        device = Device(facts.mechanic_id)
        self.devices.setdefault(facts.mechanic_id, []).append(device)
        already_here = self.hub.mechanic(facts.mechanic_id)
        if already_here is not None:
            self.fanout.hasten(already_here)
        mechanic = self.hub.add_mechanic(device, facts, T0)
        for entry in self.fanout.ranked(mechanic):
            assert entry.booking.stage is not None
            device.told.append((entry.booking.offer_id, entry.booking.stage.value))
            self.fanout.note_shown(mechanic, entry)

    @rule(number=st.integers(0, 99), back=st.booleans())
    def go(self, number: int, back: bool) -> None:
        mechanic = self.someone(number)
        if mechanic is None:
            return
        facts = mechanic.candidate

        async def action() -> None:
            devices = self.devices[facts.mechanic_id]
            self.hub.remove(devices.pop())
            if not devices:
                del self.devices[facts.mechanic_id]
            if back:
                self.connect(facts)

        self.turn(action())

    @rule(number=st.integers(0, 99))
    def take_another_device(self, number: int) -> None:
        mechanic = self.someone(number)
        if mechanic is None:
            return
        facts = mechanic.candidate

        async def action() -> None:
            self.connect(facts)

        self.turn(action())

    @rule(
        number=st.integers(0, 99),
        available=st.booleans(),
        workshop=st.sampled_from([None, NORTH, SOUTH]),
    )
    def change(self, number: int, available: bool, workshop: UUID | None) -> None:
        mechanic = self.someone(number)
        if mechanic is None:
            return
        self.changes += 1
        facts = replace(mechanic.candidate, available=available, workshop_id=workshop)

        async def action() -> None:
            self.fanout.facts(facts, builders.at(self.changes))

        self.turn(action())

    # --- bookings

    @rule(kind=st.sampled_from([Routing.BROADCAST, Routing.WORKSHOP_ONLY, Routing.HYBRID]))
    def book(self, kind: Routing) -> None:
        stage = Stage.PREFERRED if kind is Routing.HYBRID else Stage.OPEN
        workshop = None if kind is Routing.BROADCAST else NORTH
        self.put(builders.booking(routing=kind, stage=stage, preferred_workshop_id=workshop))

    @rule(number=st.integers(0, 99))
    def widen(self, number: int) -> None:
        booking = self.some_booking(number)
        if booking is not None and booking.stage is Stage.PREFERRED:
            self.put(replace(booking, stage=Stage.OPEN, version=booking.version + 1))

    @rule(number=st.integers(0, 99), who=st.integers(0, 99))
    def decline(self, number: int, who: int) -> None:
        booking, mechanic = self.some_booking(number), self.someone(who)
        if booking is not None and mechanic is not None:
            excluded = (*booking.excluded, mechanic.candidate.mechanic_id)
            self.put(replace(booking, excluded=excluded, version=booking.version + 1))

    @rule(number=st.integers(0, 99))
    def cancel(self, number: int) -> None:
        booking = self.some_booking(number)
        if booking is not None:
            self.end(booking, RequestStatus.CANCELLED, None)

    @rule(number=st.integers(0, 99), who=st.integers(0, 99))
    def accept(self, number: int, who: int) -> None:
        booking, mechanic = self.some_booking(number), self.someone(who)
        if (
            booking is not None
            and mechanic is not None
            and routing.exclusion(booking, mechanic.candidate, 1) is None
        ):
            self.end(booking, RequestStatus.ACCEPTED, mechanic.candidate.mechanic_id)

    def end(self, booking: Booking, status: RequestStatus, winner: UUID | None) -> None:
        self.put(
            replace(
                booking,
                status=status,
                stage=None,
                mechanic_id=winner,
                accept_id=None if winner is None else uuid4(),
                version=booking.version + 1,
            )
        )

    def put(self, booking: Booking) -> None:
        async def action() -> None:
            assert self.fanout.apply(entry_of(booking))

        self.turn(action())

    # --- what must hold

    @invariant()
    def no_card_follows_the_end_of_its_round(self) -> None:
        for device in [each for devices in self.devices.values() for each in devices]:
            ended: set[UUID] = set()
            for offer_id, what in device.told:
                assert offer_id not in ended, f"{what} after the end"
                if what in OVER:
                    ended.add(offer_id)

    @rule()
    def settle(self) -> None:
        """When all is written, everybody sees exactly what she may have, as it is now."""

        async def rest() -> None:
            await eventually(lambda: not self.fanout.is_writing)

        self.turn(rest())
        for mechanic in self.hub.mechanics():
            candidate = mechanic.candidate
            may_have = {
                entry.booking.offer_id: entry.booking.stage
                for entry in self.board.open_entries()
                if routing.exclusion(entry.booking, candidate, 1) is None
            }
            for device in self.devices[candidate.mechanic_id]:
                assert device.shows() == may_have
            assert {card.offer_id for card in mechanic.cards} == set(may_have)
            assert all(mechanic in card.holders for card in mechanic.cards)
            assert mechanic in mechanic.group.members
        placed = [each for group in self.hub.groups() for each in group.members]
        assert sorted(map(id, placed)) == sorted(map(id, self.hub.mechanics()))


Broadcasts.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBroadcasts = Broadcasts.TestCase


def test_who_changes_while_a_new_stage_is_on_its_way_is_shown_it() -> None:
    city = Broadcasts()
    for _ in range(9):
        city.come(NORTH, True)
    city.book(Routing.HYBRID)
    city.settle()

    city.widen(0)
    for number in range(9):
        city.change(number, True, NORTH)

    city.teardown()  # everybody sees what she may have, in its present stage


def test_a_phone_is_shown_what_a_tablet_saw_in_its_snapshot_though_she_changes_meanwhile() -> None:
    city = Broadcasts()
    for _ in range(9):
        city.come(None, True)

    city.book(Routing.BROADCAST)
    for number in range(9):
        city.take_another_device(number)
        city.change(number, True, None)

    city.teardown()  # everybody sees what she may have, on each device


def test_what_ended_while_the_node_stood_still_is_shown_to_nobody_more() -> None:
    city = Broadcasts()
    for _ in range(12):
        city.come(None, True)
    for _ in range(3):
        city.book(Routing.BROADCAST)
    bookings = [entry.booking for entry in city.board.open_entries()]
    shown = len(cards_on(city))

    async def action() -> None:
        city.still = True
        assert city.fanout.is_behind
        await asyncio.sleep(0)
        city.still = False
        ended = RequestStatus.CANCELLED
        city.fanout.catch_up(
            entry_of(replace(each, status=ended, stage=None, version=each.version + 1))
            for each in bookings
        )

    city.turn(action())

    assert len(cards_on(city)) == shown
    city.teardown()
    assert [device.shows() for device in everybody(city)] == [{}] * 12


def test_everybody_who_was_there_is_on_record_though_the_round_was_over_before_her_turn() -> None:
    city = Broadcasts()
    for _ in range(12):
        city.come(None, True)
    city.book(Routing.BROADCAST)
    city.change(11, False, None)

    city.cancel(0)
    city.settle()

    asked = [each for batch in city.audit._batches for each in batch.mechanic_ids]
    passed = {
        each: reason
        for batch in city.audit._batches
        for each, reason in zip(batch.excluded_ids, batch.excluded_reasons, strict=True)
    }
    ids = [each.candidate.mechanic_id for each in city.hub.mechanics()]
    assert len(asked) < 12, "it was over in the middle"
    assert sorted([*asked, *(each for each in passed if each not in asked)]) == sorted(ids)
    assert set(passed.values()) == {"over", "unavailable"}
    assert passed[ids[11]] == "unavailable"
    city.teardown()


def everybody(city: Broadcasts) -> list[Device]:
    return [each for devices in city.devices.values() for each in devices]


def cards_on(city: Broadcasts) -> list[tuple[UUID, str]]:
    return [line for device in everybody(city) for line in device.told if line[1] not in OVER]


# --- the carousel by itself -----------------------------------------------------------------------


class Walk:
    """A ride past named parts of people, which notes where it was."""

    def __init__(self, name: str, parts: dict[str, list[OnlineMechanic]], trail: list[str]) -> None:
        self.ahead: dict[Any, Any] = {part: (part, people) for part, people in parts.items()}
        self.name = name
        self.trail = trail

    def __len__(self) -> int:
        return sum(len(people) for _, people in self.ahead.values())

    def visit(self, part: tuple[str, list[OnlineMechanic]]) -> Letter:
        self.trail.append(f"{self.name}{part[0]}")
        return Letter(part[1], self.name.encode())

    def arrived(self) -> None:
        self.trail.append(f"{self.name}.")


def people(count: int) -> list[OnlineMechanic]:
    found = []
    for _ in range(count):
        mechanic = OnlineMechanic(builders.candidate(uuid4()), T0)
        mechanic.sockets = (Counting(mechanic.candidate.mechanic_id),)
        found.append(mechanic)
    return found


class Counting(Device):
    def send(self, data: bytes) -> None:
        self.writes += 1


async def until_empty(turning: Carousel) -> None:
    await eventually(lambda: not len(turning))


async def test_who_goes_the_same_way_is_written_together_and_everybody_once() -> None:
    parts = {name: people(100) for name in "abcd"}
    trail: list[str] = []
    turning = Carousel(lambda: True)

    turning.board(Walk("1", parts, trail))
    for name in "23456789":
        turning.board(Walk(name, parts, trail))
    await until_empty(turning)

    assert sorted(trail) == sorted(f"{name}{part}" for name in "123456789" for part in "abcd.")
    # The first had a whole turn before the others came; then all went past the rest together.
    sockets = [each.sockets[0] for part in "cd" for each in parts[part]]
    assert {socket.writes for socket in sockets if isinstance(socket, Counting)} == {1}


async def test_a_small_ride_waits_for_nobody() -> None:
    trail: list[str] = []
    turning = Carousel(lambda: True)
    turning.board(Walk("big ", {name: people(100) for name in "abcd"}, trail))

    turning.board(Walk("small ", {"z": people(3)}, trail))

    assert trail[-2:] == ["small z", "small ."]
    assert len(turning) == 1
    await until_empty(turning)


async def test_who_has_left_is_written_to_no_more() -> None:
    trail: list[str] = []
    turning = Carousel(lambda: True)
    walk = Walk("1", {name: people(100) for name in "abcd"}, trail)
    turning.board(walk)
    begun = list(trail)

    turning.leave(walk)
    turning.leave(walk)
    await asyncio.sleep(0)

    assert trail == [*begun, "1."]


async def test_nobody_is_written_to_while_it_may_not_turn() -> None:
    trail: list[str] = []
    may_turn = [False]
    turning = Carousel(lambda: may_turn[0])
    turning.board(Walk("1", {name: people(100) for name in "ab"}, trail))
    turning.board(Walk("2", {"z": people(1)}, trail))
    turning.board(Walk("nobody", {}, trail))
    await asyncio.sleep(0)
    assert trail == ["nobody."]

    may_turn[0] = True
    turning.turn()
    await until_empty(turning)

    assert sorted(trail[1:]) == ["1.", "1a", "1b", "2.", "2z"]


def test_a_card_that_was_lost_is_not_lost_twice() -> None:
    card, (anna,) = Card(uuid4(), uuid4()), people(1)
    anna.hold(card)

    assert [anna.lose(card), anna.lose(card)] == [True, False]
    assert not card.holders
