"""The load test and the demo as somebody runs them: by command, on servers of their own."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec

from loadtest.figures import Figures

LIMIT_SECONDS = 180.0


def run(module: str, *arguments: str) -> tuple[int, str, str]:
    """Runs `python -m module` to its end: exit code, output, complaints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_mix_of_bookings_on_two_workers_keeps_every_promise(tmp_path: Path) -> None:
    exit_code, said, complaints = run(
        "loadtest",
        *("--bookings", "15", "--mechanics", "30", "--strategy", "mix", "--workers", "2"),
        *("--seed", "7", "--window", "1.5", "--out", str(tmp_path)),
    )

    assert exit_code == 0, said + complaints
    (as_json,) = tmp_path.glob("load-*.json")
    figures = msgspec.json.decode(as_json.read_bytes(), type=Figures)
    assert figures.violations == []
    assert figures.counts["bookings"] == figures.counts["paid"] == figures.counts["requests"] == 15
    ended = {"completed", "expired", "cancelled"}
    assert sum(figures.counts[name] for name in ended) == 15
    assert figures.proofs["books"] == "everything matches"
    assert re.match(r"15 of 15 requests are the same", figures.proofs["replay"])
    assert set(figures.outcomes) == {"priority_broadcast", "broadcast", "workshop_only", "hybrid"}
    assert as_json.with_suffix(".html").read_text().startswith("<!doctype html>")


def test_a_worker_killed_on_the_way_breaks_no_promise(tmp_path: Path) -> None:
    exit_code, said, complaints = run(
        "loadtest",
        *("--bookings", "12", "--mechanics", "24", "--workers", "2", "--kill-worker"),
        *("--seed", "3", "--window", "1.5", "--out", str(tmp_path)),
    )

    assert exit_code == 0, said + complaints
    assert "killed with SIGKILL" in said
    assert "books: everything matches" in said
    assert "0 violations" in said


def test_wrong_usage_is_exit_code_2() -> None:
    exit_code, _, complaints = run("loadtest", "--url", "http://127.0.0.1:1")

    assert exit_code == 2
    assert "--embedded DIR or --people FILE" in complaints


def test_the_demo_tells_stories_and_stops_by_itself(tmp_path: Path) -> None:
    arguments = ("--embedded", str(tmp_path), "--seconds", "30", "--no-color", "--seed", "5")

    exit_code, said, complaints = run("loadtest.demo", *arguments)

    assert (exit_code, complaints) == (0, "")
    assert re.search(r"customer +\S.*@", said)
    assert "loadtest.watch --url http://" in said
    assert re.search(r"http://\S+/customer +vera@\S+ +\w+", said)
    assert re.search(r"B01 +\S+ pays \S+ for", said)
    assert "accepts and won" in said or "accept at once" in said
    assert "are connected" in said
    assert said.rstrip().endswith("the servers stop …")
