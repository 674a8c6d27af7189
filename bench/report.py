"""What a run says: tables for people, small JSON files for the record.

Imports `machine`. `results/` holds what full runs said last, `results/short/`, which is kept out of
the record, what short ones did.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from bench import machine

RESULTS = Path(__file__).parent / "results"
DIGITS = 4

Row = TypeVar("Row")


def table(title: str, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """The rows below a title, in the order measured; the first column is the name."""
    cells = [[make(row) for make in columns.values()] for row in rows]
    lines = [list(columns), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join([title, "", *(_line(line, widths) for line in lines)])


def save(name: str, command: str, rows: Sequence[Any], *, short: bool) -> str:
    """Writes `NAME.json`: the rows, and all that is needed to read or repeat them. Its path."""
    path = RESULTS / ("short" if short else "") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "machine": machine.describe(),
        "rows": [{key: _short(value) for key, value in asdict(row).items()} for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return str(path.relative_to(RESULTS.parent))


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *figures = zip(cells, widths, strict=True)
    return "  ".join([name[0].ljust(name[1]), *(cell.rjust(width) for cell, width in figures)])
