"""A full backup that finds nothing, against `rsync` and `sqldiff`; its bytes on the wire, and what it costs the stream.

- Trees: 20,000 recordings (2 GiB) and 50,000 small files on both nodes, in the page cache. Content: against
  `rsync -a -c --dry-run` from a daemon on loopback, which hashes both sides too. Metadata: against `rsync -a` that
  finds nothing to do. In turn, from the request until the run's end is told; ours over TLS.
- Rows: one database of call records with 1,000,000 rows, against `sqldiff` of the two files; then one row of the
  Standby is changed behind its guards, and the run must find and repair it. The first run compares the rows and has
  SQLite check both files (`rows_first_s`); later ones find every byte of both as it was then.
- Lag: 100 one-row commits a second, seen from outside as in the benchmark `lag`, idle and while full backups of the
  trees follow one another at the default rate.
- Memory: the peaks of two engines that were started anew and make a full backup of 1,000,000 small files.

With --quick: a tenth of the files and rows, 10,000 small files for the memory, one round.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable

import apsw

from benchmarks.first_sync import forget_marker, join, start_active
from benchmarks.harness import trees
from benchmarks.harness.observe import RowsObserver
from benchmarks.harness.processes import Writer
from benchmarks.harness.result import median, nearest_rank, percentile, single
from benchmarks.harness.run import BenchFailure, Run, drain, main, toml_of
from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.sample.pair import LocalNode, LocalPair, Place

ROW_RATE = 100.0
LATE_S = 30.0
MANY = 1_000_000
MANY_QUICK = 10_000
ROWS = 1_000_000
CDR = """
CREATE TABLE cdr (
    id INTEGER PRIMARY KEY, calldate TEXT, clid TEXT, src TEXT, dst TEXT, dcontext TEXT, channel TEXT, dstchannel TEXT,
    lastapp TEXT, duration INTEGER, billsec INTEGER, disposition TEXT, uniqueid TEXT);
CREATE INDEX cdr_calldate ON cdr (calldate);
CREATE INDEX cdr_src ON cdr (src);
"""
FILL = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
INSERT INTO cdr SELECT i, datetime(1700000000 + i * 7, 'unixepoch'), 'Caller ' || i % 977, 1000 + i % 499,
    2000 + i % 997, 'from-internal', 'PJSIP/' || (1000 + i % 499) || '-' || printf('%08x', i),
    'PJSIP/trunk-' || printf('%08x', i * 3),
    'Dial', i % 600, i % 590, CASE i % 5 WHEN 0 THEN 'NO ANSWER' ELSE 'ANSWERED' END, '17000' || i || '.' || i % 99
FROM n;
"""


def measure(run: Run) -> None:
    """See the module."""
    compared_trees(run)
    compared_rows(run)
    lag_beside(run)
    memory_of_many(run)


def unbounded(text: str) -> str:
    """Nothing runs by itself, and the rate is the disk's."""
    return text + "\n[backup]\nfull = false\nrate_mib_per_s = 0\n"


def at_default_rate(text: str) -> str:
    """Nothing runs by itself."""
    return text + "\n[backup]\nfull = false\n"


def full_backup(node: LocalNode, verify: str) -> tuple[float, pb.FullBackupProgress]:
    """Seconds from the request until its end is told, and the end."""
    engine = node.control()
    since = time.monotonic()
    begun = engine.StartFullBackup(pb.StartFullBackupRequest(verify=verify)).progress
    *_, last = engine.WatchFullBackup(pb.WatchFullBackupRequest(run=begun.run))
    took = time.monotonic() - since
    if last.exit_code not in {0, 4}:
        raise BenchFailure(f"the full backup ended as {last.result}: {last.reason}")
    return took, last


def clean(last: pb.FullBackupProgress) -> None:
    """Both nodes are the same: anything else would be measured in vain."""
    if last.result != "done" or last.differing or last.unverified:
        raise BenchFailure(f"the full backup found {last.differing} differing, {last.unverified} unverified: {last}")


# ---- trees


