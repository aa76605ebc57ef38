"""The engine's peak memory: in each of the other benchmarks, and with a catalogue of 1,000,000 files.

Runs the others, each with new engines, and keeps the highest VmHWM of an engine with its children: in their quick
form, but the first sync whole. Then a pair syncs a tree of 1,000,000 small files from nothing, and its Active is
started again over the full catalogue; the larger peak of the two nodes is the figure. With --quick: burst alone, and
100,000 files (`rss_mib_million` is then of 100,000; the number of files stands beside it).
"""

from __future__ import annotations

import os
import sys
import time

from benchmarks import burst, busy, capture, first_sync, lag, pages, reconnect
from benchmarks.harness import trees
from benchmarks.harness.result import median
from benchmarks.harness.run import BenchFailure, Run, drain, main, toml_of
from ha_sync.sample.pair import Place

BENCHES = {
    "lag": lag.measure,
    "capture": capture.measure,
    "busy": busy.measure,
    "pages": pages.measure,
    "burst": burst.measure,
    "first_sync": first_sync.measure,
    "reconnect": reconnect.measure,
}
QUICK = ("burst",)
WHOLE = "first_sync"
MANY = 1_000_000
MANY_QUICK = 100_000


def toml(place: Place) -> str:
    """One tree."""
    return toml_of(place, {"name": "many", "kind": "tree", "path": "tree", "priority": "recordings"})


def measure(run: Run) -> None:
    """See the module."""
    peaks = []
    for name, bench in BENCHES.items():
        if run.quick and name not in QUICK:
            continue
        run.say(name)
        part = Run(name, run.place(name), quick=run.quick or name != WHOLE)
        bench(part)
        peak = max(part.peaks_mib.values())
        run.figures[f"rss_mib_{name}"] = median([peak], "MiB")
        peaks.append(peak)
    run.figures["rss_mib_max"] = median([max(peaks)], "MiB")
    million(run, MANY_QUICK if run.quick else MANY)


def million(run: Run, count: int) -> None:
    """Peaks of the first sync of many files, and of a restart over the catalogue of them."""
    with run.pair(toml) as pair:
        root = os.path.join(pair.a.place.root, "tree")
        run.say(f"making {count:,} files")
        trees.make_many(root, count)
        pair.pair_up()
        pair.b.serve("standby", 1)
        since = time.monotonic()
        pair.until_streaming(timeout_s=3600)
        drain(pair.a, timeout_s=3600)
        took = time.monotonic() - since
        found = trees.count_files(os.path.join(pair.b.place.root, "tree"))
        if found != count:
            raise BenchFailure(f"the standby has {found} of {count} files")
        run.say(f"in sync after {took:.1f} s")
        first = run.note_peak(pair.a, "active"), run.note_peak(pair.b, "standby")
        pair.a.stop()
        pair.a.serve("active", 1)
        pair.until_streaming(timeout_s=600)
        drain(pair.a, timeout_s=600)
        again = run.note_peak(pair.a, "active")
    run.figures["rss_mib_million"] = median([max(*first, again)], "MiB")
    run.figures["rss_mib_million_active"] = median([first[0]], "MiB")
    run.figures["rss_mib_million_standby"] = median([first[1]], "MiB")
    run.figures["rss_mib_million_restarted"] = median([again], "MiB")
    run.figures["files"] = median([count], "files")
    run.figures["files_per_s_many"] = median([count / took], "files/s")


if __name__ == "__main__":
    sys.exit(main("memory", measure))
