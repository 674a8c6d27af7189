"""docs/requirements.md names tests that exist, and at least one for every requirement it is for."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "requirements.md"

# Of the mission's sections S, O, R, F, N, C, M, P, W and V; R12 and V2 are not in this version.
REQUIRED = (
    *("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S8a", "S9"),
    *("O1", "O2", "O3", "O4", "O5", "O6", "O7"),
    *("R1", "R2", "R2a", "R3", "R4", "R4a", "R5", "R6", "R7", "R8", "R8a", "R9"),
    *("R10", "R11", "R11a"),
    *("F1", "F2", "F3", "F4", "F5"),
    *("N1", "N2", "N2a", "N3"),
    *("C1", "C2", "C3", "C4", "C5", "C6"),
    *("M1", "M2", "M3"),
    *("P1", "P2", "P3", "P4", "P5", "P6"),
    *("W1", "W2", "W3"),
    "V1",
)
MOST_TESTS = 4  # more would be a list, not a proof that somebody reads

_ROW = re.compile(r"^\| (\w+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


class Row(NamedTuple):
    """One requirement: its id, what it means, and the tests that prove it."""

    id: str
    meaning: str
    tests: tuple[tuple[str, str], ...]


def rows() -> list[Row]:
    found = _ROW.findall(TABLE.read_text())
    return [
        Row(id_, meaning, tuple(_TEST.findall(tests)))
        for id_, meaning, tests in found
        if id_ != "id"
    ]


@cache
def functions_in(path: str) -> frozenset[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, functions) and node.name.startswith("test_")
    )


def test_every_requirement_has_a_row_and_none_has_two() -> None:
    assert [row.id for row in rows()] == list(REQUIRED)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.id)
def test_what_proves_a_requirement_exists(row: Row) -> None:
    assert row.meaning.strip()
    assert 1 <= len(row.tests) <= MOST_TESTS
    assert len(set(row.tests)) == len(row.tests)
    missing = [f"{path}::{name}" for path, name in row.tests if name not in functions_in(path)]
    assert missing == []


def test_nothing_in_the_table_is_left_unread() -> None:
    """A test that is named in another way than the table's would count for nothing."""
    text = TABLE.read_text()
    read = sum(len(row.tests) for row in rows())

    assert text.count("::") == read
