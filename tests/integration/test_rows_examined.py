"""Full backup of databases captured by rows: exactly what is wrong is found, repaired and named."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw
import pytest

from ha_sync.core.examine import Fault, Side
from tests.support.rows_examined import Examination
from tests.support.rows_pipe import RowsPair, rows_pair, write
from tests.support.rows_witness import equal

pytestmark = pytest.mark.req("R23")

SCHEMA = """
PRAGMA journal_mode=wal;
CREATE TABLE cdr(id INTEGER PRIMARY KEY AUTOINCREMENT, src, dst, secs);
CREATE INDEX cdr_src ON cdr(src);
CREATE TABLE peer(name TEXT PRIMARY KEY, secret) WITHOUT ROWID;
CREATE TABLE plain(a, b);
INSERT INTO peer VALUES('100', 'x'), ('101', 'y');
INSERT INTO plain VALUES(1, 'one'), (1, 'one'), (2, x'02');
WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 3000)
INSERT INTO cdr(src, dst, secs) SELECT '100' || x % 7, x, x * 0.5 FROM s;
"""


def behind_our_back(path: Path, *statements: str) -> None:
    """A change that fires no trigger, by a program that knows how."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    db.set_busy_timeout(10_000)
    for statement in statements:
        for _ in db.execute(statement):
            pass
    db.close()


async def test_nothing_is_found_in_equal_databases(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        with Examination(pair) as examination:
            examined, run = await examination.run()
        assert run.findings == []
        assert (examined.objects, examined.differing) == (3005, 0)


async def test_rows_changed_behind_the_triggers_are_found_and_repaired(tmp_path: Path) -> None:
    write(tmp_path / "active.db", SCHEMA)
    async with rows_pair(tmp_path) as pair:
        await equal(pair)
        await on_standby(
            pair,
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
        assert (examined.differing, examined.repaired) == (6, 6)
        await equal(pair)


async def on_standby(pair: RowsPair, *statements: str) -> None:
    await asyncio.to_thread(behind_our_back, pair.standby, *statements)
