"""Who may do what: every endpoint and every frame with everybody, as the descriptions say.

The two tables below are written from the descriptions of the endpoints and of the protocol, by
hand; what is served is read from the running server. An endpoint or a frame that is not in its
table fails here until somebody has said who may.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from dispatch.auth import issue_token
from tests.acceptance.actors import City, Customer, Device, Town, new_id
from tests.acceptance.attacker import LATE_EPOCH, Answer, Attacker
from tests.support import JWT_SECRET

# --- the endpoints --------------------------------------------------------------------------------

# Method, path, who may, and what those are told who send no body and name an id that nothing has.
ENDPOINTS = """
POST   /api/auth/login                    anyone              400
POST   /api/auth/refresh                  everybody           200
POST   /api/auth/logout                   everybody           200
POST   /api/customer/signup               anyone              400
POST   /api/mechanic/signup               anyone              400
POST   /api/mechanic/workshop-signup      anyone              400
POST   /api/workshop/signup               anyone              400
GET    /join                              anyone              200
GET    /api/mechanics/{id}/status         customer            404
POST   /api/intake/start                  customer            400
POST   /api/waiver/sign                   customer            400
GET    /api/checkout/create-session       customer            400
GET    /checkout/success                  anyone              200
GET    /checkout/cancel                   anyone              200
POST   /api/stripe/webhook                anyone              400
GET    /api/workshops/directory           anyone              200
GET    /api/customer/payments             customer            200
GET    /api/customer/credits              customer            200
POST   /api/admin/credits                 admin               400
GET    /api/customer/favorites            customer            200
POST   /api/customer/favorites            customer            400
DELETE /api/customer/favorites/{id}       customer            404
POST   /api/customer/rebook               customer            400
GET    /api/slots                         anyone              200
GET    /api/requests/{id}                 customer            404
POST   /api/requests/{id}/cancel          customer            404
POST   /api/requests/{id}/widen           customer            404
GET    /api/sessions/{id}                 customer,mechanic   404
POST   /api/sessions/{id}/join            customer,mechanic   404
POST   /api/admin/sessions/join           customer,mechanic   400
POST   /api/sessions/{id}/end             customer,mechanic   404
GET    /api/sessions/{id}/messages        customer,mechanic   404
POST   /api/sessions/{id}/messages        customer,mechanic   400
POST   /api/sessions/{id}/video-token     customer,mechanic   404|501
PUT    /api/sessions/{id}/summary         mechanic            400
POST   /api/sessions/{id}/rating          customer            400
GET    /api/mechanic/sessions             mechanic            200
GET    /api/mechanic/earnings             mechanic            200
GET    /api/workshop/earnings             workshop            200
GET    /api/mechanic/why-no-offers        mechanic            200
POST   /api/workshop/invites              workshop            400
DELETE /api/workshop/invites/{id}         workshop            404
GET    /api/workshop/mechanics            workshop            200
POST   /api/workshop/stripe/onboard       workshop            200
POST   /api/mechanic/stripe/onboard       mechanic            200
GET    /connect/return                    anyone              200
GET    /connect/refresh                   anyone              200
GET    /api/admin/mechanics               admin               200
POST   /api/admin/mechanics/{id}/approve  admin               404
POST   /api/admin/mechanics/{id}/reject   admin               404
POST   /api/admin/mechanics/{id}/deactivate   admin           404
DELETE /api/admin/mechanics/{id}          admin               404
GET    /api/admin/workshops               admin               200
POST   /api/admin/workshops/{id}/approve  admin               404
POST   /api/admin/requests/{id}/assign    admin               400
GET    /api/admin/requests                admin               200
GET    /api/admin/requests/{id}/explain   admin               404
GET    /api/admin/mechanics/{id}/fairness admin               404
GET    /api/admin/analytics               admin               200
POST   /api/admin/payouts/run             admin               200
GET    /api/admin/payouts                 admin               200
GET    /api/admin/experiments             admin               200
PUT    /api/admin/experiments             admin               400
GET    /api/push/subscriptions            mechanic            501
POST   /api/push/subscriptions            mechanic            400
DELETE /api/push/subscriptions/{id}       mechanic            501
GET    /healthz                           anyone              200
GET    /readyz                            anyone              200
GET    /metrics                           anyone              200
GET    /openapi.json                      anyone              200
GET    /asyncapi.json                     anyone              200
GET    /                                  anyone              200
GET    /mechanic                          anyone              200
GET    /customer                          anyone              200
GET    /ops                               anyone              200
GET    /intake/waiver                     anyone              200
GET    /web/{name}                        anyone              404
GET    /api/plans                         anyone              200
"""
# Where somebody in the right role is told something else for what she is.
EXCEPTIONS: dict[tuple[str, str], tuple[int, str]] = {
    ("POST /api/mechanic/stripe/onboard", "pending mechanic"): (403, "forbidden"),
}

ROLES = frozenset({"customer", "mechanic", "workshop", "admin"})


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    method: str
    path: str
    roles: frozenset[str]
    statuses: frozenset[int]

    @classmethod
    def read(cls, line: str) -> "Line":
        method, path, who, statuses = line.split()
        words = {"anyone": frozenset[str](), "everybody": ROLES}
        roles = words[who] if who in words else frozenset(who.split(","))
        return cls(method, path, roles, frozenset(map(int, statuses.split("|"))))

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


TABLE = {line.name: line for line in map(Line.read, ENDPOINTS.strip().splitlines())}


# Everybody who may stand before a door, and the role that she would be let in by.
CROWD: Mapping[str, str | None] = {
    "nobody": None,
    "with a forged token": None,
    "expired customer": None,
    "revoked customer": None,
    "disabled mechanic": None,
    "customer": "customer",
    "other customer": "customer",
    "mechanic": "mechanic",
    "pending mechanic": "mechanic",
    "workshop member": "workshop",
    "admin": "admin",
}


class Doorstep(Attacker):
    """One server, and what everybody in the crowd shows as a token."""

    def __init__(self, town: Town) -> None:
        super().__init__(town)
        people = town.people
        customer, other = people["customers"][-1], people["customers"][-2]
        mechanic, pending, disabled = (people["mechanics"][-n] for n in (1, 2, 3))
        revoked = people["customers"][-3]
        asyncio.run(
            _execute(
                town,
                f"""
                UPDATE mechanics SET application_status = 'pending'
                WHERE id = '{pending["user_id"]}';
                UPDATE users SET disabled_at = clock_timestamp()
                WHERE id = '{disabled["user_id"]}';
                UPDATE users SET token_epoch = token_epoch + 1 WHERE id = '{revoked["user_id"]}';
                """,
            )
        )
        self.tokens = {
            "nobody": None,
            "with a forged token": _token(people["admin"], "admin", secret="x" * 40),
            "expired customer": _token(customer, "customer", ttl_seconds=-60.0),
            "revoked customer": _token(revoked, "customer", epoch=0),
            "disabled mechanic": _token(disabled, "mechanic"),
            "customer": _token(customer, "customer"),
            "other customer": _token(other, "customer"),
            "mechanic": _token(mechanic, "mechanic"),
            "pending mechanic": _token(pending, "mechanic"),
            "workshop member": _token(people["workshops"][0], "workshop"),
            "admin": _token(people["admin"], "admin"),
        }

    def token(self, caller: str) -> str | None:
        return self.tokens[caller]

    def document(self, path: str) -> Any:
        """A description, as it is served."""
        return self.call("GET", path).json


def _token(
    person: Mapping[str, Any],
    role: str,
    *,
    secret: str = JWT_SECRET,
    epoch: int = LATE_EPOCH,
    ttl_seconds: float = 3600.0,
) -> str:
    return issue_token(secret, person["user_id"], role, epoch, ttl_seconds)


async def _execute(town: Town, sql: str) -> None:
    connection = await asyncpg.connect(town.server.environ["DATABASE_URL"])
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def doorstep(town: Town) -> Iterator[Doorstep]:
    doorstep = Doorstep(town)
    yield doorstep
    assert "Traceback" not in doorstep.log()


@pytest.fixture(scope="module")
def served(doorstep: Doorstep) -> dict[str, Any]:
    """Every endpoint that is served, by method and path, as it is described."""
    paths = doorstep.document("/openapi.json")["paths"]
    return {
        f"{method.upper()} {path}": operation
        for path, operations in paths.items()
        for method, operation in operations.items()
    }


def test_of_every_endpoint_it_is_said_here_who_may(served: dict[str, Any]) -> None:
    assert served.keys() == TABLE.keys()


def test_what_is_described_is_what_is_said_here(served: dict[str, Any]) -> None:
    described = {name: frozenset(operation["x-roles"]) for name, operation in served.items()}

    assert described == {name: TABLE[name].roles for name in served}


@pytest.mark.parametrize("caller", CROWD)
def test_everybody_is_let_in_where_she_may_and_nowhere_else(
    doorstep: Doorstep, served: dict[str, Any], caller: str
) -> None:
    """All endpoints; a caller's answers are looked at together."""
    wrong = []
    for name in served:
        line = TABLE[name]
        answer = doorstep.call(
            line.method, line.path.format(id=new_id(), name="nothing"), caller=caller
        )
        wanted = expected(line, caller)
        if not _is(answer, *wanted):
            wrong.append((name, wanted, answer.status, answer.body[:200]))

    assert wrong == []


