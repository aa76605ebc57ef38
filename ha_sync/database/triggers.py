"""The capture triggers: they log the keys of rows that a writer changed, in the writer's own transaction.

AFTER triggers log what was inserted, updated or deleted. BEFORE triggers log the rows that a REPLACE is about to kill
through a unique index: SQLite fires no delete trigger for those. A key that is logged without need costs a look-up; a
key that is missing costs the Standby its truth, so the triggers log too much where in doubt.

The triggers name no column but those of keys and unique indexes: an application may drop any other column. The log
trims itself in the writer's transaction, so the engine never writes after the installation.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import apsw

from ha_sync.database.connection import number, one, run
from ha_sync.database.names import CHANGE, GUARD, LOG, META, POSITION, TABLE, TRIM, literal, quoted
from ha_sync.database.schema import Column, Keyed, Schema, Table, Term, Unique

TRIM_EVERY = 64
KEY_COLUMNS_LEAST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One trigger of ours."""

    name: str
    table: str
    sql: str


def capture_triggers(table: Table, number_of_table: int) -> tuple[Trigger, ...]:
    """The triggers that ``table`` needs; ``number_of_table`` stands for it in the log."""
    log = _Log(table=table, number=number_of_table)
    bodies = {
        "i": ("AFTER INSERT", log.row("NEW")),
        "u": ("AFTER UPDATE", log.row("NEW") + log.moved()),
        "d": ("AFTER DELETE", log.row("OLD")),
    }
    if table.keyed is not Keyed.WHOLE and table.uniques:
        bodies["r"] = ("BEFORE INSERT", log.victims(updating=False))
        bodies["v"] = ("BEFORE UPDATE", log.victims(updating=True))
    return tuple(
        _trigger(f"{LOG}{number_of_table}_{suffix}", table.name, when, body) for suffix, (when, body) in bodies.items()
    )


def _trigger(name: str, table: str, when: str, body: str) -> Trigger:
    sql = f"CREATE TRIGGER {quoted(name)} {when} ON {quoted(table)} BEGIN {body}END"
    return Trigger(name=name, table=table, sql=sql)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """Writes the statements of one table's triggers."""

    table: Table
    number: int

    @property
    def _columns(self) -> str:
        return ", ".join(("tbl", *(f"k{i}" for i in range(len(self.table.key)))))

    def _values(self, row: str) -> str:
        return ", ".join((str(self.number), *(f"{row}.{quoted(c)}" for c in self.table.key)))

    def row(self, row: str) -> str:
        return f"INSERT INTO {CHANGE}({self._columns}) VALUES({self._values(row)}); "

    def moved(self) -> str:
        if self.table.keyed is Keyed.WHOLE:
            return ""
        other = " OR ".join(f"OLD.{quoted(c)} IS NOT NEW.{quoted(c)}" for c in self.table.key)
        return f"INSERT INTO {CHANGE}({self._columns}) SELECT {self._values('OLD')} WHERE {other}; "

    def victims(self, *, updating: bool) -> str:
        return "".join(self._victims_of(unique, updating=updating) for unique in self.table.uniques)

    def _victims_of(self, unique: Unique, *, updating: bool) -> str:
        selected = ", ".join((str(self.number), *(quoted(c) for c in self.table.key)))
        conditions = [self._same(term) for term in unique.terms]
        if unique.where:
            conditions.append(f"({unique.where}\n)")
        if updating:
            own = " AND ".join(f"{quoted(c)} IS OLD.{quoted(c)}" for c in self.table.key)
            conditions.append(f"NOT ({own})")
        return (
            f"INSERT INTO {CHANGE}({self._columns}) "
            f"SELECT {selected} FROM {quoted(self.table.name)} WHERE {' AND '.join(conditions)}; "
        )

    def _same(self, term: Term) -> str:
        collate = f" COLLATE {quoted(term.collation)}"
        if term.column is not None:
            return f"{quoted(term.column)} = {self._new(term.column)}{collate}"
        # The expression is the application's text; the inner FROM makes the same names mean the new row.
        new = ", ".join(f"{self._new(c)} AS {quoted(c)}" for c in term.mentions) or "NULL"
        return f"({term.expression}\n) = (SELECT {term.expression}\n FROM (SELECT {new})){collate}"

    def _new(self, name: str) -> str:
        column = next((c for c in self.table.columns if c.name == name), None)
        return _defaulted(column) if column is not None else f"NEW.{quoted(name)}"


def _defaulted(column: Column) -> str:
    # REPLACE puts the default where a NOT NULL column is given NULL, and it does so after the BEFORE triggers.
    if column.not_null and column.default is not None:
        return f"coalesce(NEW.{quoted(column.name)}, ({column.default}\n))"
    return f"NEW.{quoted(column.name)}"


def trim_trigger(entries_max: int) -> Trigger:
    """Keeps the last ``entries_max`` entries of the log."""
    body = f"DELETE FROM {CHANGE} WHERE seq <= NEW.seq - {entries_max}; "
    sql = (
        f"CREATE TRIGGER {quoted(TRIM)} AFTER INSERT ON {quoted(CHANGE)} "
        f"WHEN NEW.seq % {TRIM_EVERY} = 0 BEGIN {body}END"
    )
    return Trigger(name=TRIM, table=CHANGE, sql=sql)


def our_triggers(db: apsw.Connection) -> dict[str, tuple[str, str]]:
    """Triggers of ours that stand in the database: name -> (table, sql)."""
    rows = db.execute(
        "SELECT name, tbl_name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND substr(name, 1, 4) = '_ha_'"
    )
    return {str(name): (str(table), str(sql)) for name, table, sql in rows}


