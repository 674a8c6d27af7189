"""Where a notification may go: to push services of the internet, and nowhere near ourselves."""

import asyncio
import ipaddress
import socket
import threading

import aiohttp
import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from dispatch.errors import DispatchError, Unavailable
from dispatch.push_guard import EndpointRefused, Guard, LookUp, is_public

PUBLIC = "93.184.216.34"
TRUSTED = ("http://127.0.0.1:9000", "https://push.internal", "http://localhost:9001")


def answering(*answers: list[str]) -> tuple[LookUp, list[tuple[str, int]]]:
    """Gives each answer once, in this order, and the last for ever; and whom it was asked for."""
    asked: list[tuple[str, int]] = []

    async def answer(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers[min(len(asked), len(answers)) - 1]

    return answer, asked


def guard_of(*answers: list[str]) -> Guard:
    return Guard(TRUSTED, answering(*answers)[0])


# --- addresses ------------------------------------------------------------------------------------

NOT_PUBLIC = {
    "this network": ("0.0.0.0", "0.1.2.3", "::"),
    "private": ("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fdff::1"),
    "carrier-grade NAT": ("100.64.0.1", "100.127.255.254"),
    "loopback": ("127.0.0.1", "127.255.255.254", "::1"),
    "link-local": ("169.254.169.254", "fe80::1", "fe80::1%eth0", "febf::1"),
    "site-local": ("fec0::1",),
    "protocols": ("192.0.0.1", "192.0.0.170", "192.88.99.1", "2001::1", "2001:10::1"),
    "documentation": ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"),
    "benchmarks": ("198.18.0.1", "198.19.255.255", "2001:2::1"),
    "multicast": ("224.0.0.1", "239.255.255.255", "ff02::1"),
    "reserved": ("240.0.0.1", "255.255.255.255", "4000::1", "5f00::1", "100::1"),
    "IPv4-mapped": ("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe"),
    "IPv4-compatible": ("::127.0.0.1", f"::{PUBLIC}"),
    "6to4": ("2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::"),
    "NAT64": ("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", f"64:ff9b:1::{PUBLIC}"),
    "Teredo": ("2001:0:5ef5:79fd:0:59d:a0e5:ba1",),
}
PUBLIC_ADDRESSES = (
    PUBLIC,
    "1.1.1.1",
    "100.63.255.255",
    "172.32.0.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00:1450:4001::200e",
    f"::ffff:{PUBLIC}",
    f"64:ff9b::{PUBLIC}",  # what a network without IPv4 gives
    "2002:5db8:d822::1",
)


@pytest.mark.parametrize("address", [address for kind in NOT_PUBLIC.values() for address in kind])
async def test_an_address_of_this_network_is_refused_as_it_is_and_behind_a_name(
    address: str,
) -> None:
    literal = f"[{address}]" if ":" in address else address

    with pytest.raises(EndpointRefused):
        guard_of([PUBLIC]).check_form(f"https://{literal}/x")
    for found in ([address], [PUBLIC, address], [address, PUBLIC]):
        with pytest.raises(EndpointRefused, match="not a public one"):
            await guard_of(found).check("https://push.example/x")


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
async def test_a_public_address_is_taken_as_it_is_and_behind_a_name(address: str) -> None:
    literal = f"[{address}]" if ":" in address else address

    await guard_of([]).check(f"https://{literal}/x")
    await guard_of([address, PUBLIC]).check("https://push.example/x")


@given(st.ip_addresses())
def test_nothing_is_public_that_python_knows_to_be_special(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    special = (
        address.is_loopback,
        address.is_link_local,
        address.is_multicast,
        address.is_unspecified,
        address.is_private and getattr(address, "ipv4_mapped", None) is None,
    )
    translated = address in ipaddress.ip_network("64:ff9b::/96") or (
        address in ipaddress.ip_network("2002::/16")
    )

    assert not (is_public(address) and any(special)) or translated


# --- URLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://fcm.googleapis.com/fcm/send/abc:APA91b-_x",
        "https://updates.push.services.mozilla.com/wpush/v2/gAAAAABl_x-y",
        "https://wns2-par02p.notify.windows.com/w/?token=BQYAAAD%2f%2bx%3d%3d",
        "https://web.push.apple.com/QGuQyavXutnMH9fMdJ2ofd",
        "https://push.example:443/x",
        "https://PUSH.Example/x",
        "https://push.example",
        "https://xn--bcher-kva.example/x",
    ],
)
async def test_the_endpoints_of_push_services_are_taken(endpoint: str) -> None:
    await guard_of([PUBLIC, "2606:4700::1111"]).check(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "push.example",
        "//push.example/x",
        "http://push.example/x",
        "ftp://push.example/x",
        "file:///etc/passwd",
        "HTTPS://push.example/x",
        "https:push.example",
        "https:///x",
        "https://push.example:80/x",
        "https://push.example:8443/x",
        "https://push.example:0/x",
        "https://push.example:/x",
        "https://push.example:00443443/x",
        "https://push.example:65979/x",
        "https://user@push.example/x",
        "https://user:secret@push.example/x",
        "https://push.example@127.0.0.1/x",
        "https://push.example#x",
        "https://push.example/x#y",
        "https://push.example\\@127.0.0.1/x",
        "https://push.example\\x",
        "https://push.example/x y",
        "https://push.example/x\r\nHost: localhost",
        "https://push.example/x\n",
        " https://push.example/x",
        "https://push.example/<script>",
        "https://push.example/\N{SNOWMAN}",
        "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/x",
        "https://push.example\N{FULLWIDTH FULL STOP}com/x",
        "https://push%2eexample/x",
        "https://localhost/x",
        "https://redis/x",
        "https://localhost./x",
        "https://push.example./x",
        "https://.example/x",
        "https://push..example/x",
        "https://-push.example/x",
        "https://push.-example/x",
        f"https://{'a' * 64}.example/x",
        f"https://{'a.' * 130}example/x",
        "https://[::1/x",
        "https://[]/x",
        "https://[::1]a/x",
        "https://[1.2.3.4]/x",
        "https://[fe80::1%25eth0]/x",
        "https://2130706433/x",
        "https://0x7f000001/x",
        "https://0x7f.0.0.1/x",
        "https://017700000001/x",
        "https://0177.0.0.1/x",
        "https://127.1/x",
        "https://127.0.0.1./x",
        "https://127.0.0.01/x",
        "https://1.2.3.256/x",
        "https://1.2.3.4.5/x",
        "http://127.0.0.1:9002/x",
        "https://127.0.0.1:9000/x",
    ],
)
async def test_every_other_url_is_refused_without_looking_a_name_up(endpoint: str) -> None:
    answer, asked = answering([PUBLIC])

    with pytest.raises(EndpointRefused, match=r"^endpoint: "):
        await Guard(TRUSTED, answer).check(endpoint)

    assert asked == []


