"""Finds what differs from the Standby's inventory, inside one read transaction (DESIGN 7).

The inventory is kept in a temporary file, so that the read transaction lasts only as long as the comparison itself and
never waits for the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from ha_sync.capture.rows.collect import Collector
from ha_sync.database.connection import number, one, run
from ha_sync.database.image import HEADER_BYTES, Facts, encoding_of, remove_file
from ha_sync.database.inventory import take_chunk
from ha_sync.database.keys import Key, selected, taken
from ha_sync.database.names import folded
from ha_sync.database.rowhash import Hasher, Span, hashing
from ha_sync.database.schema import Keyed, Schema, SchemaObject, Table
from ha_sync.errors import ProtocolFault


class Inventory:
    """What the Standby has, as it told us."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._chunks = 0
        self._encoding = ""
        self._db: apsw.Connection | None = None
        self.objects: tuple[SchemaObject, ...] = ()
        self.facts: Facts | None = None

    def take(self, content: bytes) -> None:
        """Adds one chunk. Raises ``ProtocolFault``."""
        if self._db is None:
            remove_file(self._path)
            self._encoding = encoding_of(content[:HEADER_BYTES])
            self._db = apsw.Connection(self._path)
            run(self._db, f"PRAGMA encoding='{self._encoding}'")
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "trusted_schema=OFF", "cell_size_check=ON"):
                run(self._db, f"PRAGMA {pragma}")
        head = take_chunk(self._db, content, first=self._chunks == 0)
        self._chunks += 1
        if head is not None:
            self.objects, self.facts = head.objects or (), head.facts

    def complete(self) -> None:
        """No chunk follows."""
        if self._db is None:
            raise ProtocolFault("refused an inventory", reason="it is empty")
        run(self._db, "CREATE INDEX by_table ON range(tbl, id)")
        self._db.close()
        self._db = None

    @contextmanager
    def attached(self, db: apsw.Connection) -> Iterator[None]:
        """Makes it readable as ``inv``; in another text encoding nothing can be equal, so it counts as empty."""
        if one(db, "PRAGMA main.encoding") != self._encoding:
            self.objects = ()
            yield
            return
        with hashing(db):
            db.execute("ATTACH ? AS inv", (self._path,)).fetchall()
            try:
                yield
            finally:
                run(db, "DETACH inv")

    def same_objects(self, schema: Schema) -> bool:
        """Whether the Standby's schema is ours. Node-local tables count: only their rows are local."""
        return sorted(map(_identity, self.objects)) == sorted(map(_identity, schema.objects))

    def has_table(self, table: Table) -> bool:
        """Whether the Standby's table was made by the same SQL, so that its ranges mean the same."""
        return any(o.type == "table" and o.name == table.name and o.sql == table.sql for o in self.objects)

    def discard(self) -> None:
        """Removes the file."""
        if self._db is not None:
            self._db.close()
            self._db = None
        remove_file(self._path)


def _identity(o: SchemaObject) -> tuple[str, str, str]:
    return o.type, folded(o.name), o.sql


def collect_differences(c: Collector, inventory: Inventory) -> None:
    """Writes the differing parts of every replicated table."""
    for name, table in sorted(c.schema.tables.items()):
        if c.locality.is_local_table(name):
            continue
        if table.keyed is Keyed.WHOLE or not inventory.has_table(table) or not _has_ranges(c.db, name):
            c.whole(table)
            continue
        spans = _differing(c, table)
        if spans:
            c.ranges(table, spans)


def _has_ranges(db: apsw.Connection, table: str) -> bool:
    return number(db, "SELECT count(*) FROM inv.range WHERE tbl = ?", (table,)) > 0


def _differing(c: Collector, table: Table) -> list[tuple[int | None, int | None]]:
    """The spans of key ranges that differ, neighbours joined."""
    spans: list[tuple[int | None, int | None]] = []
    with Hasher(c.db, table, c.locality) as hasher:
        after, place = None, None
        for number_of_range, theirs, upto in _ranges_there(c.db, table):
            end = None if upto is None else number_of_range
            rows, size, _ = theirs
            found = hasher.digest(Span(after=after, upto=upto), rows_max=rows, size_max=size)
            if not found.whole or (found.rows, found.size, found.hash) != theirs:
                if spans and spans[-1][1] == place and place is not None:
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((place, end))
            after, place = upto, end
    return spans


def _ranges_there(db: apsw.Connection, table: Table) -> list[tuple[int, tuple[int, int, bytes], Key | None]]:
    """Number, (rows, bytes, hash) and upper end of the Standby's ranges."""
    ends = selected(f"k{i}" for i in range(len(table.key)))
    rows = db.execute(
        f"SELECT id, rows, bytes, hash, {ends} FROM inv.range WHERE tbl = ? ORDER BY id", (table.name,)
    ).fetchall()
    ranges: list[tuple[int, tuple[int, int, bytes], Key | None]] = []
    for place, (number_of_range, count, size, content, *end) in enumerate(rows):
        last = place == len(rows) - 1
        if (end[0] == "null") is not last:
            raise ProtocolFault("refused an inventory", reason="its ranges do not cover the keys")
        match number_of_range, count, size, content:
            case int(), int(), int(), bytes():
                ranges.append((number_of_range, (count, size, content), None if last else taken(end)))
            case _:
                raise ProtocolFault("refused an inventory", reason="a range of it is none")
    return ranges
