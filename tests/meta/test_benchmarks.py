"""The benchmarks: each says what it measures, gives the stated shape, and its instruments see what they claim."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks import busy, lag
from benchmarks.harness import result
from benchmarks.harness.observe import IN_CLOSE_WRITE, IN_MODIFY, GrowingObserver, RowsObserver, Watch
from benchmarks.harness.processes import CpuMeter, Writer, peak_mib, tree_of
from benchmarks.harness.relay import Relay
from benchmarks.harness.run import Run, main
from benchmarks.harness.trees import TreeSize, count_files, make_tree
from benchmarks.harness.writers import TAG_BYTES, Legacy
from ha_sync.sample.audio import WAV_HEADER_BYTES

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = [
    "lag",
    "capture",
    "busy",
    "pages",
    "burst",
    "first-sync",
    "reconnect",
    "memory",
    "idle",
    "failover",
    "full-backup",
    "storage",
]
KEYS = {
    "lag": {"row_p50_ms", "row_p99_ms", "file_p50_ms", "file_p99_ms", "growing_behind_s"},
    "capture": {"commit_ratio", "commit_extra_us"},
    "busy": {"cpu_percent_active", "cpu_percent_standby", "pages_lag_p99_s"},
    "pages": {"accept_percent_20mb", "writer_slowdown_percent"},
    "burst": {"rows_per_s"},
    "first-sync": {"ratio_rsync", "files_per_s"},
    "reconnect": {"seconds", "restart_scan_s"},
    "memory": {"rss_mib_max", "rss_mib_million"},
    "idle": {"cpu_percent"},
    "full-backup": {
        "content_ratio_rsync",
        "metadata_ratio_rsync",
        "rows_ratio_sqldiff",
        "rows_seconds",
        "wire_percent_identical",
        "wire_kib_one_row",
        "lag_ratio_during",
        "rss_mib_million",
    },
    "storage": {
        "first_ratio",
        "unchanged_ratio",
        "hundred_ratio",
        "middle_ratio",
        "middle_wire_mib",
        "front_ratio",
        "front_wire_mib",
        "rss_mib_million",
        "lag_ratio_during",
    },
    "failover": {
        "crash_outage_over_timeout_s",
        "dual_holder_resume_s",
        "dual_holder_s",
        "self_fault_s",
        "planned_address_outage_s",
        "planned_lost",
        "planned_service_outage_s",
        "single_keeps",
        "cable_switches",
        "loss_switches",
        "agent_rss_mib",
        "agent_cpu_percent",
    },
}


def listed() -> str:
    """What ``scripts/bench --list`` prints, without its setup (which may install packages)."""
    script = (ROOT / "scripts/bench").read_text()
    program = script.partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
    done = subprocess.run([sys.executable, "-"], input=program, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_list_names_every_benchmark_and_what_it_measures() -> None:
    lines = [line.split(maxsplit=1) for line in listed().splitlines()]
    assert sorted(name for name, _ in lines) == sorted(NAMES)
    assert all(len(promise) > 20 for _, promise in lines)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_has_a_promise_and_its_keys(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    assert len((module.__doc__ or "").splitlines()) > 2
    source = Path(module.__file__ or "").read_text()
    # Keys of one family are put together from their stem: row_p50_ms from "row" and "p50".
    assert not [key for key in KEYS[name] if not all(part in source for part in key.split("_"))]


def test_every_benchmark_stands_in_the_document() -> None:
    text = (ROOT / "docs/benchmarks.md").read_text()
    assert not [name for name in NAMES if f"## {name}" not in text]
    assert not [key for keys in KEYS.values() for key in keys if f"`{key}`" not in text]


def test_a_result_has_the_stated_shape(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(run: Run) -> None:
        run.figures["row_p50_ms"] = result.percentile([1.0, 3.0, 2.0], 0.5, "ms")
        run.figures["ratio_rsync"] = result.median([3.0, 2.0, 4.0], "s", peer=[2.0])

    assert main("lag", measure, ["--quick", "--json", "-"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert set(made) == {"name", "machine", "versions", "commands", "figures"}
    assert made["commands"] == ["scripts/bench lag --quick"]
    fields = {"value", "unit", "min", "max", "n", "peer", "ratio"}
    assert all(set(figure) == fields for figure in made["figures"].values())
    assert made["figures"]["ratio_rsync"] == {
        "value": 3.0, "unit": "s", "min": 2.0, "max": 4.0, "n": 3, "peer": 2.0, "ratio": 1.5,
    }  # fmt: skip
    assert socket.gethostname() not in json.dumps(made["machine"])


def test_a_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def measure(run: Run) -> None:
        Path(run.place("tree"), "file").write_text("x")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        main("lag", measure, [])
    assert list(tmp_path.iterdir()) == []


def test_the_verdict_follows_the_bar() -> None:
    assert [result.BARS["row_p99_ms"].verdict(value) for value in (10, 30, 31)] == ["aim", "bar", "MISSED"]
    assert [result.BARS["rows_per_s"].verdict(value) for value in (59_999, 60_000, 120_000)] == ["MISSED", "bar", "aim"]


def test_a_percentile_is_one_of_the_samples() -> None:
    samples = [float(number) for number in range(1, 101)]
    assert (result.nearest_rank(samples, 0.99), result.nearest_rank(samples, 0.5)) == (99.0, 50.0)
    assert result.nearest_rank([7.0], 0.99) == 7.0


def test_a_row_is_seen_with_its_time(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.db")
    with Writer("rows", path) as writer:
        observer = RowsObserver(path)
        writer.order(work="paced", rate=100, seconds=0.2)
        observer.follow(lambda largest: largest >= 20, timeout_s=20)
        committed = writer.answer()
        observer.close()
    assert [key for key, _ in committed] == list(range(1, 21))
    assert observer.seen[-1][0] == 20
    assert committed[-1][1] - 0.05 < observer.seen[-1][1]


def test_growing_copies_are_recognized_by_their_first_bytes(tmp_path: Path) -> None:
    observer = GrowingObserver(str(tmp_path), tag_at=WAV_HEADER_BYTES, tag_bytes=TAG_BYTES)
    with Watch([str(tmp_path)], IN_MODIFY, observer), Writer("growing", str(tmp_path)) as writer:
        done = [tuple(item) for item in writer.do(work="grow", count=2, speed=40.0, seconds=0.4)]
        time.sleep(0.3)
    assert len({tag for tag, _, _ in done}) == 2
    behind = lag.behind_of(done, observer.seen)
    assert len(behind) == len(done) - 2
    assert max(behind) < 5


def test_a_copy_that_stays_short_fails_the_benchmark() -> None:
    done = [("a", 10, 1.0), ("a", 20, 2.0)]
    assert lag.behind_of(done, {"a": [(5, 1.1), (10, 1.25)]}) == [0.25]
    with pytest.raises(Exception, match="never 10 bytes"):
        lag.behind_of(done, {"a": [(5, 1.1)]})


def test_a_legacy_writer_that_meets_a_lock_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "old.db")
    keys = Legacy.make(path, 100_000)
    with Writer("legacy", path) as writer:
        assert writer.do(work="paced", rate=200, seconds=0.1, keys=keys)["lost"] == 0
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert writer.do(work="paced", rate=200, seconds=0.1, keys=keys)["lost"] == 20


def image_of(tmp_path: Path, rows: dict[str, str]) -> bytes:
    path = tmp_path / f"{len(rows)}-{hash(tuple(rows.items()))}.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE astdb(key VARCHAR(256), value VARCHAR(256), PRIMARY KEY(key))")
        connection.executemany("INSERT INTO astdb VALUES (?, ?)", rows.items())
        connection.commit()
    return path.read_bytes()


def test_the_lag_of_pages_runs_from_a_commit_to_the_copy_that_holds_it(tmp_path: Path) -> None:
    def line(mark: int, at: float, rows: dict[str, str]) -> list[dict[str, object]]:
        digests = [["astdb", busy.key_text([key]), busy.row_digest((key, value))] for key, value in rows.items()]
        announced = {"k": "tx", "t": at, "id": mark, "db": busy.ASTDB, "rows": digests}
        return [announced, {"k": "done", "t": at, "id": mark}]

    lines = [*line(1, 1.0, {"a": "1"}), *line(2, 2.0, {"b": "2"})]
    first, both = image_of(tmp_path, {"a": "1"}), image_of(tmp_path, {"a": "1", "b": "2"})
    assert busy.pages_lags(lines, [(1.25, first), (2.5, both)], 0.5) == [0.25, 0.5]
    assert busy.pages_lags(lines, [(2.5, both)], 0.5) == [1.5, 0.5]
    with pytest.raises(Exception, match="last commit"):
        busy.pages_lags(lines, [(1.25, first)], 0.5)
    with pytest.raises(Exception, match="no committed state"):
        busy.pages_lags(lines, [(2.5, image_of(tmp_path, {"b": "2"}))], 0.5)


def test_the_meters_see_a_busy_child() -> None:
    burn = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    inner = "x = bytearray(64 << 20)\nprint('go', flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", burn, inner], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        meter = CpuMeter(process.pid)
        assert peak_mib(process.pid) > 64
        while meter.percent() == 0:
            time.sleep(0.05)
        assert meter.percent() > 0
        os.kill(tree_of(process.pid)[1].pid, signal.SIGKILL)
    finally:
        process.wait(30)
        process.stdout.close()


def test_a_relay_passes_bytes_until_it_is_cut_and_again_when_it_opens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"127.0.0.1:{server.getsockname()[1]}")
        port = int(relay.address.rpartition(":")[2])

        def ask() -> socket.socket:
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            inner, _ = server.accept()
            with inner:
                client.sendall(b"x")
                assert inner.recv(1) == b"x"
                inner.sendall(b"y")
                assert client.recv(1) == b"y"
                relay.cut()
                with contextlib.suppress(ConnectionError):
                    assert client.recv(1) == b""
            return client

        ask().close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
        relay.open()
        ask().close()


def test_no_two_files_of_a_tree_are_alike(tmp_path: Path) -> None:
    make_tree(str(tmp_path), TreeSize(recordings=3, small=30))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len({path.read_bytes() for path in files}) == count_files(str(tmp_path)) == 33


def test_a_watch_stamps_events_with_the_monotonic_clock(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    came = threading.Event()

    def note(_: str, name: str, at: float) -> None:
        seen.append((name, at))
        came.set()

    with Watch([str(tmp_path)], IN_CLOSE_WRITE, note):
        before = time.monotonic()
        (tmp_path / "file").write_text("x")
        assert came.wait(30)
    assert seen[0][0] == "file"
    assert seen[0][1] >= before
