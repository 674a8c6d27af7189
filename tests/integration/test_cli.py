"""The command line: what it prints, how it exits, and never a traceback for an operator."""

import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from dispatch import embedded
from dispatch.children import free_port
from tests.conftest import Servers, execute
from tests.support import JWT_SECRET, STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(servers: Servers, empty_database_url: str) -> Run:
    """Run a command to its end, on an empty database and with nothing else in the environment."""
    configured = {
        "DATABASE_URL": empty_database_url,
        "REDIS_URL": servers.redis_url,
        "DISPATCH_JWT_SECRET": JWT_SECRET,
        "STRIPE_SECRET_KEY": STRIPE_SECRET_KEY,
        "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
    }

    def command(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dispatch.cli", *map(str, arguments)],
            env={
                "PATH": os.environ["PATH"],
                "HOME": os.environ.get("HOME", "/"),
                "PYTHONPATH": os.pathsep.join(sys.path),
                **configured,
                **environ,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return command


def in_one_line(finished: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one line that says why; it failed with this code and printed nothing else."""
    assert finished.returncode == code, finished.stderr
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    return line


def rows_of(finished: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """A printed table: the first column, and the words of the others."""
    return {line.split()[0]: line.split()[1:] for line in finished.stdout.splitlines()}


def test_migrate_says_what_it_applied(run: Run) -> None:
    first, second = run("migrate"), run("migrate")

    assert first.stdout.splitlines()[0] == "applied schema.sql"
    assert second.stdout == "nothing to apply\n"
    assert (first.returncode, second.returncode) == (0, 0)


def test_everything_wrong_with_the_configuration_is_said_and_exits_with_2(run: Run) -> None:
    finished = run("serve", DISPATCH_PORT="http", DISPATCH_SWEEP_SECONDS="0", REDIS_URL="")

    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "dispatch: DISPATCH_PORT must be a whole number from 0 to 65535",
        "dispatch: DISPATCH_SWEEP_SECONDS must be a number from 0.01 to 3600",
        "dispatch: REDIS_URL is missing: set both DATABASE_URL and REDIS_URL, or neither",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["serve", "--port", "65536"],
        ["serve", "--workers", "0"],
        ["token", "--role", "king", "--sub", uuid.uuid4()],
        ["token", "--role", "admin", "--sub", "somebody"],
        ["explain", "something"],
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: list[object]) -> None:
    finished = run(*arguments)

    assert finished.returncode == 2
    assert "usage: dispatch" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_check_config_shows_every_value_but_no_secret(run: Run) -> None:
    finished = run("check-config", DISPATCH_HEAD_START_SECONDS="0.5")

    rows = rows_of(finished)
    assert finished.returncode == 0
    assert rows["DISPATCH_HEAD_START_SECONDS"] == ["0.5", "environment"]
    assert rows["DISPATCH_WAIT_WINDOW_SECONDS"] == ["1800", "default"]
    assert rows["DISPATCH_JWT_SECRET"] == ["***", "environment"]
    for secret in (JWT_SECRET, STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET):
        assert secret not in finished.stdout


def test_a_fresh_key_for_web_push_is_printed_as_the_environment_takes_it(run: Run) -> None:
    first, second = run("vapid-key"), run("vapid-key")

    name, _, key = first.stdout.splitlines()[0].partition("=")
    assert name == "VAPID_PRIVATE_KEY"
    assert first.stdout.splitlines()[1].startswith("# its public key")
    configured = run("check-config", VAPID_PRIVATE_KEY=key, VAPID_SUBJECT="mailto:o@d.example")
    assert rows_of(configured)[name] == ["***", "environment"]
    assert key not in configured.stdout + second.stdout


def test_an_admin_is_made_once_and_can_have_a_token(run: Run) -> None:
    made = run("create-admin", "--email", "ops@dispatch.example", "--name", "Ops")
    again = run("create-admin", "--email", "ops@dispatch.example")
    printed = dict(line.split(maxsplit=1) for line in made.stdout.splitlines())

    token = run("token", "--role", "admin", "--sub", printed["id"])
    other_role = run("token", "--role", "customer", "--sub", printed["id"])

    assert printed["email"] == "ops@dispatch.example"
    assert len(printed["password"].split()[0]) >= 16
    assert token.stdout.count(".") == 2
    assert in_one_line(again) == "dispatch: this e-mail has an account already"
    assert in_one_line(other_role) == f"dispatch: no customer has the id {printed['id']}"


def test_an_admins_password_from_the_environment_is_not_printed(run: Run) -> None:
    made = run("create-admin", DISPATCH_ADMIN_PASSWORD="correct horse battery staple")

    assert made.returncode == 0
    assert "horse" not in made.stdout + made.stderr


def test_the_living_nodes_are_listed(run: Run, empty_database_url: str) -> None:
    run("migrate")
    living, dead = uuid.uuid4(), uuid.uuid4()
    execute(
        empty_database_url,
        f"""INSERT INTO nodes (node_id, incarnation, pid, host, clients, lag_ms, lease_until) VALUES
            ('{living}', 1, 4242, 'here', 17, 1.5, '2100-01-01T00:00:00Z'),
            ('{dead}', 1, 4243, 'here', 0, 0, '2000-01-01T00:00:00Z')""",
    )

    as_json, as_table = run("nodes", "--json"), run("nodes")

    lease = "2100-01-01T00:00:00.000+00:00"
    assert json.loads(as_json.stdout) == [
        {"node_id": str(living), "pid": 4242, "clients": 17, "lag": 1.5, "lease": lease}
    ]
    assert [line.split() for line in as_table.stdout.splitlines()] == [
        ["node_id", "pid", "clients", "lag", "lease"],
        [str(living), "4242", "17", "1.5", lease],
    ]


def test_the_books_are_proven_and_what_is_wrong_exits_with_1(
    run: Run, empty_database_url: str
) -> None:
    run("migrate")
    right, right_as_json = run("books"), run("books", "--json")
    payment_id = uuid.uuid4()
    execute(
        empty_database_url,
        f"""INSERT INTO payments (id, amount_cents, currency, received_cents, received_currency,
                                  status)
            VALUES ('{payment_id}', 123456, 'eur', 123456, 'eur', 'paid')""",
    )

    wrong, wrong_as_json = run("books"), run("books", "--json")

    assert (right.returncode, right.stdout.splitlines()[-1]) == (0, "everything matches")
    assert json.loads(right_as_json.stdout)["match"] is True
    assert (wrong.returncode, wrong.stderr) == (1, "")
    assert rows_of(wrong)["came"] == ["in", "1,234.56"]
    assert wrong.stdout.splitlines()[-3:] == [
        f"MISMATCH payment is nowhere: {payment_id}  expected earned, in progress, given back or"
        " held  found 123456 of a payment that is paid",
        "MISMATCH sum of what came in: eur  expected 123456  found 0",
        "2 mismatches",
    ]
    assert wrong_as_json.returncode == 1
    told = json.loads(wrong_as_json.stdout)
    assert [each["id"] for each in told["mismatches"]] == [str(payment_id), "eur"]


def test_a_database_that_is_not_migrated_is_said(run: Run) -> None:
    message = "dispatch: the database is not migrated: run `dispatch migrate` first"
    assert in_one_line(run("nodes")) == message


@pytest.mark.parametrize("command", ["serve", "migrate", "seed-demo", "nodes", "create-admin"])
def test_postgres_not_there_is_one_line_without_its_password(run: Run, command: str) -> None:
    port = free_port()

    finished = run(
        command, DATABASE_URL=f"postgresql://u:hunter2@127.0.0.1:{port}/d", DISPATCH_PORT="0"
    )

    line = in_one_line(finished)
    assert line.startswith(f"dispatch: Postgres at 127.0.0.1:{port} cannot be used: ")
    assert "hunter2" not in line


def test_redis_not_there_is_one_line_without_its_password(run: Run) -> None:
    port = free_port()

    finished = run("serve", REDIS_URL=f"redis://:hunter2@127.0.0.1:{port}/0", DISPATCH_PORT="0")

    line = in_one_line(finished)
    assert line.startswith(f"dispatch: Redis at 127.0.0.1:{port}/0 cannot be used: ")
    assert "hunter2" not in line


def test_a_port_in_use_is_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = in_one_line(run("serve", "--port", port))

    assert line == f"dispatch: 127.0.0.1:{port} is in use: choose another --port"


def test_a_host_that_is_not_ours_is_one_line(run: Run) -> None:
    line = in_one_line(run("serve", "--host", "192.0.2.1", "--port", 0))

    assert line.startswith("dispatch: cannot listen on 192.0.2.1:0: ")


def test_serve_refuses_a_database_whose_clock_is_moved(run: Run, empty_database_url: str) -> None:
    name = empty_database_url.rpartition("/")[2]
    execute(empty_database_url, f"ALTER DATABASE {name} SET dispatch.clock_offset = '1 hour'")

    line = in_one_line(run("serve", "--port", 0))

    assert line == (
        "dispatch: the database has dispatch.clock_offset = 1 hour: only tests may move its clock"
    )


def test_commands_work_on_a_folder_of_embedded_servers(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data"

    before = run("check-config", "--embedded", folder, STRIPE_SECRET_KEY="")
    made = run("create-admin", "--embedded", folder)
    again = run("create-admin", "--embedded", folder)
    after = run("check-config", "--embedded", folder, STRIPE_SECRET_KEY="")

    assert made.returncode == 0
    assert in_one_line(again) == "dispatch: this e-mail has an account already"
    assert rows_of(before)["STRIPE_SECRET_KEY"][-1] == "embedded"
    assert rows_of(after)["STRIPE_SECRET_KEY"] == ["***", "embedded"]
    assert not run("check-config").stdout.count("embedded")


def test_a_folder_in_use_is_one_line(run: Run, tmp_path: Path) -> None:
    with embedded.servers(tmp_path / "data"):
        line = in_one_line(run("serve", "--port", 0, "--embedded", tmp_path / "data"))

    assert line.endswith(f"data is in use by process {os.getpid()}: stop it, or choose another")
