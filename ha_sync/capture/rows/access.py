"""Reads of a foreign writer's database that never harm it.

Write-ahead log: the connection is kept (opening costs more than reading), a read transaction lasts one batch.
Rollback journal: no connection is kept; a read that would hold its lock longer than ``hold_max_s`` is broken off and
done again on a lock-free copy. A writer's lock is waited for in short steps, since the moment after its commit is the
farthest from its next. Blocking; used in the source's one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

import apsw

from ha_sync.database import connection
from ha_sync.database.connection import one, open_active, tuned
from ha_sync.database.image import remove_file
from ha_sync.database.snapshot import Snapshot
from ha_sync.errors import Retryable

HOLD_MAX_S = 0.005
LOOK_EVERY_STEPS = 500  # virtual machine steps between two looks at the clock
STEPS_SHORT = 100  # so many times a lock is asked for again after STEP_SHORT_S, then after STEP_LONG_S
STEP_SHORT_S = 0.001
STEP_LONG_S = 0.01

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
        manners = _Manners(self.hold_max_s)
        db = self._connect(manners)
        if self._kept is not None:
            return job(db)
        try:
            manners.begin()
            db.set_progress_handler(manners.holds_too_long, LOOK_EVERY_STEPS)
            return job(db)
        except apsw.InterruptError:
            pass
        finally:
            db.close()
        return self._on_copy(job)

    def write(self, job: Callable[[apsw.Connection], T]) -> T:
        """Runs a short ``job`` that writes (installation of triggers, detach)."""
        db = self._connect(None)
        try:
            return job(db)
        finally:
            if self._kept is None:
                db.close()

    def copy(self, target: str) -> None:
        """Writes a lock-free copy to ``target``, for one who reads it elsewhere. Raises ``Retryable``."""
        if self._kept is not None:
            raise Retryable("cannot copy the database", subject=self._path, reason="it has a write-ahead log by now")
        self._snapshot(self._path, target)
        self.copies += 1

    def close(self) -> None:
        """Lets go of the database, without a checkpoint."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        remove_file(self._copy_path)

    def _connect(self, manners: _Manners | None) -> apsw.Connection:
        identity = self.identity()
        if self._kept is not None and identity == self._identity:
            return self._kept
        self.close()
        db = open_active(self._path, waits=None if manners is None else manners.waits)
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


class _Manners:
    """How one read waits for a lock and how long it keeps it."""

    def __init__(self, hold_max_s: float) -> None:
        self._hold_max_s = hold_max_s
        self._wait_max_s = connection.BUSY_TIMEOUT_MS / 1000
        self._wait_until = 0.0
        self._hold_until = 0.0

    def waits(self, tries: int) -> bool:
        """SQLite's busy handler. An attempt that failed took nothing: it ended at the writer's PENDING lock."""
        now = time.monotonic()
        if tries == 0:
            self._wait_until = now + self._wait_max_s
        if now >= self._wait_until:
            return False
        time.sleep(STEP_SHORT_S if tries < STEPS_SHORT else STEP_LONG_S)
        self.begin()  # what was waited is not held
        return True

    def begin(self) -> None:
        """Nothing is held until now."""
        self._hold_until = time.monotonic() + self._hold_max_s

    def holds_too_long(self) -> bool:
        """SQLite's progress handler."""
        return time.monotonic() > self._hold_until
