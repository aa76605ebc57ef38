"""The capture triggers: they log the keys of rows that a writer changed, in the writer's own transaction.

AFTER triggers log what was inserted, updated or deleted. SQLite fires no delete trigger for the rows that a REPLACE
kills through a unique index (``docs/adr/0006``):

- through an *early* one, such as the table's own SQL declares: BEFORE triggers log the keys of the rows that are about
  to die;
- through a *late* one, such as CREATE INDEX makes: AFTER triggers log the values that the new row took in the index.
  Whatever row of the Standby still holds such a value is dead, or its new form follows.

A key that is logged without need costs a look-up; a key that is missing costs the Standby its truth, so the triggers
log too much where in doubt. They name no column that an application may drop: those of keys and declared constraints
cannot be dropped, and others are named so that they may be missing. The log trims itself in the writer's transaction,
so the engine never writes after the installation.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import apsw

from ha_sync.database.connection import number, one, run
from ha_sync.database.names import CHANGE, GUARD, INDEX, LOG, META, POSITION, TABLE, TRIM, literal, quoted
from ha_sync.database.schema import Column, Keyed, Schema, Table, Term, Unique
from ha_sync.database.tokens import mentions

TRIM_EVERY = 64
KEY_COLUMNS_LEAST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One trigger of ours."""

    name: str
    table: str
    sql: str


