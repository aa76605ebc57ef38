# ruff: noqa: E501 - statements of SQL read better in one line
"""A rows dataset through its life: schema changes, node-local data, guards, crashes, trouble with the file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from ha_sync.config import NodeLocalRows
from ha_sync.core.dataset import DatasetState
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import NOWHERE, Answer, Epoch
from ha_sync.errors import Fenced, ProtocolFault, RepairNeeded, Retryable, WrongState
from tests.support.rows_pipe import ACTIVE_AT, EPOCH, RowsPair, content, rows_pair, write

SIMPLE = "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, v)"


async def eventually(check: Callable[[], bool], timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not check():
            await asyncio.sleep(0.01)


async def equal(pair: RowsPair) -> None:
    await pair.settle()
    assert content(pair.standby) == content(pair.active)


@contextlib.contextmanager
def another_process_has_open(path: Path, script: str = "") -> Iterator[subprocess.Popen[str]]:
    """A program with the database open; it runs each line that it is sent."""
    code = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)\n"
        "db.execute('SELECT count(*) FROM sqlite_master').fetchall()\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    try: (db.executescript if ';' in line else db.execute)(line); print('done', flush=True)\n"
        "    except Exception as e: print('error', e, flush=True)\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdin is not None
    try:
        assert program.stdout.readline() == "ready\n"
        yield program
    finally:
        program.stdin.close()
        program.wait(10)
        program.stdout.close()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    """A connection of this process, through the same SQLite as the engine's: two libraries would drop each other's locks."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.set_busy_timeout(10_000)
    try:
        yield db
    finally:
        db.close()


def say(program: subprocess.Popen[str], line: str) -> None:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(line + "\n")
    program.stdin.flush()
    assert program.stdout.readline() == "done\n"


SCHEMA_CHANGES = {
    "add_column": "ALTER TABLE t ADD COLUMN w DEFAULT 'new'; INSERT INTO t(v, w) VALUES(9, 9)",
    "rename_column": "ALTER TABLE t RENAME COLUMN v TO value; UPDATE t SET value = 5",
    "drop_column": "ALTER TABLE t DROP COLUMN v; INSERT INTO t DEFAULT VALUES",
    "rename_table": "ALTER TABLE t RENAME TO t2; INSERT INTO t2(v) VALUES(7); CREATE TABLE t(x); INSERT INTO t VALUES(1)",
    "create_copy_rename": (
        "BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, v TEXT NOT NULL, u UNIQUE);"
        "INSERT INTO n SELECT id, v, id FROM t; DROP TABLE t; ALTER TABLE n RENAME TO t; COMMIT;"
        "INSERT INTO t VALUES(50, 'after', 50); DELETE FROM t WHERE id = 1"
    ),
    "drop_table": "DROP TABLE t",
    "new_table": "CREATE TABLE fresh(a PRIMARY KEY, b) WITHOUT ROWID; INSERT INTO fresh VALUES(1, 2)",
    "vacuum_renumbers": "DELETE FROM nokey WHERE v = 1; VACUUM; INSERT INTO nokey VALUES('after')",
    "indexes_views_triggers": (
        "CREATE UNIQUE INDEX i ON t(v); CREATE VIEW w AS SELECT v FROM t; CREATE TABLE log(v);"
        "CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO log VALUES(NEW.v); END;"
        "REPLACE INTO t(v) VALUES(2); DROP VIEW w; DROP INDEX i"
    ),
    "virtual_table": "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES('word'); DROP TABLE f;"
    "CREATE VIRTUAL TABLE f USING fts5(x, y); INSERT INTO f VALUES('word', 'other')",
    "versions": "PRAGMA user_version=9; PRAGMA application_id=10; CREATE TABLE z(a)",
    "trigger_of_ours_dropped": "DROP TRIGGER _ha_log_1_i; INSERT INTO t(v) VALUES('unseen')",
    "log_dropped": "DROP TABLE _ha_change; DROP TRIGGER _ha_log_1_i; DROP TRIGGER _ha_log_1_u; DROP TRIGGER _ha_log_1_d;"
    "INSERT INTO t(v) VALUES('unseen')",
}


