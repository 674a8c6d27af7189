"""Who may open a websocket: the HTTP request before it becomes one.

Its one job: read a handshake request, judge it by its path, query, origin and address, and write
the answer. May import `errors` and `protocol` (the subprotocol's name); does no I/O and keeps no
state. A request that is refused raises the `DispatchError` whose status and code are the HTTP
answer.
"""

import ipaddress
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from dispatch.errors import BadRequest, DispatchError, Forbidden, NotFound
from dispatch.protocol import SUBPROTOCOL

# websockets logs whole requests and frames at DEBUG, and tokens are in both: this stays quiet.
websockets_log: Final = logging.getLogger("dispatch.websockets")
websockets_log.setLevel(logging.ERROR)

PATH: Final = "/ws"
# Addresses end up in logs, histories and other people's referrers: a token must not be in one.
_TOKEN_PARAMETERS: Final = frozenset({"token", "access_token", "authorization"})
_ORIGIN: Final = re.compile(
    r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?", re.ASCII | re.IGNORECASE
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}

# With every answer in JSON, of HTTP as well.
JSON_HEADERS: Final = {
    "content-type": "application/json",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}

_NO_HANDSHAKE: Final = "not a websocket handshake"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks for a websocket: the values of the headers that say so, one for each header."""

    origins: list[str]
    forwarded_for: list[str]
    authorizations: list[str]


class Handshake(ServerProtocol):
    """websockets' side of one handshake: no extension is ever agreed on, and one subprotocol."""

    def __init__(self) -> None:
        super().__init__(logger=websockets_log)

    def select_subprotocol(self, subprotocols: Any) -> Subprotocol | None:
        """Ours if it is offered; agreeing on none is no reason to refuse."""
        return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in subprotocols else None

    def read(self, data: bytes) -> Request:
        """The request, of which `data` is the whole. Raises BadRequest."""
        self.receive_data(data)
        events = self.events_received()
        if not events or not isinstance(events[0], Request):
            raise BadRequest(_NO_HANDSHAKE)
        return events[0]

    def switch(self, request: Request) -> bytes:
        """The answer that makes it a websocket. Raises BadRequest if it asks for none."""
        response = self.accept(request)
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            raise BadRequest(_NO_HANDSHAKE)
        self.send_response(response)
        return b"".join(self.data_to_send())


def caller(request: Request) -> Caller:
    """Who asks. Raises NotFound or BadRequest for what may be no websocket, whoever asks for it."""
    path, _, query = request.path.partition("?")
    if path != PATH or request.method != "GET":
        raise NotFound
    names = (name.lower() for name, _ in parse_qsl(query, keep_blank_values=True))
    if not _TOKEN_PARAMETERS.isdisjoint(names):
        raise BadRequest("a token does not belong in the query: send it in the frame hello")
    headers = request.headers
    return Caller(
        origins=headers.get_all("Origin"),
        forwarded_for=headers.get_all("X-Forwarded-For"),
        authorizations=headers.get_all("Authorization"),
    )


def check_origins(origins: Sequence[str], allowed_origins: frozenset[str]) -> None:
    """Raise Forbidden for a browser that may not connect; without an origin it is no browser."""
    for origin in origins:
        if normal_origin(origin) not in _normal_origins(allowed_origins):
            raise Forbidden("this origin may not connect")


def bearer_token(values: Sequence[str]) -> str | None:
    """The token of `Authorization: Bearer …`; None without one, whatever other schemes say.

    `values` are those of all Authorization headers; more than one is BadRequest.
    """
    if len(values) > 1:
        raise BadRequest("more than one Authorization header")
    scheme, _, token = (values[0] if values else "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def normal_origin(origin: str) -> str | None:
    """The one spelling of a web origin (RFC 6454): lower case, no default port.

    None for what is not one: `null`, a path, a user before the host, another scheme.
    """
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        return None
    scheme, host, port = match[1].lower(), match[2].lower(), match[3]
    if port is None or port == _DEFAULT_PORTS[scheme]:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}:{port}"


@lru_cache(maxsize=8)
def _normal_origins(allowed: frozenset[str]) -> frozenset[str]:
    return frozenset(normal for origin in allowed if (normal := normal_origin(origin)) is not None)


def client_address(
    peer: str | None, forwarded_for: Sequence[str], trusted_proxies: frozenset[str]
) -> str:
    """The address of whoever asks; empty if there is none.

    `peer` is the socket's address and `forwarded_for` the values of X-Forwarded-For, which anybody
    can write: from the right, as far as the hops are trusted proxies, it is believed.
    """
    address, _ = _behind_proxies(peer, forwarded_for, trusted_proxies)
    return "" if address is None else str(address)


def limited_address(
    peer: str | None, forwarded_for: Sequence[str], trusted_proxies: frozenset[str]
) -> str | None:
    """The address that the connect rate is counted for; None if it is not limited.

    The arguments are those of `client_address`. A peer on this very machine is not limited, unless
    it is a proxy that says whom it forwards. IPv6 counts by the /64 that one customer of a provider
    gets.
    """
    return _limited_address(peer, tuple(forwarded_for), trusted_proxies)


@lru_cache(maxsize=1024)  # many sockets come from one address, and reading it takes 4 µs
def _limited_address(
    peer: str | None, forwarded_for: tuple[str, ...], trusted_proxies: frozenset[str]
) -> str | None:
    address, forwarded = _behind_proxies(peer, forwarded_for, trusted_proxies)
    if address is None or (address.is_loopback and not forwarded):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _behind_proxies(
    peer: str | None, forwarded_for: Sequence[str], trusted_proxies: frozenset[str]
) -> tuple[Address | None, bool]:
    """The client's address, and whether a trusted proxy said so."""
    address, forwarded = _address(peer or ""), False
    networks = _networks(trusted_proxies)
    hops = [hop for value in forwarded_for for hop in value.split(",")]
    while hops and address is not None and _is_in(address, networks):
        hop = _address(_without_port(hops.pop().strip()))
        if hop is None:
            break
        address, forwarded = hop, True
    return address, forwarded


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _without_port(hop: str) -> str:
    """Some proxies write `1.2.3.4:5678` and `[::1]:5678`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, _, port = hop.rpartition(":")
    return host if port.isdecimal() and host.count(".") == 3 and ":" not in host else hop


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


@lru_cache(maxsize=8)
def _networks(proxies: frozenset[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(proxy, strict=False) for proxy in proxies)


def response(error: DispatchError) -> bytes:
    """The whole HTTP answer to a request that was refused; the connection is closed after it."""
    body = msgspec.json.encode(
        {"ok": False, "error": {"code": error.code, "message": error.message}}
    )
    headers = {**JSON_HEADERS, "content-length": str(len(body)), "connection": "close"}
    head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode("ascii") + body
