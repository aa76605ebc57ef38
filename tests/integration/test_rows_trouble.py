"""What goes wrong around a rows dataset: bad files, locks, full disks, forged frames; and what is merely large."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from ha_sync.core.dataset import DatasetState
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import NOWHERE, Answer, Epoch
from ha_sync.errors import Fenced, ProtocolFault, RepairNeeded, Retryable, WrongState
from tests.support.rows_pipe import ACTIVE_AT, EPOCH, RowsPair, content, rows_pair, write
from tests.support.rows_witness import SIMPLE, another_process_has_open, equal, eventually, run, say


@pytest.mark.parametrize("kind", ["text", "directory", "corrupt"])
async def test_a_path_that_is_no_database_is_said_and_recovers(tmp_path: Path, kind: str) -> None:
    active = tmp_path / "active.db"
    if kind == "text":
        active.write_text("not a database\n" * 200)
    elif kind == "directory":
        active.mkdir()
    else:
        write(active, "CREATE TABLE t(v); INSERT INTO t VALUES(1)")
        data = bytearray(active.read_bytes())
        data[100:4096] = bytes(b"\x55" * 3996)
        active.write_bytes(data)
    async with rows_pair(tmp_path) as pair:
        report = pair.source.report()
        assert report.state is DatasetState.FAILED
        assert {"text": "not a SQLite database", "directory": "directory", "corrupt": "corrupt"}[kind] in report.reason
        shutil.rmtree(active) if kind == "directory" else active.unlink()
        write(active, SIMPLE, "INSERT INTO t(v) VALUES('mended')")
        await eventually(lambda: pair.source.report().state is DatasetState.STREAMING)
        await equal(pair)


async def test_a_schema_with_names_that_are_not_utf_8_is_said_and_recovers(tmp_path: Path) -> None:
    active = tmp_path / "active.db"
    write(active, "CREATE TABLE toene(id INTEGER PRIMARY KEY, v)")
    # The same length, so that the page stays whole: what a program of the last century wrote.
    active.write_bytes(active.read_bytes().replace(b"toene", b"t\xf6ne_"))
    async with rows_pair(tmp_path) as pair:
        report = pair.source.report()
        assert (report.state, report.reason.partition(":")[0]) == (
            DatasetState.FAILED,
            "a name in its schema is not UTF-8",
        )
        active.write_bytes(active.read_bytes().replace(b"t\xf6ne_", b"toene"))
        await eventually(lambda: pair.source.report().state is DatasetState.STREAMING)


async def test_a_standby_file_that_is_no_database_is_said_and_recovers(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES(1)")
    (tmp_path / "standby.db").write_text("not a database\n" * 200)
    async with rows_pair(tmp_path) as pair:
        await eventually(lambda: bool(pair.failures))
        assert pair.sink.report().state is DatasetState.FAILED
        assert "not a SQLite database" in pair.sink.report().reason
        (tmp_path / "standby.db").unlink()
        await equal(pair)
        assert pair.sink.report().state is DatasetState.STREAMING


@pytest.mark.req("R22")
async def test_a_locked_standby_loses_nothing_and_names_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ha_sync.database.connection.BUSY_TIMEOUT_MS", 100)
    write(tmp_path / "active.db", SIMPLE)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with another_process_has_open(pair.standby) as program:
            say(program, "BEGIN IMMEDIATE")
            write(pair.active, "INSERT INTO t(v) VALUES('kept')")
            await eventually(lambda: bool(pair.failures))
            assert f"(pid {program.pid})" in pair.sink.report().reason
            say(program, "ROLLBACK")
        await equal(pair)
        assert pair.answers[1:] == [Answer.RESUME] * len(pair.answers[1:])


def _frame(pair: RowsPair, image: bytes, **changes: object) -> Frame:
    import xxhash

    from ha_proto.sync.v1 import replication_pb2 as pb

    body = pb.RowsImage(image_bytes=len(image), offset=0, image_hash=xxhash.xxh3_128_digest(image))
    for name, value in changes.items():
        if name != "epoch":
            setattr(body, name, value)
    position = pair.source.captured
    if "epoch" in changes:
        position = type(position)(epoch=changes["epoch"], incarnation=position.incarnation, sequence=position.sequence)
    return Frame(position=position, kind=Body.ROWS, body=body.SerializeToString(), payload=image, group_end=True)


@pytest.mark.req("R22")
async def test_frames_that_no_correct_peer_sends_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE)
    pair = RowsPair(tmp_path)
    await pair.open()
    try:
        await pair.sink.begin(Answer.COMPARE, "rows")
        evil = apsw.Connection(":memory:")
        evil.execute("CREATE TABLE head(json); CREATE VIEW r0 AS SELECT 1")
        image = evil.serialize("main")
        with pytest.raises(RepairNeeded):
            await pair.sink.receive(_frame(pair, image, image_hash=b"x" * 16))
        with pytest.raises(ProtocolFault):
            await pair.sink.receive(_frame(pair, image, image_bytes=5))
        with pytest.raises(ProtocolFault):
            await pair.sink.receive(_frame(pair, image, offset=7))
        with pytest.raises(Fenced):
            await pair.sink.receive(_frame(pair, image, epoch=Epoch(1)))
        failures: list[Exception] = []
        pair.sink.on_failure(failures.append)
        await pair.sink.receive(_frame(pair, image))
        await eventually(lambda: bool(failures))
        assert isinstance(failures[0], ProtocolFault)
        assert not pair.standby.exists() or content(pair.standby)["schema"] == []
        assert pair.sink.applied == NOWHERE
        with pytest.raises(ProtocolFault):  # nothing goes on before the stream begins anew
            await pair.sink.receive(_frame(pair, image))
        with pytest.raises(WrongState):
            await pair.sink.open(EPOCH, active_at=ACTIVE_AT)
    finally:
        await pair.close()


@pytest.mark.req("R22")
async def test_a_burst_larger_than_memory_allows_travels_through_a_file(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        write(
            pair.active,
            "WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 12) "
            "INSERT INTO t(v) SELECT randomblob(1000000) FROM s",
        )
        await equal(pair)
        assert pair.bytes > 12_000_000
        assert [n for n in os.listdir(tmp_path) if "image" in n or "incoming" in n or "inventory" in n] == []


@pytest.mark.req("R25")
async def test_a_large_batch_of_a_rollback_database_is_read_from_a_lock_free_copy(tmp_path: Path) -> None:
    write(tmp_path / "active.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    async with rows_pair(tmp_path, writer_busy_timeout_ms=5) as pair:
        await equal(pair)
        write(
            pair.active,
            "WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 50000) "
            "INSERT INTO t(v) SELECT 'row ' || x FROM s",
        )
        await equal(pair)
        assert dict(pair.source.report().counts)["lock_free_copies"] >= 1


PATIENT_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=float(sys.argv[2]))
for i in range(int(sys.argv[3])):
    db.execute("INSERT INTO t(v) VALUES(?)", (i,))
"""


