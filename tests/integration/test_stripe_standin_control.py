"""The stand-in for Stripe: what goes wrong on request, and who may ask for it."""

import asyncio
import random
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import httpx2
import pytest

from dispatch.stripe_standin import create_app, run
from dispatch.stripe_standin.schedule import DeliverySettings, Schedule
from tests.integration.stripe_servers import (
    CHECKOUT,
    Clock,
    Json,
    Receiver,
    StandInClient,
    serving,
    stand_in,
)
from tests.support import STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, eventually

SESSIONS = "/v1/checkout/sessions"
CONTROLS = [
    ("GET", "ledger"),
    ("POST", "deliver"),
    ("POST", "delivery"),
    ("POST", "faults"),
    ("GET", "faults"),
    ("DELETE", "faults"),
    ("DELETE", "keys"),
    ("POST", "refunds"),
    ("POST", "refunds/re_1"),
    ("POST", "accounts/acct_1"),
    ("POST", "accounts/acct_1/payouts"),
    ("POST", "foreign_checkouts"),
]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
async def client(tmp_path: Path, receiver: Receiver, clock: Clock) -> AsyncIterator[StandInClient]:
    async with (
        serving(receiver.app()) as url,
        stand_in(tmp_path, f"{url}/webhook", now=clock) as client,
    ):
        yield client


async def sessions(client: StandInClient) -> int:
    _, listed, _ = await client.call("GET", SESSIONS)
    return len(listed["data"])


# --- faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("do", "done"), [("drop_reply", 1), ("drop_request", 0)])
async def test_a_connection_is_closed_without_a_word(
    client: StandInClient, do: str, done: int
) -> None:
    await client.control("POST", "faults", path=SESSIONS, do=do)

    with pytest.raises(aiohttp.ServerDisconnectedError):
        await client.call("POST", SESSIONS, CHECKOUT, key="k")

    assert await sessions(client) == done
    status, made, told = await client.call("POST", SESSIONS, CHECKOUT, key="k")
    assert (status, "idempotent-replayed" in told) == (200, bool(done))
    assert await sessions(client) == 1
    assert made["object"] == "checkout.session"


@pytest.mark.parametrize(("do", "status"), [("fail", 500), ("rate_limit", 429)])
async def test_an_outage_does_nothing_and_is_not_kept_for_the_key(
    client: StandInClient, do: str, status: int
) -> None:
    await client.control("POST", "faults", path=SESSIONS, do=do, times=2)

    failed = [(await client.call("POST", SESSIONS, CHECKOUT, key="k"))[0] for _ in range(3)]

    assert failed == [status, status, 200]
    assert await sessions(client) == 1


async def test_a_chosen_refusal_is_one_that_was_tried(client: StandInClient) -> None:
    refusal = {"do": "refuse", "code": "account_closed", "message": "Closed.", "status": 402}
    await client.control("POST", "faults", path="/v1/checkout/*", **refusal)

    first, told, _ = await client.call("POST", SESSIONS, CHECKOUT, key="k")
    again, repeated, _ = await client.call("POST", SESSIONS, CHECKOUT, key="k")
    other, _, _ = await client.call("POST", SESSIONS, CHECKOUT, key="k2")

    expected = {"code": "account_closed", "message": "Closed.", "type": "invalid_request_error"}
    assert (first, told["error"]) == (402, expected)
    assert (again, repeated) == (first, told)
    assert other == 200


@pytest.mark.parametrize("do", ["late", "late_start"])
async def test_while_a_call_is_under_way_its_key_is_in_use(client: StandInClient, do: str) -> None:
    await client.control("POST", "faults", path=SESSIONS, do=do, late_ms=300)

    late = asyncio.create_task(client.call("POST", SESSIONS, CHECKOUT, key="k"))
    await eventually(lambda: _no_order_left(client))
    status, told, _ = await client.call("POST", SESSIONS, CHECKOUT, key="k")
    other, _, _ = await client.call("POST", SESSIONS, CHECKOUT, key="k2")
    meanwhile = await sessions(client)
    _, made, _ = await late

    assert (status, told["error"]["code"]) == (409, "idempotency_key_in_use")
    assert (other, meanwhile) == (200, 2 if do == "late" else 1)
    assert (await client.call("POST", SESSIONS, CHECKOUT, key="k"))[1] == made


async def _no_order_left(client: StandInClient) -> bool:
    return not (await client.control("GET", "faults"))["left"]


