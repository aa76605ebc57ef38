"""The engine's processor time and the lag of ``astdb`` beside a busy sample PBX (40 calls, call events on).

The sample runs at the rates of a real PBX; after a warm-up the CPU of both engines, children included, is read from
/proc. The lag of ``astdb`` (captured as pages) runs from the moment its own commit returned to the moment a copy that
holds that commit appeared on the Standby, seen from outside: each published copy is read and must equal a committed
state of the writer.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time

from benchmarks.harness.observe import IN_CLOSE_WRITE, IN_MOVED_TO, Seen, Watch
from benchmarks.harness.result import median, percentile, single
from benchmarks.harness.run import BenchFailure, Run, drain, main, meters
from ha_sync.sample.astdb import UUID_KEY
from ha_sync.sample.ledger import Line, read_ledger, row_digest
from ha_sync.sample.pair import LocalPair, Place
from ha_sync.sample.settings import (
    ASTDB,
    CSV_DIR,
    ETC_DIR,
    MONITOR_DIR,
    OUTGOING_DIR,
    VOICEMAIL_DIR,
    SampleSettings,
    start_command,
)
from ha_sync.sample.synctoml import sync_toml
from ha_sync.sample.tables import key_text

WARM_S = 5.0
SLICE_S = 5.0
WRITTEN_DOWN_S = 0.05
State = dict[str, str]


def toml(place: Place) -> str:
    """All nine datasets of the sample."""
    return sync_toml(
        root=place.root, state_dir=place.state_dir, run_dir=place.run_dir, listen=place.listen, peer=place.peer
    )


def begin_sample(root: str, ledger: str, *, start: int) -> subprocess.Popen[bytes]:
    """The sample PBX, with its databases made; ``start`` counts its starts over the same files."""
    command = start_command(SampleSettings(root=root, ledger=ledger, run=start))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise BenchFailure(f"the sample ended with {process.wait()}")
    return process


def end_sample(process: subprocess.Popen[bytes]) -> None:
    """A clean stop."""
    process.terminate()
    process.communicate(timeout=60)
    if process.returncode != 0:
        raise BenchFailure(f"the sample ended with {process.returncode}")


def measure(run: Run) -> None:
    """See the module."""
    seconds = 25.0 if run.quick else 120.0
    ledger = os.path.join(run.place("ledger"), "ledger.jsonl")
    with run.pair(toml) as pair:
        warm(pair, ledger)
        pair.start()
        drain(pair.a)
        copies: list[tuple[float, bytes]] = []
        watch = Watch([pair.b.place.root], IN_MOVED_TO | IN_CLOSE_WRITE, keep_copies(copies))
        run.say("the sample runs")
        watched_since = time.monotonic()
        with watch:
            sample = begin_sample(pair.a.place.root, ledger, start=1)
            try:
                time.sleep(WARM_S)
                active, standby = cpu(pair, seconds)
            finally:
                end_sample(sample)
            drain(pair.a)
            time.sleep(0.5)
        run.figures["cpu_percent_active"] = median(active, "% of a core")
        run.figures["cpu_percent_standby"] = median(standby, "% of a core")
        lags = pages_lags(list(read_ledger(ledger)), copies, watched_since)
        run.figures["pages_lag_p99_s"] = percentile(lags, 0.99, "s")
        run.figures["pages_lag_p50_s"] = percentile(lags, 0.5, "s")
        for item in pair.a.status().datasets:
            if item.lag.samples:
                figure = single(item.lag.p50_ms, "ms", samples=item.lag.samples)
                run.figures[f"{item.name.replace('-', '_')}_ledger_p50_ms"] = figure
        lost = [line for line in read_ledger(ledger) if line["k"] == "lost"]
        run.figures["sample_lost"] = single(len(lost), "rows")


def warm(pair: LocalPair, ledger: str) -> None:
    """A short run before the engines: the databases exist and nobody has them open when the triggers come."""
    for name in (ETC_DIR, CSV_DIR, VOICEMAIL_DIR, MONITOR_DIR, OUTGOING_DIR):
        os.makedirs(os.path.join(pair.a.place.root, name), exist_ok=True)
    process = begin_sample(pair.a.place.root, ledger, start=0)
    time.sleep(2.0)
    end_sample(process)


def cpu(pair: LocalPair, seconds: float) -> tuple[list[float], list[float]]:
    """Percent of a core in slices."""
    active, standby = [], []
    for _ in range(round(seconds / SLICE_S)):
        one, other = meters(pair)
        time.sleep(SLICE_S)
        active.append(one.percent())
        standby.append(other.percent())
    return active, standby


def keep_copies(copies: list[tuple[float, bytes]]) -> Seen:
    """Reads each published copy of ``astdb`` at once; it stamps the time at which the event was taken."""

    def seen(directory: str, name: str, at: float) -> None:
        if name == ASTDB:
            with open(os.path.join(directory, name), "rb") as file:
                copies.append((at, file.read()))

    return seen


def pages_lags(lines: list[Line], copies: list[tuple[float, bytes]], watched_since: float) -> list[float]:
    """Seconds from each commit to the first copy that holds it (it, or a later one)."""
    commits = committed_states(lines)
    rank = {frozenset(state.items()): number for number, (_, state) in enumerate(commits)}
    ranked = []
    for at, image in copies:
        state = frozenset(state_of(image).items())
        if state not in rank:
            raise BenchFailure("a published copy of astdb equals no committed state of the writer")
        ranked.append((at, rank[state]))
    if not ranked or ranked[-1][1] != len(commits) - 1:
        raise BenchFailure("the last commit of astdb never came to the standby")
    lags = []
    for number, (since, state) in enumerate(commits):
        # A transaction that only deleted what was not there changes nothing: no copy follows it.
        if since >= watched_since and state != commits[number - 1][1]:
            # A copy may come while the writer still writes down that its commit returned.
            reached = next(at for at, there in ranked if there >= number and at >= since - WRITTEN_DOWN_S)
            lags.append(max(0.0, reached - since))
    return lags


def committed_states(lines: list[Line]) -> list[tuple[float, State]]:
    """After every committed transaction of ``astdb``: when, and its rows' digests by key."""
    announced: dict[int, Line] = {}
    state: State = {}
    states: list[tuple[float, State]] = [(0.0, {})]
    for line in lines:
        if line["k"] == "tx" and line["db"] == ASTDB:
            announced[line["id"]] = line
        elif line["k"] == "done" and line["id"] in announced:
            for _, key, digest in announced.pop(line["id"])["rows"]:
                if digest is None:
                    state.pop(key, None)
                else:
                    state[key] = digest
            states.append((line["t"], dict(state)))
    return states


def state_of(image: bytes) -> State:
    """The rows of a copy, as the ledger tells them."""
    connection = sqlite3.connect(":memory:")
    connection.deserialize(image)
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    rows = connection.execute("SELECT key, value FROM astdb").fetchall()
    connection.close()
    return {key_text([key]): row_digest((key, value)) for key, value in rows if key != UUID_KEY}


if __name__ == "__main__":
    sys.exit(main("busy", measure))
