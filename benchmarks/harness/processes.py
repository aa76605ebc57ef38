"""Meters of processes: CPU time and peak memory of an engine with all its children; and children that write.

CPU in seconds of one core, memory in MiB. A writer is a process of its own (``benchmarks.harness.writers``) that takes
one JSON order a line and answers with one JSON line, so that its interpreter's start is in no figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]


def tree_of(pid: int) -> list[psutil.Process]:
    """The process and its living descendants."""
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, of its living descendants, and of those that were waited for."""
    total = 0.0
    for process in tree_of(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_mib(pid: int) -> float:
    """The sum of the peak resident sizes (VmHWM) of a process and its living descendants."""
    return sum(_peak_kib(process.pid) for process in tree_of(pid)) / 1024


def _peak_kib(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmHWM:")), 0)
    except FileNotFoundError:
        return 0


class CpuMeter:
    """Percent of one core that a process used between ``start`` and ``percent``."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.restart()

    def restart(self) -> None:
        """Counts from here."""
        self._cpu, self._at = cpu_seconds(self._pid), time.monotonic()

    def percent(self) -> float:
        """Since the start."""
        return 100 * (cpu_seconds(self._pid) - self._cpu) / (time.monotonic() - self._at)


class Writer:
    """A writer process; orders may overlap with what the caller does between ``order`` and ``answer``."""

    def __init__(self, kind: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.harness.writers", kind, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.answer() == "ready"

    def order(self, **order: object) -> None:
        """Begins something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Waits for its end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a writer ended with {self._process.wait()}")
        return json.loads(line)

    def do(self, **order: object) -> Any:
        """An order and its answer."""
        self.order(**order)
        return self.answer()

    def close(self) -> None:
        """The writer ends at the end of its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