@pytest.mark.req("R25")
@pytest.mark.parametrize("journal", ["wal", "delete", "truncate", "persist"])
async def test_a_writer_with_a_short_patience_never_meets_an_error(tmp_path: Path, journal: str) -> None:
    write(tmp_path / "active.db", f"PRAGMA journal_mode={journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    async with rows_pair(tmp_path, writer_busy_timeout_ms=1000, live_triggers=True) as pair:
        await equal(pair)
        assert await run(sys.executable, "-c", PATIENT_WRITER, str(pair.active), "1.0", "400") == 0
        await equal(pair)
        assert len(content(pair.standby)["rows"]["t"]) == 400
        assert pair.failures == []


@pytest.mark.req("R22")
@pytest.mark.root
async def test_a_full_disk_on_the_standby_loses_nothing_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    if await run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)):
        pytest.skip("this system does not let us mount a file system")
    try:
        write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES('before')")
        pair = RowsPair(tmp_path)
        pair.standby = disk / "standby.db"
        pair.sink_settings = replace(pair.sink_settings, path=str(pair.standby))
        pair.make()
        await pair.open()
        await pair.connect()
        try:
            await equal(pair)
            (disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - 40_000))
            write(pair.active, "INSERT INTO t(v) VALUES(randomblob(200000))")
            await eventually(lambda: bool(pair.failures))
            assert isinstance(pair.failures[0], Retryable)
            assert "no space left" in pair.sink.report().reason
            assert pair.sink.report().state is DatasetState.DEGRADED
            (disk / "ballast").unlink()
            await equal(pair)
            assert pair.sink.report().state is DatasetState.STREAMING
            assert set(pair.answers[1:]) == {Answer.RESUME}
        finally:
            await pair.close()
    finally:
        assert await run("umount", str(disk)) == 0
