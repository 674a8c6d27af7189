"""The five stories. Ann books; Fay is her favourite; Max and Ida are there too.

Each is a function of a `Play`: who is there, what happens, and what everybody must have heard
before it goes on. The first line of its docstring is its title, the rest its premise.
"""

from typing import Final

from tests.stories.play import Person, Play, Tale


async def the_favourite_is_silent(play: Play) -> None:
    """The favourite is silent

    Fay is online, but her phone lies in the other room: no card of hers is acknowledged. She is
    asked three times, five seconds apart; five seconds later everybody is, and she keeps her card.
    """
    ann, fay, max_, ida = await _everybody(play)
    await play.books(ann, routing_type="priority_broadcast", preferred_mechanic_id=fay)
    await fay.hears("offer", stage="priority", attempt=1)
    await ann.hears("request.status", stage="priority", mechanics_notified=1, mechanics_online=3)
    for attempt in (2, 3):
        await play.passes(seconds=5 * (attempt - 1))
        await fay.hears("offer", stage="priority", attempt=attempt)
    await play.passes(seconds=15)
    for mechanic in (fay, max_, ida):
        await mechanic.hears("offer", stage="open")
    await ann.hears("request.status", stage="open", mechanics_notified=3, mechanics_online=3)
    await play.passes(seconds=40)
    await play.accepts(max_)
    await _taken(ann, max_, fay, ida)


async def the_favourite_declines(play: Play) -> None:
    """The favourite declines

    Fay looks at the card, thinks about it for two minutes, and declines. Everybody else is asked in
    that moment, and she is not asked again.
    """
    ann, fay, max_, ida = await _everybody(play)
    await play.books(ann, routing_type="priority_broadcast", preferred_mechanic_id=fay)
    await fay.hears("offer", stage="priority")
    await ann.hears("request.status", stage="priority", mechanics_notified=1, mechanics_online=3)
    await play.says(fay, "offer.seen", offer_id=await play.offer_id())
    await ann.hears("request.status", stage="priority")
    await play.passes(minutes=2)
    await play.says(fay, "offer.decline", offer_id=await play.offer_id(), reason="too far")
    await fay.hears("ok")
    for mechanic in (max_, ida):
        await mechanic.hears("offer", stage="open")
    await ann.hears("request.status", stage="open", mechanics_notified=3, mechanics_online=3)
    await play.passes(minutes=3)
    await play.accepts(ida)
    await _taken(ann, ida, max_)


async def the_customer_waits_for_an_offline_favourite(play: Play) -> None:
    """The favourite is offline, and the customer waits for her

    Ann chose to wait. Max and Ida are there all the time and hear nothing. Fay comes back at minute
    12, is shown the card in her welcome, looks at it, and takes it.
    """
    ann = await play.customer("Ann")
    fay = await play.mechanic("Fay", node=1, online=False)
    max_ = await play.mechanic("Max", node=0)
    ida = await play.mechanic("Ida", node=1)
    await play.until_online(ann, max_, ida)
    await play.books(
        ann,
        routing_type="priority_broadcast",
        preferred_mechanic_id=fay,
        wait_for_preferred=True,
    )
    await ann.hears("request.status", stage="priority", mechanics_notified=0, mechanics_online=2)
    await play.passes(minutes=12)
    await play.comes(fay)
    await fay.hears("welcome")
    await ann.hears("request.status", stage="priority", mechanics_notified=1, mechanics_online=3)
    await play.says(fay, "offer.seen", offer_id=await play.offer_id())
    await play.accepts(fay)
    await _taken(ann, fay)


async def the_winner_cancels(play: Play) -> None:
    """The winner cancels

    Max takes it and gives it back. The request is open again for everybody but him, as a new round
    with a fresh time-to-live, and Ida takes it.
    """
    ann, fay, max_, ida = await _everybody(play)
    await play.books(ann, routing_type="broadcast")
    for mechanic in (fay, max_, ida):
        await mechanic.hears("offer", stage="open")
    await ann.hears("request.status", stage="open", mechanics_notified=3, mechanics_online=3)
    await play.passes(seconds=30)
    await play.accepts(max_)
    await _taken(ann, max_, fay, ida)
    await play.passes(minutes=3)
    await play.says(
        max_, "assignment.cancel", session_id=play.booking.session_id, reason="flat tyre"
    )
    await max_.hears("ok")
    for mechanic in (fay, ida):
        await mechanic.hears("offer", generation=2)
    await ann.hears("request.status", stage="open", mechanics_notified=2, mechanics_online=3)
    await play.passes(minutes=4)
    await play.accepts(ida)
    await _taken(ann, ida, fay)


async def nobody_is_online_for_an_hour(play: Play) -> None:
    """Nobody is online for an hour

    Nobody is there when Ann books. The request stays open; Max, the first who comes, is shown it in
    his welcome.
    """
    ann = await play.customer("Ann")
    max_ = await play.mechanic("Max", node=1, online=False)
    await play.books(ann, routing_type="broadcast")
    await ann.hears("request.status", stage="open", mechanics_notified=0, mechanics_online=0)
    await play.passes(minutes=60)
    await play.comes(max_)
    await max_.hears("welcome")
    await ann.hears("request.status", stage="open", mechanics_notified=1, mechanics_online=1)
    await play.accepts(max_)
    await _taken(ann, max_)


STORIES: Final[tuple[Tale, ...]] = (
    the_favourite_is_silent,
    the_favourite_declines,
    the_customer_waits_for_an_offline_favourite,
    the_winner_cancels,
    nobody_is_online_for_an_hour,
)


async def _everybody(play: Play) -> tuple[Person, Person, Person, Person]:
    """Ann and Max on one node, Fay and Ida on the other."""
    ann = await play.customer("Ann")
    fay = await play.mechanic("Fay", node=1)
    max_ = await play.mechanic("Max", node=0)
    ida = await play.mechanic("Ida", node=1)
    await play.until_online(ann, fay, max_, ida)
    return ann, fay, max_, ida


async def _taken(customer: Person, winner: Person, *holders: Person) -> None:
    """Who won, whose cards went, and what the customer reads."""
    await winner.hears("offer.won")
    await winner.hears("session.status", status="accepted")
    for holder in holders:
        await holder.hears("offer.revoked", reason="taken")
    await customer.hears("request.status", status="accepted")
    await customer.hears("session.status", status="accepted")
