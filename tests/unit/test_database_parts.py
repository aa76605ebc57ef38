"""The pieces that rows capture and apply share: tokens, names, ranges, images, holders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.database.holders import being_written, holders
from ha_sync.database.image import Head, attach_image, detach_image, read_head
from ha_sync.database.locality import Locality
from ha_sync.database.names import folded, is_ours, literal, quoted
from ha_sync.database.ranges import create_ranges, write_ranges
from ha_sync.database.rowhash import Hasher, Span, hashing
from ha_sync.database.schema import Keyed, read_schema
from ha_sync.database.tokens import after_where, index_terms, mentions
from ha_sync.errors import ProtocolFault

NOWHERE_LOCAL = Locality(tables=frozenset(), clauses=())


@given(name=st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1))
def test_any_name_and_any_text_survive_quoting(name: str) -> None:
    db = apsw.Connection(":memory:")
    db.execute(f"CREATE TABLE {quoted('t' + name)}({quoted(name)})")
    assert db.execute(f"SELECT {literal(name)}").fetchall() == [(name,)]
    assert read_schema(db).tables["t" + name].columns[0].name == name


def test_our_objects_are_known_by_name() -> None:
    assert is_ours("_ha_change")
    assert is_ours("sqlite_autoindex__ha_table_1")
    assert not is_ours("ha_change")
    assert folded("ÄbC") == "Äbc"


@pytest.mark.parametrize(
    ("sql", "terms", "where"),
    [
        ("CREATE UNIQUE INDEX i ON t(a, b DESC)", ("a", "b"), ""),
        ("CREATE INDEX i ON t(lower(a), ',)' || b ASC) WHERE b > 1", ("lower(a)", "',)' || b"), "b > 1"),
        ('CREATE INDEX "i(" ON [t)](/* , */ x) WHERE x IN (1, 2) -- end', ("/* , */ x",), "x IN (1, 2) -- end"),
    ],
)
def test_index_terms_and_conditions_are_found(sql: str, terms: tuple[str, ...], where: str) -> None:
    assert index_terms(sql) == terms
    assert after_where(sql) == where


def test_columns_in_an_expression_are_found_in_any_quotes() -> None:
    assert mentions("lower(A) || \"b c\" || [d] || 'text'", ("a", "b c", "d", "e")) == ("a", "b c", "d")


def test_the_key_of_every_kind_of_table() -> None:
    db = apsw.Connection(":memory:")
    db.execute("CREATE TABLE a(x INTEGER PRIMARY KEY, y); CREATE TABLE b(x INT PRIMARY KEY)")
    db.execute("CREATE TABLE c(x, y, PRIMARY KEY(y, x)) WITHOUT ROWID; CREATE TABLE d(rowid, oid, _rowid_)")
    db.execute("CREATE TABLE e(x INTEGER PRIMARY KEY DESC)")
    tables = read_schema(db).tables
    keys = {name: (t.keyed, t.key, t.integer_key) for name, t in tables.items()}
    assert keys == {
        "a": (Keyed.ROWID, ("rowid",), "x"),
        "b": (Keyed.ROWID, ("rowid",), None),
        "c": (Keyed.PRIMARY, ("y", "x"), None),
        "d": (Keyed.WHOLE, (), None),
        "e": (Keyed.ROWID, ("rowid",), None),
    }


VALUES = (
    "1",
    "'1'",
    "x'31'",
    "1.5",
    "'1.5'",
    "NULL",
    "''",
    "x''",
    "'a' || char(0) || 'b'",
    "'a' || char(0) || 'c'",
    "'a'",
    "x'6100'",
    "'NULL'",
    "0.1",
    "0.1 + 1e-17",
    "0.30000000000000004",
    "0.0",
    "-0.0",
    "0",
    "-1e999",
    "1e999 - 1e999",
    "0.3",
    "1e999",
    "CAST(x'ff' AS TEXT)",
    "CAST(x'fe' AS TEXT)",
    "'x'',''y'",
    "9007199254740993",
    "9007199254740992.0",
)


def test_two_values_have_the_same_hash_only_if_they_are_the_same_in_type_and_bits() -> None:
    hashes: dict[object, bytes] = {}
    for value in VALUES:
        db = apsw.Connection(":memory:")
        db.execute(f"CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, {value})")
        kind, stored = db.execute("SELECT typeof(v), iif(typeof(v) = 'text', CAST(v AS BLOB), v) FROM t").fetchall()[0]
        with hashing(db), Hasher(db, read_schema(db).tables["t"], NOWHERE_LOCAL) as hasher:
            found = hasher.digest(Span()).hash
        exact = (kind, stored.hex() if isinstance(stored, float) else stored)
        assert hashes.setdefault(exact, found) == found, value
    assert len(set(hashes.values())) == len(hashes) >= len(VALUES) - 3


def test_ranges_cover_every_key_and_large_rows_make_short_ones() -> None:
    db = apsw.Connection(":memory:")
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    db.execute(
        "WITH s(x) AS (SELECT -500 UNION ALL SELECT x + 1 FROM s WHERE x < 499) "
        "INSERT INTO t SELECT x * 3, iif(x >= 0, randomblob(50000), 0) FROM s"
    )
    db.execute("ATTACH ':memory:' AS inv")
    create_ranges(db, "inv", 1)
    with hashing(db):
        write_ranges(db, read_schema(db).tables["t"], NOWHERE_LOCAL)
    rows = db.execute("SELECT rows, k0 FROM inv.range ORDER BY id").fetchall()
    assert sum(int(str(n)) for n, _ in rows) == 1000
    assert rows[0] == (256, -500 * 3 + 255 * 3)
    assert rows[-1][1] is None
    assert min(int(str(n)) for n, _ in rows[2:-1]) < 200


@pytest.mark.parametrize(
    "content",
    [
        "CREATE VIEW r0 AS SELECT 1; CREATE TABLE head(json)",
        "CREATE TABLE head(json); CREATE TRIGGER x AFTER INSERT ON head BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE r0 USING fts5(x); CREATE TABLE head(json)",
        "CREATE TABLE head(json, x AS (json) STORED)",
        "CREATE TABLE head(json); INSERT INTO head VALUES('[1]')",
        "CREATE TABLE head(json); INSERT INTO head VALUES('[99,[],null,null]')",
        'CREATE TABLE head(json); INSERT INTO head VALUES(\'[1,[["t",1,["rowid"],["a"],0,1,0]],null,null]\')',
        "CREATE TABLE other(json)",
    ],
)
def test_an_image_of_another_shape_is_refused(content: str) -> None:
    evil = apsw.Connection(":memory:")
    for _ in evil.execute(content):
        pass
    db = apsw.Connection(":memory:")
    attach_image(db, content=evil.serialize("main"), path="")
    with pytest.raises(ProtocolFault):
        read_head(db)
    detach_image(db)


def test_a_head_survives_the_journey() -> None:
    head = Head(parts=(), facts=None, objects=None)
    assert Head.from_json(head.to_json()) == head


def test_a_process_that_has_the_file_open_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"")
    assert holders(str(path)) == ()
    code = "import sys; f = open(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    try:
        program.stdout.readline()
        with path.open("rb"):  # our own process does not count
            assert [h.pid for h in holders(str(path))] == [program.pid]
        assert str(program.pid) in str(holders(str(path))[0])
        assert os.getpid() not in [h.pid for h in holders(str(path))]
    finally:
        program.communicate("")


@pytest.mark.req("R22")
def test_a_file_is_being_written_by_whom_may_write_and_not_by_a_reader(tmp_path: Path) -> None:
    files = {}
    for name in ("written", "read", "closed"):
        (tmp_path / name).write_bytes(b"x")
        status = (tmp_path / name).stat()
        files[name] = (status.st_dev, status.st_ino)
    code = "import sys; a = open(sys.argv[1], 'ab'); b = open(sys.argv[2], 'rb'); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "written", tmp_path / "read"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        assert being_written(set(files.values())) == {files["written"]}
        program.communicate("\n", timeout=20)
    assert being_written(set(files.values())) == set()
