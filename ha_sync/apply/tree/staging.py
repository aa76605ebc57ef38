"""Stages the changes of frames: everything is written under hidden names, nothing is visible yet.

A *batch* holds whole groups that will be committed together and at most one open group. Staging sees the tree as
the groups before it in the batch will leave it: a second version of a file is built from the first, though neither
is published. A small file costs five system calls. Invariant: a step is made only for content that was verified.
Blocking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree.changes import DELETE, DIRECTORY, GROW, META, SYMLINK, Part
from ha_sync.apply.tree.content import Draft, write_at
from ha_sync.apply.tree.partials import Partial, Partials
from ha_sync.apply.tree.publish import nothing_fails
from ha_sync.apply.tree.steps import TYPES, Kind, Step, metadata_of
from ha_sync.apply.tree.syncing import SYNCFS_FROM, syncfs
from ha_sync.apply.tree.unheld import Unheld
from ha_sync.catalogue.tree import Entry, TreeCatalogue, Witness
from ha_sync.core.position import Position
from ha_sync.errors import ProtocolFault, Refused, RepairNeeded
from ha_sync.files.blocks import block_hash, whole_hash
from ha_sync.files.confine import Root
from ha_sync.files.metadata import NotApplied, apply_to_descriptor, apply_to_symlink, object_type
from ha_sync.files.places import STAGE, Scope, join

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = (OSError, Refused)
"""A symlink in the way is as good as nothing there: the publisher takes it away before it puts a directory."""

BATCH_STEPS_MAX = 4096
BATCH_BYTES_MAX = 128 * 1024 * 1024
"""Groups share a commit up to these bounds."""
DRAFTS_MAX = 128
"""Files of one group whose pieces are not all there yet."""


@dataclass(slots=True, kw_only=True)
class _Open:
    """A file of which more pieces come."""

    draft: Draft
    source: bytes  # its place below the root
    partial: Partial | None = None  # taken over: the descriptor is not ours to close

    @property
    def is_partial(self) -> bool:
        """Whether the draft is a recording that grew here."""
        return self.partial is not None


@dataclass(slots=True, kw_only=True)
class Group:
    """What the frames of one group make."""

    steps: list[Step] = field(default_factory=list)
    needs: list[bytes] = field(default_factory=list)
    staged_bytes: int = 0
    grew: bool = False


@dataclass(slots=True)
class Batch:
    """Whole groups that wait for one commit."""

    steps: list[Step] = field(default_factory=list)
    position: Position | None = None
    consistent: bool = True
    staged_bytes: int = 0
    only_growth: bool = True  # of growing files: their acknowledgement may wait for the next sync

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return self.position is None

    @property
    def full(self) -> bool:
        """Whether it must be committed before more is staged."""
        return len(self.steps) >= BATCH_STEPS_MAX or self.staged_bytes >= BATCH_BYTES_MAX

    def staged_names(self, size: int) -> list[bytes]:
        """Where, in the stage, files of at least ``size`` bytes stand."""
        large = (step.source for step in self.steps if step.change.size >= size)
        return [source.removeprefix(STAGE + b"/") for source in large if source.startswith(STAGE)]


class Overlay:
    """The tree as the steps of the batch will leave it, above what is published."""

    def __init__(self) -> None:
        self._latest: dict[bytes, tuple[int, Step]] = {}
        self._removed: dict[bytes, int] = {}
        self._count = 0

    def add(self, step: Step) -> None:
        """In the order in which they will be performed."""
        self._count += 1
        path = step.change.path
        if step.kind is Kind.REMOVE:
            self._removed[path] = self._count
            self._latest.pop(path, None)
        elif step.kind is not Kind.ADJUST:
            self._latest[path] = (self._count, step)

    def step_of(self, path: bytes) -> Step | None:
        """What will stand there because of the batch."""
        found = self._latest.get(path)
        if found is None or found[0] < self._removed_at(path):
            return None
        return found[1]

    def hides(self, path: bytes) -> bool:
        """Whether what is published there will be gone or replaced."""
        return path in self._latest or self._removed_at(path) > 0

    def _removed_at(self, path: bytes) -> int:
        if not self._removed:
            return 0
        at = self._removed.get(path, 0)
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            at = max(at, self._removed.get(path, 0))
        return at

    def has_hash(self, content_hash: bytes) -> Step | None:
        """A staged file with this content."""
        for _, step in self._latest.values():
            if step.kind is Kind.PUBLISH and step.change.hash == content_hash:
                return step
        return None


class Stager:
    """See the module."""

    def __init__(
        self,
        root: Root,
        *,
        scope: Scope,
        catalogue: TreeCatalogue,
        partials: Partials,
        unused_name: Callable[[], bytes],
        refused: Callable[[bytes, tuple[NotApplied, ...]], None],
        unheld: Unheld | None = None,
        fail_point: Callable[[str], None] = nothing_fails,
    ) -> None:
        self._root = root
        self._scope = scope
        self._catalogue = catalogue
        self._partials = partials
        self._unused_name = unused_name
        self._refused = refused
        self._unheld = unheld
        self._fail_point = fail_point
        self._fd = os.open(STAGE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root.fd)
        self._open: dict[bytes, _Open] = {}
        self._unsynced: list[int] = []  # descriptors of finished files
        self._many_unsynced = False
        self._names_unsynced = False
        self.overlay = Overlay()
        self.group = Group()

    def close(self) -> None:
        """Releases every descriptor."""
        self.drop_open()
        self._close_unsynced()
        os.close(self._fd)

    @property
    def fd(self) -> int:
        """The stage's directory."""
        return self._fd

    # ---- durability

    def _sync_later(self, fd: int) -> None:
        if self._many_unsynced:
            return
        self._unsynced.append(os.dup(fd))
        if len(self._unsynced) >= SYNCFS_FROM:
            self._many_unsynced = True
            self._close_unsynced()

    def _close_unsynced(self) -> None:
        for fd in self._unsynced:
            os.close(fd)
        self._unsynced.clear()

    @property
    def many_unsynced(self) -> bool:
        """Whether finished files are so many that only a sync of the whole filesystem pays."""
        return self._many_unsynced

    def nothing_unsynced(self) -> None:
        """All that was finished is dropped, or somebody else syncs the filesystem: no descriptor is kept for it."""
        self._many_unsynced = self._names_unsynced = False
        self._close_unsynced()

    def sync(self) -> bool:
        """Makes every finished file durable; True if the whole filesystem was synced."""
        whole = self._many_unsynced
        if whole:
            syncfs(self._fd)
        elif self._unsynced or self._names_unsynced:
            # A new file's fsync makes its name durable too (ext4, XFS, btrfs, f2fs); a symlink has no descriptor.
            for fd in self._unsynced:
                os.fsync(fd)
            if self._names_unsynced or not self._unsynced:
                os.fsync(self._fd)
        self.nothing_unsynced()
        return whole

    # ---- groups

    def take(self, part: Part) -> None:
        """Stages one change. Raises OSError, ProtocolFault, or RepairNeeded after noting what is needed."""
        change, payload = part
        self._fail_point("STAGE")
        if self._unheld is not None and self._unheld.refuses(change, self._will_stand):
            return
        action = change.action
        if action == GROW:
            self._grow(change, payload)
        elif action == DELETE:
            self._delete(change)
        elif action == META:
            self._meta(change)
        elif change.type == DIRECTORY:
            self._directory(change)
        elif change.type == SYMLINK:
            self._symlink(change)
        else:
            self._file(change, payload)

    def _will_stand(self, path: bytes) -> bool:
        return path in self._open or self.overlay.step_of(path) is not None

    def _add(self, step: Step) -> None:
        self.group.steps.append(step)
        self.overlay.add(step)

    def end_group(self) -> Group:
        """The open group is whole."""
        if self._open:
            path = next(iter(self._open))
            raise ProtocolFault("refused a group", subject=repr(path), reason="it ends before the file does")
        self._partials.end_group()
        group, self.group = self.group, Group()
        return group

    def drop_open(self) -> None:
        """Forgets the open group; its files stay in the stage until they are swept."""
        for each in self._open.values():
            if not each.is_partial:
                os.close(each.draft.fd)
        self._open.clear()
        self.group = Group()
        self._partials.release(everything=False)

    def committed(self, whole: Sequence[Step] = ()) -> None:
        """Groups are published: only the ``whole`` ones after them and the open one lie above the tree now."""
        self.overlay = Overlay()
        for step in (*whole, *self.group.steps):
            self.overlay.add(step)

    def _needed(self, path: bytes, reason: str) -> RepairNeeded:
        self.group.needs.append(path)
        return RepairNeeded("cannot use what was sent for", subject=os.fsdecode(path), reason=reason)

    # ---- files

    def _file(self, change: pb.TreeChange, payload: memoryview) -> None:
        self.group.staged_bytes += len(payload)
        known = self._open.get(change.path)
        if known is None and not change.more and len(payload) == change.size and not change.offset:
            self._whole_file(change, payload)
            return
        if known is None:
            known = self._begin_file(change)
        if not known.draft.belongs_to(change):
            raise ProtocolFault("refused a frame", subject=repr(change.path), reason="pieces of different content")
        known.draft.write(change, payload)
        if known.is_partial:
            known.draft.clear_holes(change)
        if not change.more:
            del self._open[change.path]
            self._finish_file(change, known)

    def _whole_file(self, change: pb.TreeChange, payload: memoryview) -> None:
        """The usual case: everything stands in this payload."""
        step, size = change.block_size, change.size
        if size <= step:
            hashes = block_hash(payload) if size else b""
        else:
            hashes = b"".join(block_hash(payload[at : at + step]) for at in range(0, size, step))
        if whole_hash(hashes, size) != change.hash:
            raise self._needed(change.path, "its content is not what was announced")
        name = self._unused_name()
        fd = os.open(name, _CREATE, change.mode & 0o777, dir_fd=self._fd)
        try:
            if size and os.write(fd, payload) != size:
                write_at(fd, payload, 0)
            inode = self._dress(fd, change)
            self._sync_later(fd)
        finally:
            os.close(fd)
        self._no_more_partials(change.path)
        source = join(STAGE, name)
        self._add(Step(kind=Kind.PUBLISH, change=_plain(change), source=source, inode=inode, block_hashes=hashes))

    def _dress(self, fd: int, change: pb.TreeChange) -> int:
        """Owner, mode, attributes and times; returns the inode."""
        status = os.fstat(fd)
        if change.xattrs:
            self._refused(change.path, apply_to_descriptor(fd, metadata_of(change)))
            return status.st_ino
        if status.st_uid != change.uid or status.st_gid != change.gid or stat.S_IMODE(status.st_mode) != change.mode:
            self._refused(change.path, apply_to_descriptor(fd, metadata_of(change)))
        else:
            os.utime(fd, ns=(change.mtime_ns, change.mtime_ns))
        return status.st_ino

    def _begin_file(self, change: pb.TreeChange) -> _Open:
        if len(self._open) >= DRAFTS_MAX:
            raise ProtocolFault(
                "refused a frame", subject=repr(change.path), reason="too many files are open in a group"
            )
        partial = None if change.copy_from else self._partials.claim(change.path)
        if partial is not None:
            opened = _Open(draft=Draft(partial.fd, change), source=partial.place, partial=partial)
        else:
            name = self._unused_name()
            fd = os.open(name, _CREATE, 0o600, dir_fd=self._fd)
            opened = _Open(draft=Draft(fd, change), source=join(STAGE, name))
            if change.more and not change.zero_blocks and not self._has_base(change):
                self._reserve(opened.draft)
        self._open[change.path] = opened
        return opened

    def _reserve(self, draft: Draft) -> None:
        try:
            draft.reserve(draft.size)
        except OSError:
            os.close(draft.fd)
            raise

    def _has_base(self, change: pb.TreeChange) -> bool:
        return bool(change.copy_from) or self._catalogue.entry(change.path) is not None

    def _finish_file(self, change: pb.TreeChange, opened: _Open) -> None:
        draft = opened.draft
        try:
            if not self._completed(change, opened):
                if opened.partial is not None:
                    self._partials.discard(opened.partial)
                raise self._needed(change.path, "what this node has does not give the announced content")
            inode = self._dress(draft.fd, change)
            self._sync_later(draft.fd)
        finally:
            if not opened.is_partial:
                os.close(draft.fd)
        self._no_more_partials(change.path)
        self._add(
            Step(
                kind=Kind.PUBLISH,
                change=_plain(change),
                source=opened.source,
                inode=inode,
                block_hashes=draft.block_hashes,
            )
        )

    def _completed(self, change: pb.TreeChange, opened: _Open) -> bool:
        draft = opened.draft
        if draft.complete:
            return draft.verified()
        if opened.is_partial and draft.fill_from_itself() and draft.verified():
            return True
        tried: set[bytes] = set()
        for place, known in self._bases(change):
            if place not in tried and self._fill(draft, place, known, change.moves) and draft.verified():
                return True
            tried.add(place)
        return False

    def _fill(self, draft: Draft, place: bytes, known: Entry | None, moves: Sequence[pb.TreeMove]) -> bool:
        try:
            base = self._root.open(place, os.O_RDONLY | os.O_NONBLOCK)
        except _NOT_THERE:
            return False
        try:
            if not stat.S_ISREG(os.fstat(base).st_mode):
                return False
            return draft.fill_by(moves, base) if moves else draft.fill_from(base, known)
        finally:
            os.close(base)

    def _bases(self, change: pb.TreeChange) -> list[tuple[bytes, Entry | None]]:
        """Files that may hold the rest, best first; the verification decides."""
        bases: list[tuple[bytes, Entry | None]] = []
        for path in (change.copy_from, change.path):
            if not path:
                continue
            staged = self.overlay.step_of(path)
            if staged is not None and staged.kind is Kind.PUBLISH:
                bases.append((staged.source, staged.entry(Witness())))
            entry = self._catalogue.entry(path)
            if entry is not None or path == change.path:
                bases.append((self._scope.place(path), entry))
        if change.copy_from:
            bases += self._with_same_hash(change)
        return bases

    def _with_same_hash(self, change: pb.TreeChange) -> list[tuple[bytes, Entry | None]]:
        bases: list[tuple[bytes, Entry | None]] = []
        staged = self.overlay.has_hash(change.hash)
        if staged is not None:
            bases.append((staged.source, staged.entry(Witness())))
        other = self._catalogue.path_with(change.hash)
        if other is not None:
            bases.append((self._scope.place(other), self._catalogue.entry(other)))
        return bases

    def _grow(self, change: pb.TreeChange, payload: memoryview) -> None:
        if not self._partials.grow(change, payload):
            raise self._needed(change.path, "the beginning of the recording is missing here")
        self.group.grew = True
        self.group.staged_bytes += len(payload)

    # ---- the rest

    def _symlink(self, change: pb.TreeChange) -> None:
        name = self._unused_name()
        os.symlink(change.link_target, name, dir_fd=self._fd)
        self._names_unsynced = True
        self._refused(change.path, apply_to_symlink(self._fd, name, metadata_of(change)))
        inode = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_ino
        self._no_more_partials(change.path)
        self._add(Step(kind=Kind.PUBLISH, change=_plain(change), source=join(STAGE, name), inode=inode))

    def _directory(self, change: pb.TreeChange) -> None:
        """A new one is staged too: only then is its inode known if a crash asks what was done."""
        inode, source = self._directory_inode(change.path), b""
        if not inode:
            name = self._unused_name()
            os.mkdir(name, 0o700, dir_fd=self._fd)
            inode, source = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_ino, join(STAGE, name)
            self._names_unsynced = True
        self._partials.drop(change.path)
        self._add(Step(kind=Kind.DIRECTORY, change=_plain(change), source=source, inode=inode))

    def _directory_inode(self, path: bytes) -> int:
        staged = self.overlay.step_of(path)
        if staged is not None:
            return staged.inode if staged.kind is Kind.DIRECTORY else 0
        if self.overlay.hides(path):
            return 0
        try:
            status = self._root.lstat(self._scope.place(path))
        except _NOT_THERE:
            return 0
        return status.st_ino if stat.S_ISDIR(status.st_mode) else 0

    def _delete(self, change: pb.TreeChange) -> None:
        self._no_more_partials(change.path)
        self._add(Step(kind=Kind.REMOVE, change=_plain(change), inode=self._inode_of(change.path)))

    def _no_more_partials(self, path: bytes) -> None:
        """What stands there now is no growing recording, and no directory with such."""
        self._partials.drop(path)
        self._partials.drop_below(path)

    def _inode_of(self, path: bytes) -> int:
        staged = self.overlay.step_of(path)
        if staged is not None and staged.inode:
            return staged.inode
        try:
            return self._root.lstat(self._scope.place(path)).st_ino
        except _NOT_THERE:
            return 0

    def _meta(self, change: pb.TreeChange) -> None:
        if change.type == DIRECTORY:
            self._directory(change)
            return
        staged = self.overlay.step_of(change.path)
        if staged is not None:
            inode, kind = staged.inode, TYPES[staged.change.type]
        else:
            inode, kind = self._published(change.path)
        if not inode or kind != TYPES[change.type]:
            raise self._needed(change.path, "its metadata came, but the object is not here")
        self._add(Step(kind=Kind.ADJUST, change=_plain(change), inode=inode))

    def _published(self, path: bytes) -> tuple[int, int]:
        if self.overlay.hides(path) or self._catalogue.entry(path) is None:
            return 0, 0
        try:
            status = self._root.lstat(self._scope.place(path))
        except _NOT_THERE:
            return 0, 0
        return status.st_ino, object_type(status.st_mode)


def _plain(change: pb.TreeChange) -> pb.TreeChange:
    """Without what only the transfer needed."""
    del change.blocks[:]
    del change.zero_blocks[:]
    del change.moves[:]
    return change
