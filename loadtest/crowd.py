"""The people of a city as connected clients: logged in, online, each behaving in a manner.

Imports `api`, `behaviour`, `client`, `history`, `people`. Log-ins that fail raise what the API
raises; a client that is refused later ends the crowd with `Refused`.
"""

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import Self

from loadtest.api import Api
from loadtest.behaviour import Manner, behave_as
from loadtest.client import Client, Customer, Mechanic
from loadtest.history import History, Introduced
from loadtest.people import Member

LOGINS_AT_ONCE = 8
CONNECTS_AT_ONCE = 32
ONLINE_SECONDS = 60.0


class Crowd:
    """Everybody's clients and tokens, by user id. `async with` closes all sockets at the end.

    Leaving the block after a client was refused, or a behaviour failed, raises that.
    """

    def __init__(self, api: Api, history: History, seed: int):
        self.mechanics: dict[str, Mechanic] = {}
        self.customers: dict[str, Customer] = {}
        self.tokens: dict[str, str] = {}
        self._api, self._history, self._seed = api, history, seed
        self._running: dict[str, asyncio.Task[None]] = {}
        self._second: list[Mechanic] = []
        self._turn = asyncio.Semaphore(CONNECTS_AT_ONCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        clients: list[Client] = [
            *self.mechanics.values(),
            *self.customers.values(),
            *self._second,
        ]
        await asyncio.gather(*(client.close() for client in clients))
        ended = await asyncio.gather(*self._running.values(), return_exceptions=True)
        faults = [end for end in ended if isinstance(end, BaseException)]
        faults += [fault for client in clients for fault in client.faults]
        if faults and error[0] is None:
            raise faults[0]

    async def log_in(self, members: Iterable[Member]) -> None:
        """Gets everybody's token, a few at once: a password is dear to check."""
        turn = asyncio.Semaphore(LOGINS_AT_ONCE)

        async def one(member: Member) -> None:
            async with turn:
                self.tokens[member.id] = await self._api.login(member.email, member.password)

        async with asyncio.TaskGroup() as group:
            for member in members:
                group.create_task(one(member))

    def add_mechanics(
        self, members: Sequence[Member], manners: Sequence[Manner], pace: float = 1.0
    ) -> None:
        """Makes their clients; nobody is connected yet."""
        for member, manner in zip(members, manners, strict=True):
            mechanic = Mechanic(*self._identity(member), says_hello=self._flips(member))
            behave_as(mechanic, manner, pace)
            self.mechanics[member.id] = mechanic
            self._introduce(member, "mechanic")

    def add_customers(self, members: Sequence[Member]) -> None:
        for member in members:
            self.customers[member.id] = Customer(
                *self._identity(member), says_hello=self._flips(member)
            )
            self._introduce(member, "customer")

    async def connect(self, whos: Iterable[str]) -> None:
        """Brings them online and waits for each one's snapshot. Raises `TimeoutError`."""
        clients: list[Client] = [
            self.mechanics[who] if who in self.mechanics else self.customers[who] for who in whos
        ]
        await asyncio.gather(*(self._come_online(client) for client in clients))

    async def add_second_device(self, who: str) -> None:
        """A device that shows and acknowledges, and never answers: the person has one mind."""
        first = self.mechanics[who]
        rng = random.Random(f"{self._seed} {who} second")
        device = Mechanic(self._api.websocket_url, who, self.tokens[who], self._history, rng)
        device.acknowledges = first.acknowledges
        self._second.append(device)
        await self._come_online(device, " second")

    async def _come_online(self, client: Client, device: str = "") -> None:
        async with self._turn:
            name = client.who + device
            task = asyncio.create_task(client.run(), name=f"client {name}")
            self._running[name] = task
            if not await client.until(lambda: client.online or task.done(), ONLINE_SECONDS):
                raise TimeoutError(f"{name} is not online after {ONLINE_SECONDS:g} s")
            if task.done():
                task.result()

    def _identity(self, member: Member) -> tuple[str, str, str, History, random.Random]:
        rng = random.Random(f"{self._seed} {member.email}")
        return self._api.websocket_url, member.id, self.tokens[member.id], self._history, rng

    def _flips(self, member: Member) -> bool:
        """Half of the clients say hello, as browsers do; the others use the header."""
        return random.Random(f"{self._seed} hello {member.email}").random() < 0.5

    def _introduce(self, member: Member, role: str) -> None:
        self._history.add(
            Introduced(self._history.now(), member.id, role, member.name, member.workshop_id)
        )
