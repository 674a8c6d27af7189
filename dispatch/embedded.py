"""A real Postgres and a real Valkey from wheels, started and stopped by us, with their data in DIR.

Its one job: that one command works on a bare machine. Imports `embedded_servers`, `children` and
`errors`. One process owns a DIR, by a lock that the kernel drops with it; other commands attach to
the running servers. Blocking: it is called before any event loop. Fails with `StartError`, which
says what to mend.

In DIR (only for its owner to read):

    lock             held by the owner while it lives
    kept.json        passwords, secrets and preferred ports: made once
    embedded.json    the owner's and the servers' pids, their URLs: there while they run
    postgres/        the cluster          postgres.log
    valkey/          nothing: presence is only for the living          valkey.log
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from dispatch import children
from dispatch.embedded_servers import (
    COPY_PREFIX,
    START_SECONDS,
    Postgres,
    Valkey,
    find_programs,
)
from dispatch.errors import StartError


class Kept(msgspec.Struct):
    """What is made once per DIR, so that a restart changes neither log-ins nor URLs."""

    postgres_password: str
    redis_password: str
    jwt_secret: str
    stripe_secret_key: str
    stripe_webhook_secret: str
    postgres_port: int = 0
    redis_port: int = 0
    stripe_port: int = 0
    mail_port: int = 0

    @classmethod
    def generate(cls) -> Self:
        return cls(
            postgres_password=secrets.token_urlsafe(24),
            redis_password=secrets.token_urlsafe(24),
            jwt_secret=secrets.token_urlsafe(48),
            stripe_secret_key=f"sk_test_{secrets.token_hex(24)}",
            stripe_webhook_secret=f"whsec_{secrets.token_hex(24)}",
        )

    def values(self) -> dict[str, Any]:
        """As fields of Config, without the servers' URLs."""
        return {
            "jwt_secret": self.jwt_secret,
            "stripe_secret_key": self.stripe_secret_key,
            "stripe_webhook_secrets": (self.stripe_webhook_secret,),
            "stripe_api_base": f"http://127.0.0.1:{self.stripe_port}",
            "smtp_url": f"smtp://127.0.0.1:{self.mail_port}?from=dispatch@localhost",
        }


class Running(msgspec.Struct):
    """Who runs in DIR. The URLs are empty until the servers are ready."""

    pid: int
    postgres_pid: int = 0
    redis_pid: int = 0
    database_url: str = ""
    redis_url: str = ""
    copied_to: str = ""


class Embedded:
    """The servers of one DIR, owned by this process from `start` to `stop`."""

    def __init__(self, folder: Path, lock: int, durable: bool) -> None:
        self._folder = folder
        self._lock = lock
        self._owner_pid = os.getpid()
        self._kept = _read_kept(folder)
        _clear_leftovers(folder)
        self._programs = find_programs()
        self._postgres = Postgres(folder, self._programs, self._kept.postgres_password, durable)
        self._valkey = Valkey(folder, self._programs, self._kept.redis_password)

    @classmethod
    def start(cls, folder: Path, *, durable: bool = True) -> Self:
        """Take the folder, start both servers and wait until they answer.

        `durable=False` switches fsync off, for tests. Raises StartError: the folder is in use, the
        extra is missing, a server does not start; nothing is left running then.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        lock = _take_lock(folder)
        try:
            embedded = cls(folder, lock, durable)
        except BaseException:
            os.close(lock)
            raise
        try:
            embedded._start_servers()
        except BaseException:
            embedded.stop()
            raise
        return embedded

    def _start_servers(self) -> None:
        self._valkey.spawn(children.free_port(self._kept.redis_port))
        self._record(ready=False)
        self._postgres.initialise()
        self._postgres.spawn(children.free_port(self._kept.postgres_port))
        self._record(ready=False)
        self._valkey.await_ready()
        self._postgres.await_ready()
        self._kept.postgres_port = self._postgres.port
        self._kept.redis_port = self._valkey.port
        self._kept.stripe_port = children.free_port(self._kept.stripe_port)
        self._kept.mail_port = children.free_port(self._kept.mail_port)
        _write(self._folder / "kept.json", self._kept)
        self._record(ready=True)

    @property
    def values(self) -> dict[str, Any]:
        """Everything generated and started here, as fields of Config."""
        return {
            "database_url": self._postgres.url,
            "redis_url": self._valkey.url,
            **self._kept.values(),
        }

    @property
    def stripe_port(self) -> int:
        """Where the stand-in for Stripe is to listen: free at our start, the same every time."""
        return self._kept.stripe_port

    @property
    def mail_port(self) -> int:
        """The same of the mail server that keeps mails."""
        return self._kept.mail_port

    def revive(self) -> list[str]:
        """Start again, on its port, each server that has died; the names of those started.

        Raises StartError when one does not come up; the next call tries again.
        """
        dead = [server for server in (self._postgres, self._valkey) if not server.is_running()]
        for server in dead:
            server.spawn(server.port)
            server.await_ready()
            self._record(ready=True)
        return [server.name for server in dead]

    def stop(self) -> None:
        """Stop both cleanly, within bounds, and free the folder. Only the owner's call counts."""
        if os.getpid() != self._owner_pid:
            return
        (self._folder / "embedded.json").unlink(missing_ok=True)
        self._valkey.end()
        self._postgres.end()
        if self._programs.copied_to is not None:
            shutil.rmtree(self._programs.copied_to, ignore_errors=True)
        os.close(self._lock)

    def leave_to_parent(self) -> None:
        """In a forked child: let go of the lock, which is the parent's."""
        os.close(self._lock)

    def _record(self, *, ready: bool) -> None:
        running = Running(
            pid=self._owner_pid,
            postgres_pid=self._postgres.pid,
            redis_pid=self._valkey.pid,
            database_url=self._postgres.url if ready else "",
            redis_url=self._valkey.url if ready else "",
            copied_to=str(self._programs.copied_to or ""),
        )
        _write(self._folder / "embedded.json", running)


