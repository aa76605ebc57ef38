"""What to do when an alarm comes stands in the operations page: for every warning and error that the programs tell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ha_agent.alarms.meaning import ENDED_BY, LINK, SILENT, SUBJECT_OF
from ha_sync.service.tidings import BROKEN

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs/operations.md").read_text()


def spoken(tree: ast.Module) -> set[str]:
    """Constant texts that a warning or an error is told with: ``report("error", "what", fields)``."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        severity, what = node.args[0], node.args[1]
        severities = {part.value for part in ast.walk(severity) if isinstance(part, ast.Constant)}
        if severities & {"warning", "error"} and isinstance(what, ast.Constant) and isinstance(what.value, str):
            found.add(what.value)
    return found


def all_spoken() -> set[str]:
    found = set()
    for package in ("ha_sync", "ha_agent"):
        for path in (ROOT / package).rglob("*.py"):
            found |= spoken(ast.parse(path.read_text()))
    return found


def is_explained(what: str) -> bool:
    """In a table's first column; several may share a row, and a row's text goes on after a comma."""
    return any(what in row.split(" | ")[0] for row in PAGE.splitlines() if row.startswith("| "))


def test_the_search_finds_what_is_told() -> None:
    assert len(all_spoken()) > 40
    tree = ast.parse('self._report("error" if bad else "warning", "it is broken", {})\nlog.error("x")\nf("info", "y")')
    assert spoken(tree) == {"it is broken"}


@pytest.mark.req("R32")
def test_every_warning_and_error_is_explained() -> None:
    troubles = {what for _, what in BROKEN.values()}
    named = {"the other node's engine is not reached", "the last full backup failed", "a divergence waits"}
    unexplained = sorted(what for what in all_spoken() | troubles | named if not is_explained(what))
    assert not unexplained, "say in a table of docs/operations.md what they mean and what to do"


def test_the_events_that_the_alarms_name_are_told_by_somebody() -> None:
    """A text that was changed where it is told would make an alarm of what is none, or lose its subject."""
    texts = "\n".join(
        path.read_text()
        for package in ("ha_sync", "ha_agent")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "meaning.py"
    )
    names = {*SILENT, *SUBJECT_OF, *ENDED_BY, LINK, *(key.what for key in ENDED_BY.values())}
    assert not sorted(name for name in names if f'"{name}"' not in texts)
