"""What a linter does not know: words and shapes that this house does not use."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LINES_MAX = 600
GATHERERS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}

WALL_CLOCK_ALLOWED = (
    "ha_sync/logs/",  # when an event happened, for people
    "ha_sync/sample/",  # plays a program that knows nothing of us
    "tests/",
    "benchmarks/",
)
"""Where ``time.time`` may be read: never to decide anything."""

UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|home)/\w")


@cache
def tracked() -> tuple[str, ...]:
    """Every file of the project, relative."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
    else:
        folders = ("ha_sync", "proto", "tests", "benchmarks", "scripts", "docs")
        names = [str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*")]
    return tuple(name for name in names if (ROOT / name).is_file() and "__pycache__" not in name)


def texts() -> list[str]:
    return [name for name in tracked() if "_pb2" not in name]


def modules() -> list[str]:
    return [name for name in texts() if name.endswith(".py")]


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), filename=name)


def test_there_is_something_to_look_at() -> None:
    assert len(modules()) > 20


@pytest.mark.parametrize("name", [name for name in modules() if not name.startswith("tests/")])
def test_a_module_opens_with_its_promise(name: str) -> None:
    assert ast.get_docstring(tree_of(name)), f"{name} has no docstring"


@pytest.mark.parametrize("name", modules())
def test_no_module_gathers_what_has_no_name(name: str) -> None:
    assert not GATHERERS & set(Path(name).with_suffix("").parts), name


@pytest.mark.parametrize("name", modules())
def test_no_file_outgrows_a_reader(name: str) -> None:
    lines = (ROOT / name).read_text().count("\n")
    assert lines <= LINES_MAX, f"{name} has {lines} lines: find a noun for its second half"


@pytest.mark.parametrize("name", [name for name in modules() if not name.startswith(WALL_CLOCK_ALLOWED)])
def test_nothing_is_decided_by_the_wall_clock(name: str) -> None:
    assert not wall_clock_reads(tree_of(name)), f"{name} reads time.time in lines {wall_clock_reads(tree_of(name))}"


def wall_clock_reads(tree: ast.Module) -> list[int]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"time", "time_ns"} and is_name(node.value, "time"):
            found.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found.extend(node.lineno for alias in node.names if alias.name in {"time", "time_ns"})
    return found


@pytest.mark.parametrize("name", modules())
def test_every_task_has_a_parent(name: str) -> None:
    assert not orphan_tasks(tree_of(name)), f"{name} drops a task in lines {orphan_tasks(tree_of(name))}"


def orphan_tasks(tree: ast.Module) -> list[int]:
    """Tasks that nobody keeps: ``asyncio.create_task(...)`` as a statement of its own. A TaskGroup keeps its tasks."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            continue
        called = node.value.func
        if isinstance(called, ast.Attribute) and called.attr in {"create_task", "ensure_future"}:
            receiver = ast.unparse(called.value)
            if receiver == "asyncio" or "loop" in receiver:
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("name", modules())
def test_nobody_asks_for_a_loop_that_does_not_run(name: str) -> None:
    asked = [node.lineno for node in ast.walk(tree_of(name)) if getattr(node, "attr", "") == "get_event_loop"]
    assert not asked, f"{name}: get_event_loop in lines {asked}"


@pytest.mark.parametrize("name", texts())
def test_a_text_is_finished_and_names_no_machine(name: str) -> None:
    try:
        text = (ROOT / name).read_text()
    except UnicodeDecodeError:
        pytest.skip("not text")
    assert not UNFINISHED.search(text), f"{name}: {UNFINISHED.findall(text)}"
    assert not MACHINE_PATH.search(text), f"{name} names a path of somebody's machine"


def is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


@pytest.mark.parametrize(
    ("source", "lines"),
    [("import time\ntime.time()", [2]), ("from time import time", [1]), ("import time\ntime.monotonic()", [])],
)
def test_the_wall_clock_check_sees(source: str, lines: list[int]) -> None:
    assert wall_clock_reads(ast.parse(source)) == lines


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("asyncio.create_task(f())", [1]),
        ("self._loop.create_task(f())", [1]),
        ("self._task = asyncio.create_task(f())", []),
        ("tasks.create_task(f())", []),
    ],
)
def test_the_task_check_sees(source: str, lines: list[int]) -> None:
    assert orphan_tasks(ast.parse(source)) == lines
