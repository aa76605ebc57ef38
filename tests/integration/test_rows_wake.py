"""What wakes a rows source: the end of a commit, in every journal mode; the slow tick only backs it up."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from ha_sync.database.wake import Wake
from tests.support.rows_pipe import content, rows_pair, write
from tests.support.rows_witness import another_process_has_open, equal, eventually, say

TABLE = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)"
NEVER_S = 3600.0


@pytest.mark.req("R22")
@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory", "off", "wal"])
async def test_a_commit_is_heard_in_every_journal_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("ha_sync.capture.rows.source.TICK_S", NEVER_S)
    write(tmp_path / "active.db", TABLE)
    async with rows_pair(tmp_path, live_triggers=True) as pair:
        await equal(pair)
        with another_process_has_open(pair.active) as program:
            say(program, f"PRAGMA journal_mode={mode}")
            for value in range(5):
                say(program, f"INSERT INTO t(v) VALUES({value})")
                await eventually(lambda many=value + 1: len(content(pair.standby)["rows"]["t"]) == many)


@pytest.mark.req("R22")
@pytest.mark.parametrize("tick_s", [NEVER_S, 0.02])
async def test_a_database_behind_a_link_is_heard_and_the_tick_sees_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tick_s: float
) -> None:
    monkeypatch.setattr("ha_sync.capture.rows.source.TICK_S", tick_s)
    if tick_s != NEVER_S:
        monkeypatch.setattr(Wake, "on_event", lambda _self, _event: None)
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real.db"
    write(real, f"PRAGMA journal_mode=wal; {TABLE}")
    (tmp_path / "active.db").symlink_to(real)
    async with rows_pair(tmp_path, live_triggers=True) as pair:
        await equal(pair)
        await eventually(pair.source._capture.unchanged)
        with another_process_has_open(real) as program:
            say(program, "INSERT INTO t(v) VALUES('a')")
            await eventually(lambda: len(content(pair.standby)["rows"]["t"]) == 1)


@pytest.mark.req("R25")
async def test_a_transaction_that_goes_on_wakes_nobody(tmp_path: Path) -> None:
    path = tmp_path / "active.db"
    write(path, TABLE)
    heard = asyncio.Event()
    wake = Wake(str(path))
    told: list[bytes] = []
    on_event, loop = wake.on_event, asyncio.get_running_loop()

    def listen(event: object) -> None:
        told.append(event.name)  # type: ignore[attr-defined]
        on_event(event)  # type: ignore[arg-type]
        if told[-1] == b"sentinel":
            loop.call_soon_threadsafe(heard.set)

    wake.on_event = listen  # type: ignore[method-assign,assignment]
    wake.start()
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("BEGIN")
        db.execute("INSERT INTO t(v) VALUES('a')")
        (tmp_path / "sentinel").touch()  # the kernel tells in order: what came before was heard
        await heard.wait()
        assert b"active.db-journal" in told
        assert wake.take_hint() is None
        db.execute("COMMIT")
        assert await wake.wait(20.0)
        assert wake.take_hint() is not None
    finally:
        db.close()
        await asyncio.to_thread(wake.close)
