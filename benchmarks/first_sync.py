"""The first full sync of 20,000 recordings (2 GiB) and 50,000 small files, against `rsync -a` from a daemon.

Both copy the same tree over loopback into a fresh, empty folder, in turn, the source in the page cache, all earlier
writes flushed before each. Ours runs over TLS with every fsync on; rsync syncs nothing. Ours counts from the start of
the Standby's process (its interpreter included) until every file is durable there; the Active's engine is up and has
scanned its tree, which is timed apart (`scan_s`, from the start of its process) and added in
`ratio_rsync_with_scan`. Nothing is deleted before the end, because creating files right after a mass delete is slower.
"""

from __future__ import annotations

import json
import os
import sys
import time

from benchmarks.harness import trees
from benchmarks.harness.result import median
from benchmarks.harness.run import BenchFailure, Run, drain, main, toml_of
from ha_sync.sample.pair import LocalPair, Place

MARKER = ".ha-dataset"


def measure(run: Run) -> None:
    """See the module."""
    size, rounds = (trees.TENTH, 1) if run.quick else (trees.WHOLE, 3)
    source = run.place("source")
    run.say(f"making {size.files:,} files")
    trees.make_tree(source, size)
    run.programs.append("rsync")
    run.commands += ["rsync --daemon", "rsync -a rsync://127.0.0.1/tree/ fresh/"]
    theirs, ours, scans = [], [], []
    with trees.rsync_daemon(source, run.place("rsync")) as address:
        trees.rsync_seconds(address, run.place("warm"))
        for number in range(rounds):
            trees.settle()
            theirs.append(trees.rsync_seconds(address, run.place(f"rsync-{number}")))
            run.say(f"rsync: {theirs[-1]:.2f} s")
            trees.settle()
            took, scan = sync_once(run, source, size)
            run.say(f"ha-sync: {took:.2f} s after a scan of {scan:.2f} s")
            ours.append(took)
            scans.append(scan)
    whole = [one + other for one, other in zip(ours, scans, strict=True)]
    pairs = list(zip(ours, whole, theirs, strict=True))
    run.figures["ratio_rsync"] = median([one / their for one, _, their in pairs], "x")
    run.figures["files_per_s"] = median(
        [size.files / one for one in ours], "files/s", peer=[size.files / one for one in theirs]
    )
    run.figures["first_sync_s"] = median(ours, "s", peer=theirs)
    run.figures["scan_s"] = median(scans, "s")
    run.figures["ratio_rsync_with_scan"] = median([one / their for _, one, their in pairs], "x")


def sync_once(run: Run, source: str, size: trees.TreeSize) -> tuple[float, float]:
    """A new pair: seconds from the Standby's start until all is durable, and of the Active's first scan."""
    forget_marker(source)
    with run.pair(lambda place: toml_of(place, tree_dataset(place, source))) as pair:
        scan_s = start_active(pair, size.files)
        join(pair)
        trees.settle()
        since = time.monotonic()
        pair.b.serve("standby", 1)
        pair.until_streaming(timeout_s=600)
        took = drain(pair.a, timeout_s=600) - since
        found = trees.count_files(os.path.join(pair.b.place.root, "tree"))
        if found != size.files:
            raise BenchFailure(f"the standby has {found} of {size.files} files")
    return took, scan_s


def start_active(pair: LocalPair, files: int) -> float:
    """Starts the Active and waits for its first scan: seconds from its process's start until it knows all files."""
    pair.a.command("pair", "init", "--name", "a", "--address", pair.a.place.listen)
    began = time.monotonic()
    pair.a.serve("active", 1)
    pair.a.until(lambda: pair.a.dataset("tree").counts["entries"] >= files, "end of the first scan", timeout_s=600)
    return time.monotonic() - began


def join(pair: LocalPair) -> None:
    """The second node joins with a token; it does not run yet."""
    token = json.loads(pair.a.command("pair", "token", "--json").stdout)["token"]
    node = pair.b
    node.command("pair", "join", token, "--name", "b", "--address", node.place.listen, "--discard-local-data")


def tree_dataset(place: Place, source: str) -> dict[str, object]:
    """On the Active the made tree where it lies, on the Standby a fresh folder."""
    path = source if place.name == "a" else "tree"
    return {"name": "tree", "kind": "tree", "path": path, "priority": "recordings"}


def forget_marker(source: str) -> None:
    """What an earlier pair left in the tree: the next one begins as if there had been none."""
    for name in os.listdir(source):
        if name.startswith(MARKER):
            os.unlink(os.path.join(source, name))


if __name__ == "__main__":
    sys.exit(main("first-sync", measure))