async def test_faults_befall_their_own_calls_in_the_order_they_were_ordered(
    client: StandInClient,
) -> None:
    await client.control("POST", "faults", path="/v1/refunds", do="fail")
    await client.control("POST", "faults", path=SESSIONS, do="rate_limit", method="GET")
    await client.control("POST", "faults", path=SESSIONS, do="fail")
    await client.control("POST", "faults", path=SESSIONS, do="rate_limit", times=9)

    answers = [(await client.call("POST", SESSIONS, CHECKOUT))[0] for _ in range(2)]
    left = (await client.control("GET", "faults"))["left"]
    await client.control("DELETE", "faults")

    assert answers == [500, 429]
    assert [(fault["path"], fault["do"], fault["times"]) for fault in left] == [
        ("/v1/refunds", "fail", 1),
        (SESSIONS, "rate_limit", 1),
        (SESSIONS, "rate_limit", 8),
    ]
    assert (await client.call("POST", SESSIONS, CHECKOUT))[0] == 200


async def test_a_key_can_be_forgotten_before_its_day_is_over(client: StandInClient) -> None:
    await client.call("POST", SESSIONS, CHECKOUT, key="k")

    assert await client.control("DELETE", "keys") == {"forgotten": 1}

    _, _, told = await client.call("POST", SESSIONS, CHECKOUT, key="k")
    assert "idempotent-replayed" not in told
    assert await sessions(client) == 2


# --- deliveries ------------------------------------------------------------------------------


async def test_events_can_be_held_back_until_they_are_released(
    client: StandInClient, receiver: Receiver
) -> None:
    await client.control("POST", "delivery", held=True)
    await client.paid()
    await client.paid()
    held = (await client.ledger())["deliveries"]

    await client.control("POST", "delivery")

    assert (held["waiting"], held["sending"], held["delivered"]) == (6, 0, 0)
    await eventually(lambda: len(receiver.got) == 6)


async def test_every_event_can_come_several_times(
    client: StandInClient, receiver: Receiver
) -> None:
    await client.control("POST", "delivery", copies=3)
    await client.paid()

    await eventually(lambda: len(receiver.got) == 9)

    assert set(Counter(hook.raw for hook in receiver.got).values()) == {3}
    assert (await client.ledger())["deliveries"]["delivered"] == 9


def test_a_seed_gives_every_copy_the_same_moments_again() -> None:
    """So that a test that fails on an order can be run again."""

    def moments(seed: int) -> list[float]:
        schedule = Schedule()
        schedule.set(DeliverySettings(copies=2, shuffle_seconds=60.0, seed=seed))
        return [due_at for _ in range(10) for due_at in schedule.due_times(1000.0)]

    assert moments(7) == moments(7) != moments(8)
    assert moments(7) != sorted(moments(7))
    assert all(1000.0 <= due_at <= 1060.0 for due_at in moments(7))
    assert len(moments(7)) == 20


async def test_events_come_in_another_order_within_their_window(
    client: StandInClient, receiver: Receiver, clock: Clock
) -> None:
    settings = {"shuffle_seconds": 60, "seed": 3}
    await client.control("POST", "delivery", **settings)
    for _ in range(4):
        await client.paid()
    at_once = len(receiver.got)

    clock.now += 60
    await client.control("POST", "delivery", **settings)

    await eventually(lambda: len(receiver.got) == 12)
    assert at_once < 12
    _, listed, _ = await client.call("GET", "/v1/events?limit=100")
    happened = [event["id"] for event in reversed(listed["data"])]
    arrived = [hook.event["id"] for hook in receiver.got]
    assert sorted(arrived) == sorted(happened)
    assert arrived != happened


# --- money -----------------------------------------------------------------------------------


async def test_no_cent_is_lost_whatever_is_done_in_whatever_order(client: StandInClient) -> None:
    """Three hundred calls, drawn by a seed, a third of them refused."""
    draw = random.Random(15)
    await client.control("POST", "delivery", held=True)
    accounts = [(await client.payee())["id"] for _ in range(3)]
    refused = Counter[int]()
    for number in range(300):
        ledger = await client.ledger()
        status = await one_of_them(client, draw, ledger, accounts, f"key-{number % 97}")
        refused[status] += 1

    summed = (await client.ledger())["sums"]["usd"]
    assert summed["missing"] == 0
    assert min(summed[name] for name in ("paid", "refunded", "transferred", "reversed")) > 0
    assert summed["banks"] > 0
    assert refused[200] > 100
    assert refused[200] < 300


