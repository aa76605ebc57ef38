"""Reads the objects of one group and turns them into changes: only what differs from what the Standby acknowledged.

A file is read between two looks at its metadata; if it changed meanwhile it is read again, a few times, and then sent
as it was read and named in ``again`` (what was appended after the first look does not disturb). The hash that goes with
a file is always that of the bytes that were sent. Objects that cannot be read are counted and left alone. What vanishes
while the group is read is not deleted by it, but named in ``again``: a group deletes only what ``losses`` told before.

Order of a group: directories before what they hold, a mailbox's ``.txt`` after its audio, deletions (but before an
object of another type takes the path), and last the times of the directories that were touched. ``copy_from`` and
blocks that are not sent refer to the state before the group. Blocking; belongs to the dataset's thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.capture.tree.ahead import Ahead
from ha_sync.capture.tree.frames import FrameBuilder
from ha_sync.capture.tree.growth import Growth
from ha_sync.capture.tree.pieces import Pieces, hashed, zero_hash
from ha_sync.capture.tree.shift import Shift
from ha_sync.capture.tree.terms import RACY_NS
from ha_sync.catalogue.tree import (
    COPY_SOURCE_MIN,
    TYPE_DIRECTORY,
    TYPE_FILE,
    TYPE_SYMLINK,
    Entry,
    Row,
    TreeCatalogue,
    key_of,
)
from ha_sync.core.frame import FRAME_TARGET_BYTES
from ha_sync.core.position import Sequence
from ha_sync.errors import HaSyncError
from ha_sync.files.blocks import BLOCK_MIN, HASH_BYTES, block_hash, block_size_for, whole_hash
from ha_sync.files.chunks import SHIFT_MIN
from ha_sync.files.confine import Root, split
from ha_sync.files.metadata import TYPE_SPECIAL, decode_xattrs, named, object_type, read_xattrs

PUT = pb.TreeChange.ACTION_PUT
DELETE = pb.TreeChange.ACTION_DELETE
META = pb.TreeChange.ACTION_META
GROW = pb.TreeChange.ACTION_GROW

READ_TRIES = 3
NO_SEQUENCE = Sequence(0)
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True, kw_only=True)
class Item:
    """A path to be brought up to date."""

    path: bytes
    mark: Sequence = NO_SEQUENCE  # its place in the dirty set
    noticed: float = 0.0  # monotonic seconds; 0: nobody waits for it
    unit: int = 0
    status: os.stat_result | None = None  # None: gone


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What becomes of an item when the Standby has it."""

    path: bytes
    mark: Sequence
    row: Row | None  # None: gone, with all below it
    sent: bool
    below: bool = False  # gone, and it was a directory


@dataclass(slots=True, kw_only=True)
class Met:
    """Counted while reading."""

    unreadable: int = 0
    xattrs_too_large: int = 0
    databases: list[bytes] = field(default_factory=list)
    again: list[bytes] = field(default_factory=list)
    costs: list[tuple[bytes, float]] = field(default_factory=list)
    errors: list[tuple[bytes, str]] = field(default_factory=list)


