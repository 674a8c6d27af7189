"""A shop that takes money: real Postgres, the stand-in for Stripe, and its webhooks on a socket.

`Till` has what a test of payments says in one line each: a customer, an intake, a checkout, paying
it, and the webhooks that came of it, delivered as they are, held back, or changed and signed anew.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatch import checkout, refunds, sessions, webhooks
from dispatch.changes import change_of
from dispatch.checkout import CheckoutQuery
from dispatch.config import Config
from dispatch.core import lifecycle
from dispatch.core.types import Open, Routing
from dispatch.database import Pool, close_pool, open_pool
from dispatch.errors import DispatchError
from dispatch.outbox import Outbox
from dispatch.payments import Outcome
from dispatch.sessions import IntakeForm, OpenAtOnce, Opening, Prospect
from dispatch.store import Store
from dispatch.stripe_client import StripeClient
from dispatch.stripe_standin.delivery import signature_header
from tests.integration.stripe_servers import Json, StandInClient, Webhook, serving, stand_in
from tests.support import STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, eventually

COMPLETED = "checkout.session.completed"
PUBLIC_URL = "http://dispatch.example"


@dataclass
class Till:
    """The world of one test. Webhooks that arrive are kept in `got`; with `handling` they are
    handled first, as by our endpoint, else that is left to the test. What is paid is opened with
    `open_at_once`, if there is one, else later."""

    pool: Pool
    config: Config
    handling: bool = False
    open_at_once: OpenAtOnce | None = None
    got: list[Webhook] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    stripe: StripeClient = field(init=False)
    stand_in: StandInClient = field(init=False)

    def app(self) -> Starlette:
        async def take(request: Request) -> Response:
            hook = Webhook(await request.body(), request.headers["stripe-signature"])
            try:
                if self.handling:
                    await self.handle(hook)
            except DispatchError as error:
                return Response(status_code=error.status)
            self.got.append(hook)
            return Response()

        return Starlette(routes=[Route("/webhook", take, methods=["POST"])])

    # --- people and what they ask for

    async def customer(self) -> UUID:
        """A customer who has signed up."""
        customer_id: UUID = await self.pool.fetchval(
            "INSERT INTO users (email, name, role) VALUES ($1, 'Ann', 'customer') RETURNING id",
            f"{uuid4()}@drivers.example",
        )
        await self.pool.execute("INSERT INTO customers (id) VALUES ($1)", customer_id)
        return customer_id

    async def workshop(self) -> UUID:
        """An active workshop."""
        workshop_id: UUID = await self.pool.fetchval(
            "INSERT INTO organizations (name, email, status)"
            " VALUES ('Corner', 'c@shops.example', 'active') RETURNING id"
        )
        return workshop_id

    async def mechanic(self) -> UUID:
        """An approved, independent mechanic."""
        mechanic_id: UUID = await self.pool.fetchval(
            "INSERT INTO users (email, name, role) VALUES ($1, 'Max', 'mechanic') RETURNING id",
            f"{uuid4()}@mechanics.example",
        )
        await self.pool.execute(
            "INSERT INTO mechanics (id, application_status) VALUES ($1, 'approved')", mechanic_id
        )
        return mechanic_id

    async def slot(self, capacity: int = 1, workshop_id: UUID | None = None) -> UUID:
        """A slot of tomorrow."""
        slot_id: UUID = await self.pool.fetchval(
            "INSERT INTO slots (starts_at, ends_at, capacity, workshop_id) VALUES"
            " (now() + interval '24 h', now() + interval '25 h', $1, $2) RETURNING id",
            capacity,
            workshop_id,
        )
        return slot_id

    async def intake(
        self, customer_id: UUID, plan: str = "video15", *, signed: bool = True, **form: Any
    ) -> UUID:
        """The customer's wish, with its waiver."""
        wish = IntakeForm(plan=plan, **form)
        ttl = timedelta(seconds=self.config.request_ttl_seconds)
        started = await sessions.start_intake(self.pool, customer_id, wish, ttl)
        if signed:
            await self.sign(customer_id, started.intake_id)
        return started.intake_id

    async def everything(self, customer_id: UUID) -> IntakeForm:
        """A wish with every field of a checkout."""
        workshop_id = await self.workshop()
        return IntakeForm(
            plan="diagnostic",
            routing_type=Routing.HYBRID,
            workshop_id=workshop_id,
            preferred_mechanic_id=await self.mechanic(),
            slot_id=await self.slot(workshop_id=workshop_id),
            wait_for_preferred=True,
        )

    async def sign(self, customer_id: UUID, intake_id: UUID) -> None:
        await sessions.sign_waiver(self.pool, customer_id, intake_id, "Ann", "1", "127.0.0.1")

    # --- paying

    async def checkout(self, customer_id: UUID, intake_id: UUID | None = None, **query: Any) -> str:
        """The URL of the hosted page."""
        asked = CheckoutQuery(intake_id=intake_id, **query)
        return await checkout.create_checkout(
            self.pool, self.stripe, self.config, customer_id, asked
        )

    async def ordered(self, **form: Any) -> str:
        """The hosted page of a new customer."""
        customer_id = await self.customer()
        return await self.checkout(customer_id, await self.intake(customer_id, **form))

    async def pay(self, url: str) -> Webhook:
        """Presses Pay; the webhook that says so, as soon as it was here."""
        assert (await self.stand_in.press(url, "pay"))[0] == 200
        return await self.hook_of(url)

    async def hook_of(self, url: str, kind: str = COMPLETED) -> Webhook:
        """The webhook of this type about the Checkout Session with this page."""
        stripe_session_id = url.rpartition("/")[2]
        return await eventually(
            lambda: next(
                (
                    hook
                    for hook in self.got
                    if hook.event["type"] == kind
                    and hook.event["data"]["object"]["id"] == stripe_session_id
                ),
                None,
            )
        )

    async def handle(self, hook: Webhook) -> Outcome:
        """What our endpoint does with a webhook."""
        outcome = await webhooks.handle_webhook(
            self.pool, self.stripe, self.config, hook.raw, hook.signature, self.open_at_once
        )
        self.outcomes.append(outcome)
        return outcome

    async def decide_first_stage(self, prospect: Prospect) -> Opening:
        """An `open_at_once`: as the dispatcher does it, where everybody is there."""
        policy = self.config.policy()
        made = lifecycle.made(prospect.wish, uuid4(), uuid4(), uuid4(), prospect.now, policy)
        event = Open(favourite=prospect.favourite, preferred_online=True)
        decision = lifecycle.decide(made, event, prospect.now, policy)
        policy_id = await Store(self.pool).keep_policy(policy)
        change = change_of(made, event, decision, prospect.now, policy, policy_id, uuid4())
        return Opening(change.document(), prospect.entry(change.booking))

    async def deliver_again(self, hook: Webhook, times: int) -> list[int]:
        """Stripe delivers a webhook so often at once; what our endpoint answered to each."""
        asked = {"event_id": hook.event["id"], "times": times}
        url = f"{self.stand_in.url}/_standin/deliver"
        async with self.stand_in.http.post(url, json=asked) as response:
            statuses: list[int] = (await response.json())["statuses"]
            return statuses

    async def at_stripe(self, path: str, /, **asked: Any) -> Json:
        """What Stripe, or a person there, does by itself."""
        url = f"{self.stand_in.url}/_standin/{path}"
        async with self.stand_in.http.post(url, json=asked) as response:
            assert response.status == 200, await response.text()
            told: Json = await response.json()
            return told

    async def hook(self, kind: str) -> Webhook:
        """The first webhook of this type that has come."""
        return await eventually(
            lambda: next((hook for hook in self.got if hook.event["type"] == kind), None)
        )

    def results(self) -> Counter[str]:
        """What became of the webhooks handled so far, without those that are not for us."""
        return Counter(o.result for o in self.outcomes if o.result != "ignored")

    # --- looking

    async def payment(self, url: str) -> asyncpg.Record:
        """The payment behind a hosted page."""
        row = await self.pool.fetchrow(
            "SELECT * FROM payments WHERE stripe_session_id = $1", url.rpartition("/")[2]
        )
        assert row is not None
        return row

    async def count(self, table: str) -> int:
        counted: int = await self.pool.fetchval(f"SELECT count(*) FROM {table}")
        return counted

    async def history(self, session_id: UUID) -> list[str]:
        """The types of the session's events, in order."""
        rows = await self.pool.fetch(
            "SELECT type FROM session_events WHERE session_id = $1 ORDER BY id", session_id
        )
        return [row[0] for row in rows]

    @property
    def made(self) -> list[str]:
        """How the history of what was paid here begins."""
        return ["created"] if self.open_at_once is None else ["created", "opened"]

    # --- giving back

    def outbox(self, pool: Pool | None = None) -> Outbox:
        """One node's outbox, as the server makes it."""
        mine = pool or self.pool
        return Outbox(mine, {"refund": partial(refunds.deliver, mine, self.stripe)})

    async def refunds(self) -> list[Json]:
        """The refunds in Stripe's ledger."""
        refunds: list[Json] = (await self.stand_in.ledger())["refunds"]
        return refunds


