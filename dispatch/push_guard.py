"""Where web push may send: public push services, never this network.

An endpoint is a URL that a client gave us and that we will call. One job: refuse every endpoint
that leads anywhere but to port 443 of a public address over https, when it is saved and again when
it is used. At use the name is looked up once, and the connection goes to the very addresses that
were judged, so that a name which changes its answer gains nothing. Imports `config` and `errors`,
and aiohttp late. It fails with

    EndpointRefused   this endpoint may not be called; the same words for a name that nobody knows
                      and for one of this network, so that nobody can explore it by asking
    Unavailable       names cannot be looked up now

The origins of DISPATCH_PUSH_TRUSTED_ORIGINS are exempt from all of it.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from dispatch.config import bracketed
from dispatch.errors import BadRequest, Unavailable

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.abc import AbstractResolver
    from aiohttp.client_proto import ResponseHandler

LOOK_UP_SECONDS: Final = 5.0
ANSWER_BYTES: Final = 16 * 1024

_PORTS: Final = {"https": 443, "http": 80}

# No userinfo, no fragment, and nothing that two parsers of URLs could read in two ways.
_ENDPOINT: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?][A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?"
)
# At least two labels, of which the last begins with a letter: what begins with a digit may be read
# as an address (https://url.spec.whatwg.org/#ends-in-a-number-checker).
_NAME: Final = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])"
)
_MAX_NAME_CHARS: Final = 253

# https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast. Not `is_global`, whose
# answers differ between patch releases of Python.
_NOT_PUBLIC_V4: Final = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's own services, reachable from inside only
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
# Of IPv6 only what is given out as global unicast, without what is special in it
# (https://www.iana.org/assignments/iana-ipv6-special-registry).
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_NOT_PUBLIC_V6: Final = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
# Where an IPv4 address stands in an IPv6 one, and how many bits follow it.
_EMBEDDING: Final = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
)

# There is no such name; it has no address.
_NOBODY: Final = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))

_THREADS: Final = ThreadPoolExecutor(max_workers=16, thread_name_prefix="push-names")

LookUp = Callable[[str, int], Awaitable[list[str]]]


class EndpointRefused(BadRequest):
    """This endpoint may not be called."""


class Origin(NamedTuple):
    """Whom a URL speaks to; `host` in lower case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """As RFC 6454 writes it: without a port that the scheme means by itself."""
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{bracketed(self.host)}{port}"


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, by the system's resolver; none for a name that does not exist.

    In threads of its own: a name server that is silent holds one of them for longer than we wait,
    and nobody else's look-ups may wait for those of names that clients chose.
    """
    loop = asyncio.get_running_loop()
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            found = await loop.run_in_executor(_THREADS, ask)
    except socket.gaierror as error:
        if error.errno in _NOBODY:
            return []
        raise Unavailable("names cannot be looked up now, try again") from None
    except TimeoutError:
        raise Unavailable("names cannot be looked up now, try again") from None
    return [str(address[0]) for *_, address in found]


class Guard:
    """The rule for one node; `look_up` gives the addresses of a name."""

    def __init__(self, trusted_origins: Iterable[str], look_up: LookUp = look_up) -> None:
        self._trusted = frozenset(_read(origin) for origin in trusted_origins)
        self._trusted_hosts = {(origin.host, origin.port) for origin in self._trusted}
        self._look_up = look_up

    def check_form(self, endpoint: str) -> Origin:
        """Whom the endpoint speaks to, if that may be. Raises `EndpointRefused`.

        An address is judged here; a name is judged by `resolve`.
        """
        if _ENDPOINT.fullmatch(endpoint) is None:
            raise EndpointRefused("endpoint: must be a URL like https://push.example.com/id")
        origin = _read(endpoint)
        if origin in self._trusted:
            return origin
        if origin.scheme != "https" or origin.port != 443:
            raise EndpointRefused("endpoint: must be https on port 443")
        address = _address(origin.host)
        if not (_is_name(origin.host) if address is None else is_public(address)):
            raise _refused()
        return origin

    async def check(self, endpoint: str) -> None:
        """The endpoint may be kept. Raises `EndpointRefused` or `Unavailable`."""
        origin = self.check_form(endpoint)
        if origin not in self._trusted and _address(origin.host) is None:
            await self.resolve(origin.host, origin.port)

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a name, all of which may be called, at least one.

        Raises `EndpointRefused` when one of them may not, or there is none; `Unavailable`.
        """
        found = await self._look_up(host, port)
        trusted = (host, port) in self._trusted_hosts
        if not found or not (trusted or all(is_public(_parsed(text)) for text in found)):
            raise _refused()
        return found

    def connector(self) -> "aiohttp.TCPConnector":
        """Connections of aiohttp that go to what `resolve` found for them, and nowhere else.

        An answer is a status and some headers: who sends more, interim answers without end for
        instance, is hung up on.
        """
        import aiohttp

        connector = aiohttp.TCPConnector(resolver=_resolver(self.resolve), use_dns_cache=False)
        connector._factory = partial(_bounded_protocol(), loop=asyncio.get_running_loop())
        return connector


def _bounded_protocol() -> "type[ResponseHandler]":
    from aiohttp.client_proto import ResponseHandler

    class Bounded(ResponseHandler):
        """aiohttp's protocol, for answers of at most ANSWER_BYTES."""

        taken_bytes = 0

        def set_response_params(self, **parameters: Any) -> None:
            self.taken_bytes = 0
            super().set_response_params(**parameters)

        def data_received(self, data: bytes) -> None:
            self.taken_bytes += len(data)
            if self.taken_bytes <= ANSWER_BYTES:
                super().data_received(data)
            elif self.transport is not None:
                self.transport.abort()

    return Bounded


def _resolver(resolve: LookUp) -> "AbstractResolver":
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Judged(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
                for address in await resolve(host, port)
            ]

        async def close(self) -> None:
            pass

    return Judged()


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address is one of the internet's, whichever way it is written down."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    for network, bits_after in _EMBEDDING:
        if address in network:
            return is_public(IPv4Address(int(address) >> bits_after & 0xFFFF_FFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def _read(url: str) -> Origin:
    """Of a URL that is known to have the right form, or of a configured origin."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # brackets around no address, a port beyond 65535
        raise EndpointRefused("endpoint: must be https on port 443") from None
    assert parts.hostname is not None
    return Origin(parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return _parsed(host)
    except ValueError:
        return None


def _parsed(text: str) -> IPv4Address | IPv6Address:
    address = ipaddress.ip_address(text)
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return IPv6Address(int(address))
    return address


def _is_name(host: str) -> bool:
    return len(host) <= _MAX_NAME_CHARS and _NAME.fullmatch(host) is not None


def _refused() -> EndpointRefused:
    return EndpointRefused("endpoint: its host is not a public one")
