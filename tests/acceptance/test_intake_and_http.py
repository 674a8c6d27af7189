"""The HTTP endpoints at their edges: one active session, wrong roles, others' ids, bad input."""

import asyncio
from typing import Any

import pytest

from tests.acceptance.actors import Answer, City, new_id
from tests.support import eventually

BIG = 64 * 1024
REQUESTS = "/api/requests"
SESSIONS = "/api/sessions"


def is_error(answer: Answer, status: int) -> bool:
    """An error of the shape that all errors have."""
    assert answer.status == status, answer
    assert answer.body["ok"] is False
    assert isinstance(answer.body["error"]["code"], str)
    assert isinstance(answer.body["error"]["message"], str)
    return True


# --- one active session ----------------------------------------------------------------------


async def test_two_intakes_at_once_are_one_session_and_one_conflict(city: City) -> None:
    ann = await city.customer()

    answers = await asyncio.gather(*(ann.start_intake("free") for _ in range(8)))

    started = [answer for answer in answers if answer.status < 300]
    refused = [answer for answer in answers if answer.status == 409]
    assert (len(started), len(refused)) == (1, 7)
    for answer in refused:
        message = answer["error"]["message"]
        assert answer.body == {
            "ok": False,
            "error": {"code": "active_session_exists", "message": message},
            "activeSessionId": started[0]["session_id"],
            "activeSessionType": "chat",
            "activeSessionStatus": "pending",
        }
    later = await ann.start_intake("chat10")
    assert (later.status, later["activeSessionId"]) == (409, started[0]["session_id"])
    await ann.call("POST", f"{REQUESTS}/{started[0]['request_id']}/cancel")
    assert (await ann.start_intake("chat10")).status < 300


async def test_the_conflict_is_told_before_anything_else_is_looked_at(city: City) -> None:
    ann = await city.customer()
    booking = await ann.book_free()

    answer = await ann.start_intake("chat10", routing_type="workshop_only")

    assert (answer.status, answer.code) == (409, "active_session_exists")
    assert answer["activeSessionId"] == booking.session_id


async def test_a_second_payment_while_one_is_live_is_given_back(city: City) -> None:
    ann = await city.customer()
    mechanic = await city.mechanic()
    _, first_url = await ann.checkout()
    _, second_url = await ann.checkout()

    await city.pay(first_url)
    status = await ann.device.expect("request.status")
    card = await mechanic.device.card(status["request_id"])
    await city.pay(second_url)

    async def refunded() -> list[str]:
        ledger = await city.ledger()
        pages = {p["charge"]: p["checkout_session"] for p in ledger["payments"]}
        ours = {url.rsplit("/", 1)[1] for url in (first_url, second_url)}
        return [page for r in ledger["refunds"] if (page := pages[r["charge"]]) in ours]

    assert await eventually(refunded) == [second_url.rsplit("/", 1)[1]]
    assert {f["request_id"] for f in ann.device.got("request.status")} == {status["request_id"]}
    assert {c["request_id"] for c in mechanic.device.got("offer")} == {card["request_id"]}
    await ann.call("POST", f"{REQUESTS}/{status['request_id']}/cancel")


# --- paying ----------------------------------------------------------------------------------


async def test_nobody_pays_before_the_waiver_is_signed(city: City) -> None:
    ann = await city.customer()
    intake = await ann.start_intake("chat10")
    query = {"plan": "chat10", "intake_id": intake["intake_id"]}
    path = "/api/checkout/create-session"

    unsigned = await ann.call("GET", path, params=query)
    waiver = {"intake_id": intake["intake_id"], "name": ann.name, "version": "1"}
    await ann.call("POST", "/api/waiver/sign", waiver)
    browser = await ann.call("GET", path, params=query, accept="text/html")

    assert (unsigned.status, unsigned.code) == (409, "waiver_required")
    assert f"intake_id={intake['intake_id']}" in intake["redirect"]
    assert intake["redirect"].startswith("/intake/waiver?")
    assert browser.status == 303
    assert browser.headers["location"].startswith(city.town.stripe_url)


@pytest.mark.parametrize(
    "contradiction",
    [
        {"plan": "video15"},
        {"routing_type": "hybrid"},
        {"workshop_id": new_id()},
        {"preferred_mechanic_id": new_id()},
        {"wait_for_preferred": "true"},
    ],
)
async def test_a_query_that_contradicts_the_intake_is_refused(
    city: City, contradiction: dict[str, str]
) -> None:
    ann = await city.customer(online=False)
    intake = await ann.start_intake("chat10")
    waiver = {"intake_id": intake["intake_id"], "name": ann.name, "version": "1"}
    await ann.call("POST", "/api/waiver/sign", waiver)

    query = {"plan": "chat10", "intake_id": intake["intake_id"]} | contradiction
    answer = await ann.call("GET", "/api/checkout/create-session", params=query)

    assert is_error(answer, 400)


