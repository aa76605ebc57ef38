"""Drives ``ha-sync`` the way people and scripts do: as a command, judged by its exit code and what it printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HA_SYNC = (sys.executable, "-c", "from ha_sync.cli.main import main; main()")
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def json_lines(self) -> list[Any]:
        """Standard output as one JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def ha_sync(*arguments: str | Path, timeout_s: float = 60, **environment: str) -> Outcome:
    """Runs a command to its end, in a process of its own, without a terminal."""
    done = subprocess.run(
        [*HA_SYNC, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
        env=_environment(environment),
    )
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


def start_ha_sync(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a command that goes on (``serve``, ``--watch``, ``--follow``); the caller ends and reaps it."""
    return subprocess.Popen(
        [*HA_SYNC, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=_environment(environment),
    )


def status_of(socket: str | Path) -> dict[str, Any]:
    """``ha-sync status --json`` of the engine at this socket; fails the test where nobody answers."""
    outcome = ha_sync("status", "--json", "--socket", socket)
    assert outcome.code == 0, outcome
    status: dict[str, Any] = outcome.json
    return status


def _environment(extra: dict[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HA_SYNC_")}
    path = os.pathsep.join((str(ROOT), str(ROOT / "proto")))
    return {**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}
