"""What an archive's rows are against the database as it is now: for a person, by table, key and column.

*Old* is what stands in this node's database now, which on a Standby is the new Active's; *new* is what the former
Active had written. Values are shown as SQL writes them, so that 1, 1.0 and '1' differ; long ones are cut. Reads hold
their lock for one row at a time. Blocking; runs in a process of its own (``child``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import apsw

from ha_sync.config import SqliteSettings
from ha_sync.database.connection import open_active, tuned
from ha_sync.database.image import Part, attach_image, detach_image, read_head
from ha_sync.database.names import quoted
from ha_sync.database.schema import Keyed, Table, read_table
from ha_sync.divergence.merging_rows import RowsMerge
from ha_sync.divergence.same import identity_columns
from ha_sync.errors import HaSyncError

SHOWN_MAX = 200
"""Characters of a value."""

Line = dict[str, str]
"""``table``, ``key``, ``column``, ``old``, ``new``, ``what``: changed, new, deleted, only here, record (missing)."""


def differing_rows(settings: SqliteSettings, image: str, *, limit: int, goes_on: Callable[[], None]) -> list[Line]:
    """At most ``limit`` lines. Raises HaSyncError."""
    found: list[Line] = []
    try:
        db = open_active(settings.path) if os.path.exists(settings.path) else apsw.Connection(":memory:")
        try:
            tuned(db)
            attach_image(db, content=None, path=image)
            for place, part in enumerate(read_head(db).parts):
                for line in _of_part(db, place, part):
                    goes_on()
                    found.append(line)
                    if len(found) >= limit:
                        return found
            return found
        finally:
            detach_image(db)
            db.close()
    except apsw.Error as error:
        raise HaSyncError("cannot compare an archive with", subject=settings.path, reason=str(error)) from error


def missing_records(settings: SqliteSettings, image: str, *, limit: int, goes_on: Callable[[], None]) -> list[Line]:
    """Records of the archive that are not in this node's database, by what they are; at most ``limit``."""
    found: list[Line] = []
    for part, row in RowsMerge(settings, image, force=True, goes_on=goes_on).missing():
        values = [f"{name}={shown(row[place])}" for place, name in identity_columns(part)]
        found.append(
            {"table": part.table, "key": "", "column": "", "what": "record", "old": "", "new": ", ".join(values)}
        )
        if len(found) >= limit:
            break
    return found


def _of_part(db: apsw.Connection, place: int, part: Part) -> Iterator[Line]:
    table = read_table(db, part.table)
    names = _named_by(part, table)
    columns = ", ".join(f"c{i}" for i in range(len(part.columns)))
    for row in db.execute(f"SELECT {columns} FROM img.r{place}"):
        mine = dict(zip(part.columns, row, strict=True))
        key = ", ".join(f"{name}={shown(mine[name])}" for name in names)
        theirs = _found(db, part, names, mine) if table is not None else None
        if table is not None and names != part.key:
            yield from _in_its_place(db, place, part, names, mine)
        if theirs is None:
            yield from (
                _line(part, key, column=name, what="new", new=mine[name])
                for name in part.columns
                if name not in part.key[:1] or part.keyed is not Keyed.ROWID
            )
            continue
        for name in part.columns:
            if part.keyed is Keyed.ROWID and name == part.key[0] and name not in names:
                continue
            if name in theirs and (type(theirs[name]), theirs[name]) != (type(mine[name]), mine[name]):
                yield _line(part, key, column=name, what="changed", old=theirs[name], new=mine[name])
    if part.gone:
        yield from _gone(db, place, part, table, names)


def _in_its_place(
    db: apsw.Connection, place: int, part: Part, names: tuple[str, ...], mine: dict[str, apsw.SQLiteValue]
) -> Iterator[Line]:
    """The row that bears this one's number here: the former Active had removed it, or the new one has added it."""
    other = _found(db, part, part.key, mine)
    if other is None or any(name not in other for name in names):
        return
    named = tuple(other[name] for name in names)
    if named == tuple(mine[name] for name in names):
        return
    columns = [f"c{part.columns.index(name)} IS ?" for name in names]
    if db.execute(f"SELECT 1 FROM img.r{place} WHERE {' AND '.join(columns)}", named).fetchall():
        return
    key = ", ".join(f"{name}={shown(value)}" for name, value in zip(names, named, strict=True))
    yield from (
        _line(part, key, column=name, what="only here", old=value) for name, value in other.items() if name not in names
    )


def _gone(db: apsw.Connection, place: int, part: Part, table: Table | None, names: tuple[str, ...]) -> Iterator[Line]:
    if table is None or table.keyed is not part.keyed:
        return
    keys = ", ".join(f"k{i}" for i in range(len(part.key)))
    for row in db.execute(f"SELECT {keys} FROM img.g{place}").fetchall():
        theirs = _found(db, part, part.key, dict(zip(part.key, row, strict=True)))
        if theirs is None:
            continue
        known = {**dict(zip(part.key, row, strict=True)), **theirs}
        key = ", ".join(f"{name}={shown(known[name])}" for name in names)
        yield from (
            _line(part, key, column=name, what="deleted", old=value)
            for name, value in theirs.items()
            if name not in names
        )


def _named_by(part: Part, table: Table | None) -> tuple[str, ...]:
    """What names a row for a person: a declared unique key rather than a number that the table hands out."""
    if part.keyed is Keyed.ROWID and table is not None:
        for unique in table.uniques:
            columns = tuple(term.column for term in unique.terms if term.column is not None)
            if not unique.where and len(columns) == len(unique.terms) and set(columns) <= set(part.columns):
                return columns
    return part.key or part.columns


def _found(
    db: apsw.Connection, part: Part, names: tuple[str, ...], values: dict[str, apsw.SQLiteValue]
) -> dict[str, apsw.SQLiteValue] | None:
    here = {str(name) for (name,) in db.execute("SELECT name FROM pragma_table_xinfo(?, 'main')", (part.table,))}
    wanted = [name for name in part.columns if name in here]
    if not wanted:
        return None
    same = " AND ".join(f"{quoted(name)} IS ?" for name in names)
    columns = ", ".join(quoted(name) for name in wanted)
    row = db.execute(
        f"SELECT {columns} FROM main.{quoted(part.table)} WHERE {same}", tuple(values[name] for name in names)
    ).fetchone()
    return None if row is None else dict(zip(wanted, row, strict=True))


def _line(
    part: Part, key: str, *, column: str, what: str, old: apsw.SQLiteValue = None, new: apsw.SQLiteValue = None
) -> Line:
    return {
        "table": part.table,
        "key": key,
        "column": column,
        "what": what,
        "old": "" if what == "new" else shown(old),
        "new": "" if what in {"deleted", "only here"} else shown(new),
    }


def shown(value: apsw.SQLiteValue) -> str:
    """As SQL writes it, cut."""
    text = apsw.format_sql_value(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}... ({len(text)} characters)"
