"""Recordings that still grow, and large files that come in parts: hidden partials, appended in place, and what the
catalogue knows of them.

What comes in parts has a *version*, which names what is being sent: with it the Active finds out, when the stream
begins again, how much of it is here. A partial's name is never used twice; the catalogue's value ``partial:<path in
hex>`` names it and says how many bytes of it are durable. After a crash of the machine it is cut to that length, after
a crash of this process it is kept as it is. A partial that a PUT has taken over or a DELETE has dropped leaves with
that group; if the group is dropped it grows on. Blocking.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree.content import write_at
from ha_sync.apply.tree.trash import hidden_directory
from ha_sync.catalogue.tree import TreeCatalogue
from ha_sync.files.confine import Root
from ha_sync.files.places import PARTIAL

PREFIX = "partial:"
OPEN_MAX = 256
"""Descriptors kept open; beyond it a partial is opened again when it grows."""


@dataclass(slots=True, kw_only=True)
class Partial:
    """One growing file."""

    path: bytes
    name: bytes  # in the hidden directory
    size: int
    durable: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    version: bytes = b""  # of a file that comes in parts; empty: it still grows
    fd: int = -1
    dirty: bool = False
    touched: bool = True  # grew since the last compare began

    def encode(self) -> str:
        """For the catalogue."""
        name = self.name.decode("ascii")
        return f"{name}:{self.size}:{self.mode}:{self.uid}:{self.gid}:{self.mtime_ns}:{self.version.hex()}"

    @classmethod
    def decode(cls, key: str, value: str) -> Partial:
        """From the catalogue."""
        name, size, mode, uid, gid, mtime_ns, *version = value.split(":")
        return cls(
            path=bytes.fromhex(key.removeprefix(PREFIX)),
            name=name.encode("ascii"),
            size=int(size),
            durable=int(size),
            mode=int(mode),
            uid=int(uid),
            gid=int(gid),
            mtime_ns=int(mtime_ns),
            version=bytes.fromhex("".join(version)),
        )

    @property
    def key(self) -> str:
        """In the catalogue."""
        return PREFIX + self.path.hex()

    @property
    def place(self) -> bytes:
        """Below the root."""
        return PARTIAL + b"/" + self.name


class Partials:
    """See the module."""

    def __init__(self, root: Root, catalogue: TreeCatalogue, *, unused_name: Callable[[], bytes]) -> None:
        self._root = root
        self._catalogue = catalogue
        self._unused_name = unused_name
        self._directory = hidden_directory(root, PARTIAL)
        self._live: dict[bytes, Partial] = {}
        self._leaving: list[Partial] = []  # claimed or dropped by the open group
        self._left: list[Partial] = []  # by whole groups that wait for their commit
        self._new_names = False

    def close(self) -> None:
        """Releases every descriptor."""
        for partial in (*self._live.values(), *self._leaving, *self._left):
            self._close(partial)
        os.close(self._directory)

    @staticmethod
    def _close(partial: Partial) -> None:
        if partial.fd >= 0:
            os.close(partial.fd)
            partial.fd = -1

    def load(self, *, same_boot: bool) -> None:
        """Takes up what a previous run left; sweeps what nobody knows."""
        for key, value in self._catalogue.values_with_prefix(PREFIX):
            partial = Partial.decode(key, value)
            try:
                status = os.stat(partial.name, dir_fd=self._directory, follow_symlinks=False)
            except FileNotFoundError:
                self._catalogue.forget(key)
                continue
            partial.size = status.st_size
            if not same_boot and status.st_size > partial.durable:
                self._cut(partial)
            self._live[partial.path] = partial
        known = {partial.name for partial in self._live.values()}
        for name in os.listdir(self._directory):
            if os.fsencode(name) not in known:
                os.unlink(name, dir_fd=self._directory)

    def _cut(self, partial: Partial) -> None:
        os.truncate(self._descriptor(partial), partial.durable)
        partial.size = partial.durable

    def _descriptor(self, partial: Partial) -> int:
        if partial.fd < 0:
            if sum(each.fd >= 0 for each in self._live.values()) >= OPEN_MAX:
                for each in self._live.values():
                    if not each.dirty:
                        self._close(each)
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            partial.fd = os.open(partial.name, flags, dir_fd=self._directory)
        return partial.fd

    def __len__(self) -> int:
        return len(self._live)

    # ---- growing

    def grow(self, change: pb.TreeChange, payload: memoryview) -> bool:
        """Appends; False where bytes are missing before these, or those that are here are of another version."""
        partial = self._live.get(change.path)
        if change.offset == 0:
            if partial is not None:
                self.drop(change.path)
            partial = self._begin(change)
        if partial is None or change.offset > partial.size or change.version != partial.version:
            return False
        write_at(self._descriptor(partial), payload, change.offset)
        partial.size = max(partial.size, change.offset + len(payload))
        partial.mode, partial.uid, partial.gid = change.mode, change.uid, change.gid
        partial.mtime_ns = change.mtime_ns
        partial.dirty = partial.touched = True
        return True

    def _begin(self, change: pb.TreeChange) -> Partial:
        name = self._unused_name()
        fd = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._directory
        )
        partial = Partial(
            path=change.path,
            name=name,
            size=0,
            durable=0,
            mode=change.mode,
            uid=change.uid,
            gid=change.gid,
            mtime_ns=change.mtime_ns,
            version=change.version,
            fd=fd,
        )
        self._live[change.path] = partial
        self._new_names = True
        return partial

    # ---- a partial leaves: taken over by a PUT, or of no use any more

    def claim(self, path: bytes) -> Partial | None:
        """Takes a partial over as the base of its final content; its descriptor may be written to."""
        partial = self._live.get(path)
        if partial is not None:
            self._descriptor(partial)
            self.drop(path)
        return partial

    def drop(self, path: bytes) -> None:
        """The file is gone, or came whole: with its group the partial goes."""
        partial = self._live.pop(path, None)
        if partial is not None:
            self._leaving.append(partial)

    def drop_below(self, path: bytes) -> None:
        """A directory is gone."""
        if not self._live:
            return
        below = path + b"/"
        for each in [each for each in self._live if each.startswith(below)]:
            self.drop(each)

    def discard(self, partial: Partial) -> None:
        """Its content was not what its PUT said: it is worth nothing, whatever becomes of the group."""
        if partial in self._leaving:
            self._leaving.remove(partial)
            self._left.append(partial)

    @property
    def leaving(self) -> bool:
        """Whether the open group takes one away."""
        return bool(self._leaving)

    def end_group(self) -> None:
        """The open group is whole: with its commit its partials go."""
        self._left += self._leaving
        self._leaving.clear()

    def release(self, *, everything: bool) -> None:
        """The open group was dropped (or the whole batch): its partials grow on."""
        back = self._left + self._leaving if everything else list(self._leaving)
        self._leaving.clear()
        if everything:
            self._left.clear()
        for partial in back:
            if partial.path in self._live:
                self._left.append(partial)
            else:
                partial.size = os.fstat(self._descriptor(partial)).st_size
                self._live[partial.path] = partial

    # ---- durability

    @property
    def dirty(self) -> bool:
        """Whether bytes wait for a sync."""
        return bool(self._left) or any(partial.dirty for partial in self._live.values())

    def sync(self) -> None:
        """Makes what grew durable; the lengths are stored by ``store`` in the commit that follows."""
        if self._new_names:
            os.fsync(self._directory)
            self._new_names = False
        for partial in self._live.values():
            if partial.dirty:
                os.fdatasync(self._descriptor(partial))

    def store(self) -> None:
        """Inside the commit's transaction: what is durable now, and what is a partial no more."""
        for partial in self._left:
            self._catalogue.forget(partial.key)
        for partial in self._live.values():
            if partial.dirty or partial.durable != partial.size:
                self._catalogue.put(partial.key, partial.encode())

    def stored(self) -> None:
        """The commit is durable."""
        for partial in self._live.values():
            if partial.dirty:
                partial.dirty = False
                partial.durable = partial.size

    def published(self) -> None:
        """The steps are done: what was taken over stands in the tree, the rest is removed."""
        for partial in self._left:
            self._close(partial)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial.name, dir_fd=self._directory)
        self._left.clear()

    # ---- full syncs and promotion

    def begin_compare(self) -> None:
        """From here on only those that grow again are believed to exist on the Active."""
        for partial in self._live.values():
            partial.touched = False

    def finish_compare(self) -> None:
        """The full sync is done: what the Active did not mention is no recording of its."""
        for path in [path for path, partial in self._live.items() if not partial.touched]:
            self.drop(path)

    def paths(self) -> list[bytes]:
        """Of all of them."""
        return sorted(self._live)

    def in_parts(self) -> list[Partial]:
        """Those that come in parts."""
        return [partial for partial in self._live.values() if partial.version]

    def take(self, path: bytes) -> Partial:
        """For promotion: its descriptor is open, its bytes are synced by the caller."""
        partial = self._live.pop(path)
        self._descriptor(partial)
        return partial
