"""Performs the steps of a group below the root: renames staged objects into place, removes, adjusts metadata.

Invariants: every step can be performed again after a crash and then does nothing that a later step of the same
group undid; nothing outside the root is opened; the node's own files (exclude, node_local) are never touched, not
even below a removed directory. What stands in the way of the Active's tree (a file where a directory belongs, a
symlink) goes to the trash. Directories get their metadata at the end, because every rename below them changes their
times. Blocking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ha_sync.apply.tree.changes import DATABASE, DIRECTORY, SYMLINK
from ha_sync.apply.tree.content import copy_range, witness_of
from ha_sync.apply.tree.rooting import make_own_directory
from ha_sync.apply.tree.steps import TYPES, Kind, Step, metadata_of
from ha_sync.apply.tree.syncing import SYNCFS_FROM, syncfs
from ha_sync.apply.tree.trash import Trash
from ha_sync.catalogue.tree import TYPE_DIRECTORY, Entry, TreeCatalogue
from ha_sync.core.dataset import Report
from ha_sync.errors import Refused
from ha_sync.files.confine import Root, split
from ha_sync.files.metadata import Metadata, NotApplied, apply_to_descriptor, apply_to_symlink, object_type
from ha_sync.files.places import HELD, STAGE, Scope, join

COMPANIONS = (b"-journal", b"-wal", b"-shm")
"""Of a SQLite file: left beside a new version they would be rolled into it."""

_TARGET_IS_DIRECTORY = frozenset({errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST})
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def nothing_fails(point: str) -> None:
    """The fail point of production; tests put one in its place that ends the process."""


@dataclass(slots=True)
class Outcome:
    """What the catalogue must learn when the steps are done."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    removed: list[bytes] = field(default_factory=list)  # with all below them
    directories: dict[bytes, Step | None] = field(default_factory=dict)  # touched, with their new metadata if any
    lost: dict[bytes, None] = field(default_factory=dict)  # neither staged nor published: to be asked for


