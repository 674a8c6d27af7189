"""The same with real processes: `dispatch serve`, killed by SIGKILL while money is on its way.

One job: customers who book, pay, cancel and are served over HTTP; the stand-in for Stripe, which
delivers its webhooks doubled, shuffled and again; and a server that is killed at a random moment of
each round and started anew. In the end, when everything was delivered and nothing is due, the
checker of `rules` judges. Nobody gives up: who got no answer asks again.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

import aiohttp
import asyncpg
import msgspec
import uvicorn

from dispatch.auth import issue_token
from dispatch.stripe_standin import create_app
from loadtest.local_server import free_port
from loadtest.money import people, reading, servers
from loadtest.money.campaign import Results, results_of, unmatched
from loadtest.money.rules import check
from loadtest.money.truth import GivenBack, Money, Truth

T = TypeVar("T")
Json = dict[str, Any]

SECRET: Final = "a-secret-of-the-load-test-0123456789"
STRIPE_KEY: Final = "sk_test_load_test"
WEBHOOK_SECRET: Final = "whsec_load_test"
CUSTOMERS: Final = 4  # a round
FIRST_RETRY_SECONDS: Final = 0.2
ATTEMPTS: Final = 30
LONGEST_LIFE_SECONDS: Final = 0.6  # from the first payment of a round until the server is killed
START_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 90.0
REST_SECONDS: Final = 400.0  # an effect is leased for two minutes by who died with it
POLL_SECONDS: Final = 0.05
AWAY: Final = (aiohttp.ClientError, TimeoutError, OSError)


class Town:
    """Everything of one run: servers, the stand-in, and the server that dies."""

    def __init__(self, db: asyncpg.Pool, http: aiohttp.ClientSession, dice: random.Random) -> None:
        self.db = db
        self.http = http
        self.dice = dice
        self.port = free_port()
        self.stripe_url = ""
        self.customers: list[UUID] = []
        self.cancelled: set[UUID] = set()
        self.kills = 0
        self.served = 0
        self.process: asyncio.subprocess.Process | None = None
        self.environ: dict[str, str] = {}

    # --- the server

    async def start(self) -> None:
        """Ready when it returns."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dispatch.cli", "serve", "--workers", "1"),
            env=self.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = await self.process.stdout.readline()
        if b"listening" not in line:
            raise RuntimeError("the server did not start")

    async def kill(self) -> None:
        """SIGKILL; the kernel ends its workers."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        self.kills += 1

    async def call(
        self, method: str, path: str, token: str, body: Json | None = None
    ) -> tuple[int, Json]:
        """The first answer below 500; asked again until there is one."""
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(*AWAY):
                    async with self.http.request(
                        method, url, headers=headers, json=body
                    ) as response:
                        if response.status < 500:
                            return response.status, await response.json()
                await asyncio.sleep(POLL_SECONDS)

    async def stripe(self, method: str, path: str, body: Json | None = None) -> Json:
        """What the stand-in says."""
        headers = {"Authorization": f"Bearer {STRIPE_KEY}"}
        url = f"{self.stripe_url}{path}"
        async with self.http.request(method, url, headers=headers, json=body) as response:
            if response.status >= 400:
                raise RuntimeError(f"the stand-in answers {path} with {response.status}")
            told: Json = await response.json()
            return told

    # --- rounds

    async def round(self) -> None:
        """Some customers order; they pay, and in the middle of what follows the server dies."""
        settings = {
            "copies": self.dice.choice((1, 2, 3)),
            "shuffle_seconds": self.dice.choice((0.0, 0.1, 0.4)),
            "seed": self.dice.randrange(1000),
        }
        await self.stripe("POST", "/_standin/delivery", settings)
        orders = [await self.order() for _ in range(CUSTOMERS)]
        lives = [asyncio.create_task(self.live(*order)) for order in orders]
        await asyncio.sleep(self.dice.uniform(0, LONGEST_LIFE_SECONDS))
        await self.kill()
        await self.start()
        await asyncio.gather(*lives)

    async def order(self) -> tuple[UUID, list[str]]:
        """A new customer with one hosted page, or two of different intakes."""
        customer_id = await people.customer(self.db)
        self.customers.append(customer_id)
        token = self.token(customer_id, "customer")
        pages = []
        for _ in range(self.dice.choice((1, 1, 2))):
            _, made = await self.call("POST", "/api/intake/start", token, {"plan": "chat10"})
            intake_id = made["intake_id"]
            signed = {"intake_id": intake_id, "name": "Ann", "version": "1"}
            await self.call("POST", "/api/waiver/sign", token, signed)
            path = f"/api/checkout/create-session?intake_id={intake_id}"
            _, page = await self.call("GET", path, token)
            pages.append(page["url"])
        return customer_id, pages

    async def live(self, customer_id: UUID, pages: list[str]) -> None:
        """She pays all of her pages; what is booked has some fate."""
        await asyncio.gather(*(self.pay(page) for page in pages))
        fate = self.dice.choice(("", "cancel", "cancel", "serve", "hand"))
        if not fate:
            return
        found = await self.eventually(lambda: self.session_of(customer_id))
        session_id, request_id, payment_intent = found
        token = self.token(customer_id, "customer")
        if fate == "cancel":
            status, _ = await self.call("POST", f"/api/requests/{request_id}/cancel", token)
            if status == 200:
                self.cancelled.add(session_id)
        elif fate == "hand":
            asked = {"payment_intent": payment_intent, "amount": self.dice.choice((100, 1000))}
            await self.stripe("POST", "/_standin/refunds", asked)
        else:
            mechanic = self.token(await people.mechanic(self.db), "mechanic")
            for who, verb in ((mechanic, "join"), (token, "join"), (mechanic, "end")):
                await self.call("POST", f"/api/sessions/{session_id}/{verb}", who)
            self.served += 1

    async def pay(self, page: str) -> None:
        """Presses the button; its webhooks are on their way."""
        async with self.http.post(f"{page}/pay", allow_redirects=False) as response:
            if response.status >= 400:
                raise RuntimeError(f"the page answers {response.status}")

    async def session_of(self, customer_id: UUID) -> tuple[UUID, UUID, str] | None:
        """Her live session, its request and what it was paid by."""
        row = await self.db.fetchrow(
            "SELECT s.id, r.id, p.payment_intent FROM sessions s"
            " JOIN session_requests r ON r.session_id = s.id"
            " JOIN payments p ON p.session_id = s.id WHERE s.customer_user_id = $1",
            customer_id,
        )
        return None if row is None else (row[0], row[1], row[2])

    async def eventually(
        self, look: Callable[[], Awaitable[T | None]], seconds: float = PATIENCE_SECONDS
    ) -> T:
        """What it gives, as soon as it gives something."""
        async with asyncio.timeout(seconds):
            while True:
                found = await look()
                if found:
                    return found
                await asyncio.sleep(POLL_SECONDS)

    def token(self, user_id: UUID, role: str) -> str:
        """What this user sends with each request."""
        return issue_token(SECRET, user_id, role, 0, 86_400)

    # --- the end

    async def at_rest(self) -> bool:
        """Everything was delivered, and nothing is left in the outbox."""
        told = (await self.stripe("GET", "/_standin/ledger"))["deliveries"]
        return told["waiting"] + told["sending"] == 0 and await reading.outbox_wait(self.db) is None

    async def truth(self) -> Truth:
        """Stripe's books and our rows."""
        ledger = await self.stripe("GET", "/_standin/ledger")
        events = await self.events()
        checkouts = [paid["checkout_session"] for paid in ledger["payments"]]
        rows = await reading.rows(self.db, self.customers, [], checkouts, events)
        unheard = {"some event"} if ledger["deliveries"]["given_up"] else set[str]()
        return Truth(
            money=[
                Money(
                    checkout_id=paid["checkout_session"],
                    payment_intent=paid["id"],
                    cents=paid["amount"],
                    currency=paid["currency"],
                    payment_id=_uuid(paid["metadata"]),
                    told=True,
                )
                for paid in ledger["payments"]
            ],
            given_back=[
                GivenBack(
                    id=back["id"],
                    payment_intent=back["payment_intent"],
                    cents=back["amount"],
                    failed=back["status"] == "failed",
                    payment_id=_uuid(back["metadata"]),
                )
                for back in ledger["refunds"]
            ],
            closed={},
            unwilling=set(),
            answered=set(events),
            unanswered=unheard,
            lost=set(),
            taken_wrongly=set(),
            events=rows.events,
            payments=rows.payments,
            sessions=rows.sessions,
            slots=[],
            effects=rows.effects,
            earnings=rows.earnings,
            wallets=rows.wallets,
            cancelled=self.cancelled,
            bugs=[],
        )

    async def events(self) -> list[str]:
        """The ids of all that Stripe told."""
        found: list[str] = []
        after = ""
        while True:
            page = await self.stripe("GET", f"/v1/events?limit=100{after}")
            found += [event["id"] for event in page["data"]]
            if not page["has_more"]:
                return found
            after = f"&starting_after={found[-1]}"


