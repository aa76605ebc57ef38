"""Applies what an image holds of one table, within the applier's transaction.

Rows go in with OR REPLACE: a stale row that is in the way through a unique index is dead on the Active, or its new form
follows, because the Standby was in an earlier state of the Active. What a REPLACE killed there is not always in the
way; it is then among the gone, or holds a value that was freed (``docs/adr/0006``).
Node-local rows are in nobody's way: one that sits on a shipped rowid moves to another rowid.
"""

from __future__ import annotations

import apsw

from ha_sync.database.connection import run
from ha_sync.database.image import Part
from ha_sync.database.locality import Locality
from ha_sync.database.names import folded, quoted
from ha_sync.database.schema import Keyed, read_table
from ha_sync.errors import RepairNeeded

_ASIDE = "_ha_local_rows"


def apply_part(db: apsw.Connection, place: int, part: Part, locality: Locality) -> None:
    """Deletes what is gone or replaced, then inserts the rows of part number ``place``."""
    table = f"main.{quoted(part.table)}"
    shared = locality.shared(part.table)
    if part.whole:
        clause = "" if shared == "TRUE" else f" WHERE {shared}"
        run(db, f"DELETE FROM {table}{clause}")
    if part.gone:
        _delete_gone(db, place, part, shared)
    if part.freed:
        _delete_freed(db, place, part, shared)
    if part.ranges:
        _delete_ranges(db, place, part, shared)
    local = shared != "TRUE" and part.keyed is Keyed.ROWID and _put_aside(db, place, part, locality)
    names = ", ".join(quoted(c) for c in part.columns)
    values = ", ".join(f"c{i}" for i in range(len(part.columns)))
    run(db, f"INSERT OR REPLACE INTO {table}({names}) SELECT {values} FROM img.r{place}")
    if local:
        _put_back(db, part)


def _delete_gone(db: apsw.Connection, place: int, part: Part, shared: str) -> None:
    name = quoted(part.table)
    keys = [f"{name}.{quoted(k)}" for k in part.key]
    if part.keyed is Keyed.ROWID:
        where = f"{keys[0]} IN (SELECT k0 FROM img.g{place})"
    else:
        listed = ", ".join(f"k{i}" for i in range(len(keys)))
        where = f"({', '.join(keys)}) IN (SELECT {listed} FROM img.g{place})"
    run(db, f"DELETE FROM main.{name} WHERE {where} AND {shared}")


def _delete_freed(db: apsw.Connection, place: int, part: Part, shared: str) -> None:
    """Deletes the rows that hold values of a unique index which no row of the Active holds."""
    table = read_table(db, part.table)
    uniques = {u.name: u for u in table.late} if table is not None else {}
    name = quoted(part.table)
    keys = ", ".join(f"{name}.{quoted(k)}" for k in part.key)
    key = f"({keys})" if len(part.key) > 1 else keys
    for number, index in enumerate(part.freed):
        unique = uniques.get(index)
        if unique is None:
            raise RepairNeeded("rows do not fit", subject=part.table, reason=f"there is no index {index}")
        values = tuple(f"_ha_freed._ha_v{i}" for i in range(len(unique.terms)))
        renamed = ", ".join(f"k{i} AS _ha_v{i}" for i in range(len(unique.terms)))
        run(
            db,
            f"DELETE FROM main.{name} WHERE {key} IN (SELECT {keys} FROM (SELECT {renamed} FROM img.f{place}x{number}) "
            f"AS _ha_freed CROSS JOIN main.{name} ON {unique.held(values)}) AND {shared}",
        )


def _delete_ranges(db: apsw.Connection, place: int, part: Part, shared: str) -> None:
    name = quoted(part.table)
    keys = ", ".join(f"{name}.{quoted(k)}" for k in part.key)
    key = f"({keys})" if len(part.key) > 1 else keys
    for span, lo_open, hi_open in db.execute(f"SELECT id, lo_open, hi_open FROM img.d{place} ORDER BY id").fetchall():
        conditions, bindings = [shared], []
        for prefix, comparison, is_open in (("lo", ">", lo_open), ("hi", "<=", hi_open)):
            if not is_open:
                ends = ", ".join(f"{prefix}{i}" for i in range(len(part.key)))
                conditions.append(f"{key} {comparison} (SELECT {ends} FROM img.d{place} WHERE id = ?)")
                bindings.append(span)
        run(db, f"DELETE FROM main.{name} WHERE {' AND '.join(conditions)}", tuple(bindings))


def _put_aside(db: apsw.Connection, place: int, part: Part, locality: Locality) -> bool:
    """Takes the node-local rows off the rowids that the image brings."""
    name = quoted(part.table)
    where = f"({locality.clause(part.table)}) AND {name}.{quoted(part.key[0])} IN (SELECT c0 FROM img.r{place})"
    if db.execute(f"SELECT 1 FROM main.{name} WHERE {where} LIMIT 1").fetchone() is None:
        return False
    run(db, f"CREATE TEMP TABLE {_ASIDE} AS SELECT * FROM main.{name} WHERE {where}")
    run(db, f"DELETE FROM main.{name} WHERE {where}")
    return True


def _put_back(db: apsw.Connection, part: Part) -> None:
    shipped = {folded(c) for c in part.columns[1:]}
    rows = db.execute("SELECT name FROM pragma_table_info(?, 'temp')", (_ASIDE,))
    names = ", ".join(quoted(str(n)) for (n,) in rows if folded(str(n)) in shipped)
    run(db, f"INSERT OR IGNORE INTO main.{quoted(part.table)}({names}) SELECT {names} FROM temp.{_ASIDE}")
    run(db, f"DROP TABLE temp.{_ASIDE}")
