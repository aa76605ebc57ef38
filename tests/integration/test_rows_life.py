"""A rows dataset through its life: reconnects, other files and logs, node-local data, guards, roles."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import apsw
import pytest

from ha_sync.config import NodeLocalRows
from ha_sync.core.dataset import DatasetState
from ha_sync.core.position import Answer, Epoch
from ha_sync.errors import RepairNeeded
from tests.support.rows_direct import RowsDirect
from tests.support.rows_pipe import ACTIVE_AT, EPOCH, RowsPair, content, rows_pair, write
from tests.support.rows_witness import SIMPLE, equal, eventually, opened, raw_schema


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


@pytest.mark.req("R32")
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_database_that_was_there_and_is_gone_is_a_trouble_until_it_is_back(
    tmp_path: Path, restarted: bool
) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES(1)")
    pair = RowsPair(tmp_path)
    await pair.open()
    await pair.connect()
    try:
        await equal(pair)
        if restarted:
            await pair.crash()
        (tmp_path / "away").mkdir()
        _move(tmp_path, tmp_path / "away")
        if restarted:
            await pair.open(EPOCH)
            await pair.connect()
        await eventually(lambda: pair.source.report().state is DatasetState.DEGRADED)
        assert "does not exist any more" in pair.source.report().reason
        assert content(pair.standby)["rows"]["t"]
        _move(tmp_path / "away", tmp_path)
        await eventually(lambda: pair.source.report().state is DatasetState.STREAMING)
        write(pair.active, "INSERT INTO t(v) VALUES(2)")
        await equal(pair)
    finally:
        await pair.close()


def _move(source: Path, target: Path) -> None:
    """The Active's database with all that belongs to it, the file itself last."""
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(source / f"active.db{suffix}", target / f"active.db{suffix}")


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


@pytest.mark.req("R16")
async def test_a_copy_that_equals_the_active_is_not_held_for_tampered_when_its_first_position_is_stored(
    tmp_path: Path,
) -> None:
    write(tmp_path / "active.db", SIMPLE, "INSERT INTO t(v) VALUES(1)")
    shutil.copy(tmp_path / "active.db", tmp_path / "standby.db")
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        await eventually(lambda: pair.sink.applied.epoch == EPOCH)
        applied = pair.sink.applied
        await pair.sink.resume(accept_deletes=False)  # looks at once, as the slow tick does
        assert pair.sink.applied == applied
        assert not [what for _, what, _ in pair.events.all if "tampered" in what]
        assert pair.failures == []


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


@pytest.mark.req("R15", "R16")
async def test_a_schema_of_the_active_does_not_hide_that_the_standby_was_tampered_with(tmp_path: Path) -> None:
    with RowsDirect(tmp_path, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, 'one')") as pair:
        pair.on_standby("DROP TRIGGER _ha_guard_1_u")
        pair.on_standby("UPDATE t SET v = 'bent'")
        pair.run("CREATE INDEX i ON t(v)")
        # The guards come with the schema; without a look before it nobody would compare.
        with pytest.raises(RepairNeeded, match="guards of t were gone"):
            pair.ship()
        with pytest.raises(apsw.ConstraintError):
            pair.on_standby("UPDATE t SET v = 'bent again'")


@pytest.mark.req("R21")
async def test_a_compare_of_many_rows_tells_few_hashes_and_sends_what_was_appended(tmp_path: Path) -> None:
    many = "WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 100000)"
    write(tmp_path / "active.db", SIMPLE, f"{many} INSERT INTO t(v) SELECT 'v' || x FROM s")
    pair = RowsPair(tmp_path)
    await pair.open()
    await pair.connect()
    try:
        await pair.settle()
        assert sum([len(chunk) async for chunk in pair.sink.inventory()]) < 24 * 1024
        await pair.crash()
        write(tmp_path / "active.db", "INSERT INTO t(v) VALUES('new')", "DELETE FROM t WHERE id = 50000")
        await pair.open(Epoch(EPOCH + 2))
        pair.bytes = 0
        await pair.connect()
        await equal(pair)
        assert pair.answers[-1] is Answer.COMPARE
        assert pair.bytes < 32 * 1024  # two ranges of 300 rows
    finally:
        await pair.close()