def _uuid(metadata: Json) -> UUID | None:
    return UUID(metadata["payment_id"]) if "payment_id" in metadata else None


async def perform(town: Town, kills: int, *, patient: bool = True) -> Truth:
    """So many rounds, each with a death; the truth once nothing is due. Without patience the
    leases of the dead end at once, and not after two minutes."""
    began = time.monotonic()
    await town.start()
    try:
        for number in range(kills):
            await town.round()
            if number % 10 == 9 or number == kills - 1:
                say(f"{time.monotonic() - began:6.0f} s  {number + 1}/{kills} killed")
        if not patient:
            await reading.end_leases(town.db)
        await town.eventually(town.at_rest, REST_SECONDS)
        return await town.truth()
    finally:
        await town.kill()
        town.kills -= 1


async def run(kills: int, seed: int, command: str) -> Results:
    """A whole run with servers of its own, judged."""
    began = time.monotonic()
    with servers.serving() as serving:
        url = await servers.new_database(serving.database_url)
        async with opened(url, serving.redis_url, seed) as town:
            truth = await perform(town, kills)
            violations = [*check(truth), *await unmatched(town.db)]
    counts = Counter(f"payments {payment.status}" for payment in truth.payments)
    counts.update(f"sessions {session.status}" for session in truth.sessions)
    counts["events"] = len(truth.answered)
    counts["refunds"] = len(truth.given_back)
    counts["kills"] = town.kills
    return results_of(
        command=command,
        seconds=time.monotonic() - began,
        seeds=(seed, seed),
        counts=counts,
        deaths=Counter({"SIGKILL": town.kills}),
        violations=[{"seed": seed, **msgspec.structs.asdict(found)} for found in violations],
    )


