"""200,000 rows in one transaction: from its commit to the durable acknowledgement.

Rows of 15 columns with one index, in a WAL database captured by triggers. The time ends when the barrier
(`WaitReplicated`, called right after the commit) has returned; the Standby's own table, read from outside, must have
the last row by then. Rows a second is 200,000 over that time.
"""

from __future__ import annotations

import os
import sys
import time

from benchmarks.harness.observe import RowsObserver
from benchmarks.harness.processes import Writer
from benchmarks.harness.result import median
from benchmarks.harness.run import BenchFailure, Run, drain, main, toml_of
from ha_sync.sample.pair import LocalPair, Place

ROWS = 200_000


def toml(place: Place) -> str:
    """One database in rows mode."""
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
    )


def measure(run: Run) -> None:
    """See the module."""
    rounds = 3 if run.quick else 7
    with run.pair(toml) as pair:
        database = os.path.join(pair.a.place.root, "rows.db")
        with Writer("rows", database):
            pass
        pair.start()
        drain(pair.a)
        with Writer("rows", database) as writer:
            writer.do(work="paced", rate=50, seconds=1)
            drain(pair.a)
            speeds, took, commits = [], [], []
            for number in range(rounds):
                seconds, commit_s = once(pair, writer)
                run.say(f"round {number + 1}: {ROWS / seconds:,.0f} rows a second")
                speeds.append(ROWS / seconds)
                took.append(seconds)
                commits.append(commit_s)
    run.figures["rows_per_s"] = median(speeds, "rows/s")
    run.figures["burst_s"] = median(took, "s")
    run.figures["writer_commit_s"] = median(commits, "s")


def once(pair: LocalPair, writer: Writer) -> tuple[float, float]:
    """One transaction: seconds until it is durable on the Standby, and of the writer's COMMIT itself."""
    done = writer.do(work="transaction", count=ROWS)
    replicated = drain(pair.a)
    observer = RowsObserver(os.path.join(pair.b.place.root, "rows.db"))
    try:
        if observer.largest() < done["key"]:
            raise BenchFailure("the barrier returned before the rows were on the standby")
    finally:
        observer.close()
    time.sleep(0.5)
    return replicated - done["t"], done["commit_s"]


if __name__ == "__main__":
    sys.exit(main("burst", measure))