@pytest.mark.req("R20", "R22")
@pytest.mark.parametrize("running", [True, False], ids=["while_running", "while_the_engine_was_down"])
@pytest.mark.parametrize("change", SCHEMA_CHANGES)
async def test_a_schema_change_is_noticed_and_follows(tmp_path: Path, change: str, *, running: bool) -> None:
    write(tmp_path / "active.db", SIMPLE, "CREATE TABLE nokey(v); INSERT INTO nokey VALUES(1), (2), (3)")
    async with rows_pair(tmp_path) as pair:
        write(pair.active, "INSERT INTO t(v) VALUES(1), (2)")
        await equal(pair)
        if not running:
            await pair.crash()
        write(pair.active, SCHEMA_CHANGES[change])
        if not running:
            await pair.open()
            await pair.connect()
        await equal(pair)
        tables = [n for k, n, *_ in content(pair.active)["schema"] if k == "table"]
        if "t" in tables:
            write(
                pair.active,
                "INSERT INTO t DEFAULT VALUES"
                if change != "create_copy_rename"
                else "INSERT INTO t VALUES(60, 'x', 60)",
            )
            await equal(pair)


@pytest.mark.req("R22")
async def test_a_reconnect_resumes_with_only_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) SELECT zeroblob(1000) FROM pragma_function_list LIMIT 100")
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        await pair.crash()
        write(pair.active, "UPDATE t SET v = 'changed while nobody ran' WHERE id = 5")
        await pair.open()
        before = pair.bytes
        await pair.connect()
        await equal(pair)
        assert pair.answers == [Answer.COMPARE, Answer.RESUME]
        assert pair.bytes - before < 20_000


@pytest.mark.req("R22")
@pytest.mark.parametrize("what", ["journal", "epoch", "file", "position"])
async def test_another_journal_epoch_or_file_is_compared(tmp_path: Path, what: str) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES(1), (2), (3)")
    pair = RowsPair(tmp_path)
    await pair.open()
    await pair.connect()
    try:
        await equal(pair)
        await pair.crash()
        epoch = EPOCH
        if what == "journal":
            (tmp_path / "source.state").write_bytes(b"not a database at all, but long enough to be looked at" * 40)
        elif what == "epoch":
            epoch = Epoch(4)
        elif what == "file":
            shutil.copy(pair.active, tmp_path / "copy.db")
            shutil.copy(f"{pair.active}-wal", tmp_path / "copy.db-wal")
            for suffix in ("", "-wal", "-shm"):
                (tmp_path / f"active.db{suffix}").unlink()
            os.rename(tmp_path / "copy.db-wal", f"{pair.active}-wal")
            os.rename(tmp_path / "copy.db", pair.active)
        else:
            write(pair.standby, "DELETE FROM _ha_position")
        write(pair.active, "UPDATE t SET v = 'new' WHERE id = 2")
        await pair.open(epoch)
        await pair.connect()
        await equal(pair)
        assert pair.answers == [Answer.COMPARE, Answer.COMPARE]
    finally:
        await pair.close()


@pytest.mark.req("R22")
async def test_a_log_trimmed_past_the_standby_is_compared(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE)
    pair = RowsPair(tmp_path, log_entries_max=100)
    await pair.open()
    await pair.connect()
    try:
        await equal(pair)
        await pair.disconnect()
        write(
            pair.active,
            "WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 1000) INSERT INTO t SELECT x, x FROM s",
        )
        with opened(pair.active) as db:
            ((kept,),) = db.execute("SELECT count(*) FROM _ha_change").fetchall()
        assert 100 <= kept < 200
        await pair.connect()
        await equal(pair)
        assert pair.answers == [Answer.COMPARE, Answer.COMPARE]
    finally:
        await pair.close()


