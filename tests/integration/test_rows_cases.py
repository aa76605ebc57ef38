# ruff: noqa: E501 - statements of SQL read better in one line
"""Every kind of table and statement that a program may use: the Standby ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.rows_pipe import content, rows_pair, write

pytestmark = pytest.mark.req("R20", "R22")

# name: (schema, one script per batch)
CASES: dict[str, tuple[str, list[str]]] = {
    "composite_primary_key": (
        "CREATE TABLE t(a TEXT, b INT, v, PRIMARY KEY(a, b))",
        [
            "INSERT INTO t VALUES('x', 1, 1), ('x', 2, 2)",
            "UPDATE t SET b = 3 WHERE b = 2; DELETE FROM t WHERE b = 1; REPLACE INTO t VALUES('x', 3, 'new')",
        ],
    ),
    "without_rowid": (
        "CREATE TABLE t(a TEXT COLLATE NOCASE, b BLOB, v, u UNIQUE, PRIMARY KEY(b DESC, a)) WITHOUT ROWID",
        [
            "INSERT INTO t VALUES('x', x'00', 1, 1), ('y', x'ff00', 2, 2), ('z', 'text', 3, NULL)",
            "UPDATE t SET a = 'X' WHERE a = 'x'; REPLACE INTO t VALUES('new', x'01', 9, 2)",
            "UPDATE t SET b = x'02' WHERE u = 1; DELETE FROM t WHERE v = 3",
        ],
    ),
    "rowid_without_declared_key": (
        "CREATE TABLE t(v)",
        [
            "INSERT INTO t VALUES(1), (1), (1)",
            "DELETE FROM t WHERE rowid = 2; UPDATE t SET rowid = 77 WHERE rowid = 3; INSERT INTO t VALUES(NULL)",
        ],
    ),
    "columns_named_like_the_rowid": (
        (
            "CREATE TABLE a(rowid TEXT, v); CREATE TABLE b(rowid, _rowid_, v);"
            "CREATE TABLE c(rowid, _rowid_, oid, v); CREATE TABLE d(oid INTEGER PRIMARY KEY, rowid, _rowid_);"
            "CREATE TABLE e(ROWID INTEGER PRIMARY KEY, v)"
        ),
        [
            (
                "INSERT INTO a VALUES('r', 1), ('r', 2); INSERT INTO b VALUES(1, 2, 3), (1, 2, 3);"
                "INSERT INTO c VALUES(1, 2, 3, 4), (1, 2, 3, 4); INSERT INTO d VALUES(5, 6, 7); INSERT INTO e VALUES(9, 9)"
            ),
            "UPDATE a SET v = 9; DELETE FROM b WHERE v = 3; UPDATE c SET v = 5; DELETE FROM d; UPDATE e SET ROWID = 4",
            "DELETE FROM c",
        ],
    ),
    "unique_swap_in_one_transaction": (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE)",
        [
            "INSERT INTO t VALUES(1, 'a'), (2, 'b'), (3, 'c')",
            (
                "BEGIN; UPDATE t SET u = NULL WHERE id = 1; UPDATE t SET u = 'a' WHERE id = 2;"
                "UPDATE t SET u = 'b' WHERE id = 1; COMMIT"
            ),
            (
                "BEGIN; UPDATE t SET id = -1 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = -1;"
                "COMMIT"
            ),
        ],
    ),
    "replace_kills_through_every_unique_index": (
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a UNIQUE, b TEXT COLLATE NOCASE, c NOT NULL DEFAULT 7 UNIQUE, d);"
            "CREATE UNIQUE INDEX b ON t(b, d); CREATE UNIQUE INDEX n ON t(d COLLATE NOCASE) WHERE d > 'm' -- live\n"
        ),
        [
            "INSERT INTO t VALUES(1, 1, 'x', 1, 'q'), (2, 2, 'y', 2, 'r'), (3, 3, 'z', 7, 'A'), (4, 4, 'w', 4, NULL)",
            "REPLACE INTO t VALUES(10, 1, 'other', 10, NULL)",
            "REPLACE INTO t VALUES(11, 11, 'other', 11, 'R')",
            "REPLACE INTO t(id, a, b, c, d) VALUES(12, 12, 'other', NULL, NULL)",
            (
                "INSERT INTO t VALUES(20, 20, 'K', 20, 'B'), (21, 21, 'k', 21, 'C');"
                "UPDATE OR REPLACE t SET d = 'B' WHERE id = 21; UPDATE OR REPLACE t SET id = 21 WHERE id = 4"
            ),
        ],
    ),
    "unique_index_on_expressions": (
        (
            'CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, "odd ""col" TEXT);'
            'CREATE UNIQUE INDEX u ON t(lower(name), length("odd ""col"), \'a,b(\' || name)'
        ),
        [
            "INSERT INTO t VALUES(1, 'Anna', 'xx'), (2, 'Bert', 'yy')",
            "REPLACE INTO t VALUES(3, 'Anna', 'zz')",
            "UPDATE OR REPLACE t SET name = 'Bert', \"odd \"\"col\" = 'qq' WHERE id = 3",
        ],
    ),
    "upsert": (
        "CREATE TABLE t(k TEXT PRIMARY KEY, n INT, u UNIQUE)",
        [
            "INSERT INTO t VALUES('a', 1, 1), ('b', 1, 2)",
            (
                "INSERT INTO t VALUES('a', 1, 5) ON CONFLICT(k) DO UPDATE SET n = n + 1, u = 9;"
                "INSERT INTO t VALUES('c', 1, 2) ON CONFLICT(u) DO UPDATE SET k = 'moved';"
                "INSERT INTO t VALUES('b', 1, 77) ON CONFLICT DO NOTHING; INSERT OR IGNORE INTO t VALUES('a', 1, 1)"
            ),
        ],
    ),
    "generated_columns": (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b AS (a * 2) VIRTUAL UNIQUE, c AS (a || 'x') STORED)",
        [
            "INSERT INTO t(a) VALUES(1), (2), ('q')",
            "REPLACE INTO t(id, a) VALUES(9, 1); UPDATE t SET a = 5 WHERE id = 2",
        ],
    ),
    "every_kind_of_value": (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v, i INTEGER, r REAL, s TEXT, n NUMERIC, b BLOB)",
        [
            (
                "INSERT INTO t(v) VALUES(1), (1.0), ('1'), (x'31'), (NULL), (''), (x''), (1e999), (-1e999), (-0.0), (0.1),"
                "(9223372036854775807), (-9223372036854775808), ('a' || char(0) || 'b'), (CAST(x'ff80c0' AS TEXT)),"
                "(zeroblob(100000)), (1e999 - 1e999), (2.5e-324);"
                "INSERT INTO t(i, r, s, n, b) VALUES('12', 3, 4, '5.0', 6), ('x', 'y', x'00', 'z', 'text')"
            ),
            "UPDATE t SET v = CAST(x'ff81c0' AS TEXT) WHERE id = 15; UPDATE t SET v = 'a' || char(0) || 'c' WHERE id = 14",
        ],
    ),
    "keys_of_every_kind": (
        "CREATE TABLE t(k PRIMARY KEY, v) WITHOUT ROWID; CREATE TABLE r(k REAL, s TEXT, PRIMARY KEY(k, s)) WITHOUT ROWID",
        [
            (
                "INSERT INTO t VALUES(1, 1), ('1', 2), (x'31', 3), (1.5, 4), (CAST(x'ff' AS TEXT), 5), (1e999, 6), ('a' || char(0), 7);"
                "INSERT INTO r VALUES(1, 2), (1.5, 'x')"
            ),
            "DELETE FROM t WHERE v IN (3, 5, 6, 7); UPDATE t SET k = 'moved' WHERE v = 2; UPDATE r SET k = 2 WHERE k = 1",
        ],
    ),
    "fts5_by_its_shadow_tables": (
        (
            "CREATE VIRTUAL TABLE docs USING fts5(title, body); CREATE TABLE base(id INTEGER PRIMARY KEY, txt);"
            "CREATE VIRTUAL TABLE ext USING fts5(txt, content='base', content_rowid='id');"
            "CREATE TRIGGER ai AFTER INSERT ON base BEGIN INSERT INTO ext(rowid, txt) VALUES(NEW.id, NEW.txt); END"
        ),
        [
            "INSERT INTO docs VALUES('one', 'some words here'), ('two', 'other words'); INSERT INTO base(txt) VALUES('hello')",
            "UPDATE docs SET body = 'changed words' WHERE rowid = 1; DELETE FROM docs WHERE rowid = 2",
            "INSERT INTO docs(docs) VALUES('optimize'); INSERT INTO docs(docs) VALUES('rebuild')",
        ],
    ),
    "rtree_and_fts4_by_their_shadow_tables": (
        "CREATE VIRTUAL TABLE f USING fts4(x); CREATE VIRTUAL TABLE r USING rtree(id, a, b)",
        [
            "INSERT INTO f VALUES('hello world'); INSERT INTO r VALUES(1, 0, 1), (2, 5, 6)",
            "UPDATE f SET x = 'bye world'; DELETE FROM r WHERE id = 1",
        ],
    ),
    "application_triggers_run_once": (
        (
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE audit(id INTEGER PRIMARY KEY AUTOINCREMENT, what);"
            "CREATE TRIGGER t1 AFTER INSERT ON t BEGIN INSERT INTO audit(what) VALUES('insert ' || NEW.id); END;"
            "CREATE TRIGGER t2 BEFORE DELETE ON t BEGIN INSERT INTO audit(what) VALUES('delete ' || OLD.id); END;"
            "CREATE VIEW w AS SELECT * FROM t;"
            "CREATE TRIGGER t3 INSTEAD OF INSERT ON w BEGIN INSERT INTO t(v) VALUES(NEW.v); END"
        ),
        ["INSERT INTO t(v) VALUES(1), (2)", "DELETE FROM t WHERE id = 1; INSERT INTO w(v) VALUES(3)"],
    ),
    "foreign_key_cascades": (
        (
            "CREATE TABLE p(id INTEGER PRIMARY KEY, k UNIQUE);"
            "CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p(id) ON DELETE CASCADE ON UPDATE CASCADE);"
            "CREATE TABLE n(id INTEGER PRIMARY KEY, p REFERENCES p(k) ON DELETE SET NULL)"
        ),
        [
            (
                "PRAGMA foreign_keys=ON; INSERT INTO p VALUES(1, 'a'), (2, 'b'); INSERT INTO c(p) VALUES(1), (1), (2);"
                "INSERT INTO n(p) VALUES('a'), ('b')"
            ),
            "PRAGMA foreign_keys=ON; DELETE FROM p WHERE id = 1; UPDATE p SET id = 5 WHERE id = 2",
            "PRAGMA foreign_keys=ON; REPLACE INTO p VALUES(6, 'b')",
        ],
    ),
    "autoincrement_sequences": (
        "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v); CREATE TABLE q(id INTEGER PRIMARY KEY AUTOINCREMENT)",
        [
            "INSERT INTO t(v) VALUES(1), (2), (3); DELETE FROM t",
            "UPDATE sqlite_sequence SET seq = 100 WHERE name = 't'",
            "DELETE FROM sqlite_sequence WHERE name = 't'; INSERT INTO q DEFAULT VALUES",
        ],
    ),
    "strict_tables": (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a ANY, b BLOB, i INT, r REAL, s TEXT) STRICT",
        ["INSERT INTO t VALUES(1, 1.0, x'00', 1, 1.0, 'x'), (2, '1', NULL, 2, 2, NULL)", "DELETE FROM t WHERE id = 1"],
    ),
    "pragmas_of_the_application": (
        "CREATE TABLE t(v); PRAGMA user_version=3; PRAGMA application_id=77",
        ["PRAGMA user_version=4", "INSERT INTO t VALUES(1); PRAGMA application_id=-5"],
    ),
    "recursive_triggers_and_truncating_delete": (
        "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE)",
        [
            "INSERT INTO t VALUES(1, 1), (2, 2), (3, 3)",
            "PRAGMA recursive_triggers=ON; REPLACE INTO t VALUES(9, 1)",
            "DELETE FROM t",
        ],
    ),
    "names_that_need_quotes": (
        (
            'CREATE TABLE "a ""b"" [c] \'d\'"("select" TEXT, "k0" INT, "seq", "tbl", "rowid" UNIQUE, "x y" UNIQUE);'
            'CREATE TABLE "Größe"("ключ" INTEGER PRIMARY KEY, "é" UNIQUE)'
        ),
        [
            """INSERT INTO "a ""b"" [c] 'd'" VALUES('s', 1, 2, 3, 4, 5); INSERT INTO "Größe" VALUES(1, 'x')""",
            """REPLACE INTO "a ""b"" [c] 'd'" VALUES('t', 1, 2, 3, 9, 5); REPLACE INTO "Größe" VALUES(2, 'x')""",
        ],
    ),
    "many_columns": (
        f"CREATE TABLE t(id INTEGER PRIMARY KEY, {', '.join(f'c{i}' for i in range(300))})",
        ["INSERT INTO t(c0, c299) VALUES(1, 2)", "UPDATE t SET c150 = 3"],
    ),
    "text_in_utf_16": (
        "PRAGMA encoding='UTF-16le'; CREATE TABLE t(k TEXT PRIMARY KEY, v) WITHOUT ROWID",
        ["INSERT INTO t VALUES('ä', 'ö'), ('b', x'00')", "DELETE FROM t WHERE k = 'b'; UPDATE t SET v = 'ü'"],
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_the_standby_ends_equal(tmp_path: Path, case: str) -> None:
    schema, batches = CASES[case]
    mode = "" if case == "text_in_utf_16" else "PRAGMA journal_mode=wal;"
    write(tmp_path / "active.db", f"{mode}{schema}")
    async with rows_pair(tmp_path) as pair:
        await pair.settle()
        assert content(pair.standby) == content(pair.active)
        for batch in batches:
            write(pair.active, batch)
            await pair.settle()
            assert content(pair.standby) == content(pair.active)
        assert pair.failures == []
        await pair.disconnect()
        # What was sent as changes is also what a compare finds nothing wrong with.
        before = pair.bytes
        pair.sink._applied = type(pair.sink._applied)(epoch=1, incarnation=b"", sequence=0)
        await pair.connect()
        await pair.settle()
        whole_tables = case == "columns_named_like_the_rowid"
        assert pair.bytes - before < 200 or whole_tables, "a compare of equal databases ships rows"
        assert content(pair.standby) == content(pair.active)
