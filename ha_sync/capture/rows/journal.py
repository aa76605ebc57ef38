"""The source's own memory: incarnation, epoch, what was acknowledged, and which tables must travel whole.

A small SQLite file beside the engine's other state. Losing it means a new incarnation, hence a compare; nothing else.

Sequences: the log in the database counts its entries; what is noticed otherwise (a schema change, another
``user_version``, a change of a table without triggers) adds one to ``extra``. A position's sequence is the log's newest
entry plus ``extra``, so it only grows. A sequence s therefore covers at least the log up to ``s - extra``.
Not thread-safe: used in the source's one thread.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

import apsw
import xxhash

from ha_sync.core.position import NO_INCARNATION, Epoch, Incarnation, Position, Sequence, new_incarnation
from ha_sync.database.connection import one, run, writing
from ha_sync.database.schema import Schema

EVERYTHING = ""  # a mark for the schema and the facts, not for a table


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which log, in which file, a position counts in."""

    device: int
    inode: int
    log: str  # hex, empty where there is no log


@dataclass(slots=True)
class _Kept:
    epoch: int = 0
    incarnation: str = ""
    device: int = 0
    inode: int = 0
    log: str = ""
    extra: int = 0
    captured: int = 0
    acknowledged: int = 0
    answered: bool = False
    schema_version: int = -1


