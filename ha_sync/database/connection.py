"""Opens replicated databases with the manners that keep a foreign writer unharmed, and names what is wrong with one.

On the Active a connection never checkpoints (neither at commit nor at close) and never changes the journal mode.
While SQLite has a file open here, nothing in this process may open the same file by hand: closing any descriptor drops
all POSIX locks of the process (DESIGN 4.8). ``os.stat`` is harmless. Times in milliseconds where the name says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import apsw

BUSY_TIMEOUT_MS = 5_000
CACHE_KIB = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """Why a database cannot be used as it is."""

    reason: str
    missing: bool = False  # not there yet: wait for it
    full: bool = False  # the disk is full: goes on by itself when there is room
    busy: bool = False  # somebody holds a lock


def open_active(path: str, *, waits: Callable[[int], bool] | None = None) -> apsw.Connection:
    """Opens an existing database of a foreign writer. Raises ``apsw.Error``; never creates a file.

    ``waits`` is SQLite's busy handler; without one a lock is waited for as ``BUSY_TIMEOUT_MS`` has it.
    """
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.wal_autocheckpoint(0)
    if waits is None:
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
    else:
        db.set_busy_handler(waits)
    try:
        tuned(db)  # reads the schema
    except apsw.Error:
        db.close()
        raise
    return db


def open_standby(path: str, *, create: bool, encoding: str = "UTF-8") -> apsw.Connection:
    """Opens the Standby's copy for the applier: durable commits, application triggers and foreign keys off.

    ``encoding`` is that of a file which is made now, or is empty; it has no meaning for any other.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    db = apsw.Connection(path, flags=flags)
    if create:
        run(db, f"PRAGMA encoding='{encoding}'")  # the first statement: reading anything would settle the encoding
    db.set_busy_timeout(BUSY_TIMEOUT_MS)
    run(db, "PRAGMA synchronous=EXTRA")
    run(db, "PRAGMA ignore_check_constraints=ON")
    tuned(db)
    return db


def tuned(db: apsw.Connection) -> None:
    """Settings of this connection alone; nothing of it is stored in the file."""
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)  # the application's may call functions that we do not have
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_FKEY, 0)
    db.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 1)  # the application's own schema must load whatever it holds
    db.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)  # shadow tables are copied by row
    db.config(apsw.SQLITE_DBCONFIG_LEGACY_ALTER_TABLE, 0)
    run(db, "PRAGMA cell_size_check=ON")
    run(db, f"PRAGMA cache_size=-{CACHE_KIB}")


def run(db: apsw.Connection, sql: str, bindings: tuple[apsw.SQLiteValue, ...] = ()) -> None:
    """Runs every statement to its end (``execute`` alone stops at the first row)."""
    for _ in db.execute(sql, bindings):
        pass


def one(db: apsw.Connection, sql: str, bindings: tuple[apsw.SQLiteValue, ...] = ()) -> apsw.SQLiteValue:
    """The first column of the first row, or None."""
    row = db.execute(sql, bindings).fetchone()
    return row[0] if row is not None else None


def number(db: apsw.Connection, sql: str, bindings: tuple[apsw.SQLiteValue, ...] = ()) -> int:
    """A whole number; 0 where there is none."""
    value = one(db, sql, bindings)
    return value if isinstance(value, int) else 0


@contextmanager
def reading(db: apsw.Connection) -> Iterator[None]:
    """One read transaction: everything inside sees the same committed state."""
    with _transaction(db, "BEGIN"):
        yield


@contextmanager
def writing(db: apsw.Connection) -> Iterator[None]:
    """One write transaction; rolled back where anything is raised inside."""
    with _transaction(db, "BEGIN IMMEDIATE"):
        yield


@contextmanager
def _transaction(db: apsw.Connection, begin: str) -> Iterator[None]:
    run(db, begin)
    try:
        yield
        run(db, "COMMIT")
    except BaseException:
        if db.in_transaction:
            run(db, "ROLLBACK")
        raise


Stamp = tuple[tuple[int, int, int] | None, ...]
"""(inode, size, mtime_ns) of a database and of its log."""


def stamp(path: str) -> Stamp | None:
    """What the files look like from outside; None without a database. Opens nothing."""
    # The log stands beside the file, not beside a link to it; links above them lead both to the same place.
    real = os.path.realpath(path) if os.path.islink(path) else path
    found = tuple(_stat(real + suffix) for suffix in ("", "-wal"))
    return None if found[0] is None else found


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def unfit(path: str, error: Exception) -> Unfit:
    """What is wrong with the database at ``path``, in words for an operator."""
    if isinstance(error, FileNotFoundError) or not os.path.lexists(path):
        return Unfit(reason="the file does not exist yet", missing=True)
    if isinstance(error, apsw.NotADBError):
        return Unfit(reason="not a SQLite database, or an encrypted one")
    if isinstance(error, apsw.CorruptError):
        return Unfit(reason=f"the database is corrupt ({error}); restore it")
    if isinstance(error, apsw.ReadOnlyError):
        return Unfit(reason="the database or its directory is read-only")
    if isinstance(error, (apsw.CantOpenError, apsw.PermissionsError, PermissionError)):
        return Unfit(reason=_cannot_open(path, error))
    if isinstance(error, apsw.FullError):
        return Unfit(reason="no space left on the disk", full=True)
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return Unfit(reason="the database is locked by another process", busy=True)
    if isinstance(error, UnicodeDecodeError):
        return Unfit(reason='a name in its schema is not UTF-8: set capture = "pages", which does not look at names')
    return Unfit(reason=f"{type(error).__name__}: {error}")


def _cannot_open(path: str, error: Exception) -> str:
    if os.path.isdir(path):
        return "the path is a directory"
    if not os.access(path, os.R_OK | os.W_OK):
        return "no permission to read and write it"
    return f"cannot be opened ({error})"