@contextlib.asynccontextmanager
async def opened(database_url: str, redis_url: str, seed: int) -> AsyncIterator[Town]:
    """A town on these servers, with the stand-in; its server is still to be started."""
    async with (
        asyncpg.create_pool(database_url, min_size=0, max_size=4) as db,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http,
    ):
        town = Town(db, http, random.Random(seed))
        hook = f"http://127.0.0.1:{town.port}/api/stripe/webhook"
        with tempfile.TemporaryDirectory(prefix="dispatch-money-stripe-") as folder:
            async with _stand_in(hook, Path(folder)) as town.stripe_url:
                town.environ = os.environ | {
                    "DATABASE_URL": database_url,
                    "REDIS_URL": redis_url,
                    "DISPATCH_PORT": str(town.port),
                    "DISPATCH_JWT_SECRET": SECRET,
                    "DISPATCH_PUBLIC_URL": f"http://127.0.0.1:{town.port}",
                    "STRIPE_SECRET_KEY": STRIPE_KEY,
                    "STRIPE_WEBHOOK_SECRET": WEBHOOK_SECRET,
                    "STRIPE_API_BASE": town.stripe_url,
                }
                yield town


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield  # the signals are ours


@contextlib.asynccontextmanager
async def _stand_in(hook: str, folder: Path) -> AsyncIterator[str]:
    app = create_app(
        STRIPE_KEY,
        WEBHOOK_SECRET,
        hook,
        folder,
        first_retry_seconds=FIRST_RETRY_SECONDS,
        attempts=ATTEMPTS,
    )
    port = free_port()
    config = uvicorn.Config(app, port=port, lifespan="on", log_level="error", access_log=False)
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    while True:
        await asyncio.sleep(POLL_SECONDS)
        if server.started or serving.done():
            break
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


def say(line: str) -> None:
    """How it goes."""
    print(line, file=sys.stderr, flush=True)