def has_log(db: apsw.Connection) -> bool:
    """Whether the log stands in the database."""
    names = db.execute(
        "SELECT count(*) FROM main.sqlite_schema WHERE type = 'table' AND name IN (?, ?, ?)", (CHANGE, TABLE, META)
    ).fetchone()
    return bool(names and names[0] == 3)


def log_identity(db: apsw.Connection) -> bytes:
    """The log's own random name: another one means another log. Empty where there is no log."""
    if not has_log(db):
        return b""
    value = one(db, f"SELECT value FROM main.{META} WHERE key = 'log'")
    return value if isinstance(value, bytes) else b""


def table_numbers(db: apsw.Connection) -> dict[str, int]:
    """The numbers under which tables are logged."""
    return {str(name): int(str(n)) for n, name in db.execute(f"SELECT id, name FROM main.{TABLE}")}


def captured_tables(db: apsw.Connection, schema: Schema, *, entries_max: int) -> frozenset[str]:
    """The tables whose triggers stand exactly as they should."""
    if not has_log(db):
        return frozenset()
    have = our_triggers(db)
    trim = trim_trigger(entries_max)
    if have.get(trim.name, ("", ""))[1] != trim.sql:
        return frozenset()
    numbers = table_numbers(db)
    key_columns = len(list(db.execute("SELECT 1 FROM pragma_table_info(?, 'main')", (CHANGE,)))) - 2
    complete = set()
    for name, table in schema.tables.items():
        if name in numbers and len(table.key) <= key_columns:
            wanted = capture_triggers(table, numbers[name])
            if all(have.get(t.name) == (name, t.sql) for t in wanted):
                complete.add(name)
    return frozenset(complete)


def install_capture(db: apsw.Connection, schema: Schema, *, entries_max: int, skip: frozenset[str]) -> None:
    """Creates what is missing and drops what is stale. The caller holds a write transaction."""
    run(db, f"CREATE TABLE IF NOT EXISTS main.{META}(key TEXT PRIMARY KEY, value) WITHOUT ROWID")
    run(db, f"CREATE TABLE IF NOT EXISTS main.{TABLE}(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE)")
    keys = ", ".join(f"k{i}" for i in range(KEY_COLUMNS_LEAST))
    run(db, f"CREATE TABLE IF NOT EXISTS main.{CHANGE}(seq INTEGER PRIMARY KEY AUTOINCREMENT, tbl, {keys})")
    run(db, f"INSERT OR IGNORE INTO main.{META} VALUES('log', ?)", (uuid.uuid4().bytes,))
    _widen(db, max((len(t.key) for t in schema.tables.values()), default=0))
    have = our_triggers(db)
    wanted = {t.name: t for t in _wanted(db, schema, entries_max=entries_max, skip=skip)}
    for name, (table, sql) in have.items():
        if name not in wanted or (wanted[name].table, wanted[name].sql) != (table, sql):
            run(db, f"DROP TRIGGER main.{quoted(name)}")
            have = {**have, name: ("", "")}
    for name, trigger in wanted.items():
        if have.get(name) != (trigger.table, trigger.sql):
            run(db, trigger.sql)


def _wanted(db: apsw.Connection, schema: Schema, *, entries_max: int, skip: frozenset[str]) -> tuple[Trigger, ...]:
    triggers = [trim_trigger(entries_max)]
    for name, table in schema.tables.items():
        if name in skip:
            continue
        run(db, f"INSERT OR IGNORE INTO main.{TABLE}(name) VALUES(?)", (name,))
        triggers += capture_triggers(table, number(db, f"SELECT id FROM main.{TABLE} WHERE name = ?", (name,)))
    return tuple(triggers)


def _widen(db: apsw.Connection, key_columns: int) -> None:
    have = len(list(db.execute("SELECT 1 FROM pragma_table_info(?, 'main')", (CHANGE,)))) - 2
    for i in range(have, key_columns):
        run(db, f"ALTER TABLE main.{CHANGE} ADD COLUMN k{i}")


def remove_capture(db: apsw.Connection) -> tuple[str, ...]:
    """Drops the capture triggers and keeps the log. Returns the names of what was dropped."""
    names = [n for n in our_triggers(db) if n.startswith(LOG) or n == TRIM]
    for name in names:
        run(db, f"DROP TRIGGER main.{quoted(name)}")
    return tuple(names)


def remove_everything(db: apsw.Connection) -> tuple[str, ...]:
    """Drops every trigger and table of ours, in one transaction of the caller. Returns their names."""
    removed = []
    for name in our_triggers(db):
        run(db, f"DROP TRIGGER main.{quoted(name)}")
        removed.append(f"trigger {name}")
    for table in (CHANGE, TABLE, META, POSITION):
        if number(db, "SELECT count(*) FROM main.sqlite_schema WHERE type = 'table' AND name = ?", (table,)):
            run(db, f"DROP TABLE main.{quoted(table)}")  # takes its row of sqlite_sequence along
            removed.append(f"table {table}")
    return tuple(removed)


def guards_present(db: apsw.Connection) -> bool:
    """Whether a guard of a Standby stands in the database."""
    return any(name.startswith(GUARD) for name in our_triggers(db))


def last_logged(db: apsw.Connection) -> int:
    """The newest sequence of the log, also where somebody emptied it."""
    newest = one(db, f"SELECT max(seq) FROM main.{CHANGE}")
    if isinstance(newest, int):
        return newest
    return number(db, f"SELECT seq FROM main.sqlite_sequence WHERE name = {literal(CHANGE)}")


def oldest_kept(db: apsw.Connection) -> int:
    """The lowest sequence after which the log still names every change."""
    oldest = one(db, f"SELECT min(seq) FROM main.{CHANGE}")
    return oldest - 1 if isinstance(oldest, int) else last_logged(db)
