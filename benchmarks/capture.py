"""What capture by triggers costs the writer: its one-row commits with the engine on against the same without.

Two databases of the same shape, one replicated by a running pair, one that nobody watches. One writer process each
commits in turn, round by round, without a pause inside a round, so that the engine is at its busiest; between rounds
the pair catches up. WAL with synchronous NORMAL (the case in which a commit is cheapest and the triggers weigh most)
gives the figures; rollback journal with FULL, as call records are written, stands beside them.
"""

from __future__ import annotations

import os
import statistics
import sys

from benchmarks.harness.processes import Writer
from benchmarks.harness.result import median
from benchmarks.harness.run import Run, drain, main, toml_of
from ha_sync.sample.pair import LocalPair, Place

COMMITS = 1000
MODES = (("", "wal", "normal"), ("_journal", "delete", "full"))


def toml(place: Place) -> str:
    """A database for each mode."""
    return toml_of(
        place,
        *(
            {
                "name": f"on{suffix}".replace("_", "-"),
                "kind": "sqlite",
                "path": f"on{suffix}.db",
                "priority": "cdr",
                "capture": "rows",
                "live_triggers": True,
                "writer_busy_timeout_ms": 1000,
            }
            for suffix, _, _ in MODES
        ),
    )


def measure(run: Run) -> None:
    """See the module."""
    rounds = 7 if run.quick else 25
    aside = run.place("aside")
    with run.pair(toml) as pair:
        places = ((pair.a.place.root, "on"), (aside, "off"))
        for suffix, journal, _ in MODES:
            for folder, name in places:
                with Writer("rows", os.path.join(folder, f"{name}{suffix}.db"), "--journal", journal):
                    pass
        pair.start()
        drain(pair.a)
        for suffix, journal, synchronous in MODES:
            run.say(f"{journal}, synchronous {synchronous}")
            settings = ("--journal", journal, "--synchronous", synchronous)
            databases = [os.path.join(folder, f"{name}{suffix}.db") for folder, name in places]
            put(run, suffix, *compare(pair, databases, settings, rounds))


def compare(
    pair: LocalPair, databases: list[str], settings: tuple[str, ...], rounds: int
) -> tuple[list[float], list[float], list[float]]:
    """Rounds with and without, interleaved: median microseconds of each, and the ratios of the means."""
    with Writer("rows", databases[0], *settings) as on, Writer("rows", databases[1], *settings) as off:
        for writer in (on, off):
            writer.do(work="burst", count=200)
        drain(pair.a)
        with_capture, without, means = [], [], []
        for _ in range(rounds):
            bare = off.do(work="burst", count=COMMITS)
            captured = on.do(work="burst", count=COMMITS)
            drain(pair.a)
            without.append(bare["median_us"])
            with_capture.append(captured["median_us"])
            means.append(captured["mean_us"] / bare["mean_us"])
    return with_capture, without, means


def put(run: Run, suffix: str, with_capture: list[float], without: list[float], means: list[float]) -> None:
    """The figures of one mode."""
    base = statistics.median(without)
    ratios = [one / other for one, other in zip(with_capture, without, strict=True)]
    run.figures[f"commit_ratio{suffix}"] = median(ratios, "x")
    run.figures[f"commit_extra_us{suffix}"] = median([one - base for one in with_capture], "us")
    run.figures[f"commit_us{suffix}"] = median(with_capture, "us", peer=without)
    run.figures[f"commit_mean_ratio{suffix}"] = median(means, "x")


if __name__ == "__main__":
    sys.exit(main("capture", measure))