async def test_a_checkout_that_is_left_makes_no_request(city: City) -> None:
    ann = await city.customer()
    _, url = await ann.checkout()

    left = await city.call("POST", f"{url}/cancel")

    assert left.status in (200, 303)
    await ann.device.fence()
    assert ann.device.got("request.status") == []
    assert (await ann.start_intake("chat10")).status < 300


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"plan": "no-such-plan"},
        {"plan": 7},
        {"plan": "chat10", "routing_type": "nearest"},
        {"plan": "chat10", "routing_type": "workshop_only"},
        {"plan": "chat10", "routing_type": "hybrid"},
        {"plan": "chat10", "routing_type": "priority_broadcast"},
        {"plan": "chat10", "routing_type": "workshop_only", "workshop_id": new_id()},
        {"plan": "chat10", "routing_type": "hybrid", "workshop_id": "here"},
        {
            "plan": "chat10",
            "routing_type": "priority_broadcast",
            "preferred_mechanic_id": new_id(),
        },
        {"plan": "chat10", "urgent": "yes"},
    ],
)
async def test_an_intake_that_makes_no_sense_is_refused(city: City, order: Any) -> None:
    ann = await city.customer(online=False)

    answer = await ann.call("POST", "/api/intake/start", order)

    assert answer.status in (400, 404)
    assert is_error(answer, answer.status)
    assert (await ann.start_intake("free")).status < 300


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"plan": "free"', b"\xff\xfe"])
async def test_a_body_that_is_not_json_is_refused(city: City, body: bytes) -> None:
    ann = await city.customer(online=False)

    answer = await ann.call("POST", "/api/intake/start", data=body)

    assert is_error(answer, 400)


@pytest.mark.parametrize("path", ["/api/intake/start", "/api/auth/login", "/api/waiver/sign"])
async def test_a_body_that_is_too_long_is_refused(city: City, path: str) -> None:
    ann = await city.customer(online=False)

    answer = await ann.call("POST", path, {"plan": "free", "concern": "x" * BIG})

    assert is_error(answer, 413)


async def test_a_log_in_says_nothing_about_who_exists(city: City) -> None:
    ann = await city.customer(online=False)

    wrong = await city.call("POST", "/api/auth/login", {"email": ann.email, "password": "wrong"})
    nobody = {"email": "nobody@example.com", "password": "wrong"}
    unknown = await city.call("POST", "/api/auth/login", nobody)

    assert is_error(wrong, 401)
    assert (unknown.status, unknown.body) == (wrong.status, wrong.body)


# --- who may -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/intake/start"),
        ("POST", "/api/waiver/sign"),
        ("GET", "/api/checkout/create-session"),
        ("GET", "/api/requests/{id}"),
        ("POST", "/api/requests/{id}/cancel"),
        ("POST", "/api/requests/{id}/widen"),
        ("GET", "/api/sessions/{id}"),
        ("POST", "/api/sessions/{id}/join"),
        ("POST", "/api/sessions/{id}/end"),
        ("GET", "/api/mechanics/{id}/status"),
        ("GET", "/api/admin/requests/{id}/explain"),
    ],
)
async def test_without_a_token_one_is_nobody(city: City, method: str, path: str) -> None:
    body: Any = {} if method == "POST" else None

    missing = await city.call(method, path.format(id=new_id()), body)
    wrong = await city.call(method, path.format(id=new_id()), body, token="not.a.token")

    assert is_error(missing, 401)
    assert is_error(wrong, 401)


async def test_each_role_has_its_own_endpoints(city: City) -> None:
    ann = await city.customer(online=False)
    mechanic = await city.mechanic(online=False)
    admin, shop = await city.admin(), await city.workshop()
    customers_only: list[tuple[str, str, Any]] = [
        ("POST", "/api/intake/start", {"plan": "free"}),
        ("POST", "/api/waiver/sign", {"intake_id": new_id(), "name": "X", "version": "1"}),
        ("GET", "/api/checkout/create-session?plan=chat10", None),
        ("GET", f"{REQUESTS}/{new_id()}", None),
        ("POST", f"{REQUESTS}/{new_id()}/cancel", None),
        ("POST", f"{REQUESTS}/{new_id()}/widen", None),
        ("GET", f"/api/mechanics/{mechanic.id}/status", None),
    ]

    for person in (mechanic, shop, admin):
        for method, path, body in customers_only:
            answer = await person.call(method, path, body)
            assert is_error(answer, 403), (person.name, path)
    for person in (ann, mechanic, shop):
        answer = await person.call("GET", f"/api/admin/requests/{new_id()}/explain")
        assert is_error(answer, 403)