def moved_on(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether the file changed between two looks."""
    return (
        before.st_ctime_ns != after.st_ctime_ns
        or before.st_size != after.st_size
        or before.st_mtime_ns != after.st_mtime_ns
    )


class Falls(Protocol):
    """Told of deletions."""

    def __call__(self, path: bytes, *, is_directory: bool) -> None:
        """Before the directory or file is deleted."""


@dataclass(slots=True, kw_only=True)
class Reader:
    """What reading needs. ``whole`` distrusts the catalogue: everything is sent, nothing is compared or copied."""

    root: Root
    catalogue: TreeCatalogue
    growing: dict[bytes, Growth]
    directories: set[bytes]  # known to stand on the Standby
    may_copy: Callable[[bytes], bool]
    falls: Falls
    leaves: Callable[[bytes], None]  # told of a directory that goes along although nobody named it
    resend: set[bytes]
    sequence: Sequence = NO_SEQUENCE  # the group's
    whole: bool = False
    copy_from_size: int = COPY_SOURCE_MIN  # smaller content is sent rather than looked for
    keeps: bool = False  # what is gone here stays on the Standby
    racy_ns: int = RACY_NS
    hashes_of: Callable[[bytes, os.stat_result], bytes] = lambda _path, _status: b""  # of a file that was just read
    shifts: bool = False  # large files are looked through for content that moved
    met: Met = field(default_factory=Met)


class Group:
    """One group. Ask ``losses``, run ``steps`` to its end; then ``outcomes`` says what it means."""

    def __init__(self, reader: Reader, builder: FrameBuilder) -> None:
        self._reader = reader
        self._root = reader.root
        self._catalogue = reader.catalogue
        self.builder = builder
        self._met = reader.met
        self._put: set[bytes] = set()
        self._entries: dict[bytes, Entry] = {}
        self._replaced: set[bytes] = set()  # objects that another type of object takes the place of
        self.outcomes: list[Outcome] = []

    def losses(self, items: list[Item]) -> list[bytes]:
        """What the items would delete on the Standby, with all below: gone, or something else took its place."""
        known = self._catalogue.entries_of(item.path for item in items)
        if not self._reader.whole:
            self._entries = {path: entry for path, entry in known.items() if path not in self._reader.resend}
        lost: list[bytes] = []
        for item in items:
            entry = known.get(item.path)
            if entry is not None and (_is_gone(item) or _takes_place(item, entry)):
                lost.append(item.path)
        return lost

    def steps(self, items: list[Item]) -> Iterator[None]:
        """Adds the changes of all items; yields when the builder's frame must be taken."""
        gone: list[Item] = []
        ahead = Ahead(self._root, items)
        for at, item in enumerate(items):
            if item.status is None or _is_gone(item):
                gone.append(item)
                continue
            try:
                if self._is_plain(item, item.status):
                    if self.builder.lacks_room(item.status.st_size):
                        yield
                    ahead.ask(at)
                    begun = time.monotonic()
                    self._plain(item)
                    ahead.read(time.monotonic() - begun)
                else:
                    yield from self._object(item, item.status)
            except (FileNotFoundError, NotADirectoryError):
                self._met.again.append(item.path)
            except (OSError, HaSyncError) as error:
                self._unreadable(item, error)
        for item in sorted(gone, key=lambda item: key_of(item.path), reverse=True):
            if self.builder.lacks_room(0):
                yield
            self._gone(item)
        yield from self._touched(items)

    def _touched(self, items: list[Item]) -> Iterator[None]:
        """What happened in a directory moved its time: it goes along, after everything that happens there."""
        parents = {item.path.rpartition(b"/")[0] for item in items if item.path} - self._put
        known = self._catalogue.entries_of(parents) if not self._reader.whole else {}
        for parent in sorted(parents, key=key_of):
            try:
                status = self._root.lstat(parent)
            except (OSError, HaSyncError):
                continue
            if self._reader.whole and parent and parent not in self._reader.directories:
                yield from self._parents(parent)
                continue
            entry = known.get(parent)
            # The root stands there always, also for whoever distrusts what is noted.
            stands = not parent or parent in self._reader.directories
            if entry is not None:
                stands = entry.type == TYPE_DIRECTORY
            if stands and stat.S_ISDIR(status.st_mode) and (entry is None or entry.mtime_ns != status.st_mtime_ns):
                if self.builder.lacks_room(0):
                    yield
                with contextlib.suppress(OSError, HaSyncError):
                    self._directory(Item(path=parent), entry, moves=False)

    def _is_plain(self, item: Item, status: os.stat_result) -> bool:
        """A small file in a directory that the Standby has: the usual case, spared the generators."""
        if not stat.S_ISREG(status.st_mode) or status.st_size > BLOCK_MIN or item.path in self._put:
            return False
        entry = self._entries.get(item.path)
        parent = item.path.rpartition(b"/")[0]
        return (entry is None or entry.type == TYPE_FILE) and (not parent or parent in self._reader.directories)

    def _plain(self, item: Item) -> None:
        parent, _, name = item.path.rpartition(b"/")
        fd = os.open(name, _OPEN, dir_fd=self._root.directory(parent))
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_size <= BLOCK_MIN:
                self._small(fd, item, status, self._entries.get(item.path))
            else:
                self._met.again.append(item.path)  # replaced, or grown beyond a block, since it was looked at
        finally:
            os.close(fd)
        self._put.add(item.path)

    def _unreadable(self, item: Item, error: Exception) -> None:
        self._met.unreadable += 1
        if len(self._met.errors) < 20:
            self._met.errors.append((item.path, str(error)))
        # Its entry stays: whatever the Standby has of it stays too.
        entry = self._catalogue.entry(item.path)
        if entry is None:
            self.outcomes.append(Outcome(path=item.path, mark=item.mark, row=None, sent=False))

    # ---- deletions

    def _gone(self, item: Item) -> None:
        if item.path in self._put or not item.path:
            return
        if item.status is None and self._is_back(item.path):
            self._met.again.append(item.path)
            return
        entry = self._catalogue.entry(item.path)
        known = (
            entry is not None
            or self._reader.whole
            or item.path in self._reader.growing
            or item.path in self._reader.resend
        )
        # What stood below a directory that something else has replaced went with it.
        known = known and not self._went_along(item.path)
        known = known and not self._reader.keeps
        below = entry is not None and entry.type == TYPE_DIRECTORY
        if known:
            self._delete(item.path, is_directory=below)
        self.outcomes.append(Outcome(path=item.path, mark=item.mark, row=None, sent=known, below=below))

    def _went_along(self, path: bytes) -> bool:
        while self._replaced and path:
            path = path.rpartition(b"/")[0]
            if path in self._replaced:
                return True
        return False

    def _is_back(self, path: bytes) -> bool:
        parent, name = split(path)
        try:
            status = os.stat(name, dir_fd=self._root.directory(parent), follow_symlinks=False)
        except (OSError, HaSyncError):
            return False
        return object_type(status.st_mode) != TYPE_SPECIAL

    def _delete(self, path: bytes, *, is_directory: bool) -> None:
        self._reader.falls(path, is_directory=is_directory)
        self.builder.add(path=path, action=DELETE)
        self._reader.growing.pop(path, None)
        directories = self._reader.directories
        if path in directories:
            below = path + b"/"
            directories.difference_update([d for d in directories if d == path or d.startswith(below)])

    # ---- objects that are there

    def _object(self, item: Item, status: os.stat_result) -> Iterator[None]:
        if item.path in self._put:
            return
        kind = object_type(status.st_mode)
        entry = self._entries.get(item.path)
        parent = item.path.rpartition(b"/")[0]
        if parent and parent not in self._reader.directories:
            yield from self._parents(parent)
        if self.builder.lacks_room(min(status.st_size, FRAME_TARGET_BYTES) if kind == TYPE_FILE else 0):
            yield
        if entry is not None and entry.type != kind:
            if TYPE_DIRECTORY in {entry.type, kind}:
                self._delete(item.path, is_directory=entry.type == TYPE_DIRECTORY)
                self._replaced.add(item.path)
                self.outcomes.append(Outcome(path=item.path, mark=NO_SEQUENCE, row=None, sent=True, below=True))
            entry = None
        if kind == TYPE_FILE:
            yield from self._file(item, entry)
        elif kind == TYPE_DIRECTORY:
            self._directory(item, entry)
        else:
            self._symlink(item, status, entry)
        self._put.add(item.path)

    def _parents(self, parent: bytes) -> Iterator[None]:
        entry = self._catalogue.entry(parent)
        if entry is not None and not self._reader.whole:
            self._entries[parent] = entry
            if entry.type == TYPE_DIRECTORY:
                self._reader.directories.add(parent)
                return
        self._reader.leaves(parent)
        yield from self._object(Item(path=parent, mark=self._reader.sequence), self._root.lstat(parent))

    def _directory(self, item: Item, entry: Entry | None, *, moves: bool = True) -> None:
        """``moves``: a later change of the same directory waits until this one is acknowledged."""
        fd = self._root.directory(item.path)
        status = os.fstat(fd)
        xattrs = self._xattrs(fd)
        same = entry is not None and _same_metadata(entry, status, xattrs)
        if not same:
            self.change(item, status, xattrs, PUT if entry is None else META, type=TYPE_DIRECTORY)
        self._reader.directories.add(item.path)
        self._done(item, status, TYPE_DIRECTORY, xattrs, sent=not same and moves)

    def _symlink(self, item: Item, status: os.stat_result, entry: Entry | None) -> None:
        target = self._root.readlink(item.path)
        parent, name = split(item.path)
        xattrs = self._xattrs(named(self._root.directory(parent), name))
        same = entry is not None and _same_metadata(entry, status, xattrs)
        if entry is None or entry.link_target != target:
            self.change(item, status, xattrs, PUT, type=TYPE_SYMLINK, link_target=target)
            same = False
        elif not same:
            self.change(item, status, xattrs, META, type=TYPE_SYMLINK, link_target=target)
        self._done(item, status, TYPE_SYMLINK, xattrs, sent=not same, link_target=target)

    def _xattrs(self, target: int | bytes) -> bytes:
        xattrs, too_large = read_xattrs(target)
        self._met.xattrs_too_large += too_large
        return xattrs

    # ---- files

    def _file(self, item: Item, entry: Entry | None) -> Iterator[None]:
        parent, _, name = item.path.rpartition(b"/")
        fd = os.open(name, _OPEN, dir_fd=self._root.directory(parent))
        begun = time.monotonic()
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self._met.again.append(item.path)
                return
            if status.st_size <= BLOCK_MIN:
                if self.builder.lacks_room(status.st_size):
                    yield
                self._small(fd, item, status, entry)
            else:
                yield from self._large(fd, item, status, entry)
        finally:
            os.close(fd)
            cost = time.monotonic() - begun
            if cost > 0.0005:
                self._met.costs.append((item.path, cost))

    def _small(self, fd: int, item: Item, status: os.stat_result, entry: Entry | None) -> None:
        for tries in range(READ_TRIES):
            size = status.st_size
            view = self.builder.place(size)
            got = os.preadv(fd, [view], 0) if size else 0
            after = os.fstat(fd)
            if got == size and (not moved_on(status, after) or after.st_size > size):
                break
            if tries == READ_TRIES - 1 or after.st_size > BLOCK_MIN:
                size, view = got, view[:got]
                break
            status = after
        if moved_on(status, after):
            self._met.again.append(item.path)
        hashes = block_hash(view) if size else b""
        content = whole_hash(hashes, size)
        xattrs = self._xattrs(fd)
        same, metadata = _compared(entry, content, status, xattrs)
        if not same:
            blocks, zeros, source = self._how(item.path, content, hashes, view)
            self.builder.keep(size if blocks else 0)
            self.change(
                item, status, xattrs, PUT, type=TYPE_FILE, size=size, hash=content, block_size=BLOCK_MIN,
                blocks=blocks, zero_blocks=zeros, copy_from=source, payload_bytes=size if blocks else 0,
            )  # fmt: skip
            self._look_for_database(item.path, view)
        elif not metadata:
            self._meta(item, status, xattrs, size=size, content=content, block_size=BLOCK_MIN)
        self._reader.growing.pop(item.path, None)
        self._done(
            item, status, TYPE_FILE, xattrs, sent=not (same and metadata), size=size, content=content,
            block_size=BLOCK_MIN,
        )  # fmt: skip

    def _how(
        self, path: bytes, content: bytes, hashes: bytes, view: memoryview
    ) -> tuple[tuple[int, ...], tuple[int, ...], bytes]:
        size = len(view)
        if not size:
            return (), (), b""
        if not view[0] and not view[-1] and hashes == zero_hash(size):
            return (), (0,), b""
        source = self._source(path, content, size)
        return ((), (), source) if source else ((0,), (), b"")

    def _source(self, path: bytes, content: bytes, size: int) -> bytes:
        if size < self._reader.copy_from_size or self._reader.whole:
            return b""
        source = self._catalogue.path_with(content)
        return source if source is not None and source != path and self._reader.may_copy(source) else b""

    def _large(self, fd: int, item: Item, status: os.stat_result, entry: Entry | None) -> Iterator[None]:
        size = status.st_size
        step = block_size_for(size)
        hashes = self._reader.hashes_of(item.path, status) or hashed(fd, status, step)
        content = whole_hash(hashes, size)
        xattrs = self._xattrs(fd)
        same, metadata = _compared(entry, content, status, xattrs)
        have = self._base(item.path, entry, step, size)
        shift = Shift(self._catalogue, fd, size) if self._reader.shifts and size >= SHIFT_MIN else None
        if same:
            if not metadata:
                self._meta(item, status, xattrs, size=size, content=content, block_size=step)
        elif source := self._source(item.path, content, size):
            self.change(
                item, status, xattrs, PUT, type=TYPE_FILE, size=size, hash=content, block_size=step, copy_from=source
            )
        else:
            if shift is not None and entry is not None and not self._reader.whole:
                have = shift.better(entry.hash, hashes, have, step)
            pieces = Pieces(self, item, status, xattrs=xattrs, content=content, step=step)
            for _ in pieces.send(fd, hashes, have, moves=shift.moves if shift is not None else ()):
                yield
            hashes, content = pieces.hashes, pieces.content
        self._reader.growing.pop(item.path, None)
        if moved_on(status, os.fstat(fd)):
            self._met.again.append(item.path)
        elif shift is not None:
            shift.keep(content)
        self._done(
            item, status, TYPE_FILE, xattrs, sent=not (same and metadata), size=size, content=content,
            block_size=step, hashes=hashes,
        )  # fmt: skip

    def _base(self, path: bytes, entry: Entry | None, step: int, size: int) -> bytes:
        growth = self._reader.growing.get(path)
        if growth is not None:
            return growth.known(step, size)
        if entry is None or entry.block_size != step:
            return b""
        return entry.block_hashes

    def _look_for_database(self, path: bytes, view: memoryview) -> None:
        if bytes(view[:16]) == b"SQLite format 3\0":
            self._met.databases.append(path)

    # ---- records

    def _meta(
        self, item: Item, status: os.stat_result, xattrs: bytes, *, size: int, content: bytes, block_size: int
    ) -> None:
        self.change(item, status, xattrs, META, type=TYPE_FILE, size=size, hash=content, block_size=block_size)

    def change(self, item: Item, status: os.stat_result, xattrs: bytes, action: int, **fields: object) -> None:
        """Adds a change of an object that is there."""
        self.builder.add(
            path=item.path,
            xattrs=decode_xattrs(xattrs) if xattrs else (),
            action=action,
            mode=status.st_mode & 0o7777,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            unit=item.unit,
            **fields,
        )

    def _done(
        self, item: Item, status: os.stat_result, kind: int, xattrs: bytes, *, sent: bool, size: int = 0,
        content: bytes = b"", block_size: int = 0, hashes: bytes = b"", link_target: bytes = b"",
    ) -> None:  # fmt: skip
        racy = (
            kind == TYPE_FILE and time.clock_gettime_ns(time.CLOCK_REALTIME) - status.st_ctime_ns < self._reader.racy_ns
        )
        row: Row = (
            key_of(item.path), kind, status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns, size,
            content, block_size, hashes if len(hashes) > HASH_BYTES else b"", link_target, xattrs,
            status.st_ino, 0 if racy else status.st_ctime_ns,
        )  # fmt: skip
        self.outcomes.append(Outcome(path=item.path, mark=item.mark, row=row, sent=sent))


def _is_gone(item: Item) -> bool:
    """Nothing stands there, or nothing that is replicated."""
    return item.status is None or object_type(item.status.st_mode) == TYPE_SPECIAL


def _takes_place(item: Item, entry: Entry) -> bool:
    """Whether something else stands where a directory was, which goes with all it held."""
    return entry.type == TYPE_DIRECTORY and item.status is not None and not stat.S_ISDIR(item.status.st_mode)


def _compared(entry: Entry | None, content: bytes, status: os.stat_result, xattrs: bytes) -> tuple[bool, bool]:
    """Whether the content, and whether the metadata is what the Standby has."""
    if entry is None or entry.hash != content or entry.size != status.st_size:
        return False, False
    return True, _same_metadata(entry, status, xattrs)


def _same_metadata(entry: Entry, status: os.stat_result, xattrs: bytes) -> bool:
    return (
        entry.mode == status.st_mode & 0o7777
        and entry.mtime_ns == status.st_mtime_ns
        and entry.uid == status.st_uid
        and entry.gid == status.st_gid
        and entry.xattrs == xattrs
    )
