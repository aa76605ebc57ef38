"""The scripts: they parse, they can be run, and the generated protocol is current."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SHELL = [
    "scripts/setup", "scripts/test", "scripts/demo", "scripts/bench", "scripts/gen-proto", "scripts/simulate",
    "scripts/draw-arbiter", "scripts/install-units", ".ci/run",
]  # fmt: skip


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("script", SHELL)
def test_a_script_parses_and_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    assert run("bash", "-n", script).returncode == 0


def test_ci_runs_the_tests_and_nothing_of_its_own() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines == ["#!/usr/bin/env bash", 'cd "$(dirname "$0")/.." && exec scripts/test']


@pytest.mark.req("R33")
def test_the_generated_protocol_is_current() -> None:
    pytest.importorskip("grpc_tools", reason="needs the packages of [dev]")
    done = run("scripts/gen-proto", "--check", PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr


def test_requirement_rows_are_named_once() -> None:
    rows = (ROOT / "docs/requirements-ids.txt").read_text().split()
    assert len(rows) == len(set(rows)) > 40


def test_req_coverage_prints_the_rows_that_no_passing_test_names(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / ".pytest_cache").mkdir()
    script = tmp_path / "scripts" / "req-coverage"
    script.write_text((ROOT / "scripts/req-coverage").read_text())
    (tmp_path / "docs/requirements-ids.txt").write_text("R1\nR2\nR3\n")
    record = {"tests": 2, "passed": {"R2": ["tests/test_x.py::test_y"]}}
    (tmp_path / ".pytest_cache/req-passed.json").write_text(json.dumps(record))
    done = run(sys.executable, str(script))
    assert (done.returncode, done.stdout.split()) == (0, ["R1", "R3"])


def test_a_failed_gate_fails_a_run_whose_tests_pass(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "docs/requirements-ids.txt").write_text("R1\n")
    (tmp_path / "tests/conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "tests/test_one.py").write_text("def test_one():\n    pass\n")
    command = (sys.executable, "-m", "pytest", "-q", "--rootdir", str(tmp_path), str(tmp_path / "tests"))
    good = run(*command, HA_SYNC_FAILED_GATES="")
    bad = run(*command, HA_SYNC_FAILED_GATES="mypy ;")
    assert good.returncode == 0, good.stdout
    assert bad.returncode == 1
    assert "FAILED gate before the tests: mypy" in bad.stdout
