"""Hashes of rows made in C: an image of the rows, built by ``INSERT ... SELECT`` in memory, and xxh3 over its pages.

No row passes through Python (docs/adr/0014). An image is a table whose records hold every value with its type and all
its bits, in the order of the keys, so different rows give different images. Equal rows give equal ones because the
pages are filled in the same way by the same SQLite; where they did not, only time would be lost: ranges that differ are
looked at again by smaller ones, at last row by row, and what is sent without need changes nothing.

An image is built in pieces, so that its memory is bounded by ``size_max`` and one piece. It stands in a savepoint that
is rolled back: a hasher works inside a transaction of the caller's, and else it is one read transaction for each hash.
Sizes in bytes; those of images are whole pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import apsw
import xxhash

from ha_sync.database.connection import number, run
from ha_sync.database.keys import Key, bound, selected, taken
from ha_sync.database.locality import Locality
from ha_sync.database.names import quoted
from ha_sync.database.schema import Table

PAGE = 16_384
ROWS_ALL = 2**62
PIECE_ROWS_FIRST = 256
PIECE_ROWS = 2048
PIECE_BYTES = 1024 * 1024
IMAGE_BYTES = 8 * 1024 * 1024
"""A range that is cut by its rows ends here too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """What stands in one range."""

    rows: int
    size: int  # of the image
    hash: bytes
    whole: bool  # False: there are more rows than were asked for, or larger ones; the hash is of the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Keys in (after, upto], None being open; with ``only`` the one row whose key is ``upto``."""

    after: Key | None = None
    upto: Key | None = None
    only: bool = False


@contextmanager
def hashing(db: apsw.Connection) -> Iterator[None]:
    """Attaches what hashers need. Entered and left outside of any transaction."""
    run(db, "ATTACH ':memory:' AS sum")
    try:
        run(db, f"PRAGMA sum.page_size={PAGE}")
        run(db, "PRAGMA sum.secure_delete=ON")  # new pages are zeroed: nothing of an earlier image shows through
        yield
    finally:
        run(db, "DETACH sum")


class Hasher:
    """Hashes ranges of one table, as a context manager within ``hashing``."""

    def __init__(self, db: apsw.Connection, table: Table, locality: Locality) -> None:
        self._db = db
        self._table = table
        self._name = quoted(table.name)
        self._shared = locality.shared(table.name)
        self._keys = [f"{self._name}.{quoted(k)}" for k in table.key]
        self._key = f"({', '.join(self._keys)})" if len(self._keys) > 1 else "".join(self._keys)
        columns = ", ".join(f"{self._name}.{quoted(c)}" for c in table.shipped)
        self._insert = f"INSERT INTO sum.r SELECT {columns} FROM main.{self._name} WHERE {self._shared}"
        # As large as the rows seen last let it be. Without a key a table is one piece, in the order of its values.
        self._piece = PIECE_ROWS_FIRST if self._keys else ROWS_ALL
        columns_by_value = [f"{self._name}.{quoted(c)}" for c in table.shipped]
        order = self._keys or [f"{c} COLLATE BINARY, typeof({c})" for c in columns_by_value]
        self._order = f" ORDER BY {', '.join(order)} LIMIT ?"

    def __enter__(self) -> Self:
        run(self._db, f"CREATE TABLE sum.r({', '.join(f'c{i}' for i in range(len(self._table.shipped)))})")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None or issubclass(kind, GeneratorExit):
            run(self._db, "DROP TABLE sum.r")
        # Else the caller's transaction may have gone, and the attached database follows it.

    @property
    def cuts(self) -> bool:
        """Whether there is a key to cut ranges by; else the table is one range."""
        return bool(self._keys)

    def digest(self, span: Span, *, rows_max: int = ROWS_ALL, size_max: int = ROWS_ALL) -> Digest:
        """The rows of ``span``; where there are more than the maxima, of the first ones."""
        with self._image():
            rows, _ = self._fill(span, rows_max + 1, size_max)
            return self._digest(rows, whole=rows <= rows_max and self._bytes() <= size_max)

    def next(self, span: Span, rows: int) -> tuple[Digest, Key | None]:
        """The first ``rows`` rows of a span, or fewer large ones, and the last one's key; None where the span ends."""
        with self._image():
            found, more = self._fill(span, rows if self.cuts else ROWS_ALL, IMAGE_BYTES)
            upto = self._last_key() if more else None
            return self._digest(found, whole=True), upto

    def each(self, span: Span, *, rows_max: int) -> list[tuple[Key, Digest]]:
        """Key and digest of every row of ``span``, of the first ``rows_max`` at most; in a read transaction."""
        condition, bindings = self._within(span)
        keys = self._db.execute(
            f"SELECT {selected(self._keys)} FROM main.{self._name} WHERE {self._shared} AND {condition}{self._order}",
            (*bindings, rows_max),
        ).fetchall()
        found = map(taken, keys)
        return [(key, self.digest(Span(upto=key, only=True))) for key in found]

    # ---- images ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _image(self) -> Iterator[None]:
        outermost = not self._db.in_transaction
        run(self._db, "SAVEPOINT _ha_image")
        try:
            yield
        except BaseException:
            if outermost and self._db.in_transaction:  # some errors end it by themselves
                run(self._db, "ROLLBACK")
            raise
        run(self._db, "ROLLBACK TO _ha_image")
        run(self._db, "RELEASE _ha_image")

    def _fill(self, span: Span, rows_max: int, size_max: int) -> tuple[int, bool]:
        """Puts rows into the image. How many, and whether a maximum ended it."""
        condition, bindings = self._within(span)
        rows = 0
        while True:
            piece = min(self._piece, rows_max - rows)
            run(self._db, f"{self._insert} AND {condition}{self._order}", (*bindings, piece))
            got = self._db.changes()
            rows += got
            if got < piece:
                return rows, False
            filled = self._bytes()
            self._piece = min(max(1, PIECE_BYTES * rows // filled), PIECE_ROWS)
            if rows >= rows_max or filled > size_max:
                return rows, True
            # Named by its value: a query that reads the image would be put aside first, as a whole.
            condition, bindings = self._within(replace(span, after=self._last_key()))

    def _digest(self, rows: int, *, whole: bool) -> Digest:
        content = self._db.serialize("sum")
        # The first page tells of the library and of the file, not of the rows.
        return Digest(
            rows=rows, size=len(content), hash=xxhash.xxh3_128_digest(memoryview(content)[PAGE:]), whole=whole
        )

    def _bytes(self) -> int:
        return number(self._db, "PRAGMA sum.page_count") * PAGE

    def _last_key(self) -> Key:
        columns = selected(f"c{i}" for i in range(len(self._keys)))
        row = self._db.execute(f"SELECT {columns} FROM sum.r ORDER BY rowid DESC LIMIT 1").fetchone()
        assert row is not None
        return taken(row)

    def _within(self, span: Span) -> tuple[str, tuple[int | float | bytes | None, ...]]:
        conditions: list[str] = []
        bindings: tuple[int | float | bytes | None, ...] = ()
        for comparison, key in ((">", span.after), ("=" if span.only else "<=", span.upto)):
            if key is not None:
                places, values = bound(key)
                conditions.append(f"{self._key} {comparison} ({places})")
                bindings += values
        return " AND ".join(conditions) or "TRUE", bindings
