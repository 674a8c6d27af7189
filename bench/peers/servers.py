"""Which servers of other people there are here, as candidates.

One that is not installed is left out, with one line that says how to get it. Each keeps the
contract of `candidates.BareServer`, or has its own `serve`. Imports `candidates` and `load`.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.candidates import (
    BareServer,
    Candidate,
    Post,
    Running,
    message,
    post_at_once,
    starlette,
    started,
)
from bench.load import Dialect, LoadError
from bench.options import Options, Say

HERE = Path(__file__).parent
PYTHON = HERE / ".venv/bin/python"
NODE_MODULES = HERE / "node_modules"
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
INSTALL = "python -m bench.peers"
SUBJECT = "offers"
CONTROL_SECONDS = 30.0


def others(payload_bytes: int, options: Options, say: Say) -> list[Candidate]:
    """All that are installed, or those that are asked for; for a short run only what most people
    would write."""
    sansio = starlette(payload_bytes, "websockets-sansio")
    if options.short and not options.peers:
        return [sansio]
    found = [sansio, starlette(payload_bytes, "websockets"), *_installed(payload_bytes, say)]
    if not options.peers:
        return found
    return [one for one in found if any(part in one.name for part in options.peers)]


def _installed(payload_bytes: int, say: Say) -> Iterator[Candidate]:
    """What does not come with our own dependencies; says what is missing."""
    for name, how in (("websockets", "broadcast()"), ("picows", "uvloop"), ("socketify", "uWS")):
        if _has_python(name):
            yield _python_peer(name, how, payload_bytes)
        else:
            say(f"left out, not installed: {name} ({INSTALL})")
    for name, server in _node_peers(payload_bytes).items():
        if (NODE_MODULES / name).exists() and shutil.which("node"):
            yield server
        else:
            say(f"left out, not installed: {name} (Node 18 or newer, then {INSTALL})")
    if shutil.which("nginx") and NCHAN_MODULE.exists():
        yield Nchan(payload_bytes)
    else:
        say("left out, not installed: nchan (Debian: apt install nginx libnginx-mod-nchan)")
    if shutil.which("nats-server"):
        yield Nats(payload_bytes)
    else:
        say("left out, not installed: NATS (Debian: apt install nats-server)")


def _has_python(package: str) -> bool:
    return any(HERE.glob(f".venv/lib/python*/site-packages/{package}"))


def _python_peer(name: str, how: str, payload_bytes: int) -> BareServer:
    command = (str(PYTHON), "-m", f"bench.peers.{name}_server")
    return BareServer(f"{name}, {how}", command, payload_bytes, apart=name != "socketify")


def _node_peers(payload_bytes: int) -> dict[str, BareServer]:
    """By the name of their package. Socket.IO has its own way of saying hello, and of events."""
    return {
        "ws": BareServer(
            "Node ws, prepared frame", ("node", str(HERE / "ws_server.js")), payload_bytes
        ),
        "socket.io": BareServer(
            "Socket.IO 4",
            ("node", str(HERE / "socketio_server.js")),
            payload_bytes - len('42["offer",]'),
            dialect=Dialect("/socket.io/?EIO=4&transport=websocket", hello="40"),
            ready='40{"sid"',
            ping='42["echo","012345678901234567890123456789012345678901234"]',
        ),
    }


@dataclass(frozen=True)
class Nchan:
    """nginx with the module nchan: one worker, which is the only process. It answers nothing."""

    payload_bytes: int
    name: str = "nginx nchan"

    @contextmanager
    def serve(self, sockets: int) -> Iterator[Running]:
        port = machine.free_port()
        body = message(self.payload_bytes)

        def burst(count: int) -> None:
            post_at_once(port, [Post("/publish", body)] * count)

        with tempfile.TemporaryDirectory(prefix="dispatch-bench-") as name:
            folder = Path(name)
            text = (HERE / "nginx.conf").read_text()
            for word, value in {
                "MODULE": str(NCHAN_MODULE),
                "FOLDER": name,
                "PORT": str(port),
                "CONNECTIONS": str(2 * sockets + 200),  # nchan keeps some of its own
            }.items():
                text = text.replace(f"@{word}@", value)
            (folder / "nginx.conf").write_text(text)
            command = ["nginx", "-p", name, "-c", str(folder / "nginx.conf"), "-e", "stderr"]
            with started(command, port) as process:
                yield Running(process.pid, port, lambda: burst(1), burst, ping="")


@dataclass(frozen=True)
class Nats:
    """nats-server with its websocket port, on one core. It publishes what comes on its own port;
    what it answers is PONG."""

    payload_bytes: int
    name: str = "NATS websocket"

    @contextmanager
    def serve(self, sockets: int) -> Iterator[Running]:
        port, own_port = machine.free_port(), machine.free_port()
        body = message(self.payload_bytes - len(f"MSG {SUBJECT} 1 {self.payload_bytes}\r\n\r\n"))
        publication = f"PUB {SUBJECT} {len(body)}\r\n{body}\r\n".encode()

        def burst(count: int) -> None:
            with socket.create_connection(("127.0.0.1", own_port), CONTROL_SECONDS) as control:
                control.sendall(b'CONNECT {"verbose":false}\r\n' + publication * count)
                control.sendall(b"PING\r\n")
                _wait_for(control, b"PONG")

        hello = f'CONNECT {{"verbose":false}}\r\nSUB {SUBJECT} 1\r\nPING\r\n'
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
            file.write(
                f'listen: "127.0.0.1:{own_port}"\n'
                f'websocket {{ listen: "127.0.0.1:{port}", no_tls: true, compression: false }}\n'
            )
            file.flush()
            command = ["nats-server", "-c", file.name]
            with started(command, port, environment=os.environ | {"GOMAXPROCS": "1"}) as process:
                yield Running(
                    process.pid,
                    port,
                    lambda: burst(1),
                    burst,
                    dialect=Dialect("/", hello, binary=True),
                    ready="PONG",
                    ping="PING\\r\\n",
                )


def _wait_for(control: socket.socket, word: bytes) -> None:
    said = b""
    while word not in said:
        chunk = control.recv(65536)
        if not chunk:
            raise LoadError(f"the server hung up: {said[-200:]!r}")
        said += chunk
