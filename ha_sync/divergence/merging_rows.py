"""Inserts the records of an archive that the new Active's database lacks (R13), without harm to its writer (R25).

A record is what ``same`` says; its row key is given anew by the table. Nothing is ever changed or deleted. Repeating is
harmless: each time it is counted what is missing.

*The writer.* Where no other process has the database open, nothing is in the way. Else the dataset must state its
writer's busy timeout, of TIMEOUT_MIN_MS at least: then reads hold their lock for milliseconds (but in a write-ahead
log, where readers do no harm), and each write transaction ends after HOLD_S of inserting, or ROWS_AT_ONCE, and a pause
follows that is PAUSE_FACTOR times as long. A lock that is taken is not waited for longer than GIVE_WAY_MS; after
LOCKED_MAX vain tries in a row the merge is put off.

Danger: runs in a process of its own (``child``). The engine reads the same file by hand now and then, and closing it
would drop the locks of a connection in the same process (DESIGN 4.8).

*Left to a person:* a record that a unique index does not let in, a table that is not there or has other columns, one
whose row keys other tables name, and one with triggers of the program on it (``force`` takes the last two as they are).
Blocking; one merge a database at a time.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import apsw

from ha_sync.config import SqliteSettings
from ha_sync.database.connection import number, one, open_active, reading, run
from ha_sync.database.holders import holders
from ha_sync.database.image import Part, attach_image, detach_image, read_head
from ha_sync.database.locality import Locality
from ha_sync.database.names import is_ours, quoted
from ha_sync.database.schema import Keyed, Table, read_schema, unknown_to_us
from ha_sync.divergence.outcome import Outcome
from ha_sync.divergence.same import Group, grouped, grouping, identity_columns, missing, same_record
from ha_sync.errors import HaSyncError, WrongState

TIMEOUT_MIN_MS = 500
HOLD_S = 0.01
ROWS_AT_ONCE = 100
PAUSE_FACTOR = 3.0
GIVE_WAY_MS = 20
LOCKED_MAX = 50
SCAN_ROWS = 500
"""Rows that are compared under one read lock: about a millisecond."""

SCAN_ROWS_ALONE = 100_000


def require_harmless(settings: SqliteSettings, *, force: bool) -> bool:
    """Whether somebody else has the database open. Raises WrongState where writing to it could harm that program."""
    # The process above this one is the engine, which does the database no harm.
    others = tuple(holder for holder in holders(settings.path) if holder.pid != os.getppid())
    timeout = settings.writer_busy_timeout_ms
    if others and not force and (timeout is None or timeout < TIMEOUT_MIN_MS):
        names = ", ".join(str(holder) for holder in others[:3])
        reason = (
            f"{names} has it open, and its busy timeout is not stated"
            if timeout is None
            else (f"{names} has it open, and its busy timeout is only {timeout} ms")
        )
        raise WrongState(
            "puts off merging into",
            subject=settings.path,
            reason=reason,
            hint="it is merged when nobody has it open; state writer_busy_timeout_ms, or --force",
        )
    return bool(others)


@dataclass(slots=True, kw_only=True)
class _Counts:
    groups: list[Group]
    have: dict[int, int] = field(default_factory=dict)


class RowsMerge:
    """Merges one image into one database."""

    def __init__(
        self, settings: SqliteSettings, image: str, *, force: bool, goes_on: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._image = image
        self._force = force
        self._goes_on = goes_on
        self._locality = Locality.of(settings)
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Raises WrongState where it cannot go on now; what was inserted until then is seen the next time."""
        self._shared = require_harmless(self._settings, force=self._force)
        try:
            with self._opened() as db:
                for place, part in enumerate(read_head(db).parts):
                    self._goes_on()
                    self._merge(db, place, part)
        except (apsw.BusyError, apsw.LockedError) as error:
            raise WrongState("puts off merging into", subject=self._settings.path, reason="it is locked") from error
        except apsw.Error as error:
            raise HaSyncError("cannot merge into", subject=self._settings.path, reason=str(error)) from error
        return self._outcome

    def missing(self) -> Iterator[tuple[Part, tuple[apsw.SQLiteValue, ...]]]:
        """Nothing is written: the records that the database lacks, with their values."""
        self._shared = True
        try:
            with self._opened() as db:
                for place, part in enumerate(read_head(db).parts):
                    for member in self._wanted(db, place, part)[1]:
                        yield part, db.execute(f"SELECT * FROM img.r{place} WHERE rowid = ?", (member,)).fetchall()[0]
        except apsw.Error as error:
            raise HaSyncError("cannot compare with", subject=self._settings.path, reason=str(error)) from error

    @contextlib.contextmanager
    def _opened(self) -> Iterator[apsw.Connection]:
        db = open_active(self._settings.path)
        try:
            self._wal = one(db, "PRAGMA main.journal_mode") == "wal"
            if self._shared:
                db.set_busy_timeout(GIVE_WAY_MS)
            # The capture's own triggers must see what is inserted; the program's are asked about before.
            db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 1)
            attach_image(db, content=None, path=self._image)
            yield db
        finally:
            with contextlib.suppress(apsw.Error):
                detach_image(db)
            db.close()

    # ---- one table

    def _merge(self, db: apsw.Connection, place: int, part: Part) -> None:
        total, wanted, why = self._wanted(db, place, part)
        if why:
            self._outcome.leave(total, f"{part.table}: {why}")
            return
        self._outcome.present += total - len(wanted)
        self._insert(db, place, part, wanted)

    def _wanted(self, db: apsw.Connection, place: int, part: Part) -> tuple[int, tuple[int, ...], str]:
        """How many records there are, those that are missing, and why none can be inserted."""
        total = number(db, f"SELECT count(*) FROM img.r{place}")
        if not total or self._locality.is_local_table(part.table):
            return 0, (), ""
        with reading(db):
            table = read_schema(db).tables.get(part.table)
            why = self._why_not(db, part, table)
        if why or table is None:
            return total, (), why
        counts = _Counts(groups=self._groups(db, place, part))
        self._count(db, place, part, table=table, counts=counts)
        return total, missing(counts.groups, counts.have), ""

    def _why_not(self, db: apsw.Connection, part: Part, table: Table | None) -> str:
        if table is None:
            return "there is no such table on this node"
        here = {column.name for column in table.columns if column.stored}
        lacking = [name for _, name in identity_columns(part) if name not in here]
        if lacking or table.keyed is not part.keyed or len(table.shipped) != len(part.columns):
            return "the table has other columns on this node"
        if unknown := unknown_to_us(db, table):
            return unknown
        if self._force:
            return ""
        if table.integer_key is not None and _named_by_others(db, table):
            return "other tables name its row keys"
        triggers = db.execute(
            "SELECT name FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE", (table.name,)
        ).fetchall()
        theirs = [str(name) for (name,) in triggers if not is_ours(str(name))]
        return f"the program has triggers on it ({', '.join(theirs[:3])})" if theirs else ""

    @staticmethod
    def _groups(db: apsw.Connection, place: int, part: Part) -> list[Group]:
        """Equal records of the archive. Row ids of the image name them."""
        firsts = (
            f"SELECT min(rowid) OVER (PARTITION BY {grouping(part)}) AS first, rowid AS member FROM img.r{place} "
            "ORDER BY member"
        )
        return grouped([(int(str(first)), int(str(member))) for first, member in db.execute(firsts)])

    def _count(self, db: apsw.Connection, place: int, part: Part, *, table: Table, counts: _Counts) -> None:
        """How many of each record the table has: one pass over it, in pieces that hold no lock for long."""
        columns = ", ".join(f"c{each}" for each, _ in identity_columns(part)[:8])
        if columns:
            run(db, f"CREATE INDEX IF NOT EXISTS img.same{place} ON r{place}({columns})")
        name = quoted(table.name)
        same = same_record(part, image="_ha_i", table="_ha_t")
        for condition, bindings in self._pieces(db, table):
            rows = db.execute(
                f"SELECT (SELECT min(_ha_i.rowid) FROM img.r{place} AS _ha_i WHERE {same}) AS first, count(*) "
                f"FROM main.{name} AS _ha_t WHERE {condition} AND first IS NOT NULL GROUP BY first",
                bindings,
            ).fetchall()
            for first, found in rows:
                counts.have[int(str(first))] = counts.have.get(int(str(first)), 0) + int(str(found))

    def _pieces(self, db: apsw.Connection, table: Table) -> Iterator[tuple[str, tuple[apsw.SQLiteValue, ...]]]:
        """Conditions over the table as ``_ha_t`` that together hold for every row once."""
        if table.keyed is not Keyed.ROWID:
            yield "TRUE", ()
            return
        key, at_once = table.key[0], SCAN_ROWS if self._shared and not self._wal else SCAN_ROWS_ALONE
        after: int | None = None
        while True:
            self._goes_on()
            where, start = ("TRUE", ()) if after is None else (f"{quoted(key)} > ?", (after,))
            last = one(
                db,
                f"SELECT max(k) FROM (SELECT {quoted(key)} AS k FROM main.{quoted(table.name)} WHERE {where} "
                f"ORDER BY {quoted(key)} LIMIT {at_once})",
                start,
            )
            if not isinstance(last, int):
                return
            low = "TRUE" if after is None else f"_ha_t.{quoted(key)} > ?"
            yield f"{low} AND _ha_t.{quoted(key)} <= ?", (*start, last)
            after = last

    def _insert(self, db: apsw.Connection, place: int, part: Part, wanted: tuple[int, ...]) -> None:
        names = [quoted(name) for _, name in identity_columns(part)]
        values = [f"c{each}" for each, _ in identity_columns(part)]
        into = f"INTO main.{quoted(part.table)}({', '.join(names)})"
        statement = f"INSERT OR ABORT {into} SELECT {', '.join(values)} FROM img.r{place} WHERE rowid = ?"
        if not names:
            statement = f"INSERT OR ABORT INTO main.{quoted(part.table)} DEFAULT VALUES"
        rest = list(wanted)
        locked = 0
        while rest:
            self._goes_on()
            began = time.monotonic()
            try:
                done = self._some(db, statement, rest, part, bound=bool(names))
            except (apsw.BusyError, apsw.LockedError):
                locked += 1
                if locked > LOCKED_MAX:
                    raise
                time.sleep(GIVE_WAY_MS / 1000)
                continue
            locked = 0
            del rest[:done]
            if self._shared and rest:
                time.sleep(PAUSE_FACTOR * (time.monotonic() - began))

    def _some(self, db: apsw.Connection, statement: str, rest: list[int], part: Part, *, bound: bool) -> int:
        """One short transaction; how many of ``rest`` are dealt with."""
        added, refused, done = 0, [], 0
        run(db, "BEGIN IMMEDIATE")
        try:
            until = time.monotonic() + HOLD_S
            for member in rest[:ROWS_AT_ONCE]:
                try:
                    run(db, statement, (member,) if bound else ())
                    added += 1
                except apsw.ConstraintError as error:
                    refused.append(str(error))
                done += 1
                if self._shared and time.monotonic() > until:
                    break
            run(db, "COMMIT")
        except BaseException:
            if db.in_transaction:
                run(db, "ROLLBACK")
            raise
        self._outcome.added += added
        for reason in refused:
            self._outcome.leave(1, f"{part.table}: {reason}")
        return done


def _named_by_others(db: apsw.Connection, table: Table) -> bool:
    rows = db.execute(
        "SELECT count(*) FROM main.sqlite_schema AS s, pragma_foreign_key_list(s.name) AS f "
        'WHERE s.type = \'table\' AND f."table" = ?1 COLLATE NOCASE AND (f."to" IS NULL OR f."to" = ?2 COLLATE NOCASE)',
        (table.name, table.integer_key),
    ).fetchall()
    return bool(rows and rows[0][0])
