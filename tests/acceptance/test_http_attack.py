"""Hostile HTTP: whatever is asked, by whomever, the answer is a typed error and nothing changes."""

import hashlib
import hmac
import json
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.acceptance.actors import Town, new_id
from tests.acceptance.attacker import CALLERS, Attacker
from tests.support import STRIPE_WEBHOOK_SECRET

# The rows that a test may write, where it is not none at all.
MAY_WRITE: dict[str, set[str]] = {
    "test_who_may_do_what": {"users"},  # logging out raises an epoch
    "test_a_name_that_is_taken_can_be_seen_on_one_line": {"users", "customers"},
}


@pytest.fixture
def attacker(town: Town, request: pytest.FixtureRequest) -> Iterator[Attacker]:
    """One test's attacker. Afterwards: every answer was ours, nothing was written or broke."""
    attacker = Attacker(town)
    before, said = attacker.database(), len(attacker.log())

    yield attacker

    changed = {t for t, digest in attacker.database().items() if digest != before[t]}
    assert attacker.wrong == []
    assert changed <= MAY_WRITE.get(request.node.originalname, set())
    assert "Traceback" not in attacker.log()[said:]


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """So many examples, on one server."""
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# --- who may do what ------------------------------------------------------------------------------

ALL = frozenset({"customer", "mechanic", "workshop", "admin"})
CUSTOMER = frozenset({"customer"})
PARTICIPANTS = frozenset({"customer", "mechanic"})
ADMIN = frozenset({"admin"})
MECHANIC = frozenset({"mechanic"})

# What each endpoint says to those who may: there is no such id, or the body is not complete.
GUARDED: list[tuple[str, str, Any, frozenset[str], int]] = [
    ("POST", "/api/auth/refresh", None, ALL, 200),
    ("POST", "/api/auth/logout", None, ALL, 200),
    ("GET", "/api/mechanics/{id}/status", None, CUSTOMER, 404),
    ("POST", "/api/intake/start", {}, CUSTOMER, 400),
    ("POST", "/api/waiver/sign", {}, CUSTOMER, 400),
    ("GET", "/api/checkout/create-session", None, CUSTOMER, 400),
    ("GET", "/api/requests/{id}", None, CUSTOMER, 404),
    ("POST", "/api/requests/{id}/cancel", None, CUSTOMER, 404),
    ("POST", "/api/requests/{id}/widen", None, CUSTOMER, 404),
    ("GET", "/api/sessions/{id}", None, PARTICIPANTS, 404),
    ("POST", "/api/sessions/{id}/join", None, PARTICIPANTS, 404),
    ("POST", "/api/admin/sessions/join", {}, PARTICIPANTS, 400),
    ("POST", "/api/sessions/{id}/end", None, PARTICIPANTS, 404),
    ("GET", "/api/customer/favorites", None, CUSTOMER, 200),
    ("POST", "/api/customer/favorites", {}, CUSTOMER, 400),
    ("DELETE", "/api/customer/favorites/{id}", None, CUSTOMER, 404),
    ("POST", "/api/customer/rebook", {}, CUSTOMER, 400),
    ("GET", "/api/customer/credits", None, CUSTOMER, 200),
    ("POST", "/api/admin/credits", {}, ADMIN, 400),
    ("GET", "/api/mechanic/why-no-offers", None, MECHANIC, 200),
    ("GET", "/api/admin/requests/{id}/explain", None, ADMIN, 404),
    ("GET", "/api/admin/mechanics/{id}/fairness", None, ADMIN, 404),
]
OPEN: list[tuple[str, str, Any, int]] = [
    ("POST", "/api/auth/login", {}, 400),
    ("POST", "/api/customer/signup", {}, 400),
    ("POST", "/api/stripe/webhook", {}, 400),
    ("GET", "/api/workshops/directory", None, 200),
    ("GET", "/healthz", None, 200),
    ("GET", "/readyz", None, 200),
]
ENDPOINTS: list[tuple[str, str]] = [
    *((method, path) for method, path, *_ in GUARDED),
    *((method, path) for method, path, *_ in OPEN),
]
WITH_ID = [(method, path) for method, path in ENDPOINTS if "{id}" in path]


def expected(caller: str, roles: frozenset[str], status: int) -> tuple[int, str | None]:
    """Status and code for this caller, where those in `roles` get `status`."""
    if caller in ("nobody", "garbage", "expired"):
        return 401, "not_authenticated"
    return (status, None) if caller in roles else (403, "forbidden")


