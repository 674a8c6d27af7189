"""`python -m loadtest.money`: money under faults, judged.

Exit code 0 when every promise held, 1 when not (or when the run could not be made), 2 for wrong
usage. A violation says the seed by which it is performed again: `--only SEED`.
"""

import argparse
import shlex
import sys
from pathlib import Path

import uvloop

from dispatch.errors import DispatchError
from loadtest.money import campaign, payout_scene, real_kills, scene

RESULTS = Path(__file__).parent.parent / "results"
PLAYS = {"permutations": scene.play, "transfers": payout_scene.play}


def main(arguments: list[str] | None = None) -> int:
    """Runs, reports and returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    command = shlex.join(["python", "-m", "loadtest.money", *given])
    found = 0
    try:
        for kind, play in PLAYS.items():
            count = getattr(options, kind)
            if not count:
                continue
            seeds = range(options.seed, options.seed + count)
            workers = options.workers
            if options.only is not None:
                seeds, workers = range(options.only, options.only + 1), 1
            results = campaign.run(play, seeds, workers=workers, command=command)
            found += len(results.violations)
            print(_summary(kind, results))
            if options.only is None:
                print(f"results: {campaign.write(results, options.out, f'money-{kind}')}")
        if options.real_kills:
            results = uvloop.run(real_kills.run(options.real_kills, options.seed, command))
            for violation in results.violations[: campaign.SHOWN]:
                print(f"VIOLATION {violation['rule']}: {violation['detail']}")
            found += len(results.violations)
            print(_summary("real-kills", results))
            print(f"results: {campaign.write(results, options.out, 'money-real-kills')}")
    except (DispatchError, OSError, RuntimeError) as error:
        print(f"loadtest.money: {error}", file=sys.stderr)
        return 1
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.money", description=__doc__)
    parser.add_argument(
        "--permutations", type=int, default=0, metavar="N", help="scenarios of payments"
    )
    parser.add_argument(
        "--transfers", type=int, default=0, metavar="N", help="scenarios of payouts"
    )
    parser.add_argument(
        "--real-kills", type=int, default=0, metavar="N", help="deaths of a real server"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="the first one")
    parser.add_argument("--only", type=int, metavar="SEED", help="perform this one again")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER")
    return parser


def _summary(kind: str, results: campaign.Results) -> str:
    counts = "\n".join(f"  {name:<24}{count:>8}" for name, count in results.counts.items())
    died = sum(results.deaths.values())
    return (
        f"{kind}: {results.counts.get('scenarios', 0)} scenarios in {results.seconds:.0f} s\n"
        f"{counts}\n  {'deaths':<24}{died:>8} at {len(results.deaths)} different steps\n"
        f"{len(results.violations)} violations"
    )


if __name__ == "__main__":
    sys.exit(main())
