"""The life of a small city: mechanics with moods, customers who book again and again.

Scenes follow each other in a fixed round, so that every strategy and every turn of a story comes
within a few minutes: a silent favourite, one who is not there, a workshop that is closed, a
customer who will not wait. Imports `api`, `behaviour`, `booking`, `client`, `crowd`, `history`,
`people`. Runs until it is cancelled; refused log-ins are raised.
"""

import asyncio
import enum
import itertools
import random
from collections.abc import Callable, Mapping

from loadtest.api import Api, Order
from loadtest.behaviour import Manner, behave_as, behave_by_mood
from loadtest.booking import Booking
from loadtest.client import ConnectionLost, NoAnswer
from loadtest.crowd import Crowd
from loadtest.history import History
from loadtest.people import City, Member

BOOKING_SECONDS = (2.0, 3.2)
HOLD_SECONDS = (4.0, 9.0)
PATIENCE_SECONDS = 75.0
PACE = 7.0
MOODS: Mapping[Manner, float] = {
    Manner.QUICK: 0.52,
    Manner.SLOW: 0.08,
    Manner.DECLINER: 0.18,
    Manner.SILENT: 0.10,
    Manner.TUNNEL: 0.04,
    Manner.LOSSY: 0.04,
    Manner.FICKLE: 0.04,
}
CONCERNS = ("engine light is on", "brakes squeal", "will not start", "smells of petrol")
VEHICLES = ("VW Golf 2016", "Fiat Panda 2011", "Toyota Yaris 2019", "Renault Kangoo 2014")


class Scene(enum.Enum):
    """What kind of booking comes next."""

    FAVOURITE = "a favourite who is there"
    BROADCAST = "anyone"
    WORKSHOP_FIRST = "a workshop first, then everyone"
    WORKSHOP_ONLY = "one workshop only"
    RACE = "anyone, urgent, and everybody is quick"
    DEAF_FAVOURITE = "a favourite whose phone is in a pocket"
    ABSENT_FAVOURITE = "a favourite who is on the road, waited for"
    CLOSED_WORKSHOP = "a workshop where nobody is online"
    WIDENS = "a silent favourite, and a customer who will not wait"
    CANCELS = "a silent favourite, and a customer who cancels"


ROUND = (
    Scene.FAVOURITE,
    Scene.BROADCAST,
    Scene.WORKSHOP_FIRST,
    Scene.WORKSHOP_ONLY,
    Scene.DEAF_FAVOURITE,
    Scene.RACE,
    Scene.ABSENT_FAVOURITE,
    Scene.FAVOURITE,
    Scene.CLOSED_WORKSHOP,
    Scene.WIDENS,
    Scene.FAVOURITE,
    Scene.WORKSHOP_FIRST,
    Scene.CANCELS,
    Scene.BROADCAST,
)


