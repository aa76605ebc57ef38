"""External storage: the first sync, the next ones, large files that changed, against `rsync -a` from a daemon.

Both nodes run on this machine; their storages are folders bind-mounted onto themselves in a mount namespace of the
benchmark's own, because an engine takes no storage that is not mounted. Ours runs over TLS, durable when it says so;
rsync syncs nothing. Each of ours counts from the request until its end is told, both engines being up; rsync runs after
it on the same change, the source in the page cache for both. What the live stream has brought over before the request
counts as it is: a change is closed immediately before.

- `first_ratio`, `unchanged_ratio`, `hundred_ratio`: 20,000 recordings (2 GiB) and 50,000 small files.
- `middle_ratio`, `middle_wire_mib`, `front_ratio`, `front_wire_mib`: one file of 1 GiB, 1 MiB changed in the middle,
  then 1 MiB inserted at its front; MiB from the Active to the Standby as the stream counts them.
- `lag_ratio_during`: as in the benchmark `full-backup`, beside a first sync at the default rate.
- `rss_mib_million`: the higher peak of two engines that synchronise 1,000,000 small files.

With --quick: a tenth of the files, 128 MiB, 10,000 files for the memory, one round.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.full_backup import rows_lags
from benchmarks.harness import trees
from benchmarks.harness.processes import Writer
from benchmarks.harness.result import median, nearest_rank, percentile, single
from benchmarks.harness.run import BenchFailure, Run, drain, main, toml_of
from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.sample.pair import LocalNode, LocalPair, Place

APART = "HA_SYNC_BENCH_APART"
MIB = 1024 * 1024
STORAGE = "usb0"
MANY = 1_000_000
MANY_QUICK = 10_000


def measure(run: Run) -> None:
    """See the module."""
    run.programs.append("rsync")
    run.commands += ["rsync --daemon", "rsync -a"]
    many_files(run)
    large_file(run)
    lag_beside(run)
    memory_of_many(run)


def storage_toml(place: Place, *datasets: dict[str, object], path: str = "", rate: str = "") -> str:
    """The other datasets, and one storage."""
    text = toml_of(place, *datasets)
    where = path or os.path.join(place.root, STORAGE)
    storage = f'[[storage]]\nname = "{STORAGE}"\nmedium = "usb"\npath = {json.dumps(where)}\n{rate}'
    return f"{text}\n[backup]\nfull = false\n{storage}"


@contextlib.contextmanager
def mounted(*places: str) -> Iterator[None]:
    """Each is a mount point until the end."""
    with contextlib.ExitStack() as ends:
        for place in places:
            os.makedirs(place, exist_ok=True)
            subprocess.run(["mount", "--bind", place, place], check=True)
            ends.callback(subprocess.run, ["umount", "-l", place], check=True)
        yield


@contextlib.contextmanager
def storages(
    run: Run, source: str, *datasets: dict[str, object], rate: str = "rate_mib_per_s = 0\n"
) -> Iterator[tuple[LocalPair, str]]:
    """Two nodes that run: the Active's storage is ``source``; and the path of the Standby's. No bound unless said."""

    def toml(place: Place) -> str:
        return storage_toml(place, *datasets, path=source if place.name == "a" else "", rate=rate)

    with run.pair(toml) as pair:
        target = os.path.join(pair.b.place.root, STORAGE)
        with mounted(source, target):
            pair.pair_up()
            pair.b.serve("standby", 1)
            files = trees.count_files(source)
            pair.a.until(
                lambda: pair.a.dataset(STORAGE).counts["entries"] >= files, "end of the first scan", timeout_s=1200
            )
            pair.a.until(lambda: known(pair.a), "what the other node has", timeout_s=60)
            yield pair, target
            pair.close()


def known(node: LocalNode) -> bool:
    """Whether the other node has told of its storages."""
    answer: pb.ListStoragesResponse = node.control().ListStorages(pb.ListStoragesRequest())
    return answer.HasField("peer_age_s")


def synced(node: LocalNode, *, begun: float | None = None) -> tuple[float, pb.FullBackupProgress]:
    """Seconds from the request, or from ``begun``, until its end is told, and the end."""
    engine = node.control()
    since = time.monotonic() if begun is None else begun
    first = engine.SyncStorage(pb.SyncStorageRequest(names=[STORAGE])).syncs[0].progress
    *_, last = engine.WatchStorage(pb.WatchStorageRequest(name=STORAGE, run=first.run))
    took = time.monotonic() - since
    if last.progress.result != "done":
        raise BenchFailure(f"the sync ended as {last.progress.result}: {last.progress.reason}")
    return took, last.progress


def sent_mib(node: LocalNode) -> float:
    """From the Active to the Standby of this storage since the stream's source was opened."""
    return node.dataset(STORAGE).counts["sent_bytes"] / MIB


