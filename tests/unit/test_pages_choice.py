"""Rows or pages: every branch of the rule, and what it is told about real files."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ha_sync.capture.choice import Choice, Found, choose, look
from ha_sync.config import CaptureMode
from tests.support.pages_pipe import astdb, settings_of

AUTO = CaptureMode.AUTO
WAL = Found(readable=True, write_ahead_log=True)
ROLLBACK = Found(readable=True)


def method(found: Found, **settings: object) -> str:
    return choose(settings_of(Path("/x"), **{"capture": AUTO, **settings}), found).method


@pytest.mark.req("R25")
@pytest.mark.parametrize("timeout", [None, 0, 499])
def test_a_rollback_journal_with_an_unknown_or_short_timeout_is_never_touched(timeout: int | None) -> None:
    for found in (ROLLBACK, Found(readable=True, triggers_installed=True, open_by="asterisk")):
        assert method(found, writer_busy_timeout_ms=timeout, live_triggers=True) == "pages"


@pytest.mark.req("R25")
def test_triggers_are_not_put_under_a_running_program() -> None:
    found = Found(readable=True, write_ahead_log=True, open_by="asterisk (pid 7)")
    choice = choose(settings_of(Path("/x"), capture=AUTO), found)
    assert choice.method == "pages"
    assert "asterisk (pid 7)" in choice.why


def test_a_log_that_nobody_has_open_gets_triggers() -> None:
    assert method(WAL) == "rows"


def test_a_stated_timeout_makes_a_rollback_journal_fit_for_rows() -> None:
    assert method(ROLLBACK, writer_busy_timeout_ms=500) == "rows"
    busy = Found(readable=True, open_by="asterisk")
    assert method(busy, writer_busy_timeout_ms=1000) == "pages"
    assert method(busy, writer_busy_timeout_ms=1000, live_triggers=True) == "rows"


def test_installed_triggers_are_used_although_the_program_runs() -> None:
    assert method(Found(readable=True, write_ahead_log=True, triggers_installed=True, open_by="x")) == "rows"


def test_what_the_settings_say_is_done() -> None:
    assert method(WAL, capture=CaptureMode.PAGES) == "pages"
    assert method(ROLLBACK, capture=CaptureMode.ROWS) == "rows"


def test_no_database_waits_as_pages() -> None:
    assert choose(settings_of(Path("/x"), capture=AUTO), Found(readable=False)) == Choice(
        method="pages", why="auto: no database yet"
    )


def test_a_look_sees_the_journal_the_programs_and_the_triggers(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    settings = settings_of(path, capture=AUTO)
    assert look(settings) == Found(readable=False)
    astdb(path, {"a": "1"}, journal_mode="WAL")
    assert look(settings) == WAL
    hold = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('SELECT * FROM astdb').fetchall();"
    hold += "print('open',flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(path)], **pipes) as program:  # type: ignore[call-overload]
        program.stdout.readline()
        found = look(settings)
        assert f"(pid {program.pid})" in found.open_by
        assert not found.triggers_installed
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            for name in ("_ha_change", "_ha_table", "_ha_meta"):
                db.execute(f"CREATE TABLE {name}(a)")
        assert look(settings).triggers_installed
        program.stdin.close()


@pytest.mark.req("R25")
def test_a_rollback_database_of_unknown_patience_is_not_even_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    astdb(path, {"a": "1"})
    before = path.stat()
    assert look(settings_of(path, capture=AUTO)) == ROLLBACK
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert sorted(os.listdir(tmp_path)) == ["a.db"]
