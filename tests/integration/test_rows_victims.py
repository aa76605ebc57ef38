"""Rows that die without a trigger of their own, and what a change of the schema may hide: the Standby ends equal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.rows_direct import RowsDirect
from tests.support.rows_pipe import content
from tests.support.rows_witness import another_process_has_open, say

pytestmark = pytest.mark.req("R20", "R22")


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[RowsDirect]:
    with RowsDirect(tmp_path) as pair:
        yield pair


def equal(pair: RowsDirect) -> None:
    pair.ship()
    assert content(pair.standby) == content(pair.active)


# name: (columns and options of the table, the index, rows, statements of one transaction)
VICTIMS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "killed_by_a_row_that_is_gone": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b)",
        "(1, 1, 'x')",
        ("REPLACE INTO t VALUES(2, 2, 'x')", "DELETE FROM t WHERE id = 2"),
    ),
    "killed_by_a_row_that_took_another_value": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b)",
        "(1, 1, 'x')",
        ("REPLACE INTO t VALUES(2, 2, 'x')", "UPDATE t SET b = 'other' WHERE id = 2"),
    ),
    "killed_through_text_that_is_not_utf_8": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b)",
        "(1, 1, CAST(x'ff80' AS TEXT))",
        ("REPLACE INTO t VALUES(2, 2, CAST(x'ff80' AS TEXT))", "DELETE FROM t WHERE id = 2"),
    ),
    "killed_through_a_blob": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b)",
        "(1, 1, x'00ff'), (2, 2, x'')",
        ("REPLACE INTO t VALUES(3, 3, x'00ff'), (4, 4, x'')", "DELETE FROM t WHERE id > 2"),
    ),
    "killed_through_an_infinity": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b)",
        "(1, 1, 1e999), (2, 2, -1e999)",
        ("REPLACE INTO t VALUES(3, 3, 1e999), (4, 4, -1e999)", "DELETE FROM t WHERE id > 2"),
    ),
    "killed_through_text_with_a_nul": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b)",
        "(1, 1, 'a' || char(0) || 'b'), (2, 2, 'a' || char(0) || 'c')",
        ("REPLACE INTO t VALUES(3, 3, 'a' || char(0) || 'b')", "DELETE FROM t WHERE id = 3"),
    ),
    "killed_through_a_partial_index": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b) WHERE a > 5",
        "(1, 6, 'x'), (2, 1, 'x')",
        ("REPLACE INTO t VALUES(3, 7, 'x')", "UPDATE t SET a = 0 WHERE id = 3"),
    ),
    "killed_through_an_expression": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(lower(b), coalesce(a, 'none'))",
        "(1, NULL, 'X'), (2, 1, 'X')",
        ("REPLACE INTO t VALUES(3, NULL, 'x')", "DELETE FROM t WHERE id = 3"),
    ),
    "killed_through_a_collation": (
        "(id INTEGER PRIMARY KEY, a COLLATE NOCASE, b)",
        "ON t(b COLLATE RTRIM, a)",
        "(1, 'Anna', 'x'), (2, 'Bert', 'x')",
        ("REPLACE INTO t VALUES(3, 'ANNA', 'x  ')", "DELETE FROM t WHERE id = 3"),
    ),
    "killed_through_several_columns": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b DESC, a)",
        "(1, 1, 1), (2, 2, 1), (3, NULL, 1)",
        ("REPLACE INTO t VALUES(4, 1, 1.0), (5, NULL, 1)", "DELETE FROM t WHERE id = 4"),
    ),
    "killed_through_a_generated_column": (
        "(id INTEGER PRIMARY KEY, a, b, g AS (a || b))",
        "ON t(g)",
        "(1, 'x', 'y')",
        ("REPLACE INTO t(id, a, b) VALUES(2, 'xy', '')", "DELETE FROM t WHERE id = 2"),
    ),
    "killed_by_an_update": (
        "(id INTEGER PRIMARY KEY, a, b)",
        "ON t(b)",
        "(1, 1, 'x'), (2, 2, 'y')",
        ("UPDATE OR REPLACE t SET b = 'x' WHERE id = 2", "UPDATE t SET b = 'z' WHERE id = 2"),
    ),
    "killed_in_a_table_without_rowid": (
        "(id, a, b, PRIMARY KEY(b, id)) WITHOUT ROWID",
        "ON t(a)",
        "(1, 'x', 1), ('1', 'y', x'31')",
        ("REPLACE INTO t VALUES(9, 'x', 9), (8, 'y', 8)", "DELETE FROM t WHERE id IN (8, 9)"),
    ),
    "killed_through_a_declared_default": (
        "(id INTEGER PRIMARY KEY, a NOT NULL DEFAULT 7 UNIQUE, b)",
        "ON t(b, a)",
        "(1, 7, 'x')",
        ("REPLACE INTO t VALUES(2, NULL, 'x')", "DELETE FROM t WHERE id = 2"),
    ),
    "killed_through_a_default_in_a_generated_column": (
        "(id INTEGER PRIMARY KEY, a NOT NULL DEFAULT 7, b, g AS (a) UNIQUE)",
        "ON t(b)",
        "(1, 7, 'x')",
        ("REPLACE INTO t(id, a, b) VALUES(2, NULL, 'y')", "DELETE FROM t WHERE id = 2"),
    ),
    "killed_by_a_value_that_a_foreign_key_moved_on": (
        "(id INTEGER PRIMARY KEY, a REFERENCES t(id) ON UPDATE CASCADE, b)",
        "ON t(a)",
        "(1, NULL, 'x'), (2, 1, 'y')",
        ("UPDATE OR REPLACE t SET id = 5, a = 1 WHERE id = 1",),
    ),
}


@pytest.mark.parametrize("case", VICTIMS)
def test_a_row_that_a_replace_killed_dies_on_the_standby(direct: RowsDirect, case: str) -> None:
    columns, index, rows, statements = VICTIMS[case]
    direct.work(
        f"CREATE TABLE t{columns}",
        f"CREATE UNIQUE INDEX i {index}",
        f"INSERT INTO t VALUES{rows}" if "g AS" not in columns else f"INSERT INTO t(id, a, b) VALUES{rows}",
    )
    equal(direct)
    before = content(direct.standby)
    direct.writer.execute("PRAGMA foreign_keys=ON")
    direct.work(*statements)
    equal(direct)
    assert content(direct.standby)["rows"] != before["rows"]


def test_node_local_rows_outlive_the_value_that_a_shared_row_gave_up(tmp_path: Path) -> None:
    with RowsDirect(tmp_path, node_local=[("t", "a = 'local'")]) as pair:
        pair.work("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)", "CREATE UNIQUE INDEX i ON t(b)")
        pair.ship()
        pair.on_standby("INSERT INTO t VALUES(50, 'local', 'x')")
        pair.work("INSERT INTO t VALUES(1, 'shared', 'x')", "DELETE FROM t WHERE id = 1")
        pair.ship()
        assert pair.on_standby("SELECT id FROM t") == [(50,)]


@pytest.mark.parametrize(
    "changes",
    [
        ("DROP INDEX i", "ALTER TABLE t DROP COLUMN b"),
        ("DROP INDEX i", "ALTER TABLE t RENAME COLUMN b TO c"),
        ("ALTER TABLE t RENAME COLUMN b TO c",),
        ("ALTER TABLE t RENAME TO u", "DROP INDEX i", "ALTER TABLE u DROP COLUMN b"),
    ],
)
@pytest.mark.parametrize(
    "index", ["t(b)", "t(lower(b), a)", "t(a) WHERE b IS NOT NULL", "t(b COLLATE NOCASE) WHERE b > a"]
)
@pytest.mark.req("R25")
def test_the_application_changes_the_columns_of_its_created_indexes(
    direct: RowsDirect, index: str, changes: tuple[str, ...]
) -> None:
    direct.work("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)", f"CREATE UNIQUE INDEX i ON {index}")
    equal(direct)
    direct.work("INSERT INTO t VALUES(1, 1, 'x'), (2, 2, 'y')")
    for change in changes:
        direct.writer.execute(change).fetchall()  # nothing of ours stands in the way
        table = "u" if "TO u" in changes[0] else "t"
        direct.writer.execute(f"REPLACE INTO {table}(id, a) VALUES(3, 1)").fetchall()
    equal(direct)
    direct.work(f"UPDATE {table} SET a = id + 10", f"DELETE FROM {table} WHERE id = 2")
    equal(direct)


def test_a_unique_index_that_came_and_went_unseen_hides_no_victim(direct: RowsDirect) -> None:
    direct.work("CREATE TABLE t(id INTEGER PRIMARY KEY, a)", "INSERT INTO t VALUES(1, 'x')")
    equal(direct)
    direct.work("CREATE UNIQUE INDEX i ON t(a)", "REPLACE INTO t VALUES(2, 'x')", "DROP INDEX i")
    equal(direct)


def test_a_table_that_was_not_written_does_not_travel_for_the_changes_of_others(direct: RowsDirect) -> None:
    direct.work("CREATE TABLE big(id INTEGER PRIMARY KEY, a)", "INSERT INTO big VALUES(1, zeroblob(300000))")
    equal(direct)
    before = direct.bytes
    direct.work("CREATE TABLE s(a)", "CREATE UNIQUE INDEX i ON s(a)", "REPLACE INTO s VALUES(1)", "DROP INDEX i")
    equal(direct)
    assert direct.bytes - before < 50_000


@pytest.mark.parametrize(
    "change", ["ALTER TABLE t ADD COLUMN c", "CREATE INDEX j ON t(a)", "DELETE FROM sqlite_sequence"]
)
def test_sequences_of_a_table_that_is_made_anew_stay(direct: RowsDirect, change: str) -> None:
    direct.work(
        "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, a)",
        "INSERT INTO t VALUES(100, 1)",
        "DELETE FROM t",
    )
    equal(direct)
    direct.work(change)
    equal(direct)
    direct.work("INSERT INTO t(a) VALUES(1)", "DELETE FROM sqlite_sequence")
    equal(direct)
    direct.work("DELETE FROM t")
    equal(direct)


@pytest.mark.parametrize("late", ["the_application", "ours"])
def test_a_younger_trigger_that_changes_the_new_row_hides_no_victim(direct: RowsDirect, late: str) -> None:
    """SQLite runs the youngest trigger first: ours must be it where it reads the new row back."""
    trigger = "CREATE TRIGGER g AFTER INSERT ON t BEGIN UPDATE t SET b = 'moved' || NEW.id WHERE id = NEW.id; END"
    table = ("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)", "CREATE UNIQUE INDEX i ON t(b)")
    direct.work(*table, *((trigger,) if late == "ours" else ()))
    equal(direct)
    direct.work("INSERT INTO t VALUES(1, 1, 'q')", "UPDATE t SET b = 'x'")
    equal(direct)
    if late == "the_application":
        direct.work(trigger)
        equal(direct)
    direct.work("REPLACE INTO t VALUES(2, 2, 'x')")
    equal(direct)


@pytest.mark.req("R25")
def test_what_was_written_just_before_the_triggers_came_is_shipped(tmp_path: Path) -> None:
    with RowsDirect(tmp_path, "CREATE TABLE t(id INTEGER PRIMARY KEY, a)", live_triggers=False) as pair:
        with another_process_has_open(pair.active) as program:
            say(program, "CREATE TABLE later(a)")
            pair.ship()
            say(program, "INSERT INTO later VALUES(1)")
        pair.capture._install_again_at = 0.0  # the time to look again has come
        equal(pair)
        assert not pair.capture._untracked
