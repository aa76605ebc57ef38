"""The Standby's inventory of a database for a compare: its schema, its facts, and a hash for every key range.

It travels in chunks; each is a serialized SQLite database with ``head(json)`` (of use in the first chunk only) and
``range(id, tbl, rows, bytes, hash, k0, ...)``. Key values keep their type because they never leave SQLite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import apsw

from ha_sync.database.connection import number, one, run
from ha_sync.database.image import Facts, Head
from ha_sync.database.ranges import PLAIN_COLUMNS, create_ranges
from ha_sync.database.schema import SchemaObject
from ha_sync.errors import ProtocolFault

RANGES_PER_CHUNK = 4096
KEY_COLUMNS_MAX = 2000


def chunks(db: apsw.Connection, objects: tuple[SchemaObject, ...], facts: Facts | None) -> Iterator[bytes]:
    """Cuts the attached ``inv.range`` into chunks; at least one. Outside any transaction."""
    head = Head(parts=(), facts=facts, objects=objects).to_json()
    columns = [str(row[0]) for row in db.execute("SELECT name FROM pragma_table_info('range', 'inv')")]
    keys = len(columns) - PLAIN_COLUMNS
    last, first = number(db, "SELECT max(id) FROM inv.range"), True
    start = 0
    while first or start < last:
        run(db, "ATTACH ':memory:' AS chunk")
        try:
            run(db, "CREATE TABLE chunk.head(json)")
            run(db, "INSERT INTO chunk.head VALUES(?)", (head if first else json.dumps([keys]),))
            create_ranges(db, "chunk", keys)
            run(
                db,
                "INSERT INTO chunk.range SELECT * FROM inv.range WHERE id > ? AND id <= ?",
                (start, start + RANGES_PER_CHUNK),
            )
            content = db.serialize("chunk")
        finally:
            run(db, "DETACH chunk")
        yield content
        first, start = False, start + RANGES_PER_CHUNK


def take_chunk(db: apsw.Connection, content: bytes, *, first: bool) -> Head | None:
    """Adds a received chunk to ``main.range`` of ``db``; returns the head of the first. Raises ``ProtocolFault``."""
    run(db, "ATTACH ':memory:' AS chunk")
    try:
        db.deserialize("chunk", content)
        shape = {str(n): str(kind) for kind, n in db.execute("SELECT type, name FROM chunk.sqlite_schema")}
        if shape != {"head": "table", "range": "table"}:
            raise ProtocolFault("refused an inventory", reason=f"it holds {sorted(shape)}")
        columns = number(db, "SELECT count(*) FROM pragma_table_info('range', 'chunk')")
        if not PLAIN_COLUMNS < columns <= KEY_COLUMNS_MAX + PLAIN_COLUMNS:
            raise ProtocolFault("refused an inventory", reason=f"{columns} columns")
        if first:
            create_ranges(db, "main", columns - PLAIN_COLUMNS)
        run(db, "INSERT INTO main.range SELECT * FROM chunk.range")
        text = one(db, "SELECT json FROM chunk.head")
        return Head.from_json(text if isinstance(text, str) else "") if first else None
    except apsw.Error as error:
        raise ProtocolFault("cannot read an inventory", reason=str(error)) from None
    finally:
        run(db, "DETACH chunk")