def signed(event: Json, *, age_seconds: int = 0, secret: str = STRIPE_WEBHOOK_SECRET) -> Webhook:
    """A webhook that was signed so long ago."""
    raw = msgspec.json.encode(event)
    return Webhook(raw, signature_header(raw, secret, int(time.time()) - age_seconds))


def changed(hook: Webhook, kind: str | None = None, **fields: Any) -> Webhook:
    """Another event about the same object with other fields, properly signed."""
    event = hook.event
    event["id"] = f"evt_{uuid4().hex}"
    event["type"] = kind or event["type"]
    event["data"]["object"] |= fields
    return signed(event)


@asynccontextmanager
async def running(*outboxes: Outbox) -> AsyncIterator[None]:
    """The outboxes deliver inside the block."""
    tasks = [asyncio.create_task(outbox.run()) for outbox in outboxes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def open_till(config: Config, data_dir: Path) -> AsyncIterator[Till]:
    """A till with everything it needs, on free ports."""
    pool = await open_pool(config.database_url)
    till = Till(pool, config)
    async with (
        serving(till.app()) as url,
        stand_in(data_dir, f"{url}/webhook") as till.stand_in,
    ):
        till.stripe = StripeClient(
            STRIPE_SECRET_KEY, api_base=till.stand_in.url, public_url=PUBLIC_URL
        )
        try:
            yield till
        finally:
            await till.stripe.close()
    await close_pool(pool)