HOSTS = st.text("abc019.-_[]:xX", min_size=1, max_size=20) | st.sampled_from(
    ("push.example", "1.1.1.1", "[2606:4700::1111]", "[::ffff:1.1.1.1]")
)
TAILS = st.text("/?.:@%&=a1~#\\[] ", max_size=12)


@given(HOSTS, TAILS)
def test_what_the_guard_judged_is_what_aiohttp_calls(host: str, tail: str) -> None:
    endpoint = f"https://{host}{tail}"
    try:
        origin = guard_of([]).check_form(endpoint)
    except EndpointRefused:
        return

    url = yarl.URL(endpoint, encoded=True)
    assert (url.scheme, url.port, url.user) == ("https", 443, None)
    assert url.host is not None
    assert url.host.lower() == origin.host


@pytest.mark.parametrize(
    ("endpoint", "audience"),
    [
        ("https://PUSH.example:443/x?y", "https://push.example"),
        ("https://[2606:4700::1111]/x", "https://[2606:4700::1111]"),
        ("http://127.0.0.1:9000/x", "http://127.0.0.1:9000"),
    ],
)
def test_an_origin_is_written_as_push_services_expect_it(endpoint: str, audience: str) -> None:
    assert guard_of([]).check_form(endpoint).url == audience


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9000/x", "https://push.internal:443/x", "http://LOCALHOST:9001/x?y"],
)
async def test_a_trusted_origin_is_taken_as_it_is(endpoint: str) -> None:
    await guard_of(["127.0.0.1"]).check(endpoint)