@pytest.mark.req("R22")
async def test_the_database_file_replaced_under_us_is_compared(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES(1)")
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        write(tmp_path / "other.db", "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(7, 'other')")
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                (tmp_path / f"active.db{suffix}").unlink()
        os.rename(tmp_path / "other.db", pair.active)
        await equal(pair)
        assert content(pair.standby)["rows"]["t"] == content(pair.active)["rows"]["t"] != []


@pytest.mark.req("R20")
async def test_a_database_made_later_is_captured_from_then_on(tmp_path: Path) -> None:
    async with rows_pair(tmp_path) as pair:
        assert pair.source.report().state is DatasetState.WAITING
        write(pair.active, SIMPLE, "INSERT INTO t(v) VALUES('first')")
        await eventually(lambda: pair.source.report().state is DatasetState.STREAMING)
        await equal(pair)


@pytest.mark.req("R5")
async def test_node_local_tables_and_rows_stay_on_their_node(tmp_path: Path) -> None:
    schema = (
        "CREATE TABLE network(k PRIMARY KEY, v); CREATE TABLE sip(name, value);"
        "CREATE TABLE kv(key TEXT PRIMARY KEY, value) WITHOUT ROWID;"
    )
    local = (
        NodeLocalRows(table="SIP", where="name IN ('externhost', 'localnet')"),
        NodeLocalRows(table="kv", where="key LIKE '/local/%'"),
    )
    write(
        tmp_path / "active.db",
        "PRAGMA journal_mode=wal;" + schema,
        "INSERT INTO network VALUES('ip', 'A'); INSERT INTO sip VALUES('externhost', 'A'), ('codec', 'alaw');"
        "INSERT INTO kv VALUES('/local/uuid', 'A'), ('/shared/x', 1)",
    )
    write(
        tmp_path / "standby.db",
        schema,
        "INSERT INTO network VALUES('ip', 'B'); INSERT INTO sip VALUES('gone', 1), ('externhost', 'B');"
        "INSERT INTO kv VALUES('/local/uuid', 'B'), ('/shared/old', 1)",
    )

    def of(path: Path, sql: str) -> list[tuple[object, ...]]:
        with opened(path) as db:
            return db.execute(sql).fetchall()

    async with rows_pair(tmp_path, node_local_tables=("network",), node_local_rows=local) as pair:
        await pair.settle()
        assert of(pair.standby, "SELECT v FROM network") == [("B",)]
        assert of(pair.standby, "SELECT * FROM sip ORDER BY name") == [("codec", "alaw"), ("externhost", "B")]
        assert of(pair.standby, "SELECT * FROM kv") == [("/local/uuid", "B"), ("/shared/x", 1)]
        # A row moves into the clause and out of it; a shipped row needs the rowid that a local one has.
        write(
            pair.active,
            "UPDATE sip SET name = 'localnet' WHERE name = 'codec'; INSERT INTO sip VALUES('new', 1), ('two', 2);"
            "UPDATE kv SET key = '/shared/uuid' WHERE key = '/local/uuid'; UPDATE network SET v = 'A2';"
            "UPDATE kv SET key = '/local/moved' WHERE key = '/shared/x'",
        )
        await pair.settle()
        assert of(pair.standby, "SELECT v FROM network") == [("B",)]
        assert of(pair.standby, "SELECT * FROM sip ORDER BY name") == [("externhost", "B"), ("new", 1), ("two", 2)]
        assert of(pair.standby, "SELECT * FROM kv ORDER BY key") == [("/local/uuid", "B"), ("/shared/uuid", "A")]
        # Local rows survive a change of their table's schema.
        write(
            pair.active,
            "ALTER TABLE sip ADD COLUMN extra; ALTER TABLE network ADD COLUMN extra DEFAULT 3;UPDATE sip SET extra = 1",
        )
        await pair.settle()
        assert of(pair.standby, "SELECT * FROM sip WHERE name = 'externhost'") == [("externhost", "B", None)]
        assert of(pair.standby, "SELECT * FROM network") == [("ip", "B", 3)]
        assert of(pair.standby, "SELECT * FROM sip WHERE name = 'two'") == [("two", 2, 1)]
        # What is local may be edited on the Standby, everything else may not.
        write(pair.standby, "UPDATE sip SET value = 'B2' WHERE name = 'externhost'; UPDATE network SET v = 'B2'")
        with opened(pair.standby) as db:
            for refused in (
                "UPDATE sip SET value = 0 WHERE name = 'two'",
                "DELETE FROM kv WHERE key = '/shared/uuid'",
                "INSERT INTO sip(name) VALUES('foreign')",
                "UPDATE sip SET name = 'x' WHERE name = 'externhost'",
            ):
                with pytest.raises(apsw.ConstraintError, match=ACTIVE_AT):
                    db.execute(refused)
        assert pair.failures == []


@pytest.mark.req("R15")
async def test_a_write_on_the_standby_is_refused_and_names_the_active(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES(1)")
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        for sql in ("INSERT INTO t(v) VALUES(2)", "UPDATE t SET v = 3", "DELETE FROM t", "REPLACE INTO t VALUES(1, 1)"):
            with (
                opened(pair.standby) as db,
                pytest.raises(apsw.ConstraintError, match=f"standby: write to the active at {ACTIVE_AT}"),
            ):
                db.execute(sql)
        # A guard that somebody removes comes back, and what was written meanwhile is undone.
        write(pair.standby, "DROP TRIGGER _ha_guard_1_i; INSERT INTO t(v) VALUES('tampered')")
        await eventually(lambda: pair.answers == [Answer.COMPARE, Answer.COMPARE])
        await equal(pair)
        assert any(what == "a standby database was tampered with" for _, what, _ in pair.events.all)


@pytest.mark.req("R15", "R16")
async def test_promotion_and_demotion_swap_guards_and_triggers(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES(1)")
    pair = RowsPair(tmp_path)
    await pair.open()
    await pair.connect()
    try:
        await equal(pair)
        await pair.disconnect()
        await pair.source.close()
        finished = await pair.sink.promote()
        assert [f.what for f in finished] == ["guards removed"]
        await pair.sink.resume(accept_deletes=False)  # looks at once, as the slow tick does
        assert [name for _, name in raw_schema(pair.standby) if name.startswith("_ha_guard")] == []
        await pair.sink.close()
        write(pair.standby, "INSERT INTO t(v) VALUES('on the new active')")
        # Roles are swapped: the former Standby's file is the source, the former Active's the sink.
        pair.active, pair.standby = pair.standby, pair.active
        pair.source_settings, pair.sink_settings = pair.sink_settings, pair.source_settings
        pair.make()
        await pair.open(Epoch(3))
        await pair.connect()
        await equal(pair)
        with opened(pair.standby) as db, pytest.raises(apsw.ConstraintError):
            db.execute("DELETE FROM t")
        write(pair.active, "UPDATE t SET v = 'again'")
        await equal(pair)
        assert pair.failures == []
    finally:
        await pair.close()


@pytest.mark.req("R25")
async def test_detach_removes_every_trace(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES(1)")
    pair = RowsPair(tmp_path)
    await pair.open()
    await pair.connect()
    try:
        await equal(pair)
        await pair.disconnect()
        removed = (*await pair.source.detach(), *await pair.sink.detach())
        assert {"table _ha_change", "table _ha_position", "trigger _ha_guard_1_i"} <= set(removed)
    finally:
        await pair.close()
    for path in (pair.active, pair.standby):
        with opened(path) as db:
            assert db.execute("SELECT name FROM sqlite_master WHERE name LIKE '%ha\\_%' ESCAPE '\\'").fetchall() == []
            assert db.execute("SELECT count(*) FROM t").fetchone() == (1,)


@pytest.mark.req("R25")
@pytest.mark.parametrize("journal", ["wal", "delete"])
async def test_no_trigger_is_created_while_another_process_has_the_database_open(tmp_path: Path, journal: str) -> None:
    write(tmp_path / "active.db", f"PRAGMA journal_mode={journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    with another_process_has_open(tmp_path / "active.db") as program:
        async with rows_pair(tmp_path) as pair:
            report = pair.source.report()
            assert report.state is DatasetState.DEGRADED
            assert f"(pid {program.pid})" in report.reason
            assert "ha-sync attach" in report.reason
            # Without triggers the tables are compared and sent whole.
            say(program, "INSERT INTO t(v) VALUES('a'), ('b')")
            await equal(pair)
            say(program, "DELETE FROM t WHERE v = 'a'")
            await equal(pair)
            assert [n for k, n, *_ in raw_schema(pair.active) if n.startswith("_ha_")] == []
            await pair.source.attach()
            assert pair.source.report().state is DatasetState.STREAMING
            say(program, "INSERT INTO t(v) VALUES('c')")
            await equal(pair)
            assert pair.failures == []


def raw_schema(path: Path) -> list[tuple[str, ...]]:
    with opened(path) as db:
        return db.execute("SELECT type, name FROM sqlite_master").fetchall()


@pytest.mark.req("R25")
async def test_triggers_go_in_live_where_the_dataset_allows_it(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE)
    with another_process_has_open(tmp_path / "active.db") as program:
        async with rows_pair(tmp_path, live_triggers=True) as pair:
            await equal(pair)
            assert pair.source.report().state is DatasetState.STREAMING
            say(program, "INSERT INTO t(v) VALUES('a')")
            await equal(pair)
            say(program, "CREATE TABLE later(a); INSERT INTO later VALUES(1)")
            await equal(pair)
            assert pair.source.report().state is DatasetState.STREAMING


@pytest.mark.req("R25")
async def test_triggers_go_in_when_the_program_has_stopped(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SIMPLE)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with another_process_has_open(pair.active) as program:
            say(program, "CREATE TABLE later(a); INSERT INTO later VALUES(1)")
            await equal(pair)
            assert pair.source.report().state is DatasetState.DEGRADED
            say(program, "INSERT INTO later VALUES(2); INSERT INTO t(v) VALUES(1)")
            await equal(pair)
        await eventually(lambda: pair.source.report().state is DatasetState.STREAMING)
        write(pair.active, "INSERT INTO later VALUES(3)")
        await equal(pair)


@pytest.mark.req("R25")
async def test_a_collation_we_do_not_know_is_said_and_touches_nothing(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "active.db"))
    db.create_collation("pbx", lambda a, b: (a > b) - (a < b))
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT COLLATE pbx UNIQUE)")
    db.close()
    async with rows_pair(tmp_path) as pair:
        report = pair.source.report()
        assert report.state is DatasetState.FAILED
        assert "pbx" in report.reason
        assert 'capture = "pages"' in report.reason
        assert len(raw_schema(pair.active)) == 2


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


async def run(*command: str) -> int:
    return await (await asyncio.create_subprocess_exec(*command)).wait()


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
