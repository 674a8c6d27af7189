"""Origins that only look allowed, and addresses that anybody can claim."""

import pytest

from dispatch.errors import BadRequest
from dispatch.handshake import bearer_token, client_address, limited_address, normal_origin

PROXY = frozenset({"10.0.0.0/8", "127.0.0.1/32"})
NOBODY: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("origin", "normal"),
    [
        ("https://app.example", "https://app.example"),
        ("HTTPS://App.Example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("https://app.example:8443", "https://app.example:8443"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_an_origin_has_one_spelling(origin: str, normal: str) -> None:
    assert normal_origin(origin) == normal


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "*",
        "app.example",
        "file://",
        "ftp://app.example",
        "https://app.example/",
        "https://app.example/path",
        "https://app.example?x",
        "https://user@app.example",
        "https://app.example:password@evil.example",
        "https://app.example\\.evil.example",
        "https://app.example:",
        "https://app.example:port",
        "https://app.example https://evil.example",
        "https://app.example\n",
        "https://\u0430pp.example",  # a Cyrillic letter that looks like an a
        "https://\u212aiosk.example",  # the Kelvin sign, whose lower case is k
    ],
)
def test_what_is_no_web_origin_has_none(origin: str) -> None:
    assert normal_origin(origin) is None


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "trusted", "address"),
    [
        ("198.51.100.7", [], NOBODY, "198.51.100.7"),
        ("::ffff:198.51.100.7", [], NOBODY, "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", [], NOBODY, "2001:db8:1:2::/64"),
        ("127.0.0.1", [], NOBODY, None),
        ("::1", [], NOBODY, None),
        ("", [], NOBODY, None),
        (None, [], NOBODY, None),
        # Only a trusted proxy is believed.
        ("198.51.100.7", ["127.0.0.1"], NOBODY, "198.51.100.7"),
        ("198.51.100.7", ["203.0.113.9"], PROXY, "198.51.100.7"),
        ("127.0.0.1", ["203.0.113.9"], NOBODY, None),
        ("10.0.0.1", ["203.0.113.9"], PROXY, "203.0.113.9"),
        # What the client wrote itself stands to the left of what the proxy added.
        ("10.0.0.1", ["127.0.0.1, 203.0.113.9"], PROXY, "203.0.113.9"),
        ("10.0.0.1", ["192.0.2.1, 203.0.113.9, 10.0.0.2"], PROXY, "203.0.113.9"),
        ("10.0.0.1", ["192.0.2.1", "203.0.113.9", "10.0.0.2"], PROXY, "203.0.113.9"),
        # Loopback is let off only when it is the peer itself.
        ("127.0.0.1", ["203.0.113.9"], PROXY, "203.0.113.9"),
        ("10.0.0.1", ["127.0.0.1"], PROXY, "127.0.0.1"),
        # Spellings of proxies, and nonsense.
        ("10.0.0.1", ["203.0.113.9:4711"], PROXY, "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], PROXY, "2001:db8::/64"),
        ("10.0.0.1", ["2001:db8::1"], PROXY, "2001:db8::/64"),
        ("10.0.0.1", ["unknown"], PROXY, "10.0.0.1"),
        ("10.0.0.1", [""], PROXY, "10.0.0.1"),
    ],
)
def test_the_connect_rate_is_counted_for_whoever_really_connects(
    peer: str | None, forwarded_for: list[str], trusted: frozenset[str], address: str | None
) -> None:
    assert limited_address(peer, forwarded_for, trusted) == address


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "trusted", "address"),
    [
        (None, [], NOBODY, ""),
        ("127.0.0.1", [], NOBODY, "127.0.0.1"),
        ("::ffff:198.51.100.7", [], NOBODY, "198.51.100.7"),
        ("2001:db8::1", [], NOBODY, "2001:db8::1"),
        ("198.51.100.7", ["203.0.113.9"], NOBODY, "198.51.100.7"),
        ("10.0.0.1", ["192.0.2.1, 203.0.113.9:4711"], PROXY, "203.0.113.9"),
        ("10.0.0.1", ["<script>"], PROXY, "10.0.0.1"),
    ],
)
def test_a_client_is_known_by_an_address_that_a_trusted_proxy_vouches_for(
    peer: str | None, forwarded_for: list[str], trusted: frozenset[str], address: str
) -> None:
    assert client_address(peer, forwarded_for, trusted) == address


@pytest.mark.parametrize(
    ("values", "token"),
    [
        ([], None),
        ([""], None),
        (["Basic eDp5"], None),
        (["Bearer a.b.c"], "a.b.c"),
        (["  bearer   a.b.c "], "a.b.c"),
        (["Bearer"], ""),
    ],
)
def test_a_token_is_read_from_one_header(values: list[str], token: str | None) -> None:
    assert bearer_token(values) == token


def test_two_authorizations_are_refused() -> None:
    with pytest.raises(BadRequest):
        bearer_token(["Bearer a", "Bearer a"])
