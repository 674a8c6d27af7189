"""One whole life of a session, from an invite to booking the same mechanic again (docs/life.md).

One job: play it on two nodes, with a stand-in for Stripe and a mail server on real sockets, and
write down what everybody says, is answered and gets, and which rows that leaves. Times are relative
to the booking; ids are told by the names of what they name. It fails when somebody does not get in
time what she must.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import aiohttp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatch.auth import issue_token
from dispatch.config import load
from dispatch.core.types import Role
from dispatch.database import Connection, close_pool, open_pool
from tests.integration.living import LivingNode, pass_time, two_nodes
from tests.integration.mail_server import Mailbox, mail_server
from tests.integration.rows import add_user, add_workshop
from tests.integration.stripe_servers import free_socket, serving, stand_in
from tests.stories.play import Person
from tests.stories.transcript import Frame, Transcript
from tests.support import JWT_SECRET, STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, eventually

TITLE: Final = "The life of a session"
_SWEEP_SECONDS: Final = 0.05
_BEFORE: Final = "before"
# What nobody reads the story for: what was made up, or says nothing new.
_UNTOLD: Final = frozenset({"ok", "accept_id", "client_message_id", "session_id", "password"})

_TALK: Final = (
    ("Ann", "Hello! My car makes a noise."),
    ("Mia", "Hello Ann. What kind of noise?"),
    ("Ann", "A squeal, when I turn the wheel."),
    ("Mia", "Always, or only when it is cold?"),
    ("Ann", "Only in the morning."),
    ("Mia", "Then it may be the belt."),
    ("Ann", "Is that dangerous?"),
    ("Mia", "Not today. Please open the hood."),
)
_WHILE_SHE_IS_AWAY: Final = (
    ("Ann", "It is open."),
    ("Ann", "I see a belt on the left."),
    ("Ann", "It is shiny."),
    ("Ann", "Are you there?"),
)
_AND_ON: Final = (
    ("Mia", "Sorry, my train was in a tunnel."),
    ("Mia", "Shiny is bad: it slips."),
    ("Ann", "What do I do?"),
    ("Mia", "Have it replaced this week."),
    ("Ann", "May I drive to work?"),
    ("Mia", "Yes, gently."),
    ("Ann", "Thank you!"),
    ("Mia", "You are welcome."),
)


class LifeTranscript(Transcript):
    """The lines; what is before the booking has no time."""

    def answers(self, at: int, who: str, status: int, told: Frame) -> None:
        """What HTTP answered."""
        self._line(at, who, f"← {status}", self._told(told, told))

    def row(self, at: int, table: str, told: Frame) -> None:
        """What stands in a row now."""
        self._line(at, "   ", f"= {table}", self._told(told, told))

    def _line(self, at: int, who: str, what: str, told: str) -> None:
        super()._line(at, who, what, told)
        if self.booked_at is None:
            self.lines[-1] = self.lines[-1].replace("+00:00", _BEFORE, 1)

    def _value(self, name: str, value: Any) -> str:
        if isinstance(value, datetime):
            return self._moment(value.isoformat())
        if isinstance(value, str) and name in ("body", "summary", "notes", "review", "concern"):
            return f"“{value}”"
        return super()._value(name, value)


@dataclass
class Life:
    """A life in the making."""

    database_url: str
    nodes: tuple[LivingNode, LivingNode]
    connection: Connection
    stack: AsyncExitStack
    http: aiohttp.ClientSession
    mailbox: Mailbox
    transcript: LifeTranscript = field(default_factory=LifeTranscript)
    cast: list[Person] = field(default_factory=list)
    at: int = 0
    offset_seconds: float = 0.0

    # --- people

    def person(self, name: str, role: str, user_id: UUID, node: int) -> Person:
        """Somebody of whom it is told from now on."""
        person = Person(name, role, user_id, self.nodes[node])
        self.cast.append(person)
        self.name(user_id, name)
        return person

    def name(self, id_: object, name: str) -> None:
        """What this id is called."""
        self.transcript.names[str(id_)] = name

    async def comes(self, person: Person, node: int) -> None:
        """She connects to that node."""
        await self.scene_ends()
        self.transcript.does(self.at, person.name, "connects", {"node": node + 1})
        person.living = self.nodes[node]
        person.client = await self.stack.enter_async_context(
            person.living.client(person.id, person.role)
        )
        person._told = 1  # her welcome is not told

    async def is_cut_off(self, person: Person) -> None:
        """Her connection is lost."""
        await self.scene_ends()
        self.transcript.does(self.at, person.name, "is cut off", {})
        assert person.client is not None
        person.client.link.transport.abort()
        node = person.living.node
        person.client = None
        await eventually(lambda: not node.hub.is_here(person.id))

    # --- what happens

    async def asks(
        self,
        person: Person | str,
        method: str,
        path: str,
        body: Frame | None = None,
        *,
        wanted: int = 200,
        told: Sequence[str] = (),
        hidden: Sequence[str] = (),
    ) -> Frame:
        """Over HTTP; of the answer these fields are told."""
        await self.scene_ends()
        who = person if isinstance(person, str) else person.name
        shown = {k: v for k, v in (body or {}).items() if k not in _UNTOLD and k not in hidden}
        self.transcript.does(self.at, who, f"{method} {self._shown(path)}", shown)
        living = self.nodes[0] if isinstance(person, str) else person.living
        url = living.ws_url.replace("ws", "http", 1).removesuffix("/ws") + path
        headers = {"Accept": "application/json"}
        if isinstance(person, Person):
            token = issue_token(JWT_SECRET, person.id, Role(person.role), 0, 3600)
            headers["Authorization"] = f"Bearer {token}"
        async with self.http.request(
            method, url, json=body, headers=headers, allow_redirects=False
        ) as response:
            answer: Frame = await response.json()
            status = response.status
        assert status == wanted, (method, path, answer)
        self.transcript.answers(self.at, who, status, {k: answer[k] for k in told})
        return answer

    def _shown(self, path: str) -> str:
        """The path with names for ids, and without a query."""
        for id_, name in self.transcript.names.items():
            path = path.replace(id_, f"{{{name}}}")
        return path.partition("?")[0]

    async def says(self, person: Person, type_: str, **fields: object) -> None:
        """A frame of hers."""
        await self.scene_ends()
        self._does(person, type_, fields)
        assert person.client is not None
        await person.client.send(type_, **fields)

    def _does(self, person: Person, type_: str, fields: Frame) -> None:
        told = {name: value for name, value in fields.items() if name not in _UNTOLD}
        self.transcript.does(self.at, person.name, type_, told)

    async def talk(self, session_id: UUID, lines: Sequence[tuple[str, str]], first: int) -> None:
        """One says something when all who are there have heard what was said before."""
        await self.scene_ends()
        for seq, (name, body) in enumerate(lines, first):
            (person,) = [each for each in self.cast if each.name == name]
            self._does(person, "chat.send", {"body": body})
            assert person.client is not None
            await person.client.send(
                "chat.send", session_id=session_id, client_message_id=uuid4(), body=body
            )
            for each in self.cast:
                if each.client is not None:
                    await each.hears("chat.message", seq=seq)

    async def passes(self, minutes: int = 0, seconds: int = 0) -> None:
        """It is so long after the booking."""
        await self.scene_ends()
        self.at = 60 * minutes + seconds
        booked_at = self.transcript.booked_at
        assert booked_at is not None
        now: datetime = await self.connection.fetchval("SELECT clock_timestamp()")
        offset = (booked_at + timedelta(seconds=self.at) - now).total_seconds()
        assert offset > self.offset_seconds, "the real time has overtaken the story"
        self.offset_seconds = offset
        await pass_time(self.database_url, offset, *self.nodes)

    async def scene_ends(self) -> None:
        """What everybody got is told."""
        for person in self.cast:
            self.transcript.gets(self.at, person.name, await person.scene_ends())

    async def row(self, table: str, columns: str, where: str, *values: object) -> None:
        """The row of this table as it stands."""
        await self.scene_ends()
        row = await self.connection.fetchrow(f"SELECT {columns} FROM {table} {where}", *values)
        assert row is not None, (table, where, values)
        self.transcript.row(self.at, table, {k: v for k, v in row.items() if v is not None})


async def live(life: Life) -> None:
    """The life of a session."""
    mia, ann = await _sign_up(life)
    request_id, session_id = await _book(life, ann, mia)
    await _accept_and_join(life, ann, mia, session_id)
    await _talk_with_one_reconnect(life, ann, mia, session_id)
    await _end(life, ann, mia, session_id)
    await _afterwards(life, ann, mia, session_id)
    await life.row("session_requests", "status, version", "WHERE id = $1", request_id)


async def _sign_up(life: Life) -> tuple[Person, Person]:
    workshop_id = await add_workshop(life.connection)
    await life.connection.execute("UPDATE organizations SET name = 'North'")
    member_id = await add_user(life.connection, "workshop")
    await life.connection.execute(
        "INSERT INTO organization_members VALUES ($1, $2)", workshop_id, member_id
    )
    life.name(workshop_id, "North")
    gus = life.person("Gus", "workshop", member_id, 0)
    email = "mia@north.example"
    await life.asks(gus, "POST", "/api/workshop/invites", {"email": email}, wanted=201)
    mail = await eventually(lambda: life.mailbox.mails[0] if life.mailbox.mails else None)
    life.transcript.does(life.at, "Mia", "reads a mail", {"subject": mail["Subject"]})
    found = re.search(r"token=([\w.-]+)", mail.get_content())
    assert found is not None, mail.get_content()
    form = {"name": "Mia", "email": email, "password": "a long password", "token": found[1]}
    made = await life.asks(
        "Mia",
        "POST",
        "/api/mechanic/workshop-signup",
        form,
        wanted=201,
        told=("role",),
        hidden=("token",),
    )
    mia = life.person("Mia", "mechanic", UUID(made["user_id"]), 1)
    await life.row(
        "mechanics",
        "workshop_id, account_type, application_status, auto_approved",
        "WHERE id = $1",
        mia.id,
    )
    await life.comes(mia, 1)
    form = {"name": "Ann", "email": "ann@drivers.example", "password": "another password"}
    made = await life.asks("Ann", "POST", "/api/customer/signup", form, wanted=201, told=("role",))
    ann = life.person("Ann", "customer", UUID(made["user_id"]), 0)
    await life.comes(ann, 0)
    await eventually(lambda: ann.living.is_online(mia.id, ann.id))
    return mia, ann


async def _book(life: Life, ann: Person, mia: Person) -> tuple[UUID, UUID]:
    wish = {"plan": "chat10", "vehicle": "Panda", "concern": "It squeals"}
    intake = await life.asks(ann, "POST", "/api/intake/start", wish, wanted=201)
    intake_id = intake["intake_id"]
    life.name(intake_id, "the intake")
    waiver = {"intake_id": intake_id, "name": "Ann", "version": "1"}
    await life.asks(ann, "POST", "/api/waiver/sign", waiver)
    path = f"/api/checkout/create-session?plan=chat10&intake_id={intake_id}"
    page = await life.asks(ann, "GET", path)
    life.transcript.does(life.at, "Ann", "pays at Stripe", {})
    async with life.http.post(f"{page['url']}/pay", allow_redirects=False) as paid:
        assert paid.status in (200, 303)
    row = await eventually(lambda: life.connection.fetchrow("SELECT * FROM session_requests"))
    life.transcript.booked_at = row["created_at"]
    life.transcript.rounds[str(row["offer_id"])] = 1
    life.name(row["session_id"], "session")
    await ann.hears("request.status", stage="open", mechanics_notified=1)
    await mia.hears("offer", stage="open")
    await life.row("payments", "status, received_cents, currency", "WHERE session_id IS NOT NULL")
    await life.row(
        "sessions", "customer_user_id, type, status, plan", "WHERE id = $1", row["session_id"]
    )
    return row["id"], row["session_id"]


async def _accept_and_join(life: Life, ann: Person, mia: Person, session_id: UUID) -> None:
    await life.passes(seconds=30)
    offer_id = str(await life.connection.fetchval("SELECT offer_id FROM session_requests"))
    await life.says(mia, "offer.accept", offer_id=offer_id, accept_id=uuid4())
    await mia.hears("offer.won")
    await ann.hears("request.status", status="accepted")
    await life.passes(minutes=1)
    await life.says(ann, "session.join", session_id=session_id)
    await mia.hears("session.status", status="accepted")
    await life.scene_ends()
    await life.passes(minutes=2)
    await life.says(mia, "session.join", session_id=session_id)
    for person in (ann, mia):
        await person.hears("session.status", status="active", mechanics_connected=1)
    columns = "status, mechanic_id, workshop_id, started_at, ends_at"
    await life.row("sessions", columns, "WHERE id = $1", session_id)


async def _talk_with_one_reconnect(life: Life, ann: Person, mia: Person, session_id: UUID) -> None:
    await life.passes(minutes=3)
    await life.talk(session_id, _TALK, 1)
    await life.is_cut_off(mia)
    await life.talk(session_id, _WHILE_SHE_IS_AWAY, 9)
    await life.comes(mia, 0)
    await life.says(mia, "chat.history", session_id=session_id, after=8)
    await mia.hears("chat.messages")
    await life.talk(session_id, _AND_ON, 13)
    columns = "count(*) AS messages, max(seq) AS last_seq, count(DISTINCT sender_id) AS senders"
    await life.row("chat_messages", columns, "WHERE session_id = $1", session_id)


async def _end(life: Life, ann: Person, mia: Person, session_id: UUID) -> None:
    await life.passes(minutes=11)
    for person in (ann, mia):
        await person.hears("session.warning")
    await life.passes(minutes=12)
    for person in (ann, mia):
        await person.hears("session.status", status="completed")
    await ann.hears("request.status", status="completed")
    await life.row("sessions", "status, ended_by, version", "WHERE id = $1", session_id)
    columns = "workshop_id, gross_amount_cents, platform_fee_cents, workshop_net_cents"
    await life.row("workshop_earnings", columns, "WHERE session_id = $1", session_id)


async def _afterwards(life: Life, ann: Person, mia: Person, session_id: UUID) -> None:
    await life.passes(minutes=13)
    session = f"/api/sessions/{session_id}"
    summary = {"summary": "The belt slips: replace it this week.", "notes": "Drives gently."}
    await life.asks(mia, "PUT", f"{session}/summary", summary, told=("summary", "notes"))
    await life.asks(ann, "GET", session, told=("status", "summary", "prompt"))
    rating = {"stars": 5, "review": "Quick and kind."}
    await life.asks(ann, "POST", f"{session}/rating", rating, wanted=201, told=("prompt",))
    await life.row("mechanics", "rating", "WHERE id = $1", mia.id)
    favorite = {"provider_id": str(mia.id), "provider_type": "independent"}
    await life.asks(ann, "POST", "/api/customer/favorites", favorite, wanted=201)
    answer = await life.asks(ann, "GET", session, told=("status",))
    assert "prompt" not in answer
    again = {"provider_id": str(mia.id)}
    told = ("plan", "vehicle", "routing_type")
    await life.asks(ann, "POST", "/api/customer/rebook", again, wanted=201, told=told)
    await life.row(
        "intakes", "plan_code, preferred_mechanic_id", "WHERE routing_type LIKE 'priority%'"
    )


async def lived(database_url: str, redis_url: str) -> list[str]:
    """The lines of the life, played on a fresh database with the schema, whose clock it moves."""
    async with _stage(database_url, redis_url) as life:
        await live(life)
        await life.scene_ends()
    return life.transcript.lines


@asynccontextmanager
async def _stage(database_url: str, redis_url: str) -> AsyncIterator[Life]:
    """Stripe's webhooks come to a relay: the nodes that take them must know Stripe first."""
    listening = free_socket()
    relay_url = "http://{}:{}/".format(*listening.getsockname())
    nodes: list[LivingNode] = []

    async def relay(request: Request) -> Response:
        url = nodes[0].ws_url.replace("ws", "http", 1).removesuffix("/ws") + "/api/stripe/webhook"
        headers = {"stripe-signature": request.headers["stripe-signature"]}
        raw = await request.body()
        async with http.post(url, data=raw, headers=headers) as answer:
            return Response(status_code=answer.status)

    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        http = await stack.enter_async_context(aiohttp.ClientSession())
        app = Starlette(routes=[Route("/", relay, methods=["POST"])])
        await stack.enter_async_context(serving(app, listening))
        stripe = await stack.enter_async_context(stand_in(Path(folder), relay_url))
        mailbox = await stack.enter_async_context(mail_server())
        environ = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "DISPATCH_JWT_SECRET": JWT_SECRET,
            "STRIPE_SECRET_KEY": STRIPE_SECRET_KEY,
            "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
            "STRIPE_API_BASE": stripe.url,
            "SMTP_URL": f"smtp://127.0.0.1:{mailbox.port}?from=dispatch@localhost",
        }
        config = replace(load(environ), sweep_seconds=_SWEEP_SECONDS)
        pool = await open_pool(database_url, size=1)
        connection = await stack.enter_async_context(pool.acquire())
        nodes += await stack.enter_async_context(two_nodes(config))
        people = await stack.enter_async_context(AsyncExitStack())
        yield Life(database_url, (nodes[0], nodes[1]), connection, people, http, mailbox)
    await asyncio.shield(close_pool(pool))