def capture_triggers(table: Table, numbers: dict[str, int]) -> tuple[Trigger, ...]:
    """The triggers that ``table`` needs; ``numbers`` stand for it and its indexes in the log."""
    number_of_table = numbers[table.name]
    log = _Log(table=table, number=number_of_table)
    if table.keyed is Keyed.WHOLE:
        bodies = {
            "i": ("AFTER INSERT", log.row("NEW")),
            "u": ("AFTER UPDATE", log.row("NEW")),
            "d": ("AFTER DELETE", log.row("OLD")),
        }
    else:
        taken = log.held("NEW", numbers)
        bodies = {
            "i": ("AFTER INSERT", log.row("NEW") + taken),
            "u": ("AFTER UPDATE", log.row("NEW") + log.moved() + taken),
            "d": ("AFTER DELETE", log.row("OLD")),
            "r": ("BEFORE INSERT", log.victims(updating=False)),
            "v": ("BEFORE UPDATE", log.victims(updating=True) + (log.held("OLD", numbers) if table.cascaded else "")),
        }
    return tuple(
        _trigger(f"{LOG}{number_of_table}_{suffix}", table.name, when, body)
        for suffix, (when, body) in bodies.items()
        if body
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
        other = " OR ".join(f"OLD.{quoted(c)} IS NOT NEW.{quoted(c)}" for c in self.table.key)
        return f"INSERT INTO {CHANGE}({self._columns}) SELECT {self._values('OLD')} WHERE {other}; "

    def victims(self, *, updating: bool) -> str:
        return "".join(self._victims_of(unique, updating=updating) for unique in self.table.early)

    def held(self, row: str, numbers: dict[str, int]) -> str:
        """Logs what a row holds in the late indexes."""
        return "".join(self._held_in(unique, row, numbers[INDEX + unique.name]) for unique in self.table.late)

    def _held_in(self, unique: Unique, row: str, number_of_index: int) -> str:
        """What a row holds in one index.

        The row is read back with ``*`` and joined to names without values: a column that was dropped or renamed is
        NULL here, and neither the application's ALTER nor its next write fails.
        """
        columns = ", ".join(("tbl", *(f"k{i}" for i in range(len(unique.terms)))))
        names = {name for term in unique.terms for name in term.mentions}
        names |= set(mentions(unique.where, tuple(c.name for c in self.table.columns)))
        nothing = ", ".join(f"NULL AS {quoted(n)}" for n in sorted(names)) or "NULL"
        key = " AND ".join(f"{quoted(c)} IS {row}.{quoted(c)}" for c in self.table.key)
        values = ", ".join(f"({term.expression}\n)" for term in unique.terms)
        where = [f"({term.expression}\n) IS NOT NULL" for term in unique.terms]
        where += [f"({unique.where}\n)"] if unique.where else []
        return (
            f"INSERT INTO {CHANGE}({columns}) SELECT {number_of_index}, {values} "
            f"FROM (SELECT * FROM {quoted(self.table.name)} WHERE {key}) NATURAL LEFT JOIN (SELECT {nothing}) "
            f"WHERE {' AND '.join(where)}; "
        )

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


def logged_tables(db: apsw.Connection, after: int) -> frozenset[str]:
    """The tables that were written after ``after``, by the names that they had when their triggers were made."""
    rows = db.execute(
        f"SELECT name FROM main.{TABLE} WHERE id IN (SELECT tbl FROM main.{CHANGE} WHERE seq > ?)", (after,)
    )
    return frozenset(str(name) for (name,) in rows)


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
    overtaken = _overtaken(db, schema)
    complete = set()
    for name, table in schema.tables.items():
        if numbers.keys() >= set(_logged_names(table)) and _width(table) <= key_columns and name not in overtaken:
            wanted = capture_triggers(table, numbers)
            if all(have.get(t.name) == (name, t.sql) for t in wanted):
                complete.add(name)
    return frozenset(complete)


def _logged_names(table: Table) -> tuple[str, ...]:
    """Under which names the table and its late indexes are numbered."""
    return table.name, *(INDEX + u.name for u in table.late)


def _width(table: Table) -> int:
    """How many columns the log needs for it."""
    return max(len(table.key), *(len(u.terms) for u in table.late), 0)


def _overtaken(db: apsw.Connection, schema: Schema) -> frozenset[str]:
    """Tables on which a trigger of the application's runs before ours and could change the row that we read back.

    SQLite runs the youngest trigger first.
    """
    rows = db.execute(
        "SELECT DISTINCT ours.tbl_name FROM main.sqlite_schema AS ours JOIN main.sqlite_schema AS theirs "
        "ON theirs.tbl_name = ours.tbl_name COLLATE NOCASE AND theirs.rowid > ours.rowid "
        f"WHERE ours.type = 'trigger' AND substr(ours.name, 1, {len(LOG)}) = {literal(LOG)} "
        "AND theirs.type = 'trigger' AND substr(theirs.name, 1, 4) <> '_ha_'"
    )
    return frozenset(str(name) for (name,) in rows) & {name for name, table in schema.tables.items() if table.late}


def install_capture(db: apsw.Connection, schema: Schema, *, entries_max: int, skip: frozenset[str]) -> None:
    """Creates what is missing and drops what is stale. The caller holds a write transaction."""
    run(db, f"CREATE TABLE IF NOT EXISTS main.{META}(key TEXT PRIMARY KEY, value) WITHOUT ROWID")
    run(db, f"CREATE TABLE IF NOT EXISTS main.{TABLE}(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE)")
    keys = ", ".join(f"k{i}" for i in range(KEY_COLUMNS_LEAST))
    run(db, f"CREATE TABLE IF NOT EXISTS main.{CHANGE}(seq INTEGER PRIMARY KEY AUTOINCREMENT, tbl, {keys})")
    run(db, f"INSERT OR IGNORE INTO main.{META} VALUES('log', ?)", (uuid.uuid4().bytes,))
    _widen(db, max((_width(t) for t in schema.tables.values()), default=0))
    have = our_triggers(db)
    wanted = {t.name: t for t in _wanted(db, schema, entries_max=entries_max, skip=skip)}
    overtaken = _overtaken(db, schema)
    for name, (table, sql) in have.items():
        if name not in wanted or (wanted[name].table, wanted[name].sql) != (table, sql) or table in overtaken:
            run(db, f"DROP TRIGGER main.{quoted(name)}")
            have = {**have, name: ("", "")}
    for name, trigger in wanted.items():
        if have.get(name) != (trigger.table, trigger.sql):
            run(db, trigger.sql)


def _wanted(db: apsw.Connection, schema: Schema, *, entries_max: int, skip: frozenset[str]) -> tuple[Trigger, ...]:
    tables = [table for name, table in schema.tables.items() if name not in skip]
    for table in tables:
        for logged in _logged_names(table):
            run(db, f"INSERT OR IGNORE INTO main.{TABLE}(name) VALUES(?)", (logged,))
    numbers = table_numbers(db)
    return trim_trigger(entries_max), *(trigger for table in tables for trigger in capture_triggers(table, numbers))


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
