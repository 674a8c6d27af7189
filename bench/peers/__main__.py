"""`python -m bench.peers`: installs what can be had from npm and pip, beside this file.

What comes from the system's packages is only named. Exit code 1 when something failed.
"""

import shutil
import subprocess
import sys
import venv

from bench.peers.servers import HERE, NCHAN_MODULE, PYTHON

REQUIREMENTS = HERE / "requirements.txt"


def main() -> int:
    """Everything, as far as it goes."""
    done = [_pip(), _npm()]
    if not (shutil.which("nginx") and NCHAN_MODULE.exists()):
        print("nchan: apt install nginx libnginx-mod-nchan")
    if not shutil.which("nats-server"):
        print("NATS: apt install nats-server")
    return 0 if all(done) else 1


def _pip() -> bool:
    """One package at a time: not each has a wheel for each machine."""
    if not PYTHON.exists():
        venv.create(PYTHON.parent.parent, with_pip=True)
    wanted = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    failed = [
        one for one in wanted if not _run("-m", "pip", "install", "-q", one, program=str(PYTHON))
    ]
    return not failed


def _npm() -> bool:
    npm = shutil.which("npm")
    if npm is None:
        print("ws, Socket.IO: install Node 18 or newer with npm")
        return False
    quiet = ("--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")
    return _run("install", *quiet, program=npm)


def _run(*arguments: str, program: str) -> bool:
    done = subprocess.run([program, *arguments], cwd=HERE, check=False)
    if done.returncode:
        print(f"failed: {program} {' '.join(arguments)}", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
