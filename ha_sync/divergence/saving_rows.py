"""Takes out of a database what the other node may lack: into an image, in one read transaction.

Called before the Standby's end of the dataset exists, so the capture's log still stands. Where the log can vouch for a
table, its changed and deleted keys are taken; where it cannot, the whole table. Of a dataset that will be merged, rows
that equal a taken one are taken too: an image then holds as many of a record as the database did (``same``).
The database is not changed but for what SQLite itself does after a crash. Blocking; sizes in bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import apsw

from ha_sync.config import SqliteSettings
from ha_sync.core.acknowledged import PagesAcknowledged, RowsAcknowledged
from ha_sync.database.connection import number, one, open_active, reading, run, tuned
from ha_sync.database.holders import holders
from ha_sync.database.image import LARGE_PAGE, Head, ImageBuilder, Part, remove_file
from ha_sync.database.locality import Locality
from ha_sync.database.names import CHANGE, quoted
from ha_sync.database.schema import Keyed, Schema, Table, read_schema
from ha_sync.database.snapshot import lock_free_snapshot
from ha_sync.database.triggers import (
    captured_tables,
    guards_present,
    has_log,
    last_logged,
    log_identity,
    oldest_kept,
    table_numbers,
)
from ha_sync.divergence.same import identity_columns, same_record
from ha_sync.divergence.serving import Serving
from ha_sync.files.blocks import hash_file

MAGIC = b"SQLite format 3\0"
IMAGE_MIN = 64 * LARGE_PAGE
UNREADABLE = (apsw.NotADBError, apsw.CorruptError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What an image holds."""

    rows: int = 0
    gone: int = 0
    tables: tuple[str, ...] = ()
    full: bool = False  # it had no room: there is no image

    @property
    def nothing(self) -> bool:
        """Whether there is nothing that the other node lacks."""
        return not (self.rows or self.gone or self.full)


def take_rows(
    settings: SqliteSettings,
    *,
    known: RowsAcknowledged | None,
    serving: Serving,
    closed: bool,
    target: str,
    room: int,
) -> Taken:
    """Writes the image to ``target``. ``closed``: take equal rows too. Raises ``apsw.Error`` and ``OSError``."""
    status = os.stat(settings.path)
    with _opened(settings.path, beside=f"{target}.copy") as db:
        taker = _Taker(db, settings=settings, closed=closed)

        def choose(schema: Schema) -> dict[str, _Since | None]:
            return taker.by_log(schema, known, serving, (status.st_dev, status.st_ino))

        return taker.take(choose, target=target, room=room)


def take_everything(settings: SqliteSettings, path: str, *, target: str, room: int) -> Taken:
    """The image of every shared row of the database at ``path``, which is nobody's."""
    db = apsw.Connection(path)
    try:
        tuned(db)
        taker = _Taker(db, settings=settings, closed=False)
        return taker.take(lambda schema: dict.fromkeys(taker.shared(schema)), target=target, room=room)
    finally:
        db.close()


def copy_if_other(path: str, target: str, *, known: PagesAcknowledged | None) -> bool:
    """Copies the database without a lock; whether the copy is another content than the acknowledged one.

    Raises ``apsw.NotADBError`` for a file that is none.
    """
    remove_file(target)
    with open(path, "rb") as file:
        magic = file.read(len(MAGIC))
    if not magic:
        return False
    if magic != MAGIC:
        raise apsw.NotADBError("not a SQLite database, or an encrypted one")
    lock_free_snapshot(path, target)
    if known is None:
        return True
    fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = hash_file(fd, block_size=known.block_size)
    finally:
        os.close(fd)
    return (found.size, found.block_hashes) != (known.size, known.hashes)


def copy_raw(path: str, folder: str) -> int:
    """The file and its companions as they are, for a person; bytes copied."""
    size = 0
    for suffix in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            target = os.path.join(folder, f"raw{suffix}.db")
            shutil.copyfile(path + suffix, target)
            size += os.path.getsize(target)
    return size


@contextlib.contextmanager
def _opened(path: str, *, beside: str) -> Iterator[apsw.Connection]:
    """The database itself where nobody else has it open, or where readers do no harm; else a lock-free copy."""
    others = holders(path)
    db = open_active(path)
    try:
        if others and one(db, "PRAGMA main.journal_mode") != "wal":
            db.close()
            lock_free_snapshot(path, beside)
            db = apsw.Connection(beside)
            tuned(db)
        yield db
    finally:
        db.close()
        remove_file(beside)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Since:
    """Where in the log a table's changes begin."""

    logged: int
    number: int


Choose = Callable[[Schema], dict[str, _Since | None]]
"""Names the tables of which something is taken; None: all of it."""


