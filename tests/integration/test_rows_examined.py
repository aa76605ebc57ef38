"""Full backup of databases captured by rows: exactly what is wrong is found, repaired and named."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from ha_sync.backup.rows.reading import ActiveReader
from ha_sync.config.settings import NodeLocalRows
from ha_sync.core.examine import Depth, Fault, Side
from ha_sync.database.connection import number
from ha_sync.database.keys import Value
from ha_sync.database.rowhash import Span
from ha_sync.database.spans import resent
from ha_sync.errors import Retryable
from tests.support.rows_examined import (
    Examination,
    behind_our_back,
    emptied_log,
    flip_bit,
    index_page,
    table_page,
    tear_page,
)
from tests.support.rows_pipe import RowsPair, content, rows_pair, write
from tests.support.rows_witness import equal, eventually

pytestmark = pytest.mark.req("R23")

WAL = "PRAGMA journal_mode=wal;"
SCHEMA = """
CREATE TABLE cdr(id INTEGER PRIMARY KEY AUTOINCREMENT, src, dst, secs);
CREATE INDEX cdr_src ON cdr(src);
CREATE TABLE peer(name TEXT PRIMARY KEY, secret) WITHOUT ROWID;
CREATE TABLE plain(a, b);
INSERT INTO peer VALUES('100', 'x'), ('101', 'y');
INSERT INTO plain VALUES(1, 'one'), (1, 'one'), (2, x'02');
WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 3000)
INSERT INTO cdr(src, dst, secs) SELECT 'source-' || x, 'needle-' || x || ';', x * 0.5 FROM s;
"""
ROWS = 3005
NET = "CREATE TABLE net(k PRIMARY KEY, v); INSERT INTO net VALUES('ip', 'a')"


async def test_nothing_is_found_in_equal_databases(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with Examination(pair) as examination:
            examined, run = await examination.run()
            assert run.findings == []
            assert (examined.objects, examined.differing) == (ROWS, 0)
            assert run.barriers == 1
            assert run.expected[0] == run.objects == ROWS
            assert 0 < run.content_bytes <= run.expected[1]
            assert run.spent >= run.content_bytes - run.expected[1] // 3
            _, run = await examination.run(depth=Depth.METADATA)
        assert run.objects == 0


async def test_a_standby_whose_first_sync_is_not_over_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    pair = RowsPair(tmp_path)
    await pair.open()
    try:
        with Examination(pair) as examination:
            assert (await pair.source.settled()).sequence == 0  # no change was captured: a barrier is passed at once
            running = asyncio.ensure_future(examination.run())
            await asyncio.sleep(0)
            await eventually(lambda: examination.peer.questions > 0)
            await pair.connect()
            examined, run = await running
        assert (run.findings, examined.objects) == ([], ROWS)
    finally:
        await pair.close()


async def test_rows_changed_behind_the_triggers_are_found_and_repaired(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        behind_our_back(
            pair.standby,
            "UPDATE cdr SET secs = 7 WHERE id = 1234",
            "DELETE FROM cdr WHERE id = 77",
            "INSERT INTO peer VALUES('ghost', 1)",
            "UPDATE plain SET b = '02' WHERE rowid = 3",
        )
        behind_our_back(pair.active, "UPDATE cdr SET dst = 'bent' WHERE id = 2000", "DELETE FROM cdr WHERE id = 2500")
        with Examination(pair) as examination:
            examined, run = await examination.run()
        assert run.told() == {
            ("cdr (1234)", Fault.CONTENT, Side.STANDBY, True),
            ("cdr (77)", Fault.MISSING, Side.STANDBY, True),
            ("cdr (2000)", Fault.CONTENT, Side.STANDBY, True),
            ("cdr (2500)", Fault.SURPLUS, Side.STANDBY, True),
            ("peer ('ghost')", Fault.SURPLUS, Side.STANDBY, True),
            ("plain (3)", Fault.CONTENT, Side.STANDBY, True),
        }
        assert {f.equal_until_unix_s for f in run.findings} == {12.0}
        assert (examined.differing, examined.repaired) == (6, 6)
        await equal(pair)


WRITER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("PRAGMA synchronous=OFF")
print("ready", flush=True)
n = 0
while True:
    n += 1
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO cdr(src, dst, secs) VALUES('live', ?, 1)", (n,))
    db.execute("UPDATE peer SET secret = ? WHERE name = '100'", (n % 2,))
    db.execute("UPDATE cdr SET secs = ? WHERE id = 5", (n % 2,))
    db.execute("COMMIT")
    time.sleep(0.002)
"""


