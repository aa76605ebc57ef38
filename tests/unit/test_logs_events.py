"""The event log: nothing that was written is lost, nobody waits for it, and it stays small."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.logs import events
from ha_sync.logs.events import Event, EventLog, read_events

pytestmark = pytest.mark.req("R31")

NOW = 1_790_000_000.0
DAY = 86400.0


class Wall:
    def __init__(self) -> None:
        self.unix_s = NOW

    def __call__(self) -> float:
        return self.unix_s


@contextlib.contextmanager
def opened(path: Path, **limits: object) -> Iterator[EventLog]:
    log = EventLog(str(path), **limits)  # type: ignore[arg-type]
    try:
        yield log
    finally:
        log.close()


def _what(found: list[Event]) -> list[str]:
    return [event.what for event in found]


def test_what_was_appended_is_found_in_order_with_its_fields(tmp_path: Path) -> None:
    wall = Wall()
    with opened(tmp_path / "logs" / "events.db", wall_clock=wall) as log:
        log.append("info", "stream opened", {"dataset": "cdr", "epoch": 3, "path": b"a\xff"})
        wall.unix_s += 10
        log.append("error", "dataset failed", {})
        found = log.query()
    assert [(event.unix_s, event.severity, event.what) for event in found] == [
        (NOW, "info", "stream opened"),
        (NOW + 10, "error", "dataset failed"),
    ]
    assert found[0].fields == {"dataset": "cdr", "epoch": "3", "path": "a\\xff"}
    assert found[0].id < found[1].id


def test_a_query_is_bounded_by_time_number_and_severity(tmp_path: Path) -> None:
    wall = Wall()
    with opened(tmp_path / "events.db", wall_clock=wall) as log:
        for number, severity in enumerate(["info", "warning", "error", "info", "warning"]):
            wall.unix_s = NOW + number
            log.append(severity, str(number), {})
        assert _what(log.query(NOW + 2)) == ["2", "3", "4"]
        assert _what(log.query(limit=2)) == ["3", "4"]
        assert _what(log.query(severity="warning")) == ["1", "2", "4"]
        first = log.query()[0].id
        assert _what(log.query(after_id=first, limit=2)) == ["1", "2"]  # a reader goes on without a gap


def test_the_log_is_bounded_in_rows(tmp_path: Path) -> None:
    with opened(tmp_path / "events.db", rows_max=50) as log:
        for number in range(500):
            log.append("info", str(number), {})
        log.flush()
        log.append("info", "last", {})
        found = log.query(limit=1000)
    assert 50 <= len(found) <= 100
    assert found[-1].what == "last"


def test_old_events_go_but_a_clock_that_jumps_does_not_empty_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "ROWS_KEPT_MIN", 20)
    monkeypatch.setattr(events, "TRIM_EVERY", 10)
    wall = Wall()
    with opened(tmp_path / "events.db", days_max=30, wall_clock=wall) as log:
        for number in range(100):
            log.append("info", str(number), {})
        log.flush()
        wall.unix_s += 100 * 365 * DAY
        for _ in range(10):
            log.append("info", "much later", {})
        found = log.query(limit=1000)
    assert len(found) == 20
    assert _what(found[:10]) == [str(number) for number in range(90, 100)]


def test_appending_does_not_wait_for_a_locked_file_and_says_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PENDING_MAX", 5)
    path = tmp_path / "events.db"
    with opened(path) as log:
        log.append("info", "first", {})
        assert log.flush()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(100):
                log.append("info", "flood", {"number": number})  # returns at once: the queue is full
            other.execute("COMMIT")
        log.flush()
        log.append("info", "last", {})
        found = log.query()
    told = [event for event in found if event.what == "events were left out: too many at once"]
    kept = _what(found).count("flood")
    assert kept + sum(int(event.fields["count"]) for event in told) == 100
    assert kept < 100
    assert found[-1].what == "last"


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal\n"
        "from ha_sync.logs.events import EventLog\n"
        "log = EventLog(sys.argv[1])\n"
        "for number in range(200): log.append('info', str(number), {})\n"
        "assert log.flush()\n"
        "log.append('info', 'perhaps', {})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "events.db"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    with opened(path) as log:
        log.append("info", "again", {})
        found = _what(log.query())
    assert found[:200] == [str(number) for number in range(200)]
    assert found[-1] == "again"


@pytest.mark.parametrize("damage", ["noise", "torn", "empty header"])
def test_a_damaged_file_is_set_aside_and_the_new_one_says_so(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "events.db"
    with opened(path) as log:
        for number in range(2000):
            log.append("info", "old", {"number": number, "filling": "x" * 100})
    content = path.read_bytes()
    damaged = {
        "noise": b"\x5a" * 10000,
        "torn": content[: len(content) // 2],
        "empty header": bytes(100) + content[100:],
    }[damage]
    path.write_bytes(damaged)
    with opened(path) as log:
        log.append("info", "new", {})
        found = log.query()
    assert _what(found) == ["event log was damaged and set aside", "new"]
    assert Path(found[0].fields["kept_as"]).read_bytes() == damaged


def test_a_file_that_somebody_changed_does_not_kill_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with opened(path) as log:
        log.append("info", "old", {})
        log.flush()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("DROP TABLE event")
            other.execute("CREATE VIEW event AS SELECT 1 AS id")
            other.commit()
        log.append("info", "lost with the table", {})
        assert log.flush()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("DROP VIEW event")
            other.execute("CREATE TABLE event (id INTEGER PRIMARY KEY, unix_s, severity, what, fields)")
            other.commit()
        log.append("info", "new", {})
        assert _what(log.query()) == ["new", "events were left out: too many at once"]


def test_a_file_damaged_while_in_use_is_set_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    with opened(path) as log:
        for _ in range(300):
            log.append("info", "old", {"filling": "x" * 1000})
        assert log.flush()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(path, "r+b") as file:
            file.write(b"\x5a" * os.path.getsize(path))
        log.append("info", "new", {})
        found = _what(log.query())
    assert found == ["event log was damaged and set aside", "new"]


def test_only_two_damaged_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    for _ in range(4):
        path.write_bytes(b"no database" * 100)
        with opened(path) as log:
            log.flush()
    assert len(list(tmp_path.glob("events.db.damaged-*"))) == 2


async def test_a_follower_sees_what_comes_and_each_event_once(tmp_path: Path) -> None:
    with opened(tmp_path / "events.db") as log:
        log.append("info", "before", {})
        last = (await asyncio.to_thread(log.query))[-1].id
        seen: list[str] = []

        async def follow() -> None:
            async for event in log.follow(after_id=last):
                seen.append(event.what)
                if event.what == "end":
                    return

        follower = asyncio.create_task(follow())
        for number in range(20):
            log.append("info", str(number), {})
            await asyncio.sleep(0)
        log.append("info", "end", {})
        await asyncio.wait_for(follower, 20)
    assert seen == [*(str(number) for number in range(20)), "end"]


def test_each_event_goes_to_python_s_logging_even_with_a_reserved_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ha_sync.events")
    with opened(tmp_path / "events.db") as log:
        log.append("warning", "standby fell behind", {"dataset": "cdr", "name": "x"})
    record = caplog.records[0]
    assert (record.levelname, record.getMessage()) == ("WARNING", "standby fell behind")
    assert vars(record)["dataset"] == "cdr"
    assert vars(record)["name_"] == "x"


def test_a_log_that_cannot_be_written_does_not_stop_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with opened(tmp_path / "file" / "events.db") as log:
        log.append("error", "disk failed", {})
    assert "disk failed" in caplog.messages
    assert "event log could not be written" in caplog.messages


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert read_events(str(tmp_path / "none.db")) == []
