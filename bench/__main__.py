"""`python -m bench`: what the server costs, as ratios to yardsticks measured around it.

Reads arguments, runs the comparisons, prints tables and writes `results/*.json`. Progress goes to
standard error. Exit code 1, and one line that says why, when a measurement could not be taken.
"""

import argparse
import shlex
import signal
import sys
import time

from bench import accept, audit, echo, fanout, machine, report
from bench.candidates import Candidate, raw, starlette
from bench.dispatch_server import Dispatch
from bench.load import LoadError, build

ECHO_BYTES = 60
STARTED = time.monotonic()


def main() -> int:
    """Runs what the command line asks for."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    machine.raise_descriptor_limit()
    try:
        build()
        if arguments.what in ("fanout", "all"):
            _fanout(arguments, command)
        if arguments.what in ("echo", "all"):
            _echo(arguments, command)
        if arguments.what in ("accept", "all"):
            _accept(arguments, command)
        if arguments.what in ("audit", "all"):
            _audit(arguments, command)
    except LoadError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _fanout(arguments: argparse.Namespace, command: str) -> None:
    rows = []
    offer_bytes = fanout.payload_bytes(Dispatch())
    say(f"an offer of Dispatch has {offer_bytes} bytes")
    for sockets in arguments.sockets:
        table = fanout.compare(
            raw(offer_bytes), _candidates(offer_bytes), sockets, arguments.rounds, say
        )
        print(f"\n{report.fanout_table(table)}\n", flush=True)
        rows += table
    say(f"written: {report.save('fanout', command, rows).name}")


def _echo(arguments: argparse.Namespace, command: str) -> None:
    rows = echo.compare(raw(ECHO_BYTES), _candidates(ECHO_BYTES), arguments.rounds, say)
    print(f"\n{report.echo_table(rows)}\n", flush=True)
    say(f"written: {report.save('echo', command, rows).name}")


def _accept(arguments: argparse.Namespace, command: str) -> None:
    rows = accept.compare(arguments.rounds, say)
    print(f"\n{report.accept_table(rows)}\n", flush=True)
    say(f"written: {report.save('accept', command, rows).name}")


def _audit(arguments: argparse.Namespace, command: str) -> None:
    rows = audit.compare(arguments.sockets, arguments.rounds, say)
    print(f"\n{report.audit_table(rows)}\n", flush=True)
    say(f"written: {report.save('audit', command, rows).name}")


def _candidates(payload_bytes: int) -> list[Candidate]:
    return [
        starlette(payload_bytes, "websockets-sansio"),
        starlette(payload_bytes, "websockets"),
        Dispatch(),
    ]


def say(line: str) -> None:
    """One line of progress."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {line}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what", nargs="?", default="all", choices=["fanout", "echo", "accept", "audit", "all"]
    )
    parser.add_argument(
        "--sockets",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[1000, 10000],
        metavar="N[,N…]",
        help="numbers of idle sockets for the fan-out (default 1000,10000)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many (default 5)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
