"""How long until a committed row, a closed file, a growing recording is durable on the Standby.

Three loads, one after another, on one pair over TLS: 100 one-row commits a second (WAL, synchronous FULL); 20 files of
200 KB a second; recordings that grow by 32 KiB every 2.048 s, and again eight times as fast. Each is seen twice: from
outside (the writer's clock after commit, close or append, until the row, the file or the bytes are in the Standby's
own files) and by the Active's lag ledger (noticed until the durable acknowledgement arrived). The figure is the worse
of the two; both stand beside it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time

from benchmarks.harness.observe import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_MODIFY,
    IN_MOVED_TO,
    GrowingObserver,
    RowsObserver,
    Watch,
)
from benchmarks.harness.processes import Writer
from benchmarks.harness.result import percentile, single, worse
from benchmarks.harness.run import BenchFailure, Run, drain, lag_ms, main, toml_of
from benchmarks.harness.writers import TAG_BYTES
from ha_sync.sample.audio import WAV_HEADER_BYTES
from ha_sync.sample.pair import LocalPair, Place

ROW_RATE = 100.0
FILE_RATE = 20.0
FILE_BYTES = 200_000
RECORDINGS = 40
FASTER = 8.0
LATE_S = 30.0
PARTIALS = ".ha-partial"


def toml(place: Place) -> str:
    """A database and two trees."""
    return toml_of(
        place,
        {
            "name": "rows",
            "kind": "sqlite",
            "path": "rows.db",
            "priority": "cdr",
            "capture": "rows",
            "live_triggers": True,
        },
        {"name": "files", "kind": "tree", "path": "files", "priority": "voicemail", "mailboxes": False},
        {"name": "growing", "kind": "tree", "path": "growing", "priority": "recordings", "growing": True},
    )


def measure(run: Run) -> None:
    """See the module."""
    seconds = 8.0 if run.quick else 40.0
    with run.pair(toml) as pair:
        database = os.path.join(pair.a.place.root, "rows.db")
        with Writer("rows", database):
            pass  # makes the table
        for name in ("files", "growing"):
            os.makedirs(os.path.join(pair.a.place.root, name))
        pair.start()
        drain(pair.a)
        run.say("pair streams; rows")
        rows(run, pair, database, seconds)
        run.say("files")
        files(run, pair, seconds)
        run.say("growing recordings")
        growing(run, pair, 10.0 if run.quick else 40.0)


def rows(run: Run, pair: LocalPair, database: str, seconds: float) -> None:
    """Rows: the observer reads the Standby's table."""
    with Writer("rows", database) as writer:
        writer.do(work="paced", rate=ROW_RATE, seconds=2.0)  # warm
        drain(pair.a)
        with sqlite3.connect(database) as connection:
            first = connection.execute("SELECT max(id) FROM event").fetchone()[0]
        connection.close()
        observer = RowsObserver(os.path.join(pair.b.place.root, "rows.db"))
        writer.order(work="paced", rate=ROW_RATE, seconds=seconds)
        last = first + int(ROW_RATE * seconds)
        observer.follow(lambda largest: largest >= last, timeout_s=seconds + LATE_S)
        observer.close()
        committed: list[tuple[int, float]] = [(key, at) for key, at in writer.answer()]
    lags, steps = [], iter(observer.seen)
    largest, seen_at = next(steps)
    for key, at in committed:
        while largest < key:
            largest, seen_at = next(steps)
        lags.append((seen_at - at) * 1000)
    put(run, "row", lags, lag_ms(pair.a, "rows"))


def files(run: Run, pair: LocalPair, seconds: float) -> None:
    """Files: the observer sees the final name appear."""
    arrived: dict[str, float] = {}
    roots = [os.path.join(node.place.root, "files") for node in (pair.a, pair.b)]

    def note(_directory: str, name: str, at: float) -> None:
        arrived.setdefault(name, at)

    with (
        Writer("files", roots[0]) as writer,
        Watch(
            [roots[1]],
            IN_MOVED_TO | IN_CREATE | IN_CLOSE_WRITE,
            note,
        ),
    ):
        writer.do(work="paced", rate=FILE_RATE, seconds=2.0, size=FILE_BYTES)
        closed: list[tuple[str, float]] = writer.do(work="paced", rate=FILE_RATE, seconds=seconds, size=FILE_BYTES)
        drain(pair.a)
        time.sleep(0.2)
    missing = [name for name, _ in closed if name not in arrived]
    if missing:
        raise BenchFailure(f"{len(missing)} files never appeared on the standby, first {missing[0]}")
    put(run, "file", [(arrived[name] - at) * 1000 for name, at in closed], lag_ms(pair.a, "files"))


def put(run: Run, what: str, lags: list[float], ledger: tuple[float, float] | None) -> None:
    """The worse of the two views under the plain key, and both."""
    if ledger is None:
        raise BenchFailure(f"the active says no lag of its {what}s")
    for share, label, told in ((0.5, "p50", ledger[0]), (0.99, "p99", ledger[1])):
        views = percentile(lags, share, "ms"), single(told, "ms", samples=len(lags))
        run.figures[f"{what}_{label}_ms"] = worse(*views)
        run.figures[f"{what}_seen_{label}_ms"], run.figures[f"{what}_ledger_{label}_ms"] = views


def growing(run: Run, pair: LocalPair, seconds: float) -> None:
    """Recordings: at the PBX's pace, then faster."""
    behind = percentile(_grow(pair, 1.0, seconds), 0.99, "s")
    run.figures["growing_behind_s"] = run.figures["growing_seen_p99_s"] = behind
    if ledger := lag_ms(pair.a, "growing"):
        told = single(ledger[1] / 1000, "s", samples=behind.n)
        run.figures["growing_behind_s"], run.figures["growing_ledger_p99_s"] = worse(behind, told), told
    run.figures["growing_faster_seen_p99_s"] = percentile(_grow(pair, FASTER, seconds), 0.99, "s")


def _grow(pair: LocalPair, speed: float, seconds: float) -> list[float]:
    roots = [os.path.join(node.place.root, "growing") for node in (pair.a, pair.b)]
    observer = GrowingObserver(roots[1], tag_at=WAV_HEADER_BYTES, tag_bytes=TAG_BYTES)
    partials = os.path.join(roots[1], PARTIALS)
    with Writer("growing", roots[0]) as writer, Watch([partials], IN_MODIFY | IN_CREATE, observer):
        writer.order(work="grow", count=RECORDINGS, speed=speed, seconds=seconds)
        done: list[tuple[str, int, float]] = [(tag, size, at) for tag, size, at in writer.answer()]
        drain(pair.a)
    return behind_of(done, observer.seen)


def behind_of(done: list[tuple[str, int, float]], seen: dict[str, list[tuple[int, float]]]) -> list[float]:
    """For every append: how long until the copy was as long. The last append of each is left out: its close follows."""
    last = {tag: size for tag, size, _ in done}
    lags = []
    for tag, size, at in done:
        if size == last[tag]:
            continue
        reached = next((when for there, when in seen.get(tag.strip(), ()) if there >= size), None)
        if reached is None:
            raise BenchFailure(f"the copy of {tag} was never {size} bytes long while it grew")
        lags.append(max(0.0, reached - at))
    return lags


if __name__ == "__main__":
    sys.exit(main("lag", measure))
