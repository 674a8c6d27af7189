"""What comes from outside is decoded or refused; U+0000 is refused however it is spelled."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from dispatch.decoding import Undecodable, convert, decode, parse
from dispatch.protocol import BadFrame, Hello, OfferDecline, UnknownType
from dispatch.protocol import decode as decode_frame

OFFER_ID = "1c2c0f3a-58a0-4b1f-9a6e-0f5b0f2a7f10"


class Note(Struct):
    text: str
    more: object = None


NOTE = msgspec.json.Decoder(Note)


@given(text=st.text())
def test_any_text_without_zero_is_decoded_and_no_other(text: str) -> None:
    for ascii_only in (True, False):
        said = json.dumps({"text": text}, ensure_ascii=ascii_only)
        for data in (said, said.encode()):
            assert parse(data, NOTE).text == text
            if "\0" in text:
                with pytest.raises(Undecodable, match=r"U\+0000"):
                    decode(data, NOTE)
            else:
                assert decode(data, NOTE).text == text


@given(backslashes=st.integers(0, 9), before=st.sampled_from(["", "a", '"', "\n"]))
def test_a_zero_is_told_from_its_name(backslashes: int, before: str) -> None:
    for text in (before + "\\" * backslashes + "u0000", before + "\\" * backslashes + "\0"):
        data = json.dumps({"text": text})
        refused = False
        try:
            decode(data, NOTE)
        except Undecodable:
            refused = True

        assert refused is ("\0" in text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"text": "\xff"}',
        b'{"text": "a", "\xed\xb0\x80": "unknown"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\x00"}',
        b'{"text": NaN}',
        b'{"text": 7}',
        b'{"text": "a"} {',
        b'{"text": "a", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"text": "a", "more": "\\u0000"}',
        b'{"text": "a", "unknown": {"\\u0000": 1}}',
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_does_not_fit_is_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(Undecodable) as refusal:
        decode(data, NOTE)

    assert str(refusal.value)


def test_a_query_is_read_as_its_kinds_and_holds_no_zero() -> None:
    class Query(Struct):
        limit: int
        name: str = ""

    assert convert({"limit": "7", "name": "a"}, Query) == Query(7, "a")
    for query in ({"limit": "x"}, {"limit": "7", "name": "\0"}, {"limit": "7", "x": "\0"}, {}):
        with pytest.raises(Undecodable):
            convert(query, Query)


def test_a_frame_with_a_zero_is_a_bad_frame_that_is_answered_by_its_id() -> None:
    decline = {"type": "offer.decline", "id": "7", "offer_id": OFFER_ID, "reason": "too far"}
    assert isinstance(decode_frame(json.dumps(decline)), OfferDecline)
    assert isinstance(decode_frame('{"type": "hello", "device": "phone"}'), Hello)

    with pytest.raises(BadFrame, match=r"U\+0000") as refusal:
        decode_frame(json.dumps(decline | {"reason": "a\0b"}))
    with pytest.raises(BadFrame):
        decode_frame('{"type": "hello", "device": "\\u0000"}')

    assert refusal.value.re == "7"
    assert not isinstance(refusal.value, UnknownType)
