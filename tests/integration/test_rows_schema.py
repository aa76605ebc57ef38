# ruff: noqa: E501 - statements of SQL read better in one line
"""The writer changes its schema: the Standby follows, the triggers come back, nothing stays behind."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from ha_sync.core.dataset import DatasetState
from tests.support.rows_pipe import RowsPair, content, rows_pair, write
from tests.support.rows_witness import SIMPLE, another_process_has_open, equal, eventually, opened, raw_schema, say

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
