"""The people of a live town: customers and mechanics with real sockets, and what they do.

A `Device` records every frame it gets and checks each against the protocol's description; what it
found wrong fails the test when its `City` is left. Nothing here knows the server's code: it speaks
HTTP and `dispatch.v1`.
"""

import asyncio
import contextlib
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import aiohttp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.acceptance.shapes import Frame, faults
from tests.live_server import LiveServer
from tests.support import WAIT_SECONDS, eventually

T = TypeVar("T")

LIVE = ("pending", "accepted", "active")
SERVER_MAX_BYTES = 128 * 1024


def new_id() -> str:
    return str(uuid.uuid4())


def has(value: Frame, fields: Frame) -> bool:
    """Every one of the fields is there with that very value."""
    return all(name in value and value[name] == wanted for name, wanted in fields.items())


class Device:
    """One websocket of one user. `frames` are all it got, in order; `wrong` what was wrong in them.

    `acknowledges`: it says `offer.seen` for every card, as an app that is being looked at does.
    """

    def __init__(self, socket: ClientConnection, who: str, *, acknowledges: bool = True) -> None:
        self.socket = socket
        self.who = who
        self.acknowledges = acknowledges
        self.frames: list[Frame] = []
        self.wrong: list[str] = []
        self._pulse = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name=f"device of {who}")

    @classmethod
    async def dial(
        cls, url: str, who: str, token: str | None, *, acknowledges: bool = True, **options: Any
    ) -> Self:
        """A connection, with the token in its handshake where there is one."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        socket = await connect(
            url,
            **{
                "additional_headers": headers,
                "subprotocols": [Subprotocol("dispatch.v1.json")],
                "compression": None,
                "ping_interval": None,
                "proxy": None,
                "close_timeout": 1,
                **options,
            },
        )
        return cls(socket, who, acknowledges=acknowledges)

    # What it got.

    @property
    def welcome(self) -> Frame:
        return self.frames[0]

    @property
    def snapshot(self) -> Frame:
        shown: Frame = self.welcome["snapshot"]
        return shown

    def got(self, kind: str, **fields: Any) -> list[Frame]:
        """All frames so far of that type with those fields."""
        return [frame for frame in self.frames if has(frame, {"type": kind} | fields)]

    def cards(self, request_id: str, **fields: Any) -> list[Frame]:
        """All offers so far for that request, those of the snapshot first."""
        shown = self.snapshot.get("offers", []) if self.frames else []
        wanted = {"request_id": request_id} | fields
        return [card for card in shown if has(card, wanted)] + self.got("offer", **wanted)

    async def until(self, condition: Callable[[], T | None], wanted: object) -> T:
        """What the condition gives as soon as a frame makes it true."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not (value := condition()):
                    closed = self._reader.done()
                    assert not closed, f"{self.who} is closed ({self.socket.close_code}): {wanted}"
                    await self._pulse.wait()
        except TimeoutError:
            last = "\n".join(json.dumps(frame) for frame in self.frames[-12:])
            raise AssertionError(f"{self.who} waits for {wanted}; its last:\n{last}") from None
        return value

    async def expect(self, kind: str, nth: int = 1, **fields: Any) -> Frame:
        """The nth frame of that type with those fields, which may be here already."""
        matching = await self.until(
            lambda: found if len(found := self.got(kind, **fields)) >= nth else None,
            (kind, nth, fields),
        )
        return matching[nth - 1]

    async def card(self, request_id: str, nth: int = 1, **fields: Any) -> Frame:
        """The nth offer for that request with those fields, in the snapshot or after it."""
        matching = await self.until(
            lambda: found if len(found := self.cards(request_id, **fields)) >= nth else None,
            ("offer", nth, request_id, fields),
        )
        return matching[nth - 1]

    async def closed(self) -> int:
        """The code of its closing, which is awaited."""
        await asyncio.wait_for(self.socket.wait_closed(), 2 * WAIT_SECONDS)
        await asyncio.wait_for(asyncio.shield(self._reader), WAIT_SECONDS)
        assert self.socket.close_code is not None
        return self.socket.close_code

    # What it says.

    async def send(self, kind: str, **fields: Any) -> str:
        """One frame; the `id` that it carried."""
        frame = {"type": kind, "id": new_id()} | fields
        await self.socket.send(json.dumps(frame))
        return str(frame["id"])

    async def ask(self, kind: str, **fields: Any) -> Frame:
        """One frame and its answer, which may be an error."""
        re = await self.send(kind, **fields)
        return await self.until(
            lambda: next((frame for frame in self.frames if frame.get("re") == re), None),
            ("the answer to", kind, fields),
        )

    async def fence(self) -> None:
        """Everything that the server wrote to this socket before now is here."""
        await self.ask("ping")

    async def close(self) -> None:
        await self.socket.close()
        await self._reader

    async def lose(self) -> None:
        """The connection breaks without a goodbye."""
        self.socket.transport.abort()
        await self._reader

    async def _read(self) -> None:
        try:
            async for message in self.socket:
                await self._take(message)
        except ConnectionClosed:
            pass
        finally:
            self._beat()

    async def _take(self, message: str | bytes) -> None:
        frame = json.loads(message)
        self.frames.append(frame)
        self.wrong += [f"{self.who}: {fault}" for fault in faults(frame)]
        if len(message) > SERVER_MAX_BYTES:
            self.wrong.append(f"{self.who}: a frame of {len(message)} bytes")
        self._beat()
        if self.acknowledges:
            shown = frame["snapshot"].get("offers", []) if frame["type"] == "welcome" else [frame]
            for card in shown:
                if "attempt" in card:
                    await self.socket.send(
                        json.dumps({"type": "offer.seen", "offer_id": card["offer_id"]})
                    )

    def _beat(self) -> None:
        self._pulse.set()
        self._pulse = asyncio.Event()


