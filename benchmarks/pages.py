"""A 20 MB rollback-journal database under 38 commits a second: copies accepted, and what our reading costs the writer.

The writer is of the old kind (legacy prepare, no busy timeout: any lock of ours would lose it a row, and a lost row
fails the benchmark). For its cost the engines are frozen (SIGSTOP) in one window of each two, by turns the second and
the first, so both sides of the comparison are the same writer on the same file a few seconds apart. The Standby's files
lie in memory: a real one has a disk of its own, and its syncs in the queue of the writer's are no cost of our reading.
Accepted: copies that were read and taken, of all
that were read; looks that were called off before reading because a transaction was open are counted beside it.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys

from benchmarks.harness.processes import Writer
from benchmarks.harness.result import Figure, median, single
from benchmarks.harness.run import BenchFailure, Run, drain, lag_ms, main, meters, toml_of
from benchmarks.harness.writers import Legacy
from ha_sync.sample.pair import LocalPair, Place

SIZE = 20_000_000
RATE = 38.0
WINDOW_S = 3.0


def toml(place: Place) -> str:
    """One database in pages mode."""
    return toml_of(place, {"name": "big", "kind": "sqlite", "path": "big.db", "priority": "config", "capture": "pages"})


def measure(run: Run) -> None:
    """See the module."""
    pairs = 5 if run.quick else 25
    with run.pair(toml, standby_apart=True) as pair:
        path = os.path.join(pair.a.place.root, "big.db")
        keys = Legacy.make(path, SIZE)
        pair.start()
        drain(pair.a)
        run.say(f"{os.path.getsize(path) / 1e6:.1f} MB, {keys} keys")
        with Writer("legacy", path) as writer:
            writer.do(work="paced", rate=RATE, seconds=WINDOW_S, keys=keys)  # warm
            drain(pair.a)
            windows(run, pair, writer, keys, pairs)
        drain(pair.a)


def windows(run: Run, pair: LocalPair, writer: Writer, keys: int, pairs: int) -> None:
    """Windows with the engines running and frozen, in turn."""
    slower, running, frozen, cpu, accepted, looks = [], [], [], [], [], []
    for number in range(pairs):
        for with_engines in (number % 2 == 0, number % 2 == 1):
            drain(pair.a)
            if not with_engines:
                frozen.append(statistics.median(alone(pair, writer, keys)))
                continue
            before, (meter, _) = counts(pair), meters(pair)
            running.append(statistics.median(window(writer, keys)))
            cpu.append(meter.percent())
            looks.append({name: value - before.get(name, 0) for name, value in counts(pair).items()})
            accepted.append(share(looks[-1:]))
        slower.append(100 * (running[-1] / frozen[-1] - 1))
    # Only what was read while the writer wrote: a copy between two windows is accepted always.
    run.figures["accept_percent_20mb"] = Figure(
        value=round(share(looks), 1),
        unit="%",
        min=round(min(accepted), 1),
        max=round(max(accepted), 1),
        n=sum(one["copies_accepted"] + one["copies_rejected"] for one in looks),
    )
    run.figures["writer_slowdown_percent"] = median(slower, "%")
    run.figures["writer_commit_ms"] = median(running, "ms", peer=frozen)
    run.figures["looks_refused"] = single(sum(one["looks_refused"] for one in looks), "looks")
    run.figures["cpu_percent_active_20mb"] = median(cpu, "% of a core")
    if ledger := lag_ms(pair.a, "big"):
        run.figures["lag_ledger_p50_ms"] = single(ledger[0], "ms")


def window(writer: Writer, keys: int) -> list[float]:
    """The writer's milliseconds a commit."""
    answer = writer.do(work="paced", rate=RATE, seconds=WINDOW_S, keys=keys)
    if answer["lost"]:
        raise BenchFailure(f"the writer lost {answer['lost']} commits to a lock")
    took: list[float] = answer["ms"]
    return took


def alone(pair: LocalPair, writer: Writer, keys: int) -> list[float]:
    """A window with both engines frozen."""
    freeze(pair, signal.SIGSTOP)
    try:
        return window(writer, keys)
    finally:
        freeze(pair, signal.SIGCONT)


def counts(pair: LocalPair) -> dict[str, int]:
    """What the Active counts of its copies."""
    return dict(pair.a.dataset("big").counts)


def share(looks: list[dict[str, int]]) -> float:
    """Percent of the copies read that were accepted."""
    good, bad = (sum(one[name] for one in looks) for name in ("copies_accepted", "copies_rejected"))
    if good + bad == 0:
        raise BenchFailure("no copy was read in a whole window")
    return 100 * good / (good + bad)


def freeze(pair: LocalPair, number: signal.Signals) -> None:
    """Both engines."""
    for node in (pair.a, pair.b):
        node.kill(number)


if __name__ == "__main__":
    sys.exit(main("pages", measure))
