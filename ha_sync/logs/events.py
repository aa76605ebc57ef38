"""The engine's event log: what happened, for people, in one small SQLite database (through sqlite-utils).

``append`` only puts into a queue: it never waits for a disk. One thread writes, in batches, and hands each event to
Python's logging as well. Bounded in rows and days, except that the newest thousand stay whatever a clock says. In WAL
mode with ``synchronous=FULL``: what was written survives a crash. A damaged file is set aside (the newest two such are
kept) and a new log begins, whose first event says so. Times are wall clock: they are for people, nothing decides by
them; order is the id's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from sqlite_utils import Database

from ha_sync.logs.writer import connect, connect_to_read, set_aside
from ha_sync.logs.writer import wall_clock as read_wall_clock

logger = logging.getLogger("ha_sync.events")

ROWS_MAX = 100_000
DAYS_MAX = 90.0
ROWS_KEPT_MIN = 1000  # whatever their date: a clock that jumped must not empty the log
TRIM_EVERY = 500
PENDING_MAX = 10_000  # overflow: the event is counted and left out; a later one says how many were
BATCH_MAX = 500
FIELD_MAX = 4096
FOLLOWERS_MAX = 64
CATCH_UP_S = 5.0
FOLLOW_TICK_S = 1.0
SEVERITIES = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_RESERVED = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""Names that a log record has itself; ``logging`` raises KeyError where a field takes one."""