@dataclass
class Answer:
    """What HTTP said: status, headers with small letters, body as JSON (or as text)."""

    status: int
    headers: dict[str, str]
    body: Any

    def __getitem__(self, name: str) -> Any:
        return self.body[name]

    @property
    def code(self) -> str:
        """The code of an error, whose shape is checked."""
        assert self.body["ok"] is False, self.body
        assert set(self.body["error"]) >= {"code", "message"}, self.body
        return str(self.body["error"]["code"])


@dataclass
class Person:
    """Somebody who can log in. `devices` are all her sockets in this test, the newest last."""

    city: "City"
    id: str
    name: str
    email: str
    token: str
    workshop_id: str | None
    devices: list[Device] = field(default_factory=list)

    @property
    def device(self) -> Device:
        return self.devices[-1]

    async def connect(self, **options: Any) -> Device:
        """One more device, welcomed."""
        device = await Device.dial(self.city.town.server.ws_url, self.name, self.token, **options)
        self.devices.append(device)
        await device.expect("welcome")
        return device

    async def connect_to(self, node_id: str, **options: Any) -> Device:
        """One more device, on that very node."""
        for _ in range(100):
            device = await self.connect(**options)
            if device.welcome["node_id"] == node_id:
                return device
            self.devices.remove(device)
            await device.close()
        raise AssertionError(f"no connection reaches {node_id}")

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.city.call(method, path, body, token=self.token, **options)

    async def leave(self) -> None:
        """All devices close normally."""
        await asyncio.gather(*(device.close() for device in self.devices))

    def heard_of(self, request_id: str) -> bool:
        """Whether any of her devices was ever told of that request."""
        return any(request_id in json.dumps(device.frames) for device in self.devices)


@dataclass
class Customer(Person):
    async def start_intake(self, plan: str, **order: Any) -> Answer:
        return await self.call("POST", "/api/intake/start", {"plan": plan} | order)

    async def checkout(self, plan: str = "chat10", **order: Any) -> tuple[str, str]:
        """Intake, waiver and checkout: `intake_id` and the address of the hosted page."""
        return await self.sign_and_check_out(plan, await self.start_intake(plan, **order))

    async def sign_and_check_out(self, plan: str, intake: Answer) -> tuple[str, str]:
        """Waiver and checkout of an intake: `intake_id` and the address of the hosted page."""
        assert intake.status < 300, intake
        intake_id = intake["intake_id"]
        waiver = {"intake_id": intake_id, "name": self.name, "version": "1"}
        signed = await self.call("POST", "/api/waiver/sign", waiver)
        assert signed.status == 200, signed
        query = {"plan": plan, "intake_id": intake_id}
        checkout = await self.call("GET", "/api/checkout/create-session", params=query)
        assert checkout.status == 200, checkout
        return intake_id, checkout["url"]

    async def book(self, plan: str = "chat10", **order: Any) -> "Booking":
        """The whole way to a paid request, as her device sees it."""
        return await self.pay(*await self.checkout(plan, **order))

    async def book_again(self, provider_id: str, **order: Any) -> tuple[Answer, "Booking"]:
        """The same way from the last session with a provider; what the first step answered too."""
        body = {"provider_id": provider_id} | order
        intake = await self.call("POST", "/api/customer/rebook", body)
        assert intake.status == 201, intake
        return intake, await self.pay(*await self.sign_and_check_out(intake["plan"], intake))

    async def pay(self, intake_id: str, url: str) -> "Booking":
        """Presses the hosted page's button: the request, as her device sees it."""
        known = {frame["request_id"] for frame in self.device.got("request.status")}
        await self.city.pay(url)
        status = await self.device.until(
            lambda: next(
                (f for f in self.device.got("request.status") if f["request_id"] not in known), None
            ),
            "the new request",
        )
        return self._booked(status["request_id"], status["session_id"], intake_id, url)

    async def book_free(self, **order: Any) -> "Booking":
        """A free plan: the request is there with the intake's answer."""
        intake = await self.start_intake("free", **order)
        assert intake.status < 300, intake
        waiver = {"intake_id": intake["intake_id"], "name": self.name, "version": "1"}
        assert (await self.call("POST", "/api/waiver/sign", waiver)).status == 200
        return self._booked(intake["request_id"], intake["session_id"], intake["intake_id"], "")

    def _booked(self, request_id: str, session_id: str, intake_id: str, url: str) -> "Booking":
        booking = Booking(self, request_id, session_id, intake_id, url)
        self.city.bookings.append(booking)
        return booking


