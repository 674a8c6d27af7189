"""What a caller may send: form-encoded bytes into typed requests, or Stripe's error object.

Its one job: read `line_items[0][price_data][currency]=usd&…` as the stripe libraries write it, and
refuse everything that Stripe would refuse on sight. Imports msgspec only. Fails with `ApiError`
(what Stripe would answer) or its subclass `InvalidParams` (refused before anything was done).
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import Struct

Json = dict[str, Any]
Request = TypeVar("Request", bound=Struct)

MAX_FIELDS = 500
MAX_DEPTH = 6
_LISTS = {"line_items", "types"}
_ORIGIN = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?")


class ApiError(Exception):
    """An answer that is an error, in Stripe's shape: `status` and the object under `error`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        named = {"code": code, "message": message, "param": param, "type": kind}
        self.body: Json = {"error": {k: v for k, v in named.items() if v is not None}}


class InvalidParams(ApiError):
    """The parameters themselves are wrong: nothing was tried, nothing is kept for the key."""


def parse_form(raw: bytes) -> Json:
    """Nest `a[b][c]=d` as {"a": {"b": {"c": "d"}}}, and what we know to be lists as lists.

    Raises InvalidParams for bytes that are no UTF-8 form, for too many or too deep fields, and for
    a name that is both a value and a parent.
    """
    try:
        pairs = parse_qsl(
            raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError as error:
        raise InvalidParams("Invalid request: the body is not a valid form.") from error
    nested: Json = {}
    for name, value in pairs:
        _put(nested, name, value)
    for name in _LISTS & nested.keys():
        nested[name] = _as_list(name, nested[name])
    return nested


def _put(nested: Json, name: str, value: str) -> None:
    path = name.replace("]", "").split("[")
    if len(path) == 2 and not path[1]:  # `types[]=a&types[]=b` is `types[0]=a&types[1]=b`
        earlier = nested.get(path[0])
        path[1] = str(len(earlier)) if isinstance(earlier, dict) else "0"
    if len(path) > MAX_DEPTH:
        raise InvalidParams("Invalid request: parameters are nested too deep.", param=path[0])
    node = nested
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise InvalidParams(f"Invalid parameter: {name}", param=name)
    if isinstance(node.get(path[-1]), dict):
        raise InvalidParams(f"Invalid parameter: {name}", param=name)
    node[path[-1]] = value


def _as_list(name: str, node: object) -> list[object]:
    if not isinstance(node, dict) or set(node) != {str(i) for i in range(len(node))}:
        raise InvalidParams("Invalid array", param=name)
    return [node[str(i)] for i in range(len(node))]


def read(nested: Mapping[str, object], kind: type[Request]) -> Request:
    """The typed request, or InvalidParams as Stripe words it, naming the parameter."""
    try:
        return msgspec.convert(nested, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _worded(str(error)) from None


def _worded(message: str) -> InvalidParams:
    """msgspec's message, `What is wrong - at `$.path``, as Stripe's code, message and param."""
    what, _, where = message.partition(" - at ")
    first, *rest = re.findall(r"\w+", where.replace("[...]", "")) or [""]
    inside = first + "".join(f"[{part}]" for part in rest)
    for start, kind, said in (
        ("Object missing required field", "parameter_missing", "Missing required param"),
        ("Object contains unknown field", "parameter_unknown", "Received unknown parameter"),
    ):
        if what.startswith(start):
            field = what.split("`")[1]
            param = f"{inside}[{field}]" if inside else field
            return InvalidParams(f"{said}: {param}", code=kind, param=param)
    code = "parameter_invalid_integer" if "`int`" in what else None
    return InvalidParams(f"Invalid {inside}: {what}", code=code, param=inside)


def origin_of(url: str) -> str | None:
    """`http://host:port` of an absolute web address, or None when it is not one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    plain = url.isprintable() and " " not in url
    if not plain or parts.scheme not in ("http", "https") or not _ORIGIN.fullmatch(parts.netloc):
        return None
    return f"{parts.scheme}://{parts.netloc}"
