"""One small SQLite database (through sqlite-utils) with one writing thread, behind the backup and the storage log.

``put`` only puts a job into a queue and never waits for a disk: the engine's loop must not. Jobs are run in order, in
batches of one transaction, on one thread. WAL with ``synchronous=FULL``: what was written survives a power cut. A
damaged file is set aside (the newest two such are kept) and a new one begins. Overflow: at ``PENDING_MAX`` a job that
may be left out is refused, and its caller counts it; the others are few and always taken. A job that cannot be done (a
value that SQLite does not take) is left out alone. Jobs use ``database.conn``: the table methods of sqlite-utils commit
on their own. Readers open the file read-only, in any process.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import glob
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TypeVar

from sqlite_utils import Database

from ha_sync.core.dataset import Report

PENDING_MAX = 10_000
BATCH_MAX = 500
ASIDE_KEPT = 2
FOLLOWERS_MAX = 64
CATCH_UP_S = 5.0
FOLLOW_TICK_S = 1.0
BUSY_S = 5.0
TEXT_MAX = 4096

Job = Callable[[Database], None]
_Row = TypeVar("_Row")


class LogWriter:
    """Works from its making until ``close``."""

    def __init__(self, path: str, *, prepare: Job, trim: Job, report: Report) -> None:
        """``prepare`` makes the tables, once for each opening; ``trim`` bounds them, once for each batch.

        ``report`` is called on the writing thread.
        """
        self.path = path
        self._prepare = prepare
        self._trim = trim
        self._report = report
        self._pending: queue.Queue[Job | threading.Event | None] = queue.Queue()  # bounded by `put`
        self._failing = False
        self._followers: set[Callable[[], None]] = set()
        self._lock = threading.Lock()  # of the followers: any thread may add one
        self._database: Database | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._write_for_ever, name="log", daemon=True)
        self._thread.start()

    def put(self, job: Job, *, may_be_left_out: bool = False) -> bool:
        """Takes a job: any thread, never blocks. False: too many are waiting, and this one may be left out."""
        if may_be_left_out and self._pending.qsize() >= PENDING_MAX:
            return False
        self._pending.put_nowait(job)
        return True

    def flush(self, timeout_s: float = CATCH_UP_S) -> bool:
        """Waits until everything put so far is written. Blocking. False: not within the time."""
        if self._thread is None or not self._thread.is_alive():
            return False
        reached = threading.Event()
        self._pending.put(reached)
        return reached.wait(timeout_s)

    def close(self) -> None:
        """Writes what is pending and stops. Blocking."""
        if self._thread is not None:
            self._pending.put(None)
            self._thread.join()
            self._thread = None

    async def follow(self, read: Callable[[], list[_Row]]) -> AsyncGenerator[list[_Row], None]:
        """What ``read`` finds, now and after every write; ``read`` runs on a thread and keeps its own place."""
        loop, written = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed under a follower that nobody ended
                loop.call_soon_threadsafe(written.set)

        with self._lock:
            if len(self._followers) < FOLLOWERS_MAX:  # beyond: they live by the tick
                self._followers.add(wake)
        try:
            while True:
                written.clear()
                yield await asyncio.to_thread(read)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FOLLOW_TICK_S):
                        await written.wait()
        finally:
            with self._lock:
                self._followers.discard(wake)

    def _write_for_ever(self) -> None:
        self._attempt([])
        open_still = True
        while open_still:
            batch, waiting, open_still = self._take()
            self._attempt(batch)
            for reached in waiting:
                reached.set()
            with self._lock:
                followers = tuple(self._followers)
            for wake in followers:
                wake()
        self._drop()

    def _take(self) -> tuple[list[Job], list[threading.Event], bool]:
        batch: list[Job] = []
        waiting: list[threading.Event] = []
        item = self._pending.get()
        while True:
            if item is None:
                return batch, waiting, False
            if isinstance(item, threading.Event):
                waiting.append(item)
            else:
                batch.append(item)
            if len(batch) >= BATCH_MAX:
                return batch, waiting, True
            try:
                item = self._pending.get_nowait()
            except queue.Empty:
                return batch, waiting, True

    def _attempt(self, batch: list[Job]) -> None:
        """The writer must not die, nor the engine with it, whatever the disk does."""
        try:
            self._write(batch)
        except (sqlite3.Error, OSError) as failed:
            if type(failed) is sqlite3.DatabaseError:  # its subclasses are a full disk, a lock, our own mistakes
                self._write_anew(batch, failed)
            else:
                self._lose(failed)

    def _write_anew(self, batch: list[Job], damaged: sqlite3.DatabaseError) -> None:
        try:
            self._drop()
            aside = set_aside(self.path, wall_clock())
            fields: dict[str, object] = {"reason": str(damaged), "kept_as": aside}
            self._report("error", "a log of runs was damaged and set aside", fields)
            self._write(batch)
        except (sqlite3.Error, OSError) as failed:
            self._lose(failed)

    def _lose(self, failed: Exception) -> None:
        if not self._failing:  # once: a full disk must not fill the event log
            self._report("error", "a log of runs could not be written", {"path": self.path, "reason": str(failed)})
        self._failing = True

    def _write(self, batch: list[Job]) -> None:
        if self._database is None:
            self._database = connect(self.path, self._prepare)
        with self._database.conn:
            for job in batch:
                self._do(job, self._database)
            if batch:
                self._trim(self._database)
        self._failing = False

    def _do(self, job: Job, database: Database) -> None:
        try:
            job(database)
        except (ValueError, OverflowError, sqlite3.ProgrammingError, sqlite3.IntegrityError) as failed:
            logging.getLogger(__name__).exception("a log entry could not be written", extra={"reason": str(failed)})

    def _drop(self) -> None:
        if self._database is not None:
            self._database.conn.close()
            self._database = None


@contextlib.contextmanager
def reading(path: str, table: str) -> Iterator[Database | None]:
    """A log that may be in use, read-only; None: there is no such log, or nothing is in it yet. Blocking."""
    if not os.path.exists(path):
        yield None
        return
    with contextlib.closing(connect_to_read(path)) as connection:
        database = Database(connection)
        yield database if database[table].exists() else None


def connect_to_read(path: str) -> sqlite3.Connection:
    """Read-only, whatever characters its name has."""
    quoted = os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, timeout=BUSY_S)


def clean(text: object, *, most: int = TEXT_MAX) -> str:
    """Text that SQLite takes: bounded, and without the lone surrogates of a file's name that is no UTF-8."""
    return str(text)[:most].encode(errors="backslashreplace").decode()


def wall_clock() -> float:
    """Seconds since 1970, for people; nothing is decided by it."""
    return dt.datetime.now(dt.UTC).timestamp()


def connect(path: str, prepare: Job) -> Database:
    """Opens, checks and prepares. Raises ``sqlite3.DatabaseError`` when the content is damaged."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_S)
    try:
        os.chmod(path, 0o640)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        database = Database(connection)
        with connection:
            prepare(database)
    except BaseException:
        connection.close()
        raise
    return database


def set_aside(path: str, unix_s: float) -> str:
    """Renames a damaged file; only the newest ``ASIDE_KEPT`` such are kept. Returns its new name."""
    stamp = dt.datetime.fromtimestamp(unix_s, dt.UTC).strftime("%Y%m%dT%H%M%S%fZ")
    aside = f"{path}.damaged-{stamp}-{time.monotonic_ns()}"
    os.rename(path, aside)
    for companion in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + companion, aside + companion)
    kept = [name for name in glob.glob(glob.escape(path) + ".damaged-*") if not name.endswith(("-wal", "-shm"))]
    for old in sorted(kept, key=os.path.getmtime)[:-ASIDE_KEPT]:
        for name in (old, old + "-wal", old + "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    return aside
