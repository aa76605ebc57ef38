"""The Active's database as the full backup reads it: harmless to its writer, in a thread of its own.

With a write-ahead log a connection of our own reads, one range in a transaction, and never checkpoints. With a rollback
journal a reader's lock could cost the program its data, so only lock-free copies are read; ``refresh`` makes a new one.
Everything else here blocks and belongs into ``in_thread``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import apsw

from ha_sync.backup.rows.described import Description, describe
from ha_sync.backup.rows.ends import ActiveEnd
from ha_sync.config import SqliteSettings
from ha_sync.database.connection import number, one, open_active, reading, tuned
from ha_sync.database.image import remove_file
from ha_sync.database.keys import Key, selected, taken
from ha_sync.database.locality import Locality
from ha_sync.database.names import CHANGE, quoted
from ha_sync.database.ranges import cut
from ha_sync.database.rowhash import Digest, Hasher, Span, hashing
from ha_sync.database.schema import Keyed, Schema, Table, read_schema
from ha_sync.database.soundness import damage_of
from ha_sync.database.triggers import captured_tables, has_log, last_logged, oldest_kept, table_numbers
from ha_sync.errors import HaSyncError, Retryable

TRIES = 5
PAUSE_S = 1.0
TOUCHED_MAX = 100_000
LOG_GROWTH_MAX = 64 * 1024 * 1024
"""So much may a write-ahead log grow while a read keeps it from being begun anew."""
LOOK_EVERY_STEPS = 10_000

T = TypeVar("T")


class Unreadable(HaSyncError):
    """No state of the database can be read without disturbing its writer, or it is damaged."""


class ActiveReader:
    """Reads the database of one run. Not for two threads at once."""

    def __init__(self, settings: SqliteSettings, end: ActiveEnd, *, executor: Executor) -> None:
        self._settings = settings
        self._locality = Locality.of(settings)
        self._end = end
        self._executor = executor
        self._db: apsw.Connection | None = None
        self.on_copy = False

    async def open(self) -> None:
        """Raises ``Unreadable``, ``OSError`` and ``apsw.Error``."""
        await self.in_thread(self._connect)
        if self.on_copy:
            await self.refresh()

    async def refresh(self) -> None:
        """What is read from now on is not older than this call. Raises ``Unreadable``."""
        if not self.on_copy:
            return
        await self.close()
        for attempt in range(TRIES):
            try:
                await self._end.copied(self._end.scratch)
                break
            except Retryable as error:
                if attempt == TRIES - 1:
                    raise Unreadable(
                        "cannot verify", subject=self._settings.path, reason=error.reason, hint=error.hint
                    ) from error
                await asyncio.sleep(PAUSE_S)
        await self.in_thread(self._open_copy)

    async def close(self) -> None:
        """Lets go; removes the copy."""
        await self.in_thread(self._close)

    def interrupt(self) -> None:
        """Ends what is being read now; from any thread."""
        if self._db is not None:
            self._db.interrupt()

    async def in_thread(self, job: Callable[..., T], *args: object) -> T:
        """Runs ``job`` in the run's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: job(*args))

    def _connect(self) -> None:
        db = open_active(self._settings.path)
        try:
            self.on_copy = one(db, "PRAGMA main.journal_mode") != "wal"
        except BaseException:
            db.close()
            raise
        if self.on_copy:
            db.close()
        else:
            self._db = db

    def _open_copy(self) -> None:
        self._db = apsw.Connection(self._end.scratch)
        tuned(self._db)

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self.on_copy:
            remove_file(self._end.scratch)

    @property
    def db(self) -> apsw.Connection:
        """The connection; of the run's thread only."""
        assert self._db is not None
        return self._db

    # ---- what is read ---------------------------------------------------------------------------------------------

    def describe(self) -> tuple[Description, Schema]:
        """Of one committed state."""
        with reading(self.db):
            return describe(self.db, self._locality), read_schema(self.db)

    def uncaptured(self) -> tuple[str, ...]:
        """Tables whose triggers are not as they should be."""
        with reading(self.db):
            schema = read_schema(self.db)
            complete = captured_tables(self.db, schema, entries_max=self._settings.log_entries_max)
        return tuple(sorted(n for n in schema.tables if n not in complete and not self._locality.is_local_table(n)))

    def damage(self, check: str) -> str:
        """What SQLite's check finds. Raises ``Unreadable`` where it would keep the log of a busy program too large."""
        log = f"{self._settings.path}-wal"
        grown = 0

        def lets_go() -> bool:
            nonlocal grown
            grown = _size_of(log) - at_first
            return grown > LOG_GROWTH_MAX

        at_first = _size_of(log)
        if not self.on_copy:
            self.db.set_progress_handler(lets_go, LOOK_EVERY_STEPS)
        try:
            found = damage_of(self.db, check=check)
        finally:
            self.db.set_progress_handler(None)
        if grown > LOG_GROWTH_MAX:
            raise Unreadable(
                "cannot check", subject=self._settings.path, reason="its program writes too much meanwhile"
            )
        return found

    def counted(self, table: Table) -> int:
        """Its rows, for the progress."""
        return number(self.db, f"SELECT count(*) FROM main.{quoted(table.name)}")

    def logged(self) -> int:
        """The newest entry of the log of changes; 0 where there is none."""
        with reading(self.db):
            return last_logged(self.db) if has_log(self.db) else 0

    def ranges(self, table: Table, rows: int, within: Span, most: int) -> list[tuple[Span, Digest]]:
        """The first ranges of a span; each is read in a transaction of its own."""
        with self._hasher(table) as hasher:
            return list(islice(cut(hasher, rows, within=within), most))

    def digests(self, table: Table, spans: Iterable[Span]) -> list[Digest]:
        """Of these spans now."""
        with self._hasher(table) as hasher:
            return [hasher.digest(span) for span in spans]

    def rows(self, table: Table, span: Span, most: int) -> list[tuple[Key, Digest]]:
        """Key and digest of every row of a span."""
        with self._hasher(table) as hasher, reading(self.db):
            return hasher.each(span, rows_max=most)

    @contextmanager
    def _hasher(self, table: Table) -> Iterator[Hasher]:
        with hashing(self.db), Hasher(self.db, table, self._locality) as hasher:
            yield hasher

    def look(self, table: Table, spans: list[Span], since: int) -> Look:
        """The spans now, and what was written after entry ``since`` of the log."""
        logged = self.logged()
        digests = self.digests(table, spans)
        # Asked last: what was written before a digest was made stands in the log by now.
        return Look(logged=logged, digests=digests, touched=self._touched(table, since))

    def _touched(self, table: Table, since: int) -> Touched:
        """What the program wrote to a table after entry ``since`` of the log."""
        with reading(self.db):
            if not has_log(self.db) or table.keyed is Keyed.WHOLE:
                return Touched(keys=frozenset(), everything=False)
            place = table_numbers(self.db).get(table.name)
            if oldest_kept(self.db) > since:
                return Touched(keys=frozenset(), everything=True)
            columns = selected(f"k{i}" for i in range(len(table.key)))
            rows = self.db.execute(
                f"SELECT DISTINCT {columns} FROM main.{CHANGE} WHERE seq > ? AND tbl = ? LIMIT ?",
                (since, place, TOUCHED_MAX),
            ).fetchall()
        return Touched(keys=frozenset(map(taken, rows)), everything=len(rows) == TOUCHED_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Spans of one table as they are."""

    logged: int  # every later entry of the log is of a change that the digests may lack
    digests: list[Digest]
    touched: Touched


class Touched:
    """Keys that were written; asked for single rows and for spans."""

    def __init__(self, *, keys: frozenset[Key], everything: bool) -> None:
        self._keys = keys
        self._everything = everything

    def __contains__(self, span: Span) -> bool:
        if self._everything:
            return True
        if span.only:
            return span.upto in self._keys
        return any(_may_hold(span, key) for key in self._keys)


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _may_hold(span: Span, key: Key) -> bool:
    """Whether a key may be in a span; of rowids it is known, other keys have an order that only SQLite knows."""
    (value, *others) = (v.raw for v in key)
    if others or not isinstance(value, int):
        return True
    lower = span.after[0].raw if span.after is not None else None
    upper = span.upto[0].raw if span.upto is not None else None
    if not (lower is None or isinstance(lower, int)) or not (upper is None or isinstance(upper, int)):
        return True
    return (lower is None or value > lower) and (upper is None or value <= upper)