# --- names ----------------------------------------------------------------------------------------


async def test_a_name_that_nobody_knows_and_one_of_this_network_get_the_same_answer() -> None:
    refusals = set()
    for found in ([], ["10.0.0.1"], [PUBLIC, "127.0.0.1"]):
        with pytest.raises(EndpointRefused) as refused:
            await guard_of(found).check("https://push.example/x")
        refusals.add(refused.value.message)

    assert refusals == {"endpoint: its host is not a public one"}


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "again"), Unavailable),
        (socket.gaierror(socket.EAI_FAIL, "failed"), Unavailable),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), EndpointRefused),
        (TimeoutError(), Unavailable),
    ],
)
async def test_names_that_cannot_be_looked_up_now_are_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[DispatchError]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("socket.getaddrinfo", fail)

    with pytest.raises(raised):
        await Guard(()).check("https://push.example/x")


async def test_silent_names_of_some_hold_up_no_other_look_ups_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: answer.wait() and [])
    monkeypatch.setattr("dispatch.push_guard.LOOK_UP_SECONDS", 0.05)
    try:
        silent = [Guard(()).check(f"https://silent-{n}.example/x") for n in range(40)]
        refused = await asyncio.gather(*silent, return_exceptions=True)
        others = [asyncio.to_thread(int) for _ in range(4)]  # the pool that everybody shares

        assert await asyncio.gather(*others) == [0, 0, 0, 0]
    finally:
        answer.set()
    assert {type(error) for error in refused} == {Unavailable}


# --- connecting -----------------------------------------------------------------------------------


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """To which addresses aiohttp would have connected; nothing leaves this machine."""
    tried: list[tuple[str, int]] = []

    async def refuse(addr_infos: list[tuple[object, ...]], **options: object) -> socket.socket:
        for *_, address in addr_infos:
            assert isinstance(address, tuple)
            tried.append((address[0], address[1]))
        raise ConnectionRefusedError

    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", refuse)
    return tried


async def call(guard: Guard, endpoint: str) -> Exception:
    async with aiohttp.ClientSession(connector=guard.connector()) as session:
        with pytest.raises((aiohttp.ClientError, DispatchError)) as raised:
            await session.post(endpoint)
    return raised.value


async def test_a_name_that_changes_its_answer_is_refused_before_anything_connects(
    connected: list[tuple[str, int]],
) -> None:
    answer, asked = answering([PUBLIC], ["127.0.0.1"])
    guard = Guard((), answer)
    await guard.check("https://push.example/x")

    error = await call(guard, "https://push.example/x")

    assert isinstance(error, EndpointRefused)
    assert asked == [("push.example", 443)] * 2
    assert connected == []


async def test_a_connection_goes_to_the_addresses_that_were_judged(
    connected: list[tuple[str, int]],
) -> None:
    answer, asked = answering([PUBLIC, "2606:4700::1111"], ["127.0.0.1"])

    error = await call(Guard((), answer), "https://push.example/x")

    assert isinstance(error, aiohttp.ClientConnectorError)
    assert asked == [("push.example", 443)]
    assert set(connected) == {(PUBLIC, 443), ("2606:4700::1111", 443)}


async def test_a_trusted_name_may_be_of_this_network(connected: list[tuple[str, int]]) -> None:
    answer, _ = answering(["127.0.0.1"])

    await call(Guard(TRUSTED, answer), "http://localhost:9001/x")
    refused = await call(Guard(TRUSTED, answer), "http://localhost:9002/x")

    assert connected == [("127.0.0.1", 9001)]
    assert isinstance(refused, EndpointRefused)


async def test_no_proxy_of_the_environment_gets_between(
    connected: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")

    await call(guard_of([PUBLIC]), "https://push.example/x")

    assert connected == [(PUBLIC, 443)]
