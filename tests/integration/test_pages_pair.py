"""A database captured as pages on one side arrives on the other: whole, verified, resumable."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ha_sync.apply.pages import PagesSink
from ha_sync.capture.pages import PagesSource
from ha_sync.capture.pages import source as source_module
from ha_sync.core.dataset import DatasetState
from ha_sync.core.position import Answer, Epoch
from ha_sync.database.lockfree import LockFreeReader, Refusal, Rejected
from tests.support.log_program import LogProgram
from tests.support.pages_pipe import Events, astdb, flowing, put, rows_of, settings_of, uuid_rows
from tests.support.pages_random_writer import broken


class Pair:
    def __init__(self, folder: Path, **changes: object) -> None:
        self.active = folder / "a" / "astdb.sqlite3"
        self.standby = folder / "b" / "astdb.sqlite3"
        self.active.parent.mkdir(exist_ok=True)
        self.standby.parent.mkdir(exist_ok=True)
        self.folder = folder
        self.changes = changes
        self.events = Events()

    def source(self) -> PagesSource:
        settings = settings_of(self.active, **self.changes)
        return PagesSource(settings, state_path=self.folder / "source.json", report=self.events)

    def sink(self) -> PagesSink:
        settings = settings_of(self.standby, **self.changes)
        return PagesSink(settings, state_path=self.folder / "sink.json", report=self.events)

    @contextlib.asynccontextmanager
    async def opened(self, epoch: int = 2) -> AsyncIterator[tuple[PagesSource, PagesSink]]:
        source, sink = self.source(), self.sink()
        await source.open(Epoch(epoch))
        await sink.open(Epoch(epoch), active_at="127.0.0.1")
        try:
            yield source, sink
        finally:
            await sink.close()
            await source.close()

    def same(self) -> bool:
        return self.active.read_bytes() == self.standby.read_bytes()


def overwrite(path: Path, data: bytes, *, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.req("R20", "R22")
@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"])
async def test_every_commit_arrives_and_the_files_are_equal(tmp_path: Path, mode: str) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        with contextlib.closing(sqlite3.connect(pair.active)) as db:
            db.execute(f"PRAGMA journal_mode={mode}")
            for number in range(5):
                put(db, {"a": str(number), f"k{number}": "x" * 5000})
                await pipe.caught_up()
                assert rows_of(pair.standby)["a"] == str(number)
        assert pair.same()
        assert source.report().state is DatasetState.STREAMING
        assert source.report().backlog == 0


@pytest.mark.req("R22")
async def test_an_uncommitted_transaction_never_arrives_and_does_not_hold_up_what_was_committed(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        with contextlib.closing(sqlite3.connect(pair.active)) as db:
            put(db, {"a": "2"})
            db.execute("INSERT INTO astdb VALUES('open', '1')")
            await pipe.caught_up()
            assert rows_of(pair.standby) == {"a": "2"}


def number_of(path: Path) -> int:
    """Of the last transaction in a copy."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        image = bytearray(path.read_bytes())
        image[18:20] = b"\x01\x01"
        db.deserialize(bytes(image))
        assert broken(db) == ""
        return int(db.execute("SELECT number FROM meta").fetchone()[0])


