"""Requests that nobody thought of, to every endpoint: each answer is one that is described."""

import json

from loadtest.fuzz_http import fuzz
from tests.acceptance.actors import Town, new_id
from tests.acceptance.attacker import Attacker

SECONDS = 20.0


def test_whatever_is_asked_is_answered_as_it_is_described(town: Town) -> None:
    attacker = Attacker(town)
    endpoints = attacker.call("GET", "/openapi.json").json["paths"].values()
    booked = attacker.call("POST", "/api/intake/start", {"plan": "free"}, caller="customer").json
    mechanics = [person["user_id"] for person in town.people["mechanics"]]
    ids = {
        "requests": [booked["request_id"]],
        "sessions": [booked["session_id"]],
        "mechanics": mechanics[:2],
        "favorites": mechanics[2:4],
        "workshops": town.workshop_ids,
    }

    found = fuzz(town.server.url, lambda role: str(attacker.token(role)), seconds=SECONDS, ids=ids)

    assert found.findings == []
    assert len(found.asked) == sum(len(methods) for methods in endpoints)
    assert {200, 400, 404, 409} <= found.statuses.keys()
    assert "Traceback" not in attacker.log()
    assert attacker.call("GET", "/readyz").status == 200


def test_a_description_that_is_not_kept_is_found(town: Town) -> None:
    """The fuzzer itself: of an answer that is not as described it says so."""
    attacker = Attacker(town)
    described = attacker.call("GET", "/openapi.json").json
    health = described["paths"]["/healthz"]["get"]
    health["responses"]["200"]["content"]["application/json"]["schema"] = {"required": [new_id()]}
    only = {**described, "paths": {"/healthz": {"get": health}}}

    found = fuzz(
        town.server.url,
        lambda role: str(attacker.token(role)),
        seconds=0.0,
        ids={},
        document=json.loads(json.dumps(only)),
    )

    assert found.findings
    assert all("GET /healthz" in each for each in found.findings)
