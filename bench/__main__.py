"""`python -m bench`: what the server costs, as ratios to yardsticks measured around it.

Runs the benchmarks that are asked for, one after the other, prints a table each and keeps its rows
as `results/NAME.json`. Progress goes to standard error. One that fails, or that cannot be run here,
says so in one line and the others go on; the exit code is 1 then.
"""

import argparse
import importlib
import shlex
import signal
import sys
import time

from bench import goals, machine, report
from bench.load import build
from bench.options import Options

# Each is the module `bench.NAME` with `measure(options, say)`, which gives rows (frozen
# dataclasses), and `COLUMNS`, the headings of its table with how each cell is made of a row.
BENCHMARKS = {
    "fanout": "one offer to N idle sockets (G1, G4)",
    "burst": "many broadcasts in flight to the same sockets (G2)",
    "echo": "a small message to and fro",
    "storm": "everybody connects, and connects again (G5)",
    "lost": "accepts of rounds that somebody else won (G7)",
    "accept": "accepts, all of them winners (G6)",
    "booking": "from the webhook to the offer on a socket (G8)",
    "timers": "a million deadlines (G9)",
    "growth": "one booking against mechanics, bookings and nodes (G10)",
    "start": "until the server is ready (G11)",
    "hold": "how long a broadcast holds the loop (G3)",
    "audit": "what the audit trail of a broadcast costs",
}
STARTED = time.monotonic()


def main() -> int:
    """Runs what the command line asks for."""
    arguments = _arguments()
    if arguments.names == ["goals"]:
        return goals.main(write=arguments.write)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine.raise_descriptor_limit()
    short = arguments.short or not arguments.names
    asked = Options.brief() if short else Options.long()
    options = Options(
        sockets=arguments.sockets or asked.sockets,
        rounds=arguments.rounds or asked.rounds,
        short=short,
        peers=arguments.peers,
    )
    names = list(BENCHMARKS) if arguments.names in ([], ["all"]) else arguments.names
    failed = [name for name in names if not _run(name, options)]
    if failed:
        say(f"without a figure: {', '.join(failed)}")
    return 1 if failed else 0


def _run(name: str, options: Options) -> bool:
    """One benchmark, its table and its file; False, and one line, when it has no figure."""
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    try:
        build()
        module = importlib.import_module(f"bench.{name}")
        rows = module.measure(options, say)
        print(f"\n{report.table(BENCHMARKS[name], rows, module.COLUMNS)}\n", flush=True)
        say(f"{name}: written to {report.save(name, command, rows, short=options.short)}")
        if not options.short:
            goals.refresh()
    except Exception as error:  # whatever it was, the others are still worth measuring
        first = (str(error) or type(error).__name__).splitlines()[0]
        print(f"bench: {name}: {first}", file=sys.stderr, flush=True)
        return False
    return True


def say(line: str) -> None:
    """One line of progress."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {line}", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    listed = "\n".join(f"  {name:8} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Without a name: the short form of all, in less than ten minutes.\n\n"
        f"{listed}\n  goals    the table of goals, from results/*.json; measures nothing",
    )
    parser.add_argument(
        "names",
        nargs="*",
        choices=[*BENCHMARKS, "all", "goals", []],
        metavar="NAME",
        help="the long form of these, or of `all`",
    )
    parser.add_argument(
        "--sockets",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        metavar="N[,N…]",
        help="numbers of connections (default 1000,10000; short 1000)",
    )
    parser.add_argument("--rounds", type=int, help="medians of so many (default 5; short 3)")
    parser.add_argument(
        "--peers",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="TEXT[,TEXT…]",
        help="only these servers of others, by parts of their names, such as `sansio,uWS`",
    )
    parser.add_argument("--short", action="store_true", help="the short form of what is named")
    parser.add_argument("--write", action="store_true", help="goals: into docs/performance.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