@dataclass
class Mechanic(Person):
    async def offered(self, booking: "Booking", nth: int = 1, **fields: Any) -> Frame:
        """The nth card of that booking on her newest device."""
        return await self.device.card(booking.request_id, nth, **fields)

    async def accept(self, card: Frame, accept_id: str | None = None) -> Frame:
        return await self.device.ask(
            "offer.accept", offer_id=card["offer_id"], accept_id=accept_id or new_id()
        )

    async def wins(self, booking: "Booking", **fields: Any) -> Frame:
        """She is offered the booking, accepts it and wins."""
        verdict = await self.accept(await self.offered(booking, **fields))
        assert verdict["type"] == "offer.won", verdict
        return verdict


@dataclass
class Booking:
    """A request that was made, and what its customer's newest device says of it."""

    customer: Customer
    request_id: str
    session_id: str
    intake_id: str
    checkout_url: str

    async def status(self, nth: int = 1, **fields: Any) -> Frame:
        """The nth `request.status` with those fields."""
        return await self.customer.device.expect(
            "request.status", nth, request_id=self.request_id, **fields
        )

    async def session(self, **fields: Any) -> Frame:
        """The first `session.status` with those fields."""
        return await self.customer.device.expect(
            "session.status", session_id=self.session_id, **fields
        )

    async def read(self) -> Frame:
        """The request as HTTP tells it."""
        answer = await self.customer.call("GET", f"/api/requests/{self.request_id}")
        assert answer.status == 200, answer
        told: Frame = answer.body
        return told

    async def reads(self, **fields: Any) -> Frame:
        """The request as HTTP tells it, once it has those fields."""

        async def told() -> Frame | None:
            return read if has(read := await self.read(), fields) else None

        return await eventually(told)

    async def refunded(self) -> Frame:
        """The one refund that Stripe made of this booking's payment."""
        (refund,) = await eventually(lambda: self.customer.city.refunds_of(self))
        return refund


@dataclass
class Town:
    """A running server and its people, for as many tests as share it."""

    start_server: Callable[[], LiveServer]
    people: dict[str, Any]
    tokens: dict[str, str]
    stripe_url: str
    connected: list[Mechanic] = field(default_factory=list)
    customers: deque[Frame] = field(init=False)
    mechanics: deque[Frame] = field(init=False)

    def __post_init__(self) -> None:
        self.customers = deque(self.people["customers"])
        self.mechanics = deque(self.people["mechanics"])
        self.server = self.start_server()
        self.workshop_ids: list[str] = [shop["id"] for shop in self.people["workshops"]]

    def restart(self) -> None:
        """Another server on the same data and port; the one before was stopped."""
        self.server = self.start_server()

    def nodes(self) -> dict[str, Frame]:
        """The living nodes by their id."""
        return {node["node_id"]: node for node in json.loads(self.server.cli("nodes", "--json"))}


