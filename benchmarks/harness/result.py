"""A benchmark's result: figures with their spread, the machine, the versions, the commands; as JSON and as a table.

``value`` is the median (or the percentile that the key names) over ``n`` samples, ``min`` and ``max`` its spread over
rounds or parts of the run. ``peer`` is the same figure of another program, measured in the same run on the same data
(None where there is none), ``ratio`` is ``value / peer``. Nothing here names a host or a path.
"""

from __future__ import annotations

import math
import os
import platform
import sqlite3
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

PARTS = 5
"""A run is cut into so many parts; a percentile's min and max are those of the parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number."""

    value: float
    unit: str
    min: float
    max: float
    n: int
    peer: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What the project asks of a figure; ``least``: more is better."""

    bar: float
    aim: float
    least: bool = False

    def verdict(self, value: float) -> str:
        """How ``value`` stands: aim, bar or MISSED."""
        if self.least:
            return "aim" if value >= self.aim else "bar" if value >= self.bar else "MISSED"
        return "aim" if value <= self.aim else "bar" if value <= self.bar else "MISSED"


BARS = {
    "row_p50_ms": Bar(bar=8, aim=3),
    "row_p99_ms": Bar(bar=30, aim=10),
    "file_p50_ms": Bar(bar=15, aim=6),
    "file_p99_ms": Bar(bar=60, aim=20),
    "growing_behind_s": Bar(bar=0.5, aim=0.25),
    "commit_ratio": Bar(bar=3, aim=2),
    "commit_extra_us": Bar(bar=100, aim=30),
    "cpu_percent_active": Bar(bar=25, aim=12),
    "cpu_percent_standby": Bar(bar=20, aim=10),
    "pages_lag_p99_s": Bar(bar=0.5, aim=0.2),
    "accept_percent_20mb": Bar(bar=90, aim=99, least=True),
    "writer_slowdown_percent": Bar(bar=5, aim=2),
    "rows_per_s": Bar(bar=60_000, aim=120_000, least=True),
    "ratio_rsync": Bar(bar=1.5, aim=1.0),
    "seconds": Bar(bar=0.3, aim=0.1),
    "restart_scan_s": Bar(bar=1.5, aim=0.6),
    "rss_mib_max": Bar(bar=200, aim=120),
    "rss_mib_million": Bar(bar=200, aim=120),
    "content_ratio_rsync": Bar(bar=1.2, aim=0.8),
    "metadata_ratio_rsync": Bar(bar=1.2, aim=0.6),
    "rows_ratio_sqldiff": Bar(bar=0.7, aim=0.4),
    "wire_percent_identical": Bar(bar=0.1, aim=0.1),
    "wire_kib_one_row": Bar(bar=64, aim=64),
    "lag_ratio_during": Bar(bar=2, aim=1.3),
    "first_ratio": Bar(bar=1.3, aim=0.9),
    "unchanged_ratio": Bar(bar=1.0, aim=0.5),
    "hundred_ratio": Bar(bar=1.2, aim=0.6),
    "middle_ratio": Bar(bar=1.0, aim=0.5),
    "middle_wire_mib": Bar(bar=3, aim=2),
    "front_ratio": Bar(bar=1.2, aim=0.6),
    "front_wire_mib": Bar(bar=8, aim=3),
    "cpu_percent": Bar(bar=1, aim=0.3),
    "crash_outage_over_timeout_s": Bar(bar=0.5, aim=0.15),
    "crash_outage_over_timeout_max_s": Bar(bar=0.5, aim=0.15),
    "dual_holder_s": Bar(bar=0, aim=0),
    "dual_holder_resume_s": Bar(bar=0.3, aim=0.15),
    "self_fault_s": Bar(bar=0.5, aim=0.15),
    "self_fault_max_s": Bar(bar=0.5, aim=0.15),
    "planned_address_outage_s": Bar(bar=0.5, aim=0.2),
    "planned_lost": Bar(bar=0, aim=0),
    "single_keeps": Bar(bar=0, aim=0),
    "cable_switches": Bar(bar=0, aim=0),
    "loss_switches": Bar(bar=0, aim=0),
    "agent_rss_mib": Bar(bar=45, aim=35),
    "agent_cpu_percent": Bar(bar=1, aim=0.5),
}


def median(samples: Sequence[float], unit: str, *, peer: Sequence[float] = ()) -> Figure:
    """The median of rounds, against the median of a peer's rounds."""
    value = statistics.median(samples)
    other = statistics.median(peer) if peer else None
    return Figure(
        value=_short(value),
        unit=unit,
        min=_short(min(samples)),
        max=_short(max(samples)),
        n=len(samples),
        peer=None if other is None else _short(other),
        ratio=_short(value / other) if other else None,
    )