@pytest.mark.parametrize(("method", "path", "body", "roles", "status"), GUARDED)
def test_who_may_do_what(
    attacker: Attacker, method: str, path: str, body: Any, roles: frozenset[str], status: int
) -> None:
    answers = {
        caller: attacker.call(method, path.format(id=new_id()), body, caller=caller)
        for caller in CALLERS
    }

    for caller, answer in answers.items():
        wanted, code = expected(caller, roles, status)
        assert answer.status == wanted, (caller, answer)
        assert code is None or answer.code == code, (caller, answer)
    refusals = [answers[caller].body for caller in ("garbage", "expired")]
    assert refusals[0] == refusals[1]


@pytest.mark.parametrize(("method", "path", "body", "status"), OPEN)
def test_what_is_for_anyone_looks_at_no_token(
    attacker: Attacker, method: str, path: str, body: Any, status: int
) -> None:
    answers = [attacker.call(method, path, body, caller=caller) for caller in CALLERS]

    assert {answer.status for answer in answers} == {status}


def test_who_may_not_is_told_so_before_her_body_is_read(attacker: Attacker) -> None:
    for path in ("/api/intake/start", "/api/waiver/sign", "/api/admin/sessions/join"):
        rubbish = attacker.call("POST", path, b"\xff{", caller="workshop")
        endless = attacker.call("POST", path, b"x" * 100_000, caller="nobody")

        assert (rubbish.status, endless.status) == (403, 401)


# --- bodies ---------------------------------------------------------------------------------------

NOWHERE = "no-such-plan"
NOBODY = "nobody@nowhere.example"
# Each is refused whatever one of its fields is.
REFUSED_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "/api/auth/login": ("nobody", {"email": NOBODY, "password": "no such password"}),
    "/api/customer/signup": ("nobody", {"name": "", "email": NOBODY, "password": "short"}),
    "/api/intake/start": (
        "customer",
        {
            "plan": NOWHERE,
            "vehicle": "Volvo 240",
            "concern": "It smokes",
            "urgent": True,
            "is_specialist": False,
            "preferred_mechanic_id": new_id(),
            "routing_type": "hybrid",
            "workshop_id": new_id(),
            "slot_id": new_id(),
            "wait_for_preferred": True,
            "payment_method": "credits",
        },
    ),
    "/api/waiver/sign": ("customer", {"intake_id": new_id(), "name": "Ann", "version": "1"}),
    "/api/admin/sessions/join": ("mechanic", {"session_id": new_id()}),
    "/api/admin/credits": (
        "admin",
        {
            "grant_id": new_id(),
            "customer_id": new_id(),
            "amount_cents": 500,
            "currency": "eur",
            "reason": "sorry",
        },
    ),
    "/api/stripe/webhook": ("nobody", {"id": "evt_1", "type": "charge.refunded", "data": {}}),
}

