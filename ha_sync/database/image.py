"""A batch of rows as a small SQLite database: what travels from a source to a sink (``proto RowsImage``).

Tables of an image, all written by ``INSERT ... SELECT`` so that no row passes through Python and every value keeps
its type:

    head(json)              one row: ``Head`` below
    g<i>(k0, ...)           keys of part i that exist no more
    r<i>(c0, ...)           rows of part i as they are now, columns as ``Part.columns`` says
    d<i>(id, lo.., hi..)    key ranges of part i to empty before the rows go in; lo is excluded, hi included
    f<i>x<j>(k0, ...)       values of the unique index ``Part.freed[j]`` that no row holds any more

Images up to ``SMALL_MAX_BYTES`` live in memory, larger ones in a temporary file. An image that comes from outside is
opened with ``read_head``, which refuses whatever is not of this shape. Sizes in bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import apsw
import xxhash

from ha_sync.core.frame import FRAME_TARGET_BYTES
from ha_sync.database.connection import one, run
from ha_sync.database.names import literal
from ha_sync.database.schema import Keyed, SchemaObject
from ha_sync.errors import ProtocolFault

FORMAT = 2
SMALL_MAX_BYTES = 8 * 1024 * 1024
SMALL_PAGE = 1024
LARGE_PAGE = 8192
HEADER_BYTES = 100  # of any SQLite database

_OWN_TABLE = re.compile(r"head|[grd][0-9]+|f[0-9]+x[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What belongs to a database beside its rows and its schema."""

    user_version: int
    application_id: int
    journal: str  # wal | delete
    page_size: int
    auto_vacuum: int
    sequences: dict[str, int]  # of sqlite_sequence, ours and node-local ones left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What an image holds of one table."""

    table: str
    keyed: Keyed
    key: tuple[str, ...]
    columns: tuple[str, ...]
    whole: bool = False  # all rows that the sink shares are replaced
    gone: bool = False  # there is a g table
    ranges: bool = False  # there is a d table
    freed: tuple[str, ...] = ()  # unique indexes, an f table for each


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What an image is about."""

    parts: tuple[Part, ...]
    facts: Facts | None
    objects: tuple[SchemaObject, ...] | None  # the complete schema, when it may have changed

    def to_json(self) -> str:
        """As it stands in the image."""
        parts = [
            [p.table, int(p.keyed), list(p.key), list(p.columns), p.whole, p.gone, p.ranges, list(p.freed)]
            for p in self.parts
        ]
        facts = self.facts and [
            self.facts.user_version,
            self.facts.application_id,
            self.facts.journal,
            self.facts.page_size,
            self.facts.auto_vacuum,
            self.facts.sequences,
        ]
        objects = None if self.objects is None else [[o.type, o.name, o.table, o.sql] for o in self.objects]
        return json.dumps([FORMAT, parts, facts, objects], ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Head:
        """Raises ``ProtocolFault`` for anything that ``to_json`` does not make."""
        try:
            number, parts, facts, objects = json.loads(text)
            if number != FORMAT:
                raise ProtocolFault("cannot read an image of rows", reason=f"format {number!r} is not known")
            return cls(
                parts=tuple(_part(p) for p in parts),
                facts=None if facts is None else _facts(facts),
                objects=None if objects is None else tuple(_object(o) for o in objects),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ProtocolFault("cannot read an image of rows", reason=f"bad head: {error}") from None


def _part(values: list[object]) -> Part:
    table, keyed, key, columns, whole, gone, ranges, freed = values
    if (
        not isinstance(freed, list)
        or not isinstance(key, list)
        or not isinstance(columns, list)
        or not isinstance(keyed, int)
    ):
        raise TypeError("part")
    return Part(
        table=str(table),
        keyed=Keyed(keyed),
        key=tuple(str(k) for k in key),
        columns=tuple(str(c) for c in columns),
        whole=bool(whole),
        gone=bool(gone),
        ranges=bool(ranges),
        freed=tuple(str(f) for f in freed),
    )


def _facts(values: list[object]) -> Facts:
    user_version, application_id, journal, page_size, auto_vacuum, sequences = values
    if journal not in {"wal", "delete"} or not isinstance(sequences, dict):
        raise ValueError("facts")
    return Facts(
        user_version=_whole_number(user_version),
        application_id=_whole_number(application_id),
        journal=str(journal),
        page_size=_whole_number(page_size),
        auto_vacuum=_whole_number(auto_vacuum),
        sequences={str(k): _whole_number(v) for k, v in sequences.items()},
    )


def _object(values: list[object]) -> SchemaObject:
    kind, name, table, sql = (str(v) for v in values)
    if kind not in {"table", "index", "view", "trigger"}:
        raise ValueError(f"object {kind!r}")
    return SchemaObject(type=kind, name=name, table=table, sql=sql)


def _whole_number(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("number")  # noqa: TRY004 - a bad value of the peer, not of the caller
    return value


@dataclass(slots=True, kw_only=True)
class Image:
    """A finished image: in memory, or in a file that is removed by ``discard``."""

    content: bytes = b""
    path: str = ""
    size: int = 0
    _hash: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    def slices(self) -> Iterator[tuple[int, memoryview, bytes]]:
        """Yields (offset, bytes, hash of the whole or empty); the hash comes with the last. Reads files: blocks."""
        offset = 0
        self._hash = xxhash.xxh3_128()
        for piece in self._pieces():
            self._hash.update(piece)
            last = offset + len(piece) == self.size
            yield offset, piece, self._hash.digest() if last else b""
            offset += len(piece)

    def _pieces(self) -> Iterator[memoryview]:
        if not self.path:
            view = memoryview(self.content)
            for start in range(0, self.size, FRAME_TARGET_BYTES):
                yield view[start : start + FRAME_TARGET_BYTES]
            return
        with open(self.path, "rb", buffering=0) as file:
            while piece := file.read(FRAME_TARGET_BYTES):
                yield memoryview(piece)

    def discard(self) -> None:
        """Frees what it holds."""
        self.content = b""
        if self.path:
            remove_file(self.path)


def remove_file(path: str) -> None:
    """Removes a temporary file of ours if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class ImageBuilder:
    """Builds one image in the schema ``img`` of a connection whose ``main`` is what is read.

    ``open`` and ``finish`` run outside, everything else inside the caller's transaction. ``spill`` is where a large
    image may be built; without it the image stays in memory and ``apsw.FullError`` says that it would be too large.
    """

    def __init__(self, db: apsw.Connection, spill: str | None) -> None:
        self._db = db
        self._spill = spill
        self.parts: list[Part] = []

    @property
    def spills(self) -> bool:
        """Whether the image is built in a file."""
        return self._spill is not None

    def open(self) -> None:
        """Attaches the empty image."""
        if self._spill is None:
            run(self._db, "ATTACH ':memory:' AS img")
            run(self._db, f"PRAGMA img.page_size={SMALL_PAGE}")
            run(self._db, f"PRAGMA img.max_page_count={SMALL_MAX_BYTES // SMALL_PAGE}")
            return
        remove_file(self._spill)
        # The connection was opened without the right to create files.
        os.close(os.open(self._spill, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._db.execute("ATTACH ? AS img", (self._spill,)).fetchall()
        for pragma in (f"page_size={LARGE_PAGE}", "journal_mode=OFF", "synchronous=OFF", "cache_size=-8192"):
            run(self._db, f"PRAGMA img.{pragma}")

    def begin_part(self, part: Part) -> int:
        """Makes the part's tables; the caller fills ``g``, ``r`` and ``d`` followed by the number returned."""
        number = len(self.parts)
        self.parts.append(part)
        columns = [f"c{i}" for i in range(len(part.columns))]
        if part.keyed is Keyed.ROWID:
            columns[0] = "c0 INTEGER PRIMARY KEY"
        run(self._db, f"CREATE TABLE img.r{number}({', '.join(columns)})")
        keys = range(len(part.key))
        if part.gone:
            run(self._db, f"CREATE TABLE img.g{number}({', '.join(f'k{i}' for i in keys)})")
        if part.ranges:
            ends = ", ".join((*(f"lo{i}" for i in keys), *(f"hi{i}" for i in keys)))
            run(self._db, f"CREATE TABLE img.d{number}(id INTEGER PRIMARY KEY, lo_open, hi_open, {ends})")
        return number

    def begin_freed(self, number: int, index: str, terms: int) -> str:
        """Makes the table of freed values of one unique index of part ``number`` and returns its name."""
        part = self.parts[number]
        name = f"f{number}x{len(part.freed)}"
        self.parts[number] = replace(part, freed=(*part.freed, index))
        run(self._db, f"CREATE TABLE img.{name}({', '.join(f'k{i}' for i in range(terms))})")
        return name

    def write_head(self, head: Head) -> None:
        """Completes the content; the last call inside the transaction."""
        run(self._db, "CREATE TABLE img.head(json)")
        run(self._db, "INSERT INTO img.head VALUES(?)", (head.to_json(),))

    def finish(self) -> Image:
        """The image, after the transaction was committed."""
        if self._spill is None:
            content = self._db.serialize("img")
            self.detach()
            return Image(content=content, size=len(content))
        self.detach()
        return Image(path=self._spill, size=os.stat(self._spill).st_size)

    def abandon(self) -> None:
        """Removes what was built, after the transaction was rolled back."""
        self.detach()
        if self._spill is not None:
            remove_file(self._spill)

    def detach(self) -> None:
        """Takes the image off the connection."""
        if any(name == "img" for name in self._db.db_names()):
            run(self._db, "DETACH img")


def encoding_of(header: bytes) -> str:
    """The text encoding of a database, from its first 100 bytes (sqlite.org/fileformat2.html)."""
    names = {0: "UTF-8", 1: "UTF-8", 2: "UTF-16le", 3: "UTF-16be"}
    number = int.from_bytes(header[56:60], "big")
    if number not in names:
        raise ProtocolFault("cannot read an image of rows", reason=f"text encoding {number}")
    return names[number]


def attach_image(db: apsw.Connection, *, content: bytes | None, path: str) -> None:
    """Attaches a received image as ``img``. Its bytes were checked against the hash already."""
    if content is not None:
        run(db, "ATTACH ':memory:' AS img")
        db.deserialize("img", content)
    else:
        db.execute("ATTACH ? AS img", (path,)).fetchall()
        run(db, "PRAGMA img.journal_mode=OFF")


def detach_image(db: apsw.Connection) -> None:
    """Takes a received image off the connection."""
    if any(name == "img" for name in db.db_names()):
        run(db, "DETACH img")


def read_head(db: apsw.Connection) -> Head:
    """The head of the attached image. Raises ``ProtocolFault`` for anything but plain tables of the known names."""
    try:
        rows = db.execute("SELECT type, name, tbl_name, sql FROM img.sqlite_schema").fetchall()
        for kind, name, table, sql in rows:
            if kind != "table" or name != table or not _plain(str(name), str(sql)):
                raise ProtocolFault("refused an image of rows", reason=f"it holds {kind} {name}")
        text = one(db, "SELECT json FROM img.head")
    except apsw.Error as error:
        raise ProtocolFault("cannot read an image of rows", reason=str(error)) from None
    head = Head.from_json(text if isinstance(text, str) else "")
    tables = {str(name) for _, name, _, _ in rows}
    for number, part in enumerate(head.parts):
        needed = {f"r{number}"} | ({f"g{number}"} if part.gone else set()) | ({f"d{number}"} if part.ranges else set())
        needed |= {f"f{number}x{place}" for place in range(len(part.freed))}
        if not needed <= tables:
            raise ProtocolFault("refused an image of rows", reason=f"it lacks rows of {literal(part.table)}")
    return head


def _plain(name: str, sql: str) -> bool:
    columns = r"(?:[a-z_]+[0-9]*(?: INTEGER PRIMARY KEY)?(?:, )?)+"
    return bool(_OWN_TABLE.fullmatch(name)) and bool(re.fullmatch(rf"CREATE TABLE {name}\({columns}\)", sql))
