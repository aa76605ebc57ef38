"""Makes a damaged copy of a database anew from what can be read of it.

The best that can be had: SQLite writes it into a new file (VACUUM INTO) and makes its indexes anew. Where
a table itself cannot be read, only what the Active does not have is saved: node-local tables and rows. The rest comes
by a full sync. The new file takes the damaged one's place by a rename; a crash leaves the one or the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import apsw

from ha_sync.database.connection import open_standby, run
from ha_sync.database.durable import sync_folder
from ha_sync.database.image import remove_file
from ha_sync.database.locality import Locality
from ha_sync.database.names import POSITION, quoted
from ha_sync.database.schema import Schema, read_schema
from ha_sync.database.soundness import damage_of_file

_SUFFIX = "-ha-renewed"
_COMPANIONS = ("-journal", "-wal", "-shm")


def sweep(path: str) -> None:
    """Removes what a crash left behind."""
    for suffix in ("", *_COMPANIONS):
        remove_file(f"{path}{_SUFFIX}{suffix}")


def renew(path: str, locality: Locality, *, close: Callable[[], None]) -> str:
    """Says how it went. ``close`` lets go of the database; nobody else of this process may have it open."""
    sweep(path)
    target = f"{path}{_SUFFIX}"
    close()
    how = "its tables were read into a new file"
    if not _rewritten(path, target):
        sweep(path)
        lost = _saved(path, target, locality)
        how = "it was begun anew" + (f"; node-local rows are lost: {', '.join(lost)}" if lost else "")
    status = os.stat(path)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, status.st_mode & 0o7777)
    _sync(target)
    for suffix in _COMPANIONS:
        remove_file(f"{path}{suffix}")  # of the damaged file; the new one must not meet them
    os.rename(target, path)
    sync_folder(os.path.dirname(os.path.abspath(path)))
    return how


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _rewritten(path: str, target: str) -> bool:
    """Whether all tables could be read."""
    try:
        db = open_standby(path, create=False)
        try:
            db.execute("VACUUM main INTO ?", (target,)).fetchall()
        finally:
            db.close()
        new = open_standby(target, create=False)
        try:
            run(new, f"DROP TABLE IF EXISTS main.{POSITION}")
            run(new, "REINDEX")  # they were copied as they were
        finally:
            new.close()
        return not damage_of_file(target, thorough=True)
    except apsw.Error:
        return False


def _saved(path: str, target: str, locality: Locality) -> list[str]:
    """Reads what is node-local into the new file; returns the tables where that failed."""
    schema, encoding = _read(path)
    new = open_standby(target, create=True, encoding=encoding)
    lost = []
    try:
        new.execute("ATTACH ? AS old", (path,)).fetchall()
        for name, table in schema.tables.items():
            clause = "TRUE" if locality.is_local_table(name) else locality.clause(name)
            if not clause:
                continue
            columns = ", ".join(quoted(c.name) for c in table.columns if c.stored)
            try:
                run(new, table.sql)
                run(
                    new,
                    f"INSERT OR IGNORE INTO main.{quoted(name)}({columns}) "
                    f"SELECT {columns} FROM old.{quoted(name)} WHERE ({clause}\n)",
                )
            except apsw.Error:
                lost.append(name)
    except apsw.Error:
        lost.extend(sorted({*locality.tables, *(table for table, _ in locality.clauses)}))
    finally:
        new.close()
    return lost


def _read(path: str) -> tuple[Schema, str]:
    try:
        db = open_standby(path, create=False)
        try:
            encoding = str(db.execute("PRAGMA encoding").fetchone()[0])  # type: ignore[index]
            return read_schema(db), encoding
        finally:
            db.close()
    except apsw.Error:
        return Schema(version=0, objects=(), tables={}), "UTF-8"