async def one_of_them(
    client: StandInClient, draw: random.Random, ledger: Json, accounts: list[str], key: str
) -> int:
    """Pay, refund, settle a refund, transfer, reverse or take to the bank; the status."""

    def some(kind: str) -> str:
        return str(draw.choice(ledger[kind] or [{"id": "none"}])["id"])

    cents = str(draw.choice((1, 100, 700, 2500)))
    account = draw.choice(accounts)
    match draw.randrange(7):
        case 0:
            await client.paid()
            return 200
        case 1:
            form = {"payment_intent": some("payments"), "amount": cents}
            return (await client.call("POST", "/v1/refunds", form, key=key))[0]
        case 2:
            body: Json = draw.choice(({}, {"failure_reason": "unknown"}))
            return await control_status(client, f"refunds/{some('refunds')}", body)
        case 3 | 4:
            form = {"amount": cents, "currency": "usd", "destination": account}
            return (await client.call("POST", "/v1/transfers", form, key=key))[0]
        case 5:
            path = f"/v1/transfers/{some('transfers')}/reversals"
            return (await client.call("POST", path, {"amount": cents}, key=key))[0]
        case _:
            body = {"amount": int(cents)}
            return await control_status(client, f"accounts/{account}/payouts", body)


async def control_status(client: StandInClient, path: str, body: Json) -> int:
    async with client.http.post(f"{client.url}/_standin/{path}", json=body) as response:
        return response.status


# --- who may ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), CONTROLS)
async def test_control_is_for_this_machine_and_for_no_page_in_a_browser(
    tmp_path: Path, method: str, path: str
) -> None:
    app = create_app(
        STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, "http://127.0.0.1:1/webhook", tmp_path
    )
    async with app.router.lifespan_context(app):
        for address, headers in (
            ("203.0.113.9", {}),
            ("127.0.0.1", {"Origin": "https://elsewhere.example"}),
        ):
            transport = httpx2.ASGITransport(app, client=(address, 40000))
            async with httpx2.AsyncClient(transport=transport, base_url="http://s") as stranger:
                answer = await stranger.request(method, f"/_standin/{path}", headers=headers)
            assert answer.status_code == 404
            assert answer.content == b""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("faults", b"{}"),
        ("faults", b'{"path":"/v1/refunds","do":"explode"}'),
        ("faults", b'{"path":"/v1/refunds","do":"fail","times":0}'),
        ("faults", b'{"path":"/v1/refunds","do":"refuse","status":200}'),
        ("delivery", b'{"copies":0}'),
        ("delivery", b'{"copies":101}'),
        ("delivery", b'{"shuffle_seconds":-1}'),
        ("delivery", b'{"hold":true}'),
        ("refunds", b'{"payment_intent":"pi_none"}'),
        ("refunds/re_none", b"{}"),
        ("accounts/acct_none", b"{}"),
        ("accounts/acct_none/payouts", b'{"amount":1}'),
        ("foreign_checkouts", b'{"account":"acct_none"}'),
        ("foreign_checkouts", b'{"account":"\xff"}'),
        ("refunds", b"x" * 70_000),
    ],
)
async def test_what_control_does_not_understand_changes_nothing(
    client: StandInClient, path: str, body: bytes
) -> None:
    before = await client.ledger()

    async with client.http.post(f"{client.url}/_standin/{path}", data=body) as response:
        assert response.status in (400, 403, 404, 413)
        assert (await response.json())["error"]["message"]

    assert await client.ledger() == before
    assert (await client.control("GET", "faults"))["left"] == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_it_is_not_served_where_others_could_reach_it(tmp_path: Path, host: str) -> None:
    app = create_app(
        STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, "http://127.0.0.1:1/webhook", tmp_path
    )

    with pytest.raises(ValueError, match="loopback"):
        run(app, host=host, port=0)


def test_a_ledger_of_another_version_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "stripe_standin.sqlite3"
    with sqlite3.connect(file) as old:
        old.execute("CREATE TABLE sessions (seq INTEGER PRIMARY KEY, id TEXT, body TEXT)")

    with pytest.raises(sqlite3.DatabaseError, match="another version"):
        create_app(STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET, "http://127.0.0.1:1/w", tmp_path)

    with sqlite3.connect(file) as still:
        assert still.execute("SELECT name FROM sqlite_schema").fetchall() == [("sessions",)]
