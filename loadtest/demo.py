"""`make run`: a small city that lives, told line by line, until Ctrl-C.

Starts everything embedded, seeds the city, prints where to look and how to log in, and then lets
simulated mechanics and customers work through the server as real ones would. Exit code 0 when it
was stopped, 1 with one line when the server cannot run.
"""

import argparse
import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path

import aiohttp
import uvloop

from loadtest import local_server
from loadtest.api import Api, ApiError
from loadtest.city_life import CityLife
from loadtest.client import Refused
from loadtest.history import History
from loadtest.local_server import ServerFailed
from loadtest.narrator import Narrator
from loadtest.people import City, Member
from loadtest.tale import Line, Mood
from loadtest.visitors import settle

PORT = 8000
TELL_SECONDS = 0.1
SETTINGS = {
    "DISPATCH_PRIORITY_WINDOW_SECONDS": "12",
    "DISPATCH_WAIT_WINDOW_SECONDS": "30",
    "DISPATCH_HEAD_START_SECONDS": "3",
    "DISPATCH_OFFER_RETRY_SECONDS": "4",
    "DISPATCH_PLAN_MINUTE_SECONDS": "1",
    "DISPATCH_WARNING_SECONDS": "3",
    "DISPATCH_REQUEST_TTL_SECONDS": "60",
    "DISPATCH_JOIN_SECONDS": "15",
    "DISPATCH_DRAIN_SECONDS": "2",
    "DISPATCH_RATE_LOGINS": "0",
}
"""Windows and plan minutes shortened, so that fallbacks and ends happen while one watches."""

_COLOURS = (39, 208, 76, 170, 220, 44, 203, 111, 148, 213, 180, 81)
_MOODS = {Mood.PLAIN: "", Mood.DIM: "2", Mood.GOOD: "32", Mood.TURN: "33", Mood.BAD: "31"}


