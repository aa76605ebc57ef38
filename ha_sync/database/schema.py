"""What a database is made of: tables with their keys and unique indexes, as capture and apply need them.

The *key* of a row is its rowid wherever there is one that can be named (also where another key is declared: rowids
are what FTS5 and full-table scans see, and they make the fastest key), the primary key of a ``WITHOUT ROWID`` table,
and nothing for a table whose own columns hide every alias of the rowid: such a table is shipped whole.
Virtual tables are never read: their shadow tables are ordinary tables here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import apsw

from ha_sync.database.names import ROWID_ALIASES, folded, is_ours, literal, quoted
from ha_sync.database.tokens import after_where, index_terms, mentions


class Keyed(enum.IntEnum):
    """How a row of a table is named in the log."""

    ROWID = 1
    PRIMARY = 2  # WITHOUT ROWID
    WHOLE = 3  # no usable key: the table travels whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column; ``stored`` is False for generated columns, which are never shipped."""

    name: str
    stored: bool
    not_null: bool
    default: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One term of a unique index: a column, or an expression over columns."""

    column: str | None
    expression: str
    collation: str
    mentions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """A unique index whose conflicts a REPLACE resolves by killing rows."""

    name: str
    late: bool  # what a row takes in it is read back from the row (``docs/adr/0006``)
    terms: tuple[Term, ...]
    where: str  # of a partial index, else empty

    def held(self, values: tuple[str, ...]) -> str:
        """A condition for the rows that hold ``values`` (SQL expressions), where the table's columns are in scope."""
        same = [
            f"({t.expression}\n) COLLATE {quoted(t.collation)} = {v}" for t, v in zip(self.terms, values, strict=True)
        ]
        return " AND ".join((*same, f"({self.where}\n)") if self.where else same)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that holds rows."""

    name: str
    sql: str
    keyed: Keyed
    key: tuple[str, ...]  # the alias of the rowid, or the columns of the primary key
    integer_key: str | None  # the INTEGER PRIMARY KEY, where there is one
    columns: tuple[Column, ...]
    uniques: tuple[Unique, ...]
    cascaded: bool  # a foreign key's action may update its rows, between a row's own change and its AFTER triggers

    @property
    def early(self) -> tuple[Unique, ...]:
        """The unique indexes whose victims are known before they die."""
        return tuple(u for u in self.uniques if not u.late)

    @property
    def late(self) -> tuple[Unique, ...]:
        """The unique indexes whose victims are found by what the new row took."""
        return tuple(u for u in self.uniques if u.late)

    @property
    def renumbered_by_vacuum(self) -> bool:
        """Whether a VACUUM may give its rows other rowids."""
        return self.keyed is Keyed.ROWID and self.integer_key is None

    @property
    def shipped(self) -> tuple[str, ...]:
        """The columns that travel, the key first."""
        stored = tuple(c.name for c in self.columns if c.stored)
        if self.keyed is Keyed.ROWID:
            return (*self.key, *(name for name in stored if name != self.integer_key))
        if self.keyed is Keyed.PRIMARY:
            return (*self.key, *(name for name in stored if name not in self.key))
        return stored


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaObject:
    """A row of ``sqlite_schema`` that is the application's."""

    type: str
    name: str
    table: str
    sql: str

    @property
    def virtual(self) -> bool:
        """Whether it is a virtual table."""
        return self.type == "table" and self.sql.upper().startswith("CREATE VIRTUAL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A database's schema at one ``schema_version``."""

    version: int
    objects: tuple[SchemaObject, ...]
    tables: dict[str, Table]


def read_objects(db: apsw.Connection, schema: str = "main") -> tuple[SchemaObject, ...]:
    """All objects of the application that can be made again by their SQL, in order of creation."""
    rows = db.execute(
        f"SELECT type, name, tbl_name, sql FROM {schema}.sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
    )
    return tuple(
        SchemaObject(type=str(kind), name=str(name), table=str(table), sql=str(sql))
        for kind, name, table, sql in rows
        if not is_ours(str(name)) and not folded(str(name)).startswith("sqlite_")
    )


def read_schema(db: apsw.Connection) -> Schema:
    """The whole schema. Call it inside a read transaction where it must match what is read later."""
    version = db.execute("PRAGMA main.schema_version").fetchone()
    objects = read_objects(db)
    wanted = {o.name: o for o in objects if o.type == "table" and not o.virtual}
    without_rowid = {
        str(name) for (name,) in db.execute("SELECT name FROM pragma_table_list WHERE schema = 'main' AND wr")
    }
    tables = {name: _read_table(db, o, without_rowid=name in without_rowid) for name, o in wanted.items()}
    assert version is not None
    return Schema(version=int(version[0]), objects=objects, tables=tables)


def read_table(db: apsw.Connection, name: str) -> Table | None:
    """One table, which costs less than the whole schema; None where there is none of this name."""
    rows = db.execute(
        "SELECT l.name, l.wr, s.sql FROM pragma_table_list(?1) AS l JOIN main.sqlite_schema AS s "
        "ON s.type = 'table' AND s.name = l.name WHERE l.schema = 'main' AND l.type IN ('table', 'shadow')",
        (name,),
    ).fetchall()
    for found, without_rowid, sql in rows:
        table = SchemaObject(type="table", name=str(found), table=str(found), sql=str(sql))
        return _read_table(db, table, without_rowid=bool(without_rowid))
    return None


def _read_table(db: apsw.Connection, table: SchemaObject, *, without_rowid: bool) -> Table:
    name = table.name
    columns, primary = [], []
    for _, column, declared, not_null, default, pk, hidden in db.execute(
        "SELECT * FROM pragma_table_xinfo(?, 'main')", (name,)
    ):
        columns.append(
            Column(
                name=str(column),
                stored=hidden not in {2, 3},
                not_null=bool(not_null),
                default=None if default is None else str(default),
            )
        )
        if pk:
            primary.append((int(pk), str(column), str(declared)))
    primary.sort()
    indexes = list(db.execute("SELECT name, \"unique\", origin, partial FROM pragma_index_list(?, 'main')", (name,)))
    integer_key = None
    if not without_rowid and len(primary) == 1 and not any(origin == "pk" for _, _, origin, _ in indexes):
        integer_key = primary[0][1]
    keyed, key = _key(columns, primary, without_rowid=without_rowid, integer_key=integer_key)
    uniques = tuple(
        _read_unique(db, str(index), columns, partial=bool(partial), created=origin == "c")
        for index, unique, origin, partial in indexes
        if unique and not (without_rowid and origin == "pk")
    )
    return Table(
        name=name,
        sql=table.sql,
        keyed=keyed,
        key=key,
        integer_key=integer_key,
        columns=tuple(columns),
        uniques=uniques,
        cascaded=_cascaded(db, name),
    )


def _key(
    columns: list[Column], primary: list[tuple[int, str, str]], *, without_rowid: bool, integer_key: str | None
) -> tuple[Keyed, tuple[str, ...]]:
    if without_rowid:
        return Keyed.PRIMARY, tuple(column for _, column, _ in primary)
    taken = {folded(c.name) for c in columns}
    alias = next((a for a in ROWID_ALIASES if a not in taken), integer_key)
    if alias is None:
        return Keyed.WHOLE, ()
    return Keyed.ROWID, (alias,)


def _cascaded(db: apsw.Connection, table: str) -> bool:
    rows = db.execute("SELECT on_update FROM pragma_foreign_key_list(?, 'main')", (table,)).fetchall()
    return any(action not in {"NO ACTION", "RESTRICT"} for (action,) in rows)


def _read_unique(db: apsw.Connection, index: str, columns: list[Column], *, partial: bool, created: bool) -> Unique:
    sql = db.execute("SELECT sql FROM main.sqlite_schema WHERE type = 'index' AND name = ?", (index,)).fetchone()
    text = str(sql[0]) if sql and sql[0] is not None else ""
    expressions = index_terms(text) if text else ()
    names = tuple(c.name for c in columns)
    terms = []
    for seqno, cid, column, _, collation, key in db.execute("SELECT * FROM pragma_index_xinfo(?, 'main')", (index,)):
        if not key:
            continue
        expression = quoted(str(column)) if column is not None else expressions[int(seqno)]
        terms.append(
            Term(
                column=None if column is None or int(cid) < 0 else str(column),
                expression=expression,
                collation=str(collation),
                mentions=mentions(expression, names),
            )
        )
    where = after_where(text) if partial else ""
    used = {m for term in terms for m in term.mentions} | set(mentions(where, names))
    generated = any(not c.stored and c.name in used for c in columns)
    # A generated value follows a default that REPLACE puts in after the BEFORE triggers.
    return Unique(name=index, late=created or generated, terms=tuple(terms), where=where)


def unknown_to_us(db: apsw.Connection, table: Table) -> str:
    """Why rows of ``table`` cannot be read or written by us (a collation or function of its program), or empty."""
    # Plans only: listing the program itself (a plain EXPLAIN) crashed inside SQLite 3.54.1 now and then.
    stored = [quoted(c.name) for c in table.columns if c.stored]
    everything = ", ".join(quoted(c.name) for c in table.columns)
    try:
        db.execute(
            f"EXPLAIN QUERY PLAN INSERT OR REPLACE INTO main.{quoted(table.name)}({', '.join(stored)}) "
            f"VALUES ({', '.join('NULL' for _ in stored)})"
        ).fetchall()
        db.execute(f"EXPLAIN QUERY PLAN SELECT * FROM main.{quoted(table.name)} ORDER BY {everything}").fetchall()
        if table.keyed is Keyed.PRIMARY:
            db.execute(f"EXPLAIN QUERY PLAN DELETE FROM main.{quoted(table.name)}").fetchall()
    except apsw.SQLError as error:
        return f"table {literal(table.name)}: {error}"
    return ""
