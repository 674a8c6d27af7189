"""The table of goals: what is wanted, what `results/*.json` say, and whether it is reached.

    python -m bench goals            prints it
    python -m bench goals --write    puts it into docs/performance.md, as each long run does

Measures nothing, and knows the results only as JSON. Imports `report` for where they are.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- made: goals -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = ("goal", "wanted", "here", "raw limit", "peers", "reached")
OURS, RAW = "Dispatch", "raw C loop"
NOTHING = "-"

Json = dict[str, Any]


class Missing(Exception):
    """No result says this."""


@dataclass(frozen=True)
class Verdict:
    """What the results say of one goal, each as the text of a cell."""

    here: str
    raw: str
    peers: str
    is_reached: bool


@dataclass(frozen=True)
class Goal:
    """`judge` reads rows by the name of their file; it raises Missing."""

    name: str
    wanted: str
    judge: Callable[["Results"], Verdict]


class Results:
    """The rows of every result, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, name: str, /, **wanted: object) -> list[Json]:
        """The rows of a benchmark with these values. Raises Missing when there are none."""
        path = self._folder / f"{name}.json"
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        found = [row for row in rows if wanted.items() <= row.items()]
        if not found:
            raise Missing(name)
        return found

    def row(self, name: str, /, **wanted: object) -> Json:
        """The first of them."""
        return self.rows(name, **wanted)[0]


def main(*, write: bool) -> int:
    """Prints the table, or puts it into the page."""
    if write:
        refresh()
    else:
        print(table(Results(RESULTS)))
    return 0


def refresh() -> None:
    """The page's table says what the results say."""
    PAGE.write_text(rendered(PAGE.read_text("utf-8")), "utf-8")


def rendered(page: str) -> str:
    """The page with its table made anew."""
    made, times = BLOCK.subn(lambda found: f"{found[1]}{table(Results(RESULTS))}{found[2]}", page)
    assert times == 1, f"{PAGE.name} has one place for the table"
    return made