@pytest.mark.req("R22", "R25")
async def test_a_write_ahead_log_in_use_is_read_without_a_checkpoint(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    with LogProgram(pair.active) as program:
        program.do("open", "commit", "checkpoint")
        main_before = pair.active.read_bytes()
        async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
            for number in range(2, 5):
                program.do("commit")
                await pipe.caught_up()
                assert number_of(pair.standby) == number
            assert pair.active.read_bytes() == main_before
            assert source.report().method == "pages: write-ahead log"
            program.do("close")
            assert not pair.active.with_name(pair.active.name + "-wal").exists()
            await pipe.caught_up()
            assert number_of(pair.standby) == 4


@pytest.mark.req("R20")
async def test_a_commit_that_nobody_hears_follows_the_transaction_that_was_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last write to a log comes before the commit is seen, by as long as the disk takes to sync it."""
    monkeypatch.setattr(source_module, "SLOW_TICK_S", 3600.0)
    pair = Pair(tmp_path)
    with LogProgram(pair.active) as program:
        program.do("open", "commit")
        async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
            await pipe.caught_up()
            program.do("begin")
            await pipe.caught_up()
            await pipe.until(lambda: source._dirty_since is None and not source._looking.locked())
            notice = source._notice
            assert notice is not None
            monkeypatch.setattr(notice, "_listener", lambda *_: None)
            program.do("end")
            async with asyncio.timeout(60):
                await pipe.until(lambda: number_of(pair.standby) == 2)


@pytest.mark.parametrize("turns", range(6))
async def test_who_waits_for_a_change_can_be_cancelled_while_one_is_heard(tmp_path: Path, turns: int) -> None:
    source = Pair(tmp_path).source()

    async def wait_for_ever() -> None:
        while True:
            await source._wait_event(3600)

    waiting = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    source._event.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    done, _ = await asyncio.wait({waiting}, timeout=10)
    waiting.cancel()
    assert done == {waiting}


@pytest.mark.req("R22")
async def test_a_log_that_a_dead_program_left_is_read_without_recovering_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    program = (
        "import sqlite3,os,sys; db=sqlite3.connect(sys.argv[1]); db.execute('PRAGMA journal_mode=WAL');"
        "db.execute('CREATE TABLE astdb(key PRIMARY KEY, value)'); db.execute(\"INSERT INTO astdb VALUES('a','1')\");"
        "db.commit(); os._exit(0)"
    )
    dead = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(pair.active))
    assert await dead.wait() == 0
    before = {name: (pair.active.parent / name).read_bytes() for name in os.listdir(pair.active.parent)}
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        assert rows_of(pair.standby) == {"a": "1"}
    assert {name: (pair.active.parent / name).read_bytes() for name in os.listdir(pair.active.parent)} == before


@pytest.mark.req("R22")
async def test_only_the_blocks_that_differ_travel(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {f"key{n}": "v" * 500 for n in range(4000)})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        first = pipe.payload_bytes
        assert first > 1_500_000
        with contextlib.closing(sqlite3.connect(pair.active)) as db:
            put(db, {"key7": "w" * 500})
        await pipe.caught_up()
        assert pair.same()
        assert pipe.payload_bytes - first <= 5 * 4096


@pytest.mark.req("R22")
async def test_a_restart_of_both_resumes_and_sends_nothing_again(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {f"key{n}": "v" * 500 for n in range(100)})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        with contextlib.closing(sqlite3.connect(pair.active)) as db:
            put(db, {"key7": "w"})
        await pipe.caught_up()
        assert pipe.answers == [Answer.RESUME]
        assert pipe.payload_bytes <= 4 * 4096
        assert pair.same()


@pytest.mark.req("R22")
async def test_a_new_epoch_compares_and_sends_only_what_differs(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {f"key{n}": "v" * 500 for n in range(1000)})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
    async with pair.opened(epoch=4) as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        assert pipe.answers == [Answer.COMPARE]
        assert pipe.payload_bytes == 0
        assert sink.applied.epoch == 4


@pytest.mark.req("R26")
async def test_node_local_rows_are_the_nodes_own_again_after_promotion(tmp_path: Path) -> None:
    pair = Pair(tmp_path, node_local_rows=uuid_rows())
    astdb(pair.active, {"/pbx/UUID": "active", "a": "1"})
    astdb(pair.standby, {"/pbx/UUID": "standby", "old": "1"})
    pair.active.chmod(0o640)
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        assert pair.same()
        assert pair.standby.stat().st_mode & 0o777 == 0o440
    async with pair.opened() as (_, sink):
        finished = await sink.promote()
    assert [f.what for f in finished] == ["node-local rows put back"]
    assert rows_of(pair.standby) == {"/pbx/UUID": "standby", "a": "1"}
    assert pair.standby.stat().st_mode & 0o777 == 0o640


@pytest.mark.req("R26")
async def test_the_other_nodes_local_rows_go_where_this_node_never_had_its_own(tmp_path: Path) -> None:
    pair = Pair(tmp_path, node_local_rows=uuid_rows())
    astdb(pair.active, {"/pbx/UUID": "active", "a": "1"})
    async with pair.opened() as (source, sink):
        async with flowing(source, sink) as pipe:
            await pipe.caught_up()
        await sink.promote()
    assert rows_of(pair.standby) == {"a": "1"}


async def test_a_tampered_copy_is_told_and_fetched_anew(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        overwrite(pair.standby, b"vandal", at=5000)
        await pipe.until(pair.same)
        assert "copy of a database was tampered with: it is fetched anew" in pair.events.whats()


async def test_a_copy_that_was_changed_while_the_engine_was_down_is_mended(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
    overwrite(pair.standby, b"vandal", at=5000)
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        assert pair.same()


@pytest.mark.req("R25")
async def test_a_copy_that_a_program_has_open_is_not_replaced_under_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        inode = pair.standby.stat().st_ino
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; f=open(sys.argv[1],'rb'); print('open',flush=True); sys.stdin.read()",
            str(pair.standby),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert program.stdout is not None
        assert program.stdin is not None
        await program.stdout.readline()
        with contextlib.closing(sqlite3.connect(pair.active)) as db:
            put(db, {"a": "2"})
        await pipe.until(lambda: sink.report().state is DatasetState.WAITING)
        assert f"(pid {program.pid})" in sink.report().reason
        assert pair.standby.stat().st_ino == inode
        program.stdin.close()
        await program.wait()
        await pipe.caught_up()
        assert rows_of(pair.standby) == {"a": "2"}


async def test_a_database_that_comes_later_is_captured_by_itself(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.until(lambda: source.report().reason == "there is no such file")
        assert source.report().state is DatasetState.WAITING
        astdb(pair.active, {"a": "1"})
        await pipe.until(pair.standby.exists)
        await pipe.caught_up()
        assert pair.same()


@pytest.mark.parametrize(
    ("content", "state", "word"),
    [
        (b"", DatasetState.WAITING, "empty"),
        (os.urandom(8192), DatasetState.FAILED, "not a SQLite database"),
    ],
)
async def test_what_is_no_database_is_said_and_never_shipped(
    tmp_path: Path, content: bytes, state: DatasetState, word: str
) -> None:
    pair = Pair(tmp_path)
    pair.active.write_bytes(content)
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.until(lambda: word in source.report().reason)
        assert source.report().state is state
        pair.active.unlink()
        astdb(pair.active, {"a": "1"})
        await pipe.until(pair.standby.exists)
        await pipe.caught_up()
        assert source.report().state is DatasetState.STREAMING


@pytest.mark.req("R32")
async def test_a_database_that_was_there_and_is_gone_is_a_trouble_until_it_is_back(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        good = pair.standby.read_bytes()
        os.rename(pair.active, tmp_path / "away.db")
        await pipe.until(lambda: source.report().state is DatasetState.DEGRADED)
        assert "no such file" in source.report().reason
        assert pair.standby.read_bytes() == good
        os.rename(tmp_path / "away.db", pair.active)
        await pipe.until(lambda: source.report().state is DatasetState.STREAMING)


async def test_a_damaged_database_is_not_shipped_over_a_good_copy(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {f"key{n}": "v" * 50 for n in range(1000)})
    good = pair.active.read_bytes()
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        overwrite(pair.active, os.urandom(4096), at=4096)
        await pipe.until(lambda: source.report().state is DatasetState.FAILED)
        assert "damaged" in source.report().reason
        assert pair.standby.read_bytes() == good


async def test_a_database_that_is_too_large_is_degraded_with_the_remedy(tmp_path: Path) -> None:
    pair = Pair(tmp_path, pages_max_mib=1)
    astdb(pair.active, {f"key{n}": "v" * 1000 for n in range(2000)})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.until(lambda: source.report().state is DatasetState.DEGRADED)
        assert "pages_max_mib" in source.report().reason
        assert not pair.standby.exists()


@pytest.mark.req("R22")
async def test_a_need_brings_the_whole_file(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {f"key{n}": "v" * 500 for n in range(100)})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        before = pipe.payload_bytes
        assert pipe._session is not None
        pipe._session.need((b"",))
        await pipe.until(lambda: pipe.payload_bytes - before >= pair.active.stat().st_size)
        assert pair.same()


async def test_twenty_copies_rejected_in_a_row_are_an_alarm_that_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "SLOW_TICK_S", 0.05)
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"})
    torn = Rejected(why=Refusal.CHANGED, read_in_vain=True)
    async with pair.opened() as (source, sink):
        with monkeypatch.context() as patched:
            patched.setattr(LockFreeReader, "attempt", lambda *_, **__: torn)
            async with flowing(source, sink) as pipe:
                await pipe.until(lambda: source.report().state is DatasetState.DEGRADED)
                assert dict(source.report().counts)["copies_rejected"] >= 20
        async with flowing(source, sink) as pipe:
            await pipe.caught_up()
            assert source.report().state is DatasetState.STREAMING
    assert pair.events.whats().count("database cannot be captured as pages") == 1
    assert pair.events.whats().count("database is captured again") == 1


@pytest.mark.req("R22")
async def test_a_large_copy_is_renewed_by_what_changed_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {f"key{n}": "v" * 500 for n in range(8000)})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        with contextlib.closing(sqlite3.connect(pair.active)) as db:
            for number in range(8):
                put(db, {f"key{number}": "w" * 400, f"new{number}": "x" * 3000 * number})
                if number == 5:
                    with db:
                        db.execute("DELETE FROM astdb WHERE key LIKE 'key3%'")
                    db.execute("VACUUM")
                await pipe.caught_up()
        # Not looked at in between: an opened file is never used again.
        assert dict(sink.report().counts)["renewed"] >= 6
        assert len(os.listdir(pair.standby.parent)) == 2
        assert pair.same()
    assert os.listdir(pair.standby.parent) == ["astdb.sqlite3"]


@pytest.mark.req("R22")
async def test_a_standby_that_has_nearly_the_same_file_gets_only_the_difference(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {f"key{n}": "v" * 500 for n in range(1000)})
    pair.standby.write_bytes(pair.active.read_bytes())
    with contextlib.closing(sqlite3.connect(pair.active)) as db:
        put(db, {"key7": "w" * 500})
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        assert pipe.payload_bytes <= 4 * 4096
        assert pair.same()


@pytest.mark.req("R22")
async def test_an_equal_file_with_more_in_its_log_is_not_taken_for_the_same(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    astdb(pair.active, {"a": "1"}, journal_mode="WAL")
    pair.standby.write_bytes(pair.active.read_bytes())
    program = (
        "import sqlite3,os,sys; db=sqlite3.connect(sys.argv[1]); db.execute(\"INSERT INTO astdb VALUES('b','2')\");"
        "db.commit(); os._exit(0)"
    )
    dead = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(pair.standby))
    assert await dead.wait() == 0
    assert pair.same()
    async with pair.opened() as (source, sink), flowing(source, sink) as pipe:
        await pipe.caught_up()
        with contextlib.closing(sqlite3.connect(pair.standby)) as db:
            assert db.execute("SELECT * FROM astdb").fetchall() == [("a", "1")]
