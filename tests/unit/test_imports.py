"""Imports point downwards only: the house of docs/architecture.md, held by walking the code."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dispatch

PACKAGE = Path(dispatch.__file__).parent

IMPURE = {"asyncio", "logging", "random", "time", "asyncpg", "redis", "starlette"}

# Who may be imported only by whom, tests aside: the top of the house.
ONLY_IMPORTED_BY = {
    "dispatch.http": {"dispatch.app"},
    "dispatch.app": {"dispatch.supervisor"},
    "dispatch.supervisor": {"dispatch.cli"},
    "dispatch.cli": set[str](),
    "dispatch.stripe_standin": set[str](),
}

# Below the dispatcher: they carry and keep, and know nothing of what it decides.
BELOW_DISPATCHER = ("hub", "bus", "presence", "store", "board", "websocket")


def module_name(path: Path, root: Path = PACKAGE) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[str, bool]]:
    """Every module (or name in one) that the source imports, and whether only when called."""
    tree = ast.parse(source)
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            upwards = node.level - (1 if is_package else 0)
            parents = module.split(".")[: -upwards or None] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", id(node) in late) for alias in node.names)


def read_imports() -> dict[str, set[tuple[str, bool]]]:
    return {
        module_name(path): set(
            imports(path.read_text(), module_name(path), path.name == "__init__.py")
        )
        for path in PACKAGE.rglob("*.py")
    }


IMPORTS = read_imports()


def is_in(imported: str, module: str) -> bool:
    """Whether this import names the module, something in it or a module below it."""
    return imported == module or imported.startswith(f"{module}.")


def target(imported: str) -> str:
    """The module of ours that an import reads, "" for somebody else's."""
    return max((module for module in IMPORTS if is_in(imported, module)), key=len, default="")


def offenders(graph: Mapping[str, set[tuple[str, bool]]], module: str) -> set[str]:
    return {
        importer
        for importer, found in graph.items()
        if not is_in(importer, module) and any(is_in(name, module) for name, _ in found)
    }


def test_every_way_to_import_is_seen() -> None:
    source = """
import time, redis.asyncio
from dispatch import hub
from . import bus
from .core.types import Stage
def late():
    from dispatch.app import run_node
"""
    assert set(imports(source, "dispatch.board")) == {
        ("time", False),
        ("redis.asyncio", False),
        ("dispatch.hub", False),
        ("dispatch.bus", False),
        ("dispatch.core.types.Stage", False),
        ("dispatch.app.run_node", True),
    }
    assert set(imports("from . import routing", "dispatch.core", is_package=True)) == {
        ("dispatch.core.routing", False)
    }


def test_the_core_imports_nothing_of_ours_and_nothing_that_acts() -> None:
    core = {module: found for module, found in IMPORTS.items() if is_in(module, "dispatch.core")}

    found = {
        (module, name)
        for module, names in core.items()
        for name, _ in names
        if name.split(".")[0] in IMPURE
        or (is_in(name, "dispatch") and not is_in(name, "dispatch.core"))
    }

    assert len(core) > 1
    assert found == set()


@pytest.mark.parametrize("name", BELOW_DISPATCHER)
def test_nothing_below_the_dispatcher_imports_it(name: str) -> None:
    below = {importer for importer in IMPORTS if importer.startswith(f"dispatch.{name}")}

    assert below
    assert offenders(IMPORTS, "dispatch.dispatcher") & below == set()


@pytest.mark.parametrize("name", ["http", "endpoints", "websocket"])
def test_the_outer_shells_call_and_never_decide(name: str) -> None:
    deciding = offenders(IMPORTS, "dispatch.core.lifecycle") | offenders(
        IMPORTS, "dispatch.core.routing"
    )

    assert {importer for importer in deciding if is_in(importer, f"dispatch.{name}")} == set()


@pytest.mark.parametrize("module", ONLY_IMPORTED_BY)
def test_the_top_of_the_house_is_imported_from_above_only(module: str) -> None:
    assert offenders(IMPORTS, module) <= ONLY_IMPORTED_BY[module]


def test_no_two_modules_need_each_other() -> None:
    graph = {
        module: {target(name) for name, late in found if not late} - {module, ""}
        for module, found in IMPORTS.items()
    }

    assert list(TopologicalSorter(graph).static_order())  # raises for a cycle and names it


def test_the_command_line_is_fast_because_it_imports_late() -> None:
    early = {name for name, late in IMPORTS["dispatch.cli"] if is_in(name, "dispatch") and not late}

    assert {name.rsplit(".", 1)[0] for name in early} == {"dispatch.config", "dispatch.errors"}