def table(results: Results) -> str:
    """One line a goal, in Markdown; ends with a line break."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(_line(goal, results) for goal in GOALS)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _line(goal: Goal, results: Results) -> tuple[str, ...]:
    try:
        seen = goal.judge(results)
    except (Missing, KeyError):  # not measured, or not since it is measured like this
        return (goal.name, goal.wanted, "not measured", NOTHING, NOTHING, NOTHING)
    reached = "yes" if seen.is_reached else "**no**"
    return (goal.name, goal.wanted, seen.here, seen.raw, seen.peers, reached)


# --- goal by goal --------------------------------------------------------------------------------


def _peers(rows: Sequence[Json], say: Callable[[Json], str]) -> str:
    """`name figure`, of all that are neither ours nor the yardstick."""
    others = (row for row in rows if row["name"] not in (RAW, OURS))
    return "; ".join(f"{row['name']} {say(row)}" for row in others) or NOTHING


def _most(rows: Sequence[Json]) -> list[Json]:
    """The rows with the greatest number of sockets."""
    most = max(row["sockets"] for row in rows)
    return [row for row in rows if row["sockets"] == most]


def _of(rows: Sequence[Json], name: str) -> Json:
    for row in rows:
        if row["name"] == name:
            return row
    raise Missing(name)


def _fanout(results: Results) -> Verdict:
    rows = _most(results.rows("fanout"))
    ours, raw = _of(rows, OURS), _of(rows, RAW)
    return Verdict(
        here=f"{ours['cost_over_raw']:.2f} of raw, {ours['cost_us']:.1f} µs a delivery to "
        f"{ours['sockets']:,}, last after {ours['publish_to_last_ms']:.0f} ms",
        raw=f"{raw['cost_us']:.1f} µs, last after {raw['publish_to_last_ms']:.0f} ms",
        peers=_peers(rows, lambda row: f"{row['cost_over_raw']:.2f}"),
        is_reached=ours["cost_over_raw"] <= 1.2,
    )


def _burst(results: Results) -> Verdict:
    rows = [row for row in _most(results.rows("burst")) if row["messages"] == 16]
    ours, raw = _of(rows, OURS), _of(rows, RAW)
    return Verdict(
        here=f"{ours['cost_over_raw']:.2f} of raw, {ours['cost_us']:.2f} µs a delivery of 16 to "
        f"{ours['sockets']:,}",
        raw=f"{raw['cost_us']:.2f} µs, one after the other",
        peers=_peers(rows, lambda row: f"{row['cost_over_raw']:.2f}"),
        is_reached=ours["cost_over_raw"] <= 0.35,
    )


def _hold(results: Results) -> Verdict:
    idle, busy = results.rows("hold")
    return Verdict(
        here=f"longest answer to a ping {busy['longest_ms']:.1f} ms (p99 "
        f"{busy['ping_p99_ms']:.1f}); accept p99 {busy['p99_over_idle']:.1f} of idle",
        raw=f"idle: {idle['longest_ms']:.1f} ms, accept p99 {idle['accept_p99_ms']:.1f} ms",
        peers=NOTHING,
        is_reached=busy["longest_ms"] <= 5 and busy["p99_over_idle"] <= 2,
    )


def _memory(results: Results) -> Verdict:
    rows = _most(results.rows("fanout"))
    ours, raw = _of(rows, OURS), _of(rows, RAW)
    return Verdict(
        here=f"{ours['kib_per_idle_socket']:.1f} KiB",
        raw=f"{raw['kib_per_idle_socket']:.2f} KiB",
        peers=_peers(rows, lambda row: f"{row['kib_per_idle_socket']:.1f}"),
        is_reached=ours["kib_per_idle_socket"] <= 8,
    )


def _storm(results: Results) -> Verdict:
    rows = _most(results.rows("storm"))
    ours, raw = _of(rows, OURS), _of(rows, RAW)
    return Verdict(
        here=f"{ours['per_core_second']:,.0f}/s a core; {ours['sockets']:,} back in "
        f"{ours['seconds']:.1f} s",
        raw=f"{raw['per_core_second']:,.0f}/s, {raw['seconds']:.1f} s",
        peers=_peers(rows, lambda row: f"{row['per_core_second']:,.0f}"),
        is_reached=ours["per_core_second"] >= 5000 and ours["seconds"] <= 3,
    )


def _accept(results: Results) -> Verdict:
    rows = results.rows("accept", name="each booking offered to one by name")
    most = max(rows, key=lambda row: float(row["over_pgbench"]))
    each = ", ".join(f"{row['over_pgbench']:.2f} ({row['in_flight']})" for row in rows)
    return Verdict(
        here=f"{each} of pgbench (in flight)",
        raw=f"pgbench {most['pgbench_per_second']:,.0f}/s",
        peers=NOTHING,
        is_reached=most["over_pgbench"] >= 0.7,
    )


def _lost(results: Results) -> Verdict:
    rows = results.rows("lost")
    ours, raw = _of(rows, f"{OURS}, accept that lost"), _of(rows, f"{RAW}, echo")
    return Verdict(
        here=f"{ours['over_echo']:.2f} of its echo, {ours['messages_per_second']:,.0f}/s, "
        f"{ours['cost_us']:.1f} µs",
        raw=f"echo {raw['messages_per_second']:,.0f}/s",
        peers=NOTHING,
        is_reached=ours["over_echo"] >= 0.7,
    )


def _booking(results: Results) -> Verdict:
    ours = results.row("booking", name="to a favourite, all at once")
    steady = results.row("booking", name="to a favourite, one a connection")
    return Verdict(
        here=f"{ours['over_pgbench']:.2f} of pgbench, {ours['bookings_per_second']:,.0f}/s, p50 "
        f"{ours['offered_p50_ms']:.0f} ms; one a connection: p50 {steady['offered_p50_ms']:.0f} ms "
        f"= {steady['p50_over_commit']:.1f} commits",
        raw=f"pgbench {ours['pgbench_per_second']:,.0f}/s, p50 {ours['queued_p50_ms']:.0f} ms; "
        f"commit {ours['commit_ms']:.1f} ms",
        peers=NOTHING,
        is_reached=ours["over_pgbench"] >= 0.5 and steady["p50_over_commit"] <= 3,
    )


def _timers(results: Results) -> Verdict:
    timers = _many(results.rows("timers", name="Dispatch's timers"))
    loop = _many(results.rows("timers", name="uvloop's call_at"))
    sweeps = [row for row in results.rows("timers") if row["overdue_ms"] is not None]
    few, many = sweeps[0], sweeps[-1]
    growth = many["overdue_ms"] / few["overdue_ms"]
    return Verdict(
        here=f"{timers['bytes_each']:.0f} bytes; {timers['schedule_us']:.2f} and "
        f"{timers['cancel_us']:.2f} µs; late {timers['late_p99_ms']:.1f} ms; sweep {growth:.1f} "
        f"times as long with {many['pending']:,} as with {few['pending']:,}",
        raw=f"`call_at`: {loop['bytes_each']:.0f} bytes; {loop['schedule_us']:.2f} and "
        f"{loop['cancel_us']:.2f} µs; late {loop['late_p99_ms']:.1f} ms",
        peers=NOTHING,
        is_reached=timers["bytes_each"] <= 160
        and max(timers["schedule_us"], timers["cancel_us"]) <= 1
        and timers["late_p99_ms"] <= 5
        and growth <= 2,
    )


def _many(rows: Sequence[Json]) -> Json:
    return max(rows, key=lambda row: int(row["pending"]))


def _growth(results: Results) -> Verdict:
    rows = results.rows("growth")
    most = max(rows, key=lambda row: int(row["mechanics"]))
    nodes = max(rows, key=lambda row: int(row["nodes"]))
    board = max(rows, key=lambda row: int(row["board"]))
    knee = most["cpu_us_per_socket"] / results.row("growth", mechanics=1000)["cpu_us_per_socket"]
    publications = nodes["redis_messages"] / nodes["nodes"]
    return Verdict(
        here=f"{publications:.1f} messages with {nodes['nodes']} nodes; "
        f"{most['writes_per_socket']:.2f} writes a socket; CPU {board['cpu_over_middle']:.2f} "
        f"times with {board['board']:,} open, {knee:.2f} times a socket with {most['mechanics']:,}",
        raw="1 write a socket",
        peers=NOTHING,
        is_reached=publications <= nodes["nodes"] + 1
        and most["writes_per_socket"] <= 1.1
        and max(board["cpu_over_middle"], knee) <= 1.5,
    )


def _start(results: Results) -> Verdict:
    running = results.row("start", name="servers running")
    ways = [running, *_embedded(results)]
    first = ways[1]
    return Verdict(
        here="; ".join(f"{row['ready_seconds']:.2f} s {row['name']}" for row in ways),
        raw=f"imports {running['imports_seconds']:.2f} s",
        peers=NOTHING,
        is_reached=running["ready_seconds"] <= 1.5 and first["ready_seconds"] <= 3,
    )


def _embedded(results: Results) -> Iterator[Json]:
    for name in ("embedded, the first time", "embedded, again"):
        yield results.row("start", name=name)


GOALS = (
    Goal("G1 fan-out", "≤ 1.2 of raw, routing and bookkeeping included", _fanout),
    Goal("G2 bursts of 16", "≤ 0.35 of raw a delivery", _burst),
    Goal("G3 while G1 runs", "held ≤ 5 ms; accept p99 ≤ twice idle", _hold),
    Goal("G4 an idle mechanic", "≤ 8 KiB", _memory),
    Goal("G5 reconnect storm", "≥ 5,000/s a core; 10,000 back in ≤ 3 s", _storm),
    Goal("G6 accepts, winners", "≥ 0.7 of pgbench", _accept),
    Goal("G7 accepts, lost", "≥ 0.7 of the echo", _lost),
    Goal("G8 webhook to offer, 100 at once", "≥ 0.5 of pgbench; p50 ≤ 3 commits", _booking),
    Goal(
        "G9 a million timers",
        "≤ 160 bytes; ≤ 1 µs to schedule and to cancel; p99 ≤ 5 ms late; sweep independent",
        _timers,
    ),
    Goal("G10 growth", "O(nodes) messages, one write a socket, no knee", _growth),
    Goal("G11 start", "≤ 1.5 s, embedded ≤ 3 s", _start),
)
