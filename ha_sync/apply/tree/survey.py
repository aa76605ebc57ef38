"""What stands below the root now: the inventory for a compare, in walk order, in bounded chunks.

An object that still shows its witness is told from the catalogue; every other one is read and hashed, so data that
was there before (a restored backup, an old Active's tree) need not be sent again. What was found is noted, so the
next survey is fast. Held files are told under their own paths. Memory: one directory's names per level and one
chunk. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree.rooting import make_own_directory
from ha_sync.catalogue.tree import (
    TYPE_DIRECTORY,
    TYPE_FILE,
    TYPE_SYMLINK,
    Entry,
    Row,
    TreeCatalogue,
    Witness,
    key_of,
    path_of,
    row_of,
)
from ha_sync.core.dataset import Report
from ha_sync.errors import Refused
from ha_sync.files.blocks import hash_file
from ha_sync.files.confine import Root, split
from ha_sync.files.metadata import TYPE_SPECIAL, decode_xattrs, named, object_type, read_xattrs
from ha_sync.files.places import HELD, HIDDEN, Scope, join

CHUNK_ENTRIES = 2000
CHUNK_BYTES = 512 * 1024
PAGE_ROWS = 5000

_PUT = pb.TreeChange.ACTION_PUT
_GONE = (FileNotFoundError, NotADirectoryError, Refused)
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    """One object of the walk."""

    path: bytes
    place: bytes
    status: os.stat_result


class Survey:
    """See the module."""

    def __init__(self, root: Root, *, scope: Scope, catalogue: TreeCatalogue, report: Report) -> None:
        self._root = root
        self._scope = scope
        self._catalogue = catalogue
        self._report = report
        self.specials = 0
        self.hashed = 0

    # ---- walking

    def walk(self) -> Iterator[Found]:
        """Everything replicated, in walk order, the root first."""
        self._root.forget()
        yield Found(b"", b"", self._root.lstat(b""))
        levels = [(b"", iter(self._names(b"")))]
        plain = not self._scope.held_patterns
        while levels:
            directory, names = levels[-1]
            for name in names:
                path = directory + b"/" + name if directory else name
                found = self._look(directory, name, path) if plain else self._look_held(path)
                if found is None:
                    continue
                yield found
                if stat.S_ISDIR(found.status.st_mode):
                    levels.append((path, iter(self._names(path))))
                    break
            else:
                levels.pop()

    def _names(self, path: bytes) -> list[bytes]:
        names = self._listed(self._scope.place(path))
        if self._scope.held_patterns and not self._scope.is_held(path):
            names |= self._listed(join(HELD, path) if path else HELD)
        if not self._scope.node_patterns and not self._scope.mailboxes:
            return sorted(name for name in names if not name.startswith(HIDDEN))
        prefix = path + b"/" if path else b""
        return sorted(name for name in names if not self._scope.is_left_out(prefix + name))

    def _listed(self, place: bytes) -> set[bytes]:
        try:
            return {os.fsencode(name) for name in os.listdir(self._root.directory(place))}
        except _GONE:
            return set()

    def _look(self, directory: bytes, name: bytes, path: bytes) -> Found | None:
        """Without held files a path is its own place: one system call."""
        try:
            status = os.stat(name, dir_fd=self._root.directory(directory), follow_symlinks=False)
        except _GONE:
            return None
        return self._replicable(Found(path, path, status))

    def _look_held(self, path: bytes) -> Found | None:
        place = self._scope.place(path)
        if place != path:
            self._set_aside(path, place)
        try:
            status = self._root.lstat(place)
        except _GONE:
            return None
        return self._replicable(Found(path, place, status))

    def _replicable(self, found: Found) -> Found | None:
        if object_type(found.status.st_mode) == TYPE_SPECIAL:
            self.specials += 1
            return None
        return found

    def _set_aside(self, path: bytes, place: bytes) -> None:
        """A call file of the time when this node was Active would be dialled by a promotion: it is held too."""
        try:
            self._root.lstat(path)
        except _GONE:
            return
        make_directories(self._root, split(place)[0])
        with contextlib.suppress(OSError):
            from_directory, from_name = split(path)
            to_directory, to_name = split(place)
            os.rename(
                from_name,
                to_name,
                src_dir_fd=self._root.directory(from_directory),
                dst_dir_fd=self._root.directory(to_directory),
            )
            self._root.forget()
            self._report("info", "call file set aside", {"path": os.fsdecode(path)})

    # ---- the inventory

    def chunks(self) -> Iterator[bytes]:
        """Serialized TreeInventory messages."""
        known = Rows(self._catalogue)
        message, count, size = pb.TreeInventory(), 0, 0
        fresh: list[Row] = []
        gone: list[bytes] = []
        for found in self.walk():
            row = known.at(key_of(found.path), gone)
            change, hashes = self._told(found, row, fresh)
            if change is not None:
                message.entries.append(change)
                message.block_hashes.append(hashes)
                count += 1
                size += 160 + len(found.path) + len(hashes)
            if count >= CHUNK_ENTRIES or size >= CHUNK_BYTES:
                self._store(fresh, gone)
                yield message.SerializeToString()
                message, count, size = pb.TreeInventory(), 0, 0
        known.rest(gone)
        self._store(fresh, gone)
        if count:
            yield message.SerializeToString()

    def _store(self, fresh: list[Row], gone: list[bytes]) -> None:
        if fresh or gone:
            with self._catalogue.transaction(durable=False):
                self._catalogue.remove_entries(gone)
                self._catalogue.put_rows(fresh)
            fresh.clear()
            gone.clear()

    def _told(self, found: Found, row: tuple[Any, ...] | None, fresh: list[Row]) -> tuple[pb.TreeChange | None, bytes]:
        if row is None or not holds(row, found.status):
            entry = self.read(found, block_size=_known_block_size(row))
            if entry is None:
                return None, b""
            told = row_of(entry)
            fresh.append(told)
            return _message(found.path, told)
        return _message(found.path, row)

    def read(self, found: Found, *, block_size: int | None = None) -> Entry | None:
        """Reads an object as it is now; None where it went meanwhile."""
        with contextlib.suppress(*_GONE):
            kind = object_type(found.status.st_mode)
            if kind == TYPE_FILE:
                return self._read_file(found, block_size)
            if kind == TYPE_DIRECTORY:
                return self._plain(found, found.status, xattrs=read_xattrs(self._root.directory(found.place))[0])
            if kind == TYPE_SYMLINK:
                directory, name = split(found.place)
                xattrs = read_xattrs(named(self._root.directory(directory), name))[0]
                return self._plain(found, found.status, xattrs=xattrs, link=self._root.readlink(found.place))
        return None

    def _read_file(self, found: Found, block_size: int | None) -> Entry | None:
        fd = self._root.open(found.place, os.O_RDONLY | os.O_NONBLOCK)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                return None
            content = hash_file(fd, block_size=block_size)
            xattrs = read_xattrs(fd)[0]
            after = os.fstat(fd)
        finally:
            os.close(fd)
        self.hashed += 1
        same = (before.st_ctime_ns, before.st_size) == (after.st_ctime_ns, content.size)
        return Entry(
            path=found.path,
            type=TYPE_FILE,
            mode=stat.S_IMODE(after.st_mode),
            uid=after.st_uid,
            gid=after.st_gid,
            mtime_ns=after.st_mtime_ns,
            size=content.size,
            hash=content.hash,
            block_size=content.block_size,
            block_hashes=content.block_hashes if len(content.block_hashes) > 16 else b"",
            xattrs=xattrs,
            # Changed while it was read: the hash is not believed the next time.
            witness=Witness(inode=after.st_ino, ctime_ns=after.st_ctime_ns) if same else Witness(),
        )

    @staticmethod
    def _plain(found: Found, status: os.stat_result, *, xattrs: bytes, link: bytes = b"") -> Entry:
        return Entry(
            path=found.path,
            type=object_type(status.st_mode),
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            link_target=link,
            xattrs=xattrs,
            witness=Witness(inode=status.st_ino, ctime_ns=status.st_ctime_ns),
        )


def _message(path: bytes, row: tuple[Any, ...]) -> tuple[pb.TreeChange, bytes]:
    _, kind, mode, uid, gid, mtime_ns, size, content, step, hashes, link, xattrs, _, _ = row
    change = pb.TreeChange(
        action=_PUT, type=kind, path=path, mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, size=size,
        hash=content, block_size=step, link_target=link,
    )  # fmt: skip
    if xattrs:
        change.xattrs.extend(pb.Xattr(name=name, value=value) for name, value in decode_xattrs(xattrs))
    return change, hashes


def _known_block_size(row: tuple[Any, ...] | None) -> int | None:
    """A file that grew may have smaller blocks than its size asks for: only equal ones compare."""
    return (row[8] or None) if row is not None and row[1] == TYPE_FILE else None


def holds(row: tuple[Any, ...], status: os.stat_result) -> bool:
    """Whether the object is what the catalogue says. A directory's ctime moves with its content: its fields count."""
    kind, mode, uid, gid, mtime_ns = row[1:6]
    if kind != object_type(status.st_mode):
        return False
    if kind == TYPE_DIRECTORY:
        return (mode, uid, gid, mtime_ns) == (
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
        )
    return bool(row[12]) and row[12] == status.st_ino and row[13] == status.st_ctime_ns


