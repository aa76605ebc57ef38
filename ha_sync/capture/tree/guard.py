"""Tells a tree that was emptied by its users from one that is gone: another disk, no disk, another directory.

The root carries a marker file with an identity, written once; the catalogue remembers it and the filesystem.
``look`` answers why the tree must not be believed, or ``""``. Deletions are counted over WINDOW_S, so that a mass
delete in portions is one. Blocking; belongs to the dataset's thread.
"""

from __future__ import annotations

import enum
import errno
import os
import uuid
from collections import deque
from dataclasses import dataclass

from ha_sync.catalogue.tree import FILESYSTEM, IDENTITY, ROOT, TreeCatalogue
from ha_sync.files.confine import Root
from ha_sync.files.places import MARKER
from ha_sync.files.watch import filesystem_type

MARKER_MAX = 256
MASS_MIN = 20
WINDOW_S = 10.0

RESTORED = ".restored"
"""A file beside the catalogue: an administrator restored the tree, so what the Standby has and it has not is gone."""

STABLE_IDS = frozenset({"ext2", "ext3", "ext4", "btrfs", "f2fs"})
"""Filesystems whose id comes from the filesystem itself and survives a reboot."""

UNWRITTEN = "read-only:"
"""Begins the identity of a filesystem that took no marker."""


class Accepted(enum.Enum):
    """How far what an operator accepted, by ``--accept-deletes`` or a restore, has come; the next loss is judged."""

    NOTHING = enum.auto()
    BEING_FOUND = enum.auto()
    BEING_SENT = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """What holds the tree."""

    kind: str
    fsid: int
    device: int
    boot: str

    def text(self) -> str:
        """For the catalogue."""
        return f"{self.kind}:{self.fsid}:{self.device}:{self.boot}"

    def is_same(self, stored: str, *, removable: bool = False) -> bool:
        """Whether the stored one is this one, as far as that can be known across a reboot.

        A ``removable`` one comes back as another device.
        """
        kind, fsid, device, boot = stored.split(":")
        if boot == self.boot and not removable:
            return (kind, int(fsid), int(device)) == (self.kind, self.fsid, self.device)
        if self.kind in STABLE_IDS or kind in STABLE_IDS:
            return (kind, int(fsid)) == (self.kind, self.fsid)
        return kind == self.kind


def boot_id() -> str:
    """Names this run of the kernel."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class RootGuard:
    """The root's identity, and how much was deleted."""

    def __init__(self, root: Root, catalogue: TreeCatalogue, *, percent: int, removable: bool = False) -> None:
        self._root = root
        self._removable = removable
        self._catalogue = catalogue
        self._percent = percent
        status = os.fstat(root.fd)
        self._inode, self._device = status.st_ino, status.st_dev
        self._recent: deque[tuple[float, int]] = deque()
        self.kind = filesystem_type(root.path)

    def _filesystem(self) -> Filesystem:
        return Filesystem(
            kind=self.kind, fsid=os.fstatvfs(self._root.fd).f_fsid, device=self._device, boot=boot_id()
        )  # fmt: skip

    def enter(self) -> str:
        """First look after opening; adopts or writes the marker where nothing is known yet."""
        known, here = self._catalogue.get(IDENTITY), self._read_marker()
        stored = self._catalogue.get(FILESYSTEM)
        if known is None:
            # As a Standby this node has marked what it applied to.
            if here is None and self._catalogue.get(ROOT) not in {None, str(self._inode)}:
                return "it is not the directory that this node wrote as a standby: is the right filesystem mounted?"
            self.adopt()
            return ""
        if here is None:
            return "the root has lost its marker: is the right filesystem mounted?"
        if here != known:
            return "the root's marker belongs to another tree"
        if stored is not None and not self._filesystem().is_same(stored, removable=self._removable):
            return "the root is on another filesystem than before"
        self._catalogue.put(FILESYSTEM, self._filesystem().text())
        return ""

    def adopt(self) -> None:
        """This root is the dataset from now on."""
        here = self._read_marker()
        if here is None:
            here = uuid.uuid4().hex
            try:
                self._write_marker(here)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                here = self._unwritten()
        self._catalogue.put(IDENTITY, here)
        self._catalogue.put(FILESYSTEM, self._filesystem().text())

    def look(self) -> str:
        """Cheap: before anything is deleted on the Standby."""
        try:
            status = os.stat(self._root.path)
        except OSError as error:
            return f"the root cannot be found: {error.strerror}"
        if (status.st_ino, status.st_dev) != (self._inode, self._device):
            return "the root was replaced by another directory or filesystem"
        if self._read_marker() != self._catalogue.get(IDENTITY):
            return "the root has lost its marker"
        return ""

    def _read_marker(self) -> str | None:
        try:
            fd = self._root.open(MARKER, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return self._unwritten() if os.fstatvfs(self._root.fd).f_flag & os.ST_RDONLY else None
        try:
            return os.read(fd, MARKER_MAX).decode("ascii", "replace").strip()
        finally:
            os.close(fd)

    def _unwritten(self) -> str:
        """The identity of a read-only filesystem that has no marker."""
        return f"{UNWRITTEN}{self.kind}-{os.fstatvfs(self._root.fd).f_fsid:x}"

    def _write_marker(self, identity: str) -> None:
        fd = self._root.open(MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, identity.encode("ascii") + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove_marker(self) -> tuple[str, ...]:
        """For a detach."""
        try:
            os.unlink(MARKER, dir_fd=self._root.fd)
        except FileNotFoundError:
            return ()
        for key in (ROOT, IDENTITY, FILESYSTEM):
            self._catalogue.forget(key)
        return (os.path.join(self._root.path, os.fsdecode(MARKER)),)

    # ---- deletions

    def deleting(self, files: int, *, now: float) -> str:
        """That many files are about to be deleted; answers why not."""
        if not files:
            return ""
        self._recent.append((now, files))
        while self._recent and now - self._recent[0][0] > WINDOW_S:
            self._recent.popleft()
        gone = sum(count for _, count in self._recent)
        if gone < MASS_MIN:
            return ""
        known = max(self._catalogue.files_below(b""), gone)
        if gone * 100 <= self._percent * known:
            return ""
        return f"{gone} of {known} files are gone at once"

    def forgive(self) -> None:
        """An operator accepted what was counted."""
        self._recent.clear()