class CityLife:
    """`say` tells what belongs to no booking. The cast: by their place in the seeded city.

    The last independent mechanic is deaf, the one before silent, the one before that on the road;
    the last workshop closes now and then. Everybody else has moods.
    """

    def __init__(
        self,
        api: Api,
        city: City,
        history: History,
        say: Callable[[str], None],
        seed: int | None,
    ):
        self._api, self._city, self._history, self._say = api, city, history, say
        self._seed = seed if seed is not None else random.randrange(1 << 30)
        self._rng = random.Random(self._seed)
        alone = [member for member in city.mechanics if member.workshop_id is None]
        *_, self._roadside, self._silent, self._deaf = alone
        self._closing = city.workshops[-1]
        cast = {self._roadside.id, self._silent.id, self._deaf.id}
        self._regulars = [
            member
            for member in city.mechanics
            if member.id not in cast and member.workshop_id != self._closing.id
        ]
        self._free: asyncio.Queue[Member] = asyncio.Queue()
        for customer in self._rng.sample(city.customers, len(city.customers)):
            self._free.put_nowait(customer)
        self._tags = itertools.count(1)

    async def run(self) -> None:
        """Everybody comes online, and bookings follow each other for ever."""
        async with Crowd(self._api, self._history, self._seed) as crowd:
            await crowd.log_in([*self._city.mechanics, *self._city.customers])
            self._cast(crowd)
            await crowd.connect([*crowd.mechanics, *crowd.customers])
            count = len(crowd.mechanics)
            self._say(f"{count} mechanics are online, {len(crowd.customers)} customers have cars")
            async with asyncio.TaskGroup() as group:
                for scene in itertools.cycle(ROUND):
                    customer = await self._free.get()
                    group.create_task(self._play(crowd, scene, customer))
                    await asyncio.sleep(self._rng.uniform(*BOOKING_SECONDS))

    def _cast(self, crowd: Crowd) -> None:
        members = self._city.mechanics
        crowd.add_mechanics(members, [Manner.QUICK] * len(members), PACE)
        crowd.add_customers(self._city.customers)
        for member in members:
            behave_by_mood(crowd.mechanics[member.id], MOODS, PACE)
        behave_as(crowd.mechanics[self._deaf.id], Manner.DEAF)
        behave_as(crowd.mechanics[self._silent.id], Manner.SILENT)

    async def _play(self, crowd: Crowd, scene: Scene, customer: Member) -> None:
        """One booking from the first click to the end; its customer is free again afterwards."""
        try:
            tag = f"B{next(self._tags):02}"
            await self._prepare(crowd, scene)
            client = crowd.customers[customer.id]
            booking = Booking(
                tag, self._order(scene), self._api, client, crowd.tokens[customer.id], self._history
            )
            if not await booking.set_up(customer.name, looks_at_price=True):
                return
            if not await booking.pay():
                return
            async with asyncio.TaskGroup() as group:
                impatience = group.create_task(self._grow_impatient(scene, booking, crowd))
                # Now and then longer than the plan's minutes, so that those end the session.
                hold_seconds = (
                    600.0 if self._rng.random() < 0.4 else self._rng.uniform(*HOLD_SECONDS)
                )
                await booking.follow(PATIENCE_SECONDS, hold_seconds)
                impatience.cancel()
        finally:
            self._free.put_nowait(customer)

    async def _prepare(self, crowd: Crowd, scene: Scene) -> None:
        """Sends home who is to be absent, for longer than a reconnect's grace."""
        if scene is Scene.ABSENT_FAVOURITE:
            self._say(f"{self._roadside.name} drives through a tunnel")
            crowd.mechanics[self._roadside.id].hang_up(self._rng.uniform(14, 20))
            await asyncio.sleep(7)
        elif scene is Scene.CLOSED_WORKSHOP:
            self._say(f"{self._closing.name} closes for a coffee")
            for member in self._city.mechanics:
                if member.workshop_id == self._closing.id:
                    crowd.mechanics[member.id].hang_up(self._rng.uniform(18, 24))
            await asyncio.sleep(7)

    def _order(self, scene: Scene) -> Order:
        plan = self._rng.choice(("chat10", "video15", "diagnostic"))
        concern, vehicle = self._rng.choice(CONCERNS), self._rng.choice(VEHICLES)
        favourite: Member | None = None
        workshop: Member | None = None
        routing = "broadcast"
        match scene:
            case Scene.FAVOURITE:
                favourite = self._rng.choice(self._regulars)
            case Scene.DEAF_FAVOURITE:
                favourite = self._deaf
            case Scene.WIDENS | Scene.CANCELS:
                favourite = self._silent
            case Scene.ABSENT_FAVOURITE:
                favourite = self._roadside
            case Scene.WORKSHOP_FIRST:
                routing, workshop = "hybrid", self._rng.choice(self._city.workshops)
            case Scene.WORKSHOP_ONLY:
                routing, workshop = "workshop_only", self._rng.choice(self._city.workshops[:-1])
            case Scene.CLOSED_WORKSHOP:
                routing, workshop = "workshop_only", self._closing
        return Order(
            plan,
            "priority_broadcast" if favourite is not None else routing,
            workshop_id=workshop.id if workshop is not None else None,
            preferred_mechanic_id=favourite.id if favourite is not None else None,
            wait_for_preferred=scene is Scene.ABSENT_FAVOURITE,
            urgent=scene is Scene.RACE,
            concern=concern,
            vehicle=vehicle,
        )

    async def _grow_impatient(self, scene: Scene, booking: Booking, crowd: Crowd) -> None:
        """Widens or cancels while the favourite is still waited for."""
        kind = {Scene.WIDENS: "request.widen", Scene.CANCELS: "request.cancel"}.get(scene)
        if kind is None:
            return
        await asyncio.sleep(self._rng.uniform(4, 8))
        try:
            if booking.request_id is not None:
                await booking.customer.ask(kind, request_id=booking.request_id)
        except (ConnectionLost, NoAnswer):
            return
