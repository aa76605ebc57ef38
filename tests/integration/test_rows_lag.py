"""What a rows source says of its lag: only changes open it, and a look that failed does not make a change younger."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ha_sync.core.dataset import DatasetState
from tests.support.rows_pipe import rows_pair, write
from tests.support.rows_witness import SIMPLE, another_process_has_open, equal, eventually, say

ROLLBACK = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)"


@pytest.mark.req("R30")
@pytest.mark.parametrize("schema", [SIMPLE, ROLLBACK])
async def test_looking_at_an_idle_database_opens_no_lag(tmp_path: Path, schema: str) -> None:
    write(tmp_path / "active.db", schema)
    async with rows_pair(tmp_path) as pair:
        write(pair.active, "INSERT INTO t(v) VALUES('a')")
        await equal(pair)
        await eventually(lambda: pair.source.report().lag.oldest_pending_s is None)
        samples = pair.source.report().lag.samples
        await pair.source.settled()  # a barrier, a slow tick, a hint that came with nothing
        assert pair.source.report().lag.oldest_pending_s is None
        write(pair.active, "INSERT INTO t(v) VALUES('b')")
        await equal(pair)
        await eventually(lambda: pair.source.report().lag.oldest_pending_s is None)
        assert pair.source.report().lag.samples == samples + 1


@pytest.mark.req("R30")
async def test_a_restart_opens_no_lag_for_what_the_standby_has(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE)
    async with rows_pair(tmp_path) as pair:
        write(pair.active, "INSERT INTO t(v) VALUES('a')")
        await equal(pair)
        await eventually(lambda: pair.source.report().lag.oldest_pending_s is None)
        await pair.disconnect()
        await pair.source.close()
        await pair.sink.close()
        pair.make()
        await pair.open()
        assert pair.source.captured.sequence == pair.sink.applied.sequence > 0
        assert pair.source.report().lag.oldest_pending_s is None
        await pair.connect()
        await equal(pair)
        assert pair.source.report().lag.samples == 0


@pytest.mark.req("R30")
async def test_a_change_is_as_old_as_its_hint_also_when_the_first_look_met_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ha_sync.database.connection.BUSY_TIMEOUT_MS", 20)
    write(tmp_path / "active.db", ROLLBACK)
    async with rows_pair(tmp_path, live_triggers=True) as pair:
        await equal(pair)
        with another_process_has_open(pair.active) as program:
            say(program, "BEGIN EXCLUSIVE")
            say(program, "INSERT INTO t(v) VALUES('a')")
            wake = pair.source._wake
            assert wake is not None
            wake._wake(time.monotonic() - 1000.0)
            await pair.source.settled()
            assert pair.source.report().state is DatasetState.DEGRADED
            say(program, "COMMIT")
        await equal(pair)
        await eventually(lambda: pair.source.report().lag.oldest_pending_s is None)
        worst = pair.source.report().lag.p99_s
        assert worst is not None
        assert worst >= 1000.0
