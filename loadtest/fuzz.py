"""`python -m loadtest.fuzz --minutes N`: says anything to a server, and judges what it answers.

The server is its own. Half of the time is for HTTP, half for sockets, with other requests and
frames in every run unless `--seed` names one. Exit code 0 when every answer was as described, 1
when not.
"""

import argparse
import asyncio
import contextlib
import random
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import jwt
import uvloop

from loadtest import fuzz_http, fuzz_protocol, local_server
from loadtest.local_server import ServerFailed
from loadtest.people import City

# Nobody is slowed down, and what takes time in a session takes little.
SETTINGS = {
    "DISPATCH_RATE_LOGINS": "0",
    "DISPATCH_RATE_MESSAGES": "0",
    "DISPATCH_RATE_CONNECTS": "0",
    "DISPATCH_HEAD_START_SECONDS": "0.5",
    "DISPATCH_PLAN_MINUTE_SECONDS": "0.5",
    "DISPATCH_WARNING_SECONDS": "1",
}
LATE_EPOCH = 1_000_000  # so that whoever logs out is let in again
TOKEN_SECONDS = 24 * 3600.0


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints what was found and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.fuzz", description="Says anything, and judges the answers."
    )
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N")
    parser.add_argument(
        "--seed", type=int, metavar="S", help="a number that an earlier run printed"
    )
    options = parser.parse_args(arguments)
    chosen = random.randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {chosen}", flush=True)
    try:
        findings = uvloop.run(_run(options.minutes * 60, chosen))
    except ServerFailed as failed:
        print(f"loadtest: {failed}", file=sys.stderr)
        return 1
    return 1 if findings else 0


async def _run(seconds: float, first_seed: int) -> int:
    """How many findings there were."""
    async with _town() as (url, city, token_of, log):
        ids = {
            "mechanics": [person.id for person in city.mechanics[-3:]],
            "workshops": [workshop.id for workshop in city.workshops],
            "favorites": [person.id for person in city.mechanics[:3]],
        }
        asked = await asyncio.to_thread(
            fuzz_http.fuzz, url, token_of, seconds=seconds / 2, ids=ids, first_seed=first_seed
        )
        print("\n".join(fuzz_http.lines(asked)), flush=True)
        said = await asyncio.to_thread(
            fuzz_protocol.fuzz, url, token_of, seconds=seconds / 2, first_seed=first_seed
        )
        print("\n".join(fuzz_protocol.lines(said)), flush=True)
        broke = log.read_text(errors="replace").count("Traceback")
        if broke:
            print(f"{broke} errors that nobody foresaw:\n{log.read_text(errors='replace')}")
    return len(asked.findings) + len(said.findings) + broke


@contextlib.asynccontextmanager
async def _town() -> AsyncIterator[tuple[str, City, Callable[[str], str], Path]]:
    """A server with people in it: its address, they, their tokens by role, and what it logs."""
    secret = secrets.token_urlsafe(48)
    with tempfile.TemporaryDirectory(prefix="dispatch-fuzz-") as place:
        folder, log = Path(place) / "data", Path(place) / "server.log"
        async with local_server.serving(
            folder,
            port=local_server.free_port(),
            workers=1,
            settings={**SETTINGS, "DISPATCH_JWT_SECRET": secret},
            log=log,
        ) as serving:
            city = await local_server.seed(folder, mechanics=16, customers=12)
            people = {
                "customer": city.customers[0].id,
                "mechanic": city.mechanics[0].id,
                "workshop": city.workshops[0].user_id,
                "admin": city.admin.id,
            }
            tokens = {role: _token(secret, str(id_), role) for role, id_ in people.items()}
            yield serving.url, city, tokens.__getitem__, log


def _token(secret: str, user_id: str, role: str) -> str:
    now = time.time()
    claims = {"iss": "dispatch", "aud": "dispatch", "sub": user_id, "role": role}
    times = {"epoch": LATE_EPOCH, "iat": now, "exp": now + TOKEN_SECONDS}
    return jwt.encode(claims | times, secret, algorithm="HS256")


if __name__ == "__main__":
    sys.exit(main())
