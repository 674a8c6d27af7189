"""What the server says of itself: all of it, nothing else, and in the published forms."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
import schemathesis
from msgspec import Struct
from starlette.responses import Response

import dispatch
from dispatch import asyncapi, http
from dispatch.config import Config
from dispatch.endpoints.area import Path as Line
from dispatch.errors import STATUSES, DispatchError
from dispatch.protocol import SENDERS, ClientFrame, CloseCode, ErrorCode, OfferSeen, ServerFrame
from tests.integration.living import LivingNode, living_node

ASYNCAPI_SCHEMA = Path(__file__).parents[1] / "published" / "asyncapi-3.0.0.json"


@pytest.fixture
async def living(config: Config) -> AsyncIterator[LivingNode]:
    async with living_node(config) as living:
        yield living


async def told(living: LivingNode, path: str) -> dict[str, Any]:
    """A document as it is served, to anybody."""
    url = living.ws_url.replace("ws", "http", 1).removesuffix("/ws") + path
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        document: dict[str, Any] = await answer.json(content_type=None)
        return document


def lines(living: LivingNode) -> list[Line]:
    """All that is served."""
    return [line for area in http.areas(living.node) for line in area.paths()]


# --- endpoints ------------------------------------------------------------------------------------


async def test_the_endpoints_are_described_as_openapi_wants_it(living: LivingNode) -> None:
    document = await told(living, "/openapi.json")

    schemathesis.openapi.from_dict(document).validate()
    assert document["openapi"] == "3.1.0"


async def test_every_endpoint_is_described_with_who_may_and_what_may_come(
    living: LivingNode,
) -> None:
    document = await told(living, "/openapi.json")

    described = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    served = {(line.method, line.path): line for line in lines(living)}
    assert described.keys() == served.keys()
    for key, line in served.items():
        operation = described[key]
        assert operation["summary"].endswith("."), key
        assert operation["x-roles"] == sorted(role.value for role in line.roles)
        assert operation["security"] == ([{"bearer": []}] if line.roles else [])
        assert ("requestBody" in operation) is (line.body is not None)
        answers = {int(status) for status in operation["responses"]}
        codes = {STATUSES[code] for code in line.errors}
        assert answers >= {line.status, *line.also, 400, 413, 500, 503, *codes}, key
        assert ({401, 403} <= answers) is (bool(line.roles) or line.path == "/metrics"), key
    assert len({operation["operationId"] for operation in described.values()}) == len(described)


async def test_every_id_of_a_path_is_a_uuid_and_every_list_says_how_long_it_may_be(
    living: LivingNode,
) -> None:
    document = await told(living, "/openapi.json")

    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            given = {each["name"]: each for each in operation["parameters"]}
            for name in re.findall(r"\{(\w+)\}", path):
                schema = {"type": "string"} | ({"format": "uuid"} if name == "id" else {})
                assert given[name] == {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "schema": schema,
                }, (method, path)
            if "limit" in given:
                limit = given["limit"]["schema"]
                begin = given["offset" if "offset" in given else "after"]["schema"]
                assert (limit["minimum"], begin["minimum"]) == (1, 0), path
                assert {"default", "maximum"} <= limit.keys() & begin.keys(), path


async def test_an_endpoint_gives_back_what_its_line_says(living: LivingNode) -> None:
    for line in lines(living):
        returned = line.endpoint.__annotations__["return"]
        kinds = set(returned.__args__ if isinstance(returned, UnionType) else [returned])
        assert {kind or NoneType for kind in kinds} <= {line.answer or NoneType, Response}, line


def test_every_code_that_is_raised_has_its_status_and_can_be_declared() -> None:
    modules = Path(dispatch.__file__).parent.rglob("*.py")
    sources = [path.read_text() for path in modules if path.parent.name != "stripe_standin"]

    passed = {code for source in sources for code in CODE_PASSED.findall(source)}
    assert len(passed) > 15
    assert passed | class_codes(DispatchError) <= STATUSES.keys() | BESIDE_HTTP


# The code of a Conflict, or one that is passed to an error for more than its class says.
CODE_PASSED = re.compile(r'(?:Conflict\(|super\(\)\.__init__\(|\bcode=)\s*"([a-z_]+)"')
# Of the command line, and of what is no error over HTTP.
BESIDE_HTTP = {"not_recorded", "wrong_configuration", "cannot_start", "not_approved"}


def class_codes(kind: type[DispatchError]) -> set[str]:
    """The codes of an error's class and of all below it; a Conflict has none of its own."""
    own = {kind.code} if "code" in vars(kind) else set()
    return own.union(*(class_codes(each) for each in kind.__subclasses__()))


# --- frames ---------------------------------------------------------------------------------------


async def test_the_protocol_is_described_as_asyncapi_wants_it(living: LivingNode) -> None:
    document = await told(living, "/asyncapi.json")

    published = jsonschema_rs.validator_for(json.loads(ASYNCAPI_SCHEMA.read_text()))
    published.validate(document)
    assert not published.is_valid({**document, "channels": {"socket": {"address": 1}}})


async def test_every_frame_is_described_with_who_may_send_it_and_what_answers_it(
    living: LivingNode,
) -> None:
    document = await told(living, "/asyncapi.json")

    operations = document["operations"]
    received = {name: each for name, each in operations.items() if each["action"] == "receive"}
    sent = {name for name, each in operations.items() if each["action"] == "send"}
    assert received.keys() == {asyncapi.tag(kind) for kind in SENDERS}
    assert sent == {asyncapi.tag(kind) for kind in ServerFrame.__subclasses__()}
    assert document["components"]["messages"].keys() == received.keys() | sent
    for kind, roles in SENDERS.items():
        operation = received[asyncapi.tag(kind)]
        assert operation["x-senders"] == sorted(roles)
        reply = operation.get("reply", {"messages": []})["messages"]
        answers = [asyncapi.tag(each) for each in asyncapi.ANSWERS[kind]]
        assert [each["$ref"].rsplit("/", 1)[1] for each in reply] == answers + ["error"] * (
            kind is not OfferSeen
        )
    assert document["x-error-codes"] == list(ErrorCode)
    assert document["x-close-codes"].keys() == {str(code.value) for code in CloseCode}


async def test_every_reference_in_a_document_leads_somewhere(living: LivingNode) -> None:
    for path in ("/openapi.json", "/asyncapi.json"):
        document = await told(living, path)
        for reference in references(document):
            found = document
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
            assert found, reference


def references(part: Any) -> Iterator[str]:
    """Every `$ref` in a document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from references(each)


def test_no_kind_of_frame_is_sent_by_both() -> None:
    ours: set[type[Struct]] = set(ServerFrame.__subclasses__())

    assert ours.isdisjoint(ClientFrame.__subclasses__())
    assert {asyncapi.tag(kind) for kind in ours}.isdisjoint(asyncapi.tag(kind) for kind in SENDERS)