class City:
    """One test's view of a town: the people it borrows, who are all gone home afterwards."""

    def __init__(self, town: Town, http: aiohttp.ClientSession) -> None:
        self.town = town
        self.http = http
        self.people: list[Person] = []
        self.bookings: list[Booking] = []

    # People.

    async def customer(self, *, online: bool = True) -> Customer:
        """Somebody who has never booked in another test of this town."""
        person = await self._borrow(Customer, self.town.customers.popleft())
        if online:
            await person.connect()
        return person

    async def mechanic(
        self, workshop: int | None = None, *, online: bool = True, acknowledges: bool = True
    ) -> Mechanic:
        """A mechanic of the town's nth workshop, or an independent one."""
        shop_id = None if workshop is None else self.town.workshop_ids[workshop]
        pool = self.town.mechanics
        row = next(row for row in pool if row["workshop_id"] == shop_id)
        pool.remove(row)
        pool.append(row)
        person = await self._borrow(Mechanic, row)
        if online:
            await person.connect(acknowledges=acknowledges)
        return person

    async def mechanics(self, count: int) -> list[Mechanic]:
        """So many independent mechanics, online."""
        return [await self.mechanic() for _ in range(count)]

    async def admin(self) -> Person:
        return await self._borrow(Person, self.town.people["admin"])

    async def workshop(self, nth: int = 0) -> Person:
        """The member of that workshop who logs in for it."""
        return await self._borrow(Person, self.town.people["workshops"][nth])

    async def _borrow(self, kind: type[T], row: Frame) -> T:
        user_id = row["user_id"]
        assert user_id not in [person.id for person in self.people], "not enough people in town"
        if user_id not in self.town.tokens:
            body = {"email": row["email"], "password": row["password"]}
            self.town.tokens[user_id] = (await self.call("POST", "/api/auth/login", body))["token"]
        token = self.town.tokens[user_id]
        person = Person(self, user_id, row["name"], row["email"], token, row["workshop_id"])
        lent = kind(**vars(person))
        self.people.append(lent)  # type: ignore[arg-type]
        return lent

    # The server and Stripe.

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        accept: str = "application/json",
        **options: Any,
    ) -> Answer:
        headers = {"Accept": accept} | options.pop("headers", {})
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            options["json"] = body
        url = path if path.startswith("http") else self.town.server.url + path
        async with self.http.request(
            method, url, headers=headers, allow_redirects=False, **options
        ) as response:
            text = await response.text()
            told = {name.lower(): value for name, value in response.headers.items()}
            is_json = told.get("content-type", "").startswith("application/json")
            return Answer(response.status, told, json.loads(text) if is_json else text)

    async def pay(self, checkout_url: str) -> None:
        """Press the hosted page's button; the signed webhook follows."""
        assert (await self.call("POST", f"{checkout_url}/pay")).status in (200, 303)

    async def ledger(self) -> Frame:
        answer = await self.call("GET", f"{self.town.stripe_url}/_standin/ledger")
        told: Frame = answer.body
        return told

    async def refunds_of(self, booking: Booking) -> list[Frame]:
        """What Stripe gave back of the one payment of this booking."""
        checkout_id = booking.checkout_url.rsplit("/", 1)[1]
        ledger = await self.ledger()
        (paid,) = [p for p in ledger["payments"] if p["checkout_session"] == checkout_id]
        return [refund for refund in ledger["refunds"] if refund["charge"] == paid["charge"]]

    async def is_online(self, mechanic: Mechanic, asker: Customer, wanted: bool = True) -> None:
        """What a customer is told of her presence has become so."""

        async def told() -> bool:
            status = await asker.call("GET", f"/api/mechanics/{mechanic.id}/status")
            assert status.status == 200, status
            return bool(status["is_online"] is wanted)

        await eventually(told)

    async def deserted(self, asker: Customer) -> None:
        """No mechanic of an earlier test counts as online any longer."""
        await asyncio.gather(
            *(self.is_online(mechanic, asker, False) for mechanic in self.town.connected)
        )

    # The end.

    async def go_home(self) -> list[str]:
        """No booking stays live, no socket open. What was wrong in the frames that were seen."""
        await asyncio.gather(*(_close_book(booking) for booking in self.bookings))
        devices = [device for person in self.people for device in person.devices]
        mechanics = [person for person in self.people if isinstance(person, Mechanic)]
        self.town.connected = [mechanic for mechanic in mechanics if mechanic.devices]
        await asyncio.gather(*(device.close() for device in devices))
        return _unique(fault for device in devices for fault in device.wrong)


async def _close_book(booking: Booking) -> None:
    call = booking.customer.call
    with contextlib.suppress(aiohttp.ClientError):
        await call("POST", f"/api/requests/{booking.request_id}/cancel")
        await call("POST", f"/api/sessions/{booking.session_id}/end")


def _unique(faults: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(faults))


@contextlib.asynccontextmanager
async def visiting(town: Town) -> AsyncIterator[City]:
    """A city for one test. What was wrong in any frame fails the test at the end."""
    async with aiohttp.ClientSession() as http:
        city = City(town, http)
        try:
            yield city
        finally:
            wrong = await city.go_home()
        assert wrong == []
