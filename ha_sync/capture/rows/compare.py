"""Finds what differs from the Standby's inventory, inside one read transaction (DESIGN 7).

The inventory is kept in a temporary file, so that the read transaction lasts only as long as the comparison itself and
never waits for the network.
"""

from __future__ import annotations

import apsw

from ha_sync.capture.rows.collect import Collector
from ha_sync.database.connection import number, one, run
from ha_sync.database.image import HEADER_BYTES, Facts, encoding_of, remove_file
from ha_sync.database.inventory import take_chunk
from ha_sync.database.names import folded
from ha_sync.database.ranges import RangeReader
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

    def attach(self, db: apsw.Connection) -> None:
        """Makes it readable as ``inv``; in another text encoding nothing can be equal, so it counts as empty."""
        if one(db, "PRAGMA main.encoding") != self._encoding:
            self.objects = ()
            return
        db.execute("ATTACH ? AS inv", (self._path,)).fetchall()

    def detach(self, db: apsw.Connection) -> None:
        """Takes it off the connection."""
        if "inv" in db.db_names():
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
        spans = _differing(c.db, RangeReader(table=table, locality=c.locality))
        if spans:
            c.ranges(table, spans)


def _has_ranges(db: apsw.Connection, table: str) -> bool:
    return number(db, "SELECT count(*) FROM inv.range WHERE tbl = ?", (table,)) > 0


def _differing(db: apsw.Connection, reader: RangeReader) -> list[tuple[int | None, int | None]]:
    """The spans of key ranges that differ, neighbours joined."""
    ranges = db.execute(
        "SELECT id, rows, hash, k0 IS NULL FROM inv.range WHERE tbl = ? ORDER BY id", (reader.table.name,)
    ).fetchall()
    spans: list[tuple[int | None, int | None]] = []
    after: int | None = None
    for place, (number_of_range, rows, hash_there, is_open) in enumerate(ranges):
        assert isinstance(number_of_range, int)
        last = place == len(ranges) - 1
        if not isinstance(rows, int) or bool(is_open) is not last:
            raise ProtocolFault("refused an inventory", reason="its ranges do not cover the keys")
        upto = None if is_open else number_of_range
        found = reader.digest(db, after, upto, rows + 1)
        if (found.rows, found.hash) != (rows, hash_there):
            if spans and spans[-1][1] == after and after is not None:
                spans[-1] = (spans[-1][0], upto)
            else:
                spans.append((after, upto))
        after = upto
    return spans