def main(arguments: list[str] | None = None) -> int:
    """Runs until SIGINT, SIGTERM or `--seconds` and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.demo", description=__doc__)
    parser.add_argument("--seconds", type=float, help="stop by itself after so long")
    parser.add_argument("--no-color", action="store_true")
    parser.add_argument("--embedded", type=Path, default=Path(".data"), metavar="DIR")
    parser.add_argument("--port", type=int, default=PORT, help="another if it is taken")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument("--seed", type=int, default=None, metavar="S")
    options = parser.parse_args(arguments)
    exit_code = 0
    try:
        uvloop.run(_run(options))
    except* (ServerFailed, ApiError, Refused, aiohttp.ClientError, OSError, TimeoutError) as met:
        for fault in met.exceptions:
            print(f"demo: {fault}", file=sys.stderr)
        exit_code = 1
    return exit_code


async def _run(options: argparse.Namespace) -> None:
    """Everything in one task that the first signal, or the time limit, cancels."""
    living = asyncio.create_task(_live(options), name="demo")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, living.cancel)
    if options.seconds is not None:
        loop.call_later(options.seconds, living.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await living


async def _live(options: argparse.Namespace) -> None:
    folder: Path = options.embedded
    await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
    port = local_server.free_port(options.port)
    if port != options.port:
        print(f"port {options.port} is taken, so this is on {port}")
    print("starting Postgres, Valkey, the stand-in for Stripe and the server …", flush=True)
    async with contextlib.AsyncExitStack() as stack:
        log = folder / "serve.log"
        server = await stack.enter_async_context(
            local_server.serving(
                folder, port=port, workers=options.workers, settings=SETTINGS, log=log
            )
        )
        city = await local_server.seed(folder, mechanics=None, customers=None)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        api = Api(http, server.url)
        visitors = await settle(api, city)
        print(_introduction(server.url, city, visitors, folder), flush=True)
        history = History(keeps=False)
        narrator = Narrator(city.workshop_names())
        history.listeners.append(narrator.take)
        life = CityLife(api, city, history, narrator.say, options.seed)
        living = asyncio.create_task(life.run(), name="city")
        stack.push_async_callback(_stop, living)
        stack.enter_context(_saying_goodbye())
        await stack.enter_async_context(_telling(narrator, history, in_colour=_colour(options)))
        await asyncio.wait({living, server.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not living.done():
            raise ServerFailed(f"the server ended by itself: see {log}")
        living.result()


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def _telling(narrator: Narrator, history: History, *, in_colour: bool) -> AsyncIterator[None]:
    """Prints what the narrator has to say, as long as the block runs."""

    async def tell() -> None:
        while True:
            for line in narrator.lines(history.now()):
                print(_painted(line, in_colour=in_colour), flush=True)
            await asyncio.sleep(TELL_SECONDS)

    telling = asyncio.create_task(tell(), name="narrator")
    try:
        yield
    finally:
        await _stop(telling)


@contextlib.contextmanager
def _saying_goodbye() -> Iterator[None]:
    try:
        yield
    finally:
        print("stopping: everybody goes home, the servers stop …", flush=True)


def _colour(options: argparse.Namespace) -> bool:
    return sys.stdout.isatty() and not options.no_color


def _painted(line: Line, *, in_colour: bool) -> str:
    time = f"{datetime.now():%H:%M:%S}"  # noqa: DTZ005 - the watcher's own clock
    tag = f"{line.tag:<5}"
    if not in_colour:
        return f"{time}  {tag} {line.text}"
    number = int("".join(filter(str.isdigit, line.tag)) or 0)
    tag_colour = f"1;38;5;{_COLOURS[number % len(_COLOURS)]}" if line.tag else "2"
    return f"{_paint(time, '2')}  {_paint(tag, tag_colour)} {_paint(line.text, _MOODS[line.mood])}"


def _paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _introduction(url: str, city: City, visitors: tuple[Member, Member], folder: Path) -> str:
    """Where to look, who may log in, and how to watch a request."""
    customer, mechanic, admin = city.customers[0], city.mechanics[0], city.admin
    python = _python()
    watch = f"{python} -m loadtest.watch --url {url}"
    width = max(len(member.email) for member in (customer, mechanic, admin))
    rows = [
        f"  {role:<9} {member.name:<22} {member.email:<{width}}  {member.password}"
        for role, member in (("customer", customer), ("mechanic", mechanic), ("admin", admin))
    ]
    pages = zip(("customer", "mechanic", "ops"), (*visitors, admin), strict=True)
    return "\n".join(
        [
            "",
            f"  {url}   (health {url}/healthz, metrics {url}/metrics)",
            "",
            "  In a browser, each in a window of its own; a plan's minute is a second here:",
            *[f"    {url}/{page:<9} {who.email:<{width}}  {who.password}" for page, who in pages],
            "  Book your favourite, a diagnosis, and be the mechanic who accepts it.",
            "",
            "  Some of those who live here:",
            *rows,
            f"  everybody else: {python} -m dispatch.cli seed-demo --embedded {folder}",
            "",
            "  Watch a customer's requests, or a mechanic's offers, in another terminal:",
            *[
                f"    {watch} --email {member.email} --password {shlex.quote(member.password)}"
                for member in (customer, mechanic)
            ],
            "  (or any websocket client at "
            f"ws{url.removeprefix('http')}/ws, first frame: "
            '{"type":"hello","token":"…"} with the token of POST /api/auth/login)',
            "",
            "  Where every cent is:",
            f"    {python} -m dispatch.cli books --embedded {folder}",
            "",
            "  Ctrl-C stops everything. The city goes on where it was when started again.",
            "",
        ]
    )


def _python() -> str:
    """This interpreter, as somebody in this folder would type it."""
    python = Path(sys.executable)
    here = Path.cwd()
    return str(python.relative_to(here) if python.is_relative_to(here) else python)


if __name__ == "__main__":
    sys.exit(main())
