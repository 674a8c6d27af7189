"""What somebody else wrote, as typed values.

Its one job: decode JSON and queries from outside, or say in one kind of error what does not fit.
Imports nothing of ours, does no I/O and keeps no state.

U+0000 is refused here, wherever it stands and for everybody: JSON can say it and no text of
Postgres can hold it.
"""

import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

T = TypeVar("T")

_ESCAPED_ZERO: Final = "\\u0000"
# Behind an even number of backslashes; behind an odd one it is the text "\u0000" itself.
_REALLY_ESCAPED_ZERO: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_ZERO_REFUSED: Final = "U+0000 cannot be part of a text"


class Undecodable(ValueError):
    """It is not what it should be; the message, which is for its sender, says where."""


def decode(data: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
    """JSON as what the decoder wants, which Postgres can hold. Raises Undecodable."""
    text = _text(data)
    value = parse(text, decoder)
    # It was JSON, so the character can only be escaped in it.
    if _ESCAPED_ZERO in text and _REALLY_ESCAPED_ZERO.search(text):
        raise Undecodable(_ZERO_REFUSED)
    return value


def parse(data: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
    """JSON as what the decoder wants, U+0000 included. Raises Undecodable."""
    try:
        return decoder.decode(_text(data))
    except (msgspec.DecodeError, RecursionError) as error:
        raise Undecodable(str(error) or type(error).__name__) from None


def convert(query: Mapping[str, str], kind: type[T]) -> T:
    """Named texts as a `kind`, numbers and booleans read from them. Raises Undecodable."""
    if any("\0" in value for value in query.values()):
        raise Undecodable(_ZERO_REFUSED)
    try:
        return msgspec.convert(query, kind, strict=False)
    except msgspec.ValidationError as error:
        raise Undecodable(str(error)) from None


def _text(data: bytes | str) -> str:
    """All of it is UTF-8, also where the decoder does not look."""
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Undecodable(str(error)) from None