def expected(line: Line, caller: str) -> tuple[frozenset[int], str | None]:
    """The statuses that this caller may be answered, and the code where it is always the same."""
    role = CROWD[caller]
    if (line.name, caller) in EXCEPTIONS:
        status, code = EXCEPTIONS[line.name, caller]
        return frozenset({status}), code
    if not line.roles:
        return line.statuses, None
    if role is None:
        return frozenset({401}), "not_authenticated"
    return (line.statuses, None) if role in line.roles else (frozenset({403}), "forbidden")


def _is(answer: Answer, statuses: frozenset[int], code: str | None) -> bool:
    return answer.status in statuses and (code is None or answer.code == code)


def test_whoever_is_not_let_in_is_not_told_why(doorstep: Doorstep, served: dict[str, Any]) -> None:
    """A forged, an expired and a revoked token, and one of somebody disabled, are refused alike."""
    for name in served:
        line = TABLE[name]
        answers = {
            doorstep.call(
                line.method, line.path.format(id=new_id(), name="nothing"), caller=caller
            ).body
            for caller, role in CROWD.items()
            if line.roles and role is None and caller != "nobody"
        }
        assert len(answers) == bool(line.roles), name


async def test_what_is_somebody_elses_is_as_if_it_were_not_there(
    city: City, doorstep: Doorstep, served: dict[str, Any]
) -> None:
    ann, bob, mechanic = await city.customer(), await city.customer(), await city.mechanic()
    booking = await ann.book_free()
    await mechanic.wins(booking)
    before = await booking.read()
    ids = {"requests": booking.request_id, "sessions": booking.session_id}

    differing = []
    for name in served:
        line = TABLE[name]
        kind = line.path.split("/")[2] if "{id}" in line.path else ""
        if kind not in ids or "customer" not in line.roles:
            continue
        for body in (None, {}, ANYTHING):
            told = [
                await bob.call(line.method, line.path.format(id=some_id), body)
                for some_id in (ids[kind], new_id())
            ]
            if (told[0].status, told[0].body) != (told[1].status, told[1].body):
                differing.append((name, body, told))

    assert differing == []
    assert (await booking.read())["version"] == before["version"]
    await ended(ann, booking.session_id)


