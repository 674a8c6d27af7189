"""How simulated mechanics answer the offers that they are shown.

A behaviour is one of `Manner`; `behave_as` gives the mechanic a manner and a pace. Every choice
comes from the mechanic's own seeded generator. Imports `client`; faults of the connection
end one answer, never the mechanic.
"""

import asyncio
import enum
import random
from collections.abc import Mapping, Sequence

from loadtest.client import ConnectionLost, Mechanic, NoAnswer


class Manner(enum.StrEnum):
    """What a mechanic does with an offer, in one word."""

    QUICK = "quick"  # accepts in a moment
    SLOW = "slow"  # accepts after a while, sometimes too late
    RACER = "racer"  # accepts at once, even while busy
    DECLINER = "decliner"  # says no
    DEAF = "deaf"  # never acknowledges, never answers
    SILENT = "silent"  # sees it, never answers
    TUNNEL = "tunnel"  # loses the connection on an offer, comes back and accepts
    LOSSY = "lossy"  # loses the connection after sending the accept, repeats it
    FICKLE = "fickle"  # wins and cancels


MIX: Mapping[Manner, float] = {
    Manner.QUICK: 0.34,
    Manner.SLOW: 0.10,
    Manner.RACER: 0.14,
    Manner.DECLINER: 0.14,
    Manner.DEAF: 0.06,
    Manner.SILENT: 0.06,
    Manner.TUNNEL: 0.06,
    Manner.LOSSY: 0.06,
    Manner.FICKLE: 0.04,
}
"""Shares of a crowd. Most accept, and each way to go wrong is there more than once."""

STILL_TRIES_LATE = 0.15
"""Share of late accepts that are sent although the card is gone: somebody already pressed."""


def draw(rng: random.Random, count: int, mix: Mapping[Manner, float] = MIX) -> list[Manner]:
    """`count` manners in the shares of `mix`, each share rounded, in random order."""
    names: Sequence[Manner] = list(mix)
    drawn = [name for name in names for _ in range(round(mix[name] * count))][:count]
    drawn += rng.choices(names, weights=[mix[name] for name in names], k=count - len(drawn))
    rng.shuffle(drawn)
    return drawn


def behave_as(mechanic: Mechanic, manner: Manner, pace: float = 1.0) -> None:
    """From now on `mechanic` answers in this manner; `pace` stretches how long she thinks."""
    mechanic.acknowledges = manner is not Manner.DEAF
    mechanic.on_offer = _Answers({manner: 1.0}, pace).answer


def behave_by_mood(mechanic: Mechanic, moods: Mapping[Manner, float], pace: float = 1.0) -> None:
    """From now on `mechanic` draws a manner for each offer. The deaf are so all the time."""
    assert Manner.DEAF not in moods, "whether she acknowledges is not a mood"
    mechanic.acknowledges = True
    mechanic.on_offer = _Answers(moods, pace).answer


class _Answers:
    """What one mechanic does about her cards, one decision at a time."""

    def __init__(self, moods: Mapping[Manner, float], pace: float):
        self._moods = moods
        self._pace = pace
        self._deciding = False

    async def answer(self, mechanic: Mechanic) -> None:
        """Decides about the cards that are shown, one at a time and at random; racers about all."""
        if self._moods.keys() == {Manner.RACER}:
            for offer_id in _new_cards(mechanic):
                mechanic.considered.add(offer_id)
                mechanic.start(self._accept(mechanic, Manner.RACER, offer_id))
            return
        if self._deciding:
            return
        self._deciding = True
        try:
            while mechanic.session_id is None and (cards := _new_cards(mechanic)):
                offer_id = mechanic.rng.choice(cards)
                mechanic.considered.add(offer_id)
                names = list(self._moods)
                manner = mechanic.rng.choices(names, [self._moods[name] for name in names])[0]
                await self._decide(mechanic, manner, offer_id)
        finally:
            self._deciding = False

    async def _decide(self, mechanic: Mechanic, manner: Manner, offer_id: str) -> None:
        match manner:
            case Manner.DEAF | Manner.SILENT:
                return
            case Manner.DECLINER:
                await self._think(mechanic, 0.1, 0.8)
                if offer_id in mechanic.offers:
                    await mechanic.ask("offer.decline", offer_id=offer_id, reason="too far away")
                return
            case Manner.QUICK | Manner.FICKLE | Manner.RACER:
                await self._think(mechanic, 0.02, 0.3)
                await self._accept(mechanic, manner, offer_id)
            case Manner.SLOW:
                await self._think(mechanic, 1.0, 4.0)
                await self._accept(mechanic, manner, offer_id)
            case Manner.TUNNEL:
                mechanic.hang_up(mechanic.rng.uniform(0.3, 2.0) * self._pace)
                await mechanic.until(lambda: not mechanic.online, 5)
                await mechanic.until(lambda: mechanic.online, 30)
                await self._think(mechanic, 0.05, 0.3)
                await self._accept(mechanic, manner, offer_id)
            case Manner.LOSSY:
                await self._think(mechanic, 0.02, 0.3)
                await self._accept(mechanic, manner, offer_id, loses_first_reply=True)

    async def _think(self, mechanic: Mechanic, least_seconds: float, most_seconds: float) -> None:
        await asyncio.sleep(mechanic.rng.uniform(least_seconds, most_seconds) * self._pace)

    async def _accept(
        self,
        mechanic: Mechanic,
        manner: Manner,
        offer_id: str,
        *,
        loses_first_reply: bool = False,
    ) -> None:
        gone = offer_id not in mechanic.offers
        if gone and mechanic.rng.random() > STILL_TRIES_LATE:
            return
        verdict = await mechanic.accept(offer_id, loses_first_reply=loses_first_reply)
        if verdict is None or verdict["type"] != "offer.won":
            return
        session_id = str(verdict["session_id"])
        if manner is Manner.FICKLE:
            await self._think(mechanic, 0.1, 0.5)
            await mechanic.ask("assignment.cancel", session_id=session_id, reason="flat tyre")
            return
        await self._join(mechanic, session_id)

    async def _join(self, mechanic: Mechanic, session_id: str) -> None:
        """Joins what she won, trying again when the connection goes away under it."""
        for _ in range(5):
            await mechanic.until(lambda: mechanic.online, 15)
            try:
                await mechanic.ask("session.join", session_id=session_id)
            except (ConnectionLost, NoAnswer):
                continue
            return


def _new_cards(mechanic: Mechanic) -> list[str]:
    return [offer_id for offer_id in mechanic.offers if offer_id not in mechanic.considered]