HOSTILE_TEXT = [
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udc00\ud800",
    "\u2028",
    "\u202e\u2066",
    "\u200b",
    "\x1b[2J\x07",
    "\ufeff",
    "\U0010ffff",
    "e\u0301" * 120,
    "\u212aate@x.example",
    "a@b\r\nbcc: c@d.example",
    "ann@\u0435xample.com",
    "'; DROP TABLE users; --",
    "<script>alert(1)</script>",
    "%00",
    "../../etc/passwd",
    "\r\nset-cookie: a=b",
    "x" * 5000,
    "NaN",
    "{00000000-0000-0000-0000-000000000000}",
    "urn:uuid:00000000-0000-0000-0000-000000000000",
]
hostile_text = st.sampled_from(HOSTILE_TEXT) | st.text(max_size=40)
numbers = (
    st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 2**64, 0, -1])
    | st.floats()
    | st.just(1e308)
)
hostile_value = st.recursive(
    st.none() | st.booleans() | numbers | hostile_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile_text, inner, max_size=4),
    max_leaves=8,
)
# What becomes of a body's text before it is sent.
MANGLINGS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda raw: raw,
    "cut": lambda raw: raw[: len(raw) // 2],
    "with more behind it": lambda raw: raw + b'{"a": 1}',
    "with a byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "as UTF-16": lambda raw: raw.decode(errors="replace").encode("utf-16"),
    "with broken UTF-8": lambda raw: raw.replace(b'"', b'"\xff\xc0\xaf', 1),
    "with half a character": lambda raw: raw[:-1] + b',"\xed\xb0\x80":1}',
    "with a raw zero": lambda raw: raw.replace(b'"', b'"\x00', 1),
    "with an escaped zero": lambda raw: raw.replace(b'": ', b'\\u0000": ', 1),
    "in a list": lambda raw: b"[" + raw + b"]",
    "deep": lambda raw: raw[:-1] + b',"x":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "twice the same keys": lambda raw: raw[:-1] + b"," + raw[1:],
    "with a huge number": lambda raw: raw[:-1] + b',"x":1' + b"0" * 30_000 + b"}",
    "too long": lambda raw: raw + b" " * 65_536,
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a body for it with one field that is hostile, missing or too much."""
    path = draw(st.sampled_from(sorted(REFUSED_BODIES)))
    fields = dict(REFUSED_BODIES[path][1])
    if path == "/api/auth/login":  # of somebody else each time, or the rate limit would answer
        fields["email"] = f"{draw(st.uuids()).hex}@nowhere.example"
    name = draw(st.sampled_from(sorted(fields)) | hostile_text)
    if draw(st.integers(0, 9)) == 0:
        fields.pop(name, None)
    else:
        fields[name] = draw(hostile_value)
    text = json.dumps(fields, ensure_ascii=draw(st.booleans()))
    mangle = MANGLINGS[draw(st.sampled_from(["as it is"] * 8 + sorted(MANGLINGS)))]
    return path, mangle(text.encode(errors="surrogatepass"))


def test_a_waiver_is_signed_with_a_name_that_can_be_seen(attacker: Attacker) -> None:
    fields = REFUSED_BODIES["/api/waiver/sign"][1]
    for name in ("", " ", "\t\n", "\u2003", "\u200b", "Ann\nof", "\u202eAnn", "a\u2028b"):
        answer = attacker.call(
            "POST", "/api/waiver/sign", fields | {"name": name}, caller="customer"
        )

        assert (answer.status, answer.code) == (400, "bad_request"), name


def test_an_address_is_plain_ascii_before_it_is_made_small(attacker: Attacker) -> None:
    kelvin, dotted = "\u212aate@x.example", "\u0130da@x.example"
    for email in (kelvin, dotted, "a@b\r\nc@d.example", "a b@x.example", "@", "a@", "a@@b"):
        body = {"name": "Kate", "email": email, "password": "a good password"}

        answer = attacker.call("POST", "/api/customer/signup", body)

        assert (answer.status, answer.code) == (400, "bad_request"), email


def test_who_hangs_up_in_the_middle_of_a_body_leaves_no_trace(attacker: Attacker) -> None:
    for path, (caller, _) in REFUSED_BODIES.items():
        attacker.hang_up("POST", path, b'{"half":', caller=caller)

    assert attacker.call("GET", "/healthz").status == 200


def chunked(raw: bytes, size: int) -> bytes:
    """The body in chunks, without its length."""
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


CHUNKED = (b"Transfer-Encoding", b"chunked")
CONTENT_TYPES = [
    b"application/json",
    b"text/plain",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x",
    b"application/json; charset=utf-7",
    b"\xff",
    b"",
]


@fuzzed(250)
@given(
    asked=bodies(),
    content_type=st.sampled_from(CONTENT_TYPES),
    chunk_bytes=st.none() | st.integers(1, 3000),
)
def test_no_body_breaks_anything(
    attacker: Attacker, asked: tuple[str, bytes], content_type: bytes, chunk_bytes: int | None
) -> None:
    path, raw = asked
    headers: tuple[tuple[bytes, bytes], ...] = ((b"Content-Type", content_type),)
    if chunk_bytes is not None and len(raw) < 1000 * chunk_bytes:
        raw, headers = chunked(raw, chunk_bytes), (*headers, CHUNKED)

    answer = attacker.call("POST", path, raw, caller=REFUSED_BODIES[path][0], headers=headers)

    assert answer.status in (400, 401, 404, 413, 429), answer


@pytest.mark.parametrize("path", sorted(REFUSED_BODIES))
def test_every_mangled_body_is_refused(attacker: Attacker, path: str) -> None:
    caller, fields = REFUSED_BODIES[path]

    for mangling, mangle in MANGLINGS.items():
        answer = attacker.call("POST", path, mangle(json.dumps(fields).encode()), caller=caller)

        assert answer.status in (400, 401, 404, 413, 429), (mangling, answer)


def test_text_that_no_row_can_hold_is_refused_in_every_field(attacker: Attacker) -> None:
    for path, (caller, fields) in REFUSED_BODIES.items():
        for name in fields:
            answer = attacker.call("POST", path, fields | {name: "a\0b"}, caller=caller)

            assert (answer.status, answer.code) == (400, "bad_request"), (path, name)


@pytest.mark.parametrize("headers", [(), (CHUNKED,)], ids=["with its length", "in chunks"])
def test_ten_megabytes_are_refused(
    attacker: Attacker, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    raw = b'"' + b"x" * 10_000_000 + b'"'
    body = chunked(raw, 60_000) if headers else raw

    for path, (caller, _) in REFUSED_BODIES.items():
        answer = attacker.call("POST", path, body, caller=caller, headers=headers)

        assert (answer.status, answer.code) == (413, "too_large"), path


@fuzzed(25)
@given(name=hostile_text | st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_a_name_that_is_taken_can_be_seen_on_one_line(attacker: Attacker, name: str) -> None:
    email = f"{uuid.uuid4().hex}@fuzz.example"
    body = {"name": name, "email": email, "password": "a good password"}

    answer = attacker.call("POST", "/api/customer/signup", body)

    assert answer.status in (201, 400), answer
    if answer.status == 201:
        assert len(name.strip().splitlines()) == 1
        assert any(unicodedata.category(letter)[0] in "LNPS" for letter in name)
        assert not set(name) & set("\0\x1b\u202a\u202b\u202d\u202e\u2066\u2067\u2068")


# --- queries, paths and ids ---------------------------------------------------------------------

PARAMETERS = [
    *("plan", "workshop_id", "routing_type", "preferred_mechanic_id", "intake_id", "slot_id"),
    *("wait_for_preferred", "x", ""),
]
HOSTILE_PIECES = [
    *(b"%00", b"%FF", b"%", b"%zz", b"%ED%A0%80", b"\xff", b"", b"%0d%0aset-cookie:%20a=b"),
    *(b"no-such-plan", b"hybrid", b"chat10%00", b"true", b"1e999", b"+", b"=", b";", b"#", b"[]"),
    *(b"x" * 5000, new_id().encode(), new_id().upper().encode(), b"00000000-0000-0000"),
]
pieces = st.sampled_from(HOSTILE_PIECES) | st.binary(max_size=12).map(
    lambda raw: b"".join(b"%%%02x" % byte for byte in raw)
)


@fuzzed(150)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(PARAMETERS), pieces), max_size=5),
    accept=st.sampled_from([b"application/json", b"text/html", b"*/*", b"\xff"]),
)
def test_no_query_breaks_anything(
    attacker: Attacker, pairs: list[tuple[str, bytes]], accept: bytes
) -> None:
    query = b"&".join(b"%b=%b" % (name.encode(), value) for name, value in pairs)
    target = b"/api/checkout/create-session?" + query

    answer = attacker.call("GET", target, caller="customer", headers=((b"Accept", accept),))

    assert answer.status in (400, 404), answer
    assert "set-cookie" not in answer.headers


def test_the_same_parameter_twice_and_an_empty_one_are_refused(attacker: Attacker) -> None:
    for query in ("plan=chat10&plan=chat10", "plan=", "plan=%00", "intake_id=", "slot_id="):
        answer = attacker.call("GET", f"/api/checkout/create-session?{query}", caller="customer")

        assert (answer.status, answer.code) == (400, "bad_request"), query


def test_a_query_beyond_all_measure_is_refused(attacker: Attacker) -> None:
    target = "/api/checkout/create-session?plan=" + "x" * 1_000_000

    answer = attacker.call("GET", target, caller="customer")

    assert (answer.status, answer.code) == (431, "too_large")


SPELLINGS: dict[str, Callable[[str], str]] = {
    "braces": "{{{}}}".format,
    "urn": "urn:uuid:{}".format,
    "a blank": "%20{}".format,
    "a zero": "{}%00".format,
    "a slash": "{}%2F".format,
    "one short": lambda text: text[:-1],
    "one long": "{}0".format,
    "hexadecimal": lambda text: "0x" + text.replace("-", "")[2:],
    "other digits": lambda _: "%D9%A3" * 32,
    "letters": lambda _: "g" * 32,
    "a number": lambda _: "17",
    "dots": lambda _: "..",
    "broken UTF-8": lambda _: "%FF%FE",
    "very long": lambda text: text * 500,
}


def test_what_is_no_id_names_nothing(attacker: Attacker) -> None:
    for method, path in WITH_ID:
        caller = "admin" if "/admin/" in path else "customer"
        for spell in SPELLINGS.values():
            target = path.format(id=spell(new_id()))

            answer = attacker.call(method, target, caller=caller)

            assert answer.status == 404, (target, answer)


def test_an_id_may_be_in_capitals_or_without_hyphens(attacker: Attacker) -> None:
    mechanic = attacker.town.people["mechanics"][0]["user_id"]
    for spelled in (mechanic, mechanic.upper(), mechanic.replace("-", "")):
        answer = attacker.call("GET", f"/api/mechanics/{spelled}/status", caller="customer")

        assert (answer.status, answer.json["mechanic_id"]) == (200, mechanic)


@fuzzed(100)
@given(
    tail=st.binary(max_size=30), start=st.sampled_from([b"/nothing", b"/api/", b"/api/requests/"])
)
def test_no_path_breaks_anything(attacker: Attacker, start: bytes, tail: bytes) -> None:
    escaped = b"".join(b"%%%02X" % byte for byte in tail)

    answers = [attacker.call("GET", start + part, caller="customer") for part in (tail, escaped)]

    assert all(answer.status in (400, 404) for answer in answers), answers


def test_a_place_has_one_address_and_nobody_is_sent_elsewhere(attacker: Attacker) -> None:
    for target in ("/healthz/", "//healthz", "/api/auth/login/", "/api//intake/start", "/HEALTHZ"):
        answer = attacker.call("GET", target, headers=((b"X-Forwarded-Host", b"evil.example"),))

        assert answer.status == 404, target
        assert "location" not in answer.headers


# --- methods --------------------------------------------------------------------------------------

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


def test_another_method_is_refused_and_told_which_there_are(attacker: Attacker) -> None:
    for allowed, path in ENDPOINTS:
        taken = {method for method, other in ENDPOINTS if other == path}
        taken |= {"HEAD"} if "GET" in taken else set()
        override = ((b"X-HTTP-Method-Override", allowed.encode()),)
        for method in set(METHODS) - taken:
            target = path.format(id=new_id())
            answer = attacker.call(method, target, caller="customer", headers=override)

            assert answer.status == 405, (method, answer)
            assert set(answer.headers["allow"].split(", ")) == taken
            assert method == "HEAD" or answer.code == "method_not_allowed"


def test_head_says_what_get_says_without_the_body(attacker: Attacker) -> None:
    for path in [path for method, path in ENDPOINTS if method == "GET"]:
        target = path.format(id=new_id())

        head, get = [attacker.call(m, target, caller="customer") for m in ("HEAD", "GET")]

        assert (head.status, head.body) == (get.status, b"")
        assert head.headers["content-length"] == str(len(get.body))


def test_a_proxy_is_not_what_this_is(attacker: Attacker) -> None:
    for target in ("*", "http://evil.example/healthz", "evil.example:443"):
        answers = [attacker.call(method, target) for method in ("OPTIONS", "CONNECT")]

        assert all(answer.status in (400, 404, 405) for answer in answers)


# --- headers --------------------------------------------------------------------------------------


@fuzzed(100)
@given(
    value=st.binary(max_size=40).map(lambda raw: raw.translate(None, b"\r\n\0"))
    | st.sampled_from(
        [
            *(
                b"Bearer",
                b"Bearer ",
                b"bearer x",
                b"Basic eDp5",
                b"Bearer a b",
                b"Bearer \xff.\xff",
            ),
            b"Bearer " + b"x" * 9000,
            b"Bearer " + b"." * 3000,
            b"Bearer W10.W10.W10",
            b"Bearer " + b"W1tb" * 1500 + b".e30.e30",
            b"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.",
        ]
    )
)
def test_no_authorization_breaks_anything(attacker: Attacker, value: bytes) -> None:
    answer = attacker.call("POST", "/api/intake/start", {}, headers=((b"Authorization", value),))

    assert answer.status in (400, 401), answer


def test_two_tokens_are_none(attacker: Attacker) -> None:
    good = attacker.token("customer")
    assert good is not None
    twice = tuple((b"Authorization", b"Bearer " + token) for token in (good.encode(), b"x"))

    answers = [
        attacker.call("POST", "/api/auth/refresh", headers=headers)
        for headers in (twice, twice[::-1])
    ]

    assert [(answer.status, answer.code) for answer in answers] == [(400, "bad_request")] * 2


def test_metrics_are_not_for_those_whom_a_proxy_of_this_machine_forwards(
    attacker: Attacker,
) -> None:
    answer = attacker.call("GET", "/metrics", headers=((b"X-Forwarded-For", b"203.0.113.9"),))

    assert (answer.status, answer.code) == (403, "forbidden")


def test_what_is_sent_comes_back_in_no_header(attacker: Attacker) -> None:
    strange = ((b"Host", b"evil.example"), (b"X-Forwarded-Proto", b"gopher"), (b"Origin", b"null"))

    for method, path in ENDPOINTS:
        told = attacker.call(method, path.format(id=new_id()), headers=strange).headers

        assert "evil" not in str(told)
        assert not {"set-cookie", "server", "x-powered-by", "location"} & told.keys()
        assert not [name for name in told if name.startswith("access-control-")]


# --- Stripe -------------------------------------------------------------------------------------


@fuzzed(60)
@given(signature=st.binary(max_size=60).map(lambda raw: raw.translate(None, b"\r\n\0")))
def test_no_signature_breaks_anything(attacker: Attacker, signature: bytes) -> None:
    headers = ((b"Stripe-Signature", b"t=1,v1=" + signature), (b"Content-Type", b"text/plain"))

    answer = attacker.call("POST", "/api/stripe/webhook", {"id": "evt_1"}, headers=headers)

    assert (answer.status, answer.code) == (400, "bad_request")


CHECKOUT = {
    "id": "cs_1",
    "mode": "payment",
    "livemode": False,
    "payment_status": "paid",
    "amount_total": 100,
    "currency": "eur",
    "payment_intent": "pi_1",
    "metadata": {},
}
SIGNED_RUBBISH: dict[str, dict[str, Any]] = {
    "an event without a name": {"id": None},
    "a zero in the event's name": {"id": "evt\0"},
    "a zero in the type": {"type": "checkout.session.completed\0"},
    "a name that no index takes": {"id": "e" * 100_000},
    "no checkout": {"data": {"object": []}},
    "a checkout in Chinese": {"data": {"object": CHECKOUT | {"id": "\u7ed3"}}},
    "a zero in the currency": {"data": {"object": CHECKOUT | {"currency": "\0"}}},
    "more money than there is": {"data": {"object": CHECKOUT | {"amount_total": 2**31}}},
    "less money than none": {"data": {"object": CHECKOUT | {"amount_total": -1}}},
    "a zero in the payment": {"data": {"object": CHECKOUT | {"payment_intent": "\0"}}},
    "a zero in a refund's payment": {
        "type": "charge.refunded",
        "data": {"object": {"payment_intent": "\0", "refunded": True}},
    },
    "a metadata of numbers": {"data": {"object": CHECKOUT | {"metadata": {"a": 1}}}},
}


def test_even_what_is_signed_must_be_something_that_can_be_kept(attacker: Attacker) -> None:
    event = {"type": "checkout.session.completed", "livemode": False, "created": 1}
    bodies = {
        name: json.dumps(event | {"id": new_id(), "data": {"object": CHECKOUT}} | rubbish).encode()
        for name, rubbish in SIGNED_RUBBISH.items()
    }
    deep = b"[" * 100_000 + b"]" * 100_000
    whole = json.dumps(event | {"id": new_id(), "type": "a", "data": {"object": {"x": 1}}}).encode()
    bodies["deep"] = whole.replace(b'"x": 1', b'"x": ' + deep)

    for name, raw in bodies.items():
        headers = ((b"Stripe-Signature", signature_of(raw)),)
        answer = attacker.call("POST", "/api/stripe/webhook", raw, headers=headers)

        assert (answer.status, answer.code) == (400, "bad_request"), name


def signature_of(raw: bytes) -> bytes:
    """Stripe's, of this moment."""
    now = b"%d" % time.time()
    mac = hmac.new(STRIPE_WEBHOOK_SECRET.encode(), now + b"." + raw, hashlib.sha256)
    return b"t=%b,v1=%b" % (now, mac.hexdigest().encode())
