"""Makes the Standby's schema the Active's, inside the applier's transaction.

A table made by other SQL is dropped and made anew; its rows come with the same image. Rows that belong to the node are
put aside before and back after, by the columns that both forms have. Indexes, views and triggers are made after the
rows. Virtual tables are entered into ``sqlite_schema`` directly, as ``.dump`` of the sqlite3 shell does it: that works
for modules we do not have, and leaves their shadow tables to be ordinary tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import apsw

from ha_sync.database.connection import number, run
from ha_sync.database.locality import Locality
from ha_sync.database.names import folded, quoted
from ha_sync.database.schema import SchemaObject, read_objects


@dataclass(slots=True, kw_only=True)
class Rebuild:
    """One change of the schema; ``tables`` runs before the rows go in, ``rest`` after."""

    db: apsw.Connection
    desired: tuple[SchemaObject, ...]
    locality: Locality
    _aside: list[tuple[str, str]] = field(default_factory=list)  # (table, temporary table)
    changed: bool = False

    def tables(self) -> None:
        """Drops what differs and creates the missing tables, empty."""
        current = read_objects(self.db)
        wanted = {_key(o): o for o in self.desired}
        stale = [o for o in current if wanted.get(_key(o)) != o and not self._keeps(o, wanted)]
        for o in stale:
            if o.type == "table" and not o.virtual:
                self._put_aside(o)
        self._drop(stale)
        self._create_tables()
        self._put_back()

    def rest(self) -> None:
        """Creates the missing indexes, views and triggers."""
        have = {_key(o) for o in read_objects(self.db)}
        for kind in ("index", "view", "trigger"):
            for o in self.desired:
                if o.type == kind and _key(o) not in have:
                    run(self.db, o.sql)
                    self.changed = True

    def _keeps(self, o: SchemaObject, wanted: dict[tuple[str, str], SchemaObject]) -> bool:
        """A node-local table that the Active does not have stays, with all that hangs on it."""
        return self.locality.is_local_table(o.table) and ("table", folded(o.table)) not in wanted

    def _put_aside(self, o: SchemaObject) -> None:
        clause = "TRUE" if self.locality.is_local_table(o.name) else self.locality.clause(o.name)
        if not clause:
            return
        name = f"_ha_aside_{len(self._aside)}"
        run(self.db, f"CREATE TEMP TABLE {name} AS SELECT * FROM main.{quoted(o.name)} WHERE ({clause}\n)")
        self._aside.append((o.name, name))

    def _drop(self, stale: list[SchemaObject]) -> None:
        virtual = [o for o in stale if o.virtual]
        for o in stale:
            if o.type == "table" and not o.virtual:
                run(self.db, f"DROP TABLE IF EXISTS main.{quoted(o.name)}")
        for o in stale:
            if o.type != "table":
                run(self.db, f"DROP {o.type.upper()} IF EXISTS main.{quoted(o.name)}")
        if virtual:
            self._edit_schema(
                [("DELETE FROM main.sqlite_schema WHERE type = 'table' AND name = ?", (o.name,)) for o in virtual]
            )
        self.changed = self.changed or bool(stale)

    def _create_tables(self) -> None:
        have = {_key(o) for o in read_objects(self.db)}
        missing = [o for o in self.desired if o.type == "table" and _key(o) not in have]
        for o in missing:
            if not o.virtual:
                run(self.db, o.sql)
        virtual = [o for o in missing if o.virtual]
        if virtual:
            insert = (
                "INSERT INTO main.sqlite_schema(type, name, tbl_name, rootpage, sql) VALUES('table', ?1, ?1, 0, ?2)"
            )
            self._edit_schema([(insert, (o.name, o.sql)) for o in virtual])
        self.changed = self.changed or bool(missing)

    def _edit_schema(self, statements: list[tuple[str, tuple[str, ...]]]) -> None:
        run(self.db, "PRAGMA writable_schema=ON")
        try:
            for sql, bindings in statements:
                run(self.db, sql, bindings)
            run(self.db, f"PRAGMA main.schema_version={number(self.db, 'PRAGMA main.schema_version') + 1}")
        finally:
            run(self.db, "PRAGMA writable_schema=RESET")

    def _put_back(self) -> None:
        for table, aside in self._aside:
            columns = self._common_columns(table, aside)
            if columns:
                names = ", ".join(quoted(c) for c in columns)
                run(
                    self.db,
                    f"INSERT OR IGNORE INTO main.{quoted(table)}({names}) SELECT {names} FROM temp.{quoted(aside)}",
                )
            run(self.db, f"DROP TABLE temp.{quoted(aside)}")
        self._aside.clear()

    def _common_columns(self, table: str, aside: str) -> tuple[str, ...]:
        rows = self.db.execute("SELECT name FROM pragma_table_xinfo(?, 'main') WHERE hidden = 0", (table,))
        there = {folded(str(n)): str(n) for (n,) in rows}
        rows = self.db.execute("SELECT name FROM pragma_table_info(?, 'temp')", (aside,))
        return tuple(there[folded(str(n))] for (n,) in rows if folded(str(n)) in there)


def _key(o: SchemaObject) -> tuple[str, str]:
    return o.type, folded(o.name)
