"""``files.db``: the objects of a tree's archive, one row each, by number; contents lie at ``content_path``.

Opened by the node that made it and by the one that merges it, which trusts nothing in it: paths are checked where they
are used (``files/confine.py``), numbers and sizes here. Times in nanoseconds, sizes in bytes. Blocking.
"""

from __future__ import annotations

import enum
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import quote

from ha_sync.errors import ProtocolFault

PER_FOLDER = 1000
_COLUMNS = "number, path, action, type, mode, uid, gid, mtime_ns, size, hash, xattrs, link_target, kept, header, text"


class Action(enum.Enum):
    """What the old Active had done to the object."""

    PUT = "put"  # new, or another content
    META = "meta"  # same content, other owner, mode or time
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One object that the other node may not have as it was here."""

    number: int
    path: bytes
    action: Action
    type: int = 0  # as in the catalogue
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    hash: bytes = b""  # of the content that is kept
    xattrs: bytes = b""
    link_target: bytes = b""
    kept: bool = False  # its content is in the archive
    header: bytes = b""  # of an interrupted recording, before its lengths were put in
    text: bytes = b""  # of a voicemail message's .txt, its content


class TreeIndex:
    """The file, for writing or for reading. One thread at a time."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        if create:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=OFF")
            self._db.execute("PRAGMA synchronous=OFF")  # synced with the whole archive
            self._db.execute(
                "CREATE TABLE object (number INTEGER PRIMARY KEY, path BLOB NOT NULL, action TEXT NOT NULL, "
                "type INTEGER, mode INTEGER, uid INTEGER, gid INTEGER, mtime_ns INTEGER, size INTEGER, hash BLOB, "
                "xattrs BLOB, link_target BLOB, kept INTEGER, header BLOB, text BLOB)"
            )
            self._db.execute("BEGIN")
        else:
            name = f"file:{quote(path)}?mode=ro&immutable=1"
            self._db = sqlite3.connect(name, uri=True, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA cell_size_check=ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, item: Object) -> None:
        """One more."""
        marks = ", ".join("?" * 15)
        self._db.execute(f"INSERT INTO object ({_COLUMNS}) VALUES ({marks})", _row(item))

    def objects(self) -> Iterator[Object]:
        """All, by number. Raises ProtocolFault for what no archive holds."""
        try:
            for row in self._db.execute(f"SELECT {_COLUMNS} FROM object ORDER BY number"):
                yield _object(row)
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise ProtocolFault("cannot read the index of an archive", reason=str(error)) from error

    def close(self) -> None:
        """Writes what was added."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.close()


def content_path(folder: str, number: int) -> str:
    """Where the content of an object lies."""
    return os.path.join(folder, str(number // PER_FOLDER), str(number))


def _row(item: Object) -> tuple[object, ...]:
    return (
        item.number, item.path, item.action.value, item.type, item.mode, item.uid, item.gid, item.mtime_ns, item.size,
        item.hash, item.xattrs, item.link_target, int(item.kept), item.header, item.text,
    )  # fmt: skip


def _object(row: tuple[object, ...]) -> Object:
    number, path, action, kind, mode, uid, gid, mtime_ns, size, content, xattrs, link, kept, header, text = row
    whole = (number, kind, mode, uid, gid, mtime_ns, size, kept)
    blobs = (path, content, xattrs, link, header, text)
    if not all(isinstance(value, int) for value in whole) or not all(isinstance(value, bytes) for value in blobs):
        raise TypeError("an object of another shape")
    return Object(
        number=_whole(number), path=_bytes(path), action=Action(action), type=_whole(kind), mode=_whole(mode) & 0o7777,
        uid=_whole(uid), gid=_whole(gid), mtime_ns=_whole(mtime_ns), size=_whole(size), hash=_bytes(content),
        xattrs=_bytes(xattrs), link_target=_bytes(link), kept=bool(kept), header=_bytes(header),
        text=_bytes(text),
    )  # fmt: skip


def _whole(value: object) -> int:
    assert isinstance(value, int), value
    return value


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes), value
    return value