# What any of the bodies may want, so that some of them are whole.
ANYTHING = {
    "body": "hello",
    "client_message_id": new_id(),
    "stars": 5,
    "review": "good",
    "summary": "mended",
    "notes": "",
    "refund_as": "money",
}


async def ended(customer: Customer, session_id: str) -> None:
    assert (await customer.call("POST", f"/api/sessions/{session_id}/end")).status == 200


# --- the frames -----------------------------------------------------------------------------------

# Who may send a frame, one that names nothing there is, and what she is answered who may.
FRAMES: dict[str, tuple[frozenset[str], dict[str, Any], str | None]] = {
    "hello": (ROLES, {}, "bad_frame"),  # the second one
    "ping": (ROLES, {}, "pong"),
    "token.refresh": (ROLES, {"token": "hers"}, "ok"),
    "availability.set": (frozenset({"mechanic"}), {"available": True}, "ok"),
    "offer.seen": (frozenset({"mechanic"}), {"offer_id": new_id()}, None),
    "offer.accept": (
        frozenset({"mechanic"}),
        {"offer_id": new_id(), "accept_id": new_id()},
        "offer.lost",
    ),
    "offer.decline": (frozenset({"mechanic"}), {"offer_id": new_id()}, "not_found"),
    "assignment.cancel": (frozenset({"mechanic"}), {"session_id": new_id()}, "not_found"),
    "request.cancel": (frozenset({"customer"}), {"request_id": new_id()}, "not_found"),
    "request.widen": (frozenset({"customer"}), {"request_id": new_id()}, "not_found"),
    "mechanic.watch": (frozenset({"customer"}), {"mechanic_id": new_id()}, "not_found"),
    "mechanic.unwatch": (frozenset({"customer"}), {"mechanic_id": new_id()}, "not_found"),
    "session.join": (frozenset({"mechanic", "customer"}), {"session_id": new_id()}, "not_found"),
    "session.end": (frozenset({"mechanic", "customer"}), {"session_id": new_id()}, "not_found"),
    "chat.send": (
        frozenset({"mechanic", "customer"}),
        {"session_id": new_id(), "client_message_id": new_id(), "body": "hello"},
        "not_found",
    ),
    "chat.history": (frozenset({"mechanic", "customer"}), {"session_id": new_id()}, "not_found"),
    "board.watch": (frozenset({"admin"}), {}, "board"),
}


