"""Compares tables by hashes of key ranges: no row passes through Python (DESIGN 7).

A *range* is (lo, hi] in key order; the last one of a table has no upper end, so the ranges of a table cover every key
there can be. A table has about ``RANGES_ABOUT`` of them, and towards its end, where rows are appended, they grow
shorter. How they are hashed: ``rowhash``.

Ranges stand in ``inv.range(id, tbl, rows, bytes, hash, k0, ...)``; k0.. is the upper end, NULL for the last of a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import apsw
import xxhash

from ha_sync.database.connection import number, run
from ha_sync.database.keys import Key, bound
from ha_sync.database.locality import Locality
from ha_sync.database.names import quoted
from ha_sync.database.rowhash import Digest, Hasher, Span
from ha_sync.database.schema import Keyed, Schema, Table

RANGES_ABOUT = 256
RANGE_ROWS_MIN = 256
RANGE_ROWS_MAX = 4096  # of usual rows: an image that the processor's cache holds
EVERYTHING = Span()
PLAIN_COLUMNS = 5  # of inv.range, before the key's


def create_ranges(db: apsw.Connection, schema: str, key_columns: int) -> None:
    """Makes the table of ranges in an attached database."""
    keys = ", ".join(f"k{i}" for i in range(max(1, key_columns)))
    run(db, f"CREATE TABLE {schema}.range(id INTEGER PRIMARY KEY, tbl, rows, bytes, hash, {keys})")


def add_range(db: apsw.Connection, bounds: str, table: str, upto: Key | None, found: Digest | None = None) -> int:
    """Enters one range, or only its upper end, and returns its number."""
    columns, places = "tbl", "?"
    values: tuple[int | float | str | bytes | None, ...] = (table,)
    if found is not None:
        columns, places = "tbl, rows, bytes, hash", "?, ?, ?, ?"
        values += (found.rows, found.size, found.hash)
    if upto is not None:
        ends, bindings = bound(upto)
        columns += "".join(f", k{i}" for i in range(len(upto)))
        places, values = f"{places}, {ends}", (*values, *bindings)
    run(db, f"INSERT INTO {bounds}({columns}) VALUES({places})", values)
    return db.last_insert_rowid()


def comparable(schema: Schema, locality: Locality) -> tuple[Table, ...]:
    """The tables whose rows are compared by ranges."""
    return tuple(
        t
        for name, t in sorted(schema.tables.items())
        if t.keyed is not Keyed.WHOLE and not locality.is_local_table(name)
    )


def cut(hasher: Hasher, rows: int, *, within: Span = EVERYTHING) -> Iterator[tuple[Span, Digest]]:
    """All ranges of a span, of ``rows`` rows or fewer large ones; shorter ones at the end of the table."""
    after = within.after
    while True:
        found, upto = hasher.next(Span(after=after, upto=within.upto), rows)
        if (
            hasher.cuts
            and upto is None
            and within.upto is None
            and rows > RANGE_ROWS_MIN
            and found.rows >= RANGE_ROWS_MIN
        ):
            rows = max(RANGE_ROWS_MIN, 1 << ((found.rows - 1).bit_length() - 1))
            continue
        yield Span(after=after, upto=upto or within.upto), found
        if upto is None:
            return
        after = upto


def rows_of_a_range(db: apsw.Connection, table: Table) -> int:
    """How long the ranges of a table are made."""
    rows = number(db, f"SELECT count(*) FROM main.{quoted(table.name)}") // RANGES_ABOUT
    return min(max(1 << rows.bit_length(), RANGE_ROWS_MIN), RANGE_ROWS_MAX)


def write_ranges(db: apsw.Connection, table: Table, locality: Locality, bounds: str = "inv.range") -> None:
    """Cuts a table of this node into ranges and hashes each; within ``hashing``."""
    with Hasher(db, table, locality) as hasher:
        for span, found in cut(hasher, rows_of_a_range(db, table)):
            add_range(db, bounds, table.name, span.upto, found)


def table_digest(db: apsw.Connection, table: Table, locality: Locality) -> bytes:
    """One hash over all shared rows of a table that has a key; within ``hashing``, in a read transaction."""
    with Hasher(db, table, locality) as hasher:
        found = [(digest.rows, digest.hash.hex()) for _, digest in cut(hasher, RANGE_ROWS_MAX)]
    return xxhash.xxh3_128_digest(repr(found).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """Conditions of one table by its ranges; ``bounds`` is where these stand."""

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

    def end(self, prefix: str = "k") -> str:
        """The columns of an end of a range."""
        return ", ".join(f"{prefix}{i}" for i in range(len(self.table.key)))

    def between(self, after: int | None, upto: int | None) -> tuple[str, tuple[int, ...]]:
        """A condition for the rows in (end of range ``after``, end of range ``upto``], None being open."""
        conditions, bindings = [self.locality.shared(self.table.name)], []
        for comparison, end in ((">", after), ("<=", upto)):
            if end is not None:
                conditions.append(f"{self._key} {comparison} (SELECT {self.end()} FROM {self.bounds} WHERE id = ?)")
                bindings.append(end)
        return " AND ".join(conditions), tuple(bindings)