# ---- many files


def many_files(run: Run) -> None:
    """The first sync, an unchanged one, 100 changed files."""
    size, rounds = (trees.TENTH, 1) if run.quick else (trees.WHOLE, 3)
    source = run.place("source")
    run.say(f"making {size.files:,} files")
    trees.make_tree(source, size)
    figures: dict[str, tuple[list[float], list[float]]] = {
        "first": ([], []),
        "unchanged": ([], []),
        "hundred": ([], []),
    }
    with trees.rsync_daemon(source, run.place("rsync")) as address:
        trees.rsync_seconds(address, run.place("warm"))
        for number in range(rounds):
            copy = run.place(f"rsync-{number}")
            forget_marker(source)
            with storages(run, source) as (pair, target):
                trees.settle()
                note(run, figures, "first", synced(pair.a)[0], trees.rsync_seconds(address, copy))
                if trees.count_files(target) != size.files:
                    raise BenchFailure(f"the standby has {trees.count_files(target)} of {size.files} files")
                trees.settle()
                note(run, figures, "unchanged", synced(pair.a)[0], trees.rsync_seconds(address, copy))
                begun = change_hundred(source, number)
                note(run, figures, "hundred", synced(pair.a, begun=begun)[0], trees.rsync_seconds(address, copy))
    for name, (ours, theirs) in figures.items():
        run.figures[f"{name}_ratio"] = median([one / their for one, their in zip(ours, theirs, strict=True)], "x")
        run.figures[f"{name}_s"] = median(ours, "s", peer=theirs)


def note(run: Run, figures: dict[str, tuple[list[float], list[float]]], name: str, ours: float, theirs: float) -> None:
    """One round's two times."""
    run.say(f"{name}: {ours:.2f} s, rsync {theirs:.2f} s")
    figures[name][0].append(ours)
    figures[name][1].append(theirs)


def change_hundred(source: str, round_: int) -> float:
    """Writes 100 recordings anew; when the last was closed."""
    names = sorted(os.listdir(os.path.join(source, "monitor")))
    dice = random.Random(round_)
    for _ in range(100):
        folder = os.path.join(source, "monitor", dice.choice(names))
        with open(os.path.join(folder, dice.choice(os.listdir(folder))), "r+b") as file:
            file.seek(1000)
            file.write(dice.randbytes(50_000))
    return time.monotonic()


def forget_marker(source: str) -> None:
    """What an earlier pair left in the tree."""
    for name in os.listdir(source):
        if name.startswith(".ha-dataset"):
            os.unlink(os.path.join(source, name))


# ---- one large file


def large_file(run: Run) -> None:
    """1 MiB changed in the middle, 1 MiB inserted at the front."""
    size, rounds = (128 * MIB, 1) if run.quick else (1024 * MIB, 3)
    source, copy = run.place("large"), run.place("large-rsync")
    path = os.path.join(source, "archive.tar")
    dice = random.Random(5)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(dice.randbytes(MIB))
    figures: dict[str, tuple[list[float], list[float]]] = {"middle": ([], []), "front": ([], [])}
    wires: dict[str, list[float]] = {"middle": [], "front": []}
    with trees.rsync_daemon(source, run.place("rsync-large")) as address, storages(run, source) as (pair, target):
        synced(pair.a)
        trees.rsync_seconds(address, copy)
        for _ in range(rounds):
            for name, change in (("middle", change_middle), ("front", insert_front)):
                trees.settle()
                before = sent_mib(pair.a)
                change(path, dice.randbytes(MIB))
                took, last = synced(pair.a, begun=time.monotonic())
                wires[name].append(sent_mib(pair.a) - before)
                run.say(f"{name}: {wires[name][-1]:.2f} MiB sent, {last.objects} objects compared")
                note(run, figures, name, took, trees.rsync_seconds(address, copy))
                same(path, os.path.join(target, "archive.tar"))
    for name, (ours, theirs) in figures.items():
        run.figures[f"{name}_ratio"] = median([one / their for one, their in zip(ours, theirs, strict=True)], "x")
        run.figures[f"{name}_s"] = median(ours, "s", peer=theirs)
        run.figures[f"{name}_wire_mib"] = median(wires[name], "MiB")


