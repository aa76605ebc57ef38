"""Compares tables by hashes of key ranges, computed by SQL and xxh3 alone: no row passes through Python (DESIGN 7).

A *range* is (lo, hi] in key order, about ``RANGE_ROWS`` rows of the Standby; the last one of a table has no upper end,
so the ranges of a table cover every key there can be. Its hash is taken over a text that names every value and its
type exactly: ``quote`` keeps types and all digits, and where a text holds a NUL, at which ``quote`` stops, the raw
bytes follow in hexadecimal. Equal rows give equal hashes on both nodes because both carry the same SQLite.

Ranges stand in ``inv.range(id, tbl, rows, hash, k0, ...)``; k0.. is the upper end, NULL for the last of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw
import xxhash

from ha_sync.database.connection import number, one, run
from ha_sync.database.locality import Locality
from ha_sync.database.names import quoted
from ha_sync.database.schema import Keyed, Schema, Table

RANGE_ROWS = 256
RANGE_BYTES = 4 * 1024 * 1024  # of the text of a range: large rows make short ranges
ARGUMENTS_MAX = 100  # of one function call


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What stands in one range."""

    rows: int
    hash: bytes
    text_bytes: int


def create_ranges(db: apsw.Connection, schema: str, key_columns: int) -> None:
    """Makes the table of ranges in an attached database."""
    keys = ", ".join(f"k{i}" for i in range(max(1, key_columns)))
    run(db, f"CREATE TABLE {schema}.range(id INTEGER PRIMARY KEY, tbl, rows, hash, {keys})")


def comparable(schema: Schema, locality: Locality) -> tuple[Table, ...]:
    """The tables whose rows are compared by ranges."""
    return tuple(
        t
        for name, t in sorted(schema.tables.items())
        if t.keyed is not Keyed.WHOLE and not locality.is_local_table(name)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeReader:
    """The statements that cut and hash one table; ``bounds`` is the table of ranges, e.g. ``inv.range``."""

    table: Table
    locality: Locality
    bounds: str = "inv.range"

    @property
    def _name(self) -> str:
        return quoted(self.table.name)

    @property
    def _key(self) -> str:
        keys = ", ".join(f"{self._name}.{quoted(k)}" for k in self.table.key)
        return f"({keys})" if len(self.table.key) > 1 else keys

    @property
    def key_order(self) -> str:
        """For ORDER BY."""
        return ", ".join(f"{self._name}.{quoted(k)}" for k in self.table.key)

    def end(self, prefix: str = "k") -> str:
        """The columns of an end of a range."""
        return ", ".join(f"{prefix}{i}" for i in range(len(self.table.key)))

    def between(self, after: int | None, upto: int | None) -> tuple[str, tuple[int, ...]]:
        """A condition for the rows in (end of range ``after``, end of range ``upto``], None being open."""
        conditions, bindings = [self.locality.shared(self.table.name)], []
        for comparison, bound in ((">", after), ("<=", upto)):
            if bound is not None:
                conditions.append(f"{self._key} {comparison} (SELECT {self.end()} FROM {self.bounds} WHERE id = ?)")
                bindings.append(bound)
        return " AND ".join(conditions), tuple(bindings)

    def cut(self, db: apsw.Connection, after: int | None, rows: int) -> int | None:
        """Writes the next range's upper end; None where fewer than ``rows`` rows are left."""
        condition, bindings = self.between(after, None)
        ends = ", ".join(f"{self._name}.{quoted(k)}" for k in self.table.key)
        before = db.total_changes()
        run(
            db,
            f"INSERT INTO {self.bounds}(tbl, {self.end()}) SELECT ?, {ends} FROM main.{self._name} "
            f"WHERE {condition} ORDER BY {self.key_order} LIMIT 1 OFFSET {rows - 1}",
            (self.table.name, *bindings),
        )
        return db.last_insert_rowid() if db.total_changes() > before else None

    def digest(self, db: apsw.Connection, after: int | None, upto: int | None, rows_max: int = -1) -> Digest:
        """Hashes the rows of a range, at most ``rows_max`` of them."""
        condition, bindings = self.between(after, upto)
        found = db.execute(
            "SELECT count(*), CAST(coalesce(group_concat(x, ';'), '') AS BLOB) FROM ("
            f"SELECT {self._text()} AS x FROM main.{self._name} WHERE {condition} "
            f"ORDER BY {self.key_order} LIMIT ?)",
            (*bindings, rows_max),
        ).fetchone()
        assert found is not None
        rows, text = found
        assert isinstance(rows, int)
        assert isinstance(text, bytes)
        return Digest(rows=rows, hash=xxhash.xxh3_128_digest(text), text_bytes=len(text))

    def _text(self) -> str:
        columns = [f"{self._name}.{quoted(c)}" for c in self.table.shipped]
        raw = _nested("concat", columns, "''")
        quotes = _nested("concat_ws", [f"quote({c})" for c in columns], "','")
        return f"iif(instr({raw}, char(0)), concat_ws(',', {quotes}, {self._exact(columns)}), {quotes})"

    def _exact(self, columns: list[str]) -> str:
        return _nested("concat_ws", [f"iif(typeof({c}) = 'text', hex({c}), '')" for c in columns], "','")


def _nested(function: str, arguments: list[str], first: str) -> str:
    """``function`` over any number of arguments: SQLite bounds how many one call may have."""
    while len(arguments) > ARGUMENTS_MAX:
        arguments = [
            f"{function}({first}, {', '.join(arguments[i : i + ARGUMENTS_MAX])})"
            for i in range(0, len(arguments), ARGUMENTS_MAX)
        ]
    return f"{function}({first}, {', '.join(arguments)})"


def write_ranges(db: apsw.Connection, reader: RangeReader) -> None:
    """Cuts a table of this node into ranges and hashes each."""
    after, rows = None, RANGE_ROWS
    while True:
        upto = reader.cut(db, after, rows)
        found = reader.digest(db, after, upto)
        if upto is None:
            run(db, f"INSERT INTO {reader.bounds}(tbl) VALUES(?)", (reader.table.name,))
        run(
            db,
            f"UPDATE {reader.bounds} SET rows = ?, hash = ? WHERE id = ?",
            (found.rows, found.hash, db.last_insert_rowid()),
        )
        if upto is None:
            return
        after = upto
        rows = max(1, min(RANGE_ROWS, RANGE_BYTES * found.rows // max(1, found.text_bytes)))


def table_digest(db: apsw.Connection, table: Table, locality: Locality) -> bytes:
    """One hash over all shared rows of a table that has a key; the caller holds a read transaction."""
    run(db, "ATTACH ':memory:' AS inv") if "inv" not in db.db_names() else None
    run(db, "DROP TABLE IF EXISTS inv.range")
    create_ranges(db, "inv", len(table.key))
    write_ranges(db, RangeReader(table=table, locality=locality))
    rows = number(db, "SELECT sum(rows) FROM inv.range")
    text = one(db, "SELECT group_concat(hex(hash) ORDER BY id) FROM inv.range")
    return xxhash.xxh3_128_digest(f"{rows}:{text}".encode())
