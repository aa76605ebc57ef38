"""The catalogue of one tree: every object as both nodes know it, what is dirty, and the position.

One file per dataset, one connection, one thread at a time (the dataset's executor). ``entry`` holds the replicated
state of an object: on the Active what the Standby has acknowledged, on the Standby what was published. Beside it stands
the *witness* (inode, ctime): while the local object still shows it, the local content is the entry's content and need
not be read again. A ctime of zero proves nothing.

Durability: commits of the Standby's position are synced (``durable=True``); the Active's notes are not, because a
restart scans anyway. The dirty set lives here and not in memory, so a million dirty paths cost disk, not RAM.
Paths are bytes, relative to the dataset's root, ``b""`` is the root itself. Times in nanoseconds, sizes in bytes.
*Walk order* is depth first, names sorted bytewise, a directory before what it holds: the order of all listings here, of
the scanner and of the inventory, so that they merge. The files store a path with NUL for ``/``, which sorts just so.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlite_utils

from ha_sync.core.position import NOWHERE, Epoch, Incarnation, Position, Sequence

FORMAT = 1
CACHE_KIB = 8 * 1024
COPY_SOURCE_MIN = 4096
"""Content smaller than this is sent rather than looked for under another name."""

CUTS_MAX = 2000
"""Large files whose cuts are kept: about 20 KiB for 64 MiB of content."""

ADMITTED = "admitted"
"""A value of the catalogue of a storage: an operator asked for its first sync."""

ROOT = "root"
"""A value: the inode of the root that a Standby applied to."""

IDENTITY = "root_identity"
"""A value: what the root's marker said when it was the dataset's."""

FILESYSTEM = "root_filesystem"
"""A value: the filesystem that held the root, as its Active saw it."""

TYPE_FILE = 1
TYPE_DIRECTORY = 2
TYPE_SYMLINK = 3
"""The values of TreeChange.Type in the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What the local object looked like when its content was last known."""

    inode: int = 0
    ctime_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object of the tree as replicated."""

    path: bytes
    type: int
    mode: int = 0  # permission bits, 07777
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    hash: bytes = b""  # whole hash, 16 bytes; empty for directories and symlinks
    block_size: int = 0
    block_hashes: bytes = b""  # empty where the file has at most one block
    link_target: bytes = b""
    xattrs: bytes = b""  # canonical: see ha_sync/files/metadata.py
    witness: Witness = Witness()


NOTHING_SENT = Sequence(0)

Signature = tuple[bytes, int, int, int, int, int, int, int, int, bytes, bytes]
"""``(key, type, mode, uid, gid, mtime_ns, size, inode, ctime_ns, xattrs, link_target)``; see ``key_of``."""

Row = tuple[object, ...]
"""An entry as it is stored."""

_COLUMNS = (
    "path, type, mode, uid, gid, mtime_ns, size, hash, block_size, block_hashes, link_target, xattrs, inode, ctime_ns"
)
_MARKS = ", ".join("?" * 14)


