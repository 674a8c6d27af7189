"""`dispatch serve`, as an operator meets it: ready, replaced, stopped, started again."""

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from dispatch import children
from dispatch.embedded import Running
from tests.conftest import StartServer
from tests.live_server import LiveServer
from tests.support import eventually_blocking


def status(url: str) -> int:
    """The status of a GET; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def nodes(server: LiveServer) -> dict[str, Any]:
    """The living nodes by their id."""
    return {node["node_id"]: node for node in json.loads(server.cli("nodes", "--json"))}


def running_in(folder: Path) -> Running:
    return msgspec.json.decode((folder / "embedded.json").read_bytes(), type=Running)


def are_gone(*pids: int) -> bool:
    return not any(children.is_alive(pid) for pid in pids)


def test_a_server_is_ready_when_it_says_so_and_ends_when_told(server: StartServer) -> None:
    running = server()

    assert status(f"{running.url}/healthz") == 200
    assert status(f"{running.url}/readyz") == 200
    assert running.stop() == 0
    assert status(f"{running.url}/healthz") == 0


def test_each_worker_is_a_node_and_a_killed_one_is_replaced_by_a_new_node(
    server: StartServer,
) -> None:
    running = server("--workers", 2)
    eventually_blocking(lambda: len(nodes(running)) == 2)
    killed, survivor = nodes(running).values()
    assert {killed["pid"], survivor["pid"]}.isdisjoint({running.pid})

    os.kill(killed["pid"], signal.SIGKILL)

    eventually_blocking(lambda: len(nodes(running).keys() - {killed["node_id"]}) == 2)
    assert nodes(running)[survivor["node_id"]]["pid"] == survivor["pid"]
    assert status(f"{running.url}/readyz") == 200


def test_a_killed_server_leaves_no_worker(server: StartServer) -> None:
    running = server("--workers", 2)
    eventually_blocking(lambda: len(nodes(running)) == 2)
    pids = [node["pid"] for node in nodes(running).values()]

    running.kill()

    eventually_blocking(lambda: are_gone(*pids))
    assert status(f"{running.url}/healthz") == 0


def test_commands_work_while_an_embedded_server_runs_and_the_data_outlives_it(
    server: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    first = server("--embedded", folder)
    people = json.loads(first.cli("seed-demo"))
    assert len(people["mechanics"]) == 16
    assert first.stop() == 0
    assert not (folder / "embedded.json").exists()

    second = server("--embedded", folder)

    assert json.loads(second.cli("seed-demo")) == people
    admin_id = people["admin"]["user_id"]
    assert second.cli("token", "--role", "admin", "--sub", admin_id).count(".") == 2


def test_a_killed_embedded_server_leaves_nothing_and_starts_again(
    server: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    first = server("--embedded", folder)
    before = running_in(folder)

    first.kill()

    eventually_blocking(lambda: are_gone(before.postgres_pid, before.redis_pid))
    second = server("--embedded", folder)
    assert status(f"{second.url}/readyz") == 200


def test_embedded_servers_that_die_are_started_again_beneath_the_nodes(
    server: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    running = server("--embedded", folder)
    before = running_in(folder)

    os.kill(before.postgres_pid, signal.SIGKILL)
    os.kill(before.redis_pid, signal.SIGKILL)

    eventually_blocking(lambda: running_in(folder).postgres_pid != before.postgres_pid)
    eventually_blocking(lambda: status(f"{running.url}/readyz") == 200)
    eventually_blocking(lambda: len(nodes(running)) == 1)