def compared_trees(run: Run) -> None:
    """Against rsync."""
    size, rounds = (trees.TENTH, 1) if run.quick else (trees.WHOLE, 3)
    source = run.place("source")
    run.say(f"making {size.files:,} files")
    trees.make_tree(source, size)
    data = bytes_below(source)
    run.programs.append("rsync")
    content, metadata, whole = "rsync -a -c --dry-run", "rsync -a", {}
    run.commands += [content, metadata]

    def toml(place: Place) -> str:
        path = source if place.name == "a" else "tree"
        return unbounded(toml_of(place, {"name": "tree", "kind": "tree", "path": path, "priority": "recordings"}))

    figures: dict[str, tuple[list[float], list[float]]] = {"content": ([], []), "metadata": ([], [])}
    with run.pair(toml) as pair, trees.rsync_daemon(source, run.place("rsync")) as address:
        synced(pair, size.files)
        copy = os.path.join(pair.b.place.root, "tree")
        trees.settle()
        for verify, command in (("content", content), ("metadata", metadata)):
            rsync(command, address, copy)  # warm
            for _ in range(rounds):
                theirs = rsync(command, address, copy)
                ours, whole[verify] = full_backup(pair.a, verify)
                clean(whole[verify])
                run.say(f"{verify}: {ours:.2f} s, rsync {theirs:.2f} s")
                figures[verify][0].append(ours)
                figures[verify][1].append(theirs)
    forget_marker(source)
    for verify, (ours, theirs) in figures.items():
        ratios = [one / their for one, their in zip(ours, theirs, strict=True)]
        run.figures[f"{verify}_ratio_rsync"] = median(ratios, "x")
        run.figures[f"{verify}_s"] = median(ours, "s", peer=theirs)
    if whole["content"].objects < size.files:
        raise BenchFailure(f"only {whole['content'].objects} objects were compared")
    run.figures["wire_percent_identical"] = single(100 * whole["content"].wire_bytes / data, "%")


def synced(pair: LocalPair, files: int) -> None:
    """The Standby has the Active's tree."""
    start_active(pair, files)
    join(pair)
    pair.b.serve("standby", 1)
    pair.until_streaming(timeout_s=600)
    drain(pair.a, timeout_s=600)


def rsync(command: str, address: str, destination: str) -> float:
    """Seconds."""
    since = time.monotonic()
    arguments = [*command.split(), "--exclude=/.ha-*", address, destination + "/"]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - since


def bytes_below(root: str) -> int:
    """Of all files."""
    return sum(os.stat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(root) for name in names)


# ---- rows


def rows_toml(place: Place) -> str:
    """One database."""
    dataset = {"name": "cdr", "kind": "sqlite", "path": "cdr.db", "capture": "rows", "live_triggers": True}
    return unbounded(toml_of(place, {**dataset, "priority": "cdr"}))


