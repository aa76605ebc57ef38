"""Takes out of a tree what the other node may lack: what differs from the catalogue, which holds what it acknowledged.

The disk is the truth: what was changed just before a crash and never noticed is found like all else. Called before the
Standby's end of the dataset exists. Contents are cloned where the filesystem can, else copied; a recording that a crash
cut off gets its true lengths in the copy. Nothing in the tree is changed. Blocking, bounded memory; sizes in bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ha_sync.catalogue.tree import (
    IDENTITY,
    ROOT,
    TYPE_DIRECTORY,
    TYPE_FILE,
    TYPE_SYMLINK,
    Entry,
    Signature,
    TreeCatalogue,
    path_of,
)
from ha_sync.config import TreeSettings
from ha_sync.divergence.archive import LEFT_OUT_MAX
from ha_sync.divergence.mail import TEXT_MAX, by_message, parsed
from ha_sync.divergence.tree_index import Action, Object, TreeIndex, content_path
from ha_sync.errors import HaSyncError, OperatorNeeded
from ha_sync.files import wav
from ha_sync.files.blocks import MIB, hash_file
from ha_sync.files.confine import Root
from ha_sync.files.metadata import object_type, read_xattrs
from ha_sync.files.places import MARKER
from ha_sync.files.rules import Rules

PAGE = 4000
_FICLONE = 0x40049409
_GONE = (FileNotFoundError, NotADirectoryError)

Local = tuple[bytes, os.stat_result]


@dataclass(slots=True, kw_only=True)
class TakenFiles:
    """What was taken."""

    objects: int = 0
    files: int = 0
    gone: int = 0
    size: int = 0
    left_out: list[str] = field(default_factory=list)
    left_out_count: int = 0

    def leaves_out(self, path: bytes, why: str) -> None:
        """Counted, and named while there is room for names."""
        self.left_out_count += 1
        if len(self.left_out) < LEFT_OUT_MAX:
            self.left_out.append(f"{os.fsdecode(path)}: {why}")


def take_tree(
    settings: TreeSettings,
    *,
    catalogue_path: str,
    index_path: str,
    contents: str,
    room: Callable[[int], bool],
    goes_on: Callable[[], None],
) -> TakenFiles:
    """Writes index and contents. ``room(bytes)`` says whether so much more may be kept, ``goes_on`` raises to end it.

    Raises OperatorNeeded where another directory stands at the dataset's path, FileNotFoundError where none does.
    """
    catalogue = TreeCatalogue(catalogue_path)
    try:
        root = Root(settings.path)
        try:
            _require_own(settings.path, catalogue)
            with TreeIndex(index_path, create=True) as index:
                taker = _Taker(settings, root, catalogue, index=index, contents=contents, room=room)
                taker.run(goes_on)
            return taker.taken
        finally:
            root.close()
    finally:
        catalogue.close()


def _require_own(path: str, catalogue: TreeCatalogue) -> None:
    known = catalogue.get(IDENTITY) is not None or catalogue.get(ROOT) is not None
    if known and catalogue.entry_count() and not os.path.lexists(os.path.join(path, os.fsdecode(MARKER))):
        raise OperatorNeeded(
            "cannot save what the other node lacks of",
            subject=path,
            reason="it has no marker: another directory than before (is its filesystem mounted?)",
            hint=f"mount it; if it is the right one, `touch {path}/{os.fsdecode(MARKER)}`",
        )


class _Taker:
    def __init__(
        self,
        settings: TreeSettings,
        root: Root,
        catalogue: TreeCatalogue,
        *,
        index: TreeIndex,
        contents: str,
        room: Callable[[int], bool],
    ) -> None:
        patterns = (*settings.exclude, *settings.node_local)
        self._rules = Rules(patterns, mailboxes=settings.mailboxes)
        self._root = root
        self._catalogue = catalogue
        self._index = index
        self._contents = contents
        self._room = room
        self._number = 0
        self._taken: set[bytes] = set()  # files of messages
        self.taken = TakenFiles()

    def run(self, goes_on: Callable[[], None]) -> None:
        """Merges the disk with the catalogue, both in walk order."""
        known = self._known()
        row = next(known, None)
        for key, status in self._below(b"", self._root.fd):
            goes_on()
            while row is not None and row[0] < key:
                self._is_gone(row)
                row = next(known, None)
            entry = None
            if row is not None and row[0] == key:
                entry, row = row, next(known, None)
            self._is_there(path_of(key), status, entry)
        while row is not None:
            self._is_gone(row)
            row = next(known, None)
        self._complete_messages()

    def _complete_messages(self) -> None:
        """A message is merged as a whole: files of it that did not change are kept too."""
        if not self._rules.has_units:
            return
        for folder, number in by_message(self._taken):
            for name in sorted(os.fsencode(name) for name in os.listdir(self._root.directory(folder))):
                path = folder + b"/" + name if folder else name
                message = parsed(name)
                if message is not None and message[0] == number and path not in self._taken:
                    with contextlib.suppress(*_GONE):
                        self._file(path, self._root.lstat(path), None)

    def _known(self) -> Iterator[Signature]:
        after = b""
        while page := self._catalogue.signatures(after=after, limit=PAGE):
            yield from (row for row in page if row[0])  # the root itself is never merged
            if len(page) < PAGE:
                return
            after = page[-1][0]

    def _below(self, key: bytes, fd: int) -> Iterator[Local]:
        prefix = key + b"\0" if key else b""
        found: list[Local] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if self._rules.skips(path_of(key), name) or self._rules.is_too_long(path_of(prefix + name)):
                    continue
                with contextlib.suppress(*_GONE):
                    found.append((prefix + name, entry.stat(follow_symlinks=False)))
        for item in sorted(found, key=lambda each: each[0]):
            if not object_type(item[1].st_mode):
                continue
            yield item
            if stat.S_ISDIR(item[1].st_mode):
                below = os.open(item[0].rpartition(b"\0")[2], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                try:
                    yield from self._below(item[0], below)
                finally:
                    os.close(below)

    def _is_gone(self, row: Signature) -> None:
        self._add(Object(number=self._next(), path=path_of(row[0]), action=Action.GONE, type=row[1]))
        self.taken.gone += 1

    def _is_there(self, path: bytes, status: os.stat_result, row: Signature | None) -> None:
        kind = object_type(status.st_mode)
        if row is not None and (row[7], row[8], row[1]) == (status.st_ino, status.st_ctime_ns, kind) and row[8]:
            return
        entry = self._catalogue.entry(path) if row is not None else None
        try:
            if kind == TYPE_FILE:
                self._file(path, status, entry)
            else:
                self._other(path, status, kind, entry)
        except (*_GONE, PermissionError, HaSyncError) as error:
            self.taken.leaves_out(path, str(error))

    def _other(self, path: bytes, status: os.stat_result, kind: int, entry: Entry | None) -> None:
        link = self._root.readlink(path) if kind == TYPE_SYMLINK else b""
        if kind == TYPE_DIRECTORY and entry is not None and entry.type == kind:
            return  # a directory's own times follow from what is in it
        if entry is not None and (entry.type, entry.link_target) == (kind, link):
            return
        self._add(_object(self._next(), path, status, kind, link_target=link))

    def _file(self, path: bytes, status: os.stat_result, entry: Entry | None) -> None:
        fd = self._root.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            xattrs, _ = read_xattrs(fd)
            if entry is not None and entry.type == TYPE_FILE and entry.size == status.st_size:
                found = hash_file(fd, block_size=entry.block_size or None)
                if found.hash == entry.hash:
                    mine = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs)
                    if mine != (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs):
                        item = _object(self._next(), path, status, TYPE_FILE, action=Action.META, xattrs=xattrs)
                        self._add(item)
                    return
            if not self._room(status.st_size):
                self.taken.leaves_out(path, f"no room for {status.st_size} bytes")
                return
            self._keep(path, fd, status, xattrs)
        finally:
            os.close(fd)

    def _keep(self, path: bytes, fd: int, status: os.stat_result, xattrs: bytes) -> None:
        number = self._next()
        target = content_path(self._contents, number)
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copied(fd, copy)
            repaired = wav.repair(copy) if path.endswith(wav.SUFFIXES) else None
            found = hash_file(copy)
            is_text = path.endswith(b".txt") and self._rules.mailbox_of(path) is not None
            text = os.pread(copy, TEXT_MAX, 0) if is_text else b""
        finally:
            os.close(copy)
        if self._rules.mailbox_of(path) is not None:
            self._taken.add(path)
        self.taken.files += 1
        self.taken.size += found.size
        item = _object(number, path, status, TYPE_FILE, xattrs=xattrs)
        header = repaired.original if repaired is not None else b""
        self._add(replace(item, size=found.size, hash=found.hash, kept=True, header=header, text=text))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _add(self, item: Object) -> None:
        self._index.add(item)
        self.taken.objects += 1


def copied(source: int, target: int) -> None:
    """Clones the content, or copies it, from and to the beginning."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, _FICLONE, source)
        return
    offset = 0
    while data := os.pread(source, MIB, offset):
        offset += os.pwrite(target, data, offset)


def _object(
    number: int,
    path: bytes,
    status: os.stat_result,
    kind: int,
    *,
    action: Action = Action.PUT,
    xattrs: bytes = b"",
    link_target: bytes = b"",
) -> Object:
    return Object(
        number=number,
        path=path,
        action=action,
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size,
        xattrs=xattrs,
        link_target=link_target,
    )