def change_middle(path: str, data: bytes) -> None:
    """In place."""
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2 + 12_345)
        file.write(data)


def insert_front(path: str, data: bytes) -> None:
    """The whole file is written anew in its place, as an archiver does."""
    with open(path, "r+b") as file:
        before = file.read()
        file.seek(0)
        file.write(data)
        file.write(before)


def same(one: str, other: str) -> None:
    """Byte by byte."""
    if subprocess.run(["cmp", "-s", one, other], check=False).returncode:
        raise BenchFailure(f"{other} is not {one}")


# ---- the stream beside it, and memory


def lag_beside(run: Run) -> None:
    """The p99 of rows, idle and during a first sync."""
    seconds = 4.0 if run.quick else 20.0
    size = trees.TreeSize(recordings=3_000, small=8_000) if run.quick else trees.WHOLE
    source = run.place("lag-source")
    trees.make_tree(source, size)
    rows: dict[str, object] = {
        "name": "rows", "kind": "sqlite", "path": "rows.db", "priority": "cdr", "capture": "rows",
        "live_triggers": True,
    }  # fmt: skip
    with storages(run, source, rows, rate="") as (pair, _):
        database = os.path.join(pair.a.place.root, "rows.db")
        with Writer("rows", database) as writer:
            pair.a.until(lambda: pair.a.dataset("rows").state in {"streaming", "degraded"}, "the rows' stream")
            drain(pair.a, "rows")
            trees.settle()
            rows_lags(pair, writer, database, seconds=2.0)  # warm
            idle = rows_lags(pair, writer, database, seconds=seconds)
            during: list[float] = []
            engine = pair.a.control()
            engine.SyncStorage(pb.SyncStorageRequest(names=[STORAGE]))

            def going() -> bool:
                state: str = engine.ListStorages(pb.ListStoragesRequest()).storages[0].sync.progress.state
                return state != "idle"

            while going():
                during += rows_lags(pair, writer, database, seconds=2.0)
    run.figures["lag_idle_p99_ms"] = percentile(idle, 0.99, "ms")
    run.figures["lag_during_p99_ms"] = percentile(during, 0.99, "ms")
    ratio = nearest_rank(during, 0.99) / nearest_rank(idle, 0.99)
    run.figures["lag_ratio_during"] = single(ratio, "x", samples=len(during))


def memory_of_many(run: Run) -> None:
    """Both nodes' peaks."""
    count = MANY_QUICK if run.quick else MANY
    source = run.place("many-source")
    run.say(f"making {count:,} files")
    trees.make_many(source, count)
    with storages(run, source) as (pair, _):
        took, last = synced(pair.a)
        if last.objects < count:
            raise BenchFailure(f"only {last.objects} of {count} files were compared")
        peaks = run.note_peak(pair.a, "active"), run.note_peak(pair.b, "standby")
    run.figures["rss_mib_million"] = single(max(peaks), "MiB")
    run.figures["rss_mib_million_active"], run.figures["rss_mib_million_standby"] = (single(p, "MiB") for p in peaks)
    run.figures["files_per_s_many"] = single(count / took, "files/s")


def apart(begin: Callable[[], int]) -> int:
    """Runs it in a mount namespace of its own, as root of a user namespace where this is not root."""
    if not os.environ.get(APART):
        flags = "-m" if os.geteuid() == 0 else "-rm"
        command = ["unshare", flags, sys.executable, "-m", "benchmarks.storage", *sys.argv[1:]]
        os.execvpe(command[0], command, {**os.environ, APART: "1"})
    return begin()


if __name__ == "__main__":
    sys.exit(apart(lambda: main("storage", measure)))