def compared_rows(run: Run) -> None:
    """Against sqldiff; then one changed row."""
    count, rounds = (ROWS // 10, 1) if run.quick else (ROWS, 3)
    run.commands.append("sqldiff active/cdr.db standby/cdr.db")
    with run.pair(rows_toml) as pair:
        active, standby = (os.path.join(node.place.root, "cdr.db") for node in (pair.a, pair.b))
        run.say(f"making {count:,} call records")
        with contextlib.closing(sqlite3.connect(active)) as connection, connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(CDR)
            connection.execute(FILL, (count,))
        pair.start()
        pair.until_streaming(timeout_s=300)
        pair.a.until(lambda: pair.a.dataset("cdr").HasField("acknowledged"), "the full sync", timeout_s=300)
        drain(pair.a, timeout_s=300)
        ours, theirs = [], []
        for _ in range(rounds):
            theirs.append(sqldiff(active, standby))
            took, last = full_backup(pair.a, "content")
            clean(last)
            ours.append(took)
            run.say(f"rows: {took:.2f} s, sqldiff {theirs[-1]:.2f} s")
        change_a_row(standby, count // 2)
        _, last = full_backup(pair.a, "content")
        if (last.result, last.differing, last.repaired) != ("done", 1, 1):
            raise BenchFailure(f"one changed row was not found and repaired: {last}")
    pairs = zip(ours, theirs, strict=True)
    run.figures["rows_ratio_sqldiff"] = median([one / their for one, their in pairs], "x")
    run.figures["rows_seconds"] = median(ours, "s", peer=theirs)
    run.figures["rows_first_s"] = single(ours[0], "s")
    run.figures["wire_kib_one_row"] = single(last.wire_bytes / 1024, "KiB")


def sqldiff(active: str, standby: str) -> float:
    """Seconds."""
    since = time.monotonic()
    said = subprocess.run(["sqldiff", "--table", "cdr", active, standby], check=True, capture_output=True).stdout
    if said:
        raise BenchFailure(f"sqldiff says: {said[:200]!r}")
    return time.monotonic() - since


def change_a_row(path: str, key: int) -> None:
    """Behind the guards, as a broken disk or a clever administrator would."""
    connection = apsw.Connection(path)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    connection.set_busy_timeout(10_000)
    connection.execute("UPDATE cdr SET billsec = billsec + 1 WHERE id = ?", (key,))
    connection.close()


# ---- lag


def lag_beside(run: Run) -> None:
    """The p99 of rows, idle and during full backups."""
    seconds = 4.0 if run.quick else 30.0
    files = 1_000 if run.quick else 20_000

    def toml(place: Place) -> str:
        rows = {"name": "rows", "kind": "sqlite", "path": "rows.db", "priority": "cdr", "capture": "rows"}
        tree = {"name": "tree", "kind": "tree", "path": "tree", "priority": "recordings"}
        return at_default_rate(toml_of(place, {**rows, "live_triggers": True}, tree))

    with run.pair(toml) as pair:
        database = os.path.join(pair.a.place.root, "rows.db")
        trees.make_tree(os.path.join(pair.a.place.root, "tree"), trees.TreeSize(recordings=files, small=files))
        with Writer("rows", database) as writer:
            pair.start()
            pair.until_streaming(timeout_s=300)
            drain(pair.a, timeout_s=300)
            trees.settle()
            rows_lags(pair, writer, database, seconds=2.0)  # warm
            idle = rows_lags(pair, writer, database, seconds=seconds)
            begin = pair.a.control().StartFullBackup
            begin(pb.StartFullBackupRequest())

            def again() -> None:
                # One follows the other for as long as rows are written.
                begin(pb.StartFullBackupRequest())

            during = rows_lags(pair, writer, database, seconds=seconds, beside=again)
    run.figures["lag_idle_p99_ms"] = percentile(idle, 0.99, "ms")
    run.figures["lag_during_p99_ms"] = percentile(during, 0.99, "ms")
    run.figures["lag_ratio_during"] = single(
        nearest_rank(during, 0.99) / nearest_rank(idle, 0.99), "x", samples=len(idle)
    )


def rows_lags(
    pair: LocalPair, writer: Writer, database: str, *, seconds: float, beside: Callable[[], None] | None = None
) -> list[float]:
    """Milliseconds from each commit until the row is in the Standby's file."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        first = connection.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0]
    observer = RowsObserver(os.path.join(pair.b.place.root, "rows.db"))
    writer.order(work="paced", rate=ROW_RATE, seconds=seconds)
    last = first + int(ROW_RATE * seconds)
    begun = time.monotonic()
    done = first

    def arrived(largest: int) -> bool:
        nonlocal begun, done
        done = largest
        if beside is not None and time.monotonic() - begun > 0.5:
            begun = time.monotonic()
            beside()
        return largest >= last

    observer.follow(arrived, timeout_s=seconds + LATE_S)
    observer.close()
    committed: list[tuple[int, float]] = [(key, at) for key, at in writer.answer()]
    lags, steps = [], iter(observer.seen)
    largest, seen_at = next(steps)
    for key, at in committed:
        while largest < key:
            largest, seen_at = next(steps)
        lags.append((seen_at - at) * 1000)
    return lags


# ---- memory


def memory_of_many(run: Run) -> None:
    """Both nodes' peaks, of engines that do nothing else."""
    count = MANY_QUICK if run.quick else MANY

    def toml(place: Place) -> str:
        return unbounded(toml_of(place, {"name": "many", "kind": "tree", "path": "tree", "priority": "recordings"}))

    with run.pair(toml) as pair:
        run.say(f"making {count:,} files")
        trees.make_many(os.path.join(pair.a.place.root, "tree"), count)
        pair.pair_up()
        pair.b.serve("standby", 1)
        pair.until_streaming(timeout_s=3600)
        drain(pair.a, timeout_s=3600)
        for node, role in ((pair.a, "active"), (pair.b, "standby")):
            node.stop()
            node.serve(role, 1)
        pair.until_streaming(timeout_s=600)
        drain(pair.a, timeout_s=600)
        took, last = full_backup(pair.a, "content")
        clean(last)
        if last.objects < count:
            raise BenchFailure(f"only {last.objects} of {count} files were compared")
        peaks = run.note_peak(pair.a, "active"), run.note_peak(pair.b, "standby")
    run.figures["rss_mib_million"] = single(max(peaks), "MiB")
    run.figures["rss_mib_million_active"], run.figures["rss_mib_million_standby"] = (single(p, "MiB") for p in peaks)
    run.figures["files_per_s_many"] = single(count / took, "files/s")


if __name__ == "__main__":
    sys.exit(main("full-backup", measure))
