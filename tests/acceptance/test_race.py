"""Many want the same job: one wins, everybody else is told why, and no verdict ever changes.

On two workers, so that what crosses processes is decided as well as what does not.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.acceptance.actors import City, Mechanic, Town, new_id
from tests.acceptance.conftest import BuildTown
from tests.acceptance.shapes import Frame
from tests.support import eventually_blocking


@pytest.fixture(scope="module")
def town(build_town: BuildTown) -> Iterator[Town]:
    with build_town(workers=2) as town:
        eventually_blocking(lambda: len(town.nodes()) == 2)
        yield town


async def spread(city: City, mechanics: list[Mechanic]) -> None:
    """Half of them on each node."""
    nodes = sorted(city.town.nodes())
    for nth, mechanic in enumerate(mechanics):
        await mechanic.connect_to(nodes[nth % 2])


async def test_of_twenty_who_accept_at_once_one_wins_and_the_others_are_told(city: City) -> None:
    ann = await city.customer()
    mechanics = [await city.mechanic(nth % 3, online=False) for nth in range(20)]
    await spread(city, mechanics)
    booking = await ann.book()
    cards = [await mechanic.offered(booking) for mechanic in mechanics]

    verdicts = await asyncio.gather(
        *(mechanic.accept(card) for mechanic, card in zip(mechanics, cards, strict=True))
    )

    kinds = Counter((verdict["type"], verdict.get("reason")) for verdict in verdicts)
    assert kinds == {("offer.won", None): 1, ("offer.lost", "taken"): 19}
    winner = next(m for m, v in zip(mechanics, verdicts, strict=True) if v["type"] == "offer.won")
    won = winner.device.got("offer.won")
    assert [(v["request_id"], v["session_id"]) for v in won] == [
        (booking.request_id, booking.session_id)
    ]
    accepted = await booking.status(status="accepted")
    assert accepted["mechanic"]["id"] == winner.id
    for mechanic in mechanics:
        await mechanic.device.fence()
        ends = mechanic.device.got("offer.won") + mechanic.device.got("offer.lost")
        assert len(ends) == 1
        assert {frame["reason"] for frame in mechanic.device.got("offer.revoked")} <= {"taken"}
    assert (await booking.read())["mechanic"]["id"] == winner.id


async def test_a_verdict_is_the_same_whenever_and_wherever_one_asks_again(city: City) -> None:
    ann = await city.customer()
    mechanics = [await city.mechanic(online=False) for _ in range(2)]
    await spread(city, mechanics)
    booking = await ann.book()
    cards = [await mechanic.offered(booking) for mechanic in mechanics]
    won_id, lost_id = new_id(), new_id()
    won = await mechanics[0].accept(cards[0], won_id)
    lost = await mechanics[1].accept(cards[1], lost_id)

    nodes = sorted(city.town.nodes())
    other_device = await mechanics[0].connect_to(nodes[1])
    again = [await mechanics[0].accept(cards[0], won_id) for _ in range(3)]
    second = await mechanics[0].accept(cards[0])
    await mechanics[1].connect_to(nodes[0])
    lost_again = await mechanics[1].accept(cards[1], lost_id)

    assert (won["type"], lost["type"], lost["reason"]) == ("offer.won", "offer.lost", "taken")
    assert [without_re(verdict) for verdict in again] == [without_re(won)] * 3
    assert (second["type"], second["session_id"]) == ("offer.won", booking.session_id)
    assert without_re(lost_again) == without_re(lost)
    assert len(other_device.snapshot["sessions"]) == 1
    assert len(ann.device.got("request.status", status="accepted", request_id=booking.request_id))


def without_re(frame: Frame) -> Frame:
    return {name: value for name, value in frame.items() if name != "re"}


async def test_a_win_is_shown_on_all_her_devices(city: City) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic(online=False)
    here, there = [await mechanic.connect_to(node) for node in sorted(city.town.nodes())]
    booking = await ann.book()
    card = await here.card(booking.request_id)

    won = await here.ask("offer.accept", offer_id=card["offer_id"], accept_id=new_id())

    told = await there.expect("offer.won", offer_id=card["offer_id"])
    assert without_re(told) == without_re(won)


async def test_a_mechanic_who_works_loses_as_busy(city: City) -> None:
    ann, bob = await city.customer(), await city.customer()
    mechanic = await city.mechanic()
    first, second = await ann.book(), await bob.book()
    card = await mechanic.offered(second)
    await mechanic.wins(first)

    verdict = await mechanic.accept(card)

    assert (verdict["type"], verdict["reason"]) == ("offer.lost", "busy")
    assert (await second.read())["status"] == "pending"


async def test_one_mechanic_accepting_everything_at_once_gets_one_job(city: City) -> None:
    customers = [await city.customer() for _ in range(4)]
    mechanic = await city.mechanic()
    bookings = [await customer.book() for customer in customers]
    cards = [await mechanic.offered(booking) for booking in bookings]

    verdicts = await asyncio.gather(*(mechanic.accept(card) for card in cards))

    reasons = Counter(verdict.get("reason", "won") for verdict in verdicts)
    assert reasons == {"won": 1, "busy": 3}
    states = Counter([(await booking.read())["status"] for booking in bookings])
    assert states == {"accepted": 1, "pending": 3}


async def test_accept_and_cancel_at_once_end_in_one_of_the_two(city: City) -> None:
    ann = await city.customer()
    mechanics = [await city.mechanic(online=False) for _ in range(2)]
    await spread(city, mechanics)
    booking = await ann.book()
    cards = [await mechanic.offered(booking) for mechanic in mechanics]

    cancelled, *verdicts = await asyncio.gather(
        ann.device.ask("request.cancel", request_id=booking.request_id),
        *(mechanic.accept(card) for mechanic, card in zip(mechanics, cards, strict=True)),
    )

    said = sorted(verdict.get("reason", "won") for verdict in verdicts)
    if cancelled["type"] == "ok":
        assert said == ["cancelled", "cancelled"]
        assert (await booking.read())["status"] == "cancelled"
    else:
        assert (cancelled["code"], said) == ("not_open", ["taken", "won"])
        assert (await booking.read())["status"] == "accepted"


async def test_what_is_not_there_is_not_found(city: City) -> None:
    mechanic = await city.mechanic()
    offer_id, accept_id = new_id(), new_id()

    verdict = await mechanic.accept({"offer_id": offer_id}, accept_id)

    assert without_re(verdict) == {
        "type": "offer.lost",
        "offer_id": offer_id,
        "accept_id": accept_id,
        "reason": "not_found",
    }
    for kind in ("offer.decline", "assignment.cancel"):
        answer = await mechanic.device.ask(kind, offer_id=offer_id, session_id=offer_id)
        assert (answer["type"], answer["code"]) == ("error", "not_found")
