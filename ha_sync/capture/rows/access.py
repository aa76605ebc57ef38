"""Reads of a foreign writer's database that never harm it.

Write-ahead log: the connection is kept (opening costs more than reading), a read transaction lasts one batch.
Rollback journal: no connection is kept; a read that would hold its lock longer than ``hold_max_s`` is broken off and
done again on a lock-free copy. Blocking; used in the source's one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import apsw

from ha_sync.database.connection import one, open_active, tuned
from ha_sync.database.image import remove_file
from ha_sync.database.snapshot import Snapshot

HOLD_MAX_S = 0.005
LOOK_EVERY_STEPS = 500  # virtual machine steps between two looks at the clock

T = TypeVar("T")


class Access:
    """The source's way to its database."""

    def __init__(self, path: str, *, copy_path: str, busy_timeout_ms: int | None, snapshot: Snapshot) -> None:
        self._path = path
        self._copy_path = copy_path
        self._snapshot = snapshot
        self._kept: apsw.Connection | None = None
        self._identity: tuple[int, int] | None = None
        stated = HOLD_MAX_S if busy_timeout_ms is None else busy_timeout_ms / 10_000
        self.hold_max_s = max(0.0005, min(HOLD_MAX_S, stated))
        self.copies = 0

    @property
    def keeps_connection(self) -> bool:
        """Whether the database has a write-ahead log."""
        return self._kept is not None

    def identity(self) -> tuple[int, int]:
        """(device, inode) of the file. Raises ``FileNotFoundError``."""
        found = os.stat(self._path)
        return found.st_dev, found.st_ino

    def read(self, job: Callable[[apsw.Connection], T]) -> T:
        """Runs ``job`` on the database, or on a lock-free copy where it takes too long under a lock."""
        db = self._connect()
        if self._kept is not None:
            return job(db)
        try:
            _limit(db, self.hold_max_s)
            return job(db)
        except apsw.InterruptError:
            pass
        finally:
            db.close()
        return self._on_copy(job)

    def write(self, job: Callable[[apsw.Connection], T]) -> T:
        """Runs a short ``job`` that writes (installation of triggers, detach)."""
        db = self._connect()
        try:
            return job(db)
        finally:
            if self._kept is None:
                db.close()

    def close(self) -> None:
        """Lets go of the database, without a checkpoint."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        remove_file(self._copy_path)

    def _connect(self) -> apsw.Connection:
        identity = self.identity()
        if self._kept is not None and identity == self._identity:
            return self._kept
        self.close()
        db = open_active(self._path)
        try:
            if one(db, "PRAGMA main.journal_mode") == "wal":
                self._kept, self._identity = db, identity
        except apsw.Error:
            db.close()
            raise
        return db

    def _on_copy(self, job: Callable[[apsw.Connection], T]) -> T:
        remove_file(self._copy_path)
        # Danger: no SQLite connection to the database may be open here while its file is read by hand (DESIGN 4.8).
        self._snapshot(self._path, self._copy_path)
        self.copies += 1
        db = apsw.Connection(self._copy_path)
        try:
            tuned(db)
            return job(db)
        finally:
            db.close()
            remove_file(self._copy_path)


def _limit(db: apsw.Connection, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    db.set_progress_handler(lambda: time.monotonic() > deadline, LOOK_EVERY_STEPS)