class TreeCatalogue:
    """See the module. All methods block."""

    def __init__(self, path: str, *, ordered: bool = False) -> None:
        """``ordered``: a loss of power may cost the last commits that were not durable, never a durable one."""
        self._path = path
        self._relaxed = "NORMAL" if ordered else "OFF"
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self.lost = False  # True when an unreadable catalogue was set aside: its knowledge is gone
        try:
            self._open()
        except sqlite3.DatabaseError:
            # A damaged catalogue only costs a compare; it must never stop replication.
            self._set_aside()
            self._open()

    def _open(self) -> None:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        connection.execute("PRAGMA temp_store=MEMORY")
        self._connection = connection
        database = sqlite_utils.Database(connection)
        if "meta" not in database.table_names():
            self._create(connection)
        connection.execute(
            "CREATE TABLE IF NOT EXISTS cuts (id INTEGER PRIMARY KEY, hash BLOB UNIQUE, cuts BLOB NOT NULL)"
        )
        stored = self.get("format")
        if stored != str(FORMAT):
            raise sqlite3.DatabaseError(f"catalogue format {stored!r}, this version reads {FORMAT}")

    @staticmethod
    def _create(connection: sqlite3.Connection) -> None:
        connection.executescript(
            f"""
            BEGIN;
            CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
            INSERT INTO meta VALUES ('format', '{FORMAT}');
            CREATE TABLE entry (
                path BLOB PRIMARY KEY, type INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL,
                gid INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, size INTEGER NOT NULL, hash BLOB NOT NULL,
                block_size INTEGER NOT NULL, block_hashes BLOB NOT NULL, link_target BLOB NOT NULL,
                xattrs BLOB NOT NULL, inode INTEGER NOT NULL, ctime_ns INTEGER NOT NULL) WITHOUT ROWID;
            CREATE INDEX entry_hash ON entry (hash) WHERE size >= {COPY_SOURCE_MIN};
            CREATE TABLE dirty (path BLOB PRIMARY KEY, sequence INTEGER NOT NULL) WITHOUT ROWID;
            CREATE INDEX dirty_sequence ON dirty (sequence);
            CREATE TABLE intent (id INTEGER PRIMARY KEY, step BLOB NOT NULL);
            COMMIT;
            """
        )

    def _set_aside(self) -> None:
        self.lost = True
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._path + suffix, self._path + ".damaged" + suffix)

    def close(self) -> None:
        """Closes the file; the catalogue cannot be used afterwards."""
        self._connection.close()

    # ---- transactions and small values

    @contextlib.contextmanager
    def transaction(self, *, durable: bool) -> Iterator[None]:
        """All or nothing; ``durable`` also syncs it to disk before it returns."""
        execute = self._connection.execute
        execute(f"PRAGMA synchronous={'FULL' if durable else self._relaxed}")
        execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            execute("ROLLBACK")
            raise
        execute("COMMIT")

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        return self._connection.in_transaction

    def get(self, key: str) -> str | None:
        """A small value by name, or None."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        """Stores a small value (inside the caller's transaction, or by itself)."""
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def forget(self, key: str) -> None:
        """Removes a small value; an unknown one is ignored."""
        self._connection.execute("DELETE FROM meta WHERE key = ?", (key,))

    def values_with_prefix(self, prefix: str) -> list[tuple[str, str]]:
        """All small values whose name begins so, with their names."""
        rows = self._connection.execute(
            "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
        )
        return [(str(key), str(value)) for key, value in rows]

    def position(self, key: str) -> Position:
        """A stored position; NOWHERE where none is."""
        text = self.get(key)
        if text is None:
            return NOWHERE
        epoch, incarnation, sequence = text.split(":")
        return Position(
            epoch=Epoch(int(epoch)),
            incarnation=Incarnation(bytes.fromhex(incarnation)),
            sequence=Sequence(int(sequence)),
        )

    def put_position(self, key: str, position: Position) -> None:
        """Stores a position under a name."""
        self.put(key, f"{position.epoch}:{position.incarnation.hex()}:{position.sequence}")

    # ---- entries

    def entry(self, path: bytes) -> Entry | None:
        """The entry of one path."""
        row = self._connection.execute(f"SELECT {_COLUMNS} FROM entry WHERE path = ?", (_key(path),)).fetchone()
        return None if row is None else _entry(row)

    def entries_of(self, paths: Iterable[bytes]) -> dict[bytes, Entry]:
        """The entries of many paths; unknown ones are left out."""
        keys = [_key(path) for path in paths]
        found: dict[bytes, Entry] = {}
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            marks = ",".join("?" * len(some))
            for row in self._connection.execute(f"SELECT {_COLUMNS} FROM entry WHERE path IN ({marks})", some):
                entry = _entry(row)
                found[entry.path] = entry
        return found

    def knows(self, path: bytes) -> bool:
        """Whether there is an entry."""
        return self._connection.execute("SELECT 1 FROM entry WHERE path = ?", (_key(path),)).fetchone() is not None

    def known_of(self, paths: Iterable[bytes]) -> set[bytes]:
        """Those of the paths that have an entry."""
        keys = [_key(path) for path in paths]
        found: set[bytes] = set()
        for start in range(0, len(keys), 500):
            some = keys[start : start + 500]
            marks = ",".join("?" * len(some))
            rows = self._connection.execute(f"SELECT path FROM entry WHERE path IN ({marks})", some)
            found.update(_path(path) for (path,) in rows)
        return found

    def entries(self, *, after: bytes | None = None, limit: int = 5000) -> list[Entry]:
        """The next entries in walk order, strictly after ``after``; the caller pages."""
        if after is None:
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM entry ORDER BY path LIMIT ?", (limit,))
        else:
            rows = self._connection.execute(
                f"SELECT {_COLUMNS} FROM entry WHERE path > ? ORDER BY path LIMIT ?", (_key(after), limit)
            )
        return [_entry(row) for row in rows]

    def entries_below(self, path: bytes) -> list[bytes]:
        """Paths of all entries strictly below a directory (``b""``: everything but the root), in walk order."""
        if not path:
            rows = self._connection.execute("SELECT path FROM entry WHERE path > x'' ORDER BY path")
        else:
            key = _key(path)
            rows = self._connection.execute(
                "SELECT path FROM entry WHERE path > ? AND path < ? ORDER BY path", (key + b"\0", key + b"\1")
            )
        return [_path(row[0]) for row in rows]

    def signatures(self, *, after: bytes, below: bytes = b"", limit: int = 5000) -> list[Signature]:
        """The next entries' signatures in walk order, strictly after the key ``after`` (``b""``: from the first).

        ``below`` is the key of a directory: only it and what it holds. For the scanner: a million of them.
        """
        first = ">=" if not after else ">"
        start = max(after, below)
        end = "" if not below else "AND (path = :below OR (path > :low AND path < :high))"
        return self._connection.execute(
            "SELECT path, type, mode, uid, gid, mtime_ns, size, inode, ctime_ns, xattrs, link_target FROM entry "
            f"WHERE path {first} :start {end} ORDER BY path LIMIT :limit",
            {"start": start, "below": below, "low": below + b"\0", "high": below + b"\1", "limit": limit},
        ).fetchall()

    def files_below(self, path: bytes) -> int:
        """How many files are known strictly below a directory (``b""``: in the whole tree)."""
        key = _key(path)
        where, values = ("", ()) if not path else (" AND path > ? AND path < ?", (key + b"\0", key + b"\1"))
        row = self._connection.execute(f"SELECT count(*) FROM entry WHERE type = {TYPE_FILE}{where}", values).fetchone()
        return int(row[0])

    def file_inodes_below(self, path: bytes, *, limit: int) -> list[tuple[bytes, int]]:
        """Paths and inodes of files strictly below a directory; 0 where no inode is known."""
        key = _key(path)
        rows = self._connection.execute(
            f"SELECT path, inode FROM entry WHERE type = {TYPE_FILE} AND path > ? AND path < ? LIMIT ?",
            (key + b"\0", key + b"\1", limit),
        )
        return [(_path(key), int(inode)) for key, inode in rows]

    def rows(self, *, after: bytes | None = None, limit: int = 5000) -> list[tuple[Any, ...]]:
        """The next entries in walk order as they are stored (``_COLUMNS``, the key first), strictly after a key."""
        where, values = ("", (limit,)) if after is None else ("WHERE path > ? ", (after, limit))
        return self._connection.execute(f"SELECT {_COLUMNS} FROM entry {where}ORDER BY path LIMIT ?", values).fetchall()

    def put_rows(self, rows: Iterable[Row]) -> None:
        """Inserts or replaces entries given as ``row_of`` makes them: the fast way for many."""
        self._connection.executemany(f"INSERT OR REPLACE INTO entry ({_COLUMNS}) VALUES ({_MARKS})", rows)

    def remove_below(self, path: bytes) -> None:
        """Forgets an object and all below it."""
        key = _key(path)
        self._connection.execute(
            "DELETE FROM entry WHERE path = ? OR (path > ? AND path < ?)", (key, key + b"\0", key + b"\1")
        )

    def put_entries(self, entries: Iterable[Entry]) -> None:
        """Inserts or replaces."""
        self._connection.executemany(
            f"INSERT OR REPLACE INTO entry ({_COLUMNS}) VALUES ({_MARKS})", (_row(entry) for entry in entries)
        )

    def remove_entries(self, paths: Iterable[bytes]) -> None:
        """Forgets objects; unknown ones are ignored."""
        self._connection.executemany("DELETE FROM entry WHERE path = ?", ((_key(path),) for path in paths))

    def clear_entries(self) -> None:
        """Forgets all objects."""
        self._connection.execute("DELETE FROM entry")

    def path_with(self, content_hash: bytes) -> bytes | None:
        """A path whose content has this hash (only for sizes from COPY_SOURCE_MIN)."""
        row = self._connection.execute(
            f"SELECT path FROM entry WHERE hash = ? AND size >= {COPY_SOURCE_MIN} LIMIT 1", (content_hash,)
        ).fetchone()
        return None if row is None else _path(row[0])

    def cuts_of(self, content_hash: bytes) -> bytes:
        """The cuts of a large file's content (``files.chunks``); empty where they are not known."""
        row = self._connection.execute("SELECT cuts FROM cuts WHERE hash = ?", (content_hash,)).fetchone()
        return b"" if row is None else bytes(row[0])

    def put_cuts(self, content_hash: bytes, cuts: bytes) -> None:
        """Keeps them, for the newest CUTS_MAX contents."""
        self._connection.execute("INSERT OR REPLACE INTO cuts (hash, cuts) VALUES (?, ?)", (content_hash, cuts))
        self._connection.execute(
            "DELETE FROM cuts WHERE id <= (SELECT id FROM cuts ORDER BY id DESC LIMIT 1 OFFSET ?)", (CUTS_MAX,)
        )

    def directories(self) -> list[bytes]:
        """Paths of all directories, in walk order."""
        rows = self._connection.execute(f"SELECT path FROM entry WHERE type = {TYPE_DIRECTORY} ORDER BY path")
        return [_path(row[0]) for row in rows]

    def newest_files(self, *, endings: tuple[bytes, ...], limit: int) -> list[tuple[bytes, int]]:
        """Paths and modification times of the newest files whose names end so, newest first."""
        wanted = " OR ".join(f"substr(path, -{len(ending)}) = ?" for ending in endings)
        rows = self._connection.execute(
            f"SELECT path, mtime_ns FROM entry WHERE type = {TYPE_FILE} AND ({wanted}) ORDER BY mtime_ns DESC LIMIT ?",
            (*endings, limit),
        )
        return [(_path(path), int(mtime_ns)) for path, mtime_ns in rows]

    def entry_count(self) -> int:
        """How many objects are known."""
        return int(self._connection.execute("SELECT count(*) FROM entry").fetchone()[0])

    # ---- the dirty set

    def mark_dirty(self, paths: Iterable[tuple[bytes, Sequence]]) -> None:
        """A path stands in the set once, at its latest sequence."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO dirty VALUES (?, ?)", ((_key(path), sequence) for path, sequence in paths)
        )

    def dirty(self, *, after: Sequence = NOTHING_SENT, limit: int = 1000) -> list[tuple[bytes, Sequence]]:
        """The next dirty paths in order of sequence."""
        rows = self._connection.execute(
            "SELECT path, sequence FROM dirty WHERE sequence > ? ORDER BY sequence LIMIT ?", (after, limit)
        )
        return [(_path(path), Sequence(sequence)) for path, sequence in rows]

    def clean(self, acknowledged: Iterable[tuple[bytes, Sequence]]) -> None:
        """Takes paths out of the set, unless they became dirty again after that sequence."""
        self._connection.executemany(
            "DELETE FROM dirty WHERE path = ? AND sequence <= ?",
            ((_key(path), sequence) for path, sequence in acknowledged),
        )

    def clear_dirty(self) -> None:
        """Empties the set."""
        self._connection.execute("DELETE FROM dirty")

    def dirty_count(self) -> int:
        """How many paths are dirty."""
        return int(self._connection.execute("SELECT count(*) FROM dirty").fetchone()[0])

    # ---- intents: what a group was about to rename when the node died

    def put_intent(self, steps: Iterable[bytes]) -> None:
        """Notes the steps of a group, in order; the caller makes the transaction durable before the first step."""
        self._connection.executemany("INSERT INTO intent (step) VALUES (?)", ((step,) for step in steps))

    def intent(self) -> list[bytes]:
        """The steps noted and not cleared, in order."""
        return [bytes(row[0]) for row in self._connection.execute("SELECT step FROM intent ORDER BY id")]

    def clear_intent(self) -> None:
        """The group is whole."""
        self._connection.execute("DELETE FROM intent")


def key_of(path: bytes) -> bytes:
    """A path as it is stored and sorted: NUL for ``/``."""
    return path.replace(b"/", b"\0")


def path_of(key: bytes) -> bytes:
    """The path of a key."""
    return key.replace(b"\0", b"/")


def row_of(entry: Entry) -> Row:
    """An entry as ``put_rows`` takes it."""
    return _row(entry)


def _key(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")


def _path(key: bytes) -> bytes:
    return key.replace(b"\0", b"/")


def _row(entry: Entry) -> tuple[object, ...]:
    return (
        _key(entry.path), entry.type, entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.size, entry.hash,
        entry.block_size, entry.block_hashes, entry.link_target, entry.xattrs,
        entry.witness.inode, entry.witness.ctime_ns,
    )  # fmt: skip


def _entry(row: tuple[Any, ...]) -> Entry:
    key, kind, mode, uid, gid, mtime_ns, size, content, block_size, hashes, link, xattrs, inode, ctime_ns = row
    return Entry(
        path=_path(key), type=kind, mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, size=size, hash=content,
        block_size=block_size, block_hashes=hashes, link_target=link, xattrs=xattrs,
        witness=Witness(inode=inode, ctime_ns=ctime_ns),
    )  # fmt: skip
