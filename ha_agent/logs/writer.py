"""One small SQLite database with one writing thread, behind the switch log and the events of the agent.

``put`` only puts a job into a queue and never waits for a disk: the agent's loop must not. Jobs are run in order, in
batches of one transaction, on one thread. WAL with ``synchronous=FULL``: what was written survives a power cut. A
damaged file is set aside (the newest two such are kept) and a new one begins. Overflow: at ``PENDING_MAX`` the job is
left out and counted, and ``on_omission`` makes a job that says how many. A job that cannot be done (a value that SQLite
does not take) is left out alone. Jobs only execute: they neither commit nor begin. By ``sqlite3`` alone: ADR 0012.
Readers open the file read-only, in any process.
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
from sqlite3 import Connection
from typing import TypeVar

logger = logging.getLogger("ha_agent.logs")

PENDING_MAX = 10_000
BATCH_MAX = 500
ASIDE_KEPT = 2
FOLLOWERS_MAX = 64
CATCH_UP_S = 5.0
FOLLOW_TICK_S = 1.0
BUSY_S = 5.0
TEXT_MAX = 4096

Job = Callable[[Connection], None]
_Row = TypeVar("_Row")


class LogWriter:
    """Works from its making until ``close``."""

    def __init__(self, path: str, *, prepare: Job, on_omission: Callable[[int], Job], trim: Job) -> None:
        """``prepare`` makes the tables, once for each opening; ``trim`` bounds them, once for each batch."""
        self.path = path
        self._prepare = prepare
        self._on_omission = on_omission
        self._trim = trim
        self._pending: queue.Queue[Job | threading.Event | None] = queue.Queue(maxsize=PENDING_MAX)
        self._left_out = 0
        self._followers: set[Callable[[], None]] = set()
        self._lock = threading.Lock()  # of the two above: any thread may put
        self._database: Connection | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._write_for_ever, name="log", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Takes a job: any thread, never blocks."""
        try:
            self._pending.put_nowait(job)
        except queue.Full:
            with self._lock:
                self._left_out += 1

    def flush(self, timeout_s: float = CATCH_UP_S) -> bool:
        """Waits until everything put so far is written. Blocking. False: not within the time."""
        if self._thread is None or not self._thread.is_alive():
            return False
        reached = threading.Event()
        with contextlib.suppress(queue.Full):
            self._pending.put(reached, timeout=timeout_s)
            return reached.wait(timeout_s)
        return False

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
        open_still = True
        item = self._pending.get()
        while True:
            if item is None:
                open_still = False
                break
            if isinstance(item, threading.Event):
                waiting.append(item)
            else:
                batch.append(item)
            if len(batch) >= BATCH_MAX:
                break
            try:
                item = self._pending.get_nowait()
            except queue.Empty:
                break
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        return [*batch, *([self._on_omission(left_out)] if left_out else [])], waiting, open_still

    def _attempt(self, batch: list[Job]) -> None:
        """The writer must not die, nor the agent with it, whatever the disk does."""
        try:
            self._write(batch)
        except (sqlite3.Error, OSError) as failed:
            if type(failed) is sqlite3.DatabaseError:  # its subclasses are a full disk, a lock, our own mistakes
                self._write_anew(batch, failed)
            else:  # Python's logging has the news
                self._lose(batch, failed)

    def _write_anew(self, batch: list[Job], damaged: sqlite3.DatabaseError) -> None:
        try:
            self._drop()
            aside = _set_aside(self.path)
            logger.error("the log was damaged and set aside", extra={"reason": str(damaged), "kept_as": aside})
            self._write(batch)
        except (sqlite3.Error, OSError) as failed:
            self._lose(batch, failed)

    def _lose(self, batch: list[Job], failed: Exception) -> None:
        logger.error("the log could not be written", extra={"path": self.path, "reason": str(failed)})
        with self._lock:
            self._left_out += len(batch)

    def _write(self, batch: list[Job]) -> None:
        if self._database is None:
            self._database = _connect(self.path, self._prepare)
        with self._database:
            for job in batch:
                self._do(job, self._database)
            if batch:
                self._trim(self._database)

    def _do(self, job: Job, database: Connection) -> None:
        try:
            job(database)
        except (ValueError, OverflowError, sqlite3.ProgrammingError, sqlite3.IntegrityError) as failed:
            logger.exception("a log entry could not be written", extra={"reason": str(failed)})
            with self._lock:
                self._left_out += 1

    def _drop(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


@contextlib.contextmanager
def reading(path: str, table: str) -> Iterator[Connection | None]:
    """A log that may be in use, read-only; None: there is no such log, or nothing is in it yet. Blocking."""
    if not os.path.exists(path):
        yield None
        return
    quoted = os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    with contextlib.closing(sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, timeout=BUSY_S)) as database:
        known = database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()
        yield database if known else None


def clean(text: object, *, most: int = TEXT_MAX) -> str:
    """Text that SQLite takes: bounded, and without the lone surrogates of a file's name that is no UTF-8."""
    return str(text)[:most].encode(errors="backslashreplace").decode()


def wall_clock() -> float:
    """Seconds since 1970, for people; nothing is decided by it."""
    return dt.datetime.now(dt.UTC).timestamp()


def _connect(path: str, prepare: Job) -> Connection:
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
        with connection:
            prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_aside(path: str) -> str:
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S%fZ")
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
