"""The blocking half of a rows source: follows the schema, installs triggers, builds batches. One thread uses it.

What it promises: a batch is one committed state of the writer (log, keys and rows are read in one transaction); a table
whose triggers are missing travels whole whenever it changes; nothing is written to the database but the installation.
Times are monotonic seconds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import apsw

from ha_sync.capture.rows.access import Access
from ha_sync.capture.rows.again import asked_again, collect_again
from ha_sync.capture.rows.collect import Collector
from ha_sync.capture.rows.compare import Inventory, collect_differences
from ha_sync.capture.rows.journal import EVERYTHING, Identity, Journal, digest
from ha_sync.config import SqliteSettings
from ha_sync.core.dataset import DatasetState
from ha_sync.core.position import Epoch, Position
from ha_sync.database.connection import Stamp, one, reading, stamp, writing
from ha_sync.database.facts import read_facts
from ha_sync.database.guards import remove_guards
from ha_sync.database.holders import holders
from ha_sync.database.image import Facts, Head, Image, ImageBuilder
from ha_sync.database.locality import Locality
from ha_sync.database.ranges import table_digest
from ha_sync.database.rowhash import hashing
from ha_sync.database.schema import Keyed, Schema, Table, read_schema, unknown_to_us
from ha_sync.database.snapshot import Snapshot
from ha_sync.database.spans import objects_of
from ha_sync.database.triggers import (
    captured_tables,
    guards_present,
    has_log,
    install_capture,
    last_logged,
    log_identity,
    logged_tables,
    oldest_kept,
    our_triggers,
    remove_everything,
)
from ha_sync.errors import RepairNeeded

LARGE_ENTRIES = 20_000  # a batch of more log entries is built in a file at once
ATTEMPTS_MAX = 5
INSTALL_RETRY_S = 1.0  # how often we look whether the holders are gone
UNTRACKED_SHARE = 20  # looking at tables without triggers costs at most 1/20 of a core


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One committed state to ship: everything between a position and this one."""

    position: Position
    image: Image | None  # None: nothing differs, only the position moves
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How the capture is doing."""

    state: DatasetState
    reason: str
    method: str
    missing: bool = False  # there is no database yet


class _SchemaMoved(Exception):
    """The schema changed between the look at it and the read transaction."""


class _FactsMoved(Exception):
    """Something changed that no log tells, e.g. ``user_version``."""

    def __init__(self, logged: int) -> None:
        super().__init__(logged)
        self.logged = logged


class _TooLarge(Exception):
    """The image does not fit into memory: build it in a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What one look at the schema found, all of one instant."""

    schema: Schema
    complete: frozenset[str]  # tables whose triggers stand
    standing: frozenset[tuple[str, str]]  # capture triggers, whatever they are like, and their tables
    identity: Identity
    logged: int
    moved: frozenset[str]  # the marks that its change needs


T = TypeVar("T")
Collected = tuple[Position, Head | None, Facts]
Collect = Callable[[Collector], Collected | None]


class Capture:
    """Captures one database."""

    def __init__(self, settings: SqliteSettings, *, state_path: str, snapshot: Snapshot) -> None:
        self._settings = settings
        self._state_path = state_path
        self._locality = Locality.of(settings)
        self._access = Access(
            settings.path,
            copy_path=f"{state_path}.copy",
            busy_timeout_ms=settings.writer_busy_timeout_ms,
            snapshot=snapshot,
        )
        self._epoch = Epoch(0)
        self._images = 0
        self._schema: Schema | None = None
        self._file: tuple[int, int] | None = None
        self._logging = False  # the log stands in the database, as of the schema that we know
        self._blocked = ""  # who keeps us from installing triggers
        self._untracked: frozenset[str] = frozenset()
        self._standing: frozenset[tuple[str, str]] = frozenset()
        self._put_back: set[str] = set()
        self._digests: dict[str, bytes] = {}
        self._look_again_at = 0.0
        self._install_again_at = 0.0
        self.unusable: tuple[str, ...] = ()  # tables that we cannot read, with the reason
        self._method = "rows"
        self.journal = Journal(state_path)
        self._stamps: tuple[Stamp | None, Stamp | None] = (None, None)
        self.logged = 0
        self._facts: Facts | None = None
        self.attach_now = False

    def open(self, epoch: Epoch) -> None:
        """Opens the journal and removes what a crash left behind."""
        self._epoch = epoch
        directory, base = os.path.split(os.path.abspath(self._state_path))
        os.makedirs(directory, exist_ok=True)
        for name in os.listdir(directory):
            if name.startswith((f"{base}.image-", f"{base}.copy", f"{base}.inventory")):
                os.unlink(os.path.join(directory, name))
        self.journal.open()

    def unchanged(self) -> bool:
        """Whether the files were as they are now at the last two calls too: then nobody committed anything.

        Two calls, because a write within the grain of the clock may leave the same time behind.
        """
        now = stamp(self._settings.path)
        same = now is not None and self._stamps == (now, now)
        self._stamps = (self._stamps[1], now)
        return same and self.condition.state is DatasetState.STREAMING

    def close(self) -> None:
        """Saves the journal and lets go of the database."""
        try:
            self.journal.save()
        finally:
            self.journal.close()
            self._access.close()

    @property
    def condition(self) -> Condition:
        """State, reason and method in words."""
        if self.unusable:
            hint = '; this database needs capture = "pages"'
            return Condition(state=DatasetState.FAILED, reason="; ".join(self.unusable) + hint, method=self._method)
        if self._untracked:
            names = ", ".join(sorted(self._untracked)[:3]) + (", ..." if len(self._untracked) > 3 else "")
            reason = (
                f"no triggers on {names}: {self._blocked} has the database open; stop it, or run `ha-sync attach`; "
                "until then these tables are compared and sent whole"
            )
            return Condition(state=DatasetState.DEGRADED, reason=reason, method=self._method)
        return Condition(state=DatasetState.STREAMING, reason="", method=self._method)

    def look(self, *, thorough: bool = False) -> Position:
        """Notices what was committed before the call; ``thorough``: in tables without triggers too, at any cost.

        Raises ``apsw.Error`` and ``OSError`` of an unfit database.
        """
        if thorough:
            self._look_again_at = 0.0
        return self._settle(lambda: self._access.read(self._look))

    def batch(self, after: int, facts: Facts | None) -> Batch | None:
        """What a Standby at sequence ``after`` with ``facts`` has not got; None where it has everything.

        Raises ``RepairNeeded`` when the log does not reach back that far: a compare is needed.
        """

        def attempt() -> Batch | None:
            if self.unusable:
                return None
            if self._untracked:
                self._access.read(self._look)
            return self._build(lambda c: self._collect_changes(c, after, facts))

        return self._settle(attempt)

    def compare(self, inventory: Inventory) -> Batch | None:
        """What differs from the Standby's inventory, as one batch; None while the database cannot be used."""
        self.look()
        if self.unusable:
            return None
        return self._settle(lambda: self._build(lambda c: self._collect_differences(c, inventory), inventory=inventory))

    @property
    def copies(self) -> int:
        """Lock-free copies taken so far."""
        return self._access.copies

    def oldest_sequence(self) -> int:
        """The lowest sequence after which every change can still be named."""
        kept = self._access.read(lambda db: oldest_kept(db) if has_log(db) else 0)
        # A sequence s covers the log up to s - extra at least; nothing was trimmed where the log is complete.
        return kept + self.journal.extra if kept else 0

    def send_whole(self, tables: frozenset[str]) -> None:
        """The Standby asked for these tables; an empty name means all of them and the schema."""
        if EVERYTHING in tables and self._schema is not None:
            tables |= self._usable(self._schema)
        self.journal.mark(self.logged, tables)

    def send_again(self, objects: tuple[bytes, ...]) -> None:
        """The full backup found that the Standby lacks these (``RowsObjects``)."""
        spans = []
        marks = set()
        for data in objects:
            message = objects_of(data)
            if message.spans:
                spans.append(data)
            else:
                marks.add(message.table or EVERYTHING)
        if marks:
            self.journal.mark(self.logged, frozenset(marks))
        if spans:
            self.journal.ask_again(self.logged, tuple(spans))

    def put_back(self) -> tuple[str, ...]:
        """Tables whose triggers somebody removed and that have them again, since the last call."""
        found, self._put_back = tuple(sorted(self._put_back)), set()
        return found

    def copy(self, target: str) -> None:
        """A lock-free copy of the database for the full backup. Raises ``Retryable`` where none can be had."""
        self._access.copy(target)

    def save_if_moved(self) -> None:
        """Saves what was noticed and acknowledged since the last time."""
        if self.journal.moved:
            self.journal.save()

    def attach(self) -> None:
        """Installs the triggers whoever has the database open (``ha-sync attach``)."""
        self.attach_now = True
        self._schema = None
        self.look()

    def detach(self) -> tuple[str, ...]:
        """Removes every trace from the database."""

        def job(db: apsw.Connection) -> tuple[str, ...]:
            with writing(db):
                return remove_everything(db)

        self._schema = None
        return self._access.write(job)

    def _settle(self, attempt: Callable[[], T]) -> T:
        """Follows the schema and runs ``attempt``, again where the schema or the facts moved meanwhile."""
        for _ in range(ATTEMPTS_MAX):
            self._follow()
            try:
                return attempt()
            except _SchemaMoved:
                self._schema = None
            except _FactsMoved as moved:
                self.journal.mark(moved.logged, frozenset({EVERYTHING}))
        raise apsw.SchemaChangeError("the schema changes faster than it can be read")

    # ---- looking --------------------------------------------------------------------------------------------------

    def _look(self, db: apsw.Connection) -> Position:
        with hashing(db) if self._untracked else contextlib.nullcontext(), reading(db):
            self._require_schema(db)
            logged = last_logged(db) if self._logging else 0
            facts = read_facts(db, self._locality)
            changed = self._changed_untracked(db)
        if changed:
            self.journal.mark(logged, frozenset(changed))
            self._digests.update(changed)
        elif self._facts is not None and facts != self._facts and logged == self.logged:
            self.journal.mark(logged, frozenset({EVERYTHING}))
        self._facts = facts
        self.journal.noticed(logged)
        self.logged = logged
        return self.journal.captured

    def _require_schema(self, db: apsw.Connection) -> Schema:
        version = one(db, "PRAGMA main.schema_version")
        if self._schema is None or version != self._schema.version:
            raise _SchemaMoved
        return self._schema

    def _changed_untracked(self, db: apsw.Connection) -> dict[str, bytes]:
        if not self._untracked or self._schema is None or time.monotonic() < self._look_again_at:
            return {}
        began = time.monotonic()
        changed = {}
        for name in sorted(self._untracked):
            found = self._digest(db, self._schema.tables[name])
            if found != self._digests.get(name):
                changed[name] = found
        self._look_again_at = time.monotonic() + UNTRACKED_SHARE * (time.monotonic() - began)
        return changed

    def _digest(self, db: apsw.Connection, table: Table) -> bytes:
        if table.keyed is Keyed.WHOLE:
            return os.urandom(16)  # cannot be compared: always sent
        return table_digest(db, table, self._locality)

    # ---- schema ---------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Notices another file, another log or another schema, and installs triggers where that is allowed."""
        file = self._access.identity()
        if file != self._file:
            self._file, self._schema = file, None
        retry = bool(self._untracked) and time.monotonic() >= self._install_again_at
        if self._schema is not None and not retry:
            return
        self._install_again_at = time.monotonic() + INSTALL_RETRY_S
        found = self._access.read(self._read_schema)
        self._method = self._describe()
        fresh = not self.journal.continues(self._epoch, found.identity, found.logged)
        if fresh:
            self.journal.begin(self._epoch, found.identity)
        usable = self._usable(found.schema)
        if not self.unusable and usable - found.complete:
            # Of a table that the program dropped or changed they went with it.
            lost = {table for _, table in self._standing - found.standing} & self._same_tables(found.schema)
            found = self._install(found)
            self._put_back |= lost & found.complete
            usable = self._usable(found.schema)
        self._standing = found.standing
        self._blocked = self._blocked if usable - found.complete else ""
        self._untracked = frozenset() if self.unusable else usable - found.complete
        self._digests = {n: d for n, d in self._digests.items() if n in self._untracked}
        self.attach_now = self.attach_now and bool(self._untracked)
        self.journal.follow(found.identity)
        self._learn(found.schema, frozenset() if fresh else found.moved, found.logged)

    def _describe(self) -> str:
        return "rows: write-ahead log" if self._access.keeps_connection else "rows: rollback journal"

    def _read_schema(self, db: apsw.Connection) -> _Found:
        with reading(db):
            return self._schema_of(db)

    def _schema_of(self, db: apsw.Connection) -> _Found:
        schema = read_schema(db)
        self.unusable = tuple(
            reason
            for name, table in schema.tables.items()
            if not self._locality.is_local_table(name) and (reason := unknown_to_us(db, table))
        )
        complete = captured_tables(db, schema, entries_max=self._settings.log_entries_max)
        if guards_present(db):
            complete = frozenset()
        self._logging = has_log(db)
        device, inode = self._file or (0, 0)
        identity = Identity(device=device, inode=inode, log=log_identity(db).hex())
        return _Found(
            schema=schema,
            complete=complete,
            standing=frozenset((name, table) for name, (table, _) in our_triggers(db).items()),
            identity=identity,
            logged=last_logged(db) if self._logging else 0,
            moved=self._moved(db, schema, complete),
        )

    def _usable(self, schema: Schema) -> frozenset[str]:
        return frozenset(name for name in schema.tables if not self._locality.is_local_table(name))

    def _same_tables(self, schema: Schema) -> frozenset[str]:
        """The tables whose SQL is the known one."""
        return frozenset(n for n, table in schema.tables.items() if self.journal.tables.get(n) == digest(table.sql))

    def _moved(self, db: apsw.Connection, schema: Schema, complete: frozenset[str]) -> frozenset[str]:
        """The marks that a change of the schema needs: a table travels whole where the log cannot vouch for it."""
        known = self.journal.schema_version
        if schema.version == known:
            return frozenset()
        written = frozenset[str]()
        if self._logging and schema.version != known + 1:
            # Danger: of several changes we see the last. A unique index that came and went meanwhile, or a trigger of
            # ours that was away, let rows die unseen.
            written = logged_tables(db, self.journal.looked)
        whole = {
            name
            for name, table in schema.tables.items()
            if name not in complete
            or name in written
            or self.journal.tables.get(name) != digest(table.sql)
            or table.renumbered_by_vacuum
        }
        return frozenset(whole - self._untracked) | {EVERYTHING}

    def _learn(self, schema: Schema, moved: frozenset[str], logged: int) -> None:
        self._schema = schema
        if schema.version == self.journal.schema_version:
            return
        self.journal.learn(schema)
        if moved:
            self.journal.mark(logged, moved)
        else:
            self.journal.save()

    def _install(self, found: _Found) -> _Found:
        others = () if self._settings.live_triggers or self.attach_now else holders(self._settings.path)
        if others:
            self._blocked = ", ".join(str(h) for h in others[:3])
            return found
        try:
            return self._access.write(self._install_now)
        except apsw.BusyError:
            self._blocked = self._blocked or "a process"
            return found

    def _install_now(self, db: apsw.Connection) -> _Found:
        with writing(db):
            # Asked again: the writer was free to change the schema since the first look.
            before = self._schema_of(db)
            remove_guards(db)
            skip = frozenset(n for n in read_schema(db).tables if self._locality.is_local_table(n))
            install_capture(db, read_schema(db), entries_max=self._settings.log_entries_max, skip=skip)
            after = self._schema_of(db)
            # What was written to a table before its triggers came stands in no log.
            found = replace(after, moved=before.moved | (after.complete - before.complete))
            if not (self._settings.live_triggers or self.attach_now):
                # Somebody opened the database since the first look: its statements may be prepared already.
                others = holders(self._settings.path)
                if others:
                    self._blocked = ", ".join(str(h) for h in others[:3])
                    raise apsw.BusyError(f"{self._blocked} opened the database")
        return found

    # ---- building -------------------------------------------------------------------------------------------------

    def _build(self, collect: Collect, *, inventory: Inventory | None = None) -> Batch | None:
        """Builds in memory, and again in a file where that grows too large; on a live database or on a copy."""
        self._images += 1
        spill = f"{self._state_path}.image-{self._images}"
        for place in (None, spill):
            attempt = partial(self._attempt, spill=place, collect=collect, inventory=inventory)
            try:
                return self._access.read(attempt)
            except _TooLarge:
                continue
        return None

    def _attempt(
        self, db: apsw.Connection, spill: str | None, collect: Collect, inventory: Inventory | None
    ) -> Batch | None:
        builder = ImageBuilder(db, spill)
        beside: AbstractContextManager[None] = contextlib.nullcontext()
        if inventory is not None:
            beside = inventory.attached(db)
        elif self.journal.again and self._schema is not None:
            beside = asked_again(db, max((len(t.key) for t in self._schema.tables.values()), default=1))
        with beside:
            return self._built(db, builder, collect, in_file=spill is not None)

    def _built(self, db: apsw.Connection, builder: ImageBuilder, collect: Collect, *, in_file: bool) -> Batch | None:
        try:
            builder.open()
            with reading(db):
                schema = self._require_schema(db)
                collector = Collector(db=db, builder=builder, schema=schema, locality=self._locality)
                result = collect(collector)
            if result is None or result[1] is None:
                builder.abandon()
                return None if result is None else Batch(position=result[0], image=None, facts=result[2])
            return Batch(position=result[0], image=builder.finish(), facts=result[2])
        except apsw.FullError:
            builder.abandon()
            if not in_file:
                raise _TooLarge from None
            raise
        except BaseException:
            builder.abandon()
            raise

    def _collect_changes(self, c: Collector, after: int, sent: Facts | None) -> Collected | None:
        logging = self._logging
        logged = last_logged(c.db) if logging else 0
        logged_after = max(0, after - self.journal.extra)
        whole = self.journal.whole_after(after)
        facts = read_facts(c.db, self._locality)
        if logged + self.journal.extra <= after and not whole and sent is not None:
            if facts != sent:
                raise _FactsMoved(logged)
            return None
        if logging and logged > logged_after and oldest_kept(c.db) > logged_after:
            raise RepairNeeded(
                "the change log was trimmed past the Standby",
                subject=self._settings.path,
                hint="it goes on by itself with a compare",
            )
        if logged - logged_after > LARGE_ENTRIES and not c.builder.spills:
            raise _TooLarge
        for name in sorted(whole & c.schema.tables.keys()):
            c.whole(c.schema.tables[name])
        collect_again(c, self.journal.again_after(after), without=whole)
        if logging:
            c.changes(logged_after, without=whole)
        self.logged, self._facts = logged, facts
        self.journal.noticed(logged)
        objects = c.schema.objects if EVERYTHING in whole else None
        told = facts if facts != sent or EVERYTHING in whole else None
        head = Head(parts=tuple(c.builder.parts), facts=told, objects=objects)
        position = self.journal.position(logged)
        if not head.parts and head.facts is None and head.objects is None:
            return position, None, facts
        c.builder.write_head(head)
        return position, head, facts

    def _collect_differences(self, c: Collector, inventory: Inventory) -> Collected | None:
        logged = last_logged(c.db) if self._logging else 0
        facts = read_facts(c.db, self._locality)
        collect_differences(c, inventory)
        objects = c.schema.objects if not inventory.same_objects(c.schema) else None
        head = Head(parts=tuple(c.builder.parts), facts=facts, objects=objects)
        self.journal.noticed(logged)
        position = self.journal.position(logged)
        if not head.parts and objects is None and inventory.facts == facts:
            return position, None, facts
        c.builder.write_head(head)
        return position, head, facts
