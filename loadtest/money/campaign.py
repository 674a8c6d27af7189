"""Many scenarios on all cores: each worker a process with a database of its own.

One job: hand out seeds, gather what the checker said, show how it goes, and write the file of
results. Imports `servers`, `world` and what performs one seed of each kind. A scenario that cannot
be performed is a violation as well.
"""

import asyncio
import multiprocessing
import queue
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
import uvloop
from msgspec import Struct

from dispatch import books
from loadtest.figures import describe_machine
from loadtest.money import servers
from loadtest.money.rules import Violation
from loadtest.money.servers import Servers
from loadtest.money.world import World, make_config

SCENE_SECONDS: Final = 120.0
LINE_SECONDS: Final = 5.0
DEAD_SECONDS: Final = 5.0
SHOWN: Final = 10


class Report(Struct):
    """What came of one seed: violations, and counts of what happened in it."""

    seed: int
    violations: list[Violation]
    counts: dict[str, int]
    deaths: list[str]


Play = Callable[[World, int], Awaitable[tuple[list[Violation], Counter[str]]]]


class Results(Struct, kw_only=True):
    """The file of results; `deaths` by the step at which a process was killed."""

    date: str
    command: str
    machine: dict[str, Any]
    seconds: float
    seeds: tuple[int, int]
    counts: dict[str, int]
    deaths: dict[str, int]
    violations: list[dict[str, Any]]


def run(play: Play, seeds: range, *, workers: int, command: str) -> Results:
    """Performs every seed. Prints a line now and then, and each violation as it is found."""
    began = time.monotonic()
    totals: Counter[str] = Counter()
    deaths: Counter[str] = Counter()
    violations: list[dict[str, Any]] = []
    with servers.serving() as serving:
        for report in _reports(play, seeds, workers, serving):
            totals["scenarios"] += 1
            totals.update(report.counts)
            deaths.update(report.deaths)
            for violation in report.violations:
                found = {"seed": report.seed, **msgspec.structs.asdict(violation)}
                violations.append(found)
                if len(violations) <= SHOWN:
                    print(
                        f"VIOLATION in --only {report.seed}: {violation.rule}: {violation.detail}"
                    )
            _progress(totals, len(seeds), sum(deaths.values()), len(violations), began)
    return results_of(
        command=command,
        seconds=time.monotonic() - began,
        seeds=(seeds.start, seeds.stop - 1),
        counts=totals,
        deaths=deaths,
        violations=violations,
    )


def results_of(
    *,
    command: str,
    seconds: float,
    seeds: tuple[int, int],
    counts: Counter[str],
    deaths: Counter[str],
    violations: list[dict[str, Any]],
) -> Results:
    """The file of results of what was run on this machine today."""
    cpu, cores, system = describe_machine()
    return Results(
        date=datetime.now(UTC).date().isoformat(),
        command=command,
        machine={"cpu": cpu, "cores": cores, "system": system},
        seconds=round(seconds, 1),
        seeds=seeds,
        counts=dict(sorted(counts.items())),
        deaths=dict(deaths.most_common()),
        violations=violations,
    )


def write(results: Results, folder: Path, name: str) -> Path:
    """As `name.json` in that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    return path


def _reports(play: Play, seeds: range, workers: int, serving: Servers) -> Iterator[Report]:
    """The reports of all workers as they come. RuntimeError where a worker ends before its time."""
    if workers == 1:
        yield from _alone(play, seeds, serving)
        return
    spawn = multiprocessing.get_context("spawn")
    reports: Any = spawn.Queue()
    databases = servers.new_databases(serving, workers)
    children = [
        spawn.Process(
            target=_work, args=(play, seeds[n::workers], url, serving.redis_url, reports.put)
        )
        for n, url in enumerate(databases)
    ]
    for child in children:
        child.start()
    try:
        for _ in seeds:
            yield _next_report(reports, children)
    finally:
        for child in children:
            child.terminate()
            child.join()


def _next_report(reports: Any, children: Sequence[Any]) -> Report:
    while True:
        try:
            report: Report = reports.get(timeout=DEAD_SECONDS)
        except queue.Empty:
            if not any(child.is_alive() for child in children):
                raise RuntimeError("the workers ended before their time") from None
        else:
            return report


def _alone(play: Play, seeds: range, serving: Servers) -> list[Report]:
    reports: list[Report] = []
    [database_url] = servers.new_databases(serving, 1)
    _work(play, seeds, database_url, serving.redis_url, reports.append)
    return reports


def _work(
    play: Play, seeds: range, database_url: str, redis_url: str, put: Callable[[Report], None]
) -> None:
    uvloop.run(perform(play, seeds, database_url, redis_url, put))


async def perform(
    play: Play, seeds: range, database_url: str, redis_url: str, put: Callable[[Report], None]
) -> None:
    """Every seed one after the other, in one world; in a new one after something went wrong."""
    world = await World.open(make_config(database_url, redis_url))
    for seed in seeds:
        try:
            async with asyncio.timeout(SCENE_SECONDS):
                violations, counts = await play(world, seed)
        except Exception:
            violations = [Violation("performed", traceback.format_exc(limit=-3))]
            counts = Counter()
        if seed == seeds[-1]:
            violations += await unmatched(world.db)
        put(Report(seed, violations, dict(counts), world.deaths))
        world.deaths = []
        if violations:
            await world.close()
            world = await World.open(world.config)
            await world.forget()
    await world.close()


async def unmatched(db: asyncpg.Pool) -> list[Violation]:
    """What `dispatch books` does not find right in the whole database."""
    found = (await books.read(db)).mismatches
    return [
        Violation("the books match", f"{m.what} {m.id}: {m.expected}, found {m.found}")
        for m in found
    ]


_shown_at = 0.0


def _progress(totals: Counter[str], planned: int, deaths: int, found: int, began: float) -> None:
    global _shown_at
    now, done = time.monotonic(), totals["scenarios"]
    if done < planned and now - _shown_at < LINE_SECONDS:
        return
    _shown_at = now
    rate = done / (now - began)
    print(
        f"{now - began:6.0f} s  {done}/{planned}  {rate:.1f} a second  deliveries "
        f"{totals['deliveries']}  deaths {deaths}  violations {found}",
        file=sys.stderr,
        flush=True,
    )
