"""The blocking half of a rows sink: applies images to the Standby's database. One thread uses it.

One transaction holds the schema's change, the deletes, the rows, the position and the guards: the Standby moves from
one committed state of the Active to another, durably (``synchronous=EXTRA``). Application triggers and foreign keys are
off, so what they did on the Active arrives as rows and nothing is done twice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

import apsw

from ha_sync.apply.rows.incoming import Incoming
from ha_sync.apply.rows.parts import apply_part
from ha_sync.apply.rows.rebuild import Rebuild
from ha_sync.apply.rows.renewal import renew, sweep
from ha_sync.config import SqliteSettings
from ha_sync.core.position import NOWHERE, Epoch, Incarnation, Position, Sequence
from ha_sync.database.connection import Stamp, number, one, open_standby, reading, run, stamp, writing
from ha_sync.database.facts import read_facts, write_facts
from ha_sync.database.guards import install_guards, remove_guards, unguarded
from ha_sync.database.image import Facts, Head, attach_image, detach_image, encoding_of, read_head
from ha_sync.database.inventory import chunks
from ha_sync.database.locality import Locality
from ha_sync.database.names import POSITION
from ha_sync.database.ranges import comparable, create_ranges, write_ranges
from ha_sync.database.rowhash import hashing
from ha_sync.database.schema import read_schema
from ha_sync.database.triggers import remove_capture, remove_everything
from ha_sync.errors import OperatorNeeded, RepairNeeded

COPY_PAGES = 256  # of one step


class Tampered(RepairNeeded):
    """Somebody changed the database behind our back; the guards stand again."""


class Applier:
    """Applies to one database."""

    def __init__(self, settings: SqliteSettings) -> None:
        self._path = settings.path
        self._locality = Locality.of(settings)
        self._active_at = ""
        self._db: apsw.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._version = -1  # of the schema as we left it
        self._released = False  # promoted or detached: the guards must not come back
        self._stamps: tuple[Stamp | None, Stamp | None] = (None, None)
        self.position = NOWHERE

    def open(self, active_at: str) -> None:
        """Reads the position and installs the guards, where there is a database. Raises ``apsw.Error``, ``OSError``."""
        self._active_at = active_at
        self._released = False
        self.position = NOWHERE
        sweep(self._path)
        if not os.path.lexists(self._path):
            return
        db = self._connect(create=False)
        with writing(db):
            remove_capture(db)
            install_guards(db, read_schema(db), self._locality, active_at=active_at)
        self._version = number(db, "PRAGMA main.schema_version")
        self.position = _stored_position(db)

    def unchanged(self) -> bool:
        """Whether the files were as they are now at the last two calls too, so that nobody wrote."""
        now = stamp(self._path)
        same = self._stamps == (now, now)
        self._stamps = (self._stamps[1], now)
        return same

    def check(self, *, thorough: bool = False) -> str:
        """Says what somebody did to the database behind our back, or nothing; puts the guards back.

        ``thorough``: looks for the guards too where the schema's version is as we left it.
        """
        if self._released:
            return ""
        if self._db is None:
            if os.path.lexists(self._path):
                self.open(self._active_at)
            return ""
        if self._identity() != self._file:
            self.close()
            self.position = NOWHERE
            return "the database file was replaced or removed"
        version = number(self._db, "PRAGMA main.schema_version")
        if version == self._version and not thorough:
            return ""
        with reading(self._db):
            gone = unguarded(self._db, read_schema(self._db), self._locality, active_at=self._active_at)
        if version == self._version and not gone:
            return ""
        with writing(self._db):
            run(self._db, f"DROP TABLE IF EXISTS main.{POSITION}")  # compared even if we die before that
            install_guards(self._db, read_schema(self._db), self._locality, active_at=self._active_at)
        self._version = number(self._db, "PRAGMA main.schema_version")
        return f"the guards of {', '.join(gone)} were gone" if gone else "the schema was changed"

    def copy_to(self, target: str) -> Generator[None, None, None]:
        """Writes a copy, some pages at each step; what is applied between two steps goes into it."""
        copy = apsw.Connection(target)
        try:
            with copy.backup("main", self._connect(create=False), "main") as backup:
                while not backup.done:
                    backup.step(COPY_PAGES)
                    yield
        finally:
            copy.close()

    def renew(self) -> str:
        """Makes the damaged file anew from what can be read; says how. Without a position, so that it is compared."""
        how = renew(self._path, self._locality, close=self.close)
        self.open(self._active_at)
        return how

    def apply(self, incoming: Incoming | None, position: Position) -> None:
        """Makes a group durable; without an image only the position moves.

        Raises ``RepairNeeded`` where somebody changed the database since the last look: a schema that comes with the
        group would hide it for ever.
        """
        if self._db is not None and (tampered := self.check()):
            raise Tampered("the standby's copy was changed", subject=self._path, reason=tampered)
        if incoming is None:
            db = self._connect(create=False)
            with writing(db):
                _store_position(db, position)
            # The first position makes its table: that change of the schema is ours.
            self._version = number(db, "PRAGMA main.schema_version")
            self.position = position
            return
        db = self._connect(create=True, encoding=encoding_of(incoming.header))
        try:
            content = None if incoming.in_file else incoming.content
            attach_image(db, content=content, path=incoming.path)
            head = read_head(db)
            self._prepare(db, head.facts)
            with writing(db):
                self._write(db, head)
                _store_position(db, position)
            self._version = number(db, "PRAGMA main.schema_version")
            self.position = position
        finally:
            detach_image(db)

    def inventory(self) -> Generator[bytes, None, None]:
        """The chunks of this node's inventory."""
        exists = self._db is not None or (os.path.lexists(self._path) and os.path.getsize(self._path) > 0)
        db = self._connect(create=False) if exists else apsw.Connection(":memory:")
        run(db, "ATTACH '' AS inv")
        try:
            schema = read_schema(db)
            tables = comparable(schema, self._locality)
            create_ranges(db, "inv", max((len(t.key) for t in tables), default=1))
            with hashing(db):
                for table in tables:
                    with reading(db):
                        write_ranges(db, table, self._locality)
            yield from chunks(db, schema.objects, read_facts(db, self._locality) if exists else None)
        finally:
            with contextlib.suppress(apsw.Error):
                run(db, "DETACH inv")
            if not exists:
                db.close()

    def promote(self) -> tuple[str, ...]:
        """Removes the guards and the Standby's position; afterwards the database is nobody's but the program's."""
        self._released = True
        if self._db is None and not os.path.lexists(self._path):
            return ()
        db = self._connect(create=False)
        with writing(db):
            removed = remove_guards(db)
            run(db, f"DROP TABLE IF EXISTS main.{POSITION}")
        self.close()
        return removed

    def detach(self) -> tuple[str, ...]:
        """Removes every trace of ours."""
        self._released = True
        if self._db is None and not os.path.lexists(self._path):
            return ()
        db = self._connect(create=False)
        with writing(db):
            removed = remove_everything(db)
        self.close()
        return removed

    def close(self) -> None:
        """Lets go of the database."""
        if self._db is not None:
            self._db.close()
            self._db = None
            self._file = None

    def _write(self, db: apsw.Connection, head: Head) -> None:
        # Facts that do not come are as they were; but a table that is made anew, and an INSERT of no rows, change
        # sqlite_sequence.
        facts = head.facts if head.facts is not None else read_facts(db, self._locality)
        rebuild = None
        if head.objects is not None:
            remove_guards(db)
            rebuild = Rebuild(db=db, desired=head.objects, locality=self._locality)
            rebuild.tables()
        for place, part in enumerate(head.parts):
            if not self._locality.is_local_table(part.table):
                apply_part(db, place, part, self._locality)
        if rebuild is not None:
            rebuild.rest()
            install_guards(db, read_schema(db), self._locality, active_at=self._active_at)
        write_facts(db, facts, self._locality)

    def _prepare(self, db: apsw.Connection, facts: Facts | None) -> None:
        """What cannot be done inside a transaction: the shape of a new file, the journal mode."""
        if facts is None:
            return
        if not number(db, "SELECT count(*) FROM main.sqlite_schema"):
            run(db, f"PRAGMA main.page_size={facts.page_size}")
            run(db, f"PRAGMA main.auto_vacuum={facts.auto_vacuum}")
        now = "wal" if one(db, "PRAGMA main.journal_mode") == "wal" else "delete"
        if now != facts.journal:
            run(db, f"PRAGMA main.journal_mode={facts.journal}")

    def _connect(self, *, create: bool, encoding: str = "") -> apsw.Connection:
        if self._db is not None and self._identity() == self._file:
            return self._db
        self.close()
        if create:
            os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
        db = open_standby(self._path, create=create, encoding=encoding or "UTF-8")
        try:
            if encoding:
                _require_encoding(db, encoding, self._path)
            number(db, "SELECT count(*) FROM main.sqlite_schema")
        except BaseException:
            db.close()
            raise
        self._db, self._file = db, self._identity()
        if create:
            _sync_directory(os.path.dirname(os.path.abspath(self._path)))
        return db

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def _require_encoding(db: apsw.Connection, encoding: str, path: str) -> None:
    have = one(db, "PRAGMA main.encoding")
    if have != encoding:
        raise OperatorNeeded(
            "cannot apply rows to",
            subject=path,
            reason=f"its text encoding is {have}, the active's is {encoding}",
            hint="remove the file on the standby; it is made anew",
        )


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _stored_position(db: apsw.Connection) -> Position:
    if not number(db, "SELECT count(*) FROM main.sqlite_schema WHERE name = ?", (POSITION,)):
        return NOWHERE
    row = db.execute(f"SELECT epoch, incarnation, sequence FROM main.{POSITION}").fetchone()
    if row is None or not isinstance(row[1], bytes):
        return NOWHERE
    epoch, incarnation, sequence = row
    assert isinstance(epoch, int)
    assert isinstance(sequence, int)
    return Position(epoch=Epoch(epoch), incarnation=Incarnation(incarnation), sequence=Sequence(sequence))


def _store_position(db: apsw.Connection, position: Position) -> None:
    run(
        db,
        f"CREATE TABLE IF NOT EXISTS main.{POSITION}"
        "(id INTEGER PRIMARY KEY CHECK(id = 1), epoch INTEGER, incarnation BLOB, sequence INTEGER)",
    )
    run(
        db,
        f"INSERT OR REPLACE INTO main.{POSITION} VALUES(1, ?, ?, ?)",
        (position.epoch, position.incarnation, position.sequence),
    )
