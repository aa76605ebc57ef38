"""One run of a benchmark: its command line, its place on the disk, its pairs, its figures.

Every engine that a run starts is ended by it, and its peak memory is kept; everything on the disk lies below one new
directory (TMPDIR decides where) that is removed at the end. All traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.harness import result
from benchmarks.harness.processes import CpuMeter, peak_mib
from benchmarks.harness.result import Figure, Result
from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.sample.pair import LocalNode, LocalPair, PairFailure, Place

DRAIN_S = 120.0
MEMORY = "/dev/shm"
BUSY_LOAD = 0.25
"""Runnable processes per core before the run, above which its figures say little."""


class BenchFailure(Exception):
    """The thing that was to be measured did not happen: no figure is better than a wrong one."""


class Run:
    """What a benchmark's ``measure`` is given."""

    def __init__(self, name: str, directory: str, *, quick: bool) -> None:
        self.name = name
        self.quick = quick
        self.directory = directory
        self.figures: dict[str, Figure] = {}
        self.commands: list[str] = []
        self.programs: list[str] = []
        self.peaks_mib: dict[str, float] = {"active": 0.0, "standby": 0.0}
        self._begun = time.monotonic()
        self._pairs = 0

    def say(self, text: str) -> None:
        """Progress, on standard error."""
        print(f"[{time.monotonic() - self._begun:6.1f} s] {text}", file=sys.stderr, flush=True)

    def place(self, name: str) -> str:
        """A new directory of the run."""
        path = os.path.join(self.directory, name)
        os.makedirs(path)
        return path

    @contextlib.contextmanager
    def pair(self, toml_for: Callable[[Place], str], *, standby_apart: bool = False) -> Iterator[LocalPair]:
        """Two nodes that are not started yet; ended at the end, their peak memory kept.

        ``standby_apart``: the Standby's files lie in memory, where there is room for them, so that what it makes
        durable does not wait in the same queue as the program on the Active.
        """
        self._pairs += 1
        place = self.place(f"pair-{self._pairs}")
        with contextlib.ExitStack() as ends:
            if standby_apart and os.path.isdir(MEMORY):
                apart = ends.enter_context(tempfile.TemporaryDirectory(prefix="ha-sync-bench-", dir=MEMORY))
                os.symlink(apart, os.path.join(place, "b"))
            pair = ends.enter_context(LocalPair(place, toml_for))
            try:
                yield pair
            except PairFailure as failure:
                failure.add_note("\n".join((*states(pair.a), *states(pair.b))))
                raise
            self.note_peak(pair.a, "active")
            self.note_peak(pair.b, "standby")

    def note_peak(self, node: LocalNode, role: str) -> float:
        """Keeps the peak of a node that runs; returns it."""
        if node.process is None:
            return 0.0
        peak = peak_mib(node.process.pid)
        self.peaks_mib[role] = max(self.peaks_mib[role], peak)
        return peak

    def result(self) -> Result:
        """After ``measure``."""
        for role, peak in self.peaks_mib.items():
            if peak:
                self.figures[f"rss_mib_{role}"] = result.median([peak], "MiB")
        return Result(
            name=self.name,
            machine=result.machine(self.directory),
            versions=result.versions(*self.programs),
            commands=[f"scripts/bench {self.name}{' --quick' if self.quick else ''}", *self.commands],
            figures=self.figures,
        )


def main(name: str, measure: Callable[[Run], None], arguments: Sequence[str] | None = None) -> int:
    """The command line of a benchmark; 0 when it measured, whatever the figures are."""
    parser = argparse.ArgumentParser(prog=f"scripts/bench {name}", description=measure.__doc__)
    parser.add_argument("--quick", action="store_true", help="less data, under 60 seconds")
    parser.add_argument("--json", metavar="FILE", help="where the result goes as JSON; - for standard output")
    given = parser.parse_args(arguments)
    # A run that is told to end must still end its engines and remove its files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = tempfile.mkdtemp(prefix="ha-sync-bench-")
    try:
        run = Run(name, directory, quick=given.quick)
        machine = result.machine(directory)
        measure(run)
        made = run.result()
        made.machine["load_before"] = machine["load_before"]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    show(made, given.json)
    return 0


def show(made: Result, destination: str | None) -> None:
    """The table for people; the JSON where it was asked for."""
    if float(str(made.machine["load_before"])) > BUSY_LOAD * int(str(made.machine["cores"])):
        print("The machine was busy before the run: these figures are not for quoting.", file=sys.stderr)
    print(made.table(), file=sys.stderr if destination == "-" else sys.stdout)
    if destination is None:
        return
    text = json.dumps(made.as_json(), indent=2) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        return
    with open(destination, "w", encoding="utf-8") as file:
        file.write(text)


def states(node: LocalNode) -> Iterator[str]:
    """How a node's datasets are, for an error's text."""
    if node.process is None or node.process.poll() is not None:
        yield f"{node.place.name} does not run"
        return
    for item in node.status().datasets:
        yield f"{node.place.name} {item.name}: {item.state} {item.reason} backlog {item.backlog} {dict(item.counts)}"


def toml_of(place: Place, *datasets: Mapping[str, object]) -> str:
    """A node's ``sync.toml``; ``path`` of a dataset is relative to the node's data, unless it is absolute."""
    node = {
        "name": place.name,
        "state_dir": place.state_dir,
        "run_dir": place.run_dir,
        "listen": place.listen,
        "peer": place.peer,
    }
    lines = ["[node]", *(f"{key} = {json.dumps(value)}" for key, value in node.items()), ""]
    for dataset in datasets:
        whole = {**dataset, "path": os.path.join(place.root, str(dataset["path"]))}
        lines += ["[[dataset]]", *(f"{key} = {json.dumps(value)}" for key, value in whole.items()), ""]
    return "\n".join(lines)


def drain(node: LocalNode, *datasets: str, timeout_s: float = DRAIN_S) -> float:
    """Waits until all that the Active has (of these datasets) is durable on the Standby; returns when that was."""
    request = pb.WaitReplicatedRequest(timeout_s=timeout_s, datasets=datasets)
    missing = node.control().WaitReplicated(request, timeout=timeout_s + 10).waiting_for
    ended = time.monotonic()
    if missing:
        told = "\n".join((*missing, *states(node), node.log_tail()))
        raise BenchFailure(f"not replicated after {timeout_s:g} s\n{told}")
    return ended


def meters(pair: LocalPair) -> tuple[CpuMeter, CpuMeter]:
    """Of the Active and of the Standby, counting from now."""
    assert pair.a.process is not None
    assert pair.b.process is not None
    return CpuMeter(pair.a.process.pid), CpuMeter(pair.b.process.pid)


def lag_ms(node: LocalNode, name: str) -> tuple[float, float] | None:
    """p50 and p99 as the Active itself says them; None where it has measured nothing."""
    lag = node.dataset(name).lag
    return (lag.p50_ms, lag.p99_ms) if lag.samples else None