class Rows:
    """The catalogue's rows beside the walk: both are in the same order."""

    def __init__(self, catalogue: TreeCatalogue) -> None:
        self._catalogue = catalogue
        self._page: list[tuple[Any, ...]] = []
        self._at = 0
        self._last: bytes | None = None
        self._done = False

    def _head(self) -> tuple[Any, ...] | None:
        if self._at >= len(self._page) and not self._done:
            self._page = self._catalogue.rows(after=self._last, limit=PAGE_ROWS)
            self._at = 0
            self._done = not self._page
            if self._page:
                self._last = self._page[-1][0]
        return self._page[self._at] if self._at < len(self._page) else None

    def at(self, key: bytes, gone: list[bytes]) -> tuple[Any, ...] | None:
        """The row of this key; rows before it belong to objects that are not there."""
        while (row := self._head()) is not None and row[0] < key:
            gone.append(path_of(row[0]))
            self._at += 1
        if row is not None and row[0] == key:
            self._at += 1
            return row
        return None

    def rest(self, gone: list[bytes]) -> None:
        """After the walk's last object."""
        while (row := self._head()) is not None:
            gone.append(path_of(row[0]))
            self._at += 1


def make_directories(root: Root, place: bytes) -> None:
    """Every directory down to a place of our own."""
    at = b""
    for part in place.split(b"/"):
        directory = root.directory(at)
        with contextlib.suppress(FileExistsError):
            make_own_directory(directory, part)
        at = join(at, part)
