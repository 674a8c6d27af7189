"""The page about speed says what the results say."""

import dataclasses
import json
from pathlib import Path

from bench import goals


def test_the_table_of_goals_is_made_from_the_results() -> None:
    page = goals.PAGE.read_text("utf-8")

    assert page == goals.rendered(page), "run python -m bench goals --write"


def test_a_goal_without_a_result_is_said_to_be_not_measured(tmp_path: Path) -> None:
    lines = goals.table(goals.Results(tmp_path)).splitlines()[2:]

    assert len(lines) == len(goals.GOALS)
    assert all("not measured" in line for line in lines)


def test_a_goal_is_reached_or_not_by_its_own_figures(tmp_path: Path) -> None:
    raw = {"name": "raw C loop", "sockets": 10000, "messages": 16, "cost_us": 4.0}
    ours = {"name": "Dispatch", "sockets": 10000, "messages": 16, "cost_us": 1.2}
    results = goals.Results(tmp_path)
    [burst] = [goal for goal in goals.GOALS if goal.name.startswith("G2")]

    def judged(cost_over_raw: float) -> goals.Verdict:
        rows = [raw | {"cost_over_raw": 1.0}, ours | {"cost_over_raw": cost_over_raw}]
        (tmp_path / "burst.json").write_text(json.dumps({"rows": rows}))
        return burst.judge(results)

    assert dataclasses.asdict(judged(0.3)) == {
        "here": "0.30 of raw, 1.20 µs a delivery of 16 to 10,000",
        "raw": "4.00 µs, one after the other",
        "peers": "-",
        "is_reached": True,
    }
    assert judged(0.4).is_reached is False