class _Taker:
    def __init__(self, db: apsw.Connection, *, settings: SqliteSettings, closed: bool) -> None:
        self._db = db
        self._settings = settings
        self._locality = Locality.of(settings)
        self._closed = closed

    def shared(self, schema: Schema) -> list[str]:
        """Tables that are replicated."""
        return [name for name in schema.tables if not self._locality.is_local_table(name)]

    def by_log(
        self, schema: Schema, known: RowsAcknowledged | None, serving: Serving, file: tuple[int, int]
    ) -> dict[str, _Since | None]:
        """What of each table is taken: what the log tells, or (None) all of it."""
        db = self._db
        if not (known and has_log(db)) or guards_present(db) or not _vouches(db, known, serving, file):
            return dict.fromkeys(self.shared(schema))
        complete = captured_tables(db, schema, entries_max=self._settings.log_entries_max)
        numbers = table_numbers(db)
        chosen: dict[str, _Since | None] = {}
        for name in self.shared(schema):
            since = _Since(logged=known.logged, number=numbers.get(name, -1))
            touched = number(
                db, f"SELECT count(*) FROM main.{CHANGE} WHERE seq > ? AND tbl = ?", (since.logged, since.number)
            )
            if name not in complete or name in known.whole or (touched and schema.tables[name].keyed is Keyed.WHOLE):
                chosen[name] = None
            elif touched:
                chosen[name] = since
        return chosen

    def take(self, choose: Choose, *, target: str, room: int) -> Taken:
        if room < IMAGE_MIN:
            return Taken(full=True)
        builder = ImageBuilder(self._db, target)
        builder.open()
        run(self._db, f"PRAGMA img.max_page_count={room // LARGE_PAGE}")
        try:
            with reading(self._db):
                schema = read_schema(self._db)
                for name, since in choose(schema).items():
                    self._part(builder, schema.tables[name], since)
                taken = self._counted(builder)
                builder.write_head(Head(parts=tuple(builder.parts), facts=None, objects=schema.objects))
            builder.finish()
        except apsw.FullError:
            builder.abandon()
            if shutil.disk_usage(os.path.dirname(target)).free < IMAGE_MIN:
                raise OSError(28, "No space left on device", target) from None
            return Taken(full=True)
        except BaseException:
            builder.abandon()
            raise
        return taken

    def _part(self, builder: ImageBuilder, table: Table, since: _Since | None) -> None:
        part = Part(
            table=table.name,
            keyed=table.keyed,
            key=table.key,
            columns=table.shipped,
            whole=since is None,
            gone=since is not None,
        )
        place = builder.begin_part(part)
        if since is None:
            self._copy(f"img.r{place}", table, "TRUE", ())
            return
        logged = f"FROM main.{CHANGE} AS _ha_l WHERE _ha_l.seq > ?1 AND _ha_l.tbl = ?2"
        bindings = (since.logged, since.number)
        name = quoted(table.name)
        keys = ", ".join(f"_ha_l.k{i}" for i in range(len(table.key)))
        same = " AND ".join(f"{name}.{quoted(k)} = _ha_l.k{i}" for i, k in enumerate(table.key))
        run(
            self._db,
            f"INSERT INTO img.g{place} SELECT DISTINCT {keys} {logged} AND NOT EXISTS "
            f"(SELECT 1 FROM main.{name} WHERE {same} AND {self._locality.shared(table.name)})",
            bindings,
        )
        if len(table.key) == 1:
            found = f"{name}.{quoted(table.key[0])} IN (SELECT _ha_l.k0 {logged})"
        else:
            found = f"EXISTS (SELECT 1 {logged} AND {same})"
        self._copy(f"img.r{place}", table, found, bindings)
        if self._closed and table.keyed is Keyed.ROWID:
            self._close(part, place, table)

    def _copy(self, target: str, table: Table, condition: str, bindings: tuple[int, ...]) -> None:
        columns = ", ".join(f"{quoted(table.name)}.{quoted(c)}" for c in table.shipped)
        run(
            self._db,
            f"INSERT OR IGNORE INTO {target} SELECT {columns} FROM main.{quoted(table.name)} "
            f"WHERE {condition} AND {self._locality.shared(table.name)}",
            bindings,
        )

    def _close(self, part: Part, place: int, table: Table) -> None:
        """Takes the rows that equal a taken one."""
        columns = ", ".join(f"c{each}" for each, _ in identity_columns(part)[:8])
        if not columns or not number(self._db, f"SELECT count(*) FROM img.r{place}"):
            return
        run(self._db, f"CREATE INDEX img.same ON r{place}({columns})")
        same = same_record(part, image="_ha_i", table=quoted(table.name))
        self._copy(f"img.r{place}", table, f"EXISTS (SELECT 1 FROM img.r{place} AS _ha_i WHERE {same})", ())
        run(self._db, "DROP INDEX img.same")

    def _counted(self, builder: ImageBuilder) -> Taken:
        rows = gone = 0
        tables = []
        for place, part in enumerate(builder.parts):
            some = number(self._db, f"SELECT count(*) FROM img.r{place}")
            none = number(self._db, f"SELECT count(*) FROM img.g{place}") if part.gone else 0
            rows, gone = rows + some, gone + none
            if some or none:
                tables.append(part.table)
        return Taken(rows=rows, gone=gone, tables=tuple(tables))


def _vouches(db: apsw.Connection, known: RowsAcknowledged, serving: Serving, file: tuple[int, int]) -> bool:
    """Whether everything that the other node lacks stands in this log after what it acknowledged."""
    same = (known.epoch, known.device, known.inode, known.log) == (
        serving.epoch,
        *file,
        log_identity(db).hex(),
    )
    # Nothing acknowledged in this epoch: the log began at the promotion, and what is older came from the other node,
    # unless this node's data was its own from the beginning.
    return same and (known.anything or serving.based) and oldest_kept(db) <= known.logged <= last_logged(db)
