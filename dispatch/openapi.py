"""The description of all endpoints, as OpenAPI 3.1.

One job: tell what the tables of the areas say, with the very types that parse and answer; nothing
is described here that is not declared there. Pure; imports `endpoints.area`, `exchange` and
`errors`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Final, NamedTuple, Self

import msgspec

from dispatch.endpoints.area import Area, Path
from dispatch.errors import STATUSES
from dispatch.exchange import JSON

Schema = dict[str, Any]

_PREFIX: Final = "#/components/schemas/"
_NAMES_IN_PATH: Final = re.compile(r"{(\w+)}")

# What any request may be answered: it never came whole, was too large, or we could not.
_ALWAYS: Final = ("bad_request", "too_slow", "too_large", "internal", "unavailable_now")
_TITLE: Final = "Dispatch"
_ABOUT: Final = (
    "Paid jobs offered to the right mechanics over websockets; the first accept wins. Every answer "
    "of success has `ok: true`, every error is `{ok: false, error: {code, message}}`, some with "
    "more beside `error`. An unknown id and somebody else's get the same 404. What happens live "
    "comes over the websocket, which /asyncapi.json describes."
)


class _Types(NamedTuple):
    """The schemas of all types that a path declares: how each is named, and what is behind it."""

    refs: dict[type, Schema]
    components: dict[str, Schema]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Self:
        declared = ((path.body, path.query, path.answer) for path in paths)
        kinds = list(dict.fromkeys(kind for line in declared for kind in line if kind))
        kinds = [kind for kind in kinds if kind is not bytes]
        refs, components = msgspec.json.schema_components(kinds, ref_template=_PREFIX + "{name}")
        return cls(dict(zip(kinds, refs, strict=True)), components)

    def shape(self, kind: type) -> Schema:
        """The schema of a struct, with its fields."""
        return self.components[self.refs[kind]["$ref"].removeprefix(_PREFIX)]


def document(areas: Sequence[Area]) -> Schema:
    """The whole description of these areas' endpoints."""
    lines = [(type(area).__name__, path) for area in areas for path in area.paths()]
    types = _Types.of(path for _, path in lines)
    paths: defaultdict[str, Schema] = defaultdict(dict)
    answers: dict[str, Schema] = {}
    for tag, path in lines:
        paths[path.path][path.method.lower()] = _operation(tag, path, types, answers)
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": version("dispatch"), "description": _ABOUT},
        "tags": [{"name": type(area).__name__, "description": area.__doc__} for area in areas],
        "paths": paths,
        "components": {
            "schemas": types.components,
            "responses": dict(sorted(answers.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def _operation(tag: str, path: Path, types: _Types, answers: dict[str, Schema]) -> Schema:
    told: Schema = {
        "operationId": f"{tag}.{path.endpoint.__name__}",
        "tags": [tag],
        "summary": path.summary,
        "security": [{"bearer": []}] if path.roles else [],
        "x-roles": sorted(path.roles),
        "parameters": _parameters(path, types),
        "responses": _successes(path, types) | _errors(path, answers),
    }
    if path.body is not None:
        told["requestBody"] = _request_body(path, types)
    return told


# --- what is sent ---------------------------------------------------------------------------------


def _parameters(path: Path, types: _Types) -> list[Schema]:
    found: list[Schema] = []
    for name in _NAMES_IN_PATH.findall(path.path):
        schema = {"type": "string", "format": "uuid"} if name == "id" else {"type": "string"}
        found.append({"name": name, "in": "path", "required": True, "schema": schema})
    for name in path.headers:
        text = {"type": "string"}
        found.append({"name": name, "in": "header", "required": True, "schema": text})
    if path.query is not None:
        shape = types.shape(path.query)
        found += [
            {
                "name": name,
                "in": "query",
                "required": name in shape["required"],
                "schema": _given(schema),
            }
            for name, schema in shape["properties"].items()
        ]
    return found


def _given(schema: Schema) -> Schema:
    """The same for a query, where what is left out is null and nothing else can be."""
    if "anyOf" not in schema:
        return schema
    kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _request_body(path: Path, types: _Types) -> Schema:
    assert path.body is not None
    if path.body is bytes:
        limit = f"Taken as it comes: at most {path.body_bytes} bytes."
        return {"required": True, "description": limit, "content": {JSON: {"schema": {}}}}
    content = {JSON: {"schema": types.refs[path.body]}}
    return {"required": not path.body_optional, "content": content}


# --- what is answered -----------------------------------------------------------------------------


def _successes(path: Path, types: _Types) -> Schema:
    if path.media != JSON:
        kind = "object" if path.media.endswith("json") else "string"
        content = {path.media: {"schema": {"type": kind}}}
        told = {str(path.status): {"description": path.summary, "content": content}}
        return told | {str(status): {"description": path.summary} for status in path.also}
    content = {JSON: {"schema": _success(path, types)}}
    answer = {"description": path.summary, "content": content}
    elsewhere = {
        "description": path.summary,
        "headers": {"location": {"schema": {"type": "string"}}},
    }
    return {
        str(status): elsewhere if 300 <= status < 400 else answer
        for status in (path.status, *path.also)
    }


def _success(path: Path, types: _Types) -> Schema:
    """`ok`, and beside it the fields of the answer; the type of a frame is none of them."""
    ok: Schema = {"type": "object", "properties": {"ok": {"const": True}}, "required": ["ok"]}
    if path.answer is None:
        return ok
    tag = path.answer.__struct_config__.tag_field
    if tag is None:
        return {"allOf": [ok, types.refs[path.answer]]}
    shape = types.shape(path.answer)
    fields = {name: field for name, field in shape["properties"].items() if name != tag}
    required = [name for name in shape["required"] if name != tag]
    return {"allOf": [ok, {"type": "object", "properties": fields, "required": required}]}


def _errors(path: Path, answers: dict[str, Schema]) -> Schema:
    """By status, the codes that this path may answer."""
    codes = {*_ALWAYS, *path.errors}
    if path.roles:
        codes |= {"not_authenticated", "forbidden"}
    if _NAMES_IN_PATH.search(path.path):
        codes.add("not_found")
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in sorted(codes):
        by_status[STATUSES[code]].append(code)
    by_status[431] = ["too_large"]  # the head; 413 is the body
    return {
        str(status): {"$ref": f"#/components/responses/{_error(names, answers)}"}
        for status, names in sorted(by_status.items())
    }


def _error(codes: list[str], answers: dict[str, Schema]) -> str:
    """The name of the answer with one of these codes, which is described once."""
    name = ".".join(codes)
    error = {
        "type": "object",
        "properties": {"code": {"enum": codes}, "message": {"type": "string"}},
        "required": ["code", "message"],
    }
    schema = {
        "type": "object",
        "properties": {"ok": {"const": False}, "error": error},
        "required": ["ok", "error"],
    }
    answers[name] = {
        "description": " or ".join(codes).replace("_", " "),
        "content": {JSON: {"schema": schema}},
    }
    return name
