"""Keys and spans of keys that travel again because the full backup found that the Standby lacks them.

They stand in the source's own journal until they are acknowledged, never in the database. What they hold is read when
the batch is built, with everything else of that instant; a key that is not there any more is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from ha_sync.capture.rows.collect import Collector
from ha_sync.database.connection import run
from ha_sync.database.keys import Key, bound
from ha_sync.database.ranges import add_range, create_ranges
from ha_sync.database.rowhash import Span
from ha_sync.database.spans import objects_of, span_of
from ha_sync.errors import ProtocolFault


@contextmanager
def asked_again(db: apsw.Connection, key_columns: int) -> Iterator[None]:
    """Attaches where keys are put for the collector's queries. Entered and left outside of any transaction."""
    run(db, "ATTACH ':memory:' AS inv")
    try:
        create_ranges(db, "inv", key_columns)
        run(db, f"CREATE TABLE inv.again(tbl, {', '.join(f'k{i}' for i in range(max(1, key_columns)))})")
        yield
    finally:
        run(db, "DETACH inv")


def collect_again(c: Collector, objects: list[bytes], *, without: frozenset[str]) -> None:
    """Writes the parts of what was asked for; tables in ``without`` travel whole anyway."""
    spans: dict[str, list[Span]] = {}
    for data in objects:
        message = objects_of(data)
        table = c.schema.tables.get(message.table)
        if table is None or table.name in without or c.locality.is_local_table(table.name):
            continue
        try:
            spans.setdefault(table.name, []).extend(span_of(span, table) for span in message.spans)
        except ProtocolFault:
            continue  # the table was made anew with another key, so it travels whole
    for place, (name, wanted) in enumerate(sorted(spans.items())):
        table = c.schema.tables[name]
        ranges = [(_end(c, name, s.after), _end(c, name, s.upto)) for s in wanted if not s.only]
        if ranges:
            c.ranges(table, ranges)
        keys = [s.upto for s in wanted if s.only and s.upto is not None]
        for key in keys:
            places, values = bound(key)
            columns = ", ".join(f"k{i}" for i in range(len(key)))
            run(c.db, f"INSERT INTO inv.again(tbl, {columns}) VALUES(?, {places})", (place, *values))
        if keys:
            c.keys(table, "inv.again", place)


def _end(c: Collector, table: str, key: Key | None) -> int | None:
    return None if key is None else add_range(c.db, "inv.range", table, key)
