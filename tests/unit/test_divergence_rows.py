"""Records of an archive are merged into real databases by what they are, or left with the reason."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import apsw
import pytest

from ha_sync.config import NodeLocalRows, SqliteSettings
from ha_sync.core.acknowledged import RowsAcknowledged
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.core.position import Epoch
from ha_sync.database.schema import read_schema
from ha_sync.database.triggers import install_capture, last_logged, log_identity
from ha_sync.divergence.differing import differing_rows
from ha_sync.divergence.merging_rows import RowsMerge
from ha_sync.divergence.outcome import Outcome
from ha_sync.divergence.saving_rows import take_everything, take_rows
from ha_sync.divergence.serving import Serving

ROOM = 1 << 30
PLAIN = "CREATE TABLE cdr (id INTEGER PRIMARY KEY AUTOINCREMENT, u TEXT COLLATE NOCASE, v, w DEFAULT 5)"


def made(path: Path, schema: str, statements: list[tuple[str, tuple[object, ...]]]) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript(schema)
    for sql, values in statements:
        connection.execute(sql, values)
    connection.commit()
    connection.close()
    return path


def settings_of(path: Path, **more: object) -> SqliteSettings:
    return SqliteSettings(name=DatasetName("cdr"), path=str(path), priority=Priority.CDR, **more)


def merged(old: Path, new: Path, *, force: bool = False, **more: object) -> Outcome:
    image, copy = f"{old}.image", f"{old}.image-copy"
    take_everything(settings_of(old, **more), str(old), target=image, room=ROOM)
    shutil.copyfile(image, copy)
    return RowsMerge(settings_of(new, **more), copy, force=force).run()


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


INSERT = "INSERT INTO cdr (u, v) VALUES (?, ?)"


@pytest.mark.req("R13")
def test_only_what_is_missing_comes_with_a_key_of_the_table(tmp_path):
    old = made(tmp_path / "a", PLAIN, [(INSERT, ("x", 1)), (INSERT, ("x", 1)), (INSERT, ("y", b"\xff"))])
    new = made(tmp_path / "b", PLAIN, [(INSERT, ("z", 3)), (INSERT, ("x", 1))])
    outcome = merged(old, new)
    assert (outcome.added, outcome.present, outcome.left) == (2, 1, 0)
    assert rows(new, "SELECT id, u, v FROM cdr ORDER BY id") == [
        (1, "z", 3),
        (2, "x", 1),
        (3, "x", 1),
        (4, "y", b"\xff"),
    ]
    again = merged(old, new)
    assert (again.added, again.present) == (0, 3)


@pytest.mark.req("R13")
@pytest.mark.parametrize("values", [("X", 1), ("x", 1.0), ("x", "1"), ("x", None), (None, 1)])
def test_values_are_the_same_by_type_and_byte(tmp_path, values):
    old = made(tmp_path / "a", PLAIN, [(INSERT, values)])
    new = made(tmp_path / "b", PLAIN, [(INSERT, ("x", 1))])
    assert merged(old, new).added == 1
    assert merged(old, new).added == 0


@pytest.mark.req("R13")
def test_what_a_unique_index_keeps_out_is_left_and_nothing_is_replaced(tmp_path):
    schema = "CREATE TABLE cdr (u TEXT PRIMARY KEY ON CONFLICT REPLACE, v)"
    old = made(tmp_path / "a", schema, [(INSERT, ("x", 1)), (INSERT, ("y", 2))])
    new = made(tmp_path / "b", schema, [(INSERT, ("x", 9))])
    outcome = merged(old, new)
    assert (outcome.added, outcome.left) == (1, 1)
    assert "cdr" in outcome.reasons[0]
    assert rows(new, "SELECT * FROM cdr ORDER BY 1") == [("x", 9), ("y", 2)]


@pytest.mark.req("R13", "R25")
def test_a_table_with_triggers_of_the_program_is_left_unless_forced(tmp_path):
    trigger = "CREATE TABLE sums (n); CREATE TRIGGER t AFTER INSERT ON cdr BEGIN INSERT INTO sums VALUES (new.v); END;"
    old = made(tmp_path / "a", PLAIN, [(INSERT, ("x", 1))])
    new = made(tmp_path / "b", f"{PLAIN};{trigger}", [])
    outcome = merged(old, new)
    assert (outcome.added, outcome.left) == (0, 1)
    assert "triggers" in outcome.reasons[0]
    assert merged(old, new, force=True).added == 1
    assert rows(new, "SELECT n FROM sums") == [(1,)]


@pytest.mark.req("R13")
def test_a_table_whose_keys_are_named_elsewhere_is_left(tmp_path):
    other = "CREATE TABLE leg (id INTEGER PRIMARY KEY, call INTEGER REFERENCES cdr(id))"
    old = made(tmp_path / "a", PLAIN, [(INSERT, ("x", 1))])
    new = made(tmp_path / "b", f"{PLAIN};{other}", [])
    outcome = merged(old, new)
    assert (outcome.added, outcome.left) == (0, 1)
    assert "row keys" in outcome.reasons[0]


@pytest.mark.req("R13")
@pytest.mark.parametrize("schema", ["CREATE TABLE cdr (u, v, other)", "CREATE TABLE something (u)"])
def test_a_table_of_another_shape_is_left(tmp_path, schema):
    old = made(tmp_path / "a", "CREATE TABLE cdr (u, v)", [(INSERT, ("x", 1))])
    new = made(tmp_path / "b", schema, [])
    assert merged(old, new).left == 1


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE cdr (u, v, PRIMARY KEY (u, v)) WITHOUT ROWID",
        "CREATE TABLE cdr (u, v)",
        "CREATE TABLE cdr (u, v, g AS (u || v), rowid, oid, _rowid_)",
        "CREATE TABLE cdr (id INTEGER PRIMARY KEY, u, v, w INTEGER NOT NULL DEFAULT 3)",
    ],
)
def test_tables_of_every_kind_are_united(tmp_path, schema):
    old = made(tmp_path / "a", schema, [(INSERT, ("x", 1)), (INSERT, ("y", 2))])
    new = made(tmp_path / "b", schema, [(INSERT, ("x", 1)), (INSERT, ("z", 3))])
    assert merged(old, new).added == 1
    assert sorted(rows(new, "SELECT u, v FROM cdr")) == [("x", 1), ("y", 2), ("z", 3)]
    assert merged(old, new).added == 0


@pytest.mark.req("R13", "R5")
def test_node_local_rows_and_tables_are_not_merged(tmp_path):
    schema = f"{PLAIN}; CREATE TABLE mine (x)"
    old = made(tmp_path / "a", schema, [(INSERT, ("own", 1)), (INSERT, ("x", 1)), ("INSERT INTO mine VALUES (1)", ())])
    new = made(tmp_path / "b", schema, [])
    own = NodeLocalRows(table="cdr", where="u = 'own'")
    assert merged(old, new, node_local_tables=("mine",), node_local_rows=(own,)).added == 1
    assert rows(new, "SELECT u FROM cdr") == [("x",)]


@pytest.mark.req("R22", "R13")
def test_merged_records_are_seen_by_the_capture(tmp_path):
    old = made(tmp_path / "a", PLAIN, [(INSERT, ("x", 1))])
    new = made(tmp_path / "b", PLAIN, [])
    db = apsw.Connection(str(new))
    install_capture(db, read_schema(db), entries_max=1_000_000, skip=frozenset())
    db.close()
    assert merged(old, new).added == 1
    assert rows(new, "SELECT count(*) FROM _ha_change") == [(1,)]


# ---- saving by the log


def captured(path: Path, tables: str) -> tuple[RowsAcknowledged, Serving]:
    """A database with a log, of which the peer has everything until now."""
    made(path, tables, [(INSERT, ("old", number)) for number in range(5)])
    db = apsw.Connection(str(path))
    install_capture(db, read_schema(db), entries_max=1_000_000, skip=frozenset())
    status = os.stat(path)
    known = RowsAcknowledged(
        epoch=Epoch(3),
        device=status.st_dev,
        inode=status.st_ino,
        log=log_identity(db).hex(),
        logged=last_logged(db),
        anything=True,
        whole=frozenset(),
    )
    db.close()
    return known, Serving(id="x", epoch=Epoch(3), based=True)


def taken(path: Path, known: RowsAcknowledged, serving: Serving, *, closed: bool = False, room: int = ROOM):
    return take_rows(settings_of(path), known=known, serving=serving, closed=closed, target=f"{path}.image", room=room)


@pytest.mark.req("R13")
def test_what_was_acknowledged_is_not_saved(tmp_path):
    path = tmp_path / "db"
    known, serving = captured(path, PLAIN)
    assert taken(path, known, serving).nothing
    made(
        path,
        "",
        [(INSERT, ("new", 1)), ("UPDATE cdr SET v = 7 WHERE id = 2", ()), ("DELETE FROM cdr WHERE id = 3", ())],
    )
    found = taken(path, known, serving)
    assert (found.rows, found.gone, found.tables) == (2, 1, ("cdr",))


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    "change", [{"epoch": Epoch(2)}, {"inode": 1}, {"log": "ab"}, {"logged": 99}, {"whole": frozenset({"cdr"})}]
)
def test_where_the_log_cannot_vouch_the_whole_table_is_saved(tmp_path, change):
    path = tmp_path / "db"
    known, serving = captured(path, PLAIN)
    kept = {name: getattr(known, name) for name in RowsAcknowledged.__dataclass_fields__}
    assert taken(path, RowsAcknowledged(**{**kept, **change}), serving).rows == 5


@pytest.mark.req("R13")
def test_a_table_without_its_triggers_is_saved_whole(tmp_path):
    path = tmp_path / "db"
    known, serving = captured(path, PLAIN)
    names = rows(path, "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'cdr'")
    made(path, f'DROP TRIGGER "{names[0][0]}"', [])
    assert taken(path, known, serving).rows == 5


@pytest.mark.req("R13")
def test_a_record_that_was_acknowledged_once_and_written_again_counts_twice(tmp_path):
    path, new = tmp_path / "db", tmp_path / "new"
    known, serving = captured(path, PLAIN)
    shutil.copyfile(path, new)
    made(path, "", [(INSERT, ("old", 3))])
    assert taken(path, known, serving, closed=True).rows == 2
    outcome = RowsMerge(settings_of(new), f"{path}.image", force=False).run()
    assert (outcome.added, outcome.present) == (1, 1)
    assert rows(new, "SELECT count(*) FROM cdr WHERE u = 'old' AND v = 3") == [(2,)]


@pytest.mark.req("R13")
def test_what_has_no_room_is_said(tmp_path):
    path = tmp_path / "db"
    known, serving = captured(path, PLAIN)
    made(path, "", [(INSERT, ("big", b"x" * 5_000_000))])
    assert taken(path, known, serving, room=2_000_000).full
    assert not os.path.exists(f"{path}.image")


@pytest.mark.req("R13")
def test_a_difference_names_table_key_column_old_and_new(tmp_path):
    schema = "CREATE TABLE ext (number TEXT PRIMARY KEY, name, fax)"
    insert = "INSERT INTO ext VALUES (?, ?, ?)"
    path, new = tmp_path / "a", tmp_path / "b"
    made(path, schema, [(insert, ("1", "Ann", 5)), (insert, ("2", "Bob", None))])
    db = apsw.Connection(str(path))
    install_capture(db, read_schema(db), entries_max=1_000_000, skip=frozenset())
    db.close()
    shutil.copyfile(path, new)
    known, serving = known_now(path)
    made(
        path,
        "",
        [
            ("UPDATE ext SET fax = '5' WHERE number = '1'", ()),
            ("DELETE FROM ext WHERE number = '2'", ()),
            (insert, ("3", "Carl", 1)),  # takes the number of the row that is gone
        ],
    )
    taken(path, known, serving)
    lines = differing_rows(settings_of(new), f"{path}.image", limit=100, goes_on=lambda: None)
    told = {(line["what"], line["key"], line["column"]): (line["old"], line["new"]) for line in lines}
    assert told["changed", "number='1'", "fax"] == ("5", "'5'")
    assert told["new", "number='3'", "name"] == ("", "'Carl'")
    assert told["only here", "number='2'", "name"] == ("'Bob'", "")
    assert not any(column == "name" and key == "number='1'" for _, key, column in told)


def known_now(path: Path) -> tuple[RowsAcknowledged, Serving]:
    db = apsw.Connection(str(path))
    status = os.stat(path)
    known = RowsAcknowledged(
        epoch=Epoch(1),
        device=status.st_dev,
        inode=status.st_ino,
        log=log_identity(db).hex(),
        logged=last_logged(db),
        anything=True,
        whole=frozenset(),
    )
    db.close()
    return known, Serving(id="x", epoch=Epoch(1), based=False)
