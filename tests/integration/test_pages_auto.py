"""The composite ends: auto begins with pages, changes to rows, and the Standby follows without losing anything."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ha_sync.apply.database import DatabaseSink
from ha_sync.capture import database
from ha_sync.capture.database import DatabaseSource
from ha_sync.config import CaptureMode
from ha_sync.core.position import Answer, Epoch
from ha_sync.errors import Refused
from tests.support.pages_pipe import Events, Pipe, astdb, flowing, put, settings_of, uuid_rows


class Pair:
    def __init__(self, folder: Path, **changes: object) -> None:
        self.active = folder / "a" / "astdb.sqlite3"
        self.standby = folder / "b" / "astdb.sqlite3"
        self.folder = folder
        self.events = Events()
        self.changes = {"capture": CaptureMode.AUTO, **changes}
        for name in ("a", "b", "state-a", "state-b"):
            (folder / name).mkdir(exist_ok=True)

    @contextlib.asynccontextmanager
    async def opened(self, epoch: int = 2) -> AsyncIterator[tuple[DatabaseSource, DatabaseSink, Pipe]]:
        settings = settings_of(self.active, **self.changes)
        source = DatabaseSource(settings, state_dir=self.folder / "state-a", report=self.events)
        settings = settings_of(self.standby, **self.changes)
        sink = DatabaseSink(settings, state_dir=self.folder / "state-b", report=self.events)
        await source.open(Epoch(epoch))
        await sink.open(Epoch(epoch), active_at="127.0.0.1")
        try:
            async with flowing(source, sink) as pipe:
                yield source, sink, pipe
        finally:
            await sink.close()
            await source.close()


def rows(path: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT key, value FROM astdb"))


@contextlib.asynccontextmanager
async def program_with(path: Path) -> AsyncIterator[None]:
    hold = "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('SELECT * FROM astdb').fetchall();"
    hold += "print('open',flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", hold, str(path), **pipes)
    assert program.stdout is not None
    assert program.stdin is not None
    await program.stdout.readline()
    try:
        yield
    finally:
        program.stdin.close()
        await program.wait()


@pytest.mark.req("R22", "R25")
async def test_auto_changes_to_rows_when_the_program_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "AGAIN_S", 0.05)
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"}, journal_mode="WAL")
    async with contextlib.AsyncExitStack() as program:
        await program.enter_async_context(program_with(pair.active))
        async with pair.opened() as (source, sink, pipe):
            await pipe.caught_up()
            assert source.report().method.startswith("pages")
            assert "has it open" in source.report().method
            await program.aclose()
            await pipe.until(lambda: source.report().method.startswith("rows"))
            with contextlib.closing(sqlite3.connect(pair.active)) as db:
                put(db, {"b": "2"})
            await pipe.caught_up()
            assert set(pipe.answers) == {Answer.COMPARE}
            assert rows(pair.standby) == {"a": "1", "b": "2"}
            assert sink.report().method.startswith("rows")


@pytest.mark.req("R26")
async def test_node_local_rows_survive_the_change_from_pages_to_rows(tmp_path: Path) -> None:
    pair = Pair(tmp_path, node_local_rows=uuid_rows())
    astdb(pair.active, {"/pbx/UUID": "active", "a": "1"})
    astdb(pair.standby, {"/pbx/UUID": "standby"})
    async with pair.opened() as (source, sink, pipe):
        await pipe.caught_up()
        assert source.report().method.startswith("pages")
        installed = await source.attach()
        assert installed
        await pipe.until(lambda: sink.report().method.startswith("rows"))
        await pipe.caught_up()
        with contextlib.closing(sqlite3.connect(pair.active)) as db:
            put(db, {"b": "2"})
        await pipe.caught_up()
    assert rows(pair.standby) == {"/pbx/UUID": "standby", "a": "1", "b": "2"}


@pytest.mark.req("R22")
async def test_from_rows_to_pages_the_guards_vanish_with_the_file(tmp_path: Path) -> None:
    pair = Pair(tmp_path, capture=CaptureMode.ROWS, node_local_rows=uuid_rows())
    astdb(pair.active, {"/pbx/UUID": "active", "a": "1"})
    astdb(pair.standby, {"/pbx/UUID": "standby"})
    async with pair.opened() as (_, _, pipe):
        await pipe.caught_up()
    settings = settings_of(pair.active, **pair.changes)
    source = DatabaseSource(settings, state_dir=tmp_path / "state-a", report=pair.events)
    await source.open(Epoch(2))
    await source.detach()
    await source.close()
    pair.changes["capture"] = CaptureMode.PAGES
    async with pair.opened() as (_, sink, pipe):
        await pipe.caught_up()
        assert pair.active.read_bytes() == pair.standby.read_bytes()
        await sink.promote()
    assert rows(pair.standby) == {"/pbx/UUID": "standby", "a": "1"}
    with contextlib.closing(sqlite3.connect(pair.standby)) as db:
        assert db.execute("SELECT name FROM sqlite_schema WHERE name LIKE '\\_ha%' ESCAPE '\\'").fetchall() == []


async def test_attach_is_refused_where_the_settings_say_pages(tmp_path: Path) -> None:
    pair = Pair(tmp_path, capture=CaptureMode.PAGES)
    astdb(pair.active, {"a": "1"})
    async with pair.opened() as (source, _, _):
        with pytest.raises(Refused):
            await source.attach()


@pytest.mark.req("R22")
async def test_a_restart_keeps_the_way_and_resumes(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"}, journal_mode="WAL")
    async with pair.opened() as (source, _, pipe):
        await pipe.caught_up()
        assert source.report().method.startswith("rows")
    async with pair.opened() as (_, _, pipe):
        await pipe.until(lambda: bool(pipe.answers))
        await pipe.caught_up()
        assert pipe.answers == [Answer.RESUME]