@contextlib.contextmanager
def writing_on(path: Path) -> Iterator[None]:
    """A program that never rests, and flips two rows to and fro."""
    program = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        yield
    finally:
        program.kill()
        program.communicate()


async def test_while_a_program_writes_only_what_is_wrong_is_a_finding(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with writing_on(pair.active), Examination(pair) as examination:
            _, quiet = await examination.run()
            assert quiet.findings == []
            await on_standby(pair, "UPDATE cdr SET secs = 'bent' WHERE id = 1500", "DELETE FROM cdr WHERE id = 6")
            _, run = await examination.run()
        assert run.told() == {
            ("cdr (1500)", Fault.CONTENT, Side.STANDBY, True),
            ("cdr (6)", Fault.MISSING, Side.STANDBY, True),
        }
        await equal(pair)


async def on_standby(pair: RowsPair, *statements: str) -> None:
    """Beside an applier that writes: the loop must turn meanwhile."""
    await asyncio.to_thread(behind_our_back, pair.standby, *statements)


async def test_a_table_wiped_on_the_standby_comes_back_by_ranges(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with writing_on(pair.active), Examination(pair) as examination:
            await on_standby(pair, "DELETE FROM cdr WHERE id > 100")
            examined, run = await examination.run()
        # A range at the end has rows that came after the deed.
        assert {f.fault for f in run.findings} - {Fault.CONTENT} == {Fault.MISSING}
        assert all(f.repaired for f in run.findings)
        assert len(run.findings) < 600  # by ranges where nearly all is gone, not row by row
        assert examined.differing + examined.in_motion >= 2900
        await equal(pair)


async def test_triggers_that_are_gone_are_made_again_and_told(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        trigger = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'cdr' AND name GLOB '_ha_*_u'"
        drop_trigger(pair.active, trigger)
        drop_trigger(pair.standby, trigger)
        with Examination(pair) as examination:
            _, run = await examination.run()
            assert run.told() == {
                ("table cdr", Fault.GUARD, Side.ACTIVE, True),
                (str(pair.active), Fault.GUARD, Side.STANDBY, True),
            }
            assert "guards of cdr" in next(f.detail for f in run.findings if f.side is Side.STANDBY)
            _, run = await examination.run()
            assert run.findings == []
        write(pair.active, "UPDATE cdr SET secs = 'new' WHERE id = 9")
        await equal(pair)


async def test_triggers_that_went_with_what_the_program_dropped_are_no_finding(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA + "CREATE UNIQUE INDEX u ON plain(b) WHERE a > 1; CREATE TABLE gone(x)")
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        write(pair.active, "DROP INDEX u; DROP TABLE gone; ALTER TABLE peer ADD COLUMN n")
        await equal(pair)
        with Examination(pair) as examination:
            _, run = await examination.run()
        assert run.findings == []


def drop_trigger(path: Path, query: str) -> None:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.set_busy_timeout(10_000)
    for (name,) in db.execute(query).fetchall():
        db.execute(f'DROP TRIGGER "{name}"')
    db.close()


async def test_triggers_that_cannot_be_made_again_are_told(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with writing_on(pair.active):
            drop_trigger(pair.active, "SELECT '_ha_trim'")
            with Examination(pair) as examination:
                _, run = await examination.run()
        assert ("table cdr", Fault.GUARD, Side.ACTIVE, False) in run.told()
        await equal(pair)


async def test_schema_and_facts_that_differ_are_found_and_repaired(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA + "PRAGMA user_version=7; CREATE VIEW v AS SELECT 1")
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        behind_our_back(
            pair.standby,
            "UPDATE sqlite_sequence SET seq = 9999 WHERE name = 'cdr'",
            "PRAGMA user_version=8",
        )
        quietly_drop(pair.standby, "cdr_src")
        with Examination(pair) as examination:
            examined, run = await examination.run()
        assert run.told() == {
            ("sequence cdr", Fault.SCHEMA, Side.STANDBY, True),
            ("user_version", Fault.SCHEMA, Side.STANDBY, True),
            ("index cdr_src", Fault.SCHEMA, Side.STANDBY, True),
        }
        assert examined.repaired == 3
        await equal(pair)


def quietly_drop(path: Path, index: str) -> None:
    """Drops an index so that the schema's version does not tell it."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.set_busy_timeout(10_000)
    version = db.execute("PRAGMA schema_version").fetchall()[0][0]
    for _ in db.execute(f"BEGIN IMMEDIATE; DROP INDEX {index}; PRAGMA schema_version={version}; COMMIT"):
        pass
    db.close()


async def test_a_dropped_index_that_the_standby_noticed_itself_is_told(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        behind_our_back(pair.standby, "DROP INDEX cdr_src")
        with Examination(pair) as examination:
            _, run = await examination.run()
            assert run.told() == {(str(pair.active), Fault.SCHEMA, Side.STANDBY, True)}
            await equal(pair)
            _, run = await examination.run()
            assert run.findings == []


async def test_a_bit_of_a_row_flipped_on_either_side_is_found(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        flip_bit(pair.standby, b"needle-700;", table_page)
        flip_bit(pair.active, b"needle-900;", table_page)
        with Examination(pair) as examination:
            _, run = await examination.run()
        assert run.told() == {
            ("cdr (700)", Fault.CONTENT, Side.STANDBY, True),
            ("cdr (900)", Fault.CONTENT, Side.STANDBY, True),
        }
        await equal(pair)


async def test_a_bit_of_an_index_flipped_on_the_standby_makes_its_file_anew(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        flip_bit(pair.standby, b"source-700", index_page)
        with Examination(pair) as examination:
            _, run = await examination.run()
            assert run.told() == {(str(pair.active), Fault.DAMAGED, Side.STANDBY, True)}
            assert run.findings[0].detail.startswith("integrity_check: row ")
            assert "row 700 missing from index cdr_src" in run.findings[0].detail
            await equal(pair)
            _, run = await examination.run()
            assert run.findings == []


async def test_a_bit_of_an_index_flipped_on_the_active_is_told(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        flip_bit(pair.active, b"source-700", index_page)
        with Examination(pair) as examination:
            _, run = await examination.run()
            assert run.told() == {(str(pair.active), Fault.DAMAGED, Side.ACTIVE, False)}
            write(pair.active, "REINDEX")
            _, run = await examination.run()
            assert run.findings == []


async def test_files_that_did_not_change_since_they_were_proved_equal_are_not_compared_again(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with Examination(pair) as examination:
            first, _ = await examination.run()
            examination.peer.questions = 0
            again, run = await examination.run()
            assert (again.objects, run.findings, examination.peer.questions) == (first.objects, [], 2)
            write(pair.active, "INSERT INTO peer VALUES('102', 'z')")
            await pair.settle()
            await examination.run()
            assert examination.peer.questions > 4


@pytest.mark.parametrize("side", ["active", "standby"])
@pytest.mark.parametrize("kind", [table_page, index_page])
async def test_a_flipped_bit_is_found_although_both_were_proved_equal(
    tmp_path: Path, side: str, kind: Callable[[bytes], bool]
) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with Examination(pair) as examination:
            await asyncio.to_thread(emptied_log, pair.active)
            await asyncio.to_thread(emptied_log, pair.standby)
            await examination.run()
            flip_bit(pair.active if side == "active" else pair.standby, b"source-700", kind)
            _, run = await examination.run()
        assert len(run.findings) >= 1
        assert {f.fault for f in run.findings} <= {Fault.CONTENT, Fault.DAMAGED}


async def test_a_cancelled_run_does_not_wait_for_the_end_of_a_check(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with Examination(pair) as examination:
            reader = ActiveReader(pair.source_settings, pair.source, executor=examination.peer.thread)
            await reader.open()
            endless = "WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s) SELECT count(*) FROM s"
            read = asyncio.ensure_future(reader.in_thread(number, reader.db, endless))
            while not read.done():
                reader.interrupt()
                await asyncio.sleep(0.01)
            assert isinstance(read.exception(), apsw.InterruptError)
            await reader.close()


async def test_a_program_that_writes_too_much_is_not_held_up_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ha_sync.backup.rows.reading.LOG_GROWTH_MAX", -1)
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with Examination(pair) as examination:
            examined, run = await examination.run()
        assert run.told() == {(str(pair.active), Fault.UNVERIFIED, Side.ACTIVE, False)}
        assert examined.objects == ROWS


async def test_a_torn_page_on_the_standby_keeps_what_is_node_local(tmp_path: Path) -> None:
    write(
        tmp_path / "active.db", WAL + SCHEMA + "CREATE TABLE net(k PRIMARY KEY, v); INSERT INTO net VALUES('ip', 'a')"
    )
    local = (NodeLocalRows(table="peer", where="name GLOB 'local*'"),)
    async with rows_pair(tmp_path, node_local_tables=("net",), node_local_rows=local) as pair:
        await pair.settle()
        behind_our_back(
            pair.standby, "INSERT INTO net VALUES('ip', 'b')", "INSERT INTO peer VALUES('local-1', 'of the standby')"
        )
        tear_page(pair.standby, b"needle-700;")
        with Examination(pair) as examination:
            _, run = await examination.run()
            assert run.told() == {(str(pair.active), Fault.DAMAGED, Side.STANDBY, True)}
            _, run = await examination.run()
            assert run.findings == []
        await pair.settle()
        ours, theirs = content(pair.active)["rows"], content(pair.standby)["rows"]
        assert theirs["cdr"] == ours["cdr"]
        assert [row for row in theirs["peer"] if row not in ours["peer"]] == [
            ("text", b"local-1".hex().upper(), "text", b"of the standby".hex().upper())
        ]
        assert theirs["net"][0][-1] == b"b".hex().upper()


async def test_a_torn_page_on_the_active_is_told_and_not_copied(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        before = content(pair.standby)["rows"]["cdr"]
        tear_page(pair.active, b"needle-700;")
        with Examination(pair) as examination:
            examined, run = await examination.run()
        assert run.told() == {
            (str(pair.active), Fault.DAMAGED, Side.ACTIVE, False),
            ("table cdr", Fault.DAMAGED, Side.ACTIVE, False),
        }
        assert (examined.differing, examined.repaired) == (2, 0)
        assert content(pair.standby)["rows"]["cdr"] == before


async def test_node_local_rows_and_tables_are_nobodys_business(tmp_path: Path) -> None:
    write(
        tmp_path / "active.db", WAL + SCHEMA + "CREATE TABLE net(k PRIMARY KEY, v); INSERT INTO net VALUES('ip', 'a')"
    )
    local = (NodeLocalRows(table="peer", where="name GLOB 'local*'"),)
    async with rows_pair(tmp_path, node_local_tables=("net",), node_local_rows=local) as pair:
        await pair.settle()
        write(pair.active, "INSERT INTO peer VALUES('local-a', 1)")
        behind_our_back(pair.standby, "INSERT INTO net VALUES('x', 'b')", "INSERT INTO peer VALUES('local-b', 2)")
        with Examination(pair) as examination:
            _, run = await examination.run()
        assert run.findings == []


async def test_the_shadow_tables_of_a_full_text_index_are_compared(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + "CREATE VIRTUAL TABLE f USING fts5(x); INSERT INTO f VALUES('one'), ('two')")
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        behind_our_back(pair.standby, "UPDATE f_content SET c0 = 'three' WHERE id = 2")
        with Examination(pair) as examination:
            _, run = await examination.run()
        assert run.told() == {("f_content (2)", Fault.CONTENT, Side.STANDBY, True)}


async def test_a_table_without_any_usable_key_is_compared_as_a_whole(tmp_path: Path) -> None:
    hidden = "CREATE TABLE h(rowid, _rowid_, oid); INSERT INTO h VALUES(1, 2, 3), (1, 2, 3), ('1', NULL, x'')"
    write(tmp_path / "active.db", WAL + hidden)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with Examination(pair) as examination:
            _, run = await examination.run()
            assert run.findings == []
            behind_our_back(pair.standby, "UPDATE h SET oid = '3' WHERE rowid = 1")
            _, run = await examination.run()
            assert run.told() == {("h: 3 rows", Fault.CONTENT, Side.STANDBY, True)}
            many = "WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 5000)"
            write(pair.active, f"{many} INSERT INTO h SELECT x, x, x FROM s")
            await equal(pair)
            examined, run = await examination.run()
            assert (run.findings, examined.objects) == ([], 5003)


@pytest.mark.req("R31")
async def test_a_rollback_journal_is_read_by_copies_alone(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SCHEMA)
    async with rows_pair(tmp_path, writer_busy_timeout_ms=1000) as pair:
        await equal(pair)
        behind_our_back(pair.standby, "UPDATE cdr SET secs = 7 WHERE id = 1234")
        with Examination(pair) as examination:
            _, run = await examination.run()
        assert run.told() == {("cdr (1234)", Fault.CONTENT, Side.STANDBY, True)}
        assert dict(pair.source.report().counts)["lock_free_copies"] >= 3
        await equal(pair)
        assert not [name for name in await asyncio.to_thread(os.listdir, tmp_path) if "examined" in name]


async def test_what_cannot_be_copied_without_a_lock_is_unverified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "active.db", SCHEMA)
    monkeypatch.setattr("ha_sync.backup.rows.reading.PAUSE_S", 0.0)
    async with rows_pair(tmp_path, writer_busy_timeout_ms=1000) as pair:
        await equal(pair)

        def refuse(path: str, target: str) -> None:
            raise Retryable("cannot copy the database without locks", subject=path, reason="it is busy")

        pair.source._capture._access._snapshot = refuse
        with Examination(pair) as examination:
            examined, run = await examination.run()
        assert run.told() == {(str(pair.active), Fault.UNVERIFIED, Side.ACTIVE, False)}
        assert (examined.unverified, examined.differing) == (1, 0)


async def test_what_shall_be_sent_again_survives_a_crash(tmp_path: Path) -> None:
    write(tmp_path / "active.db", WAL + SCHEMA)
    pair = RowsPair(tmp_path)
    await pair.open()
    await pair.connect()
    try:
        await equal(pair)
        behind_our_back(pair.standby, "DELETE FROM cdr WHERE id IN (5, 2900)", "UPDATE cdr SET src = 1 WHERE id > 2990")
        await pair.disconnect()
        spans = [
            Span(upto=(Value("integer", 5),), only=True),
            Span(after=(Value("integer", 2899),)),
        ]
        await pair.source.resend((resent("cdr", spans),))
        await pair.crash()
        await pair.open()
        await pair.connect()
        await equal(pair)
        assert pair.answers[-1].name == "RESUME"
        await eventually(lambda: not pair.source._capture.journal.again)
    finally:
        await pair.close()


async def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ha_sync.backup.rows.comparing.RANGE_ROWS_MAX", 256)
    monkeypatch.setattr("ha_sync.backup.rows.comparing.STRETCH_RANGES", 2)
    write(tmp_path / "active.db", WAL + SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with Examination(pair) as examination:
            _, run = await examination.run()
            assert len(run.cursors) > 4
            behind_our_back(pair.standby, "UPDATE cdr SET secs = 7 WHERE id IN (100, 2800)")
            examined, run = await examination.run(cursor=run.cursors[0])
        assert run.told() == {("cdr (2800)", Fault.CONTENT, Side.STANDBY, True)}
        assert 0 < examined.objects < ROWS - 256


async def test_one_row_of_many_costs_little_on_the_wire(tmp_path: Path) -> None:
    many = SCHEMA.replace("x < 3000", "x < 100000")
    write(tmp_path / "active.db", WAL + many)
    async with rows_pair(tmp_path) as pair:
        await pair.settle()
        with Examination(pair) as examination:
            _, run = await examination.run()
            assert run.findings == []
            assert examination.peer.bytes < 8 * 1024
            examination.peer.bytes = pair.bytes = 0
            behind_our_back(pair.standby, "UPDATE cdr SET secs = 7 WHERE id = 51234")
            _, run = await examination.run()
        assert run.told() == {("cdr (51234)", Fault.CONTENT, Side.STANDBY, True)}
        assert examination.peer.bytes + pair.bytes < 48 * 1024
