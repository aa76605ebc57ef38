"""What a linter does not know: words and shapes that this house does not use."""

from __future__ import annotations

import ast
import contextlib
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
WAITED = re.compile(r"wait_for\([\w.]+\.wait\(\), ")
ASKED = "get_event_loop"
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


@cache
def texts() -> dict[str, str]:
    """What people wrote, by name."""
    found = {}
    for name in tracked():
        with contextlib.suppress(UnicodeDecodeError):
            if "_pb2" not in name:
                found[name] = (ROOT / name).read_text()
    return found


def modules() -> list[str]:
    return [name for name in texts() if name.endswith(".py")]


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(texts()[name], filename=name)


def test_there_is_something_to_look_at() -> None:
    assert len(modules()) > 20


def test_a_module_opens_with_its_promise() -> None:
    spoken = [name for name in modules() if not name.startswith("tests/") and texts()[name]]
    assert not [name for name in spoken if not ast.get_docstring(tree_of(name))]


def test_no_module_gathers_what_has_no_name() -> None:
    assert not [name for name in modules() if GATHERERS & set(Path(name).with_suffix("").parts)]


def test_no_file_outgrows_a_reader() -> None:
    lines = {name: texts()[name].count("\n") for name in modules()}
    # Find a noun for the second half of what is listed here.
    assert not {name: count for name, count in lines.items() if count > LINES_MAX}


def test_nothing_is_decided_by_the_wall_clock() -> None:
    judged = [name for name in modules() if not name.startswith(WALL_CLOCK_ALLOWED)]
    assert not {name: found for name in judged if (found := wall_clock_reads(tree_of(name)))}


def wall_clock_reads(tree: ast.Module) -> list[int]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"time", "time_ns"} and is_name(node.value, "time"):
            found.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found.extend(node.lineno for alias in node.names if alias.name in {"time", "time_ns"})
    return found


def test_every_task_has_a_parent() -> None:
    assert not {name: found for name in modules() if (found := orphan_tasks(tree_of(name)))}


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


def test_no_cancellation_is_swallowed() -> None:
    """``wait_for`` of Python 3.11 loses one that comes together with the event: ``asyncio.timeout`` does not."""
    assert not [
        name for name, text in texts().items() if name.startswith(("ha_sync/", "ha_agent/")) and WAITED.search(text)
    ]


def test_nobody_asks_for_a_loop_that_does_not_run() -> None:
    assert not [name for name in modules() for node in ast.walk(tree_of(name)) if getattr(node, "attr", "") == ASKED]


def test_every_text_is_finished() -> None:
    assert not {name: found for name, text in texts().items() if (found := UNFINISHED.findall(text))}


def test_no_text_names_a_path_of_somebodys_machine() -> None:
    assert not {name: found.group() for name, text in texts().items() if (found := MACHINE_PATH.search(text))}


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