async def test_somebody_elses_ids_are_as_unknown_as_unknown_ones(city: City) -> None:
    ann, eve = await city.customer(), await city.customer()
    mechanic, stranger = await city.mechanic(), await city.mechanic()
    booking = await ann.book()
    await mechanic.wins(booking)
    before = await booking.read()
    for asker, method, path, own in [
        (eve, "GET", "/api/requests/{}", booking.request_id),
        (eve, "POST", "/api/requests/{}/cancel", booking.request_id),
        (eve, "POST", "/api/requests/{}/widen", booking.request_id),
        (eve, "GET", "/api/sessions/{}", booking.session_id),
        (eve, "POST", "/api/sessions/{}/join", booking.session_id),
        (eve, "POST", "/api/sessions/{}/end", booking.session_id),
        (stranger, "GET", "/api/sessions/{}", booking.session_id),
        (stranger, "POST", "/api/sessions/{}/end", booking.session_id),
    ]:
        others = await asker.call(method, path.format(own))
        unknown = await asker.call(method, path.format(new_id()))

        assert is_error(others, 404), path
        assert (unknown.status, unknown.body) == (404, others.body), path

    waiver = {"name": "Eve", "version": "1"}
    others = await eve.call("POST", "/api/waiver/sign", waiver | {"intake_id": booking.intake_id})
    unknown = await eve.call("POST", "/api/waiver/sign", waiver | {"intake_id": new_id()})
    assert is_error(others, 404)
    assert unknown.body == others.body
    after = await booking.read()
    assert (after["version"], after["status"]) == (before["version"], "accepted")


async def test_the_same_question_over_a_socket_is_not_found_either(city: City) -> None:
    ann, eve = await city.customer(), await city.customer()
    booking = await ann.book()

    for kind in ("request.cancel", "request.widen"):
        others = await eve.device.ask(kind, request_id=booking.request_id)
        unknown = await eve.device.ask(kind, request_id=new_id())
        assert (others["type"], others["code"]) == ("error", "not_found")
        assert (unknown["code"], unknown["message"]) == (others["code"], others["message"])
    assert (await booking.read())["status"] == "pending"


# --- mechanics, health, unknown places -----------------------------------------------------------


async def test_a_customer_sees_whether_a_mechanic_is_here(city: City) -> None:
    ann = await city.customer(online=False)
    here, away = await city.mechanic(), await city.mechanic(online=False)
    await city.is_online(here, ann)

    told = await ann.call("GET", f"/api/mechanics/{here.id}/status")
    gone = await ann.call("GET", f"/api/mechanics/{away.id}/status")
    unknown = await ann.call("GET", f"/api/mechanics/{new_id()}/status")

    names = {"mechanic_id", "name", "is_online", "available", "reachable_by_push", "last_seen"}
    assert names <= told.body.keys() & gone.body.keys()
    assert (told["mechanic_id"], told["name"]) == (here.id, here.name)
    assert (told["is_online"], told["available"], told["reachable_by_push"]) == (True, True, False)
    assert (gone["is_online"], gone["available"]) == (False, True)
    assert (unknown.status, unknown.code) == (404, "mechanic_gone")


async def test_an_operator_can_ask_how_it_is(city: City) -> None:
    alive, ready, metrics = [
        await city.call("GET", f"/{p}") for p in ("healthz", "readyz", "metrics")
    ]

    assert (alive.status, alive["ok"]) == (200, True)
    assert (ready.status, ready["ok"], ready.body.get("degraded", [])) == (200, True, [])
    assert metrics.status == 200
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "# TYPE" in metrics.body


async def test_places_that_are_not_there_answer_as_everything_does(city: City) -> None:
    assert is_error(await city.call("GET", "/api/nowhere"), 404)
    assert is_error(await city.call("GET", "/nowhere"), 404)
    assert is_error(await city.call("POST", "/api/nowhere", {}), 404)
    wrong = await city.call("DELETE", "/api/intake/start")
    assert is_error(wrong, 405)
    assert is_error(await city.call("POST", "/healthz", {}), 405)


async def test_an_id_that_is_none_is_not_found(city: City) -> None:
    ann = await city.customer(online=False)

    for path in (f"{REQUESTS}/17", f"{SESSIONS}/17", "/api/mechanics/17/status"):
        answer = await ann.call("GET", path)
        assert answer.status in (400, 404)
        assert is_error(answer, answer.status)
