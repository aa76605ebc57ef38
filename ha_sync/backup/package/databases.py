"""A database for a package: one committed state, copied without disturbing its writer, without what is the node's own.

The copy is made without a lock (``database/lockfree.py``). Where none can be had of a write-ahead-log database, a read
transaction does it, which harms nobody while it is short: past ``READ_S`` it is given up. Nothing of ours is left in
the copy, and what was taken out of it is overwritten, since it may hold secrets. Only for a process that has no other
SQLite connection to the original. Blocking. Seconds are monotonic.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Final

import apsw

from ha_sync.backup.package.format import Schema, blake2b
from ha_sync.database.connection import number, open_standby, run
from ha_sync.database.header import HEADER_BYTES, parse_header
from ha_sync.database.locality import Locality
from ha_sync.database.lockfree import Copy, LockFreeReader, Refusal, Rejected
from ha_sync.database.names import quoted
from ha_sync.database.schema import read_objects
from ha_sync.database.soundness import damage_of_file
from ha_sync.database.triggers import remove_everything
from ha_sync.errors import OperatorNeeded, Retryable

COPY_S: Final = 60.0
READ_S: Final = 8.0
PAGES_AT_ONCE: Final = 2048
BUSY_MS: Final = 1000
COMPANIONS: Final = ("-wal", "-shm", "-journal")

_USER_VERSION = slice(60, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A copy, ready to be packed."""

    path: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    schema: Schema | None  # None: its names cannot be read
    damage: str  # what SQLite finds wrong with it
    notes: tuple[str, ...]


def copy_database(path: str, target: str, locality: Locality, *, within_s: float = COPY_S) -> Copied | None:
    """Writes the copy to the new file ``target``; None: there is no database. Raises Retryable, OperatorNeeded."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except FileNotFoundError:
        return None
    result = _lock_free(real, target, within_s)
    notes: list[str] = []
    if isinstance(result, Rejected):
        if result.why is Refusal.MISSING:
            return None
        if result.why is Refusal.EMPTY:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        elif result.why is not Refusal.NOT_A_DATABASE and _write_ahead_log(real):
            _by_a_transaction(real, target)
            notes.append("copied in a read transaction")
        else:
            raise _no_copy(path, result)
    else:
        status = os.stat(real)
    damage = damage_of_file(target)
    schema = None
    if not damage:
        try:
            _strip(target, locality)
            schema = read_schema_version(target)
        except UnicodeDecodeError:
            notes.append("the names in it are not UTF-8: it goes as it is")
            if locality.tables or locality.clauses:
                raise OperatorNeeded(
                    "cannot take the node's own rows out of", subject=path, reason="names in its schema are not UTF-8"
                ) from None
    return Copied(
        path=target,
        size=os.stat(target).st_size,
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        schema=schema,
        damage=damage,
        notes=tuple(notes),
    )


def remove_copy(path: str) -> None:
    """With whatever SQLite may have put beside it."""
    for end in ("", *COMPANIONS):
        if os.path.lexists(path + end):
            os.unlink(path + end)


def read_schema_version(path: str) -> Schema:
    """Of a database that nobody else uses. Raises UnicodeDecodeError, ``apsw.Error``."""
    db = open_standby(path, create=False)
    try:
        digest = blake2b()
        for item in read_objects(db):
            digest.update(f"{item.type}\0{item.name}\0{item.sql}\0".encode())
        return Schema(
            user_version=number(db, "PRAGMA main.user_version"),
            application_id=number(db, "PRAGMA main.application_id"),
            digest=digest.hexdigest(),
        )
    finally:
        db.close()


def user_version_of(path: str) -> int | None:
    """Of a database that its program may be using; None: there is none, or it cannot be said."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError:
        return None
    header = parse_header(head)
    if header is None:
        return None
    if not header.write_ahead_log:
        return int.from_bytes(head[_USER_VERSION], "big", signed=True)
    try:
        db = _reading(path)
    except apsw.Error:
        return None
    try:
        return number(db, "PRAGMA main.user_version")
    except apsw.Error:
        return None
    finally:
        db.close()


def _lock_free(path: str, target: str, within_s: float) -> Copy | Rejected:
    reader = LockFreeReader(path)
    try:
        return reader.snapshot_to(target, within_s=within_s)
    finally:
        reader.close()


def _no_copy(path: str, rejected: Rejected) -> Exception:
    reason = f"{rejected.why.value} {rejected.detail}".strip()
    if rejected.why is Refusal.NOT_A_DATABASE:
        return OperatorNeeded("cannot pack", subject=path, reason=reason)
    hint = "it is too busy to be copied without a lock: try in a quieter hour, or give it a write-ahead log"
    return Retryable("cannot copy the database", subject=path, reason=reason, hint=hint)


def _write_ahead_log(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            header = parse_header(file.read(HEADER_BYTES))
    except OSError:
        return False
    return header is not None and header.write_ahead_log


def _reading(path: str) -> apsw.Connection:
    db = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.set_busy_timeout(BUSY_MS)
    return db


def _by_a_transaction(path: str, target: str) -> None:
    deadline = time.monotonic() + READ_S
    source = _reading(path)
    copy = apsw.Connection(target)
    done = False
    try:
        source.execute("BEGIN")
        number(source, "SELECT count(*) FROM main.sqlite_schema")
        with copy.backup("main", source, "main") as backup:
            while not backup.done:
                backup.step(PAGES_AT_ONCE)
                if time.monotonic() >= deadline and not backup.done:
                    raise Retryable(
                        "cannot copy the database",
                        subject=path,
                        reason=f"it is not read within {READ_S:g} s, and its log may grow no longer",
                        hint="try again in a quieter hour",
                    )
        done = True
    except apsw.Error as error:
        raise Retryable("cannot copy the database", subject=path, reason=str(error)) from error
    finally:
        source.close()
        copy.close()
        if not done:
            remove_copy(target)


def _strip(target: str, locality: Locality) -> None:
    if os.stat(target).st_size == 0:
        return
    db = open_standby(target, create=False)
    try:
        number(db, "PRAGMA secure_delete=ON")
        run(db, "BEGIN IMMEDIATE")
        remove_everything(db)
        for (name,) in db.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table' ORDER BY 1").fetchall():
            clause = "TRUE" if locality.is_local_table(str(name)) else locality.clause(str(name))
            if clause:
                run(db, f"DELETE FROM main.{quoted(str(name))} WHERE ({clause}\n)")
        run(db, "COMMIT")
    finally:
        db.close()