class Publisher:
    """See the module. ``unused_name`` gives names in the stage that were never used."""

    def __init__(
        self,
        root: Root,
        *,
        scope: Scope,
        catalogue: TreeCatalogue,
        trash: Trash,
        unused_name: Callable[[], bytes],
        report: Report,
        fail_point: Callable[[str], None] = nothing_fails,
    ) -> None:
        self._root = root
        self._scope = scope
        self._catalogue = catalogue
        self._trash = trash
        self._unused_name = unused_name
        self._report = report
        self._fail_point = fail_point
        self._unsynced: set[bytes] = set()
        self._adjusted = False  # metadata changed in place: durable by a sync of the filesystem only
        self._told: set[str] = set()
        self._known: set[bytes] = set()  # those of the paths being published that had an entry before

    # ---- a group

    def perform(self, steps: list[Step], *, now: float, again: bool = False) -> Outcome:
        """All steps in order. ``again``: after a crash, some of them may have been done."""
        self._root.forget()  # directories may have been moved by somebody since
        outcome = Outcome()
        self._known = self._catalogue.known_of(step.change.path for step in steps if step.kind is Kind.PUBLISH)
        for step in steps:
            self._fail_point(step.kind.name)
            self._one(step, outcome, now=now, again=again)
        self._finish_directories(outcome)
        return outcome

    def _one(self, step: Step, outcome: Outcome, *, now: float, again: bool) -> None:
        if step.kind is Kind.PUBLISH:
            self._publish(step, outcome, now=now, again=again)
        elif step.kind is Kind.REMOVE:
            self._remove(step, outcome, again=again)
        elif step.kind is Kind.DIRECTORY:
            self._directory(step, outcome, again=again)
        else:
            self._adjust(step, outcome)

    def _touch(self, place: bytes, outcome: Outcome) -> None:
        parent, _ = split(place)
        outcome.directories.setdefault(parent, None)
        self._unsynced.add(parent)

    def touched(self, directory: bytes) -> None:
        """Something was renamed in it by others of this package."""
        self._unsynced.add(directory)

    def put_in_place(self, source: bytes, path: bytes, *, now: float) -> None:
        """Publishes a hidden file outside of any group (promotion)."""
        place = self._scope.place(path)
        self._keep_replaced(place, now=now)
        self._move_in(source, place, lambda: self._make_room(path, Outcome()))
        self._unsynced.add(split(place)[0])

    # ---- publishing

    def _publish(self, step: Step, outcome: Outcome, *, now: float, again: bool) -> None:
        path = step.change.path
        if again:
            # A directory may have made room before the crash: what the catalogue knows below it is gone.
            outcome.removed.append(path)
        place = self._scope.place(path)
        if step.change.type == DATABASE:
            self._remove_companions(place)
        elif path in self._known:
            self._keep_replaced(place, now=now)
        if not again and (status := self._moved_plainly(step.source, place)) is not None:
            self._touch(place, outcome)
            outcome.lost.pop(path, None)
            outcome.entries[path] = step.entry(witness_of(status))
            return
        moved = self._move_in(step.source, place, lambda: self._make_room(path, outcome))
        if moved:
            self._touch(place, outcome)
        outcome.lost.pop(path, None)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
            status = self._root.lstat(place)
            if moved or status.st_ino == step.inode:
                outcome.entries[path] = step.entry(witness_of(status))
                return
        # After a crash: a later step of the group took it away again, or the filesystem lost what was synced.
        outcome.entries.pop(path, None)
        outcome.lost[path] = None

    def _keep_replaced(self, place: bytes, *, now: float) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
            self._trash.keep_replaced(place, now=now)

    def _remove_companions(self, place: bytes) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
            parent, name = split(place)
            directory = self._root.directory(parent)
            for suffix in COMPANIONS:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name + suffix, dir_fd=directory)

    def _make_room(self, path: bytes, outcome: Outcome) -> None:
        """A directory stands where a file or a link belongs."""
        place = self._scope.place(path)
        with contextlib.suppress(FileNotFoundError):
            status = self._root.lstat(place)
            if stat.S_ISDIR(status.st_mode):
                self.take_away(place, status)
        for known in (outcome.entries, outcome.lost):
            _forget_below(known, path)
        _forget_below(outcome.directories, place)
        outcome.removed.append(path)

    def _moved_plainly(self, source: bytes, place: bytes) -> os.stat_result | None:
        """The usual case, nothing in the way and nothing to make; None: look closer (it may have been moved)."""
        from_directory, _, from_name = source.rpartition(b"/")
        to_directory, _, to_name = place.rpartition(b"/")
        try:
            target_fd = self._root.directory(to_directory)
            os.rename(from_name, to_name, src_dir_fd=self._root.directory(from_directory), dst_dir_fd=target_fd)
            return os.stat(to_name, dir_fd=target_fd, follow_symlinks=False)
        except (OSError, Refused):
            return None

    def _move_in(self, source: bytes, place: bytes, make_room: Callable[[], None]) -> bool:
        """False where the staged object is gone: the step was done before a crash."""
        for _ in range(4):
            try:
                self._rename(source, place)
            except FileNotFoundError:
                if not self._exists(source):
                    return False
                self._make_parents(place)
            except (NotADirectoryError, Refused):
                # Done before a crash: what stands in the way came later, and stays.
                if not self._exists(source):
                    return False
                self._make_parents(place)
            except OSError as error:
                if error.errno == errno.EXDEV:
                    self._copy_in(source, place)
                    return True
                if error.errno not in _TARGET_IS_DIRECTORY:
                    raise
                make_room()
            else:
                return True
        raise OSError(errno.EBUSY, "the place is taken again and again", os.fsdecode(place))

    def _rename(self, source: bytes, place: bytes) -> None:
        from_directory, from_name = split(source)
        to_directory, to_name = split(place)
        source_fd = self._root.directory(from_directory)
        target_fd = self._root.directory(to_directory)
        os.rename(from_name, to_name, src_dir_fd=source_fd, dst_dir_fd=target_fd)

    def _exists(self, place: bytes) -> bool:
        try:
            self._root.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _copy_in(self, source: bytes, place: bytes) -> None:
        """The parent is on another filesystem: a synced copy beside the final name, then the rename."""
        parent, name = split(place)
        beside = join(parent, b".ha-copy-" + name[-200:])
        status = self._root.lstat(source)
        if stat.S_ISLNK(status.st_mode):
            directory = self._root.directory(parent)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(split(beside)[1], dir_fd=directory)
            os.symlink(self._root.readlink(source), split(beside)[1], dir_fd=directory)
        else:
            self._copy_file(source, beside, status)
        self._rename(beside, place)
        self._unlink(source)

    def _copy_file(self, source: bytes, target: bytes, status: os.stat_result) -> None:
        reading = self._root.open(source, os.O_RDONLY)
        try:
            writing = self._root.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                copy_range(reading, writing, 0, status.st_size)
                os.ftruncate(writing, status.st_size)
                apply_to_descriptor(
                    writing,
                    Metadata(
                        mode=stat.S_IMODE(status.st_mode),
                        uid=status.st_uid,
                        gid=status.st_gid,
                        mtime_ns=status.st_mtime_ns,
                    ),
                )
                os.fsync(writing)
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _unlink(self, place: bytes) -> None:
        directory, name = split(place)
        os.unlink(name, dir_fd=self._root.directory(directory))

    def _make_parents(self, place: bytes) -> None:
        """Every directory above a place; what is no directory goes to the trash."""
        at = b""
        parent, _ = split(place)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
            self._root.directory(parent)
            return
        self._root.forget()
        for part in parent.split(b"/") if parent else ():
            at = join(at, part)
            self._ensure_directory(at)

    def _ensure_directory(self, place: bytes) -> bool:
        """Whether it was made."""
        try:
            status = self._root.lstat(place)
        except FileNotFoundError:
            parent, name = split(place)
            if place == HELD:
                make_own_directory(self._root.directory(parent), name)
            else:
                os.mkdir(name, 0o755, dir_fd=self._root.directory(parent))
            self._unsynced.add(parent)
            return True
        if not stat.S_ISDIR(status.st_mode):
            self.take_away(place, status)
            return self._ensure_directory(place)
        return False

    # ---- removing

    def _remove(self, step: Step, outcome: Outcome, *, again: bool) -> None:
        path = step.change.path
        place = self._scope.place(path)
        try:
            status = self._root.lstat(place)
        except (FileNotFoundError, NotADirectoryError, Refused):
            status = None
        # After a crash: what stands there with another inode came later in the group.
        if status is not None and not (again and status.st_ino != step.inode):
            self.take_away(place, status)
            self._touch(place, outcome)
            if stat.S_ISDIR(status.st_mode):
                _forget_below(outcome.entries, path)
                _forget_below(outcome.directories, place)
        _forget_below(outcome.lost, path)
        outcome.entries.pop(path, None)
        outcome.removed.append(path)

    def take_away(self, place: bytes, status: os.stat_result) -> None:
        """Out of the tree; below a directory the node's own files stay."""
        if stat.S_ISDIR(status.st_mode) and self._scope.node_patterns and self._holds_protected(place):
            self._take_away_below(place)
            return
        self._trash.take(place, status, unused=self._unused_name())
        self._unsynced.add(split(place)[0])

    def _holds_protected(self, place: bytes) -> bool:
        fd = self._root.open(place, _DIRECTORY_FLAGS)
        try:
            prefix = place + b"/"
            for directory, folders, files, _ in os.fwalk(b".", dir_fd=fd):
                inside = b"" if directory == b"." else directory[2:] + b"/"
                if any(self._scope.is_node_own(prefix + inside + name) for name in folders + files):
                    return True
        finally:
            os.close(fd)
        return False

    def _take_away_below(self, place: bytes) -> None:
        for name in os.listdir(self._root.directory(place)):
            each = join(place, os.fsencode(name))
            if not self._scope.is_node_own(each):
                self.take_away(each, self._root.lstat(each))

    # ---- directories and metadata

    def _directory(self, step: Step, outcome: Outcome, *, again: bool) -> None:
        path = step.change.path
        place = self._scope.place(path)
        moved = bool(step.source) and self._move_directory(step.source, place)
        if not moved and not again and place:
            self._make_parents(place)
            moved = self._ensure_directory(place)
        if moved:
            self._touch(place, outcome)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
            status = self._root.lstat(place)
            if stat.S_ISDIR(status.st_mode) and (not again or status.st_ino == step.inode):
                outcome.directories[place] = step
                outcome.entries[path] = step.entry(witness_of(status))

    def _move_directory(self, source: bytes, place: bytes) -> bool:
        """False where a directory stands there already, or where this was done before a crash."""
        if not self._exists(source):
            return False
        self._make_parents(place)
        with contextlib.suppress(FileNotFoundError):
            status = self._root.lstat(place)
            if stat.S_ISDIR(status.st_mode):
                directory, name = split(source)
                os.rmdir(name, dir_fd=self._root.directory(directory))
                return False
            self.take_away(place, status)
        try:
            self._rename(source, place)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return self._ensure_directory(place)
        return True

    def _adjust(self, step: Step, outcome: Outcome) -> None:
        """Only the object that it was meant for: a later step of the group may have replaced it."""
        path = step.change.path
        place = self._scope.place(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
            status = self._root.lstat(place)
            if status.st_ino != step.inode or object_type(status.st_mode) != TYPES[step.change.type]:
                return
            self._apply(place, step)
            known = outcome.entries.get(path) or self._catalogue.entry(path)
            if known is not None:
                fresh = step.entry(witness_of(self._root.lstat(place)))
                outcome.entries[path] = _with_content_of(known, fresh)

    def _apply(self, place: bytes, step: Step) -> None:
        if step.change.type == SYMLINK:
            parent, name = split(place)
            refused = apply_to_symlink(self._root.directory(parent), name, metadata_of(step.change))
        else:
            fd = self._root.open(place, _DIRECTORY_FLAGS if step.change.type == DIRECTORY else os.O_RDONLY)
            try:
                refused = apply_to_descriptor(fd, metadata_of(step.change))
            finally:
                os.close(fd)
        self._adjusted = True
        self.tell_refused(step.change.path, refused)

    def tell_refused(self, path: bytes, refused: tuple[NotApplied, ...]) -> None:
        """Once for each kind of refusal: a filesystem without owners would fill the log."""
        for item in refused:
            if item.what not in self._told:
                self._told.add(item.what)
                self._report(
                    "warning",
                    "metadata cannot be kept here",
                    {"path": os.fsdecode(path), "what": item.what, "reason": item.reason},
                )

    def _finish_directories(self, outcome: Outcome) -> None:
        for place, step in outcome.directories.items():
            if step is not None:
                self._finish_directory(place, metadata_of(step.change), step.change.path)
            elif (known := self._known_directory(place)) is not None:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
                    os.utime(self._root.directory(place), ns=(known.mtime_ns, known.mtime_ns))

    def _known_directory(self, place: bytes) -> Entry | None:
        path = place.removeprefix(HELD + b"/")
        if path in (HELD, STAGE):
            return None
        entry = self._catalogue.entry(path)
        return entry if entry is not None and entry.type == TYPE_DIRECTORY else None

    def _finish_directory(self, place: bytes, wanted: Metadata, path: bytes) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
            self.tell_refused(path, apply_to_descriptor(self._root.directory(place), wanted))
            self._unsynced.add(place)

    # ---- durability of the directories

    @property
    def unsynced(self) -> bool:
        """Whether renames are not yet durable by themselves (their intent is)."""
        return self._adjusted or bool(self._unsynced)

    def synced(self) -> None:
        """The whole filesystem was synced."""
        self._unsynced.clear()
        self._adjusted = False

    def sync_directories(self) -> None:
        """Makes every rename durable."""
        if self._adjusted or len(self._unsynced) >= SYNCFS_FROM:
            syncfs(self._root.fd)
        else:
            for place in sorted(self._unsynced):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, Refused):
                    os.fsync(self._root.directory(place))
        self.synced()


def _forget_below(known: dict[bytes, Any], path: bytes) -> None:
    below = path + b"/"
    for each in [each for each in known if each == path or each.startswith(below)]:
        del known[each]


def _with_content_of(known: Entry, fresh: Entry) -> Entry:
    return Entry(
        path=known.path,
        type=known.type,
        mode=fresh.mode,
        uid=fresh.uid,
        gid=fresh.gid,
        mtime_ns=fresh.mtime_ns,
        size=known.size,
        hash=known.hash,
        block_size=known.block_size,
        block_hashes=known.block_hashes,
        link_target=known.link_target,
        xattrs=fresh.xattrs,
        witness=fresh.witness,
    )