class Journal:
    """Opens or creates the file at ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._db: apsw.Connection | None = None
        self._kept = _Kept()
        self.marks: list[tuple[int, str]] = []  # (sequence, table): whole for whoever has not reached it
        self.tables: dict[str, str] = {}  # name -> hash of its SQL, as of schema_version
        self.again: list[tuple[int, bytes]] = []  # (sequence, ``RowsObjects``): for whoever has not reached it
        self.moved = False  # something is remembered that is not saved yet

    def open(self) -> None:
        """Reads the file; one that cannot be read is replaced, which costs a compare."""
        os.makedirs(os.path.dirname(os.path.abspath(self._path)), exist_ok=True)
        try:
            self._load()
        except (apsw.NotADBError, apsw.CorruptError, ValueError, TypeError, KeyError):
            self.close()
            os.unlink(self._path)
            self._load()

    def _load(self) -> None:
        self._db = apsw.Connection(self._path)
        run(self._db, "PRAGMA synchronous=FULL")
        run(self._db, "CREATE TABLE IF NOT EXISTS journal(id INTEGER PRIMARY KEY CHECK(id = 1), kept TEXT)")
        run(self._db, "CREATE TABLE IF NOT EXISTS again(sequence INTEGER, objects BLOB)")
        text = one(self._db, "SELECT kept FROM journal")
        if not isinstance(text, str):
            return
        values = json.loads(text)
        self.marks = [(int(s), str(t)) for s, t in values.pop("marks")]
        self.tables = {str(k): str(v) for k, v in values.pop("tables").items()}
        self._kept = _Kept(**values)
        rows = self._db.execute("SELECT sequence, objects FROM again ORDER BY rowid").fetchall()
        self.again = [(int(str(s)), o) for s, o in rows if isinstance(o, bytes)]

    def save(self) -> None:
        """Makes all of it durable."""
        if self._db is None:
            return
        self._write(())

    def _write(self, objects: tuple[tuple[int, bytes], ...]) -> None:
        assert self._db is not None
        text = json.dumps({**asdict(self._kept), "marks": self.marks, "tables": self.tables})
        oldest = min((s for s, _ in self.again), default=self._kept.captured + 1)
        with writing(self._db):
            run(self._db, "INSERT OR REPLACE INTO journal VALUES(1, ?)", (text,))
            run(self._db, "DELETE FROM again WHERE sequence < ?", (oldest,))
            for row in objects:
                run(self._db, "INSERT INTO again VALUES(?, ?)", row)
        self.moved = False

    def close(self) -> None:
        """Closes the file; what was not saved is lost."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def extra(self) -> int:
        """How far sequences are ahead of the log."""
        return self._kept.extra

    @property
    def schema_version(self) -> int:
        """The schema that ``tables`` describes; -1: none."""
        return self._kept.schema_version

    @property
    def looked(self) -> int:
        """The newest entry of the log that was seen while the schema was the known one (or an older entry)."""
        return max(0, self._kept.captured - self._kept.extra)

    @property
    def acknowledged(self) -> Sequence:
        """The highest acknowledged sequence of this incarnation."""
        return Sequence(self._kept.acknowledged)

    def position(self, logged: int) -> Position:
        """The position that covers the log up to ``logged`` and everything noticed otherwise."""
        return Position(
            epoch=Epoch(self._kept.epoch),
            incarnation=Incarnation(
                bytes.fromhex(self._kept.incarnation) if self._kept.incarnation else NO_INCARNATION
            ),
            sequence=Sequence(logged + self._kept.extra),
        )

    @property
    def captured(self) -> Position:
        """The last position noticed."""
        return self.position(self.looked)

    @property
    def answered(self) -> bool:
        """Whether a Standby acknowledged anything in this incarnation, be it that nothing has changed yet."""
        return self._kept.answered

    @property
    def identity(self) -> Identity:
        """The log that positions count in."""
        return Identity(device=self._kept.device, inode=self._kept.inode, log=self._kept.log)

    def continues(self, epoch: Epoch, identity: Identity, logged: int) -> bool:
        """Whether the database still holds the log that this journal counted."""
        kept = self._kept
        same = (kept.epoch, kept.device, kept.inode, kept.log) == (
            epoch,
            identity.device,
            identity.inode,
            identity.log,
        )
        return same and bool(kept.incarnation) and logged + kept.extra >= kept.captured

    def begin(self, epoch: Epoch, identity: Identity) -> None:
        """A new incarnation: nobody's position counts any more."""
        self._kept = _Kept(
            epoch=epoch,
            incarnation=new_incarnation().hex(),
            device=identity.device,
            inode=identity.inode,
            log=identity.log,
        )
        self.marks, self.again, self.tables = [], [], {}
        self.save()

    def follow(self, identity: Identity) -> None:
        """The log was created by our own installation: the incarnation goes on."""
        self._kept.device, self._kept.inode, self._kept.log = identity.device, identity.inode, identity.log
        self.save()

    def noticed(self, logged: int) -> bool:
        """Remembers how far the log was seen (saved with the next durable change). Whether it is news."""
        sequence = logged + self._kept.extra
        news = sequence > self._kept.captured
        self._kept.captured = max(sequence, self._kept.captured)
        self.moved = self.moved or news
        return news

    def mark(self, logged: int, tables: frozenset[str]) -> None:
        """A change that the log does not name: takes a sequence of its own, durably before it is shipped."""
        self._kept.extra += 1
        sequence = logged + self._kept.extra
        kept = [(s, t) for s, t in self.marks if t not in tables]
        self.marks = [*kept, *((sequence, t) for t in sorted(tables))]
        self._kept.captured = max(self._kept.captured, sequence)
        self.save()

    def ask_again(self, logged: int, objects: tuple[bytes, ...]) -> None:
        """Objects to send again; they take a sequence of their own, durably."""
        self._kept.extra += 1
        sequence = logged + self._kept.extra
        self._kept.captured = max(self._kept.captured, sequence)
        asked = tuple((sequence, data) for data in objects)
        self.again += asked
        self._write(asked)

    def again_after(self, sequence: int) -> list[bytes]:
        """What was asked for that a Standby at ``sequence`` has not got."""
        return [data for s, data in self.again if s > sequence]

    def whole_after(self, sequence: int) -> frozenset[str]:
        """The marks that a Standby at ``sequence`` has not seen."""
        return frozenset(t for s, t in self.marks if s > sequence)

    def acknowledge(self, sequence: Sequence) -> None:
        """Everything up to ``sequence`` is durable on the Standby (saved lazily, but for the first)."""
        first, self._kept.answered = not self._kept.answered, True
        self.moved = self.moved or sequence > self._kept.acknowledged
        self._kept.acknowledged = max(self._kept.acknowledged, sequence)
        self.marks = [(s, t) for s, t in self.marks if s > sequence]
        self.again = [(s, data) for s, data in self.again if s > sequence]
        if first:
            # After a crash it tells that the Standby has at least what stood here in the beginning.
            self.save()

    def learn(self, schema: Schema) -> None:
        """The schema is the one known from now on (saved by the caller's ``mark`` or ``save``)."""
        self._kept.schema_version = schema.version
        self.tables = {name: digest(table.sql) for name, table in schema.tables.items()}


def digest(sql: str) -> str:
    """A short name for a table's SQL."""
    return xxhash.xxh3_128_hexdigest(sql.encode("utf-8", "surrogatepass"))