def attach(folder: Path) -> dict[str, Any] | None:
    """What the servers running in `folder` offer, as fields of Config; None when none run there.

    Waits (bounded) for an owner that is just starting or stopping.
    """
    folder = folder.resolve()
    found: list[dict[str, Any]] = []

    def is_settled() -> bool:
        if not _is_locked(folder):
            return True
        running = _read_running(folder)
        if running is None or not running.database_url:
            return False
        urls = {"database_url": running.database_url, "redis_url": running.redis_url}
        found.append({**urls, **_read_kept(folder).values()})
        return True

    if not children.wait_until(is_settled, START_SECONDS):
        raise StartError(f"{folder} is locked, and its servers do not come up")
    return found[-1] if found else None


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[dict[str, Any]]:
    """The fields of Config for the servers of `folder`: attached to, or started for the while."""
    values = attach(folder)
    if values is not None:
        yield values
        return
    embedded = Embedded.start(folder)
    try:
        yield embedded.values
    finally:
        embedded.stop()


def kept_values(folder: Path) -> dict[str, Any]:
    """The generated secrets of `folder` as fields of Config; empty before its first start."""
    return _read_kept(folder).values() if (folder / "kept.json").exists() else {}


def _take_lock(folder: Path) -> int:
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        running = _read_running(folder)
        owner = f"process {running.pid}" if running else "another process"
        raise StartError(f"{folder} is in use by {owner}: stop it, or choose another") from None
    return lock


def _is_locked(folder: Path) -> bool:
    try:
        lock = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who only look do not see each other.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _read_kept(folder: Path) -> Kept:
    path = folder / "kept.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        if (folder / "postgres").exists():
            raise StartError(f"{path} is missing, and with it the password of the data") from None
    except msgspec.DecodeError as error:
        raise StartError(f"{path} cannot be read: {error}") from None
    kept = Kept.generate()
    _write(path, kept)
    return kept


def _read_running(folder: Path) -> Running | None:
    try:
        return msgspec.json.decode((folder / "embedded.json").read_bytes(), type=Running)
    except (OSError, msgspec.DecodeError):
        return None


def _write(path: Path, content: msgspec.Struct) -> None:
    """Replace the file in one step, readable only by us, and on the disk when this returns."""
    unfinished = path.with_suffix(".new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content)))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _clear_leftovers(folder: Path) -> None:
    """End what a killed owner left running here. We hold the lock: nobody else may run here."""
    running = _read_running(folder)
    with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
        pid = int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        if children.works_in(pid, folder / "postgres"):
            children.end_stranger(pid, *Postgres.end_steps)
    if running is None:
        return
    if children.works_in(running.redis_pid, folder / "valkey"):
        children.end_stranger(running.redis_pid, *Valkey.end_steps)
    copy = Path(running.copied_to)
    if copy.name.startswith(COPY_PREFIX) and copy.is_dir() and copy.stat().st_uid == os.getuid():
        shutil.rmtree(copy, ignore_errors=True)
    (folder / "embedded.json").unlink(missing_ok=True)