def percentile(samples: Sequence[float], share: float, unit: str) -> Figure:
    """A percentile of all samples, in their order of time, with its spread over PARTS parts of the run."""
    spread = [nearest_rank(part, share) for part in _parts(samples)]
    low, high = _short(min(spread)), _short(max(spread))
    return Figure(value=_short(nearest_rank(samples, share)), unit=unit, min=low, max=high, n=len(samples))


def single(value: float, unit: str, *, samples: int = 1) -> Figure:
    """Something that somebody else summed up over ``samples``, or that was counted."""
    short = _short(value)
    return Figure(value=short, unit=unit, min=short, max=short, n=samples)


def worse(one: Figure, other: Figure) -> Figure:
    """The larger of two views of the same thing."""
    return one if one.value >= other.value else other


def nearest_rank(samples: Sequence[float], share: float) -> float:
    """By the nearest-rank method."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _parts(samples: Sequence[float]) -> list[Sequence[float]]:
    size = max(1, math.ceil(len(samples) / PARTS))
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _short(value: float) -> float:
    """Four significant digits: nothing here is known better."""
    return float(f"{value:.4g}") if abs(value) < 10_000 else float(round(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a benchmark gives."""

    name: str
    machine: dict[str, object]
    versions: dict[str, str]
    commands: list[str]
    figures: dict[str, Figure]

    def as_json(self) -> dict[str, object]:
        """The stable shape."""
        return asdict(self)

    def table(self) -> str:
        """For people."""
        lines = [
            f"{'figure':<28}{'value':>12}  {'unit':<8}{'min':>12}{'max':>12}{'n':>8}{'peer':>12}{'ratio':>8}  verdict"
        ]
        for key, item in self.figures.items():
            bar = BARS.get(key)
            lines.append(
                f"{key:<28}{item.value:>12g}  {item.unit:<8}{item.min:>12g}{item.max:>12g}{item.n:>8}"
                f"{_cell(item.peer):>12}{_cell(item.ratio):>8}  {bar.verdict(item.value) if bar else ''}".rstrip()
            )
        return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def machine(directory: str) -> dict[str, object]:
    """What was measured on: no names, no paths."""
    with open("/proc/meminfo", encoding="ascii") as file:
        kib = int(file.readline().split()[1])
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(kib / 2**20),
        "filesystem": _filesystem(directory),
        "kernel": platform.release().partition("-")[0],
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(*programs: str) -> dict[str, str]:
    """Of what takes part; ``programs`` print theirs with --version."""
    import apsw

    found = {
        "ha-sync": version("ha-sync"),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "sqlite_engine": apsw.sqlite_lib_version(),
        "sqlite_writer": sqlite3.sqlite_version,
    }
    for program in programs:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        words = text.split("\n", 1)[0].split()
        found[program] = next((word for word in words if word[:1].isdigit()), "?")
    return found


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(directory: str) -> str:
    best, kind = "", "?"
    real = os.path.realpath(directory)
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        for line in file:
            _, point, found, *_ = line.split()
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, found
    return kind
