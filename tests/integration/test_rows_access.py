"""A read of a rollback-journal database: how it waits for a writer's lock, and how long it holds its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from ha_sync.capture.rows import access
from ha_sync.database.connection import BUSY_TIMEOUT_MS
from tests.support.rows_pipe import write
from tests.support.rows_witness import another_process_has_open, say

TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)"
MANY = "INSERT INTO t(v) SELECT zeroblob(10) FROM pragma_function_list, pragma_function_list LIMIT 2000"


class Clock:
    """Stands still but for what is slept; tells of each sleep."""

    def __init__(self, slept: Callable[[], None]) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []
        self._slept = slept

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps.append(seconds)
        self._slept()


def counted(db: apsw.Connection) -> int:
    return int(db.execute("SELECT count(v) FROM t WHERE v IS NOT NULL").fetchall()[0][0])


@pytest.mark.req("R22", "R25")
def test_a_read_that_waited_long_for_a_writer_still_has_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copies = tmp_path / "active.db", []
    write(path, TABLE, MANY)
    way = access.Access(
        str(path), copy_path=f"{path}.copy", busy_timeout_ms=None, snapshot=lambda *names: copies.append(names)
    )
    with another_process_has_open(path) as program:
        clock = Clock(lambda: say(program, "COMMIT") if len(clock.sleeps) == 30 else None)

        def met(db: apsw.Connection) -> int:
            say(program, "BEGIN EXCLUSIVE")
            say(program, "INSERT INTO t(v) VALUES('a')")
            return counted(db)

        assert way.hold_max_s < 30 * access.STEP_SHORT_S
        monkeypatch.setattr(access, "time", clock)
        assert way.read(met) == 2001
    assert len(clock.sleeps) == 30
    assert copies == []


@pytest.mark.req("R25")
def test_a_lock_that_stays_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "active.db"
    write(path, TABLE)
    way = access.Access(str(path), copy_path=f"{path}.copy", busy_timeout_ms=None, snapshot=lambda *_names: None)
    with another_process_has_open(path) as program:
        say(program, "BEGIN EXCLUSIVE")
        clock = Clock(lambda: None)
        monkeypatch.setattr(access, "time", clock)
        with pytest.raises(apsw.BusyError):
            way.read(counted)
        say(program, "ROLLBACK")
    assert sum(clock.sleeps) == pytest.approx(BUSY_TIMEOUT_MS / 1000, abs=access.STEP_LONG_S)
