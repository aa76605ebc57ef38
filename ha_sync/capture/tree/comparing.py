"""Compares the Standby's inventory with what is here: afterwards the catalogue holds the Standby's state and the dirty
set names what differs.

Three sorted streams are merged in walk order: the peer's entries, the catalogue's own and a walk of the tree. Nothing
is read: an own entry whose witness holds says what the content is; where it does not, the path is dirty and reading it
will show whether it differs. Memory is bounded by a page and a directory. Blocking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.capture.tree.journal import Journal
from ha_sync.capture.tree.losses import COUNTED_MAX
from ha_sync.capture.tree.scan import Local, Walk
from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_FILE, TYPE_SYMLINK, Entry, TreeCatalogue, key_of, path_of
from ha_sync.errors import ProtocolFault
from ha_sync.files.confine import components
from ha_sync.files.metadata import encode_xattrs, object_type
from ha_sync.files.rules import Rules

PAGE = 2000
_KINDS = {
    pb.TreeChange.TYPE_FILE: TYPE_FILE,
    pb.TreeChange.TYPE_DIRECTORY: TYPE_DIRECTORY,
    pb.TreeChange.TYPE_SYMLINK: TYPE_SYMLINK,
    pb.TreeChange.TYPE_DATABASE: TYPE_FILE,
}


class Comparison:
    """Fed with the inventory's chunks in order, then ended."""

    def __init__(self, catalogue: TreeCatalogue, journal: Journal, walk: Walk, rules: Rules) -> None:
        self._catalogue = catalogue
        self._journal = journal
        self._rules = rules
        self._local = walk.below(b"")
        self._here: Local | None = next(self._local, None)
        self._entries = _own(catalogue)
        self._own: Entry | None = next(self._entries, None)
        self._last = b""
        self._dirty: list[bytes] = []
        self._put: list[Entry] = []
        self._removed: list[bytes] = []
        self.gone_files = 0
        self.new_files = 0

    def feed(self, chunk: bytes) -> None:
        """Raises ProtocolFault where the chunk is no inventory in order."""
        inventory = pb.TreeInventory.FromString(chunk)
        if len(inventory.block_hashes) != len(inventory.entries):
            raise ProtocolFault("cannot use the inventory", reason="block hashes do not match its entries")
        for theirs, hashes in zip(inventory.entries, inventory.block_hashes, strict=True):
            self._peer(_entry(theirs, hashes))
        self._store()

    def end(self) -> None:
        """Nothing more on the Standby."""
        while self._here is not None or self._own is not None:
            self._until(b"\xff" * 32)
            self._store()

    def _peer(self, entry: Entry) -> None:
        key = key_of(entry.path)
        if key <= self._last and self._last:
            raise ProtocolFault("cannot use the inventory", subject=repr(entry.path[:200]), reason="not in order")
        self._last = key
        self._until(key)
        own, here = self._take(key)
        if self._rules.skips_path(entry.path):
            return
        if here is None:
            self.gone_files += entry.type == TYPE_FILE
            if len(self._journal.counted) < COUNTED_MAX:
                self._journal.counted.add(entry.path)
            self._differs(entry)
        elif not (own is not None and _proves(own, here[1]) and _equal(own, entry, here[1])):
            self._differs(entry)

    def _take(self, key: bytes) -> tuple[Entry | None, Local | None]:
        own = here = None
        if self._own is not None and key_of(self._own.path) == key:
            own, self._own = self._own, next(self._entries, None)
        if self._here is not None and self._here[0] == key:
            here, self._here = self._here, next(self._local, None)
        return own, here

    def _differs(self, theirs: Entry) -> None:
        self._put.append(theirs)
        self._dirty.append(theirs.path)

    @property
    def lost_files(self) -> int:
        """By how many files this tree is smaller; what was only renamed stands in both counts."""
        return max(0, self.gone_files - self.new_files)

    def _until(self, key: bytes) -> None:
        """Everything here that sorts before ``key``, which the Standby does not have."""
        while self._own is not None and key_of(self._own.path) < key:
            self._removed.append(self._own.path)
            self._own = next(self._entries, None)
        while self._here is not None and self._here[0] < key:
            self.new_files += stat.S_ISREG(self._here[1].st_mode)
            self._dirty.append(path_of(self._here[0]))
            self._here = next(self._local, None)
            if len(self._dirty) >= PAGE:
                self._store()

    def _store(self) -> None:
        if not (self._put or self._removed or self._dirty):
            return
        with self._catalogue.transaction(durable=False):
            self._catalogue.remove_entries(self._removed)
            self._catalogue.put_entries(self._put)
            self._journal.mark_bulk(self._dirty)
        self._put, self._removed, self._dirty = [], [], []


def _own(catalogue: TreeCatalogue) -> Iterator[Entry]:
    after: bytes | None = None
    while page := catalogue.entries(after=after, limit=PAGE):
        yield from page
        after = page[-1].path


def _entry(theirs: pb.TreeChange, hashes: bytes) -> Entry:
    components(theirs.path)
    kind = _KINDS.get(theirs.type)
    if kind is None:
        raise ProtocolFault("cannot use the inventory", subject=repr(theirs.path[:200]), reason="unknown type")
    return Entry(
        path=theirs.path, type=kind, mode=theirs.mode, uid=theirs.uid, gid=theirs.gid, mtime_ns=theirs.mtime_ns,
        size=theirs.size, hash=theirs.hash, block_size=theirs.block_size, block_hashes=hashes,
        link_target=theirs.link_target, xattrs=encode_xattrs((x.name, x.value) for x in theirs.xattrs),
    )  # fmt: skip


def _proves(own: Entry, status: os.stat_result) -> bool:
    if own.type == TYPE_DIRECTORY:
        return stat.S_ISDIR(status.st_mode)
    return (
        own.witness.inode == status.st_ino
        and own.witness.ctime_ns == status.st_ctime_ns
        and own.type == object_type(status.st_mode)
        and (own.type != TYPE_FILE or own.size == status.st_size)
    )


def _equal(own: Entry, theirs: Entry, status: os.stat_result) -> bool:
    """Whether the Standby's object is as ours is now."""
    return (
        own.type == theirs.type
        and theirs.mode == stat.S_IMODE(status.st_mode)
        and theirs.uid == status.st_uid
        and theirs.gid == status.st_gid
        and own.xattrs == theirs.xattrs
        and own.hash == theirs.hash
        and own.link_target == theirs.link_target
        and theirs.mtime_ns == status.st_mtime_ns
    )
