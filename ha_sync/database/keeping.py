"""Keeps the node-local rows of the node's own database while its file is a copy of the Active's.

They are taken out before the own file is replaced for the first time, into a small database beside the sink's state,
and put back at promotion. What is node-local in the copy belongs to the other node: it goes, also where this node has
nothing of its own to put in its place (R26). Blocking; nobody else may have the database open.
"""

from __future__ import annotations

import os

import apsw

from ha_sync.core.dataset import Finished
from ha_sync.database.connection import open_standby
from ha_sync.database.locality import Locality
from ha_sync.database.names import folded, quoted

_CATALOGUE = "CREATE TABLE keeping.kept(name TEXT PRIMARY KEY, stored TEXT NOT NULL)"


def take_out(database: str, keeping: str, locality: Locality) -> int:
    """Saves the own rows; returns how many. Replaces what was kept before. Raises ``apsw.Error``.

    Opening the database also finishes an interrupted transaction of the own file, before its journal is removed.
    """
    drop(keeping)
    rows = 0
    # Ours alone to read: the rows may hold secrets. SQLite attaches an empty file, but must not create one.
    os.close(os.open(keeping, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    db = open_standby(database, create=False)
    try:
        db.execute("ATTACH ? AS keeping", (keeping,))
        db.execute("BEGIN IMMEDIATE")
        db.execute(_CATALOGUE)
        for number, table in enumerate(_local_tables(db, locality)):
            db.execute("INSERT INTO keeping.kept VALUES(?, ?)", (table, f"rows_{number}"))
            columns = ", ".join(quoted(column) for column in _columns(db, "main", table))
            where = _where(locality, table)
            db.execute(
                f"CREATE TABLE keeping.rows_{number} AS SELECT {columns} FROM main.{quoted(table)} WHERE {where}"
            )
            rows += int(str(db.execute(f"SELECT count(*) FROM keeping.rows_{number}").fetchall()[0][0]))
        db.execute("COMMIT")
    finally:
        db.close()
    return rows


def put_back(database: str, keeping: str, locality: Locality) -> tuple[Finished, ...]:
    """Replaces what is node-local by the node's own; may be repeated. Raises ``apsw.Error``."""
    if not locality.tables and not locality.clauses:
        return ()
    finished: list[Finished] = []
    db = open_standby(database, create=False)
    try:
        kept: dict[str, str] = {}
        if os.path.exists(keeping):
            db.execute("ATTACH ? AS keeping", (keeping,))
            kept = {str(name): str(stored) for name, stored in db.execute("SELECT name, stored FROM keeping.kept")}
        db.execute("BEGIN IMMEDIATE")
        for table in _local_tables(db, locality):
            gone = _delete(db, table, _where(locality, table))
            back = _insert(db, table, kept.get(table))
            if gone or back:
                detail = f"{gone} of the other node removed, {back} put back"
                finished.append(Finished(what="node-local rows put back", subject=table, detail=detail))
        db.execute("COMMIT")
    finally:
        db.close()
    return tuple(finished)


def drop(keeping: str) -> None:
    """Nothing is kept any more."""
    for end in ("", "-journal", "-wal", "-shm"):
        if os.path.exists(keeping + end):
            os.unlink(keeping + end)


def _local_tables(db: apsw.Connection, locality: Locality) -> list[str]:
    names = [str(row[0]) for row in db.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table' ORDER BY 1")]
    return [folded(n) for n in names if locality.is_local_table(n) or locality.clause(n)]


def _where(locality: Locality, table: str) -> str:
    return "TRUE" if locality.is_local_table(table) else f"({locality.clause(table)})"


def _columns(db: apsw.Connection, schema: str, table: str) -> list[str]:
    # Columns that the database computes (hidden 2 and 3) cannot be written.
    query = "SELECT name FROM pragma_table_xinfo(?, ?) WHERE hidden = 0 ORDER BY cid"
    return [str(row[0]) for row in db.execute(query, (table, schema))]


def _delete(db: apsw.Connection, table: str, where: str) -> int:
    before = db.total_changes()
    db.execute(f"DELETE FROM main.{quoted(table)} WHERE {where}")
    return db.total_changes() - before


def _insert(db: apsw.Connection, table: str, stored: str | None) -> int:
    if stored is None:
        return 0
    here = {folded(column) for column in _columns(db, "main", table)}
    shared = [column for column in _columns(db, "keeping", stored) if folded(column) in here]
    if not shared:
        return 0
    columns = ", ".join(quoted(column) for column in shared)
    before = db.total_changes()
    db.execute(f"INSERT OR REPLACE INTO main.{quoted(table)}({columns}) SELECT {columns} FROM keeping.{quoted(stored)}")
    return db.total_changes() - before
