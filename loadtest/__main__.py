"""`python -m loadtest`: a load run from the command line, judged and reported.

Exit code 0 when every promise held and every booking is explained, 1 when not (or when the run
could not be made), 2 for wrong usage. Starts its own server unless `--url` names one.
"""

import argparse
import asyncio
import contextlib
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvloop

from loadtest import load, local_server, report
from loadtest.api import Api, ApiError
from loadtest.cases import sort
from loadtest.checker import check
from loadtest.client import Refused
from loadtest.figures import About, Figures, describe_machine, measure
from loadtest.history import History
from loadtest.local_server import ServerFailed
from loadtest.people import City
from loadtest.progress import Progress

CONNECTIONS, HTTP_SECONDS = 200, 30.0
SHOWN_VIOLATIONS = 10
SETTINGS = {
    "DISPATCH_OFFER_RETRY_SECONDS": "1",
    "DISPATCH_HEAD_START_SECONDS": "0.5",
    "DISPATCH_PLAN_MINUTE_SECONDS": "0.2",
    "DISPATCH_WARNING_SECONDS": "1",
    "DISPATCH_REQUEST_TTL_SECONDS": "60",
    "DISPATCH_JOIN_SECONDS": "10",
    "DISPATCH_DRAIN_SECONDS": "5",
    "DISPATCH_RATE_LOGINS": "0",
}
"""Windows shortened, so that a run has fallbacks and ends, and is over in a minute or two."""


def main(arguments: list[str] | None = None) -> int:
    """Runs, reports and returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    if options.url is not None and options.embedded is None and options.people is None:
        _parser().error("--url needs --embedded DIR or --people FILE to know who may log in")
    if options.url is None and options.people is not None:
        _parser().error("--people is for a server of --url")
    if options.kill_worker and options.url is not None and options.embedded is None:
        _parser().error("--kill-worker needs --embedded DIR to find the workers")
    exit_code = 1
    try:
        figures = uvloop.run(_run(options, shlex.join(["python", "-m", "loadtest", *given])))
        exit_code = 1 if figures.violations else 0
    except* (ServerFailed, ApiError, Refused, aiohttp.ClientError, OSError, TimeoutError) as met:
        for fault in met.exceptions:
            print(f"loadtest: {fault}", file=sys.stderr)
    except* KeyboardInterrupt:
        print("loadtest: interrupted", file=sys.stderr)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest", description="Runs many bookings at once and judges them."
    )
    parser.add_argument("--bookings", type=_positive, default=100, metavar="N")
    parser.add_argument("--mechanics", type=_positive, default=200, metavar="N")
    parser.add_argument(
        "--customers", type=_positive, metavar="N", help="at least one a booking (the default)"
    )
    parser.add_argument(
        "--strategy",
        choices=("mix", "priority", "broadcast", "workshop_only", "hybrid"),
        default="priority",
    )
    parser.add_argument("--workers", type=_positive, default=2, metavar="N", help="of our server")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--embedded", type=Path, metavar="DIR", help="that server's folder")
    parser.add_argument("--people", type=Path, metavar="FILE", help="what seed-demo printed")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--window", type=float, default=3.0, metavar="SECONDS", help="priority")
    parser.add_argument("--kill-worker", action="store_true", help="kill -9 one on the way")
    parser.add_argument("--out", type=Path, default=Path("reports"), metavar="FOLDER")
    parser.add_argument("--keep-history", action="store_true", help="write it as JSON lines too")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


class _Target(NamedTuple):
    """A server that runs: where, who may log in, and its folder where that is known."""

    url: str
    city: City
    folder: Path | None


async def _run(options: argparse.Namespace, command: str) -> Figures:
    history = History()
    progress = Progress(history, options.bookings)
    async with contextlib.AsyncExitStack() as stack:
        printing = asyncio.create_task(progress.show(), name="progress")
        stack.push_async_callback(_stop, printing)
        target = await stack.enter_async_context(_target(options))
        pids = []
        if options.kill_worker:
            assert target.folder is not None, "checked with the arguments"
            pids = [node.pid for node in await local_server.nodes(target.folder)]
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=HTTP_SECONDS),
            )
        )
        began, cpu_began = history.now(), time.process_time()
        plan = load.Load(options.bookings, options.strategy, options.seed, pids=pids)
        await load.run(plan, Api(http, target.url), target.city, history, progress)
        seconds, cpu_seconds = history.now() - began, time.process_time() - cpu_began
        proofs = {} if target.folder is None else await _prove(target.folder)
    return _judge(history, options, command, seconds, cpu_seconds, proofs)


async def _prove(folder: Path) -> dict[str, str]:
    """What the server itself says of its decisions and of its money, which must be right."""
    return {
        "replay": await local_server.replay(folder),
        "books": await local_server.books(folder),
    }


@contextlib.asynccontextmanager
async def _target(options: argparse.Namespace) -> AsyncIterator[_Target]:
    """The server that was named, or one of our own in a folder that goes away with it."""
    customers = max(options.customers or 0, options.bookings)
    if options.url is not None:
        if options.people is not None:
            city = City.parse(await asyncio.to_thread(options.people.read_bytes))
        else:
            city = await local_server.seed(
                options.embedded, mechanics=options.mechanics, customers=customers
            )
        yield _Target(options.url, city, options.embedded)
        return
    with tempfile.TemporaryDirectory(prefix="dispatch-load-") as temporary:
        folder = options.embedded or Path(temporary)
        await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        port = local_server.free_port()
        settings = SETTINGS | {"DISPATCH_PRIORITY_WINDOW_SECONDS": f"{options.window:g}"}
        async with local_server.serving(
            folder,
            port=port,
            workers=options.workers,
            settings=settings,
            log=folder / "serve.log",
        ) as server:
            city = await local_server.seed(folder, mechanics=options.mechanics, customers=customers)
            yield _Target(server.url, city, folder)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _judge(
    history: History,
    options: argparse.Namespace,
    command: str,
    seconds: float,
    cpu_seconds: float,
    proofs: dict[str, str],
) -> Figures:
    """Checks, measures, writes the report and prints what came out."""
    cases = sort(history.events)
    violations = check(cases)
    cpu, cores, system = describe_machine()
    now = datetime.now(UTC)
    about = About(
        command=command,
        date=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        cpu=cpu,
        cores=cores,
        system=system,
        seed=options.seed,
        seconds=round(seconds, 1),
        clients_cpu_seconds=round(cpu_seconds, 1),
    )
    figures = measure(cases, violations, about, proofs)
    name = f"load-{now:%Y%m%d-%H%M%S}"
    as_json, as_html = report.write(figures, options.out, name)
    if options.keep_history:
        history.write(options.out / f"{name}.jsonl")
    print(report.summary(figures))
    for violation in violations[:SHOWN_VIOLATIONS]:
        print(f"VIOLATION {violation.rule}: {violation.detail} (request {violation.request_id})")
    print(f"report: {as_html} and {as_json}")
    return figures


if __name__ == "__main__":
    sys.exit(main())
