"""What every test run has: root-only tests skipped with the reason, requirement rows recorded, failed gates repeated.

The ids of the rows that passing tests name go to ``.pytest_cache/req-passed.json``; ``scripts/req-coverage`` reads it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline: a busy machine is no fault of the code. The failing example is printed in a form that can be replayed.
settings.register_profile("house", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# A shell without job control starts what runs in its background with SIGINT ignored, and so would be what we start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / ".pytest_cache" / "req-passed.json"
ROWS = frozenset((ROOT / "docs" / "requirements-ids.txt").read_text().split())

_passed: dict[str, list[str]] = defaultdict(list)
_count = {"passed": 0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unknown rows are mistakes of the test; tests that need root are skipped elsewhere."""
    for item in items:
        if unknown := set(rows_of(item)) - ROWS:
            raise pytest.UsageError(f"{item.nodeid}: no such requirement: {', '.join(sorted(unknown))}")
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


def rows_of(item: pytest.Item) -> tuple[str, ...]:
    """The rows that a test names."""
    return tuple(str(row) for mark in item.iter_markers("req") for row in mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A report carries the rows that its test names."""
    report: pytest.TestReport = yield
    report.user_properties.append(("req", rows_of(item)))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Records what passed; where tests run in several processes, the one that began them hears of all."""
    if report.when == "call" and report.passed:
        _count["passed"] += 1
        for row in dict(report.user_properties).get("req", ()):
            _passed[str(row)].append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Writes the record; a gate that failed before pytest began fails the run."""
    if hasattr(session.config, "workerinput"):  # one of several processes
        return
    if not session.config.option.collectonly:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps({"tests": _count["passed"], "passed": _passed}, indent=1))
    if _failed_gates() and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which gates failed, where nobody can miss it."""
    for gate in _failed_gates():
        terminalreporter.write_line(f"FAILED gate before the tests: {gate}", red=True)


def _failed_gates() -> list[str]:
    return [gate.strip() for gate in os.environ.get("HA_SYNC_FAILED_GATES", "").split(";") if gate.strip()]


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder with a short path: a unix socket's may have 107 bytes, and pytest's own folders are longer."""
    path = Path(tempfile.mkdtemp(prefix="ha-"))
    yield path
    shutil.rmtree(path)