def test_of_every_frame_it_is_said_here_who_may_send_it(doorstep: Doorstep) -> None:
    operations = doorstep.document("/asyncapi.json")["operations"]

    described = {
        name: frozenset(operation["x-senders"])
        for name, operation in operations.items()
        if operation["action"] == "receive"
    }
    assert described == {name: senders for name, (senders, _, _) in FRAMES.items()}


@pytest.mark.parametrize("caller", [caller for caller, role in CROWD.items() if role is not None])
async def test_every_frame_is_taken_from_who_may_send_it_and_from_nobody_else(
    town: Town, doorstep: Doorstep, caller: str
) -> None:
    token = doorstep.token(caller)
    device = await Device.dial(town.server.ws_url, caller, token)
    await device.expect("welcome")

    answers = {}
    for name, (senders, fields, wanted) in FRAMES.items():
        may = CROWD[caller] in senders
        if may and wanted is None:  # nothing comes, which the next answer shows
            await device.send(name, **fields)
            continue
        told = await device.ask(name, **fields | ({"token": token} if "token" in fields else {}))
        answers[name] = told["code"] if told["type"] == "error" else told["type"]

    await device.fence()
    assert answers == {
        name: wanted if CROWD[caller] in senders else "forbidden"
        for name, (senders, _, wanted) in FRAMES.items()
        if wanted is not None or CROWD[caller] not in senders
    }
    await device.close()


@pytest.mark.parametrize(
    "caller", [caller for caller, role in CROWD.items() if role is None and caller != "nobody"]
)
async def test_nobody_without_a_good_token_is_welcomed(
    town: Town, doorstep: Doorstep, caller: str
) -> None:
    at_once = await Device.dial(town.server.ws_url, caller, doorstep.token(caller))
    later = await Device.dial(town.server.ws_url, caller, None)
    await later.socket.send(json.dumps({"type": "hello", "token": doorstep.token(caller)}))

    assert (await at_once.closed(), await later.closed()) == (4401, 4401)
    assert at_once.frames + later.frames == []