Fields = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row."""

    id: int  # grows, never reused
    unix_s: float
    severity: str  # info | warning | error
    what: str
    fields: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    unix_s: float
    severity: str
    what: str
    fields: Fields


class EventLog:
    """One per engine; it works from its making until ``close``. ``append`` fits ``core.dataset.Report``."""

    def __init__(
        self,
        path: str,
        *,
        rows_max: int = ROWS_MAX,
        days_max: float = DAYS_MAX,
        wall_clock: Callable[[], float] | None = None,
    ) -> None:
        assert rows_max > 0, rows_max
        self._path = path
        self._rows_max = rows_max
        self._days_max = days_max
        self._wall_clock = wall_clock or read_wall_clock
        self._pending: queue.Queue[_Pending | threading.Event | None] = queue.Queue(maxsize=PENDING_MAX)
        self._left_out = 0
        self._since_trim = 0
        self._followers: set[Callable[[], None]] = set()
        self._lock = threading.Lock()  # of the two above: appended to from any thread
        self._database: Database | None = None
        self._thread: threading.Thread | None = threading.Thread(
            target=self._write_for_ever, name="event-log", daemon=True
        )
        self._thread.start()

    def append(self, severity: str, what: str, fields: Fields) -> None:
        """Takes an event: any thread, never blocks. ``what`` is constant text; what varies goes into ``fields``."""
        assert severity in SEVERITIES, severity
        event = _Pending(unix_s=self._wall_clock(), severity=severity, what=what, fields=dict(fields))
        try:
            self._pending.put_nowait(event)
        except queue.Full:
            with self._lock:
                self._left_out += 1

    def query(
        self, since_unix_s: float = 0.0, limit: int = 1000, severity: str = "info", *, after_id: int = 0
    ) -> list[Event]:
        """Events at or after ``since_unix_s`` (wall clock), of at least ``severity``, oldest first.

        At most ``limit``: the newest ones, but with ``after_id`` the first ones after it, so that a reader can go on.
        Sees all that was appended before the call. Blocking: call from an executor.
        """
        self.flush()
        return read_events(self._path, since_unix_s=since_unix_s, limit=limit, severity=severity, after_id=after_id)

    async def follow(self, *, after_id: int, severity: str = "info") -> AsyncIterator[Event]:
        """Events after ``after_id`` as they are written, for ever."""
        loop, written = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed under a follower that nobody ended
                loop.call_soon_threadsafe(written.set)

        self._add_follower(wake)
        try:
            while True:
                written.clear()
                for event in await asyncio.to_thread(self._read_after, after_id, severity):
                    after_id = event.id
                    yield event
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FOLLOW_TICK_S):
                        await written.wait()
        finally:
            with self._lock:
                self._followers.discard(wake)

    def flush(self, timeout_s: float = CATCH_UP_S) -> bool:
        """Waits until everything appended so far is written. Blocking. False: not within the time."""
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

    def _add_follower(self, wake: Callable[[], None]) -> None:
        with self._lock:
            if len(self._followers) < FOLLOWERS_MAX:  # beyond: they live by the tick
                self._followers.add(wake)

    def _read_after(self, after_id: int, severity: str) -> list[Event]:
        return read_events(self._path, limit=BATCH_MAX, severity=severity, after_id=after_id, onward=True)

    def _write_for_ever(self) -> None:
        self._open_at_start()
        open_still = True
        while open_still:
            batch, waiting, open_still = self._take()
            _mirror(batch)
            self._write_or_set_aside(batch)
            for reached in waiting:
                reached.set()
            with self._lock:
                followers = tuple(self._followers)
            for wake in followers:
                wake()
        if self._database is not None:
            self._database.conn.close()
            self._database = None

    def _take(self) -> tuple[list[_Pending], list[threading.Event], bool]:
        batch: list[_Pending] = []
        waiting: list[threading.Event] = []
        item = self._pending.get()
        while True:
            if item is None:
                return [*batch, *self._omission()], waiting, False
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
        return [*batch, *self._omission()], waiting, True

    def _omission(self) -> list[_Pending]:
        with self._lock:
            left_out, self._left_out = self._left_out, 0
        if not left_out:
            return []
        return [self._own("warning", "events were left out: too many at once", {"count": left_out})]

    def _own(self, severity: str, what: str, fields: Fields) -> _Pending:
        return _Pending(unix_s=self._wall_clock(), severity=severity, what=what, fields=fields)

    def _write_or_set_aside(self, batch: list[_Pending]) -> None:
        if not batch:
            return
        try:
            self._write(batch)
        except (sqlite3.OperationalError, OSError) as failed:  # disk full, locked: Python's logging has the events
            self._lose(batch, failed)
        except sqlite3.DatabaseError as damaged:
            self._write_anew(batch, damaged)
        except Exception as failed:  # noqa: BLE001 - whatever it is: the writer must not die, nor the engine with it
            self._lose(batch, failed)

    def _write_anew(self, batch: list[_Pending], damaged: sqlite3.DatabaseError) -> None:
        try:
            self._begin_anew(str(damaged))
            self._write(batch)
        except (sqlite3.Error, OSError) as failed:
            self._lose(batch, failed)

    def _lose(self, batch: list[_Pending], failed: Exception) -> None:
        _complain(failed)
        with self._lock:
            self._left_out += len(batch)

    def _write(self, batch: list[_Pending]) -> None:
        if self._database is None:
            self._open_database()
        assert self._database is not None
        with self._database.conn:
            self._database.table("event").insert_all([_row(event) for event in batch])
        self._since_trim += len(batch)
        if self._since_trim >= min(TRIM_EVERY, self._rows_max):
            self._since_trim = 0
            self._trim(self._database)

    def _trim(self, database: Database) -> None:
        newest = database.execute("SELECT max(id) FROM event").fetchone()[0]
        oldest_unix_s = self._wall_clock() - self._days_max * 86400
        kept_min = min(ROWS_KEPT_MIN, self._rows_max)
        with database.conn:
            database.conn.execute("DELETE FROM event WHERE id <= ?", (newest - self._rows_max,))
            database.conn.execute("DELETE FROM event WHERE id <= ? AND unix_s < ?", (newest - kept_min, oldest_unix_s))

    def _open_at_start(self) -> None:
        try:
            self._open_database()
        except (OSError, sqlite3.Error) as failed:  # tried again with each batch
            _complain(failed)

    def _open_database(self) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), mode=0o700, exist_ok=True)
        try:
            self._database = connect(self._path, _prepare)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as damaged:
            self._begin_anew(str(damaged))

    def _begin_anew(self, reason: str) -> None:
        if self._database is not None:
            self._database.conn.close()
            self._database = None
        aside = set_aside(self._path, self._wall_clock())
        self._database = connect(self._path, _prepare)
        self._since_trim = 0
        event = self._own("error", "event log was damaged and set aside", {"reason": reason, "kept_as": aside})
        _mirror([event])
        self._write([event])


def read_events(
    path: str,
    *,
    since_unix_s: float = 0.0,
    limit: int = 1000,
    severity: str = "info",
    after_id: int = 0,
    onward: bool | None = None,
) -> list[Event]:
    """Reads a log that may be in use; a log that does not exist is empty. See ``EventLog.query``. Blocking."""
    onward = after_id > 0 if onward is None else onward
    wanted = [name for name, level in SEVERITIES.items() if level >= SEVERITIES[severity]]
    statement = (
        f"SELECT id, unix_s, severity, what, fields FROM event WHERE id > ? AND unix_s >= ? "
        f"AND severity IN ({','.join('?' * len(wanted))}) ORDER BY id {'ASC' if onward else 'DESC'} LIMIT ?"
    )
    if not os.path.exists(path):
        return []
    with contextlib.closing(connect_to_read(path)) as connection:
        rows = Database(connection).execute(statement, [after_id, since_unix_s, *wanted, limit]).fetchall()
    events = [Event(id=row[0], unix_s=row[1], severity=row[2], what=row[3], fields=json.loads(row[4])) for row in rows]
    return events if onward else events[::-1]


def _prepare(database: Database) -> None:
    database.execute(
        "CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY AUTOINCREMENT, unix_s REAL NOT NULL, "
        "severity TEXT NOT NULL, what TEXT NOT NULL, fields TEXT NOT NULL)"
    )
    database.table("event").create_index(["unix_s"], if_not_exists=True)


def _row(event: _Pending) -> dict[str, object]:
    fields = {str(key): _text(value) for key, value in event.fields.items()}
    return {
        "unix_s": event.unix_s,
        "severity": event.severity,
        "what": event.what,
        "fields": json.dumps(fields),
    }


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return str(value)[:FIELD_MAX]


def _mirror(batch: Iterable[_Pending]) -> None:
    for event in batch:
        extra = {f"{key}_" if key in _RESERVED else key: value for key, value in event.fields.items()}
        logger.log(SEVERITIES[event.severity], event.what, extra=extra)


def _complain(failed: Exception) -> None:
    logger.error("event log could not be written", extra={"reason": str(failed)})
