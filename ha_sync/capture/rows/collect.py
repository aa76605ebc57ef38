"""Collects what changed into an image, within one read transaction: log, keys and rows belong to one instant.

Rows are copied by ``INSERT ... SELECT``. A key whose row is not there, or has become node-local, is gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from ha_sync.database.connection import number, run
from ha_sync.database.image import ImageBuilder, Part
from ha_sync.database.locality import Locality
from ha_sync.database.names import CHANGE, INDEX, TABLE, quoted
from ha_sync.database.ranges import Between
from ha_sync.database.schema import Keyed, Schema, Table, Unique

_LOGGED = "_ha_logged"  # alias of the log, so that no column of the application's can hide its columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Writes parts of one image. The caller holds the read transaction."""

    db: apsw.Connection
    builder: ImageBuilder
    schema: Schema
    locality: Locality

    def changes(self, after: int, *, without: frozenset[str]) -> None:
        """The current rows of all keys that were logged after ``after``; tables in ``without`` travel otherwise."""
        touched = self.db.execute(
            f"SELECT name, id FROM main.{TABLE} WHERE id IN (SELECT tbl FROM main.{CHANGE} WHERE seq > ?)", (after,)
        ).fetchall()
        for name, table_number in touched:
            table = self.schema.tables.get(str(name))
            if table is None or table.name in without or self.locality.is_local_table(table.name):
                continue
            if table.keyed is Keyed.WHOLE:
                self.whole(table)
            else:
                self._changed_rows(table, after, int(str(table_number)))

    def whole(self, table: Table) -> None:
        """All shared rows of a table."""
        part = Part(table=table.name, keyed=table.keyed, key=table.key, columns=table.shipped, whole=True)
        target = f"img.r{self.builder.begin_part(part)}"
        run(
            self.db,
            f"INSERT INTO {target} SELECT {_columns(table)} FROM main.{quoted(table.name)} "
            f"WHERE {self.locality.shared(table.name)}",
        )

    def ranges(self, table: Table, spans: list[tuple[int | None, int | None]]) -> None:
        """The rows of key ranges, each given by the numbers of its ends in ``inv.range``."""
        part = Part(table=table.name, keyed=table.keyed, key=table.key, columns=table.shipped, ranges=True)
        n = self.builder.begin_part(part)
        reader = Between(table=table, locality=self.locality)
        for after, upto in spans:
            self._span(f"img.d{n}", table, after, upto)
            condition, bindings = reader.between(after, upto)
            run(
                self.db,
                f"INSERT INTO img.r{n} SELECT {_columns(table)} FROM main.{quoted(table.name)} WHERE {condition}",
                bindings,
            )

    def keys(self, table: Table, listed: str, place: int) -> None:
        """The rows of the keys that stand in ``listed`` under ``place``."""
        part = Part(table=table.name, keyed=table.keyed, key=table.key, columns=table.shipped, gone=True)
        n = self.builder.begin_part(part)
        self._rows_of(n, table, f"FROM {listed} AS {_LOGGED} WHERE {_LOGGED}.tbl = ?1", (place,))

    def _span(self, target: str, table: Table, after: int | None, upto: int | None) -> None:
        ends, bindings = [], []
        for prefix, bound in (("lo", after), ("hi", upto)):
            for i in range(len(table.key)):
                ends.append(f"(SELECT k{i} FROM inv.range WHERE id = ?) AS {prefix}{i}")
                bindings.append(bound)
        run(
            self.db,
            f"INSERT INTO {target} SELECT NULL, ?, ?, {', '.join(ends)}",
            (int(after is None), int(upto is None), *bindings),
        )

    def _changed_rows(self, table: Table, after: int, table_number: int) -> None:
        part = Part(table=table.name, keyed=table.keyed, key=table.key, columns=table.shipped, gone=True)
        n = self.builder.begin_part(part)
        log = f"FROM main.{CHANGE} AS {_LOGGED} WHERE {_LOGGED}.seq > ?1 AND {_LOGGED}.tbl = ?2"
        for unique in table.late:
            self._freed(n, table, unique, after)
        self._rows_of(n, table, log, (after, table_number))

    def _rows_of(self, n: int, table: Table, log: str, bindings: tuple[int, ...]) -> None:
        self._gone(f"img.g{n}", table, log, bindings)
        if table.keyed is Keyed.ROWID:
            self._rows_by_rowid(f"img.r{n}", table, log, bindings)
        else:
            self._rows_by_primary_key(f"img.r{n}", table, log, bindings)

    def _gone(self, target: str, table: Table, log: str, bindings: tuple[int, ...]) -> None:
        name = quoted(table.name)
        keys = ", ".join(f"{_LOGGED}.k{i}" for i in range(len(table.key)))
        same = " AND ".join(f"{name}.{quoted(k)} = {_LOGGED}.k{i}" for i, k in enumerate(table.key))
        run(
            self.db,
            f"INSERT INTO {target} SELECT DISTINCT {keys} {log} AND NOT EXISTS "
            f"(SELECT 1 FROM main.{name} WHERE {same} AND {self.locality.shared(table.name)})",
            bindings,
        )

    def _freed(self, part: int, table: Table, unique: Unique, after: int) -> None:
        """The values that rows took in a unique index and that no row holds now.

        A row that a REPLACE killed has no entry in the log. Where another row holds its value still, that row is in
        the log and pushes it out on the Standby too; where none does, it is found there by the value.
        """
        numbered = number(self.db, f"SELECT id FROM main.{TABLE} WHERE name = ?", (INDEX + unique.name,))
        values = tuple(f"{_LOGGED}.k{i}" for i in range(len(unique.terms)))
        found = (
            f"SELECT DISTINCT {', '.join(values)} FROM main.{CHANGE} AS {_LOGGED} "
            f"WHERE {_LOGGED}.seq > ? AND {_LOGGED}.tbl = ? AND NOT EXISTS (SELECT 1 FROM main.{quoted(table.name)} "
            f"WHERE {unique.held(values)} AND {self.locality.shared(table.name)})"
        )
        if number(self.db, f"SELECT EXISTS ({found})", (after, numbered)):
            target = self.builder.begin_freed(part, unique.name, len(unique.terms))
            run(self.db, f"INSERT INTO img.{target} {found}", (after, numbered))

    def _rows_by_rowid(self, target: str, table: Table, log: str, bindings: tuple[int, ...]) -> None:
        name = quoted(table.name)
        run(
            self.db,
            f"INSERT INTO {target} SELECT {_columns(table)} FROM main.{name} "
            f"WHERE {name}.{quoted(table.key[0])} IN (SELECT {_LOGGED}.k0 {log}) "
            f"AND {self.locality.shared(table.name)}",
            bindings,
        )

    def _rows_by_primary_key(self, target: str, table: Table, log: str, bindings: tuple[int, ...]) -> None:
        name = quoted(table.name)
        keys = ", ".join(f"{_LOGGED}.k{i} AS _ha_k{i}" for i in range(len(table.key)))
        same = " AND ".join(f"{name}.{quoted(k)} = _ha_keys._ha_k{i}" for i, k in enumerate(table.key))
        run(
            self.db,
            f"INSERT INTO {target} SELECT {_columns(table)} FROM (SELECT DISTINCT {keys} {log}) AS _ha_keys "
            f"CROSS JOIN main.{name} ON {same} WHERE {self.locality.shared(table.name)}",
            bindings,
        )


def _columns(table: Table) -> str:
    return ", ".join(f"{quoted(table.name)}.{quoted(c)}" for c in table.shipped)


def pending_entries(db: apsw.Connection, after: int) -> int:
    """How many log entries a batch after ``after`` would read (about: by sequence)."""
    return max(0, number(db, f"SELECT max(seq) FROM main.{CHANGE}") - after)
